"""Times cases in a process of its own: TensorFlow's threads are set before it starts.

Reads JSON lines on stdin, answers each on stdout with a line of JSON, or with `{"error": …}`:

    {"bandwidth": bytes}                  -> {"bandwidth": bytes a second}, and "placement"
    {"products": "xla", "short": false}   -> see `dots.measure_all`, and "placement"
    {"again": "xla", "short": false}      -> see `dots.measure_again`, and "placement"
    {"prepare": [{…}, …], "dots": "xla", "short": false} -> {}: made and compiled, in place of
                                             those before; `dots`: and those products, or ""
    {"case": {…}}                         -> {"ttft_s": […], "tpot_s": […], "memory": […],
                                             "placement": […]}: with bytes a second that were read
                                             before and after, and where the cores lay
"""

import concurrent.futures
import dataclasses
import functools
import gc
import json
import sys
import time

import numpy as np

from tfspeed.costs.cases import MODELS, UNCACHED, Case
from tfspeed.errors import TfspeedError

_MOST, _SECONDS = 6, 0.03  # generations of a case, and what they may take together
_BEFORE = 6  # tokens before them: after two the first generation took a fifth longer than the next


def main(threads: int) -> None:
    from tfspeed.devices import set_threads
    set_threads(threads)
    print(json.dumps({"ready": threads}), flush=True)
    for line in sys.stdin:
        try:
            answer = _answer(json.loads(line), threads)
        except TfspeedError as error:
            answer = {"error": str(error)}
        print(json.dumps(answer), flush=True)


def _answer(asked: dict, threads: int) -> dict:
    if "bandwidth" in asked:
        from tfspeed.measure.bandwidth import usual_bandwidth
        return _placed(threads, lambda size: {"bandwidth": 1e9 * usual_bandwidth(threads, size)},
                       asked["bandwidth"])
    if "products" in asked:
        from tfspeed.costs import dots
        return _placed(threads, dots.measure_all, asked["products"], asked["short"])
    if "again" in asked:
        from tfspeed.costs import dots
        return _placed(threads, dots.measure_again, asked["again"], asked["short"])
    if "prepare" in asked:
        with concurrent.futures.ThreadPoolExecutor(1) as pool:  # a second, the first time
            readers = [pool.submit(made, threads) for made in (_memory, _placement)]
            prepare([Case(**each) for each in asked["prepare"]], threads, asked["dots"],
                    asked["short"])
        for reader in readers:
            reader.result()
        return {}
    return observe(Case(**asked["case"]), _memory(threads), _placement(threads))


def prepare(cases: list[Case], threads: int = 1, products: str = "", short: bool = False) -> None:
    """Leaves the engines of these, made and compiled, and no others; so many models at once, and
    the products of an engine beside them."""
    wanted = {(case.model, case.engine) for case in cases}
    dropped = set(_ready) - wanted
    for each in dropped:
        del _ready[each]
    if dropped:
        gc.collect()  # models are cycles
    groups: dict[str, list[Case]] = {}
    for case in cases:
        groups.setdefault(case.model, []).append(case)
    tasks = [functools.partial(_warm_all, group) for group in groups.values()]
    if products:
        from tfspeed.costs import dots
        tasks.insert(0, functools.partial(dots.compile_all, products, short))
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda task: task(), tasks))


def _warm_all(cases: list[Case]) -> None:
    """Of one model."""
    from tfspeed import engines
    model = _model(cases[0].model)
    for case in cases:
        each = case.model, case.engine
        if each not in _ready:
            _ready[each] = engines.create(case.engine, model), set()
        _warm(case)


@functools.cache
def _memory(threads: int):
    from tfspeed.measure.bandwidth import MemoryReader
    return MemoryReader(threads, UNCACHED)


@functools.cache
def _placement(threads: int):
    from tfspeed.measure.placement import PlacementReader
    return PlacementReader(threads)


def _told(*placements) -> list[dict]:
    """Those that could be read."""
    return [dataclasses.asdict(each) for each in placements if each]


def _placed(threads: int, measure, *asked) -> dict:
    """What `measure` finds, and where the cores lay before and after."""
    reader = _placement(threads)
    before = reader.read()
    return measure(*asked) | {"placement": _told(before, reader.read())}


def observe(case: Case, memory, placement) -> dict:
    """Seconds of the first token and of those after it, of a generation, or some where they are
    short; before them a prompt and some steps bring the model where it lies while it is used.

    Args:
        memory: a `MemoryReader`: what others do to the memory lasts a second or two.
        placement: a `PlacementReader`: where cores lie changes within ten seconds.
    """
    if (case.model, case.engine) not in _ready:
        prepare([case])
    engine, timings, speeds = _warm(case), [], [memory.read()]
    _generation(engine, case, min(_BEFORE, case.new_tokens))
    before = placement.read()
    begin = time.perf_counter()
    while not timings or (len(timings) < _MOST and time.perf_counter() - begin < _SECONDS):
        timings.append(_generation(engine, case))
    return {"ttft_s": [t.token_s[0] - t.start_s for t in timings],
            "tpot_s": [(t.token_s[-1] - t.token_s[0]) / (len(t.token_s) - 1) for t in timings],
            "placement": _told(before, placement.read()), "memory": [*speeds, memory.read()]}


_ready: dict[tuple[str, str], tuple] = {}  # by model and engine: an engine, and what it has run


def _warm(case: Case):
    """The engine of a case, once it has run it."""
    engine, ran = _ready[case.model, case.engine]
    if case not in ran:
        _generation(engine, case, 2)  # a prompt and a step are all that is compiled
        ran.add(case)
    return engine


def _generation(engine, case: Case, tokens: int | None = None):
    """All of it, or so many tokens."""
    from tfspeed.measure.experiment import time_generation
    prompts = np.random.default_rng(0).integers(0, engine.model.vocabulary_size,
                                                (case.batch, case.prompt_tokens))
    return time_generation(engine, prompts.tolist(), case.new_tokens, tokens)


@functools.lru_cache(maxsize=1)
def _model(name: str):
    if name not in MODELS:
        from tfspeed.models.load import load
        return load(name)
    return synthetic(name)


def synthetic(name: str):
    """A decoder of a shape of `MODELS`, its weights drawn from a short list: filled at once."""
    from tfspeed.models.decoder import Decoder
    from tfspeed.models.decoder_model import DecoderModel
    config = MODELS[name]
    made = DecoderModel(name, Decoder(config, "zeros"))
    made.made_up = True
    drawn = np.random.default_rng(0).standard_normal(1 << 20).astype(np.float32) * 0.05
    for variable in made.keras_model.weights:
        if len(variable.shape) > 1:
            variable.assign(np.resize(drawn, variable.shape))
    return made


if __name__ == "__main__":
    main(int(sys.argv[1]))
