"""Patterns, Wanda and SparseGPT, on matrices."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfspeed.compression import hessian, sparse
from tfspeed.compression.patterns import Pattern
from tfspeed.errors import TfspeedError


@pytest.fixture(scope="module")
def case():
    """A matrix `[32, 48]` and the Gram matrix of inputs that hang together."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 12)) @ rng.normal(size=(12, 48)) + 0.3 * rng.normal(size=(400, 48))
    x = x * rng.uniform(0.2, 3, 48)
    return rng.normal(size=(32, 48)).astype(np.float32), (x.T @ x / 400).astype(np.float32)


@given(st.integers(1, 6), st.integers(1, 6), st.floats(0.01, 0.99))
@settings(max_examples=40, deadline=None)
def test_blocks_go_or_stay_whole(rows, columns, sparsity):
    scores = np.random.default_rng(1).random((rows * 5, columns * 7))
    kept = Pattern.parse(f"{rows}x{columns}").keep(scores, sparsity, by_row=False)
    blocks = kept.reshape(5, rows, 7, columns).any((1, 3)), kept.reshape(5, rows, 7,
                                                                         columns).all((1, 3))
    np.testing.assert_array_equal(*blocks)
    assert (~blocks[0]).sum() == round(sparsity * 35)


@given(st.integers(1, 7), st.integers(1, 7))
@settings(max_examples=30, deadline=None)
def test_m_of_every_n_neighbours_go(zeros, more):
    group = zeros + more
    scores = np.random.default_rng(2).random((4, 3 * group))
    pattern = Pattern.parse(f"{zeros}:{group}")
    kept = pattern.keep(scores, 0.9, by_row=False).reshape(4, 3, group)
    assert ((~kept).sum(-1) == zeros).all()
    groups = scores.reshape(4, 3, group)
    assert (np.where(kept, np.inf, groups).min(-1) <= np.where(kept, groups, np.inf).min(-1)).all()
    assert np.where(kept, 0, groups).max() <= groups.max()
    assert pattern.sparsity(0.9) == zeros / group


@pytest.mark.parametrize("text", ["", "2", "4:4", "5:4", "0:4", "2:0", "0x4", "4x", "x", "-1:4",
                                  "2 : 4", "block", "9999999x1"])
def test_other_spellings_are_refused(text):
    with pytest.raises(TfspeedError, match="pattern"):
        Pattern.parse(text)


def test_a_pattern_must_divide():
    Pattern.parse("2:4").check("down", (6, 8))
    with pytest.raises(TfspeedError, match=r"down.*inputs=9"):
        Pattern.parse("2:4").check("down", (6, 9))
    with pytest.raises(TfspeedError, match="outputs=6"):
        Pattern.parse("4x1").check("down", (6, 9))


def test_wanda_by_hand():
    matrix = np.float32([[1, -2, 3, 4], [5, 1, -1, 1]])
    gram = np.diag(np.float32([100, 4, 1, 0.01]))  # |W| · ‖x‖: 10, 4, 3, 0.4 and 50, 2, 1, 0.1
    np.testing.assert_array_equal(sparse.wanda(matrix, gram, Pattern(), 0.5),
                                  [[1, -2, 0, 0], [5, 1, 0, 0]])
    np.testing.assert_array_equal(sparse.wanda(matrix, gram, Pattern.parse("1:2"), 0.1),
                                  [[1, 0, 3, 0], [5, 0, -1, 0]])


@pytest.mark.parametrize("text", ["unstructured", "2:4", "4x1", "2x3"])
def test_the_better_the_method_the_less_the_outputs_move(case, text):
    matrix, gram = case
    pattern = Pattern.parse(text)
    plain = np.where(pattern.keep(np.abs(matrix), 0.5, by_row=False), matrix, 0)
    made = [plain, sparse.wanda(matrix, gram, pattern, 0.5),
            sparse.sparsegpt(matrix, gram, pattern, 0.5)]
    errors = [hessian.relative_error(m - matrix, matrix, gram) for m in made]
    assert errors[2] < 0.8 * errors[1] < 0.9 * errors[0]
    for m in made:
        assert np.mean(m == 0) == pytest.approx(0.5, abs=0.02)
        assert m.dtype == np.float32


def test_sparsegpt_leaves_zeros_in_their_pattern(case):
    matrix, gram = case
    pruned = sparse.sparsegpt(matrix, gram, Pattern.parse("2:4"), 0.5)
    assert ((pruned.reshape(32, 12, 4) == 0).sum(-1) == 2).all()
    pruned = sparse.sparsegpt(matrix, gram, Pattern.parse("4x1"), 0.25)
    assert set(np.unique((pruned == 0).reshape(8, 4, 48).sum(1))) == {0, 4}


def test_nothing_changed_nothing_moved(case):
    matrix, gram = case
    root = hessian.inverse_root(gram)
    same = hessian.compensated(matrix, root, 5, lambda rest, start: lambda column, values: values)
    np.testing.assert_array_equal(same, matrix)


def test_the_width_of_the_groups_changes_nothing_but_the_order_of_sums(case):
    matrix, gram = case
    root = hessian.inverse_root(gram)

    def rounded(rest, start):
        return lambda column, values: np.rint(values)

    one = hessian.compensated(matrix, root, 1, rounded)
    all_at_once = hessian.compensated(matrix, root, 48, rounded)
    assert np.mean(one != all_at_once) < 0.02  # a sum may fall on the other side of a half
