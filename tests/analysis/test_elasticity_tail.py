"""Tail indices: truth, coverage, and when there is none."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from lesde.analysis import fit_elasticity
from lesde.analysis.elasticity.tails import log_slope, power_tail, tail_window
from tests.analysis.test_elasticity_paths import dataset, projections, simulate_means, two_level


def power_paths(r, datasets, replicates, seed, noise=0.3):
    """α = 2 t^{−r}, β = −α/4, from t = 0.1, times equidistant in log t."""
    K, times = 3, np.geomspace(0.1, 10, 21)
    rng = np.random.default_rng(seed)
    initial = np.random.default_rng(1).standard_normal((K, K)) + 1
    means = simulate_means(
        two_level(K, lambda t: 2 * t**-r, lambda t: -0.5 * t**-r), projections("identity", K, K),
        np.full(K, 20), initial, times, noise, (datasets, replicates), rng, substeps=6,
    )  # fmt: skip
    return dataset(means, times, np.full(K, 20), leading=("dataset", "replicate"))


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("offset", [0.0, pytest.param(None, marks=pytest.mark.slow)])
@pytest.mark.parametrize("r", [0.5, 1.4])
def test_tail_index_is_covered_on_both_sides_of_one(r, offset):
    """Null: 95% intervals for r of α − β cover r with probability 0.95; 150 datasets, 5σ = 0.089.

    Both sides of 1 must be told apart where the interval allows it: r = 1.4 lies above what 1 − d log A/d log t
    can ever reach.
    """
    paths = power_paths(r, 150, 8, seed=3)
    fit = fit_elasticity(paths, smoothing=None, tail=0.5, tail_offset=offset)
    at = fit.sel(level="alpha_minus_beta")
    assert np.isfinite(at.tail_index).all()
    found = float(((at.tail_index_lower <= r) & (r <= at.tail_index_upper)).mean())
    assert abs(found - 0.95) < 5 * np.sqrt(0.95 * 0.05 / 150), found
    assert float(at.tail_index.median()) == pytest.approx(
        r, abs=5 * float(at.tail_index_se.median()) / 8
    )
    assert (fit.log_slope_index.sel(level="alpha_minus_beta") < 1).all()
    decided = at.tail_index_lower > 1 if r > 1 else at.tail_index_upper < 1
    assert float(decided.mean()) > 0.5


def test_exact_increments_give_exact_indices():
    """Independent route: closed-form integrals of t^{−r}. r = 1, where the integral is a log, is no exception."""
    times = np.geomspace(0.01, 100, 41)
    for r in (-0.5, 0.3, 1.0, 1.7, 3.0):
        integral = np.log(times) if r == 1 else times ** (1 - r) / (1 - r)
        increments = -2.5 * np.diff(integral)
        estimate = power_tail(times, increments, np.full(40, 1e-8), (1.0, 100.0), 0.0)
        assert estimate.index == pytest.approx(r, abs=1e-5)
    grown = 3 * np.diff(np.concatenate([[0], times ** (1 - 0.4)]))
    padded = np.concatenate([[0.0], times])
    estimate = log_slope(padded, grown, np.ones(41), (1.0, 100.0))
    assert estimate.index == pytest.approx(0.4, abs=1e-9)


@pytest.mark.parametrize("estimator", ["power", "slope"])
def test_weights_are_the_derivative_with_respect_to_increments(estimator):
    """The delta method rests on them: central differences of the estimate, to 1e-4 of the largest."""
    rng = np.random.default_rng(0)
    times = np.geomspace(0.1, 30, 25)
    increments = 2 * np.diff(times**0.4)  # on the model, where the Gauss-Newton derivative is exact
    variances = rng.uniform(0.5, 2, 24) * 1e-4

    def estimate(x):
        if estimator == "power":
            return power_tail(times, x, variances, (1.0, 30.0), 0.0)
        return log_slope(times, x, variances, (1.0, 30.0))

    weights, step = estimate(increments).weights, 1e-4
    for i in range(24):
        up, down = increments.copy(), increments.copy()
        up[i] += step
        down[i] -= step
        if estimator == "slope":
            difference = (estimate(up).index - estimate(down).index) / (2 * step)
            assert weights[i] == pytest.approx(difference, abs=1e-4 * np.abs(weights).max())
        else:
            difference = (estimate(up).index - estimate(down).index) / (2 * step)
            assert weights[i] == pytest.approx(difference, abs=2e-3 * np.abs(weights).max())


def test_default_window_is_the_second_half_in_log_time():
    assert tail_window(np.array([0.0, 1.0, 10.0, 100.0]), None) == (10.0, 100.0)
    assert tail_window(np.array([0.0, 1.0, 9.0]), 2.0) == (2.0, 9.0)
    assert tail_window(np.array([0.0, 1.0, 9.0]), (2.0, 4.0)) == (2.0, 4.0)


def test_no_index_where_elasticity_is_zero():
    """α = β = 0: neither sign nor index is known, so NaN and a warning that says why."""
    K, times = 3, np.linspace(0, 4, 17)
    rng = np.random.default_rng(12)
    means = simulate_means(
        lambda t: np.zeros((K, K)), projections("identity", K, K), np.full(K, 20),
        rng.standard_normal((K, K)) + 1, times, 0.5, (10,), rng,
    )  # fmt: skip
    with pytest.warns(
        UserWarning, match=r"no tail_index: the rate there does not differ significantly from zero"
    ):
        fit = fit_elasticity(dataset(means, times))
    assert np.isnan(fit.tail_index).all()
    assert np.isnan(fit.tail_index_lower).all()


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_short_tail_gives_nan():
    paths = power_paths(0.5, 1, 8, seed=0)
    fit = fit_elasticity(paths, tail=(8.0, 10.0))
    assert np.isnan(fit.tail_index).all()


def test_tail_indices_can_be_left_out(recwarn):
    times = np.linspace(0, 2, 6)
    features = np.random.default_rng(0).standard_normal((8, 6, 4, 2)).cumsum(1)
    paths = xr.Dataset(
        {"features": (("replicate", "time", "sample", "feature"), features)},
        {"time": times, "label": ("sample", [0, 0, 1, 1])},
    )
    fit = fit_elasticity(paths, tail=False)
    assert "tail_index" not in fit
    assert not [w for w in recwarn if "tail_index" in str(w.message)]


@pytest.mark.parametrize("r", [0.5, 1.0, 1.3])
def test_index_without_noise_has_all_its_digits(r):
    t = np.geomspace(0.5, 100, 60)
    primitive = np.log(t) if r == 1 else t ** (1 - r) / (1 - r)
    estimate = power_tail(t, 4 * np.diff(primitive), np.full(59, 1e-20), (5.0, 100.0), 1.96)
    assert estimate.index == pytest.approx(r, abs=1e-12)
