"""From a Hugging Face `config.json` to a `DecoderConfig`.

Keys and defaults: transformers' configuration_*.py, where a key that is missing means the
family's default and null means none. A size without which nothing can be built has no default.
"""

from collections.abc import Callable

from tfspeed.errors import TfspeedError
from tfspeed.models.config import DecoderConfig, RopeConfig
from tfspeed.models.hf_fields import common_options, must_be, rope_options, size, softcap
from tfspeed.models.hf_fields import window_options as windows
from tfspeed.models.hf_rope import rope_from_hf, rope_values
from tfspeed.models.metadata import Metadata

# Gemma 3's text_config inside a multimodal config lists only what differs from the class.
_GEMMA3 = {"vocab_size": 262_208, "hidden_size": 2304, "intermediate_size": 9216,
           "num_hidden_layers": 26, "num_attention_heads": 8, "num_key_value_heads": 4,
           "head_dim": 256, "max_position_embeddings": 131_072}


def config_from_hf(config: dict) -> DecoderConfig:
    """Raises:
        TfspeedError: the model type is not supported; a key is missing, of the wrong type, or
            asks for something that `Decoder` does not do.
    """
    if not isinstance(config, dict):
        raise TfspeedError("config.json must hold an object.", type=type(config).__name__)
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise TfspeedError("This model_type is not supported.", model_type=kind,
                           hint=f"Supported: {', '.join(FAMILIES)}.")
    if config.get("quantization_config"):
        raise TfspeedError("The weights of this folder are quantized already.", model_type=kind,
                           hint="Use the original weights, or a GGUF file of this model.")
    meta = Metadata(config, "config.json")
    if kind == "gemma3":
        meta.values = {**_GEMMA3, **meta.get("text_config", dict)}
    return DecoderConfig(**FAMILIES[kind](meta))


def _llama(meta: Metadata, family: str = "llama", theta: float = 10_000.0, **common) -> dict:
    options = common_options(meta, family, **common)
    bias = meta.get("attention_bias", bool, False)
    return {**options, "qkv_bias": bias, "attention_out_bias": bias,
            "mlp_bias": meta.get("mlp_bias", bool, False), **rope_options(meta, options, theta)}


def _smollm3(meta: Metadata) -> dict:
    options = _llama(meta, "smollm3", theta=2e6, tied=True)
    every = size(meta, "no_rope_layer_interval", 4)
    # Despite its name, 1 stands for a layer that has RoPE.
    flags = meta.get("no_rope_layers", list,
                     [int((i + 1) % every != 0) for i in range(options["num_layers"])])
    if not all(flag in (0, 1) for flag in flags):
        raise TfspeedError("no_rope_layers must hold zeros and ones.",
                           no_rope_layers=str(flags)[:200])
    options["rope_layers"] = tuple(bool(flag) for flag in flags)
    if meta.get("use_sliding_window", bool, False) and meta.has("sliding_window"):
        options |= windows(meta, tuple(not flag for flag in flags))
    return options


def _mistral(meta: Metadata) -> dict:
    options = common_options(meta, "mistral")
    options |= rope_options(meta, options)
    if meta.values.get("sliding_window", 4096) is not None:
        options["sliding_window"] = size(meta, "sliding_window", 4096)
    return options


def _qwen(meta: Metadata, family: str) -> dict:
    qwen3 = family == "qwen3"
    options = common_options(meta, family, head_dim=128 if qwen3 else 0)
    bias = qwen3 and meta.get("attention_bias", bool, False)
    options |= {"qkv_bias": bias or not qwen3, "attention_out_bias": bias, "qk_norm": qwen3,
                **rope_options(meta, options)}
    if meta.get("use_sliding_window", bool, False) and meta.values.get("sliding_window", 1):
        first = meta.get("max_window_layers", int, 28)
        options |= windows(meta, tuple(i >= first for i in range(options["num_layers"])), 4096)
    return options


def _gemma(meta: Metadata, family: str) -> dict:
    if meta.get("use_bidirectional_attention", bool, False):
        raise TfspeedError("This Gemma embeds texts: it attends both ways and cannot generate.",
                           use_bidirectional_attention=True)
    act = ("hidden_act" if family == "gemma" and not meta.has("hidden_activation")
           else "hidden_activation", "gelu_pytorch_tanh")
    plain = Metadata({**meta.values, "rope_parameters": None, "rope_scaling": None}, meta.what)
    options = _llama(plain if family == "gemma3" else meta, family, tied=True, activation=act,
                     head_dim=256)
    if family == "gemma" and options["activation"] == "gelu":
        options["activation"] = "gelu_tanh"  # what its first config meant, too
    options["embedding_scale"] = options["hidden_dim"]**0.5
    if family == "gemma":
        return options
    every = 2 if family == "gemma2" else size(meta, "sliding_window_pattern", 6)
    scale = meta.get("query_pre_attn_scalar", float, 256.0)
    if scale <= 0:
        raise TfspeedError("query_pre_attn_scalar must be positive.", query_pre_attn_scalar=scale)
    gemma2 = family == "gemma2"
    options |= {
        "post_norms": True, "qk_norm": not gemma2,
        "attention_scale": 0.0 if scale == options["head_dim"] else scale**-0.5,
        "attention_softcap": softcap(meta, "attn_logit_softcapping", 50.0 if gemma2 else 0.0),
        "logit_softcap": softcap(meta, "final_logit_softcapping", 30.0 if gemma2 else 0.0),
        **windows(meta, tuple((i + 1) % every != 0 for i in range(options["num_layers"])), 4096)}
    if not gemma2:
        options |= _gemma3_ropes(meta, options)
    return options


