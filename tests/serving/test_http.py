"""The server as its clients see it."""

import json
import threading
import types

import numpy as np
import pytest

from tests.engines.test_engines import generate
from tests.serving.serving import ask, events, serving, tiny_chat_model, wait_until
from tfspeed import engines
from tfspeed.serving.http.answers import Answers
from tfspeed.serving.http.asked import Limits
from tfspeed.serving.request import Update


@pytest.fixture(scope="module")
def server():
    with serving() as made:
        yield made


@pytest.fixture
def port(server):
    return server[0]


GREEDY = {"prompt": "Hello", "max_tokens": 12, "temperature": 0}


def test_a_completion_has_the_engines_tokens(port):
    model = tiny_chat_model()
    prompt = model.tokenizer.encode("Hello")
    tokens = generate(engines.create("fused", model), [prompt], 12)[0].tolist()
    status, _, answer = ask(port, "/v1/completions", GREEDY)
    assert status == 200
    assert answer["choices"][0]["text"] == model.tokenizer.decode(tokens)
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["object"] == "text_completion"
    assert answer["usage"] | {"prompt_tokens_details": 0} == {
        "prompt_tokens": 5, "completion_tokens": 12, "total_tokens": 17,
        "prompt_tokens_details": 0}
    ids = ask(port, "/v1/completions", {**GREEDY, "prompt": prompt})[2]
    assert ids["choices"] == answer["choices"]
    several = ask(port, "/v1/completions", {**GREEDY, "prompt": ["Hello", "Bye"], "n": 2})[2]
    texts = [c["text"] for c in several["choices"]]
    assert [c["index"] for c in several["choices"]] == [0, 1, 2, 3]
    assert texts[0] == texts[1] == answer["choices"][0]["text"]
    assert several["usage"]["prompt_tokens"] == 8


def test_an_event_is_one_line_to_every_client():
    """str.splitlines, as httpx uses it, ends a line at these too; a model may well write them."""
    said = "a\u2028b\x85c\u2029d\x0be é"
    asked = types.SimpleNamespace(chat=False, logprobs=None, echo=False)
    event = Answers(asked, "m", None, [None]).piece(0, Update(said))
    line, empty = event.splitlines()
    assert empty == ""
    assert json.loads(line.removeprefix("data: "))["choices"][0]["text"] == said


def test_a_stream_has_the_same_text(port):
    whole = ask(port, "/v1/completions", GREEDY)[2]
    _, headers, text = ask(port, "/v1/completions", {
        **GREEDY, "stream": True, "stream_options": {"include_usage": True}})
    assert headers["Content-Type"].startswith("text/event-stream")
    *pieces, usage = events(text)
    assert "".join(p["choices"][0]["text"] for p in pieces) == whole["choices"][0]["text"]
    assert pieces[-1]["choices"][0]["finish_reason"] == "length"
    assert len(pieces) == 12
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == 12


def test_a_chat(port):
    body = {"messages": [{"role": "system", "content": "Be brief."},
                         {"role": "user", "content": [{"type": "text", "text": "Hi"}]}],
            "max_completion_tokens": 9, "seed": 5}
    whole = ask(port, "/v1/chat/completions", body)[2]
    assert whole["choices"][0]["message"]["role"] == "assistant"
    assert whole["object"] == "chat.completion"
    assert whole["usage"]["completion_tokens"] <= 9
    pieces = events(ask(port, "/v1/chat/completions", {**body, "stream": True})[2])
    assert pieces[0]["choices"][0]["delta"]["role"] == "assistant"
    assert pieces[0]["object"] == "chat.completion.chunk"
    text = "".join(p["choices"][0]["delta"].get("content", "") for p in pieces)
    assert text == whole["choices"][0]["message"]["content"]
    other = ask(port, "/v1/chat/completions", {**body, "seed": 6})[2]
    assert other["choices"][0]["message"] != whole["choices"][0]["message"]


def test_logprobs(port):
    body = {**GREEDY, "logprobs": 3}
    found = ask(port, "/v1/completions", body)[2]["choices"][0]["logprobs"]
    assert len(found["tokens"]) == len(found["token_logprobs"]) == 12
    for logprob, top in zip(found["token_logprobs"], found["top_logprobs"], strict=True):
        assert logprob == pytest.approx(max(top.values()))
        assert logprob <= 0
    chat = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4, "temperature": 0,
            "logprobs": True, "top_logprobs": 2}
    content = ask(port, "/v1/chat/completions", chat)[2]["choices"][0]["logprobs"]["content"]
    assert all(len(t["top_logprobs"]) == 2 for t in content)
    assert content[0]["logprob"] == content[0]["top_logprobs"][0]["logprob"]


