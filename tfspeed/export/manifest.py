"""The record beside an artifact: where it came from, what it is, what it did when it was made."""

import importlib.metadata
import json
import shlex
import sys
from pathlib import Path

from tfspeed.errors import TfspeedError
from tfspeed.measure.environment import environment
from tfspeed.measure.metrics import finite

_VERSION = 1
_PACKAGES = ("ai-edge-litert", "litert-lm-builder")
_FIELDS = {"model": str, "strategy": str, "format": str, "weights": str, "files": list,
           "quality": dict, "probes": list, "evaluation": dict}


def path_of(artifact: Path) -> Path:
    return artifact.with_name(f"{artifact.name}.manifest.json")


def write(path: Path, artifact: str, record: dict) -> None:
    """Writes the manifest of the artifact called so."""
    versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
    command = shlex.join(["python", *sys.argv])
    text = json.dumps({"manifest_version": _VERSION, "artifact": artifact, **finite(record),
                       "command": command, "environment": environment() | versions},
                      indent=1, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


def read(artifact: Path) -> dict:
    """The manifest of an artifact.

    Raises:
        TfspeedError: there is none, or it is damaged or of another version.
    """
    path = path_of(artifact)
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise TfspeedError("There is no manifest beside the artifact.", manifest=str(path),
                           hint="It is written by scripts/export.py, and moves with its "
                                "artifact.") from error
    except (OSError, ValueError, RecursionError) as error:
        raise TfspeedError("The manifest cannot be read.", manifest=str(path),
                           cause=str(error)[:200]) from error
    if not isinstance(record, dict) or record.get("manifest_version") != _VERSION:
        version = record.get("manifest_version") if isinstance(record, dict) else None
        raise TfspeedError(f"A manifest must be of version {_VERSION}.", manifest=str(path),
                           version=version)
    for name, kind in _FIELDS.items():
        if not isinstance(record.get(name), kind):
            raise TfspeedError("The manifest is damaged: an entry is missing or of another type.",
                               manifest=str(path), entry=name)
    return record
