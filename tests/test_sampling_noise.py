"""The maps on class means behind the sampling noise and the modified equation, and time derivatives."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import lesde
from lesde.laws.rule import Transforms, drift, modified_drift, modified_noise, sampling_covariance
from lesde.laws.slopes import drift_derivative, noise_derivative
from tests.simulation.systems import MEANS, PAIRS, make_system


@pytest.fixture(params=[PAIRS[i] for i in (1, 4, 10, 15)], ids=" ".join)
def system(request):
    return make_system(*request.param)


def test_sampling_covariance_keeps_digits_beside_large_means():
    transforms = Transforms(
        make_system("identity", "balanced", "constant", "scalar").model.transform
    )
    E, w = torch.ones(3, 3, dtype=torch.float64), torch.full((3,), 1 / 3, dtype=torch.float64)
    C = sampling_covariance(transforms, E, w, 1e9 * E, torch.zeros(3, 3, 3, dtype=torch.float64))
    assert C.abs().max() < 1e-3  # the second moments are 1e18, with a rounding of 100


def test_modified_maps_are_the_dense_matrices(system):
    h, t = 0.3, 0.4
    w = system.counts / system.counts.sum()
    transforms = Transforms(system.model.transform)
    G = torch.tensor(system.kernel(t) * w)
    slope = drift_derivative(lesde.derive(system.model).coefficients())(np.array([t]))
    slope, x = torch.tensor(slope[0]), torch.tensor(MEANS)
    M = system.drift_matrix(t)
    np.testing.assert_allclose(transforms.blocks(G), M, atol=1e-14)
    step = 1e-5
    turned = (system.drift_matrix(t + step) - system.drift_matrix(t - step)) / (2 * step)
    np.testing.assert_allclose(transforms.blocks(slope), turned, atol=1e-8)

    def push(v):
        return drift(transforms, G, v)

    def turned_push(v):
        return drift(transforms, slope, v)

    expected = (M - h / 2 * (M @ M + turned)) @ MEANS.ravel()
    np.testing.assert_allclose(modified_drift(push, turned_push, x, h).ravel(), expected, atol=1e-8)
    expected = (np.eye(9) - h / 2 * M) @ MEANS.ravel()
    np.testing.assert_allclose(modified_noise(push, x, h).ravel(), expected, atol=1e-13)
    plain = modified_drift(push, turned_push, x, 0.0).ravel()
    np.testing.assert_allclose(plain, M @ MEANS.ravel(), atol=1e-13)


def test_derivatives_of_formulas_are_exact():
    kernel = lesde.TwoLevel(alpha="exp(-t)", beta="t**2/(1+t)")
    noise = [["sin(t)", 0.5], ["1/(1+t)", "t*exp(t)"]]
    model = lesde.LESDE(kernel, 2, 2, [3, 5], noise=noise)
    coefficients = lesde.derive(model).coefficients()
    t = np.linspace(0, 2, 41)
    slope = drift_derivative(coefficients)(t)
    beta = (t**2 + 2 * t) / (1 + t) ** 2
    np.testing.assert_allclose(slope[:, 0, 1], 5 / 8 * beta, rtol=1e-14)
    np.testing.assert_allclose(slope[:, 0, 0], -3 / 8 * np.exp(-t), rtol=1e-14)
    own = noise_derivative(coefficients)(t)
    expected = np.zeros((41, 2, 2, 2))
    expected[:, :, 0, 0] = np.cos(t)[:, None]
    expected[:, :, 1, 0] = -1 / (1 + t[:, None]) ** 2
    expected[:, :, 1, 1] = ((1 + t) * np.exp(t))[:, None]
    np.testing.assert_allclose(own, expected, rtol=1e-14)
    steady = lesde.derive(lesde.LESDE(lesde.TwoLevel(1, 0), 2, 2)).coefficients()
    assert not noise_derivative(steady)(t).any()
    assert not drift_derivative(steady)(t).any()
    per_class = lesde.derive(model.replace(noise=["t**3", 2.0])).coefficients()
    got = noise_derivative(per_class)(t)
    np.testing.assert_allclose(got[:, 0], 3 * t[:, None, None] ** 2 * np.eye(2), rtol=1e-14)
    assert not got[:, 1].any()


@pytest.mark.parametrize("opaque", ["kernel", "noise"])
def test_callables_have_no_derivative(opaque):
    kernel = lesde.TwoLevel(np.exp if opaque == "kernel" else "exp(t)", 0)
    model = lesde.LESDE(kernel, 2, 2, 5, noise=np.cosh if opaque == "noise" else 0.1)
    with pytest.raises(ValueError, match="the modified equation needs the derivative in time"):
        lesde.moments(model, [0, 1], np.eye(2), 0.1, "modified")
    engine = lesde.TorchSDE(noise="modified")
    with pytest.raises(ValueError, match="a Python callable does not have"):
        lesde.simulate(model, [0, 1], np.eye(2), 2, 0.1, engine, keep="statistics")
