"""The discrete process: against a direct implementation, its mean, its sampling covariance, its limit."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import ks_2samp

from lesde import simulate
from tests.simulation.systems import (
    MEANS,
    PAIRS,
    make_system,
    moments_by_class,
    worst_covariance,
    worst_mean,
)


def naive(system, initial, h, steps, replicates, seed):
    """Every sample of every replicate moved at every iteration, as the rule is written."""
    rng = np.random.default_rng(seed)
    K, p, _ = system.H.shape
    labels = np.repeat(np.arange(K), system.counts)
    weights = system.counts / system.counts.sum()
    starts = np.concatenate([[0], np.cumsum(system.counts)[:-1]])
    factors = np.linalg.cholesky(system.Sigma + 1e-300 * np.eye(p))[labels]
    X = np.repeat(initial[None], replicates, axis=0)
    rows = np.arange(replicates)
    for m in range(steps):
        L = rng.choice(K, size=replicates, p=weights)
        J = starts[L] + rng.integers(system.counts[L])
        kick = np.einsum("rij,rj->ri", system.H[L], X[rows, J])
        strength = system.kernel(m * h)[:, L].T[:, labels]
        noise = np.einsum("nij,rnj->rni", factors, rng.standard_normal(X.shape))
        X = X + h * strength[:, :, None] * kick[:, None, :] + np.sqrt(h) * noise
    return X


@pytest.mark.parametrize(
    "case",
    [
        ("identity", "unbalanced", "varying", "scalar"),
        ("logits", "balanced", "constant", "full"),
        ("matrix", "unbalanced", "varying", "full, shared"),
    ],
    ids=" ".join,
)
def test_equals_a_direct_implementation_in_law(case):
    # Null: equal laws. R draws of each; every coordinate of two samples a class and products across
    # samples, by Kolmogorov-Smirnov at 1e-6 (30 comparisons), and all moments to 5 standard errors.
    system = make_system(*case)
    R, h, steps = 4096, 0.1, 12
    initial = np.random.default_rng(1).standard_normal((int(system.counts.sum()), 3))
    reference = naive(system, initial, h, steps, R, seed=2)
    # An intermediate saved time, where all samples are brought up to date, must not matter.
    paths = simulate(system.model, [0, 0.5, h * steps], initial, R, learning_rate=h, seed=3)
    got = paths.features.isel(time=-1).values.astype(float)
    firsts = np.concatenate([[0], np.cumsum(system.counts)[:-1]])
    columns = np.concatenate([firsts, firsts + 1])
    flat_got, flat_reference = (x[:, columns].reshape(R, -1) for x in (got, reference))
    for a, b in zip(flat_got.T, flat_reference.T, strict=True):
        assert ks_2samp(a, b).pvalue > 1e-6
    for i, j in [(0, 1), (0, 4), (2, 9), (5, 14), (8, 17), (3, 12)]:
        a, b = (x[:, i] * x[:, j] for x in (flat_got, flat_reference))
        assert ks_2samp(a, b).pvalue > 1e-6
    error = np.sqrt((got.var(0) + reference.var(0)) / R)
    assert (np.abs(got.mean(0) - reference.mean(0)) < 5 * error).all()
    a, b = (
        (x - x.mean(0))[:, :, None] * (x - x.mean(0))[:, None, :]
        for x in (flat_got, flat_reference)
    )
    error = np.sqrt((a.var(0) + b.var(0)) / R)
    assert (np.abs(a.mean(0) - b.mean(0)) < 5 * error).all()


def test_the_comparison_would_notice_a_wrong_law():
    # It has power: with σ 15 % larger the variances differ by many standard errors.
    system = make_system("identity", "unbalanced", "varying", "scalar")
    louder = system.model.replace(noise=0.46)
    initial = np.random.default_rng(1).standard_normal((int(system.counts.sum()), 3))
    reference = naive(system, initial, 0.1, 12, 4096, seed=2)
    got = simulate(louder, [0, 1.2], initial, 4096, learning_rate=0.1).features.isel(time=-1)
    a, b = ((x - x.mean(0)) ** 2 for x in (got.values.astype(float), reference))
    error = np.sqrt((a.var(0) + b.var(0)) / 4096)
    assert (np.abs(a.mean(0) - b.mean(0)) > 5 * error).any()


@pytest.mark.parametrize("case", PAIRS[::3], ids=" ".join)
def test_mean_is_the_product_of_one_step_maps(case):
    # Null: mean Π (I + h M(t_m)) X̄(0). R = 4096, 5 standard errors, at every saved time.
    system = make_system(*case)
    h, R = 0.1, 4096
    paths = simulate(system.model, [0, 0.1, 0.5, 2.0], MEANS, R, learning_rate=h, seed=6)
    assert paths.iteration.values.tolist() == [0, 1, 5, 20]
    for index, steps in enumerate(paths.iteration.values):
        expected = MEANS.ravel()
        for m in range(steps):
            expected = (np.eye(9) + h * system.drift_matrix(m * h)) @ expected
        means, _ = moments_by_class(paths.features.isel(time=index).values, system.counts)
        assert worst_mean(means, expected.reshape(3, 3)) < 5


def test_one_step_has_the_sampling_covariance():
    # No noise, so that one step's covariance is h² C, C_km = Σ_l w_l E_kl E_ml H_l S_l H_lᵀ − b_k b_mᵀ.
    system = make_system("matrix", "unbalanced", "constant", "scalar")
    model = system.model.replace(noise=0.0)
    counts, h, R = system.counts, 0.3, 8192
    initial = np.random.default_rng(3).standard_normal((counts.sum(), 3))
    labels, w = np.repeat(np.arange(3), counts), counts / counts.sum()
    E = system.kernel(0.0)
    S = np.stack([initial[labels == l].T @ initial[labels == l] / counts[l] for l in range(3)])
    X = np.stack([initial[labels == l].mean(0) for l in range(3)])
    b = np.einsum("l,kl,lij,lj->ki", w, E, system.H, X)
    C = np.einsum("l,kl,ml,lia,lab,ljb->kimj", w, E, E, system.H, S, system.H)
    C = C.reshape(9, 9) - np.outer(b, b)
    paths = simulate(model, [0, h], initial, R, learning_rate=h, dtype="float64", seed=7)
    means, deviations = moments_by_class(paths.features.isel(time=1).values, counts)
    assert worst_covariance(means.reshape(R, 9), X + h * b, h**2 * C) < 5
    # Sampling noise moves class means only.
    np.testing.assert_allclose(
        deviations, np.broadcast_to(initial - X[labels], deviations.shape), atol=1e-12
    )


def test_many_steps_have_the_propagated_sampling_covariance():
    # Sampling noise alone (σ = 0) over 40 steps, against the recursion for the second moments.
    system = make_system("identity", "unbalanced", "varying", "scalar")
    silent = type(system)(
        system.model.replace(noise=0.0), system.kernel, system.H, 0 * system.Sigma, system.counts
    )
    h, R = 0.05, 8192
    mean, covariance = silent.sgd_moments(MEANS, h, 40)
    paths = simulate(silent.model, [0, 2.0], MEANS, R, learning_rate=h, dtype="float64", seed=8)
    means, _ = moments_by_class(paths.features.isel(time=1).values, system.counts)
    assert worst_mean(means, mean) < 5
    assert worst_covariance(means.reshape(R, 9), mean, covariance) < 5
    assert np.trace(covariance) > 0.01  # there is something to measure


def test_distance_to_the_sde_shrinks_with_weak_order_one():
    # The simulated mean is compared with the mean of the SDE at four learning rates. Slope of
    # log distance on log h by weighted least squares, weights from the Monte-Carlo standard errors.
    # Null: the slope of the exact bias ‖Π(I + hM) − Φ‖ over the same learning rates. That slope is 1 up
    # to terms of order h, here 0.90; it is 1 within 0.01 at learning rates too small to simulate.
    system = make_system("identity", "unbalanced", "varying", "scalar")
    model = system.model.replace(noise=0.05)
    rates, R = np.array([0.2, 0.1, 0.05, 0.025]), 8192
    exact, _ = system.sde_moments(MEANS, 2.0)
    paths = simulate(model, [0, 2.0], MEANS, R, learning_rate=rates, seed=9)
    bias = np.array([system.sgd_moments(MEANS, h, round(2 / h))[0] - exact for h in rates])
    direction = bias[-1] / np.linalg.norm(bias[-1])
    distance, error = [], []
    for index in range(len(rates)):
        features = paths.features.isel(learning_rate=index, time=-1).values
        means, _ = moments_by_class(features, system.counts)
        along = ((means - exact) * direction).sum((1, 2))
        distance.append(along.mean())
        error.append(along.std() / np.sqrt(R))
    distance, error = np.array(distance), np.array(error)
    relative = error / distance
    slope, slope_error = weighted_slope(np.log(rates), np.log(distance), relative)
    true = np.log((bias * direction).sum((1, 2)))
    true_slope, _ = weighted_slope(np.log(rates), true, relative)
    assert slope_error < 0.06
    assert abs(slope - true_slope) < 5 * slope_error
    assert abs(slope - 1) < 0.1 + 5 * slope_error
    assert true_slope == pytest.approx(0.9, abs=0.02)
    finest = [
        np.linalg.norm(system.sgd_moments(MEANS, h, round(2 / h))[0] - exact) for h in (2e-3, 1e-3)
    ]
    assert np.log2(finest[0] / finest[1]) == pytest.approx(1, abs=0.01)


def weighted_slope(x, y, error):
    """Slope of y on x by least squares with known errors of y, and its standard error."""
    w = 1 / error**2
    centre = (w * x).sum() / w.sum()
    spread = (w * (x - centre) ** 2).sum()
    return (w * (x - centre) * y).sum() / spread, 1 / np.sqrt(spread)


def test_saved_times_round_to_the_nearest_iteration():
    system = make_system(*PAIRS[0])
    paths = simulate(system.model, [1.0, 1.22, 1.37], MEANS, 32, learning_rate=[0.1, 0.2])
    assert paths.iteration.dims == ("learning_rate", "time")
    assert paths.iteration.values.tolist() == [[0, 2, 4], [0, 1, 2]]
    assert paths.learning_rate.values.tolist() == [0.1, 0.2]


def test_times_closer_than_the_learning_rate_are_refused():
    system = make_system(*PAIRS[0])
    with pytest.raises(
        ValueError, match=r"learning_rate=0\.1 is coarser.*0\.5 and 0\.52.*iteration \(5\)"
    ):
        simulate(system.model, [0, 0.5, 0.52], MEANS, 32, learning_rate=0.1)


def test_kernel_is_not_evaluated_beyond_the_last_iteration():
    from lesde import LESDE, TwoLevel

    model = LESDE(TwoLevel("sqrt(1-t)", 0), 2, 2, 3)
    paths = simulate(model, [0, 1], np.eye(2), 32, learning_rate=0.1)
    assert np.isfinite(paths.features.values).all()


def test_time_starts_at_the_first_saved_time():
    # A kernel that is zero before t = 5 acts at once when times start there.
    from lesde import LESDE, TwoLevel

    model = LESDE(TwoLevel("t-5", 0), 2, 2, 3, noise=0.0)
    paths = simulate(model, [5, 5.2], np.eye(2), 4096, learning_rate=0.1, dtype="float64")
    means, _ = moments_by_class(paths.features.isel(time=1).values, np.array([3, 3]))
    assert worst_mean(means, np.eye(2) * (1 + 0.1 * 0.1 / 2)) < 5
