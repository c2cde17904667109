"""The contract of every backend: many at once get the tokens that each gets alone."""

import numpy as np
import pytest

from tests.conftest import tiny_decoder, tiny_recurrent
from tests.engines.test_engines import generate
from tests.litert.test_decoder import FAMILIES
from tests.serving.serving import Answer
from tfspeed import engines
from tfspeed.engines.sampling import Sampling
from tfspeed.errors import TfspeedError
from tfspeed.serving import backend as backends
from tfspeed.serving.worker import Worker

SHARED = [int(t) for t in np.random.default_rng(0).integers(0, 64, 70)]
PROMPTS = [[5, 9, 2, 33, 8, 1], [7, 3], SHARED, [*SHARED[:68], 1, 2, 3], list(range(40)), [11],
           SHARED]
ENGINES = ("graph", "fused")


@pytest.fixture
def serve():
    """Makes workers, and closes them."""
    made = []

    def make(engine, model, cache_tokens=1024, max_rows=4, **kwargs):
        made.append(Worker(backends.create(engine, model, cache_tokens, max_rows), **kwargs))
        return made[-1]

    yield make
    for worker in made:
        worker.close()


def check_alone(worker, engine, prompts, count):
    answers = [Answer(worker, prompt, count) for prompt in prompts]
    for prompt, answer in zip(prompts, answers, strict=True):
        np.testing.assert_array_equal(answer.wait(), generate(engine, [prompt], count)[0])
        assert answer.reason == "length"


QUICK = ("llama", "falcon")  # tracing takes its time


@pytest.mark.parametrize(("engine", "family"), [
    pytest.param(engine, family, marks=[pytest.mark.slow] * (engine == "graph"
                                                             and family not in QUICK))
    for engine in ENGINES for family in FAMILIES])
def test_many_get_the_tokens_of_one(serve, engine, family):
    model = tiny_decoder(**FAMILIES[family])
    prompts = PROMPTS if engine == "fused" else PROMPTS[:4]
    if family == "longrope" and engine == "graph":  # takes no texts whose angles change
        prompts = [p[:12] for p in prompts]
    worker = serve(engine, model, chunk=24)
    check_alone(worker, engines.create(engine, model), prompts, 12 if engine == "fused" else 5)
    assert worker.scheduler.pool.available == worker.scheduler.pool.count
    if worker.backend.shares and family != "longrope":
        assert worker.reused_tokens >= worker.backend.block


@pytest.mark.slow
def test_xla_too(serve):
    model = tiny_decoder()
    worker = serve("xla", model, chunk=24, max_rows=2)
    check_alone(worker, engines.create("xla", model), PROMPTS[:3], 4)


@pytest.mark.parametrize("weights", ["float16", "int8", "int4", "int8,cache=float32"])
def test_fewer_bits(serve, weights):
    model = tiny_decoder(hidden_dim=64, mlp_dim=96, head_dim=20)
    worker = serve(f"fused:{weights}", model, chunk=17)
    check_alone(worker, engines.create(f"fused:{weights}", model), PROMPTS, 16)


def test_thirty_two_rows(serve):
    model = tiny_decoder()
    worker = serve("fused:int8", model, cache_tokens=4096, max_rows=32)
    prompts = [SHARED[i:i + 1 + 2 * i] for i in range(32)]
    check_alone(worker, engines.create("fused:int8", model), prompts, 20)
    assert worker.steps < 32 * 20  # they did sit beside each other


def test_later_steps_trace_nothing(serve):
    worker = serve("graph", tiny_decoder(), chunk=16)
    for _ in range(2):
        traces = worker.backend.traces
        for prompts in PROMPTS[:2], PROMPTS[2:4], PROMPTS:
            for answer in [Answer(worker, p, 6) for p in prompts]:
                answer.wait()
    assert worker.backend.traces - traces <= 4  # who meets whom depends on the clock
    assert traces < 60


@pytest.mark.parametrize("engine", ENGINES)
def test_a_row_draws_the_same_whoever_sits_beside_it(serve, engine):
    worker = serve(engine, tiny_decoder())
    settings = [Sampling(1.5, seed=i, top_k=i % 3 * 5, top_p=1 - 0.2 * (i % 2)) for i in range(7)]
    alone = [Answer(worker, p, 8, sampling=s).wait()
             for p, s in zip(PROMPTS, settings, strict=True)]
    together = [Answer(worker, p, 8, sampling=s) for p, s in zip(PROMPTS, settings, strict=True)]
    assert [a.wait() for a in together] == alone
    other = Answer(worker, PROMPTS[0], 8, sampling=Sampling(1.5, seed=99)).wait()
    assert other != alone[0]


@pytest.mark.parametrize("engine", ENGINES)
def test_a_cache_that_is_too_small_for_all(serve, engine):
    """Somebody has to start over, and nobody gets other tokens for it."""
    model = tiny_decoder()
    worker = serve(engine, model, cache_tokens=160, max_rows=4)
    check_alone(worker, engines.create(engine, model), [SHARED[i:i + 40] for i in range(6)], 50)
    assert worker.scheduler.preemptions
    assert worker.scheduler.pool.available == worker.scheduler.pool.count


def test_what_cannot_be_served():
    with pytest.raises(TfspeedError, match="engine='litert'"):
        backends.create("litert", tiny_decoder())
    with pytest.raises(TfspeedError, match="max_rows=0"):
        backends.create("graph", tiny_decoder(), max_rows=0)
    with pytest.raises(TfspeedError, match="needs one of tfspeed's decoders"):
        backends.create("graph", tiny_recurrent("lstm"))
