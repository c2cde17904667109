"""What the parts of a decoder cost on this processor, by running them; and what a link costs."""

import time
from collections.abc import Callable

import numpy as np

from tfspeed.dataflow.plan import Work
from tfspeed.dataflow.problem import Links
from tfspeed.models.pieces import kind_of

_FEWEST = 3  # blocks that are timed together
_SECONDS, _LEAST, _LARGEST = 0.4, 5, 30  # of repetitions
_NOISE = 0.15
_SIZES = 4 << 10, 4 << 20  # bytes of messages that a link is timed with


def node_seconds(factory, work: Work, stages: int) -> dict[str, np.ndarray]:
    """Seconds of embedding, each block, head in a call: float64 `[layers + 2]` for `prefill` and
    `step`; and those of a call beside them, `[1]`, for `prefill_call` and `step_call`.

    A block costs what several of its kind take longer than one does, so that what a call costs is
    not counted for each. They are as many as one of `stages` may have: fewer would find their
    weights in the processor's cache.
    """
    decoder, kinds = factory.decoder, {}
    for i, block in enumerate(decoder.blocks):
        kind = kind_of(block), decoder.config.window(i), decoder.config.layer_rope(i)
        kinds.setdefault(kind, []).append(i)
    found = {name: np.zeros(len(decoder.blocks) + 2) for name in ("prefill", "step")}
    calls: dict = {"prefill": [], "step": []}
    for members in kinds.values():
        count = max(_FEWEST, len(members) // stages)
        several = (members * _FEWEST)[:count] if len(members) < count else members[:count]
        one = _seconds(factory, members[:1], False, False, work)
        more = _seconds(factory, several, False, False, work)
        for name, values in found.items():
            cost = max(0.0, (more[name] - one[name]) / (len(several) - 1))
            values[[i + 1 for i in members]] = cost
            calls[name].append(max(0.0, one[name] - cost))
    for at, first, last in ((0, True, False), (-1, False, True)):
        made = _seconds(factory, [], first, last, work)
        for name, values in found.items():
            values[at] = max(0.0, made[name] - min(calls[name]))
    return found | {f"{name}_call": np.array([np.mean(values)]) for name, values in calls.items()}


def _seconds(factory, numbers, first, last, work: Work) -> dict[str, float]:
    stage, config = factory(numbers, first, last), factory.decoder.config

    def values(rows, length):
        if first:
            return np.zeros((rows, length), np.int32)
        return np.full((rows, length, config.hidden_dim), 0.1, factory.hidden_type)

    header = {"group": 0, "groups": 1, "rows": work.rows, "capacity": work.capacity,
              "sampling": None}

    def prefill():
        stage(header | {"kind": "prefill"}, [values(work.piece, work.length),
                                             np.full(work.piece, work.length, np.int32)])

    def prefill_alone():
        stage.forget()
        prefill()

    def step():
        # Again at the same place, so that no cache runs over.
        stage.rewind(work.length)
        stage(header | {"kind": "step"}, [values(work.rows, 1)])

    made = {"prefill": _median(prefill_alone)}
    for _ in range(work.rows // work.piece - 1):
        prefill()
    return made | {"step": _median(step)}


def _median(call: Callable[[], None]) -> float:
    call()  # compiles
    spent: list[float] = []
    while len(spent) < _LEAST or (sum(spent) < _SECONDS and len(spent) < _LARGEST):
        start = time.perf_counter()
        call()
        spent.append(time.perf_counter() - start)
    return float(np.median(spent))


def evened(measured: list[dict]) -> list[dict]:
    """What several workers measured, with less noise: all have the costs of their mean, times the
    speed of each where it differs by more than what a busy machine makes of equal ones."""
    mean = {name: np.mean([m[name] for m in measured], 0) for name in measured[0]}
    whole = sum(float(values.sum()) for values in mean.values())
    ratios = [sum(float(values.sum()) for values in m.values()) / whole for m in measured]
    return [{name: values * (ratio if abs(ratio - 1) > _NOISE else 1.0)
             for name, values in mean.items()} for ratio in ratios]


def link(round_trip: Callable[[np.ndarray], None], hops: int) -> Links:
    """What one of `hops` links of a ring costs, from messages that go all the way round."""
    small, large = (_median(lambda size=size: round_trip(np.zeros(size, np.uint8))) / hops
                    for size in _SIZES)
    per_byte = max(1e-12, (large - small) / (_SIZES[1] - _SIZES[0]))
    return Links(max(0.0, small - _SIZES[0] * per_byte), 1 / per_byte)
