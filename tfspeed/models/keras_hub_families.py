"""KerasHub's decoder families: where each keeps its weights, and its `DecoderConfig`.

Nothing here imports KerasHub: a family is the name of its backbone's class, and a layer is read
through its attributes. What a backbone says in its config and what its layers then do is not
always the same (Gemma's `query_head_dim_normalize` never reaches them), so the layers are asked.
"""

import math
from operator import attrgetter

import numpy as np
from keras import ops

from tfspeed.errors import TfspeedError
from tfspeed.models.config import DecoderConfig, RopeConfig

# Context of the published models, in tokens, for backbones that do not keep it.
CONTEXTS = {"LlamaBackbone": 4096, "Llama3Backbone": 8192, "MistralBackbone": 32_768,
            "QwenBackbone": 32_768, "Qwen3Backbone": 32_768, "GemmaBackbone": 8192,
            "Gemma3Backbone": 32_768, "FalconBackbone": 2048}
STRETCHED_CONTEXT = 131_072  # Llama 3.1 and later, told by their frequency scaling

# Our name of a layer: where it is in a block of KerasHub's.
_NEW = {"attention_norm": "_self_attention_layernorm", "mlp_norm": "_feedforward_layernorm",
        "query": "_self_attention_layer._query_dense", "key": "_self_attention_layer._key_dense",
        "value": "_self_attention_layer._value_dense",
        "out": "_self_attention_layer._output_dense", "gate": "_feedforward_gate_dense",
        "up": "_feedforward_intermediate_dense", "down": "_feedforward_output_dense"}
_QWEN3 = _NEW | {"query_norm": "_self_attention_layer._query_dense_layer_norm",
                 "key_norm": "_self_attention_layer._key_dense_layer_norm"}
_OLD = {k: v for k, v in _NEW.items() if k != "gate"} | {
    "attention_norm": "_self_attention_layer_norm", "mlp_norm": "_feedforward_layer_norm"}
_NEOX = {k: v for k, v in _OLD.items() if k not in ("query", "key", "value")}
_PHI3 = {"attention_norm": "pre_attention_layernorm", "mlp_norm": "post_attention_layernorm",
         "query": "attention.query_dense", "key": "attention.key_dense",
         "value": "attention.value_dense", "out": "attention.output_dense",
         "gate": "feedforward_gate_dense", "up": "feedforward_intermediate_dense",
         "down": "feedforward_output_dense"}
_SMOLLM3 = {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm",
            "query": "self_attn.q_proj", "key": "self_attn.k_proj", "value": "self_attn.v_proj",
            "out": "self_attn.o_proj", "gate": "mlp.gate_proj", "up": "mlp.up_proj",
            "down": "mlp.down_proj"}
_GEMMA = {"attention_norm": "pre_attention_norm", "mlp_norm": "pre_ffw_norm",
          "query": "attention.query_dense", "key": "attention.key_dense",
          "value": "attention.value_dense", "out": "attention.output_dense",
          "gate": "gating_ffw", "up": "gating_ffw_2", "down": "ffw_linear"}
_FALCON = {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm",
           "query": "attention_layer.query_dense", "key": "attention_layer.key_dense",
           "value": "attention_layer.value_dense", "out": "attention_layer.output_dense",
           "up": "dense_h_to_4h", "down": "dense_4h_to_h"}


def llama(b):
    attention = b.transformer_layers[0]._self_attention_layer
    stretched = attention.rope_frequency_adjustment_factor is not None
    return _assemble(b, "llama", _NEW, rope=_rope(attention.rotary_embedding_layer, b),
                     **({"context_length": STRETCHED_CONTEXT} if stretched else {}))


def mistral(b):
    rope = _rope(b.transformer_layers[0]._self_attention_layer.rotary_embedding_layer, b)
    return _assemble(b, "mistral", _NEW, rope=rope, sliding_window=b.sliding_window or 0)


def qwen(b):
    rope = _rope(b.transformer_layers[0]._self_attention_layer.rotary_embedding_layer, b)
    window = b.sliding_window_size if b.use_sliding_window_attention else 0
    return _assemble(b, "qwen2", _NEW, rope=rope, sliding_window=window)


def qwen3(b):
    # KerasHub's query and key norms have an epsilon of 1e-5 whatever the backbone says; the
    # weights were trained with that of the other norms, which is used here.
    rope = _rope(b.transformer_layers[0]._self_attention_layer.rotary_embedding_layer, b)
    return _assemble(b, "qwen3", _QWEN3, rope=rope, qk_norm=True,
                     sliding_window=b.sliding_window_size or 0)


def smollm3(b):
    return _assemble(
        b, "smollm3", _SMOLLM3, final="norm", rope=RopeConfig(theta=float(b.rope_theta)),
        rope_fraction=float(b.partial_rotary_factor),
        rope_layers=tuple(bool(x.self_attn.use_rope) for x in b.transformer_layers))


