"""Strong and weak orders of the torchsde methods, by regression over step sizes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import lesde
from lesde import LESDE, ClassMatrix
from lesde.clocks import StepGrid
from lesde.processes.integration import integrate
from lesde.processes.process import BLOCK
from lesde.processes.torchsde import MeanSDE
from tests.simulation.systems import GivenIncrements, System

T = 2.0
# SRA1 is of strong order 1.5 in general. What it leaves out at that order needs a second derivative of
# the drift; for a drift linear in the features the first term left out is A²σ∫∫W ds ds, of mean zero
# and size dt^2.5 a step, which adds up to order 2.
STRONG = {"euler": 1.0, "milstein": 1.0, "srk": 2.0}
WEAK = {"euler": 1.0, "milstein": 1.0, "srk": 2.0}


def kernel(t):
    return np.array([[1.0 + 0.5 * np.sin(2 * t), -0.7], [0.4 * t, -0.9]])


MODEL = LESDE(ClassMatrix([["1+sin(2*t)/2", -0.7], ["0.4*t", -0.9]]), 2, 1, [2, 1], noise=0.5)
SYSTEM = System(MODEL, kernel, np.ones((2, 1, 1)), np.full((2, 1, 1), 0.25), np.array([2, 1]))
START = torch.tensor([1.0, -0.5], dtype=torch.float64)


def rows_of(values):
    """(…, replicate, class) as rows of blocks (…, block, class·replicate), padded with zeros."""
    missing = -values.shape[-2] % BLOCK
    padded = torch.nn.functional.pad(values, (0, 0, 0, missing))
    return padded.unflatten(-2, (-1, BLOCK)).transpose(-1, -2).flatten(-2)


def final_states(method, W, U, model=MODEL):
    """Class means (replicate, class) at T, driven by given increments (step, replicate, class)."""
    steps, replicates = W.shape[:2]
    grid = StepGrid.regular(np.array([0.0, T]), T / steps)
    assert len(grid.widths) == steps
    sde = make_sde(model, grid, method)
    sde.load(0, steps)
    increments = [rows_of(part).clone() for part in (W, U)]
    for part in increments:
        sde.colour(part)
    start = rows_of(START.expand(replicates, -1))
    state = integrate(sde, start, [0, steps], GivenIncrements(*increments), method)[-1]
    return state.unflatten(-1, (2, BLOCK)).transpose(-1, -2).flatten(0, 1)[:replicates]


def make_sde(model, grid, method):
    coefficients = lesde.derive(model).coefficients()

    def weights(times):
        return torch.from_numpy(coefficients.weights(times))

    return MeanSDE(model, weights, coefficients.noise, grid, method, torch.device("cpu"))


def slope_of(x, y):
    """Least-squares slope and its standard error."""
    x = x - x.mean()
    slope = (x * y).sum() / (x * x).sum()
    residual = y - y.mean() - slope * x
    return slope, math.sqrt((residual**2).sum() / (len(x) - 2) / (x * x).sum())


def brownian(steps, replicates, seed):
    g = torch.Generator().manual_seed(seed)
    z = torch.randn(2, steps, replicates, 2, generator=g, dtype=torch.float64) * math.sqrt(
        T / steps
    )
    return GivenIncrements(z[0], z[0] / 2 + z[1] / math.sqrt(12))


def test_coarsened_increments_describe_the_same_path():
    # Var U = 1/3 and Cov(W, U) = 1/2 in units of the step, for fine and coarse alike: R = 40,000.
    fine = brownian(8, 40_000, 0)
    for path, width in ((fine, T / 8), (fine.coarsen(4), T / 2)):
        W, U = (x[0, :, 0].numpy() / math.sqrt(width) for x in (path._W, path._U))
        for product, expected in ((W * W, 1), (W * U, 1 / 2), (U * U, 1 / 3)):
            assert abs(product.mean() - expected) < 5 * product.std() / 200
    # U is the integral of the path: for increments only in the first of two halves, W is 0 to c.
    W = torch.tensor([1.0, 0.0]).reshape(2, 1, 1)
    coarse = GivenIncrements(W, W / 2).coarsen(2)
    assert coarse._U.item() == pytest.approx((0.5 + 1.0) / 2)
    with pytest.raises(ValueError, match="factor must divide the 2 steps; got 3"):
        GivenIncrements(W, W).coarsen(3)


@pytest.mark.parametrize("method", STRONG)
def test_strong_order(method):
    # Root-mean-square distance on 256 coupled paths from srk with steps 8 times finer than the finest
    # here. Slope over five step sizes. Tolerance: 5 standard errors of the regression (they contain the
    # Monte-Carlo error, the paths being common to all steps) plus 0.05 for the terms of higher order.
    path = brownian(1024, 256, 1)
    reference = final_states("srk", path._W, path._U)
    factors = np.array([8, 16, 32, 64, 128])
    errors = []
    for factor in factors:
        coarse = path.coarsen(int(factor))
        difference = final_states(method, coarse._W, coarse._U) - reference
        errors.append(float((difference**2).sum(1).mean().sqrt()))
    slope, error = slope_of(np.log(factors), np.log(errors))
    assert error < 0.05
    assert abs(slope - STRONG[method]) < 5 * error + 0.05, (slope, error)


def moments_of_scheme(method, steps):
    """Exact mean and covariance of a scheme's final state.

    The scheme is affine in the start and the increments, so its covariance is the sum of outer
    products of its responses to every independent unit normal: no Monte-Carlo error.
    """
    size, root = 2, math.sqrt(T / steps)
    W = torch.zeros(steps, 1 + 2 * steps * size, size, dtype=torch.float64)
    U = torch.zeros_like(W)
    for m in range(steps):
        for c in range(size):
            first = 1 + 2 * (m * size + c)
            W[m, first, c], U[m, first, c] = root, root / 2
            U[m, first + 1, c] = root / math.sqrt(12)
    states = final_states(method, W, U)
    response = (states[1:] - states[0]).numpy()
    return states[0].numpy(), response.T @ response


@pytest.mark.parametrize("method", WEAK)
def test_weak_order(method):
    # Errors of mean and covariance of the class means against an ODE solver, over five step sizes;
    # they have no statistical error, so the tolerance is for the terms of higher order only.
    mean, covariance = SYSTEM.sde_moments(np.array([[1.0], [-0.5]]), T)
    steps = np.array([16, 24, 32, 48, 64])
    in_mean, in_covariance = [], []
    for n in steps:
        m, C = moments_of_scheme(method, int(n))
        in_mean.append(np.linalg.norm(m - mean.ravel()))
        in_covariance.append(np.linalg.norm(C - covariance))
    for errors in (in_mean, in_covariance):
        slope, _ = slope_of(np.log(T / steps), np.log(errors))
        assert slope == pytest.approx(WEAK[method], abs=0.15)


def test_euler_and_milstein_are_one_scheme_for_additive_noise():
    path = brownian(16, 8, 2)
    a, b = (final_states(method, path._W, path._U) for method in ("euler", "milstein"))
    torch.testing.assert_close(a, b, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("dt", [0.1, 0.3, 1 / 3, 0.07])
def test_steps_divide_every_saved_interval(dt):
    times = np.array([0.0, 0.1, 1.0, 1.3, 7.7])
    grid = StepGrid.regular(times, dt)
    assert (grid.widths[:] <= dt * (1 + 1e-9)).all()
    np.testing.assert_allclose(grid.starts[grid.saved[:-1]], times[:-1], atol=1e-12)
    ends = grid.starts[:] + grid.widths[:]
    np.testing.assert_allclose(ends[:-1], grid.starts[1:], atol=1e-12)
    assert ends[-1] == pytest.approx(7.7, abs=1e-12)


def test_an_interval_of_whole_steps_gets_no_extra_step():
    # 0.1, 0.2, … in floating point are off by rounding; none may cost a step.
    times = np.arange(0, 3001) * 0.1
    grid = StepGrid.regular(times, 0.05)
    assert (np.diff(grid.saved) == 2).all()
    assert StepGrid.regular(np.array([0.0, 3000.0]), 0.1).saved[-1] == 30000


def test_stretches_draw_one_stream():
    from lesde.processes.integration import StepIncrements
    from lesde.processes.process import BlockNoise

    def draws(lengths):
        path = StepIncrements([BlockNoise(0, 0, b, torch.device("cpu")) for b in (0, 1)], 5, True)
        first, result = 0, []
        for length in lengths:
            path.fill(first, np.linspace(0.5, 1, 6)[first : first + length])
            result += [torch.stack(path(first + m, return_U=True)) for m in range(length)]
            first += length
        return torch.stack(result)

    assert torch.equal(draws([6]), draws([2, 1, 3]))


def test_drift_is_only_known_at_the_stages():
    grid = StepGrid.regular(np.array([0.0, 1.0]), 0.5)
    sde = make_sde(MODEL, grid, "srk")
    sde.load(0, 2)
    found = sde.matrix(torch.tensor(1.75))
    np.testing.assert_allclose(found, kernel(0.875) * [2 / 3, 1 / 3] * 0.5, rtol=1e-12)
    with pytest.raises(KeyError):
        sde.matrix(torch.tensor(1.5))
