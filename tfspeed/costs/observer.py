"""Times cases in a process of its own: TensorFlow's threads are set before it starts.

Reads JSON lines on stdin, answers each on stdout with a line of JSON, or with `{"error": …}`:

    {"bandwidth": [bytes, …]}             -> {"bandwidth": [bytes a second, …]}
    {"dots": "xla", "short": false}       -> {"dots": […], "unpacking": {…}}, see `dots.py`
    {"case": {…}}                         -> {"ttft_s": […], "tpot_s": […], "step_bytes": …}
"""

import functools
import json
import sys
import time

import numpy as np

from tfspeed.costs.cases import MODELS, SMALL, Case
from tfspeed.errors import TfspeedError

_LEAST, _MOST, _SECONDS = 3, 9, 0.15  # repetitions of a case, and what they may take together


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
        return {"bandwidth": [1e9 * usual_bandwidth(threads, size)
                              for size in asked["bandwidth"]]}
    if "dots" in asked:
        from tfspeed.costs import dots
        return {"dots": dots.measure(asked["dots"], asked["short"]),
                "unpacking": dots.measure_unpacking(asked["dots"])}
    return observe(Case(**asked["case"]))


def observe(case: Case) -> dict:
    """Seconds of the first token and of those after it, of several generations."""
    from tfspeed.measure.experiment import time_generation
    engine = _engine(case.model, case.engine)
    vocabulary = engine.model.vocabulary_size
    prompts = np.random.default_rng(0).integers(0, vocabulary, (case.batch, case.prompt_tokens))
    time_generation(engine, prompts.tolist(), case.new_tokens)  # compiles, and warms up
    timings, begin = [], time.perf_counter()
    while len(timings) < _LEAST or (len(timings) < _MOST
                                    and time.perf_counter() - begin < _SECONDS):
        timings.append(time_generation(engine, prompts.tolist(), case.new_tokens))
    return {"ttft_s": [t.token_s[0] - t.start_s for t in timings],
            "tpot_s": [(t.token_s[-1] - t.token_s[0]) / (len(t.token_s) - 1) for t in timings],
            "step_bytes": engine.step_bytes(case.batch,
                                            case.prompt_tokens + case.new_tokens // 2)}


def _engine(model: str, engine: str):
    """`fused` ones of small models stay: they are timed at another moment once more."""
    return (_kept if model in SMALL and engine.startswith("fused") else _last)(model, engine)


def _made(model: str, engine: str):
    from tfspeed import engines
    return engines.create(engine, _model(model))


_kept, _last = functools.lru_cache(maxsize=16)(_made), functools.lru_cache(maxsize=1)(_made)


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
