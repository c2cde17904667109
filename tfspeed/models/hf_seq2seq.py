"""Reads Hugging Face folders of Whisper, BART and T5 into a `Checkpoint`.

Names and shapes: transformers' modeling_whisper.py, modeling_bart.py, modeling_t5.py.
"""

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tfspeed.errors import TfspeedError
from tfspeed.models.checkpoint import Checkpoint
from tfspeed.models.encoder_decoder_config import EncoderDecoderConfig
from tfspeed.models.hf_loader import check_all_used, checked_reader, no_tensor, tensor_files
from tfspeed.models.tokenizer import read_json, tokenizer_from_folder
from tfspeed.models.whisper_tokens import suppressed_of, whisper_tokenizer

FAMILIES = ("whisper", "bart", "t5")
_ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh",
                "relu": "relu", "silu": "silu"}


def is_encoder_decoder(folder: Path) -> bool:
    """Whether config.json is of one of `FAMILIES` (CTranslate2's has no model_type)."""
    return read_json(folder / "config.json").get("model_type") in FAMILIES


def load_hf_encoder_decoder(folder: Path) -> Checkpoint:
    """Raises:
        TfspeedError: a file is missing or damaged, or the weights do not fit the config.
    """
    raw = read_json(folder / "config.json")
    config = config_from_hf(raw)
    files = tensor_files(folder, read_json)
    tensors, parameters, used = {}, 0, set()
    for ours, theirs, shape, how in entries(config):
        name = next((n for n in (theirs, f"model.{theirs}") if n in files), None)
        if name is None and how == "zeros":
            tensors[ours] = lambda shape=shape: np.zeros(shape, np.float32)
            continue
        if name is None:
            raise no_tensor(folder, theirs)
        used.add(name)
        parameters += math.prod(shape)
        tensors[ours] = _turned(checked_reader(folder, files, name, shape), how)
    check_all_used(folder, (n for n in files if n not in used and not _twice(n)))
    parameters += config.hidden_dim * (config.encoder_layers + 2 * config.decoder_layers)  # biases
    whisper = config.family == "whisper"
    tokenizer = whisper_tokenizer(folder) if whisper else tokenizer_from_folder(folder)
    if whisper:
        config = dataclasses.replace(config, **suppressed_of(folder, tokenizer))
    return Checkpoint(config, tensors, name=folder.resolve().name, tokenizer=tokenizer,
                      source=str(folder), parameters=parameters)


def _twice(name: str) -> bool:
    """A table that older files hold once more for each of its uses."""
    return name.removeprefix("model.") in ("encoder.embed_tokens.weight", "proj_out.weight",
                                           "decoder.embed_tokens.weight", "lm_head.weight")


def config_from_hf(raw: dict) -> EncoderDecoderConfig:
    """Raises:
        TfspeedError: a field is missing or of another kind.
    """
    def field(name, default=None):
        value = raw.get(name, default)
        if value is None:
            raise TfspeedError("config.json lacks a field of its family.", field=name,
                               model_type=raw.get("model_type"))
        return value

    def whole(name, default=None):
        value = field(name, default)
        if type(value) is not int or value < 1:
            raise TfspeedError("A size in config.json must be a positive integer.",
                               **{name: value})
        return value

    def activation(name):
        if name not in _ACTIVATIONS:
            raise TfspeedError("This activation is not known.", activation=name,
                               hint=f"Known: {', '.join(_ACTIVATIONS)}.")
        return _ACTIVATIONS[name]

    family = raw["model_type"]
    if family == "t5":
        gated, _, act = str(raw.get("feed_forward_proj", "relu")).rpartition("-")
        act = "gelu_new" if gated and act == "gelu" else act
        tied = bool(raw.get("tie_word_embeddings", True))
        hidden = whole("d_model")
        return EncoderDecoderConfig(
            vocabulary_size=whole("vocab_size"), encoder_layers=whole("num_layers"),
            decoder_layers=whole("num_decoder_layers", raw.get("num_layers")), hidden_dim=hidden,
            num_heads=whole("num_heads"), head_dim=whole("d_kv"), mlp_dim=whole("d_ff"),
            context_length=512, source_length=512, family=family, source="tokens", norm="rms",
            norm_epsilon=float(field("layer_norm_epsilon", 1e-6)), activation=activation(act),
            gated_mlp=gated == "gated", biases=False, positions="relative",
            relative_buckets=whole("relative_attention_num_buckets", 32),
            relative_distance=whole("relative_attention_max_distance", 128), attention_scale=1.0,
            logit_scale=hidden**-0.5 if tied else 1.0, tied_embeddings=tied)
    hidden, heads = whole("d_model"), whole("encoder_attention_heads")
    if heads != whole("decoder_attention_heads") or hidden % heads or (
            whole("encoder_ffn_dim") != whole("decoder_ffn_dim")):
        raise TfspeedError("Encoder and decoder must have the same heads and widths.",
                           encoder_attention_heads=heads, d_model=hidden,
                           decoder_attention_heads=raw["decoder_attention_heads"])
    whisper = family == "whisper"
    positions = whole("max_source_positions" if whisper else "max_position_embeddings")
    return EncoderDecoderConfig(
        vocabulary_size=whole("vocab_size"), encoder_layers=whole("encoder_layers"),
        decoder_layers=whole("decoder_layers"), hidden_dim=hidden, num_heads=heads,
        head_dim=hidden // heads, mlp_dim=whole("encoder_ffn_dim"),
        context_length=whole("max_target_positions") if whisper else positions,
        source_length=positions, family=family, source="audio" if whisper else "tokens",
        mels=whole("num_mel_bins") if whisper else 80,
        activation=activation(field("activation_function", "gelu")), pre_norm=whisper,
        final_norm=whisper, embedding_norm=not whisper, logit_bias=not whisper,
        embedding_scale=hidden**0.5 if raw.get("scale_embedding") else 1.0)


