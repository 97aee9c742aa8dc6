"""Paths as tensors: the same paths as without gradients, and gradients of the scheme itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck

import lesde
from lesde import LESDE, ClassMatrix, Diverged, TwoLevel, tensor_paths

RNG = np.random.default_rng(0)
MATRIX = RNG.normal(size=(3, 3, 3)) * 0.5
FACTOR = RNG.normal(size=(3, 3)) * 0.2
COUNTS = (5, 8, 4)
TIMES = [0.0, 0.5, 2.0]
KERNEL = TwoLevel("a/(1+t)", "b", {"a": None, "b": None})
VALUES = {"a": 1.5, "b": -0.5}
MEANS = RNG.normal(size=(3, 3))
SAMPLES = RNG.normal(size=(40, 17, 3))


def scalar(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("transform", "noise", "method", "initial"),
    [
        ("identity", 0.2, "euler", MEANS),
        ("logits", [0.1, 0.2, 0.3], "srk", None),
        (MATRIX, FACTOR, "milstein", SAMPLES),
        ("identity", "0.1+t/10", "srk", SAMPLES[:, :3]),
    ],
    ids=["I", "L", "matrix", "noise in time"],
)
def test_paths_are_those_without_gradients(transform, noise, method, initial, dtype):
    model = LESDE(KERNEL, 3, 3, COUNTS, transform, noise)
    settings = {"seed": 3, "dtype": dtype, "engine": lesde.TorchSDE(method=method, dt=0.01)}
    start = initial if initial is None else torch.tensor(initial, requires_grad=True)
    found = tensor_paths(model, TIMES, start, 40, parameters=VALUES, **settings)
    filled = model.substitute(**VALUES)
    expected = lesde.simulate(filled, TIMES, initial, 40, **settings)
    size = np.abs(expected.features.values).max()
    error = np.abs(found.features.detach().numpy() - expected.features.values).max()
    assert error <= 4 * np.finfo(dtype).eps * size
    assert str(found.features.dtype) == f"torch.{dtype}"
    dataset = found.dataset()
    assert dataset.attrs == expected.attrs
    assert dict(dataset.sizes) == dict(expected.sizes)
    np.testing.assert_array_equal(dataset.label, expected.label)
    np.testing.assert_array_equal(found.labels, expected.label)
    averages = np.stack(
        [found.features.detach().numpy()[:, :, model.labels == k].mean(2) for k in range(3)], 2
    )
    np.testing.assert_allclose(
        found.means.detach(), averages, atol=20 * float(np.finfo(dtype).eps) * size
    )


@pytest.mark.parametrize("method", ["euler", "srk"])
@pytest.mark.parametrize("transform", ["identity", "logits", "matrix"])
def test_gradients_are_the_differences_of_the_scheme(transform, method):
    """Against lesde.simulate with the same noise at moved values: no statistics in it.

    Fourth-order central differences at a step of 1e-3; paths in float64.
    """
    given = MATRIX if transform == "matrix" else transform
    model = LESDE(KERNEL, 3, 3, COUNTS, given, 0.2)
    settings = {"seed": 1, "dtype": "float64", "engine": lesde.TorchSDE(method=method, dt=0.02)}
    weights = RNG.normal(size=(3, 3, 17, 3))

    def score(values, initial):
        paths = lesde.simulate(model.substitute(**values), TIMES, initial, 3, **settings)
        return float((paths.features.values * weights).sum())

    def difference(move, step=1e-3):
        return sum(w * (move(k * step) - move(-k * step)) for k, w in ((1, 8.0), (2, -1.0))) / (
            12 * step
        )

    at = {name: scalar(value) for name, value in VALUES.items()}
    start = torch.tensor(MEANS, requires_grad=True)
    paths = tensor_paths(model, TIMES, start, 3, parameters=at, **settings)
    (paths.features * torch.tensor(weights)).sum().backward()
    for name in VALUES:
        wanted = difference(lambda e, n=name: score({**VALUES, n: VALUES[n] + e}, MEANS))
        assert float(at[name].grad) == pytest.approx(wanted, rel=1e-8)
    unit = np.zeros((3, 3))
    unit[1, 2] = 1.0
    wanted = difference(lambda e: score(VALUES, MEANS + e * unit))
    assert float(start.grad[1, 2]) == pytest.approx(wanted, rel=1e-8)


@pytest.mark.parametrize("shape", [(3, 2), (7, 2), (2, 7, 2)])
def test_every_form_of_the_start_has_gradients(shape):
    kernel = ClassMatrix([["a*t", 1, 0], [0.5, "-a", 0], [0, 0.2, 1]], {"a": None})
    model = LESDE(kernel, 3, 2, [2, 3, 2], noise=0.1)

    def features(initial, a):
        return tensor_paths(
            model,
            [0, 0.3, 0.5],
            initial,
            2,
            parameters={"a": a},
            engine=lesde.TorchSDE(dt=0.1),
            dtype="float64",
        ).features

    start = torch.tensor(RNG.normal(size=shape), requires_grad=True)
    assert gradcheck(features, (start, scalar(0.7)), fast_mode=True)


def test_gradients_pass_from_one_stretch_of_noise_to_the_next():
    """3,000 steps: increments are drawn a stretch at a time, into the same memory."""
    model = LESDE(TwoLevel("a", 0, {"a": None}), 2, 1, 2, noise=0.1)
    a, start = scalar(0.8), torch.tensor([[1.0], [-0.5]], dtype=torch.float64)
    paths = tensor_paths(
        model,
        [0, 1.5, 3],
        start,
        1,
        parameters={"a": a},
        engine=lesde.TorchSDE(dt=1e-3),
        dtype="float64",
    )
    paths.means[0, -1, 0, 0].backward()
    # Without classes mixing X̄ ← X̄ (1 + a h/2) + noise, so dX̄/da is Σ h/2 X̄_m (1 + a h/2)^(M−1−m).
    settings = {"seed": 0, "dtype": "float64", "engine": lesde.TorchSDE(dt=1e-3)}
    times = np.linspace(0, 3, 3001)
    every = lesde.simulate(model.substitute(a=0.8), times, start, 1, **settings)
    mean = every.features.values[0, :, :2, 0].mean(1)
    expected = (5e-4 * mean[:-1] * (1 + 4e-4) ** np.arange(2999, -1, -1)).sum()
    assert float(a.grad) == pytest.approx(expected, rel=1e-10)


def test_the_global_generator_is_left_alone():
    model = LESDE(KERNEL, 3, 3, COUNTS)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    tensor_paths(model, [0, 0.1], MEANS, 2, parameters=VALUES)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"engine": "exact"}, r"engine must be lesde\.TorchSDE.*got 'exact'.*lesde\.tensor_law"),
        ({"engine": lesde.SGD(), "learning_rate": 0.1}, r"engine must be lesde\.TorchSDE"),
        ({"engine": lesde.TorchSDE(noise="sampling"), "learning_rate": 0.1}, "with noise='plain'"),
        ({"learning_rate": [0.1, 0.2]}, "takes one learning_rate"),
        ({"parameters": {"a": 1.0}}, "no value for b"),
        ({"first_replicate": 3}, "first_replicate must be a multiple of 32"),
        ({"initial": torch.zeros(2, 2)}, "initial must have shape"),
    ],
)
def test_bad_requests(change, message):
    model = LESDE(KERNEL, 3, 3, COUNTS)
    arguments = {"initial": MEANS, "replicates": 2, "parameters": VALUES, **change}
    with pytest.raises(ValueError, match=message):
        tensor_paths(model, TIMES, **arguments)


def test_gradients_to_the_noise_are_refused():
    model = LESDE(TwoLevel(1, 0), 2, 2, 3, noise="s", parameters={"s": None})
    assert tensor_paths(model, [0, 1], np.eye(2), 2, parameters={"s": 0.3}).means.shape == (
        2,
        2,
        2,
        2,
    )
    with pytest.raises(ValueError, match="parameters has s, in the formula of the noise"):
        tensor_paths(model, [0, 1], np.eye(2), 2, parameters={"s": scalar(0.3)})


def test_kernels_of_the_features_are_refused():
    model = LESDE(lesde.FeatureKernel("exp(-r2)"), 2, 2, 5)
    with pytest.raises(ValueError, match="needs a kernel of classes and time"):
        tensor_paths(model, [0, 1])


def test_overflow_is_told_with_its_time():
    model = LESDE(TwoLevel("a", 0, {"a": None}), 2, 2, 3)
    with pytest.raises(Diverged, match="stopped being finite at time 5"):
        tensor_paths(
            model,
            [0, 0.1, 5],
            np.eye(2),
            2,
            parameters={"a": 500.0},
            engine=lesde.TorchSDE(dt=0.01),
        )


def test_the_paths_are_those_of_simulate():
    model = LESDE(KERNEL, 3, 3, COUNTS, noise=0.2)
    arguments = {
        "initial": MEANS,
        "replicates": 4,
        "seed": 2,
        "engine": lesde.TorchSDE(dt=0.05),
        "dtype": "float64",
    }
    a = scalar(1.5)
    found = lesde.tensor_paths(model, TIMES, parameters={"a": a, "b": -0.5}, **arguments)
    expected = lesde.simulate(model.substitute(**VALUES), TIMES, **arguments)
    np.testing.assert_allclose(found.features.detach(), expected.features, rtol=1e-13, atol=1e-14)
    found.features.sum().backward()
    assert float(a.grad) != 0.0
    assert dict(found.dataset().sizes) == dict(expected.sizes)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
@pytest.mark.parametrize("transform", ["identity", "logits"])
def test_gradients_on_a_gpu_are_those_of_the_scheme(transform):
    """Without noise all devices have the same paths."""
    model = LESDE(KERNEL, 3, 3, COUNTS, transform, noise=0.0)
    slopes = []
    for device in ("cpu", "cuda"):
        a, start = scalar(1.5), torch.tensor(MEANS, requires_grad=True)
        paths = tensor_paths(
            model,
            TIMES,
            start,
            2,
            parameters={"a": a, "b": -0.5},
            engine=lesde.TorchSDE(dt=0.05),
            device=device,
        )
        assert paths.features.device.type == device
        paths.means.square().sum().backward()
        slopes.append((float(a.grad), start.grad.numpy()))
    assert slopes[0][0] == pytest.approx(slopes[1][0], rel=1e-10)
    np.testing.assert_allclose(slopes[0][1], slopes[1][1], rtol=1e-10)


@pytest.mark.parametrize("power", [1.5, 2.5])
def test_gradients_of_powers_that_start_at_zero(power):
    """Two Euler steps of α = (a t)^power at t = 0 and 1/2: x = 1 + α(1/2)/4."""
    a = scalar(2.0)
    model = LESDE(TwoLevel(f"(a*t)**{power}", 0, {"a": None}), 2, 1, 5, noise=0.0)
    paths = tensor_paths(
        model, [0, 1], [[1.0], [-1.0]], 1, parameters={"a": a}, engine=lesde.TorchSDE(dt=0.5)
    )
    paths.means[0, -1, 0, 0].backward()
    np.testing.assert_allclose(float(a.grad), power * 0.5 / 4, rtol=1e-12)
