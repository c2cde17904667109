"""Shows a pipeline: who has what, bytes and times, expected and measured; as table and picture."""

import contextlib
import dataclasses
import io
from pathlib import Path

import rich.box
import rich.console
import rich.table

from tfspeed.dataflow.pipeline import PipelineEngine
from tfspeed.engines.base import Engine
from tfspeed.errors import TfspeedError

PICTURE = "dataflow.png"
_KINDS = {"prefill": "prefill", "step": "decode"}
_PARTS = {"prefill": ("prefill",), "step": ("step", "head")}
_SIZE, _DPI = (11, 6.5), 110  # inches, dots an inch
_COLORS = ("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b")


def check(strategy) -> None:
    """Refuses what has no stages to explain."""
    if "dataflow" not in strategy.name.split("+"):
        raise TfspeedError("--explain shows the stages of a pipeline.", strategy=strategy.name,
                           hint="Add --strategy=dataflow.")


@contextlib.contextmanager
def explained(engine: Engine, logdir: str, console: rich.console.Console):
    """Prints the stages before what runs inside, and after it with what was measured; draws
    them."""
    if not isinstance(engine, PipelineEngine):
        raise TfspeedError("--explain shows the stages of a pipeline, and one worker has none.",
                           hint="Give --workers=2 or more.")
    measured(engine)  # what came before does not count
    console.print(table(engine, Measured([{}] * len(engine.plans), [0.0] * len(engine.plans))))
    yield
    found = measured(engine)
    console.print(table(engine, found))
    write(engine, found, PICTURE, logdir)
    console.print(f"Picture: {PICTURE}, and in TensorBoard: dataflow", highlight=False)


@dataclasses.dataclass(frozen=True)
class Measured:
    """Of the calls since the last `PipelineEngine.measured`.

    Attributes:
        seconds: the mean call of each stage, by kind; a step with the heads that belong to it.
        busy: the share of the time of generations that each stage has worked.
    """

    seconds: list[dict[str, float]]
    busy: list[float]


def measured(engine: PipelineEngine) -> Measured:
    """Reads the clocks of all stages, and sets them to nothing."""
    wall = engine.wall_s
    told = engine.seconds()
    def mean(seconds, kind):
        parts = _PARTS[kind]
        return sum(sum(seconds.get(part, ())) for part in parts) / len(seconds[kind])

    return Measured([{kind: mean(s, kind) for kind in _KINDS if s.get(kind)} for s in told],
                    [sum(map(sum, s.values())) / wall if wall else 0.0 for s in told])


def table(engine: PipelineEngine, found: Measured) -> rich.table.Table:
    """A line for each stage and kind of call."""
    made = rich.table.Table(
        box=rich.box.SIMPLE, title="A call of each stage, ms", caption_justify="left",
        caption="\n".join(f"{name}: {plan.content}" for name, plan in
                          zip(engine.devices, engine.plans, strict=True)))
    for name in ("stage", "call", "sends", "link", "expected", "measured", "busy"):
        made.add_column(name, justify="left" if name in ("stage", "call") else "right")
    for i, plan in enumerate(engine.plans):
        for kind, word in _KINDS.items():
            first, took = kind == "prefill", found.seconds[i].get(kind)
            made.add_row(
                engine.devices[i] if first else "", f"{word} {engine.calls[kind]}",
                f"{plan.sent[kind] / 1e3:.1f} KB", f"{plan.sending[kind] * 1e3:.2f}",
                f"{plan.seconds[kind] * 1e3:.1f}", "–" if took is None else f"{took * 1e3:.1f}",
                f"{found.busy[i]:.0%}" if first and took else "")
    return made


def picture(engine: PipelineEngine, found: Measured) -> bytes:
    """A PNG: what each node of the chain costs and who has it, and the times of the stages."""
    import matplotlib
    matplotlib.use("Agg")  # no display is needed
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=_SIZE, dpi=_DPI, layout="constrained")
    for column, (kind, word) in enumerate(_KINDS.items()):
        chain = engine.chains[kind]
        above, below = axes[0][column], axes[1][column]
        for i, plan in enumerate(engine.plans):
            nodes, color = range(plan.begin, plan.end), _COLORS[i % len(_COLORS)]
            above.bar(nodes, [1e3 * chain.nodes[n].seconds for n in nodes], color=color,
                      label=f"{engine.devices[i]}: {plan.content}")
            below.bar(i - 0.2, 1e3 * plan.seconds[kind], 0.38, color=color)
            below.bar(i + 0.2, 1e3 * found.seconds[i].get(kind, 0), 0.38, color=color, alpha=0.5)
            if not plan.last:
                above.axvline(plan.end - 0.5, color="#444444", lw=1, ls=":")
                above.annotate(f"{plan.sent[kind] / 1e3:.1f} KB\n{plan.sending[kind] * 1e3:.2f} ms",
                               (plan.end - 0.5, 1), (3, -58), fontsize=7,
                               xycoords=("data", "axes fraction"), textcoords="offset points")
        above.set_title(f"{word}: {engine.calls[kind]}, expected of each node", loc="left",
                        fontsize=9)
        above.set_xlabel("embedding, blocks, head")
        above.set_ylabel("ms on the first worker")
        above.set_ylim(0, 1.4e3 * max(node.seconds for node in chain.nodes) or None)
        above.legend(fontsize=7, loc="upper left")
        below.set_title(f"{word}: a call of each stage, expected (left) and measured (right)",
                        loc="left", fontsize=9)
        below.set_xticks(range(len(engine.plans)), engine.devices, fontsize=8)
        below.set_ylabel("ms")
    content = io.BytesIO()
    figure.savefig(content, format="png")
    plt.close(figure)
    return content.getvalue()


def write(engine: PipelineEngine, found: Measured, output: str, logdir: str) -> None:
    """Writes the picture as a file; TensorBoard gets it too, and the operators of a step."""
    import tensorflow as tf

    content = picture(engine, found)
    try:
        Path(output).write_bytes(content)
        with tf.summary.create_file_writer(str(Path(logdir) / "dataflow")).as_default(step=0):
            tf.summary.image("dataflow", tf.io.decode_png(content, channels=3)[None])
            tf.summary.graph(engine.operators.as_graph_def())
    except (OSError, tf.errors.OpError) as error:
        raise TfspeedError("The picture cannot be written.", output=output, logdir=logdir,
                           cause=str(error)[:200]) from error
