"""The published inversion of log ratios: right without noise, and twice or more as far off as the fit with it."""

from __future__ import annotations

import functools
import warnings

import numpy as np
import pytest
import xarray as xr
from scipy.stats import chi2

from lesde.analysis import fit_elasticity, published_elasticity
from lesde.networks import drawn_means
from tests.analysis.drawn_protocol import LATE, Rates, initial_means, simulate_draws, truth
from tests.analysis.test_elasticity_paths import dataset, projections, simulate_means, two_level

KINDS = ["identity", "logits"]
INDEX = 0.6
"""Of the simulated rates."""


@functools.cache
def results(kind: str, sets: int, iterations: int, windows: int) -> dict[str, np.ndarray]:
    """Errors (set, time), whether intervals cover, and tail indices, of simulated data sets of 100 networks.

    ``published``: of Â and B̂ from the first iteration, as they are defined. ``published_since``: less their values at the centre of
    the first window, where the fit starts. ``published_smoothed``: the same of their means over each window.
    """
    found: dict[str, list] = {}
    batch = 5 if iterations > 1000 else 20  # data sets that go through one call, for memory
    for first in range(0, sets, batch):
        seeds = range(first, min(first + batch, sets))
        drawn = [simulate_draws(kind, seed, iterations=iterations) for seed in seeds]
        means = xr.concat([drawn_means(d, windows) for d in drawn], "set")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # what they say is tested below
            fit = fit_elasticity(means, kind, estimator="averages", smoothing=None)
            old = published_elasticity(xr.concat(drawn, "set"), kind)
        for name, values in compared(fit, old, iterations).items():
            found.setdefault(name, []).append(values)
    return {name: np.concatenate(values) for name, values in found.items()}


def compared(fit: xr.Dataset, old: xr.Dataset, iterations: int) -> dict[str, np.ndarray]:
    """The entries of `results`, for estimates of some data sets."""
    at = fit.time.values
    A, B = truth(Rates(), iterations, at)
    found = {"negative": old.negative.mean("time").values}
    for name, exact in {"A": A, "B": B, "A_minus_B": A - B}.items():
        read = old[name].interp(time=at).values
        since = exact - exact[0]
        found[f"published {name}"] = read - exact
        found[f"published_since {name}"] = (read - read[:, :1] - since)[:, 1:]
        smooth = old[name].values.reshape(len(read), len(at), -1).mean(-1)
        found[f"published_smoothed {name}"] = (smooth - smooth[:, :1] - since)[:, 1:]
        found[f"fit {name}"] = (fit[name].values - since)[:, 1:]
        inside = (fit[f"{name}_lower"].values <= since) & (fit[f"{name}_upper"].values >= since)
        found[f"covers {name}"] = inside[:, 1:]
        found[f"z {name}"] = found[f"fit {name}"] / fit[f"{name}_se"].values[:, 1:]
    for level in ("alpha", "alpha_minus_beta"):
        r = fit.sel(level=level)
        inside = (r.tail_index_lower <= INDEX) & (r.tail_index_upper >= INDEX)
        found[f"covers r {level}"] = np.where(np.isfinite(r.tail_index), inside, np.nan)
        found[f"r {level}"] = r.tail_index.values - INDEX
    found["published r alpha"] = old.tail_index.sel(level="alpha").values - INDEX
    return found


def rmse(errors: np.ndarray) -> float:
    return float(np.sqrt(np.nanmean(errors**2)))


def check_errors(kind: str, sets: int, iterations: int, windows: int) -> None:
    found = results(kind, sets, iterations, windows)
    for name in ("A", "B", "A_minus_B"):
        fit = rmse(found[f"fit {name}"])
        for way in ("published", "published_since", "published_smoothed"):
            assert fit <= 0.5 * rmse(found[f"{way} {name}"]), (name, way)
    assert found["negative"].mean() > 0  # there are silent absolute values to be told


