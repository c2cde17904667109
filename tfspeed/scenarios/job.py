"""What scenarios share: a model that is changed and run, and how its row begins and ends."""

import time

from tfspeed import cli, engines
from tfspeed.devices import set_threads
from tfspeed.engines.base import Engine
from tfspeed.errors import TfspeedError
from tfspeed.main_job import check_writable, read_calibration
from tfspeed.measure import report
from tfspeed.measure.environment import environment
from tfspeed.measure.progress import Progress
from tfspeed.models.load import load


def prepared(flags, bar: Progress) -> tuple[Engine, dict]:
    """The engine that the flags ask for, and what a row says of it."""
    engines.check(flags.engine)
    check_writable(flags.output)
    data = read_calibration(flags)
    set_threads(flags.threads)
    strategy = cli.make_strategy(flags.strategy)
    with bar.task(f"loading {flags.model}", None):
        start = time.perf_counter()
        with strategy.scope():
            model = strategy.apply(load(flags.model), data)
        loaded = time.perf_counter()
        engine = engines.create(flags.engine, model)
    for line in strategy.report():
        bar.say(line)
    return engine, {
        "model": model.name, "strategy": strategy.label, "engine": engine.name,
        "dtype": engine.dtype, "parameters": model.parameters,
        "weights_bytes": engine.weights_bytes, "load_s": loaded - start,
        "changes": strategy.report(), "notes": [*model.notes, *engine.notes]}


def write(flags, rows: list[dict], bar: Progress) -> None:
    report.write_json(flags.output, environment(), rows)
    bar.say(f"Written: {flags.output}")


def positive(flags, *names: str) -> None:
    """Refuses flags that are not over 0."""
    for name in names:
        if not flags[name].value > 0:
            raise TfspeedError(f"--{name} must be more than 0.", **{name: flags[name].value})
