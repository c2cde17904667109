"""Trains a model from nothing, many windows in one pass: `tfspeed.training` mends large models,
one window at a time, and compiles by XLA alone, which is slow at loops over time."""

import time
from collections.abc import Callable, Iterator

import numpy as np
import tensorflow as tf

from tfspeed.errors import TfspeedError
from tfspeed.models.language_model import LanguageModel
from tfspeed.training import TrainOptions
from tfspeed.training.adam import Adam
from tfspeed.training.learning import every
from tfspeed.training.loss import loss

_SCHEDULE = 1000  # parts that the budget's share is told in


class Trainer:
    """Steps of Adam on the text alone.

    Args:
        compiled: by XLA, else executed operator by operator.
        learning_rate: its peak.
        rows, length: windows of a step, and their tokens.
    """

    def __init__(self, model: LanguageModel, compiled: bool, learning_rate: float, rows: int,
                 length: int):
        self.model, self.compiled = model, compiled
        self.options = TrainOptions(learning_rate=learning_rate)
        self.variables = [v._value for v in every(model.keras_model)]
        self._adam, self._steps = Adam(self.variables), 0
        # Concrete functions: TensorFlow warns of many traces, which many models are bound to make.
        self._gradients = tf.function(self._one_pass, jit_compile=compiled).get_concrete_function(
            tf.TensorSpec((rows, length), tf.int32))
        scalar = tf.TensorSpec((), tf.float32)
        self._apply = tf.function(self._applied).get_concrete_function(
            [tf.TensorSpec(v.shape, tf.float32) for v in self.variables], scalar, scalar)

    def _one_pass(self, tokens):
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(self.variables)
            value = loss(self.model.score(tokens), None, tokens, self.options)
        # A table's gradient comes as rows: made dense.
        return value, [tf.convert_to_tensor(g) for g in tape.gradient(value, self.variables)]

    def _applied(self, gradients, rate, step):
        clipped, _ = tf.clip_by_global_norm(gradients, self.options.clip)
        self._adam.apply(clipped, rate, step)

    def warm_up(self, tokens: np.ndarray) -> None:
        """Compiles, and learns nothing."""
        float(self._gradients(tf.constant(tokens))[0])

    def step(self, tokens: np.ndarray, share: float) -> tuple[float, float]:
        """One step; gives the loss before it, and seconds.

        Args:
            tokens: int32 `[windows, length]`.
            share: of the budget that is spent, 0 to 1: the rate follows it.
        """
        start = time.perf_counter()
        self._steps += 1
        value, gradients = self._gradients(tf.constant(tokens))
        rate = self.options.rate(min(int(share * _SCHEDULE), _SCHEDULE - 1), _SCHEDULE)
        self._apply(*gradients, tf.constant(rate, tf.float32), tf.constant(float(self._steps)))
        value = float(value)
        if not np.isfinite(value):
            raise TfspeedError("The loss is no longer finite.", model=self.model.name,
                               step=self._steps, hint="Give a lower --learning_rate.")
        return value, time.perf_counter() - start


def windows(text: bytes, rows: int, length: int, seed: int = 0) -> Iterator[np.ndarray]:
    """int32 `[rows, length]` for ever: stretches that begin anywhere in the text."""
    ids, random = np.frombuffer(text, np.uint8).astype(np.int32), np.random.default_rng(seed)
    while True:
        starts = random.integers(0, len(ids) - length + 1, rows)
        yield ids[starts[:, None] + np.arange(length)]


def learn(trainer: Trainer, batches: Iterator[np.ndarray], seconds: float, tokens: int,
          advance: Callable[[str], None] = lambda now: None) -> dict:
    """Trains until the budget is spent.

    Args:
        seconds: the budget in time, of the steps alone; 0: none.
        tokens: the budget in tokens, where `seconds` is 0.

    Returns:
        `trained_tokens`, `trained_s`, and `losses`, the loss of each step.
    """
    spent, read, losses = 0.0, 0, []
    while (share := spent / seconds if seconds else read / tokens) < 1:
        batch = next(batches)
        value, taken = trainer.step(batch, share)
        spent, read = spent + taken, read + batch.size
        losses.append(value)
        advance(f"training {trainer.model.name}: loss {value:.3f}, {batch.size / taken:.0f} "
                "tokens/s")
    return {"trained_tokens": read, "trained_s": spent, "losses": losses}
