"""Lowers RNN, LSTM and GRU language models to `.tflite` signatures over an explicit state.

A signature reads one token; a prompt is a loop over the one without logits. Unrolling 16 tokens
into a signature takes twice as long (LSTM of two layers, 512 wide, 128 tokens: 49 ms, not 25): the
runtime packs a copy of the weights for every operator, and one copy stays in the cache.
"""

import dataclasses

import keras
import numpy as np

from tfspeed.errors import TfspeedError
from tfspeed.litert.dense import integers, packed_matrix
from tfspeed.litert.formats import Formats
from tfspeed.litert.graph import TfliteFile
from tfspeed.litert.pack import Product, dense_product
from tfspeed.litert.weights import Weight
from tfspeed.models.packed import PackedEmbedding
from tfspeed.models.recurrent import CELLS, GATES, Recurrent


@dataclasses.dataclass(frozen=True, eq=False)
class PackedRecurrent:
    """All weights of a `Recurrent`; a layer is its product with the token's values and its
    product with the state, both with `gates · hidden` outputs."""

    embedding: Weight
    layers: list[tuple[Product, Product]]
    head: Product  # of the embedding itself where both are one table of one format

    @property
    def weights(self) -> list[Weight]:
        """Every matrix once."""
        found = [self.embedding, *(p.weight for layer in self.layers for p in layer)]
        return found + [w for w in self.head.weights if w is not self.embedding]


def pack_recurrent(model: Recurrent, formats: Formats) -> PackedRecurrent:
    """Rounds every matrix as it is: states lie in (-1, 1), no channel stands out."""
    def matrix(name, variable):
        return packed_matrix(name, _array(variable), formats)

    formats.check(["embedding", "head", *(f"{layer.name}/{name}" for layer in model.layers_
                                          for name in ("kernel", "recurrent_kernel"))])
    table = model.embedding
    embedding = integers(table, "embedding") if isinstance(table, PackedEmbedding) else None
    kept = embedding is not None  # in the integers that a strategy has made
    embedding = embedding or matrix("embedding", table.embeddings)
    head = Product(embedding, None)
    if model.head is not None:
        head = dense_product("head", model.head, formats)
    elif not kept and formats.of("head") != formats.of("embedding"):
        head = Product(matrix("head", model.embedding.embeddings), None)
    layers = []
    for layer in model.layers_:
        _check(layer)
        cell, biases = layer.cell, (None, None)
        if cell.use_bias:
            bias = _array(cell.bias)
            biases = bias if bias.ndim == 2 else (bias, None)
        layers.append(tuple(
            Product(matrix(f"{layer.name}/{name}", keras.ops.transpose(kernel)), bias)
            for name, kernel, bias in zip(
                ("kernel", "recurrent_kernel"), (cell.kernel, cell.recurrent_kernel), biases,
                strict=True)))
    return PackedRecurrent(embedding, layers, head)


def _check(layer) -> None:
    cell = layer.cell
    usual = (type(layer) in CELLS.values() and cell.activation is keras.activations.tanh
             and getattr(cell, "recurrent_activation", None) in (None, keras.activations.sigmoid)
             and getattr(cell, "reset_after", True) and not layer.go_backwards)
    if not usual:
        raise TfspeedError("This layer has no LiteRT form.", layer=layer.name,
                           type=type(layer).__name__, hint="Use --engine=xla.")


def _array(variable) -> np.ndarray:
    return np.asarray(keras.ops.convert_to_numpy(variable), np.float32)


def state_names(model: Recurrent) -> list[str]:
    parts = ("h", "c") if model.sizes["cell"] == "lstm" else ("h",)
    return [f"state_{part}_{layer}" for layer in range(model.sizes["num_layers"])
            for part in parts]


class RecurrentLowering:
    """Writes one signature, which reads a token.

    Inputs: `tokens` int32 `[batch]`; where `padded`, `used` float32 `[batch, 1]`, 0 in rows where
    the token is padding before the text, else 1; and the states, float32 `[batch, hidden]`.
    Outputs: the states, and the logits asked for.
    """

    def __init__(self, file: TfliteFile, model: Recurrent, packed: PackedRecurrent, name: str,
                 batch: int):
        self.packed, self.cell, self.names = packed, model.sizes["cell"], state_names(model)
        self.batch, self.dims = batch, model.layer_dims
        self.graph = file.signature(name)

    def write(self, logits: bool, padded: bool) -> None:
        """Args:
            logits: whether to give them, float32 `[batch, vocabulary]`.
        """
        g = self.graph
        tokens = g.input("tokens", (self.batch,), np.int32)
        used = g.input("used", (self.batch, 1)) if padded else None
        parts = len(self.names) // len(self.dims)
        states = [g.input(name, (self.batch, self.dims[i // parts]))
                  for i, name in enumerate(self.names)]
        x = g.embedding(tokens, self.packed.embedding)
        ends = []
        for at, (given, recurrent) in enumerate(self.packed.layers):
            state = states[at * parts:(at + 1) * parts]
            given = g.fully_connected(x, given.weight, given.bias)
            past = g.fully_connected(state[0], recurrent.weight, recurrent.bias)
            state = getattr(self, f"_{self.cell}")(given, past, state)
            if padded:  # until its first token a row's state stays at zero
                state = [g.mul(part, used) for part in state]
            x = state[0]
            ends += state
        outputs = dict(zip(self.names, ends, strict=True))
        if logits:
            head = self.packed.head
            if head.first is not None:
                x = g.fully_connected(x, head.first)
            outputs["logits"] = g.fully_connected(x, head.weight, head.bias)
        g.finish(outputs)

    # What the token gives and what the state does, `[batch, gates · hidden]` → the new state.
    # The operator that writes a new state comes after all that read the old one: they share memory.

    def _rnn(self, given, past, state):
        return [self.graph.unary("TANH", self.graph.add(given, past))]

    def _lstm(self, given, past, state):
        g, both = self.graph, self.graph.add(given, past)
        enter, forget, out = (g.unary("LOGISTIC", self._gate(both, i)) for i in (0, 1, 3))
        new = g.unary("TANH", self._gate(both, 2))
        cell = g.add(g.mul(forget, state[1]), g.mul(enter, new))
        return [g.mul(out, g.unary("TANH", cell)), cell]

    def _gru(self, given, past, state):
        g = self.graph
        keep, reset = (g.unary("LOGISTIC", g.add(self._gate(given, i), self._gate(past, i)))
                       for i in (0, 1))
        new = g.unary("TANH", g.add(self._gate(given, 2), g.mul(reset, self._gate(past, 2))))
        return [g.add(new, g.mul(keep, g.sub(state[0], new)))]

    def _gate(self, x, index: int):
        hidden = x.shape[-1] // GATES[self.cell]
        return self.graph.slice(x, -1, index * hidden, hidden)
