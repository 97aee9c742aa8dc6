"""Rates of convergence: laws put in by hand, correlated noise, derived rates of the models.

The model paths are made here from the closed forms, with no engine of the package.
"""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from scipy import integrate, signal, stats

from lesde import convergence, neural_collapse
from lesde.analysis.convergence import first_passage, fit_line, median_interval

Z = 5  # tolerance of a statistical test, in standard errors


def ar1(rng, shape, phi):
    """Stationary AR(1) noise of unit innovations along the last axis; a random walk for φ = 1."""
    e = rng.standard_normal(shape)
    if phi < 1:
        e[..., 0] /= np.sqrt(1 - phi**2)
    return signal.lfilter([1], [1, -phi], e, axis=-1)


def curves(y, times, **coords):
    """Dataset of one metric from y of shape ([learning_rate,] replicate, time)."""
    dims = ("learning_rate", "replicate", "time")[-np.ndim(y) :]
    return xr.Dataset({"nc1": (dims, y)}, {"time": times, **coords})


def one(result, **where):
    return result.sel(metric="nc1", clock="time", **where)


# ---------------------------------------------------------------- laws without noise


@pytest.mark.parametrize("replicates", [1, 2, 3, 7])
def test_an_exact_exponential_is_recovered_to_rounding(replicates):
    t = np.linspace(0, 4, 41)
    scale = np.linspace(1, 2, replicates)[:, None]
    found = one(convergence(curves(scale * np.exp(-1.3 * t), t), threshold=0.05))
    assert float(found.rate) == pytest.approx(1.3, rel=1e-9)
    assert float(found.rate_upper - found.rate_lower) < 1e-9
    assert float(found.rate_lower) <= 1.3 + 1e-12
    assert str(found.law.values) == "exponential"
    assert float(found.weight_exponential) > 0.999
    assert float(found.amplitude_exponential) == pytest.approx(stats.gmean(scale[:, 0]), rel=1e-9)
    assert float(found.r_squared_exponential) == pytest.approx(1, abs=1e-12)
    crossing = np.log(scale[:, 0] / 0.05) / 1.3
    assert float(found.time_to_threshold) == pytest.approx(np.median(crossing), rel=1e-12)
    assert float(found.time_to_threshold_fitted) == pytest.approx(crossing.mean(), rel=1e-9)
    assert found.frames == 40  # the power law has no value at t = 0
    assert found.replicates == replicates


@pytest.mark.parametrize("offset", [0.0, 1.0, -2.0])
def test_an_exact_power_law_is_recovered_with_its_offset(offset):
    t = np.geomspace(3, 300, 50)
    y = np.array([[2.0], [3.0], [5.0]]) * (t + offset) ** -0.7
    found = one(convergence(curves(y, t), offset=offset, threshold=0.01))
    assert float(found.exponent) == pytest.approx(0.7, rel=1e-9)
    assert str(found.law.values) == "power law"
    assert float(found.weight_exponential) < 1e-3
    assert float(found.amplitude_power_law) == pytest.approx(30 ** (1 / 3), rel=1e-9)
    fitted = (30 ** (1 / 3) / 0.01) ** (1 / 0.7) - offset
    assert float(found.time_to_threshold_fitted) == pytest.approx(fitted, rel=1e-8)
    assert np.isnan(found.time_to_threshold)
    assert found.reached == 0


def test_values_without_a_logarithm_are_left_out():
    t = np.linspace(1, 5, 30)
    y = np.exp(-t) * np.ones((3, 1))
    clean = one(convergence(curves(y, t)))
    y[0, 3], y[1, 7], y[2, 9], y[:, 20] = 0.0, np.nan, np.inf, 0.0
    found = one(convergence(curves(y, t)))
    assert float(found.rate) == pytest.approx(float(clean.rate), rel=1e-10)
    assert found.frames == 29


def test_a_metric_that_is_always_zero_has_no_rate_and_no_law():
    t = np.linspace(1, 5, 30)
    found = one(convergence(curves(np.zeros((4, 30)), t)))
    assert np.isnan(found.rate)
    assert str(found.law.values) == "none"
    assert found.frames == 0
    assert found.reached == 1  # it was below the threshold from the start


