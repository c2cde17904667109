"""A text under the `graph` and `xla` engines."""

from collections import deque

import numpy as np
import tensorflow as tf
from keras import ops

from tfspeed.engines import sampling as samplers
from tfspeed.engines.base import bucket, pad_left
from tfspeed.engines.sampling import Sampling
from tfspeed.speculation.texts import Text, boundary

# A pass over several tokens rounds otherwise than a step. Where the likeliest token leads by less
# than this (in logits), it is asked for once more, by the very function that a plain run uses.
_DOUBT = {"float32": 1e-3, "float16": 0.1, "bfloat16": 0.5}


class TfText(Text):
    """Args:
        engine: a `TfFunctionEngine` over a `DecoderModel` or an `EncoderDecoderModel`.
        prompt_tokens, new_tokens: what it is opened for.
        exit_layer: layers of `leave_early`; 0: it is not used.
    """

    def __init__(self, engine, prompt_tokens: int, new_tokens: int, widths: tuple[int, ...],
                 exit_layer: int = 0):
        self._engine, self.widths = engine, widths
        self._source, self._exit_layer = (), exit_layer
        self.boundary = 0 if engine.model.reads_source else boundary(engine.model.config)
        self._capacity = _capacity(prompt_tokens, new_tokens)
        self._doubt = _DOUBT.get(engine.model.keras_model.compute_dtype, 0.5)

    def hear(self, encoded):
        self._source = (encoded,)

    def fits(self, prompt_tokens, new_tokens):
        return _capacity(prompt_tokens, new_tokens) == self._capacity

    def begin(self, prompt, sampling: Sampling):
        self._sampling, self._filled = sampling, len(prompt)
        length = bucket(len(prompt))
        self._padding, self._behind = length - len(prompt), len(prompt)
        tokens, lengths = pad_left([prompt], length)
        chosen, self._state = self._function("prefill")(tokens, lengths, self._source,
                                                        *self._settings(0, 1))
        self._warm_up()
        return int(chosen.numpy()[0])

    def read(self, tokens, count):
        start, width = self._filled, len(tokens)
        if width == 1:
            if self._behind != start:  # otherwise the state says it itself
                self._state = {**self._state, "lengths": tf.constant([start]),
                               "index": tf.constant(start + self._padding)}
            chosen, self._state = self._function("step")(
                tf.constant(tokens), self._state, self._source, *self._settings(count, 1))
            self._filled = self._behind = start + 1
            yield int(chosen.numpy()[0])
            return
        chosen, lead, self._state = self._function(width)(
            tf.constant([tokens]), tf.constant(start), tf.constant(start + self._padding),
            self._state, self._source, *self._settings(count, width))
        self._filled = start + width
        for i, (token, ahead) in enumerate(zip(chosen.numpy(), lead.numpy(), strict=True)):
            if ahead < self._doubt and self._sampling.greedy:
                self.take_back(start + i)
                yield from self.read(tokens[i:i + 1], count + i)
                return
            yield int(token)

    @property
    def filled(self):
        return self._filled

    def take_back(self, filled):
        # What lies in the slots beyond is of later positions: masked, then written over.
        self._filled = filled

    def leave_early(self, token, count):
        made, state = [tf.constant([[token]])], self._state
        for at in range(self._filled, self._filled + count):
            token, state = self._function("exit")(
                made[-1], tf.constant(at), tf.constant(at + self._padding), state, self._source)
            made.append(token)
        return tf.concat(made[1:], axis=1)[0].numpy().tolist()

    def _settings(self, count: int, rows: int):
        """Arguments of the sampler for tokens `count` and after; none where greedy."""
        s = self._sampling
        if s.greedy:
            return ()
        seeds = np.concatenate([samplers.seeds(s.seed, 1, count + i) for i in range(rows)])
        return (tf.constant(s.temperature, tf.float32), tf.constant(s.top_k),
                tf.constant(s.top_p, tf.float32), tf.constant(seeds))

    def _warm_up(self) -> None:
        """Compiles what will be needed, so that no compilation counts as the cost of a pass."""
        key, done = self._key("warm"), self._engine.text_functions
        if key in done:
            return
        state, filled = self._state, self._filled
        for width in self.widths:
            if filled + self._padding + width > self._capacity:
                break
            deque(self.read([0] * width, 0), maxlen=0)
            self._state, self._filled, self._behind = state, filled, filled
        if self._exit_layer:
            self.leave_early(0, 1)
        done[key] = None

    def _key(self, name):
        return name, self._capacity, self._exit_layer, self._sampling.greedy

    def _function(self, name):
        """A compiled function, the same for all texts of an engine."""
        key, done = self._key(name), self._engine.text_functions
        if key not in done:
            choose = samplers.greedy if self._sampling.greedy else samplers.sample
            if name == "prefill":
                function = self._prefill(choose)
            elif name == "step":
                function = self._step(choose)
            elif isinstance(name, int):
                function = self._verify(choose)
            else:
                function = self._early

            def traced(*args):
                self._engine.traces += 1
                return function(*args)

            done[key] = self._engine.compiled(traced)
        return done[key]

    def _prefill(self, choose):
        def prefill(tokens, lengths, source, *settings):
            model = self._engine.after(source)
            logits, state = model.prefill(tokens, lengths, model.initial_state(1, self._capacity))
            return choose(logits, *settings), state
        return prefill

    def _step(self, choose):
        def step(tokens, state, source, *settings):
            logits, state = self._engine.after(source).step(tokens, state)
            return choose(logits, *settings), state
        return step

    def _verify(self, choose):
        def verify(tokens, filled, index, state, source, *settings):
            logits, state = self._read(tokens, filled, index, state, source)
            likeliest = tf.reduce_max(logits, axis=-1, keepdims=True)
            second = tf.reduce_max(tf.where(logits == likeliest, -np.inf, logits), axis=-1)
            tied = tf.reduce_sum(tf.cast(logits == likeliest, tf.int32), axis=-1) > 1
            lead = tf.where(tied, 0.0, likeliest[:, 0] - second)
            return choose(logits, *settings), lead, state
        return verify

    def _early(self, token, filled, index, state, source):
        """A token by the first layers. What it leaves in their caches is what `verify` will."""
        logits, state = self._read(token, filled, index, state, source, self._exit_layer)
        return samplers.greedy(logits)[None], state

    def _read(self, tokens, filled, index, state, source, layers=0):
        """float32 logits `[length, vocabulary]` of int32 `[1, length]` at positions from `filled`
        on, in slots from `index` on."""
        positions = (filled + tf.range(tokens.shape[1]))[None]
        slots = ops.slice_update(state["positions"], (0, index), positions)
        logits, caches = self._engine.after(source).read(tokens, positions, slots, state["caches"],
                                                         index, layers)
        return logits[0], {**state, "caches": caches, "positions": slots}


def _capacity(prompt_tokens: int, new_tokens: int) -> int:
    """Slots, as a plain run has them: what a draft has too much is never read."""
    return bucket(bucket(prompt_tokens) + new_tokens)
