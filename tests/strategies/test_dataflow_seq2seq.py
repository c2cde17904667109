"""A pipeline of an encoder–decoder gives the tokens of one device; mistakes are told."""

import io

import numpy as np
import pytest
import rich.console

import strategies
from strategies.dataflow import Options
from tests.models.seq2seq import sources, tiny
from tfspeed.dataflow import explain, timing
from tfspeed.engines import create
from tfspeed.engines.sampling import Sampling
from tfspeed.errors import TfspeedError

PROMPTS, NEW = [[5, 9, 2], [7], [3, 1], [4, 4, 4, 4], [8]], 9


def model(shape="whisper", layers=3):
    return tiny(shape, suppressed=(3, 9, 33), suppressed_first=(40,), encoder_layers=3,
                decoder_layers=layers, source_length=40)


def piped(made, engine="graph", before="", **options):
    strategy = strategies.create(f"{before}dataflow", {"dataflow": Options(**options)})
    return create(engine, strategy.apply(made))


def tokens(engine, rows=5, encoded=None, **settings):
    encoded = encoded or engine.encode(sources(engine.model, 5)[:rows])
    return np.stack(list(engine.generate(PROMPTS[:rows], NEW, encoded=encoded, **settings)), 1)


@pytest.fixture(scope="module")
def pair():
    """Two stages in three groups, and the same model on one device."""
    return piped(model(), stages=2, microbatches=3), create("graph", model())


@pytest.mark.slow
@pytest.mark.parametrize(("shape", "engine", "stages"), [
    ("whisper", "xla", 2), ("t5", "graph", 3), ("t5_gated", "xla", 2), ("bart", "graph", 2)])
def test_kinds_of_encoder_decoders(shape, engine, stages):
    made, alone = piped(model(shape), engine, stages=stages), create(engine, model(shape))
    for rows in (5, 1, 3):
        np.testing.assert_array_equal(tokens(made, rows), tokens(alone, rows))
    text = np.arange(20, dtype=np.int32).reshape(5, 4)
    scores = [each.score(text, each.encode(sources(alone.model, 5))) for each in (made, alone)]
    np.testing.assert_allclose(*scores, atol=2e-4)
    assert made.name == engine


@pytest.mark.slow
def test_a_source_serves_several_calls(pair):
    engine, alone = pair
    _serves(engine, alone)
    tokens(engine)  # what nobody holds is forgotten
    assert all(len({key for key, _ in stage._sources}) == 1 for stage in engine._stages)


def _serves(engine, alone):
    """In a frame of its own: the frame of a running test holds what was deleted from it."""
    heard, other = (each.encode(sources(engine.model, 5)) for each in (engine, alone))
    sampling = Sampling(temperature=1.5, top_k=20, seed=11)
    for settings in ({}, {"sampling": sampling}, {"stop_tokens": [tokens(alone)[0, 2]]}):
        np.testing.assert_array_equal(tokens(engine, encoded=heard, **settings),
                                      tokens(alone, encoded=other, **settings))
    traces = engine.traces
    engine.encode(sources(engine.model, 5)[::-1])
    np.testing.assert_array_equal(tokens(engine, encoded=heard), tokens(alone))
    assert engine.traces == traces


@pytest.mark.slow
def test_nothing_said_and_who_leaves_early(pair):
    engine, alone = pair
    expected = [np.stack(list(alone.generate(PROMPTS, NEW)), 1) for _ in range(2)]
    running = engine.generate(PROMPTS, NEW)
    next(running)
    with pytest.raises(TfspeedError, match="one generation at a time"):
        engine.encode(sources(engine.model, 5))
    running.close()
    np.testing.assert_array_equal(np.stack(list(engine.generate(PROMPTS, NEW)), 1), expected[0])
    assert not any(stage._states for stage in engine._stages)


@pytest.mark.slow
def test_a_stage_that_fails_is_the_callers_error(pair):
    engine, alone = pair
    stage = engine._stages[1]

    def fails(header, *arrays):
        raise MemoryError("no memory")

    for kind in ("_encode", "_hear", "_step"):
        setattr(stage, kind, fails)
        with pytest.raises(MemoryError, match="no memory"):
            tokens(engine)
        delattr(stage, kind)
    np.testing.assert_array_equal(tokens(engine), tokens(alone))


@pytest.mark.slow
def test_a_source_that_is_none_is_told_before_anything_runs(pair):
    engine, _ = pair
    with pytest.raises(TfspeedError, match="log-mel frames"):
        engine.encode(np.zeros((2, 3)))
    with pytest.raises(TfspeedError, match="a source for each of its rows"):
        engine.generate(PROMPTS, NEW, encoded=engine.encode(sources(engine.model, 2)))


@pytest.mark.slow
def test_stages_are_timed_and_shown(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    engine = piped(model(), stages=2)
    shown = rich.console.Console(file=io.StringIO(), width=200)
    tokens(engine)
    with explain.explained(engine, "logs", shown):
        tokens(engine)
    said = shown.file.getvalue()
    assert all(f"{kind} {call}" in said for kind, call in engine.calls.items() if kind == "encode")
    assert "encoder block" in said
    assert set(engine.plans[0].seconds) == {"encode", "hear", "prefill", "step"}
    assert [i for p in engine.plans for i in p.encoder.blocks] == [0, 1, 2]
    assert all(set(seconds) >= {"encode", "hear", "prefill", "step"}
               for seconds in (tokens(engine), engine.seconds())[1])
    assert (tmp_path / "dataflow.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["whisper", "bart"])
def test_the_first_stage_runs_the_head_for_some_groups(shape, monkeypatch):
    """Also there some ids are never said, and a bias is added."""
    measured = timing.node_seconds

    def seconds(*args):  # the head takes as long as the rest of a step
        known = {"prefill": np.array([0.0, 1, 1, 0]), "step": np.array([0.0, 1, 1, 2])}
        return measured(*args) | known

    monkeypatch.setattr(timing, "node_seconds", seconds)
    made = piped(model(shape, 2), stages=2)
    np.testing.assert_array_equal(tokens(made), tokens(create("graph", model(shape, 2))))
    assert made.plans[0].heads == 0.5
    assert made.seconds()[0]["head"]


@pytest.mark.slow
def test_after_quantize():
    whole = strategies.create("quantize").apply(model())
    np.testing.assert_array_equal(tokens(piped(model(), before="quantize+", stages=2)),
                                  tokens(create("graph", whole)))


def test_mistakes_are_told():
    with pytest.raises(TfspeedError, match="as many stages as the model has layers"):
        piped(tiny("t5", encoder_layers=3), stages=3)
    for engine in ("litert", "fused"):
        with pytest.raises(TfspeedError, match="on one device") as error:
            piped(tiny("t5"), engine, stages=2)
        assert "--engine=graph or xla" in str(error.value)
