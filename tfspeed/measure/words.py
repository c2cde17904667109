"""Word error rate."""

import re
import unicodedata
from collections.abc import Sequence

# What is written short and spoken long, as transcripts of read books spell it.
_SPOKEN = {"mr": "mister", "mrs": "missus", "dr": "doctor", "st": "saint"}


def words(text: str) -> list[str]:
    """Lower-case words without punctuation; an apostrophe inside of a word stays."""
    text = unicodedata.normalize("NFKC", text).lower().replace("’", "'")
    found = re.findall(r"\w+(?:'\w+)*", text.replace("_", " "))
    return [_SPOKEN.get(word, word) for word in found]


def word_errors(reference: str, hypothesis: str) -> tuple[int, int]:
    """The fewest substitutions, deletions and insertions (Levenshtein) that make one the other,
    and the words of the reference."""
    want, have = words(reference), words(hypothesis)
    row = list(range(len(have) + 1))
    for i, word in enumerate(want, 1):
        before, row[0] = row[0], i
        for j, other in enumerate(have, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (word != other))
    return row[-1], len(want)


def word_error_rate(references: Sequence[str], hypotheses: Sequence[str]) -> float:
    """Errors of all texts / words of all references; over 1 where much was invented."""
    pairs = [word_errors(*pair) for pair in zip(references, hypotheses, strict=True)]
    total = sum(count for _, count in pairs)
    return sum(errors for errors, _ in pairs) / total if total else float("nan")
