"""Drafts change how long it takes, never what comes out."""

import copy
import importlib.util

import numpy as np
import pytest

import strategies
from tests.conftest import tiny_decoder, tiny_recurrent
from tests.litert.test_decoder import FAMILIES
from tfspeed.engines import create
from tfspeed.engines.sampling import Sampling
from tfspeed.errors import TfspeedError
from tfspeed.models.load import load
from tfspeed.speculation import DRAFTS, Speculation

PROMPTS = [[5, 9, 2, 33], [7], [1, 2, 3, 4, 5, 6, 1, 2, 3, 4, 5, 6, 1, 2, 3], list(range(1, 19))]


def speculative(model, draft="lookup", **options):
    changed = copy.copy(model)
    changed.speculation = Speculation(draft, exit_layer=1, **options)
    return changed


def generate(engine, prompt, count, sampling=None, stop=()):
    return [int(row[0]) for row in engine.generate([prompt], count, sampling, stop)]


SAMPLED = Sampling(temperature=0.7, top_k=5, seed=3)


@pytest.mark.parametrize(("engine", "draft", "sampling"), [
    *(("fused", draft, sampling) for draft in DRAFTS for sampling in (None, SAMPLED)),
    *(("fused:int8", draft, None) for draft in DRAFTS),
    ("litert", "early_exit", None), ("litert:int8", "lookup", None),
    pytest.param("litert:int8", "lookup", SAMPLED, marks=pytest.mark.slow),
    *(pytest.param("litert:int4", draft, None, marks=pytest.mark.slow) for draft in DRAFTS),
    pytest.param("graph", "early_exit", None, marks=pytest.mark.slow),
    pytest.param("graph", "lookup", SAMPLED, marks=pytest.mark.slow)])
def test_tokens_are_those_of_a_plain_run(engine, draft, sampling):
    model = tiny_decoder()
    plain, drafting = create(engine, model), create(engine, speculative(model, draft,
                                                                        adaptive=False))
    for prompt in PROMPTS:
        for count in (1, 2, 28):
            assert generate(drafting, prompt, count, sampling) == generate(plain, prompt, count,
                                                                           sampling)
    assert drafting.counted()["drafted_tokens"] > 0


@pytest.mark.parametrize("draft", [
    "lookup", pytest.param("early_exit", marks=pytest.mark.slow)])
def test_tokens_are_those_of_a_plain_run_under_xla(draft):
    model = tiny_decoder()
    plain, drafting = create("xla", model), create("xla", speculative(model, draft, tokens=3,
                                                                      adaptive=False))
    assert generate(drafting, PROMPTS[2], 24) == generate(plain, PROMPTS[2], 24)
    traces = drafting.traces
    generate(drafting, [9, 8, 7, 6], 24)
    assert drafting.traces == traces  # nothing is compiled twice


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("draft", ["lookup", "early_exit"])
def test_all_families(family, draft):
    """LongRoPE's angles change at a position that no draft may reach across."""
    model = tiny_decoder(**FAMILIES[family])
    some = {("longrope", "lookup"): ("graph",), ("longrope", "early_exit"): ("litert",)}
    for engine in ("fused", *some.get((family, draft), ())):
        plain, drafting = create(engine, model), create(engine, speculative(model, draft, tokens=7,
                                                                            adaptive=False))
        assert generate(drafting, PROMPTS[2], 30) == generate(plain, PROMPTS[2], 30)


@pytest.mark.skipif(not importlib.util.find_spec("glassllm"),
                    reason="glassllm is not installed: make setup")
@pytest.mark.parametrize("engine", ["fused", "fused:int8",
                                    pytest.param("xla", marks=pytest.mark.slow)])
def test_a_real_model_that_copies(engine):
    model = load("glassllm")
    prompt = model.tokenizer.encode("once upon a time")
    plain, drafting = create(engine, model), create(engine, speculative(model, adaptive=False))
    assert generate(drafting, prompt, 40) == generate(plain, prompt, 40)
    counted = drafting.counted()
    assert counted["draft_acceptance"] > 0.1  # it repeats itself
    assert counted["tokens_per_pass"] > 1.1


def test_a_copy_of_the_same_weights_is_always_right():
    """Every drafted token is accepted: keys and values of drafts are kept as they should be."""
    model = tiny_decoder()
    engine = create("fused", speculative(model, "low_bit", draft_weights="float16,cache=float32",
                                         tokens=3, adaptive=False))
    generate(engine, PROMPTS[3], 60)
    counted = engine.counted()
    assert counted["draft_acceptance"] > 0.9
    assert counted["tokens_per_pass"] > 3.3


def test_an_exit_after_all_layers_but_an_idle_one_is_always_right():
    model = tiny_decoder(num_layers=3)
    last = model.keras_model.blocks[2]
    for layer in (last.attention.out, last.mlp.down):
        layer.kernel.assign(layer.kernel * 0)
    for engine in ("fused", "fused:int8", "litert:int8"):
        changed = copy.copy(model)
        changed.speculation = Speculation("early_exit", 3, exit_layer=2, adaptive=False)
        drafting = create(engine, changed)
        assert generate(drafting, PROMPTS[0], 60) == generate(create(engine, model), PROMPTS[0],
                                                              60)
        sure = 1.0 if "fused" in engine else 0.9  # near ties are asked for again
        assert drafting.counted()["draft_acceptance"] >= sure


