"""Where the tensors of a `Decoder` stand in Hugging Face's checkpoints, family by family.

Names and shapes: transformers' modeling_*.py. The table is read both ways: by the loader, and
by the writer for the families whose layers stand apart there (`WRITABLE`).
"""

import dataclasses
import re
from collections.abc import Iterable, Iterator

import numpy as np

from tfspeed.errors import TfspeedError
from tfspeed.models.config import DecoderConfig

_LLAMA = {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm",
          "query": "self_attn.q_proj", "key": "self_attn.k_proj", "value": "self_attn.v_proj",
          "out": "self_attn.o_proj", "gate": "mlp.gate_proj", "up": "mlp.up_proj",
          "down": "mlp.down_proj", "query_norm": "self_attn.q_norm",
          "key_norm": "self_attn.k_norm"}
_GEMMA2 = _LLAMA | {"attention_post_norm": "post_attention_layernorm",
                    "mlp_norm": "pre_feedforward_layernorm",
                    "mlp_post_norm": "post_feedforward_layernorm"}
_NEOX = {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm",
         "query_key_value": "attention.query_key_value", "out": "attention.dense",
         "up": "mlp.dense_h_to_4h", "down": "mlp.dense_4h_to_h"}
_FALCON = _NEOX | {"query_key_value": "self_attention.query_key_value",
                   "out": "self_attention.dense"}
_FALCON_TWO_NORMS = _FALCON | {"attention_norm": "ln_attn", "mlp_norm": "ln_mlp"}


@dataclasses.dataclass(frozen=True)
class _Layout:
    """One family's names. `prefixes`: what may stand in front of all of them but the head's."""

    blocks: dict[str, str]
    prefixes: tuple[str, ...] = ("model.", "")
    embedding: str = "embed_tokens"
    positions: str = ""
    positions_offset: int = 0  # rows of the position table that no token uses
    layer: str = "layers"
    final_norm: str = "norm"
    head: str = "lm_head"
    linear: str = "transpose"  # "same" for GPT-2, whose Conv1D is [in, out]
    fused: str = "transpose"  # "grouped" where query, key and value alternate
    norm: str = "same"  # "plus_one" for Gemma's


_GEMMA_LIKE = _Layout(_GEMMA2, norm="plus_one")
_LAYOUTS = {
    **dict.fromkeys(("llama", "smollm3", "mistral", "qwen2", "qwen3"), _Layout(_LLAMA)),
    "gemma": _Layout(_LLAMA, norm="plus_one"),
    "gemma2": _GEMMA_LIKE,
    "gemma3": dataclasses.replace(_GEMMA_LIKE, prefixes=(
        "model.", "", "model.language_model.", "language_model.model.")),
    "phi3": _Layout({**_LLAMA, "query_key_value": "self_attn.qkv_proj",
                     "gate_up": "mlp.gate_up_proj"}),
    "gpt2": _Layout({"attention_norm": "ln_1", "mlp_norm": "ln_2", "query_key_value": "attn.c_attn",
                     "out": "attn.c_proj", "up": "mlp.c_fc", "down": "mlp.c_proj"},
                    ("transformer.", ""), "wte", "wpe", layer="h", final_norm="ln_f",
                    linear="same", fused="same"),
    "gptneox": _Layout(_NEOX, ("gpt_neox.", ""), "embed_in", final_norm="final_layer_norm",
                       head="embed_out", fused="grouped"),
    "opt": _Layout({"attention_norm": "self_attn_layer_norm", "mlp_norm": "final_layer_norm",
                    "query": "self_attn.q_proj", "key": "self_attn.k_proj",
                    "value": "self_attn.v_proj", "out": "self_attn.out_proj", "up": "fc1",
                    "down": "fc2"},
                   ("model.decoder.", "decoder.", "model.", ""), positions="embed_positions",
                   positions_offset=2, final_norm="final_layer_norm"),
    "falcon": _Layout(_FALCON, ("transformer.", ""), "word_embeddings", layer="h",
                      final_norm="ln_f", fused="grouped"),
}
WRITABLE = tuple(name for name, layout in _LAYOUTS.items() if "gate" in layout.blocks
                 and "gate_up" not in layout.blocks)

# Buffers that old versions saved: RoPE's frequencies, the causal mask and its value.
_BUFFERS = re.compile(r"(rotary_emb\.inv_freq|\battn\.(masked_)?bias|\battention\.(masked_)?bias)$")
_VISION = re.compile(r"(model\.)?(vision_tower|multi_modal_projector)\.")


@dataclasses.dataclass(frozen=True)
class Entry:
    """One tensor: our name (checkpoint.py), theirs without the prefix, their shape, and how the
    one becomes the other (`from_hf`)."""

    target: str
    source: str
    shape: tuple[int, ...]
    how: str


