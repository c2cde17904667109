"""Rows as JSON (the source), as tables on screen, and as Markdown."""

import json
from pathlib import Path

import rich.box
import rich.table
from rich.text import Text

from tfspeed.errors import TfspeedError
from tfspeed.export.files import appearing
from tfspeed.measure.metrics import NOISY, finite

_NONE = "–"
_ABREAST = 3  # columns that fit beside each other


def write_json(path: str | Path, environment: dict, rows: list[dict]) -> None:
    """Writes `{"environment": …, "rows": […]}` whole or not at all."""
    try:
        with appearing(Path(path)) as beside:
            beside.write_text(json.dumps({"environment": environment, "rows": finite(rows)},
                                         indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise TfspeedError("The results cannot be written.", output=str(path),
                           cause=str(error)) from error


def read_json(path: str | Path) -> dict:
    """What `write_json` wrote."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TfspeedError("The results cannot be read.", path=str(path),
                           cause=str(error)) from error


def _latency(name):
    def show(row):
        value = row.get(name)
        if not value:
            return _NONE
        mark = "~" if value["cv"] > NOISY else ""
        spread = f"±{value['cv'] * 100:.0f}%" if len(value["samples"]) > 1 else "(one sample)"
        median = value["median"] * 1e3
        # A small model's step takes microseconds: two digits of them, never 0.0.
        return f"{mark}{median:.{1 if median >= 1 else 3}f} {spread}"
    return show


def _number(name, form="{:.1f}", scale=1.0):
    def show(row):
        value = row.get(name)
        return _NONE if value is None else form.format(value * scale)
    return show


def _speedup(row):
    value = row.get("speedup", {}).get("tpot") or row.get("speedup", {}).get("ttft")
    if not value:
        return _NONE
    spread = "" if value["low"] is None else f" ({value['low']:.2f}–{value['high']:.2f})"
    return f"{value['ratio']:.2f}x{spread}"


def _same(row):
    return {True: "yes", False: "no", None: _NONE}[row.get("same_tokens")]


def _perplexity(row):
    value, delta = row.get("perplexity"), row.get("perplexity_delta")
    if value is None:
        return _NONE
    return f"{value:.2f}" + ("" if delta is None else f" ({delta * 100:+.2f} %)")


def _perplexity_interval(row):
    value = row.get("perplexity_delta_interval")
    return f"{value['low'] * 100:+.2f} to {value['high'] * 100:+.2f} %" if value else _NONE


def _gate(row):
    verdict = row.get("gate")
    if not verdict:
        return _NONE
    return ("passed" if verdict["passed"] else "FAILED") + f" (+{verdict['limit'] * 100:g} %)"


def _task(row):
    value, interval = row.get("task_accuracy"), row.get("task_accuracy_interval")
    if value is None:
        return _NONE
    return f"{value * 100:.0f} % ({interval['low'] * 100:.0f}–{interval['high'] * 100:.0f})"


def _predicted(name):
    def show(row):
        value = row.get("predicted", {}).get(name)
        error = row.get("prediction_error", {}).get(name)
        if value is None or error is None:
            return _NONE
        return f"{value * 1e3:.{1 if value >= 1e-3 else 3}f} ({error * 100:+.0f} %)"
    return show


def _energy(row):
    value, interval = row.get("energy_j_per_token"), row.get("energy_j_per_token_interval")
    if value is None:
        return _NONE
    if interval:  # never a bare number
        return f"estimate {interval['low']:.2g}–{interval['high']:.2g}"
    return f"{value:.3g} ({row['energy_source']})"


_SPEED = {
    "engine": lambda row: row["engine"],
    "TTFT ms": _latency("ttft_s"), "TPOT ms": _latency("tpot_s"),
    "prefill tok/s": _number("prefill_tokens_per_s", "{:.0f}"),
    "decode tok/s": _number("decode_tokens_per_s"), "decode speed-up": _speedup,
    "GB/s": _number("achieved_gb_per_s"),
    "of limit": _number("roofline_fraction", "{:.0f} %", 100),
}
_PREDICTED = {  # shown where a row has them
    "TTFT predicted": _predicted("ttft_s"), "TPOT predicted": _predicted("tpot_s"),
}
_DRAFTS = {  # shown where a row has them
    "drafts accepted": _number("draft_acceptance", "{:.0f} %", 100),
    "passes with draft": _number("draft_share", "{:.0f} %", 100),
    "tokens a pass": _number("tokens_per_pass", "{:.2f}"),
}
_QUALITY = {
    "perplexity": _perplexity, "95 % interval": _perplexity_interval, "gate": _gate,
    "KL": _number("kl_divergence", "{:.2g}"),
    "top-1": _number("top1_agreement", "{:.1f} %", 100), "task accuracy": _task,
    "same tokens": _same,
    "J/token": _energy,
    "weights MB": _number("weights_bytes", "{:.0f}", 1e-6),
    "peak MB": _number("peak_rss_bytes", "{:.0f}", 1e-6),
    "load s": _number("load_s"), "compile s": _number("compile_s"),
}


def label(row: dict) -> str:
    """A row's name in tables: its strategy, and its type where that is not float32."""
    known = row["dtype"] == "float32" or row["dtype"] in row["strategy"].lower()
    return row["strategy"] + ("" if known else f" {row['dtype']}")


def title(row: dict) -> str:
    """What rows measured together share."""
    return (f"{row['model']}, {row['threads']} threads, batch {row['batch']}, "
            f"{row['prompt_tokens']} + {row['new_tokens']} tokens, "
            f"{row['repetitions']} repetitions")


def tables(rows: list[dict]) -> list:
    """For the screen: rich tables, a line a metric and a column a row, then the notes.

    Turned on their side, and a few rows each, they stay legible in 80 columns.
    """
    if not rows:
        return []
    return [*(_table(rows[i:i + _ABREAST]) for i in range(0, len(rows), _ABREAST)),
            *map(Text, _notes(rows))]


def _table(rows: list[dict]) -> rich.table.Table:
    table = rich.table.Table("", title=title(rows[-1]), title_justify="left", title_style="bold",
                             box=rich.box.SIMPLE_HEAD)
    for row in rows:
        table.add_column(Text(label(row)), justify="right")
    for columns in _columns(rows):
        for name, show in columns.items():
            table.add_row(name, *(_cell(show(row)) for row in rows))
        table.add_section()
    return table


def _columns(rows: list[dict]) -> list[dict]:
    drafts = _DRAFTS if any("tokens_per_pass" in row for row in rows) else {}
    predicted = _PREDICTED if any("predicted" in row for row in rows) else {}
    return [_SPEED | drafts | predicted, _QUALITY]


def _cell(text: str) -> Text:
    """Not as a string: rich would take the brackets of an engine's pattern for its own markup."""
    return Text(text, style="bold red" if text.startswith("FAILED") else "")


def markdown(rows: list[dict]) -> str:
    """The same tables as Markdown."""
    lines = []
    for columns in _columns(rows):
        lines += ["| strategy | " + " | ".join(columns) + " |",
                  "|---|" + "---:|" * len(columns)]
        lines += [f"| {label(row)} | " + " | ".join(_bold(show(row)) for show in columns.values())
                  + " |" for row in rows]
        lines.append("")
    return "\n".join(lines + [f"- {note}" for note in _notes(rows)])


def _bold(text: str) -> str:
    return text.replace("FAILED", "**FAILED**")


def _notes(rows: list[dict]) -> list[str]:
    shared = set.intersection(*(set(row.get("notes", ())) for row in rows))
    notes = {f"{label(row)}: {note}" for row in rows for note in row.get("notes", ())
             if note not in shared or len(rows) == 1} | (shared if len(rows) > 1 else set())
    if any(row.get("noisy") for row in rows):
        notes.add("~ noisy: the coefficient of variation is over 5 %; run again on a quiet machine "
                  "or with more --repetitions.")
    tokens, questions = rows[-1].get("evaluated_tokens"), rows[-1].get("task_questions")
    if tokens:
        notes.add(f"quality: on {tokens} tokens" + (
            f" and {questions} questions" if questions else "") + "; intervals are of 95 %.")
    limits = ", ".join(f"{size / 1e6:.0f} MB at {speed:.1f} GB/s with {threads} threads"
                       for size, speed, threads in sorted({
        (row["step_bytes"], row["read_bandwidth_gb_per_s"], row.get("read_threads", row["threads"]))
        for row in rows if row.get("read_bandwidth_gb_per_s")}))
    if limits:
        notes.add(f"limit: a decode step cannot be faster than its reads, here {limits}.")
    if any(row.get("roofline_fraction", 0) > 1.05 for row in rows):
        notes.add("over 100 % of the limit: part of the weights stayed in a cache that the "
                  "measured reads did not hit.")
    return sorted(notes)
