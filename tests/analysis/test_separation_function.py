"""The separation function against 30-digit quadrature, closed forms and conditional integrals."""

from __future__ import annotations

import itertools

import mpmath as mp
import numpy as np
import pytest
from scipy.integrate import quad
from scipy.special import log_ndtr, ndtr
from scipy.stats import norm

from lesde.analysis import separation_function
from lesde.analysis.separation import function as separation_integral


def direct(gap, n1, n2, s1, s2):
    """Both logarithms by 30-digit quadrature of the one-dimensional integral over one maximum.

    Another formula than the one under test, with another method of integration.
    """
    with mp.workdps(30):
        gap, s1, s2 = mp.mpf(gap), mp.mpf(s1), mp.mpf(s2)
        if s1 > s2:
            n1, n2, s1, s2 = n2, n1, s2, s1

        def log_phi(x):
            tail = mp.erfc(abs(x) / mp.sqrt(2)) / 2
            return mp.log1p(-tail) if x > 0 else mp.log(tail)

        def density(x):
            return mp.log(n1 / mp.sqrt(2 * mp.pi)) - x * x / 2 + (n1 - 1) * log_phi(x)

        def failure(x):
            return density(x) + mp.log(-mp.expm1(n2 * log_phi((gap - s1 * x) / s2)))

        def success(x):
            return density(x) + n2 * log_phi((gap - s1 * x) / s2)

        def integral(g):
            low, high = -abs(gap / s1) - 12, abs(gap / s1) + 20
            while high - low > mp.mpf(10) ** -9 * (1 + abs(low)):
                a, b = low + (high - low) * 0.45, high - (high - low) * 0.45
                low, high = (a, high) if g(a) < g(b) else (low, b)
            mode, top = low, g(low)
            points = [mode]
            for sign in (-1, 1):
                inside, outside = mp.mpf(0), mp.mpf(14)
                for _ in range(20):
                    middle = (inside + outside) / 2
                    fallen = top - g(mode + sign * middle) > 60
                    inside, outside = (inside, middle) if fallen else (middle, outside)
                points += [mode + sign * outside * i / 4 for i in range(1, 5)]
            total = mp.quad(lambda x: mp.exp(g(x) - top), sorted(points), maxdegree=4)
            return top + mp.log(total)

        log_failure = integral(failure)
        if log_failure < -1:
            return mp.log1p(-mp.exp(log_failure)), log_failure
        log_success = integral(success)
        return log_success, mp.log1p(-mp.exp(log_success))


CASES = [
    (0.0, 1, 2, 1.0, 1.0),
    (0.0, 20, 20, 1.0, 1.0),
    (3.0, 20, 20, 1.0, 1.0),
    (2.0, 3, 5, 1.0, 0.01),
    (0.5, 1000, 1000, 1.0, 0.3),
    (13.0, 100, 7, 0.01, 1.0),
    (10.4, 10**7, 10**7, 1.0, 1.0),
    (0.0, 10**7, 10, 1.0, 1.0),
    (0.0, 10**7, 10**7, 1.0, 1.0),
    (12.0, 10**7, 1, 0.2, 1.0),
    (1e3, 10**5, 10**6, 1.0, 0.3),
    (1e6, 10**7, 20, 1.0, 1.0),
    (1e6, 2, 10**7, 0.01, 1.0),
]


@pytest.mark.parametrize("case", CASES)
def test_agrees_with_quadrature_in_thirty_digits(case):
    log_p, log_q = direct(*case)
    result = separation_function(*case)
    # logs below 1e-20 in size lie beyond the digits of the reference, and of no interest
    for computed, exact in ((result.log_probability, log_p), (result.log_failure, log_q)):
        if abs(exact) > 1e-20:
            assert abs(computed - exact) <= 1e-10 * abs(exact)
        else:
            assert abs(computed) <= 1e-20


