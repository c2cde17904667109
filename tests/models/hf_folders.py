"""Tiny random Hugging Face folders of every family, by the official names and shapes.

Needs numpy and safetensors only: `hf_reference.py` imports it where transformers is installed.
Written without tfspeed's own table, which it is there to check.
"""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

TOKENS = np.random.RandomState(5).randint(3, 40, (1, 20)).astype(np.int32)

_SIZES = {"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
          "max_position_embeddings": 64, "initializer_range": 0.02, "pad_token_id": 0}
_RMS = _SIZES | {"num_key_value_heads": 2, "intermediate_size": 48, "rms_norm_eps": 1e-6,
                 "hidden_act": "silu", "rope_theta": 1000.0, "tie_word_embeddings": False}
_GEMMA = _RMS | {"head_dim": 16, "hidden_act": "gelu_pytorch_tanh", "tie_word_embeddings": True,
                 "hidden_activation": "gelu_pytorch_tanh", "attention_bias": False}
_GEMMA3 = _GEMMA | {"model_type": "gemma3_text", "architectures": ["Gemma3ForCausalLM"],
                    "num_hidden_layers": 3, "query_pre_attn_scalar": 16, "sliding_window": 6,
                    "rope_theta": 5000.0}
_LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
           "original_max_position_embeddings": 16}
_LONG = {"type": "longrope", "short_factor": [1.0, 1.1, 1.3], "long_factor": [1.5, 2.5, 4.0]}
_NEOX = _SIZES | {"model_type": "gpt_neox", "architectures": ["GPTNeoXForCausalLM"],
                  "intermediate_size": 48, "hidden_act": "gelu", "layer_norm_eps": 1e-5,
                  "tie_word_embeddings": False}
_FALCON = _SIZES | {"model_type": "falcon", "architectures": ["FalconForCausalLM"],
                    "layer_norm_epsilon": 1e-5, "alibi": False, "bias": False,
                    "multi_query": True, "new_decoder_architecture": False, "parallel_attn": True}


def _llama(model_type="llama", name="Llama", **changes):
    return {**_RMS, "model_type": model_type, "architectures": [f"{name}ForCausalLM"], **changes}


CASES = {
    "llama": _llama(),
    "llama_biases_tied": _llama(attention_bias=True, mlp_bias=True, head_dim=16,
                                tie_word_embeddings=True, rms_norm_eps=1e-5),
    "llama3": _llama(rope_scaling=_LLAMA3),
    "llama_linear": _llama(rope_scaling={"type": "linear", "factor": 2.5}),
    "llama_rope_parameters": {
        k: v for k, v in _llama(rope_parameters=_LLAMA3 | {"rope_theta": 700.0}).items()
        if k != "rope_theta"},
    "smollm3": _llama("smollm3", "SmolLM3", num_hidden_layers=4, attention_bias=False,
                      attention_dropout=0.0, mlp_bias=False, no_rope_layers=[1, 1, 0, 1],
                      layer_types=["full_attention"] * 4, tie_word_embeddings=True),
    "smollm3_untied": _llama("smollm3", "SmolLM3", num_hidden_layers=4),
    "mistral": _llama("mistral", "Mistral", sliding_window=None, head_dim=8),
    "mistral_window": _llama("mistral", "Mistral", sliding_window=6, head_dim=16),
    "qwen2": _llama("qwen2", "Qwen2", use_sliding_window=False, sliding_window=4,
                    tie_word_embeddings=True),
    "qwen2_window": _llama("qwen2", "Qwen2", use_sliding_window=True, sliding_window=6,
                           max_window_layers=1),
    "qwen3": _llama("qwen3", "Qwen3", head_dim=16, attention_bias=False,
                    use_sliding_window=False, sliding_window=None),
    "gemma": _GEMMA | {"model_type": "gemma", "architectures": ["GemmaForCausalLM"],
                       "rope_theta": 10000.0},
    "gemma2": _GEMMA | {"model_type": "gemma2", "architectures": ["Gemma2ForCausalLM"],
                        "query_pre_attn_scalar": 16, "sliding_window": 6, "rope_theta": 10000.0,
                        "attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0},
    "gemma2_scaled": _GEMMA | {"model_type": "gemma2", "architectures": ["Gemma2ForCausalLM"],
                               "query_pre_attn_scalar": 24, "sliding_window": 6},
    "gemma3_old_keys": _GEMMA3 | {"sliding_window_pattern": 3, "rope_local_base_freq": 100.0,
                                  "rope_scaling": {"rope_type": "linear", "factor": 8.0}},
    "gemma3_new_keys": {
        **{k: v for k, v in _GEMMA3.items() if k != "rope_theta"},
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 5000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 100.0}}},
    "gemma3_hub": _GEMMA3 | {"rope_theta": 1_000_000.0, "rope_local_base_freq": 10_000.0,
                             "num_hidden_layers": 7,
                             "layer_types": (["sliding_attention"] * 5
                                             + ["full_attention", "sliding_attention"])},
    "phi3_window": _llama("phi3", "Phi3", sliding_window=6),
    "phi3_short": _llama("phi3", "Phi3", rope_scaling=_LONG, partial_rotary_factor=0.75,
                         original_max_position_embeddings=32),
    "phi3_long": _llama("phi3", "Phi3", rope_scaling=_LONG, partial_rotary_factor=0.75,
                        original_max_position_embeddings=16),
    "gpt2": {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "vocab_size": 40,
             "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "n_inner": None,
             "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5, "resid_pdrop": 0.0},
    "gpt_neox": _NEOX | {"rotary_pct": 0.25, "rotary_emb_base": 500,
                         "use_parallel_residual": True},
    "gpt_neox_sequential": _NEOX | {
        "use_parallel_residual": False, "attention_bias": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 300.0,
                            "partial_rotary_factor": 0.5}},
    "opt": _SIZES | {"model_type": "opt", "architectures": ["OPTForCausalLM"], "ffn_dim": 48,
                     "activation_function": "relu", "do_layer_norm_before": True,
                     "word_embed_proj_dim": 32},
    "falcon_7b": _FALCON,
    "falcon_40b": _FALCON | {"new_decoder_architecture": True, "num_kv_heads": 2},
    "falcon_11b": _FALCON | {"new_decoder_architecture": True, "num_kv_heads": 2,
                             "num_ln_in_parallel_attn": 1, "tie_word_embeddings": False,
                             "ffn_hidden_size": 48},
    "falcon_rw": _FALCON | {"alibi": True, "bias": True, "multi_query": False,
                            "parallel_attn": False},
}


