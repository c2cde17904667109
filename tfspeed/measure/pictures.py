"""One look for all pictures: the same sizes, grid and colours, on light paper and on dark.

Colours are asked for as `C0`, `C1`, …, so that each kind of paper has its own: told apart by people
who cannot see red or green (after Okabe and Ito 2008), with a contrast over 3 to 1 on that paper.
"""

import io
from collections.abc import Callable
from pathlib import Path

from tfspeed.errors import TfspeedError

MUTED = "#868c94"  # what only leads the eye; legible on both kinds of paper
_DPI = 120
_SHARED = {
    "font.size": 9, "axes.titlesize": 10, "axes.titlelocation": "left", "axes.labelsize": 9,
    "legend.fontsize": 8, "legend.frameon": False, "axes.grid": True, "axes.axisbelow": True,
    "axes.spines.top": False, "axes.spines.right": False, "grid.linewidth": 0.6,
    "lines.linewidth": 1.8, "lines.markersize": 5,
    # SVG: letters stay letters, and the same figures give the same file.
    "svg.fonttype": "none", "svg.hashsalt": "tfspeed",
    "font.family": ["DejaVu Sans", "sans-serif"],
}
_PAPERS = {  # paper, ink, grid, colours
    False: ("#ffffff", "#1f2328", "#e1e4e8",
            ("#0066b2", "#c2410c", "#00805e", "#9a3d86", "#8a6a00", "#475569")),
    True: ("#0d1117", "#e6edf3", "#2b323b",
           ("#58a6ff", "#ff9b5e", "#3fcf9b", "#e29bd4", "#e0bb4a", "#aab6c3")),
}


def rendered(paint: Callable, size: tuple[float, float], form: str = "png",
             dark: bool = False) -> bytes:
    """The picture that `paint(figure)` makes.

    Args:
        paint: draws on a `matplotlib.figure.Figure`.
        size: inches.
        form: `png` or `svg`.
    """
    import cycler
    import matplotlib
    from matplotlib.figure import Figure  # not pyplot: no window, no state

    paper, ink, grid, colors = _PAPERS[dark]
    style = _SHARED | {"figure.facecolor": paper, "axes.facecolor": paper, "text.color": ink,
                       "axes.labelcolor": ink, "axes.edgecolor": ink, "xtick.color": ink,
                       "ytick.color": ink, "grid.color": grid,
                       "axes.prop_cycle": cycler.cycler(color=colors)}
    content = io.BytesIO()
    with matplotlib.rc_context(style):
        figure = Figure(figsize=size, dpi=_DPI, layout="constrained")
        paint(figure)
        figure.savefig(content, format=form, metadata={"Date": None} if form == "svg" else None)
    return content.getvalue()


def plain_ticks(axis) -> None:
    """Labels a logarithmic axis with 1, 2 and 5 of each power of ten, written out."""
    def label(value, position):
        del position
        return f"{value:,g}" if f"{value:e}"[0] in "125" else ""

    axis.set_major_formatter(label)
    axis.set_minor_formatter(label)


def write(paint: Callable, size: tuple[float, float], output: str, logdir: str, tag: str) -> None:
    """Writes the picture as a file, SVG if it is called so, else PNG; TensorBoard gets it as an
    image of the run `tag`."""
    import tensorflow as tf

    content = rendered(paint, size)
    svg = Path(output).suffix.lower() == ".svg"
    try:
        Path(output).write_bytes(rendered(paint, size, "svg") if svg else content)
        with tf.summary.create_file_writer(str(Path(logdir) / tag)).as_default(step=0):
            tf.summary.image(tag, tf.io.decode_png(content, channels=3)[None])
    except (OSError, tf.errors.OpError) as error:
        raise TfspeedError("The picture cannot be written.", output=output, logdir=logdir,
                           cause=str(error)[:200]) from error