def test_a_stop_string_ends_a_text_before_it(port):
    text = ask(port, "/v1/completions", GREEDY)[2]["choices"][0]["text"]
    stop = text[4:6]
    cut = text[:text.find(stop)]
    for stream in (False, True):
        answer = ask(port, "/v1/completions", {**GREEDY, "stop": [stop, "§§"], "stream": stream})
        if stream:
            pieces = [p["choices"][0] for p in events(answer[2])]
            assert "".join(p["text"] for p in pieces) == cut
            assert pieces[-1]["finish_reason"] == "stop"
        else:
            assert answer[2]["choices"][0]["text"] == cut
            assert answer[2]["choices"][0]["finish_reason"] == "stop"


def test_a_conversation_that_goes_on_is_not_read_again(port):
    messages = [{"role": "user", "content": "x" * 150}]
    first = ask(port, "/v1/chat/completions", {"messages": messages, "max_tokens": 3})[2]
    messages += [first["choices"][0]["message"], {"role": "user", "content": "go on"}]
    second = ask(port, "/v1/chat/completions", {"messages": messages, "max_tokens": 3})[2]
    assert second["usage"]["prompt_tokens_details"]["cached_tokens"] >= 128


def test_what_else_there_is(port):
    models = ask(port, "/v1/models")[2]
    assert [m["id"] for m in models["data"]] == ["tiny"]
    assert ask(port, "/v1/models/tiny")[2]["id"] == "tiny"
    assert ask(port, "/v1/models/none")[0] == 404
    assert ask(port, "/healthz")[2] == {"status": "ok"}
    ask(port, "/v1/completions", GREEDY)
    metrics = dict(line.rsplit(" ", 1) for line in ask(port, "/metrics")[2].splitlines()
                   if not line.startswith("#"))
    assert float(metrics["tfspeed_new_tokens_total"]) >= 12
    assert float(metrics['tfspeed_ttft_seconds_bucket{le="+Inf"}']) == float(
        metrics["tfspeed_ttft_seconds_count"]) >= 1
    described = ask(port, "/openapi.json")[2]
    assert set(described["paths"]) >= {"/v1/completions", "/v1/chat/completions", "/metrics"}
    page = ask(port, "/")[2]
    assert "</html>" in page
    assert "http://" not in page  # nothing from elsewhere
    assert "https://" not in page


@pytest.mark.parametrize(("change", "status", "words"), [
    ({"prompt": None}, 400, "prompt must be"), ({"prompt": []}, 400, "prompt must be"),
    ({"prompt": ""}, 400, "empty"), ({"prompt": {"a": 1}}, 400, "prompt must be"),
    ({"prompt": [1, 999]}, 400, "Token ids"), ({"prompt": [True]}, 400, "prompt must be"),
    ({"prompt": "x" * 600}, 400, "must fit"), ({"max_tokens": 0}, 400, "max_tokens"),
    ({"max_completion_tokens": 0}, 400, "max_completion_tokens"),
    ({"max_tokens": "9"}, 400, "max_tokens"), ({"max_tokens": 1e99}, 400, "max_tokens"),
    ({"temperature": -1}, 400, "temperature"), ({"temperature": "hot"}, 400, "temperature"),
    ({"top_p": 0}, 400, "top_p"), ({"top_k": -5}, 400, "top_k"), ({"n": 100}, 400, "n must"),
    ({"stop": [""]}, 400, "stop"), ({"stop": ["x"] * 99}, 400, "stop"),
    ({"stream": "yes"}, 400, "stream"), ({"seed": 1.5}, 400, "seed"),
    ({"logprobs": 99}, 400, "logprobs"), ({"model": "gpt"}, 404, "not served"),
    ({"model": ["x"]}, 404, "not served"), ({"echo": True}, 400, "echo"),
    ({"stream_options": 3}, 400, "stream_options"), ({"logit_bias": {"1": 2}}, 400, "logit_bias")])
def test_what_is_wrong_is_told(port, change, status, words):
    found, _, answer = ask(port, "/v1/completions", {**GREEDY, **change})
    assert found == status
    assert words in answer["error"]["message"]


@pytest.mark.parametrize("messages", [None, [], [{}], ["x"], [{"role": "x", "content": "y"}],
                                      [{"role": "user"}], [{"role": "user", "content": 3}],
                                      [{"role": "user", "content": [{"type": "image_url"}]}]])
