import numpy as np
import pytest

from tfspeed.compression.filesize import deflated_share, index_bits

NOISE = np.random.default_rng(0).normal(size=(256, 256)).astype(np.float32)


def test_deflated_share():
    assert 0.85 < deflated_share(NOISE) < 1
    assert deflated_share(np.zeros_like(NOISE)) < 0.01
    half = np.where(np.random.default_rng(1).random(NOISE.shape) < 0.5, 0, NOISE)
    assert 0.4 < deflated_share(half.astype(np.float32)) < 0.7


def test_index_bits():
    matrix = np.float32([[1, 2, 3, 4], [5, 5, 6, 6]])
    assert index_bits(matrix, "output") == pytest.approx(1.5)
    assert index_bits(matrix, "input") == pytest.approx(1)
    assert index_bits(matrix, "tensor") == pytest.approx(2.5)
