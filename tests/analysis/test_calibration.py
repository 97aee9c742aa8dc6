"""Maximum likelihood for a model's free names: against routes that share no code with it."""

from __future__ import annotations

import json

import numpy as np
import pytest
import sympy as sp
import xarray as xr
from scipy.optimize import minimize

import lesde
from lesde import LESDE, LabelNoise, TwoLevel
from lesde.analysis.calibration import inverse
from lesde.laws.transitions import transitions

AB = {"a": None, "b": None}
TRUTH = {"a": 2.0, "b": -0.5}


def draw(
    model: LESDE, times: np.ndarray, start: np.ndarray, replicates: int, seed: int
) -> xr.Dataset:
    """Class means from the exact law, as statistics."""
    rng = np.random.default_rng(seed)
    state = np.broadcast_to(start, (replicates, *start.shape))
    rows = [state]
    steps = transitions(lesde.derive(model).coefficients(), np.asarray(times, float))
    for phi, C in steps.in_classes():
        noise = rng.multivariate_normal(np.zeros(start.size), C.reshape(start.size, -1), replicates)
        state = np.einsum("kilj,rlj->rki", phi, state) + noise.reshape(state.shape)
        rows.append(state)
    return xr.Dataset(
        {"mean": (("replicate", "time", "class", "feature"), np.stack(rows, 1))},
        {"time": times, "count": ("class", model.counts)},
        {"keep": "statistics"},
    )