def _gemma3_ropes(meta: Metadata, options: dict) -> dict:
    """One rotation for the global layers, another, never stretched, for the local ones."""
    sections = meta.get("rope_parameters", dict, {})
    if "full_attention" in sections or "sliding_attention" in sections:
        sections = Metadata(sections, "rope_parameters")
        whole, local = (sections.get(name, dict, {})
                        for name in ("full_attention", "sliding_attention"))
    else:
        whole = rope_values(meta)
        local = {"rope_theta": meta.get("rope_local_base_freq", float, 10_000.0)}
    ropes = [rope_from_hf(values, options["head_dim"], options["context_length"], theta)
             for values, theta in ((whole, 1e6), (local, 10_000.0))]
    return {"rope": ropes[0], "local_rope": ropes[1] if options.get("sliding_window") else None}


def _phi3(meta: Metadata) -> dict:
    options = common_options(meta, "phi3")
    options |= rope_options(meta, options, partial=True)
    if meta.has("sliding_window"):
        options["sliding_window"] = size(meta, "sliding_window")
    return options


def _gpt2(meta: Metadata) -> dict:
    must_be(meta, "scale_attn_weights", True, True)
    must_be(meta, "scale_attn_by_inverse_layer_idx", False, False)
    return {**common_options(meta, "gpt2", tied=True, layer_norm="layer_norm_epsilon", prefix="n_",
                             activation=("activation_function", "gelu_new"), mlp="n_inner",
                             mlp_default=4),
            "positions": "learned", "qkv_bias": True, "attention_out_bias": True,
            "mlp_bias": True}


def _gpt_neox(meta: Metadata) -> dict:
    options = common_options(meta, "gptneox", layer_norm="layer_norm_eps",
                             activation=("hidden_act", "gelu"))
    bias = meta.get("attention_bias", bool, True)
    old = {"partial_rotary_factor": meta.values.get("rotary_pct", 0.25),
           "rope_theta": meta.values.get("rotary_emb_base", 10_000)}
    renamed = Metadata({**old, **meta.values}, meta.what)
    return {**options, "qkv_bias": bias, "attention_out_bias": bias, "mlp_bias": True,
            "parallel_residual": meta.get("use_parallel_residual", bool, True),
            **rope_options(renamed, options, partial=True)}


def _opt(meta: Metadata) -> dict:
    must_be(meta, "do_layer_norm_before", True, True)
    must_be(meta, "_remove_final_layer_norm", False, False)
    must_be(meta, "layer_norm_elementwise_affine", True, True)
    options = common_options(meta, "opt", tied=True, layer_norm="layer_norm_eps", mlp="ffn_dim",
                             activation=("activation_function", "relu"))
    if meta.get("word_embed_proj_dim", int, options["hidden_dim"]) != options["hidden_dim"]:
        raise TfspeedError("word_embed_proj_dim must equal hidden_size: OPT with a projection "
                           "after its embedding (OPT-350m) is not supported.",
                           word_embed_proj_dim=meta.values["word_embed_proj_dim"],
                           hidden_size=options["hidden_dim"])
    bias = meta.get("enable_bias", bool, True)
    return {**options, "positions": "learned", "qkv_bias": bias, "attention_out_bias": bias,
            "mlp_bias": bias}


def _falcon(meta: Metadata) -> dict:
    with_context = Metadata({"max_position_embeddings": 2048, **meta.values}, meta.what)
    options = common_options(with_context, "falcon", tied=True, layer_norm="layer_norm_epsilon",
                             activation=("activation", "gelu"), mlp="ffn_hidden_size",
                             mlp_default=4)
    bias, new = (meta.get(key, bool, False) for key in ("bias", "new_decoder_architecture"))
    parallel = meta.get("parallel_attn", bool, True)
    if new:
        must_be(meta, "parallel_attn", True, True)
    if new or not meta.get("multi_query", bool, True):
        kv_heads = size(meta, "num_kv_heads", options["num_heads"], 65_536)
    else:
        kv_heads = 1
    two_norms = new and meta.get("num_ln_in_parallel_attn", int, 2) == 2
    alibi = meta.get("alibi", bool, False)
    return {**options, "num_kv_heads": kv_heads, "parallel_residual": parallel,
            "shared_norm": parallel and not two_norms, "qkv_bias": bias,
            "attention_out_bias": bias, "mlp_bias": bias,
            "positions": "alibi" if alibi else "rope",
            **({"rope": RopeConfig()} if alibi else rope_options(meta, options))}


FAMILIES: dict[str, Callable[[Metadata], dict]] = {
    "llama": _llama, "smollm3": _smollm3, "mistral": _mistral,
    "qwen2": lambda meta: _qwen(meta, "qwen2"), "qwen3": lambda meta: _qwen(meta, "qwen3"),
    "gemma": lambda meta: _gemma(meta, "gemma"), "gemma2": lambda meta: _gemma(meta, "gemma2"),
    "gemma3_text": lambda meta: _gemma(meta, "gemma3"),
    "gemma3": lambda meta: _gemma(meta, "gemma3"),
    "phi3": _phi3, "gpt2": _gpt2, "gpt_neox": _gpt_neox, "opt": _opt, "falcon": _falcon,
}
