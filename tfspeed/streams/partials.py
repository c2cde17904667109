"""A result for a text as far as it has come, revised when more of it arrives."""

import dataclasses
import queue
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator

from tfspeed.engines.sampling import Sampling
from tfspeed.models.text_stream import StoppedText
from tfspeed.serving.request import Request, Update
from tfspeed.serving.worker import Worker
from tfspeed.streams.inbox import Event


@dataclasses.dataclass(frozen=True)
class Partial:
    """Attributes:
        revision: results that the stream had before this one.
        text: the continuation of what has come so far; it takes the place of the last one's.
        end: whether it is the stream's last.
        read, reused: tokens of the text, and those of them that were not read again.
        first_s: seconds from the arrival of the text to the first new token.
        error: why there is no result.
    """

    stream: str
    revision: int
    text: str = ""
    end: bool = False
    read: int = 0
    reused: int = 0
    first_s: float = 0.0
    error: str = ""


class Partials:
    """Continues streams with a serving worker, whose cache keeps what streams begin with: of a text
    that has grown, only what is new is read (in whole blocks of the cache).

    Args:
        new_tokens: of a result.
        drop: told which stream is over because its text became too long, where more may come.
    """

    def __init__(self, worker: Worker, new_tokens: int, sampling: Sampling | None = None,
                 drop: Callable[[str], None] = lambda stream: None):
        self._worker, self._new_tokens = worker, new_tokens
        self._sampling, self._drop = sampling or Sampling(), drop
        self._tokenizer = worker.backend.model.tokenizer
        self._last: dict[str, Partial] = {}
        self._over: deque[tuple[str, str]] = deque(maxlen=8)  # dropped streams, and their texts

    def results(self, events: Iterable[Event]) -> Iterator[Partial]:
        """One for each event, in their order. An end whose text has not changed has the last
        result once more, as the final one. None for what was on its way from a dropped stream."""
        texts: dict[str, str] = {}
        for event in events:
            if any(event.stream == name and event.text.startswith(text)
                   for name, text in self._over):
                continue
            last = self._last.get(event.stream)
            if event.error:
                made = self._new(event, error=event.error)
            elif event.end and last and texts.get(event.stream) == event.text:
                made = dataclasses.replace(last, end=True)
            elif not event.text.strip():
                made = self._new(event)
            else:
                made = self._continued(event)
            texts[event.stream], self._last[event.stream] = event.text, made
            if made.end:
                del self._last[event.stream], texts[event.stream]
            yield made

    def _new(self, event: Event, **fields) -> Partial:
        last = self._last.get(event.stream)
        return Partial(event.stream, last.revision + 1 if last else 0, end=event.end, **fields)

    def _continued(self, event: Event) -> Partial:
        start, first, text = time.perf_counter(), 0.0, ""
        tokens = self._tokenizer.encode(event.text.rstrip())
        room = self._worker.backend.context_length - len(tokens)
        if room < 1:
            if not event.end:
                self._over.append((event.stream, event.text))
                self._drop(event.stream)
            return self._new(dataclasses.replace(event, end=True), read=len(tokens), error="the "
                             "text is longer than the model's "
                             f"{self._worker.backend.context_length} tokens")
        updates: queue.SimpleQueue = queue.SimpleQueue()
        request = Request(tokens, min(self._new_tokens, room), self._sampling,
                          frozenset(self._tokenizer.eos_ids), StoppedText(self._tokenizer.decode),
                          tell=updates.put)
        self._worker.submit(request)
        try:
            while True:
                update: Update = updates.get()
                first = first or time.perf_counter() - start
                text += update.text
                if update.reason:
                    break
        except BaseException:  # Ctrl-C: nobody wants the rest
            self._worker.cancel(request)
            raise
        return self._new(event, text=text, read=len(tokens), reused=request.reused, first_s=first,
                         error=update.error)