def phi3(b):
    layer = b.transformer_layers[0].attention.rotary_embedding_layer
    rope = RopeConfig(theta=float(b.rope_max_wavelength))
    if b.rope_scaling_type is not None:
        rope = RopeConfig(rope.theta, tuple(map(float, b.rope_scaling_short_factor)),
                          tuple(map(float, b.rope_scaling_long_factor)),
                          b.pretraining_sequence_length, layer.embedding_scaling_factor)
    return _assemble(b, "phi3", _PHI3, rope=rope)


def gemma(b):
    """Gemma 1 and 2: KerasHub has one class for both."""
    first = b.transformer_layers[0].attention
    return _assemble(b, "gemma", _gemma_paths(b), rope=_rope(first.rope_layer, b), **_gemma(b))


def gemma3(b):
    if b.is_embedding_model or b.use_bidirectional_attention:
        raise TfspeedError("A Gemma 3 embedding model generates no text.", model=b.name)
    paths = _gemma_paths(b)
    if b.use_query_key_norm:
        paths |= {"query_norm": "attention.query_norm", "key_norm": "attention.key_norm"}
    ropes = {x.attention.use_sliding_window_attention: _rope(x.attention.rope_layer, b)
             for x in b.transformer_layers}
    # With few layers there may be local ones only: they then find the rotation in local_rope.
    return _assemble(b, "gemma3", paths, rope=ropes.get(False, RopeConfig()),
                     local_rope=ropes.get(True), qk_norm=b.use_query_key_norm, **_gemma(b))


def gpt2(b):
    return _learned(b, "gpt2", "gelu_tanh", b.position_embedding)


def opt(b):
    return _learned(b, "opt", "relu", b.embeddings.position_embedding)


def gpt_neox(b):
    first = b.transformer_layers[0]._self_attention_layer
    rope = RopeConfig(theta=float(first.rotary_max_wavelength))
    return _assemble(b, "gptneox", _NEOX, norm="layer", activation="gelu_tanh", rope=rope,
                     rope_fraction=float(first.rotary_percentage), parallel_residual=True)


def falcon(b):
    """KerasHub has the Falcon of RefinedWeb-1B: ALiBi, biases, attention before the MLP."""
    return _assemble(b, "falcon", _FALCON, final="final_layernorm", norm="layer",
                     activation="gelu", positions="alibi")


FAMILIES = {"LlamaBackbone": llama, "Llama3Backbone": llama, "SmolLM3Backbone": smollm3,
            "MistralBackbone": mistral, "QwenBackbone": qwen, "Qwen3Backbone": qwen3,
            "GemmaBackbone": gemma, "Gemma3Backbone": gemma3, "Phi3Backbone": phi3,
            "GPT2Backbone": gpt2, "GPTNeoXBackbone": gpt_neox, "OPTBackbone": opt,
            "FalconBackbone": falcon}


def _gemma_paths(b) -> dict:
    if bool(b.use_post_attention_norm) != bool(b.use_post_ffw_norm):
        raise TfspeedError("A Gemma with only one of its two post-norms is not supported.",
                           use_post_attention_norm=b.use_post_attention_norm,
                           use_post_ffw_norm=b.use_post_ffw_norm)
    posts = {"attention_post_norm": "post_attention_norm", "mlp_post_norm": "post_ffw_norm"}
    return _GEMMA | (posts if b.use_post_ffw_norm else {})


def _gemma(b) -> dict:
    """The options that Gemma 1, 2 and 3 share. The rotated channels of Gemma 1 and 2 are
    reordered in query and key alike, which no product of theirs can see."""
    first = b.transformer_layers[0].attention
    width = first.head_dim if first.query_head_dim_normalize \
        else b.hidden_dim // b.num_query_heads
    sliding = tuple(bool(x.attention.use_sliding_window_attention) for x in b.transformer_layers)
    return {"heads_first": True, "norm_offset": 1.0, "activation": "gelu_tanh",
            "embedding_scale": math.sqrt(b.hidden_dim), "attention_scale": width**-0.5,
            "post_norms": bool(b.use_post_ffw_norm), "sliding_layers": sliding,
            "sliding_window": b.sliding_window_size if any(sliding) else 0,
            "attention_softcap": float(b.attention_logit_soft_cap or 0)}


def _learned(b, family, activation, positions):
    config, tensors = _assemble(b, family, _OLD, norm="layer", activation=activation,
                                positions="learned")
    tensors["position_embedding.weight"] = lambda: _array(positions.position_embeddings)
    return config, tensors


