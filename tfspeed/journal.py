"""Answers on the disk as they are finished, so that a job that dies loses those in flight only."""

import json
import os
from pathlib import Path

from tfspeed.errors import TfspeedError
from tfspeed.export.files import appearing


class Journal:
    """A file of JSON lines beside the one that it becomes, `NAME.journal`: what the job is, then
    an answer a line in the order in which they were finished."""

    def __init__(self, path: Path, identity: str):
        """Opens it, or goes on with the one that is there.

        Raises:
            TfspeedError: it cannot be written, or is that of another job.
        """
        self.target, self.path = path, path.with_name(path.name + ".journal")
        self.answers: dict[int, dict] = {}
        try:
            kept = self._read(identity)
            self._file = self.path.open("ab")
            self._file.truncate(kept)  # a line that was being written when the job died
            if not kept:
                self._append({"job": identity})
        except OSError as error:
            raise self._unwritten(error) from error

    def _read(self, identity: str) -> int:
        """Fills in what is there; gives the length of its whole lines."""
        data = self.path.read_bytes() if self.path.exists() else b""
        whole = data.rfind(b"\n") + 1
        try:
            lines = [json.loads(line) for line in data[:whole].splitlines()]
            if lines and lines[0]["job"] != identity:
                raise TfspeedError("The journal is that of other prompts or another model.",
                                   path=str(self.path), hint="Remove it to begin again.")
            self.answers = {line["index"]: line for line in lines[1:]}
        except (ValueError, KeyError, TypeError) as error:
            if isinstance(error, TfspeedError):
                raise
            raise TfspeedError("The journal could not be read.", path=str(self.path),
                               hint="Remove it to begin again.") from error
        return whole

    def add(self, answer: dict) -> None:
        """Returns when the answer is on the disk.

        Raises:
            TfspeedError: it could not be written; what was there stays.
        """
        try:
            self._append(answer)
        except OSError as error:
            raise self._unwritten(error) from error
        self.answers[answer["index"]] = answer

    def _append(self, line: dict) -> None:
        self._file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def finish(self) -> None:
        """Writes all answers in the order of their indices, and removes the journal."""
        try:
            with appearing(self.target) as beside:
                beside.write_text("".join(json.dumps(self.answers[i], ensure_ascii=False) + "\n"
                                          for i in sorted(self.answers)), encoding="utf-8")
        except OSError as error:
            raise self._unwritten(error) from error
        self._file.close()
        self.path.unlink()

    def _unwritten(self, error: OSError) -> TfspeedError:
        return TfspeedError("The answers cannot be written.", path=str(self.path),
                            cause=error.strerror, hint="What the journal holds stays: make room, "
                            "and run the command again.")
