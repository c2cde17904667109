"""RNN, LSTM and GRU models through LiteRT: the reference's tokens, and near it with fewer bits."""

import keras
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from tests.conftest import tiny_recurrent
from tests.engines.test_engines import generate, reference
from tfspeed.engines import create
from tfspeed.errors import TfspeedError
from tfspeed.litert.formats import Formats
from tfspeed.litert.graph import TfliteFile
from tfspeed.litert.recurrent import RecurrentLowering, pack_recurrent
from tfspeed.models.recurrent import CELLS, Recurrent, RecurrentModel

LONG = [list(np.arange(n) * 7 % 64) for n in (23, 1, 9)]


@pytest.mark.parametrize("cell", CELLS)
def test_prompts_padded_beside_each_other(cell):
    model = tiny_recurrent(cell)
    engine = create("litert", model)
    for _ in range(2):  # the second text starts from an empty state again
        np.testing.assert_array_equal(generate(engine, LONG, 8), reference(model, LONG, 8))
    assert engine.traces == 1


@pytest.mark.parametrize("weights", ["float16", "int8", "int4", "int8,recurrent=float32"])
@pytest.mark.parametrize("cell", CELLS)
def test_fewer_bits_stay_near(cell, weights):
    model = tiny_recurrent(cell)
    tokens = np.random.default_rng(0).integers(0, 64, (2, 21)).astype(np.int32)
    expected = np.asarray(model.score(tokens))
    engine = create(f"litert:{weights}", model)
    error = np.abs(engine.score(tokens) - expected).mean() / np.abs(expected).mean()
    assert error < {"float16": 0.005, "int4": 0.4}.get(weights, 0.05)
    assert engine.weights_bytes < create("litert", model).weights_bytes
    assert engine.step_bytes(1, 50) <= engine.weights_bytes + 2 * 2 * 16 * 4
    assert generate(engine, LONG, 4).shape == (3, 4)


def test_only_builtin_operators():
    for cell in CELLS:
        model = tiny_recurrent(cell).keras_model
        file = TfliteFile("test")
        packed = pack_recurrent(model, Formats("int8"))
        RecurrentLowering(file, model, packed, "prefill", 2).write(logits=True, padded=True)
        assert schema.BuiltinOperator.CUSTOM not in file.operators


def test_a_head_of_another_format_is_a_matrix_of_its_own():
    model = tiny_recurrent("gru").keras_model
    assert len(pack_recurrent(model, Formats("int8,head=int4")).weights) == 6
    assert len(pack_recurrent(model, Formats("int8")).weights) == 5


def test_a_layer_without_a_form_is_named():
    model = Recurrent(64, 16, cell="gru")
    layer = keras.layers.GRU(16, return_sequences=True, return_state=True, reset_after=False,
                             name="gru_0")
    layer.build((None, None, 16))
    model.layers_[0] = layer
    with pytest.raises(TfspeedError, match="layer='gru_0', type='GRU'"):
        create("litert", RecurrentModel("odd", model))


def test_an_odd_width_has_eight_bits_where_four_are_asked_for():
    model = Recurrent(64, 15, cell="gru")
    assert {w.type for w in pack_recurrent(model, Formats("int4")).weights} == {"INT8"}
