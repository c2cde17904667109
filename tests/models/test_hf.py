"""Hugging Face folders: our logits against transformers' own and KerasHub's, and every refusal."""

import json
import shutil
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.conftest import tiny_decoder
from tests.models.hf_folders import CASES, TOKENS, random_tensors, write_folder
from tfspeed.errors import TfspeedError
from tfspeed.models.checkpoint import build_decoder
from tfspeed.models.decoder_model import DecoderModel
from tfspeed.models.hf_config import FAMILIES, config_from_hf
from tfspeed.models.hf_loader import INDEX, SINGLE, load_hf_folder
from tfspeed.models.hf_writer import save_hf_folder

REFERENCE = json.loads(Path(__file__).with_name("hf_reference.json").read_text())
# KerasHub has converters for these, with these options; Mistral's rounds weights to float16.
KERAS_HUB = {"llama": 1e-4, "llama3": 1e-4, "smollm3": 1e-4, "mistral": 2e-2,
             "mistral_window": 2e-2, "qwen2": 1e-4, "qwen3": 1e-4, "gemma": 1e-4, "gemma2": 1e-4,
             "gemma3_hub": 1e-4, "gpt2": 1e-4}
# Saved as themselves, and saved as a Llama.
WRITABLE = [case for case in CASES if not case.startswith(("phi3", "gpt", "opt", "falcon"))]


def logits(folder, dtype="float32"):
    return np.asarray(build_decoder(load_hf_folder(folder), dtype)(TOKENS))[0]


def keras_hub_logits(folder):
    keras_hub = pytest.importorskip("keras_hub")
    model = keras_hub.models.CausalLM.from_preset(str(folder), preprocessor=None)
    inputs = {"token_ids": TOKENS, "padding_mask": np.ones_like(TOKENS)}
    return np.asarray(model(inputs))[0]


@pytest.mark.parametrize("case", CASES)
def test_logits_of_transformers(case, tmp_path):
    found = logits(write_folder(tmp_path, CASES[case]))[REFERENCE["rows"]]
    np.testing.assert_allclose(found, REFERENCE["logits"][case], atol=3e-5)


@pytest.mark.parametrize("case", KERAS_HUB)
def test_logits_of_keras_hub(case, tmp_path):
    folder = write_folder(tmp_path, CASES[case])
    np.testing.assert_allclose(logits(folder), keras_hub_logits(folder), atol=KERAS_HUB[case])


def test_every_family_has_a_case():
    assert {c["model_type"] for c in CASES.values()} | {"gemma3"} == set(FAMILIES)


@pytest.mark.parametrize("prefix", ["model.language_model.", "language_model.model."])
def test_the_text_part_of_a_multimodal_gemma3(prefix, tmp_path):
    config = CASES["gemma3_old_keys"]
    tensors = {prefix + name.removeprefix("model."): array
               for name, array in random_tensors(config).items()}
    tensors["vision_tower.vision_model.post_layernorm.weight"] = np.zeros(3, np.float32)
    tensors["multi_modal_projector.mm_input_projection_weight"] = np.zeros(3, np.float32)
    whole = {"model_type": "gemma3", "text_config": config}
    folder = write_folder(tmp_path, whole, tensors)
    np.testing.assert_allclose(logits(folder)[REFERENCE["rows"]],
                               REFERENCE["logits"]["gemma3_old_keys"], atol=3e-5)
    assert "vision" in load_hf_folder(folder).notes[0]


@pytest.mark.parametrize(("case", "old", "new", "buffers"), [
    ("gpt2", "transformer.", "", ["h.0.attn.bias", "h.1.attn.masked_bias", "lm_head.weight"]),
    ("llama", "model.", "", ["layers.0.self_attn.rotary_emb.inv_freq"]),
    ("qwen2", "model.", "model.", ["lm_head.weight"]),
    ("gpt_neox", "gpt_neox.", "gpt_neox.", ["gpt_neox.layers.0.attention.bias",
                                            "gpt_neox.layers.0.attention.masked_bias",
                                            "gpt_neox.layers.1.attention.rotary_emb.inv_freq"]),
    ("opt", "model.decoder.", "decoder.", ["lm_head.weight"]),
])
def test_old_prefixes_and_buffers(case, old, new, buffers, tmp_path):
    tensors = {new + name.removeprefix(old) if name.startswith(old) else name: array
               for name, array in random_tensors(CASES[case]).items()}
    tensors |= {name: np.ones((1, 1, 4, 4), bool) for name in buffers}
    found = logits(write_folder(tmp_path, CASES[case], tensors))
    np.testing.assert_allclose(found[REFERENCE["rows"]], REFERENCE["logits"][case], atol=3e-5)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("case", ["llama", "gemma"])
