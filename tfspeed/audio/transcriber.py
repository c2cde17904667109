"""Speech to text with a Whisper: a window, or a recording window by window; streams: `partials`."""

import dataclasses
import time
import zlib
from collections.abc import Iterable, Iterator

import numpy as np

from tfspeed.audio.log_mel import HOP, RATE, log_mel
from tfspeed.audio.windows import windows
from tfspeed.engines.base import FINISHED, Engine
from tfspeed.errors import TfspeedError
from tfspeed.models.whisper_tokens import TASKS, WhisperTokens

AUTO = "auto"
_SILENT = 1e-3        # -60 dB: no recording is so quiet where somebody speaks
_LOOP = 2.4           # openai/whisper's `compression_ratio_threshold`
_ENOUGH_S = 0.1       # less sound than this says nothing


@dataclasses.dataclass(frozen=True)
class Options:
    """How speech becomes text.

    A window is silence where the model holds that with more than `no_speech_threshold`, and is not
    sure of its text either (mean log-probability a token under `logprob_threshold`) or says the
    same over and over (`repeats`), of which it is sure: the rules of arXiv:2212.04356, section 4.5.
    """

    language: str = "en"
    task: str = "transcribe"
    no_speech_threshold: float = 0.6
    logprob_threshold: float = -1.0
    new_tokens: int = 224


@dataclasses.dataclass(frozen=True)
class Window:
    """What became of one window.

    Attributes:
        seconds: of sound.
        tokens: generated, without the end.
        no_speech: the model's probability that nobody speaks; 1.0 where nothing was run.
        encode_s, decode_s: see `measure.metrics`.
    """

    text: str
    seconds: float
    tokens: list[int]
    language: str
    no_speech: float
    encode_s: float
    decode_s: float


class Transcriber:
    """Args:
        engine: over a Whisper with its tokenizer.

    Raises:
        TfspeedError: the model is no Whisper, or knows no such language.
    """

    def __init__(self, engine: Engine, options: Options = Options()):
        model = engine.model
        config = getattr(model, "config", None)
        if not model.reads_source or config.source != "audio" or model.tokenizer is None:
            raise TfspeedError("Speech needs a Whisper model with its tokenizer.",
                               model=model.name, hint="Use --model=whisper-base.")
        self.engine, self.options = engine, options
        self.tokens = WhisperTokens.of(model.tokenizer)
        self._tokenizer, self._frames, self._mels = (model.tokenizer, config.source_frames,
                                                     config.mels)
        if options.task not in TASKS:
            raise TfspeedError(f"A task is one of {', '.join(TASKS)}.", task=options.task)
        if options.language != AUTO:
            self.tokens.prompt(options.language, options.task)
        room = model.context_length - 4  # beside the prompt
        if options.new_tokens < 1:
            raise TfspeedError("At least one new token must be asked for.",
                               new_tokens=options.new_tokens)
        self._new_tokens = min(options.new_tokens, room)

    @property
    def window_samples(self) -> int:
        return self._frames * HOP

    def window(self, samples: np.ndarray) -> Window:
        """Text of up to a window of samples; nothing is invented for silence."""
        seconds = len(samples) / RATE
        if seconds < _ENOUGH_S or np.abs(samples).max() < _SILENT:
            return Window("", seconds, [], self.options.language, 1.0, 0.0, 0.0)
        start = time.perf_counter()
        encoded = self.engine.encode(log_mel([samples], self._frames, self._mels))
        first = np.asarray(self.engine.score(np.asarray([[self.tokens.start]], np.int32),
                                             encoded))[0, -1]
        heard = time.perf_counter()
        language = self._language(first)
        prompt = self.tokens.prompt(language, self.options.task)
        made = [int(row[0]) for row in self.engine.generate(
            [prompt], self._new_tokens, stop_tokens=[self.tokens.end], encoded=encoded)]
        tokens = [t for t in made if t not in (self.tokens.end, FINISHED)]
        text, no_speech = self._tokenizer.decode(tokens).strip(), self._no_speech(first)
        if no_speech > self.options.no_speech_threshold and (
                repeats(text) or self._unsure(prompt, made, encoded)):
            text, tokens = "", []
        return Window(text, seconds, tokens, language, no_speech, heard - start,
                      time.perf_counter() - heard)

    def _language(self, logits: np.ndarray) -> str:
        if self.options.language != AUTO:
            return self.options.language
        known = self.tokens.languages
        return max(known, key=lambda code: logits[known[code]]) if known else "en"

    def _no_speech(self, logits: np.ndarray) -> float:
        if self.tokens.no_speech is None:
            return 0.0
        weights = np.exp(logits.astype(np.float64) - logits.max())
        return float(weights[self.tokens.no_speech] / weights.sum())

    def _unsure(self, prompt, made, encoded) -> bool:
        """Whether the text's mean log-probability is under the threshold."""
        tokens = np.asarray([prompt + made], np.int32)
        logits = np.asarray(self.engine.score(tokens[:, :-1], encoded), np.float64)[0]
        logits = logits[len(prompt) - 1:]
        top = logits.max(-1)
        total = top + np.log(np.exp(logits - top[:, None]).sum(-1))
        found = logits[np.arange(len(made)), made] - total
        return float(found.mean()) < self.options.logprob_threshold

    def long(self, blocks: Iterable[np.ndarray]) -> Iterator[Window]:
        """A recording of any length, window by window."""
        return map(self.window, windows(blocks, self.window_samples))


def repeats(text: str) -> bool:
    """Whether a text is a loop: deflate takes less than a 2.4th of it."""
    raw = text.encode()
    return len(raw) > _LOOP * len(zlib.compress(raw))