def shapes(config: dict) -> dict[str, tuple[int, ...]]:
    """Official tensor names and shapes of a config."""
    kind = config["model_type"]
    if kind == "gpt2":
        return _gpt2_shapes(config)
    if kind in ("gpt_neox", "falcon"):
        return _neox_or_falcon_shapes(config, kind)
    return _opt_shapes(config) if kind == "opt" else _rms_shapes(config, kind)


def _rms_shapes(c, kind):
    hidden, mlp = c["hidden_size"], c["intermediate_size"]
    head_dim = c.get("head_dim") or hidden // c["num_attention_heads"]
    heads, kv = c["num_attention_heads"] * head_dim, c["num_key_value_heads"] * head_dim
    found = {"model.embed_tokens.weight": (c["vocab_size"], hidden), "model.norm.weight": (hidden,)}
    for i in range(c["num_hidden_layers"]):
        at, attention = f"model.layers.{i}.", f"model.layers.{i}.self_attn."
        norms = ["input_layernorm", "post_attention_layernorm"]
        if kind in ("gemma2", "gemma3_text"):
            norms += ["pre_feedforward_layernorm", "post_feedforward_layernorm"]
        found |= {f"{at}{name}.weight": (hidden,) for name in norms}
        if kind == "phi3":
            found |= {f"{attention}qkv_proj.weight": (heads + 2 * kv, hidden),
                      f"{at}mlp.gate_up_proj.weight": (2 * mlp, hidden)}
        else:
            found |= {f"{attention}q_proj.weight": (heads, hidden),
                      f"{attention}k_proj.weight": (kv, hidden),
                      f"{attention}v_proj.weight": (kv, hidden),
                      f"{at}mlp.gate_proj.weight": (mlp, hidden),
                      f"{at}mlp.up_proj.weight": (mlp, hidden)}
        found |= {f"{attention}o_proj.weight": (hidden, heads),
                  f"{at}mlp.down_proj.weight": (hidden, mlp)}
        if c.get("attention_bias") or kind == "qwen2":
            found |= {f"{attention}q_proj.bias": (heads,), f"{attention}k_proj.bias": (kv,),
                      f"{attention}v_proj.bias": (kv,)}
        if c.get("attention_bias"):
            found[f"{attention}o_proj.bias"] = (hidden,)
        if c.get("mlp_bias"):
            found |= {f"{at}mlp.gate_proj.bias": (mlp,), f"{at}mlp.up_proj.bias": (mlp,),
                      f"{at}mlp.down_proj.bias": (hidden,)}
        if kind in ("qwen3", "gemma3_text"):
            found |= {f"{attention}{n}_norm.weight": (head_dim,) for n in "qk"}
    if not c["tie_word_embeddings"]:
        found["lm_head.weight"] = (c["vocab_size"], hidden)
    return found


