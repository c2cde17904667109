import numpy as np
import pytest
import tensorflow as tf

from tfspeed.errors import TfspeedError
from tfspeed.measure.quality import compare, interval, text_windows

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


def test_the_interval_of_identical_models_is_nothing():
    assert compare(UNIFORM, UNIFORM, WINDOWS)["perplexity_delta_interval"] == {"low": 0, "high": 0}
    # The same weights through another function: rounding alone.
    found = compare(UNIFORM, constant([0.1] * 10), WINDOWS)["perplexity_delta_interval"]
    assert found["low"] <= 0 <= found["high"]
    assert abs(found["high"]) < 1e-6


def test_the_interval_holds_the_true_change_as_often_as_it_says():
    # 4096 tokens whose differences hang together over some ten neighbours; the truth is +1 %.
    rng, inside, widths = np.random.default_rng(2), 0, []
    for _ in range(200):
        noise = np.convolve(rng.normal(0, 0.1, 4105), np.ones(10) / np.sqrt(10), "valid")
        found = interval(np.log(1.01) + noise, draws=400)
        inside += found["low"] <= 0.01 <= found["high"]
        widths.append(found["high"] - found["low"])
    assert 176 <= inside < 200  # 190 expected, less what blocks of finite length cost
    # Drawn token by token, neighbours taken for strangers, it would be a third of this.
    alone = 2 * 1.96 * 0.1 / np.sqrt(4096)
    assert np.mean(widths) > 2 * alone


def test_a_short_text_has_an_interval_too():
    found = interval(np.full(7, 0.5))
    assert found == {"low": pytest.approx(np.exp(0.5) - 1), "high": pytest.approx(np.exp(0.5) - 1)}


def test_a_model_that_says_nan_shows_it():
    found = compare(UNIFORM, lambda tokens: UNIFORM(tokens) * np.nan, WINDOWS)
    assert np.isnan(found["perplexity"])
    assert np.isnan(found["perplexity_delta"])


def test_windows_are_contiguous_and_do_not_overlap():
    windows = text_windows(np.arange(25), 10, 5)
    np.testing.assert_array_equal(windows, [np.arange(10), np.arange(10, 20)])
    assert text_windows(np.arange(100), 10, 3).shape == (3, 10)
    with pytest.raises(TfspeedError, match="tokens=9"):
        text_windows(np.arange(9), 10, 1)


def test_the_likeliest_token_is_that_of_the_logits():
    """A softmax rounds these two to one value, and the first would be the likeliest."""
    near, other = np.zeros((1, 3, 8), np.float32), np.zeros((1, 3, 8), np.float32)
    near[..., 5], other[..., 0] = 1e-9, 1e-9
    windows = np.zeros((1, 3), np.int32)
    assert compare(lambda _: near, lambda _: other, windows)["top1_agreement"] == 0
