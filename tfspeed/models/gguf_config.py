"""From the metadata of a GGUF file to a `DecoderConfig`.

Keys, defaults and what the conversion did to the weights: llama.cpp's gguf-py/gguf/constants.py,
convert_hf_to_gguf.py and src/llama-model.cpp.
"""

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
    hidden = meta.get("embedding_length", int)
    heads = meta.get("attention.head_count", int)
    if heads < 1:
        raise TfspeedError("attention.head_count must be at least 1.", head_count=heads)
    head_dim = meta.get("attention.key_length", int, hidden // heads or 1)
    if head_dim < 1:
        raise TfspeedError("attention.key_length must be at least 1.", key_length=head_dim)
    layers = meta.get("block_count", int)
    embedding = shapes.get("token_embd.weight", (0, 0))
    epsilon_key = "attention.layer_norm_rms_epsilon"
    if ARCHITECTURES[arch].get("norm") == "layer":
        epsilon_key = "attention.layer_norm_epsilon"

    def has(name):
        return f"blk.0.{name}" in shapes

    options = {
        "vocabulary_size": embedding[0], "num_layers": layers, "hidden_dim": hidden,
        "num_heads": heads, "num_kv_heads": meta.get("attention.head_count_kv", int, heads),
        "head_dim": head_dim, "mlp_dim": meta.get("feed_forward_length", int),
        "context_length": meta.get("context_length", int), "family": arch,
        "norm_epsilon": meta.get(epsilon_key, float, 1e-5),
        "qkv_bias": has("attn_q.bias") or has("attn_qkv.bias"),
        "attention_out_bias": has("attn_output.bias"), "mlp_bias": has("ffn_up.bias"),
        "qk_norm": has("attn_q_norm.weight"), "tied_embeddings": "output.weight" not in shapes,
        "head_bias": "output.bias" in shapes,
        **ARCHITECTURES[arch], **_rope(arch, meta, head_dim, factors),
    }
    if arch.startswith("gemma"):
        options |= {"embedding_scale": max(hidden, 0)**0.5, **_gemma(arch, meta, layers)}
    elif arch == "phi3" and meta.get("attention.sliding_window", int, 0) > 0:
        options["sliding_window"] = meta.get("attention.sliding_window", int)
    elif arch == "smollm3":
        options["rope_layers"] = tuple((i + 1) % 4 != 0 for i in range(min(layers, 10_000)))
    elif arch == "gptneox":
        options["parallel_residual"] = meta.get("use_parallel_residual", bool, True)
    elif arch == "falcon":
        options["shared_norm"] = not has("attn_norm_2.weight")
    return DecoderConfig(**options)


def _rope(arch, meta, head_dim, factors) -> dict:
    if arch == "gpt2":
        return {}
    rotated = meta.get("rope.dimension_count", int, head_dim)
    stretch: dict = {}
    scaling = meta.get("rope.scaling.type", str, "none")
    if "rope_factors_short.weight" in factors:
        stretch = {"factors": factors["rope_factors_short.weight"],
                   "long_factors": factors.get("rope_factors_long.weight", ()),
                   "original_context": meta.get("rope.scaling.original_context_length", int),
                   "attention_factor": meta.get("rope.scaling.attn_factor", float, 1.0)}
    elif "rope_freqs.weight" in factors:
        stretch = {"factors": factors["rope_freqs.weight"]}
    elif scaling == "linear":
        stretch = {"factors": (meta.get("rope.scaling.factor", float),) * (rotated // 2)}
    elif scaling != "none":
        raise TfspeedError("This way of stretching RoPE is not supported.", scaling=scaling)
    return {"rope": RopeConfig(theta=meta.get("rope.freq_base", float, 10_000.0), **stretch),
            "rope_fraction": rotated / head_dim}


def _gemma(arch, meta, layers) -> dict:
    options = {"attention_softcap": meta.get("attn_logit_softcapping", float, 0.0),
               "logit_softcap": meta.get("final_logit_softcapping", float, 0.0)}
    window = meta.get("attention.sliding_window", int, 0)
    if window and arch != "gemma":
        # Gemma 2 alternates, Gemma 3 has five local layers before each global one.
        period = 2 if arch == "gemma2" else 6
        options |= {"sliding_window": window,
                    "sliding_layers": tuple((i + 1) % period != 0
                                            for i in range(min(layers, 10_000)))}
    if window and arch == "gemma3":
        options["local_rope"] = RopeConfig(theta=meta.get("rope.freq_base_swa", float, 10_000.0))
    heads, hidden = meta.get("attention.head_count", int), meta.get("embedding_length", int)
    if (arch, layers) in (("gemma2", 46), ("gemma3", 62)):
        # The 27B models of both scale by the width of a head of the residual stream.
        options["attention_scale"] = (hidden / heads)**-0.5
    return options
