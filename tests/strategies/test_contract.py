"""The contract of every strategy: it leaves its argument alone, composes, and says what it did.

A strategy that claims exactness gives the tokens of the float32 reference under every engine.
"""

import copy
import dataclasses
import functools

import numpy as np
import pytest

import strategies
from strategies.base import Composition, Strategy
from tests.conftest import tiny_decoder
from tfspeed.engines import ENGINES, create
from tfspeed.engines.sampling import Sampling
from tfspeed.errors import TfspeedError

EXACT = ["baseline", "dataflow", "mirrored", "multi_worker", "speculative", "tensor_parallel"]
ROWS = (1, 2, 3, 5)  # fewer than replicas, as many, uneven
PROMPTS = [[5, 9, 2, 33], [7], list(range(1, 19)), [60, 61], [3, 1, 4, 1, 5]]


def generated(made, prompts, sampling=None, new_tokens=6):
    return np.stack(list(made.generate(prompts, new_tokens, sampling)), axis=1)


def generate(model, engine, prompts=PROMPTS, sampling=None):
    return generated(create(engine, model), prompts, sampling)


@functools.cache
def reference(engine):
    """What the plain model gives, by number of rows: compiled once for all strategies."""
    made = create(engine, tiny_decoder())
    return {rows: generated(made, PROMPTS[:rows]) for rows in ROWS}


def reloadable():
    model = tiny_decoder()
    model.reload = tiny_decoder  # a teacher, for strategies that train
    return model


def applied(name):
    strategy = strategies.create(name)
    with strategy.scope():
        return strategy, strategy.apply(reloadable())


@pytest.fixture(params=strategies.STRATEGIES)
def name(request):
    return request.param


# XLA takes longest to compile, and these have tests of their own under it (test_dataflow,
# test_tensor_parallel, tests/speculation); multi_worker is one worker here, as the baseline is.
SLOW_UNDER_XLA = {"dataflow", "multi_worker", "speculative", "tensor_parallel"}


@pytest.mark.parametrize(("exact", "engine"), [
    pytest.param(exact, engine, marks=[pytest.mark.slow] * (
        engine == "xla" and exact in SLOW_UNDER_XLA)) for exact in EXACT for engine in ENGINES])
def test_exact_strategies_give_the_reference_tokens(exact, engine):
    _, model = applied(exact)
    refused = {"tensor_parallel": ("litert", "fused")}
    if engine in refused.get(exact, ()):
        with pytest.raises(TfspeedError, match="on one device"):
            create(engine, model)
        return
    made = create(engine, model)
    for rows, tokens in reference(engine).items():
        np.testing.assert_array_equal(generated(made, PROMPTS[:rows]), tokens)


@pytest.mark.parametrize("exact", EXACT)
def test_sampling_does_not_depend_on_the_placement(exact):
    sampling = Sampling(temperature=1.5, seed=11)
    _, model = applied(exact)
    np.testing.assert_array_equal(generate(model, "graph", sampling=sampling),
                                  generate(tiny_decoder(), "graph", sampling=sampling))


def test_the_argument_is_not_edited(name):
    strategy = strategies.create(name)
    with strategy.scope():
        model = reloadable()
        before = dict(vars(model)), [v.numpy() for v in model.keras_model.weights]
        strategy.apply(model)
    assert vars(model) == before[0]
    for was, now in zip(before[1], model.keras_model.weights, strict=True):
        np.testing.assert_array_equal(was, now)


def test_interface(name):
    cls = strategies.find(name)
    assert issubclass(cls, Strategy)
    assert cls.name == name
    assert dataclasses.is_dataclass(cls.Options)
    assert cls.Options.__dataclass_params__.frozen
    for field in dataclasses.fields(cls.Options):
        assert field.metadata["help"]
        assert type(field.default) in (int, float, str, bool)
    strategy, _ = applied(name)
    assert all(isinstance(line, str) for line in strategy.report())


def test_a_label_tells_the_options_that_are_not_defaults():
    options = strategies.find("quantize").Options(bits=4, targets="mlp")
    composed = strategies.create("quantize+mirrored", {"quantize": options})
    assert composed.label == "quantize(bits=4,targets=mlp)+mirrored"
    assert composed.name == "quantize+mirrored"
    assert strategies.create("quantize").label == "quantize"


def test_every_strategy_has_its_line():
    lines = strategies.describe()
    assert lines.keys() == strategies.STRATEGIES.keys()
    assert all(len(line) > 20 for line in lines.values())


def test_composition_applies_from_left_to_right():
    calls = []

    class Recorder(Strategy):
        def __init__(self, name):
            super().__init__()
            self.name = name

        def apply(self, model, data=None):
            calls.append(self.name)
            return model

        def report(self):
            return [f"did {self.name}"]

    composed = Composition([Recorder("a"), Recorder("b")])
    with composed.scope():
        composed.apply(tiny_decoder())
    assert composed.name == "a+b"
    assert calls == ["a", "b"]
    assert composed.report() == ["a: did a", "b: did b"]


def test_the_steps_of_a_composition_go_on_from_one_another():
    class Counter(Strategy):
        name = "counter"
        applied = 0

        def apply(self, model, data=None):
            self.applied += 1
            made = copy.copy(model)
            made.notes = [*model.notes, f"after {self.applied}"]
            return made

    first, second = Counter(), Counter()
    steps = Composition([first, second]).steps()
    assert [step.name for step in steps] == ["counter", "counter+counter"]
    made = [step.apply(tiny_decoder()) for step in steps]
    assert [model.notes for model in made] == [["after 1"], ["after 1", "after 1"]]
    assert (first.applied, second.applied) == (1, 1)
    assert first.steps() == [first]


@pytest.mark.parametrize("engine", ENGINES)
def test_a_composition_of_exact_strategies_is_exact(engine):
    _, model = applied("baseline+mirrored")
    np.testing.assert_array_equal(generate(model, engine), generate(tiny_decoder(), engine))
