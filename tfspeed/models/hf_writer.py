"""Writes a `DecoderModel` as a Hugging Face folder, to hand its weights to another program.

KerasHub's `from_preset(folder, preprocessor=None)` reads it without a tokenizer. It takes only
Llama 3's way of stretching RoPE, and has its own norm epsilon (1e-6) for Llama.
"""

import dataclasses
import json
import math
from pathlib import Path

import keras
import numpy as np
import safetensors.numpy

from tfspeed.errors import TfspeedError
from tfspeed.models.checkpoint import named_variables
from tfspeed.models.config import DecoderConfig, RopeConfig
from tfspeed.models.decoder import Decoder
from tfspeed.models.decoder_model import DecoderModel
from tfspeed.models.hf_config import config_from_hf
from tfspeed.models.hf_loader import INDEX, SINGLE
from tfspeed.models.hf_weights import WRITABLE, entries, prefix_of, to_hf

_CLASSES = {"llama": "LlamaForCausalLM", "smollm3": "SmolLM3ForCausalLM",
            "mistral": "MistralForCausalLM", "qwen2": "Qwen2ForCausalLM",
            "qwen3": "Qwen3ForCausalLM", "gemma": "GemmaForCausalLM",
            "gemma2": "Gemma2ForCausalLM", "gemma3": "Gemma3ForCausalLM"}
_ACTIVATIONS = {"silu": "silu", "relu": "relu", "gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh"}


