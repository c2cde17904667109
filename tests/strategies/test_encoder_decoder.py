"""Every strategy over an encoder–decoder works."""

import numpy as np
import pytest

import strategies
from strategies import distill
from strategies.dataflow import Options as DataflowOptions
from strategies.speculative import Options as SpeculativeOptions
from strategies.tensor_parallel import Options as TensorParallelOptions
from tests.models.seq2seq import sources, tiny
from tfspeed.engines import create
from tfspeed.errors import TfspeedError

PROMPTS = [[5, 9, 2], [7]]
SLOW = pytest.mark.slow
SHORT = {"distill": distill.Options(tokens=96, length=12), "dataflow": DataflowOptions(stages=2)}
EXACT = ["baseline", "dataflow", "mirrored", "multi_worker", "speculative", "tensor_parallel"]
WORKS = ["bfloat16", "cluster", "distill", "float16", "keras_quantize", "low_rank", "prune",
         "prune_structured", "quantize"]


def tokens(model, engine="graph"):
    made = create(engine, model)
    return np.stack(list(made.generate(PROMPTS, 5, encoded=made.encode(sources(model, 2)))), 1)


def applied(name):
    model = tiny("whisper")
    # Of its own original, which it is, distill would learn nothing: the weights would stay.
    seed = int(name == "distill")
    model.reload, model.heard = lambda: tiny("whisper", seed), sources(model, 2)
    strategy = strategies.create(name, SHORT)
    with strategy.scope():
        return strategy, strategy.apply(model)


def test_all_are_told_of():
    assert {*EXACT, *WORKS} == set(strategies.STRATEGIES)


@pytest.mark.parametrize("name", ["baseline", *(pytest.param(n, marks=SLOW) for n in EXACT
                                                if n != "baseline")])
def test_exact_ones_give_the_same_tokens(name):
    np.testing.assert_array_equal(tokens(applied(name)[1]), tokens(tiny("whisper")))


@pytest.mark.parametrize(("shape", "engine", "draft"), [
    ("whisper", "litert:int8", "early_exit"),
    *(pytest.param(*some, marks=SLOW) for some in (
        ("whisper", "graph", "lookup"), ("whisper", "xla", "early_exit"),
        ("whisper", "litert", "lookup"), ("t5", "graph", "early_exit"),
        ("t5", "litert", "early_exit"), ("t5_gated", "litert:int8", "lookup"),
        ("bart", "graph", "lookup"), ("bart", "litert", "lookup")))])
def test_drafts_change_no_token(shape, engine, draft):
    model = tiny(shape, suppressed=(3, 9, 33), suppressed_first=(40,))
    options = SpeculativeOptions(draft, exit_layer=1, adaptive=False, tokens=3)
    drafting = create(engine, strategies.create("speculative", {"speculative": options}
                                                ).apply(model))
    alone = create("graph" if engine == "litert" else engine, model)
    for rows, prompt in ((1, [5, 9, 2]), (1, [7, 8, 7, 8, 7]), (2, [4])):
        heard = sources(model, 3)[-rows:]  # another source, the same text
        made = [np.stack(list(each.generate([prompt] * rows, 20, encoded=each.encode(heard))))
                for each in (drafting, alone)]
        np.testing.assert_array_equal(*made)
    assert drafting.counted()["drafted_tokens"] > 0


@pytest.mark.slow
@pytest.mark.parametrize(("shape", "engine", "replicas"), [
    ("whisper", "graph", 3), ("t5", "graph", 3), ("t5_gated", "graph", 2), ("bart", "graph", 2),
    ("whisper", "xla", 2), ("bart", "xla", 2)])
def test_heads_of_both_sides_are_spread(shape, engine, replicas):
    model = tiny(shape, suppressed=(3, 9), num_heads=5)
    options = {"tensor_parallel": TensorParallelOptions(replicas=replicas)}
    split = strategies.create("tensor_parallel", options).apply(model)
    found, alone = create(engine, split), create(engine, model)
    text = np.asarray([[5, 9, 2, 7], [1, 2, 3, 4]], np.int32)
    scores = [each.score(text, each.encode(sources(model, 2))) for each in (found, alone)]
    np.testing.assert_allclose(*scores, atol=2e-4)
    np.testing.assert_array_equal(tokens(split, engine), tokens(model, engine))
    assert split.split_bytes < 0.6 * model.weights_bytes


def test_a_draft_in_few_bits_has_no_engine():
    options = {"speculative": SpeculativeOptions("low_bit")}
    with pytest.raises(TfspeedError, match="fused engine, which has no encoder"):
        strategies.create("speculative", options).apply(tiny("whisper"))


@pytest.mark.parametrize("name", ["quantize", *(pytest.param(n, marks=SLOW) for n in WORKS
                                                if n != "quantize")])
def test_others_change_the_weights_and_run(name):
    strategy, model = applied(name)
    assert tokens(model).shape == (2, 5)
    plain = tiny("whisper").keras_model.weights
    assert len(plain) != len(model.keras_model.weights) or any(
        a.dtype != b.dtype or a.shape != b.shape or (a.numpy() != b.numpy()).any()
        for a, b in zip(plain, model.keras_model.weights, strict=True))
    assert strategy.report()


@pytest.mark.parametrize("name", ["quantize", *(pytest.param(n, marks=SLOW) for n in
                                                ("low_rank", "prune", "prune_structured"))])
def test_litert_takes_what_they_made(name):
    _, model = applied(name)
    near, exact = create("litert", model), create("graph", model)
    text, source = np.asarray([[1, 2, 3]], np.int32), sources(model, 1)
    want = exact.score(text, exact.encode(source))
    have = near.score(text, near.encode(source))
    assert np.abs(have - want).max() < 0.2 * np.abs(want).max()
