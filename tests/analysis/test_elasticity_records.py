"""What `fit_elasticity` takes from the attributes of paths: transform, steps, and kind of kernel."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest

import lesde
from lesde import LESDE, ClassMatrix, FeatureKernel, TwoLevel, fit_elasticity, simulate
from lesde.analysis.elasticity.transitions import Clock, flow
from lesde.files import read, write
from tests.analysis.test_elasticity_paths import dataset

K = 3
TIMES = np.linspace(0.0, 2.0, 6)
QUIET = {"tail": False, "smoothing": None}
COUNTS = [4, 6, 5]


def model(transform="identity", kernel=None, noise=0.0, counts=COUNTS):
    return LESDE(kernel or TwoLevel(2.0, -0.5), K, K, counts, transform, noise)


def paths_of(system, **changes):
    """Without noise every replicate has its own start, so the fit is exact up to its scheme."""
    return simulate(
        system, TIMES, replicates=8, **{"engine": "exact", "dtype": "float64", **changes}
    )


def messages(call, *arguments, **keywords):
    """What a call warns of, and its result."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = call(*arguments, **keywords)
    return " ".join(str(entry.message) for entry in caught), result


@pytest.mark.parametrize("transform", ["identity", "logits", "matrix"])
def test_the_recorded_transform_is_the_default(transform):
    H = transform if transform != "matrix" else np.random.default_rng(1).normal(size=(K, K, K))
    paths = paths_of(model(H))
    said, fit = messages(fit_elasticity, paths, **QUIET)
    assert "transform" not in said
    assert fit.attrs["transform"] == transform
    np.testing.assert_allclose(fit.A, 2 * TIMES, atol=1e-7)
    np.testing.assert_allclose(fit.B, -0.5 * TIMES, atol=1e-7)
    said, same = messages(fit_elasticity, paths, H, **QUIET)
    assert "transform" not in said
    assert float(same.A[-1]) == float(fit.A[-1])


def test_a_transform_that_is_not_the_recorded_one_is_told():
    paths = paths_of(model("logits"))
    said, _ = messages(fit_elasticity, paths.isel(sample=[0, 4, 10]), "identity")
    assert "transform='identity' is not that of the model" in said
    assert "transform='logits' by their attributes" in said
    said, _ = messages(fit_elasticity, paths, np.eye(K), **QUIET)
    assert "is not that of the model that made these paths, transform='logits'" in said
    # The identity matrix is the I-model, by whatever name.
    said, _ = messages(fit_elasticity, paths_of(model()), np.eye(K), **QUIET)
    assert "transform" not in said


@pytest.mark.parametrize("attrs", [{}, {"model": "mlp"}, {"model": "[1]"}, {"model": 3}])
def test_without_a_record_the_transform_is_the_identity(attrs):
    paths = paths_of(model("logits")).drop_attrs().assign_attrs(attrs)
    said, fit = messages(fit_elasticity, paths, **QUIET)
    assert fit.attrs["transform"] == "identity"
    assert "transform" not in said


def test_a_recorded_transform_that_does_not_fit_is_refused():
    paths = paths_of(model("logits")).isel(feature=[0, 1])
    with pytest.raises(ValueError, match=r"transform='logits' needs one feature per class"):
        fit_elasticity(paths)
    assert fit_elasticity(paths, "identity", **QUIET).attrs["transform"] == "identity"


