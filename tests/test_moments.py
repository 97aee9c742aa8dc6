"""Moments of class means against enumeration, recursions and ODEs that do not use the package.

Orders of convergence: by regression of the log of the error on that of the learning rate, over rates
small enough that the next order changes the slope by less than the tolerance.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import lesde
from tests.simulation.systems import (
    FEW,
    MEANS,
    PAIRS,
    make_system,
    moments_by_class,
    sde_reference,
)

TIMES = [0.0, 0.4, 1.0]
VARIABLES = ("mean", "covariance", "within")


def offsets_of(counts, seed=0):
    raw = np.random.default_rng(seed).standard_normal((int(sum(counts)), 3))
    return moments_by_class(raw[None], np.asarray(counts))[1][0]


def time_dependent_model(noise=None, transform="identity", formulas=False):
    """Two unbalanced classes; kernel and noise of formulas, and of callables unless formulas are asked for."""
    kernel = [["exp(-t)" if formulas else lambda t: np.exp(-t), "sin(t)"], ["-t", 2.0]]
    growing = "0.3*(1 + t**2)" if formulas else lambda t: 0.3 * (1 + t**2)
    noise = noise or ["0.5*exp(-t)", growing]
    return lesde.LESDE(lesde.ClassMatrix(kernel), 2, 2, [2, 3], transform=transform, noise=noise)


@pytest.mark.parametrize("noise", [0.0, 0.6])
def test_sgd_is_the_enumeration_of_all_samples_drawn(noise):
    """Three iterations, N = 3, p = 1: all 27 orders of samples, and noise ±σ in all combinations.

    Second moments see no more of the noise than its variance, so signs stand for normals.
    """
    E = np.array([[0.7, -0.4], [0.3, 1.1]])
    labels, h = np.array([0, 0, 1]), 0.3
    start = np.array([0.8, -0.1, 0.5])
    iterations = 2 if noise else 3
    signs = [-1.0, 1.0] if noise else [0.0]
    means, spreads = [], []
    for drawn in itertools.product(range(3), repeat=iterations):
        for zeta in itertools.product(signs, repeat=3 * iterations):
            x = start.copy()
            for m, J in enumerate(drawn):
                kick = h * E[labels, labels[J]] * x[J]
                x = x + kick + np.sqrt(h) * noise * np.array(zeta[3 * m : 3 * m + 3])
            average = np.array([x[:2].mean(), x[2]])
            means.append(average)
            spreads.append(((x[:2] - average[0]) ** 2).mean())
    model = lesde.LESDE(lesde.ClassMatrix(E.tolist()), 2, 1, [2, 1], noise=noise)
    m = lesde.moments(model, [0, h * iterations], start[:, None], h)
    end = m.isel(time=-1)
    np.testing.assert_allclose(end["mean"].values[:, 0], np.mean(means, 0), rtol=1e-12)
    np.testing.assert_allclose(
        end["covariance"].values.reshape(2, 2), np.cov(np.array(means).T, bias=True), rtol=1e-11
    )
    assert float(end["within"][0, 0, 0]) == pytest.approx(np.mean(spreads), rel=1e-12)
    assert float(end["within"][1, 0, 0]) == 0.0
    assert int(m["iteration"][-1]) == iterations


@pytest.mark.parametrize("case", PAIRS, ids=" ".join)
def test_sgd_is_the_recursion_written_by_hand(case):
    system, h = make_system(*case), 0.05
    offsets = offsets_of(system.counts)
    initial = np.repeat(MEANS, system.counts, axis=0) + offsets
    m = lesde.moments(system.model, TIMES, initial, h)
    for i, steps in enumerate((0, 8, 20)):
        mean, covariance = system.sgd_moments(MEANS, h, steps, offsets)
        np.testing.assert_allclose(m["mean"].values[i], mean, rtol=1e-11, atol=1e-13)
        got = m["covariance"].values[i].reshape(9, 9)
        np.testing.assert_allclose(got, covariance, rtol=1e-10, atol=1e-12)
    np.testing.assert_array_equal(m["iteration"], [0, 8, 20])


def test_sgd_reads_noise_and_kernel_at_the_begin_of_an_iteration():
    model, h = time_dependent_model(), 0.25
    m = lesde.moments(model, [1.0, 1.5], np.zeros((2, 2)), h)
    at = np.array([1.0, 1.25])
    variance = np.stack([(0.5 * np.exp(-at)) ** 2, (0.3 * (1 + at**2)) ** 2], 1)
    shares = np.array([1 / 2, 2 / 3])
    np.testing.assert_allclose(
        m["within"].values[-1, :, 0, 0], shares * h * variance.sum(0), rtol=1e-13
    )
    # From zero means: one step of noise, pushed by the second, plus the kicks of the spread within.
    E = np.array([[np.exp(-1.25), np.sin(1.25)], [-1.25, 2.0]])
    w = np.array([2 / 5, 3 / 5])
    A = np.eye(2) + h * E * w
    own = h * variance / [2, 3]
    spread = shares * h * variance[0]
    cross = (E * w) @ np.diag(own[0]) @ (E * w).T
    second = (E * w * (own[0] + spread)) @ E.T
    expected = A @ np.diag(own[0]) @ A.T + np.diag(own[1]) + h**2 * (second - cross)
    np.testing.assert_allclose(
        m["covariance"].values[-1, :, 0, :, 0], expected, rtol=1e-12, atol=1e-15
    )


def worst(error, standard):
    return float((np.abs(error) / (standard + 1e-6)).max())


@pytest.mark.parametrize("case", FEW, ids=" ".join)
def test_sgd_engine_has_these_moments(case):
    """Null: the engine's class means have mean and covariance of lesde.moments.

    1024 replicates at h = 0.1, where sampling noise is the larger part of the covariance; 5 standard
    errors, of which none of the 8 · 2 · 100 components is expected under the null.
    """
    system = make_system(*case)
    initial = np.repeat(MEANS, system.counts, axis=0) + offsets_of(system.counts)
    paths = lesde.simulate(system.model, TIMES, initial, 1024, learning_rate=0.1, seed=9)
    m = lesde.moments(system.model, TIMES, initial, 0.1)
    np.testing.assert_array_equal(m["iteration"], paths["iteration"])
    for i in (1, 2):
        x = paths.features.isel(time=i).values.astype(float)
        means, deviations = moments_by_class(x, system.counts)
        mean, V = m["mean"].values[i], m["covariance"].values[i].reshape(9, 9)
        flat = (means - mean).reshape(len(means), 9)
        root = np.sqrt(len(flat))
        assert worst(flat.mean(0), flat.std(0, ddof=1) / root) < 5
        products = flat[:, :, None] * flat[:, None, :]
        assert worst(products.mean(0) - V, products.std(0, ddof=1) / root) < 5
        ends = np.cumsum(system.counts)
        for k, (first, end) in enumerate(zip(ends - system.counts, ends, strict=True)):
            rows = deviations[:, first:end]
            W = np.einsum("rni,rnj->rij", rows, rows) / (end - first)
            error = W.mean(0) - m["within"].values[i, k]
            assert worst(error, W.std(0, ddof=1) / root) < 5
    # The plain SDE is told apart by the same test.
    plain = lesde.moments(system.model, TIMES, initial, process="plain").isel(time=-1)
    flat = (means - plain["mean"].values).reshape(len(means), 9)
    error = np.einsum("ri,rj->ij", flat, flat) / len(flat)
    error -= plain["covariance"].values.reshape(9, 9)
    assert worst(error, products.std(0, ddof=1) / root) > 5


@pytest.mark.parametrize("transform", ["identity", "logits"])
def test_sgd_engine_has_these_moments_where_noise_depends_on_time(transform):
    """As above; kernel and noise are formulas and callables, h = 0.1, 4096 replicates."""
    model = time_dependent_model(transform=transform)
    initial = np.random.default_rng(1).standard_normal((5, 2))
    paths = lesde.simulate(model, [0, 1], initial, 4096, learning_rate=0.1, seed=10)
    m = lesde.moments(model, [0, 1], initial, 0.1).isel(time=-1)
    means, deviations = moments_by_class(paths.features.isel(time=-1).values, model.counts)
    flat = (means - m["mean"].values).reshape(-1, 4)
    assert worst(flat.mean(0), flat.std(0, ddof=1) / 64) < 5
    products = flat[:, :, None] * flat[:, None, :]
    V = m["covariance"].values.reshape(4, 4)
    assert worst(products.mean(0) - V, products.std(0, ddof=1) / 64) < 5
    W = np.einsum("rni,rnj->rij", deviations[:, 2:], deviations[:, 2:]) / 3
    assert worst(W.mean(0) - m["within"].values[1], W.std(0, ddof=1) / 64) < 5


@pytest.mark.parametrize("case", PAIRS, ids=" ".join)
def test_plain_is_the_law(case):
    system = make_system(*case)
    plain = lesde.moments(system.model, TIMES, MEANS, process="plain")
    law = lesde.law(system.model, TIMES, MEANS)
    for name in ("mean", "covariance"):
        np.testing.assert_allclose(plain[name], law[name], rtol=1e-9, atol=1e-12)
    share = (1 - 1 / system.counts)[:, None, None]
    np.testing.assert_allclose(plain["within"], share * law["within"], rtol=1e-12, atol=1e-15)
    mean, covariance = sde_reference(case, 1.0)
    np.testing.assert_allclose(plain["mean"].values[-1], mean, rtol=1e-7, atol=1e-9)
    got = plain["covariance"].values[-1].reshape(9, 9)
    np.testing.assert_allclose(got, covariance, rtol=1e-6, atol=1e-9)


def test_plain_is_the_law_from_random_means_and_with_noise_of_time():
    model = time_dependent_model()
    plain = lesde.moments(model, TIMES, None, process="plain")
    law = lesde.law(model, TIMES, None)
    for name in ("mean", "covariance"):
        np.testing.assert_allclose(plain[name], law[name], rtol=1e-9, atol=1e-12)
    assert plain.attrs["initial"] == "random"
    np.testing.assert_allclose(
        plain["covariance"].values[0].reshape(4, 4), np.eye(4) / 2, atol=1e-15
    )


@pytest.mark.parametrize("case", PAIRS, ids=" ".join)
def test_euler_steps_of_length_h_with_sampling_noise_are_sgd(case):
    system, h = make_system(*case), 0.1
    initial = np.repeat(MEANS, system.counts, axis=0) + offsets_of(system.counts)
    sgd = lesde.moments(system.model, TIMES, initial, h)
    euler = lesde.moments(system.model, TIMES, initial, h, "sampling", dt=h)
    shorter = lesde.moments(system.model, TIMES, initial, h, "sampling", dt=h / 2)
    for name in VARIABLES:
        scale = np.abs(sgd[name]).max().item()
        np.testing.assert_allclose(euler[name], sgd[name], rtol=1e-12, atol=1e-13 * scale)
    assert np.abs(shorter["covariance"] - sgd["covariance"]).max() > 1e-3


def test_euler_steps_are_sgd_where_noise_depends_on_time_and_means_are_random():
    model = time_dependent_model()
    sgd = lesde.moments(model, TIMES, None, 0.1)
    euler = lesde.moments(model, TIMES, None, 0.1, "sampling", dt=0.1)
    for name in VARIABLES:
        np.testing.assert_allclose(euler[name], sgd[name], rtol=1e-12, atol=1e-14)


def test_euler_of_every_sde_converges_to_its_moments():
    model, initial = time_dependent_model(formulas=True), np.array([[1.0, 0.2], [-0.4, 0.6]])
    for process in ("plain", "sampling", "modified"):
        exact = lesde.moments(model, [0, 1], initial, 0.2, process)
        errors = []
        for dt in (0.01, 0.005):
            euler = lesde.moments(model, [0, 1], initial, 0.2, process, dt=dt)
            errors.append([float(np.abs(euler[n] - exact[n]).max()) for n in VARIABLES])
        order = np.log2(np.array(errors[0]) / errors[1])
        np.testing.assert_allclose(order, 1, atol=0.05)
        assert euler.attrs["dt"] == 0.005


RATES = 1 / np.array([400.0, 800.0, 1600.0, 3200.0])


def orders(model, initial, names, rates=RATES):
    """Slope of the log error against log h, by process and variable."""
    processes = ["sgd", "plain", "sampling", "modified"]
    m = lesde.moments(model, [0, 1], initial, rates, processes).isel(time=-1)
    found = {}
    for process in processes[1:]:
        for name in names:
            gap = m[name].sel(process=process) - m[name].sel(process="sgd")
            dims = [d for d in gap.dims if d != "learning_rate"]
            error = np.sqrt((gap**2).sum(dims)).values
            found[process, name] = float(np.polyfit(np.log(rates), np.log(error), 1)[0])
    return found


ORDERS = {"plain": 1.0, "sampling": 1.0, "modified": 2.0}


@pytest.mark.parametrize("case", [PAIRS[i] for i in (0, 1, 4, 6, 10, 15)], ids=" ".join)
def test_orders_of_the_sdes(case):
    system = make_system(*case)
    initial = np.repeat(MEANS, system.counts, axis=0) + offsets_of(system.counts)
    for (process, name), order in orders(system.model, initial, ("mean", "covariance")).items():
        assert order == pytest.approx(ORDERS[process], abs=0.15), (process, name)


@pytest.mark.parametrize("kind", ["per class", "factors"])
def test_orders_where_noise_depends_on_time(kind):
    """Here the spread within classes has an error as well: σ is read at the begin of iterations."""
    initial = np.random.default_rng(1).standard_normal((5, 2))
    model = time_dependent_model(formulas=True)
    if kind == "factors":
        noise = [[[0.5, "t"], [0, "cos(t)"]], [["1 + t**2", 0.1], [0.0, 0.3]]]
        transform = np.random.default_rng(2).standard_normal((2, 2, 2))
        model = time_dependent_model(noise, transform, formulas=True)
    for (process, name), order in orders(model, initial, VARIABLES).items():
        assert order == pytest.approx(ORDERS[process], abs=0.15), (process, name)


def test_sampling_noise_removes_most_of_the_error_of_the_covariance():
    system = make_system(*PAIRS[0])
    rates = [0.05, 0.0125]
    m = lesde.moments(system.model, [0, 1], MEANS, rates, ["sgd", "plain", "sampling"])
    V = m["covariance"].isel(time=-1)
    dims = ["class", "feature", "class_", "feature_"]
    error = np.sqrt(((V - V.sel(process="sgd")) ** 2).sum(dims))
    assert (error.sel(process="sampling") < 0.25 * error.sel(process="plain")).all()


def test_shapes_and_coordinates():
    model = time_dependent_model()
    one = lesde.moments(model, TIMES, None, 0.1)
    assert dict(one["covariance"].sizes) == {
        "time": 3, "class": 2, "feature": 2, "class_": 2, "feature_": 2,
    }  # fmt: skip
    assert float(one["learning_rate"]) == 0.1
    assert one.attrs["process"] == "sgd"
    np.testing.assert_array_equal(one["label"], model.labels)
    np.testing.assert_array_equal(one["count"], model.counts)
    many = lesde.moments(model, TIMES, None, [0.2, 0.1], ["plain", "sgd"])
    assert many["mean"].dims == ("process", "learning_rate", "time", "class", "feature")
    assert many["within"].dims[:3] == ("process", "learning_rate", "time")
    np.testing.assert_array_equal(many["iteration"], [[0, 2, 5], [0, 4, 10]])
    for name in VARIABLES:
        same = many[name].sel(process="plain")
        np.testing.assert_array_equal(same[0], same[1])
        np.testing.assert_array_equal(many[name].sel(process="sgd", learning_rate=0.1), one[name])
    alone = lesde.moments(model, [0.5], np.eye(2), process="plain")
    np.testing.assert_array_equal(alone["mean"].values[0], np.eye(2))
    assert "learning_rate" not in alone.coords


def test_times_between_iterations_are_rounded_as_in_the_engine():
    model = time_dependent_model()
    m = lesde.moments(model, [0, 0.26, 0.74], None, 0.1)
    exact = lesde.moments(model, [0, 0.3, 0.7], None, 0.1)
    np.testing.assert_array_equal(m["iteration"], [0, 3, 7])
    for name in VARIABLES:
        np.testing.assert_array_equal(m[name].values, exact[name].values)


def test_jumps_of_a_kernel_at_saved_times_are_seen_from_their_own_side():
    step = lesde.TwoLevel(alpha=lambda t: np.where(t < 0.5, 2.0, -1.0), beta=0)
    model = lesde.LESDE(step, 2, 1, [3, 2])
    plain = lesde.moments(model, [0, 0.5, 1], [[1.0], [2.0]], process="plain")
    expected = np.array([1.0, 2.0]) * np.exp(0.5 * model.weights)
    np.testing.assert_allclose(plain["mean"].values[-1, :, 0], expected, rtol=1e-10)


def test_diverging_moments_say_when():
    model = lesde.LESDE(lesde.TwoLevel(alpha=400, beta=0), 2, 1, 5)
    with pytest.raises(lesde.Diverged, match="the moments stopped being finite at time 3"):
        lesde.moments(model, [0, 0.5, 3.0], [[1.0], [2.0]], 0.005)
    with pytest.raises(lesde.Diverged, match="the moments"):
        lesde.moments(model, [0, 0.5, 30.0], [[1.0], [2.0]], process="plain")


MODEL = lesde.LESDE(lesde.TwoLevel(1, 0), 2, 2, 5)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, ValueError, "learning_rate must be given for process='sgd'"),
        ({"process": "modifed"}, ValueError, "Did you mean 'modified'"),
        ({"process": []}, ValueError, "process must name at least one of"),
        ({"process": 3}, TypeError, "process must be a name or a sequence of names"),
        ({"process": ["plain", "sampling"]}, ValueError, "process='sampling'"),
        ({"learning_rate": 0.0}, ValueError, "learning_rate must be a finite number in"),
        ({"learning_rate": [0.1, 0.1]}, ValueError, "distinct positive values"),
        ({"learning_rate": []}, ValueError, "distinct positive values"),
        ({"learning_rate": 0.1, "dt": 0.1}, ValueError, "dt is the Euler step of an SDE"),
        ({"process": "plain", "dt": 0}, ValueError, "dt must be"),
        ({"learning_rate": 3.0}, ValueError, "coarser than the saved times"),
        ({"process": "plain", "initial": np.zeros((3, 2))}, ValueError, "initial must have shape"),
        ({"process": "plain", "times": [1, 0]}, ValueError, "strictly increasing"),
        ({"process": "plain", "model": "I"}, TypeError, "model must be a lesde.LESDE"),
        (
            {"process": "plain", "model": MODEL.replace(n_features=200)},
            ValueError,
            "400 class-mean features",
        ),
    ],
)
def test_refusals(arguments, error, message):
    with pytest.raises(error, match=message):
        lesde.moments(**{"model": MODEL, "times": [0, 1], **arguments})


def test_kernels_of_features_are_refused():
    model = lesde.LESDE(lesde.FeatureKernel("exp(-r2)"), 2, 2, 5)
    with pytest.raises(ValueError, match="depends on classes and time only"):
        lesde.moments(model, [0, 1], None, 0.1)
