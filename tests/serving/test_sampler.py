"""The host's sampler keeps what the compiled one keeps, and draws in proportion."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tfspeed.engines import sampling as compiled
from tfspeed.engines.sampling import Sampling
from tfspeed.serving import sampler


def drawn(logits, sampling, count=1000):
    return np.bincount([sampler.choose(logits, sampling, i) for i in range(count)],
                       minlength=len(logits))


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (3, 1.0), (0, 0.6), (5, 0.7), (1, 0.5),
                                              (0, 1e-9), (99, 0.999)])
def test_it_keeps_what_the_compiled_one_keeps(top_k, top_p):
    logits = np.random.default_rng(1).normal(size=20).astype(np.float32) * 2
    sampling = Sampling(0.9, top_k, top_p)
    expected = compiled.sample(
        tf.repeat(logits[None], 1000, 0), tf.constant(0.9), tf.constant(top_k),
        tf.constant(top_p), tf.constant(compiled.seeds(0, 1000, 0)))
    found, expected = drawn(logits, sampling), np.bincount(expected, minlength=20)
    np.testing.assert_allclose(found / 1000, expected / 1000, atol=0.07)
    assert not found[expected == 0].sum() > 4
    assert not expected[found == 0].sum() > 4


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**31 - 1), st.integers(0, 40), st.floats(0.01, 1), st.floats(0.01, 100))
def test_what_is_drawn_is_among_the_likeliest(seed, top_k, top_p, temperature):
    logits = np.random.default_rng(seed).normal(size=3000).astype(np.float32) * 3
    token = sampler.choose(logits, Sampling(temperature, top_k, top_p, seed), 0)
    rank = int((logits > logits[token]).sum())
    assert rank < (top_k or 3000)
    weights = np.exp((np.sort(logits)[::-1].astype(np.float64) - logits.max()) / temperature)
    weights /= weights[:top_k or 3000].sum()
    assert weights[:rank].sum() < top_p + 1e-6
    assert token == sampler.choose(logits, Sampling(temperature, top_k, top_p, seed), 0)


def test_a_tiny_temperature_is_greedy():
    logits = np.asarray([1.0, 3.0, 2.0], np.float32)
    assert sampler.choose(logits, Sampling(1e-38), 0) == 1
    assert sampler.choose(logits, Sampling(), 0) == 1


def test_logprobs():
    logits = np.log(np.asarray([0.5, 0.125, 0.25, 0.125], np.float32)) + 7
    told = sampler.told(logits, 1, 2)
    assert told.logprob == pytest.approx(np.log(0.125))
    assert [t for t, _ in told.top] == [0, 2]
    assert np.exp([p for _, p in told.top]) == pytest.approx([0.5, 0.25])
    assert sampler.told(logits, 1, None).logprob is None
    assert sampler.told(logits, 1, 0).top == ()
    assert len(sampler.told(logits, 1, 9).top) == 4