@pytest.mark.parametrize("noise", ["estimate", "model"])
def test_estimates_are_those_of_the_closed_form(noise):
    """I-model, constant kernel: contrasts and grand mean are independent Ornstein-Uhlenbeck processes.

    Their likelihood in closed form is maximised without gradients; standard errors from its
    differences.
    """
    K, p, n, sigma, gap = 3, 2, 20, 0.1, 0.5
    model = LESDE(TwoLevel("a", "b", AB), K, p, n, noise=sigma)
    times = gap * np.arange(6)
    start = np.random.default_rng(1).normal(size=(K, p)) * 0.3
    paths = draw(model.substitute(**TRUTH), times, start, 8, seed=0)
    fit = lesde.calibrate(paths, model, {"a": 0.0, "b": 0.0}, noise=noise)

    x = paths["mean"].values
    grand = np.sqrt(K) * x.mean(2)
    contrasts = x - x.mean(2, keepdims=True)

    def minus_log_likelihood(point):
        a, b, log_s = point
        total = 0.0
        for values, rate, count in (
            (grand, (a + (K - 1) * b) / K, grand[:, 1:].size),
            (contrasts, (a - b) / K, contrasts[:, 1:].size * (K - 1) // K),
        ):
            variance = np.exp(2 * log_s) * sigma**2 / n * np.expm1(2 * rate * gap) / (2 * rate)
            error = values[:, 1:] - np.exp(rate * gap) * values[:, :-1]
            total += (error**2).sum() / variance + count * np.log(2 * np.pi * variance)
        return total / 2

    free = 3 if noise == "estimate" else 2

    def objective(point):
        return minus_log_likelihood(np.append(point, 0.0)[:3])

    options = {"xatol": 1e-9, "fatol": 1e-10, "maxiter": 4000, "maxfev": 4000}
    first = np.array([2.0, -0.5, 0.0])[:free]
    best = minimize(objective, first, method="Nelder-Mead", options=options)
    h = np.array([1e-3, 1e-3, 1e-3])[:free]
    hessian = np.empty((free, free))
    for i in range(free):
        for j in range(free):
            e, f = h * (np.arange(free) == i), h * (np.arange(free) == j)
            hessian[i, j] = (
                objective(best.x + e + f)
                - objective(best.x + e - f)
                - objective(best.x - e + f)
                + objective(best.x - e - f)
            ) / (4 * h[i] * h[j])
    covariance = np.linalg.inv(hessian)
    error = fit.standard_error.values
    np.testing.assert_allclose(fit.estimate, best.x[:2], atol=1e-3 * error.min())
    np.testing.assert_allclose(fit.covariance, covariance[:2, :2], rtol=1e-3)
    np.testing.assert_allclose(error, np.sqrt(np.diag(covariance))[:2], rtol=1e-3)
    assert float(fit.log_likelihood) == pytest.approx(-best.fun, abs=1e-5)
    assert float(fit.aic) == pytest.approx(2 * free + 2 * best.fun, abs=1e-5)
    scale = np.exp(best.x[2]) if noise == "estimate" else 1.0
    assert float(fit.noise_scale) == pytest.approx(scale, rel=1e-5)
    if noise == "estimate":
        wanted = scale * np.sqrt(covariance[2, 2])
        assert float(fit.noise_scale_error) == pytest.approx(wanted, rel=1e-3)
    else:
        assert float(fit.noise_scale_error) == 0.0
    z = 1.959963984540054
    np.testing.assert_allclose(fit.upper - fit.estimate, z * error, rtol=1e-12)
    np.testing.assert_allclose(fit.estimate - fit.lower, z * error, rtol=1e-12)
    assert bool(fit.converged)
    assert fit.parameter.values.tolist() == ["a", "b"]
    assert fit.attrs["transitions"] == 40
    assert json.loads(fit.attrs["model"])["kernel"]["alpha"] == "a"


def coverage(model, truth, start, times, means, data_sets, replicates=4):
    """Errors in standard errors (data set, parameter), and whether 95 % intervals hold the truth."""
    filled = model.substitute(**truth)
    z = []
    for seed in range(data_sets):
        fit = lesde.calibrate(draw(filled, times, means, replicates, seed), model, start)
        assert bool(fit.converged)
        wanted = np.array([truth[name] for name in fit.parameter.values])
        z.append((fit.estimate.values - wanted) / fit.standard_error.values)
    return np.array(z)


def assert_calibrated(z):
    """Null: z standard normal. 5 standard errors: of a mean, and of a binomial count at 95 %."""
    n = len(z)
    assert (np.abs(z.mean(0)) < 5 / np.sqrt(n)).all()
    held = (np.abs(z) < 1.959964).sum(0)
    assert (np.abs(held - 0.95 * n) < 5 * np.sqrt(n * 0.95 * 0.05)).all()


CONSTANT = (
    LESDE(TwoLevel("a", "b", AB), 2, 2, 10, noise=0.3),
    TRUTH,
    {"a": 1.5, "b": 0.0},
    np.linspace(0, 2, 5),
    np.array([[1.0, 0.0], [0.0, 0.5]]),
)


def test_intervals_hold_the_truth_and_estimates_have_no_bias():
    """20 data sets of 16 transitions of 4 numbers."""
    assert_calibrated(coverage(*CONSTANT, data_sets=20))


@pytest.mark.slow
def test_intervals_hold_the_truth_at_the_level_they_say():
    """200 data sets: coverage within 0.95 ± 0.077, means within 0.35 standard errors."""
    assert_calibrated(coverage(*CONSTANT, data_sets=200))


@pytest.mark.slow
def test_intervals_of_a_power_law():
    """200 data sets of a kernel in time with three names, L-model."""
    kernel = TwoLevel("a/(1+t)**r", "b", {"a": None, "b": None, "r": None})
    model = LESDE(kernel, 4, 4, 10, "logits", noise=0.3)
    means = np.random.default_rng(3).normal(size=(4, 4))
    truth = {"a": 2.0, "b": -0.5, "r": 0.7}
    start = {"a": 1.5, "b": 0.0, "r": 0.5}
    z = coverage(model, truth, start, np.linspace(0, 3, 7), means, data_sets=200, replicates=16)
    assert_calibrated(z)


def test_the_scale_of_the_noise_is_found():
    """σ is 0.3, the model says 0.1: s = 3 within 5 standard errors of 0.7 %."""
    model, truth, start, times, means = CONSTANT
    paths = draw(model.substitute(**truth), times, means, 600, seed=1)
    fit = lesde.calibrate(paths, model.replace(noise=0.1), start)
    assert float(fit.noise_scale_error) == pytest.approx(3 / np.sqrt(2 * 600 * 4 * 4), rel=0.05)
    assert abs(float(fit.noise_scale) - 3) < 5 * float(fit.noise_scale_error)
    wrong = lesde.calibrate(paths, model.replace(noise=0.1), start, noise="model")
    assert float(wrong.standard_error[0]) < 0.4 * float(fit.standard_error[0])
    assert float(wrong.aic) > float(fit.aic)


def test_features_and_their_statistics_give_the_same():
    model = LESDE(TwoLevel("a/(1+t)", "b", AB), 3, 2, [4, 9, 6], noise=[0.1, 0.2, 0.3])
    start = {"a": 1.0, "b": 0.0}
    settings = {"initial": np.eye(3)[:, :2], "replicates": 16, "dtype": "float64", "seed": 2}
    truth = model.substitute(**TRUTH)
    paths = lesde.simulate(truth, [0, 0.5, 1, 2], **settings)
    fit = lesde.calibrate(paths, model, start)
    short = lesde.simulate(truth, [0, 0.5, 1, 2], keep="statistics", **settings)
    other = lesde.calibrate(short, model, start)
    np.testing.assert_allclose(fit.estimate, other.estimate, atol=1e-5)
    z = (fit.estimate.values - [2.0, -0.5]) / fit.standard_error.values
    assert (np.abs(z) < 5).all()
    back = model.substitute(**fit.estimate.to_series())
    assert back.free_parameters == ()
    np.testing.assert_allclose(
        back.entries(np.array([0.0]))[0, 0, :2], fit.estimate.values, rtol=1e-12
    )


def test_names_of_label_noise_and_of_the_noise_are_found():
    kernel = LabelNoise(TwoLevel(2, "b", {"b": None}), sp.Symbol("q"))
    model = LESDE(kernel, 3, 3, 10, noise="s*exp(-d*t)", parameters={"s": None, "d": None})
    truth = {"b": -0.5, "q": 0.2, "s": 0.3, "d": 0.5}
    times = np.linspace(0, 2, 6)
    paths = draw(model.substitute(**truth), times, np.eye(3), 100, seed=4)
    start = {"b": 0.0, "q": 0.1, "s": 0.1, "d": 0.0}
    fit = lesde.calibrate(paths, model, start, noise="model")
    wanted = [truth[name] for name in fit.parameter.values]
    assert bool(fit.converged)
    assert (np.abs(fit.estimate - wanted) < 5 * fit.standard_error).all()
    assert (fit.standard_error < 0.1).all()


def test_a_start_far_away_leads_to_the_same_place():
    """Steps to where the model has no law (noise below zero, growth that overflows) are turned back."""
    model = LESDE(TwoLevel("a", "b", AB), 2, 2, 10, noise="s", parameters={"s": None})
    paths = draw(model.substitute(**TRUTH, s=0.3), np.linspace(0, 2, 5), np.eye(2), 20, seed=5)
    near = lesde.calibrate(paths, model, {**TRUTH, "s": 0.3}, noise="model")
    far = lesde.calibrate(paths, model, {"a": 9.0, "b": 4.0, "s": 3.0}, noise="model")
    assert bool(far.converged)
    np.testing.assert_allclose(
        far.estimate, near.estimate, atol=1e-3 * float(near.standard_error.min())
    )


def small(kernel=None):
    model = LESDE(kernel or TwoLevel("a", "b", AB), 2, 2, 10, noise=0.3)
    names = {"a": 2.0, "b": -0.5, "c": 0.1}
    truth = model.substitute(**{n: names[n] for n in model.free_parameters})
    return model, draw(truth, np.linspace(0, 2, 5), np.eye(2), 20, seed=6)


@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        (
            TwoLevel("a + c", "b", {**AB, "c": None}),
            r"the paths do not determine a and c: .*model\.substitute\(a=\.\.\.\)",
        ),
        (
            TwoLevel("a", "b*max(t - 5, 0)", AB),
            r"the paths do not determine b: .*model\.substitute\(b=\.\.\.\)",
        ),
    ],
)
def test_what_the_paths_do_not_tell_is_named(kernel, message):
    model, paths = small(kernel)
    with pytest.raises(ValueError, match=message):
        lesde.calibrate(paths, model, dict.fromkeys(model.free_parameters, 0.5))


