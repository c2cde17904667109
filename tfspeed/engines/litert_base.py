"""What the `litert` engines share: packed weights, files made when they are needed, the loop."""

import tempfile
from pathlib import Path

import numpy as np
import tensorflow as tf

from tfspeed.devices import available_cores
from tfspeed.engines import sampling as samplers
from tfspeed.engines.base import FINISHED, Engine, pad_left
from tfspeed.errors import TfspeedError
from tfspeed.litert import profiler
from tfspeed.litert.graph import TfliteFile
from tfspeed.litert.runtime import Program


class LiteRtBase(Engine):
    """Args:
        weights: how the matrices are stored, see `litert.formats.Formats`.
        packed: what holds them, with a list `weights`.

    Subclasses implement `_new_session(batch, needed)`, whose result has `begin`, `step` and
    `fits`, write their signatures into the file of `_load`, and say what `profile` runs in
    `_decode_signature`.
    """

    def __init__(self, model, weights: str, packed):
        super().__init__(f"litert:{weights}", model)
        self._packed = packed
        self._threads = tf.config.threading.get_intra_op_parallelism_threads() or available_cores()
        self._sessions: dict = {}
        self._sample = tf.function(samplers.sample)
        if model.placement.devices:
            self.notes.append("LiteRT runs the model once, on all cores: replicas do not apply.")

    @property
    def packed(self):
        return self._packed

    @property
    def weights_bytes(self) -> int:
        return sum(weight.nbytes for weight in self._packed.weights)

    @property
    def dtype(self) -> str:
        """The type of most bytes of weights."""
        sizes: dict[str, int] = {}
        for weight in self._packed.weights:
            sizes[weight.type.lower()] = sizes.get(weight.type.lower(), 0) + weight.nbytes
        return max(sizes, key=sizes.get)

    @property
    def devices(self):
        return ()  # LiteRT runs the model once, whatever the strategy placed

    def _generate(self, prompts, new_tokens, sampling, stop_tokens):
        width, batch = max(map(len, prompts)), len(prompts)
        tokens, lengths = pad_left(prompts, width)
        session = self._session(batch, width + new_tokens)
        try:
            yield from self._steps(session, session.begin(tokens, width - lengths), new_tokens,
                                   sampling, stop_tokens)
        finally:
            self._sessions.setdefault(batch, session)

    def _steps(self, session, logits, new_tokens, sampling, stop_tokens):
        """Tokens of a session that has read its prompts, int32 `[batch]` each.

        Args:
            logits: of the first, `[batch, vocabulary]`.
        """
        finished = np.zeros(len(logits), bool)
        for count in range(new_tokens):
            chosen = self.choose(logits, sampling, count)
            yield np.where(finished, FINISHED, chosen)
            finished |= np.isin(chosen, stop_tokens)
            if count == new_tokens - 1 or finished.all():
                return
            logits = session.step(chosen)

    def choose(self, logits, sampling, count):
        """int32 `[batch]`, token `count` of each row, from float32 `[batch, vocabulary]`, in which
        tokens that a model never says become -inf."""
        if sampling.greedy:
            return logits.argmax(-1).astype(np.int32)
        return self._sample(
            logits, tf.constant(sampling.temperature, tf.float32), tf.constant(sampling.top_k),
            tf.constant(sampling.top_p, tf.float32),
            tf.constant(samplers.seeds(sampling.seed, len(logits), count))).numpy()

    def _session(self, batch: int, needed: int):
        """A session that no other generation uses, with room for `needed` tokens."""
        session = self._sessions.pop(batch, None)
        if session is None or not session.fits(needed):
            session = self._new_session(batch, needed)
        return session

    def _new_session(self, batch: int, needed: int):
        raise NotImplementedError

    def profile(self, prompts):
        write, name, inputs = self._decode_signature(*pad_left(prompts, max(map(len, prompts))))
        return self._load(write, lambda path: profiler.profile(path, name, inputs,
                                                               self._threads))

    def _decode_signature(self, tokens: np.ndarray, lengths: np.ndarray):
        """What reads one token after prompts, see `pad_left`: for `_load`, a function that writes
        it; its name; its inputs but for the state."""
        raise NotImplementedError

    def _load(self, write, load=None):
        """Loads a new file, as a `Program` unless `load` makes something else of its path;
        `write` is given a `TfliteFile` and puts signatures into it."""
        self.traces += 1
        return loaded(write, load or (lambda path: Program(path, self._threads)))


def loaded(write, load):
    """`load(path)` of a new file, into which `write` has put signatures."""
    file = TfliteFile("tfspeed")
    write(file)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.tflite"
        try:
            file.write(path, durable=False)
        except OSError as error:
            raise TfspeedError("The model does not fit into the folder for temporary files.",
                               folder=folder, cause=error.strerror,
                               hint="Set TMPDIR to a folder with more room.") from error
        return load(path)  # it stays mapped when its name is gone
