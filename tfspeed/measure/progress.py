"""Progress bars on standard error; silent where it is no terminal."""

import contextlib
import functools
from collections.abc import Callable, Iterator

import rich.console
import rich.progress


@functools.cache
def _console() -> rich.console.Console:
    """One for all, so that bars within bars are drawn below each other."""
    return rich.console.Console(stderr=True)


class Progress:
    """`with bar.task("what", total) as advance: … advance()`, or `advance("what now")`."""

    def __init__(self):
        self.console = _console()

    @contextlib.contextmanager
    def task(self, what: str, total: int | None) -> Iterator[Callable[..., None]]:
        columns = (rich.progress.SpinnerColumn(), "[progress.description]{task.description}",
                   rich.progress.BarColumn(), rich.progress.MofNCompleteColumn(),
                   rich.progress.TimeElapsedColumn(), rich.progress.TimeRemainingColumn())
        shown = rich.progress.Progress(*columns, console=self.console, transient=True,
                                       disable=not self.console.is_terminal)
        with shown:
            task = shown.add_task(what, total=total)
            yield lambda now=what: shown.update(task, advance=1, description=now)

    def say(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False)
