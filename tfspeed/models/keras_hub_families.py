"""KerasHub's decoder families: where each keeps its weights, and what is special about it.

Nothing here imports KerasHub: a family is the name of its backbone's class, and a layer is read
through its attributes. What a backbone says and what its layers do is not always the same
(Gemma's `query_head_dim_normalize` never reaches them), so the layers are asked.
"""

import math

from tfspeed.errors import TfspeedError
from tfspeed.models.config import RopeConfig
from tfspeed.models.keras_hub_weights import array, assemble, rope_config

STRETCHED_CONTEXT = 131_072  # of Llama 3.1 and later, told by their frequency scaling

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
_NEOX = {k: v for k, v in _OLD.items() if k not in ("query", "key", "value")} | {
    "query_key_value": "_self_attention_layer._qkv_dense"}
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
_GEMMA_POST = {"attention_post_norm": "post_attention_norm", "mlp_post_norm": "post_ffw_norm"}
_GEMMA_QK = {"query_norm": "attention.query_norm", "key_norm": "attention.key_norm"}
_FALCON = {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm",
           "query": "attention_layer.query_dense", "key": "attention_layer.key_dense",
           "value": "attention_layer.value_dense", "out": "attention_layer.output_dense",
           "up": "dense_h_to_4h", "down": "dense_4h_to_h"}


def _llama(b):
    """Llama 2, Llama 3 and what is built like them."""
    stretched = _attention(b).rope_frequency_adjustment_factor is not None
    context = {"context_length": STRETCHED_CONTEXT} if stretched else {}
    return assemble(b, "llama", _NEW, rope=_rope(b), **context)


def _mistral(b):
    return assemble(b, "mistral", _NEW, rope=_rope(b), sliding_window=b.sliding_window or 0)


def _qwen(b):
    window = b.sliding_window_size if b.use_sliding_window_attention else 0
    return assemble(b, "qwen2", _NEW, rope=_rope(b), sliding_window=window)


def _qwen3(b):
    # KerasHub's query and key norms have an epsilon of 1e-5 whatever the backbone says; the
    # weights were trained with that of the other norms, and that is used here.
    return assemble(b, "qwen3", _QWEN3, rope=_rope(b), qk_norm=True,
                    sliding_window=b.sliding_window_size or 0)


def _smollm3(b):
    return assemble(
        b, "smollm3", _SMOLLM3, final="norm", rope=RopeConfig(theta=float(b.rope_theta)),
        rope_fraction=float(b.partial_rotary_factor),
        rope_layers=tuple(bool(block.self_attn.use_rope) for block in b.transformer_layers))


def _phi3(b):
    rope = RopeConfig(theta=float(b.rope_max_wavelength))
    if b.rope_scaling_type is not None:
        rotation = b.transformer_layers[0].attention.rotary_embedding_layer
        rope = RopeConfig(rope.theta, tuple(map(float, b.rope_scaling_short_factor)),
                          tuple(map(float, b.rope_scaling_long_factor)),
                          b.pretraining_sequence_length, rotation.embedding_scaling_factor)
    return assemble(b, "phi3", _PHI3, rope=rope)


def _gemma(b):
    """Gemma 1 and 2. They reorder the rotated channels of query and key, both in one way, which
    their product does not see."""
    attention = b.transformer_layers[0].attention
    return _any_gemma(b, "gemma2" if b.use_post_ffw_norm else "gemma", _GEMMA,
                      rope=rope_config(attention.rope_layer, attention.query_dense))


def _gemma3(b):
    if b.is_embedding_model or b.use_bidirectional_attention:
        raise TfspeedError("A Gemma 3 embedding model generates no text.", model=b.name)
    attentions = [block.attention for block in b.transformer_layers]
    ropes = {a.use_sliding_window_attention: rope_config(a.rope_layer, a.query_dense)
             for a in attentions}
    return _any_gemma(b, "gemma3", _GEMMA | (_GEMMA_QK if b.use_query_key_norm else {}),
                      rope=ropes.get(False, RopeConfig()), local_rope=ropes.get(True),
                      qk_norm=bool(b.use_query_key_norm))


def _any_gemma(b, family, paths, **options):
    if bool(b.use_post_attention_norm) != bool(b.use_post_ffw_norm):
        raise TfspeedError("Gemma has both post-norms or neither.",
                           use_post_attention_norm=b.use_post_attention_norm,
                           use_post_ffw_norm=b.use_post_ffw_norm)
    attentions = [block.attention for block in b.transformer_layers]
    sliding = tuple(bool(a.use_sliding_window_attention) for a in attentions)
    width = attentions[0].head_dim if attentions[0].query_head_dim_normalize \
        else b.hidden_dim // b.num_query_heads
    return assemble(
        b, family, paths | (_GEMMA_POST if b.use_post_ffw_norm else {}), heads_first=True,
        norm_offset=1.0, activation="gelu_tanh", embedding_scale=math.sqrt(b.hidden_dim),
        attention_scale=width**-0.5, attention_softcap=float(b.attention_logit_soft_cap or 0),
        post_norms=bool(b.use_post_ffw_norm), sliding_layers=sliding,
        sliding_window=b.sliding_window_size if any(sliding) else 0, **options)


def _gpt2(b):
    return _learned(b, "gpt2", "gelu_tanh", b.position_embedding)


def _opt(b):
    return _learned(b, "opt", "relu", b.embeddings.position_embedding)


def _learned(b, family, activation, positions):
    config, tensors = assemble(b, family, _OLD, norm="layer", activation=activation,
                               positions="learned")
    tensors["position_embedding.weight"] = lambda: array(positions.position_embeddings)
    return config, tensors


def _gpt_neox(b):
    return assemble(b, "gptneox", _NEOX, norm="layer", activation="gelu_tanh", qkv_bias=True,
                    rope=RopeConfig(theta=float(b.rotary_max_wavelength)),
                    rope_fraction=float(b.rotary_percentage), parallel_residual=True)


def _falcon(b):
    """KerasHub's Falcon is that of RefinedWeb-1B: ALiBi, biases, attention before the MLP."""
    return assemble(b, "falcon", _FALCON, final="final_layernorm", norm="layer",
                    activation="gelu", positions="alibi")


def _attention(b):
    return b.transformer_layers[0]._self_attention_layer


def _rope(b):
    return rope_config(_attention(b).rotary_embedding_layer, _attention(b)._query_dense)


# Backbone class: its function, which gives the config and the readers of the tensors.
FAMILIES = {"LlamaBackbone": _llama, "Llama3Backbone": _llama, "SmolLM3Backbone": _smollm3,
            "MistralBackbone": _mistral, "QwenBackbone": _qwen, "Qwen3Backbone": _qwen3,
            "GemmaBackbone": _gemma, "Gemma3Backbone": _gemma3, "Phi3Backbone": _phi3,
            "GPT2Backbone": _gpt2, "GPTNeoXBackbone": _gpt_neox, "OPTBackbone": _opt,
            "FalconBackbone": _falcon}