def test_the_size_of_the_noise_twice_is_named():
    model, paths = small()
    doubled = model.replace(noise="s", parameters={"s": None})
    with pytest.raises(ValueError, match=r"do not determine s and noise_scale.*noise=\"model\""):
        lesde.calibrate(paths, doubled, {"a": 1, "b": 0, "s": 0.2})


@pytest.mark.parametrize(
    ("start", "error", "message"),
    [
        ({"a": 1.0}, ValueError, r"start must have a value for every free name.*got \{'a': 1.0\}"),
        ({"a": 1, "b": 1, "c": 1}, ValueError, r"free name of the model \(a, b\) and for no other"),
        ({"a": 1, "b": "x"}, TypeError, r"start\['b'\] must be a real number"),
        ({"a": 1, "b": np.inf}, ValueError, r"start\['b'\] must be a finite number"),
        ([1, 2], TypeError, r"start must be a mapping of names"),
        ({"a": 1e5, "b": 0}, lesde.Diverged, "weaken the kernel"),
    ],
)
def test_bad_starts(start, error, message):
    model, paths = small()
    with pytest.raises(error, match=message):
        lesde.calibrate(paths, model, start)


def test_bad_arguments():
    model, paths = small()
    start = {"a": 1.0, "b": 0.0}
    with pytest.raises(ValueError, match="model has no free names to calibrate"):
        lesde.calibrate(paths, model.substitute(**start), {})
    with pytest.raises(TypeError, match=r"model must be a lesde\.LESDE"):
        lesde.calibrate(paths, model.kernel, start)
    with pytest.raises(TypeError, match=r"paths must be an xarray\.Dataset"):
        lesde.calibrate(3, model, start)
    with pytest.raises(ValueError, match=r"noise must be one of 'estimate', 'model'; got 0\.1"):
        lesde.calibrate(paths, model, start, noise=0.1)
    with pytest.raises(ValueError, match=r"confidence must be a finite number in \(0, 1\)"):
        lesde.calibrate(paths, model, start, confidence=95)
    with pytest.raises(
        ValueError, match=r"2 classes of \[11, 11\] samples .* paths have 2 of \[10, 10\]"
    ):
        lesde.calibrate(paths, model.replace(n_per_class=11), start)
    both = xr.concat([paths, paths], xr.Variable("learning_rate", [0.1, 0.2]), data_vars="minimal")
    both = both.assign(mean=paths["mean"].expand_dims(learning_rate=2))
    with pytest.raises(
        ValueError, match=r"one set of replicates.*learning_rate.*isel\(learning_rate=0\)"
    ):
        lesde.calibrate(both, model, start)
    with pytest.raises(ValueError, match="noise must move the class means in every direction"):
        lesde.calibrate(paths, model.replace(noise=0.0), start)
    features = LESDE(lesde.FeatureKernel("exp(-r2)"), 2, 2, 10)
    with pytest.raises(ValueError, match=r"no free names|classes and time"):
        lesde.calibrate(paths, features, start)


