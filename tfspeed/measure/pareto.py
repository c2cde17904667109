"""Speed over quality: rows of several runs in one picture, the best of them joined by a line.

Each row is set against the baseline of its own run, measured interleaved with it: how many times as
fast a decode step is, and by how much perplexity rises.
"""

import dataclasses
from collections.abc import Sequence

from tfspeed.errors import TfspeedError
from tfspeed.measure import pictures, report
from tfspeed.measure.pictures import MUTED

SIZE = (9, 5.5)


@dataclasses.dataclass(frozen=True)
class Point:
    """One row: `speedup` of a decode step, `loss` the rise of perplexity as a fraction."""

    label: str
    speedup: float
    low: float | None
    high: float | None
    loss: float
    passed: bool


def points(paths: list[str]) -> list[Point]:
    """The rows with both figures, of results that `scripts/run.py` wrote; a label that comes
    twice keeps its latest row.

    Raises:
        TfspeedError: a file is none, or no row has both.
    """
    found = of_rows([row for path in paths for row in report.read_json(path).get("rows", ())])
    if not found:
        raise TfspeedError("No row of these files has a speed-up and a perplexity.", results=paths,
                           hint="Write them with scripts/run.py --output=….json.")
    return found


def of_rows(rows: Sequence[dict]) -> list[Point]:
    """The same of rows."""
    found = {}
    for row in rows:
        speed, loss = row.get("speedup", {}).get("tpot"), row.get("perplexity_delta")
        if speed and loss is not None:
            label = f"{report.label(row)}, {row['engine']}"
            found[label] = Point(label, speed["ratio"], speed["low"], speed["high"], loss,
                                 row.get("gate", {}).get("passed", True))
    return sorted(found.values(), key=lambda p: (p.loss, -p.speedup))


def front(found: list[Point]) -> list[Point]:
    """Those that no other beats in both, by rising loss."""
    best, kept = 0.0, []
    for point in found:
        if point.speedup > best:
            best = point.speedup
            kept.append(point)
    return kept


def painter(found: list[Point], title: str):
    """For `pictures.rendered`."""
    def paint(figure):
        axes, best = figure.subplots(), front(found)
        axes.plot([100 * p.loss for p in best], [p.speedup for p in best], color=MUTED, lw=1,
                  zorder=1)
        for point in found:
            color = "C0" if point in best else MUTED
            if point.low is not None:
                axes.plot([100 * point.loss] * 2, [point.low, point.high], color=color, lw=1)
            axes.scatter(100 * point.loss, point.speedup, s=36, zorder=2, color=color,
                         marker="o" if point.passed else "x")
            axes.annotate(point.label, (100 * point.loss, point.speedup), fontsize=8,
                          xytext=(6, 4), textcoords="offset points")
        axes.axhline(1, color=MUTED, lw=0.8, ls=":", zorder=0)
        if max(p.loss for p in found) > 0.5:
            axes.set_xscale("symlog", linthresh=10)
        axes.margins(x=0.15)  # for the last label
        axes.set_xlabel("perplexity over the float32 baseline, % (less is better)")
        axes.set_ylabel("decode speed-up over the baseline, times (more is better)")
        axes.set_title(f"{title}   (line: Pareto front; ×: over its gate)")

    return paint


def write(found: list[Point], title: str, output: str, logdir: str) -> None:
    """Writes the picture as a file, and into TensorBoard as an image."""
    pictures.write(painter(found, title), SIZE, output, logdir, "pareto")
