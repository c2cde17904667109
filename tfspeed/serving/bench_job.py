"""The job behind `scripts/bench_serve.py`: a load, a server, a row a rate, a table."""

import json
import math
import os
from pathlib import Path

import rich.table

from tfspeed.errors import TfspeedError
from tfspeed.main_job import Console, check_writable, read_text
from tfspeed.measure.environment import environment
from tfspeed.measure.progress import Progress
from tfspeed.serving import bench, job
from tfspeed.serving.load import calls, poisson, trace

_SHOWN = ("completed", "failed", "max_concurrent_requests", "request_throughput",
          "request_goodput", "output_throughput", "total_token_throughput", "mean_ttft_ms",
          "p99_ttft_ms", "mean_tpot_ms", "p99_tpot_ms", "mean_itl_ms", "p99_itl_ms",
          "mean_e2el_ms", "p99_e2el_ms")


def run(flags) -> None:
    """Does what the flags of `scripts/bench_serve.py` say."""
    goodput, rates = bench.parse_goodput(flags.goodput), _rates(flags.rates)
    loads = [_load(flags, rate) for rate in rates]
    check_writable(flags.output)
    text = read_text(flags.eval_text)
    bar = Progress()
    worker = None if flags.url else job.start(flags, bar)
    rows = []
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
        for seed, (rate, load) in enumerate(zip(rates, loads, strict=True)):
            # Other texts at each rate, so that no prompt is in the cache.
            made, cut = calls(load, ids, context, flags.shared_prefix, seed)
            with bar.task(f"{len(made)} requests, {rate or 'as in the trace'} a second",
                          len(made)) as advance:
                served, seconds = bench.run(target, made, advance)
            row = {"model_id": name, "engine": engine, "request_rate": rate,
                   "num_prompts": len(made), "cut_to_context": cut,
                   **bench.summary(served, seconds, goodput)}
            if failure := next((s.error for s in served if s.error), None):
                row["first_error"] = failure
            rows.append(row)
    finally:
        if worker:
            worker.close()
        _report(rows, flags.output)


def _rates(text: str | None) -> list[float | None]:
    if text is None:
        return [None]
    try:
        rates = [float(part) for part in text.split(",")]
    except ValueError:
        rates = [0.0]
    if not all(rate > 0 for rate in rates):
        raise TfspeedError("--rates must be numbers over 0, or inf, joined by commas.", rates=text)
    return rates


def _load(flags, rate):
    if flags.trace:
        return trace(flags.trace, flags.requests, rate, flags.trace_scale)
    return poisson(flags.requests, rate or math.inf, flags.prompt_tokens, flags.new_tokens,
                   flags.spread)


def _model(name: str):
    from tfspeed.models.load import load
    return load(name)


def _report(rows: list[dict], output: str) -> None:
    if not rows:
        return
    value = {"environment": environment(), "rows": [
        {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
        for row in rows]}
    Path(output).write_text(json.dumps(value, indent=1), encoding="utf-8")
    table = rich.table.Table(title=f"{rows[0]['model_id']}, {rows[0]['engine']}, "
                                   f"{rows[0]['num_prompts']} requests", title_justify="left")
    table.add_column("requests a second")
    for row in rows:
        table.add_column("trace" if row["request_rate"] is None else f"{row['request_rate']:g}",
                         justify="right")
    for name in _SHOWN:
        if any(name in row for row in rows):
            table.add_row(name, *(f"{row[name]:,.4g}" if name in row else "–" for row in rows))
    console = Console()
    console.print(table)
    console.print(f"Rows: {output}", highlight=False, markup=False, soft_wrap=True)
    for row in rows:
        if "first_error" in row:
            console.print(f"At {row['request_rate']}, the first failure: {row['first_error']}",
                          highlight=False, markup=False)
