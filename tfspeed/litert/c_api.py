"""LiteRT's C functions, for what its Python package does not offer: profiler, custom operators.

Source: LiteRT, `litert/c/*.h`, release 2.3.0.
"""

import contextlib
import ctypes as c
import functools
from pathlib import Path

import numpy as np

from tfspeed.errors import TfspeedError

_INPUT, _OUTPUT = "Input", "Output"
_CPU, _AUTO_REGISTER, _INT = 1, 24, 2  # LiteRtHwAccelerators, LiteRtEnvOptionTag, LiteRtAnyType
_WRITE = 1  # LiteRtTensorBufferLockMode
_OPERATOR_EVENTS = (1 << 1, 1 << 3)  # LiteRtProfilerEventType: of the runtime, of a delegate


class TensorType(c.Structure):
    _fields_ = [("element", c.c_int), ("rank", c.c_uint, 7), ("has_strides", c.c_uint, 1),
                ("dimensions", c.c_int32 * 8), ("strides", c.c_uint32 * 8)]


class _Event(c.Structure):
    _fields_ = [("tag", c.c_char_p), ("type", c.c_int), ("start_us", c.c_uint64),
                ("elapsed_us", c.c_uint64), ("memory", c.c_size_t * 6),
                ("metadata", c.c_uint64 * 2), ("source", c.c_int)]


class _Any(c.Structure):
    _fields_ = [("type", c.c_int), ("value", c.c_int64)]


class _Option(c.Structure):
    _fields_ = [("tag", c.c_int), ("value", _Any)]


@functools.cache
def library() -> c.CDLL:
    import ai_edge_litert
    return c.CDLL(str(Path(ai_edge_litert.__file__).with_name("libLiteRt.so")))


def call(name: str, *args) -> None:
    status = getattr(library(), name)(*args)
    if status:
        raise TfspeedError("LiteRT refuses this call.", function=name, status=status)


def new(name: str, *args) -> c.c_void_p:
    """What a function puts where its last argument points."""
    made = c.c_void_p()
    call(name, *args, c.byref(made))
    return made


@c.CFUNCTYPE(None, c.c_void_p)
def _keep(_):
    """What LiteRT calls to free an option's text, which Python owns."""


class ProfiledProgram:
    """A `.tflite` signature, loaded with a profiler; a context manager, for nothing here is
    Python's to free.

    Args:
        threads: how many the kernels may use.
    """

    def __init__(self, path, signature: str, threads: int):
        self._buffers: dict[str, c.c_void_p] = {}
        self._texts = [(b"runtime_options_string", b"enable_profiling = true\n"),
                       (b"xnnpack", b"num_threads = %d\n" % threads)]
        with contextlib.ExitStack() as self._stack:
            self._load(str(path).encode(), signature)
            self._stack = self._stack.pop_all()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._stack.close()

    def _load(self, path: bytes, signature: str) -> None:
        option = _Option(_AUTO_REGISTER, _Any(_INT, _CPU))
        self._environment = self._own("LiteRtDestroyEnvironment", new(
            "LiteRtCreateEnvironment", 1, c.byref(option)))
        model = self._own("LiteRtDestroyModel", new(
            "LiteRtCreateModelFromFile", self._environment, path))
        options = self._own("LiteRtDestroyOptions", new("LiteRtCreateOptions"))
        call("LiteRtSetOptionsHardwareAccelerators", options, _CPU)
        for name, text in self._texts:
            call("LiteRtAddOpaqueOptions", options,
                  new("LiteRtCreateOpaqueOptions", name, text, _keep))
        self._compiled = self._own("LiteRtDestroyCompiledModel", new(
            "LiteRtCreateCompiledModel", self._environment, model, options))
        self._profiler = new("LiteRtCompiledModelGetProfiler", self._compiled)
        for index in range(self._count("LiteRtGetNumModelSignatures", model)):
            self._index = c.c_size_t(index)
            self._signature = new("LiteRtGetModelSignature", model, self._index)
            if self._text("LiteRtGetSignatureKey", self._signature) == signature:
                break
        self._inputs, self._outputs = self._all(_INPUT), self._all(_OUTPUT)

    def _own(self, destroy: str, made: c.c_void_p) -> c.c_void_p:
        function = getattr(library(), destroy)
        function.restype = None
        self._stack.callback(function, made)
        return made

    @staticmethod
    def _count(name: str, thing) -> int:
        count = c.c_size_t()
        call(name, thing, c.byref(count))
        return count.value

    @staticmethod
    def _text(name: str, *args) -> str:
        text = c.c_char_p()
        call(name, *args, c.byref(text))
        return text.value.decode()

    def _all(self, kind: str):
        """Buffers of all inputs or outputs; a name that is both has one."""
        count = self._count(f"LiteRtGetNumSignature{kind}s", self._signature)
        return (c.c_void_p * count)(*(self._buffer(kind, i).value for i in range(count)))

    def _buffer(self, kind: str, index: int) -> c.c_void_p:
        at = c.c_size_t(index)
        name = self._text(f"LiteRtGetSignature{kind}Name", self._signature, at)
        if name not in self._buffers:
            tensor = new(f"LiteRtGetSignature{kind}TensorByIndex", self._signature, at)
            shape = TensorType()
            call("LiteRtGetRankedTensorType", tensor, c.byref(shape))
            needs = new(f"LiteRtGetCompiledModel{kind}BufferRequirements", self._compiled,
                         self._index, at)
            self._buffers[name] = self._own("LiteRtDestroyTensorBuffer", new(
                "LiteRtCreateManagedTensorBufferFromRequirements", self._environment,
                c.byref(shape), needs))
            self.fill(name, None)
        return self._buffers[name]

    def fill(self, name: str, value: np.ndarray | None) -> None:
        """Writes a value of the tensor's own type, or zeros."""
        buffer = self._buffers[name]
        size = self._count("LiteRtGetTensorBufferPackedSize", buffer)
        content = bytes(size) if value is None else np.ascontiguousarray(value).tobytes()
        memory = c.c_void_p()
        call("LiteRtLockTensorBuffer", buffer, c.byref(memory), _WRITE)
        c.memmove(memory, content, min(size, len(content)))
        call("LiteRtUnlockTensorBuffer", buffer)

    def run(self) -> None:
        call("LiteRtRunCompiledModel", self._compiled, self._index,
              c.c_size_t(len(self._inputs)), self._inputs, c.c_size_t(len(self._outputs)),
              self._outputs)

    def events(self, runs: int) -> list[tuple[str, int]]:
        """Name and microseconds of every operator of several runs, in their order."""
        call("LiteRtStartProfiler", self._profiler)
        for _ in range(runs):
            self.run()
        call("LiteRtStopProfiler", self._profiler)
        count = c.c_int()
        call("LiteRtGetNumProfilerEvents", self._profiler, c.byref(count))
        events = (_Event * count.value)()
        call("LiteRtGetProfilerEvents", self._profiler, count, events)
        return [(e.tag.decode(), e.elapsed_us) for e in events if e.type in _OPERATOR_EVENTS]
