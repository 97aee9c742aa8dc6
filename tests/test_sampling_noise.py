"""The maps on class means behind the sampling noise and the modified equation, and time derivatives."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import lesde
from lesde.laws.moments import (
    block_operator,
    difference,
    drift_derivative,
    modified_drift,
    modified_noise,
    noise_derivative,
    sampling_covariance,
    sampling_increment,
)
from tests.simulation.systems import MEANS, PAIRS, make_system, moments_by_class


def covariance_by_samples(system, samples, t):
    """C by going through all N samples that may be drawn."""
    labels = np.repeat(np.arange(3), system.counts)
    E = system.kernel(t)
    pushed = np.einsum("nij,nj->ni", system.H[labels], samples)
    kicks = (E[:, labels].T[:, :, None] * pushed[:, None]).reshape(len(samples), -1)
    return np.cov(kicks.T, bias=True)


@pytest.fixture(params=[PAIRS[i] for i in (1, 4, 10, 15)], ids=" ".join)
def case(request):
    system = make_system(*request.param)
    rng = np.random.default_rng(3)
    samples = np.repeat(MEANS, system.counts, axis=0) + rng.standard_normal(
        (system.counts.sum(), 3)
    )
    return system, samples


def test_sampling_covariance_is_that_of_the_drawn_sample(case):
    system, samples = case
    means, deviations = moments_by_class(samples[None], system.counts)
    ends = np.cumsum(system.counts)
    within = np.stack(
        [deviations[0, e - n : e].T @ deviations[0, e - n : e] / n for e, n in zip(ends, system.counts, strict=True)]
    )  # fmt: skip
    w = system.counts / system.counts.sum()
    C = sampling_covariance(system.kernel(0.3), w, system.H, means[0], within)
    np.testing.assert_allclose(C, covariance_by_samples(system, samples, 0.3), atol=1e-13)


def test_sampling_covariance_keeps_digits_beside_large_means(case):
    system, _ = case
    w = system.counts / system.counts.sum()
    one = make_system("identity", "balanced", "constant", "scalar")
    E = np.ones((3, 3))
    big = 1e9 * np.ones((3, 3))
    C = sampling_covariance(E, w, one.H, big, np.zeros((3, 3, 3)))
    assert np.abs(C).max() < 1e-3  # the second moments are 1e18, with a rounding of 100


def test_sampling_increment_has_the_covariance_with_one_normal_a_sample(case):
    """The map is linear in the normals: its matrix times its transpose is C, exactly."""
    system, samples = case
    counts, N = system.counts, int(system.counts.sum())
    means, deviations = moments_by_class(samples[None], counts)
    labels, roots = np.repeat(np.arange(3), counts), np.sqrt(counts / N)
    kicks = system.kernel(0.3)
    transform = system.model.transform
    drift = (kicks * roots**2) @ transform(means)
    xi = np.eye(N)  # one replicate for every normal that is 1
    by_class = (labels == np.arange(3)[:, None]) / np.sqrt(counts)[:, None]  # (class, sample)
    z = xi @ by_class.T
    d = np.einsum("rn,kn,ni->rki", xi, by_class, deviations[0])
    shared = (z @ roots)[:, None, None]
    for turn in (np.asarray, torch.tensor):
        matrix = turn(kicks * roots)
        result = sampling_increment(
            lambda x, matrix=matrix: matrix @ transform(x),
            turn(means), turn(drift), turn(z[..., None]), turn(shared), turn(d),
        )  # fmt: skip
        columns = np.asarray(result).reshape(N, 9)
        expected = covariance_by_samples(system, samples, 0.3)
        np.testing.assert_allclose(columns.T @ columns, expected, atol=1e-13)


def test_modified_maps_are_the_dense_matrices(case):
    system, _ = case
    h, t = 0.3, 0.4
    w = system.counts / system.counts.sum()
    G = system.kernel(t) * w
    slope = drift_derivative(lesde.derive(system.model).coefficients(), 0.0, 1.0)(np.array([t]))[0]
    M = system.drift_matrix(t)
    np.testing.assert_allclose(block_operator(G, system.H), M, atol=1e-14)
    step = 1e-5
    turned = (system.drift_matrix(t + step) - system.drift_matrix(t - step)) / (2 * step)
    np.testing.assert_allclose(block_operator(slope, system.H), turned, atol=1e-8)
    H = system.model.transform
    for turn in (np.asarray, torch.tensor):
        x, matrix, derivative = turn(MEANS), turn(G), turn(slope)

        def push(v, matrix=matrix):
            return matrix @ H(v)

        def turned_push(v, derivative=derivative):
            return derivative @ H(v)

        got = np.asarray(modified_drift(push, turned_push, x, h)).ravel()
        expected = (M - h / 2 * (M @ M + turned)) @ MEANS.ravel()
        np.testing.assert_allclose(got, expected, atol=1e-8)
        got = np.asarray(modified_noise(push, x, h)).ravel()
        np.testing.assert_allclose(got, (np.eye(9) - h / 2 * M) @ MEANS.ravel(), atol=1e-13)
        np.testing.assert_allclose(
            np.asarray(modified_drift(push, turned_push, x, 0.0)).ravel(), M @ MEANS.ravel(), atol=1e-13
        )  # fmt: skip


def test_derivatives_of_formulas_are_exact_and_of_callables_close():
    kernel = lesde.TwoLevel(alpha=lambda t: np.exp(-t), beta="t**2/(1+t)")
    noise = [["sin(t)", 0.5], [lambda t: 1 / (1 + t), "t*exp(t)"]]
    model = lesde.LESDE(kernel, 2, 2, [3, 5], noise=noise)
    coefficients = lesde.derive(model).coefficients()
    t = np.linspace(0, 2, 41)
    slope = drift_derivative(coefficients, 0.0, 2.0)(t)
    beta = (t**2 + 2 * t) / (1 + t) ** 2
    np.testing.assert_allclose(slope[:, 0, 1], 5 / 8 * beta, rtol=1e-14)
    np.testing.assert_allclose(slope[:, 0, 0], -3 / 8 * np.exp(-t), atol=1e-11)
    own = noise_derivative(coefficients, 0.0, 2.0)(t)
    expected = np.zeros((41, 2, 2, 2))
    expected[:, :, 0, 0] = np.cos(t)[:, None]
    expected[:, :, 1, 0] = -1 / (1 + t[:, None]) ** 2
    expected[:, :, 1, 1] = ((1 + t) * np.exp(t))[:, None]
    np.testing.assert_allclose(own, expected, atol=1e-11)
    steady = lesde.derive(lesde.LESDE(lesde.TwoLevel(1, 0), 2, 2)).coefficients()
    assert not noise_derivative(steady, 0.0, 1.0)(t).any()
    assert not drift_derivative(steady, 0.0, 1.0)(t).any()
    per_class = lesde.derive(model.replace(noise=["t**3", 2.0])).coefficients()
    got = noise_derivative(per_class, 0.0, 2.0)(t)
    np.testing.assert_allclose(got[:, 0], 3 * t[:, None, None] ** 2 * np.eye(2), rtol=1e-14)
    assert not got[:, 1].any()


@pytest.mark.parametrize(("start", "end"), [(0.0, 2.0), (1.0, 1.0 + 1e-3), (1.0, 1e4)])
def test_differences_stay_within_the_times_and_are_accurate(start, end):
    asked = []

    def function(t):
        asked.append((t.min(), t.max()))
        return np.log(1 + t)

    t = np.linspace(start, end, 101)
    slope = difference(function, "f", start, end)(t)
    # Rounding of the values over the spacing of the nodes, which is 1e-5 on the short interval.
    np.testing.assert_allclose(slope, 1 / (1 + t), rtol=1e-8, atol=2e-10)
    assert min(a for a, _ in asked) >= start
    assert max(b for _, b in asked) <= end


def test_jumps_have_no_derivative():
    slope = difference(lambda t: np.where(t < 1, 2.0, 3.0), "alpha", 0.0, 2.0)
    np.testing.assert_allclose(slope(np.array([0.5, 1.5])), 0.0, atol=1e-11)
    with pytest.raises(ValueError, match="function alpha has no usable derivative at t = 1"):
        slope(np.array([0.5, 1.0]))
