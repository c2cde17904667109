"""Predicts and measures configurations that no calibration has seen: table, picture, JSON; and the
planner's choice beside a whole grid."""

import contextlib
import dataclasses
import functools
import itertools
import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import rich.box
import rich.console
import rich.table

from tfspeed.costs import cases, choosing, planner, shapes
from tfspeed.costs.calibration import Calibration
from tfspeed.costs.cases import METRICS
from tfspeed.costs.observing import Observer, at_home, by_round, is_at_home, usual_memory
from tfspeed.costs.prediction import Load, Predictor
from tfspeed.errors import TfspeedError
from tfspeed.export.files import appearing
from tfspeed.measure import pictures, predictions
from tfspeed.measure.environment import environment
from tfspeed.measure.placement import Placement
from tfspeed.measure.progress import Progress

_environment = functools.cache(environment)  # rows are written after each
_ROUNDS = 5  # in which each case of a model is timed, in turns
_BEFORE = "all, memory as calibrated"
_ANYWHERE = "all, wherever its cores lay"
_GLANCES = 4  # rounds of those that a planner cannot tell apart


def run(made: Calibration, threads: list[int], engines: list[str], output: str,
        picture_path: str, moments: int = 1) -> None:
    """Measures, prints and writes; Ctrl-C leaves what there is.

    Args:
        moments: how often all of them are measured, one after the other.
    """
    seen: dict[cases.Case, list[dict]] = {}
    rows, predictor = {}, Predictor(made)
    homes = {count: made.home(count) for count in threads}
    chosen = {count: [case for case in cases.held_out(count)
                      if case.engine.partition(":")[0] in engines] for count in threads}
    try:
        with contextlib.closing(_observed(chosen, "checking", moments, homes=homes)) as observed:
            for case, times in observed:
                seen.setdefault(case, []).append(times)
                rows[case] = _row(predictor, case, seen[case], homes[case.threads])
                _write_rows(output, list(rows.values()))  # stays, whatever comes
    finally:
        if rows:
            _report(list(rows.values()), output, picture_path)


def run_choice(made: Calibration, threads: list[int], output: str) -> None:
    """Lets the planner choose, which measures contenders at a glance; then measures all of
    `choosing`'s grid, and prints how far the choices are from it. Ctrl-C leaves what there is."""
    shape, begin = _shape(cases.DEFAULT_MODEL), time.perf_counter()
    guesses = choosing.predicted(shape, Predictor(made).now(), threads)
    spent, begin = {"predicting_s": time.perf_counter() - begin}, time.perf_counter()
    glances = _glances(guesses, threads)
    spent["glancing_s"] = time.perf_counter() - begin
    begin, seen, found = time.perf_counter(), {}, {}
    try:
        with contextlib.closing(_observed(_by_threads(guesses, threads),
                                          "measuring every point")) as observed:
            for case, times in observed:
                seen.setdefault(case, []).append(times)
                found = _choices(guesses, seen, glances) | spent | {
                    "measuring_s": time.perf_counter() - begin}
                _write(output, found)
    finally:
        if seen:
            _report_choice(found, len(guesses), output)


def _by_threads(points: list[planner.Point], threads: list[int]) -> dict[int, list[cases.Case]]:
    found = {count: [choosing.case(point) for point in points if point.threads == count]
             for count in threads}
    return {count: chosen for count, chosen in found.items() if chosen}


def _glances(guesses: list[planner.Point], threads: list[int]) -> dict[cases.Case, planner.Point]:
    """What the contenders of all goals take, seen for a moment."""
    wanted = [point for goal in choosing.goals() for point in choosing.contenders(goal, guesses)]
    rivals = [point for point in guesses if point in wanted]
    seen: dict[cases.Case, list[dict]] = {}
    with contextlib.closing(_observed(_by_threads(rivals, threads), "measuring contenders",
                                      rounds=_GLANCES)) as observed:
        for case, times in observed:
            seen.setdefault(case, []).append(times)
    return {choosing.case(point): choosing.measured(point, seen[choosing.case(point)])
            for point in rivals}


