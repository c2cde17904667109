"""What the families' configs have in common, read from a Hugging Face `config.json`."""

from tfspeed.errors import TfspeedError
from tfspeed.models.hf_rope import rope_fraction, rope_from_hf, rope_values
from tfspeed.models.metadata import Metadata

_ACTIVATIONS = {"silu": "silu", "swish": "silu", "relu": "relu", "gelu": "gelu",
                "gelu_python": "gelu", "gelu_new": "gelu_tanh", "gelu_fast": "gelu_tanh",
                "gelu_pytorch_tanh": "gelu_tanh"}


def size(meta: Metadata, key: str, default: int | None = None, limit: int = 2**31 - 1) -> int:
    value = meta.get(key, int, default)
    if not 0 < value <= limit:
        raise TfspeedError(f"{key} of config.json must lie between 1 and {limit}.", **{key: value})
    return value


def common_options(meta: Metadata, family: str, *, tied: bool = False, layer_norm: str = "",
                   activation: tuple[str, str] = ("hidden_act", "silu"), prefix: str = "",
                   mlp: str = "intermediate_size", mlp_default: int = 0,
                   head_dim: int = 0) -> dict:
    """What all families have, under GPT-2's short names (`prefix`) or under the others'."""
    def name(long, short):
        return prefix + short if prefix else long

    hidden = size(meta, name("hidden_size", "embd"))
    heads = size(meta, name("num_attention_heads", "head"), limit=65_536)
    act = meta.get(activation[0], str, activation[1])
    if act not in _ACTIVATIONS:
        raise TfspeedError("This activation is not supported.", **{activation[0]: act},
                           hint=f"Supported: {', '.join(_ACTIVATIONS)}.")
    epsilon = layer_norm or "rms_norm_eps"
    options = {
        "family": family, "vocabulary_size": size(meta, "vocab_size"), "hidden_dim": hidden,
        "num_layers": size(meta, name("num_hidden_layers", "layer"), limit=10_000),
        "num_heads": heads, "num_kv_heads": size(meta, "num_key_value_heads", heads, 65_536),
        "head_dim": size(meta, "head_dim", head_dim or hidden // heads, 65_536),
        "mlp_dim": size(meta, mlp, mlp_default * hidden or None),
        "context_length": size(meta, name("max_position_embeddings", "positions")),
        "norm_epsilon": meta.get(epsilon, float, 1e-5 if layer_norm else 1e-6),
        "activation": _ACTIVATIONS[act],
        "tied_embeddings": meta.get("tie_word_embeddings", bool, tied),
    }
    if not 0 <= options["norm_epsilon"] <= 1:
        raise TfspeedError(f"{epsilon} must lie between 0 and 1.",
                           **{epsilon: options["norm_epsilon"]})
    if layer_norm:
        options |= {"norm": "layer", "gated_mlp": False}
    return options


def rope_options(meta: Metadata, options: dict, theta: float = 10_000.0,
                 partial: bool = False) -> dict:
    values = rope_values(meta)
    fraction = rope_fraction(values)
    if fraction != 1 and not partial:
        raise TfspeedError("This family rotates whole heads.", partial_rotary_factor=fraction)
    rotary_dim = int(options["head_dim"] * fraction)
    return {"rope_fraction": fraction,
            "rope": rope_from_hf(values, rotary_dim, options["context_length"], theta)}


def window_options(meta: Metadata, flags: tuple[bool, ...], default: int = 0) -> dict:
    """Sliding windows; `flags` says which layers have one where `layer_types` does not."""
    types = meta.get("layer_types", list, [])
    if types:
        if not all(t in ("full_attention", "sliding_attention") for t in types):
            raise TfspeedError("Layers must be full_attention or sliding_attention.",
                               layer_types=str(types)[:200])
        if len(types) != len(flags):
            raise TfspeedError("layer_types needs one entry a layer.", layers=len(flags),
                               entries=len(types))
        flags = tuple(t == "sliding_attention" for t in types)
    if not any(flags):
        return {}
    window = size(meta, "sliding_window", default or None)
    return {"sliding_window": window, "sliding_layers": () if all(flags) else flags}


def softcap(meta: Metadata, key: str, default: float) -> float:
    value = meta.get(key, float, 0.0 if key in meta.values else default)
    if value < 0:
        raise TfspeedError(f"{key} must not be negative.", **{key: value})
    return value


def must_be(meta: Metadata, key: str, wanted: bool, default: bool) -> None:
    if meta.get(key, bool, default) is not wanted:
        raise TfspeedError(f"{key} of config.json must be {str(wanted).lower()}.",
                           **{key: not wanted}, hint="This variant is not supported.")