def entries(config: EncoderDecoderConfig) -> Iterator[tuple[str, str, tuple, str]]:
    """Our name, theirs without `model.`, their shape, and how theirs becomes ours: `same`,
    `linear` (transposed), `skip_two` (rows), `zeros` (none in the file means zeros)."""
    yield from (_t5 if config.family == "t5" else _bart)(config)


def _bart(c) -> Iterator:
    """Whisper's as well."""
    whisper, hidden = c.source == "audio", c.hidden_dim
    yield ("embedding.weight", "decoder.embed_tokens.weight" if whisper else "shared.weight",
           (c.vocabulary_size, hidden), "same")
    if whisper:
        for i, inputs in enumerate((c.mels, hidden)):
            yield (f"convolution_{i}.kernel", f"encoder.conv{i + 1}.weight", (hidden, inputs, 3),
                   "linear")
            yield f"convolution_{i}.bias", f"encoder.conv{i + 1}.bias", (hidden,), "same"
    else:
        yield "logit_bias.weight", "final_logits_bias", (1, c.vocabulary_size), "row"

    def norm(ours, theirs):
        yield f"{ours}.scale", f"{theirs}.weight", (hidden,), "same"
        yield f"{ours}.bias", f"{theirs}.bias", (hidden,), "same"

    def linear(ours, theirs, out, inputs, bias="same"):
        yield f"{ours}.kernel", f"{theirs}.weight", (out, inputs), "linear"
        yield f"{ours}.bias", f"{theirs}.bias", (out,), bias

    for side, layers, length in (("encoder", c.encoder_layers, c.source_length),
                                 ("decoder", c.decoder_layers, c.context_length)):
        yield (f"{side}.positions.weight", f"{side}.embed_positions.weight",
               (length + 2 * (not whisper), hidden), "same" if whisper else "skip_two")
        if c.embedding_norm:
            yield from norm(f"{side}.embedding_norm", f"{side}.layernorm_embedding")
        if c.final_norm:
            yield from norm(f"{side}.norm", f"{side}.layer_norm")
        kinds = [("attention", "self_attn")] + [("cross", "encoder_attn")] * (side == "decoder")
        for i in range(layers):
            ours, theirs = f"{side}.{i}.", f"{side}.layers.{i}."
            for mine, their in kinds:
                yield from norm(f"{ours}{mine}_norm", f"{theirs}{their}_layer_norm")
                for part in ("query", "key", "value"):  # Whisper's keys have no bias
                    yield from linear(f"{ours}{mine}.{part}", f"{theirs}{their}.{part[0]}_proj",
                                      hidden, hidden, "zeros" if part == "key" else "same")
                yield from linear(f"{ours}{mine}.out", f"{theirs}{their}.out_proj", hidden, hidden)
            yield from norm(f"{ours}mlp_norm", f"{theirs}final_layer_norm")
            yield from linear(f"{ours}mlp.up", f"{theirs}fc1", c.mlp_dim, hidden)
            yield from linear(f"{ours}mlp.down", f"{theirs}fc2", hidden, c.mlp_dim)


def _t5(c) -> Iterator:
    hidden, width = c.hidden_dim, c.num_heads * c.head_dim
    yield "embedding.weight", "shared.weight", (c.vocabulary_size, hidden), "same"
    if not c.tied_embeddings:
        yield "head.kernel", "lm_head.weight", (c.vocabulary_size, hidden), "linear"
    for side, layers in (("encoder", c.encoder_layers), ("decoder", c.decoder_layers)):
        yield (f"{side}.positions.weight",
               f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
               (c.relative_buckets, c.num_heads), "same")
        yield f"{side}.norm.scale", f"{side}.final_layer_norm.weight", (hidden,), "same"
        kinds = [("attention", "SelfAttention")] + [("cross", "EncDecAttention")] * (
            side == "decoder")
        for i in range(layers):
            ours, theirs = f"{side}.{i}.", f"{side}.block.{i}.layer."
            for at, (mine, their) in enumerate(kinds):
                yield (f"{ours}{mine}_norm.scale", f"{theirs}{at}.layer_norm.weight", (hidden,),
                       "same")
                for part in ("query", "key", "value"):
                    yield (f"{ours}{mine}.{part}.kernel", f"{theirs}{at}.{their}.{part[0]}.weight",
                           (width, hidden), "linear")
                yield (f"{ours}{mine}.out.kernel", f"{theirs}{at}.{their}.o.weight",
                       (hidden, width), "linear")
            at = len(kinds)
            yield f"{ours}mlp_norm.scale", f"{theirs}{at}.layer_norm.weight", (hidden,), "same"
            ups = (("gate", "wi_0"), ("up", "wi_1")) if c.gated_mlp else (("up", "wi"),)
            for mine, their in ups:
                yield (f"{ours}mlp.{mine}.kernel", f"{theirs}{at}.DenseReluDense.{their}.weight",
                       (c.mlp_dim, hidden), "linear")
            yield (f"{ours}mlp.down.kernel", f"{theirs}{at}.DenseReluDense.wo.weight",
                   (hidden, c.mlp_dim), "linear")


def _turned(read, how: str):
    def turned():
        array = read()
        if how == "linear":
            return array.transpose()
        if how == "skip_two":  # rows that no token uses
            return array[2:]
        return array[0] if how == "row" else array

    return turned