def test_a_near_tie_is_decided_by_a_plain_step(monkeypatch):
    """Elsewhere a pass may round otherwise than a step: every token is taken for a near tie."""
    from tfspeed.speculation import litert_text
    monkeypatch.setattr(litert_text, "_DOUBT", np.inf)
    model = tiny_decoder()
    drafting = create("litert", speculative(model, tokens=3, adaptive=False))
    assert generate(drafting, PROMPTS[2], 24) == generate(create("litert", model), PROMPTS[2], 24)
    assert drafting.counted()["drafted_tokens"] > 0
    assert drafting.counted()["tokens_per_pass"] == 1.0


@pytest.mark.slow
@pytest.mark.parametrize("draft", ["lookup", "early_exit"])
def test_litert_grows_its_cache_where_a_plain_run_does(draft, monkeypatch):
    from tfspeed.litert import session
    monkeypatch.setattr(session, "CAPACITIES", (16, 32))
    model = tiny_decoder()
    drafting = create("litert", speculative(model, draft, adaptive=False))
    plain = create("litert", model)
    for prompt in PROMPTS[::2]:
        assert generate(drafting, prompt, 60) == generate(plain, prompt, 60)


def test_a_stop_token_ends_it_within_a_draft():
    model = tiny_decoder()
    plain = create("fused", model)
    whole = generate(plain, PROMPTS[0], 40)
    drafting = create("fused", speculative(model, "low_bit", draft_weights="float16",
                                           adaptive=False))
    for stop in whole[5:12]:
        assert generate(drafting, PROMPTS[0], 40, stop=[stop]) == generate(
            plain, PROMPTS[0], 40, stop=[stop])


def test_a_cache_that_grows_and_texts_that_overlap():
    model = tiny_decoder(context_length=300)
    for draft in DRAFTS:
        plain, drafting = create("fused", model), create("fused", speculative(model, draft,
                                                                              adaptive=False))
        assert generate(drafting, PROMPTS[2], 270) == generate(plain, PROMPTS[2], 270)
        first = drafting.generate([PROMPTS[0]], 20)
        second = drafting.generate([PROMPTS[3]], 20)
        rows = np.asarray([(int(a[0]), int(b[0])) for a, b in zip(first, second, strict=True)]).T
        assert rows[0].tolist() == generate(plain, PROMPTS[0], 20)
        assert rows[1].tolist() == generate(plain, PROMPTS[3], 20)


def test_a_batch_runs_without_drafts():
    model = tiny_decoder()
    drafting = create("fused", speculative(model, adaptive=False))
    made = np.stack(list(drafting.generate(PROMPTS, 10)), axis=1)
    assert made.tolist() == np.stack(list(create("fused", model).generate(PROMPTS, 10)),
                                     axis=1).tolist()
    assert drafting.counted() == {}
    assert any("batch" in note for note in drafting.notes)


def test_what_cannot_take_tokens_back_is_refused():
    with pytest.raises(TfspeedError, match="cannot take tokens back"):
        create("litert", speculative(tiny_recurrent("gru")))
    with pytest.raises(TfspeedError, match="decoders"):
        strategies.create("speculative").apply(tiny_recurrent("gru"))
    with pytest.raises(TfspeedError, match="the model itself"):
        create("fused:int4", speculative(tiny_decoder(), "low_bit"))
    mirrored = strategies.create("mirrored+speculative")
    with mirrored.scope(), pytest.raises(TfspeedError, match="on one device"):
        create("graph", mirrored.apply(tiny_decoder()))
    from tfspeed.serving import backend
    with pytest.raises(TfspeedError, match="makes no drafts"):
        backend.create("fused", speculative(tiny_decoder()))


@pytest.mark.parametrize(("options", "error"), [
    ({"draft": "guess"}, "lookup, early_exit, low_bit"), ({"tokens": 0}, "Between 1 and"),
    ({"tokens": 99}, "Between 1 and"), ({"exit_layer": -1}, "exit_layer"),
    ({"draft_weights": "int3"}, "int3")])
def test_bad_options_are_refused(options, error):
    options = strategies.find("speculative").Options(**options)
    with pytest.raises(TfspeedError, match=error):
        strategies.create("speculative", {"speculative": options})


def test_an_exit_that_leaves_out_nothing_is_refused():
    options = strategies.find("speculative").Options(exit_layer=2)
    with pytest.raises(TfspeedError, match="leave out some layers"):
        strategies.create("speculative", {"speculative": options}).apply(tiny_decoder())


def test_it_composes_with_quantize():
    composed = strategies.create("quantize+speculative")
    model = composed.apply(tiny_decoder())
    plain = strategies.create("quantize").apply(tiny_decoder())
    assert generate(create("fused", model), PROMPTS[2], 20) == generate(create("fused", plain),
                                                                        PROMPTS[2], 20)
