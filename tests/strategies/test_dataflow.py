"""A pipeline gives the tokens of one device, whatever is in a batch; mistakes are told."""

import numpy as np
import pytest

import strategies
from strategies.dataflow import Options
from tests.conftest import MODELS, tiny_decoder
from tests.strategies.test_contract import PROMPTS
from tfspeed.costs import shapes
from tfspeed.dataflow import timing
from tfspeed.engines import create
from tfspeed.engines.sampling import Sampling
from tfspeed.errors import TfspeedError
from tfspeed.models.config import RopeConfig

NEW = 7


def piped(model, engine="graph", before="", **options):
    strategy = strategies.create(f"{before}dataflow", {"dataflow": Options(**options)})
    with strategy.scope():
        return create(engine, strategy.apply(model))


def tokens(engine, rows=5, **settings):
    return np.stack(list(engine.generate(PROMPTS[:rows], NEW, **settings)), axis=1)


@pytest.fixture(scope="module")
def three():
    """Three stages over four layers, and the same model on one device."""
    model = tiny_decoder(num_layers=4)
    return piped(model, stages=3), create("graph", tiny_decoder(num_layers=4))


def test_tokens_are_those_of_one_device(three):
    engine, alone = three
    for rows in (5, 1, 3):
        np.testing.assert_array_equal(tokens(engine, rows), tokens(alone, rows))
    traces = engine.traces
    tokens(engine)
    assert engine.traces == traces


def test_sampled_and_stopped_as_on_one_device(three):
    engine, alone = three
    sampling = Sampling(temperature=1.5, top_k=20, top_p=0.9, seed=11)
    np.testing.assert_array_equal(tokens(engine, sampling=sampling),
                                  tokens(alone, sampling=sampling))
    plain = tokens(alone)
    for stop in ([row[2] for row in plain[:4]], [row[1] for row in plain]):
        np.testing.assert_array_equal(tokens(engine, stop_tokens=stop),
                                      tokens(alone, stop_tokens=stop))


def test_who_leaves_early_leaves_nothing_behind(three):
    engine, alone = three
    for limit in (1, 3):
        for count, _ in enumerate(engine.generate(PROMPTS, NEW), 1):
            if count == limit:
                break
    assert not any(stage._states for stage in engine._stages)
    np.testing.assert_array_equal(tokens(engine), tokens(alone))


def test_one_generation_at_a_time(three):
    engine, _ = three
    first = engine.generate(PROMPTS, NEW)
    next(first)
    with pytest.raises(TfspeedError, match="one generation at a time"):
        next(engine.generate(PROMPTS, NEW))
    first.close()
    tokens(engine)


def test_scores_go_through_all_stages(three):
    engine, alone = three
    text = np.arange(24, dtype=np.int32).reshape(2, 12)
    np.testing.assert_allclose(engine.score(text), alone.score(text), atol=1e-4)


def test_each_layer_lies_in_one_stage_and_is_timed(three):
    engine, _ = three
    assert [i for p in engine.plans for i in p.blocks] == [0, 1, 2, 3]
    assert [(p.first, p.last) for p in engine.plans] == [(True, False), (False, False),
                                                         (False, True)]
    assert all(set(p.seconds) == {"prefill", "step"} for p in engine.plans)
    assert all(s["step"] and s["prefill"] for s in engine.seconds())
    assert engine.devices == ("stage 0", "stage 1", "stage 2")


@pytest.mark.parametrize("kind", ["sliding", "alibi", *(
    pytest.param(kind, marks=pytest.mark.slow) for kind in ("learned", "uneven"))])
def test_kinds_of_decoders(kind):
    np.testing.assert_array_equal(tokens(piped(MODELS[kind](), stages=2)),
                                  tokens(create("graph", MODELS[kind]())))


@pytest.mark.slow
def test_longrope_across_its_original_context():
    """Rows pass it at different times, some in the prompt: none changes its batch's angles."""
    def model():
        return tiny_decoder(rope=RopeConfig(factors=(1.0, 2.0), long_factors=(3.0, 4.0),
                                            original_context=8, attention_factor=1.2))
    alone = create("graph", model())
    expected = [[int(t[0]) for t in alone.generate([prompt], NEW)] for prompt in PROMPTS]
    np.testing.assert_array_equal(tokens(alone), expected)
    np.testing.assert_array_equal(tokens(piped(model(), stages=2)), expected)


