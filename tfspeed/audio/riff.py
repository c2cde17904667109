"""The header of a WAV file. Python 3.11's `wave` does not know the extensible form, in which ffmpeg
and others write samples of 24 and 32 bits.

Format: Microsoft, "Multiple Channel Audio Data and WAVE Files" (WAVEFORMATEXTENSIBLE).
"""

import dataclasses
import struct
from typing import BinaryIO

_PCM, _EXTENSIBLE = 1, 0xFFFE
_ENDLESS = 0x7FFFF000  # from here on a size is what a program wrote that knew none (arecord, sox)
_BEHIND = (b"LIST", b"id3 ", b"ID3 ", b"bext", b"cue ", b"smpl", b"iXML", b"PEAK", b"fact", b"JUNK",
           b"PAD ")  # chunks that may follow the samples
_PIECE = 1 << 16  # read at a time of what is passed over: a size may be a lie


@dataclasses.dataclass(frozen=True)
class Header:
    """`width` is bytes of a sample of one channel, `size` bytes of all samples, None where they go
    on to the end of the file; `begun` are the first of them, which have been read."""

    rate: int
    channels: int
    width: int
    size: int | None = None
    begun: bytes = b""


def header(file: BinaryIO) -> Header:
    """Reads up to the first sample; the file may be a pipe.

    Raises:
        ValueError: it is no WAV file, or holds no PCM.
        EOFError: it ends too early.
    """
    kind, _, form = struct.unpack("<4sI4s", _exactly(file, 12))
    if kind != b"RIFF" or form != b"WAVE":
        raise ValueError("it does not begin as a WAV file")
    found = None
    while True:
        name, size = struct.unpack("<4sI", _exactly(file, 8))
        if name == b"data":
            if found is None:
                raise ValueError("samples come before their format")
            return _samples(found, size, file)
        if name == b"fmt ":
            content = _exactly(file, min(size, 40))
            found = _format(content)
            size -= len(content)
        _pass_over(file, size + size % 2)


def _samples(found: Header, size: int, file: BinaryIO) -> Header:
    """With the size: a stream's header has 0, or the largest that there is."""
    if 0 < size < _ENDLESS:
        return dataclasses.replace(found, size=size)
    begun = b"" if size else file.read(4)
    if begun in _BEHIND:
        return dataclasses.replace(found, size=0)
    return dataclasses.replace(found, begun=begun)


def _format(content: bytes) -> Header:
    tag, channels, rate, _, _, bits = struct.unpack_from("<HHIIHH", content.ljust(16, b"\0"))
    if tag == _EXTENSIBLE and len(content) >= 26:
        tag = struct.unpack_from("<H", content, 24)[0]  # a GUID that begins with the plain tag
    if tag != _PCM:
        raise ValueError(f"its samples are of format {tag}, not PCM")
    return Header(rate, channels, (bits + 7) // 8)


def _exactly(file: BinaryIO, count: int) -> bytes:
    content = file.read(count)
    if len(content) < count:
        raise EOFError("it ends too early")
    return content


def _pass_over(file: BinaryIO, count: int) -> None:
    while count > 0:
        piece = file.read(min(count, _PIECE))
        if not piece:
            raise EOFError("it ends too early")
        count -= len(piece)
