"""Processes that carry every sample: feature kernels, and their limit of a class kernel."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import lesde
from lesde import simulate
from lesde.model.lesde import Initial, read_initial
from lesde.processes.integration import integrate
from lesde.processes.particles import IntegratedParticles, ParticleSGD
from tests.simulation.systems import MATRICES, MEANS, GivenIncrements
from tests.simulation.test_orders import slope_of

COUNTS = [3, 5, 4]
TIMES = np.array([0.0, 0.2, 0.5])
SETTINGS = {"n_classes": 3, "n_features": 3, "n_per_class": COUNTS, "noise": [0.3, 0.5, 0.2]}


def run(model, engine, sde="plain", method="euler", rate=0.05, replicates=40):
    """Paths by the processes that carry every sample."""
    start = Initial(MEANS, None)
    process = (
        ParticleSGD(model, start, "sgd")
        if engine == "sgd"
        else IntegratedParticles(model, start, method, rate, sde)
    )
    settings = {"learning_rate": rate, "seed": 3, "dtype": "float64"}
    return simulate(process, TIMES, replicates=replicates, **settings).features.values


@pytest.mark.parametrize("transform", ["identity", "logits", "matrix"])
@pytest.mark.parametrize(
    ("engine", "sde", "method"),
    [
        ("torchsde", "plain", "euler"),
        ("torchsde", "plain", "srk"),
        ("torchsde", "sampling", "euler"),
        ("sgd", "plain", "euler"),
    ],
)
def test_with_pairs_and_without_they_agree(engine, sde, method, transform):
    # The tiles are made to be used by a term that vanishes without the formula knowing it.
    H = MATRICES if transform == "matrix" else transform
    formula = "s*2/(1+t) - 0.7*(1-s) + r2*(sin(t)**2 + cos(t)**2 - 1)*1e-3"
    features = lesde.LESDE(lesde.FeatureKernel(formula), transform=H, **SETTINGS)
    kernel = lesde.FeatureKernel("s*2/(1+t) - 0.7*(1-s)")  # without pairs
    classes = lesde.LESDE(kernel, transform=H, **SETTINGS)
    ours = run(features, engine, sde, method)
    theirs = run(classes, engine, sde, method)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-14 * np.abs(theirs).max() * 10)


def test_class_kernels_by_samples_and_by_class_means_have_one_law():
    # Euler of every sample against Euler of the class means with deviations drawn at the saved times:
    # means, covariances of two samples of one class and across classes, R = 6,000, 5 standard errors.
    model = lesde.LESDE(lesde.TwoLevel("2/(1+t)", -0.7), transform="logits", **SETTINGS)
    kernel = lesde.FeatureKernel("s*2/(1+t) - 0.7*(1-s)")
    slow = run(model.replace(kernel=kernel), "torchsde", replicates=6000)
    fast = simulate(
        model, TIMES, MEANS, 6000, engine=lesde.TorchSDE(dt=0.05), dtype="float64"
    ).features.values
    pairs = [(0, 0, 0, 0), (0, 0, 1, 0), (0, 1, 4, 1), (5, 2, 5, 2), (3, 0, 11, 1)]
    for index in (1, 2):
        for x, y in ((slow[:, index], fast[:, index]),):
            error = np.sqrt((x.var(0) + y.var(0)) / 6000)
            assert (np.abs(x.mean(0) - y.mean(0)) < 5 * error).all()
            for i, a, j, b in pairs:
                products = [
                    (z[:, i, a] - z[:, i, a].mean()) * (z[:, j, b] - z[:, j, b].mean())
                    for z in (x, y)
                ]
                error = math.hypot(*(product.std() for product in products)) / math.sqrt(6000)
                assert abs(products[0].mean() - products[1].mean()) < 5 * error


KERNEL = "1.5*s*exp(-r2/2) - 0.8*(1-s)/(1+r2) + 0.2*c*sin(2*t)"


class GivenPath:
    """Normals of the steps of a given Brownian path, as a process asks its random numbers for them."""

    def __init__(self, W, U, width, with_integral):
        # W = √width z and U/width = √width (z/2 + z'/√12), each (step, replicate, sample·feature).
        z = W / math.sqrt(width)
        other = math.sqrt(12) * (U / math.sqrt(width) - z / 2)
        self.normals = iter(torch.stack([z, other], 1).flatten(0, 1) if with_integral else z)
        self.replicates, self.wanted = W.shape[1], W.shape[1]
        self.dtype, self.device = W.dtype, W.device

    def stream(self, name):
        return self

    def normal(self, *shape):
        return next(self.normals).reshape(shape)


START = np.array([[0.6, 0.1], [0.5, -0.2], [-0.4, 0.3], [-0.2, -0.5]])


def final_states(method, W, U):
    """Samples at T = 1 driven by given increments (step, replicate, sample·feature)."""
    model = lesde.LESDE(lesde.FeatureKernel(KERNEL), 2, 2, 2, noise="0.4+0.2*t")
    width = 1 / len(W)
    process = IntegratedParticles(model, read_initial(model, START, 32), method, width, "plain")
    process = process.prepare(np.array([0.0, 1.0]), False)
    rng = GivenPath(W, U, width, method == "srk")
    state = process.start(rng, 32)
    return process.observe(rng, process.advance(rng, state, 0.0, 1.0))["features"].flatten(1)


class ByHand:
    """The same SDE for torchsde, in step time, written out."""

    noise_type, sde_type = "additive", "ito"

    def __init__(self, steps):
        self.width = 1 / steps

    def f(self, t, y):
        x, time = y.reshape(-1, 4, 2), float(t) * self.width
        r2 = (x[:, :, None] - x[:, None]).square().sum(-1)
        norms = x.norm(dim=-1)
        c = x @ x.mT / (norms[:, :, None] * norms[:, None])
        same = torch.block_diag(torch.ones(2, 2), torch.ones(2, 2)).to(x)
        kappa = 1.5 * same * torch.exp(-r2 / 2) - 0.8 * (1 - same) / (1 + r2)
        kappa = kappa + 0.2 * c * math.sin(2 * time)
        return (kappa @ x / 4).reshape(y.shape) * self.width

    def g_prod(self, t, y, v):
        return v * (0.4 + 0.2 * float(t) * self.width)


@pytest.mark.parametrize("method", ["euler", "milstein", "srk"])
def test_steps_are_those_of_torchsde(method):
    g = torch.Generator().manual_seed(4)
    z = torch.randn(2, 10, 32, 8, generator=g, dtype=torch.float64) / math.sqrt(10)
    W, U = z[0], z[0] / 2 + z[1] / math.sqrt(12)
    start = torch.tensor(START).reshape(1, -1).expand(32, -1)
    expected = integrate(ByHand(10), start, [0, 10], GivenIncrements(W, U), method)[-1]
    torch.testing.assert_close(final_states(method, W, U), expected, rtol=1e-12, atol=1e-13)


@pytest.fixture(scope="module")
def fine_path():
    """Increments of 1,024 steps for 32 paths of 8 numbers, and the final states that they lead to."""
    g = torch.Generator().manual_seed(2)
    z = torch.randn(2, 1024, 32, 8, generator=g, dtype=torch.float64) / math.sqrt(1024)
    W, U = z[0], z[0] / 2 + z[1] / math.sqrt(12)
    return GivenIncrements(W, U), final_states("srk", W, U)


@pytest.mark.parametrize(("method", "order"), [("euler", 1.0), ("srk", 1.5)])
def test_strong_order_for_a_kernel_of_the_features(fine_path, method, order):
    # Additive noise: 1 and, for SRA1 with a drift that is not linear, 1.5. Slope over five step sizes,
    # 5 standard errors of the regression plus 0.12 for the terms of higher order.
    path, reference = fine_path
    factors = np.array([16, 32, 64, 128, 256])
    errors = []
    for factor in factors:
        coarse = path.coarsen(int(factor))
        difference = final_states(method, coarse._W, coarse._U) - reference
        errors.append(float((difference**2).mean().sqrt()))
    slope, error = slope_of(np.log(factors), np.log(errors))
    assert abs(slope - order) < 5 * error + 0.12, (slope, error)


def naive_strength(x, y, same, t):
    r2, c = ((x - y) ** 2).sum(), x @ y / np.sqrt((x @ x) * (y @ y))
    return 1.5 * same * np.exp(-r2 / 2) - 0.8 * (1 - same) / (1 + r2) + 0.2 * c * np.sin(2 * t)


@pytest.mark.parametrize("run_by", ["sgd", "sampling"])
def test_one_step_has_the_moments_of_the_rule(run_by):
    # One iteration from given samples, against the average over all N drawn samples written out here:
    # mean h b, covariance hσ² + h² C, for all pairs of coordinates; R = 20,000, 5 standard errors.
    h, R, p = 0.2, 20_000, 2
    counts, labels = [2, 3], np.array([0, 0, 1, 1, 1])
    model = lesde.LESDE(lesde.FeatureKernel(KERNEL), 2, p, counts, noise=[0.1, 0.2])
    start = np.random.default_rng(3).standard_normal((5, p))
    settings = (
        {"engine": "sgd"} if run_by == "sgd" else {"engine": lesde.TorchSDE(noise="sampling")}
    )
    paths = simulate(model, [1.0, 1.2], start, R, h, dtype="float64", **settings)
    moved = (paths.features.values[:, 1] - start).reshape(R, -1)
    kicks = np.array(
        [
            [
                naive_strength(start[i], start[j], labels[i] == labels[j], 1.0) * start[j]
                for i in range(5)
            ]
            for j in range(5)
        ]
    ).reshape(5, -1)
    mean = h * kicks.mean(0)
    own = h * np.repeat(np.array([0.1, 0.2])[labels] ** 2, p)
    covariance = h**2 * np.cov(kicks.T, bias=True) + np.diag(own)
    assert (np.abs(moved.mean(0) - mean) < 5 * np.sqrt(np.diag(covariance) / R)).all()
    products = (moved - mean)[:, :, None] * (moved - mean)[:, None, :]
    error = products.std(0) / np.sqrt(R)
    assert (np.abs(products.mean(0) - covariance) < 5 * error).all()


@pytest.mark.parametrize("keep", ["features", "statistics"])
@pytest.mark.parametrize(
    "settings",
    [
        {"engine": "sgd", "learning_rate": 0.05},
        {"engine": lesde.TorchSDE(dt=0.05)},
        {"engine": lesde.TorchSDE(noise="sampling"), "learning_rate": 0.05},
    ],
    ids=["sgd", "torchsde", "sampling"],
)
@pytest.mark.parametrize(
    ("kernel", "counts"), [("pairs", [30, 20, 10]), ("pairs", [211, 101, 7]), ("g", [211, 101, 7])]
)
def test_blocks_threads_and_memory_change_nothing(settings, keep, kernel, counts):
    kernel = lesde.FeatureKernel(KERNEL if kernel == "pairs" else "s*(1 + t*g) - c/2")
    model = lesde.LESDE(kernel, 3, 3, counts, noise=0.2)

    def values(replicates=64, **changes):
        paths = simulate(model, TIMES / 2, MEANS, replicates, keep=keep, **settings, **changes)
        names = ["features"] if keep == "features" else ["mean", "within", "reach"]
        shape = (replicates, len(TIMES), -1)
        return np.nan_to_num(
            np.concatenate([paths[name].values.reshape(shape) for name in names], -1)
        )

    whole = values()
    before = torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            assert np.array_equal(whole, values())
    finally:
        torch.set_num_threads(before)
    for few in (1, 6, 37):
        assert np.array_equal(whole[:few], values(few))
    assert np.array_equal(whole[32:64], values(32, first_replicate=32))
    assert np.array_equal(whole, values(memory_limit="60 MB"))
    with pytest.raises(ValueError, match="memory_limit leaves"):
        values(memory_limit=whole.nbytes + 10_000)


def test_streamed_statistics_are_those_of_the_samples():
    model = lesde.LESDE(lesde.FeatureKernel(KERNEL), 3, 3, [30, 20, 10], noise=0.2)
    options = {"learning_rate": 0.05, "engine": "sgd", "seed": 5, "dtype": "float64"}
    samples = simulate(model, TIMES, MEANS, 33, **options)
    kept = simulate(model, TIMES, MEANS, 33, keep="statistics", **options)
    other = lesde.statistics(samples)
    for name in ("mean", "within", "reach"):
        np.testing.assert_allclose(kept[name], other[name], rtol=0, atol=1e-13)


def test_what_a_feature_kernel_has_not_is_told():
    model = lesde.LESDE(lesde.FeatureKernel(KERNEL), 3, 3, 4)
    with pytest.raises(ValueError, match="engine='exact' draws from a Gaussian law"):
        simulate(model, [0, 1], engine="exact")
    with pytest.raises(
        ValueError, match="noise='modified' is derived for kernels of classes and time"
    ):
        simulate(model, [0, 1], learning_rate=0.1, engine=lesde.TorchSDE(noise="modified"))
    assert simulate(model, [0, 0.1], replicates=2).attrs["engine"] == "torchsde"
    assert simulate(model, [0, 0.1], replicates=2, learning_rate=0.1).attrs["engine"] == "sgd"


def test_growth_of_a_feature_kernel_is_reported():
    model = lesde.LESDE(lesde.FeatureKernel("exp(g)"), 2, 2, 3)
    with pytest.raises(lesde.Diverged):
        simulate(model, [0, 1, 60], np.eye(2) * 2, 4, engine=lesde.TorchSDE(dt=0.5))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "srk", "noise": "sampling"}, "does not depend on the state"),
        ({"noise": "other"}, "noise must be one of"),
        ({"method": "heun"}, "method must be one of"),
    ],
)
def test_settings_that_do_not_fit(settings, message):
    with pytest.raises(ValueError, match=message):
        lesde.TorchSDE(**settings)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"engine": lesde.TorchSDE(noise="sampling")}, "got learning_rate=None"),
        ({"keep": "all"}, "keep must be one of"),
        (
            {"memory_limit": "lots"},
            r"memory_limit must be a number of bytes or a text such as '500 MB'",
        ),
        ({"memory_limit": -1}, "memory_limit must be"),
    ],
)
def test_arguments_that_do_not_fit(changes, message):
    model = lesde.LESDE(lesde.TwoLevel(2, -1), 3, 3, 4)
    with pytest.raises(ValueError, match=message):
        simulate(model, [0, 1], MEANS, 4, **changes)


@pytest.mark.parametrize("sde", ["sampling", "modified"])
@pytest.mark.parametrize(("K", "p"), [(2, 1), (3, 2)])
def test_one_sample_a_class(sde, K, p):
    """Class means are the samples, whose first two moments are known."""
    model = lesde.LESDE(lesde.TwoLevel(2, -1), K, p, 1, noise=0.1)
    start = np.random.default_rng(0).standard_normal((K, p))
    times, h = [0, 0.5, 1], 0.1
    paths = lesde.simulate(
        model,
        times,
        start,
        8192,
        engine=lesde.TorchSDE(noise=sde),
        learning_rate=h,
        dtype="float64",
    )
    known = lesde.moments(model, times, start, learning_rate=h, process=sde, dt=h)
    x = paths.features.values[:, -1]
    error = x.std(axis=0) / np.sqrt(len(x))
    assert (np.abs(x.mean(axis=0) - known["mean"].values[-1]) < 5 * error).all()
    products = (x - x.mean(axis=0)) ** 2
    variance = np.einsum("kiki->ki", known["covariance"].values[-1])
    error = products.std(axis=0) / np.sqrt(len(x))
    assert (np.abs(products.mean(axis=0) - variance) < 5 * error).all()
