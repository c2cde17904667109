"""Rows of a run as tables, picture and TensorBoard runs."""

from collections.abc import Sequence
from pathlib import Path

import rich.box
import rich.table

from tfspeed.errors import TfspeedError
from tfspeed.evolution.findings import findings
from tfspeed.measure import dashboard
from tfspeed.measure.pictures import plain_ticks

SIZE = (10, 6.5)


def tables(rows: Sequence[dict]) -> list[rich.table.Table]:
    """A column a model: what it is and reached; training over length; decoding over context."""
    first = _table("models", rows)
    first.add_row("weights", *(f"{row['parameters']:,}" for row in rows))
    first.add_row("hidden size", *(str(row["hidden_dim"]) for row in rows))
    first.add_row("trained by", *(row.get("train_engine", "–") for row in rows))
    first.add_row("learning rate", *(f"{row.get('learning_rate', '–')}" for row in rows))
    if all("perplexity" in row for row in rows):
        first.add_row("tokens trained on", *(f"{row['trained_tokens']:,}" for row in rows))
        first.add_row("seconds of training", *(f"{row['trained_s']:.1f}" for row in rows))
        first.add_row("perplexity a byte", *(f"{row['perplexity']:.2f}" for row in rows))
        first.add_row("bits a byte", *(f"{row['bits_per_byte']:.3f}" for row in rows))
    made = [first]
    if rows[0].get("training"):
        table = _table("training tokens/s, windows of", rows)
        for i, entry in enumerate(rows[0]["training"]):
            table.add_row(str(entry["length"]), *(
                _cell(row["training"][i]["tokens_per_s"], row["training"][i]["step_s"]["cv"])
                for row in rows))
        made.append(table)
    if rows[0].get("decode"):
        for name, what, latency in (
                ("decode_tokens_per_s", "decode tokens/s, context", "tpot_s"),
                ("prefill_tokens_per_s", "tokens/s of reading a prompt of", "ttft_s")):
            table = _table(what, rows)
            for i, entry in enumerate(rows[0]["decode"]):
                table.add_row(str(entry["context"]), *(
                    _cell(row["decode"][i][name], row["decode"][i][latency]["cv"])
                    for row in rows))
            made.append(table)
    return made


def _table(title: str, rows) -> rich.table.Table:
    table = rich.table.Table(title, box=rich.box.SIMPLE_HEAD)
    for row in rows:
        table.add_column(row["model"], justify="right")
    return table


def _cell(value: float, cv: float) -> str:
    return f"{value:,.0f} ±{cv * 100:.0f}%"


def painter(rows: Sequence[dict]):
    """For `pictures.rendered`: what training, decoding and reading cost, and what was learned."""
    def paint(figure):
        axes = figure.subplots(2, 2)
        panels = [
            (axes[0][0], "training", "length", lambda e: e["tokens_per_s"],
             "training, tokens/s over the window", "tokens of a window"),
            (axes[0][1], "decode", "context", lambda e: e["decode_tokens_per_s"],
             "decoding, tokens/s over the context", "tokens before it"),
            (axes[1][0], "decode", "context", lambda e: e["prefill_tokens_per_s"],
             "reading a prompt, tokens/s over its length", "tokens of the prompt")]
        for ax, part, key, value, title, label in panels:
            for i, row in enumerate(rows):
                ax.plot([e[key] for e in row.get(part, ())],
                        [value(e) for e in row.get(part, ())], "o-", color=f"C{i}",
                        label=row["model"])
            ax.set(title=title, xlabel=label)
            if not any(row.get(part) for row in rows):
                continue
            ax.set_xscale("log", base=2)
            ax.set_yscale("log")
            ax.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
            plain_ticks(ax.yaxis)
        panels[0][0].legend()
        _learned(axes[1][1], rows)

    return paint


def _learned(ax, rows) -> None:
    found = [(i, row) for i, row in enumerate(rows) if "perplexity" in row]
    bars = ax.bar([row["model"] for _, row in found], [row["perplexity"] for _, row in found],
                  color=[f"C{i}" for i, _ in found], width=0.6)
    ax.bar_label(bars, [f"{row['perplexity']:.2f}" for _, row in found], fontsize=8, padding=2)
    ax.margins(y=0.12)
    ax.set_title("perplexity a byte after the same budget (less is better)")
    ax.grid(False, axis="x")


def write_tensorboard(logdir: str, rows: Sequence[dict]) -> None:
    """A run a model: training speed by length, decoding by context, the loss by step."""
    import tensorflow as tf

    try:
        for row in rows:
            folder = Path(logdir) / "evolution" / row["model"]
            for old in folder.glob("events.out.tfevents.*"):
                old.unlink()
            with tf.summary.create_file_writer(str(folder)).as_default(step=0):
                tf.summary.experimental.write_raw_pb(dashboard.layout(), step=0)
                for entry in row.get("training", ()):
                    tf.summary.scalar("evolution/training_tokens_per_s_by_length",
                                      entry["tokens_per_s"], step=entry["length"])
                for entry in row.get("decode", ()):
                    for name in ("decode_tokens_per_s", "prefill_tokens_per_s"):
                        tf.summary.scalar(f"evolution/{name}_by_context", entry[name],
                                          step=entry["context"])
                for step, value in enumerate(row.get("losses", ()), 1):
                    tf.summary.scalar("evolution/loss_by_step", value, step=step)
                if "perplexity" in row:
                    tf.summary.scalar("quality/perplexity", row["perplexity"])
                tf.summary.text("findings", "\n\n".join(findings(rows)))
    except (OSError, tf.errors.OpError) as error:
        raise TfspeedError("TensorBoard's events cannot be written.", logdir=logdir,
                           cause=str(error)[:200]) from error
