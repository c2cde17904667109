"""The `graph` and `xla` engines: prefill and step as two compiled functions."""

import functools

import numpy as np
import tensorflow as tf

from tfspeed.engines import sampling as samplers
from tfspeed.engines.base import FINISHED, Engine, bucket, pad_left
from tfspeed.models.language_model import LanguageModel


class TfFunctionEngine(Engine):
    """Generates with a `LanguageModel` through tf.function, with or without XLA.

    Both functions choose the next token themselves: a step moves `[batch]` integers to the host,
    not `[batch, vocabulary]` logits. Functions are made once per (capacity, greedy or not); the
    lengths come from `bucket`, so later calls retrace nothing (`traces` counts).
    """

    pass_widths = 1, 4, 8  # each is a function to compile
    takes_source = True

    def __init__(self, model: LanguageModel, jit_compile: bool):
        if jit_compile and model.placement.exchanges:
            model = model.in_compiled_pieces()
        super().__init__("xla" if jit_compile else "graph", model)
        self.jit_compile = jit_compile
        self._functions: dict = {}
        self.text_functions: dict = {}  # of all `TfText`s
        self._score = self._encode = None

    def score(self, tokens: np.ndarray, encoded=None):
        place = self.model.placement
        if encoded is None and self.model.reads_source:
            encoded = self.encode(self.model.default_source(len(tokens)))
        if self._score is None:
            self._score = self.compiled(lambda tokens, *source: self.after(source).score(tokens))
        source = () if encoded is None else (encoded,)
        tokens = np.asarray(tokens, np.int32)
        return place.gather(self._score(place.shard(tokens), *source))[:len(tokens)]

    def encode(self, source):
        if not self.model.reads_source:
            return super().encode(source)
        place = self.model.placement
        if self._encode is None:
            def encode(source):
                self.traces += 1
                return self.model.encode(source)

            self._encode = self.compiled(encode)
        return self._encode(place.shard(self.model.checked_source(source)))

    def after(self, source: tuple):
        """The model, after what was encoded: one thing, or none."""
        return self.model.given(*source) if source else self.model

    def _generate(self, prompts, new_tokens, sampling, stop_tokens, encoded=None):
        place = self.model.placement
        length = max(map(len, prompts))
        length = bucket(length) if self.model.pads else length
        prefill, step = self._compiled(bucket(length + new_tokens), sampling.greedy)
        tokens, lengths = pad_left(prompts, length)
        finished = np.zeros(len(prompts), bool)
        source = () if encoded is None else (encoded,)
        tokens, state = prefill(place.shard(tokens), place.shard(lengths), source,
                                *self._settings(sampling, len(prompts), 0))
        for count in range(1, new_tokens + 1):
            host = place.gather(tokens)[:len(prompts)]
            yield np.where(finished, FINISHED, host)
            finished |= np.isin(host, stop_tokens)
            if count == new_tokens or finished.all():
                return
            tokens, state = step(tokens, state, source,
                                 *self._settings(sampling, len(prompts), count))

    def open_text(self, prompt_tokens: int, new_tokens: int, widths: tuple[int, ...],
                  exit_layer: int):
        """See `TfText`."""
        from tfspeed.speculation.tf_text import TfText
        return TfText(self, prompt_tokens, new_tokens, widths, exit_layer)

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

            # `source` is apart from the state: a step does not give it back.
            def prefill(tokens, lengths, source, *settings):
                self.traces += 1  # Python code runs once a trace
                state = self.model.initial_state(tokens.shape[0], capacity)
                logits, state = self.after(source).prefill(tokens, lengths, state)
                return choose(logits, *settings), state

            def step(tokens, state, source, *settings):
                self.traces += 1
                logits, state = self.after(source).step(tokens, state)
                return choose(logits, *settings), state

            self._functions[key] = self.compiled(prefill), self.compiled(step)
        return self._functions[key]

    def compiled(self, function):
        """Compiles for each replica, then for all of them together where there are several. By
        `partial`, as TensorFlow takes all functions of one lambda for one that is traced often."""
        place = self.model.placement
        if place.exchanges:  # a function of one replica alone cannot wait for the others
            return tf.function(functools.partial(place.run, function))
        inner = tf.function(function, jit_compile=self.jit_compile)
        if not place.devices:
            return inner
        # strategy.run must be given a plain Python function, not a compiled one.
        return tf.function(functools.partial(place.run, lambda *args: inner(*args)))
