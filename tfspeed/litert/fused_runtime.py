"""Runs a `.tflite` file whose signatures are the fused operator, through LiteRT's C interface.

LiteRT's Python classes cannot register a custom operator; the C library beside them can.
Source: litert/c/*.h of LiteRT 2.x.
"""

import ctypes
import functools

import numpy as np

from tfspeed.errors import TfspeedError
from tfspeed.litert.c_api import TensorType, call, new
from tfspeed.litert.c_api import library as litert
from tfspeed.litert.compiler import library
from tfspeed.litert.fused_plan import OPERATOR
from tfspeed.litert.runtime import check_file
from tfspeed.quiet import captured_stderr

STAGES = ("embed", "norm, quantize", "query, key, value", "rotate, cache", "attend", "out",
          "gate, up", "down", "head")
_ERRORS = {1: "memory has run out", 2: "LiteRT copied the cache", 3: "an input is missing"}
_CPU = 1
_ELEMENTS = {np.dtype(np.float32): 1, np.dtype(np.int32): 2, np.dtype(np.uint8): 3,
             np.dtype(np.float16): 10}


class _Operator(ctypes.Structure):
    """`Operator` of kernels/operator.h."""

    _fields_ = [("threads", ctypes.c_int32), ("vocabulary", ctypes.c_int32),
                ("logits", ctypes.c_int32), ("error", ctypes.c_int32),
                ("seconds", ctypes.c_double * len(STAGES)), ("lock", ctypes.c_void_p),
                ("unlock", ctypes.c_void_p)]


@functools.cache
def _environment() -> ctypes.c_void_p:
    return new("LiteRtCreateEnvironment", 0, None)


class FusedProgram:
    """A loaded file. Every signature takes and gives the arrays of `bind`.

    Args:
        vocabulary, logits: the operator's second output is `[texts, logits, vocabulary]`.
    """

    def __init__(self, path, threads: int, vocabulary: int, logits: int = 1):
        check_file(path)
        kernels = library()
        self._operator = _Operator(
            threads=threads, vocabulary=vocabulary, logits=logits,
            lock=ctypes.cast(litert().LiteRtLockTensorBuffer, ctypes.c_void_p),
            unlock=ctypes.cast(litert().LiteRtUnlockTensorBuffer, ctypes.c_void_p))
        if (ctypes.c_int32 * 3).in_dll(kernels, "tfspeed_sizes")[2] != ctypes.sizeof(_Operator):
            raise TfspeedError("The kernels disagree with their runtime.",
                               hint="This is a bug of tfspeed.")
        options = new("LiteRtCreateOptions")
        call("LiteRtSetOptionsHardwareAccelerators", options, _CPU)
        call("LiteRtAddCustomOpKernelOption", options, OPERATOR.encode(), 1,
              ctypes.byref((ctypes.c_void_p * 4).in_dll(kernels, "tfspeed_kernel")),
              ctypes.byref(self._operator))
        with captured_stderr():  # LiteRT tells of every model
            self._model = new("LiteRtCreateModelFromFile", _environment(), str(path).encode())
            self._compiled = new("LiteRtCreateCompiledModel", _environment(), self._model, options)
        litert().LiteRtDestroyOptions(options)
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
            litert().LiteRtDestroyTensorBuffer(buffer)

    def _buffer(self, array: np.ndarray) -> ctypes.c_void_p:
        kind = TensorType(element=_ELEMENTS[array.dtype], rank=array.ndim)
        kind.dimensions[:array.ndim] = array.shape
        return new("LiteRtCreateTensorBufferFromHostMemory", ctypes.byref(kind),
                     ctypes.c_void_p(array.ctypes.data), ctypes.c_size_t(array.nbytes), None)

    def run(self, signature: int) -> None:
        inputs, outputs, _, ins, outs = self._bound[signature]
        call("LiteRtRunCompiledModel", self._compiled, ctypes.c_size_t(signature),
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
        litert().LiteRtDestroyCompiledModel(self._compiled)
        litert().LiteRtDestroyModel(self._model)
        self._compiled = None

    def __del__(self):
        if getattr(self, "_compiled", None) is not None:
            self.close()
