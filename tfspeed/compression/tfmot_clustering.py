"""Few distinct values a matrix: TFMOT's centroids, refined by k-means, assigned with compensation.

TFMOT starts from centroids and lets training move them; without training they are far from the
best, so k-means moves them here, a weight counting by how much its input is used. Nothing of TFMOT
stays in the model. Sources: Deep Compression (arXiv:1510.00149), the weighted k-means and the kept
outliers of SqueezeLLM (arXiv:2306.07629), the compensation of GPTQ (arXiv:2210.17323).
"""

import numpy as np
import tensorflow as tf

from tfspeed.compression import hessian

_ROUNDS = 30  # of k-means at most
_SAMPLE = 1 << 16  # values that the initial centroids are made from
_ENOUGH = 1 << 18  # values for the means of a whole matrix
INITS = {"linear": "LINEAR", "kmeans++": "KMEANS_PLUS_PLUS", "density": "DENSITY_BASED",
         "random": "RANDOM"}
PER = {"tensor": None, "output": 1, "input": 0}  # what shares a codebook: the axes of [out, in]


def initial(values: np.ndarray, clusters: int, init: str) -> np.ndarray:
    """TFMOT's centroids of some values, float32 `[clusters]`, ascending.

    `CentroidInitialization` is public, the factory that computes it is not (pinned:
    tensorflow-model-optimization 0.8.1).

    Args:
        init: one of `INITS`.
    """
    from tensorflow_model_optimization.clustering.keras import CentroidInitialization
    from tensorflow_model_optimization.python.core.clustering.keras import clustering_centroids

    values = np.asarray(values, np.float32).reshape(-1)
    sample = values[np.linspace(0, len(values) - 1, min(len(values), _SAMPLE)).astype(int)]
    factory = clustering_centroids.CentroidsInitializerFactory
    make = factory.get_centroid_initializer(CentroidInitialization[INITS[init]])
    return np.sort(make(tf.constant(sample), clusters).get_cluster_centroids().numpy())


def refined(values: np.ndarray, weights: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """Moves centroids to the weighted means of the values nearest to them, until they rest.

    Args:
        values: `[groups, n]`; each group has a codebook of its own.
        weights: how much each value counts, `[groups, n]`, at least 0.
        centroids: `[groups, clusters]`, ascending.

    Returns:
        float32 `[groups, clusters]`, ascending.
    """
    order = np.argsort(values, axis=1)
    # Each group moved to a range of its own: one sorted row, one search for all groups.
    low, high = values.min(), values.max()
    offsets = np.arange(len(values), dtype=np.float64)[:, None] * (2 * (high - low) + 1)
    lined = np.take_along_axis(values, order, 1).astype(np.float64)
    counts = np.take_along_axis(weights, order, 1).astype(np.float64)
    sums = np.concatenate([[0.0], np.cumsum(lined * counts)])
    counts = np.concatenate([[0.0], np.cumsum(counts)])
    lined = (lined + offsets).reshape(-1)
    ends = np.arange(len(values) + 1) * values.shape[1]
    centroids = centroids.astype(np.float64)
    for _ in range(_ROUNDS):
        middles = (centroids[:, 1:] + centroids[:, :-1]) / 2
        inner = np.searchsorted(lined, np.clip(middles, low, high) + offsets)
        bounds = np.concatenate([ends[:-1, None], inner, ends[1:, None]], 1)
        mass = np.diff(counts[bounds], axis=1)
        moved = np.where(mass > 0, np.diff(sums[bounds], axis=1) / np.maximum(mass, 1e-300),
                         centroids)
        if np.abs(moved - centroids).max() <= 1e-5 * (high - low):
            return moved.astype(np.float32)
        centroids = moved
    return centroids.astype(np.float32)


def nearest(values: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """Each value's nearest centroid, as `ClusteringAlgorithm.get_pulling_indices` finds it (a test
    compares), at a twentieth of the time.

    Args:
        values: `[n]`.
        centroids: ascending, `[clusters]` for all or `[n, clusters]`, a codebook for each value.
    """
    middles = (centroids[..., 1:] + centroids[..., :-1]) / 2
    if centroids.ndim == 1:
        return centroids[np.searchsorted(middles, values)]
    places = (values[:, None] > middles).sum(1)
    return np.take_along_axis(centroids, places[:, None], 1)[:, 0]


def clustered(matrix: np.ndarray, gram: np.ndarray | None, clusters: int, init: str,
              per: str, outliers: float = 0.0) -> np.ndarray:
    """The matrix with at most `clusters` distinct values in each codebook's part.

    Args:
        matrix: `[out, in]`.
        gram: mean of `x xᵀ` over tokens, `[in, in]`; None where it is not known: then each weight
            counts the same and nothing is compensated.
        per: what shares a codebook: `tensor`, all; `output`, a row; `input`, a column.
        outliers: share of the weights, the largest, that keep values of their own.
    """
    if gram is None:
        gram = np.eye(matrix.shape[1], dtype=np.float32)
    kept = _largest(matrix, round(outliers * matrix.size))
    importance = np.diagonal(gram) + 1e-3 * np.diagonal(gram).mean()
    counts = np.where(kept, 0, importance).astype(np.float32)
    # TFMOT's centroids are made once, of values of one size, and scaled to each codebook's.
    sizes = np.sqrt(np.square(matrix).mean(PER[per], keepdims=True)) + np.float32(1e-12)
    start = initial((matrix / sizes)[~kept], clusters, init)
    if per != "input":
        rows = slice(None, None, max(1, matrix.size // _ENOUGH) if per == "tensor" else 1)
        parts = matrix if per == "output" else matrix[rows].reshape(1, -1)
        codebooks = refined(parts, counts[rows].reshape(parts.shape),
                            start * sizes.reshape(-1, 1))

    def codebook(column, values):
        """`[clusters]`, or `[out, clusters]`; that of a column is made when its turn comes."""
        if per != "input":
            return codebooks if per == "output" else codebooks[0]
        return refined(values[None], counts[None, :, column], start[None] * sizes[0, column])[0]

    def plan(rest, column):
        return lambda _, values: np.where(kept[:, column], values,
                                          nearest(values, codebook(column, values)))

    return hessian.compensated(matrix, hessian.inverse_root(gram), 1, plan)


def _largest(matrix: np.ndarray, count: int) -> np.ndarray:
    """bool `[out, in]`: the weights of largest size."""
    kept = np.zeros(matrix.size, bool)
    if count:
        kept[np.argpartition(np.abs(matrix).reshape(-1), -count)[-count:]] = True
    return kept.reshape(matrix.shape)
