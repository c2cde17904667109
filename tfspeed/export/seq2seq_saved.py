"""What a SavedModel of an encoder–decoder has beside a decoder's signatures: see `saved_model`.

`encode(frames)`, of log-mel frames `[batch, frames, mels]`, or `encode(source)`, of tokens padded
on the right with -1, gives `cross_k_0`, `cross_v_0`, … and `source_bias`. These go into `prefill`
and `decode` by the same names, beside the state, and are not given back. What a model never says
(Whisper's own special tokens) has no chance in their logits. `serving_default` takes a source and
tokens. `assets.extra/tfspeed.json` says how to begin, and how to end.
"""

import json
from pathlib import Path

import keras
import tensorflow as tf

from tfspeed.export import seq2seq
from tfspeed.litert.seq2seq import BIAS, cross_names

EXTRA = Path("assets.extra", "tfspeed.json")  # where TensorFlow Serving leaves files alone


def source_spec(config) -> dict[str, tf.TensorSpec]:
    if config.source == "audio":
        return {"frames": tf.TensorSpec([None, config.source_frames, config.mels], name="frames")}
    return {"source": tf.TensorSpec([None, None], tf.int32, name="source")}


def encoding(model):
    """The signature `encode`, and the specs of what it gives, by name."""
    given = source_spec(model.config)

    @tf.function
    def encode(**source):
        return named(model.config, model.encode(*source.values()))

    traced = encode.get_concrete_function(**given)
    return traced, {name: tf.TensorSpec(tensor.shape, tensor.dtype, name=name)
                    for name, tensor in traced.structured_outputs.items()}


def named(config, encoded: dict) -> dict:
    return dict(zip(cross_names(config), keras.tree.flatten(encoded["cross"]), strict=True)) | {
        BIAS: encoded["bias"]}


def nested(config, parts: dict) -> dict:
    """As `EncoderDecoder.encode` gives it."""
    names = iter(cross_names(config))
    return {"cross": [(parts[k], parts[v]) for k, v in zip(names, names, strict=True)],
            "bias": parts[BIAS]}


def describe(folder: Path, model) -> None:
    """Writes `EXTRA`."""
    path = folder / EXTRA
    path.parent.mkdir(exist_ok=True)
    stop = list(model.tokenizer.eos_ids) if model.tokenizer else []
    described = {"model": model.name, "stop_tokens": stop, **seq2seq.described(model)}
    path.write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")