def check_coverage(kind: str, sets: int, iterations: int, windows: int) -> None:
    found = results(kind, sets, iterations, windows)
    tolerance = 5 * np.sqrt(0.95 * 0.05 / sets)
    for name in ("A", "B", "A_minus_B"):
        covers = found[f"covers {name}"]
        for time in (covers.shape[1] // 2, -1):
            assert covers[:, time].mean() >= 0.95 - tolerance, (name, time)
        low, high = mean_square_limits(found[f"z {name}"])
        # Intervals of any width cover often enough; of those that are too wide this says so.
        assert low <= (found[f"z {name}"] ** 2).mean() <= high, name
    for level in ("alpha", "alpha_minus_beta"):
        covers = found[f"covers r {level}"]
        known = np.isfinite(covers)
        assert known.mean() > 0.9
        assert covers[known].mean() >= 0.95 - tolerance, level


def mean_square_limits(z: np.ndarray) -> tuple[float, float]:
    """Where the mean of z² lies but for 5σ, for standard normal z (set, time) that go together over time as these do."""
    together = np.corrcoef(z.T)
    number = len(z) * z.shape[1] ** 2 / (together**2).sum()
    return tuple(chi2.ppf([2.9e-7, 1 - 2.9e-7], number) / number)


@pytest.mark.parametrize("kind", KINDS)
def test_fit_has_at_most_half_the_error(kind):
    """Root mean square errors over 20 data sets of 100 networks and 8 windows of 100 iterations.

    The noise is that of networks on GeoMNIST (see `tests.analysis.drawn_protocol`). Both estimators are compared with
    the truth over the time that they measure, and over the same time, as read and averaged over the windows.
    """
    check_errors(kind, 20, 800, 8)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_fit_has_at_most_half_the_error_over_the_whole_protocol(kind):
    """The same over 20 data sets of 10,000 iterations and 50 windows."""
    check_errors(kind, 20, 10_000, 50)


@pytest.mark.parametrize("kind", KINDS)
def test_intervals_cover(kind):
    """Null: 95% intervals of A, B, A − B and of tail indices cover with probability 0.95.

    One trial a data set at each of two times, so of 20 data sets 5σ = 5·√(.95·.05/20) = 0.24; the slow test below
    is the one that is sharp. Intervals that are too wide show in z = (estimate − truth)/standard error: over all times
    z² has mean 1, here within 0.25 to 0.43 and 1.9 to 2.5, so that standard errors twice as large fail, or half
    as large. Of 100 networks they are right; of a few, those of A and B singly may be too wide.
    """
    check_coverage(kind, 20, 800, 8)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_intervals_cover_in_many_data_sets(kind):
    """The same null over 200 data sets: 5σ = 0.077, and z² within about 0.7 to 1.4."""
    check_coverage(kind, 200, 800, 8)


@pytest.mark.parametrize("kind", KINDS)
def test_fit_is_unbiased(kind):
    """Null: the mean error of A and B at the last time is zero, within 5 standard errors over 20 data sets.

    Averages over windows in place of values at their centres add λ²Δ²/24, here under 0.004.
    """
    found = results(kind, 20, 800, 8)
    for name in ("A", "B", "A_minus_B"):
        last = found[f"fit {name}"][:, -1]
        assert abs(last.mean()) <= 5 * last.std(ddof=1) / np.sqrt(len(last)) + 0.004


@pytest.mark.parametrize("kind", KINDS)
def test_tail_index_is_nearer_than_the_published_one(kind):
    """log A / log m is far from its limit at 800 iterations, where increments of A already show r."""
    found = results(kind, 20, 800, 8)
    assert rmse(found["r alpha"]) < 0.5 * rmse(found["published r alpha"])


@pytest.mark.parametrize("kind", KINDS)
def test_exact_for_draws_without_noise(kind):
    """All draws of a class are its mean; what is left is log(1 + hλ) − hλ at step h = 0.005."""
    drawn = simulate_draws(kind, 0, iterations=400, replicates=40, scale=0.0)
    found = published_elasticity(drawn, kind)
    A, B = truth(Rates(), 400, found.time.values)
    known = np.isfinite(found.A.values)
    assert known.mean() > 0.99
    np.testing.assert_allclose(found.A.values[known], A[known], atol=1e-3)
    np.testing.assert_allclose(found.B.values[known], B[known], atol=1e-3)
    assert float(found.negative.max()) == 0 == float(found.left_out.max())


@pytest.mark.parametrize("K", [3, 4, 6])
@pytest.mark.parametrize("kind", KINDS)
def test_exact_for_paths_without_noise(kind, K):
    times = np.linspace(0, 2, 9)
    start = initial_means(kind, K, K, LATE)
    rng = np.random.default_rng(0)
    means = simulate_means(
        two_level(K, lambda t: 2 / (1 + t), lambda t: -0.5 / (1 + t)), projections(kind, K, K),
        np.full(K, 2), start, times, 0.0, (3,), rng,
    )  # fmt: skip
    found = published_elasticity(dataset(means, times), kind)
    np.testing.assert_allclose(found.A, 2 * np.log1p(times), atol=1e-3)
    np.testing.assert_allclose(found.B, -0.5 * np.log1p(times), atol=1e-3)
    assert np.isnan(found.tail_index).all()  # without iterations there is no log m


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_logit_projections_are_the_published_ones_for_three_classes():
    """Written out in the nine coordinates of three class means, whatever their sums."""
    X = np.random.default_rng(2).standard_normal((5, 3, 3))
    x = X.reshape(5, 9)
    s = (x[:, 0] + x[:, 4] - x[:, 6] - x[:, 7] - x[:, [1, 2, 3, 5, 6, 7]].sum(1)) / 4
    d = (np.eye(3) - 1 / 3).ravel()
    f = (x - s[:, None] * d) @ np.array([2, -1, -1, -1, 2, -1, 0, 0, 0]) / 3
    one, two = 3 * np.log(np.abs(s / s[0])), 3 * np.log(np.abs(f / f[0]))
    found = published_elasticity(dataset(X[None], np.arange(5.0)), "logits")
    np.testing.assert_allclose(found.A, (one + 2 * two) / 3, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(found.B, (two - one) * 2 / 3, rtol=1e-10, atol=1e-12)
    signs = np.stack([s / s[0] < 0, f / f[0] < 0])
    np.testing.assert_array_equal(found.negative, signs.mean(0))
    assert found.negative.max() > 0


def test_absolute_values_are_counted_and_told():
    X = np.array(
        [[[1.0], [3.0]], [[5.0], [-1.0]]]
    )  # time, class, feature: both contrasts change sign
    with pytest.warns(UserWarning, match=r"50\.00% of the ratios are negative.*fit_elasticity"):
        found = published_elasticity(dataset(X[None].repeat(2, 0), np.array([0.0, 1.0])))
    # Grand mean 2 → 2; contrasts ∓1 → ±3, so the ratios are −3 for exp(A) and for exp(−B).
    np.testing.assert_array_equal(found.negative, [0.0, 1.0])
    assert float(found.A[1]) == pytest.approx(np.log(3))
    assert float(found.B[1]) == pytest.approx(-np.log(3))


def draws(iterations: int, values: np.ndarray, rates: bool = False) -> xr.Dataset:
    """Two networks, of which one draws class 0 and the other class 1 at every iteration."""
    label = np.stack([np.zeros(iterations, int), np.ones(iterations, int)])
    lead = ("learning_rate",) if rates else ()
    at = (None,) if rates else ()
    return xr.Dataset(
        {"features": ((*lead, "replicate", "draw", "feature"), values[at])},
        coords={
            "label": ((*lead, "replicate", "draw"), label[at]),
            "iteration": ("draw", np.arange(iterations)),
            "time": ((*lead, "draw"), 0.1 * np.arange(iterations)[at]),
        },
    )


@pytest.mark.filterwarnings("ignore:A or B has both signs")
def test_tail_index_is_the_mean_over_the_last_share():
    m = np.arange(1, 201)
    A = np.where(m > 1, m**0.4, 0.0)  # α ~ m^−0.6; β = 0 but for rounding, whose signs are told
    values = np.exp(A / 2) * np.array([1.0, 3.0])[:, None]
    found = published_elasticity(draws(200, values[..., None], rates=True), tail=0.25)
    assert found.A.dims == ("learning_rate", "time")
    np.testing.assert_allclose(found.A[0], A, atol=1e-10)
    assert float(found.tail_index.sel(level="alpha")[0]) == pytest.approx(0.6)
    assert float(found.tail_negative.sel(level="alpha")[0]) == 0
    np.testing.assert_allclose(found.time, 0.1 * (m - 1))


def test_a_tail_of_both_signs_is_told():
    A = np.array([0.0, 1.0, 1.0, 1.0, -1.0])
    values = np.exp(A / 2) * np.array([1.0, 3.0])[:, None]
    with pytest.warns(UserWarning, match="both signs"):
        found = published_elasticity(draws(5, values[..., None]), tail=0.9)
    assert float(found.tail_negative.sel(level="alpha")) == pytest.approx(1 / 4)
    assert float(found.tail_index.sel(level="alpha")) == pytest.approx(1.0)  # log|A| = 0


def test_refuses():
    good = draws(3, np.ones((2, 3, 2)))
    with pytest.raises(ValueError, match="transform must be one of"):
        published_elasticity(good, "softmax")
    with pytest.raises(ValueError, match="tail must be"):
        published_elasticity(good, tail=1.0)
    with pytest.raises(ValueError, match="as many features as classes; got 1 and 2"):
        published_elasticity(good.isel(feature=[0]), "logits")
    with pytest.raises(ValueError, match="draw of every class at the first iteration"):
        published_elasticity(
            good.assign_coords(
                label=(
                    good.label.dims,
                    good.label.values[:, [0, 0, 0]] * 0 + [[0, 0, 0], [0, 1, 1]],
                )
            )
        )
    with pytest.raises(ValueError, match="iteration missing"):
        published_elasticity(good.drop_vars("iteration"))
    with pytest.raises(TypeError, match=r"xarray\.Dataset"):
        published_elasticity(3)
