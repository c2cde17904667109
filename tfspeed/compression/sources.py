"""What an encoder–decoder's windows of calibration text are read after."""

import dataclasses

import numpy as np

from tfspeed.errors import TfspeedError
from tfspeed.models.language_model import LanguageModel


@dataclasses.dataclass(frozen=True)
class Sources:
    """Sources, and which of them each window follows.

    Attributes:
        distinct: float32 `[sources, frames, mels]`, or int32 tokens `[sources, length]`.
        of: int `[windows]`.
    """

    distinct: np.ndarray
    of: np.ndarray

    def rows(self, windows: np.ndarray) -> np.ndarray:
        """The sources of windows of these numbers, `[…, frames, mels]` or `[…, length]`."""
        return self.distinct[self.of[windows]]

    def spread(self, windows: int) -> "Sources":
        """The same sources in turns, for as many windows of another text."""
        return Sources(self.distinct, np.resize(self.of, windows))


def sources(model: LanguageModel, windows: np.ndarray) -> Sources | None:
    """Those of calibration windows, int32 `[windows, length]`; None where a model reads none.

    What is said in a sound comes after that sound (see `calibration.tokens`), and other text after
    all of them in turns. Where sources are tokens, a text comes after itself: it is the one text
    that is at hand which asks the decoder what the encoder read.

    Raises:
        TfspeedError: the model hears, and nothing is there to be heard. What it does after silence
            says nothing of what its encoder is for.
    """
    if not model.reads_source:
        return None
    count = np.arange(len(windows))
    if model.config.source == "tokens":
        return Sources(windows[:, :model.config.source_length], count)
    if model.heard is None:
        raise TfspeedError("A model that hears needs sounds to learn from.", model=model.name,
                           hint="Give --calibration=FOLDER of WAV files to scripts/scenario.py "
                                "--scenario=speech.")
    return Sources(model.heard, count % len(model.heard))