def test_equals_the_count_of_orderings_when_the_means_coincide():
    # P = n1! n2! / (n1 + n2)!: one ordering of the pooled samples in so many
    n1 = np.array([1, 2, 5, 40, 1000, 10**5, 10**7])
    n2 = n1[::-1]
    with mp.workdps(40):
        exact = [
            float(mp.loggamma(a + 1) + mp.loggamma(b + 1) - mp.loggamma(a + b + 1))
            for a, b in zip(n1.tolist(), n2.tolist(), strict=True)
        ]
    np.testing.assert_allclose(separation_function(0.0, n1, n2).log_probability, exact, rtol=1e-10)


def test_one_sample_each_is_the_normal_integral():
    gap = np.array([-3.0, 0.0, 1.0, 50.0, 1e6])
    result = separation_function(gap, 1, 1, 3.0, 4.0, extra_variance=11.0)
    np.testing.assert_allclose(result.log_failure, log_ndtr(-gap / 6.0), rtol=1e-13)
    np.testing.assert_allclose(result.log_probability, log_ndtr(gap / 6.0), rtol=1e-13)


def test_rare_failures_are_visible_and_ordered():
    gaps = np.linspace(15.0, 60.0, 40)
    result = separation_function(gaps, 100, 100)
    assert (result.probability[gaps > 20] == 1.0).all()
    assert np.isfinite(result.log_failure).all()
    assert (np.diff(result.log_failure) < 0).all()


def test_symmetric_in_the_two_classes_and_scale_free():
    a = separation_function(4.0, 30, 7, 1.0, 0.4, 0.2)
    b = separation_function(4.0, 7, 30, 0.4, 1.0, 0.2)
    c = separation_function(4e-9, 30, 7, 1e-9, 0.4e-9, 0.2e-18)
    for x, y, z in zip(a, b, c, strict=True):
        np.testing.assert_allclose([y, z], x, rtol=1e-11)


@pytest.mark.parametrize("extra", [0.5, 4.0])
@pytest.mark.parametrize("gap", [1.0, 9.0, 40.0])
def test_positive_extra_variance_averages_over_the_gap(gap, extra):
    # E F(gap + R) by Gauss-Legendre over R, in place of the contour integral
    x, w = np.polynomial.legendre.leggauss(200)
    root = np.sqrt(extra)
    low, high = -gap / root - 9.0, 9.0
    r = 0.5 * (high + low) + 0.5 * (high - low) * x
    inner = separation_function(gap + root * r, 12, 5, 1.0, 0.7)
    log_terms = inner.log_failure + norm.logpdf(r)
    averaged = np.log(0.5 * (high - low) * (w * np.exp(log_terms - log_terms.max())).sum())
    averaged += log_terms.max()
    result = separation_function(gap, 12, 5, 1.0, 0.7, extra)
    assert result.log_failure == pytest.approx(averaged, rel=1e-10)


@pytest.mark.parametrize("share", [0.99, 0.5, 0.05, 1e-3])
@pytest.mark.parametrize("gap", [0.0, 0.7, 5.0])
def test_fixed_means_of_one_and_two_samples(gap, share):
    # about their own means, one sample stands still and two are at ±η/√2: P = P(gap + √v ξ > |η|/√2)
    v = share * 1.5
    result = separation_function(gap, 1, 2, extra_variance=v - 1.5)
    points = [0.0, gap * np.sqrt(2.0), gap * np.sqrt(2.0) + 6 * np.sqrt(2 * v), 14.0]
    points = sorted(min(q, 14.0) for q in points)

    def failure(eta):
        return 2 * norm.pdf(eta) * ndtr((eta / np.sqrt(2.0) - gap) / np.sqrt(v))

    pieces = [
        quad(failure, a, b, epsabs=0, epsrel=1e-12)[0]
        for a, b in itertools.pairwise(points)
        if b > a
    ]
    assert result.log_failure == pytest.approx(np.log(sum(pieces)), rel=1e-9)


