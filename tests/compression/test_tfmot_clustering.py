"""Centroids by TFMOT, k-means on top, assignment with compensation."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tfspeed.compression import hessian
from tfspeed.compression.tfmot_clustering import INITS, PER, clustered, initial, nearest, refined


@pytest.fixture(scope="module")
def case():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 12)) @ rng.normal(size=(12, 48)) + 0.3 * rng.normal(size=(400, 48))
    matrix = rng.standard_t(5, size=(64, 48)) * rng.uniform(0.2, 2, 48)
    return matrix.astype(np.float32), (x.T @ x / 400).astype(np.float32)


@pytest.mark.parametrize("init", INITS)
def test_initial_centroids_lie_among_the_values(case, init):
    matrix, _ = case
    made = initial(matrix, 8, init)
    assert made.shape == (8,)
    assert (np.diff(made) >= 0).all()
    assert matrix.min() - 0.1 <= made[0] <= made[-1] <= matrix.max() + 0.1


def test_assignment_is_tfmots(case):
    from tensorflow_model_optimization.clustering.keras import ClusteringAlgorithm
    matrix, _ = case
    centroids = initial(matrix, 16, "kmeans++")
    indices = ClusteringAlgorithm(tf.Variable(centroids)).get_pulling_indices(matrix)
    expected = centroids[indices.numpy()].reshape(-1)
    np.testing.assert_array_equal(nearest(matrix.reshape(-1), centroids), expected)
    repeated = np.broadcast_to(centroids, (matrix.size, 16))
    np.testing.assert_array_equal(nearest(matrix.reshape(-1), repeated), expected)


def loss(values, weights, centroids):
    """Weighted squared distance to the nearest centroid, `[groups]`."""
    distance = np.square(values[:, :, None] - centroids[:, None]).min(-1)
    return (weights * distance).sum(1)


@given(st.integers(0, 10_000), st.integers(1, 5), st.integers(2, 9))
@settings(max_examples=40, deadline=None)
def test_k_means_makes_no_group_worse(seed, groups, clusters):
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(groups, 40)) * rng.uniform(0.01, 100)
    weights = rng.random((groups, 40))
    start = np.sort(rng.choice(values.reshape(-1), (groups, clusters)), 1)
    made = refined(values, weights, start)
    assert (np.diff(made, axis=1) >= 0).all()
    before, after = loss(values, weights, start), loss(values, weights, made)
    assert (after <= before * (1 + 1e-4) + 1e-9).all()


def test_k_means_by_hand():
    values = np.float32([[0, 1, 10, 11], [5, 5, 5, 9]])
    weights = np.float32([[3, 1, 1, 1], [1, 1, 1, 1]])
    np.testing.assert_allclose(refined(values, weights, np.float32([[0, 10], [5, 9]])),
                               [[0.25, 10.5], [5, 9]])


@pytest.mark.parametrize("per", PER)
def test_each_codebook_has_few_values(case, per):
    matrix, gram = case
    made = clustered(matrix, gram, 6, "kmeans++", per)
    parts = {"tensor": made.reshape(1, -1), "output": made, "input": made.T}[per]
    assert max(len(np.unique(part)) for part in parts) <= 6
    assert made.dtype == np.float32


@pytest.mark.parametrize("per", PER)
def test_compensation_moves_the_outputs_less(case, per):
    matrix, gram = case
    errors = [hessian.relative_error(clustered(matrix, g, 8, "kmeans++", per) - matrix, matrix,
                                     gram) for g in (gram, None)]
    assert errors[0] < 0.8 * errors[1]


@pytest.mark.parametrize("init", INITS)
def test_k_means_betters_every_first_centroid(case, init):
    matrix, _ = case
    start = initial(matrix, 8, init)
    rough = nearest(matrix.reshape(-1), start).reshape(matrix.shape)
    made = clustered(matrix, None, 8, init, "tensor")
    assert np.square(made - matrix).sum() < np.square(rough - matrix).sum()


def test_outliers_pull_at_no_centroid():
    matrix = np.random.default_rng(0).normal(size=(20, 10)).astype(np.float32)
    plain = clustered(matrix, None, 4, "linear", "tensor")
    matrix[3, 4] = 1000
    made = clustered(matrix, None, 4, "linear", "tensor", outliers=1 / 200)
    assert made[3, 4] == 1000
    assert np.square(made - matrix).sum() < 1.5 * np.square(plain - matrix)[matrix < 1000].sum()


def test_a_matrix_of_one_value_stays():
    matrix = np.full((4, 6), 2.5, np.float32)
    np.testing.assert_allclose(clustered(matrix, None, 4, "kmeans++", "output"), matrix)
    for init in INITS:
        assert np.isfinite(clustered(0 * matrix, None, 4, init, "tensor")).all()


