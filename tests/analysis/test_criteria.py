"""The three criteria on data whose answer is known, and linear programs against another solver."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import linprog, nnls
from scipy.spatial.distance import cdist

from lesde.analysis.separation.criteria import CRITERIA, Frame, linear_margins

SQUARE = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])


def square(x, y):
    """The unit square with its lower left corner at (x, y)."""
    return SQUARE + np.array([x, y])


def frame(*classes, direction=None, margin=True):
    """One replicate of the given classes."""
    labels = np.repeat(np.arange(len(classes)), [len(c) for c in classes])
    return Frame(np.concatenate(classes)[None], labels, direction, margin)


def along(vector, K=2):
    """The same direction for every pair, pointing from the later class to the earlier one."""
    order = np.sign(np.arange(K)[None, :] - np.arange(K)[:, None])
    return order[..., None] * np.asarray(vector, dtype=float)


def test_projection_measures_the_empty_gap_along_the_direction():
    right, left = square(3.0, 0.0), SQUARE
    score = CRITERIA["projection"](frame(right, left, direction=along([1.0, 0.0])))
    np.testing.assert_allclose(score[0], [[np.nan, 2.0], [2.0, np.nan]])
    score = CRITERIA["projection"](frame(right, left, direction=along([0.0, 1.0])))
    assert score[0, 0, 1] == pytest.approx(-1.0)
    # the order counts: the upper class must lie above
    score = CRITERIA["projection"](frame(left, right, direction=along([1.0, 0.0])))
    assert score[0, 0, 1] == pytest.approx(-4.0)


def test_own_direction_is_that_of_each_replicate():
    a = np.stack([square(3.0, 0.0), square(0.0, 3.0), SQUARE])
    b = np.stack([SQUARE, SQUARE, SQUARE])
    labels = np.repeat([0, 1], 4)
    scores = CRITERIA["projection"](Frame(np.concatenate([a, b], axis=1), labels))
    np.testing.assert_allclose(scores[:2, 0, 1], 2.0)
    assert not scores[2, 0, 1] > 0  # coinciding means: no direction, not separated


def test_touching_is_not_separated():
    touching = frame(square(1.0, 0.0), SQUARE, direction=along([1.0, 0.0]))
    for name in ("projection", "linear"):
        assert not CRITERIA[name](touching)[0, 0, 1] > 1e-9


def test_linear_sees_what_a_fixed_direction_does_not():
    # thin slanted strips whose mean gap is nearly along them
    x = np.linspace(-5, 5, 30)
    upper, lower = np.stack([x + 1.0, x + 0.2], axis=1), np.stack([x, x], axis=1)
    upper[:, 1] += 0.9
    gap = upper.mean(axis=0) - lower.mean(axis=0)
    data = frame(upper, lower, direction=along(gap / np.linalg.norm(gap)))
    assert CRITERIA["projection"](data)[0, 0, 1] < 0
    assert CRITERIA["linear"](data)[0, 0, 1] > 0
    assert CRITERIA["nearest_center"](data)[0, 0, 1] < 0


def test_linear_margin_is_half_the_distance_in_the_sum_norm():
    pair = frame(square(3.0, 0.0), SQUARE)
    assert CRITERIA["linear"](pair)[0, 0, 1] == pytest.approx(1.0, abs=1e-6)
    diagonal = frame(square(3.0, 4.0), SQUARE)  # corners (3, 4) and (1, 1): |2| + |3|
    assert CRITERIA["linear"](diagonal)[0, 0, 1] == pytest.approx(2.5, abs=1e-6)
    inside = frame(0.2 * SQUARE + 0.4, SQUARE)
    assert CRITERIA["linear"](inside)[0, 0, 1] == 0.0


def test_linear_on_exclusive_or_is_not_separable():
    assert CRITERIA["linear"](frame(SQUARE[[0, 3]], SQUARE[[1, 2]]))[0, 0, 1] == 0.0


def test_nearest_center_agrees_with_all_distances():
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.repeat(np.arange(4), [5, 9, 6, 10]))
    centres = 3.2 * rng.standard_normal((4, 3))
    x = centres[labels] + rng.standard_normal((60, 30, 3))
    score = CRITERIA["nearest_center"](Frame(x, labels))
    found = 0
    for r in range(60):
        means = np.stack([x[r, labels == k].mean(axis=0) for k in range(4)])
        distance = cdist(x[r], means)
        for k in range(4):
            for l in range(k + 1, 4):
                inside = np.isin(labels, [k, l])
                nearest = np.where(distance[:, k] < distance[:, l], k, l)
                expected = (nearest == labels)[inside].all()
                assert (score[r, k, l] > 0) == expected
                found += expected
        off = ~np.eye(4, dtype=bool)
        assert (score[r][off] > 0).all() == (distance.argmin(axis=1) == labels).all()
    assert 36 < found < 324


def full_program(a, b):
    """Largest margin with every point in the program, data set by data set."""
    p = a.shape[1]
    rows = [np.column_stack([-a, np.ones(len(a)), np.ones(len(a))])]
    rows += [np.column_stack([b, -np.ones(len(b)), np.ones(len(b))])]
    result = linprog(
        np.r_[np.zeros(p + 1), -1.0],
        A_ub=np.concatenate(rows),
        b_ub=np.zeros(len(a) + len(b)),
        bounds=[(-1, 1)] * p + [(None, None), (0, None)],
        method="highs",
    )
    return -result.fun


@pytest.mark.parametrize(
    ("n", "m", "p", "gap"), [(15, 25, 2, 3.2), (60, 40, 5, 3.5), (12, 15, 14, 1)]
)
def test_few_points_and_shared_programs_give_the_full_answer(n, m, p, gap):
    rng = np.random.default_rng(n)
    a, b = rng.standard_normal((40, n, p)), rng.standard_normal((40, m, p))
    a[:, :, 0] += gap
    a, b = 1e3 * a + 7e3, 1e3 * b + 7e3
    exact = np.array([full_program(x, y) for x, y in zip(a, b, strict=True)])
    apart = exact > 1e-3
    assert 4 <= apart.sum() <= 36
    np.testing.assert_array_equal(linear_margins(a, b) > 0, apart)
    np.testing.assert_allclose(linear_margins(a, b, exact=True), exact, atol=1e-2)


def test_linear_against_the_distance_of_the_convex_hulls():
    # hulls meet iff Σλa = Σμb with λ, μ >= 0 of sum one: non-negative least squares, no program
    rng = np.random.default_rng(5)
    a, b = rng.standard_normal((60, 12, 3)), rng.standard_normal((60, 14, 3))
    a[:, :, 1] += 2.4
    apart = []
    for x, y in zip(a, b, strict=True):
        sums = np.repeat(np.eye(2), [12, 14], axis=1)
        matrix = np.concatenate([np.concatenate([x.T, -y.T], axis=1), sums])
        apart.append(nnls(matrix, np.array([0.0, 0.0, 0.0, 1.0, 1.0]))[1] > 1e-8)
    assert 6 < sum(apart) < 54
    np.testing.assert_array_equal(linear_margins(a, b) > 0, apart)


def test_few_points_are_always_separable():
    rng = np.random.default_rng(1)
    a, b = rng.standard_normal((20, 4, 8)), rng.standard_normal((20, 5, 8))
    assert (linear_margins(a, b) > 0).all()
