"""A `PackedDecoder` as one file: a header in JSON, then its arrays, mapped when it is read.

The arrays lie at multiples of 64 bytes. Nothing in a file is executed, and whatever is wrong with
one (half of it, another program's, a flipped bit) makes it no file at all.
"""

import dataclasses
import json
import mmap
import zlib
from pathlib import Path

import numpy as np

from tfspeed.litert.pack import PackedBlock, PackedDecoder, Product
from tfspeed.litert.weights import Weight

_MAGIC = b"tfspeed packed 1"
_ALIGNMENT = 64
_CLASSES = {cls.__name__: cls for cls in (PackedBlock, PackedDecoder, Product, Weight)}


def write_packed(path: Path, packed: PackedDecoder) -> None:
    """Raises:
        OSError: the disk is full, or the folder cannot be written.
    """
    tables: dict[str, list] = {"array": [], "weight": []}
    root = _encoded(packed, tables, {})
    arrays, at, check = [], 0, 0
    for array in tables["array"]:
        arrays.append({"dtype": array.dtype.str, "shape": array.shape, "offset": at})
        at += _aligned(array.nbytes)
        check = zlib.crc32(_bytes(array), check)
    header = json.dumps({"root": root, "weights": tables["weight"], "arrays": arrays,
                         "bytes": at, "crc32": check}).encode()
    with path.open("wb") as file:
        file.write(_MAGIC + len(header).to_bytes(8, "little") + zlib.crc32(header).to_bytes(
            8, "little"))
        file.write(header.ljust(_aligned(file.tell() + len(header)) - file.tell(), b"\0"))
        for array in tables["array"]:
            file.write(_bytes(array))
            file.write(b"\0" * (_aligned(array.nbytes) - array.nbytes))


def read_packed(path: Path) -> PackedDecoder | None:
    """What `write_packed` wrote; None if there is no such file, or not all of it."""
    try:
        with path.open("rb") as file:
            content = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        return _read(content)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError):
        return None


def _read(content: memoryview) -> PackedDecoder:
    start = len(_MAGIC) + 16
    length, check = (int.from_bytes(content[at:at + 8], "little") for at in (start - 16, start - 8))
    text = bytes(content[start:start + length])
    if content[:len(_MAGIC)] != _MAGIC or zlib.crc32(text) != check:
        raise ValueError("no packed file")
    header = json.loads(text)
    content = content[_aligned(start + length):]
    if len(content) != header["bytes"]:
        raise ValueError("truncated")
    arrays, check = [], 0
    for entry in header["arrays"]:
        dtype, shape = np.dtype(entry["dtype"]), tuple(entry["shape"])
        size = int(np.prod(shape)) * dtype.itemsize
        part = content[entry["offset"]:entry["offset"] + size]
        check = zlib.crc32(part, check)
        arrays.append(np.frombuffer(part, dtype).reshape(shape))
    if check != header["crc32"]:
        raise ValueError("damaged")
    tables = {"array": arrays, "weight": []}
    tables["weight"] = [_decoded(weight, tables) for weight in header["weights"]]
    return _decoded(header["root"], tables)


def _encoded(value, tables, known: dict[int, dict]):
    """JSON of a value; one object in two places is one entry of its table, and one object again
    when it is read."""
    if isinstance(value, list):
        return [_encoded(item, tables, known) for item in value]
    if not isinstance(value, (np.ndarray, *_CLASSES.values())):
        return value
    if id(value) not in known:
        if isinstance(value, np.ndarray):
            made = {"array": len(tables["array"])}
            tables["array"].append(value)
        else:
            made = {"class": type(value).__name__, "fields": {
                field.name: _encoded(getattr(value, field.name), tables, known)
                for field in dataclasses.fields(value)}}
            if isinstance(value, Weight):
                tables["weight"].append(made)
                made = {"weight": len(tables["weight"]) - 1}
        known[id(value)] = made
    return known[id(value)]


def _decoded(value, tables):
    if isinstance(value, list):
        return [_decoded(item, tables) for item in value]
    if not isinstance(value, dict):
        return value
    for name, table in tables.items():
        if name in value:
            return table[value[name]]
    fields = {name: _decoded(field, tables) for name, field in value["fields"].items()}
    if value["class"] == "Weight":
        fields["shape"] = tuple(fields["shape"])
    return _CLASSES[value["class"]](**fields)


def _bytes(array: np.ndarray) -> memoryview:
    return memoryview(np.ascontiguousarray(array).reshape(-1).view(np.uint8))


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT
