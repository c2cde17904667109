"""RNN, LSTM and GRU models as one `.tflite` file, and its runner.

Two signatures share one set of weights: `decode` reads a token and gives its logits, `prefill`
reads one and gives none. Both take the states (`state_h_0`, …) and give the new ones under the same
names; zeros begin a text, and one buffer may be input and output. The size of a state does not
depend on the text.
"""

from pathlib import Path

import numpy as np

from tfspeed.devices import available_cores
from tfspeed.export import tflite
from tfspeed.litert.formats import Formats
from tfspeed.litert.graph import TfliteFile
from tfspeed.litert.recurrent import RecurrentLowering, pack_recurrent
from tfspeed.litert.runtime import Program
from tfspeed.models.language_model import LanguageModel

KIND = "recurrent"  # what the file's description says it is


def write(path: Path, model: LanguageModel, weights: str, context: int) -> None:
    """Writes the file of a model over a `Recurrent`."""
    file = TfliteFile(f"{model.name}, exported by tfspeed")
    packed = pack_recurrent(model.keras_model, Formats(weights))
    signatures = [tflite.Signature("decode", 1, context, True),
                  tflite.Signature("prefill", 1, context, False)]
    for s in signatures:
        RecurrentLowering(file, model.keras_model, packed, s.name, 1).write(s.logits, padded=False)
    tflite.describe(file, model, context, kind=KIND, **tflite.of_texts(model, signatures))
    file.write(path)


class RecurrentRunner:
    """A file that `write` made, one text at a time: see `runners`."""

    def __init__(self, path: Path):
        self._program = Program(path, available_cores())
        self._states = [name for name in self._program.signatures["decode"]["inputs"]
                        if name != "tokens"]
        self._decode, self._prefill = map(self._program.buffers, ("decode", "prefill"))
        self._prefill.share(self._decode, self._states)

    def score(self, tokens: np.ndarray) -> np.ndarray:
        """float32 logits `[1, length, vocabulary]` of int32 `[1, length]`."""
        self._clear()
        return np.stack([self._step(token) for token in tokens[0]], axis=1)

    def greedy(self, prompt: list[int], count: int) -> list[int]:
        """The `count` likeliest tokens after a prompt, one after the other."""
        self._clear()
        for token in prompt[:-1]:
            self._prefill["tokens"] = np.asarray([token])
            self._prefill.run()
        found = [prompt[-1]]
        for _ in range(count):
            found.append(int(self._step(found[-1])[0].argmax()))
        return found[1:]

    def _step(self, token: int) -> np.ndarray:
        self._decode["tokens"] = np.asarray([token])
        self._decode.run()
        return self._decode["logits"]

    def _clear(self) -> None:
        for name in self._states:
            self._decode[name] = np.zeros_like(self._decode[name])

    def close(self) -> None:
        self._program.close()
