"""What an interrupted run goes on from: one file, written beside and renamed."""

import json
import os
import zipfile
from pathlib import Path

import numpy as np

from tfspeed.errors import TfspeedError
from tfspeed.export.files import appearing

_FILE = "training.npz"
_FORMAT = 1


class Checkpoint:
    """The state of one run in a folder, and what the run is: another run is refused."""

    def __init__(self, folder: str, identity: dict[str, str]):
        """
        Args:
            identity: digests or values by what they are of (`student`, `text`, …).

        Raises:
            TfspeedError: the folder cannot be made or written.
        """
        self.path, self.identity = Path(folder) / _FILE, identity
        tried = self.path.with_name(f".{_FILE}.{os.getpid()}")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            tried.write_bytes(b"")
            tried.unlink()
        except (OSError, ValueError) as error:
            raise TfspeedError("The checkpoint's folder must be writable.", checkpoint=folder,
                               cause=getattr(error, "strerror", None) or str(error)) from error

    def write(self, step: int, losses: list[float], arrays: list[np.ndarray]) -> None:
        """Raises TfspeedError: the disk is full, or the folder gone. The old one then stays."""
        meta = json.dumps({"format": _FORMAT, "identity": self.identity, "step": step,
                           "losses": losses})
        try:
            with appearing(self.path) as beside, beside.open("wb") as file:
                np.savez(file, meta=np.array(meta), **{f"a{i}": a for i, a in enumerate(arrays)})
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise TfspeedError("The checkpoint could not be written.", checkpoint=str(self.path),
                               cause=error.strerror) from error

    def read(self) -> tuple[int, list[float], list[np.ndarray]] | None:
        """Step, losses and arrays of a run that was interrupted; None where there is none.

        Raises:
            TfspeedError: the file is damaged, or that of another run.
        """
        if not self.path.exists():
            return None
        try:
            with np.load(self.path, allow_pickle=False) as file:
                meta = json.loads(str(file["meta"]))
                if meta["format"] == _FORMAT:
                    self._same(meta["identity"])
                arrays = [file[f"a{i}"] for i in range(len(file.files) - 1)]
                return int(meta["step"]), list(meta["losses"]), arrays
        except TfspeedError:
            raise
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
            raise TfspeedError("The checkpoint could not be read.", checkpoint=str(self.path),
                               cause=str(error)[:200],
                               hint="Remove it to begin again.") from error

    def _same(self, identity: dict) -> None:
        other = sorted(name for name in self.identity | identity
                       if self.identity.get(name) != identity.get(name))
        if other:
            raise TfspeedError(
                "The checkpoint is that of another run.", checkpoint=str(self.path),
                differs=", ".join(other),
                hint="Give another folder, or remove this file to begin again.")
