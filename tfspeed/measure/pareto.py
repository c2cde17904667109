"""Speed over quality: rows of several runs in one picture, the best of them joined by a line.

Each row is set against the baseline of its own run, measured interleaved with it: how many times as
fast a decode step is, and by how much perplexity rises.
"""

import dataclasses
import io
from pathlib import Path

from tfspeed.errors import TfspeedError
from tfspeed.measure import report

_SIZE, _DPI = (9, 5.5), 120


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
    found = {}
    for path in paths:
        for row in report.read_json(path).get("rows", ()):
            speed, loss = row.get("speedup", {}).get("tpot"), row.get("perplexity_delta")
            if speed and loss is not None:
                label = f"{report.label(row)}, {row['engine']}"
                found[label] = Point(label, speed["ratio"], speed["low"], speed["high"], loss,
                                     row.get("gate", {}).get("passed", True))
    if not found:
        raise TfspeedError("No row of these files has a speed-up and a perplexity.", results=paths,
                           hint="Write them with scripts/run.py --output=….json.")
    return sorted(found.values(), key=lambda p: (p.loss, -p.speedup))


def front(found: list[Point]) -> list[Point]:
    """Those that no other beats in both, by rising loss."""
    best, kept = 0.0, []
    for point in found:
        if point.speedup > best:
            best = point.speedup
            kept.append(point)
    return kept


def picture(found: list[Point], title: str) -> bytes:
    """A PNG."""
    import matplotlib
    matplotlib.use("Agg")  # no display is needed
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=_SIZE, dpi=_DPI, layout="constrained")
    best = front(found)
    axes.plot([100 * p.loss for p in best], [p.speedup for p in best], color="#8a8a8a", lw=1,
              zorder=1)
    for point in found:
        color = "#1f77b4" if point in best else "#9aa5b1"
        if point.low is not None:
            axes.plot([100 * point.loss] * 2, [point.low, point.high], color=color, lw=1)
        axes.scatter(100 * point.loss, point.speedup, s=36, zorder=2, color=color,
                     marker="o" if point.passed else "x")
        axes.annotate(point.label, (100 * point.loss, point.speedup), fontsize=7,
                      xytext=(5, 3), textcoords="offset points")
    axes.axhline(1, color="#cccccc", lw=1, zorder=0)
    if max(p.loss for p in found) > 0.5:
        axes.set_xscale("symlog", linthresh=10)
    axes.set_xlabel("perplexity over the float32 baseline, % (less is better)")
    axes.set_ylabel("decode speed-up over the baseline, times (more is better)")
    axes.set_title(f"{title}   (line: Pareto front; ×: over its gate)", loc="left", fontsize=10)
    axes.grid(alpha=0.25)
    content = io.BytesIO()
    figure.savefig(content, format="png")
    plt.close(figure)
    return content.getvalue()


def write(found: list[Point], title: str, output: str, logdir: str) -> None:
    """Writes the picture as a file, and into TensorBoard as an image."""
    import tensorflow as tf

    content = picture(found, title)
    try:
        Path(output).write_bytes(content)
        with tf.summary.create_file_writer(str(Path(logdir) / "pareto")).as_default(step=0):
            tf.summary.image("pareto", tf.io.decode_png(content, channels=3)[None])
    except (OSError, tf.errors.OpError) as error:
        raise TfspeedError("The picture cannot be written.", output=output, logdir=logdir,
                           cause=str(error)[:200]) from error
