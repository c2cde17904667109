"""Reads CTranslate2's `model.bin`, binary version 6: a header, then the tensors one by one.

Format: OpenNMT/CTranslate2, python/ctranslate2/specs/model_spec.py (`_serialize`). All integers are
little-endian; a text is its length with the final NUL (uint16), then its bytes.
"""

import dataclasses
import math
import mmap
import struct
from pathlib import Path

import ml_dtypes
import numpy as np

from tfspeed.errors import TfspeedError

VERSION = 6
# DataType of CTranslate2, by number.
_TYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16,
          5: ml_dtypes.bfloat16}
_MOST = 100_000  # tensors, or aliases


@dataclasses.dataclass(frozen=True)
class CTranslate2File:
    """Attributes:
        spec: name of the model's kind, such as `WhisperSpec`.
        tensors: views of the mapped file, by name; aliases too.
    """

    path: Path
    spec: str
    tensors: dict[str, np.ndarray]


def looks_like(path: Path) -> bool:
    """Whether a file begins as a `model.bin` of any version does."""
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except OSError:
        return False
    if len(head) < 8:
        return False
    version, length = struct.unpack_from("<IH", head)
    return 0 < version < 100 and 4 < length < 58 and head[6:6 + length].endswith(b"Spec\0")


def read(path: Path) -> CTranslate2File:
    """Maps the file; nothing in it is executed.

    Raises:
        TfspeedError: the file cannot be read, is of another version, or damaged.
    """
    try:
        with path.open("rb") as file:
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise TfspeedError("The model file could not be read.", path=str(path),
                           cause=str(error)) from error
    reader = _Reader(path, content)
    version = reader.number("I")
    if version != VERSION:
        raise TfspeedError(f"CTranslate2's model.bin is read in binary version {VERSION}.",
                           path=str(path), version=version,
                           hint="Convert the model again with a newer CTranslate2.")
    spec = reader.text()
    reader.number("I")  # revision of the spec
    tensors = dict(reader.tensor() for _ in range(reader.count()))
    for _ in range(reader.count()):
        alias, name = reader.text(), reader.text()
        if name not in tensors:
            raise reader.damaged(f"{alias} is an alias of nothing")
        tensors[alias] = tensors[name]
    return CTranslate2File(path, spec, tensors)


class _Reader:
    def __init__(self, path: Path, content):
        self.path, self.content, self.at = path, content, 0

    def damaged(self, cause: str) -> TfspeedError:
        return TfspeedError("This model.bin is damaged.", path=str(self.path), at=self.at,
                            cause=cause, hint="It may be truncated: compare its size, or fetch it "
                                              "again.")

    def number(self, kind: str) -> int:
        return int.from_bytes(self.bytes(struct.calcsize(kind)), "little")

    def count(self) -> int:
        count = self.number("I")
        if count > _MOST:
            raise self.damaged(f"{count} entries")
        return count

    def bytes(self, count: int) -> bytes:
        found = self.content[self.at:self.at + count]
        if len(found) != count:
            raise self.damaged("it ends too early")
        self.at += count
        return found

    def text(self) -> str:
        raw = self.bytes(self.number("H"))
        try:
            return raw.removesuffix(b"\0").decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.damaged("a name is no text") from error

    def tensor(self) -> tuple[str, np.ndarray]:
        name = self.text()
        shape = tuple(self.number("I") for _ in range(self.number("B")))
        kind, size = self.number("B"), self.number("I")
        if kind not in _TYPES:
            raise self.damaged(f"{name[:80]} is of the unknown type {kind}")
        dtype = np.dtype(_TYPES[kind])
        if math.prod(shape) * dtype.itemsize != size or self.at + size > len(self.content):
            raise self.damaged(f"{name[:80]} has {size} bytes for shape {shape}, or the file ends")
        values = np.frombuffer(self.content, dtype, math.prod(shape), self.at).reshape(shape)
        self.at += size
        return name, values
