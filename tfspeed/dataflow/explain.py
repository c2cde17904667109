"""Shows a pipeline: who has what, bytes and times, expected and measured; as table and picture."""

import contextlib
import dataclasses
from pathlib import Path

import rich.box
import rich.console
import rich.table

from tfspeed.dataflow.pipeline import PipelineEngine
from tfspeed.engines.base import Engine
from tfspeed.errors import TfspeedError
from tfspeed.measure import pictures
from tfspeed.measure.pictures import MUTED

PICTURE = "dataflow.png"
_KINDS = {"encode": "encode", "hear": "keys, values", "prefill": "prefill", "step": "decode"}
_PARTS = {"step": ("step", "head")}
_WIDTH, _HEIGHT = 5.5, 6.5  # of the picture, inches: of each kind of call, and of all


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
        parts = _PARTS.get(kind, (kind,))
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
        for kind in (k for k in _KINDS if k in plan.seconds):
            word, first, took = _KINDS[kind], kind == next(iter(plan.seconds)), (
                found.seconds[i].get(kind))
            made.add_row(
                engine.devices[i] if first else "", f"{word} {engine.calls[kind]}",
                f"{plan.sent[kind] / 1e3:.1f} KB", f"{plan.sending[kind] * 1e3:.2f}",
                f"{plan.seconds[kind] * 1e3:.1f}", "–" if took is None else f"{took * 1e3:.1f}",
                f"{found.busy[i]:.0%}" if first and took else "")
    return made


def painter(engine: PipelineEngine, found: Measured):
    """For `pictures.rendered`: what each node of the chain costs and who has it, and the times of
    the stages."""
    def paint(figure):
        axes = figure.subplots(2, len(engine.chains))
        for column, kind in enumerate(engine.chains):
            _costs(axes[0][column], engine, kind, _KINDS[kind])
            _times(axes[1][column], engine, found, kind, _KINDS[kind])

    return paint


def _costs(ax, engine: PipelineEngine, kind: str, word: str) -> None:
    chain = engine.chains[kind]
    for i, plan in enumerate(engine.plans):
        nodes = plan.nodes(kind)
        ax.bar(nodes, [1e3 * chain.nodes[n].seconds for n in nodes], color=f"C{i % 6}",
               label=f"{engine.devices[i]}: {plan.content}")
        if not plan.last:
            ax.axvline(nodes[-1] + 0.5, color=MUTED, lw=1, ls=":")
            ax.annotate(f"{plan.sent[kind] / 1e3:.1f} KB\n{plan.sending[kind] * 1e3:.2f} ms",
                        (nodes[-1] + 0.5, 1), (3, -58), fontsize=8,
                        xycoords=("data", "axes fraction"), textcoords="offset points")
    ax.set_title(f"{word}: {engine.calls[kind]}, expected of each node")
    ax.set_xlabel("embedding, blocks, norm" if kind == "encode" else "embedding, blocks, head")
    ax.set_ylabel("ms on the first worker")
    ax.set_ylim(0, 1.4e3 * max(node.seconds for node in chain.nodes) or None)
    ax.legend(loc="upper left")


def _times(ax, engine: PipelineEngine, found: Measured, kind: str, word: str) -> None:
    for i, plan in enumerate(engine.plans):
        ax.bar(i - 0.2, 1e3 * plan.seconds[kind], 0.38, color=f"C{i % 6}")
        ax.bar(i + 0.2, 1e3 * found.seconds[i].get(kind, 0), 0.38, color=f"C{i % 6}", alpha=0.5)
    ax.set_title(f"{word}: a call of each stage, expected (left), measured (right)")
    ax.set_xticks(range(len(engine.plans)), engine.devices)
    ax.set_ylabel("ms")


def write(engine: PipelineEngine, found: Measured, output: str, logdir: str) -> None:
    """Writes the picture as a file; TensorBoard gets it too, and the operators of a step."""
    import tensorflow as tf

    size = _WIDTH * len(engine.chains), _HEIGHT
    pictures.write(painter(engine, found), size, output, logdir, "dataflow")
    try:
        with tf.summary.create_file_writer(str(Path(logdir) / "dataflow")).as_default(step=0):
            tf.summary.graph(engine.operators.as_graph_def())
    except (OSError, tf.errors.OpError) as error:
        raise TfspeedError("TensorBoard's events cannot be written.", logdir=logdir,
                           cause=str(error)[:200]) from error
