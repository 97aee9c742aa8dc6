"""What is fitted does not depend on the unit of the features, over the range of float32."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

import lesde
from tests.analysis.test_elasticity_paths import dataset, projections, simulate_means, two_level

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
SCALES = [2.0**-120, 2.0**120]  # about the range of float32; exact factors


@pytest.fixture(scope="module")
def paths():
    K, rng = 3, np.random.default_rng(0)
    means = simulate_means(
        two_level(K, lambda t: 2 / (1 + t), lambda t: -0.5 / (1 + t)),
        projections("identity", K, K), np.full(K, 20), rng.standard_normal((K, K)) + 1,
        np.linspace(0, 6, 13), 0.3, (8,), rng,
    )  # fmt: skip
    return dataset(means, np.linspace(0, 6, 13), np.full(K, 20))


@pytest.mark.parametrize("factor", SCALES)
@pytest.mark.parametrize("estimator", ["likelihood", "averages"])
def test_fitted_elasticity_is_free_of_the_unit(paths, factor, estimator):
    """X → cX leaves every rate, error and share, and takes σ to cσ."""
    one, other = (
        lesde.fit_elasticity(paths.assign(features=paths.features * c), estimator=estimator)
        for c in (1.0, factor)
    )
    for name in one.data_vars:
        value = other[name] / factor if name.startswith("residual_scale") else other[name]
        np.testing.assert_allclose(value, one[name], rtol=1e-6, atol=1e-9, err_msg=str(name))


@pytest.mark.parametrize("errors", ["model", "replicate"])
def test_a_path_may_grow_by_many_orders_of_magnitude(errors):
    """Independent route: without noise, differences grow by exp((α − β)/K per unit of time), here from 1e-60 to 1e+60."""
    rng, times = np.random.default_rng(1), np.linspace(0, 30, 31)
    grand, apart = rng.standard_normal((2, 8, 1, 1, 3))
    rate = 120 * np.log(10) / 30  # of the differences, (α − β)/2
    signs = np.array([1.0, -1.0])[:, None]
    growth = np.exp(rate * times)[:, None, None]
    means = 1e-60 * growth * (apart * signs + grand)  # the grand mean too: β = 0
    means = means * (1 + 1e-9 * rng.standard_normal(means.shape))
    fit = lesde.fit_elasticity(dataset(means, times), errors=errors, smoothing=None)
    np.testing.assert_allclose(fit.A_minus_B, 2 * rate * times, rtol=1e-6)
    assert (fit.A_minus_B_se[1:] > 0).all()
    assert (fit.r_squared_interval > 0.999).all()


@pytest.mark.parametrize("factor", SCALES)
def test_calibrated_parameters_are_free_of_the_unit(paths, factor):
    """X → cX leaves estimates and errors, takes the noise to c times its size and log L to log L − n log c."""
    kernel = lesde.TwoLevel("a/(1+t)", "b/(1+t)", parameters={"a": None, "b": None})
    model = lesde.LESDE(kernel, n_classes=3, n_features=3, n_per_class=20, noise=0.3)
    one, other = (
        lesde.calibrate(paths.assign(features=paths.features * c), model, {"a": 1.0, "b": 0.0})
        for c in (1.0, factor)
    )
    for name in ("estimate", "standard_error", "covariance"):
        np.testing.assert_allclose(other[name], one[name], rtol=1e-6)
    for name in ("noise_scale", "noise_scale_error"):
        np.testing.assert_allclose(other[name] / factor, one[name], rtol=1e-6)
    numbers = 8 * 12 * 9
    expected = float(one.log_likelihood) - numbers * np.log(factor)
    assert float(other.log_likelihood) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("factor", SCALES)
@pytest.mark.parametrize("estimator", ["draws", "averages"])
def test_impact_is_free_of_the_unit(factor, estimator):
    """X, ΔX → cX, cΔX leaves elasticity and relative changes."""
    rng = np.random.default_rng(0)
    labels, x = np.repeat([0, 1], 20), rng.normal(size=(40, 3))
    E = np.array([[2.0, -1.0], [-0.5, 1.0]])
    changes = 0.01 * E[labels][:, labels].T[..., None] * x[:, None]
    changes = changes + 0.001 * rng.normal(size=changes.shape)
    own = changes[np.arange(40), np.arange(40)]
    one, other = (
        lesde.fit_impact(
            lesde.analysis.impact_from_changes(
                c * changes, labels, c * x, labels, 0.01, drawn_changes=c * own
            ),
            estimator=estimator,
        )
        for c in (1.0, factor)
    )
    for name in one.data_vars:
        np.testing.assert_allclose(other[name], one[name], rtol=1e-9, err_msg=str(name))


def test_rates_of_convergence_are_free_of_the_unit():
    t = np.linspace(0.2, 4, 30)
    for factor in (2.0**-1000, 2.0**1000):
        nc = xr.Dataset({"nc1": (("replicate", "time"), factor * np.exp(-t)[None])}, {"time": t})
        found = lesde.convergence(nc, threshold=0.1 * factor).sel(metric="nc1", clock="time")
        assert float(found.rate) == pytest.approx(1, rel=1e-9)
        assert float(found.time_to_threshold) == pytest.approx(np.log(10), rel=1e-9)
        assert float(found.amplitude_exponential) / factor == pytest.approx(1, rel=1e-9)
