"""What training refuses, by its message and before it starts."""

from __future__ import annotations

import pytest
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

import lesde.networks
from lesde.networks import mlp, train_ensemble

from .architectures import dense


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"data": 3}, TypeError, r"data must be a lesde\.networks\.ImageData; got 3"),
        (
            {"architecture": mlp(64, (), 4)},
            TypeError,
            r"architecture must be a function that makes",
        ),
        (
            {"labels": [0, 1]},
            ValueError,
            r"labels must hold an integer from 0 to 3 for each of the",
        ),
        ({"architecture": lambda: 3}, TypeError, r"must return a torch\.nn\.Module; got 3"),
        (
            {"architecture": lambda: mlp(64, (), 5)},
            ValueError,
            r"\(8, 4\).*4 classes.*got \(8, 5\)",
        ),
        (
            {"architecture": lambda: mlp(60, (), 4)},
            ValueError,
            r"must take inputs of shape \(8, 64\)",
        ),
        (
            {"architecture": lambda: nn.Sequential(nn.BatchNorm1d(64), nn.Linear(64, 4))},
            ValueError,
            r"same logits for a sample whatever else.*GroupNorm",
        ),
        (
            {"architecture": lambda: nn.Sequential(nn.Dropout(0.1), nn.Linear(64, 4))},
            ValueError,
            r"whatever else is in the batch and without chance",
        ),
        (
            {
                "architecture": lambda: nn.Sequential(nn.Linear(64, 4), nn.Softmax(-1)),
                "layers": ["penultimate"],
            },
            ValueError,
            r"'penultimate' only when the logits come straight from a plain .*'0', '1'",
        ),
        (
            {
                "architecture": lambda: weight_norm(nn.Linear(64, 4)),
                "layers": ["penultimate"],
            },
            ValueError,
            r"straight from a plain torch\.nn\.Linear",
        ),
        ({"learning_rates": [0.1, 0.1]}, ValueError, r"learning_rates .* each only once"),
        ({"replicates": 0}, ValueError, r"replicates must be an integer of at least 1"),
        ({"replicates": [1, 1]}, ValueError, r"different numbers of replicates; got \[1, 1\]"),
        ({"times": [1.0, 2.0]}, ValueError, r"times\[0\] must be 0, .* got 1"),
        (
            {"times": [0.0, 0.01]},
            ValueError,
            r"coarser than the saved times.*one learning rate apart",
        ),
        ({"layers": ["hidden9"]}, ValueError, r"layers must be one of 'logits'.*got 'hidden9'"),
        ({"layers": []}, ValueError, r"layers must name at least one of logits"),
        ({"layers": 3}, TypeError, "layers must be a name or a sequence of names; got 3"),
        ({"loss": "crossentropy"}, ValueError, r"loss .* Did you mean 'cross_entropy'"),
        ({"sampling": "epoch"}, ValueError, r"sampling .* Did you mean 'epochs'"),
        ({"batch_size": 0}, ValueError, r"batch_size must be an integer of at least 1"),
        ({"dtype": "float16"}, ValueError, r"dtype must be one of 'float32', 'float64'"),
        ({"seed": 1.5}, TypeError, r"seed must be an integer"),
        ({"progress": "bar"}, TypeError, r"progress must be True, False or a function"),
    ],
)
def test_refusals_come_before_training(data, change, error, message):
    fitting = {
        "data": data,
        "architecture": dense,
        "learning_rates": 0.1,
        "replicates": 2,
        "times": [0.0, 1.0],
    }
    with pytest.raises(error, match=message):
        train_ensemble(**(fitting | change))  # not iterated: the call itself refuses


def test_layers_that_cannot_be_recorded_are_refused(data):
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.unused, self.named, self.head = nn.Linear(2, 2), Named(), nn.Linear(64, 4)

        def forward(self, x):
            return self.head(self.named(x)["x"])

    class Named(nn.Module):
        def forward(self, x):
            return {"x": x}

    with pytest.raises(ValueError, match=r"'unused' never does"):
        train_ensemble(data, Odd, 0.1, 1, [0, 1.0], layers=["unused"])
    with pytest.raises(TypeError, match=r"'named' returns dict"):
        train_ensemble(data, Odd, 0.1, 1, [0, 1.0], layers=["named"])


def test_mlp_names_and_refusals():
    names = [name for name, _ in mlp(6, (5, 4), 3).named_children()]
    assert names == ["hidden1", "activation1", "hidden2", "activation2", "logits"]
    with pytest.raises(ValueError, match=r"widths\[1\] must be an integer of at least 1"):
        mlp(6, (5, 0), 3)
    with pytest.raises(ValueError, match=r"activation must be one of"):
        mlp(6, (5,), 3, activation="gelu")


def test_package_offers_its_names_and_no_others():
    for name in lesde.networks.__all__:
        assert getattr(lesde.networks, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'resnet'"):
        _ = lesde.networks.resnet
