"""Backpropagation written out against torch's own, and independence of the company."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from lesde.networks import lenet
from lesde.networks.ensemble import Ensemble, make_step, mapped_step

NETWORKS = {
    "lenet": (lambda: lenet(3), (1, 32, 32)),
    "lenet, colour": (lambda: lenet(4, channels=3, size=20), (3, 20, 20)),
    "padded, no bias": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 5, (3, 2), padding=(2, 1), bias=False),
            nn.Tanh(),
            nn.MaxPool2d((2, 3)),
            nn.Flatten(),
            nn.Linear(5 * 5 * 3, 3, bias=False),
        ),
        (2, 9, 8),  # a row and a column of the pooled image are left over
    ),
    "rows of pixels": (
        lambda: nn.Sequential(
            nn.Unflatten(1, (1, 8, 8)),
            nn.Conv2d(1, 4, 3, padding=1),
            nn.Sigmoid(),
            nn.Conv2d(4, 2, 3),
            nn.Flatten(),
            nn.Linear(72, 3),
        ),
        (64,),
    ),
    "pooled twice": (
        lambda: nn.Sequential(
            nn.MaxPool2d(2), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, 3)
        ),
        (1, 16, 16),
    ),
}


def ensemble_of(name, replicates, dtype):
    architecture, shape = NETWORKS[name]
    return Ensemble(
        architecture,
        replicates,
        example=torch.randn(2, *shape, dtype=dtype),
        n_classes=architecture()[-1].out_features,
        layers=("logits",),
        seed=1,
        dtype=dtype,
    )


def batch(name, replicate, step, size, dtype):
    """Inputs and targets of one network at one step; many pixels are equal, as in drawn images."""
    rng = np.random.default_rng([replicate, step])
    architecture, shape = NETWORKS[name]
    x = np.round(rng.standard_normal((size, *shape)), 1).clip(0, None)
    K = architecture()[-1].out_features
    return torch.as_tensor(x, dtype=dtype), torch.eye(K, dtype=dtype)[rng.integers(K, size=size)]


def train(ensemble, name, replicates, way, steps, size):
    step = way(ensemble, "cross_entropy", 0.05)
    dtype = next(iter(ensemble.parameters.values())).dtype
    for i in range(steps):
        drawn = [batch(name, r, i, size, dtype) for r in replicates]
        step(torch.stack([x for x, _ in drawn]), torch.stack([y for _, y in drawn]))
    return step


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("name", NETWORKS)
def test_written_out_and_mapped_steps_agree(name, size):
    """In float64: the two ways differ by rounding only."""
    ends = []
    for way in (make_step, mapped_step):
        ensemble = ensemble_of(name, [0, 1, 2], torch.float64)
        before = {key: value.clone() for key, value in ensemble.parameters.items()}
        assert ensemble.chain() is not None
        train(ensemble, name, [0, 1, 2], way, 30, size)
        ends.append(ensemble.parameters)
    for key, value in ends[0].items():
        np.testing.assert_allclose(value, ends[1][key], rtol=0, atol=1e-12)
        assert (value - before[key]).abs().max() > 1e-4


@pytest.mark.parametrize("name", ["lenet", "padded, no bias"])
def test_the_same_bits_in_any_company(name):
    crowd = list(range(9))
    together = ensemble_of(name, crowd, torch.float32)
    train(together, name, crowd, make_step, 40, 1)
    for replicates in ([0], [7], [3, 8], [5, 4, 2, 0, 1]):
        few = ensemble_of(name, replicates, torch.float32)
        train(few, name, replicates, make_step, 40, 1)
        for key, value in few.parameters.items():
            np.testing.assert_array_equal(value, together.parameters[key][replicates])


@pytest.mark.parametrize(
    "odd",
    [
        nn.Conv2d(1, 4, 5, stride=2),
        nn.Conv2d(1, 4, 5, padding="same"),
        nn.Conv2d(1, 4, 5, padding_mode="circular", padding=2),
        nn.MaxPool2d(3, stride=2),
        nn.MaxPool2d(2, ceil_mode=True),
        nn.AvgPool2d(2),
    ],
)
def test_other_layers_take_the_mapped_step(odd):
    width = odd(torch.zeros(1, 1, 15, 15)).numel()
    ensemble = Ensemble(
        lambda: nn.Sequential(odd, nn.Flatten(), nn.Linear(width, 3)),
        [0],
        example=torch.zeros(2, 1, 15, 15),
        n_classes=3,
        layers=("logits",),
        seed=0,
        dtype=torch.float32,
    )
    assert ensemble.chain() is None


def test_of_equal_maxima_the_first_is_moved_as_in_torch():
    """All four numbers of every tile are equal, and made of two different patches."""
    ensemble = Ensemble(
        lambda: nn.Sequential(nn.Conv2d(1, 2, 2), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8, 3)),
        [0, 1],
        example=torch.zeros(2, 1, 5, 5, dtype=torch.float64),
        n_classes=3,
        layers=("logits",),
        seed=0,
        dtype=torch.float64,
    )
    assert ensemble.chain() is not None
    ensemble.parameters["0.weight"].fill_(1.0)
    weight, start = ensemble.parameters["0.weight"], ensemble.parameters["0.weight"].clone()
    x = torch.zeros(2, 1, 1, 5, 5, dtype=torch.float64)
    x[..., 1::2] = 1.0  # stripes: every patch of two by two has the sum 2
    y = torch.eye(3, dtype=torch.float64)[[0, 1]][:, None]
    network = copy.deepcopy(ensemble.base)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.copy_(ensemble.parameters[name][0])
    nn.functional.cross_entropy(network(x[0]), y[0]).backward()
    make_step(ensemble, "cross_entropy", 0.1)(x, y)
    moved = (start - weight)[0] / 0.1
    np.testing.assert_allclose(moved, network[0].weight.grad, rtol=0, atol=1e-14)
    assert (moved[:, :, 0, 0] - moved[:, :, 0, 1]).abs().min() > 1e-3
