"""`float16` and `bfloat16`: half the bytes, nearly the same function."""

import numpy as np
import pytest

import strategies
from tests.compression.test_core import einsum_model
from tests.conftest import tiny_decoder, tiny_recurrent, tiny_uncached
from tfspeed.engines import create

TOKENS = np.random.default_rng(0).integers(0, 64, (2, 24), np.int32)


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
@pytest.mark.parametrize("make", [tiny_decoder, lambda: tiny_recurrent("gru"), tiny_uncached,
                                  einsum_model])
def test_half_the_bytes_and_nearly_the_same_function(make, name):
    model = make()
    changed = strategies.create(name).apply(model)
    assert changed.dtype == name
    assert model.dtype == "float32"
    assert changed.weights_bytes == model.weights_bytes // 2
    expected = np.asarray(model.score(TOKENS))
    error = np.asarray(changed.score(TOKENS)) - expected
    bound = 0.02 if name == "float16" else 0.15
    assert 0 < np.sqrt(np.square(error).mean()) < bound * expected.std()


def test_the_cache_is_cast_too_and_engines_run_it():
    changed = strategies.create("bfloat16").apply(tiny_decoder())
    assert changed.initial_state(1, 8)["caches"][0][0].dtype == "bfloat16"
    assert len(list(create("xla", changed).generate([[1, 2, 3]], 4))) == 4
    assert changed.keras_model.dtype_policy.name == "bfloat16"


def test_it_composes_with_packed_weights():
    model = tiny_decoder()
    changed = strategies.create("quantize+bfloat16").apply(model)
    assert changed.weights_bytes < model.weights_bytes / 2
    expected = np.asarray(model.score(TOKENS))
    error = np.asarray(changed.score(TOKENS)) - expected
    assert np.sqrt(np.square(error).mean()) < 0.25 * expected.std()
