"""A training loop such as users write."""

from __future__ import annotations

import torch
from torch import nn

from lesde.networks import mlp


class Loop:
    """Plain SGD on batches of four, the same for the same seed."""

    def __init__(self, data, rate=0.1, seed=0):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.model = mlp(data.train_x.shape[1], (12, 8), data.n_classes)
        self.optimiser = torch.optim.SGD(self.model.parameters(), lr=rate)
        self.x, self.y = torch.tensor(data.train_x), torch.tensor(data.train_y)
        self.draw = torch.Generator().manual_seed(seed)

    def train(self, steps, recorder, scheduler=None):
        for _ in range(steps):
            rows = torch.randint(len(self.x), (4,), generator=self.draw)
            self.optimiser.zero_grad()
            nn.functional.cross_entropy(self.model(self.x[rows]), self.y[rows]).backward()
            self.optimiser.step()
            recorder.step()
            if scheduler is not None:
                scheduler.step()