def test_messages_that_are_none(port, messages):
    status, _, answer = ask(port, "/v1/chat/completions", {"messages": messages})
    assert status == 400
    assert answer["error"]["param"] == "messages"


@pytest.mark.parametrize(("raw", "headers", "status"), [
    (b"\x00\xff\xfe binary", {}, 400), (b"", {}, 400), (b"[1, 2]", {}, 400),
    (b"[" * 100_000, {}, 400), (b'{"prompt": "\\ud800", "max_tokens": 1}', {}, 200),
    (b"{}", {"Content-Type": "text/plain"}, 415), (b"x" * 2_000_000, {}, 413),
    (b'{"prompt": "a", "temperature": NaN}', {}, 400),
    (b"{}", {"Host": "evil.example"}, 403)])
def test_bodies_that_are_no_requests(port, raw, headers, status):
    assert ask(port, "/v1/completions", raw=raw, headers=headers)[0] == status


def test_unknown_paths_and_methods(port):
    assert ask(port, "/v1/nothing")[0] == 404
    assert ask(port, "/v1/completions")[0] == 405


def test_the_api_key():
    with serving(key="secret") as (port, _):
        assert ask(port, "/v1/models")[0] == 401
        assert ask(port, "/v1/models", headers={"Authorization": "Bearer no"})[0] == 401
        assert ask(port, "/v1/models", headers={"Authorization": "Bearer secret"})[0] == 200
        assert ask(port, "/healthz")[0] == 200


def test_overload_is_told():
    with serving(max_rows=1, max_waiting=0) as (port, server):
        release = threading.Event()
        read = server.worker.backend.read
        server.worker.backend.read = lambda chunks: release.wait(30) and read(chunks)
        first = threading.Thread(target=ask, args=(port, "/v1/completions", GREEDY))
        first.start()
        wait_until(lambda: server.worker.requests == 1)
        status, headers, answer = ask(port, "/v1/completions", GREEDY)
        assert status == 429
        assert int(headers["Retry-After"]) >= 1
        assert "come back later" in answer["error"]["message"]
        assert ask(port, "/v1/completions", {**GREEDY, "n": 3})[0] == 429
        release.set()
        first.join(30)
        wait_until(lambda: server.worker.requests == 0)
        assert ask(port, "/v1/completions", GREEDY)[0] == 200


def test_an_answer_that_takes_too_long_ends():
    with serving(limits=Limits(answer_s=0.2)) as (port, server):
        read = server.worker.backend.read
        pause = threading.Event()
        server.worker.backend.read = lambda chunks: (pause.wait(0.05), read(chunks))[1]
        status, _, answer = ask(port, "/v1/completions", {**GREEDY, "max_tokens": 400})
        assert status == 200
        assert 0 < answer["usage"]["completion_tokens"] < 400


def test_a_crash_in_one_request_does_not_end_others():
    with serving() as (port, server):
        read = server.worker.backend.read

        def broken(chunks):
            if any(13 in c.tokens for c in chunks):
                raise RuntimeError("thirteen")
            return read(chunks)

        server.worker.backend.read = broken
        answers = {}

        def one(name, prompt, stream):
            answers[name] = ask(port, "/v1/completions", {
                **GREEDY, "prompt": prompt, "stream": stream})

        expected = ask(port, "/v1/completions", {**GREEDY, "prompt": [1, 2, 3]})[2]["choices"]
        threads = [threading.Thread(target=one, args=args) for args in (
            ("good", [1, 2, 3], False), ("bad", [13, 1], False), ("bad stream", [13], True))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert answers["good"][2]["choices"] == expected
        assert answers["bad"][0] == 500
        assert "thirteen" not in json.dumps(answers["bad"][2])
        assert '"error"' in answers["bad stream"][2]
        pool = server.worker.scheduler.pool
        wait_until(lambda: pool.available == pool.count)


def test_many_at_once_each_get_their_own(port):
    prompts = [np.random.default_rng(i).integers(1, 250, 5 + 9 * i).tolist() for i in range(12)]
    alone = [ask(port, "/v1/completions", {**GREEDY, "prompt": p})[2]["choices"][0]["text"]
             for p in prompts]
    together = [None] * len(prompts)

    def one(i):
        body = {**GREEDY, "prompt": prompts[i], "stream": True}
        together[i] = "".join(p["choices"][0]["text"]
                              for p in events(ask(port, "/v1/completions", body)[2]))

    threads = [threading.Thread(target=one, args=(i,)) for i in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert together == alone
