"""Layers of two thin products in the fused operator: the model's own numbers, in every format."""

import numpy as np
import pytest

from tests.conftest import tiny_decoder
from tests.engines.test_engines import generate, reference
from tests.litert.test_decoder import FAMILIES, PROMPTS
from tests.models.test_converted import low_rank
from tfspeed.engines import create
from tfspeed.litert import fused_plan
from tfspeed.litert.formats import Formats
from tfspeed.litert.packed_cache import packed

TOKENS = np.random.default_rng(0).integers(0, 64, (2, 20)).astype(np.int32)
KINDS = ("query_key_value", "attention/out", "gate_up|up$", "down")


def error_of(engine, model):
    expected = np.asarray(model.score(TOKENS))
    return np.abs(engine.score(TOKENS) - expected).mean() / np.abs(expected).mean()


@pytest.mark.parametrize("pattern", [*KINDS, "block"])
@pytest.mark.parametrize("rank", [5, 16])  # no whole vector, and one
def test_float32_gives_the_models_tokens(pattern, rank):
    model = low_rank(tiny_decoder(), pattern, rank)
    engine = create("fused", model)
    np.testing.assert_array_equal(generate(engine, PROMPTS, 12), reference(model, PROMPTS, 12))
    for prompt in PROMPTS:
        np.testing.assert_array_equal(generate(engine, [prompt], 12),
                                      reference(model, [prompt], 12))
    assert error_of(engine, model) < 1e-5
    np.testing.assert_allclose(engine.score(TOKENS), create("litert", model).score(TOKENS),
                               atol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(family):
    model = low_rank(tiny_decoder(**FAMILIES[family]), "block|head", 12)
    assert error_of(create("fused", model), model) < 1e-5


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("rank", [24, 40])  # the latter over the width of everything else
def test_threads_prompts_over_a_tile_and_batches(threads, rank):
    """A batch of thirteen rows and prompts of forty tokens fill tiles of twelve, and more."""
    model = low_rank(tiny_decoder(hidden_dim=24, mlp_dim=28, head_dim=6), "block", rank)
    engine = create("fused", model)
    engine._threads = threads
    prompts = [list(range(1 + i, 41 + i)) for i in range(13)]
    np.testing.assert_array_equal(generate(engine, prompts, 6), reference(model, prompts, 6))
    assert error_of(engine, model) < 1e-5


@pytest.mark.parametrize(("weights", "limit"), [
    ("float16", 0.005), ("int8", 0.1), ("int4", 0.7), ("int4_channel", 0.7),
    ("int8,down=int4", 0.25)])
@pytest.mark.parametrize("rank", [20, 32])
def test_fewer_bits_stay_near(weights, limit, rank):
    model = low_rank(tiny_decoder(hidden_dim=64, head_dim=16, mlp_dim=128), "block", rank)
    engine = create(f"fused:{weights}", model)
    assert error_of(engine, model) < limit
    assert generate(engine, PROMPTS, 4).shape == (3, 4)
    # LiteRT reads the same integers and rounds activations in its own way.
    other = create(f"litert:{weights}", model).score(TOKENS)
    assert np.abs(engine.score(TOKENS) - other).mean() < min(limit, 0.12) * np.abs(other).mean()


def test_thin_products_read_fewer_bytes():
    wide = tiny_decoder(hidden_dim=64, head_dim=16, mlp_dim=128)
    thin = low_rank(wide, "block", 8)
    assert create("fused", thin).step_bytes(1, 16) < 0.8 * create("fused", wide).step_bytes(1, 16)


def test_the_largest_rank_is_planned_for():
    model = low_rank(low_rank(tiny_decoder(), "block_1/mlp", 11), "query_key_value", 7)
    plan = fused_plan.make(model.keras_model.config, packed(model, Formats("float32")), False)
    assert fused_plan._Plan.from_buffer_copy(plan.arrays[0].tobytes()).rank == 11
