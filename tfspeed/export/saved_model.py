"""A language model as a SavedModel that needs no tfspeed: TensorFlow Serving's form.

Signatures, all by name: `initial_state(batch)` gives an empty state; `prefill(tokens, lengths,
state…)` reads rows padded on the left; `decode(tokens, state…)` reads one token a row; both give
`logits` and the new state under the names that they took it by. `serving_default(tokens)` gives
the logits of every token. Nothing is kept between two calls: the state travels with each.
An encoder–decoder has `encode` as well: see `seq2seq_saved`.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import keras
import tensorflow as tf
from tensorflow.python.framework.ops import gradient_registry

from tfspeed.errors import TfspeedError
from tfspeed.export import seq2seq_saved
from tfspeed.models.decoder_model import DecoderModel
from tfspeed.models.encoder_decoder_model import EncoderDecoderModel
from tfspeed.models.language_model import LanguageModel
from tfspeed.models.recurrent import RecurrentModel

_PREFILL, _SCORED = 128, 256  # lengths for models that cannot be traced without one


@contextlib.contextmanager
def no_gradients() -> Iterator[None]:
    """Lets go of the gradients of what is traced inside the block.

    TensorFlow registers one for every `silu` that it traces, for good, and with it the whole
    graph: 9 MB for a tiny model. There is no public way to take one back (TensorFlow is pinned).
    """
    registered = gradient_registry._registry
    before = set(registered)
    try:
        yield
    finally:
        for name in set(registered) - before:
            if name.startswith("CustomGradient-"):
                del registered[name]


def write(folder: Path, model: LanguageModel, context: int) -> None:
    """Writes the folder; texts may have up to `context` tokens."""
    if not model.pads:
        raise TfspeedError("A SavedModel's prefill takes padded rows, and this model takes none.",
                           model=model.name, type=type(model.keras_model).__name__)
    module = tf.Module()  # plain variables: nothing of Keras is saved with them
    module.weights = [variable.value for variable in model.keras_model.weights]
    # Gradients are of no use here, and every load would keep their graphs for good.
    options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
    tf.saved_model.save(module, str(folder), _signatures(model, context), options)
    if model.reads_source:
        seq2seq_saved.describe(folder, model)


def _signatures(model: LanguageModel, context: int) -> dict:
    structure, specs = _state(model, 1, context)
    free = _free_rows(specs, _state(model, 2, context)[1])

    encode, encoded, source = None, {}, {}
    if model.reads_source:
        encode, encoded = seq2seq_saved.encoding(model)
        source = seq2seq_saved.source_spec(model.config)

    def after(parts):
        """The model, after what was encoded where it reads a source."""
        return model.given(seq2seq_saved.nested(model.config, parts)) if encoded else model

    def packed(parts):
        return keras.tree.pack_sequence_as(structure, [parts[name] for name in specs])

    def named(state):
        return dict(zip(specs, keras.tree.flatten(state), strict=True))

    @tf.function
    def initial_state(batch):
        return named(model.initial_state(batch, context))

    @tf.function
    def prefill(tokens, lengths, **parts):
        logits, state = after(parts).prefill(tokens, lengths, packed(parts))
        return {"logits": logits, **named(state)}

    @tf.function
    def decode(tokens, **parts):
        logits, state = after(parts).step(tokens, packed(parts))
        return {"logits": logits, **named(state)}

    @tf.function
    def serving_default(tokens, **source):
        heard = model.given(model.encode(*source.values())) if source else model
        return {"logits": heard.score(tokens)}

    any_length = isinstance(model, DecoderModel | EncoderDecoderModel)
    width = None if any_length else min(_PREFILL, context)
    scored = None
    if not (any_length or isinstance(model, RecurrentModel)):
        scored = min(_SCORED, model.context_length)
    row, free = tf.TensorSpec([None], tf.int32), free | encoded
    return ({"encode": encode} if encoded else {}) | {
        "initial_state": initial_state.get_concrete_function(
            batch=tf.TensorSpec([], tf.int32)),
        "prefill": prefill.get_concrete_function(
            tokens=tf.TensorSpec([None, width], tf.int32), lengths=row, **free),
        "decode": decode.get_concrete_function(tokens=row, **free),
        "serving_default": serving_default.get_concrete_function(
            tokens=tf.TensorSpec([None, scored], tf.int32), **source)}


def _state(model: LanguageModel, batch: int, context: int):
    """The nest of an empty state, and shape and type of each tensor by its name, in order."""
    traced = tf.function(lambda: model.initial_state(batch, context)).get_concrete_function()
    structure = traced.structured_outputs
    return structure, {_name(path): tf.TensorSpec(leaf.shape, leaf.dtype)
                       for path, leaf in keras.tree.flatten_with_path(structure)}


def _free_rows(one: dict, two: dict) -> dict[str, tf.TensorSpec]:
    """The specs with the axis free along which a state of one row and one of two differ."""
    return {name: tf.TensorSpec([a if a == b else None for a, b in zip(
                spec.shape, two[name].shape, strict=True)], spec.dtype, name=name)
            for name, spec in one.items()}


def _name(path) -> str:
    """`kv_cache_k_0` as in `.tflite` files, else `state_` and the way to the tensor."""
    if path[0] == "caches" and len(path) == 3:
        return f"kv_cache_{'kv'[path[2]]}_{path[1]}"
    return "_".join(map(str, ("state", *path)))
