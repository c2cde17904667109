"""Where the time of one decode step goes: by kind of operator, and the slowest of all."""

from collections.abc import Sequence

import rich.box
import rich.table

from tfspeed.measure.report import label

SIZE = (8, 4)
_SHOWN = 10  # single parts in a table


def summary(parts: Sequence[dict], source: str) -> dict:
    """What a row holds of `Engine.profile`.

    Returns:
        `source`; `step_s`, the sum; `kinds` and `parts`, each `{name, calls, seconds, share}`, the
        slowest first, parts with their `kind`. Parts without a measurable time are left out.
    """
    total = sum(part["seconds"] for part in parts) or 1.0
    kinds: dict[str, dict] = {}
    for part in parts:
        name = part.get("kind", part["name"])
        kind = kinds.setdefault(name, {"name": name, "calls": 0, "seconds": 0.0})
        kind["calls"] += part["calls"]
        kind["seconds"] += part["seconds"]
    single = [{"kind": part["name"], **part} for part in parts if part["seconds"] > 0]

    def shares(entries):
        return sorted(({**entry, "share": entry["seconds"] / total} for entry in entries),
                      key=lambda entry: -entry["seconds"])

    return {"source": source, "step_s": total, "kinds": shares(kinds.values()),
            "parts": shares(single)}


def table(row: dict) -> rich.table.Table:
    """For the screen."""
    profile = row["profile"]
    made = rich.table.Table(
        "one decode step", title=f"{label(row)}, {row['engine']}: {profile['step_s'] * 1e3:.2f} ms",
        title_justify="left", title_style="bold", box=rich.box.SIMPLE_HEAD,
        caption=profile["source"], caption_justify="left")
    for name in ("calls", "ms", "share"):
        made.add_column(name, justify="right")
    for entries in _shown(profile):
        for cells in entries:
            made.add_row(*cells)
        made.add_section()
    return made


def painter(row: dict):
    """For `pictures.rendered`: a bar for each kind of operator, the slowest on top."""
    def paint(figure):
        ax, kinds = figure.subplots(), row["profile"]["kinds"][::-1]
        bars = ax.barh([kind["name"] for kind in kinds], [1e3 * kind["seconds"] for kind in kinds])
        ax.bar_label(bars, [f"{kind['share']:.0%}" for kind in kinds], padding=3, fontsize=8)
        ax.grid(False, axis="y")
        ax.margins(x=0.1)
        ax.set_xlabel("ms of one decode step")
        ax.set_title(f"{label(row)}, {row['engine']}: {row['profile']['step_s'] * 1e3:.2f} ms")

    return paint


def markdown(row: dict) -> str:
    """The same for TensorBoard."""
    lines = []
    for entries in _shown(row["profile"]):
        lines += ["| one decode step | calls | ms | share |", "|---|---:|---:|---:|"]
        lines += ["| " + " | ".join(cells) + " |" for cells in entries] + [""]
    return "\n".join([*lines, row["profile"]["source"]])


def _shown(profile: dict):
    """Cells of the kinds, then of the slowest parts where those are not the same."""
    parts = [part for part in profile["parts"] if part["kind"] != part["name"]]
    return [[(entry["name"], f"{entry['calls']:g}", f"{entry['seconds'] * 1e3:.3f}",
              f"{entry['share'] * 100:.1f} %") for entry in entries]
            for entries in (profile["kinds"], parts[:_SHOWN]) if entries]
