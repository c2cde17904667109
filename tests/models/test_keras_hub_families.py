"""Every KerasHub family, random and tiny: a Decoder must give KerasHub's own numbers."""

import sys

import numpy as np
import pytest
import tensorflow as tf

from tfspeed.engines import create
from tfspeed.errors import TfspeedError
from tfspeed.models.decoder_model import DecoderModel
from tfspeed.models.keras_hub_cached import KerasHubCachedModel
from tfspeed.models.keras_hub_loader import (
    checkpoint_from_keras_hub,
    load_keras_hub_preset,
    wrap_keras_hub,
)

keras_hub = pytest.importorskip("keras_hub")
models = keras_hub.models

TOLERANCE = 1e-4
LLAMA = {"vocabulary_size": 50, "num_layers": 2, "num_query_heads": 4, "num_key_value_heads": 2,
         "hidden_dim": 24, "intermediate_dim": 40}
OLD = {"vocabulary_size": 50, "num_layers": 2, "num_heads": 4, "hidden_dim": 32,
       "intermediate_dim": 48}
GEMMA = {**LLAMA, "head_dim": 8, "num_layers": 3}
GEMMA3 = {**GEMMA, "num_layers": 7, "image_size": 8, "use_post_ffw_norm": True,
          "use_post_attention_norm": True, "use_sliding_window_attention": True,
          "sliding_window_size": 4}
FREQUENCIES = {"rope_frequency_adjustment_factor": 8.0, "rope_low_freq_factor": 1.0,
               "rope_high_freq_factor": 4.0, "rope_pretraining_sequence_length": 64}
PHI3 = {**LLAMA, "hidden_dim": 32, "max_sequence_length": 64}
SU = {"rope_scaling_type": "su", "rope_scaling_short_factor": [1.0, 1.1, 1.3, 1.6],
      "rope_scaling_long_factor": [1.5, 2.0, 3.0, 5.0]}
SMOLLM3 = {"vocabulary_size": 50, "num_layers": 3, "num_attention_heads": 4,
           "num_key_value_heads": 2, "hidden_dim": 24, "intermediate_dim": 40,
           "attention_bias": False, "attention_dropout": 0.0, "mlp_bias": False,
           "rope_layer_enabled_list": [True, False, True], "layer_types": ["full"] * 3,
           "layer_norm_epsilon": 1e-6, "max_position_embeddings": 128, "rope_theta": 5e4,
           "partial_rotary_factor": 1.0}

