"""One text on its way: draft, verify, keep what was right."""

import dataclasses
import time

from tfspeed.speculation.account import Account
from tfspeed.speculation.drafts import Drafter
from tfspeed.speculation.texts import Text


@dataclasses.dataclass
class Counts:
    """What passes of the model came to: tokens chosen, passes that verified a draft, tokens of
    these drafts, and how many of them were right."""

    passes: int = 0
    tokens: int = 0
    rounds: int = 0
    drafted: int = 0
    accepted: int = 0

    def summary(self) -> dict:
        """See `measure.metrics.DEFINITIONS`."""
        if not self.passes:
            return {}
        return {"tokens_per_pass": self.tokens / self.passes,
                "draft_acceptance": self.accepted / self.drafted if self.drafted else None,
                "drafted_tokens": self.drafted, "draft_share": self.rounds / self.passes}


class Generation:
    """Args:
        adaptive: whether drafts are made only where they pay.
    """

    def __init__(self, text: Text, drafter: Drafter, account: Account, counts: Counts,
                 adaptive: bool):
        self._text, self._drafter, self._account = text, drafter, account
        self._counts, self._adaptive = counts, adaptive
        self._watched: list[int] = []  # a free draft that was not used
        self._kind = self._right = 0   # of it: its kind, and how far it was right

    def begin(self, prompt: list[int], sampling) -> list[int]:
        """The first token."""
        chosen = self._text.begin(prompt, sampling)
        self._drafter.begin(prompt, self._text)
        return [chosen]

    def go_on(self, chosen: list[int], count: int, left: int) -> list[int]:
        """The next tokens, one or more.

        Args:
            chosen: what the last call gave.
            count: tokens given so far.
            left: tokens wanted, at most.
        """
        text, drafter, account = self._text, self._drafter, self._account
        drafter.extend(chosen)
        kind, start = drafter.kind(), time.perf_counter()
        width = self._width(kind, min(left, text.room()))
        drafts = drafter.draft(width - 1) if width > 1 else []
        drafts = drafts[:self._widest(len(drafts) + 1) - 1]
        verify = time.perf_counter()
        made = self._verify(chosen[-1], drafts, count)
        end = time.perf_counter()
        right = _right(drafts, made)
        if drafts:
            account.judged(len(drafts), right, kind)
            ahead_s = min(drafter.ahead_s, verify - start)
            account.passed(len(drafts) + 1, end - verify, len(made), verify - start - ahead_s,
                           ahead_s)
        else:
            account.passed(1, end - verify, len(made))
        self._watch(kind, drafts, made)
        counts = self._counts
        counts.passes += 1
        counts.tokens += len(made)
        counts.rounds += bool(drafts)
        counts.drafted += len(drafts)
        counts.accepted += right
        return made

    def _width(self, kind: int, most: int) -> int:
        """Tokens that the next pass reads."""
        if kind < 0:
            return 1
        if not self._adaptive:
            return self._widest(most)
        ahead_s = self._drafter.ahead() * self._account.draft_s
        return self._account.width(most, kind, ahead_s)

    def _widest(self, most: int) -> int:
        return max(width for width in self._text.widths if width <= most)

    def _verify(self, last: int, drafts: list[int], count: int) -> list[int]:
        text, filled, made = self._text, self._text.filled, []
        for token in text.read([last, *drafts], count):
            made.append(token)
            if len(made) <= len(drafts) and token != drafts[len(made) - 1]:
                break
        text.take_back(filled + len(made))
        return made

    def _watch(self, kind: int, drafts: list[int], made: list[int]) -> None:
        """Judges what was not drafted: a free draft by what came instead of it; any other is
        forgotten by and by."""
        if drafts or (kind < 0 and not self._watched):
            self._watched = []
        elif not self._drafter.free:
            self._account.forget(kind)
        else:
            if not self._watched:
                self._watched = self._drafter.draft(self._text.widths[-1] - 1)
                self._kind, self._right = kind, 0
            was_right = self._watched[self._right] == made[0]
            self._right += was_right
            if not was_right or self._right == len(self._watched):
                self._account.judged(len(self._watched), self._right, self._kind)
                self._watched = []


def _right(drafts: list[int], made: list[int]) -> int:
    """How many of the drafted tokens are those that were made."""
    for i, (drafted, token) in enumerate(zip(drafts, made, strict=False)):
        if drafted != token:
            return i
    return min(len(drafts), len(made))
