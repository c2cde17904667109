"""What an encoder–decoder multiplies: its decoder as a `Shape`, and the encoder before it.

    shape = seq2seq_shapes.of(model)
    computation.padded_prefill(shape.source.encoder, …)    what is done once for a source
"""

import dataclasses

from tfspeed.costs import shapes
from tfspeed.costs.matrices import Attention, Matrix
from tfspeed.costs.shapes import Shape, as_held, layer_matrix, layer_sizes
from tfspeed.errors import TfspeedError
from tfspeed.litert.seq2seq import decoder_config
from tfspeed.models.encoder_decoder import EncoderDecoder
from tfspeed.models.encoder_decoder_config import EncoderDecoderConfig

_LEAST = 16  # tokens that a source is filled up to, see `EncoderDecoderModel.checked_source`


@dataclasses.dataclass(frozen=True)
class Source:
    """What a decoder looks at.

    Attributes:
        encoder: as a model without a head. Beside its own layers it has two without attention:
            the convolutions, as products over three neighbouring frames (the first over two
            positions at once, which are as many multiplications), and what makes keys and values
            of what comes out, for each of the decoder's layers.
        length: positions that the encoder has.
        least: those that `graph` and `xla` read of the shortest source: a sound has them all.
    """

    encoder: Shape
    length: int
    least: int

    @property
    def matrices(self) -> list[Matrix]:
        """Each once."""
        return list(dict.fromkeys(self.encoder.matrices))

    @property
    def parameters(self) -> int:
        return sum(m.parameters for m in self.matrices)

    def changed(self, change) -> "Source":
        return dataclasses.replace(self, encoder=self.encoder.changed(change))


def encoder_decoder(config: EncoderDecoderConfig, name: str = "") -> Shape:
    """Of an `EncoderDecoder` of this config."""
    c = config
    layers = [_layer(c, 1, i) for i in range(c.decoder_layers)]
    attention = [Attention(h := c.side(1).layer(i).num_heads, h, c.head_dim, 0, c.cross(i))
                 for i in range(c.decoder_layers)]
    first = ()
    if c.source == "audio":
        first = (Matrix("convolution_0", 3 * c.mels, c.hidden_dim),) * 2 + (
            Matrix("convolution_1", 3 * c.hidden_dim, c.hidden_dim),)
    keys = tuple(Matrix(f"decoder_{i}/cross/key_value", c.hidden_dim,
                        2 * c.cross(i) * c.head_dim) for i in range(c.decoder_layers))
    nothing = Attention(0, 0, c.head_dim, 0)
    encoder = Shape(
        f"{name or c.family}'s encoder", c.hidden_dim, 0, c.source_length,
        (first, *(_layer(c, 0, i) for i in range(c.encoder_layers)), keys),
        Matrix("head", 0, 0),
        (nothing, *(Attention(h := c.side(0).layer(i).num_heads, h, c.head_dim, 0)
                    for i in range(c.encoder_layers)), nothing))
    head = Matrix("head", c.hidden_dim, c.vocabulary_size)
    tables = 0 if c.tied_embeddings else c.vocabulary_size
    if c.positions == "learned":
        tables += c.context_length + c.source_length
    source = Source(encoder, c.source_length, c.source_length if c.source == "audio"
                    else min(_LEAST, c.source_length))
    products = source.parameters + sum(m.parameters for m in (*(m for x in layers for m in x),
                                                              head))
    return Shape(name or c.family, c.hidden_dim, c.vocabulary_size, c.context_length,
                 tuple(layers), head, tuple(attention), table_values=tables * c.hidden_dim,
                 small_values=c.parameter_count - products - tables * c.hidden_dim,
                 config=decoder_config(c), source=source)


def _layer(c: EncoderDecoderConfig, side: int, i: int) -> tuple[Matrix, ...]:
    """Of the encoder (0) or the decoder (1), in the order of `_held`."""
    at, cross = f"{('encoder', 'decoder')[side]}_{i}", c.cross(i) * c.head_dim if side else 0
    between = () if not side else (Matrix(f"{at}/cross/query", c.hidden_dim, cross),
                                   Matrix(f"{at}/cross/out", cross, c.hidden_dim))
    *attention, up, down = (Matrix(*sizes) for sizes in layer_sizes(at, c.side(side).layer(i)))
    return (*attention, *between, up, down)


def known(model) -> Shape:
    """Of any `LanguageModel`: see `of`, and `shapes.of`."""
    return of(model) if model.reads_source else shapes.of(model)


def of(model) -> Shape:
    """Of a `LanguageModel` that reads a source, whatever strategies have done to its layers.

    Raises:
        TfspeedError: it is no `EncoderDecoder`.
    """
    made = model.keras_model
    if not isinstance(made, EncoderDecoder):
        raise TfspeedError("Costs are known of tfspeed's encoder–decoders.", model=model.name,
                           type=type(made).__name__)
    shape = encoder_decoder(made.config, model.name)
    listening = []
    if made.config.source == "audio":
        listening = [made.convolutions[0], *made.convolutions]
    held = [listening, *map(_held, made.encoder), [b.cross.key_value for b in made.decoder]]
    encoder = dataclasses.replace(shape.source.encoder, compute=made.compute_dtype,
                                  layers=as_held(shape.source.encoder.layers, held))
    return dataclasses.replace(
        shape, layers=as_held(shape.layers, map(_held, made.decoder)),
        head=layer_matrix(shape.head, made.head or made.embedding), compute=made.compute_dtype,
        source=dataclasses.replace(shape.source, encoder=encoder))


def _held(block) -> list:
    cross = [block.cross.query, block.cross.out] if block.crosses else []
    return [block.attention.query_key_value, block.attention.out, *cross, block.mlp.up,
            block.mlp.down]