def test_the_distance_to_the_target_is_fitted():
    t = np.linspace(0.5, 3, 20)
    nc = curves(1 - np.exp(-2 * t), t).rename(nc1="nc4")
    nc.nc4.attrs["target"] = 1.0
    found = convergence(nc).sel(metric="nc4", clock="time")
    assert float(found.rate) == pytest.approx(2, rel=1e-9)


# ---------------------------------------------------------------- noise of known correlation


@pytest.mark.parametrize(
    ("replicates", "phi", "least", "most"),
    [
        # Three replicates or more: the t interval is exact for Gaussian noise, whatever its
        # correlation.
        (3, 0.0, 0.95, 0.95),
        (3, 1.0, 0.95, 0.95),
        (8, 0.95, 0.95, 0.95),
        # One or two: the correlation is unknown; it may cover too often, and falls short only for
        # a random walk.
        (1, 0.0, 0.95, 1.0),
        (1, 0.9, 0.95, 1.0),
        (1, 1.0, 0.85, 1.0),
        (2, 0.6, 0.93, 1.0),
        (2, 0.95, 0.95, 1.0),
    ],
)
def test_intervals_cover_the_rate_under_correlated_noise(replicates, phi, least, most):
    """Null: the interval covers with probability in [least, most]; 400 runs, standard error 0.011
    at 0.95.
    """
    rng = np.random.default_rng(30)
    runs, x = 400, np.linspace(0.1, 3, 60)
    noise = 0.1 * ar1(rng, (runs, replicates, 60), phi)
    lines = [fit_line(x, -1.5 * x + e, 0.95) for e in noise]
    share = np.mean([line.lower <= -1.5 <= line.upper for line in lines])
    assert share >= least - Z * np.sqrt(least * (1 - least) / runs)
    assert share <= most + Z * np.sqrt(most * (1 - most) / runs)
    slopes = np.array([line.slope for line in lines])
    assert abs(slopes.mean() + 1.5) < Z * slopes.std(ddof=1) / np.sqrt(runs)


def test_the_interval_of_one_trajectory_is_wider_than_that_of_white_noise():
    """Ordinary least squares covers a slope under φ = 0.9 in about half of the runs: the
    correction is needed.
    """
    rng = np.random.default_rng(31)
    x = np.linspace(0, 1, 60)
    covered = {"plain": 0, "corrected": 0}
    for e in ar1(rng, (200, 60), 0.9):
        plain = stats.linregress(x, e)
        covered["plain"] += abs(plain.slope) < stats.t.ppf(0.975, 58) * plain.stderr
        line = fit_line(x, e[None], 0.95)
        covered["corrected"] += line.lower <= 0 <= line.upper
    assert covered["plain"] < 140
    assert covered["corrected"] > 180


