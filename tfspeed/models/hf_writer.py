"""Writes a `DecoderModel` as a Hugging Face folder, to hand its weights to other runtimes."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from tfspeed.errors import TfspeedError
from tfspeed.models.checkpoint import named_variables
from tfspeed.models.config import DecoderConfig, RopeConfig
from tfspeed.models.decoder_model import DecoderModel

_NAMES = {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm",
          "query": "self_attn.q_proj", "key": "self_attn.k_proj", "value": "self_attn.v_proj",
          "out": "self_attn.o_proj", "gate": "mlp.gate_proj", "up": "mlp.up_proj",
          "down": "mlp.down_proj"}
_GLOBAL = {"embedding.weight": "model.embed_tokens.weight", "final_norm.scale": "model.norm.weight",
           "head.kernel": "lm_head.weight"}


def save_hf_folder(model: DecoderModel, folder: str | Path) -> None:
    """Writes config.json, model.safetensors and the tokenizer's files in the Llama layout.

    Raises:
        TfspeedError: the model has something that a `LlamaForCausalLM` has not.
    """
    if not isinstance(model, DecoderModel):
        raise TfspeedError("Only a Decoder can be written as a Hugging Face folder.",
                           model=model.name)
    config = model.config
    _check_llama(config)
    folder = Path(folder)
    tensors = {}
    for name, variable in named_variables(model.keras_model).items():
        tensors |= _tensors(name, np.asarray(variable), config)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()},
                  folder / "model.safetensors", metadata={"format": "pt"})
        (folder / "config.json").write_text(json.dumps(_config_json(config, model), indent=1))
        if model.tokenizer is not None:
            model.tokenizer.save(folder)
    except OSError as error:
        raise TfspeedError("The Hugging Face folder cannot be written.", folder=str(folder),
                           cause=str(error)) from error


def _check_llama(config: DecoderConfig) -> None:
    """A Llama is a decoder with every option at its default but for sizes."""
    plain = DecoderConfig(
        **{name: getattr(config, name) for name in (
            "vocabulary_size", "num_layers", "hidden_dim", "num_heads", "num_kv_heads", "head_dim",
            "mlp_dim", "context_length", "family", "norm_epsilon", "tied_embeddings")},
        rope=RopeConfig(theta=config.rope.theta))
    if config != plain:
        ours, theirs = config.to_dict(), plain.to_dict()
        raise TfspeedError("Only models of the plain Llama layout can be written.",
                           family=config.family,
                           differs_in=sorted(k for k in ours if ours[k] != theirs[k]))


def _tensors(name: str, array: np.ndarray, c: DecoderConfig) -> dict[str, np.ndarray]:
    """One of our variables as Hugging Face tensors: fused products apart, linear layers turned."""
    if name in _GLOBAL:
        return {_GLOBAL[name]: array.T if name == "head.kernel" else array}
    _, index, layer, _ = name.split(".")
    if layer == "query_key_value":
        query, kv = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
        parts = dict(zip(("query", "key", "value"),
                         np.split(array, [query, query + kv], axis=1), strict=True))
    elif layer == "gate_up":
        parts = dict(zip(("gate", "up"), np.split(array, 2, axis=1), strict=True))
    else:
        parts = {layer: array}
    return {f"model.layers.{index}.{_NAMES[layer]}.weight": part.T
            for layer, part in parts.items()}


def _config_json(c: DecoderConfig, model: DecoderModel) -> dict:
    tokenizer = model.tokenizer
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
        "vocab_size": c.vocabulary_size, "hidden_size": c.hidden_dim,
        "intermediate_size": c.mlp_dim, "num_hidden_layers": c.num_layers,
        "num_attention_heads": c.num_heads, "num_key_value_heads": c.num_kv_heads,
        "head_dim": c.head_dim, "max_position_embeddings": c.context_length,
        "rms_norm_eps": c.norm_epsilon, "rope_theta": c.rope.theta, "rope_scaling": None,
        "tie_word_embeddings": c.tied_embeddings, "attention_bias": False, "mlp_bias": False,
        "torch_dtype": model.dtype,
        "bos_token_id": tokenizer.bos_id if tokenizer else None,
        "eos_token_id": list(tokenizer.eos_ids) if tokenizer else None,
    }
