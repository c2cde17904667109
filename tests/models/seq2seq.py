"""Tiny random encoder–decoders of the three shapes, and folders that hold them."""

import json
import struct

import keras
import numpy as np
import tokenizers
from safetensors.numpy import save_file

from tfspeed.models.encoder_decoder import EncoderDecoder
from tfspeed.models.encoder_decoder_config import EncoderDecoderConfig
from tfspeed.models.encoder_decoder_model import EncoderDecoderModel
from tfspeed.models.hf_seq2seq import entries
from tfspeed.models.seq2seq_names import named_variables

SIZES = dict(vocabulary_size=64, encoder_layers=2, decoder_layers=2, hidden_dim=16, num_heads=4,
             head_dim=4, mlp_dim=32, context_length=32, source_length=20)
SHAPES = {
    "whisper": dict(mels=8),
    "bart": dict(family="bart", source="tokens", pre_norm=False, final_norm=False,
                 embedding_norm=True, logit_bias=True, embedding_scale=4.0),
    "t5": dict(family="t5", source="tokens", norm="rms", norm_epsilon=1e-6, activation="relu",
               biases=False, positions="relative", relative_buckets=8, relative_distance=12,
               attention_scale=1.0, logit_scale=0.25),
    "t5_gated": dict(family="t5", source="tokens", norm="rms", norm_epsilon=1e-6,
                     activation="gelu_tanh", gated_mlp=True, biases=False, positions="relative",
                     attention_scale=1.0, tied_embeddings=False),
}
SPECIAL = ["<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|de|>", "<|translate|>",
           "<|transcribe|>", "<|nospeech|>", "<|notimestamps|>", "<|0.00|>"]


def tiny(shape: str, seed: int = 0, **changes) -> EncoderDecoderModel:
    keras.utils.set_random_seed(seed)
    model = EncoderDecoder(EncoderDecoderConfig(**SIZES | SHAPES[shape] | changes))
    rng = np.random.default_rng(seed)
    for variable in model.weights:
        scale = 0.1 if len(variable.shape) == 1 else 4
        noise = rng.normal(size=variable.shape) if len(variable.shape) == 1 else 0
        variable.assign(variable * (scale if scale > 1 else 1) + scale * noise)
    return EncoderDecoderModel(shape, model)


def sources(model: EncoderDecoderModel, rows: int = 3):
    """Of different lengths, where they may have such."""
    rng, c = np.random.default_rng(7), model.config
    if c.source == "audio":
        return rng.normal(size=(rows, c.source_frames, c.mels)).astype(np.float32)
    return [rng.integers(0, c.vocabulary_size, 4 + 5 * i).tolist() for i in range(rows)]


def tokenizer_json() -> str:
    """A word a token: w0 … w54, and Whisper's special ones."""
    vocabulary = {f"w{i}": i for i in range(64 - len(SPECIAL))}
    vocabulary |= {name: len(vocabulary) + i for i, name in enumerate(SPECIAL)}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="w0"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.add_special_tokens(SPECIAL)
    return made.to_str()


def save_hf(model: EncoderDecoderModel, folder) -> None:
    """As transformers would."""
    c, variables, tensors = model.config, named_variables(model.keras_model), {}
    for ours, theirs, shape, how in entries(c):
        value = _part(variables, ours)
        if how == "zeros":
            continue
        if how == "linear":
            value = value.transpose()
        if how == "skip_two":
            value = np.concatenate([np.full((2, value.shape[1]), 9.0, np.float32), value])
        tensors[theirs if c.family == "t5" or theirs == "final_logits_bias" else f"model.{theirs}"
                ] = np.ascontiguousarray(value.reshape(shape))
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(hf_config(c)))
    (folder / "tokenizer.json").write_text(tokenizer_json())


def _part(variables, name):
    """A variable, or the part of a fused one."""
    if name in variables:
        return variables[name].numpy()
    prefix, layer, kind = name.rsplit(".", 2)
    for fused in (("query", "key", "value"), ("key", "value"), ("gate", "up")):
        whole = f"{prefix}.{'_'.join(fused)}.{kind}"
        if layer in fused and whole in variables:
            return np.split(variables[whole].numpy(), len(fused), -1)[fused.index(layer)]
    raise KeyError(name)