def test_confidence_changes_the_interval_as_the_t_distribution_says():
    rng = np.random.default_rng(32)
    t = np.linspace(0.1, 2, 30)
    nc = curves(np.exp(-t + 0.1 * rng.standard_normal((5, 30))), t)
    narrow, wide = (one(convergence(nc, confidence=c)) for c in (0.8, 0.99))
    ratio = float((wide.rate_upper - wide.rate_lower) / (narrow.rate_upper - narrow.rate_lower))
    assert ratio == pytest.approx(stats.t.ppf(0.995, 4) / stats.t.ppf(0.9, 4), rel=1e-9)
    # The interval by hand: one least-squares line per replicate.
    slopes = [-stats.linregress(t, z).slope for z in np.log(nc.nc1.values)]
    expected = stats.t.interval(0.99, 4, np.mean(slopes), stats.sem(slopes))
    assert (float(wide.rate_lower), float(wide.rate_upper)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("replicates", [1, 4])
def test_the_right_law_is_chosen_in_correlated_noise(replicates):
    """Ten e-foldings, or three decades, in AR(1) noise of standard deviation 0.17: all 30 runs."""
    rng = np.random.default_rng(33)
    t = np.linspace(0.2, 10, 60)
    u = np.geomspace(1, 1e3, 60)
    noise = 0.1 * ar1(rng, (30, 2, replicates, 60), 0.8)
    for e, f in noise:
        exponential = one(convergence(curves(np.exp(-t + e), t)))
        power = one(convergence(curves(np.exp(-np.log(u) + f), u)))
        assert str(exponential.law.values) == "exponential"
        assert str(power.law.values) == "power law"
        assert exponential.weight_exponential > 0.9
        assert power.weight_exponential < 0.1


def test_the_evidence_is_even_where_the_laws_cannot_be_told_apart():
    """Over 2% of the time the laws differ by 1e-3 of the noise: the weights of 50 runs lie about
    ½.
    """
    rng = np.random.default_rng(34)
    t = np.linspace(1.0, 1.02, 40)
    weights = [
        float(
            one(
                convergence(curves(np.exp(-t + 0.05 * rng.standard_normal(40)), t))
            ).weight_exponential
        )
        for _ in range(50)
    ]
    assert max(abs(np.array(weights) - 0.5)) < 0.2


def test_no_decay_is_no_law():
    rng = np.random.default_rng(35)
    t = np.linspace(0.1, 10, 60)
    level = one(convergence(curves(np.exp(0.1 * ar1(rng, (6, 60), 0.5)), t)))
    growing = one(convergence(curves(np.exp(t + 0.1 * ar1(rng, (6, 60), 0.5)), t)))
    assert str(level.law.values) == str(growing.law.values) == "none"
    assert level.rate_lower < 0 < level.rate_upper
    assert growing.rate_upper < 0
    assert np.isnan(level.time_to_threshold_fitted)


# ---------------------------------------------------------------- windows


def test_start_and_stop_leave_out_transient_and_floor():
    """Rise to t = 2, rate 1.2 to t = 8, floor; AR(1) noise."""
    rng = np.random.default_rng(36)
    t = np.linspace(0.1, 12, 120)
    log_y = np.where(t < 2, 0.5 * (t - 2), np.maximum(-1.2 * (t - 2), -7.2))
    nc = curves(np.exp(log_y + 0.05 * ar1(rng, (5, 120), 0.5)), t)
    assert one(convergence(nc)).rate_upper < 1.15
    by_hand = one(convergence(nc, start=2, stop=8))
    assert float(by_hand.rate) == pytest.approx(1.2, rel=0.02)
    assert str(by_hand.law.values) == "exponential"
    assert by_hand.window_start >= 2
    assert by_hand.window_stop <= 8


# ---------------------------------------------------------------- first passage


def test_first_passage_by_hand():
    x = np.array([0.0, 1.0, 2.0, 3.0, 4.0])
    e = np.exp
    y = np.array(
        [
            [e(2), e(1), e(-1), e(-2), e(-3)],  # straight through 1 at 1.5
            [e(2), e(1), e(0.5), e(0.2), e(0.1)],  # never there
            [0.0, e(-1), e(1), e(-3), e(1)],  # rises first: crosses down at 2.25
            [e(-1), e(-2), e(-2), e(-2), e(-2)],  # there from the start
            [e(2), np.nan, e(-2), e(-3), e(-4)],  # a gap is bridged: 1.0
            [np.nan] * 5,
            [e(1), e(1), 0.0, 0.0, 0.0],  # an exact 0 counts from its frame
        ]
    )
    found = first_passage(x, y, 1.0)
    np.testing.assert_allclose(found, [1.5, np.inf, 2.25, 0.0, 1.0, np.nan, 2.0], rtol=1e-12)


def test_the_interval_of_a_censored_median_covers_it():
    """1,000 samples of 15 exponential times censored at 1.2 (median 0.693): coverage at least
    0.95, by the binomial 0.965.
    """
    rng = np.random.default_rng(38)
    times = rng.exponential(size=(1000, 15))
    found = np.array(
        [median_interval(np.where(row > 1.2, np.inf, row), 1.2, 0.95) for row in times]
    )
    share = np.mean((found[:, 1] <= np.log(2)) & (np.log(2) <= found[:, 2]))
    exact = 1 - 2 * stats.binom.cdf(3, 15, 0.5)
    assert abs(share - exact) < Z * np.sqrt(exact * (1 - exact) / 1000)
    assert np.isinf(found[:, 2]).any()
    assert np.isnan(found[:, 0]).sum() == np.sum((times > 1.2).sum(axis=1) >= 8)
    np.testing.assert_allclose(found[:, 3], (times <= 1.2).mean(axis=1))
    assert np.isnan(median_interval(times[0, :5], 9.0, 0.95)[1])
    assert median_interval(np.full(9, np.inf), 4.0, 0.95)[1] == 4.0


# ---------------------------------------------------------------- clocks and learning rates


def test_rates_per_iteration_and_their_dependence_on_the_learning_rate():
    """A rate r h^0.5 per unit of time at step h is r h^1.5 per iteration, with and without an
    iteration coordinate.
    """
    h = np.array([0.01, 0.02, 0.05, 0.1])
    t = np.linspace(2, 12, 51)
    rate = 0.8 * h**0.5
    y = np.exp(-rate[:, None, None] * t) * np.ones((4, 3, 1))
    implied = curves(y, t, learning_rate=h)
    steps = np.rint((t - 2) / h[:, None]).astype(int)
    given = implied.assign_coords(iteration=(("learning_rate", "time"), steps))
    for nc in (implied, given):
        found = convergence(nc).sel(metric="nc1")
        np.testing.assert_allclose(found.rate.sel(clock="time"), rate, rtol=1e-9)
        np.testing.assert_allclose(found.rate.sel(clock="iteration"), rate * h, rtol=1e-9)
        assert float(found.learning_rate_exponent.sel(clock="time")) == pytest.approx(0.5, rel=1e-8)
        assert float(found.learning_rate_exponent.sel(clock="iteration")) == pytest.approx(
            1.5, rel=1e-8
        )
        passages = found.time_to_threshold
        np.testing.assert_allclose(
            (passages.sel(clock="time") - 2) / h, passages.sel(clock="iteration"), rtol=1e-9
        )
        # Cutting the record moves no clock.
        later = convergence(nc, start=5, threshold=0.001).sel(metric="nc1", clock="iteration")
        np.testing.assert_allclose(later.amplitude_exponential, np.exp(-2 * rate), rtol=1e-8)
    np.testing.assert_allclose(found.learning_rate, h)


def test_the_exponent_is_the_same_on_both_clocks():
    t = np.geomspace(1, 100, 40)
    nc = curves((t + 0.5) ** -1.5, t, iteration=("time", np.rint((t - 1) / 0.001).astype(int)))
    found = convergence(nc, offset=0.5).sel(metric="nc1")
    np.testing.assert_allclose(found.exponent, 1.5, rtol=1e-3)
    assert found.clock.values.tolist() == ["time", "iteration"]
    assert convergence(nc, against="iteration").clock.values.tolist() == ["iteration"]


def test_the_learning_rate_exponent_has_the_interval_of_a_regression():
    rng = np.random.default_rng(39)
    h, t = np.geomspace(0.01, 0.3, 6), np.linspace(0.1, 4, 40)
    rate = np.exp(np.log(h) * 0.3 + 0.1 * rng.standard_normal(6))
    found = one(convergence(curves(np.exp(-rate[:, None, None] * t), t, learning_rate=h)))
    plain = stats.linregress(np.log(h), np.log(rate))
    half = stats.t.ppf(0.975, 4) * plain.stderr
    assert float(found.learning_rate_exponent) == pytest.approx(plain.slope, rel=1e-8)
    assert float(found.learning_rate_exponent_lower) == pytest.approx(plain.slope - half, rel=1e-8)
    assert float(found.learning_rate_exponent_upper) == pytest.approx(plain.slope + half, rel=1e-8)


def test_dimensions_and_names():
    t = np.linspace(0.5, 2, 12)
    y = np.exp(-t) * np.ones((2, 3, 4, 1))
    nc = xr.Dataset(
        {name: (("layer", "learning_rate", "replicate", "time"), y) for name in ("nc1", "nc2_etf")},
        {"time": t, "layer": ["a", "b"], "learning_rate": [0.1, 0.2, 0.3]},
    )
    found = convergence(nc, threshold={"nc1": 0.5, "nc2_etf": 0.25})
    assert found.rate.dims == ("metric", "layer", "learning_rate", "clock")
    assert found.learning_rate_exponent.dims == ("metric", "layer", "clock")
    assert found.threshold.values.tolist() == [0.5, 0.25]
    at = found.time_to_threshold.isel(layer=0, learning_rate=0).sel(clock="time")
    np.testing.assert_allclose(at, [np.log(2), np.log(4)], rtol=1e-10)
    assert convergence(nc, "nc1").metric.values.tolist() == ["nc1"]


# ---------------------------------------------------------------- the derived rates of the models


def with_samples(means, times, n, rng, spread, sigma):
    """Features about class means (R, T, K, p): frozen deviations plus Brownian motion, as both
    models have.
    """
    R, T, K, p = means.shape
    labels = np.repeat(np.arange(K), n)
    frozen = spread * rng.standard_normal((R, 1, K * n, p))
    steps = np.sqrt(np.diff(times, prepend=times[0]))[None, :, None, None]
    walk = sigma * np.cumsum(steps * rng.standard_normal((R, T, K * n, p)), axis=1)
    return xr.Dataset(
        {
            "features": (
                ("replicate", "time", "sample", "feature"),
                means[:, :, labels] + frozen + walk,
            )
        },
        {"time": times, "label": ("sample", labels)},
    )


@pytest.mark.parametrize(("K", "alpha", "beta"), [(3, 2.0, 0.5), (4, 3.0, -0.5), (5, 2.5, -1.0)])
def test_nc1_of_the_i_model_decays_at_twice_the_contrast_rate(K, alpha, beta):
    """Rate 2(α−β)/K: contrasts grow as exp((α−β)t/K), the spread by σ²t/spread² = 0.4% only.

    That growth slows log NC1 by at most 0.005 over the record, far below the tolerance of 1%.
    """
    rng = np.random.default_rng(40)
    times, R, p = np.linspace(0, 3, 31), 8, 6
    start = rng.standard_normal((R, 1, K, p))
    grand = start.mean(axis=2, keepdims=True)
    t = times[None, :, None, None]
    means = grand * np.exp((alpha + (K - 1) * beta) / K * t)
    means = means + (start - grand) * np.exp((alpha - beta) / K * t)
    nc = neural_collapse(with_samples(means, times, 30, rng, spread=0.1, sigma=0.0035))
    found = convergence(nc).sel(clock="time")
    derived = 2 * (alpha - beta) / K
    for name in ("nc1", "nc1_trace", "nc1_cdnv"):
        assert str(found.law.sel(metric=name).values) == "exponential"
        assert float(found.rate.sel(metric=name)) == pytest.approx(derived, rel=0.01)
    # NC2 does not improve in this model: the means keep their shape.
    assert abs(float(found.rate.sel(metric="nc2_etf"))) < 0.01
    # One trajectory by itself: the interval holds the derived rate, less the slowing that spread
    # causes.
    alone = convergence(nc.isel(replicate=[0])).sel(clock="time", metric="nc1")
    assert float(alone.rate_lower) - 0.005 <= derived <= float(alone.rate_upper) + 0.005


@pytest.mark.parametrize(("a", "b"), [(24.0, 4.0), (16.0, 6.0)])
def test_nc2_of_the_l_model_decays_with_the_derived_exponent(a, b):
    """α = a/t, β = −b/t, K = 5: NC2 error ~ exp(B/(K−1)) = t^(−b/4); mean equation to 1e-11.

    Initial components outside the frame decay as t^(−(a+b)/5), at least 2.9 powers faster, and
    second-order terms as t^(−b/2): past t = 10 they are below 1% of the error.
    """
    K, R = 5, 6
    rng = np.random.default_rng(41)
    times = np.geomspace(1, 300, 40)
    d = np.eye(K) - 1 / K
    size = (d**2).sum(axis=1)
    elastic = np.where(np.eye(K, dtype=bool), a, -b) / K  # t w_l E_kl(t)

    def slope(_tau, flat):
        s = (d * flat.reshape(K, K)).sum(axis=1) / size
        return ((elastic * s) @ d).ravel()

    means = []
    for _ in range(R):
        x0 = d + 0.3 * rng.standard_normal((K, K))
        solved = integrate.solve_ivp(
            slope,
            (0, np.log(times[-1])),
            x0.ravel(),
            "DOP853",
            np.log(times),
            rtol=1e-11,
            atol=1e-12,
        )
        means.append(solved.y.T.reshape(-1, K, K))
    paths = with_samples(np.stack(means), times, 20, rng, spread=1e-3, sigma=1e-4)
    found = convergence(neural_collapse(paths), start=10).sel(clock="time")
    for name in ("nc2_etf", "nc2_norm_cv", "nc2_angle_std"):
        assert str(found.law.sel(metric=name).values) == "power law"
        assert found.weight_exponential.sel(metric=name) < 1e-3
        assert float(found.exponent.sel(metric=name)) == pytest.approx(b / (K - 1), rel=0.02)
    # NC1 falls with the contrasts of the means over a spread that stays: t^(−2(a−b/4)/5) at the
    # slowest.
    assert found.exponent.sel(metric="nc1") > 1


# ---------------------------------------------------------------- errors


def test_errors_name_the_argument_and_the_remedy():
    t = np.linspace(0.5, 2, 12)
    nc = curves(np.exp(-t) * np.ones((3, 1)), t)
    with pytest.raises(TypeError, match=r"nc must be an xarray\.Dataset"):
        convergence(nc.nc1)
    with pytest.raises(ValueError, match="nc must hold variables over 'time'"):
        convergence(nc.isel(time=0))
    with pytest.raises(ValueError, match=r"metrics must be one of 'nc1'; got 'nc9'"):
        convergence(nc, "nc9")
    with pytest.raises(ValueError, match="metrics must name at least one"):
        convergence(nc, [])
    with pytest.raises(ValueError, match="against must be one of 'time', 'iteration'"):
        convergence(nc, against="epochs")
    with pytest.raises(
        ValueError, match=r"against='iteration' needs a coordinate iteration\(time\)"
    ):
        convergence(nc, against="iteration")
    with pytest.raises(ValueError, match="threshold must be a finite number"):
        convergence(nc, threshold=0.0)
    with pytest.raises(ValueError, match="threshold must hold every metric fitted"):
        convergence(nc, threshold={"nc2_etf": 0.1})
    with pytest.raises(ValueError, match=r"at least 3 of the 12 frames between 0\.5 and 2; got 2"):
        convergence(nc, stop=0.7)
    with pytest.raises(ValueError, match="confidence must be a finite number"):
        convergence(nc, confidence=1.0)
    with pytest.raises(ValueError, match=r"nc\.time must be strictly increasing"):
        convergence(nc.assign_coords(time=t[::-1]))
    for iteration in (
        (("replicate", "time"), np.ones((3, 12))),
        ("time", np.arange(12)[::-1]),
        ("time", np.zeros(12)),
    ):
        with pytest.raises(ValueError, match=r"nc\.iteration must be a coordinate over time"):
            convergence(nc.assign_coords(iteration=iteration))


@pytest.mark.parametrize("h", [0.02, 0.1])
def test_rounded_iterations_keep_the_origin_of_the_power_law(h):
    """Saved times that are no multiples of h: the frame at u = 0 enters the fit on neither clock."""
    t = np.linspace(0, 12, 49)
    y = (1 + np.random.default_rng(0).normal(0, 0.05, (4, 49))) / np.r_[1, t[1:]]
    steps = np.round(t / h).astype(int)
    coords = {"time": t, "iteration": ("time", steps)}
    rates = convergence(xr.Dataset({"nc1": (("replicate", "time"), y)}, coords=coords))
    on_time, on_iteration = rates.sel(clock="time"), rates.sel(clock="iteration")
    assert int(on_time.frames[0]) == int(on_iteration.frames[0]) == 48
    # Rounding moves log u by at most h/2 over the first u = 0.25.
    assert float(on_iteration.exponent[0]) == pytest.approx(float(on_time.exponent[0]), abs=0.05)
