"""Quality and gate of candidates whose models are arithmetic, so that every figure is known."""

import json
import os
import types

import numpy as np
import pytest
import tensorflow as tf

import strategies
from tests.conftest import tiny_decoder
from tfspeed.errors import TfspeedError
from tfspeed.measure import experiment, tasks
from tfspeed.measure.experiment import Candidate, Evaluation, Workload
from tfspeed.measure.progress import Progress

TEXT = "the cat sat on the mat and the dog ran to the cat. " * 100


class Letters:
    """A tokenizer of one token a character."""

    add_bos, bos_id = False, None

    def encode(self, text, add_bos=None):
        return [ord(character) for character in text]


class Engine:
    """Finds every letter a blank makes likelier by some factor; counts its calls."""

    def __init__(self, name, likelier, tokenizer):
        self.name, self.calls, self.lengths = name, 0, set()
        self.model = types.SimpleNamespace(tokenizer=tokenizer, context_length=512,
                                           vocabulary_size=128, name="arithmetic")
        self._logits = np.zeros(128, np.float32)
        self._logits[ord(" ")] = np.log(likelier)

    def score(self, tokens):
        self.calls += 1
        self.lengths.add(tokens.shape[1])
        return tf.constant(np.tile(self._logits, (*tokens.shape, 1)))


def candidate(name, likelier, limit=0.001, tokenizer=None):
    return Candidate(name, Engine(name, likelier, tokenizer or Letters()), Workload(), [], 0.0,
                     0.0, 0, 0, [], limit)


def evaluated(*candidates, **settings):
    experiment.evaluate(list(candidates), TEXT, Progress(),
                        Evaluation(**{"task_questions": 0, **settings}))
    return candidates


def test_a_damaged_candidate_fails_its_gate():
    base, worse = evaluated(candidate("base", 30), candidate("worse", 20))
    assert base.gate == {}
    assert worse.gate == {"limit": 0.001, "passed": False}
    delta, interval = (worse.quality[name] for name in ("perplexity_delta",
                                                        "perplexity_delta_interval"))
    blanks = np.mean([c == " " for c in TEXT[:4096]])
    expected = ((127 + 20) / (127 + 30)) * (30 / 20) ** blanks - 1
    assert delta == pytest.approx(expected, rel=0.05)
    assert interval["low"] < delta < interval["high"]
    assert any("over the gate of 0.1 %" in note for note in worse.notes)


def test_the_flag_is_above_what_a_candidate_declares():
    _, worse = evaluated(candidate("base", 30), candidate("worse", 20, limit=0.5))
    assert worse.gate["passed"]
    _, worse = evaluated(candidate("base", 30), candidate("worse", 20, limit=0.5),
                         max_perplexity_increase=0.0)
    assert worse.gate == {"limit": 0.0, "passed": False}


def test_the_baseline_runs_once_for_all():
    base, one, two = evaluated(candidate("base", 30), candidate("one", 30), candidate("two", 30))
    assert base.engine.calls == one.engine.calls == two.engine.calls == 4096 // 256
    assert one.gate["passed"]
    assert one.quality["perplexity_delta_interval"] == {"low": 0, "high": 0}


@pytest.mark.parametrize(("tokens", "expected"), [
    (0, 19), (256, 1), (300, 1), (512, 2), (10**9, 19)])
def test_as_much_text_as_was_asked_for(tokens, expected):
    base, = evaluated(candidate("base", 30), eval_tokens=tokens)
    assert base.engine.calls == expected
    assert base.quality["evaluated_tokens"] == expected * 255


def test_fewer_tokens_than_a_window():
    base, = evaluated(candidate("base", 30), eval_tokens=10)
    assert base.quality["evaluated_tokens"] == 9


def test_without_a_tokenizer_nothing_is_gated():
    model = tiny_decoder()
    made = [Candidate("base", types.SimpleNamespace(model=model, score=model.score, name="a"),
                      Workload(), [], 0.0, 0.0, 0, 0, []),
            Candidate("other", types.SimpleNamespace(model=model, score=lambda t: -model.score(t),
                                                     name="b"), Workload(), [], 0.0, 0.0, 0, 0, [])]
    evaluated(*made, task_questions=5)
    assert made[1].gate == {}
    assert "perplexity_delta_interval" not in made[1].quality
    assert made[1].quality["kl_divergence"] > 0
    assert any("No tokenizer" in note and "gate" in note for note in made[1].notes)


def test_the_task_is_asked_of_all(monkeypatch):
    questions = [tasks.Question("go", (" a b c", " abcdef"), 0),
                 tasks.Question("go " * 25, (" fedcba", " c b a"), 0)]
    monkeypatch.setattr(tasks, "load", lambda count: questions[:count])
    base, other = evaluated(candidate("base", 30), candidate("other", 1 / 30), task_questions=2)
    assert base.quality["task_accuracy"] == 0.5  # it loves blanks, wherever they are
    assert other.quality["task_accuracy"] == 0.5
    assert other.quality["task_agreement"] == 0.0
    assert other.quality["task_questions"] == 2
    assert other.engine.lengths == {256, 64, 128}


def test_no_questions_are_noted(monkeypatch):
    monkeypatch.setattr(tasks, "load", lambda count: [])
    base, = evaluated(candidate("base", 30), task_questions=2)
    assert tasks.MISSING in base.notes
    assert "task_accuracy" not in base.quality


def test_a_long_evaluation_is_announced():
    said = []
    experiment._say_estimate(types.SimpleNamespace(say=said.append), 59)
    experiment._say_estimate(types.SimpleNamespace(say=said.append), 150)
    assert said == ["Quality will take about 2.5 minutes."]


def test_a_batch_that_no_memory_holds_is_refused(monkeypatch):
    monkeypatch.setattr(experiment, "load", lambda *_: tiny_decoder())
    with pytest.raises(TfspeedError, match="does not fit in memory"):
        experiment.prepare("tiny", strategies.create("baseline"), "graph",
                           Workload(8, 5, 500_000_000), TEXT)


def test_the_limit_of_workers_is_that_of_all_of_them(monkeypatch):
    """Each is held to its cores, but they read at once; another machine is taken for like this."""
    seen = []
    monkeypatch.setattr(experiment, "memory_bandwidth", lambda *given: seen.append(given) or 10.0)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    candidate = Candidate("x", types.SimpleNamespace(
        devices=("worker 0", "worker 1", "worker 2"), on_workers=True, row_shares=3,
        step_bytes=lambda batch, context: 100 * batch), Workload(8, 4, 3, 1), [],
        0, 0, 0, 0, [])
    hosts = ["a:1", "a:2", "b:1"]
    monkeypatch.setenv("TF_CONFIG", json.dumps(
        {"cluster": {"worker": hosts}, "task": {"type": "worker", "index": 0}}))
    experiment.read_limits([candidate], 2)
    assert seen == [(4, 150)]
    assert candidate.bandwidth == 20.0
    candidate.engine.devices = ("CPU:0",)  # the baseline, which the chief measures alone
    experiment.read_limits([candidate], 2)
    assert seen[1:] == [(2, 300)]
    assert candidate.bandwidth == 10.0
