"""The shape of an encoder–decoder transformer: what Whisper, BART and T5 differ in, as data."""

import dataclasses
import math

from tfspeed.errors import TfspeedError
from tfspeed.models.config import ACTIVATIONS, NORMS, DecoderConfig

SOURCES = ("audio", "tokens")
POSITIONS = ("learned", "relative")


@dataclasses.dataclass(frozen=True)
class EncoderDecoderConfig:
    """One `EncoderDecoder`. Sizes are counts.

    `source` says what the encoder reads: log-mel frames through two convolutions (Whisper), or
    tokens. `source_length` is how many positions it has, `context_length` those of the decoder;
    `relative` positions (T5) have no end, but a limit keeps memory in bounds.

    `pre_norm` norms what a sub-layer reads, else what it adds up to (BART); `final_norm` norms what
    either side gives, `embedding_norm` what it begins with (BART). `logit_scale` multiplies what
    the output layer reads (T5 with tied embeddings), `logit_bias` adds to what it gives (BART).
    `suppressed` are ids that generation never gives, `suppressed_first` those that none begins
    with (Whisper).

    Pruning leaves layers of different sizes: `encoder_heads`, `decoder_heads`, `cross_heads`,
    `encoder_mlp_dims` and `decoder_mlp_dims` then have one entry a layer. A table of relative
    positions has a column for each of `num_heads`, so that self-attention keeps them all.
    """

    vocabulary_size: int
    encoder_layers: int
    decoder_layers: int
    hidden_dim: int
    num_heads: int
    head_dim: int
    mlp_dim: int
    context_length: int
    source_length: int
    family: str = "whisper"
    source: str = "audio"
    mels: int = 80
    norm: str = "layer"
    norm_epsilon: float = 1e-5
    pre_norm: bool = True
    final_norm: bool = True
    embedding_norm: bool = False
    activation: str = "gelu"
    gated_mlp: bool = False
    biases: bool = True
    positions: str = "learned"
    relative_buckets: int = 32
    relative_distance: int = 128
    embedding_scale: float = 1.0
    attention_scale: float = 0.0
    logit_scale: float = 1.0
    logit_bias: bool = False
    tied_embeddings: bool = True
    suppressed: tuple[int, ...] = ()
    suppressed_first: tuple[int, ...] = ()
    encoder_heads: tuple[int, ...] = ()
    decoder_heads: tuple[int, ...] = ()
    cross_heads: tuple[int, ...] = ()
    encoder_mlp_dims: tuple[int, ...] = ()
    decoder_mlp_dims: tuple[int, ...] = ()

    def __post_init__(self):
        for name in ("vocabulary_size", "encoder_layers", "decoder_layers", "hidden_dim",
                     "num_heads", "head_dim", "mlp_dim", "context_length", "source_length", "mels",
                     "relative_buckets", "relative_distance"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 2**31:
                raise TfspeedError(f"An encoder–decoder's {name} must be a positive integer.",
                                   **{name: value})
        if max(self.encoder_layers, self.decoder_layers) > 10_000:
            raise TfspeedError("An encoder or decoder has at most 10000 layers.",
                               encoder_layers=self.encoder_layers,
                               decoder_layers=self.decoder_layers)
        for name, allowed in (("source", SOURCES), ("norm", NORMS), ("positions", POSITIONS),
                              ("activation", ACTIVATIONS)):
            if getattr(self, name) not in allowed:
                raise TfspeedError(f"{name} must be one of {', '.join(allowed)}.",
                                   **{name: getattr(self, name)})
        for name in ("norm_epsilon", "embedding_scale", "attention_scale", "logit_scale"):
            if not math.isfinite(getattr(self, name)):
                raise TfspeedError(f"{name} must be finite.", **{name: getattr(self, name)})
        for name in ("suppressed", "suppressed_first"):
            if any(type(i) is not int or not 0 <= i < self.vocabulary_size
                   for i in getattr(self, name)):
                raise TfspeedError(f"{name} must be ids of tokens.",
                                   vocabulary_size=self.vocabulary_size)
        if self.relative_buckets < 4 or self.relative_distance <= self.relative_buckets // 2:
            raise TfspeedError("Relative positions need 4 buckets, and a distance of over half as "
                               "many.", relative_buckets=self.relative_buckets,
                               relative_distance=self.relative_distance)

        for name, layers, most in (
                ("encoder_heads", self.encoder_layers, self.num_heads),
                ("decoder_heads", self.decoder_layers, self.num_heads),
                ("cross_heads", self.decoder_layers, self.num_heads),
                ("encoder_mlp_dims", self.encoder_layers, self.mlp_dim),
                ("decoder_mlp_dims", self.decoder_layers, self.mlp_dim)):
            counts = getattr(self, name)
            if counts and (len(counts) != layers or any(
                    type(n) is not int or not 1 <= n <= most for n in counts)):
                raise TfspeedError(f"{name} needs one integer a layer, from 1 to {most}.",
                                   layers=layers, **{name: counts})
        if self.positions == "relative" and (self.encoder_heads or self.decoder_heads):
            raise TfspeedError("Relative positions belong to the heads of all layers: none can "
                               "have fewer.", encoder_heads=self.encoder_heads,
                               decoder_heads=self.decoder_heads)

    @property
    def query_scale(self) -> float:
        return self.attention_scale or self.head_dim**-0.5

    @property
    def source_frames(self) -> int:
        """Log-mel frames that the encoder reads: its second convolution halves them."""
        return 2 * self.source_length

    def side(self, side: int) -> DecoderConfig:
        """What self-attention and MLP of a side are built of: 0 the encoder, 1 the decoder."""
        layers = (self.encoder_layers, self.decoder_layers)[side]
        heads = (self.encoder_heads, self.decoder_heads)[side]
        widths = (self.encoder_mlp_dims, self.decoder_mlp_dims)[side]
        most = max(heads, default=self.num_heads)
        return DecoderConfig(
            vocabulary_size=self.vocabulary_size, num_layers=layers, hidden_dim=self.hidden_dim,
            num_heads=most, num_kv_heads=most, layer_kv_heads=heads, head_dim=self.head_dim,
            mlp_dim=max(widths, default=self.mlp_dim), mlp_dims=widths,
            context_length=self.context_length, family=self.family, norm=self.norm,
            norm_epsilon=self.norm_epsilon, activation=self.activation, gated_mlp=self.gated_mlp,
            positions="none", qkv_bias=self.biases, attention_out_bias=self.biases,
            mlp_bias=self.biases, attention_scale=self.query_scale,
            tied_embeddings=self.tied_embeddings)

    def cross(self, layer: int) -> int:
        """Heads of a layer's cross-attention."""
        return self.cross_heads[layer] if self.cross_heads else self.num_heads

    def attended_bytes(self, batch: int, context: int, source: int, itemsize: int) -> int:
        """Bytes of keys and values that a step reads, of its own tokens and of the source."""
        heads = sum(context * self.side(1).layer(i).num_heads + source * self.cross(i)
                    for i in range(self.decoder_layers))
        return 2 * batch * heads * self.head_dim * itemsize

    @property
    def parameter_count(self) -> int:
        """Weights of an `EncoderDecoder` of this config."""
        norm = self.hidden_dim * (2 if self.norm == "layer" else 1)
        sides = self.side(0), self.side(1)
        total = sum(side.layer(i).block_parameters for side in sides
                    for i in range(side.num_layers))
        for i in range(self.decoder_layers):
            width = self.cross(i) * self.head_dim
            total += norm + 4 * self.hidden_dim * width
            total += self.biases * (3 * width + self.hidden_dim)
        total += norm * 2 * (self.final_norm + self.embedding_norm)
        table = self.vocabulary_size * self.hidden_dim
        total += table * (1 if self.tied_embeddings else 2)
        total += self.logit_bias * self.vocabulary_size
        if self.positions == "learned":
            total += (self.context_length + self.source_length) * self.hidden_dim
        else:
            total += 2 * self.relative_buckets * self.num_heads
        if self.source == "audio":
            total += 3 * self.hidden_dim * (self.mels + self.hidden_dim) + 2 * self.hidden_dim
        return total

    def to_dict(self) -> dict:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> "EncoderDecoderConfig":
        """Rebuilds what `to_dict` wrote, also after a trip through JSON (lists for tuples)."""
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
