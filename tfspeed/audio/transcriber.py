"""Speech to text with a Whisper: a window, or a recording window by window; streams: `partials`."""

import dataclasses
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from tfspeed.audio.log_mel import HOP, RATE, log_mel
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
        batch: windows that are read at once, at the most; 0: one for each of the devices or
            workers that share out rows.

    Raises:
        TfspeedError: the model is no Whisper, or knows no such language.
    """

    def __init__(self, engine: Engine, options: Options = Options(), batch: int = 1):
        model = engine.model
        config = getattr(model, "config", None)
        if not model.reads_source or config.source != "audio" or model.tokenizer is None:
            raise TfspeedError("Speech needs a Whisper model with its tokenizer.",
                               model=model.name, hint="Use --model=whisper-base.")
        self.engine, self.options, self.batch = engine, options, batch or engine.row_shares
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
        return self._read([samples])[0] if audible(samples) else self._silence(samples)

    def windows(self, sounds: Iterable[tuple[object, np.ndarray]],
                ) -> Iterator[tuple[object, Window]]:
        """Pairs of anything and a window of samples → pairs of the same and its `Window`, in
        their order. Those with a sound in them are read `batch` at a time; silence is not kept
        until then: there may be hours of it."""
        waiting, loud = [], []
        for name, samples in sounds:
            window = None if audible(samples) else self._silence(samples)
            waiting.append((name, window))
            if window is None:
                loud.append(samples)
            if len(loud) == self.batch:
                yield from self._in_order(waiting, loud)
                waiting, loud = [], []
        yield from self._in_order(waiting, loud)

    def _in_order(self, waiting: list, loud: list) -> Iterator[tuple[object, Window]]:
        """What waits with its window, which is None where one of `loud` is to be read."""
        read = self._together(loud)
        for name, window in waiting:
            yield name, window or next(read)

    def _together(self, loud: list[np.ndarray]) -> Iterator[Window]:
        """The windows of up to `batch` sounds. Engines compile for numbers of rows, so there are
        two of them: too few rows are filled up, or if under half read one by one."""
        if 2 * len(loud) > self.batch:
            return iter(self._read(loud + loud[-1:] * (self.batch - len(loud)), len(loud)))
        return map(self.window, loud)

    def _silence(self, samples: np.ndarray) -> Window:
        return Window("", len(samples) / RATE, [], self.options.language, 1.0, 0.0, 0.0)

    def _read(self, sounds: Sequence[np.ndarray], wanted: int = 1) -> list[Window]:
        """Texts of the first `wanted` windows of those that are read together; each has an equal
        share of the time."""
        start = time.perf_counter()
        encoded = self.engine.encode(log_mel(sounds, self._frames, self._mels))
        begin = np.full((len(sounds), 1), self.tokens.start, np.int32)
        first = np.asarray(self.engine.score(begin, encoded))[:, -1]
        heard = time.perf_counter()
        languages = [self._language(logits) for logits in first]
        prompts = [self.tokens.prompt(language, self.options.task) for language in languages]
        rows = np.stack(list(self.engine.generate(
            prompts, self._new_tokens, stop_tokens=[self.tokens.end], encoded=encoded)), 1)
        made = [[int(t) for t in row if t != FINISHED] for row in rows]
        tokens = [[t for t in row if t != self.tokens.end] for row in made]
        texts = [self._tokenizer.decode(row).strip() for row in tokens]
        no_speech = [self._no_speech(logits) for logits in first]
        doubted = [p > self.options.no_speech_threshold for p in no_speech]
        unsure = [repeats(text) for text in texts]
        if any(doubt and not loop for doubt, loop in zip(doubted, unsure, strict=True)):
            unsure = np.logical_or(unsure, self._unsure(prompts, made, encoded))
        for i in np.flatnonzero(np.logical_and(doubted, unsure)):
            texts[i], tokens[i] = "", []
        encode_s, decode_s = heard - start, time.perf_counter() - heard
        return [Window(texts[i], len(sounds[i]) / RATE, tokens[i], languages[i], no_speech[i],
                       encode_s / wanted, decode_s / wanted) for i in range(wanted)]

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

    def _unsure(self, prompts, made, encoded) -> list[bool]:
        """Whether a text's mean log-probability is under the threshold."""
        rows = [prompt + tokens for prompt, tokens in zip(prompts, made, strict=True)]
        padded = np.full((len(rows), max(map(len, rows))), self.tokens.end, np.int32)
        for i, row in enumerate(rows):
            padded[i, :len(row)] = row
        scores = np.asarray(self.engine.score(padded[:, :-1], encoded))
        return [_log_probability(logits[len(prompt) - 1:][:len(tokens)], tokens)
                < self.options.logprob_threshold
                for logits, prompt, tokens in zip(scores, prompts, made, strict=True)]


def audible(samples: np.ndarray) -> bool:
    """Whether a window is more than silence."""
    return len(samples) >= _ENOUGH_S * RATE and bool(np.abs(samples).max() >= _SILENT)


def _log_probability(logits: np.ndarray, tokens: list[int]) -> float:
    """The mean of tokens, each after its own logits."""
    logits = logits.astype(np.float64)
    top = logits.max(-1)
    total = top + np.log(np.exp(logits - top[:, None]).sum(-1))
    return float((logits[np.arange(len(tokens)), tokens] - total).mean())


def repeats(text: str) -> bool:
    """Whether a text is a loop: deflate takes less than a 2.4th of it."""
    raw = text.encode()
    return len(raw) > _LOOP * len(zlib.compress(raw))