def _choices(guesses: list[planner.Point], seen: dict, glances: dict) -> dict:
    """What `choosing.judge` says of the points that were measured, and those points."""
    pairs = [(guess, choosing.measured(guess, seen[choosing.case(guess)])) for guess in guesses
             if choosing.case(guess) in seen]
    guessed, truths = map(list, zip(*pairs, strict=True))
    return {"rows": choosing.judge(guessed, truths, glances), "points": [
        {**dataclasses.asdict(choosing.case(truth)), "ttft_s": truth.ttft_s,
         "tpot_s": (truth.e2e_s - truth.ttft_s) / (choosing.NEW_TOKENS - 1),
         "slowest_tpot_s": truth.tpot_s,
         "predicted": {"ttft_s": guess.ttft_s, "tpot_s": guess.tpot_s}}
        for guess, truth in pairs]}


def _observed(chosen: dict[int, list[cases.Case]], what: str,
              moments: int = 1, rounds: int = _ROUNDS,
              homes: dict[int, Placement | None] | None = None
              ) -> Iterator[tuple[cases.Case, dict]]:
    """Each case, by the number of threads and by model, and its times as they are measured: in so
    many rounds, and those at so many moments; `homes`: see `Observer.in_turns`."""
    groups = {count: [list(group) for _, group in itertools.groupby(
        every, lambda case: case.model)] for count, every in chosen.items()}
    steps = sum(1 + rounds * len(group) for each in groups.values() for group in each)
    with Progress().task(what, moments * steps) as advance:
        for count, every in list(groups.items()) * moments:
            with Observer(count) as observer:
                for group in every:
                    advance(f"preparing {group[0].model}, {count} threads")
                    for case, times in observer.in_turns(group, rounds, (homes or {}).get(count)):
                        advance(case.label)
                        yield case, times


def _row(predictor: Predictor, case: cases.Case, every: list[dict],
         home: Placement | None) -> dict:
    """Args:
        every: its times, of each round; those in which the cores lay as in `home` count, or all
            where there is none.
    """
    seen, found = at_home(every, home), {name: by_round(every, name) for name in METRICS}
    load = Load(case.batch, case.prompt_tokens, case.new_tokens)
    asked = _shape(case.model), case.engine, case.threads, load
    predicted = predictor.at_speed({case.threads: usual_memory(seen)}).latency(*asked)
    calibrated = predictor.latency(*asked)
    anywhere = predictor.at_speed({case.threads: usual_memory(every)}).latency(*asked)
    measured = {name: float(np.median(by_round(seen, name))) for name in METRICS}
    return {"model": case.model, "engine": case.engine, "threads": case.threads,
            "batch": case.batch, "prompt_tokens": case.prompt_tokens,
            "new_tokens": case.new_tokens, **measured,
            "predicted": {name: predicted[name] for name in METRICS},
            "prediction_error": {name: predicted[name] / measured[name] - 1
                                 for name in METRICS},
            "calibrated": {name: calibrated[name] for name in METRICS},
            # Of all rounds, also those that did not count.
            "anywhere_error": {name: anywhere[name] / float(np.median(found[name])) - 1
                               for name in METRICS},
            "rounds": found, "at_home": [is_at_home(times, home) for times in every],
            "memory_gb_per_s": [float(np.mean(times["memory"])) / 1e9 for times in every],
            "placement": [times["placement"] for times in every]}


@functools.cache
def _shape(model: str) -> shapes.Shape:
    if model in cases.MODELS:
        return shapes.decoder(cases.MODELS[model], model)
    from tfspeed.models.load import load
    return shapes.of(load(model))


