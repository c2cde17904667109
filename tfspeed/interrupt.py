"""Ctrl-C between steps: no step is left half done, and none of TensorFlow's C code swallows it."""

import contextlib
import signal
import threading


@contextlib.contextmanager
def deferred_interrupt():
    """Ctrl-C is remembered, and asked for between steps; a second one strikes at once."""
    seen: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = signal.getsignal(signal.SIGINT)

    def handler(number, frame):
        if seen:
            raise KeyboardInterrupt
        seen.append(number)

    signal.signal(signal.SIGINT, handler)
    try:
        yield lambda: bool(seen)
    finally:
        signal.signal(signal.SIGINT, before)
