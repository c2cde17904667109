"""A `.keras` file with its tokenizer: what `--model` takes again, with all that strategies made."""

from pathlib import Path

import numpy as np

from tfspeed import engines
from tfspeed.models.keras_file import save_keras
from tfspeed.models.language_model import LanguageModel
from tfspeed.models.load import load


def write(path: Path, model: LanguageModel) -> None:
    """Writes the artifact; Keras insists on the ending, which a place beside it has not."""
    named = path.with_name(path.name + ".keras")
    try:
        save_keras(model, named)
        named.replace(path)
    finally:
        named.unlink(missing_ok=True)


class KerasRunner:
    """See `runners`: runs the file as `--model` would."""

    def __init__(self, path: Path):
        link = path
        if path.suffix != ".keras":  # it has not got its last name yet
            link = path.with_name(path.name + ".keras")
            link.hardlink_to(path)
        try:
            self._engine = engines.create("graph", load(link))
        finally:
            if link is not path:
                link.unlink()

    def score(self, tokens: np.ndarray):
        """float32 logits `[1, length, vocabulary]` of int32 `[1, length]`."""
        return self._engine.score(tokens)

    def greedy(self, prompt: list[int], count: int) -> list[int]:
        """The `count` likeliest tokens after a prompt, one after the other."""
        return [int(token[0]) for token in self._engine.generate([prompt], count)]

    def close(self) -> None:
        self._engine = None
