"""The best pair of thin matrices, and the budget over layers."""

import itertools

import numpy as np
import pytest
import tensorflow as tf

from tests.conftest import tiny_decoder
from tfspeed.compression import copying, fisher, low_rank, targets
from tfspeed.compression.low_rank import Spectrum

RNG = np.random.default_rng(0)


def gram_of(width, rank=None):
    x = RNG.normal(size=(200, rank or width)) @ RNG.normal(size=(rank or width, width))
    return x.T @ x / 200


def lost(difference, gram):
    return float(np.trace(difference @ gram @ difference.T))


@pytest.mark.parametrize("shape", [(20, 12), (12, 20), (16, 16)])
@pytest.mark.parametrize("rank", [1, 5, 9])
def test_halves_are_the_whitened_svd(shape, rank):
    """What they lose is the sum of the squared singular values of W L that were cut off."""
    matrix, gram = RNG.normal(size=shape), gram_of(shape[1])
    root = np.linalg.cholesky(gram)
    singular = np.linalg.svd(matrix @ root, compute_uv=False)
    first, second = low_rank.halves(matrix, gram, rank)
    assert first.shape == (rank, shape[1])
    assert second.shape == (shape[0], rank)
    assert first.dtype == second.dtype == np.float32
    assert lost(second @ first - matrix, gram) == pytest.approx(
        np.square(singular[rank:]).sum(), rel=0.02)  # damped
    plain = low_rank.halves(matrix, None, rank)
    assert lost(plain[1] @ plain[0] - matrix, gram) > lost(second @ first - matrix, gram)
    u, s, v = np.linalg.svd(matrix)
    np.testing.assert_allclose(plain[1] @ plain[0], (u[:, :rank] * s[:rank]) @ v[:rank], atol=1e-4)


@pytest.mark.parametrize("shape", [(20, 12), (12, 20)])
def test_energies_are_what_directions_carry(shape):
    matrix, gram = RNG.normal(size=shape), gram_of(shape[1])
    directions, energies = low_rank.decomposed(matrix, gram)
    assert directions.shape == (shape[0], min(shape))
    assert np.all(np.diff(energies) <= 1e-9)
    np.testing.assert_allclose(directions.T @ directions, np.eye(min(shape)), atol=1e-6)
    gram += 0.01 * np.trace(gram) / len(gram) * np.eye(len(gram))  # damping
    np.testing.assert_allclose(np.diag(directions.T @ matrix @ gram @ matrix.T @ directions),
                               energies, rtol=1e-6)


def test_inputs_that_fill_no_space():
    """A singular Gram matrix, as a short text gives."""
    matrix, gram = RNG.normal(size=(20, 12)), gram_of(12, 4)
    first, second = low_rank.halves(matrix, gram, 4)
    assert np.isfinite(first).all()
    assert np.isfinite(second).all()
    assert lost(second @ first - matrix, gram) < 1e-3 * lost(matrix, gram)
    np.testing.assert_allclose(np.matmul(*low_rank.halves(matrix, gram, 12)[::-1]), matrix,
                               atol=1e-4)
    first, second = low_rank.halves(matrix, np.zeros((12, 12)), 3)
    assert np.isfinite(first).all()
    assert np.isfinite(second).all()


def spectrum(shape, decay, multiple=4):
    return Spectrum(shape, decay ** np.arange(min(shape)), multiple)


def total_loss(spectra, ranks):
    return sum(spectra[n].energies[r:].sum() for n, r in ranks.items())


def test_the_budget_is_met_and_no_more():
    spectra = {str(i): spectrum((64 + 16 * i, 48), 0.8 + 0.02 * i) for i in range(5)}
    for goal in (1, 500, 3000, 9000):
        ranks = low_rank.ranks(spectra, goal)
        saved = sum(spectra[n].saved(r) for n, r in ranks.items())
        assert goal <= saved < goal + 1600  # at most a break-even's step over it
        assert all(r % 4 == 0 and spectra[n].saved(r) > 0 for n, r in ranks.items())


