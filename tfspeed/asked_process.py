"""A process that is asked in lines of JSON and answers each with one: a peer, or our own code with
settings that TensorFlow takes only before it starts."""

import json
import os
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Sequence

from tfspeed.errors import TfspeedError


class AskedProcess:
    """One that dies or is silent raises the error of `failed`.

    Args:
        failed: makes it, of the exit code and the end of what was written to stderr.
        ready_s: how long it may take to its first line, which it says unasked.
        environment: beside this process's own.

    Attributes:
        started: that line.
    """

    def __init__(self, command: Sequence[str], failed: Callable[[int, str], TfspeedError],
                 ready_s: float, environment: dict[str, str]):
        self._failed = failed
        self._process = subprocess.Popen(
            command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, bufsize=1,
            env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2", "KERAS_BACKEND": "tensorflow",
                 **environment})
        self._stderr: deque[str] = deque(maxlen=12)
        self._reader = threading.Thread(
            target=lambda: self._stderr.extend(self._process.stderr), daemon=True)
        self._reader.start()
        try:
            self.started = self._answer(ready_s)
        except BaseException:
            self.close()
            raise

    def ask(self, request: dict, seconds: float) -> dict:
        """The answer to a request that it knows, waited for so long."""
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except OSError:
            pass  # it has died: reading its answer says how
        return self._answer(seconds)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()

    def _answer(self, seconds: float) -> dict:
        # Killed from a timer: readline has no timeout of its own.
        timer = threading.Timer(seconds, self._process.kill)
        timer.start()
        try:
            # A library may print to stdout: only a line that is a JSON object is an answer.
            line = next((x for x in self._process.stdout if x.startswith("{")), None)
        finally:
            timer.cancel()
        if line is None:
            self._process.wait()
            self._reader.join(1)  # its last words; a child of it may hold the pipe for longer
            raise self._failed(self._process.returncode, "".join(self._stderr))
        return json.loads(line)
