"""Speed of training over the length of a window, speed of decoding over the context."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from tfspeed import engines
from tfspeed.errors import TfspeedError
from tfspeed.evolution.models import LEARNING_RATES, VOCABULARY, build, width
from tfspeed.evolution.training import Trainer, windows
from tfspeed.measure import metrics, quality
from tfspeed.measure.experiment import time_generation
from tfspeed.models.language_model import LanguageModel

_NEW_TOKENS = 33  # 32 steps after the first token
_PICKED_BY = 3  # steps that tell which way to execute a model is the faster


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is built and measured. Bad values raise TfspeedError.

    Attributes:
        parameters, layers: of each model.
        length: tokens of a window in the training that perplexity is taken after.
        lengths: those that training is timed at.
        contexts: tokens before those that decoding is timed with.
        step_tokens: tokens of one training step, at any length.
        repetitions: timed steps, and timed generations.
        learning_rate: the peak; 0: each kind's own, `models.LEARNING_RATES`.
    """

    parameters: int = 1_000_000
    layers: int = 2
    length: int = 128
    lengths: tuple[int, ...] = (32, 128, 512)
    contexts: tuple[int, ...] = (64, 256, 1024, 4096)
    step_tokens: int = 2048
    repetitions: int = 5
    learning_rate: float = 0.0
    engine: str = "litert"

    def __post_init__(self):
        for name in ("parameters", "layers", "repetitions", "step_tokens", "lengths",
                     "contexts"):
            values = getattr(self, name)
            if not values or np.min(values) < 1:
                raise TfspeedError(f"--{name} must be at least 1.", **{name: values})
        if self.length < 2 or min(self.lengths) < 2:
            raise TfspeedError("A window needs at least two tokens.", length=self.length,
                               lengths=self.lengths)
        if not 0 <= self.learning_rate < np.inf:
            raise TfspeedError("--learning_rate must be above 0, or 0 for each kind's own.",
                               learning_rate=self.learning_rate)
        engines.check(self.engine)
        if self.engine.partition(":")[0] == "fused":
            raise TfspeedError("The engine must run recurrent models too.", engine=self.engine,
                               hint="Use litert, litert:int8, xla or graph.")

    def build(self, kind: str) -> LanguageModel:
        longest = max(*self.contexts, *self.lengths, self.length) + _NEW_TOKENS
        return build(kind, self.parameters, self.layers, longest)

    def rate(self, kind: str) -> float:
        return self.learning_rate or LEARNING_RATES[kind]

    def rows(self, length: int) -> int:
        return max(1, self.step_tokens // length)


def describe(model: LanguageModel) -> dict:
    """What a row says of a model before anything is measured."""
    return {"model": model.name, "parameters": model.parameters, "hidden_dim": width(model)}


def fastest(plan: Plan, kind: str, text: bytes) -> Trainer:
    """A fresh trainer for the plan's window, executed by XLA or operator by operator, whichever
    takes less time here: XLA's loops over time are slower than TensorFlow's, its rest is faster."""
    tried = []
    for compiled in (False, True):
        trainer = made(plan, kind, compiled, plan.length)
        batches = windows(text, plan.rows(plan.length), plan.length)
        trainer.warm_up(next(batches))
        tried.append(min(trainer.step(next(batches), 0)[1] for _ in range(_PICKED_BY)))
    return made(plan, kind, tried[1] < tried[0], plan.length)


def made(plan: Plan, kind: str, compiled: bool, length: int) -> Trainer:
    return Trainer(plan.build(kind), compiled, plan.rate(kind), plan.rows(length), length)


def training_speed(plan: Plan, compiled: dict[str, bool], text: bytes,
                   advance: Callable[[str], None]) -> dict[str, list[dict]]:
    """Of each kind and length, `{length, rows, step_s, tokens_per_s}`; kinds in turn, the order
    turned round every time."""
    found: dict[str, list[dict]] = {kind: [] for kind in compiled}
    for length in plan.lengths:
        batches = windows(text, plan.rows(length), length)
        trainers = {kind: made(plan, kind, way, length)
                    for kind, way in compiled.items()}
        for trainer in trainers.values():
            trainer.warm_up(next(batches))
        seconds: dict[str, list[float]] = {kind: [] for kind in trainers}
        for kind in in_turn(list(trainers), plan.repetitions):
            advance(f"training steps of {length} tokens")
            seconds[kind].append(trainers[kind].step(next(batches), 0)[1])
        for kind, samples in seconds.items():
            step = metrics.summary(samples)
            found[kind].append({"length": length, "rows": plan.rows(length), "step_s": step,
                                "tokens_per_s": plan.rows(length) * length / step["median"]})
    return found


def decoding_speed(plan: Plan, models: Sequence[LanguageModel],
                   advance: Callable[[str], None]) -> dict[str, list[dict]]:
    """Of each model and context, latencies and rates by `metrics.latency` at batch 1, greedy, and
    `state_bytes`, what a step reads beside the weights."""
    found: dict[str, list[dict]] = {model.name: [] for model in models}
    made = {model.name: engines.create(plan.engine, model) for model in models}
    random = np.random.default_rng(0)
    for context in plan.contexts:
        prompt = [random.integers(0, VOCABULARY, context).tolist()]
        timings: dict[str, list] = {name: [] for name in made}
        for engine in made.values():  # compiles, and makes room
            time_generation(engine, prompt, _NEW_TOKENS)
        for name in in_turn(list(made), plan.repetitions):
            advance(f"decoding after {context} tokens")
            timings[name].append(time_generation(made[name], prompt, _NEW_TOKENS))
        for model in models:
            latency = metrics.latency(timings[model.name], 1, context)
            latency.pop("itl_s")
            state = model.step_bytes(1, context) - model.weights_bytes
            found[model.name].append({"context": context, "state_bytes": state, **latency})
    return found


def in_turn(names: list[str], repetitions: int) -> Iterator[str]:
    for number in range(repetitions):
        yield from names[::-1 if number % 2 else 1]


def perplexity(model: LanguageModel, text: bytes, length: int, tokens: int) -> dict:
    """Of each byte of a text that was not trained on: `perplexity` and `bits_per_byte`."""
    ids = np.frombuffer(text, np.uint8).astype(np.int32)
    cut = quality.text_windows(ids, length, max(1, tokens // length))
    engine = engines.create("graph", model)
    found = quality.compare(engine.score, engine.score, cut)
    return {"perplexity": found["perplexity"], "evaluated_tokens": found["evaluated_tokens"],
            "bits_per_byte": float(np.log2(found["perplexity"]))}
