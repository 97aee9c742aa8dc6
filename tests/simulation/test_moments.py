"""Moments of every engine against recursions and ODEs that do not use the package.

Null: the engine has the stated mean and covariance. Sample: R replicates. Tolerance: 5 standard errors of
the sample mean of the component (or product of components); up to a few thousand components are
looked at over the file, of which none is expected beyond 5 under the null (probability 6e-7 each).
"""

from __future__ import annotations

import numpy as np
import pytest

import lesde
from lesde import simulate
from tests.simulation.systems import (
    ALL,
    FEW,
    MEANS,
    PAIRS,
    make_system,
    moments_by_class,
    sde_reference,
    worst_covariance,
    worst_mean,
)

T = 1.0
R = 2048


def check(system, paths, mean, covariance, offsets=None):
    """Class means and deviations of the last saved time."""
    features = paths.features.isel(time=-1).values
    means, deviations = moments_by_class(features, system.counts)
    assert worst_mean(means, mean) < 5
    flat = means.reshape(len(means), -1)
    assert worst_covariance(flat, mean, covariance) < 5
    # A deviation about the empirical class mean has covariance (1 − 1/n) Σ T, and −Σ T/n with another.
    start = np.zeros_like(deviations[0]) if offsets is None else offsets
    own = deviations - start
    first = 0
    for k, n in enumerate(system.counts):
        rows = own[:, first : first + n]
        for i, j in ((0, 0), (0, n - 1)):
            share = (1.0 if i == j else 0.0) - 1 / n
            products = rows[:, i, :, None] * rows[:, j, None, :]
            assert worst_mean(products, share * system.Sigma[k] * T) < 5
            # and is independent of the class means
            crossed = flat[:, :, None] * rows[:, i, None, :]
            assert worst_mean(crossed, 0.0) < 5
        first += n


@pytest.mark.parametrize("case", PAIRS, ids=" ".join)
def test_exact_has_the_moments_of_the_sde(case):
    system = make_system(*case)
    paths = simulate(system.model, [0, 0.4, T], MEANS, R, engine="exact", seed=1)
    check(system, paths, *sde_reference(case, T))


@pytest.mark.parametrize("case", PAIRS, ids=" ".join)
def test_law_has_the_moments_of_the_sde(case):
    # The same reference for the law ties law and engines together, without Monte-Carlo error.
    system = make_system(*case)
    law = lesde.law(system.model, [0, 0.4, T], MEANS)
    mean, covariance = sde_reference(case, T)
    np.testing.assert_allclose(law["mean"].values[-1], mean, rtol=1e-7, atol=1e-9)
    size = mean.size
    got = law["covariance"].values[-1].reshape(size, size)
    np.testing.assert_allclose(got, covariance, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("case", FEW, ids=" ".join)
def test_torchsde_srk_has_the_moments_of_the_sde(case):
    # With dt = 0.05 the weak error of this second-order method is below 1e-3 of the standard
    # deviation of a class mean, a small part of a standard error at this R.
    system = make_system(*case)
    paths = simulate(
        system.model,
        [0, 0.4, T],
        MEANS,
        R // 2,
        engine=lesde.TorchSDE(method="srk", dt=0.05),
        seed=2,
    )
    check(system, paths, *sde_reference(case, T))


def euler_moments(system, means, h, steps):
    """Moments of the Euler scheme: those of the SGD recursion without its sampling noise."""
    mean, C = means.ravel(), np.zeros((means.size, means.size))
    for m in range(steps):
        A = np.eye(means.size) + h * system.drift_matrix(m * h)
        mean, C = A @ mean, A @ C @ A.T + h * system.mean_noise()
    return mean.reshape(means.shape), C


@pytest.mark.parametrize("method", ["euler", "milstein"])
@pytest.mark.parametrize("case", PAIRS[1::5], ids=" ".join)
def test_torchsde_euler_has_the_moments_of_its_own_recursion(case, method):
    system = make_system(*case)
    paths = simulate(
        system.model,
        [0, 0.4, T],
        MEANS,
        R // 2,
        engine=lesde.TorchSDE(method=method, dt=0.1),
        seed=3,
    )
    check(system, paths, *euler_moments(system, MEANS, 0.1, 10))


@pytest.mark.parametrize("case", PAIRS, ids=" ".join)
def test_sgd_has_the_derived_moments(case):
    system = make_system(*case)
    offsets = np.random.default_rng(0).standard_normal((int(system.counts.sum()), 3))
    _, offsets = moments_by_class(offsets[None], system.counts)
    offsets = offsets[0]
    initial = np.repeat(MEANS, system.counts, axis=0) + offsets
    h = 0.05
    paths = simulate(system.model, [0, 0.4, T], initial, R, learning_rate=h, seed=4)
    check(system, paths, *system.sgd_moments(MEANS, h, 20, offsets), offsets)


@pytest.mark.slow
@pytest.mark.parametrize("case", ALL, ids=" ".join)
def test_every_engine_in_every_case(case):
    system = make_system(*case)
    sde = sde_reference(case, T)
    times = [0, 0.4, T]
    srk = simulate(system.model, times, MEANS, 2 * R, engine=lesde.TorchSDE(method="srk", dt=0.02))
    check(system, srk, *sde)
    check(system, simulate(system.model, times, MEANS, 2 * R, engine="exact"), *sde)
    sgd = simulate(system.model, times, MEANS, 2 * R, learning_rate=0.02)
    check(system, sgd, *system.sgd_moments(MEANS, 0.02, 50))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("engine", ["exact", "torchsde", "sgd"])
def test_random_initial_means_are_standard_over_root_p(engine, dtype):
    system = make_system(*PAIRS[0])
    rate = None if engine == "exact" else 0.05
    paths = simulate(
        system.model, [0, 0.1], None, 4096, learning_rate=rate, engine=engine, dtype=dtype, seed=5
    )
    assert paths.features.dtype == dtype
    start = paths.features.isel(time=0).values
    means, deviations = moments_by_class(start, system.counts)
    assert np.abs(deviations).max() < 1e-6
    assert worst_mean(means, 0.0) < 5
    assert worst_covariance(means.reshape(4096, -1), np.zeros(9), np.eye(9) / 3) < 5