def hf_config(c: EncoderDecoderConfig) -> dict:
    if c.family == "t5":
        return {"model_type": "t5", "vocab_size": c.vocabulary_size, "d_model": c.hidden_dim,
                "d_kv": c.head_dim, "d_ff": c.mlp_dim, "num_layers": c.encoder_layers,
                "num_decoder_layers": c.decoder_layers, "num_heads": c.num_heads,
                "relative_attention_num_buckets": c.relative_buckets,
                "relative_attention_max_distance": c.relative_distance,
                "feed_forward_proj": "gated-gelu" if c.gated_mlp else "relu",
                "tie_word_embeddings": c.tied_embeddings, "layer_norm_epsilon": 1e-6}
    common = {"model_type": c.family, "vocab_size": c.vocabulary_size, "d_model": c.hidden_dim,
              "encoder_layers": c.encoder_layers, "decoder_layers": c.decoder_layers,
              "encoder_attention_heads": c.num_heads, "decoder_attention_heads": c.num_heads,
              "encoder_ffn_dim": c.mlp_dim, "decoder_ffn_dim": c.mlp_dim,
              "activation_function": "gelu", "scale_embedding": c.embedding_scale != 1}
    if c.family == "whisper":
        return common | {"num_mel_bins": c.mels, "max_source_positions": c.source_length,
                         "max_target_positions": c.context_length, "suppress_tokens": [3, 5],
                         "begin_suppress_tokens": [7]}
    return common | {"max_position_embeddings": c.source_length}


_CT2 = {"attention_norm": "self_attention/layer_norm", "mlp_norm": "ffn/layer_norm",
        "attention.query_key_value": "self_attention/linear_0",
        "attention.out": "self_attention/linear_1", "mlp.up": "ffn/linear_0",
        "mlp.down": "ffn/linear_1", "cross_norm": "attention/layer_norm",
        "cross.query": "attention/linear_0", "cross.key_value": "attention/linear_1",
        "cross.out": "attention/linear_2"}
_PARTS = {"kernel": "weight", "bias": "bias", "scale": "gamma"}


def ctranslate2_bytes(model: EncoderDecoderModel, dtype=np.float32, version: int = 6,
                      spec: str = "WhisperSpec") -> bytes:
    """A model.bin, written by its description."""
    tensors = {"encoder/num_heads": np.array(model.config.num_heads, np.int16),
               "decoder/pre_norm": np.array(1, np.int8)}
    for name, variable in named_variables(model.keras_model).items():
        value = variable.numpy().astype(dtype)
        *path, part = name.split(".")
        norm = path[-1].endswith("norm")
        part = "beta" if norm and part == "bias" else _PARTS.get(part, part)
        if value.ndim > 1 and part == "weight" and name.endswith("kernel"):
            value = np.ascontiguousarray(value.transpose())
        if name == "embedding.weight":
            theirs = "decoder/embeddings/weight"
        elif path[-1] == "positions":
            theirs = f"{path[0]}/position_encodings/encodings"
        elif path[0].startswith("convolution"):
            theirs = f"encoder/conv{int(path[0][-1]) + 1}/{part}"
        elif path[1] == "norm":
            theirs = f"{path[0]}/layer_norm/{part}"
        else:
            theirs = f"{path[0]}/layer_{path[1]}/{_CT2['.'.join(path[2:])]}/{part}"
        tensors[theirs] = value

    def text(value):
        raw = value.encode() + b"\0"
        return struct.pack("<H", len(raw)) + raw

    kinds = {"float32": 0, "int8": 1, "int16": 2, "float16": 4}
    out = [struct.pack("<I", version), text(spec), struct.pack("<II", 3, len(tensors))]
    for name, value in tensors.items():
        out += [text(name), struct.pack(f"<B{value.ndim}I", value.ndim, *value.shape),
                struct.pack("<BI", kinds[value.dtype.name], value.nbytes), value.tobytes()]
    out += [struct.pack("<I", 1), text("decoder/projection/weight"),
            text("decoder/embeddings/weight")]
    return b"".join(out)


def save_ctranslate2(model: EncoderDecoderModel, folder, dtype=np.float32) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "model.bin").write_bytes(ctranslate2_bytes(model, dtype))
    (folder / "tokenizer.json").write_text(tokenizer_json())
    (folder / "config.json").write_text(json.dumps({"suppress_ids": [3, 5],
                                                    "suppress_ids_begin": [7]}))
