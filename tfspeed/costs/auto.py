"""`--strategy=auto`: the planner's best point, and what it cannot tell from it, measured beside the
baseline before one of them counts."""

import gc

import psutil

from tfspeed import gate
from tfspeed.costs import calibration, planner, shapes
from tfspeed.costs.planner import Point
from tfspeed.costs.prediction import Load, Predictor
from tfspeed.costs.qualities import Quality, qualities
from tfspeed.errors import TfspeedError
from tfspeed.memory import give_back
from tfspeed.models.load import load

NAME = "auto"
_MARGIN = 0.5  # of a gate, that a prior of another model or text may use up


def choose(flags, workload, threads: int) -> tuple[str, list[Point]]:
    """Puts the strategy, its options and the engine that are done first into the flags, among
    those whose quality lies well within their gate; returns what is said of it, and the others
    that are to be measured too.

    Raises:
        TfspeedError: there is no calibration, or an option contradicts the choice.
    """
    if flags.dtype != "float32" or flags.every_step:
        raise TfspeedError("--strategy=auto chooses by itself: --dtype and --every_step do not go "
                           "with it.", dtype=flags.dtype, every_step=flags.every_step)
    predictor = Predictor(calibration.load()).now()
    model = load(flags.model)
    fitted = workload.fitted(model)
    point, *rivals = contenders(shapes.of(model), predictor, model.name, threads,
                                Load(fitted.batch, fitted.prompt_tokens, fitted.new_tokens),
                                flags.max_perplexity_increase)
    if flags.prompts is not None or _is_baseline(point, flags.engine):
        rivals = []  # one of them would answer
    rivals = _that_fit([p for p in rivals if not _is_baseline(p, flags.engine)], point)
    del model
    gc.collect()
    give_back()  # each row loads its own, and what lies here would count as theirs
    flags.strategy, flags.engine = point.quality.strategy, point.quality.engine
    for name, value in point.quality.options:
        flags[name].value = value
    beside = "".join(f"{rival.quality.engine}, which may be as fast, and " for rival in rivals)
    return (f"auto: {point.quality.strategy} under {point.quality.engine}, predicted TTFT "
            f"{1e3 * point.ttft_s:.0f} ms and TPOT {1e3 * point.tpot_s:.2f} ms; now measured "
            f"beside {beside}the baseline.", rivals)


def contenders(shape, predictor: Predictor, name: str, threads: int, load_: Load,
               limit: float | None = None) -> list[Point]:
    """The point that is done first, and those that may be, of what an engine does to the model as
    it is: strategies take minutes; `limit` on perplexity takes the place of the gates."""
    known = [quality for quality in qualities(model=name) if _within(quality, limit)]
    points = planner.search(shape, predictor, known, [load_], [threads], 1, threads)
    first = planner.contenders(points, _cost)[0]
    return [first, *(p for p in planner.contenders(
        [p for p in points if p is first or p.quality.strategy == "baseline"], _cost)
        if p.quality.engine != first.quality.engine)]


def _cost(point: Point) -> float:
    return point.e2e_s


def _is_baseline(point: Point, engine: str) -> bool:
    return (point.quality.strategy == "baseline"
            and point.quality.engine == engine.partition(":")[0])


def _that_fit(rivals: list[Point], point: Point) -> list[Point]:
    """Those that lie in memory together with the choice and a baseline."""
    free, found = psutil.virtual_memory().available - 2 * point.memory_bytes, []
    for rival in rivals:
        free -= rival.memory_bytes
        if free > 0:
            found.append(rival)
    return found


def _within(quality: Quality, limit: float | None) -> bool:
    if quality.increase is None:
        return False
    allowed = gate.limit(quality.made(), quality.engine) if limit is None else limit
    return quality.increase <= _MARGIN * allowed


def verdict(rows: list[dict]) -> str:
    """What the measurement says of the choices, rows after the first, which is the baseline; it is
    never worse than that, since it is the baseline otherwise."""
    if len(rows) < 2:
        return "auto: the baseline itself."
    baseline, *others = rows
    found = min(others, key=lambda row: (row.get("gate", {}).get("passed") is False,
                                         row["e2e_s"]["median"]))
    ratio = baseline["e2e_s"]["median"] / found["e2e_s"]["median"]
    what = f"{found['strategy']} under {found['engine']}"
    if found.get("gate", {}).get("passed") is False:
        return f"auto: keep the baseline. {what} costs more quality than its gate allows."
    if ratio <= 1:
        return f"auto: keep the baseline. {what} is {1 / ratio:.2f} times as slow."
    return f"auto: use {what}, {ratio:.2f} times as fast as the baseline, measured."