CASES = {
    "llama": ("Llama", LLAMA),
    "llama-mha-tied": ("Llama", {**LLAMA, "num_key_value_heads": 4, "tie_word_embeddings": True}),
    "llama-position-scaling": ("Llama", {**LLAMA, "rope_position_scaling_factor": 4.0}),
    "llama3": ("Llama3", {**LLAMA, "rope_max_wavelength": 500_000}),
    "llama3-frequencies": ("Llama3", {**LLAMA, **FREQUENCIES, "hidden_dim": 32}),
    "smollm3-nope": ("SmolLM3", SMOLLM3),
    "smollm3-bias": ("SmolLM3", {**SMOLLM3, "attention_bias": True, "mlp_bias": True}),
    "mistral": ("Mistral", {**LLAMA, "sliding_window": None}),
    "mistral-window-head-dim": ("Mistral", {**LLAMA, "sliding_window": 5, "head_dim": 8,
                                            "rope_scaling_factor": 2.0}),
    "qwen": ("Qwen", LLAMA),
    "qwen-untied-window": ("Qwen", {**LLAMA, "tie_word_embeddings": False,
                                    "use_sliding_window_attention": True,
                                    "sliding_window_size": 4, "rope_scaling_factor": 3.0}),
    "qwen3": ("Qwen3", {**LLAMA, "head_dim": 8}),
    "qwen3-untied-window": ("Qwen3", {**LLAMA, "head_dim": 8, "tie_word_embeddings": False,
                                      "sliding_window_size": 5, "layer_norm_epsilon": 1e-5}),
    "gemma": ("Gemma", GEMMA),
    "gemma-mqa-unscaled": ("Gemma", {**GEMMA, "num_key_value_heads": 1,
                                     "query_head_dim_normalize": False}),
    "gemma2": ("Gemma", {**GEMMA, "use_post_ffw_norm": True, "use_post_attention_norm": True,
                         "attention_logit_soft_cap": 5, "final_logit_soft_cap": 3,
                         "use_sliding_window_attention": True, "sliding_window_size": 4}),
    "gemma3": ("Gemma3", {**GEMMA3, "global_rope_scaling_factor": 8.0}),
    "gemma3-no-window": ("Gemma3", {**GEMMA, "image_size": 8, "final_logit_soft_cap": 3,
                                    "use_query_key_norm": False}),
    "gemma3-all-local": ("Gemma3", {**GEMMA3, "num_layers": 2, "local_rope_scaling_factor": 2.0}),
    "phi3": ("Phi3", PHI3),
    "phi3-short": ("Phi3", {**PHI3, **SU, "pretraining_sequence_length": 32}),
    "phi3-long": ("Phi3", {**PHI3, **SU, "pretraining_sequence_length": 4}),
    "gpt2": ("GPT2", {**OLD, "max_sequence_length": 20}),
    "gpt-neox": ("GPTNeoX", {**OLD, "rotary_percentage": 0.25}),
    "gpt-neox-full": ("GPTNeoX", {**OLD, "rotary_percentage": 1.0, "rotary_max_wavelength": 500}),
    "opt": ("OPT", {**OLD, "max_sequence_length": 20}),
    "falcon": ("Falcon", {"vocabulary_size": 50, "num_layers": 2, "num_attention_heads": 4,
                          "hidden_dim": 32, "intermediate_dim": 48}),
    "falcon-6-heads": ("Falcon", {"vocabulary_size": 50, "num_layers": 2,
                                  "num_attention_heads": 6, "hidden_dim": 24,
                                  "intermediate_dim": 48}),
}


def randomized(backbone):
    """Random weights of a size that keeps every part of the model at work."""
    rng = np.random.default_rng(7)
    for variable in backbone.weights:
        if "inv_freq" in variable.path:
            continue  # SmolLM3 keeps a constant among its weights
        spread = 0.3 if len(variable.shape) > 1 else 0.5
        variable.assign(rng.normal(0.2, spread, variable.shape))
    return backbone


def reference(backbone, tokens):
    hidden = backbone({"token_ids": tokens, "padding_mask": np.ones_like(tokens)})
    return np.asarray(backbone.token_embedding(hidden, reverse=True))


def assert_close(ours, theirs):
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert np.std(theirs) > 1e-2
    assert np.max(np.abs(ours - theirs)) / np.max(np.abs(theirs)) <= TOLERANCE


@pytest.fixture(params=CASES)
def pair(request):
    family, options = CASES[request.param]
    backbone = randomized(getattr(models, f"{family}Backbone")(**options))
    return backbone, DecoderModel.from_checkpoint(checkpoint_from_keras_hub(backbone))


@pytest.fixture
def tokens():
    return np.random.default_rng(3).integers(0, 50, (2, 12)).astype(np.int32)


def test_a_decoder_gives_the_logits_of_keras_hub(pair, tokens):
    backbone, model = pair
    assert_close(model.score(tokens), reference(backbone, tokens))


def test_padding_and_steps_give_the_logits_of_a_whole_text(pair, tokens):
    _, model = pair
    whole = np.asarray(model.score(tokens))
    padded = np.pad(tokens[:, :7], ((0, 0), (3, 0)))
    logits, state = model.prefill(tf.constant(padded), tf.constant([7, 7]),
                                  model.initial_state(2, 16))
    assert_close(logits, whole[:, 6])
    for i in range(7, 12):
        logits, state = model.step(tf.constant(tokens[:, i]), state)
        assert_close(logits, whole[:, i])


