"""Whether the next draft pays: what passes have cost, how much of the drafts was right.

A pass over w tokens, w - 1 of them drafted, gives `1 + a + a² + … + a^(w-1)` tokens where a
drafted token is right with probability a. The width with the most tokens a second is taken, 1 (a
plain step) where no other promises more. Estimates can be wrong, so there is a budget of time too:
plain steps fill it, by `_LOSS` of what they take, and drafts that lose time use it up. When it is
empty, there are none for a while; then they are tried again.
"""

_LOSS = 0.005    # of the time of plain steps that drafts may lose
_CREDIT = 2.0    # plain steps that the budget holds, at first and at most
_GAIN = 1.03     # a draft must promise so much
_MEMORY = 0.9    # of an estimate, from one round to the next
_WEIGHT = 4.0    # drafted tokens that the first guess of acceptance counts for
_FORGET = 0.97   # of what is known of a draft that costs something, a step without it


class Account:
    """Args:
        widths: tokens that a pass can read, ascending, 1 first.
        first: acceptance as it is guessed at first.
        calibration: plain steps' worth of time that the budget holds beside `_CREDIT`: what a first
            try takes.

    Attributes:
        draft_s: what drafting a token takes; 0 until it is known.
    """

    def __init__(self, widths: tuple[int, ...], first: float = 0.6, calibration: float = 0.0):
        self._widths = widths
        self._first = first
        self._seconds: dict[int, float] = {}  # of a pass, by its width
        self.draft_s = 0.0                   # of drafting a token
        self._right: dict[int, list[float]] = {}  # by kind: tokens right, tokens judged
        self._most = _CREDIT + calibration    # of the budget, in plain steps
        self._budget = self._most

    def width(self, most: int, kind: int = 0, ahead_s: float = 0.0) -> int:
        """Tokens that the next pass should read, 1 to `most`.

        Args:
            kind: of the draft; each has an acceptance of its own.
            ahead_s: what drafting costs beside its tokens.
        """
        if 1 not in self._seconds:
            return 1
        step, a = self._seconds[1], self.acceptance(kind)
        best, chosen, tokens = _GAIN / step, 1, 1.0
        reached = 1
        for width in self._widths[1:]:
            if width > most:
                break
            for i in range(reached, width):
                tokens += a ** i
            reached = width
            seconds = self.seconds(width) + (width - 1) * self.draft_s + ahead_s
            if tokens / seconds > best:
                best, chosen = tokens / seconds, width
        if chosen > 1:
            risk = self.seconds(chosen) + (chosen - 1) * self.draft_s + ahead_s - step
            if risk > self._budget * step:
                return 1
        return chosen

    def acceptance(self, kind: int = 0) -> float:
        right, judged = self._right.get(kind, (0.0, 0.0))
        return (right + self._first * _WEIGHT) / (judged + _WEIGHT)

    def seconds(self, width: int) -> float:
        """What a pass takes: measured, or guessed from a plain step before it was."""
        return self._seconds.get(width) or self._seconds[1] * (1 + 0.1 * (width - 1))

    def passed(self, width: int, seconds: float, tokens: int, draft_s: float = 0.0,
               ahead_s: float = 0.0) -> None:
        """A pass was made, and gave `tokens` tokens.

        Args:
            draft_s: what drafting took, `ahead_s` beside it.
        """
        if 1 not in self._seconds:
            self._seconds[1] = seconds
            return
        # A pause of the machine's is neither the cost of a pass nor to be held against drafts.
        known, step = self.seconds(width), self._seconds[1]
        new = width not in self._seconds
        self._seconds[width] = _blend(known, seconds, 0.0 if new else _MEMORY)
        gained = _LOSS * tokens
        if width > 1:
            if draft_s:
                each = draft_s / (width - 1)
                self.draft_s = _blend(self.draft_s, each, _MEMORY) if self.draft_s else each
            spent = self._seconds[width] + (width - 1) * self.draft_s + ahead_s
            gained += tokens - spent / step
        self._budget = min(self._budget + gained, self._most)

    def judged(self, drafted: int, right: int, kind: int = 0) -> None:
        """The first `right` of `drafted` tokens were right; those after a wrong one say nothing."""
        known = self._right.setdefault(kind, [0.0, 0.0])
        known[0] = _MEMORY * known[0] + right
        known[1] = _MEMORY * known[1] + min(right + 1, drafted)

    def forget(self, kind: int = 0) -> None:
        """A step without a draft: what is known of one grows old, so that it is tried again."""
        known = self._right.get(kind)
        if known:
            known[0] *= _FORGET
            known[1] *= _FORGET


def _blend(known: float, seconds: float, memory: float) -> float:
    return memory * known + (1 - memory) * min(seconds, 2 * known)
