"""Behind `scripts/scaling.py`: the tables of `costs.scaling`, their assumptions beside them."""

import dataclasses

import rich.box
import rich.console
import rich.table

from tfspeed.costs import scaling
from tfspeed.costs.communication import Link
from tfspeed.costs.scaling import Machine
from tfspeed.devices import available_cores
from tfspeed.errors import TfspeedError
from tfspeed.main_job import check_writable
from tfspeed.measure.bandwidth import memory_bandwidth
from tfspeed.measure.environment import environment
from tfspeed.measure.pictures import MUTED
from tfspeed.measure.report import write_json
from tfspeed.models.decoder import Decoder
from tfspeed.models.load import load


def run(flags) -> None:
    """Does what the flags of `scripts/scaling.py` say."""
    for name in ("gflops", "link_gb_per_s", "bytes_a_weight", "batch", "train_tokens"):
        if not flags[name].value > 0:
            raise TfspeedError(f"--{name} must be above 0.", **{name: flags[name].value})
    if not (flags.gb_per_s >= 0 and flags.link_us >= 0):
        raise TfspeedError("--gb_per_s and --link_us must be 0 or more.", gb_per_s=flags.gb_per_s,
                           link_us=flags.link_us)
    if flags.output:
        check_writable(flags.output)
    model = load(flags.model)
    if not isinstance(model.keras_model, Decoder):
        raise TfspeedError("The tables are of decoders, and this model is none.", model=flags.model)
    bandwidth = flags.gb_per_s or memory_bandwidth(available_cores(), 1 << 30)
    machine = Machine(1e9 * bandwidth, 1e9 * flags.gflops,
                      Link(1e-6 * flags.link_us, 1e9 * flags.link_gb_per_s))
    c, size = model.config, flags.bytes_a_weight
    tables = {
        f"tensor_parallel, one decode step of {flags.batch} rows":
            scaling.tensor_parallel(c, machine, size, flags.batch),
        f"data parallel, one decode step of {flags.batch} rows on each worker":
            scaling.data_parallel(c, machine, size, flags.batch),
        f"data parallel training, {flags.train_tokens} tokens on each worker":
            scaling.data_parallel_training(c, machine, size, flags.train_tokens)}
    print(f"{model.name} on paper: {model.parameters / 1e6:.1f} M weights of {size} bytes. A "
          f"worker reads {bandwidth:.1f} GB/s and\ncomputes {flags.gflops:g} GFLOP/s; a message "
          f"takes {flags.link_us:g} us and flows at {flags.link_gb_per_s:g} GB/s; rings; nothing\n"
          "overlaps; no caches, no stragglers, links that nobody else uses.\n")
    for title, points in tables.items():
        _print(title, points)
    if flags.output:
        write_json(flags.output, environment(), [
            {"model": model.name, "way": title, "points": list(map(dataclasses.asdict, points))}
            for title, points in tables.items()])


SIZE = (9, 5)


def painter(rows):
    """For `pictures.rendered`: how much faster more workers are, for each way to use them."""
    def paint(figure):
        ax = figure.subplots()
        for i, row in enumerate(rows):
            ax.plot([p["workers"] for p in row["points"]], [p["speedup"] for p in row["points"]],
                    "o-", color=f"C{i}", label=row["way"])
        workers = [p["workers"] for p in rows[0]["points"]]
        ax.plot(workers, workers, ls=":", color=MUTED, lw=1, label="as many times as workers")
        for axis, scale in ((ax.xaxis, ax.set_xscale), (ax.yaxis, ax.set_yscale)):
            scale("log", base=2)
            axis.set_major_formatter(lambda value, _: f"{value:.{4 if value > 1 else 2}g}")
        ax.set(xlabel="workers", ylabel="speed-up over one worker",
               title=f"{rows[0]['model']} on paper: what more workers would bring")
        ax.legend()

    return paint


def _print(title: str, points) -> None:
    table = rich.table.Table(title=title, box=rich.box.SIMPLE, title_justify="left")
    for name in ("workers", "work ms", "exchange ms", "speed-up", "efficiency"):
        table.add_column(name, justify="right")
    for p in points:
        table.add_row(f"{p.workers:,}", f"{1e3 * p.work_s:.2f}", f"{1e3 * p.exchange_s:.2f}",
                      f"{p.speedup:.2f}x", f"{p.efficiency:.0%}")
    rich.console.Console(width=100).print(table)
