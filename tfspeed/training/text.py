"""What the student reads: calibration text, or text that the teacher writes itself."""

import contextlib
from pathlib import Path

import numpy as np

from tfspeed import engines
from tfspeed.compression import calibration
from tfspeed.compression.sources import Sources
from tfspeed.digest import digest
from tfspeed.engines.sampling import Sampling
from tfspeed.errors import TfspeedError
from tfspeed.export.files import appearing
from tfspeed.measure.progress import Progress
from tfspeed.models.language_model import LanguageModel

SOURCES = ("text", "self")
_ROWS = 16  # written at a time: more tokens a second, the memory of their caches


def windows(model: LanguageModel, data: str | None, budget: int, length: int) -> np.ndarray:
    """int32 `[windows, length]` of the text, as many as a budget of tokens can read once; of a
    model that hears all that is said, and no text that nobody said.

    Raises TfspeedError: the text is shorter than one window.
    """
    length = min(length, model.context_length)  # before it is counted how many the budget reads
    said = getattr(model, "said", None)
    if said is not None:
        return _once(said)[:, :length]
    return calibration.tokens(model, data, max(1, budget // length), length)


def _once(said: np.ndarray) -> np.ndarray:
    """Cut where the longest has been said: from there on all begin again, with their first
    token."""
    again = said[:, 1:] == said[:, :1]
    ends = np.where(again.any(1), again.argmax(1) + 1, said.shape[1])
    return said[:, :ends.max()]


def written(teacher: LanguageModel, budget: int, length: int, seed: int = 0,
            folder: str = "", sources: Sources | None = None) -> np.ndarray:
    """int32 `[windows, length]`, each continued by the teacher from a random first token: its own
    distribution, without any data (arXiv:2305.17888).

    Args:
        folder: where it is kept, and looked for; "": nowhere.
        sources: what it is written after, in turns, by a model with an encoder.
    """
    length = min(length, teacher.context_length)
    count = max(1, budget // length)
    after = None if sources is None else sources.spread(count)
    path = _kept(teacher, after, count, length, seed, folder)
    if path is not None:
        with contextlib.suppress(OSError, ValueError, EOFError):
            return np.load(path, allow_pickle=False)
    first = np.random.default_rng(seed).integers(0, teacher.vocabulary_size, count)
    engine, rows = engines.create("xla", teacher), min(_ROWS, count)
    parts, bar = [], Progress()
    with bar.task("the teacher writes", -(-count // rows) * (length - 1)) as advance:
        for start in range(0, count, rows):
            chosen = np.resize(np.arange(start, min(start + rows, count)), rows)
            given = {} if after is None else {"encoded": engine.encode(after.rows(chosen))}
            tokens = [first[chosen]]
            for token in engine.generate([[int(t)] for t in first[chosen]], length - 1,
                                         Sampling(1.0, seed=(seed + start) % 2**31), **given):
                tokens.append(np.asarray(token))
                advance()
            parts.append(np.stack(tokens, axis=1))
    made = np.concatenate(parts)[:count].astype(np.int32)
    if path is not None:
        _keep(path, made)
    return made


def _kept(teacher, after, count, length, seed, folder) -> Path | None:
    if not folder:
        return None
    of = digest([*(np.asarray(v.numpy()) for v in teacher.keras_model.weights),
                 *([] if after is None else [after.distinct, after.of])])
    return Path(folder) / f"written-{of[:16]}-{count}x{length}-{seed}.npy"


def _keep(path: Path, made: np.ndarray) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with appearing(path) as beside:
            np.save(beside, made)
    except OSError as error:
        raise TfspeedError("The checkpoint's folder must be writable.", checkpoint=str(path.parent),
                           cause=error.strerror) from error
