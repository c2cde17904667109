"""Who guesses the next tokens: the text itself, the model's first layers, or a copy in few bits."""

import time

from tfspeed.engines.sampling import Sampling
from tfspeed.speculation.lookup import Lookup
from tfspeed.speculation.texts import Text


class Drafter:
    """Attributes:
        free: whether a draft costs next to nothing, so that one can be made only to see whether
            it would have been right.
        first: acceptance as it is guessed at first.
        calibration: see `Account`.
        ahead_s: seconds that the last draft took before its first token.
    """

    ahead_s = 0.0
    free = False
    first = 0.7
    calibration = 12.0

    def begin(self, prompt: list[int], text: Text) -> None:
        """A new text, which goes on with what `extend` is told."""

    def extend(self, tokens: list[int]) -> None:
        """What the text goes on with."""

    def kind(self) -> int:
        """How sure the next draft is, for `Account`; -1 where there will be none."""
        return 0

    def ahead(self) -> float:
        """What must be read before the next draft, in steps of the drafter's."""
        return 0.0

    def draft(self, count: int) -> list[int]:
        raise NotImplementedError


class LookupDrafter(Drafter):
    free, first, calibration = True, 0.5, 0.0

    def begin(self, prompt, text):
        self._lookup = Lookup(prompt)
        self._found: tuple[list[int], int] | None = None
        self._most = text.widths[-1] - 1

    def extend(self, tokens):
        self._lookup.extend(tokens)
        self._found = None

    def kind(self):
        if self._found is None:
            self._found = self._lookup.draft(self._most)
        return self._found[1] or -1

    def draft(self, count):
        self.kind()
        return self._found[0][:count]


class ExitDrafter(Drafter):
    first, calibration = 0.5, 4.0

    def begin(self, prompt, text):
        self._text = text

    def extend(self, tokens):
        self._last = tokens[-1]

    def draft(self, count):
        return self._text.leave_early(self._last, count)


class CopyDrafter(Drafter):
    """Another text, of another model with the same tokens.

    Args:
        open_text: gives a text for so many tokens of a prompt, and so many after it.
    """

    def __init__(self, open_text):
        self._open, self._text = open_text, None

    def begin(self, prompt, text):
        self._tokens, self._guess, self._begun = list(prompt), [], False

    def extend(self, tokens):
        self._tokens += tokens

    def ahead(self):
        if not self._begun:
            return 0.2 * len(self._tokens)  # a prompt is read in tiles
        return 0.3 * (len(self._tokens) - self._text.filled - 1)

    def draft(self, count):
        needed = len(self._tokens), count
        if self._text is None or not self._text.fits(*needed):
            self._text, self._begun = self._open(*needed), False
        start = time.perf_counter()
        made = self._read_text() if self._begun else [self._text.begin(self._tokens, Sampling())]
        self.ahead_s = time.perf_counter() - start
        self._begun, self._base = True, len(self._tokens)
        while len(made) < count:
            made += self._text.read(made[-1:], 0)
        self._guess = made
        return made

    def _read_text(self) -> list[int]:
        """Reads what the text has gone on with; the token after it."""
        right, text = 0, self._text
        for guess, token in zip(self._guess, self._tokens[self._base:], strict=False):
            if guess != token:
                break
            right += 1
        # What was guessed right has been read already; the logits after the last are wanted.
        text.take_back(min(text.filled, self._base + right, len(self._tokens) - 1))
        unread = self._tokens[text.filled:]
        while unread:
            chunk = unread[:max(w for w in text.widths if w <= len(unread))]
            made = list(text.read(chunk, 0))[-1:]
            unread = unread[len(chunk):]
        return made
