"""Runs `.tflite` files through LiteRT's `CompiledModel`, state kept in place.

A state tensor is one buffer that a signature reads as its input and writes as its output: the
kernels update it where it lies.
"""

import atexit
import functools
import mmap
import os
from pathlib import Path

import numpy as np

from tfspeed.errors import TfspeedError
from tfspeed.quiet import captured_stderr

_SCHEMA_VERSION = 3


@functools.cache
def _environment():
    """One for the process."""
    from ai_edge_litert.environment import Environment
    # LiteRT's destructors tell of every accelerator that they end, after Python's own exit.
    atexit.register(lambda: os.dup2(os.open(os.devnull, os.O_WRONLY), 2))
    return Environment.create()


def check_file(path) -> None:
    """Refuses what is no `.tflite` file of the version that the runtime reads."""
    from ai_edge_litert import schema_py_generated as schema
    path = Path(path)
    try:
        with path.open("rb") as file:
            head = file.read(8)
            # Mapped: the weights, which are nearly all of it, are not looked at.
            content = None if head[4:] != b"TFL3" else mmap.mmap(
                file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise TfspeedError("The .tflite file could not be read.", path=str(path),
                           cause=error.strerror) from error
    if content is None:
        raise TfspeedError("This is no .tflite file: its identifier is not TFL3.", path=str(path))
    try:
        model = schema.Model.GetRootAs(content, 0)
        version = model.Version()
        # What a truncated file has lost: the buffers at its end.
        ends = [b.Offset() + b.Size() for b in map(model.Buffers, range(model.BuffersLength()))
                if b.Offset() > 1]
    except Exception as error:  # flatbuffers raises whatever a wrong offset leads to
        raise TfspeedError("This .tflite file is damaged.", path=str(path)) from error
    if version != _SCHEMA_VERSION:
        raise TfspeedError(f"LiteRT reads .tflite files of schema version {_SCHEMA_VERSION}.",
                           path=str(path), version=version)
    if max(ends, default=0) > len(content):
        raise TfspeedError("This .tflite file is truncated.", path=str(path),
                           bytes=len(content), needed=max(ends))


class Program:
    """A loaded `.tflite` file."""

    def __init__(self, path, threads: int, weight_cache: str = ":memory:"):
        """Args:
            threads: how many the kernels may use.
            weight_cache: file in which XNNPACK keeps the weights in its kernels' order; `:memory:`
                is none, but still one copy for all signatures (where empty, one for each).
        """
        from ai_edge_litert.compiled_model import CompiledModel, CpuOptions, Options
        check_file(path)
        options = Options(cpu_options=CpuOptions(num_threads=threads,
                                                 xnnpack_weight_cache_path=weight_cache))
        with captured_stderr() as said:
            try:
                self._model = CompiledModel.from_file(str(path), environment=_environment(),
                                                      options=options)
            except Exception as error:
                raise TfspeedError("LiteRT refuses this .tflite file.", path=str(path),
                                   cause=str(error)[:200], hint=said()[-300:]) from error
        self.signatures = self._model.get_signature_list()

    def buffers(self, signature: str) -> "Buffers":
        """New memory for a signature; a name that is an input and an output gets one buffer."""
        with captured_stderr():  # the first one that is touched lists the accelerators
            made = Buffers(self._model, signature, self.signatures[signature])
            made.touch()
        return made

    def close(self) -> None:
        self._model.close()


class Buffers:
    """The memory of one signature, and its call."""

    def __init__(self, model, signature: str, names: dict):
        self._model, self._index = model, model.get_signature_index(signature)
        self._names, self._sizes = names, {}
        self._buffers = {name: model.create_input_buffer_by_name(signature, name)
                         for name in names["inputs"]}
        for name in names["outputs"]:
            if name not in self._buffers:
                self._buffers[name] = model.create_output_buffer_by_name(signature, name)
        for details in (model.get_output_tensor_details(signature),
                        model.get_input_tensor_details(signature)):
            self._sizes |= {name: (tuple(d["shape"]), np.dtype(str(d["dtype"]).lower()))
                            for name, d in details.items()}
        self._order()

    def _order(self):
        self._inputs = [self._buffers[name] for name in self._names["inputs"]]
        self._outputs = [self._buffers[name] for name in self._names["outputs"]]

    def share(self, other: "Buffers", names) -> None:
        """Takes the buffers of these names from another signature: the same memory for both."""
        self._buffers |= {name: other._buffers[name] for name in names}
        self._order()

    def touch(self) -> None:
        self[self._names["inputs"][0]]

    def __setitem__(self, name: str, value: np.ndarray) -> None:
        shape, dtype = self._sizes[name]
        self._buffers[name].write(np.ascontiguousarray(value, dtype).reshape(shape))

    def __getitem__(self, name: str) -> np.ndarray:
        shape, dtype = self._sizes[name]
        return self._buffers[name].read(int(np.prod(shape)), dtype).reshape(shape)

    def run(self) -> None:
        self._model.run_by_index(self._index, self._inputs, self._outputs)
