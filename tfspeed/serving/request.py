"""One text being continued for somebody: what was asked for, and how far it has come."""

import dataclasses
import itertools
from collections.abc import Callable

from tfspeed.engines.sampling import Sampling
from tfspeed.errors import TfspeedError

_arrivals = itertools.count()


@dataclasses.dataclass(frozen=True)
class Token:
    """A new token. `logprob` and `top`, `[(token, logprob), …]`, where they were asked for."""

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


@dataclasses.dataclass(frozen=True)
class Update:
    """What a step brought to a request.

    Attributes:
        text: new text, "" while a character or a stop string is undecided.
        tokens: the new tokens.
        reason: why it is over (`stop`, `length`, `cancelled`, `timeout`, `error`), None before.
        error: what went wrong, for `error`.
    """

    text: str = ""
    tokens: tuple[Token, ...] = ()
    reason: str | None = None
    error: str = ""


@dataclasses.dataclass(eq=False)
class Request:
    """Args:
        prompt: token ids.
        max_tokens: how many to add at most.
        stop_tokens: ids that end it; they are no part of the text.
        text: turns tokens into text and finds stop strings; None for ids only.
        priority: smaller goes first; among equals, who came first.
        logprobs: how many likeliest tokens to tell with each; None for no log-probabilities.
        deadline: when it is given up, by `time.monotonic`.
        tell: called with each `Update`, on the worker's thread.
    """

    prompt: list[int]
    max_tokens: int
    sampling: Sampling = dataclasses.field(default_factory=Sampling)
    stop_tokens: frozenset[int] = frozenset()
    text: object | None = None
    priority: int = 0
    logprobs: int | None = None
    deadline: float | None = None
    tell: Callable[[Update], None] = lambda update: None

    # How far it has come; the scheduler's.
    arrival: int = dataclasses.field(default_factory=lambda: next(_arrivals))
    tokens: list[int] = dataclasses.field(init=False)
    computed: int = 0  # tokens whose keys and values are in the blocks
    reused: int = 0    # of them, those that somebody else had computed, the first time
    blocks: list[int] = dataclasses.field(default_factory=list)
    keys: list[bytes] = dataclasses.field(default_factory=list)
    preemptions: int = 0

    def __post_init__(self):
        if not self.prompt:
            raise TfspeedError("A prompt needs at least one token.", prompt_tokens=0)
        if self.max_tokens < 1:
            raise TfspeedError("At least one new token must be asked for.",
                               max_tokens=self.max_tokens)
        self.tokens = list(self.prompt)

    @property
    def rank(self) -> tuple[int, int]:
        return self.priority, self.arrival

    @property
    def generated(self) -> int:
        return len(self.tokens) - len(self.prompt)

    @property
    def unread(self) -> int:
        """Tokens that a backend has yet to read; 1 while it decodes."""
        return len(self.tokens) - self.computed
