"""The `litert` engine over RNN, LSTM and GRU language models: their state is updated in place."""

import numpy as np

from tfspeed.engines.litert_base import LiteRtBase
from tfspeed.litert import profiler
from tfspeed.litert.formats import Formats
from tfspeed.litert.recurrent import RecurrentLowering, pack_recurrent, state_names
from tfspeed.litert.runtime import Program


class RecurrentLiteRtEngine(LiteRtBase):
    """Runs a model over a `Recurrent`.

    Args:
        weights: how the matrices are stored, see `litert.formats.Formats`.
    """

    profile_source = profiler.SOURCE

    def __init__(self, model, weights: str = "float32"):
        super().__init__(model, weights, pack_recurrent(model.keras_model, Formats(weights)))

    def step_bytes(self, batch, context):
        looked_up = self._packed.embedding
        looked_up = 0 if self._packed.head.weight is looked_up else looked_up.nbytes
        made = self.model.keras_model
        states = len(state_names(made)) // len(made.layer_dims) * batch * sum(made.layer_dims) * 4
        return self.weights_bytes - looked_up + states

    def score(self, tokens):
        tokens = np.asarray(tokens, np.int32)
        session = self._session(len(tokens), tokens.shape[1])
        try:
            session.clear()
            return np.stack([session.step(column) for column in tokens.T], 1)
        finally:
            self._sessions.setdefault(len(tokens), session)

    def _new_session(self, batch, needed):
        del needed  # the state does not grow with the text
        return _RecurrentSession(self._load(self._writer(batch)), self.model.keras_model)

    def _decode_signature(self, tokens, lengths):
        return self._writer(len(tokens)), "decode", {"tokens": tokens[:, -1]}

    def _writer(self, batch: int):
        """For `_load`."""
        def write(file):
            for name in ("decode", "prefill"):
                RecurrentLowering(file, self.model.keras_model, self._packed, name, batch).write(
                    logits=name == "decode", padded=name == "prefill")

        return write


class _RecurrentSession:
    """One batch of texts being continued."""

    def __init__(self, program: Program, model):
        self._names = state_names(model)
        self._decode, self._prefill = program.buffers("decode"), program.buffers("prefill")
        self._prefill.share(self._decode, self._names)

    def fits(self, needed: int) -> bool:
        del needed
        return True

    def clear(self) -> None:
        for name in self._names:
            self._decode[name] = np.zeros_like(self._decode[name])

    def begin(self, tokens: np.ndarray, starts: np.ndarray) -> np.ndarray:
        """Reads prompts, int32 `[batch, length]` with `starts` slots of padding on the left;
        returns the logits after them, float32 `[batch, vocabulary]`."""
        self.clear()
        for at, column in enumerate(tokens.T[:-1]):
            self._prefill["tokens"] = column
            self._prefill["used"] = at >= starts
            self._prefill.run()
        return self.step(tokens[:, -1])  # through decode, for its logits

    def step(self, tokens: np.ndarray) -> np.ndarray:
        """Reads one token a row, int32 `[batch]`; returns logits as `begin` does."""
        self._decode["tokens"] = tokens
        self._decode.run()
        return self._decode["logits"]
