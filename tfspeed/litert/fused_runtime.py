"""Runs a `.tflite` file whose signatures are the fused operator, through LiteRT's C interface.

LiteRT's Python classes cannot register a custom operator; the C library beside them can.
Source: litert/c/*.h of LiteRT 2.x.
"""

import ctypes
import functools
from pathlib import Path

import ai_edge_litert
import numpy as np

from tfspeed.errors import TfspeedError
from tfspeed.litert.compiler import library
from tfspeed.litert.runtime import check_file
from tfspeed.quiet import captured_stderr

OPERATOR = "tfspeed.decoder"
STAGES = ("embed", "norm, quantize", "query, key, value", "rotate, cache", "attend", "out",
          "gate, up", "down", "head")
_ERRORS = {1: "memory has run out", 2: "LiteRT copied the cache", 3: "an input is missing"}
_CPU = 1
_ELEMENTS = {np.dtype(np.float32): 1, np.dtype(np.int32): 2, np.dtype(np.uint8): 3,
             np.dtype(np.float16): 10}


class _Layout(ctypes.Structure):
    _fields_ = [("rank", ctypes.c_uint), ("dimensions", ctypes.c_int32 * 8),
                ("strides", ctypes.c_uint32 * 8)]


class _TensorType(ctypes.Structure):
    _fields_ = [("element", ctypes.c_int), ("layout", _Layout)]


class _Operator(ctypes.Structure):
    """`Operator` of kernels/operator.h."""

    _fields_ = [("threads", ctypes.c_int32), ("vocabulary", ctypes.c_int32),
                ("all_logits", ctypes.c_int32), ("error", ctypes.c_int32),
                ("seconds", ctypes.c_double * len(STAGES)), ("lock", ctypes.c_void_p),
                ("unlock", ctypes.c_void_p)]


@functools.cache
def _litert() -> ctypes.CDLL:
    return ctypes.CDLL(str(Path(ai_edge_litert.__file__).parent / "libLiteRt.so"))


@functools.cache
def _environment() -> ctypes.c_void_p:
    return _make("Environment", 0, None)


def _check(what: str, status: int) -> None:
    if status:
        _litert().LiteRtGetStatusString.restype = ctypes.c_char_p
        raise TfspeedError("LiteRT refuses this.", call=what,
                           status=_litert().LiteRtGetStatusString(status).decode())


def _call(name: str, *args) -> None:
    _check(name, getattr(_litert(), f"LiteRt{name}")(*args))


def _make(kind: str, *args) -> ctypes.c_void_p:
    made = ctypes.c_void_p()
    _call(f"Create{kind}", *args, ctypes.byref(made))
    return made


class FusedProgram:
    """A loaded file. Every signature takes and gives the arrays of `bind`.

    Args:
        vocabulary, all_logits: what the operator's second output looks like.
    """

    def __init__(self, path, threads: int, vocabulary: int, all_logits: bool):
        check_file(path)
        kernels = library()
        self._operator = _Operator(
            threads=threads, vocabulary=vocabulary, all_logits=all_logits,
            lock=ctypes.cast(_litert().LiteRtLockTensorBuffer, ctypes.c_void_p),
            unlock=ctypes.cast(_litert().LiteRtUnlockTensorBuffer, ctypes.c_void_p))
        if (ctypes.c_int32 * 3).in_dll(kernels, "tfspeed_sizes")[2] != ctypes.sizeof(_Operator):
            raise TfspeedError("The kernels disagree with their runtime.",
                               hint="This is a bug of tfspeed.")
        options = _make("Options")
        _call("SetOptionsHardwareAccelerators", options, _CPU)
        _call("AddCustomOpKernelOption", options, OPERATOR.encode(), 1,
              ctypes.byref((ctypes.c_void_p * 4).in_dll(kernels, "tfspeed_kernel")),
              ctypes.byref(self._operator))
        with captured_stderr():  # LiteRT tells of every model
            self._model = _make("ModelFromFile", _environment(), str(path).encode())
            self._compiled = _make("CompiledModel", _environment(), self._model, options)
        _litert().LiteRtDestroyOptions(options)
        self._bound: dict = {}

    def bind(self, signature: int, inputs: list[np.ndarray], outputs: list[np.ndarray]) -> None:
        """Gives a signature its memory, arrays of `memory.aligned`; what is an input and an output
        is one buffer."""
        self.release(signature)
        buffers: dict[int, ctypes.c_void_p] = {}
        for array in (*inputs, *outputs):
            if id(array) not in buffers:
                buffers[id(array)] = self._buffer(array)
        groups = [(ctypes.c_void_p * len(arrays))(*(buffers[id(a)] for a in arrays))
                  for arrays in (inputs, outputs)]
        self._bound[signature] = (inputs, outputs, buffers, *groups)

    def release(self, signature: int) -> None:
        """Lets go of a signature's memory, if it has any."""
        for buffer in self._bound.pop(signature, ((),) * 2 + ({},))[2].values():
            _litert().LiteRtDestroyTensorBuffer(buffer)

    def _buffer(self, array: np.ndarray) -> ctypes.c_void_p:
        layout = _Layout(rank=array.ndim)
        layout.dimensions[:array.ndim] = array.shape
        kind = _TensorType(_ELEMENTS[array.dtype], layout)
        return _make("TensorBufferFromHostMemory", ctypes.byref(kind),
                     ctypes.c_void_p(array.ctypes.data), ctypes.c_size_t(array.nbytes), None)

    def run(self, signature: int) -> None:
        inputs, outputs, _, ins, outs = self._bound[signature]
        _call("RunCompiledModel", self._compiled, ctypes.c_size_t(signature),
              ctypes.c_size_t(len(inputs)), ins, ctypes.c_size_t(len(outputs)), outs)
        if self._operator.error:
            raise TfspeedError("The fused operator failed.",
                               cause=_ERRORS.get(self._operator.error, "unknown"))

    @property
    def seconds(self) -> dict[str, float]:
        """What each stage has taken so far, where control asked for it."""
        return dict(zip(STAGES, self._operator.seconds, strict=True))

    def close(self) -> None:
        """Frees what LiteRT holds. The arrays are Python's."""
        if self._compiled is None:
            return
        for signature in list(self._bound):
            self.release(signature)
        _litert().LiteRtDestroyCompiledModel(self._compiled)
        _litert().LiteRtDestroyModel(self._model)
        self._compiled = None

    def __del__(self):
        if getattr(self, "_compiled", None) is not None:
            self.close()
