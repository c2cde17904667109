"""What is chosen by predictions is judged by what was measured."""

import dataclasses
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.costs.calibrations import made_up
from tfspeed.costs import calibrating, cases, choosing, observer, observing, planner, shapes
from tfspeed.costs.prediction import Predictor
from tfspeed.errors import TfspeedError
from tfspeed.measure.bandwidth import MemoryReader
from tfspeed.measure.placement import PlacementReader


@pytest.fixture(scope="module")
def points():
    shape = shapes.decoder(cases.MODELS["llama-60m"])
    return choosing.predicted(shape, Predictor(made_up()), [1, 2])


def as_measured(points, **slower):
    """The same times, but for an engine that takes so many times as long."""
    return [choosing.measured(p, [{"ttft_s": [p.ttft_s], "tpot_s": [
        p.tpot_s * slower.get(p.quality.engine.replace(":", "_"), 1)]}]) for p in points]


def test_the_grid_has_every_engine_thread_and_batch(points):
    assert len({choosing.case(p) for p in points}) == len(points) == 7 * 2 * 3


def test_true_predictions_are_never_behind(points):
    rows = choosing.judge(points, as_measured(points))
    assert len(rows) > 9
    assert all(row["behind"] == 0 and row["allowed"] and row["chosen"] == row["best"]
               for row in rows)


def test_a_choice_that_is_slower_than_predicted_is_behind(points):
    rows = choosing.judge(points, as_measured(points, fused_int8=10))
    found = {row["goal"]: row for row in rows}["fastest at batch 1, at least 8 bits"]
    assert found["chosen"].startswith("fused:int8")
    assert not found["best"].startswith("fused:int8")
    assert found["behind"] > 0.5


def test_a_glance_tells_contenders_apart(points):
    goal = choosing.goals()[0]
    best, other = sorted(points, key=goal.cost)[:2]
    close = [dataclasses.replace(p, e2e_s=1.1 * best.e2e_s) if p is other else p for p in points]
    rivals = choosing.contenders(goal, close)
    assert rivals[0] == best
    assert 2 <= len(rivals) <= 4
    assert max(map(goal.cost, rivals)) <= (1 + planner.DOUBT) * goal.cost(best)
    glances = {choosing.case(best): dataclasses.replace(best, e2e_s=2 * best.e2e_s)}
    assert choosing.choose(goal, close, {}) == best
    assert choosing.choose(goal, close, glances) == rivals[1]


def test_a_glance_sees_whether_a_bound_is_kept(points):
    goal = choosing.goals()[-1]
    limit = 0.032
    close = [dataclasses.replace(p, tpot_s=limit * (1 + i / 20)) for i, p in enumerate(points)]
    rivals = choosing.contenders(goal, close)
    assert all(p.tpot_s <= limit * (1 + planner.DOUBT) for p in rivals)
    glances = {choosing.case(p): dataclasses.replace(p, tpot_s=p.tpot_s / 1.2) for p in rivals}
    assert choosing.choose(goal, close, glances) == max(rivals, key=lambda p: p.output_tokens_per_s)
    broken = {choosing.case(p): dataclasses.replace(p, tpot_s=2 * p.tpot_s) for p in rivals}
    assert choosing.choose(goal, close, broken).tpot_s == min(p.tpot_s for p in rivals)
    assert choosing.choose(goal, [dataclasses.replace(p, tpot_s=1.0) for p in points], {}) is None


def test_a_bound_is_kept_where_every_round_keeps_it(points):
    rounds = [{"ttft_s": [0.1], "tpot_s": [each]} for each in (0.003, 0.0045, 0.003)]
    found = choosing.measured(points[0], rounds)
    assert found.e2e_s == pytest.approx(0.1 + (choosing.NEW_TOKENS - 1) * 0.003)
    bounds = {goal.name: goal for goal in choosing.goals()}
    assert not bounds["most tokens/s within 4 ms each"].allowed(found)
    assert bounds["most tokens/s within 8 ms each"].allowed(found)


def test_a_bound_that_only_the_prediction_keeps(points):
    truths = [dataclasses.replace(p, tpot_s=10 * p.tpot_s, e2e_s=10 * p.e2e_s) for p in points]
    rows = {row["goal"]: row for row in choosing.judge(points, truths)}
    assert any(not row["allowed"] for row in rows.values())


def test_an_observer_that_fails_ends_those_that_are_busy(monkeypatch):
    ended = threading.Event()

    class Fake:
        def __init__(self, threads):
            self.threads = threads

        def prepare(self, cases, products, short):
            if self.threads == 1:
                raise TfspeedError("no memory", threads=1)
            assert ended.wait(30)

        def close(self):
            ended.set()

    monkeypatch.setattr(observing, "Observer", Fake)
    monkeypatch.setattr(calibrating.loopback, "measure", lambda: None)
    with pytest.raises(TfspeedError, match="no memory"):
        calibrating.calibrate([1, 2], ["graph"], calibrating.Progress())
    assert ended.is_set()


@pytest.mark.slow
def test_models_are_made_and_compiled_side_by_side():
    some = [cases.Case(model, engine, 2, 1, 20, 4) for model in ("cal-small", "cal-thin")
            for engine in ("graph", "xla", "litert:int8", "fused")]
    observer.prepare(some, 2, "graph", short=True)
    assert set(observer._ready) == {(case.model, case.engine) for case in some}
    for case in some:
        times = observer.observe(case, MemoryReader(2, 16 << 20), PlacementReader(2))
        assert all(seconds > 0 for name in cases.METRICS for seconds in times[name])
        assert len(times["memory"]) == 2
        assert all(set(each) == {"turn_s", "multiplied"} for each in times["placement"])
        assert min(times["memory"]) > 1e8
    observer.prepare([], 2)
    assert not observer._ready


def test_an_observer_that_does_not_start_leaves_none_behind(monkeypatch):
    closed = []

    class Fake:
        def __init__(self, threads):
            if threads == 2:
                raise TfspeedError("no such threads", threads=threads)

        def close(self):
            closed.append(self)

    monkeypatch.setattr(observing, "Observer", Fake)
    with pytest.raises(TfspeedError, match="no such threads"):
        calibrating.calibrate([1, 2], [], calibrating.Progress())
    assert len(closed) == 1


@pytest.mark.parametrize("module", ["calibrate_job", "costs.observer"])
def test_tensorflow_is_imported_late(module):
    """A calibration has a minute, and its processes set their threads before they start it."""
    done = subprocess.run([sys.executable, "-c", f"import sys, tfspeed.{module}; "
                           "sys.exit('tensorflow' in sys.modules)"], cwd=Path(__file__).parents[2],
                          timeout=60)
    assert done.returncode == 0
