"""The job behind `scripts/plan.py`: search, print the Pareto front, draw it."""

import dataclasses
import json
from pathlib import Path

import rich.box
import rich.console
import rich.table
from rich.text import Text

from tfspeed import gate
from tfspeed.costs import calibration, formulas, origin, planner, qualities, shapes, workers
from tfspeed.costs.budget import Budget, why_none
from tfspeed.costs.planner import Point
from tfspeed.costs.prediction import Load, Predictor
from tfspeed.devices import available_cores
from tfspeed.errors import TfspeedError
from tfspeed.export.files import appearing
from tfspeed.main_job import check_writable, explicit
from tfspeed.measure import pictures
from tfspeed.measure.experiment import Workload
from tfspeed.models.load import load

_WIDTH = 112  # columns of the table
_SIZE = (9, 5.5)  # inches of the picture


def run(flags) -> int | None:
    """Does what the flags of `scripts/plan.py` say; returns an exit code."""
    workload = Workload(explicit(flags, "prompt_tokens"), explicit(flags, "new_tokens"))
    if flags.workers < 1:
        raise TfspeedError("--workers must be at least 1.", workers=flags.workers)
    for name in ("batch", "threads"):
        if flags[name].value < 0:
            raise TfspeedError(f"--{name} must be 0 (searched) or more.",
                               **{name: flags[name].value})
    cores = available_cores()
    if flags.threads > cores or flags.workers > cores:
        raise TfspeedError("--threads and --workers are at most the cores there are.",
                           threads=flags.threads, workers=flags.workers, cores=cores)
    check_writable(flags.picture, "picture")
    if flags.explain:
        return formulas.explain(flags.picture)
    check_writable(flags.output)
    budget = Budget(flags.ttft_ms, flags.tpot_ms, flags.max_perplexity_increase, flags.ram_gb)
    rows = qualities.read_rows(flags.results)
    predictor = Predictor(calibration.load()).now()
    model = load(flags.model)
    workload = workload.fitted(model)
    shape = shapes.of(model)
    loads = [Load(batch, workload.prompt_tokens, workload.new_tokens)
             for batch in ((flags.batch,) if flags.batch else planner.BATCHES)]
    known = qualities.qualities(rows, model.name)
    points = planner.search(shape, predictor, known, loads,
                            [flags.threads] if flags.threads else
                            sorted({predictor.least_threads, cores}),
                            flags.workers, cores, origin.of(model, {q.engine for q in known}))
    kept = [point for point in points if point.meets(budget)]
    if not kept:
        raise why_none(points, budget)
    front = planner.front(kept)
    _write(front, flags)
    _print(front, flags, len(points), len(kept))
    if moved := predictor.moved(flags.threads or cores):
        print(moved)
    _say_what_is_missing(points, known, flags.results)
    if flags.workers > 1:
        _say_crossovers(predictor, shape, cores, flags, loads[0])
    print(f"Points: {flags.output}   Picture: {flags.picture}")
    return None


def _write(front: list[Point], flags) -> None:
    rows = [{"strategy": p.strategy, "options": dict(p.quality.options),
             "engine": p.quality.engine, "threads": p.threads, "workers": p.workers,
             **dataclasses.asdict(p.load), "perplexity_increase": p.quality.increase,
             "quality_source": p.quality.source, "memory_bytes": p.memory_bytes,
             "output_tokens_per_s": p.output_tokens_per_s,
             "predicted": {"ttft_s": p.ttft_s, "tpot_s": p.tpot_s, "e2e_s": p.e2e_s},
             "command": p.command(flags.model, flags.max_perplexity_increase)} for p in front]
    try:
        with appearing(Path(flags.output)) as beside:
            beside.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
        Path(flags.picture).write_bytes(
            pictures.rendered(painter(front, flags.model), _SIZE))
    except OSError as error:
        raise TfspeedError("The plan cannot be written.", output=flags.output,
                           picture=flags.picture, cause=error.strerror) from error


