"""The forecast of a run's time, for a network whose steps take a known time."""

from __future__ import annotations

import time

import pytest
from torch import nn

from lesde.networks import mlp, training_time


class Sleeper(nn.Module):
    """Takes 20 ms for a batch of 3 and 60 ms for any other."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(64, 4)

    def forward(self, x):
        time.sleep(0.02 if len(x) == 3 else 0.06)
        return self.head(x)


@pytest.mark.parametrize(("iterations", "saved"), [(100_000, 50), (40, 10_000)])
def test_known_times_are_told(data, iterations, saved):
    """Nothing sleeps shorter than asked; 1.6 times leaves room for all else, and a busy machine."""
    told = training_time(data, Sleeper, 2, iterations, saved=saved, batch_size=3)
    least = 0.02 * iterations + 0.06 * saved
    assert 0.9 * least < told < 1.6 * least


def test_a_few_steps_are_enough(data):
    begun = time.perf_counter()
    told = training_time(data, lambda: mlp(64, (8,), 4), 2, 10**9)
    assert time.perf_counter() - begun < 10 < told


def test_arguments_are_those_of_training(data):
    with pytest.raises(ValueError, match="iterations must be an integer of at least 1"):
        training_time(data, Sleeper, 2, 0)
    with pytest.raises(ValueError, match="loss must be one of"):
        training_time(data, Sleeper, 2, 10, loss="l1")
