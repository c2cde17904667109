"""From the layers of a KerasHub backbone to the tensors and the config of a `Checkpoint`."""

from operator import attrgetter

import numpy as np
from keras import ops

from tfspeed.errors import TfspeedError
from tfspeed.models.config import DecoderConfig, RopeConfig

# Context of the published models, in tokens, for backbones that do not keep it.
CONTEXTS = {"LlamaBackbone": 4096, "Llama3Backbone": 8192, "MistralBackbone": 32_768,
            "QwenBackbone": 32_768, "Qwen3Backbone": 32_768, "GemmaBackbone": 8192,
            "Gemma3Backbone": 32_768, "FalconBackbone": 2048}
DEFAULT_CONTEXT = 2048
_INWARD = ("out", "down")  # the linear layers that come back to the hidden size


def assemble(backbone, family: str, paths: dict[str, str], final: str = "layer_norm",
             heads_first: bool = False, norm_offset: float = 0.0,
             **options) -> tuple[DecoderConfig, dict]:
    """Reads a backbone.

    Args:
        backbone: a KerasHub backbone.
        family: what the config calls it.
        paths: where a block keeps what we call `query`, `attention_norm` and so on; a
            `query_key_value` is GPT-NeoX's.
        final: where the backbone keeps the last norm.
        heads_first: query, key and value kernels are `[heads, hidden, head_dim]`.
        norm_offset: what the norms add to their scale.
        options: fields of the config that the layers do not show.

    Returns:
        The config, and a function for each tensor that reads it.
    """
    embedding, norm, hidden = backbone.token_embedding, getattr(backbone, final), \
        backbone.hidden_dim
    tensors = {"embedding.weight": lambda: array(embedding.embeddings)}
    if not embedding.tie_weights:
        tensors["head.kernel"] = lambda: array(embedding.reverse_embeddings)
    _add_norm(tensors, "final_norm", norm, norm_offset)
    epsilons = {norm.epsilon}
    for i, block in enumerate(backbone.transformer_layers):
        for ours, path in paths.items():
            layer, name = attrgetter(path)(block), f"blocks.{i}.{ours}"
            if ours == "query_key_value":
                _add_fused(tensors, f"blocks.{i}.", layer)
            elif ours.endswith("norm"):
                _add_norm(tensors, name, layer, norm_offset)
                epsilons |= set() if ours in ("query_norm", "key_norm") else {layer.epsilon}
            else:
                _add_linear(tensors, name, layer, (-1, hidden) if ours in _INWARD
                            else (hidden, -1), heads_first and ours not in _INWARD)
    if len(epsilons) > 1:
        # Gemma's and Falcon's backbones give theirs to the final norm alone.
        raise TfspeedError("The norms of a model must have one epsilon.",
                           norm_epsilon=sorted(epsilons))
    first = backbone.transformer_layers[0]
    heads = next(getattr(backbone, name) for name in (
        "num_query_heads", "num_attention_heads", "num_heads") if hasattr(backbone, name))
    out, down = attrgetter(paths["out"])(first), attrgetter(paths["down"])(first)
    values = {
        "vocabulary_size": backbone.vocabulary_size, "num_layers": backbone.num_layers,
        "hidden_dim": hidden, "num_heads": heads,
        "num_kv_heads": getattr(backbone, "num_key_value_heads", heads),
        "head_dim": int(np.prod(out.kernel.shape)) // hidden // heads,
        "mlp_dim": int(down.kernel.shape[0]), "context_length": context_length(backbone),
        "family": family, "norm_epsilon": float(norm.epsilon), "gated_mlp": "gate" in paths,
        "tied_embeddings": bool(embedding.tie_weights),
        "logit_softcap": float(embedding.logit_soft_cap or 0),
        "qkv_bias": "blocks.0.query.bias" in tensors,
        "attention_out_bias": "blocks.0.out.bias" in tensors,
        "mlp_bias": "blocks.0.up.bias" in tensors}
    return DecoderConfig(**{**values, **options}), tensors


def context_length(backbone) -> int:
    """What the backbone says, or else what the published models of its class hold."""
    for name in ("max_sequence_length", "max_position_embeddings"):
        if getattr(backbone, name, None):
            return int(getattr(backbone, name))
    return CONTEXTS.get(type(backbone).__name__, DEFAULT_CONTEXT)


def rope_config(rotation, query) -> RopeConfig:
    """The rotation of a layer as KerasHub computes it.

    Args:
        rotation: KerasHub's layer; whatever scales its frequencies (linear, Llama 3's) becomes
            factors.
        query: the query projection that it follows.
    """
    plain, dim = RopeConfig(theta=float(rotation.max_wavelength)), int(query.kernel.shape[-1])
    factors = plain.inverse_frequencies(dim) / array(rotation._get_inverse_freq(dim))
    if np.allclose(factors, 1.0, rtol=1e-5):
        return plain
    return RopeConfig(theta=plain.theta, factors=tuple(factors.tolist()))


def array(variable) -> np.ndarray:
    return ops.cast(variable, "float32").numpy()


def _add_norm(tensors, name, layer, offset):
    scale = layer.gamma if hasattr(layer, "gamma") else layer.scale
    tensors[f"{name}.scale"] = lambda: array(scale) + np.float32(offset)
    if getattr(layer, "beta", None) is not None:
        tensors[f"{name}.bias"] = lambda: array(layer.beta)


def _add_linear(tensors, name, layer, shape, heads_first):
    def kernel():
        values = array(layer.kernel)
        return (values.swapaxes(0, 1) if heads_first and values.ndim == 3 else values
                ).reshape(shape)

    tensors[f"{name}.kernel"] = kernel
    if layer.bias is not None:
        tensors[f"{name}.bias"] = lambda: array(layer.bias).reshape(-1)


def _add_fused(tensors, at, layer):
    """GPT-NeoX keeps query, key and value of a head side by side, `[hidden, heads, 3 · dim]`."""
    def part(variable, index, shape):
        return lambda: np.split(array(variable), 3, axis=-1)[index].reshape(shape)

    for index, name in enumerate(("query", "key", "value")):
        tensors[f"{at}{name}.kernel"] = part(layer.kernel, index, (layer.kernel.shape[0], -1))
        tensors[f"{at}{name}.bias"] = part(layer.bias, index, -1)
