"""Goodput: requests a second that keep some limits; over the rate at which they come, a picture."""

from collections.abc import Sequence

from tfspeed.measure.pictures import MUTED
from tfspeed.serving import bench

SIZE = (9, 5)


def parse(text: str) -> list[dict[str, float]]:
    """Several of `bench.parse_goodput`, joined by semicolons."""
    return [bench.parse_goodput(part) for part in text.split(";") if part.strip()]


def of(served: Sequence[bench.Served], seconds: float, limits: Sequence[dict]) -> list[dict]:
    """For each set of limits its `limits_ms`, the good requests a second, `request_goodput`, and
    their `share` of all that were sent."""
    met = [bench.good(served, some) for some in limits]
    return [{"limits_ms": some, "request_goodput": count / seconds, "share": count / len(served)}
            for some, count in zip(limits, met, strict=True)]


def limits(goodput: dict) -> str:
    """`TTFT 500, TPOT 30 ms` of an entry of `goodputs`."""
    return ", ".join(f"{name.upper()} {value:g}" for name, value in goodput["limits_ms"].items()
                     ) + " ms"


def painter(rows: Sequence[dict]):
    """For `pictures.rendered`: good requests a second for each set of limits, beside the line of
    those that came. The row where all came at once has no place on it."""
    rows = sorted((row for row in rows if row.get("request_rate") and row.get("goodputs")
                   and row["request_rate"] < float("inf")), key=lambda row: row["request_rate"])

    def paint(figure):
        ax = figure.subplots()
        if not rows:
            return
        rates = [row["request_rate"] for row in rows]
        ax.plot(rates, rates, ls=":", color=MUTED, lw=1, label="all that come")
        ax.plot(rates, [row["request_throughput"] for row in rows], "s--", color="C3", lw=1.2,
                label="answered, good or not")
        for i, found in enumerate(rows[0]["goodputs"]):
            ax.plot(rates, [row["goodputs"][i]["request_goodput"] for row in rows], "o-",
                    color=f"C{i}", label=f"good: {limits(found)}")
        ax.set_ylim(0)
        ax.set_xlabel("requests that come, a second")
        ax.set_ylabel("requests a second")
        ax.set_title(f"Goodput of {rows[0]['model_id']}, {rows[0]['engine']}, "
                     f"{rows[0]['num_prompts']} requests at each rate")
        ax.legend()

    return paint
