"""What has arrived and waits: bounded, so that a fast sender waits for a slow model."""

import dataclasses
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator

import tensorflow as tf

_PULSE_S = 0.2


@dataclasses.dataclass(frozen=True)
class Event:
    """Attributes:
        stream: which text this is about; "" for none (see `Inbox`).
        text: all of it so far.
        end: whether nothing follows.
        error: why it ended, where something was wrong with it.
    """

    stream: str = ""
    text: str = ""
    end: bool = False
    error: str = ""


class Inbox:
    """Senders `put`, one receiver iterates. While nothing comes it gives an empty event a few times
    a second, so that a receiver inside TensorFlow can hear Ctrl-C.

    Args:
        capacity: events that wait, at most; `put` blocks beyond.
        latest: whether an event takes the place of one of its stream that still waits.
    """

    def __init__(self, capacity: int = 16, latest: bool = False):
        self._capacity, self._latest = capacity, latest
        self._waiting: OrderedDict[str, deque[Event]] = OrderedDict()
        self._count = 0
        self._dropped: set[str] = set()
        self._changed = threading.Condition()
        self._ended = self._closed = False

    def put(self, event: Event) -> bool:
        """Waits until there is room; False where nobody listens any more."""
        with self._changed:
            while not self._closed:
                if event.stream in self._dropped:
                    self._dropped.remove(event.stream)  # who sent it knows now
                    return False
                waiting = self._waiting.get(event.stream)
                if waiting and self._latest:
                    waiting[-1] = event
                    return True
                if self._count < self._capacity:
                    self._waiting.setdefault(event.stream, deque()).append(event)
                    self._count += 1
                    self._changed.notify_all()
                    return True
                self._changed.wait(_PULSE_S)
        return False

    def drop(self, stream: str) -> None:
        """Nobody wants more of a stream: what waits is thrown away, and its sender is told."""
        with self._changed:
            waiting = self._waiting.pop(stream, ())
            self._count -= len(waiting)
            if not any(event.end for event in waiting):
                self._dropped.add(stream)
            self._changed.notify_all()

    def end(self) -> None:
        """No more will be put: the iteration ends after what waits."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def close(self) -> None:
        """Nobody will look any more: senders and iterations stop."""
        with self._changed:
            self._closed = self._ended = True
            self._waiting.clear()
            self._changed.notify_all()

    @property
    def closed(self) -> bool:
        return self._closed

    def __iter__(self) -> Iterator[Event]:
        while True:
            with self._changed:
                if not self._count and not self._ended:
                    self._changed.wait(_PULSE_S)
                if self._closed or (self._ended and not self._count):
                    return
                event = self._take()
            yield event

    def _take(self) -> Event:
        """Of the stream that has waited longest."""
        if not self._count:
            return Event()
        stream, events = next(iter(self._waiting.items()))
        event = events.popleft()
        del self._waiting[stream]
        if events:
            self._waiting[stream] = events
        self._count -= 1
        self._changed.notify_all()
        return event


def dataset(inbox: Inbox) -> tf.data.Dataset:
    """A pipeline of the events' fields: stream, text, end, error. Add `map`, `filter`, … to it."""
    text, flag = tf.TensorSpec((), tf.string), tf.TensorSpec((), tf.bool)
    return tf.data.Dataset.from_generator(
        lambda: (dataclasses.astuple(event) for event in inbox),
        output_signature=(text, text, flag, text))


def events(pipeline: tf.data.Dataset,
           interrupted: Callable[[], bool] = lambda: False) -> Iterator[Event]:
    """What a pipeline of `dataset` gives, without the empty ones.

    Args:
        interrupted: whether Ctrl-C was pressed, see `deferred_interrupt`: raised between events,
            for TensorFlow's iterator lost one KeyboardInterrupt in thirty.
    """
    for stream, text, end, error in pipeline.as_numpy_iterator():
        if interrupted():
            raise KeyboardInterrupt
        if stream:
            yield Event(stream.decode(), text.decode(), bool(end), error.decode())
