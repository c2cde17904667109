"""The numerics of removing columns: errors are those of a least-squares refit."""

import numpy as np
import pytest

from tfspeed.compression.hessian import damped
from tfspeed.compression.structured import cheapest, columns_of, refitted, removal


def problem(inputs=24, outputs=7):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, inputs)) @ rng.normal(size=(inputs, inputs))
    return rng.normal(size=(outputs, inputs)).astype(np.float32), (x.T @ x / 400).astype(np.float32)


@pytest.mark.parametrize(("width", "step"), [(1, 4), (3, 1), (3, 2)])
def test_errors_are_those_of_the_refit(width, step):
    matrix, gram = problem()
    gone, errors = removal(matrix, gram, 24 // width, step, 3)
    assert gone.shape == (3, step)
    for steps in (1, 2, 3):
        kept = np.setdiff1d(np.arange(24), columns_of(gone[:steps].reshape(-1), width))
        change = np.array(matrix)
        change[:, kept] -= refitted(matrix, gram, kept)
        error = np.sum((change @ damped(gram)) * change)
        assert errors[steps - 1] == pytest.approx(error, rel=1e-4)


def test_the_refit_is_least_squares():
    matrix, gram = problem()
    kept = np.arange(0, 24, 2)
    best = refitted(matrix, gram, kept)

    def error(candidate):
        change = np.array(matrix)
        change[:, kept] -= candidate
        return np.sum((change @ damped(gram)) * change)

    rng = np.random.default_rng(1)
    assert all(error(best) < error(best + 0.01 * rng.normal(size=best.shape)) for _ in range(5))
    assert error(best) < 0.7 * error(matrix[:, kept])


def test_a_last_column_stays():
    matrix, gram = problem(inputs=25)
    for units in (24, 6):
        gone, _ = removal(matrix, gram, units, 1, 99)
        assert len(gone) == units - 1  # one stays
        assert gone.max() < units  # and the bias


def test_steps_are_taken_where_they_cost_least():
    curves = {"cheap": np.array([1.0, 2.0, 30.0]), "dear": np.array([10.0, 20.0]), "none": []}
    sizes = {"cheap": 10, "dear": 20, "none": 5}
    assert cheapest(curves, sizes, 15) == {"cheap": 2, "dear": 0, "none": 0}
    assert cheapest(curves, sizes, 21) == {"cheap": 2, "dear": 1, "none": 0}
    assert cheapest(curves, sizes, 10**6) == {"cheap": 3, "dear": 2, "none": 0}