def test_fixed_means_of_two_and_two_samples():
    # about their own means each pair is at ±|η|/√2, so the overlap is (|a| + |b|)/√2
    gap, v = 1.5, 0.1
    result = separation_function(gap, 2, 2, extra_variance=v - 1.0)

    def density(u):  # of |a| + |b|: rotating by 45 degrees gives 4 φ(u/√2)/√2 (Φ(u/√2) − 1/2)
        return 4 * norm.pdf(u / np.sqrt(2)) / np.sqrt(2) * (2 * ndtr(u / np.sqrt(2)) - 1)

    assert quad(density, 0, 20)[0] == pytest.approx(1.0, abs=1e-9)
    exact = quad(lambda u: density(u) * ndtr((gap - u / np.sqrt(2)) / np.sqrt(v)), 0, 12)[0]
    assert result.probability == pytest.approx(exact, rel=1e-7)


@pytest.mark.parametrize(("n1", "n2"), [(3, 4), (8, 5), (30, 30)])
@pytest.mark.parametrize("share", [0.8, 0.1, 0.0])
def test_fixed_means_against_monte_carlo(n1, n2, share):
    # null: the formula is the probability; 40,000 draws; 5 standard errors
    rng = np.random.default_rng(n1)
    R, gap = 40_000, 2.5 if n1 < 10 else 4.0
    v = share * (1 / n1 + 1 / n2)
    a, b = rng.standard_normal((R, n1)), rng.standard_normal((R, n2))
    a -= a.mean(axis=1, keepdims=True)
    b -= b.mean(axis=1, keepdims=True)
    shift = gap + np.sqrt(v) * rng.standard_normal(R)
    apart = (shift + a.min(axis=1) > b.max(axis=1)).mean()
    p = separation_function(gap, n1, n2, extra_variance=v - 1 / n1 - 1 / n2).probability
    assert 0.02 < p < 0.98
    assert abs(apart - p) < 5 * np.sqrt(p * (1 - p) / R)


def test_continuous_across_the_switch_of_sign():
    values = [
        separation_function(3.0, 9, 9, extra_variance=e).log_failure for e in (-1e-9, 0, 1e-9)
    ]
    assert values[0] == pytest.approx(values[1], rel=1e-7)
    assert values[2] - values[1] == pytest.approx(values[1] - values[0], rel=1e-3)


def test_limits_without_noise():
    assert separation_function(1.0, 5, 5, 0.0, 0.0).probability == 1.0
    assert separation_function(0.0, 5, 5, 0.0, 0.0).probability == 0.0
    assert separation_function(1.0, 5, 5, 0.0, 0.0, 4.0).probability == pytest.approx(ndtr(0.5))
    one_sided = separation_function(1.0, 5, 3, 0.0, 1.0)
    assert one_sided.log_probability == pytest.approx(3 * log_ndtr(1.0), rel=1e-11)
    # deviations from a mean that stands still cannot all be negative
    assert separation_function(0.0, 5, 3, extra_variance=-(1 / 5 + 1 / 3)).probability == 0.0


def test_gives_up_with_a_warning_rather_than_a_wrong_number(monkeypatch):
    monkeypatch.setattr(separation_integral, "MOST_NODES", 512)
    with pytest.warns(UserWarning, match="more than 512 nodes"):
        result = separation_function([3.0, 0.01], [9, 1], [9, 2], extra_variance=[0.0, -1.5 + 1e-9])
    np.testing.assert_array_equal(np.isnan(result.probability), [False, True])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1.0, 0, 2), "n1 must hold whole numbers of at least 1; got 0"),
        ((1.0, 2, 2.5), "n2 must hold whole numbers"),
        ((1.0, 2, 2, -1.0), "s1 must hold standard deviations >= 0; got -1"),
        ((np.nan, 2, 2), "gap must be finite"),
        ((1.0, 2, 2, 1.0, 1.0, -1.1), "extra_variance must be at least"),
        (([1.0, 2.0], [1, 2, 3], 2), "must broadcast together"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        separation_function(*arguments)
