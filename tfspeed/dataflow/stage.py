"""A stage of a pipeline: some layers of a decoder, with the caches of the texts on their way."""

import time
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import tensorflow as tf
from keras import Model

from tfspeed.engines import sampling as samplers
from tfspeed.models.decoder import Decoder
from tfspeed.models.language_model import variable_bytes


class StageDecoder(Decoder):
    """Some layers of another decoder, which are shared with it. Takes tokens where it has the
    first, else hidden states.

    Args:
        layers: numbers of layers, in their order.
        first, last: whether it has the embedding, and final norm and head.
        head: whether it has the head in any case.
    """

    def __init__(self, whole: Decoder, layers: Sequence[int], first: bool, last: bool,
                 head: bool = False):
        Model.__init__(self, dtype=whole.dtype_policy)
        self.config, self.numbers = whole.config, tuple(layers)
        self.first, self.last = first, last
        self.blocks = [whole.blocks[i] for i in layers]
        self.head = None
        if first or ((last or head) and whole.head is None):
            self.embedding = whole.embedding
        if first and self.config.positions == "learned":
            self.position_embedding = whole.position_embedding
        if last:
            self.final_norm = whole.final_norm
        if last or head:
            self.head = whole.head
        self.built = True

    def read(self, x, positions, slots, caches, index, run_block=None):
        """See `Decoder.read`; `x` are tokens, or hidden states of the stage before."""
        x = self.embed(x, positions) if self.first else x
        x, filled = self.through(x, positions, slots, caches, index)
        return (self.final_norm(x) if self.last else x), filled


class Calls:
    """How stages answer a message, `_<kind>` of a subclass, and time it.

    Args:
        last: whether tokens come out, unless a header says that `head` is elsewhere.

    Attributes:
        seconds: of each call, by kind.
        traces: see `Engine`.
    """

    def __init__(self, last: bool):
        self.last, self.traces = last, 0
        self.seconds: dict[str, list[float]] = defaultdict(list)

    def __call__(self, header: dict, arrays: list[np.ndarray]) -> tuple[dict, list[np.ndarray]]:
        kind, start = header["kind"], time.perf_counter()
        out, passed_on = getattr(self, f"_{kind}")(header, *arrays)
        out = np.asarray(out)
        self.seconds[kind].append(time.perf_counter() - start)
        return header, [out] if self._ends(header) else [out, *passed_on]

    def _ends(self, header) -> bool:
        """Whether tokens come out."""
        return header["kind"] == "head" or (self.last and header.get("head", True))


class Stage(Calls):
    """Answers messages: a header, which JSON can hold, and arrays. KV caches stay here, by group.

    `prefill` (x, lengths, [seeds]) reads some rows of a group's prompts into new caches; `step`
    (x, [seeds]) reads a token of each row of a group, whose caches are put together first; `score`
    (x) gives hidden states, or logits, after each token of whole texts. The last stage gives
    int32 `[rows]`, the chosen tokens, where others give hidden states. Where a header says that
    `head` is elsewhere, it gives hidden states too, which `head` (x, [seeds]) makes tokens of.
    """

    def __init__(self, decoder: StageDecoder, jit_compile: bool):
        super().__init__(decoder.last)
        self.decoder = decoder
        self._jit_compile = jit_compile
        self._functions: dict = {}
        self._states: dict[int, list] = {}

    @property
    def weights_bytes(self) -> int:
        return sum(map(variable_bytes, self.decoder.weights))

    def forget(self) -> None:
        """Drops all caches."""
        self._states.clear()

    def rewind(self, slots: int) -> None:
        """Nothing: a state that is full is written to at its end."""

    def _prefill(self, header, x, lengths, *seeds):
        out, state = self._function("prefill", header)(
            tf.constant(x), tf.constant(lengths), self._source(header, len(x)),
            *self._settings(header, seeds))
        self._states.setdefault(header["group"], []).append(state)
        return out, (lengths, *seeds)

    def _step(self, header, x, *seeds):
        states = self._states[header["group"]]
        if len(states) > 1:
            states = [joined(states)]
        out, state = self._function("step", header)(
            tf.constant(x), states[0], self._source(header, len(x)),
            *self._settings(header, seeds))
        self._states[header["group"]] = [state]
        return out, seeds

    def _score(self, header, x):
        return self._function("score", header)(tf.constant(x), self._source(header, len(x))), ()

    def _head(self, header, x, *seeds):
        return self._function("head", header)(tf.constant(x), *self._settings(header, seeds)), ()

    def _source(self, header, rows: int) -> tuple:
        """What the decoder is read with beside: nothing."""
        return ()

    def _settings(self, header, seeds):
        """Arguments of the sampler, which the last stage alone has."""
        if not seeds or not self._ends(header):
            return ()
        temperature, top_k, top_p = header["sampling"]
        return (tf.constant(temperature, tf.float32), tf.constant(top_k, tf.int32),
                tf.constant(top_p, tf.float32), tf.constant(seeds[0]))

    def _function(self, kind, header):
        capacity, greedy = header.get("capacity"), header.get("sampling") is None
        key = kind, capacity, greedy, self._ends(header)
        if key not in self._functions:
            choose = samplers.greedy if greedy else samplers.sample
            made = getattr(self, f"_make_{kind}")(capacity,
                                                  choose if self._ends(header) else None)
            self._functions[key] = tf.function(made, jit_compile=self._jit_compile)
        return self._functions[key]

    def _make_prefill(self, capacity, choose):
        def prefill(x, lengths, source, *settings):
            self.traces += 1  # Python code runs once a trace
            state = self.decoder.initial_state(x.shape[0], capacity)
            hidden, state = self.decoder.forward(x, lengths, state, *source)
            if choose is not None:
                return choose(self._logits(hidden[:, -1], first=True), *settings), state
            return hidden, state

        return prefill

    def _make_step(self, capacity, choose):
        def step(x, state, source, *settings):
            self.traces += 1
            hidden, state = self.decoder.forward(x, tf.ones(x.shape[:1], tf.int32), state, *source)
            if choose is not None:
                return choose(self._logits(hidden[:, -1]), *settings), state
            return hidden, state

        return step

    def _make_score(self, capacity, choose):
        def score(x, source):
            self.traces += 1
            hidden = self.decoder.hidden(x, *source)
            return self.decoder.logits(hidden) if self.decoder.last else hidden

        return score

    def _make_head(self, capacity, choose):
        def head(x, *settings):
            self.traces += 1
            return choose(self._logits(x[:, -1]), *settings)

        return head

    def _logits(self, hidden, first: bool = False):
        """That a token is chosen by, the first one of a text or a later one."""
        return self.decoder.logits(hidden)


def joined(states: list):
    """One state of the rows of several, which have read prompts of one length."""
    return tf.nest.map_structure(
        lambda *parts: tf.concat(parts, 0) if parts[0].shape.rank else parts[0], *states)
