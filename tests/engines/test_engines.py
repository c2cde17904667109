"""The contract of every engine: the float32 reference's tokens, streamed, without retracing."""

import numpy as np
import pytest

from tests.conftest import tiny_decoder, tiny_recurrent
from tfspeed.engines import ENGINES, create
from tfspeed.engines.base import FINISHED, bucket
from tfspeed.engines.sampling import Sampling
from tfspeed.errors import TfspeedError
from tfspeed.models.decoder_model import DecoderModel
from tfspeed.models.recurrent import RecurrentModel

PROMPTS = [[5, 9, 2, 33], [7], list(range(1, 19))]


def reference(model, prompts, new_tokens):
    """Greedy tokens the slow way: the whole text is scored again for each."""
    rows = []
    for prompt in prompts:
        text = list(prompt)
        for _ in range(new_tokens):
            logits = np.asarray(model.score(np.asarray([text], np.int32)))
            text.append(int(logits[0, -1].argmax()))
        rows.append(text[len(prompt):])
    return np.asarray(rows)


def make(engine, model):
    """The engine over the model; some cannot run a model that they do not know, and say so."""
    known = {"litert": (DecoderModel, RecurrentModel), "fused": (DecoderModel,)}
    if engine in known and not isinstance(model, known[engine]):
        with pytest.raises(TfspeedError, match=f"{engine} engine runs"):
            create(engine, model)
        pytest.skip(f"{engine} runs decoders, litert recurrent models too")
    return create(engine, model)


def generate(engine, *args, **kwargs):
    return np.stack(list(engine.generate(*args, **kwargs)), axis=1)


@pytest.mark.parametrize("engine", ENGINES)
def test_greedy_tokens_are_those_of_the_reference(engine, model):
    made = make(engine, model)
    expected = reference(model, PROMPTS, 6)
    np.testing.assert_array_equal(generate(made, PROMPTS, 6), expected)
    for prompt, row in zip(PROMPTS, expected, strict=True):
        np.testing.assert_array_equal(generate(made, [prompt], 6)[0], row)


@pytest.mark.parametrize("engine", ENGINES)
def test_score_is_the_models_own(engine, model):
    tokens = np.random.default_rng(0).integers(0, 64, (2, 12)).astype(np.int32)
    np.testing.assert_allclose(make(engine, model).score(tokens), model.score(tokens),
                               atol=1e-4)


@pytest.mark.parametrize("engine", ENGINES)
def test_later_calls_trace_nothing(engine):
    made = create(engine, tiny_decoder())
    generate(made, [[1, 2, 3]], 8)
    count = made.traces
    files = engine in ("litert", "fused")
    assert count == (1 if files else 2)  # a file; or one prefill, one step
    for prompt, new_tokens in ([4], 8), (list(range(16)), 5), ([9, 8, 7], 1):
        generate(made, [prompt], new_tokens)
        assert made.traces == count
    for temperature, top_p in (0.5, 1.0), (1.5, 0.3):
        generate(made, [[1, 2]], 4, Sampling(temperature, top_p=top_p, seed=3))
        assert made.traces == (1 if files else 4)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_stop_token_ends_its_row_and_then_the_batch(engine):
    made = create(engine, tiny_decoder())
    plain = generate(made, PROMPTS, 12)
    stop = int(plain[0, 2])
    stopped = generate(made, PROMPTS, 12, stop_tokens=[stop])
    for row, full in zip(stopped, plain, strict=True):
        hits = np.flatnonzero(full == stop)
        end = hits[0] + 1 if hits.size else 12
        np.testing.assert_array_equal(row[:end], full[:end][:len(row)])
        assert (row[end:] == FINISHED).all()
    alone = generate(made, PROMPTS[:1], 12, stop_tokens=[stop])
    assert alone[0, -1] == stop
    assert alone.shape[1] == int(np.flatnonzero(plain[0] == stop)[0]) + 1


def test_tokens_are_streamed():
    made = create("graph", tiny_decoder())
    steps = made.generate([[1, 2]], 5)
    first = next(steps)
    assert first.shape == (1,)
    assert len(list(steps)) == 4


@pytest.mark.parametrize("engine", ENGINES)
def test_sampling_is_repeatable_and_follows_the_seed(engine):
    made = create(engine, tiny_decoder())
    one = generate(made, PROMPTS, 8, Sampling(temperature=2.0, seed=1))
    np.testing.assert_array_equal(
        one, generate(made, PROMPTS, 8, Sampling(temperature=2.0, seed=1)))
    assert (one != generate(made, PROMPTS, 8, Sampling(temperature=2.0, seed=2))).any()
    np.testing.assert_array_equal(
        generate(made, PROMPTS, 8, Sampling(temperature=2.0, top_k=1)),
        generate(made, PROMPTS, 8))


def test_recurrent_state_does_not_grow():
    lstm = tiny_recurrent("lstm")
    assert lstm.step_bytes(1, 10) == lstm.step_bytes(1, 10_000)


@pytest.mark.parametrize(("length", "size"), [(1, 16), (16, 16), (17, 24), (25, 32), (128, 128),
                                              (129, 192), (200, 256)])
def test_bucket(length, size):
    assert bucket(length) == size


@pytest.mark.parametrize(("prompts", "new_tokens", "words"), [
    ([], 4, "at least one prompt"),
    ([[]], 4, "at least one token"),
    ([[1]], 0, "new_tokens=0"),
    ([[1] * 90], 10, "prompt_tokens=90"),
    ([[1, 64]], 4, "token=64"),
    ([[-1]], 4, "token=-1"),
])
def test_bad_requests_are_refused_before_anything_runs(prompts, new_tokens, words):
    with pytest.raises(TfspeedError, match=words):
        create("graph", tiny_decoder()).generate(prompts, new_tokens)


def test_unknown_engine():
    with pytest.raises(TfspeedError, match="engine='tpu'"):
        create("tpu", tiny_decoder())


def test_a_model_that_cannot_pad_wants_equal_lengths():
    model = tiny_decoder()
    model.pads = False
    made = create("graph", model)
    with pytest.raises(TfspeedError, match="one length"):
        made.generate([[1], [1, 2]], 2)
    np.testing.assert_array_equal(generate(made, [[1, 2]], 4), reference(model, [[1, 2]], 4))
