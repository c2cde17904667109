"""The one interface of every sequence model: prefill and step as pure functions of a state."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfspeed.errors import TfspeedError

State = Any  # a nest of tensors: KV caches, or the state of a recurrent layer


class Placement:
    """Where the functions of a model run. This one: on one device, called directly.

    A distribution strategy puts another in its place, which shards the rows of a batch over
    replicas (`shard`), runs a function on all of them (`run`) and puts the rows of the results
    back in order (`gather`). One whose `engine` is not None shares out whole generations, over
    processes: `engine(made)` wraps an engine that knows nothing of it, made for `inside()`.

    Attributes:
        devices: those it runs on; () where nothing is distributed.
        row_shares: how many parts the rows of a batch are split into; 1: all devices see all rows.
        exchanges: whether its devices exchange values inside a pass. Then neither XLA nor a
            tf.function of one replica can hold a pass; the model has `in_compiled_pieces`.
        engines: kinds of engines that can run a model which is spread so; (): all.
    """

    devices: tuple[str, ...] = ()
    row_shares = 1
    exchanges = False
    engines: tuple[str, ...] = ()
    engine = None

    def inside(self) -> "Placement":
        """Where each of the engines runs that `engine` wraps."""
        return Placement()

    def shard(self, rows: np.ndarray) -> Any:
        """Takes `[batch, ...]` on the host, gives what `run` takes."""
        return tf.convert_to_tensor(rows)

    def run(self, function, *args) -> Any:
        return function(*args)

    def gather(self, value: Any) -> np.ndarray:
        """Takes one result of `run`, gives `[batch, ...]` on the host."""
        return np.asarray(value)

    def agree(self, facts: dict[str, str]) -> None:
        """Raises TfspeedError where another process that takes part has other facts."""

    @property
    def writes(self) -> bool:
        """Whether this process is the one that writes files."""
        return True


class LanguageModel:
    """A Keras 3 model that continues sequences of tokens.

    Attributes:
        name: what a report calls it.
        keras_model: the Keras model whose variables hold the weights.
        vocabulary_size, context_length: counts of tokens.
        tokenizer: a `Tokenizer`, or None (then prompts are token ids only).
        placement: where its functions run.
        speculation: how drafts are made while it generates, a `Speculation`; None: not at all.
        notes: what a report must say about it, one sentence each.
        source: the file or folder that it came from, or None.
        reload: loads it once more as it was, in float32, whatever strategies have done to it;
            None where it was made in memory.
        made_up: whether its weights mean nothing (a model that is only timed): packed engines round
            them without calibration.
        pads: whether `prefill` takes rows padded on the left; if not, the prompts of a batch
            must have one length.
        reads_source: whether it has an encoder, which reads a source first: `encode` makes of it
            what `given` takes (see `EncoderDecoderModel`).
    """

    pads = True
    reads_source = False
    made_up = False
    reload = None
    speculation = None

    def __init__(self, name: str, keras_model: keras.Model, vocabulary_size: int,
                 context_length: int, tokenizer=None, source=None, notes=()):
        self.name = name
        self.keras_model = keras_model
        self.vocabulary_size = vocabulary_size
        self.context_length = context_length
        self.tokenizer = tokenizer
        self.source = source
        self.notes = list(notes)
        self.placement = Placement()

    def initial_state(self, batch: int, capacity: int) -> State:
        """An empty state for `batch` rows and up to `capacity` tokens each."""
        raise NotImplementedError

    def prefill(self, tokens, lengths, state: State):
        """Reads a prompt into the state.

        Args:
            tokens: int32 `[batch, length]`, each row padded on the left.
            lengths: int32 `[batch]`, how many of a row's last tokens are real.
            state: what `initial_state`, `prefill` or `step` returned.

        Returns:
            float32 logits of the token after the last, `[batch, vocabulary]`, and the new state.
        """
        raise NotImplementedError

    def step(self, tokens, state: State):
        """Reads one token a row, int32 `[batch]`. Returns as `prefill` does."""
        return self.prefill(tokens[:, None], tf.ones_like(tokens), state)

    def score(self, tokens):
        """float32 logits after each token, `[batch, length, vocabulary]`, of int32 `[batch,
        length]` without padding. Used for quality, so it takes no cache and no shortcut."""
        raise NotImplementedError

    def step_bytes(self, batch: int, context: int) -> int:
        """Bytes that one decode step must read: each weight once, and the state of `context`
        tokens. Rows of an embedding that is only looked up are not counted."""
        raise NotImplementedError

    @property
    def parameters(self) -> int:
        layers = self.keras_model._flatten_layers()
        return (sum(int(np.prod(v.shape)) for v in self.keras_model.weights)
                + sum(getattr(layer, "uncounted_parameters", 0) for layer in layers))

    @property
    def weights_bytes(self) -> int:
        return sum(variable_bytes(v) for v in self.keras_model.weights)

    @property
    def dtype(self) -> str:
        """Type of the weights: that of most bytes; four bits are kept two to a uint8."""
        sizes: dict[str, int] = {}
        for v in self.keras_model.weights:
            name = keras.backend.standardize_dtype(v.dtype)
            sizes[name] = sizes.get(name, 0) + variable_bytes(v)
        name = max(sizes, key=sizes.get) if sizes else "float32"
        return "int4" if name == "uint8" else name


def variable_bytes(variable) -> int:
    itemsize = tf.as_dtype(keras.backend.standardize_dtype(variable.dtype)).size
    return int(np.prod(variable.shape)) * itemsize


def check_fits(model: LanguageModel, prompt_tokens: int, new_tokens: int) -> None:
    """Refuses a request that the model's context cannot hold."""
    if prompt_tokens < 1:
        raise TfspeedError("A prompt needs at least one token.", prompt_tokens=prompt_tokens)
    if new_tokens < 1:
        raise TfspeedError("At least one new token must be asked for.", new_tokens=new_tokens)
    if prompt_tokens + new_tokens > model.context_length:
        raise TfspeedError(
            f"The prompt and the new tokens must fit in the context of {model.name}, "
            f"{model.context_length} tokens.",
            prompt_tokens=prompt_tokens, new_tokens=new_tokens,
            hint="Shorten the prompt or ask for fewer tokens.")
