"""The job behind `scripts/pareto.py`: read rows, print the front, draw."""

import rich.box
import rich.console
import rich.table

from tfspeed.errors import TfspeedError
from tfspeed.main_job import check_writable
from tfspeed.measure import pareto, tensorboard


def run(flags) -> None:
    """Does what the flags say."""
    if not flags.results:
        raise TfspeedError("--results must name at least one file of scripts/run.py.")
    check_writable(flags.output)
    tensorboard.check_logdir(flags.logdir)
    found = pareto.points(flags.results)
    best = pareto.front(found)
    table = rich.table.Table("", "decode speed-up", "perplexity", "front", "gate",
                             box=rich.box.SIMPLE_HEAD)
    for point in found:
        table.add_row(point.label, f"{point.speedup:.2f}x", f"{100 * point.loss:+.2f} %",
                      "yes" if point in best else "", "passed" if point.passed else "FAILED")
    rich.console.Console().print(table)
    pareto.write(found, flags.title, flags.output, flags.logdir)
    print(f"Picture: {flags.output}   TensorBoard: tensorboard --logdir {flags.logdir}")