def summary(rows: list[dict]) -> list[tuple]:
    """`(what, count, median, 95th percentile)` of the errors' sizes: of each engine's and all, with
    memory as it was read beside them; and all with memory as it was when this was calibrated, and
    with the rounds in which the cores lay elsewhere. A row that has none but those is in the last
    alone."""
    groups: dict[str, list[float]] = {}
    for row in rows:
        for name in METRICS:
            errors = {_ANYWHERE: row["anywhere_error"][name]}
            if any(row["at_home"]):
                kind, error = row["engine"].partition(":")[0], row["prediction_error"][name]
                errors |= dict.fromkeys((f"{kind}, {name}", f"{row['threads']} threads", "all"),
                                        error)
                errors[_BEFORE] = row["calibrated"][name] / row[name] - 1
            for group, error in errors.items():
                groups.setdefault(group, []).append(abs(error))
    last = [(name, groups.pop(name)) for name in ("all", _BEFORE, _ANYWHERE) if name in groups]
    return [(what, len(errors), float(np.median(errors)), float(np.percentile(errors, 95)))
            for what, errors in [*sorted(groups.items()), *last]]


def _write_rows(output: str, rows: list[dict]) -> None:
    _write(output, {"environment": _environment(), "rows": rows, "summary": summary(rows)})


def _write(output: str, found: dict) -> None:
    try:
        with appearing(Path(output)) as beside:
            beside.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise TfspeedError("The check cannot be written.", output=output,
                           cause=error.strerror) from error


def _report(rows: list[dict], output: str, picture_path: str) -> None:
    found = summary(rows)
    _write_rows(output, rows)
    try:
        Path(picture_path).write_bytes(
            pictures.rendered(predictions.painter(rows), predictions.SIZE))
    except OSError as error:
        raise TfspeedError("The picture cannot be written.", picture=picture_path,
                           cause=error.strerror) from error
    console = rich.console.Console()
    table = rich.table.Table("configuration", "TTFT ms", "error", "TPOT ms", "error",
                             box=rich.box.SIMPLE_HEAD)
    for row in rows:
        cells = []
        for name in METRICS:
            cells += [f"{1e3 * row[name]:.2f}", f"{row['prediction_error'][name]:+.1%}"]
        table.add_row(f"{row['model']}, {row['engine']}, {row['threads']} thr, batch "
                      f"{row['batch']}, {row['prompt_tokens']} + {row['new_tokens']}", *cells)
    console.print(table)
    table = rich.table.Table("errors", "times", "median", "95th percentile",
                             box=rich.box.SIMPLE_HEAD)
    for what, count, median, high in found:
        table.add_row(what, str(count), f"{median:.1%}", f"{high:.1%}")
    console.print(table)
    rounds = [counts for row in rows for counts in row["at_home"]]
    if away := rounds.count(False):
        never = sum(not any(row["at_home"]) for row in rows)
        console.print(f"In {away} of {len(rounds)} rounds the cores lay elsewhere than when this "
                      f"was calibrated. They do not count; {never} configurations have no others.",
                      highlight=False, soft_wrap=True)
    console.print(f"{len(rows)} configurations. Rows: {output}   Picture: {picture_path}",
                  highlight=False, soft_wrap=True)


def _report_choice(found: dict, points: int, output: str) -> None:
    table = rich.table.Table("goal", "chosen", "best of the grid", "behind",
                             box=rich.box.SIMPLE_HEAD)
    for row in found["rows"]:
        behind = f"{row['behind']:+.1%}" + ("" if row["allowed"] else ", over its bound")
        table.add_row(row["goal"], row["chosen"],
                      "the same" if row["best"] == row["chosen"] else row["best"], behind)
    console = rich.console.Console()
    console.print(table)
    seen = len(found["points"])
    part = "them" if seen == points else f"{seen} of them, between which it had to choose,"
    console.print(f"Choosing among {points} points took {found['predicting_s']:.2f} s and a glance "
                  f"at contenders {found['glancing_s']:.1f} s, measuring {part} "
                  f"{found['measuring_s']:.0f} s.   Rows: {output}", highlight=False,
                  soft_wrap=True)
