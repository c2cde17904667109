"""The training loop: gradients on every replica, added up, one step of Adam."""

import dataclasses
import math
import time
from collections.abc import Callable, Sequence

import keras
import numpy as np
import tensorflow as tf

from tfspeed.compression import copying
from tfspeed.compression.sources import Sources
from tfspeed.devices import per_replica
from tfspeed.digest import digest
from tfspeed.errors import TfspeedError
from tfspeed.interrupt import deferred_interrupt
from tfspeed.measure.progress import Progress
from tfspeed.models.language_model import LanguageModel
from tfspeed.training.adam import Adam
from tfspeed.training.checkpoint import Checkpoint
from tfspeed.training.learning import every, small
from tfspeed.training.lora import Adapted
from tfspeed.training.loss import loss
from tfspeed.training.options import TrainOptions


def train(student: LanguageModel, teacher: LanguageModel | None, tokens: np.ndarray,
          options: TrainOptions, on_step: Callable[[int], None] | None = None,
          sources: Sources | None = None, held: Sequence[int] = ()) -> dict:
    """Trains the student in place: its variables must not be shared with the teacher's, or be
    those of a `copied` model, which get memory of their own here.

    Runs on all replicas of the student's placement, or of the current `tf.distribute` strategy.
    Ctrl-C is taken after the step that it falls into, once the checkpoint is written.

    Args:
        teacher: the original; None: cross-entropy on the text alone.
        tokens: int32 `[windows, length]`.
        on_step: called with 1, 2, … after each step of the optimizer.
        sources: what each window is read after, for a model with an encoder, which learns as well.
        held: numbers of windows that are not learned from, but judged by.

    Returns:
        `loss_first`, `loss_last` (means over a tenth of the steps), `losses` (of each step),
        `held_first`, `held_last` (on `held`, before the first and after the last step; None),
        `tokens` and `seconds` (of this call: less where it went on from a checkpoint), `steps`,
        `trained` (how many weights learned).

    Raises:
        TfspeedError: nothing can be trained, the text is none, the checkpoint is another run's,
            or the loss is not finite (the student then has its last good weights).
    """
    tokens = _windows(tokens, student)
    if on_step is not None and options.trainable == "lora":
        raise TfspeedError("Masks are applied to weights, and trainable=lora does not train them.",
                           hint="Use trainable=full.")
    strategy = getattr(student.placement, "strategy", None) or tf.distribute.get_strategy()
    with strategy.scope():
        run = _Run(strategy, student, teacher, tokens, options, sources, held)
        try:
            run.all_steps(on_step)
            run.held_last = run.judged()
        finally:
            run.finish()
    return run.result()


def _windows(tokens, student) -> np.ndarray:
    tokens = np.asarray(tokens, np.int32)
    if tokens.ndim != 2 or tokens.shape[0] < 1 or not 2 <= tokens.shape[1] <= \
            student.context_length:
        raise TfspeedError("Training reads windows of at least two tokens that fit in the "
                           "context.", shape=tokens.shape, context=student.context_length)
    return tokens


