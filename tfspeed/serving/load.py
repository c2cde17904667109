"""What is asked of a server, and when: Poisson arrivals, or a trace that is replayed."""

import csv
import dataclasses
import datetime
import math
from pathlib import Path

import numpy as np

from tfspeed.errors import TfspeedError

_COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")  # of Azure's LLM traces


@dataclasses.dataclass(frozen=True)
class Call:
    """A request: `at` seconds after the first, `prompt` token ids, `new_tokens` to generate."""

    at: float
    prompt: list[int]
    new_tokens: int


def poisson(count: int, rate: float, prompt_tokens: int, new_tokens: int, spread: float,
            seed: int = 0) -> list[tuple[float, int, int]]:
    """(seconds, prompt tokens, new tokens) of requests that come `rate` times a second on average,
    independently; inf: all at once.

    Args:
        spread: lengths are uniform in [1 - spread, 1 + spread] of the given ones.
    """
    if count < 1 or not rate > 0 or not 0 <= spread <= 1 or min(prompt_tokens, new_tokens) < 1:
        raise TfspeedError("A load needs at least one request of at least one token, a rate over "
                           "0, and a spread in [0, 1].", requests=count, rate=rate, spread=spread,
                           prompt_tokens=prompt_tokens, new_tokens=new_tokens)
    random = np.random.default_rng(seed)
    gaps = random.exponential(1 / rate, count) if math.isfinite(rate) else np.zeros(count)
    times = np.concatenate([[0.0], gaps.cumsum()[:-1]])

    def lengths(mean):
        drawn = random.uniform(1 - spread, 1 + spread, count) * mean
        return np.maximum(1, drawn.round().astype(int)).tolist()

    return list(zip(times.tolist(), lengths(prompt_tokens), lengths(new_tokens), strict=True))


def trace(path: str, count: int, rate: float | None, scale: float) -> list[tuple[float, int, int]]:
    """The first requests of a CSV file in the format of Azure's LLM traces.

    Args:
        rate: times are stretched so that so many come a second on average; None: as they are.
        scale: both lengths are multiplied by it.
    """
    try:
        with Path(path).open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            if not set(_COLUMNS) <= set(reader.fieldnames or ()):
                raise TfspeedError("A trace needs the columns of Azure's: " + ", ".join(_COLUMNS)
                                   + ".", columns=reader.fieldnames)
            rows = [_row(row) for row, _ in zip(reader, range(count), strict=False)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise TfspeedError("--trace must be a readable CSV file.", trace=path,
                           cause=str(error)) from error
    if not rows:
        raise TfspeedError("The trace has no requests.", trace=path)
    rows.sort()
    first, last = rows[0][0], rows[-1][0]
    stretch = 1.0
    if rate is not None and last > first:
        stretch = (len(rows) - 1) / rate / (last - first) if math.isfinite(rate) else 0.0
    return [((at - first) * stretch, max(1, round(context * scale)), max(1, round(new * scale)))
            for at, context, new in rows]


def _row(row: dict) -> tuple[float, int, int]:
    try:
        # Some have seven digits after the second, Python takes six.
        moment, _, fraction = row["TIMESTAMP"].partition(".")
        seconds = datetime.datetime.fromisoformat(moment).timestamp()
        digits = fraction.split("+")[0].rstrip("Z")
        return (seconds + float(f"0.{digits or 0}"), int(row["ContextTokens"]),
                int(row["GeneratedTokens"]))
    except (ValueError, TypeError, AttributeError) as error:
        raise TfspeedError("A row of the trace is damaged.", row=str(row)[:200]) from error


def calls(load: list[tuple[float, int, int]], ids: list[int], context: int, shared: int = 0,
          seed: int = 0) -> tuple[list[Call], int]:
    """Prompts for a load: stretches of a text that begin anywhere, after a shared beginning.

    Args:
        ids: the text's tokens.
        context: tokens that a prompt and what is generated may have; who wants more gets less.
        shared: tokens with which all prompts begin.

    Returns:
        The calls, and how many were cut to fit.
    """
    random, made, cut = np.random.default_rng(seed), [], 0
    text = ids * (-(-context // len(ids)) + 1)
    for at, prompt, new in load:
        own = min(prompt, context - shared - 1)
        if own < 1:
            raise TfspeedError("The shared beginning leaves no room for a prompt.", shared=shared,
                               context=context)
        start = int(random.integers(0, len(ids)))
        new_tokens = min(new, context - shared - own)
        cut += own < prompt or new_tokens < new
        made.append(Call(at, text[:shared] + text[start:start + own], new_tokens))
    return made, cut
