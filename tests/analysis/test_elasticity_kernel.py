"""The circle closes: fit, take the kernel, solve and simulate with it, compare."""

from __future__ import annotations

import pickle
from itertools import pairwise

import numpy as np
import pytest
from scipy.integrate import quad

import lesde
from lesde import LESDE, ClassMatrix, TwoLevel
from lesde.analysis import fit_elasticity, fitted_kernel
from lesde.laws.transitions import transitions
from tests.analysis.test_elasticity_paths import dataset, projections, simulate_means, two_level

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
TIMES = np.linspace(0, 2, 9)


@pytest.fixture(scope="module")
def paths():
    K, counts = 3, np.array([10, 20, 15])
    rng = np.random.default_rng(0)
    means = simulate_means(
        two_level(K, lambda t: 2 / (1 + t), lambda t: -0.5 + 0 * t), projections("identity", K, 4),
        counts, rng.standard_normal((K, 4)), TIMES, 0.3, (2, 16), rng,
    )  # fmt: skip
    found = dataset(means, TIMES, counts, leading=("learning_rate", "replicate"))
    return found.assign_coords(learning_rate=[0.01, 0.1])


@pytest.mark.parametrize("kernel", ["two-level", "matrix"])
def test_kernel_integrates_to_the_fit(paths, kernel):
    fit = fit_elasticity(paths, kernel=kernel)
    found = fitted_kernel(fit.sel(learning_rate=0.1))
    assert isinstance(found, TwoLevel if kernel == "two-level" else ClassMatrix)
    entries = found.entries(3)
    at = fit.isel(learning_rate=1)
    for k, l in ((0, 0), (0, 1), (2, 1)):
        total = sum(
            quad(lambda t, k=k, l=l: entries(np.array([t]))[0, k, l], a, b)[0]
            for a, b in pairwise(TIMES)
        )
        name = ("A" if k == l else "B") if kernel == "two-level" else "E_integral"
        expected = at[name][-1] if kernel == "two-level" else at[name][-1, k, l]
        assert total == pytest.approx(float(expected), abs=1e-7)


@pytest.mark.parametrize("kernel", ["two-level", "matrix"])
def test_fit_simulate_compare(paths, kernel):
    """Paths made by the package with the fitted kernel and no noise are fitted with the same rates."""
    fit = fit_elasticity(paths, kernel=kernel).isel(learning_rate=0)
    model = LESDE(fitted_kernel(fit), 3, 4, [10, 20, 15], noise=0.0)
    steps = transitions(lesde.derive(model).coefficients(), TIMES)
    X = np.random.default_rng(1).standard_normal((8, 3, 4))
    frames = [X]
    for phi, _ in steps.in_classes():
        frames.append(np.einsum("kilj,rlj->rki", phi, frames[-1]))
    again = fit_elasticity(
        dataset(np.stack(frames, 1), TIMES, np.array([10, 20, 15])), kernel=kernel
    )
    for name in ("alpha_raw", "beta_raw") if kernel == "two-level" else ("E_raw",):
        np.testing.assert_allclose(again[name], fit[name], atol=1e-8)


def test_means_of_the_fitted_model_match_the_paths(paths):
    """Null: the fitted model sends the mean of the paths to where it went, within 5 standard errors."""
    one = paths.isel(learning_rate=0)
    model = LESDE(fitted_kernel(fit_elasticity(one)), 3, 4, [10, 20, 15], noise=0.3)
    means = (
        one.features.groupby("label")
        .mean("sample")
        .transpose("replicate", "time", "label", "feature")
        .values
    )
    X = means[0, 0]
    for phi, _ in transitions(lesde.derive(model).coefficients(), TIMES).in_classes():
        X = np.einsum("kilj,lj->ki", phi, X)
    error = means[:, -1].std(0) / np.sqrt(16)
    assert (np.abs(means[:, -1].mean(0) - X) < 5 * error).all()


def test_smooth_kernel_and_edges(paths):
    fit = fit_elasticity(paths).isel(learning_rate=0)
    smooth, raw = fitted_kernel(fit, smooth=True), fitted_kernel(fit)
    middle = fit.interval.values
    np.testing.assert_allclose(smooth.entries(3)(middle)[:, 0, 0], fit.alpha)
    np.testing.assert_allclose(raw.entries(3)(middle)[:, 0, 1], fit.beta_raw)
    # Right-continuous at saved times; the last time belongs to the last interval.
    np.testing.assert_allclose(
        raw.entries(3)(TIMES)[:, 0, 0], [*fit.alpha_raw.values, fit.alpha_raw[-1]]
    )
    with pytest.raises(ValueError, match=r"fitted from t = 0 to 2; it has no value at t = 2.5"):
        raw.entries(3)(np.array([1.0, 2.5]))


def test_one_kernel_at_a_time(paths):
    fit = fit_elasticity(paths)
    with pytest.raises(ValueError, match=r"has the dimension\(s\) learning_rate. Select one"):
        fitted_kernel(fit)
    with pytest.raises(ValueError, match=r"must be a dataset from lesde.fit_elasticity"):
        fitted_kernel(paths)
    with pytest.raises(TypeError, match=r"fit must be an xarray.Dataset"):
        fitted_kernel(3)
    alone = fitted_kernel(fit.sel(learning_rate=0.1))
    np.testing.assert_allclose(alone.entries(3)(TIMES[:2])[0, 0, 0], fit.alpha_raw[1, 0])


@pytest.mark.parametrize("kernel", ["two-level", "matrix"])
def test_a_fitted_kernel_is_a_plain_description(paths, kernel):
    """It prints its steps, compares and pickles, and goes back into every engine."""
    fit = fit_elasticity(paths.isel(learning_rate=0, time=slice(3)), kernel=kernel)
    found = fitted_kernel(fit)
    first = fit["alpha_raw" if kernel == "two-level" else "E_raw"].values.ravel()[0]
    assert f"{first:.4g} from t = 0, " in repr(found)
    again = pickle.loads(pickle.dumps(found))
    assert repr(again) == repr(found) == repr(fitted_kernel(fit))
    model = LESDE(again, 3, 4, [10, 20, 15], noise=0.0)
    start = np.random.default_rng(0).standard_normal((3, 4))
    ends = []
    for engine in ("exact", "torchsde", "sgd"):
        rate = {} if engine == "exact" else {"learning_rate": 0.002}
        simulated = lesde.simulate(
            model, TIMES[:3], start, 1, engine=engine, dtype="float64", **rate
        )
        assert "from t = 0" in simulated.attrs["model"]
        ends.append(simulated.features.isel(time=-1, replicate=0).groupby("label").mean().values)
    np.testing.assert_allclose(ends[1], ends[0], atol=0.01)
    assert np.isfinite(ends[2]).all()
