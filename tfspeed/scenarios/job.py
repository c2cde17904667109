"""What scenarios share: a model that is changed and run, and how its row begins and ends."""

import dataclasses
import itertools
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tfspeed import cli, cluster_job, engines
from tfspeed.audio import clips
from tfspeed.audio.log_mel import HOP, RATE, log_mel
from tfspeed.audio.transcriber import AUTO
from tfspeed.audio.wav import Wav
from tfspeed.devices import set_threads
from tfspeed.digest import digest
from tfspeed.engines.base import Engine
from tfspeed.errors import TfspeedError
from tfspeed.main_job import check_writable, read_calibration
from tfspeed.measure import report
from tfspeed.measure.environment import environment
from tfspeed.measure.progress import Progress
from tfspeed.models.load import load
from tfspeed.models.whisper_tokens import WhisperTokens

_WINDOW = 256  # tokens of one for calibration


@dataclasses.dataclass(frozen=True)
class Setup:
    """What the flags ask for, before a model is loaded: see `run`.

    Attributes:
        sounds: files that the strategy calibrates on; none where `data` is its text.
    """

    strategy: object
    sounds: list[Path]
    data: str | None

    def model(self, flags):
        """Loaded and changed."""
        with self.strategy.scope():
            model = load(flags.model)
            if self.sounds:
                model.heard = heard(model, self.sounds)
                model.said = said(model, flags.language)
            model = self.strategy.apply(model, self.data)
            if self.sounds:
                model.heard = model.said = None
        return model


def run(flags, work: Callable[[Setup], None]) -> int | None:
    """Looks at the flags, then does the work; where the strategy runs on workers, in the chief of
    them. Returns an exit code."""
    engines.check(flags.engine)
    check_writable(flags.output)
    sounds = calibration_sounds(flags.calibration)
    data = None if sounds else read_calibration(flags)
    set_threads(flags.threads)
    setup = Setup(cli.make_strategy(flags.strategy), sounds, data)
    join = cluster_job.member_of(flags, setup.strategy)
    if join is None:
        return work(setup)
    if flags.audio == "stdin":
        raise TfspeedError("Standard input is one stream, which workers cannot share out.",
                           strategy=flags.strategy, hint="Give --audio files.")
    calibration = data or digest(np.fromfile(path, np.uint8) for path in sounds)
    return cluster_job.run(flags, setup.strategy, calibration, join, lambda: work(setup),
                           lambda: setup.model(flags))


def prepared(flags, setup: Setup, bar: Progress) -> tuple[Engine, dict]:
    """The engine that the flags ask for, and what a row says of it."""
    strategy = setup.strategy
    with bar.task(f"loading {flags.model}", None):
        start = time.perf_counter()
        model = setup.model(flags)
        loaded = time.perf_counter()
        engine = engines.create(flags.engine, model)
    for line in strategy.report():
        bar.say(line)
    return engine, {
        "model": model.name, "strategy": strategy.label, "engine": engine.name,
        "dtype": engine.dtype, "parameters": model.parameters,
        "weights_bytes": engine.weights_bytes, "load_s": loaded - start,
        "changes": strategy.report(), "notes": [*model.notes, *engine.notes]}


def calibration_sounds(names: str | None) -> list[Path]:
    """The WAV files that strategies calibrate on; none where --calibration is a text."""
    if names and (Path(names).is_dir() or names.lower().endswith(".wav")):
        return clips.find(names)
    return []


def heard(model, paths: list[Path]) -> np.ndarray:
    """The first window of each file, float32 `[files, frames, mels]`."""
    config = getattr(model, "config", None)
    if not model.reads_source or config.source != "audio":
        raise TfspeedError("--calibration is a text for this model.", model=model.name)
    windows = []
    for path in paths:
        with Wav(path) as wav:
            some = itertools.islice(wav.blocks(), config.source_frames * HOP // RATE + 1)
            windows.append(np.concatenate([np.zeros(0, np.float32), *some]))
    return np.asarray(log_mel(windows, config.source_frames, config.mels))


def said(model, language: str) -> np.ndarray:
    """What the model itself hears in each of its `heard`, again and again: int32 `[sources, length
    of a window]`."""
    engine, tokens = engines.create("graph", model), WhisperTokens.of(model.tokenizer)
    prompt = tokens.prompt("en" if language == AUTO else language, "transcribe")
    length = min(_WINDOW, model.context_length)
    texts = []
    for source in model.heard:
        made = engine.generate([prompt], length - len(prompt), stop_tokens=[tokens.end],
                               encoded=engine.encode(source[None]))
        texts.append(np.resize([*prompt, *(int(row[0]) for row in made)], length))
    return np.asarray(texts, np.int32)


def write(flags, rows: list[dict], bar: Progress) -> None:
    report.write_json(flags.output, environment(), rows)
    bar.say(f"Written: {flags.output}")


def check_batch(flags) -> None:
    if not 0 <= flags.batch <= 1024:
        raise TfspeedError("--batch must be 0 (one for each replica or worker), or up to 1024.",
                           batch=flags.batch)


def positive(flags, *names: str) -> None:
    """Refuses flags that are not over 0."""
    for name in names:
        if not flags[name].value > 0:
            raise TfspeedError(f"--{name} must be more than 0.", **{name: flags[name].value})
