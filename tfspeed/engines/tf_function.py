"""The `graph` and `xla` engines: prefill and step as two compiled functions."""

from collections.abc import Iterator, Sequence

import numpy as np
import tensorflow as tf

from tfspeed.engines import sampling as samplers
from tfspeed.engines.sampling import Sampling
from tfspeed.errors import TfspeedError
from tfspeed.models.language_model import LanguageModel, check_fits

_SMALLEST_BUCKET = 16
FINISHED = -1  # what a row yields once it has met a stop token


def bucket(length: int) -> int:
    """The padded size of `length` tokens: a power of two, or one and a half of it.

    Few sizes mean few compilations; at most a third of a prefill is padding.
    """
    size = _SMALLEST_BUCKET
    while size < length:
        if size * 3 // 2 >= length:
            return size * 3 // 2
        size *= 2
    return size


def pad_left(prompts: Sequence[Sequence[int]], length: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of different lengths as int32 `[batch, length]`, with their lengths `[batch]`."""
    tokens = np.zeros((len(prompts), length), np.int32)
    for row, prompt in enumerate(prompts):
        tokens[row, length - len(prompt):] = prompt
    return tokens, np.asarray([len(p) for p in prompts], np.int32)


class TfFunctionEngine:
    """Generates with a `LanguageModel` through tf.function, with or without XLA.

    Both functions choose the next token themselves: a step moves `[batch]` integers to the host,
    not `[batch, vocabulary]` logits. Functions are made once per (capacity, greedy or not); the
    lengths come from `bucket`, so later calls retrace nothing (`traces` counts).
    """

    def __init__(self, model: LanguageModel, jit_compile: bool):
        self.model = model
        self.jit_compile = jit_compile
        self.name = "xla" if jit_compile else "graph"
        self.traces = 0
        self._functions: dict = {}
        self._score = None

    def generate(self, prompts: Sequence[Sequence[int]], new_tokens: int,
                 sampling: Sampling | None = None, stop_tokens: Sequence[int] = (),
                 ) -> Iterator[np.ndarray]:
        """Continues a batch of prompts, token by token.

        Args:
            prompts: token ids, one sequence a row; lengths may differ.
            new_tokens: how many tokens to add at most.
            sampling: greedy where None.
            stop_tokens: a row that yields one of them is finished.

        Yields:
            int32 `[batch]` as soon as they are on the host; -1 in rows that are finished. Ends
            when all rows are.
        """
        sampling = sampling or Sampling()
        prompts = [list(map(int, prompt)) for prompt in prompts]
        self._check(prompts, new_tokens)
        return self._generate(prompts, new_tokens, sampling, np.asarray(stop_tokens, np.int32))

    def score(self, tokens: np.ndarray):
        """float32 logits `[batch, length, vocabulary]` of int32 `[batch, length]`."""
        if self._score is None:
            self._score = tf.function(self.model.score, jit_compile=self.jit_compile)
        return self._score(tf.convert_to_tensor(tokens, tf.int32))

    def _check(self, prompts, new_tokens):
        if not prompts:
            raise TfspeedError("A batch needs at least one prompt.", batch=0)
        if not self.model.pads and len(set(map(len, prompts))) > 1:
            raise TfspeedError(
                f"{self.model.name} cannot pad: the prompts of a batch must have one length.",
                lengths=[len(p) for p in prompts], hint="Send prompts of other lengths apart.")
        for prompt in prompts:
            check_fits(self.model, len(prompt), new_tokens)
            if not all(0 <= t < self.model.vocabulary_size for t in prompt):
                bad = next(t for t in prompt if not 0 <= t < self.model.vocabulary_size)
                raise TfspeedError(
                    f"Token ids must lie in [0, {self.model.vocabulary_size}).", token=bad)

    def _generate(self, prompts, new_tokens, sampling, stop_tokens):
        place = self.model.placement
        length = max(map(len, prompts))
        length = bucket(length) if self.model.pads else length
        prefill, step = self._compiled(bucket(length + new_tokens), sampling.greedy)
        tokens, lengths = pad_left(prompts, length)
        finished = np.zeros(len(prompts), bool)
        tokens, state = prefill(place.shard(tokens), place.shard(lengths),
                                *self._settings(sampling, len(prompts), 0))
        for count in range(1, new_tokens + 1):
            host = place.gather(tokens)[:len(prompts)]
            yield np.where(finished, FINISHED, host)
            finished |= np.isin(host, stop_tokens)
            if count == new_tokens or finished.all():
                return
            tokens, state = step(tokens, state, *self._settings(sampling, len(prompts), count))

    def _settings(self, sampling, batch, count):
        """Arguments of the sampler at token `count`: none where greedy."""
        if sampling.greedy:
            return ()
        return (tf.constant(sampling.temperature, tf.float32), tf.constant(sampling.top_k),
                tf.constant(sampling.top_p, tf.float32),
                self.model.placement.shard(samplers.seeds(sampling.seed, batch, count)))

    def _compiled(self, capacity: int, greedy: bool):
        """The pair of functions for caches of `capacity` slots."""
        key = (capacity, greedy)
        if key not in self._functions:
            choose = samplers.greedy if greedy else samplers.sample

            def prefill(tokens, lengths, *settings):
                self.traces += 1  # Python code runs once a trace
                state = self.model.initial_state(tokens.shape[0], capacity)
                logits, state = self.model.prefill(tokens, lengths, state)
                return choose(logits, *settings), state

            def step(tokens, state, *settings):
                self.traces += 1
                logits, state = self.model.step(tokens, state)
                return choose(logits, *settings), state

            self._functions[key] = self._compile(prefill), self._compile(step)
        return self._functions[key]

    def _compile(self, function):
        """Compiles for each replica, then for all of them together where there are several."""
        inner = tf.function(function, jit_compile=self.jit_compile)
        place = self.model.placement
        if not place.devices:
            return inner
        # strategy.run must be given a plain Python function, not a compiled one.
        return tf.function(lambda *args: place.run(lambda *a: inner(*a), *args))
