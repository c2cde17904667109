"""Decode speed beside what memory allows: a step cannot be faster than the reading of its bytes."""

from collections.abc import Sequence

from tfspeed.measure import report
from tfspeed.measure.pictures import MUTED, plain_ticks

SIZE = (9, 5)


def usable(rows: Sequence[dict]) -> list[dict]:
    """Those that know their bytes, their time and the machine's bandwidth."""
    return [row for row in rows if row.get("tpot_s") and row.get("step_bytes")
            and row.get("read_bandwidth_gb_per_s")]


def painter(rows: Sequence[dict]):
    """For `pictures.rendered`: rows of `scripts/run.py` or `bench.py` at batch 1, tokens a second
    over the bytes of a step, under the line of the reads that were measured beside them."""
    rows = [row for row in usable(rows) if row["batch"] == 1]

    def paint(figure):
        ax = figure.subplots()
        if not rows:
            return
        # The limit of each size is what was read beside it: a cache may hold a part of a small one.
        limits = sorted((row["step_bytes"] / 1e6, 1e9 * row["read_bandwidth_gb_per_s"]
                         / row["step_bytes"]) for row in rows)
        ax.plot(*zip(*limits, strict=True), ".-", color=MUTED, lw=1.2,
                label="limit: reading so many bytes, measured beside")
        for i, row in enumerate(rows):
            speed = 1 / row["tpot_s"]["median"]
            ax.scatter(row["step_bytes"] / 1e6, speed, s=40, color=f"C{i % 6}", zorder=3)
            ax.annotate(f"{report.label(row)}, {row['engine']}",
                        (row["step_bytes"] / 1e6, speed), fontsize=8, xytext=(-7, -11), ha="right",
                        textcoords="offset points")
        ax.set_xscale("log")
        ax.set_yscale("log")
        plain_ticks(ax.xaxis)
        plain_ticks(ax.yaxis)
        ax.set_xlim(limits[0][0] / 2.5, limits[-1][0] * 1.3)  # room for the first label
        ax.set(xlabel="MB that a decode step reads", ylabel="decode, tokens/s",
               title=f"{report.title(rows[-1])}: decode beside the memory's limit")
        ax.legend()

    return paint