def _rope(layer, b) -> RopeConfig:
    """A rotation as KerasHub computes it: whatever scales its frequencies becomes factors."""
    width = b.transformer_layers[0]
    dim = (getattr(width, "_self_attention_layer", None) or width.attention)
    dim = int(getattr(dim, "head_dim", 0) or getattr(dim, "_head_dim", 0)
              or b.hidden_dim // b.num_query_heads)
    rope = RopeConfig(theta=float(layer.max_wavelength))
    factors = rope.inverse_frequencies(dim) / _array(layer._get_inverse_freq(dim))
    if np.allclose(factors, 1.0, rtol=1e-5):
        return rope
    return RopeConfig(theta=rope.theta, factors=tuple(factors.tolist()))


def _assemble(b, family, paths, final="layer_norm", heads_first=False, norm_offset=0.0,
              **options) -> tuple[DecoderConfig, dict]:
    """Config and tensors out of a backbone, the paths of its layers and what is special.

    Args:
        heads_first: query, key and value kernels are `[heads, hidden, head_dim]`.
        norm_offset: what the norms add to their scale.
    """
    embedding, norm = b.token_embedding, getattr(b, final)
    tensors = {"embedding.weight": lambda: _array(embedding.embeddings)}
    if not embedding.tie_weights:
        tensors["head.kernel"] = lambda: _array(embedding.reverse_embeddings)
    epsilons = {norm.epsilon}
    _add_norm(tensors, "final_norm", norm, norm_offset)
    for i, block in enumerate(b.transformer_layers):
        for name, path in paths.items():
            layer = attrgetter(path)(block)
            if not name.endswith("norm"):
                _add_linear(tensors, f"blocks.{i}.{name}", layer, b.hidden_dim, heads_first)
                continue
            _add_norm(tensors, f"blocks.{i}.{name}", layer, norm_offset)
            if name not in ("query_norm", "key_norm"):
                epsilons.add(layer.epsilon)
    if len(epsilons) > 1:
        # GemmaBackbone and FalconBackbone give theirs to the final norm only.
        raise TfspeedError("The norms of a model must have one epsilon.",
                           norm_epsilon=sorted(epsilons))
    heads = getattr(b, "num_query_heads", 0) or getattr(b, "num_attention_heads", 0) or b.num_heads
    if family == "gptneox":
        for i, block in enumerate(b.transformer_layers):
            _split_fused(tensors, f"blocks.{i}.", block._self_attention_layer._qkv_dense)
        head_dim = b.hidden_dim // heads
    else:
        query = attrgetter(paths["query"])(b.transformer_layers[0])
        head_dim = int(np.prod(query.kernel.shape)) // b.hidden_dim // heads
    context = getattr(b, "max_sequence_length", 0) or getattr(b, "max_position_embeddings", 0) \
        or CONTEXTS.get(type(b).__name__)
    values = {
        "vocabulary_size": b.vocabulary_size, "num_layers": b.num_layers,
        "hidden_dim": b.hidden_dim, "num_heads": heads,
        "num_kv_heads": getattr(b, "num_key_value_heads", heads), "head_dim": head_dim,
        "mlp_dim": int(attrgetter(paths["down"])(b.transformer_layers[0]).kernel.shape[0]),
        "context_length": context, "family": family, "norm_epsilon": float(norm.epsilon),
        "gated_mlp": "gate" in paths, "tied_embeddings": bool(embedding.tie_weights),
        "logit_softcap": float(embedding.logit_soft_cap or 0),
        "qkv_bias": "blocks.0.query.bias" in tensors,
        "attention_out_bias": "blocks.0.out.bias" in tensors,
        "mlp_bias": "blocks.0.up.bias" in tensors}
    return DecoderConfig(**{**values, **options}), tensors


def _add_norm(tensors, name, layer, offset):
    scale = layer.gamma if hasattr(layer, "gamma") else layer.scale
    tensors[f"{name}.scale"] = lambda: _array(scale) + np.float32(offset)
    if getattr(layer, "beta", None) is not None:
        tensors[f"{name}.bias"] = lambda: _array(layer.beta)


def _add_linear(tensors, name, layer, hidden, heads_first):
    inputs = name.endswith((".out", ".down"))

    def kernel():
        array = _array(layer.kernel)
        if heads_first and array.ndim == 3 and not inputs:
            array = array.swapaxes(0, 1)
        return array.reshape((-1, hidden) if inputs else (hidden, -1))

    tensors[f"{name}.kernel"] = kernel
    if layer.bias is not None:
        tensors[f"{name}.bias"] = lambda: _array(layer.bias).reshape(-1)


def _split_fused(tensors, at, layer):
    """GPT-NeoX keeps query, key and value of a head side by side, `[hidden, heads, 3 · dim]`."""
    def part(variable, index, shape):
        return lambda: np.split(_array(variable), 3, axis=-1)[index].reshape(shape)

    for index, name in enumerate(("query", "key", "value")):
        tensors[f"{at}{name}.kernel"] = part(layer.kernel, index, (layer.kernel.shape[0], -1))
        tensors[f"{at}{name}.bias"] = part(layer.bias, index, -1)


def _array(variable) -> np.ndarray:
    return np.asarray(ops.convert_to_numpy(variable)).astype(np.float32)
