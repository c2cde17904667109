"""The shape of a decoder-only transformer: everything in which the families differ, as data."""

import dataclasses
import math

import numpy as np

from tfspeed.errors import TfspeedError

ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "relu")
NORMS = ("rms", "layer")
POSITIONS = ("rope", "learned", "alibi", "none")


@dataclasses.dataclass(frozen=True)
class RopeConfig:
    """Rotary positions (RoFormer, arXiv:2104.09864) and the ways of stretching them.

    `factors` divide the inverse frequencies one by one: Llama 3's scaling and Phi-3's LongRoPE
    both come down to it. `long_factors` take over in a forward pass whose last position reaches
    `original_context` (LongRoPE, arXiv:2402.13753). `attention_factor` multiplies cos and sin.
    """

    theta: float = 10_000.0
    factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()
    original_context: int = 0
    attention_factor: float = 1.0

    def inverse_frequencies(self, rotary_dim: int, long: bool = False) -> np.ndarray:
        """Returns radians per position, float32 `[rotary_dim / 2]`."""
        exponents = np.arange(0, rotary_dim, 2, dtype=np.float64) / rotary_dim
        frequencies = 1.0 / self.theta**exponents
        factors = self.long_factors if long else self.factors
        if factors:
            frequencies = frequencies / np.asarray(factors, dtype=np.float64)
        return frequencies.astype(np.float32)


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """One `Decoder`. Sizes are counts; `sliding_window`, `rope` and friends are per layer where
    a family mixes layers: a tuple with one entry a layer.

    `attention_scale` multiplies query·key (default 1/sqrt(head_dim)); `parallel_residual` feeds
    attention and MLP the same input; `shared_norm` lets them share one norm as well.

    Pruning leaves layers of different sizes: `mlp_dims` and `layer_kv_heads` then have one entry a
    layer, and `mlp_dim` and `num_kv_heads` are the largest of them. As many query heads share a
    key head in all layers.
    """

    vocabulary_size: int
    num_layers: int
    hidden_dim: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    mlp_dim: int
    context_length: int
    family: str = "llama"
    norm: str = "rms"
    norm_epsilon: float = 1e-5
    activation: str = "silu"
    gated_mlp: bool = True
    positions: str = "rope"
    rope: RopeConfig = RopeConfig()
    local_rope: RopeConfig | None = None
    rope_fraction: float = 1.0
    rope_layers: tuple[bool, ...] = ()
    sliding_window: int = 0
    sliding_layers: tuple[bool, ...] = ()
    qkv_bias: bool = False
    attention_out_bias: bool = False
    mlp_bias: bool = False
    head_bias: bool = False
    qk_norm: bool = False
    post_norms: bool = False
    parallel_residual: bool = False
    shared_norm: bool = False
    tied_embeddings: bool = True
    embedding_scale: float = 1.0
    attention_scale: float = 0.0
    attention_softcap: float = 0.0
    logit_softcap: float = 0.0
    mlp_dims: tuple[int, ...] = ()
    layer_kv_heads: tuple[int, ...] = ()

    def __post_init__(self):
        sizes = ("vocabulary_size", "num_layers", "hidden_dim", "num_heads", "num_kv_heads",
                 "head_dim", "mlp_dim", "context_length")
        for name in sizes:
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 2**31:
                raise TfspeedError(f"A decoder's {name} must be a positive integer.",
                                   **{name: value})
        if self.num_layers > 10_000:
            raise TfspeedError("A decoder has at most 10000 layers.", num_layers=self.num_layers)
        if self.num_heads % self.num_kv_heads:
            raise TfspeedError("num_heads must be a multiple of num_kv_heads.",
                               num_heads=self.num_heads, num_kv_heads=self.num_kv_heads)
        for name, allowed in (("norm", NORMS), ("activation", ACTIVATIONS),
                              ("positions", POSITIONS)):
            if getattr(self, name) not in allowed:
                raise TfspeedError(f"{name} must be one of {', '.join(allowed)}.",
                                   **{name: getattr(self, name)})
        if self.positions == "rope" and (self.rotary_dim < 2 or self.rotary_dim % 2):
            raise TfspeedError("The rotated part of a head must be even and at least 2 wide.",
                               head_dim=self.head_dim, rope_fraction=self.rope_fraction)
        for name in ("norm_epsilon", "rope_fraction", "embedding_scale", "attention_scale"):
            if not math.isfinite(getattr(self, name)):
                raise TfspeedError(f"{name} must be finite.", **{name: getattr(self, name)})
        if not math.isfinite(self.rope.theta) or self.rope.theta <= 0:
            raise TfspeedError("RoPE's theta must be positive.", theta=self.rope.theta)
        for name in ("rope_layers", "sliding_layers"):
            flags = getattr(self, name)
            if flags and len(flags) != self.num_layers:
                raise TfspeedError(f"{name} needs one entry a layer.", num_layers=self.num_layers,
                                   **{name: flags})
        for name, largest in (("mlp_dims", self.mlp_dim), ("layer_kv_heads", self.num_kv_heads)):
            counts = getattr(self, name)
            if counts and (len(counts) != self.num_layers or max(counts) != largest
                           or any(type(n) is not int or n < 1 for n in counts)):
                raise TfspeedError(f"{name} needs one positive integer a layer, the largest of "
                                   "them the model's own.", num_layers=self.num_layers,
                                   largest=largest, **{name: counts})
        if self.layer_kv_heads and self.positions == "alibi":
            raise TfspeedError("ALiBi's slopes belong to the heads of a whole layer: no layer can "
                               "have fewer.", layer_kv_heads=self.layer_kv_heads)
        for rope in (self.rope, self.local_rope or self.rope):
            for factors in (rope.factors, rope.long_factors):
                if factors and len(factors) != self.rotary_dim // 2:
                    raise TfspeedError("RoPE needs one factor for each pair of rotated channels.",
                                       factors=len(factors), pairs=self.rotary_dim // 2)

    @property
    def rotary_dim(self) -> int:
        return int(self.head_dim * self.rope_fraction)

    @property
    def qkv_dim(self) -> int:
        """Width of the fused query, key and value projection."""
        return (self.num_heads + 2 * self.num_kv_heads) * self.head_dim

    @property
    def query_scale(self) -> float:
        return self.attention_scale or self.head_dim**-0.5

    def layer(self, layer: int) -> "DecoderConfig":
        """The config whose `mlp_dim`, `num_heads` and `num_kv_heads` are those of a layer."""
        if not self.mlp_dims and not self.layer_kv_heads:
            return self
        kv_heads = self.layer_kv_heads[layer] if self.layer_kv_heads else self.num_kv_heads
        return dataclasses.replace(
            self, mlp_dim=self.mlp_dims[layer] if self.mlp_dims else self.mlp_dim,
            num_heads=self.num_heads // self.num_kv_heads * kv_heads, num_kv_heads=kv_heads,
            mlp_dims=(), layer_kv_heads=())

    def window(self, layer: int) -> int:
        """Sliding window of a layer in tokens; 0 means that it sees everything."""
        if not self.sliding_window or (self.sliding_layers and not self.sliding_layers[layer]):
            return 0
        return self.sliding_window

    def layer_rope(self, layer: int) -> RopeConfig | None:
        """The rotation that a layer applies, None where it applies none."""
        if self.positions != "rope" or (self.rope_layers and not self.rope_layers[layer]):
            return None
        return self.local_rope if self.local_rope and self.window(layer) else self.rope

    def cache_bytes(self, batch: int, context: int, itemsize: int) -> int:
        """Bytes of keys and values that a step with `context` tokens a row reads."""
        heads = sum(min(context, self.window(i) or context) * self.layer(i).num_kv_heads
                    for i in range(self.num_layers))
        return 2 * batch * heads * self.head_dim * itemsize

    @property
    def parameter_count(self) -> int:
        """Weights of a `Decoder` of this config; a tied embedding counts once."""
        if self.mlp_dims or self.layer_kv_heads:
            blocks = sum(self.layer(i).block_parameters for i in range(self.num_layers))
        else:
            blocks = self.num_layers * self.block_parameters
        table = self.vocabulary_size * self.hidden_dim
        positions = self.context_length * self.hidden_dim * (self.positions == "learned")
        head = (table + self.head_bias * self.vocabulary_size) * (not self.tied_embeddings)
        return table + positions + blocks + self._norm_parameters + head

    @property
    def _norm_parameters(self) -> int:
        return self.hidden_dim * (2 if self.norm == "layer" else 1)

    @property
    def block_parameters(self) -> int:
        """Weights of one layer, where all have the same sizes."""
        norms = (1 if self.shared_norm else 2) + (2 if self.post_norms else 0)
        heads = self.num_heads * self.head_dim
        widths = (2 if self.gated_mlp else 1) * self.mlp_dim
        return (norms * self._norm_parameters + 2 * self.head_dim * self.qk_norm
                + self.hidden_dim * (self.qkv_dim + heads + widths + self.mlp_dim)
                + self.qkv_bias * self.qkv_dim + self.attention_out_bias * self.hidden_dim
                + self.mlp_bias * (widths + self.hidden_dim))

    def to_dict(self) -> dict:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> "DecoderConfig":
        """Rebuilds what `to_dict` wrote, also after a trip through JSON (lists for tuples)."""
        def tupled(value):
            return tuple(value) if isinstance(value, list) else value

        values = {k: tupled(v) for k, v in values.items()}
        for name in ("rope", "local_rope"):
            if isinstance(values.get(name), dict):
                rope = {k: tupled(v) for k, v in values[name].items()}
                values[name] = RopeConfig(**rope)
        return cls(**values)
