"""Closed forms of the class means against an ODE solver, over kernels, class sizes and transforms."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.integrate

import lesde

TIMES = np.array([0.3, 0.9, 2.0])


def solved(strength, counts, transform, initial):
    """The class means at TIMES from their ODE, with strength(t) of shape (K, K)."""
    K, p = initial.shape
    weights = np.asarray(counts) / np.sum(counts)
    d = np.eye(K) - 1 / K
    H = d[:, :, None] * d[:, None, :] / (d**2).sum(1)[:, None, None]
    if transform == "identity":
        H = np.broadcast_to(np.eye(p), (K, p, p))

    def drift(t, flat):
        return (strength(t) * weights @ np.einsum("lij,lj->li", H, flat.reshape(K, p))).ravel()

    span = TIMES[0], TIMES[-1]
    result = scipy.integrate.solve_ivp(
        drift, span, initial.ravel(), "DOP853", TIMES, rtol=1e-12, atol=1e-13
    )
    return result.y.T.reshape(len(TIMES), K, p)


def grouped(groups, alpha, beta, gamma):
    """α, β within a superclass, γ between them."""
    same = np.equal.outer(groups, groups)
    return np.where(np.eye(len(groups)), alpha, np.where(same, beta, gamma))


def noisy(E, p):
    """E Qᵀ: a label is wrong with probability p."""
    K = len(E)
    return E @ ((1 - p) * np.eye(K) + p / (K - 1) * (1 - np.eye(K)))


def kernels(K):
    """Kernels, and their matrices at time t written down anew."""
    yield lesde.TwoLevel(2, -0.5), lambda t: -0.5 + 2.5 * np.eye(K)
    yield (
        lesde.TwoLevel("2/(1+t)", "-0.5/(1+t)"),
        lambda t: (-0.5 + 2.5 * np.eye(K)) / (1 + t),
    )
    for groups in [[0, 1, 1], [0, 1, 0]] if K == 3 else [[0, 0, 1, 1], [0, 1, 2, 1]]:
        E = grouped(groups, 2, 0.5, -0.3)
        yield lesde.Hierarchical(groups, 2, 0.5, -0.3), lambda t, E=E: E
    kernel = lesde.LabelNoise(lesde.Hierarchical(groups, 2, 0.5, -0.3), 0.2)
    wrong = noisy(E, 0.2)
    yield kernel, lambda t: wrong
    E = np.random.default_rng(K).normal(size=(K, K)).round(2)
    yield lesde.ClassMatrix(E.tolist()), lambda t, E=E: E


QUICK = [(5, 9, 9), (9, 9, 5), (1, 1, 1, 2)]
SLOW = [*itertools.product([5, 9], repeat=3), (2, 1, 1, 1), (1, 2, 1, 2), (1, 1, 3, 2)]
SIZES = [*QUICK, *(pytest.param(n, marks=pytest.mark.slow) for n in SLOW if n not in QUICK)]


@pytest.mark.parametrize("transform", ["identity", "logits"])
@pytest.mark.parametrize("counts", SIZES, ids=str)
def test_closed_solution_is_that_of_the_ode(counts, transform):
    """For every kernel, whichever classes have exchange partners; the reports can be written too."""
    K = len(counts)
    initial = np.random.default_rng(5).normal(size=(K, K))
    for kernel, strength in kernels(K):
        model = lesde.LESDE(kernel, K, K, list(counts), transform=transform)
        solution = lesde.derive(model).solution
        assert solution is not None
        expected = solved(strength, counts, transform, initial)
        np.testing.assert_allclose(
            solution.evaluate(TIMES, initial), expected, rtol=0, atol=2e-10 * np.abs(expected).max()
        )
    model = lesde.LESDE(lesde.TwoLevel(2, -0.5), K, K, list(counts), transform=transform)
    assert "Solution of the mean ODE" in lesde.derive(model).text()
    assert r"\bar{X}" in lesde.derive(model).latex()


def test_unevaluated_levels_of_classes_with_and_without_partners():
    """The expression of a mean, with numbers for the integrals, is the solution of the ODE."""
    groups, counts = [0, 1, 1], [4, 3, 3]
    E = grouped(groups, 2, 0.5, -0.3)
    initial = np.random.default_rng(1).normal(size=(3, 3))
    kernel = lesde.Hierarchical(groups, "2*a", "0.5*a", "-0.3*a", parameters={"a": None})
    model = lesde.LESDE(kernel, 3, 3, counts, transform="logits")
    numbers = lesde.derive(model.substitute(a=1)).solution.evaluate(TIMES, initial)
    expected = solved(lambda t: E, counts, "logits", initial)
    np.testing.assert_allclose(numbers, expected, atol=1e-10 * np.abs(expected).max())
    assert "Solution" in lesde.derive(model).text()


def test_complex_rates_that_change_in_time():
    """Integrals left standing have an imaginary part where the rates of the scores are complex."""
    K = 3
    rest = np.array([[0, 1, -0.5], [-0.5, 0, 1], [1, -0.5, 0]])
    rows = rest.astype(object)
    rows[np.diag_indices(K)] = "2 + exp(-t**2)*cos(3*t)"
    initial = np.random.default_rng(0).normal(size=(K, K))
    for transform in ("identity", "logits"):
        model = lesde.LESDE(lesde.ClassMatrix(rows.tolist()), K, K, 10, transform=transform)
        got = lesde.derive(model).solution.evaluate(TIMES, initial)
        expected = solved(
            lambda t: rest + (2 + np.exp(-(t**2)) * np.cos(3 * t)) * np.eye(K),
            [10] * K,
            transform,
            initial,
        )
        np.testing.assert_allclose(got, expected, atol=1e-9 * np.abs(expected).max())


@pytest.mark.parametrize("transform", ["identity", "logits"])
def test_a_switch_whose_exponentials_overflow_on_the_way(transform):
    """α = 1/(1 + exp(20(t−1))) until t = 50: ∫α = 1 + log(1 + e⁻²⁰)/20 − …, by mpmath."""
    mpmath = pytest.importorskip("mpmath")
    kernel = lesde.TwoLevel("1/(1+exp(20*(t-1)))", 0)
    means = np.array([[1, 0.2], [-0.1, 0.3]])
    model = lesde.LESDE(kernel, 2, 2, transform=transform)
    got = lesde.derive(model).solution.evaluate([0, 1, 50], means)[-1]
    area = mpmath.quad(lambda t: 1 / (1 + mpmath.exp(20 * (t - 1))), [0, 0.5, 1, 1.5, 3, 50])
    grown = float(mpmath.exp(area / 2))
    if transform == "identity":
        expected = means * grown
    else:  # d_1 = (1, −1)/2 = −d_2, and s_k = X_k1 − X_k2 moves X_k along d_k
        d = np.array([[0.5, -0.5], [-0.5, 0.5]])
        scores = (means * d).sum(1) / 0.5
        expected = means + (grown - 1) * scores[:, None] * d
    np.testing.assert_allclose(got, expected, rtol=1e-11)