def save_hf_folder(model: DecoderModel, folder: str | Path) -> None:
    """Writes config.json and model.safetensors, and the tokenizer's files where there is one.

    Raises:
        TfspeedError: the model's family or its options cannot be written, its weights are no
            plain numbers (quantized by a strategy), or the folder holds other weights.
    """
    if not isinstance(model, DecoderModel):
        raise TfspeedError("Only a Decoder can be written as a Hugging Face folder.",
                           model=model.name, type=type(model).__name__)
    folder, tokenizer = Path(folder), model.tokenizer
    ours = _writable(model.config)
    config, tensors = config_to_hf(ours), _tensors(model.keras_model, ours)
    config["dtype"] = config["torch_dtype"] = model.dtype
    if tokenizer is not None:
        config |= {"bos_token_id": tokenizer.bos_id, "eos_token_id": list(tokenizer.eos_ids)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / SINGLE).exists() or (folder / INDEX).exists():
            raise TfspeedError("The folder already holds a model.", folder=str(folder),
                               hint="Name a new one.")
        safetensors.numpy.save_file(tensors, folder / SINGLE, metadata={"format": "pt"})
        (folder / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
        if tokenizer is not None:
            tokenizer.save(folder)
    except (OSError, safetensors.SafetensorError) as error:
        raise TfspeedError("The model could not be written.", folder=str(folder),
                           cause=str(error)[:200]) from error


def config_to_hf(config: DecoderConfig) -> dict:
    """A config.json from which `config_from_hf` makes the same config again; the family must be
    one of `WRITABLE`."""
    c = config
    sliding = tuple(c.window(i) > 0 for i in range(c.num_layers))
    activation = _ACTIVATIONS[c.activation]
    values = {
        "architectures": [_CLASSES[c.family]],
        "model_type": "gemma3_text" if c.family == "gemma3" else c.family,
        "vocab_size": c.vocabulary_size, "hidden_size": c.hidden_dim,
        "num_hidden_layers": c.num_layers, "num_attention_heads": c.num_heads,
        "num_key_value_heads": c.num_kv_heads, "head_dim": c.head_dim,
        "intermediate_size": c.mlp_dim, "max_position_embeddings": c.context_length,
        "rms_norm_eps": c.norm_epsilon, "hidden_act": activation,
        "hidden_activation": activation, "tie_word_embeddings": c.tied_embeddings,
        "attention_bias": c.attention_out_bias, "attention_dropout": 0.0, "mlp_bias": c.mlp_bias,
        "rope_theta": c.rope.theta, "rope_scaling": _rope_scaling(c.rope, c.context_length),
        "sliding_window": c.sliding_window or None, "use_sliding_window": any(sliding),
        "layer_types": ["sliding_attention" if s else "full_attention" for s in sliding],
    }
    if c.family.startswith("qwen"):
        values["max_window_layers"] = sliding.index(True) if any(sliding) else c.num_layers
    if c.family == "smollm3":
        values["no_rope_layers"] = [int(c.layer_rope(i) is not None) for i in range(c.num_layers)]
    if c.family in ("gemma2", "gemma3"):
        scalar = 1 / c.query_scale**2
        values |= {"query_pre_attn_scalar": round(scalar) if math.isclose(scalar, round(scalar))
                   else scalar,
                   "attn_logit_softcapping": c.attention_softcap or None,
                   "final_logit_softcapping": c.logit_softcap or None}
    if c.local_rope is not None:
        values["rope_local_base_freq"] = c.local_rope.theta
    try:
        same = _canonical(config_from_hf(json.loads(json.dumps(values)))) == _canonical(c)
    except TfspeedError:  # the family refuses the option, as Llama does a partial RoPE
        same = False
    if not same:
        raise TfspeedError(
            "This model has options that its family's config.json cannot express.",
            family=c.family, hint="Other than its family's: norms, biases, positions or windows, "
                                  "or layers of different sizes. "
                                  f"Families that can be written: {', '.join(WRITABLE)}.")
    return values


def _canonical(c: DecoderConfig) -> DecoderConfig:
    """Of all ways to write one config down, always the same."""
    windows = tuple(c.window(i) > 0 for i in range(c.num_layers))
    return dataclasses.replace(
        c, attention_scale=round(c.query_scale, 12), sliding_layers=windows,
        sliding_window=c.sliding_window if any(windows) else 0,
        local_rope=c.local_rope if any(windows) else None,
        rope_layers=tuple(c.layer_rope(i) is not None for i in range(c.num_layers)))


def _writable(config: DecoderConfig) -> DecoderConfig:
    """The config under a family that can be written: its own, or else as a Llama."""
    if config.family in WRITABLE:
        return config
    return dataclasses.replace(config, family="llama")


def _rope_scaling(rope: RopeConfig, context: int) -> dict | None:
    if not rope.factors:
        return None
    if len(set(rope.factors)) == 1 and not rope.long_factors and rope.attention_factor == 1:
        return {"type": "linear", "rope_type": "linear", "factor": rope.factors[0]}
    # Any factors at all can be written as LongRoPE's: its short and long ones the same.
    return {"type": "longrope", "rope_type": "longrope", "short_factor": list(rope.factors),
            "long_factor": list(rope.long_factors or rope.factors),
            "attention_factor": rope.attention_factor,
            "original_max_position_embeddings": rope.original_context or context}


def _tensors(decoder: Decoder, config: DecoderConfig) -> dict[str, np.ndarray]:
    variables = named_variables(decoder)
    prefix, tensors = prefix_of(config, ()), {}
    for entry in entries(config):
        array = _part(variables, entry.target, config)
        if array is None:
            raise TfspeedError("The model's weights are not as its family has them.",
                               missing=entry.target,
                               hint="Save it before a strategy quantizes or replaces its layers.")
        array = to_hf(array, entry.how)
        if array.shape != entry.shape:
            raise TfspeedError("A weight has not the shape that the config gives it.",
                               weight=entry.target, shape=array.shape, expected=entry.shape)
        source = entry.source if entry.target.startswith("head.") else prefix + entry.source
        tensors[source] = array
    return tensors


def _part(variables: dict, target: str, c: DecoderConfig) -> np.ndarray | None:
    """A variable by its checkpoint name, also where it is a part of a fused one."""
    heads, kv_heads = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
    at, layer, part = target.rsplit(".", 2) if target.startswith("blocks.") else ("", target, "")
    fused, columns = None, slice(None)
    if layer in ("query", "key", "value"):
        start = {"query": 0, "key": heads, "value": heads + kv_heads}[layer]
        fused = f"{at}.query_key_value.{part}"
        columns = slice(start, start + (heads if layer == "query" else kv_heads))
    elif layer in ("gate", "up") and c.gated_mlp:
        fused = f"{at}.gate_up.{part}"
        columns = slice(0, c.mlp_dim) if layer == "gate" else slice(c.mlp_dim, 2 * c.mlp_dim)
    variable = variables.get(fused or target)
    if variable is None or not keras.backend.is_float_dtype(variable.dtype):
        return None
    return np.asarray(keras.ops.convert_to_numpy(variable))[..., columns]
