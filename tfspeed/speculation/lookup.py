"""Prompt lookup: what came last after the same few tokens is likely to come again."""

from collections import defaultdict

_LEAST, _MOST = 2, 8  # tokens that must have come before, and beyond which more do not matter
_TRIED = 16           # places that are looked at, the last ones


class Lookup:
    """A text, with an index of its pairs of tokens."""

    def __init__(self, tokens):
        self._tokens: list[int] = []
        self._places: dict[tuple[int, int], list[int]] = defaultdict(list)
        self.extend(tokens)

    def extend(self, tokens) -> None:
        """Adds what the text goes on with."""
        text = self._tokens
        for token in tokens:
            if len(text) >= _LEAST:  # the pair before it is followed by something now
                self._places[text[-2], text[-1]].append(len(text))
            text.append(token)

    def draft(self, count: int) -> tuple[list[int], int]:
        """Up to `count` tokens that the text may go on with, and how many tokens before them are
        those at its end, `[2, 8]`; ([], 0) where its end has not been seen before."""
        text = self._tokens
        if len(text) < _LEAST:
            return [], 0
        best, longest = 0, 0
        for place in reversed(self._places.get((text[-2], text[-1]), ())[-_TRIED:]):
            length = _LEAST
            while (length < _MOST and length < place
                   and text[place - 1 - length] == text[-1 - length]):
                length += 1
            if length > longest:
                best, longest = place, length
            if longest == _MOST:
                break
        if not longest:
            return [], 0
        found = text[best:best + count]
        period = len(text) - best
        while len(found) < count:  # it runs into its own end: what repeats goes on repeating
            found.append(found[len(found) - period])
        return found, longest
