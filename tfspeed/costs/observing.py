"""Starts `observer.py` in a process of its own, asks it, and gives up on one that is silent."""

import dataclasses
import json
import os
import queue
import subprocess
import sys
import threading
from pathlib import Path

from tfspeed.costs.cases import Case
from tfspeed.errors import TfspeedError

_SILENT_S = 300
_START = "import sys; sys.path.insert(0, sys.argv[2]); from tfspeed.costs import observer; " \
         "observer.main(int(sys.argv[1]))"


class Observer:
    """A context manager: times cases with so many threads."""

    def __init__(self, threads: int):
        self.threads = threads
        root = str(Path(__file__).resolve().parents[2])
        quiet = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "2", "KERAS_BACKEND": "tensorflow"}
        self._process = subprocess.Popen([sys.executable, "-c", _START, str(threads), root],
                                         stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                         stderr=subprocess.PIPE, text=True, env=quiet)
        self._lines: queue.Queue = queue.Queue()
        self._said: list[str] = []
        threading.Thread(target=self._listen, daemon=True).start()
        threading.Thread(target=self._collect, daemon=True).start()

    def __enter__(self) -> "Observer":
        self._answer()  # it is ready
        return self

    def __exit__(self, *error) -> None:
        self._process.kill()
        self._process.wait()

    def bandwidth(self, sizes: list[int]) -> list[list[float]]:
        """`[bytes, bytes a second]` of each."""
        found = self.ask({"bandwidth": sizes})["bandwidth"]
        return [list(pair) for pair in zip(sizes, found, strict=True)]

    def dots(self, engine: str, short: bool = False) -> list[list[float]]:
        """See `dots.measure`."""
        return self.ask({"dots": engine, "short": short})["dots"]

    def observe(self, case: Case) -> dict:
        """`{"ttft_s": […], "tpot_s": […]}`, one of each generation."""
        return self.ask({"case": dataclasses.asdict(case)})

    def ask(self, question: dict) -> dict:
        try:
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
        except OSError:
            pass  # it has ended: said below
        return self._answer()

    def _answer(self) -> dict:
        try:
            line = self._lines.get(timeout=_SILENT_S)
        except queue.Empty:
            line = None
        if line is None:
            raise TfspeedError("The process that times models has ended or is silent.",
                               threads=self.threads, said="".join(self._said)[-300:])
        answer = json.loads(line)
        if "error" in answer:
            raise TfspeedError(answer["error"])
        return answer

    def _listen(self) -> None:
        for line in self._process.stdout:
            if line.startswith("{"):
                self._lines.put(line)
        self._lines.put(None)

    def _collect(self) -> None:
        for line in self._process.stderr:
            self._said = [*self._said[-20:], line]
