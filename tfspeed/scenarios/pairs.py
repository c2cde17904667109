"""Texts with their translations, and how near another translation comes to them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tfspeed.errors import TfspeedError

_FEWEST_WORDS = 3  # of a catalogue's text: a button says nothing about a translation


def read(path: str, count: int) -> list[tuple[str, str]]:
    """Pairs of source and translation.

    Args:
        count: how many, spread evenly over the file; 0: all.

    Raises:
        TfspeedError: the file cannot be read, or holds no pairs.
    """
    try:
        found = _catalogue(path) if path.endswith(".po") else _lines(path)
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise TfspeedError("--pairs must be a readable UTF-8 file.", pairs=path[:200],
                           cause=str(error)[:200]) from error
    if not found:
        raise TfspeedError("--pairs holds no pairs: a .po catalogue with translated texts of "
                           f"{_FEWEST_WORDS} words, or `source<TAB>translation` lines.",
                           pairs=path)
    if not count or count >= len(found):
        return found
    return [found[i] for i in np.linspace(0, len(found) - 1, count).astype(int)]


def _catalogue(path: str) -> list[tuple[str, str]]:
    """Whole texts of a gettext catalogue: no plurals, no placeholders, no markup."""
    import polib

    entries = polib.pofile(Path(path).read_text(encoding="utf-8"))
    return [(e.msgid.strip(), e.msgstr.strip()) for e in entries
            if e.translated() and not e.obsolete and not e.msgid_plural
            and len(e.msgid.split()) >= _FEWEST_WORDS and not set(e.msgid) & set("%{}<>\n")]


def _lines(path: str) -> list[tuple[str, str]]:
    pairs = [line.partition("\t") for line in Path(path).read_text(encoding="utf-8").splitlines()]
    return [(a.strip(), b.strip()) for a, tab, b in pairs if tab and a.strip() and b.strip()]


def scores(translations: Sequence[str], references: Sequence[str]) -> dict:
    """chrF and BLEU of a corpus, with the signatures that say how they were counted."""
    from sacrebleu.metrics import BLEU, CHRF

    found: dict = {}
    for name, metric in (("chrf", CHRF()), ("bleu", BLEU())):
        found[name] = metric.corpus_score(list(translations), [list(references)]).score
        found[f"{name}_signature"] = str(metric.get_signature())
    return found
