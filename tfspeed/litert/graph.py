"""Writes `.tflite` files operator by operator.

TensorFlow's converter needs three minutes for the constants of a 135M model and writes a tied
embedding twice. Here weights never enter a TensorFlow graph: every matrix is one buffer, appended
to the flatbuffer and shared by all signatures.
Source: the schema of LiteRT, `tflite/converter/schema/schema.fbs`.
"""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from tfspeed.litert.weights import Weight

_ALIGNMENT = 64  # of weight buffers in the file: a cache line, and what XNNPACK wants
_INLINE_BYTES = 256
_TYPES = {np.dtype(np.float32): schema.TensorType.FLOAT32,
          np.dtype(np.float16): schema.TensorType.FLOAT16,
          np.dtype(np.int32): schema.TensorType.INT32,
          np.dtype(np.int8): schema.TensorType.INT8,
          np.dtype(np.uint8): schema.TensorType.UINT8,
          np.dtype(np.bool_): schema.TensorType.BOOL}
_Op = schema.BuiltinOperator
_Options = schema.BuiltinOptions


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor of one graph: its index there, its shape, its numpy type."""

    index: int
    shape: tuple[int, ...]
    dtype: np.dtype


class TfliteFile:
    """A model of several signatures over one set of buffers."""

    def __init__(self, description: str):
        self._model = schema.ModelT(
            version=3, description=description, operatorCodes=[], subgraphs=[],
            buffers=[schema.BufferT()], signatureDefs=[], metadata=[])
        self._arrays: list[np.ndarray | None] = [None]
        self._buffers: dict[int, int] = {}
        self._opcodes: dict[tuple, int] = {}
        self.operators: set[int] = set()

    def signature(self, name: str) -> "Graph":
        return Graph(self, name)

    def add_metadata(self, name: str, value: bytes) -> None:
        """A named blob, kept inside the flatbuffer."""
        index = self._new_buffer(np.frombuffer(value, np.uint8))
        self._model.metadata.append(schema.MetadataT(name=name, buffer=index))

    def buffer(self, array: np.ndarray) -> int:
        """The buffer of an array; the same array object gives the same buffer."""
        if id(array) not in self._buffers:
            self._buffers[id(array)] = self._new_buffer(array)
        return self._buffers[id(array)]

    def _new_buffer(self, array) -> int:
        self._arrays.append(array)  # also keeps its id taken
        self._model.buffers.append(schema.BufferT())
        return len(self._arrays) - 1

    def opcode(self, builtin: int, version: int, custom: str | None = None) -> int:
        key = (builtin, version, custom)
        if key not in self._opcodes:
            self._opcodes[key] = len(self._opcodes)
            self._model.operatorCodes.append(schema.OperatorCodeT(
                builtinCode=builtin, deprecatedBuiltinCode=min(builtin, 127), version=version,
                customCode=custom))
            self.operators.add(builtin)
        return self._opcodes[key]

    def finish(self, graph: "Graph", inputs: dict[str, Tensor], outputs: dict[str, Tensor]):
        """Called by `Graph.finish`."""
        def maps(tensors):
            return [schema.TensorMapT(name=name, tensorIndex=t.index)
                    for name, t in tensors.items()]

        self._model.subgraphs.append(schema.SubGraphT(
            name=graph.name, tensors=graph.tensors, operators=graph.operators,
            inputs=[t.index for t in inputs.values()],
            outputs=[t.index for t in outputs.values()]))
        self._model.signatureDefs.append(schema.SignatureDefT(
            signatureKey=graph.name, inputs=maps(inputs), outputs=maps(outputs),
            subgraphIndex=len(self._model.subgraphs) - 1))

    def write(self, path, durable: bool = True) -> None:
        """Writes the file; a reader never sees half of one.

        Args:
            durable: whether it must outlive a power failure.

        Raises:
            OSError: the disk is full, or the folder cannot be written.
        """
        path = Path(path)
        beside = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            with open(beside, "wb") as file:
                for chunk in self._chunks():
                    file.write(chunk)
                if durable:
                    file.flush()
                    os.fsync(file.fileno())
            os.replace(beside, path)
        finally:
            beside.unlink(missing_ok=True)

    def _chunks(self):
        large = [i for i, a in enumerate(self._arrays) if a is not None
                 and a.nbytes > _INLINE_BYTES]
        for index, array in enumerate(self._arrays):
            if array is not None and index not in large:
                self._model.buffers[index].data = np.frombuffer(array.tobytes(), np.uint8)
        # Offsets are fixed-width fields: a first pack tells where the flatbuffer ends.
        for index in large:
            self._model.buffers[index].offset, self._model.buffers[index].size = 2, 2
        size = _aligned(len(self._pack()))
        at = size
        for index in large:
            self._model.buffers[index].offset = at
            self._model.buffers[index].size = self._arrays[index].nbytes
            at = _aligned(at + self._arrays[index].nbytes)
        yield self._pack().ljust(size, b"\0")
        for index in large:
            array = np.ascontiguousarray(self._arrays[index])
            yield memoryview(array).cast("B")
            yield b"\0" * (_aligned(array.nbytes) - array.nbytes)

    def _pack(self) -> bytes:
        builder = flatbuffers.Builder(1 << 20)
        builder.Finish(self._model.Pack(builder), file_identifier=b"TFL3")
        return bytes(builder.Output())


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


class Graph:
    """One signature. Methods append an operator and return its output."""

    def __init__(self, file: TfliteFile, name: str):
        self.file, self.name = file, name
        self.tensors: list[schema.TensorT] = []
        self.operators: list[schema.OperatorT] = []
        self._inputs: dict[str, Tensor] = {}
        self._constants: dict = {}

    def input(self, name: str, shape: Sequence[int], dtype=np.float32) -> Tensor:
        self._inputs[name] = self._tensor(shape, dtype, name=name)
        return self._inputs[name]

    def finish(self, outputs: dict[str, Tensor]) -> None:
        """Ends the signature. An output that is also an input, or given twice, is refused by
        the runtime, so none may be."""
        self.file.finish(self, self._inputs, outputs)

    def constant(self, value) -> Tensor:
        """A small constant; equal values share a tensor."""
        value = np.asarray(value)
        key = (value.dtype.str, value.shape, value.tobytes())
        if key not in self._constants:
            value = np.ascontiguousarray(value)
            self._constants[key] = self._tensor(value.shape, value.dtype,
                                                buffer=self.file.buffer(value))
        return self._constants[key]

    def weight(self, weight: Weight) -> Tensor:
        """A matrix of the model, in the form that `weights.pack` gave it."""
        key = id(weight)
        if key not in self._constants:
            quantization = None
            if weight.scales is not None and weight.block:
                scales = self.constant(weight.scales)
                quantization = schema.QuantizationParametersT(
                    detailsType=schema.QuantizationDetails.BlockwiseQuantization,
                    details=schema.BlockwiseQuantizationT(
                        scales=scales.index, zeroPoints=-1, blockSize=weight.block))
            elif weight.scales is not None:
                quantization = schema.QuantizationParametersT(
                    scale=weight.scales, zeroPoint=np.zeros(len(weight.scales), np.int64),
                    quantizedDimension=0)
            tensor = self._tensor(weight.shape, np.float32, weight.name,
                                  self.file.buffer(weight.data))
            made = self.tensors[tensor.index]
            made.type, made.quantization = getattr(schema.TensorType, weight.type), quantization
            self._constants[key] = tensor
        return self._constants[key]

    def _tensor(self, shape, dtype, name="", buffer=0) -> Tensor:
        shape = tuple(int(d) for d in shape)
        index = len(self.tensors)
        self.tensors.append(schema.TensorT(
            shape=np.asarray(shape, np.int32), type=_TYPES[np.dtype(dtype)], buffer=buffer,
            name=name or f"t{index}", hasRank=True))
        return Tensor(index, shape, np.dtype(dtype))

    def _op(self, name: str, inputs, shape, dtype=None, options=None, version=1) -> Tensor:
        out = self._tensor(shape, dtype or inputs[0].dtype)
        builtin = getattr(_Op, name)
        operator = schema.OperatorT(
            opcodeIndex=self.file.opcode(builtin, version),
            inputs=np.asarray([-1 if t is None else t.index for t in inputs], np.int32),
            outputs=np.asarray([out.index], np.int32))
        if options is not None:
            kind = type(options).__name__.removesuffix("T")
            operator.builtinOptionsType = getattr(_Options, kind)
            operator.builtinOptions = options
        self.operators.append(operator)
        return out

    def custom(self, name: str, inputs: Sequence[Tensor],
               outputs: Sequence[tuple[Sequence[int], type]]) -> list[Tensor]:
        """An operator that the runtime is told of by name; `outputs` are shapes and types."""
        made = [self._tensor(shape, dtype) for shape, dtype in outputs]
        self.operators.append(schema.OperatorT(
            opcodeIndex=self.file.opcode(_Op.CUSTOM, 1, name),
            inputs=np.asarray([t.index for t in inputs], np.int32),
            outputs=np.asarray([t.index for t in made], np.int32)))
        return made

    # Element by element; shapes broadcast as in numpy.

    def _binary(self, name, a, b, options):
        a, b = (t if isinstance(t, Tensor) else self.constant(np.float32(t)) for t in (a, b))
        return self._op(name, [a, b], np.broadcast_shapes(a.shape, b.shape), options=options)

    def add(self, a, b):
        return self._binary("ADD", a, b, schema.AddOptionsT())

    def sub(self, a, b):
        return self._binary("SUB", a, b, schema.SubOptionsT())

    def mul(self, a, b):
        return self._binary("MUL", a, b, schema.MulOptionsT())

    def div(self, a, b):
        return self._binary("DIV", a, b, schema.DivOptionsT())

    def minimum(self, a, b):
        return self._binary("MINIMUM", a, b, schema.MaximumMinimumOptionsT())

    def unary(self, name: str, x: Tensor) -> Tensor:
        """RSQRT, LOGISTIC, TANH, RELU, RELU_N1_TO_1, COS or SIN."""
        return self._op(name, [x], x.shape)

    def gelu(self, x, approximate: bool):
        return self._op("GELU", [x], x.shape, options=schema.GeluOptionsT(approximate=approximate))

    def softmax(self, x):
        return self._op("SOFTMAX", [x], x.shape, options=schema.SoftmaxOptionsT(beta=1.0))

    def mean(self, x):
        """Over the last axis, which stays as 1."""
        return self._op("MEAN", [x, self.constant(np.asarray([len(x.shape) - 1], np.int32))],
                        (*x.shape[:-1], 1), options=schema.ReducerOptionsT(keepDims=True))

    def cast(self, x, dtype):
        return self._op("CAST", [x], x.shape, dtype, options=schema.CastOptionsT())

    # Products.

    def fully_connected(self, x, weight: Weight, bias: np.ndarray | None = None):
        """`x @ weight.T + bias`: `[..., in]`, a weight of `[out, in]` → `[..., out]`."""
        matrix = self.weight(weight)
        if weight.type == "FLOAT16":  # XNNPACK takes the pair as a float16 matrix
            matrix = self._op("DEQUANTIZE", [matrix], matrix.shape, np.float32, version=3,
                              options=schema.DequantizeOptionsT())
        inputs = [x, matrix, None if bias is None else self.constant(bias)]
        return self._op("FULLY_CONNECTED", inputs, (*x.shape[:-1], weight.shape[0]), np.float32,
                        schema.FullyConnectedOptionsT(keepNumDims=True), version=12)

    def matmul(self, a, b, transpose_b=False):
        """`[..., m, k]` by `[..., k, n]`, or `[..., n, k]` where `transpose_b`."""
        shape = (*np.broadcast_shapes(a.shape[:-2], b.shape[:-2]), a.shape[-2],
                 b.shape[-2] if transpose_b else b.shape[-1])
        return self._op("BATCH_MATMUL", [a, b], shape,
                        options=schema.BatchMatMulOptionsT(adjY=transpose_b))

    def embedding(self, ids, table: Weight):
        """Rows `[ids, width]` of a table `[rows, width]`, as float32."""
        if table.type == "FLOAT16":  # EMBEDDING_LOOKUP answers zeros
            rows = self._op("GATHER", [self.weight(table), ids], (*ids.shape, table.shape[1]),
                            np.float16, options=schema.GatherOptionsT(axis=0), version=5)
            return self._op("DEQUANTIZE", [rows], rows.shape, np.float32, version=3,
                            options=schema.DequantizeOptionsT())
        return self._op("EMBEDDING_LOOKUP", [ids, self.weight(table)],
                        (*ids.shape, table.shape[1]), np.float32, version=4)

    def gather(self, table: Tensor, ids: Tensor, axis: int):
        """Rows of `table` along an axis, in the order of the ids, int32 `[n]`."""
        shape = list(table.shape)
        shape[axis] = ids.shape[0]
        return self._op("GATHER", [table, ids], shape, options=schema.GatherOptionsT(axis=axis))

    # Shapes.

    def reshape(self, x, shape):
        if tuple(shape) == x.shape:
            return x
        shape = np.asarray(shape, np.int32)
        return self._op("RESHAPE", [x, self.constant(shape)], shape,
                        options=schema.ReshapeOptionsT(newShape=shape))

    def transpose(self, x, order):
        return self._op("TRANSPOSE", [x, self.constant(np.asarray(order, np.int32))],
                        [x.shape[i] for i in order], options=schema.TransposeOptionsT())

    def slice(self, x, axis: int, begin: int, size: int):
        axis %= len(x.shape)
        if size == x.shape[axis]:
            return x
        start, shape = np.zeros(len(x.shape), np.int32), np.asarray(x.shape, np.int32)
        start[axis], shape[axis] = begin, size
        return self._op("SLICE", [x, self.constant(start), self.constant(shape)], shape,
                        options=schema.SliceOptionsT())

    def concatenate(self, parts, axis: int):
        axis %= len(parts[0].shape)
        shape = list(parts[0].shape)
        shape[axis] = sum(p.shape[axis] for p in parts)
        return self._op("CONCATENATION", parts, shape,
                        options=schema.ConcatenationOptionsT(axis=axis))

    def update_slice(self, x, update, start):
        """`x` with `update` written at `start`, int32 `[rank]`; in place where the runtime gives
        both one buffer."""
        return self._op("DYNAMIC_UPDATE_SLICE", [x, update, start], x.shape,
                        options=schema.DynamicUpdateSliceOptionsT())
