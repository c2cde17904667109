"""Rows of a dialogue on the screen."""

from collections.abc import Sequence

import rich.box
import rich.table


def dialogue(rows: Sequence[dict]) -> list[rich.table.Table]:
    """A table of all turns together, and one turn by turn; a column for each row."""
    named = [f"prefix {'kept' if row['prefix_cache'] else 'read again'}" for row in rows]
    first = rows[0]
    whole = rich.table.Table("", *named, box=rich.box.SIMPLE_HEAD, title_justify="left",
                             title=f"{first['model']}, {first['engine']}: {first['conversations']} "
                                   f"conversations ({first['source']}), {first['at_once']} at once")
    for name in ("completed", "total_input_tokens", "reused_tokens", "total_output_tokens"):
        whole.add_row(name, *(f"{row[name]:,}" for row in rows))
    for name in ("median_ttft_ms", "p99_ttft_ms", "median_tpot_ms", "p99_tpot_ms",
                 "output_throughput"):
        whole.add_row(name, *(f"{row[name]:,.1f}" if name in row else "–" for row in rows))
    for i, goodput in enumerate(first["goodputs"]):
        limits = "/".join(f"{value:g}" for value in goodput["limits_ms"].values())
        whole.add_row(f"goodput at {limits} ms", *(
            f"{row['goodputs'][i]['request_goodput']:.2f}/s ({row['goodputs'][i]['share']:.0%})"
            for row in rows))
    turns = rich.table.Table("turn", "prompt", "kept", box=rich.box.SIMPLE_HEAD)
    for name in named:
        turns.add_column(f"TTFT ms, {name}", justify="right")
    turns.add_column("faster", justify="right")
    for name in named:
        turns.add_column(f"TPOT ms, {name}", justify="right")
    for i, turn in enumerate(first["by_turn"]):
        gain = first["ttft_speedup"][i]
        turns.add_row(
            str(turn["turn"]), f"{turn['prompt_tokens']:.0f}", f"{turn['reused_tokens']:.0f}",
            *(_cell(row["by_turn"][i]["ttft_s"]) for row in rows),
            f"{gain['ratio']:.2f}x" if gain else "–",
            *(_cell(row["by_turn"][i].get("tpot_s")) for row in rows))
    return [whole, turns]


def _cell(summary: dict | None) -> str:
    return "–" if summary is None else f"{1e3 * summary['median']:.1f} ±{summary['cv']:.0%}"