def test_under_xla_and_in_more_groups_than_stages():
    engine = piped(tiny_decoder(tied_embeddings=False), "xla", stages=2, microbatches=3)
    alone = create("xla", tiny_decoder(tied_embeddings=False))
    np.testing.assert_array_equal(tokens(engine), tokens(alone))
    assert engine.name == "xla"
    assert any("groups" in note for note in engine.notes)


@pytest.mark.parametrize("engine", ["fused", "fused:int8",
                                    pytest.param("fused:int4", marks=pytest.mark.slow)])
def test_fused_stages(engine):
    """float32, and integers, whose sums do not depend on how many rows there are."""
    changes = {"num_layers": 4, "positions": "learned"} if engine == "fused" else {"num_layers": 4}
    piped_engine, alone = piped(tiny_decoder(**changes), engine, stages=3), create(
        engine, tiny_decoder(**changes))
    for rows in (5, 1, 4):
        np.testing.assert_array_equal(tokens(piped_engine, rows), tokens(alone, rows))
    sampling = Sampling(temperature=1.5, seed=11)
    np.testing.assert_array_equal(tokens(piped_engine, sampling=sampling),
                                  tokens(alone, sampling=sampling))
    text = np.arange(24, dtype=np.int32).reshape(2, 12)
    np.testing.assert_allclose(piped_engine.score(text), alone.score(text), atol=1e-4)
    assert piped_engine.name == alone.name
    assert piped_engine.dtype == alone.dtype


@pytest.mark.parametrize("engine", ["graph", "fused:int8"])
def test_the_first_stage_runs_the_head_for_some_groups(engine, monkeypatch):
    def seconds(factory, work, stages):  # the head takes as long as the rest of a step
        nodes = len(factory.decoder.blocks) + 2
        step = np.r_[0.0, np.ones(nodes - 2), nodes - 2.0]
        return {"prefill": np.r_[0.0, np.ones(nodes - 2), 0.0], "step": step,
                "prefill_call": np.zeros(1), "step_call": np.zeros(1)}

    monkeypatch.setattr(timing, "node_seconds", seconds)
    made, alone = piped(tiny_decoder(), engine, stages=2), create(engine, tiny_decoder())
    for rows in (5, 1):
        np.testing.assert_array_equal(tokens(made, rows), tokens(alone, rows))
    assert made.plans[0].heads == 0.5
    assert made.plans[0].content == "embedding, block 0, head of 50% of the groups"
    assert made.plans[1].content == "block 1, head of 50% of the groups"
    assert made.seconds()[0]["head"]
    sampling = Sampling(temperature=1.5, seed=11)
    np.testing.assert_array_equal(tokens(made, sampling=sampling),
                                  tokens(alone, sampling=sampling))


def test_after_quantize():
    whole = strategies.create("quantize").apply(tiny_decoder())
    engine = piped(tiny_decoder(), before="quantize+", stages=2)
    np.testing.assert_array_equal(tokens(engine), tokens(create("graph", whole)))
    assert engine.whole == shapes.of(whole)  # also now that the layers are shared out


def test_a_stage_that_fails_is_the_callers_error(three):
    engine, alone = three
    stage, calls = engine._stages[1], []

    def fails(header, *arrays):
        calls.append(header)
        raise MemoryError("no memory")

    stage._step = fails
    with pytest.raises(MemoryError, match="no memory"):
        tokens(engine)
    del stage._step
    assert calls
    np.testing.assert_array_equal(tokens(engine), tokens(alone))


def test_mistakes_are_told():
    with pytest.raises(TfspeedError, match="as many stages as the model has layers"):
        piped(tiny_decoder(), stages=3)
    with pytest.raises(TfspeedError, match="this model is none"):
        piped(MODELS["gru"](), stages=2)
    with pytest.raises(TfspeedError, match="0 or more"):
        strategies.create("dataflow", {"dataflow": Options(stages=-1)})
    mirrored = strategies.create("mirrored")
    with mirrored.scope(), pytest.raises(TfspeedError, match="spread already"):
        piped(mirrored.apply(tiny_decoder()), stages=2)  # together they are refused by name
    with pytest.raises(TfspeedError, match="on one device"):
        piped(tiny_decoder(), "litert", stages=2)


def test_one_stage_is_the_engine_alone():
    assert type(piped(tiny_decoder())) is type(create("graph", tiny_decoder()))
