"""The job behind `scripts/run.py --prompts`: a file of prompts is answered, batch after batch."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tfspeed import engines
from tfspeed.digest import digest
from tfspeed.engines.base import FINISHED
from tfspeed.engines.sampling import Sampling
from tfspeed.errors import TfspeedError
from tfspeed.journal import Journal
from tfspeed.measure.progress import Progress
from tfspeed.models.language_model import check_fits
from tfspeed.models.load import load

_NEW_TOKENS = 128


def read_prompts(path: str) -> list[str]:
    """The lines of a file that are not blank."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise TfspeedError("--prompts must be a readable UTF-8 text file.", prompts=path[:200],
                           cause=str(error)[:200]) from error
    if not any(line.strip() for line in lines):
        raise TfspeedError("--prompts must hold a prompt a line.", prompts=path)
    return [line for line in lines if line.strip()]


def run(flags, prompts: list[str], strategy, calibration, sampling: Sampling,
        new_tokens: int | None) -> None:
    """Answers all prompts; each answer is journaled as soon as it is finished."""
    with strategy.scope():
        model = strategy.apply(load(flags.model, flags.dtype, strategy.reads_part), calibration)
    tokenizer = model.tokenizer
    if tokenizer is None:
        raise TfspeedError("--prompts needs a tokenizer, and this model has none.",
                           model=model.name)
    encoded = [tokenizer.encode(tokenizer.chat([{"role": "user", "content": p}])
                                if tokenizer.chat_template else p) for p in prompts]
    new_tokens = new_tokens or max(1, min(_NEW_TOKENS, model.context_length
                                          - max(map(len, encoded))))
    for ids in encoded:
        check_fits(model, len(ids), new_tokens)
    journal = Journal(Path(flags.answers), digest(
        [np.asarray(ids, np.int64) for ids in encoded]
        + [np.frombuffer(f"{model.name} {strategy.label} {flags.engine} {flags.dtype} "
                         f"{new_tokens} {sampling}".encode(), np.uint8)]))
    engine = engines.create(flags.engine, model)
    left = [i for i in range(len(prompts)) if i not in journal.answers]
    batch = flags.batch if model.pads else 1
    bar = Progress()
    with bar.task("answering", len(left)) as advance:
        for indices in batches(left, batch):
            for row, tokens in finished(engine, [encoded[i] for i in indices], new_tokens,
                                        sampling.shifted(indices[0]), tokenizer.eos_ids):
                index = indices[row]
                journal.add({"index": index, "prompt": prompts[index],
                             "answer": tokenizer.decode(tokens), "tokens": tokens})
                advance()
    journal.finish()
    bar.say(f"{len(prompts)} answers: {flags.answers}"
            + (f" ({len(prompts) - len(left)} of them from an interrupted run)"
               if len(left) < len(prompts) else ""))


def batches(indices: list[int], most: int) -> list[list[int]]:
    """Stretches of neighbours: what a row draws follows from the first row of its batch."""
    made: list[list[int]] = []
    for index in indices:
        if made and len(made[-1]) < most and made[-1][-1] == index - 1:
            made[-1].append(index)
        else:
            made.append([index])
    return made


def finished(engine, prompts, new_tokens: int, sampling: Sampling,
             stop_tokens) -> Iterator[tuple[int, list[int]]]:
    """(row, tokens) of a batch, each row as soon as it is finished."""
    rows: list[list[int]] = [[] for _ in prompts]
    open_rows = set(range(len(prompts)))
    for step in engine.generate(prompts, new_tokens, sampling, stop_tokens):
        for row in sorted(open_rows):
            token = int(step[row])
            if token != FINISHED:
                rows[row].append(token)
            if token == FINISHED or token in stop_tokens or len(rows[row]) == new_tokens:
                open_rows.discard(row)
                yield row, rows[row]
