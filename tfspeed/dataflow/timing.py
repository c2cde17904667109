"""What the parts of a decoder cost on this processor, by running them; and what a link costs."""

import time
from collections import defaultdict
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
    `step`; and those of a call beside them, `[1]`, for `prefill_call` and `step_call`. Where there
    are sources also `hear`, of the decoder's blocks too, and `encode`, of the encoder's."""
    decoder = factory.decoder
    if not work.source:
        kinds = _alike(decoder.blocks, lambda i: (decoder.config.window(i),
                                                  decoder.config.layer_rope(i)))
        return _of_nodes(kinds, lambda *part: _seconds(factory, *part, work), stages)
    return _of_nodes(_alike(decoder.decoder), lambda *part: _seconds(factory, *part, work),
                     stages) | _of_nodes(
        _alike(decoder.encoder), lambda *part: _encoding(factory, *part, work), stages)


def _alike(blocks, more=lambda i: None) -> list[list[int]]:
    """Numbers of layers of one kind, together."""
    kinds: dict = {}
    for i, block in enumerate(blocks):
        kinds.setdefault((kind_of(block), more(i)), []).append(i)
    return list(kinds.values())


def _of_nodes(kinds: list[list[int]], timed: Callable, stages: int) -> dict[str, np.ndarray]:
    """See `node_seconds`, of one chain.

    Args:
        timed: gives the seconds of a stage's calls by kind: of layers, and whether it is the first
            stage, and the last.

    A block costs what several of its kind take longer than one does, so that what a call costs is
    not counted for each. They are as many as one of `stages` may have: fewer would find their
    weights in the processor's cache.
    """
    found = defaultdict(lambda: np.zeros(sum(map(len, kinds)) + 2))
    calls = defaultdict(list)
    for members in kinds:
        count = max(_FEWEST, len(members) // stages)
        several = (members * _FEWEST)[:count] if len(members) < count else members[:count]
        one, more = timed(members[:1], False, False), timed(several, False, False)
        for name, seconds in one.items():
            cost = max(0.0, (more[name] - seconds) / (len(several) - 1))
            found[name][[i + 1 for i in members]] = cost
            calls[name].append(max(0.0, seconds - cost))
    for at, first, last in ((0, True, False), (-1, False, True)):
        for name, seconds in timed([], first, last).items():
            found[name][at] = max(0.0, seconds - min(calls[name]))
    each = {f"{name}_call": np.array([np.mean(values)]) for name, values in calls.items()}
    return {**found, **each}


def _seconds(factory, numbers, first, last, work: Work) -> dict[str, float]:
    stage, config = factory(numbers, first, last), factory.decoder.config

    def values(rows, length):
        if first:
            return np.zeros((rows, length), np.int32)
        return np.full((rows, length, config.hidden_dim), 0.1, factory.hidden_type)

    header = {"group": 0, "groups": 1, "rows": work.rows, "capacity": work.capacity,
              "sampling": None}

    made = {}
    if work.source:
        header |= {"source": 0, "begin": 0}
        made = {"hear": _median(lambda: _hear(factory, stage, header, work))}

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

    made["prefill"] = _median(prefill_alone)
    for _ in range(work.rows // work.piece - 1):
        prefill()
    return made | {"step": _median(step)}


def _hear(factory, stage, header, work: Work) -> None:
    """A piece of a source, of which the group has nothing but copies."""
    stage.keep(())
    stage(header | {"kind": "hear", "copies": work.rows // work.source_piece},
          _between_encoders(factory, work))


def _encoding(factory, numbers, first, last, work: Work) -> dict[str, float]:
    """Of a stage's layers of the encoder."""
    stage, header = factory([], first, last, encoder=numbers), {"kind": "encode", "kept": ()}
    arrays = [factory.source(work)] if first else _between_encoders(factory, work)
    return {"encode": _median(lambda: stage(header, arrays))}


def _between_encoders(factory, work: Work) -> list[np.ndarray]:
    """Hidden states and what hides padding, as one stage gives them to the next."""
    shape = work.source_piece, work.source, factory.decoder.config.hidden_dim
    return [np.full(shape, 0.1, factory.hidden_type),
            np.zeros((work.source_piece, 1, 1, work.source), np.float32)]


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
