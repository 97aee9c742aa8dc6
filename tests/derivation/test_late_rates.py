"""Late rates of gap, NC1 and NC2 against class means computed to many digits by mpmath."""

from __future__ import annotations

import itertools

import mpmath
import numpy as np
import pytest

import lesde

LATE, STEP = 120, mpmath.mpf(1) / 100


def class_means(E, counts, logits, initial, t):
    """Means at time t for a constant kernel: exp of the class matrix, or of scores and their integrals."""
    K = len(initial)
    w = [mpmath.mpf(n) / sum(counts) for n in counts]
    X = mpmath.matrix(initial.tolist())
    if not logits:
        M = mpmath.matrix(K, K)
        for k, l in itertools.product(range(K), repeat=2):
            M[k, l] = w[l] * E[k][l]
        return mpmath.expm(M * t) * X
    d = mpmath.eye(K) - mpmath.ones(K) / K
    gram = d * d
    A, y = mpmath.zeros(2 * K, 2 * K), mpmath.zeros(2 * K, 1)
    for k in range(K):
        A[K + k, k] = 1
        y[k] = sum(d[k, j] * X[k, j] for j in range(K)) / gram[k, k]
        for l in range(K):
            A[k, l] = w[l] * E[k][l] * gram[k, l] / gram[k, k]
    y = mpmath.expm(A * t) * y
    for k, l, j in itertools.product(range(K), repeat=3):
        X[k, j] += w[l] * E[k][l] * y[K + l] * d[l, j]
    return X


def measures(X):
    """Gaps of all pairs, tr of the pseudo-inverse of the scatter of the means, and the NC2 error."""
    K = X.rows
    centre = mpmath.eye(K) - mpmath.ones(K) / K
    C = centre * X
    G = C * C.T
    norm = mpmath.norm(G)
    error = mpmath.norm(G / norm - centre / mpmath.sqrt(K - 1))
    gaps = [mpmath.norm(C[k, :] - C[l, :]) for k, l in itertools.combinations(range(K), 2)]
    values = sorted(mpmath.eigsy(G, eigvals_only=True), reverse=True)
    return gaps, sum(1 / v for v in values[: min(K - 1, X.cols)]), error


def measured(model, E):
    """d/dt of the logarithms of the three, and the error itself."""
    K, p = model.n_classes, model.n_features
    initial = np.random.default_rng(3).normal(size=(K, p))
    logits = model.transform.kind == "logits"
    with mpmath.workdps(300):
        both = [
            measures(class_means(E, model.counts.tolist(), logits, initial, t))
            for t in (LATE - STEP, LATE + STEP)
        ]

        def slope(a, b):
            return float((mpmath.log(b) - mpmath.log(a)) / (2 * STEP))

        gaps = [slope(a, b) for a, b in zip(both[0][0], both[1][0], strict=True)]
        return gaps, slope(both[0][1], both[1][1]), slope(both[0][2], both[1][2]), both[1][2]


def number(rate):
    """A rate at constant kernel; that of NC1 without noise, whose own part is another matter."""
    zero = {s: 0 for s in rate.free_symbols if s.name == "sigma"}
    return float(rate.subs(zero).subs({s: 1 for s in rate.free_symbols}))


def two(K, alpha, beta):
    return beta + (alpha - beta) * np.eye(K)


def grouped(groups, alpha, beta, gamma):
    same = np.equal.outer(groups, groups)
    return np.where(np.eye(len(groups)), alpha, np.where(same, beta, gamma))


PAIRS = [0, 0, 1, 1]
# kernel, its matrix, sizes, features, and which of the gap's, NC1's and NC2's rate are given
LOGITS = {
    "superclasses": (lesde.Hierarchical(PAIRS, 2, 0.5, -0.5), grouped(PAIRS, 2, 0.5, -0.5), "gcs"),
    "superclasses win": (lesde.Hierarchical(PAIRS, 2, 1, 3), grouped(PAIRS, 2, 1, 3), "gs"),
    "a permuted simplex": (lesde.Hierarchical(PAIRS, -1, -3, -1), grouped(PAIRS, -1, -3, -1), "gcs"),
    "two levels in three": (lesde.Hierarchical(PAIRS, 2, -1, -1), grouped(PAIRS, 2, -1, -1), "gcs"),
    "pairs that move alike": (lesde.Hierarchical(PAIRS, 2, 2, 1), grouped(PAIRS, 2, 2, 1), "s"),
    "beta = 0": (lesde.TwoLevel(2, 0), two(4, 2, 0), "gcs"),
    "all alike": (lesde.TwoLevel(1, 1), two(4, 1, 1), "gcs"),
    "repelling": (lesde.TwoLevel(2, 1), two(4, 2, 1), "gcs"),
    "a simplex": (lesde.TwoLevel(2, -1), two(4, 2, -1), "gcs"),
    "nothing grows": (lesde.TwoLevel(-3, -1), two(4, -3, -1), "gcs"),
}  # fmt: skip