def entries(config: DecoderConfig) -> Iterator[Entry]:
    """Every tensor that a checkpoint of this config must hold, the head last."""
    layout = _layout(config)
    c, hidden = config, config.hidden_dim
    heads, kv_heads = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
    names = layout.blocks
    if c.family == "falcon" and c.parallel_residual and not c.shared_norm:
        names = _FALCON_TWO_NORMS

    def linear(target, source, outputs, inputs, bias, how=layout.linear):
        shape = (inputs, outputs) if how == "same" else (outputs, inputs)
        yield Entry(f"{target}.kernel", f"{source}.weight", shape, how)
        if bias:
            yield Entry(f"{target}.bias", f"{source}.bias", (outputs,),
                        "grouped" if how == "grouped" else "same")

    def norm(target, source, size=hidden, kind=c.norm):
        yield Entry(f"{target}.scale", f"{source}.weight", (size,), layout.norm)
        if kind == "layer":
            yield Entry(f"{target}.bias", f"{source}.bias", (size,), "same")

    yield Entry("embedding.weight", f"{layout.embedding}.weight", (c.vocabulary_size, hidden),
                "same")
    if c.positions == "learned":
        yield Entry("position_embedding.weight", f"{layout.positions}.weight",
                    (c.context_length + layout.positions_offset, hidden),
                    "skip_two" if layout.positions_offset else "same")
    norms = ["attention_norm"] + ["mlp_norm"] * (not c.shared_norm)
    norms += ["attention_post_norm", "mlp_post_norm"] * c.post_norms
    for i in range(c.num_layers):
        at, their = f"blocks.{i}.", f"{layout.layer}.{i}."
        for name in norms:
            yield from norm(at + name, their + names[name])
        if "query_key_value" in names:
            yield from linear(at + "query_key_value", their + names["query_key_value"], c.qkv_dim,
                              hidden, c.qkv_bias, layout.fused)
        else:
            for name, width in (("query", heads), ("key", kv_heads), ("value", kv_heads)):
                yield from linear(at + name, their + names[name], width, hidden, c.qkv_bias)
        if c.qk_norm:
            for name in ("query_norm", "key_norm"):
                yield from norm(at + name, their + names[name], c.head_dim, "rms")
        yield from linear(at + "out", their + names["out"], hidden, heads, c.attention_out_bias)
        if "gate_up" in names:
            yield from linear(at + "gate_up", their + names["gate_up"], 2 * c.mlp_dim, hidden,
                              c.mlp_bias)
        else:
            for name in ("gate", "up") if c.gated_mlp else ("up",):
                yield from linear(at + name, their + names[name], c.mlp_dim, hidden, c.mlp_bias)
        yield from linear(at + "down", their + names["down"], hidden, c.mlp_dim, c.mlp_bias)
    yield from norm("final_norm", layout.final_norm)
    if not c.tied_embeddings:
        yield from linear("head", layout.head, c.vocabulary_size, hidden, c.head_bias, "transpose")


def prefix_of(config: DecoderConfig, names: Iterable[str]) -> str:
    """What stands in front of the names in this checkpoint (no `names`: in a new one)."""
    layout, names = _layout(config), set(names)
    found = [p for p in layout.prefixes if f"{p}{layout.embedding}.weight" in names]
    return found[0] if found else layout.prefixes[0]


def ignorable(name: str, config: DecoderConfig) -> bool:
    """Whether a tensor that no entry names carries nothing that the decoder would need."""
    tied_head = f"{_layout(config).head}.weight"
    return bool(_BUFFERS.search(name) or (config.family == "gemma3" and _VISION.match(name))
                or (config.tied_embeddings and (name == tied_head
                                                or name.endswith("." + tied_head))))


def from_hf(array: np.ndarray, how: str, config: DecoderConfig) -> np.ndarray:
    if how == "transpose":
        return array.T
    if how == "plus_one":
        return array.astype(np.float32) + np.float32(1)
    if how == "skip_two":
        return array[2:]
    if how == "grouped":
        # [kv_heads, queries of the group + key + value, head_dim, ...]: each key head follows
        # its own queries. GPT-NeoX and all three layouts of Falcon.
        rows = array.reshape(config.num_kv_heads, -1, config.head_dim, *array.shape[1:])
        parts = [rows[:, :-2], rows[:, -2:-1], rows[:, -1:]]
        return np.concatenate([p.reshape(-1, *array.shape[1:]) for p in parts]).T
    return array


def to_hf(array: np.ndarray, how: str) -> np.ndarray:
    """The way back, for `WRITABLE` families."""
    if how == "plus_one":
        return (array.astype(np.float32) - np.float32(1)).astype(array.dtype)
    return np.ascontiguousarray(array.T if how == "transpose" else array)


def _layout(config: DecoderConfig) -> _Layout:
    if config.family not in _LAYOUTS:
        raise TfspeedError("Hugging Face's layout of this family is not known.",
                           family=config.family, hint=f"Known: {', '.join(_LAYOUTS)}.")
    return _LAYOUTS[config.family]
