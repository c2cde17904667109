"""Takes KerasHub's Whisper, BART and T5 backbones over into an `EncoderDecoder`."""

import re
from collections.abc import Callable

import numpy as np

from tfspeed.errors import TfspeedError
from tfspeed.models.checkpoint import Checkpoint
from tfspeed.models.encoder_decoder_config import EncoderDecoderConfig

FAMILIES = {"WhisperBackbone": "whisper", "BartBackbone": "bart", "T5Backbone": "t5"}
_WHOLE = {"token_embedding/embeddings": "embedding.weight",
          "encoder_position_embedding/embeddings": "encoder.positions.weight",
          "position_embedding/embeddings": "decoder.positions.weight",
          "decoder_position_embedding/embeddings": "decoder.positions.weight",
          "encoder_token_embedding_conv_layer_1": "convolution_0",
          "encoder_token_embedding_conv_layer_2": "convolution_1",
          "encoder_layer_norm": "encoder.norm", "decoder_layer_norm": "decoder.norm",
          "encoder_output_layer_norm": "encoder.norm", "decoder_output_layer_norm": "decoder.norm",
          "encoder_embeddings_layer_norm": "encoder.embedding_norm",
          "decoder_embeddings_layer_norm": "decoder.embedding_norm"}
_LAYER = {"self_attention_layer": "attention", "self_attention": "attention",
          "cross_attention": "cross", "self_attention_layer_norm": "attention_norm",
          "cross_attention_layer_norm": "cross_norm", "feedforward_layer_norm": "mlp_norm",
          "feedforward_intermediate_dense": "mlp.up", "feedforward_output_dense": "mlp.down",
          "attention_output": "out", "query_projector": "query", "key_projector": "key",
          "value_projector": "value", "output_projector": "out", "input_projector": "mlp.up"}
_PARTS = {"gamma": "scale", "beta": "bias", "weight": "scale"}
_ACTIVATIONS = {"relu": "relu", "silu": "silu", "gelu": "gelu_tanh"}


def checkpoint_from_backbone(backbone, name: str) -> Checkpoint:
    """Raises:
        TfspeedError: an option of the backbone is none that an `EncoderDecoder` has.
    """
    family = FAMILIES[type(backbone).__name__]
    config = _config(backbone, family)
    named = dict(zip(names([v.path for v in backbone.weights], config), backbone.weights,
                     strict=True))
    tensors = {key: _reader(key, variable) for key, variable in named.items()}
    width = config.num_heads * config.head_dim
    for key in list(tensors):  # Whisper's keys have no bias
        if key.endswith(".key.kernel") and config.biases:
            tensors.setdefault(key.replace(".kernel", ".bias"), lambda: np.zeros(width, np.float32))
    if config.logit_bias:
        tensors["logit_bias.weight"] = lambda: np.zeros(config.vocabulary_size, np.float32)
    return Checkpoint(config, tensors, name=name)


def _config(backbone, family: str) -> EncoderDecoderConfig:
    b = backbone
    sizes = dict(vocabulary_size=b.vocabulary_size, encoder_layers=b.num_layers,
                 decoder_layers=b.num_layers, hidden_dim=b.hidden_dim, num_heads=b.num_heads,
                 head_dim=b.hidden_dim // b.num_heads, mlp_dim=b.intermediate_dim, family=family)
    if family == "whisper":
        return EncoderDecoderConfig(
            **sizes, context_length=b.max_decoder_sequence_length,
            source_length=b.max_encoder_sequence_length // 2, mels=b.num_mels)
    if family == "bart":
        return EncoderDecoderConfig(
            **sizes, context_length=b.max_sequence_length, source_length=b.max_sequence_length,
            source="tokens", pre_norm=False, final_norm=False, embedding_norm=True,
            logit_bias=True)
    activation = getattr(b.activation, "__name__", str(b.activation))
    if activation not in _ACTIVATIONS or not b.tie_embedding_weights:
        raise TfspeedError("This T5 has an option that tfspeed does not know.",
                           activation=activation, tie_embedding_weights=b.tie_embedding_weights)
    return EncoderDecoderConfig(
        **sizes | {"head_dim": b.key_value_dim}, context_length=512, source_length=512,
        source="tokens", norm="rms", norm_epsilon=b.layer_norm_epsilon,
        activation=_ACTIVATIONS[activation], gated_mlp=b.use_gated_activation, biases=False,
        positions="relative", attention_scale=1.0, logit_scale=b.hidden_dim**-0.5)


def names(paths: list[str], config: EncoderDecoderConfig) -> list[str]:
    """Our name of each variable, by its path, in the order that the backbone has them."""
    found: list[str] = []
    for path in paths:
        *layers, part = path.split("/")
        part = _PARTS.get(part, part)
        whole = "/".join([*layers, part])
        if match := re.match(r"transformer_(encoder|decoder)_layer_(\d+)/", path):
            found.append(_within(f"{match[1]}.{match[2]}.", layers[1:], part, config, found))
        elif layers[-1] == "self_attention":  # T5's relative positions, one table a side
            side = "decoder" if "encoder.positions.weight" in found else "encoder"
            found.append(f"{side}.positions.weight")
        else:
            found.append(next((ours if ours.endswith("weight") else f"{ours}.{part}"
                               for theirs, ours in _WHOLE.items()
                               if whole.endswith(theirs) or layers[-1] == theirs), path))
    return found


def _within(at: str, layers: list[str], part: str, config, before: list[str]) -> str:
    """Of a layer of either side."""
    if layers[0].startswith("t5_layer_norm"):  # numbered, in the order of use
        order = ["attention_norm", *["cross_norm"] * at.startswith("decoder"), "mlp_norm"]
        return at + next(n for n in order if f"{at}{n}.{part}" not in before) + f".{part}"
    if layers[0] == "gate_projector":
        return f"{at}mlp.up.{part}"
    if config.gated_mlp and layers[0] == "input_projector":  # the one that is activated
        return f"{at}mlp.gate.{part}"
    if layers[0] == "output_projector":
        return f"{at}mlp.down.{part}"
    return at + ".".join(_LAYER.get(layer, layer) for layer in layers) + f".{part}"


def _reader(name: str, variable) -> Callable[[], np.ndarray]:
    def read():
        value = np.asarray(variable)
        if name.startswith("convolution"):
            return value
        if name.endswith(".out.kernel"):
            return value.reshape(-1, value.shape[-1])  # [heads, dim, hidden]
        if name.endswith(".kernel"):
            return value.reshape(value.shape[0], -1)   # [hidden, heads, dim]
        return value.reshape(-1) if name.endswith(".bias") else value

    return read