@pytest.mark.parametrize("name", LOGITS)
def test_late_rates_of_the_l_model(name):
    """Whatever wins: a simplex, superclasses, contrasts of the scores, or the initial means."""
    kernel, E, given = LOGITS[name]
    model = lesde.LESDE(kernel, 4, 4, 10, transform="logits")
    check(model, E, given)


UNEQUAL = {
    "logits": ([5, 5, 5, 9], 4, "logits"),
    "identity": ([5, 5, 5, 9], 4, "identity"),
    "one feature": ([5, 5, 5, 9], 1, "identity"),
    "more features than classes": ([9, 5, 5, 5], 6, "identity"),
}


@pytest.mark.parametrize("name", UNEQUAL)
def test_late_rates_of_unequal_classes(name):
    counts, p, transform = UNEQUAL[name]
    model = lesde.LESDE(lesde.TwoLevel(2, -1), 4, p, counts, transform=transform)
    check(model, two(4, 2, -1), "cs" if transform == "identity" else "gcs")


@pytest.mark.parametrize("p", [1, 2, 3, 6])
def test_late_rates_of_superclasses_with_few_features(p):
    """NC1 is ruled by the slowest direction there is room for, NC2 does not decay."""
    model = lesde.LESDE(lesde.Hierarchical(PAIRS, 2, 1, -0.5), 4, p, 10)
    check(model, grouped(PAIRS, 2, 1, -0.5), "cs")


def check(model, E, given):
    derivation = lesde.derive(model)
    gaps, nc1, nc2, error = measured(model, E)
    rates = {"g": derivation.separation_rate, "c": derivation.nc1_rate, "s": derivation.nc2_rate}
    assert {name for name, rate in rates.items() if rate is not None} == set(given)
    if "g" in given:
        np.testing.assert_allclose(gaps, number(rates["g"]), atol=2e-3)
    if "c" in given:
        assert number(rates["c"]) == pytest.approx(nc1, abs=2e-3)
    assert number(rates["s"]) == pytest.approx(nc2, abs=2e-3)
    assert (rates["s"] == 0) == (error > 1e-2)


def test_rates_are_exact_and_scale_with_the_kernel():
    """−1/30 is what a simplex would give; the error stays at 0.65 instead."""
    groups = [0, 0, 1, 1, 2, 2]
    for factor in (1, "1/(1+t)", 1e-9):
        levels = [f"({factor})*({level})" for level in (2, 0.5, -0.5)]
        model = lesde.LESDE(lesde.Hierarchical(groups, *levels), 6, 6, transform="logits")
        assert lesde.derive(model).nc2_rate == 0
    model = lesde.LESDE(lesde.TwoLevel(2e-9, -1e-9), 4, 4, transform="logits")
    assert float(lesde.derive(model).nc2_rate) == pytest.approx(-1e-9 / 3, rel=1e-12)


def test_what_cannot_be_told_is_not_given_and_the_report_says_why():
    open_levels = lesde.derive(lesde.LESDE(lesde.Hierarchical(PAIRS), 4, 4, transform="logits"))
    assert open_levels.nc2_rate is None
    assert "No closed form for rate_NC2" in open_levels.text()
    assert (
        lesde.derive(lesde.LESDE(lesde.TwoLevel(None, 0), 4, 4, transform="logits")).nc2_rate == 0
    )
    turning = lesde.ClassMatrix([[1, 3, -3], [-3, 1, 3], [3, -3, 1]])
    turning = lesde.derive(lesde.LESDE(turning, 3, 3))
    assert turning.nc2_rate is None
    assert "oscillate" in turning.text()
    pair = lesde.derive(lesde.LESDE(lesde.TwoLevel(2, -1), 2, 2))
    assert "rate_NC2: two centred class means are a simplex always" in pair.text()