def test_a_search_that_is_cut_short_says_so(monkeypatch):
    monkeypatch.setattr("lesde.analysis.calibration.ITERATIONS", 1)
    model, paths = small()
    with pytest.warns(UserWarning, match=r"did not reach a maximum .*a = .*start elsewhere"):
        fit = lesde.calibrate(paths, model, {"a": 30.0, "b": -20.0})
    assert not bool(fit.converged)


def test_inverse_does_not_mind_units():
    matrix = np.array([[2.0, 1e-9], [1e-9, 3e-18]])
    np.testing.assert_allclose(inverse(matrix) @ matrix, np.eye(2), atol=1e-7)
    assert np.isnan(inverse(np.array([[1.0, 2.0], [2.0, 1.0]]))).all()


def test_too_few_numbers_and_no_noise_are_told():
    model = LESDE(TwoLevel("a", "b", AB), 2, 1, 10, noise=0.3)
    truth = model.substitute(a=2.0, b=-0.5)
    start = {"a": 1.0, "b": 0.0}
    few = lesde.simulate(truth, [0, 1], [[1.0], [0.0]], 1)
    with pytest.raises(ValueError, match="paths hold 2 numbers after the first time, too few"):
        lesde.calibrate(few, model, start)
    still = lesde.simulate(truth, [0, 1, 2], [[1.0], [0.5]], 8) * 0.0
    with pytest.raises(ValueError, match=r"without any noise.*noise='model'"):
        lesde.calibrate(still, model, start)


def test_rounding_of_the_paths_is_told():
    """float32 class means near 10⁴ are off by about 10⁻³, noise moves them by less."""
    model = LESDE(TwoLevel("a", "b", AB), 2, 2, 10, noise=0.01)
    paths = draw(model.substitute(a=0.1, b=0.1), np.linspace(0, 2, 5), 1e4 * np.eye(2), 20, seed=7)
    lesde.calibrate(paths, model, {"a": 0.1, "b": 0.1})  # in float64 nothing is said
    with pytest.warns(UserWarning, match="class means are rounded to about .*dtype float64"):
        lesde.calibrate(paths.astype("float32"), model, {"a": 0.1, "b": 0.1})
