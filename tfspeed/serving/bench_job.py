"""The job behind `scripts/bench_serve.py`: a load, a server, a row a rate, a table."""

import math
import os

import rich.box
import rich.table

from tfspeed.errors import TfspeedError
from tfspeed.main_job import Console, check_writable, read_text
from tfspeed.measure import pictures
from tfspeed.measure.environment import environment
from tfspeed.measure.progress import Progress
from tfspeed.measure.report import write_json
from tfspeed.serving import bench, goodput, job
from tfspeed.serving.load import calls, poisson, trace

_SHOWN = ("completed", "failed", "max_concurrent_requests", "request_throughput",
          "request_goodput", "output_throughput", "total_token_throughput", "mean_ttft_ms",
          "p99_ttft_ms", "mean_tpot_ms", "p99_tpot_ms", "mean_itl_ms", "p99_itl_ms",
          "mean_e2el_ms", "p99_e2el_ms")


_AUTO = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5)  # of what the machine serves when all come at once
_ABREAST = 5  # columns that fit beside each other
_SHARING = 9  # requests sent one after the other where prompts begin alike


def run(flags) -> None:
    """Does what the flags of `scripts/bench_serve.py` say."""
    goodputs, rates = goodput.parse(flags.goodput), _rates(flags.rates, flags.trace)
    for rate in rates or [math.inf]:
        _load(flags, rate)  # what cannot be made is told before anything slow
    check_writable(flags.output)
    if flags.picture:
        check_writable(flags.picture, "picture")
        if not goodputs or (len(rates) < 2 and flags.rates != "auto"):
            raise TfspeedError("--picture draws goodput over rates: it needs --goodput and several "
                               "--rates.", goodput=flags.goodput, rates=flags.rates)
    text = read_text(flags.eval_text)
    bar = Progress()
    worker = None if flags.url else job.start(flags, bar)
    rows: list[dict] = []
    try:
        if worker:
            model, target = worker.backend.model, bench.WorkerTarget(worker)
            name, context, engine = model.name, worker.backend.context_length, worker.backend.name
        else:
            model, name, engine = _model(flags.model), flags.served_model or flags.model, flags.url
            context = flags.context or model.context_length
            target = bench.HttpTarget(flags.url, name, os.environ.get(job.KEY))
        ids = (model.tokenizer.encode(text, add_bos=False) if model.tokenizer
               else [i * 7919 % model.vocabulary_size for i in range(20_000)])

        def prompts(rate):
            # Other texts at each rate, so that no prompt is in the cache.
            return calls(_load(flags, rate), ids, context, flags.shared_prefix, len(rows))

        head = {"model_id": name, "engine": engine}
        if flags.shared_prefix and not flags.trace:
            some = prompts(math.inf)[0][:_SHARING]
            with bar.task("requests one after the other", len(some)) as advance:
                rows.append(head | {"shared_prefix": flags.shared_prefix}
                            | bench.in_turn(target, some, advance))
        if flags.rates == "auto":
            rows.append(head | _measured(target, prompts(math.inf), math.inf, goodputs, bar))
            rates = [round(rows[-1]["request_throughput"] * share, 3) for share in _AUTO]
        _say_estimate(bar, flags.requests, rates)
        for rate in rates:
            rows.append(head | _measured(target, prompts(rate), rate, goodputs, bar))
    finally:
        if worker:
            worker.close()
        _report(rows, flags)


def _measured(target, load, rate: float | None, goodputs: list[dict], bar) -> dict:
    """One row: all requests of a load, at one rate."""
    made, cut = load
    with bar.task(f"{len(made)} requests, {rate or 'as in the trace'} a second",
                  len(made)) as advance:
        served, seconds = bench.run(target, made, advance)
    if all(s.error for s in served):
        raise TfspeedError("No request was answered.", cause=served[0].error[:300],
                           hint="With --url: does the server run, is --model its model's name?")
    row = {"request_rate": rate, "num_prompts": len(made), "cut_to_context": cut,
           **bench.summary(served, seconds, goodputs[0] if goodputs else {})}
    if goodputs:
        row["goodputs"] = goodput.of(served, seconds, goodputs)
    if failure := next((s.error for s in served if s.error), None):
        row["first_error"] = failure
    return row


def _say_estimate(bar, requests: int, rates: list[float | None]) -> None:
    """The requests are sent no faster than that."""
    seconds = sum(requests / rate for rate in rates if rate)
    if seconds > 60:
        bar.say(f"This will take at least {seconds / 60:.1f} minutes.")


def _rates(text: str | None, trace: str | None) -> list[float | None]:
    """None: as in the trace."""
    if text is None:
        return [None if trace else math.inf]
    if text == "auto":
        return []
    try:
        rates = [float(part) for part in text.split(",")]
    except ValueError:
        rates = [0.0]
    if not all(rate > 0 for rate in rates):
        raise TfspeedError("--rates must be numbers over 0, or inf, joined by commas, or auto.",
                           rates=text)
    return rates


def _load(flags, rate):
    if flags.trace:
        return trace(flags.trace, flags.requests, rate, flags.trace_scale)
    return poisson(flags.requests, rate or math.inf, flags.prompt_tokens, flags.new_tokens,
                   flags.spread)


def _model(name: str):
    from tfspeed.models.load import load
    return load(name)


def _report(rows: list[dict], flags) -> None:
    if not rows:
        return
    write_json(flags.output, environment(), rows)
    console = Console()
    loads = [row for row in rows if "request_rate" in row]
    for row in rows:
        if "followers" in row:
            console.print(sharing(row), highlight=False, markup=False)
    for i in range(0, len(loads), _ABREAST):
        console.print(_table(loads[i:i + _ABREAST]))
    if flags.picture and loads:
        pictures.write(goodput.painter(loads), goodput.SIZE, flags.picture, flags.logdir,
                       "goodput")
    console.print(f"Rows: {flags.output}", highlight=False, markup=False, soft_wrap=True)
    for row in loads:
        if "first_error" in row:
            console.print(f"At {row['request_rate']}, the first failure: {row['first_error']}",
                          highlight=False, markup=False)


def _table(rows: list[dict]) -> rich.table.Table:
    table = rich.table.Table(title=f"{rows[0]['model_id']}, {rows[0]['engine']}, "
                                   f"{rows[0]['num_prompts']} requests", title_justify="left",
                             box=rich.box.SIMPLE_HEAD)
    table.add_column("requests a second")
    for row in rows:
        table.add_column("trace" if row["request_rate"] is None else f"{row['request_rate']:g}",
                         justify="right")
    for name in _SHOWN:
        if any(name in row for row in rows):
            table.add_row(name, *(f"{row[name]:,.4g}" if name in row else "–" for row in rows))
    for i, found in enumerate(rows[0].get("goodputs", ())):
        table.add_row(f"goodput, {goodput.limits(found)}", *(
            f"{row['goodputs'][i]['request_goodput']:.3g} ({row['goodputs'][i]['share']:.0%})"
            for row in rows))
    return table


def sharing(row: dict) -> str:
    """What a shared beginning saves, in a sentence."""
    told = (f"{row['shared_prefix']} shared tokens, one request after the other: TTFT of the first "
            f"{row['first_ttft_ms']:.1f} ms")
    if not row["followers"]:
        return told + "."
    return (f"{told}, of the {row['followers']} that follow {row['median_followers_ttft_ms']:.1f} "
            f"in the median (worst {row['worst_followers_ttft_ms']:.1f}): "
            f"{row['followers_ratio']:.2f}x.")
