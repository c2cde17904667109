"""What the tests of serving share: requests that are run to their end, and a server."""

import contextlib
import http.client
import json
import threading
import time

import tokenizers
import uvicorn

from tests.conftest import tiny_decoder
from tfspeed.models.tokenizer import Tokenizer
from tfspeed.serving import backend as backends
from tfspeed.serving.http.app import Server
from tfspeed.serving.http.asked import Limits
from tfspeed.serving.http.guards import PatientProtocol
from tfspeed.serving.request import Request
from tfspeed.serving.worker import Worker


class Answer:
    """A request and what came of it. `wait` gives the tokens."""

    def __init__(self, worker, prompt, max_tokens, on_update=None, **kwargs):
        self.updates, self._over, self._on_update = [], threading.Event(), on_update
        self.request = Request(prompt, max_tokens, tell=self._tell, **kwargs)
        worker.submit(self.request)

    def _tell(self, update):
        self.updates.append(update)
        if update.reason:
            self._over.set()
        if self._on_update:
            self._on_update(update)

    def wait(self):
        assert self._over.wait(120)
        return self.tokens

    @property
    def tokens(self):
        return [t.token for u in self.updates for t in u.tokens]

    @property
    def reason(self):
        return self.updates[-1].reason

    @property
    def text(self):
        return "".join(u.text for u in self.updates)


def tiny_tokenizer():
    """One token a byte, and one that ends an answer."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {c: i for i, c in enumerate(alphabet)}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    backend.add_special_tokens(["<end>"])
    return Tokenizer(backend, eos_ids=[256], chat_template=(
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"))


def tiny_chat_model():
    model = tiny_decoder(vocabulary_size=257, context_length=512)
    model.tokenizer = tiny_tokenizer()
    return model


@contextlib.contextmanager
def serving(engine="fused", limits=None, key=None, max_waiting=64, **kwargs):
    """A server on a port of its own, in this process; gives (port, `Server`)."""
    worker = Worker(backends.create(engine, tiny_chat_model(), **{
        "cache_tokens": 8192, "max_rows": 4, **kwargs}), max_waiting=max_waiting)
    made = Server(worker, "tiny", limits or Limits(), key)
    config = uvicorn.Config(made.app, "127.0.0.1", 0, http=PatientProtocol, log_level="error",
                            timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    try:
        yield server.servers[0].sockets[0].getsockname()[1], made
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()


def ask(port, path, body=None, method=None, headers=None, raw=None, timeout=60):
    """(status, headers, parsed or plain body) of one request."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    data = raw if raw is not None else None if body is None else json.dumps(body).encode()
    connection.request(method or ("GET" if data is None else "POST"), path, data, {
        "Content-Type": "application/json", **(headers or {})})
    answer = connection.getresponse()
    text = answer.read().decode("utf-8", "replace")
    connection.close()
    with contextlib.suppress(ValueError):
        text = json.loads(text)
    return answer.status, answer.headers, text


def events(text):
    """The objects of a stream of events."""
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def wait_until(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)
