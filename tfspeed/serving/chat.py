"""A conversation in a terminal. What was said stays in the KV cache between turns."""

import queue
import sys
import time

from tfspeed.engines.sampling import Sampling
from tfspeed.errors import TfspeedError
from tfspeed.measure.progress import Progress
from tfspeed.models.text_stream import StoppedText
from tfspeed.serving import job
from tfspeed.serving.request import Request, Update
from tfspeed.serving.worker import Worker


def run(flags) -> None:
    """Does what the flags of `scripts/chat.py` say."""
    sampling = Sampling(flags.temperature, flags.top_k, flags.top_p, flags.seed)
    if flags.max_new_tokens < 1:
        raise TfspeedError("--max_new_tokens must be at least 1.",
                           max_new_tokens=flags.max_new_tokens)
    worker = job.start(flags, Progress())
    try:
        tokenizer = worker.backend.model.tokenizer
        if tokenizer is None:
            raise TfspeedError("A chat needs a tokenizer, and this model has none.",
                               model=worker.backend.model.name)
        Chat(worker, sampling, flags.max_new_tokens, flags.system).loop()
    finally:
        worker.close()


class Chat:
    """Args:
        system: what the model is told first, "" for nothing.
    """

    def __init__(self, worker: Worker, sampling: Sampling, max_new_tokens: int, system: str = ""):
        self._worker, self._sampling, self._most = worker, sampling, max_new_tokens
        self._tokenizer = worker.backend.model.tokenizer
        self._messages = [{"role": "system", "content": system}] if system else []

    def loop(self) -> None:
        """Reads lines until the end of input; Ctrl-C ends an answer, or the chat between two."""
        shown = sys.stdin.isatty()
        if shown:
            print("Ctrl-C ends an answer, Ctrl-D the chat.", file=sys.stderr)
        while True:
            if shown:
                print("> ", end="", flush=True)
            line = sys.stdin.readline()
            if not line:
                return
            if not line.strip():
                continue
            self._messages.append({"role": "user", "content": line.strip()})
            self._answer()

    def _answer(self) -> None:
        start, times, updates = time.perf_counter(), [], queue.SimpleQueue()
        request, text = self._request(updates), ""
        self._worker.submit(request)
        try:
            while True:
                update: Update = updates.get()
                times += [time.perf_counter()] * len(update.tokens)
                text += update.text
                print(update.text, end="", flush=True)
                if update.reason:
                    break
        except KeyboardInterrupt:
            self._worker.cancel(request)
            if not text:
                raise
        print()
        if update.reason == "error":
            raise TfspeedError("The model failed.", cause=update.error)
        self._messages.append({"role": "assistant", "content": text})
        if times:
            rate = (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 else 0
            print(f"[{len(request.prompt)} tokens read, {request.reused} of them kept; TTFT "
                  f"{1e3 * (times[0] - start):.0f} ms, {rate:.1f} decode tokens/s]",
                  file=sys.stderr)

    def _request(self, updates) -> Request:
        if self._tokenizer.chat_template:
            prompt = self._tokenizer.encode(self._tokenizer.chat(self._messages))
        else:  # a plain model continues what was said
            prompt = self._tokenizer.encode("\n".join(m["content"] for m in self._messages))
        context = self._worker.backend.context_length
        if len(prompt) >= context:
            raise TfspeedError(f"The conversation is longer than the model's {context} tokens.",
                               tokens=len(prompt), hint="Start a new one.")
        return Request(prompt, min(self._most, context - len(prompt)), self._sampling,
                       frozenset(self._tokenizer.eos_ids), StoppedText(self._tokenizer.decode),
                       tell=updates.put)