def test_half_precision_weights(case, dtype, tmp_path):
    half = {k: v.astype(dtype) for k, v in random_tensors(CASES[case]).items()}
    whole = {k: v.astype(np.float32) for k, v in half.items()}
    a = write_folder(tmp_path / "half", CASES[case], half)
    b = write_folder(tmp_path / "whole", CASES[case], whole)
    np.testing.assert_array_equal(logits(a), logits(b))
    np.testing.assert_allclose(logits(a, "bfloat16"), logits(b), atol=0.5)


def sharded(folder, config=CASES["llama"]):
    """A folder with its tensors in two files and an index."""
    write_folder(folder, config)
    tensors = sorted(load_file(folder / SINGLE).items())
    (folder / SINGLE).unlink()
    weight_map = {}
    for i, part in enumerate((dict(tensors[:5]), dict(tensors[5:]))):
        file = f"model-0000{i + 1}-of-00002.safetensors"
        save_file(part, folder / file)
        weight_map |= dict.fromkeys(part, file)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def test_shards(tmp_path):
    found = logits(sharded(tmp_path))[REFERENCE["rows"]]
    np.testing.assert_allclose(found, REFERENCE["logits"]["llama"], atol=3e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", WRITABLE)
def test_a_written_folder_reads_back_exactly(case, dtype, tmp_path):
    checkpoint = load_hf_folder(write_folder(tmp_path / "a", CASES[case]))
    model = DecoderModel.from_checkpoint(checkpoint, dtype)
    save_hf_folder(model, tmp_path / "b")
    again = load_hf_folder(tmp_path / "b")
    assert again.config == checkpoint.config
    decoder = build_decoder(again, dtype)
    for ours, theirs in zip(model.keras_model.weights, decoder.weights, strict=True):
        ours, theirs = (np.asarray(w).astype(np.float32) for w in (ours, theirs))
        if "gemma" in case:  # 1 + (scale - 1), where the scale is small
            np.testing.assert_allclose(theirs, ours, atol=1e-7 if dtype == "float32" else 4e-3)
        else:
            np.testing.assert_array_equal(theirs, ours)


def test_a_plain_model_of_another_family_is_written_as_a_llama(tmp_path):
    config = {**CASES["phi3_window"], "sliding_window": None}
    model = DecoderModel.from_checkpoint(load_hf_folder(write_folder(tmp_path / "a", config)))
    save_hf_folder(model, tmp_path / "b")
    assert json.loads((tmp_path / "b" / "config.json").read_text())["model_type"] == "llama"
    np.testing.assert_allclose(logits(tmp_path / "b"), model.score(TOKENS)[0], atol=1e-6)


@pytest.mark.parametrize("tied", [True, False])
def test_keras_hub_reads_what_we_write(tied, tmp_path):
    model = tiny_decoder(tied_embeddings=tied, norm_epsilon=1e-6)
    save_hf_folder(model, tmp_path)
    np.testing.assert_allclose(keras_hub_logits(tmp_path), model.score(TOKENS)[0], atol=1e-4)


@pytest.mark.parametrize("case", ["gemma3_hub", "qwen3", "smollm3"])
def test_keras_hub_reads_other_families_that_we_write(case, tmp_path):
    checkpoint = load_hf_folder(write_folder(tmp_path / "a", CASES[case]))
    save_hf_folder(DecoderModel.from_checkpoint(checkpoint), tmp_path / "b")
    np.testing.assert_allclose(keras_hub_logits(tmp_path / "b"), logits(tmp_path / "a"), atol=1e-4)


@pytest.mark.parametrize("case", ["gpt2", "falcon_rw", "phi3_long", "opt", "gpt_neox"])
def test_families_that_cannot_be_written(case, tmp_path):
    model = DecoderModel.from_checkpoint(load_hf_folder(write_folder(tmp_path / "a", CASES[case])))
    with pytest.raises(TfspeedError, match=r"cannot express.*llama"):
        save_hf_folder(model, tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_models_that_cannot_be_written(tmp_path):
    with pytest.raises(TfspeedError, match="cannot express"):
        save_hf_folder(tiny_decoder(qk_norm=True), tmp_path / "a")
    quantized = tiny_decoder()
    quantized.keras_model.blocks[0].mlp.down.quantize("int8")
    with pytest.raises(TfspeedError, match=r"missing='blocks.0.down.kernel'|strategy"):
        save_hf_folder(quantized, tmp_path / "b")
    save_hf_folder(tiny_decoder(), tmp_path / "c")
    with pytest.raises(TfspeedError, match="already holds a model"):
        save_hf_folder(tiny_decoder(), tmp_path / "c")
    (tmp_path / "file").write_text("")
    with pytest.raises(TfspeedError, match="could not be written"):
        save_hf_folder(tiny_decoder(), tmp_path / "file")


def drop(name):
    return lambda tensors: tensors.pop(name)


def put(name, array):
    return lambda tensors: tensors.__setitem__(name, array)


@pytest.mark.parametrize(("change", "message"), [
    (drop("model.layers.1.mlp.up_proj.weight"), "model.layers.1.mlp.up_proj.weight"),
    (drop("model.embed_tokens.weight"), "embed_tokens.weight"),
    (drop("lm_head.weight"), "tensor='lm_head.weight'"),
    (put("model.norm.weight", np.ones(5, np.float32)), r"expected_shape=\(32,\), shape=\(5,\)"),
    (put("model.norm.weight", np.ones(32, np.int8)), "type='I8'"),
    (put("model.norm.weight", np.ones(32, np.float64)), "type='F64'"),
    (put("model.layers.0.self_attn.q_proj.bias", np.ones(32, np.float32)), "no place for"),
    (put("model.layers.2.mlp.up_proj.weight", np.ones((48, 32), np.float32)), "no place for"),
])
def test_tensors_that_do_not_fit(change, message, tmp_path):
    tensors = random_tensors(CASES["llama"])
    change(tensors)
    with pytest.raises(TfspeedError, match=message):
        load_hf_folder(write_folder(tmp_path, CASES["llama"], tensors))


def rewrite_index(folder, change):
    index = json.loads((folder / INDEX).read_text())
    change(index["weight_map"])
    (folder / INDEX).write_text(json.dumps(index))


@pytest.mark.parametrize("file", [
    "../other/model.safetensors", "/etc/model.safetensors", "sub/model.safetensors",
    "..\\model.safetensors", "C:model.safetensors", "pytorch_model.bin", "", 7, None,
    "a\0.safetensors"])
def test_an_index_that_leads_elsewhere(file, tmp_path):
    shutil.copytree(sharded(tmp_path / "other"), tmp_path / "model")
    rewrite_index(tmp_path / "model", lambda m: m.update({"model.norm.weight": file}))
    with pytest.raises(TfspeedError, match="own folder"):
        load_hf_folder(tmp_path / "model")


def test_shards_that_do_not_fit(tmp_path):
    folder = sharded(tmp_path / "a")
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(TfspeedError, match=r"missing.*model-00002-of-00002"):
        load_hf_folder(folder)
    folder = sharded(tmp_path / "b")
    rewrite_index(folder, lambda m: m.update({"extra": "model-00001-of-00002.safetensors"}))
    with pytest.raises(TfspeedError, match=r"index says.*tensor='extra'"):
        load_hf_folder(folder)
    folder = sharded(tmp_path / "c")
    rewrite_index(folder, lambda m: m.clear())
    with pytest.raises(TfspeedError, match="weight_map"):
        load_hf_folder(folder)
    (folder / INDEX).write_text("{")
    with pytest.raises(TfspeedError, match="damaged"):
        load_hf_folder(folder)


@pytest.mark.parametrize("size", [0, 4, 8, 100, 20_000])
def test_truncated_weights(size, tmp_path):
    folder = write_folder(tmp_path, CASES["llama"])
    (folder / SINGLE).write_bytes((folder / SINGLE).read_bytes()[:size])
    with pytest.raises(TfspeedError, match="damaged"):
        load_hf_folder(folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
def test_pickles_are_never_opened(name, tmp_path):
    folder = write_folder(tmp_path, CASES["llama"])
    (folder / SINGLE).unlink()
    (folder / name).write_bytes(b"cos\nsystem\n(S'touch owned'\ntR.")
    with pytest.raises(TfspeedError, match=r"run code.*safetensors"):
        load_hf_folder(folder)
    assert [p.name for p in sorted(folder.iterdir())] == sorted(["config.json", name])


def test_folders_without_a_model(tmp_path):
    with pytest.raises(TfspeedError, match="does not exist"):
        load_hf_folder(tmp_path / "none")
    with pytest.raises(TfspeedError, match=r"config\.json"):
        load_hf_folder(tmp_path)
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(TfspeedError, match="object"):
        load_hf_folder(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(CASES["llama"]))
    with pytest.raises(TfspeedError, match=r"needs model\.safetensors"):
        load_hf_folder(tmp_path)


@pytest.mark.parametrize(("case", "changes", "message"), [
    ("llama", {"model_type": "bert"}, "Supported: llama, smollm3, mistral"),
    ("llama", {"model_type": None}, "Supported: llama"),
    ("llama", {"model_type": ["llama"]}, "Supported: llama"),
    ("llama", {"quantization_config": {"quant_method": "awq"}}, "quantized"),
    ("llama", {"vocab_size": None}, "vocab_size"),
    ("llama", {"hidden_size": "32"}, "hidden_size"),
    ("llama", {"hidden_size": True}, "hidden_size"),
    ("llama", {"num_hidden_layers": 10**9}, "num_hidden_layers"),
    ("llama", {"num_attention_heads": 0}, "num_attention_heads"),
    ("llama", {"num_key_value_heads": 3}, "num_kv_heads"),
    ("llama", {"head_dim": 7}, "even"),
    ("llama", {"head_dim": 2**31 - 2, "rope_scaling": {"type": "linear", "factor": 2.0}},
     "head_dim"),
    ("llama", {"rms_norm_eps": -1.0}, "rms_norm_eps"),
    ("llama", {"rms_norm_eps": float("nan")}, "rms_norm_eps"),
    ("llama", {"hidden_act": "xielu"}, "activation"),
    ("llama", {"rope_theta": 0}, "rope_theta"),
    ("llama", {"rope_scaling": [1]}, "rope_scaling"),
    ("llama", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_type='dynamic'"),
    ("llama", {"rope_scaling": {"type": "linear"}}, "factor"),
    ("llama", {"rope_scaling": {"type": "linear", "factor": 0}}, "factor"),
    ("llama3", {"rope_scaling": {"rope_type": "llama3", "factor": 2.0, "low_freq_factor": 4.0,
                                 "high_freq_factor": 4.0,
                                 "original_max_position_embeddings": 16}}, "high_freq_factor"),
    ("llama", {"partial_rotary_factor": 0.5}, "whole heads"),
    ("smollm3", {"no_rope_layers": [1, "x", 0, 1]}, "no_rope_layers"),
    ("smollm3", {"no_rope_layers": [1]}, "rope_layers"),
    ("smollm3", {"no_rope_layer_interval": 0}, "no_rope_layer_interval"),
    ("qwen2_window", {"layer_types": ["chunked_attention"] * 2}, "layer_types"),
    ("qwen2_window", {"layer_types": ["sliding_attention"]}, "one entry a layer"),
    ("mistral_window", {"sliding_window": -1}, "sliding_window"),
    ("gemma2", {"query_pre_attn_scalar": 0}, "query_pre_attn_scalar"),
    ("gemma2", {"final_logit_softcapping": -1.0}, "final_logit_softcapping"),
    ("gemma3_old_keys", {"use_bidirectional_attention": True}, "embeds texts"),
    ("phi3_long", {"rope_scaling": {"type": "longrope", "short_factor": [1.0],
                                    "long_factor": [1.0]}}, "one factor"),
    ("phi3_long", {"rope_scaling": {"type": "longrope", "short_factor": [1.0, "x", 2.0],
                                    "long_factor": [1.0, 2.0, 3.0]}}, "short_factor"),
    ("phi3_long", {"original_max_position_embeddings": 1}, "original_max_position_embeddings"),
    ("gpt2", {"n_embd": None}, "n_embd"),
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
    ("gpt_neox", {"rotary_pct": 2.0}, "partial_rotary_factor"),
    ("opt", {"do_layer_norm_before": False}, "do_layer_norm_before"),
    ("opt", {"word_embed_proj_dim": 16}, "word_embed_proj_dim"),
    ("falcon_40b", {"parallel_attn": False}, "parallel_attn"),
    ("falcon_40b", {"num_kv_heads": 3}, "num_kv_heads"),
])
def test_configs_that_are_refused(case, changes, message):
    with pytest.raises(TfspeedError, match=message):
        config_from_hf({**CASES[case], **changes})


def test_a_config_is_an_object():
    for value in (None, [], "llama", 3):
        with pytest.raises(TfspeedError, match="object"):
            config_from_hf(value)


def test_what_a_checkpoint_says(tmp_path):
    checkpoint = load_hf_folder(write_folder(tmp_path / "tiny", CASES["llama"]))
    assert checkpoint.name == "tiny"
    assert checkpoint.source == str(tmp_path / "tiny")
    assert checkpoint.tokenizer is None
    assert checkpoint.parameters == checkpoint.config.parameter_count