def test_what_the_config_says_about_a_family():
    def config(name, **changes):
        family, options = CASES[name]
        backbone = getattr(models, f"{family}Backbone")(**{**options, **changes})
        return checkpoint_from_keras_hub(backbone).config

    assert config("llama").context_length == 4096
    assert config("llama3-frequencies").context_length == 131_072
    assert config("gpt2").context_length == 20
    gemma3 = config("gemma3")
    assert gemma3.sliding_layers == (True,) * 5 + (False, True)
    assert (gemma3.rope.theta, gemma3.local_rope.theta) == (1e6, 1e4)
    np.testing.assert_allclose(gemma3.rope.factors, 8.0, rtol=1e-6)
    assert config("smollm3-nope").rope_layers == (True, False, True)
    with pytest.raises(TfspeedError, match="one epsilon"):
        config("gemma", layer_norm_epsilon=1e-3)


def test_a_causal_lm_is_wrapped_in_its_own_dtype(tokens):
    backbone = models.LlamaBackbone(**LLAMA, dtype="bfloat16")
    model = wrap_keras_hub(models.LlamaCausalLM(backbone=backbone, preprocessor=None), "mine")
    assert isinstance(model, DecoderModel)
    assert (model.name, model.dtype) == ("mine", "bfloat16")
    assert model.score(tokens).shape == (2, 12, 50)


@pytest.fixture(scope="module")
def bloom():
    backbone, rng = models.BloomBackbone(**OLD), np.random.default_rng(0)
    for variable in backbone.weights:
        variable.assign(rng.normal(0, 1, variable.shape))
    return wrap_keras_hub(models.BloomCausalLM(backbone=backbone, preprocessor=None))


@pytest.mark.parametrize("engine", ["graph", "xla"])
def test_an_unknown_family_runs_through_its_own_cache(bloom, tokens, engine):
    assert isinstance(bloom, KerasHubCachedModel)
    assert "Bloom is not known to tfspeed's Decoder" in bloom.notes[0]
    text = tokens[:, :5]
    for _ in range(8):
        text = np.concatenate([text, np.argmax(bloom.score(text)[:, -1:], -1)], axis=1)
    tokens = list(create(engine, bloom).generate(text[:, :5].tolist(), 8))
    np.testing.assert_array_equal(np.stack(tokens, axis=1), text[:, 5:])
    assert len(np.unique(text[:, 5:])) > 2


def test_steps_of_an_unknown_family_give_the_logits_of_a_whole_text(bloom, tokens):
    whole = np.asarray(bloom.score(tokens))
    logits, state = bloom.prefill(tf.constant(tokens[:, :7]), tf.constant([7, 7]),
                                  bloom.initial_state(2, 16))
    assert_close(logits, whole[:, 6])
    for i in range(7, 12):
        logits, state = bloom.step(tf.constant(tokens[:, i]), state)
        assert_close(logits, whole[:, i])


def test_what_an_unknown_family_says_about_itself(bloom):
    # Two layers, key and value, 32 wide, float32.
    assert bloom.step_bytes(3, 100) - bloom.weights_bytes == 3 * 100 * 2 * 2 * 32 * 4
    backbone = models.GemmaBackbone(**GEMMA, layer_norm_epsilon=1e-3)
    gemma = wrap_keras_hub(models.GemmaCausalLM(backbone=backbone, preprocessor=None))
    assert isinstance(gemma, KerasHubCachedModel)  # a known family, an option that is not
    assert gemma.notes[0].startswith("The norms of a model must have one epsilon.")
    with pytest.raises(TfspeedError, match="one length"):
        create("graph", bloom).generate([[1, 2], [1, 2, 3]], 2)


def test_models_that_cannot_be_taken_over_say_so(monkeypatch):
    with pytest.raises(TfspeedError, match="no family"):
        wrap_keras_hub(models.BloomBackbone(**OLD))  # no CausalLM: nothing to run
    with pytest.raises(TfspeedError, match="no family"):
        wrap_keras_hub(models.BertBackbone(**OLD))
    quantized = models.GPT2Backbone(**OLD, max_sequence_length=20)
    quantized.quantize("int8")
    with pytest.raises(TfspeedError, match="quantized"):
        checkpoint_from_keras_hub(quantized)
    with pytest.raises(TfspeedError, match="could not load this preset"):
        load_keras_hub_preset("no_such_preset")
    monkeypatch.setitem(sys.modules, "keras_hub", None)
    with pytest.raises(TfspeedError, match="pip install keras-hub"):
        load_keras_hub_preset("gpt2_base_en")