def _with_bias(name, shape, size):
    return {f"{name}.weight": shape, f"{name}.bias": (size,)}


def _gpt2_shapes(c):
    n = c["n_embd"]
    found = {"wte.weight": (c["vocab_size"], n), "wpe.weight": (c["n_positions"], n),
             **_with_bias("ln_f", (n,), n)}
    for i in range(c["n_layer"]):
        for name, inputs, outputs in (("attn.c_attn", n, 3 * n), ("attn.c_proj", n, n),
                                      ("mlp.c_fc", n, 4 * n), ("mlp.c_proj", 4 * n, n)):
            found |= _with_bias(f"h.{i}.{name}", (inputs, outputs), outputs)
        found |= _with_bias(f"h.{i}.ln_1", (n,), n) | _with_bias(f"h.{i}.ln_2", (n,), n)
    return {f"transformer.{name}": shape for name, shape in found.items()}


def _opt_shapes(c):
    n, m, at = c["hidden_size"], c["ffn_dim"], "model.decoder."
    found = {f"{at}embed_tokens.weight": (c["vocab_size"], n),
             f"{at}embed_positions.weight": (c["max_position_embeddings"] + 2, n),
             **_with_bias(f"{at}final_layer_norm", (n,), n)}
    for i in range(c["num_hidden_layers"]):
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            found |= _with_bias(f"{at}layers.{i}.self_attn.{name}", (n, n), n)
        found |= _with_bias(f"{at}layers.{i}.fc1", (m, n), m)
        found |= _with_bias(f"{at}layers.{i}.fc2", (n, m), n)
        for name in ("self_attn_layer_norm", "final_layer_norm"):
            found |= _with_bias(f"{at}layers.{i}.{name}", (n,), n)
    return found


def _neox_or_falcon_shapes(c, kind):
    n, neox = c["hidden_size"], kind == "gpt_neox"
    m = c["intermediate_size"] if neox else c.get("ffn_hidden_size", 4 * n)
    head_dim = n // c["num_attention_heads"]
    kv = c["num_attention_heads"]
    if not neox and c["new_decoder_architecture"]:
        kv = c["num_kv_heads"]
    elif not neox and c["multi_query"]:
        kv = 1
    qkv = n + 2 * kv * head_dim
    root, layers = ("gpt_neox.", "layers") if neox else ("transformer.", "h")
    attention = "attention" if neox else "self_attention"
    norms = ["input_layernorm", "post_attention_layernorm"]
    if not neox and c["parallel_attn"]:
        norms = ["input_layernorm"]
        if c["new_decoder_architecture"] and c.get("num_ln_in_parallel_attn", 2) == 2:
            norms = ["ln_attn", "ln_mlp"]
    found = {f"{root}{'embed_in' if neox else 'word_embeddings'}.weight": (c["vocab_size"], n),
             **_with_bias(f"{root}{'final_layer_norm' if neox else 'ln_f'}", (n,), n)}
    for i in range(c["num_hidden_layers"]):
        at = f"{root}{layers}.{i}."
        for name, shape in ((f"{attention}.query_key_value", (qkv, n)),
                            (f"{attention}.dense", (n, n)), ("mlp.dense_h_to_4h", (m, n)),
                            ("mlp.dense_4h_to_h", (n, m))):
            found[f"{at}{name}.weight"] = shape
            if neox or c["bias"]:
                found[f"{at}{name}.bias"] = shape[:1]
        for name in norms:
            found |= _with_bias(at + name, (n,), n)
    if not c.get("tie_word_embeddings", True):
        found[f"{'embed_out' if neox else 'lm_head'}.weight"] = (c["vocab_size"], n)
    return found


def random_tensors(config: dict, seed: int = 0) -> dict[str, np.ndarray]:
    """float32 weights, the same for one config on every machine."""
    draws, found = np.random.RandomState(seed), {}
    around_zero = config["model_type"].startswith("gemma")
    for name, shape in shapes(config).items():
        values = draws.standard_normal(shape).astype(np.float32)
        if len(shape) == 1 and name.endswith(".weight"):
            found[name] = values * np.float32(0.2) + np.float32(0 if around_zero else 1)
        else:
            found[name] = values * np.float32(0.25)
    return found


def write_folder(folder: Path, config: dict, tensors: dict | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file({k: np.ascontiguousarray(v) for k, v in
               (random_tensors(config) if tensors is None else tensors).items()},
              folder / "model.safetensors", metadata={"format": "pt"})
    return folder
