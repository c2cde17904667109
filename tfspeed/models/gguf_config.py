"""From the metadata of a GGUF file to a `DecoderConfig`.

Keys, defaults and what the conversion did to the weights: llama.cpp's gguf-py/gguf/constants.py,
convert_hf_to_gguf.py and src/llama-model.cpp.
"""

import math

from tfspeed.errors import TfspeedError
from tfspeed.models.config import DecoderConfig, RopeConfig
from tfspeed.models.metadata import Metadata

# What each architecture is beyond a Llama.
ARCHITECTURES = {
    "llama": {},
    "smollm3": {},
    "qwen2": {},
    "qwen3": {},
    "gemma": {"activation": "gelu_tanh"},
    "gemma2": {"activation": "gelu_tanh", "post_norms": True},
    "gemma3": {"activation": "gelu_tanh", "post_norms": True},
    "phi3": {},
    "gpt2": {"norm": "layer", "activation": "gelu_tanh", "gated_mlp": False,
             "positions": "learned"},
    "gptneox": {"norm": "layer", "activation": "gelu", "gated_mlp": False},
    "falcon": {"norm": "layer", "activation": "gelu", "gated_mlp": False,
               "parallel_residual": True},
}
INTERLEAVED = ("llama", "smollm3")  # their conversion reorders q and k for interleaved RoPE


