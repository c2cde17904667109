"""Requests on the worker's thread: how they end, and that they end each by themselves."""

import threading
import time

import pytest

from tests.engines.test_engines import generate
from tests.serving.serving import Answer, tiny_chat_model, wait_until
from tfspeed import engines
from tfspeed.errors import TfspeedError
from tfspeed.models.text_stream import StoppedText, StopStrings
from tfspeed.serving import backend as backends
from tfspeed.serving.worker import Overloaded, Worker

PROMPT = [72, 105]


@pytest.fixture
def worker():
    made = Worker(backends.create("fused", tiny_chat_model(), 4096, 4), max_waiting=3)
    yield made
    made.close()
    assert made.scheduler.pool.available == made.scheduler.pool.count


def slow(worker, seconds=0.02):
    read = worker.backend.read
    worker.backend.read = lambda chunks: (time.sleep(seconds), read(chunks))[1]


def test_stop_tokens_and_stop_strings(worker):
    model = worker.backend.model
    tokens = generate(engines.create("fused", model), [PROMPT], 20)[0].tolist()
    stopped = Answer(worker, PROMPT, 20, stop_tokens=frozenset([tokens[4]]))
    at = tokens.index(tokens[4])
    assert stopped.wait() == tokens[:at + 1]
    assert stopped.reason == "stop"
    text = model.tokenizer.decode(tokens)
    whole = Answer(worker, PROMPT, 20, text=StoppedText(model.tokenizer.decode))
    whole.wait()
    assert whole.text == text
    cut = Answer(worker, PROMPT, 20, text=StoppedText(model.tokenizer.decode, [text[3:5]]))
    cut.wait()
    assert cut.text == text[:text.find(text[3:5])]
    assert cut.reason == "stop"


def test_a_stop_token_gives_what_was_held_back(worker):
    """A text that looked like the beginning of a stop string."""
    model = worker.backend.model
    tokens = generate(engines.create("fused", model), [PROMPT], 6)[0].tolist()
    text = model.tokenizer.decode(tokens[:5])
    answer = Answer(worker, PROMPT, 20, stop_tokens=frozenset(tokens[5:]),
                    text=StoppedText(model.tokenizer.decode, [text[-1] + "never"]))
    answer.wait()
    assert answer.text == text[:len(answer.text)]
    assert answer.reason == "stop"


def test_cancelled_and_late_requests_end(worker):
    slow(worker)
    first = Answer(worker, PROMPT, 400)
    late = Answer(worker, PROMPT, 400, deadline=time.monotonic() + 0.2)
    wait_until(lambda: first.tokens)
    worker.cancel(first.request)
    first.wait()
    late.wait()
    assert (first.reason, late.reason) == ("cancelled", "timeout")
    worker.cancel(first.request)  # over already
    assert len(Answer(worker, PROMPT, 3).wait()) == 3


def test_too_many_are_refused(worker):
    slow(worker)
    made = [Answer(worker, PROMPT, 10) for _ in range(7)]
    with pytest.raises(Overloaded):
        Answer(worker, PROMPT, 10)
    for answer in made:
        answer.wait()
    assert len({tuple(a.tokens) for a in made}) == 1
    Answer(worker, PROMPT, 1).wait()


@pytest.mark.parametrize(("prompt", "count", "words"), [
    ([1], 600, "must fit into 512"), ([1] * 513, 1, "prompt_tokens=513"), ([300], 1, "token=300"),
    ([-1], 1, "token=-1")])
def test_what_cannot_be(worker, prompt, count, words):
    with pytest.raises(TfspeedError, match=words):
        Answer(worker, prompt, count)


def test_a_cache_smaller_than_the_context_is_the_limit():
    worker = Worker(backends.create("graph", tiny_chat_model(), 64, 2))
    assert worker.backend.context_length == 64
    with pytest.raises(TfspeedError, match="must fit into 64"):
        Answer(worker, [1] * 60, 5)
    worker.close()


def test_whoever_cannot_be_told_is_the_only_one_to_suffer(worker):
    def fail(update):
        if not update.reason:
            raise RuntimeError("gone")

    good = Answer(worker, PROMPT, 30)
    bad = Answer(worker, PROMPT, 30, on_update=fail)
    assert len(good.wait()) == 30
    bad.wait()
    assert bad.reason == "error"


def test_close_waits_for_what_runs():
    worker = Worker(backends.create("fused", tiny_chat_model(), 4096, 4))
    slow(worker, 0.01)
    answer = Answer(worker, PROMPT, 20)
    closing = threading.Thread(target=worker.close, args=(30,))
    closing.start()
    assert len(answer.wait()) == 20
    closing.join(30)
    with pytest.raises(Overloaded):
        Answer(worker, PROMPT, 1)
    assert not worker.alive


def test_close_cancels_what_takes_longer():
    worker = Worker(backends.create("fused", tiny_chat_model(), 4096, 1))
    slow(worker)
    answers = [Answer(worker, PROMPT, 400) for _ in range(3)]
    worker.close(0.05)
    assert [a.reason for a in answers] == ["cancelled"] * 3


@pytest.mark.parametrize("cuts", [1, 2, 3, 50])
def test_stop_strings_across_pieces(cuts):
    text = "abcabd abe"
    pieces = [text[i:i + cuts] for i in range(0, len(text), cuts)]
    for stops, expected, stopped in ((["abe"], "abcabd ", True), (["x", "bd"], "abca", True),
                                     (["abf"], text, False), ([], text, False),
                                     (["d ab", "bda"], "abcab", True)):
        filter_, found = StopStrings(stops), ""
        for piece in pieces:
            new, stop = filter_.push(piece)
            found += new
            if stop:
                break
        assert found + ("" if stop else filter_.rest()) == expected
        assert stop == stopped
