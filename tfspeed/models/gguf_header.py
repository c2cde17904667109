"""A bounded walk over a GGUF header, before the `gguf` library is given the file.

The library trusts the counts in the header and loops over them; a damaged count of 2**60 would
never end. Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import mmap
import struct
from pathlib import Path

from tfspeed.errors import TfspeedError

_MAGIC = b"GGUF"
_STRING, _ARRAY = 8, 9
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_MAX_DIMS = 4
_MAX_COUNT = 2**22  # of keys, of tensors, of strings in an array


class _Cursor:
    def __init__(self, data, path):
        self.data, self.path, self.at = data, path, 0

    def skip(self, count: int) -> int:
        """Moves on by `count` bytes, returns where it was."""
        start = self.at
        if count > len(self.data) - start:
            raise TfspeedError("The GGUF file ends in the middle of its header.",
                               path=str(self.path), bytes=len(self.data),
                               hint="It is truncated or damaged: fetch it again.")
        self.at += count
        return start

    def read(self, form: str) -> int:
        size = struct.calcsize("<" + form)
        return struct.unpack_from("<" + form, self.data, self.skip(size))[0]

    def count(self) -> int:
        value = self.read("Q")
        if value > _MAX_COUNT:
            raise TfspeedError("A count in the GGUF header is too large.", path=str(self.path),
                               count=value, hint="The file is damaged.")
        return value

    def value(self, kind: int) -> None:
        """Skips one metadata value."""
        if kind == _STRING:
            self.skip(self.read("Q"))
        elif kind in _SIZES:
            self.skip(_SIZES[kind])
        elif kind == _ARRAY:
            element, count = self.read("I"), self.count()
            if element in _SIZES:
                self.skip(count * _SIZES[element])
            elif element == _STRING:
                for _ in range(count):
                    self.skip(self.read("Q"))
            else:
                raise TfspeedError("A GGUF array holds a type that is not known.",
                                   path=str(self.path), type=element)
        else:
            raise TfspeedError("A GGUF key has a type that is not known.", path=str(self.path),
                               type=kind, hint="The file is damaged.")


def check_header(path: Path) -> None:
    """Raises TfspeedError unless the header of the file can be read to its end."""
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            _walk(_Cursor(data, path))
    except (OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped
        if isinstance(error, TfspeedError):
            raise
        raise TfspeedError("The GGUF file cannot be read.", path=str(path),
                           cause=str(error)) from error


def _walk(cursor: _Cursor) -> None:
    if cursor.data[:4] != _MAGIC:
        raise TfspeedError("This is not a GGUF file: it does not begin with 'GGUF'.",
                           path=str(cursor.path), begins_with=bytes(cursor.data[:4]))
    cursor.skip(4)
    version = cursor.read("I")
    if version not in (2, 3):
        raise TfspeedError("Only GGUF versions 2 and 3 (little-endian) are supported.",
                           path=str(cursor.path), version=version)
    tensors, pairs = cursor.count(), cursor.count()
    for _ in range(pairs):
        cursor.skip(cursor.read("Q"))
        cursor.value(cursor.read("I"))
    for _ in range(tensors):
        cursor.skip(cursor.read("Q"))
        dims = cursor.read("I")
        if dims > _MAX_DIMS:
            raise TfspeedError("A GGUF tensor has at most 4 dimensions.", path=str(cursor.path),
                               dimensions=dims, hint="The file is damaged.")
        cursor.skip(8 * dims + 4 + 8)
