"""Engines that carry every sample: feature kernels, and their limit of a class kernel."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from lesde.processes.plan import Features, Plan

import lesde
from lesde.model.lesde import Initial
from lesde.processes import plan as plans
from lesde.processes.integration import GivenIncrements, StepGrid, integrate
from lesde.processes.particles import IntegratedSamples, Interactions, ParticleSGD, SampleSDE
from lesde.simulation import simulate
from tests.simulation.systems import MATRICES, MEANS
from tests.simulation.test_orders import slope_of

COUNTS = [3, 5, 4]
TIMES = np.array([0.0, 0.2, 0.5])
SETTINGS = {"n_classes": 3, "n_features": 3, "n_per_class": COUNTS, "noise": [0.3, 0.5, 0.2]}


def run(model, engine, sde="plain", method="euler", rate=0.05, replicates=40):
    """Paths by the engines that carry every sample, whatever the kernel."""
    plan = Plan(
        lesde.derive(model).coefficients(),
        TIMES,
        Initial(MEANS, None),
        replicates,
        0,
        3,
        np.array([rate]),
        torch.device("cpu"),
        torch.float64,
        sde,
    )
    keeper = Features(plan)
    made = (
        ParticleSGD(plan, keeper)
        if engine == "sgd"
        else IntegratedSamples(plan, keeper, method, [rate])
    )
    for blocks in made.groups:
        made.run(0, blocks, lambda: None)
    return keeper.arrays["features"][0]


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
def test_a_constant_strength_is_the_class_kernel(engine, sde, method, transform):
    # The tiles are made to be used by a term that vanishes without the formula knowing it.
    H = MATRICES if transform == "matrix" else transform
    formula = "s*2/(1+t) - 0.7*(1-s) + r2*(sin(t)**2 + cos(t)**2 - 1)*1e-3"
    features = lesde.LESDE(lesde.FeatureKernel(formula), transform=H, **SETTINGS)
    classes = lesde.LESDE(lesde.TwoLevel("2/(1+t)", -0.7), transform=H, **SETTINGS)
    ours = run(features, engine, sde, method)
    theirs = run(classes, engine, sde, method)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-14 * np.abs(theirs).max() * 10)


def test_class_kernels_by_samples_and_by_class_means_have_one_law():
    # Euler of every sample against Euler of the class means with deviations drawn at the saved times:
    # means, covariances of two samples of one class and across classes, R = 6,000, 5 standard errors.
    model = lesde.LESDE(lesde.TwoLevel("2/(1+t)", -0.7), transform="logits", **SETTINGS)
    slow = run(model, "torchsde", replicates=6000)
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


def final_states(method, W, U):
    """Samples at T = 1 driven by given increments (step, 1, replicate·sample·feature)."""
    steps = len(W)
    model = lesde.LESDE(lesde.FeatureKernel(KERNEL), 2, 2, 2, noise="0.4+0.2*t")
    grid = StepGrid.regular(np.array([0.0, 1.0]), 1 / steps)
    plan = Plan(
        lesde.derive(model).coefficients(),
        np.array([0.0, 1.0]),
        Initial(None, None),
        32,
        0,
        0,
        None,
        torch.device("cpu"),
        torch.float64,
    )
    sde = SampleSDE(plan, grid, None, Interactions(plan)(None))
    sde.load(0, steps, method)
    start = torch.tensor([[0.6, 0.1], [0.5, -0.2], [-0.4, 0.3], [-0.2, -0.5]]).double()
    state = start.expand(32, -1, -1).reshape(1, -1)
    return integrate(sde, state, [0, steps], GivenIncrements(W, U), method)[-1]


@pytest.mark.parametrize(("method", "order"), [("euler", 1.0), ("srk", 1.5)])
def test_strong_order_for_a_kernel_of_the_features(method, order):
    # Additive noise: 1 and, for SRA1 with a drift that is not linear, 1.5. 32 coupled paths of 8
    # numbers; slope over five step sizes, 5 standard errors of the regression plus 0.12 for the
    # terms of higher order.
    g = torch.Generator().manual_seed(2)
    z = torch.randn(2, 2048, 1, 256, generator=g, dtype=torch.float64) / math.sqrt(2048)
    path = GivenIncrements(z[0], z[0] / 2 + z[1] / math.sqrt(12))
    reference = final_states("srk", path._W, path._U)
    factors = np.array([32, 64, 128, 256, 512])
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
    [{"engine": "sgd", "learning_rate": 0.05}, {"engine": lesde.TorchSDE(dt=0.05)}],
    ids=["sgd", "torchsde"],
)
def test_blocks_threads_and_memory_change_nothing(settings, keep):
    model = lesde.LESDE(lesde.FeatureKernel(KERNEL), 3, 3, [30, 20, 10], noise=0.2)

    def values(replicates=96, **changes):
        paths = simulate(model, TIMES, MEANS, replicates, keep=keep, **settings, **changes)
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
        ValueError, match="sde='modified' is derived for kernels of classes and time"
    ):
        simulate(model, [0, 1], learning_rate=0.1, engine=lesde.TorchSDE(noise="modified"))
    assert simulate(model, [0, 0.1], replicates=2).attrs["engine"] == "torchsde"
    assert simulate(model, [0, 0.1], replicates=2, learning_rate=0.1).attrs["engine"] == "sgd"


def test_growth_of_a_feature_kernel_is_reported():
    model = lesde.LESDE(lesde.FeatureKernel("exp(g)"), 2, 2, 3)
    with pytest.raises(lesde.Diverged):
        simulate(model, [0, 1, 60], np.eye(2) * 2, 4, engine=lesde.TorchSDE(dt=0.5))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"engine": lesde.TorchSDE(noise="sampling")}, "got learning_rate=None"),
        ({"sde": "sampling", "learning_rate": 0.1, "engine": "sgd"}, "has that noise itself"),
        (
            {"sde": "sampling", "learning_rate": 0.1, "engine": "exact"},
            "law of the plain SDE alone",
        ),
        (
            {"engine": lesde.TorchSDE(method="srk", noise="sampling"), "learning_rate": 0.1},
            "does not depend on the state",
        ),
        ({"engine": lesde.TorchSDE(noise="other")}, "sde must be one of"),
        ({"keep": "all"}, "keep must be one of"),
        ({"engine": lesde.TorchSDE(method="heun")}, "method must be one of"),
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


def test_groups_hold_all_blocks_in_order(monkeypatch):
    model = lesde.LESDE(lesde.TwoLevel(2, -1), 3, 3, 4)
    plan = Plan(
        lesde.derive(model).coefficients(),
        TIMES,
        Initial(MEANS, None),
        100,
        2,
        0,
        None,
        torch.device("cpu"),
        torch.float64,
        memory=1000.0,
    )
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    sizes = [len(group) for group in plans.groups(plan, 100.0, 3, "tests")]
    assert sizes == [3, 1]
    numbers = [block.number for group in plans.groups(plan, 250.0, 8, "tests") for block in group]
    assert numbers == [2, 3, 4, 5]


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
