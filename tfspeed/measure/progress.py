"""Progress bars on standard error; silent where it is no terminal."""

import contextlib
from collections.abc import Callable, Iterator

import rich.console
import rich.progress


class Progress:
    """`with bar.task("what", total) as advance: … advance()`."""

    def __init__(self):
        self.console = rich.console.Console(stderr=True)

    @contextlib.contextmanager
    def task(self, what: str, total: int | None) -> Iterator[Callable[[], None]]:
        columns = (rich.progress.SpinnerColumn(), "[progress.description]{task.description}",
                   rich.progress.BarColumn(), rich.progress.MofNCompleteColumn(),
                   rich.progress.TimeElapsedColumn(), rich.progress.TimeRemainingColumn())
        shown = rich.progress.Progress(*columns, console=self.console, transient=True,
                                       disable=not self.console.is_terminal)
        with shown:
            task = shown.add_task(what, total=total)
            yield lambda: shown.advance(task)

    def say(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False)
