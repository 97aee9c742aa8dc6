"""The three criteria on data whose answer is known, and linear programs against another solver."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import linprog, nnls
from scipy.spatial.distance import cdist

import lesde

SQUARE = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])


def square(x, y):
    """The unit square with its lower left corner at (x, y)."""
    return SQUARE + np.array([x, y])


def counted(features, labels, name, direction="own", margin=True):
    """Separation of replicates (replicate, sample, feature) at one time, or of one replicate."""
    features = np.asarray(features)
    paths = lesde.from_arrays(
        features.reshape(-1, *features.shape[-2:]),
        labels,
        replicate=range(len(features)) if features.ndim == 3 else [0],
    )
    return lesde.separation_probability(paths, name, direction=direction, margin=margin)


def scores(features, labels, name, **options):
    """Margins (replicate, class, class)."""
    return counted(features, labels, name, **options)["margin"].values[0]


def score(name, *classes, **options):
    """Margins (class, class) of one replicate of the given classes."""
    labels = np.repeat(np.arange(len(classes)), [len(c) for c in classes])
    return scores(np.concatenate(classes), labels, name, **options)[0]


def margins(first, second):
    """Linear margins of R pairs of sets (R, n, p) and (R, m, p)."""
    labels = np.repeat([0, 1], [first.shape[1], second.shape[1]])
    return scores(np.concatenate([first, second], axis=1), labels, "linear")[:, 0, 1]


def separable(first, second):
    """Whether R pairs of sets are linearly separable, where no margin is asked for."""
    labels = np.repeat([0, 1], [first.shape[1], second.shape[1]])
    both = np.concatenate([first, second], axis=1)
    one_by_one = [counted(x, labels, "linear", margin=False) for x in both]
    return np.array([bool(one["successes"][0]) for one in one_by_one])


def along(vector, K=2):
    """The same direction for every pair, pointing from the later class to the earlier one."""
    order = np.sign(np.arange(K)[None, :] - np.arange(K)[:, None])
    return order[..., None] * np.asarray(vector, dtype=float)


def test_projection_measures_the_empty_gap_along_the_direction():
    right, left = square(3.0, 0.0), SQUARE
    found = score("projection", right, left, direction=along([1.0, 0.0]))
    np.testing.assert_allclose(found, [[np.nan, 2.0], [2.0, np.nan]])
    found = score("projection", right, left, direction=along([0.0, 1.0]))
    assert found[0, 1] == pytest.approx(-1.0)
    # the order counts: the upper class must lie above
    found = score("projection", left, right, direction=along([1.0, 0.0]))
    assert found[0, 1] == pytest.approx(-4.0)


def test_own_direction_is_that_of_each_replicate():
    a = np.stack([square(3.0, 0.0), square(0.0, 3.0), SQUARE])
    b = np.stack([SQUARE, SQUARE, SQUARE])
    labels = np.repeat([0, 1], 4)
    found = scores(np.concatenate([a, b], axis=1), labels, "projection")
    np.testing.assert_allclose(found[:2, 0, 1], 2.0)
    assert not found[2, 0, 1] > 0  # coinciding means: no direction, not separated


def test_touching_is_not_separated():
    for name in ("projection", "linear"):
        found = score(name, square(1.0, 0.0), SQUARE, direction=along([1.0, 0.0]))
        assert not found[0, 1] > 1e-9


def test_linear_sees_what_a_fixed_direction_does_not():
    # thin slanted strips whose mean gap is nearly along them
    x = np.linspace(-5, 5, 30)
    upper, lower = np.stack([x + 1.0, x + 0.2], axis=1), np.stack([x, x], axis=1)
    upper[:, 1] += 0.9
    gap = upper.mean(axis=0) - lower.mean(axis=0)
    direction = along(gap / np.linalg.norm(gap))
    assert score("projection", upper, lower, direction=direction)[0, 1] < 0
    assert score("linear", upper, lower, direction=direction)[0, 1] > 0
    assert score("nearest_center", upper, lower, direction=direction)[0, 1] < 0


def test_linear_margin_is_half_the_distance_in_the_sum_norm():
    assert score("linear", square(3.0, 0.0), SQUARE)[0, 1] == pytest.approx(1.0, abs=1e-6)
    diagonal = score("linear", square(3.0, 4.0), SQUARE)  # corners (3, 4) and (1, 1): |2| + |3|
    assert diagonal[0, 1] == pytest.approx(2.5, abs=1e-6)
    assert score("linear", 0.2 * SQUARE + 0.4, SQUARE)[0, 1] == 0.0


def test_linear_on_exclusive_or_is_not_separable():
    assert score("linear", SQUARE[[0, 3]], SQUARE[[1, 2]])[0, 1] == 0.0


def test_nearest_center_agrees_with_all_distances():
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.repeat(np.arange(4), [5, 9, 6, 10]))
    centres = 3.2 * rng.standard_normal((4, 3))
    x = centres[labels] + rng.standard_normal((60, 30, 3))
    score = scores(x, labels, "nearest_center")
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
    np.testing.assert_array_equal(separable(a, b), apart)
    np.testing.assert_allclose(margins(a, b), exact, atol=1e-2)


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
    np.testing.assert_array_equal(separable(a, b), apart)


def test_few_points_are_always_separable():
    rng = np.random.default_rng(1)
    a, b = rng.standard_normal((20, 4, 8)), rng.standard_normal((20, 5, 8))
    with pytest.warns(UserWarning, match="whatever their labels"):
        assert separable(a, b).all()
