"""What a pass of a model multiplies: its matrices and its attention, from the config or the model.

    shape = shapes.decoder(config)                       on paper
    shape = shapes.of(model)                             as strategies have left it
    shape = shape.stored(Formats("int4,head=int4"))      as a packed engine keeps it
"""

import dataclasses
import functools
from collections import Counter

from tfspeed.costs.matrices import Attention, Matrix
from tfspeed.errors import TfspeedError
from tfspeed.litert.formats import Formats
from tfspeed.models.config import DecoderConfig
from tfspeed.models.decoder import Decoder
from tfspeed.models.low_rank import LowRankDense
from tfspeed.models.packed import Packed
from tfspeed.models.recurrent import GATES, Recurrent, layer_dims

_ITEM_BITS = {"float32": 32, "float16": 16, "bfloat16": 16}


@dataclasses.dataclass(frozen=True)
class Shape:
    """A model, as far as its costs go.

    Attributes:
        layers: the matrices of each layer.
        head: the output layer; where it is `tied`, the table of the embedding.
        attention: of each layer; () in a recurrent model.
        state_values: numbers that a recurrent model keeps of a row.
        small_values: weights that are no matrix of a product: norms, biases.
        table_values: of tables of which a step looks up a row; that of a tied embedding is none.
        source: what layers with cross-attention look at, see `seq2seq_shapes.Source`; None: they
            have none.
        compute: the type that `graph` and `xla` multiply in.
    """

    name: str
    hidden: int
    vocabulary: int
    context: int
    layers: tuple[tuple[Matrix, ...], ...]
    head: Matrix
    attention: tuple[Attention, ...] = ()
    state_values: int = 0
    small_values: int = 0
    table_values: int = 0
    config: DecoderConfig | None = None
    source: object | None = None
    compute: str = "float32"

    @property
    def matrices(self) -> list[Matrix]:
        return [*(m for layer in self.layers for m in layer), self.head]

    @functools.cached_property
    def kinds(self) -> Counter:
        """Matrices (without their names) and attention of a layer, and how many are alike."""
        return Counter((tuple(dataclasses.replace(m, name="") for m in layer), attention)
                       for layer, attention in zip(self.layers, self.attention, strict=True))

    @functools.cached_property
    def but_last(self) -> "Shape":
        """Without the last layer."""
        return dataclasses.replace(self, layers=self.layers[:-1], attention=self.attention[:-1])

    @property
    def parameters(self) -> int:
        return (sum(m.parameters for m in self.matrices) + self.small_values + self.table_values
                + (self.source.parameters if self.source else 0))

    @functools.cached_property
    def step_weight_bytes(self) -> int:
        """Bytes of the matrices, each of which a step reads once."""
        return sum(m.nbytes for m in self.matrices)

    def stored(self, formats: Formats) -> "Shape":
        """With every matrix in the format that a packed engine gives it; one that a strategy has
        quantized stays as it is."""
        def change(matrix: Matrix) -> Matrix:
            if matrix.bits <= 8:
                return matrix
            bits, group = formats.of(matrix.name)
            return dataclasses.replace(matrix, bits=bits, group=group)

        return self.changed(change)

    def changed(self, change) -> "Shape":
        """With `change(matrix)` in place of every matrix."""
        return dataclasses.replace(
            self, layers=tuple(tuple(map(change, layer)) for layer in self.layers),
            head=change(self.head), source=self.source and self.source.changed(change))

    def shared_out(self, workers: int) -> "Shape":
        """What each worker has of it where heads and columns are spread as `tensor_parallel` does:
        whole groups of heads, the rest filled up with zeros; embedding and head whole on each."""
        if self.config is None or any(m.rank or m.bits <= 8 for m in self.matrices):
            raise TfspeedError("Only decoders that no strategy has changed are spread over "
                               "workers on paper.", model=self.name)
        c = self.config

        def share(count):
            return -(-count // workers)

        heads = share(c.num_kv_heads)
        part = decoder(dataclasses.replace(
            c, num_heads=c.num_heads // c.num_kv_heads * heads, num_kv_heads=heads,
            mlp_dim=share(c.mlp_dim), mlp_dims=tuple(map(share, c.mlp_dims)),
            layer_kv_heads=tuple(map(share, c.layer_kv_heads))), self.name, self.head.bits)
        return dataclasses.replace(part, head=self.head, compute=self.compute)

    def thinned(self, rank_share: float) -> "Shape":
        """With two thin matrices in place of each of the layers' where that saves: together they
        have `rank_share` of its values."""
        if not 0 < rank_share < 1:
            raise TfspeedError("The share of values that low rank keeps is between 0 and 1.",
                               rank_share=rank_share)

        def change(matrix):
            if matrix is self.head or matrix.name == "head":
                return matrix
            rank = int(rank_share * matrix.inputs * matrix.outputs
                       / (matrix.inputs + matrix.outputs))
            return dataclasses.replace(matrix, rank=max(1, rank))

        return self.changed(change)


def decoder(config: DecoderConfig, name: str = "", bits: int = 32, density: float = 1.0) -> Shape:
    """Of a `Decoder` of this config."""
    c, layers, attention = config, [], []

    def matrix(named, inputs, outputs):
        return Matrix(named, inputs, outputs, bits=bits, density=density)

    for i in range(c.num_layers):
        layer = c.layer(i)
        layers.append(tuple(matrix(*sizes) for sizes in layer_sizes(f"block_{i}", layer)))
        attention.append(Attention(layer.num_heads, layer.num_kv_heads, c.head_dim, c.window(i)))
    head = matrix("head", c.hidden_dim, c.vocabulary_size)
    tables = 0 if c.tied_embeddings else c.vocabulary_size
    tables += c.context_length if c.positions == "learned" else 0
    products = sum(m.parameters for layer in layers for m in layer) + head.parameters
    return Shape(name or c.family, c.hidden_dim, c.vocabulary_size, c.context_length,
                 tuple(layers), head, tuple(attention), table_values=tables * c.hidden_dim,
                 small_values=c.parameter_count - products - tables * c.hidden_dim, config=c)


def layer_sizes(at: str, layer: DecoderConfig) -> list[tuple[str, int, int]]:
    """Name, inputs and outputs of a layer's matrices: those of self-attention, then of the MLP.

    Args:
        layer: the config of this layer alone.
    """
    c = layer
    return [(f"{at}/attention/query_key_value", c.hidden_dim, c.qkv_dim),
            (f"{at}/attention/out", c.num_heads * c.head_dim, c.hidden_dim),
            (f"{at}/mlp/up", c.hidden_dim, (2 if c.gated_mlp else 1) * c.mlp_dim),
            (f"{at}/mlp/down", c.mlp_dim, c.hidden_dim)]


def recurrent(sizes: dict, name: str = "", bits: int = 32) -> Shape:
    """Of a `Recurrent` of these sizes."""
    gates, vocabulary = GATES[sizes["cell"]], sizes["vocabulary_size"]
    dims = layer_dims(sizes)
    inputs = [sizes.get("embedding_dim") or dims[0], *dims]
    tied = sizes.get("tied_embeddings", True)
    layers = tuple((Matrix(f"{sizes['cell']}_{i}/input", inputs[i], gates * dim, bits=bits),
                    Matrix(f"{sizes['cell']}_{i}/recurrent", dim, gates * dim, bits=bits))
                   for i, dim in enumerate(dims))
    biases = (2 if sizes["cell"] == "gru" else 1) * gates * sum(dims)
    state = (2 if sizes["cell"] == "lstm" else 1) * sum(dims)
    return Shape(name or sizes["cell"], dims[-1], vocabulary, sizes["context_length"], layers,
                 Matrix("head", dims[-1], vocabulary, bits=bits), state_values=state,
                 table_values=0 if tied else vocabulary * inputs[0],
                 small_values=biases + (0 if tied else vocabulary))


def of(model) -> Shape:
    """Of a `LanguageModel`, whatever strategies have done to its layers.

    Raises:
        TfspeedError: it is neither a `Decoder` nor a `Recurrent`: its operators are not known.
    """
    made = model.keras_model
    if isinstance(made, Recurrent):
        bits = _ITEM_BITS.get(made.compute_dtype, 32)
        return dataclasses.replace(recurrent(made.sizes, model.name, bits),
                                   compute=made.compute_dtype)
    if not isinstance(made, Decoder):
        raise TfspeedError("Costs are known of decoders and recurrent models.", model=model.name,
                           type=type(made).__name__)
    shape = decoder(made.config, model.name)
    held = [(block.attention.query_key_value, block.attention.out, block.mlp.up, block.mlp.down)
            for block in made.blocks]
    return dataclasses.replace(shape, layers=as_held(shape.layers, held),
                               head=layer_matrix(shape.head, made.head or made.embedding),
                               compute=made.compute_dtype)


def as_held(layers, held) -> tuple[tuple[Matrix, ...], ...]:
    """The matrices of layers as Keras's layers `held` have them, see `layer_matrix`."""
    return tuple(tuple(map(layer_matrix, matrices, each))
                 for matrices, each in zip(layers, held, strict=True))


def layer_matrix(matrix: Matrix, layer) -> Matrix:
    """The matrix with the rank and the bits of the layer that holds it."""
    if isinstance(layer, LowRankDense):
        return dataclasses.replace(layer_matrix(matrix, layer.second), rank=layer.rank)
    if isinstance(layer, Packed):
        return dataclasses.replace(matrix, bits=layer.packing["bits"],
                                   group=layer.packing["block"])
    return dataclasses.replace(matrix, bits=_ITEM_BITS.get(layer.compute_dtype, 32))