@pytest.mark.parametrize("estimator", ["likelihood", "averages"])
@pytest.mark.parametrize("method", ["euler", "milstein", "srk"])
@pytest.mark.parametrize("transform", ["identity", "logits"])
def test_integrated_paths_are_fitted_with_the_steps_of_their_scheme(method, transform, estimator):
    """Without noise the estimate is the truth to rounding; steps of 0.15 do not divide 0.4."""
    paths = paths_of(model(transform), engine=lesde.TorchSDE(method=method, dt=0.15))
    fit = fit_elasticity(paths, estimator=estimator, **QUIET)
    assert fit.attrs["scheme"] == "discrete"
    np.testing.assert_allclose(fit.alpha_raw, 2.0, atol=1e-7)
    np.testing.assert_allclose(fit.beta_raw, -0.5, atol=1e-7)
    smooth = fit_elasticity(paths, scheme="exponential", estimator=estimator, **QUIET)
    assert smooth.attrs["scheme"] == "exponential"
    assert (abs(smooth.alpha_raw - 2.0) > 1e-3).all()


def test_steps_of_several_learning_rates_and_of_one_of_them(tmp_path):
    """The step is the learning rate where no other was given."""
    paths = paths_of(model(), engine="torchsde", learning_rate=[0.2, 0.05, 0.1])
    write(paths, tmp_path / "paths.zarr")
    stored = read(tmp_path / "paths.zarr")
    fit = fit_elasticity(stored, **QUIET)
    np.testing.assert_allclose(fit.alpha_raw, 2.0, atol=1e-7)
    for part in (stored.isel(learning_rate=1), stored.sel(learning_rate=[0.1, 0.2])):
        np.testing.assert_allclose(fit_elasticity(part, **QUIET).alpha_raw, 2.0, atol=1e-7)
    said, lost = messages(
        fit_elasticity, stored.isel(learning_rate=0).drop_vars("learning_rate"), **QUIET
    )
    assert "no longer record the step or learning rate" in said
    assert lost.attrs["scheme"] == "exponential"
    # exp takes the growth of Euler's scheme with its rate too small by ½·step·rate, to first order.
    assert float(lost.A_minus_B[-1]) == pytest.approx(2.5 * 2 * (1 - 0.2 * 2.5 / 6), rel=0.02)
    given = paths_of(model(), engine=lesde.TorchSDE(dt=0.4), learning_rate=[0.2, 0.1])
    said, fit = messages(
        fit_elasticity, given.isel(learning_rate=0).drop_vars("learning_rate"), **QUIET
    )
    assert "learning rate" not in said
    np.testing.assert_allclose(fit.alpha_raw, 2.0, atol=1e-7)


def test_paths_in_continuous_time_are_fitted_so():
    assert fit_elasticity(paths_of(model()), **QUIET).attrs["scheme"] == "exponential"
    with pytest.raises(ValueError, match="attributes of an integration by engine='torchsde'"):
        fit_elasticity(paths_of(model()), scheme="discrete")


def test_steps_of_the_modified_equation():
    """Steps x ← x + dt (M − (h/2)M²) x made by hand, at two learning rates h and one dt."""
    E, w = np.array([[2.0, -0.5, -0.5], [-0.5, 2.0, -0.5], [-0.5, -0.5, 2.0]]), np.full(K, 1 / K)
    M, rates, dt = E * w, [0.2, 0.3], 0.1
    start = np.random.default_rng(0).standard_normal((8, K, 2))
    groups = []
    for h in rates:
        x, frames = start, [start]
        for _ in range(5):
            for _ in range(4):
                x = x + dt * (M @ x - h / 2 * M @ (M @ x))
            frames.append(x)
        groups.append(np.stack(frames, 1))
    paths = dataset(np.stack(groups), TIMES, leading=("learning_rate", "replicate"))
    paths = paths.assign_coords(learning_rate=rates).assign_attrs(
        engine="torchsde", method="euler", sde="modified", dt=[dt, dt]
    )
    fit = fit_elasticity(paths, **QUIET)
    np.testing.assert_allclose(fit.alpha_raw, 2.0, atol=1e-7)
    np.testing.assert_allclose(fit.beta_raw, -0.5, atol=1e-7)
    said, _ = messages(
        fit_elasticity, paths.isel(learning_rate=0).drop_vars("learning_rate"), **QUIET
    )
    assert "no longer record the step or learning rate" in said