def config_from_gguf(metadata: dict, shapes: dict[str, tuple[int, ...]],
                     factors: dict[str, tuple[float, ...]]) -> DecoderConfig:
    """Args:
        metadata: contents of the file's fields, by key.
        shapes: numpy shape of every tensor, by name.
        factors: the small tensors that stretch RoPE, by name, where there are any.
    """
    arch = metadata.get("general.architecture")
    if not isinstance(arch, str) or arch not in ARCHITECTURES:
        raise TfspeedError("This GGUF file's architecture is not supported.", architecture=arch,
                           hint=f"Supported: {', '.join(ARCHITECTURES)}.")
    meta = Metadata(metadata, "GGUF metadata", f"{arch}.")
    if meta.get("expert_count", int, 0):
        raise TfspeedError("Mixtures of experts are not supported.",
                           expert_count=meta.get("expert_count", int))
    hidden, heads = _size(meta, "embedding_length"), _size(meta, "attention.head_count")
    head_dim = _size(meta, "attention.key_length", hidden // heads or 1, most=2**16)
    layers = _size(meta, "block_count", most=10_000)
    context = _size(meta, "context_length")
    embedding = shapes.get("token_embd.weight", ())
    if len(embedding) != 2 or embedding[1] != hidden:
        raise TfspeedError("token_embd.weight must be there, embedding_length wide.",
                           shape=embedding, embedding_length=hidden,
                           hint="The file is incomplete, or its metadata is damaged.")
    missing = [i for i in range(layers) if f"blk.{i}.attn_norm.weight" not in shapes]
    if missing:
        raise TfspeedError("The GGUF file does not hold all of its layers.", layers=layers,
                           missing=missing[:6], hint="The file is incomplete: fetch it again.")
    layer_norm = ARCHITECTURES[arch].get("norm") == "layer"

    def has(name):
        return f"blk.0.{name}" in shapes

    options = {
        "vocabulary_size": embedding[0], "num_layers": layers, "hidden_dim": hidden,
        "num_heads": heads, "num_kv_heads": _size(meta, "attention.head_count_kv", heads),
        "head_dim": head_dim, "mlp_dim": _size(meta, "feed_forward_length"),
        "context_length": context, "family": arch,
        "norm_epsilon": meta.get(
            f"attention.layer_norm{'' if layer_norm else '_rms'}_epsilon", float),
        "qkv_bias": has("attn_q.bias") or has("attn_qkv.bias"),
        "attention_out_bias": has("attn_output.bias"), "mlp_bias": has("ffn_up.bias"),
        "qk_norm": has("attn_q_norm.weight"), "tied_embeddings": "output.weight" not in shapes,
        "head_bias": "output.bias" in shapes,
        **ARCHITECTURES[arch], **_rope(arch, meta, head_dim, context, factors),
    }
    if arch.startswith("gemma"):
        options |= {"embedding_scale": hidden**0.5, **_gemma(arch, meta, layers, hidden / heads)}
    elif arch == "phi3" and meta.get("attention.sliding_window", int, 0) > 0:
        options["sliding_window"] = _size(meta, "attention.sliding_window")
    elif arch == "smollm3":
        options["rope_layers"] = _all_but_every(4, layers)
    elif arch == "gptneox":
        options["parallel_residual"] = meta.get("use_parallel_residual", bool, True)
    elif arch == "falcon":
        options["shared_norm"] = not has("attn_norm_2.weight")
    return DecoderConfig(**options)


def _rope(arch, meta, head_dim, context, factors) -> dict:
    if arch == "gpt2":
        return {}
    rotated = _size(meta, "rope.dimension_count", head_dim, most=head_dim)
    if arch in INTERLEAVED and rotated != head_dim:
        raise TfspeedError(f"A {arch} model must rotate whole heads.", head_dim=head_dim,
                           **{"rope.dimension_count": rotated})
    stretch: dict = {}
    scaling = meta.get("rope.scaling.type", str, "none")
    factor = meta.get("rope.scaling.factor", float, meta.get("rope.scale_linear", float, 0.0))
    if "rope_factors_short.weight" in factors:
        stretch = {"factors": factors["rope_factors_short.weight"],
                   "long_factors": factors.get("rope_factors_long.weight", ()),
                   "original_context": _size(meta, "rope.scaling.original_context_length",
                                             context),
                   "attention_factor": _positive("rope.scaling.attn_factor", meta.get(
                       "rope.scaling.attn_factor", float, 1.0))}
    elif "rope_freqs.weight" in factors:
        stretch = {"factors": factors["rope_freqs.weight"]}
    elif scaling == "linear" or (factor and not meta.has("rope.scaling.type")):
        stretch = {"factors": (factor,) * (rotated // 2)}
    elif scaling != "none":
        raise TfspeedError("This way of stretching RoPE is not supported.", scaling=scaling,
                           hint="Supported: none, linear, longrope, and factors as tensors.")
    for name in ("factors", "long_factors"):
        for value in set(stretch.get(name, ())):
            _positive(f"each of RoPE's {name}", value)
    fraction = rotated / head_dim
    if int(fraction * head_dim) < rotated:  # 2/49 * 49 < 2
        fraction = math.nextafter(fraction, 1.0)
    return {"rope": RopeConfig(theta=_theta(meta, "rope.freq_base"), **stretch),
            "rope_fraction": fraction}


def _gemma(arch, meta, layers, head_width) -> dict:
    caps = (50.0, 30.0) if arch == "gemma2" else (0.0, 0.0)  # its first files lack the keys
    options = {"attention_softcap": meta.get("attn_logit_softcapping", float, caps[0]),
               "logit_softcap": meta.get("final_logit_softcapping", float, caps[1])}
    window = meta.get("attention.sliding_window", int, 4096 if arch == "gemma2" else 0)
    if window > 0 and arch != "gemma":
        # Gemma 2 alternates, Gemma 3 has five local layers before each global one.
        key, period = "attention.sliding_window_pattern", 2 if arch == "gemma2" else 6
        if isinstance(meta.values.get(f"{arch}.{key}"), list):
            flags = tuple(flag is True or flag == 1 for flag in meta.get(key, list))
        else:
            flags = _all_but_every(_size(meta, key, period), layers)
        options |= {"sliding_window": window, "sliding_layers": flags}
        if arch == "gemma3":
            options["local_rope"] = RopeConfig(theta=_theta(meta, "rope.freq_base_swa"))
    if (arch, layers) in (("gemma2", 46), ("gemma3", 62)):
        # The 27B models of both scale by the width of a head of the residual stream.
        options["attention_scale"] = head_width**-0.5
    return options


def _all_but_every(period: int, layers: int) -> tuple[bool, ...]:
    """True for each layer but the last of every `period`."""
    return tuple((i + 1) % period != 0 for i in range(layers))


def _theta(meta, key: str) -> float:
    return _positive(key, meta.get(key, float, 10_000.0))


def _size(meta, key: str, default: int | None = None, most: int = 2**31 - 1) -> int:
    value = meta.get(key, int, default)
    if not 1 <= value <= most:
        raise TfspeedError(f"{meta.prefix}{key} must lie between 1 and {most}.", **{key: value},
                           hint="The file's metadata is damaged.")
    return value


def _positive(what: str, value: float) -> float:
    if not (math.isfinite(value) and 1e-6 <= value <= 1e30):
        raise TfspeedError(f"{what} must be a positive number.", value=value,
                           hint="The file is damaged.")
    return value
