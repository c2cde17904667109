"""A user's Keras model of recurrent layers keeps its state, and goes everywhere."""

import keras
import numpy as np
import pytest

from tests.engines.test_engines import generate
from tfspeed.engines import create
from tfspeed.models.load import load
from tfspeed.models.recurrent import CELLS, RecurrentModel
from tfspeed.models.recurrent_keras import recurrent_of
from tfspeed.models.uncached import UncachedModel

TOKENS = np.asarray([[5, 9, 2, 33, 8, 1]], np.int32)


def layers(cell, last=None, **changes):
    kind = CELLS[cell]
    return [keras.layers.Embedding(40, 6), keras.layers.Dropout(0.5),
            kind(8, **{"return_sequences": True} | changes), kind(10, return_sequences=True),
            last or keras.layers.Dense(40)]


def functional(parts):
    x = tokens = keras.Input((None,), dtype="int32")
    for layer in parts:
        x = layer(x)
    return keras.Model(tokens, x)


@pytest.mark.parametrize("cell", ["lstm", *(pytest.param(name, marks=pytest.mark.slow)
                                            for name in ("rnn", "gru"))])
def test_its_numbers_are_kept(cell):
    theirs = functional(layers(cell))
    model = load(theirs)
    assert isinstance(model, RecurrentModel)
    np.testing.assert_allclose(model.score(TOKENS), theirs(TOKENS), atol=1e-5)
    assert model.parameters == theirs.count_params()


@pytest.mark.slow
def test_a_file_and_litert(tmp_path):
    theirs = keras.Sequential([keras.Input((None,), dtype="int32"), *layers(
        "gru", keras.layers.Dense(40, use_bias=False, activation="softmax"))])
    theirs.save(tmp_path / "gru.keras")
    model, engine = load(tmp_path / "gru.keras"), create("litert", load(tmp_path / "gru.keras"))
    np.testing.assert_allclose(keras.ops.softmax(model.score(TOKENS)), theirs(TOKENS), atol=1e-5)
    np.testing.assert_allclose(engine.score(TOKENS), model.score(TOKENS), atol=1e-5)
    text = TOKENS[0].tolist()
    for _ in range(4):
        text.append(int(np.argmax(theirs(np.asarray([text], np.int32))[0, -1])))
    np.testing.assert_array_equal(generate(engine, [TOKENS[0].tolist()], 4)[0], text[6:])
    model.keras_model.save(tmp_path / "ours.keras")
    np.testing.assert_array_equal(load(tmp_path / "ours.keras").score(TOKENS), model.score(TOKENS))


def test_others_run_as_they_are():
    once = layers("lstm")
    tokens = keras.Input((None,), dtype="int32")
    x = once[0](tokens)
    x = keras.layers.Concatenate()([x, once[2](x)])
    other = keras.Model(tokens, keras.layers.Dense(40)(x))
    for model in (functional(layers("lstm", activation="relu")),
                  functional(layers("gru", go_backwards=True)),
                  functional(layers("gru", reset_after=False)),
                  functional(layers("rnn", keras.layers.Dense(40, activation="relu"))), other):
        assert recurrent_of(model) is None
    assert isinstance(load(other), UncachedModel)
