import numpy as np
import pytest
import tensorflow as tf

from tfspeed.engines.sampling import Sampling, sample, seeds
from tfspeed.errors import TfspeedError

LOGITS = np.log(np.asarray([0.5, 0.25, 0.15, 0.07, 0.03], np.float32))


def draw(count, temperature=1.0, top_k=0, top_p=1.0):
    """Frequencies of `count` draws, one a row."""
    logits = tf.constant(np.tile(LOGITS, (count, 1)))
    tokens = sample(logits, tf.constant(temperature), tf.constant(top_k), tf.constant(top_p),
                    tf.constant(seeds(7, count, 0)))
    return np.bincount(tokens.numpy(), minlength=5) / count


def test_frequencies_are_the_probabilities():
    np.testing.assert_allclose(draw(4000), np.exp(LOGITS), atol=0.03)


def test_temperature_sharpens():
    expected = np.exp(LOGITS / 0.5)
    np.testing.assert_allclose(draw(4000, 0.5), expected / expected.sum(), atol=0.03)


def test_top_k_keeps_the_k_likeliest():
    np.testing.assert_allclose(draw(4000, top_k=2), [2 / 3, 1 / 3, 0, 0, 0], atol=0.03)


@pytest.mark.parametrize(("top_p", "kept"), [(0.5, 1), (0.51, 2), (0.9, 3), (0.901, 4), (1.0, 5),
                                             (1e-6, 1), (1e-45, 1), (1e-60, 1)])
def test_top_p_keeps_the_smallest_set_that_reaches_p(top_p, kept):
    assert (draw(4000, top_p=top_p) > 0).sum() == kept


@pytest.mark.parametrize("temperature", [1e-3, 1e-20, 1e-40, 1e-60])
def test_a_tiny_temperature_is_nearly_greedy(temperature):
    assert draw(50, temperature=temperature).argmax() == draw(4000).argmax()
    assert draw(50, temperature=temperature).max() == 1


def test_a_row_draws_the_same_wherever_it_is_placed():
    np.testing.assert_array_equal(seeds(3, 8, 5)[:2], seeds(3, 2, 5))


@pytest.mark.parametrize("bad", [{"temperature": -1.0}, {"temperature": float("nan")},
                                 {"top_k": -1}, {"top_k": 2**31}, {"top_p": 0.0}, {"top_p": 1.5},
                                 {"seed": -1}])
def test_bad_settings(bad):
    (name, _), = bad.items()
    with pytest.raises(TfspeedError, match=name):
        Sampling(**bad)
