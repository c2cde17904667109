"""What a cost model said beside what was measured, as a picture."""

from collections.abc import Sequence

import numpy as np

from tfspeed.measure.pictures import MUTED, plain_ticks

SIZE = (6.5, 6)


def pairs(rows: Sequence[dict]) -> dict[str, list[tuple[float, float]]]:
    """By metric in seconds, `(measured, predicted)` of the rows that have both."""
    found: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        for name, said in row.get("predicted", {}).items():
            value = row.get(name)
            value = value["median"] if isinstance(value, dict) else value
            if name.endswith("_s") and value and said:
                found.setdefault(name, []).append((value, said))
    return found


def painter(rows: Sequence[dict]):
    """For `pictures.rendered`: a point a row and metric, the line where both agree, and those at
    20 % beside it."""
    found = pairs(rows)

    def paint(figure):
        ax = figure.subplots()
        if not found:
            return
        values = np.array([v for some in found.values() for pair in some for v in pair]) * 1e3
        ends = np.array([values.min() / 1.5, values.max() * 1.5])
        ax.plot(ends, ends, color=MUTED, lw=1.2, label="as measured")
        ax.fill_between(ends, ends / 1.2, ends * 1.2, color=MUTED, alpha=0.2, lw=0,
                        label="within 20 %")
        for i, (name, some) in enumerate(found.items()):
            measured, said = 1e3 * np.array(some).T
            errors = np.abs(said / measured - 1)
            ax.scatter(measured, said, s=28, color=f"C{i % 6}", zorder=3,
                       label=f"{name.removesuffix('_s')}: {len(some)} points, off by "
                             f"{np.median(errors):.0%} in the median, {errors.max():.0%} at worst")
        ax.set_xscale("log")
        ax.set_yscale("log")
        plain_ticks(ax.xaxis)
        plain_ticks(ax.yaxis)
        ax.set(xlabel="measured, ms", ylabel="predicted, ms", title="Predicted and measured")
        ax.legend()

    return paint