def test_ranks_go_where_they_cost_least():
    """Against every choice there is."""
    spectra = {"a": spectrum((16, 16), 0.9, 2), "b": spectrum((24, 16), 0.5, 2),
               "c": Spectrum((16, 24), np.ones(16), 2)}
    options = {n: [None, *range(2, 16, 2)] for n in spectra}
    for goal in (100, 200, 400):
        ranks = low_rank.ranks(spectra, goal)
        saved = sum(spectra[n].saved(r) for n, r in ranks.items())
        assert saved >= goal
        best = min(total_loss(spectra, chosen)
                   for picks in itertools.product(*options.values())
                   for chosen in [{n: r for n, r in zip(spectra, picks, strict=True) if r}]
                   if all(spectra[n].saved(r) > 0 for n, r in chosen.items())
                   and sum(spectra[n].saved(r) for n, r in chosen.items()) >= saved)
        assert total_loss(spectra, ranks) <= 1.05 * best + 1e-9


def test_layers_that_cost_more_stay_whole():
    spectra = {"flat": Spectrum((32, 32), np.ones(32), 4), "steep": spectrum((32, 32), 0.5)}
    assert set(low_rank.ranks(spectra, 500)) == {"steep"}
    assert low_rank.ranks({"thin": spectrum((32, 2), 0.5)}, 10) == {}


def test_narrow_layers_get_finer_ranks():
    assert [low_rank.fitting(16, shape) for shape in ((576, 960), (64, 512), (4, 90))] == [16, 8, 1]


def test_what_can_be_reached():
    spectra = {"a": spectrum((32, 32), 0.9, 8), "narrow": spectrum((32, 4), 0.9, 8)}
    most = low_rank.reach(spectra)
    assert most == 32 * 32 - 8 * 64
    ranks = low_rank.ranks(spectra, most)
    assert ranks == {"a": 8}
    assert low_rank.ranks(spectra, most + 1) == {"a": 8}


def test_costs_are_squared_gradients_of_the_outputs():
    """A small change along an output raises the divergence as they say."""
    model = copying.copied(tiny_decoder())
    tokens = RNG.integers(0, 64, (4, 12)).astype(np.int32)
    found = targets.find(model.keras_model, "block_1/mlp/down|block_0/attention/out")
    many = np.repeat(tokens, 40, 0)
    _, sums = fisher._gradients(found, lambda: fisher._loss(model.score(many), (0, 0)), [])
    costs = {name: squares / many.size for name, squares in sums.items()}
    assert set(costs) == {t.name for t in found}
    assert all("call" not in t.layer.__dict__ for t in found)
    log_p = tf.nn.log_softmax(model.score(tokens))
    for target in found:
        cost = costs[target.name]
        assert cost.shape == (target.shape[0],)
        call = target.layer.call
        noise = 0.02

        def noisy(x, target=target, call=call, noise=noise):
            size = np.sqrt(np.square(target.rows(x)).mean(1)).reshape(*x.shape[:-1], 1)
            signs = RNG.choice([-1.0, 1.0], (*x.shape[:-1], target.shape[0]))
            return call(x) + tf.constant(noise * size * signs, tf.float32)

        found_divergences = []
        target.layer.call = noisy
        for _ in range(30):
            log_q = tf.nn.log_softmax(model.score(tokens))
            found_divergences.append(float(tf.reduce_mean(tf.reduce_sum(
                tf.exp(log_p) * (log_p - log_q), -1))))
        target.layer.__dict__.pop("call")
        expected = 0.5 * noise ** 2 * cost.sum()
        assert 0.7 < np.mean(found_divergences) / expected < 1.4


def test_block_by_block_the_costs_are_those_of_the_whole_model():
    model = copying.copied(tiny_decoder(sliding_window=3, sliding_layers=(True, False)))
    tokens = RNG.integers(0, 64, (2, 9)).astype(np.int32)
    found = targets.find(model.keras_model, "mlp|attention")
    whole = [fisher._gradients(found, lambda i=i: fisher._loss(
        model.score(tokens[i:i + 1]), (0, i)), [])[1] for i in range(2)]
    costs = fisher.output_costs(model, found, tokens)
    assert set(costs) == set(whole[0]) == {t.name for t in found}
    for name, found in costs.items():
        np.testing.assert_allclose(found, (whole[0][name] + whole[1][name]) / 18, rtol=1e-3)
