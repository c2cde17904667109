"""What a strategy is: a name, a scope, `apply`, and a report of what it did."""

import contextlib
import dataclasses

from tfspeed import gate
from tfspeed.models.language_model import LanguageModel


@dataclasses.dataclass(frozen=True)
class NoOptions:
    """Options of a strategy that has none."""


def option(default, text: str):
    """A field of a strategy's `Options`, with the text that `--help` prints."""
    return dataclasses.field(default=default, metadata={"help": text})


def some(names: list[str], count: int = 6) -> str:
    """The first of some names, for a report."""
    return ", ".join(names[:count]) + (" …" if len(names) > count else "")


class Strategy:
    """One technique. Subclasses set `name` and `Options` and override what they need.

    `Options` is a frozen dataclass; each field is an `option` and becomes the flag
    `--<name>_<field>`. What `apply` did is left in `_lines`, for `report`.
    """

    name = ""
    Options: type = NoOptions
    deploys = False  # whether it decides what runs where: one strategy of a composition can
    spreads = False  # whether it splits the model itself: one of them can, too
    reads_part = False  # whether it takes weights that are still in their file, and reads its own

    def __init__(self, options=None):
        self.options = options if options is not None else self.Options()
        self._lines: list[str] = []

    @property
    def label(self) -> str:
        """The name, with the options that are not the defaults: `quantize(bits=4)`."""
        changed = [f"{field.name}={getattr(self.options, field.name)}"
                   for field in dataclasses.fields(self.options)
                   if getattr(self.options, field.name) != field.default]
        return self.name + (f"({','.join(changed)})" if changed else "")

    @property
    def max_perplexity_increase(self) -> float:
        """By how much this strategy, with its options, may raise perplexity before its row fails:
        0.01 is +1 %. `gate.EXACT` unless a subclass says `INT8`, `INT4` or `STRUCTURAL`."""
        return gate.EXACT

    def steps(self) -> list["Strategy"]:
        """What it is after each strategy of a composition, one after the other."""
        return [self]

    def scope(self) -> contextlib.AbstractContextManager:
        """Entered before the model is built."""
        return contextlib.nullcontext()

    def apply(self, model: LanguageModel, data=None) -> LanguageModel:
        """Returns the changed model; never edits its argument. Called inside `scope`.

        Args:
            data: text for strategies that calibrate or train; None: the project's own.
        """
        raise NotImplementedError

    def report(self) -> list[str]:
        """What was changed, and what was left alone and why, after `apply`."""
        return self._lines


class Composition(Strategy):
    """Several strategies, applied from left to right inside all of their scopes.

    Args:
        before: a composition of the first of these parts; where it was applied, the rest goes on
            from the model that it made.
    """

    def __init__(self, parts: list[Strategy], before: "Composition | None" = None):
        super().__init__()
        self.parts, self.before, self.made = parts, before, None
        self.name = "+".join(part.name for part in parts)

    @property
    def label(self):
        return "+".join(part.label for part in self.parts)

    @property
    def reads_part(self):
        *before, last = self.parts
        return last.reads_part and all(part.deploys for part in before)

    @property
    def max_perplexity_increase(self):
        return max(part.max_perplexity_increase for part in self.parts)

    @contextlib.contextmanager
    def scope(self):
        with contextlib.ExitStack() as stack:
            for part in self.parts:
                stack.enter_context(part.scope())
            yield

    def steps(self):
        steps: list[Composition] = []
        for count in range(1, len(self.parts) + 1):
            steps.append(Composition(self.parts[:count], steps[-1] if steps else None))
        return steps

    def apply(self, model, data=None):
        parts = self.parts
        if self.before is not None and self.before.made is not None:
            model, parts = self.before.made, parts[len(self.before.parts):]
        for part in parts:
            model = part.apply(model, data)
        self.made = model
        return model

    def report(self):
        return [f"{part.name}: {line}" for part in self.parts for line in part.report()]
