"""Networks of several kinds, and a stack of them."""

from __future__ import annotations

import torch
from torch import nn

from lesde.networks import mlp
from lesde.networks.ensemble import Ensemble


def dense():
    return mlp(64, (12, 8), 4)


def convolutional():
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        nn.Conv2d(1, 4, 3),
        nn.GroupNorm(2, 4),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Linear(144, 4),
    )


class Residual(nn.Module):
    """Not a chain, and with a frozen layer."""

    def __init__(self):
        super().__init__()
        self.enter = nn.Linear(64, 10)
        self.inner = nn.Linear(10, 10)
        self.head = nn.Linear(10, 4, bias=False)
        self.head.weight.requires_grad_(False)

    def forward(self, x):
        h = torch.tanh(self.enter(x))
        return self.head(h + self.inner(h))


def with_a_shared_layer():
    shared = nn.Linear(64, 64)
    return nn.Sequential(shared, nn.ReLU(), shared, nn.Linear(64, 4))


def with_tied_weights():
    network = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64), nn.Linear(64, 4))
    network[2].weight = network[0].weight
    return network


def with_a_shared_activation():
    relu = nn.ReLU()
    return nn.Sequential(nn.Linear(64, 9), relu, nn.Linear(9, 9, bias=False), relu, nn.Linear(9, 4))


def with_a_tied_bias():
    network = nn.Sequential(nn.Linear(64, 4), nn.Tanh(), nn.Linear(4, 4))
    network[2].bias = network[0].bias
    return network


ARCHITECTURES = {
    "dense": dense,
    "tanh": lambda: mlp(64, (9,), 4, activation="tanh", bias=False),
    "sigmoid": lambda: mlp(64, (9,), 4, activation="sigmoid"),
    "nested": lambda: nn.Sequential(nn.Flatten(), mlp(64, (9,), 4)),
    "linear chain": lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.Linear(6, 4)),
    "convolutional": convolutional,
    "residual": Residual,
    "shared layer": with_a_shared_layer,
    "shared activation": with_a_shared_activation,
    "tied weights": with_tied_weights,
    "tied bias": with_a_tied_bias,
}


def ensemble_of(
    architecture, data, replicates=range(3), seed=0, dtype=torch.float32, layers=("logits",)
):
    return Ensemble(
        architecture,
        list(replicates),
        example=torch.as_tensor(data.probe_x[:2], dtype=dtype),
        n_classes=data.n_classes,
        layers=layers,
        seed=seed,
        dtype=dtype,
    )
