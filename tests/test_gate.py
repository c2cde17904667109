import math

import pytest

import strategies
from strategies.base import Composition, Strategy
from tfspeed import gate
from tfspeed.errors import TfspeedError
from tfspeed.measure.experiment import Evaluation


class Lossy(Strategy):
    name = "lossy"

    def __init__(self, limit):
        super().__init__()
        self.limit = limit

    @property
    def max_perplexity_increase(self):
        return self.limit


@pytest.mark.parametrize(("engine", "limit"), [
    ("xla", 0.001), ("graph", 0.001), ("litert", 0.001), ("fused:float32", 0.001),
    ("fused:float16", 0.01), ("litert:int8", 0.01), ("litert:int4", 0.03),
    ("fused:int8,mlp/down=int4", 0.03), ("litert:float32,head=int8", 0.01)])
def test_limits_of_engines(engine, limit):
    assert gate.limit(strategies.create("baseline"), engine) == limit


def test_the_largest_limit_counts():
    baseline = strategies.create("baseline")
    assert gate.limit(baseline, "xla", "bfloat16") == 0.01
    composed = Composition([baseline, Lossy(gate.STRUCTURAL), Lossy(gate.INT8)])
    assert composed.max_perplexity_increase == 0.1
    assert gate.limit(composed, "litert:int4") == 0.1
    assert gate.limit(Lossy(gate.INT8), "litert:int4") == 0.03


def test_the_point_estimate_decides():
    assert gate.judge({"perplexity_delta": 0.03}, 0.03) == {"limit": 0.03, "passed": True}
    assert gate.judge({"perplexity_delta": 0.0301}, 0.03) == {"limit": 0.03, "passed": False}
    assert gate.judge({"perplexity_delta": math.inf}, math.inf)["passed"]
    assert not gate.judge({"perplexity_delta": math.nan}, 0.1)["passed"]
    assert gate.judge({"kl_divergence": 1.0}, 0.0) == {}  # no tokenizer, no perplexity


def test_notes_say_what_failed_and_what_is_undecided():
    def notes(delta, low, high):
        quality = {"perplexity_delta": delta,
                   "perplexity_delta_interval": {"low": low, "high": high}}
        return " ".join(gate.notes(quality, gate.judge(quality, 0.01)))

    assert notes(0.002, 0.001, 0.003) == ""
    assert "more text" in notes(0.002, -0.01, 0.02)
    failed = notes(0.0231, 0.02, 0.03)
    assert "2.31 %, over the gate of 1 %" in failed
    assert "more text" not in failed
    assert "more text" in notes(0.0231, 0.0, 0.03)
    assert gate.notes({}, {}) == []


def test_rows_that_failed():
    passed, over = {"gate": {"passed": True}}, {"gate": {"passed": False}}
    assert gate.failed([{}, passed, over])
    assert not gate.failed([{}, passed])


@pytest.mark.parametrize("settings", [
    {"max_perplexity_increase": 3.0}, {"max_perplexity_increase": -0.1},
    {"max_perplexity_increase": math.nan}, {"eval_tokens": -1}, {"eval_tokens": 1},
    {"task_questions": -1}])
def test_settings_that_cannot_be_meant(settings):
    with pytest.raises(TfspeedError, match=f"--{next(iter(settings))}"):
        Evaluation(**settings)


def test_the_gate_can_be_turned_off():
    assert Evaluation(max_perplexity_increase=math.inf).max_perplexity_increase == math.inf