def _print(front: list[Point], flags, searched: int, kept: int) -> None:
    table = rich.table.Table(box=rich.box.SIMPLE_HEAD, title_justify="left",
                             title=f"{flags.model}: {searched} configurations, {kept} within the "
                             f"budget, {len(front)} of which none is beaten in tokens/s,\nTPOT, "
                             "perplexity and GB by a single other; nothing was run")
    for name in ("", "strategy, engine", "batch", "threads", "TTFT ms", "TPOT ms", "tokens/s",
                 "perplexity", "GB"):
        table.add_column(name, justify="left" if name.startswith("s") else "right")
    for number, p in enumerate(front, 1):
        increase = p.quality.increase
        mark = "" if p.quality.measured else "*"
        spread = f"{p.workers} x {p.threads}" if p.workers > 1 else str(p.threads)
        table.add_row(str(number), Text(f"{p.label}, {p.quality.engine}"),
                      str(p.load.batch), spread, f"{1e3 * p.ttft_s:.0f}",
                      f"{1e3 * p.tpot_s:.2f}" if p.tpot_s else "–",
                      f"{p.output_tokens_per_s:.0f}",
                      "not known" if increase is None else f"{100 * increase:+.1f} %{mark}",
                      f"{p.memory_bytes / 1e9:.2f}")
    console = rich.console.Console()
    console = rich.console.Console(width=max(_WIDTH, console.width))
    console.print(table)
    if not all(p.quality.measured for p in front):
        print("* a prior: what it cost SmolLM2-135M (tfspeed/data/quality_priors.json). Measured "
              "rows take its\n  place: --results=results.json")
    print("The command of each:")
    for number, p in enumerate(front, 1):
        console.print(f"{number:3d} {p.command(flags.model, flags.max_perplexity_increase)}",
                      soft_wrap=True, highlight=False, markup=False)
    over = [] if flags.max_perplexity_increase is not None else [
        str(number) for number, p in enumerate(front, 1) if (p.quality.increase or 0) > gate.limit(
            p.quality.made(), p.quality.engine)]
    if over:
        print(f"Over the gate of what they do to the weights: {', '.join(over)}. run.py measures "
              "them all the same, says FAILED\nand exits with 3; --max_perplexity_increase sets "
              "the gate, here and there.")


def _say_what_is_missing(points: list[Point], known, results: list[str]) -> None:
    """Engines without a prediction, and files of rows that say nothing of what was searched."""
    predicted = {p.quality.engine for p in points}
    left_out = sorted({q.engine for q in known} - predicted)
    if left_out:
        print(f"Left out, since no times are predicted: {', '.join(left_out)}.")
    if results and not any(q.measured for q in known):
        print("--results: no row measured the quality of what was searched in this model.")


def _say_crossovers(predictor, shape, cores: int, flags, load_: Load) -> None:
    """From which batch on so many workers beat one, before anything is run."""
    number = flags.workers
    for name in workers.STRATEGIES:
        engine = "xla" if name == "tensor_parallel" else "fused"
        said = []
        for threads, where in ((cores, f"all {cores} cores"), (1, "a single core")):
            try:
                batch = workers.crossover(name, predictor, shape, engine, cores, number, load_,
                                          threads)
            except TfspeedError:  # of an engine that there are no constants of
                continue
            when = f"from batch {batch} on" if batch else f"at no batch up to {workers.MOST}"
            said.append(f"one on {where} {when}")
        if said:
            print(f"{name}, {engine}: by the time of whole requests, {number} workers are "
                  f"predicted to beat {'; '.join(said)}.")


def painter(front: list[Point], title: str):
    """For `pictures.rendered`: tokens a second over time per token; color: perplexity."""
    def paint(figure):
        axes = figure.subplots()
        losses = [100 * (p.quality.increase or 0.0) for p in front]
        # Of a single token there is none after it.
        times, what = [1e3 * p.tpot_s for p in front], "time per output token"
        if not all(times):
            times, what = [1e3 * p.ttft_s for p in front], "time to the first token"
        drawn = axes.scatter(times,
                             [p.output_tokens_per_s for p in front], c=losses, cmap="viridis", s=42)
        for number, p in enumerate(front, 1):
            axes.annotate(f"{number}", (times[number - 1], p.output_tokens_per_s), fontsize=8,
                          xytext=(5, 3), textcoords="offset points")
        figure.colorbar(drawn, label="perplexity over the float32 baseline, %")
        axes.set(xscale="log", yscale="log", xlabel=f"predicted {what}, ms",
                 ylabel="predicted output tokens/s, all texts",
                 title=f"{title}: the Pareto front (numbers as in the table)")

    return paint
