"""The reach of a class: against samples drawn in full, closed forms and the separation integral."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
import xarray as xr
from scipy.integrate import quad
from scipy.special import erfcx, log_ndtr, ndtr, wofz
from scipy.stats import halfnorm, kstest, norm

from lesde.analysis.separation.predict import predict_from_law
from lesde.processes import reach as reaches
from lesde.processes.process import BlockNoise
from lesde.processes.reach import _BelowLevel, largest_of_centred

SIGMAS = 5.0
# Two-sided at 5 sigma. This file makes some 400 Kolmogorov-Smirnov comparisons: at 1e-4 each, one of
# 25 seeds would fail by chance.
LEAST_P = 5.7e-7


def draw_reach(noise, factor, counts, directions):
    """Reaches of deviations A (Z − mean), A a number, or a number or matrix for each class."""
    A = np.asarray(factor, dtype=float)
    turned = directions @ A if A.ndim == 3 else directions * A.reshape(-1, 1, 1)
    K, p = directions.shape[2:]
    joint = all(reaches.is_joint(int(n), K, p) for n in counts)
    return reaches.draw_reach(noise, np.asarray(counts), turned), joint


def noise_of(block=0, seed=7):
    return BlockNoise(seed, 0, block, torch.device("cpu"))


def directions_of(means):
    """Unit vectors from class l to class k, (..., k, l, p); NaN where the means coincide."""
    gaps = means[..., :, None, :] - means[..., None, :, :]
    with np.errstate(invalid="ignore"):
        return gaps / np.linalg.norm(gaps, axis=-1, keepdims=True)


def some_directions(K, p, replicates, seed=3):
    """The same directions for all replicates."""
    u = directions_of(np.random.default_rng(seed).standard_normal((K, p)))
    return np.broadcast_to(u, (replicates, K, K, p))


def only(K, k, n):
    """n samples in class k, one in each other, which cost nothing."""
    counts = np.ones(K, dtype=int)
    counts[k] = n
    return counts


def in_full(rows, n, draws, seed=11):
    """Largest projections of centred samples, by drawing the samples: (draw, row)."""
    rng = np.random.default_rng(seed)
    out = []
    for _ in range(draws):
        projected = rng.standard_normal((n, rows.shape[1])) @ rows.T
        out.append((projected - projected.mean(0)).max(0))
    return np.array(out)


def same_law(a, b):
    """Two samples of vectors: each entry, extremes, all differences, all covariances."""
    D = a.shape[1]
    views = [(a[:, d], b[:, d]) for d in range(D)]
    views += [(a.max(1), b.max(1)), (a.min(1), b.min(1))]
    centre = b.mean(0)
    for d, e in itertools.combinations(range(D), 2):
        views.append((a[:, d] - a[:, e], b[:, d] - b[:, e]))
        p, q = (((x - centre)[:, d] * (x - centre)[:, e]) for x in (a, b))
        error = np.sqrt(p.var() / len(p) + q.var() / len(q))
        assert abs(p.mean() - q.mean()) < SIGMAS * error
    for x, y in views:
        assert kstest(x, y).pvalue > LEAST_P


FACTOR = np.array([[1.0, 0.4, 0.0], [0.0, 0.7, -0.3], [0.2, 0.0, 1.3]])


@pytest.mark.parametrize("n", [5, 100, 250, 2000])
def test_joint_law_is_that_of_samples_drawn_in_full(n):
    draws, K, p = 6000, 4, 3
    u = some_directions(K, p, draws)
    factor = np.stack([FACTOR] * K)
    reach, joint = draw_reach(noise_of(), factor, only(K, 1, n), u)
    assert joint
    rows = -u[0, 1, [0, 2, 3]] @ FACTOR
    same_law(reach[:, 1][:, [0, 2, 3]], in_full(rows, n, draws))


@pytest.mark.parametrize("n", [400, 1500])
def test_joint_law_with_many_overlapping_directions(n):
    """Nine directions in a plane: much of what is drawn lies above the level on several rows."""
    draws, K = 5000, 10
    u = some_directions(K, 2, draws)
    reach, _ = draw_reach(noise_of(), 1.0, only(K, 4, n), u)
    other = [0, 1, 2, 3, 5, 6, 7, 8, 9]
    same_law(reach[:, 4][:, other], in_full(-u[0, 4, other], n, draws))


def test_points_drawn_one_by_one_below_the_level(monkeypatch):
    """The route of unlucky samples, taken by all."""
    monkeypatch.setattr(reaches, "LARGEST_CORRECTION", 0.0)
    monkeypatch.setattr(reaches, "_is_small", lambda n, D: False)
    rows = np.array([[1.0, 0.0], [0.6, 0.8], [-0.8, 0.6]])
    draws, n = 5000, 40
    drawn = largest_of_centred(noise_of(), np.broadcast_to(rows, (draws, 3, 2)), np.full(draws, n))
    same_law(drawn, in_full(rows, n, draws))


def uncentred(reach, u, n, k, l, seed=5):
    """Largest −u·Z over the sample itself: the sample mean is independent of the deviations."""
    rng = np.random.default_rng(seed)
    mean = rng.standard_normal((len(reach), u.shape[-1])) / np.sqrt(n)
    return [reach[:, k, m] - (u[:, k, m] * mean).sum(1) for m in l]


@pytest.mark.parametrize("n", [2, 150, 170, 300, 10**4, 10**7])
@pytest.mark.parametrize(("K", "p"), [(2, 1), (3, 3), (6, 4), (4, 1)])
def test_every_marginal_law_is_exact(n, K, p):
    """Φ(x)ⁿ after the mean is put back. With p = 1 all directions are ±1, many of them equal."""
    draws = 20_000
    u = some_directions(K, p, draws)
    reach, _ = draw_reach(noise_of(), 1.0, only(K, 0, n), u)
    for x in uncentred(reach, u, n, 0, range(1, K)):
        assert kstest(x, lambda x: np.exp(n * log_ndtr(x))).pvalue > LEAST_P


def both_above(x, y, rho):
    """P(X > x, Y > y) of two standard normals with correlation rho, to full relative accuracy."""
    s = np.sqrt(1 - rho * rho)

    def density(a):
        z = (y - rho * (x + a)) / s / np.sqrt(2.0)
        tail = 0.5 * erfcx(z) * np.exp(-z * z) if z > 0 else ndtr(-z * np.sqrt(2.0))
        return np.exp(-x * a - 0.5 * a * a) * tail

    return norm.pdf(x) * quad(density, 0, 12 - x, epsabs=0, epsrel=1e-9)[0]


@pytest.mark.parametrize("n", [165, 10**3, 10**5, 10**7])
def test_joint_law_of_two_maxima_at_any_size(n):
    """P(X₁ ≤ x, X₂ ≤ y) = P(Z₁ ≤ x, Z₂ ≤ y)ⁿ for the sample with its mean."""
    draws = 40_000
    means = np.array([[0.0, 0.0], [1.0, 0.0], [0.6, 0.9]])
    u = np.broadcast_to(directions_of(means), (draws, 3, 3, 2))
    reach, _ = draw_reach(noise_of(), 1.0, only(3, 0, n), u)
    a, b = uncentred(reach, u, n, 0, (1, 2))
    rho = float(u[0, 0, 1] @ u[0, 0, 2])
    for alpha, beta in itertools.product([0.3, 1.0, 3.0], [0.5, 1.5]):
        x, y = -norm.ppf(alpha / n), -norm.ppf(beta / n)
        inside = 1 - (alpha + beta) / n + both_above(x, y, rho)
        expected = inside**n
        found = np.mean((a <= x) & (b <= y))
        assert abs(found - expected) < SIGMAS * np.sqrt(expected * (1 - expected) / draws)


def test_one_two_and_three_samples():
    draws = 40_000
    u = some_directions(3, 2, draws)
    one, two, three = draw_reach(noise_of(), 2.0, np.array([1, 2, 3]), u)[0].transpose(1, 0, 2)
    assert (one[:, 1:] == 0).all()
    # ±(Z₁ − Z₂)/2, of which the largest is half-normal
    assert kstest(two[:, 0], halfnorm(scale=2.0 / np.sqrt(2.0)).cdf).pvalue > LEAST_P

    def of_three(m):
        # the largest of three forms at 120° in a plane: √(2/3) R cos θ, |θ| < 60°
        def outside(theta):
            return np.exp(-0.75 * (m / 2.0 / np.cos(theta)) ** 2)

        return 1 - 3 / np.pi * quad(outside, 0, np.pi / 3)[0]

    assert kstest(three[:, 0], np.vectorize(of_three)).pvalue > LEAST_P


@pytest.mark.parametrize("counts", [(100, 100), (100_000, 100_000), (300, 100_000)])
def test_separation_probability_of_two_classes(counts):
    """The gap of the class means held fixed, against the inverse Weierstrass transform."""
    draws = 40_000
    scale = np.array([0.7, 1.2])
    u = np.broadcast_to(directions_of(np.array([[0.3, 0.0], [0.0, 0.4]])), (draws, 2, 2, 2))
    reach, _ = draw_reach(noise_of(), scale, np.array(counts), u)
    overlap = reach[:, 0, 1] + reach[:, 1, 0]
    for gap in np.quantile(overlap, [0.02, 0.3, 0.8]):
        mean = np.zeros((1, 2, 2))
        mean[0, 0] = gap * u[0, 0, 1]
        law = xr.Dataset(
            {
                "mean": (("time", "class", "feature"), mean),
                "covariance": (
                    ("time", "class", "feature", "class_", "feature_"),
                    np.zeros((1, 2, 2, 2, 2)),
                ),
                "within": (
                    ("time", "class", "feature", "feature_"),
                    (scale**2)[None, :, None, None] * np.eye(2),
                ),
            },
            {"count": ("class", np.array(counts))},
        )
        expected = float(predict_from_law(law)["pairwise"][0, 0, 1])
        found = np.mean(overlap < gap)
        assert abs(found - expected) < SIGMAS * np.sqrt(expected * (1 - expected) / draws)


def test_cumulants_of_the_points_below_the_level():
    """Mean, covariance and third cumulant of the sum against derivatives of its log transform."""
    rows = np.array([[1.0, 0.0], [0.6, 0.8], [-0.28, 0.96]])
    t, m = 2.0, 1e10

    def log_transform(theta):
        inside = 1 - sum(ndtr(b @ theta - t) for b in rows)
        return theta @ theta / 2 + np.log(inside)

    node, weight = np.polynomial.hermite_e.hermegauss(8)
    weight = weight / weight.sum()
    y = np.array(list(itertools.product(node, node)))
    w = np.array([a * b for a, b in itertools.product(weight, weight)])
    lanes = np.tile(rows, (len(y), 1, 1))
    law = _BelowLevel(np.full(len(y), t), lanes @ lanes.swapaxes(1, 2))
    found = law.sums(lanes, np.full(len(y), m), y)
    mean = w @ found
    centred = found - mean
    h = 0.02
    for d in range(3):
        # along one row: f(θ) = log transform at θ b_d, differentiated to sixth order
        f = [log_transform(i * h * rows[d]) for i in range(-4, 5)]
        first = np.dot([3, -32, 168, -672, 0, 672, -168, 32, -3], f) / (840 * h)
        second = np.dot([-9, 128, -1008, 8064, -14350, 8064, -1008, 128, -9], f) / (5040 * h * h)
        third = np.dot([-7, 72, -338, 488, 0, -488, 338, -72, 7], f) / (240 * h**3)
        assert mean[d] / m == pytest.approx(first, rel=1e-8)
        assert w @ centred[:, d] ** 2 / m == pytest.approx(second, rel=1e-7)
        assert w @ centred[:, d] ** 3 / m == pytest.approx(third, rel=1e-4)


def test_error_of_the_sum_of_the_points_below_the_level():
    """D = 1: the distribution function of M, from the difference of the exact transform and ours.

    M = x − (x + S)/n with x the largest point and S the sum of n − 1 others below x.
    """
    n = 147
    assert not reaches._is_small(n, 1)
    x = np.linspace(-0.5, 7.5, 400)
    weight = np.exp(np.log(n) + norm.logpdf(x) + (n - 1) * log_ndtr(x)) * (x[1] - x[0])
    law = _BelowLevel(x, np.ones((len(x), 1, 1)))
    lanes = np.ones((len(x), 1, 1))
    low, mid, high = (
        law.sums(lanes, np.full(len(x), n - 1.0), np.full((len(x), 1), y))[:, 0]
        for y in (-1.0, 0.0, 1.0)
    )
    linear, square = (high - low) / 2, (high + low) / 2 - mid
    omega = np.linspace(0.0, 45.0, 181)[1:]
    difference = []
    for w in omega:
        theta = -1j * w / n
        z = (x - theta) / np.sqrt(2.0)
        tail = 0.5 * np.exp(-z * z) * wofz(1j * z)
        exact = np.exp((n - 1) * (theta * theta / 2 + np.log((1 - tail) / ndtr(x))))
        a, c = theta * linear, theta * square
        ours = np.exp(theta * mid + a * a / (2 * (1 - 2 * c))) / np.sqrt(1 - 2 * c)
        difference.append((weight * np.exp(1j * w * x * (1 - 1 / n)) * (exact - ours)).sum())
    at = np.linspace(0.5, 6.0, 300)
    phase = np.exp(-1j * np.outer(at, omega)) * difference / omega
    error = -phase.imag.sum(1) * (omega[1] - omega[0]) / np.pi
    assert np.abs(error).max() < 3e-7


def test_directions_that_are_missing_and_factors_that_vanish():
    means = np.array([[0.0, 1.0], [0.0, 1.0], [1.0, 0.0]])
    u = np.broadcast_to(directions_of(means), (32, 3, 3, 2))
    reach, joint = draw_reach(noise_of(), 1.0, np.array([300, 50, 10**6]), u)
    assert joint
    assert reach.dtype == np.float64
    known = np.array([[0, 0, 1], [0, 0, 1], [1, 1, 0]], dtype=bool)
    np.testing.assert_array_equal(np.isfinite(reach), np.broadcast_to(known, (32, 3, 3)))
    assert (reach[:, known] > 0).all()
    # toward two classes at one place: one number, to rounding
    np.testing.assert_allclose(reach[:, 2, 0], reach[:, 2, 1], rtol=1e-12)
    still, _ = draw_reach(noise_of(), 0.0, np.array([300, 50, 10**6]), u)
    assert (still[:, known] == 0).all()
    lost, _ = draw_reach(noise_of(), 1.0, np.array([300]), np.full((32, 1, 1, 2), np.nan))
    assert lost.shape == (32, 1, 1)
    assert np.isnan(lost).all()


def test_a_factor_that_flattens_one_direction():
    """A of rank one: the reach along its null direction is zero, the others are proportional."""
    A = np.zeros((3, 2, 2))
    A[:, 0, 0] = 2.0
    means = np.array([[0.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    u = np.broadcast_to(directions_of(means), (32, 3, 3, 2))
    reach, _ = draw_reach(noise_of(), A, np.full(3, 1000), u)
    assert (reach[:, 0, 1] == 0).all()
    assert (reach[:, 0, 2] > 0).all()


def test_number_vector_and_matrices_mean_the_same():
    u = some_directions(3, 3, 32)
    counts = np.array([20, 400, 10**5])
    a, _ = draw_reach(noise_of(), 1.5, counts, u)
    b, _ = draw_reach(noise_of(), np.full(3, 1.5), counts, u)
    c, _ = draw_reach(noise_of(), np.stack([1.5 * np.eye(3)] * 3), counts, u)
    d, _ = draw_reach(noise_of(), 1.0, counts, 1.5 * u)
    np.testing.assert_array_equal(a, b)
    np.testing.assert_allclose(a, c, rtol=1e-12)
    np.testing.assert_allclose(a, d, rtol=1e-12)


def test_more_features_than_classes_need():
    """512 features are reduced to the two that matter, and the law stays."""
    draws, n = 6000, 500
    u = some_directions(3, 512, draws)
    reach, _ = draw_reach(noise_of(), 1.0, only(3, 0, n), u)
    rows = np.linalg.qr(-u[0, 0, 1:].T, mode="r").T
    same_law(reach[:, 0, 1:], in_full(rows, n, draws))


def test_many_classes_fall_back_on_each_direction_alone(monkeypatch):
    monkeypatch.setattr(reaches, "NUMBERS", 300)
    draws, n = 20_000, 1000
    u = some_directions(10, 9, draws)
    counts = only(10, 4, n)
    counts[0] = 30
    reach, joint = draw_reach(noise_of(), 1.0, counts, u)
    assert not joint
    a, b = uncentred(reach, u, n, 4, (1, 2))
    for x in (a, b):
        assert kstest(x, lambda x: np.exp(n * log_ndtr(x))).pvalue > LEAST_P
    own = np.corrcoef(reach[:, 4, 1], reach[:, 4, 2])[0, 1]
    assert abs(own) < SIGMAS / np.sqrt(draws)
    # the small class needs 270 numbers and keeps its joint law
    small = np.corrcoef(reach[:, 0, 1], reach[:, 0, 2])[0, 1]
    assert reaches.is_joint(30, 10, 9)
    assert small > SIGMAS / np.sqrt(draws)


@pytest.mark.parametrize("n", [50, 10**5])
def test_blocks_do_not_depend_on_each_other(n):
    u = some_directions(4, 3, 32)
    together = [noise_of(0), noise_of(1)]
    counts = np.full(4, n)
    first = [draw_reach(noise, 1.0, counts, u)[0] for noise in together]
    second = [draw_reach(noise, 1.0, counts, u)[0] for noise in together]
    alone = noise_of(1)
    np.testing.assert_array_equal(first[1], draw_reach(alone, 1.0, counts, u)[0])
    np.testing.assert_array_equal(second[1], draw_reach(alone, 1.0, counts, u)[0])
    assert not np.array_equal(first[0][:, 0, 1], first[1][:, 0, 1])


def test_numbers_drawn_do_not_grow_with_the_class(monkeypatch):
    drawn = []
    normals = reaches._normals

    def counted(noise, *shape):
        drawn[-1] += int(np.prod(shape))
        return normals(noise, *shape)

    monkeypatch.setattr(reaches, "_normals", counted)
    for n in (10**3, 10**5, 10**7):
        drawn.append(0)
        draw_reach(noise_of(), 1.0, np.full(5, n), some_directions(5, 4, 32))
    assert max(drawn) < 1.2 * min(drawn)