@pytest.mark.parametrize("sde", ["sampling", "modified"])
@pytest.mark.parametrize("dt", [None, 0.05])
def test_paths_with_sampling_noise_are_fitted_without_bias(sde, dt):
    """Null: A = 2t and B = 0 at the last time, within 5 standard errors; 4096 replicates, h = 0.1."""
    start = np.random.default_rng(0).normal(size=(K, K))
    paths = simulate(
        model(kernel=TwoLevel(2.0, 0.0), noise=0.1, counts=50), np.linspace(0, 2, 11), start, 4096,
        learning_rate=0.1, engine=lesde.TorchSDE(dt=dt, noise=sde), keep="statistics", seed=5,
    )  # fmt: skip
    fit = fit_elasticity(paths, **QUIET)
    for name, truth in (("A", 4.0), ("B", 0.0)):
        assert abs(float(fit[name][-1]) - truth) < 5 * float(fit[f"{name}_se"][-1]), name
    if sde == "modified" or dt is None:  # exp is far off, so that the test can fail
        naive = fit_elasticity(paths, scheme="exponential", **QUIET)
        assert abs(float(naive.A[-1]) - 4.0) > 5 * float(naive.A_se[-1])


def test_flow_of_curved_steps_is_that_of_the_loop():
    """Ψ and its derivative by a complex step against m steps done one by one, and a central difference."""
    rng = np.random.default_rng(4)
    N, D = rng.normal(size=(2, 3, 3)), rng.normal(size=(2, 3, 3))
    clock = Clock(np.array([0.7, 1.3]), np.array([5, 8]), np.array([0.5, -0.8]))

    def loop(generator, i):
        h, c = clock.width[i] / clock.counts[i], clock.curvature[i]
        x = h * generator
        state, psi = np.eye(3), np.zeros((3, 3))
        for _ in range(clock.counts[i]):
            psi = psi + h * (np.eye(3) + c * x) @ state
            state = state + x @ state + c * x @ x @ state
        return psi

    psi = flow(N, clock)
    derivative = flow(N + 1e-30j * D, clock).imag / 1e-30
    for i in range(2):
        np.testing.assert_allclose(psi[i], loop(N[i], i), rtol=1e-12)
        slope = (loop(N[i] + 1e-5 * D[i], i) - loop(N[i] - 1e-5 * D[i], i)) / 2e-5
        np.testing.assert_allclose(derivative[i], slope, rtol=1e-6, atol=1e-7)


def test_a_kernel_of_the_features_is_told():
    settings = {"replicates": 8, "engine": lesde.TorchSDE(dt=0.2), "dtype": "float64"}
    local = model(kernel=FeatureKernel("2*s*exp(-r2/8) - 0.5"), noise=0.1)
    said, fit = messages(fit_elasticity, simulate(local, TIMES, **settings), **QUIET)
    assert "strength depends on the features" in said
    assert "linear model that comes closest" in said
    assert np.isfinite(fit.A).all()
    of_classes = model(kernel=FeatureKernel("2*s - 0.5*(1-s)"))
    said, fit = messages(fit_elasticity, simulate(of_classes, TIMES, **settings), **QUIET)
    assert "features" not in said
    np.testing.assert_allclose(fit.alpha_raw, 2.0, atol=1e-7)


def test_other_kernels_are_no_reason_to_warn():
    paths = paths_of(model(kernel=ClassMatrix(np.arange(9.0).reshape(3, 3) / 4)))
    said, fit = messages(fit_elasticity, paths, kernel="matrix", **QUIET)
    assert "features" not in said
    np.testing.assert_allclose(fit.E_raw[0], np.arange(9.0).reshape(3, 3) / 4, atol=1e-7)
    assert json.loads(paths.attrs["model"])["kernel"]["kind"] == "ClassMatrix"
    assert lesde.fit_elasticity is fit_elasticity
