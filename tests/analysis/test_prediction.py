"""Separation predicted from a law: against particles, closed forms and the phase transition."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from scipy.optimize import brentq
from scipy.special import log_ndtr

import lesde
from lesde import predict_separation
from lesde.analysis import separation_function
from lesde.analysis.separation import predict_from_law


def make_law(mean, covariance, within, count, offset=None):
    T, K, _ = np.shape(mean)
    variables = {
        "mean": (("time", "class", "feature"), mean),
        "covariance": (("time", "class", "feature", "class_", "feature_"), covariance),
        "within": (("time", "class", "feature", "feature_"), within),
    }
    coords = {"time": np.arange(float(T)), "count": ("class", count)}
    if offset is not None:
        variables["offset"] = (("sample", "feature"), offset)
        coords["label"] = ("sample", np.repeat(np.arange(K), count))
    return xr.Dataset(variables, coords=coords)


def isotropic_law(gap, gap_variance, spread, n, offset=None):
    """Two classes in the plane, apart along (0.6, 0.8), for arrays of times."""
    gap, gap_variance, spread = map(np.atleast_1d, (gap, gap_variance, spread))
    axis, eye = np.array([0.6, 0.8]), np.eye(2)
    mean = np.stack([0.5 * gap[:, None] * axis, -0.5 * gap[:, None] * axis], axis=1)
    covariance = np.einsum("t,kl,pq->tkplq", 0.5 * gap_variance, np.eye(2), eye)
    within = np.einsum("t,k,pq->tkpq", spread**2, np.ones(2), eye)
    return make_law(mean, covariance, within, np.array(n), offset)


def test_uses_gap_spread_and_variance_along_the_gap():
    out = predict_from_law(isotropic_law([3.0, 5.0], [0.7, 0.02], [1.0, 0.8], (20, 20)))
    for t, (gap, v, s) in enumerate([(3.0, 0.7, 1.0), (5.0, 0.02, 0.8)]):
        extra = v - 2 * s**2 / 20
        expected = separation_function(gap, 20, 20, s, s, extra)
        assert float(out["log_failure"][t, 0, 1]) == pytest.approx(expected.log_failure, rel=1e-11)
        assert float(out["gap"][t, 1, 0]) == pytest.approx(gap)
        assert float(out["gap_variance"][t, 1, 0]) == pytest.approx(v)
    np.testing.assert_array_equal(
        out["pairwise"], out["pairwise"].transpose("time", "class_", "class")
    )
    assert np.isnan(out["pairwise"].values[:, [0, 1], [0, 1]]).all()
    np.testing.assert_array_equal(out["probability"], out["pairwise"][:, 0, 1])


def test_agrees_with_particles_of_the_microscopic_drift():
    """K = 2, n = 20, α = 2, β = −1, σ = 1: 20,000 paths of 100 Euler steps up to t = 1.

    Null: the prediction from the law of the Euler scheme is the probability along the gap.
    The other two treatments of the variance of the means lie outside the tolerance of 5σ.
    """
    R, n, steps = 20_000, 20, 100
    h, rng = 1.0 / steps, np.random.default_rng(7)
    x = np.empty((2, n, R), dtype=np.float32)
    x[0], x[1] = 0.5, -0.5
    for _ in range(steps):
        mean = x.mean(axis=1)
        drift = np.stack([2 * mean[0] - mean[1], 2 * mean[1] - mean[0]]) / 2
        x += np.float32(h) * drift[:, None]
        x += np.float32(np.sqrt(h)) * rng.standard_normal(x.shape, dtype=np.float32)
    apart = (x[0].min(axis=0) > x[1].max(axis=0)).mean()
    growth = 1 + 1.5 * h
    gap = growth**steps
    v = (2 / n) * h * (growth ** (2 * np.arange(steps))).sum()
    p = float(predict_from_law(isotropic_law(gap, v, 1.0, (n, n)))["probability"][0])
    tolerance = 5 * np.sqrt(p * (1 - p) / R)
    assert p == pytest.approx(0.7546, abs=0.0005)
    assert abs(apart - p) < tolerance
    ignoring = separation_function(gap, n, n).probability
    assert ignoring == pytest.approx(0.8298, abs=0.001)
    assert abs(apart - ignoring) > tolerance


@pytest.mark.parametrize("share", [3.0, 0.3])
def test_initial_deviations_enter_exactly(share):
    # null: the prediction is the probability; 50,000 draws, 5 standard errors
    rng = np.random.default_rng(3)
    n, s, R, gap = (12, 7), 0.6, 50_000, 3.2
    labels = np.repeat([0, 1], n)
    offset = rng.standard_normal((19, 2)) * np.array([1.0, 0.5])
    for k in range(2):
        offset[labels == k] -= offset[labels == k].mean(axis=0)
    v = share * s**2 * (1 / 12 + 1 / 7)
    law = isotropic_law(gap, v, s, n, offset)
    p = float(predict_from_law(law)["probability"][0])
    along = offset @ [0.6, 0.8]
    noise = s * rng.standard_normal((R, 19))
    for k in range(2):
        noise[:, labels == k] -= noise[:, labels == k].mean(axis=1, keepdims=True)
    x = along + noise
    shift = gap + np.sqrt(v) * rng.standard_normal(R)
    apart = (shift + x[:, labels == 0].min(axis=1) > x[:, labels == 1].max(axis=1)).mean()
    assert 0.1 < p < 0.9
    assert abs(apart - p) < 5 * np.sqrt(p * (1 - p) / R)
    without = float(predict_from_law(isotropic_law(gap, v, s, n))["probability"][0])
    assert abs(without - p) > 0.1


def test_zero_offsets_change_nothing_and_small_noise_gives_the_deterministic_answer():
    law = isotropic_law([3.0, 6.0], [0.3, 0.001], [1.0, 0.9], (9, 4))
    zero = isotropic_law([3.0, 6.0], [0.3, 0.001], [1.0, 0.9], (9, 4), np.zeros((13, 2)))
    a, b = predict_from_law(law), predict_from_law(zero)
    np.testing.assert_allclose(b["log_failure"], a["log_failure"], rtol=1e-10)
    offset = np.zeros((4, 2))
    offset[:, 0] = [1.0, -1.0, 0.5, -0.5]  # overlap along (0.6, 0.8): 0.6 · 1.5 = 0.9
    for s in (0.0, 1e-6):
        v = s**2
        out = predict_from_law(isotropic_law([0.89, 0.91], [v, v], [s, s], (2, 2), offset))
        np.testing.assert_allclose(out["probability"], [0.0, 1.0], atol=1e-12)


def i_model(c, times, n=50, sigma=0.1, gap=1.0, K=3):
    """I-model, α − β = c/t from t = 1: gap and its variance in closed form, on the contrasts."""
    kappa, n_means = c / K, 2 * sigma**2 / n
    t = np.asarray(times, dtype=float)
    grown = t ** (2 * kappa)
    integral = np.log(t) if kappa == 0.5 else (t ** (1 - 2 * kappa) - 1) / (1 - 2 * kappa)
    spread = sigma * np.sqrt(t - 1)
    return isotropic_law(gap * t**kappa, n_means * grown * integral, spread, (n, n))


TIMES = np.geomspace(1.0, 1e8, 9)


def test_phase_transition_at_half_the_number_of_classes():
    above = predict_from_law(i_model(1.5 * 1.4, TIMES))
    below = predict_from_law(i_model(1.5 * 0.6, TIMES))
    far_below = predict_from_law(i_model(-1.5, TIMES))
    assert float(above["probability"][-1]) > 1 - 1e-10
    assert float(below["probability"][-1]) < 1e-10
    assert float(far_below["probability"][-1]) < float(below["probability"][-1])
    # the failures above grow rare, those below certain, as t goes on
    assert (np.diff(below["log_pairwise"].values[4:, 0, 1]) < 0).all()


@pytest.mark.parametrize("c", [0.3, 0.9, 1.5, 2.1, 3.0])
def test_gap_over_spread_scales_as_derived(c):
    law = i_model(c, TIMES)
    out = predict_from_law(law)
    ratio = out["gap"].values[1:, 0, 1] / np.sqrt(law["within"].values[1:, 0, 0, 0])
    slope = np.polyfit(np.log(TIMES[-4:]), np.log(ratio[-4:]), 1)[0]
    assert slope == pytest.approx(c / 3 - 0.5, abs=1e-5)


def test_the_critical_constant_is_where_the_even_chance_tends_to():
    # P = 1/2 where t^(c/K − 1/2) Δ₀/σ reaches a constant, so c − K/2 vanishes as 1/log t
    times = np.array([1e20, 1e40, 1e80])
    roots = []
    for t in times:

        def even(c, t=t):
            return float(predict_from_law(i_model(c, [t]))["probability"][0]) - 0.5

        roots.append(brentq(even, 1.0, 2.0, xtol=1e-10))
    slope, limit = np.polyfit(1 / np.log(times), roots, 1)
    assert limit == pytest.approx(1.5, abs=3e-3)
    assert abs(slope) > 0.5  # at any one time the crossing is elsewhere
    assert abs(roots[-1] - 1.5) < abs(roots[0] - 1.5) / 3


def test_above_the_transition_what_remains_is_the_sign_of_the_mean_gap():
    # early noise is amplified like the gap itself: 1 − P → Φ(−Δ₀ √(n(2c/K − 1)/2)/σ)
    c, n, sigma = 2.7, 50, 2.0
    out = predict_from_law(i_model(c, [1e30], n=n, sigma=sigma))
    limit = log_ndtr(-np.sqrt(n * (2 * c / 3 - 1) / 2) / sigma)
    assert float(out["log_failure"][0, 0, 1]) == pytest.approx(limit, rel=1e-6)


def three_classes(spread=1.0, n=10):
    mean = np.array([[[4.0, 0.0], [-2.0, 3.4], [-2.0, -3.4]]])
    covariance = np.einsum("kl,pq->kplq", np.eye(3), np.eye(2))[None] * (1.5 * spread**2 / n)
    within = np.broadcast_to(spread**2 * np.eye(2), (1, 3, 2, 2))
    return make_law(mean, covariance, within, np.full(3, n)), mean[0]


def test_bounds_hold_for_all_pairs_at_once():
    # null: lower <= P(all) <= upper, and each pair is as predicted; 40,000 draws, 5 standard errors
    n, R = 10, 40_000
    law, mean = three_classes(1.6, n)
    out = predict_from_law(law)
    rng = np.random.default_rng(2)
    centre = mean + 1.6 * np.sqrt(0.5 / n) * rng.standard_normal((R, 3, 2))
    x = centre[:, :, None] + 1.6 * rng.standard_normal((R, 3, n, 2))
    every = np.ones(R, dtype=bool)
    for k, l in [(0, 1), (0, 2), (1, 2)]:
        nu = (mean[k] - mean[l]) / np.linalg.norm(mean[k] - mean[l])
        apart = (x[:, k] @ nu).min(axis=1) > (x[:, l] @ nu).max(axis=1)
        p = float(out["pairwise"][0, k, l])
        assert abs(apart.mean() - p) < 5 * np.sqrt(p * (1 - p) / R)
        every &= apart
    error = 5 * np.sqrt(0.25 / R)
    lower, upper = float(out["lower"][0]), float(out["upper"][0])
    assert 0.05 < lower < upper < 0.95
    assert lower - error < every.mean() < upper + error
    assert np.isnan(out["probability"]).all()
    assert float(np.exp(out["log_failure_upper"][0])) == pytest.approx(1 - lower)


def test_directions():
    law = isotropic_law([3.0, 3.0], [0.5, 0.5], [1.0, 1.0], (8, 8))
    by_gap = predict_from_law(law)["pairwise"].values
    same = predict_from_law(law, direction=[-0.6, -0.8])["pairwise"].values
    np.testing.assert_allclose(same, by_gap, rtol=1e-10)
    initial = predict_from_law(law, direction="initial")["pairwise"].values
    np.testing.assert_allclose(initial, by_gap, rtol=1e-10)
    given = np.zeros((2, 2, 2))
    given[0, 1] = [-0.6, -0.8]
    reversed_ = predict_from_law(law, direction=given)
    assert float(reversed_["gap"][0, 0, 1]) == pytest.approx(-3.0)
    assert float(reversed_["probability"][0]) < 1e-6


def test_undefined_directions():
    law = isotropic_law([0.0, 2.0], [0.5, 0.5], [1.0, 1.0], (8, 8))
    out = predict_from_law(law)
    np.testing.assert_array_equal(np.isnan(out["probability"]), [True, False])
    np.testing.assert_array_equal(np.isnan(out["lower"]), [True, False])
    with pytest.raises(ValueError, match="initial must give classes 0 and 1 different means"):
        predict_from_law(isotropic_law([0.0], [0.5], [1.0], (8, 8)))
    with pytest.raises(ValueError, match="'own' is that of each replicate"):
        predict_from_law(law, direction="own")
    with pytest.raises(ValueError, match="covariance missing"):
        predict_from_law(law.drop_vars("covariance"))
    with pytest.raises(TypeError, match=r"law must be an xarray\.Dataset"):
        predict_from_law(3)


@pytest.mark.parametrize("beta", [1.5, 3.5])
def test_prediction_for_a_model_agrees_with_its_simulation(beta):
    # expanding (beta < alpha) and contracting means; null: prediction is right; 4,096 replicates
    kernel = lesde.TwoLevel(alpha=2.0, beta=beta)
    model = lesde.LESDE(kernel, n_classes=2, n_features=2, n_per_class=6, noise=0.6)
    means, times = np.array([[1.0, 0.3], [-1.0, -0.2]]), [0.0, 0.5, 1.0]
    p = predict_separation(model, times, initial=means)["probability"].values
    run = lesde.separation_probability(model, times=times, initial=means, replicates=4096, seed=1)
    assert 0.02 < p[-1] < 0.98
    error = 5 * np.sqrt(p * (1 - p) / 4096)
    assert (np.abs(run["probability"].values - p) <= error + 1e-12).all()


@pytest.mark.parametrize("transform", ["identity", "logits"])
def test_a_grand_mean_that_outgrows_the_gap_costs_no_digits(transform):
    """α > β > 0: the grand mean grows as e^{(α+β)t/2}, the gap as e^{(α−β)t/2}; closed form of the gap.

    At t = 60 they are 26 powers of ten apart. Both models give two classes the same gap.
    """
    p = 1 if transform == "identity" else 2
    model = lesde.LESDE(lesde.TwoLevel(2, 1), 2, p, 20, noise=1.0, transform=transform)
    start = np.array([[1.3, 0.3], [0.7, 0.9]])[:, :p]
    for t in (10.0, 20.0, 60.0):
        law = lesde.law(model, [0, t], initial=start)
        gap = law["centred_mean"].values[1] @ np.array([1.0, -1.0])[:p]
        # I: X^1 − X^2. L: the gap along d_1 ∝ (1, −1), at the same rate (α−β)/2.
        expected = (start[0] - start[1]) @ np.array([1.0, -1.0])[:p] * np.exp(t / 2)
        assert gap[0] - gap[1] == pytest.approx(expected, rel=1e-12)
    if transform == "identity":
        for t in (20.0, 60.0):
            prediction = predict_separation(model, [0, t], initial=start)
            v, s = 2 / 20 * np.expm1(t), np.sqrt(t)
            exact = separation_function(0.6 * np.exp(t / 2), 20, 20, s, s, v - 2 * t / 20)
            assert float(prediction.probability[1]) == pytest.approx(exact.probability, rel=1e-10)
