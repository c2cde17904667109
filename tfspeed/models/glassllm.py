"""The tiny real model of the PyPI package glassllm: 0.85M parameters, Llama-shaped, MIT."""

import json
from pathlib import Path

import numpy as np

from tfspeed.errors import TfspeedError
from tfspeed.models.checkpoint import Checkpoint
from tfspeed.models.config import DecoderConfig, RopeConfig
from tfspeed.models.tokenizer_glassllm import tokenizer_from_glassllm

_NAMES = {"norm1.gamma": "attention_norm.scale", "attn.W_Q": "query.kernel",
          "attn.W_K": "key.kernel", "attn.W_V": "value.kernel", "attn.W_O": "out.kernel",
          "norm2.gamma": "mlp_norm.scale", "ffn.W1": "gate.kernel", "ffn.W3": "up.kernel",
          "ffn.W2": "down.kernel"}


def load_glassllm(path: str | Path) -> Checkpoint:
    """Reads `en.npz` and the `en.tokenizer.json` beside it."""
    path = Path(path)
    try:
        with np.load(path, allow_pickle=False) as data:
            arrays = {name: data[name] for name in data.files}
        sizes = json.loads(str(arrays.pop("__config__")))
        config = DecoderConfig(
            vocabulary_size=sizes["vocab_size"], num_layers=sizes["n_layers"],
            hidden_dim=sizes["d_model"], num_heads=sizes["n_heads"],
            num_kv_heads=sizes["n_kv_heads"], head_dim=sizes["d_model"] // sizes["n_heads"],
            mlp_dim=arrays["blocks.0.ffn.W1"].shape[1], context_length=sizes["max_len"],
            norm_epsilon=sizes["eps"], rope=RopeConfig(theta=sizes["rope_base"]))
    except (OSError, ValueError, KeyError, IndexError, TypeError, ZeroDivisionError) as error:
        raise TfspeedError("This is not a glassllm weights file.", path=str(path),
                           cause=str(error)[:200]) from error
    tensors = {"embedding.weight": arrays["E"], "final_norm.scale": arrays["norm_f.gamma"]}
    for i in range(config.num_layers):
        for theirs, ours in _NAMES.items():
            array = arrays[f"blocks.{i}.{theirs}"]
            if ours in ("query.kernel", "key.kernel"):
                array = _half_split(array, config.head_dim)
            tensors[f"blocks.{i}.{ours}"] = array
    return Checkpoint(
        config, {name: (lambda a=array: a.astype(np.float32)) for name, array in tensors.items()},
        name="glassllm", source=str(path),
        tokenizer=tokenizer_from_glassllm(path.with_name(f"{path.stem}.tokenizer.json")))


def _half_split(kernel: np.ndarray, head_dim: int) -> np.ndarray:
    """glassllm rotates channels 2i and 2i+1 together; `Decoder` i and i + head_dim / 2."""
    order = np.r_[0:head_dim:2, 1:head_dim:2]
    return kernel.reshape(kernel.shape[0], -1, head_dim)[:, :, order].reshape(kernel.shape)
