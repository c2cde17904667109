"""Keras's own quantization as a strategy, and what is known of it."""

import numpy as np
import pytest

from strategies.keras_quantize import KerasQuantize, Options
from tests.conftest import tiny_decoder, tiny_uncached
from tfspeed.errors import TfspeedError
from tfspeed.export import job

TOKENS = np.random.default_rng(0).integers(0, 64, (2, 24), np.int32)


def changed(mode, model):
    return KerasQuantize(Options(mode)).apply(model)


@pytest.mark.slow
def test_modes_shrink_the_model_and_calibration_is_inert(monkeypatch):
    """If the last line fails, Keras has mended its calibration: say so in the docstring."""
    monkeypatch.setattr("strategies.keras_quantize._WINDOWS", 2)
    model = tiny_decoder(hidden_dim=64, head_dim=16, mlp_dim=128, num_layers=1)
    expected = np.asarray(model.score(TOKENS))
    found = {}
    for mode in ("int8", "gptq", "awq"):
        made = changed(mode, model)
        assert made.weights_bytes < 0.5 * model.weights_bytes
        found[mode] = np.asarray(made.score(TOKENS))
        assert np.sqrt(np.square(found[mode] - expected).mean()) < expected.std()
    np.testing.assert_array_equal(model.score(TOKENS), expected)
    np.testing.assert_array_equal(found["gptq"], found["awq"])


def test_a_keras_file_of_it_is_refused(tmp_path):
    """It would be written, and no process could read it."""
    model = tiny_decoder(hidden_dim=64, head_dim=16, mlp_dim=128, num_layers=1)
    with pytest.raises(TfspeedError, match="cannot be loaded again"):
        job.export(changed("int8", model), model, "keras", "float32", None, tmp_path, "", None)
    assert not list(tmp_path.iterdir())


def test_bad_input():
    with pytest.raises(TfspeedError, match="int8, int4, gptq, awq"):
        KerasQuantize(Options("int2"))
    with pytest.raises(TfspeedError, match="decoders"):
        changed("gptq", tiny_uncached())