def batches(count: int, length: int, options: TrainOptions) -> list[np.ndarray]:
    """Which windows each step reads: all of them in a new order each time round, until the budget
    is spent. The last step may have fewer."""
    total = max(1, options.tokens // length)
    random = np.random.default_rng(options.seed)
    order = np.concatenate([random.permutation(count) for _ in range(-(-total // count))])[:total]
    return [order[i:i + options.batch] for i in range(0, total, options.batch)]


class _Run:
    """The state of one call of `train`."""

    def __init__(self, strategy, student, teacher, tokens, options: TrainOptions, sources, held):
        self.strategy, self.teacher, self.tokens, self.options = strategy, teacher, tokens, options
        self.sources, self.held = sources, np.asarray(held, int)
        learned = np.setdiff1d(np.arange(len(tokens)), self.held)
        self.batches = [learned[b] for b in batches(len(learned), tokens.shape[1], options)]
        self.placement = student.placement
        learning = every(student.keras_model)
        if not learning:
            raise TfspeedError("The model has no float32 weights that could be trained.",
                               model=student.name, dtype=student.dtype)
        self.checkpoint = None
        if options.checkpoint:
            self.checkpoint = Checkpoint(options.checkpoint, self._identity(student))
        self.adapted = None
        if options.trainable == "lora":
            learning = small(student.keras_model)
        for variable in learning:
            copying.renew(variable, variable.value)
        self.model = student
        if options.trainable == "lora":
            self.adapted = Adapted(student, options.rank, options.seed)
            self.model = self.adapted.model
            learning = learning + self.adapted.variables
        self.variables = [v._value for v in learning]
        self.adam = Adam(self.variables)
        self.trained = sum(int(np.prod(v.shape)) for v in self.variables)
        self.step, self.losses, self.done_tokens, self.seconds = 0, [], 0, 0.0
        self._compile()
        self.held_first, self.held_last = self.judged(), None
        self._resume()

    def _identity(self, student) -> dict[str, str]:
        options = dataclasses.asdict(self.options)
        for name in ("checkpoint", "checkpoint_seconds"):
            options.pop(name)
        options["learning_rate"] = self.options.peak
        teacher = self.teacher.keras_model.weights if self.teacher else []
        read = [self.tokens, self.held]
        if self.sources is not None:
            read += [self.sources.distinct, self.sources.of]
        return {"student": digest(map(_numpy, student.keras_model.weights)),
                "teacher": digest(map(_numpy, teacher)), "text": digest(read),
                **{name: repr(value) for name, value in options.items()}}

    def _compile(self) -> None:
        gradients = tf.function(self._gradients, jit_compile=True)

        def added(shares, *windows):
            """A replica's windows one after the other: one window's logits at a time."""
            total = None
            for i in range(shares.shape[0]):
                with tf.control_dependencies(total or []):
                    parts = gradients(shares[i], *(part[i:i + 1] for part in windows))
                total = parts if total is None else [a + b for a, b in zip(total, parts,
                                                                           strict=True)]
            context = tf.distribute.get_replica_context()
            if context.num_replicas_in_sync > 1:
                total = context.all_reduce(tf.distribute.ReduceOp.SUM, total)
            return total[0], tf.linalg.global_norm(total[1:]), total[1:]

        def applied(gradients, norm, rate, step):
            scale = tf.minimum(1.0, self.options.clip / (norm + 1e-12))
            self.adam.apply([g * scale for g in gradients], rate, step)

        self._added = tf.function(lambda *args: self.strategy.run(added, args=args))
        self._applied = tf.function(lambda *args: self.strategy.run(applied, args=args))

    def _gradients(self, share, tokens, source=None):
        """Loss and gradients of one window, times its share of the step's mean."""
        teacher_logits = None if self.teacher is None else _score(self.teacher, tokens, source)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(self.variables)
            value = share * loss(_score(self.model, tokens, source), teacher_logits, tokens,
                                 self.options)
        gradients = tape.gradient(value, self.variables,
                                  unconnected_gradients=tf.UnconnectedGradients.ZERO)
        return [value, *map(tf.convert_to_tensor, gradients)]  # rows of a table: made dense

    def judged(self) -> float | None:
        """The loss on what is held out, of all replicas; by the function that also makes
        gradients, as another one would take longer to compile."""
        if not len(self.held):
            return None
        value, _, _ = self._added(*self._shards(self.held))
        return float(self.strategy.experimental_local_results(value)[0])

    def _resume(self) -> None:
        saved = self.checkpoint.read() if self.checkpoint else None
        # Every worker reads it: they must have seen the same.
        self.placement.agree({"checkpoint's step": str(saved[0] if saved else None)})
        if saved is None:
            return
        self.step, self.losses, arrays = saved
        for variable, array in zip(self._saved(), arrays, strict=False):
            variable.assign(array)

    def _saved(self) -> list:
        """What is kept: a finished run needs no slots."""
        return self.variables + (self.adam.slots if self.step < len(self.batches) else [])

    def save(self) -> None:
        if self.checkpoint and self.placement.writes:
            self.checkpoint.write(self.step, self.losses, [_numpy(v) for v in self._saved()])

    def all_steps(self, on_step) -> None:
        bar, steps, saved = Progress(), len(self.batches), time.monotonic()
        with (bar.task("training", steps) as advance, deferred_interrupt() as interrupted):
            for _ in range(self.step):
                advance()
            while self.step < steps:
                began = time.monotonic()
                self._one_step(steps)
                if on_step is not None:
                    on_step(self.step)
                taken = time.monotonic() - began
                self.seconds += taken
                if interrupted():
                    self.save()
                    raise KeyboardInterrupt
                if self.step < steps and time.monotonic() - saved >= \
                        self.options.checkpoint_seconds:
                    self.save()
                    saved = time.monotonic()
                speed = len(self.batches[self.step - 1]) * self.tokens.shape[1] / taken
                advance(f"training: loss {self.losses[-1]:.4f}, {speed:.0f} tokens/s")
                if len(self.losses) == 2 and (left := (steps - 2) * taken) > 60:
                    bar.say(f"Training {steps} steps will take about {left / 60:.1f} minutes.")
        self.save()

    def _one_step(self, steps: int) -> None:
        chosen = self.batches[self.step]
        value, norm, gradients = self._added(*self._shards(chosen))
        local = self.strategy.experimental_local_results
        seen = float(local(value)[0]), float(local(norm)[0])
        if not all(map(math.isfinite, seen)):
            self.save()
            raise TfspeedError(
                "The loss is no longer finite: training has stopped at its last good weights.",
                step=self.step + 1, loss=seen[0], gradient_norm=seen[1],
                hint="Give a lower learning rate." + (
                    f" The weights are in {self.checkpoint.path}." if self.checkpoint else ""))
        rate = tf.constant(self.options.rate(self.step, steps), tf.float32)
        self._applied(gradients, norm, rate, tf.constant(self.step + 1.0))
        self.step += 1
        self.losses.append(seen[0])
        self.done_tokens += len(chosen) * self.tokens.shape[1]

    def _shards(self, chosen: np.ndarray):
        """Windows' shares `[n]`, tokens `[n, length]` and sources `[n, …]`, where there are such,
        for each replica, as many for all: what fills up counts nothing."""
        count = self.strategy.num_replicas_in_sync
        each = -(-len(chosen) // count)
        filled = np.resize(chosen, each * count)
        shares = np.where(np.arange(each * count) < len(chosen), 1 / len(chosen), 0)
        parts = [shares.astype(np.float32), self.tokens[filled]]
        if self.sources is not None:
            parts.append(self.sources.rows(filled))
        return tuple(per_replica(self.strategy, np.split(values, count)) for values in parts)

    def finish(self) -> None:
        """Also after an error: the student has what was learned."""
        if self.adapted:
            self.adapted.merge()

    def result(self) -> dict:
        some = max(1, len(self.losses) // 10)
        return {"loss_first": float(np.mean(self.losses[:some])),
                "loss_last": float(np.mean(self.losses[-some:])), "losses": self.losses,
                "held_first": self.held_first, "held_last": self.held_last,
                "tokens": self.done_tokens, "seconds": self.seconds, "steps": self.step,
                "trained": self.trained}


def _score(model: LanguageModel, tokens, source):
    """float32 logits `[batch, length, vocabulary]`, after a source where there is one."""
    after = model if source is None else model.given(model.encode(source))
    return after.score(tokens)


def _numpy(variable) -> np.ndarray:
    return np.asarray(keras.ops.convert_to_numpy(variable))

