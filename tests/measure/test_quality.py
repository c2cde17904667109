import numpy as np
import pytest
import tensorflow as tf

from tfspeed.errors import TfspeedError
from tfspeed.measure.quality import compare, text_windows

WINDOWS = np.random.default_rng(0).integers(0, 10, (3, 8)).astype(np.int32)


def constant(probabilities):
    """A model that gives the same distribution everywhere."""
    logits = np.log(np.asarray(probabilities, np.float32))
    return lambda tokens: tf.constant(np.tile(logits, (*tokens.shape, 1)))


UNIFORM = constant([0.1] * 10)


def test_a_uniform_model_has_the_perplexity_of_its_vocabulary():
    found = compare(UNIFORM, UNIFORM, WINDOWS)
    assert found["perplexity"] == pytest.approx(10.0, rel=1e-5)
    assert found["perplexity_delta"] == 0.0
    assert found["kl_divergence"] == pytest.approx(0.0, abs=1e-6)
    assert found["top1_agreement"] == 1.0
    assert found["evaluated_tokens"] == 3 * 7


def test_known_divergence_and_agreement():
    p = np.asarray([0.55] + [0.05] * 9)
    q = np.asarray([0.05, 0.55] + [0.05] * 8)
    found = compare(constant(p), constant(q), WINDOWS)
    assert found["kl_divergence"] == pytest.approx(float((p * np.log(p / q)).sum()), rel=1e-4)
    assert found["top1_agreement"] == 0.0
    targets = WINDOWS[:, 1:].ravel()
    expected = np.exp(-np.log(q[targets]).mean())
    assert found["perplexity"] == pytest.approx(expected, rel=1e-4)
    baseline = np.exp(-np.log(p[targets]).mean())
    assert found["baseline_perplexity"] == pytest.approx(baseline, rel=1e-4)
    assert found["perplexity_delta"] == pytest.approx(expected / baseline - 1, rel=1e-3)


def test_a_worse_model_shows():
    rng = np.random.default_rng(1)
    sharp = constant(rng.dirichlet(np.ones(10)))
    assert compare(sharp, UNIFORM, WINDOWS)["kl_divergence"] > 0


def test_windows_are_contiguous_and_do_not_overlap():
    windows = text_windows(np.arange(25), 10, 5)
    np.testing.assert_array_equal(windows, [np.arange(10), np.arange(10, 20)])
    assert text_windows(np.arange(100), 10, 3).shape == (3, 10)
    with pytest.raises(TfspeedError, match="tokens=9"):
        text_windows(np.arange(9), 10, 1)
