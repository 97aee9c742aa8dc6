"""torchsde as its documentation shows it: a module with ``f`` and ``g``, and ``sdeint``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torchsde

from benchmarks.workloads import Workload

__all__ = ["shipped"]


class SDE(torch.nn.Module):
    """The LE-SDE of all samples, state (replicate, class · sample · feature)."""

    noise_type = "diagonal"
    sde_type = "ito"
    weights: torch.Tensor

    def __init__(self, workload: Workload, device: Any = None):
        super().__init__()
        self.shape = workload.shape
        self.sigma = workload.noise
        weights = torch.tensor(workload.weights, dtype=torch.float32, device=device)
        self.register_buffer("weights", weights)

    def f(self, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        means = y.view(self.shape).mean(2)
        drift = self.weights @ means
        return drift.unsqueeze(2).expand(self.shape).reshape(y.shape)

    def g(self, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.full_like(y, self.sigma)


def start(workload: Workload, device: Any = None) -> torch.Tensor:
    """The initial state (replicate, class, sample of the class, feature)."""
    means = torch.tensor(workload.means, dtype=torch.float32, device=device)
    return means[None, :, None].expand(workload.shape).contiguous()


def shipped(
    workload: Workload, method: str = "euler", saved: int = 1, device: Any = None
) -> Callable[[], torch.Tensor]:
    """``torchsde.sdeint`` with its own Brownian motion; ``saved`` output times after the start."""
    sde = SDE(workload, device)
    y0 = start(workload, device).flatten(1)
    ts = torch.tensor(np.linspace(0, workload.span, saved + 1), dtype=torch.float32, device=device)

    def run() -> torch.Tensor:
        with torch.no_grad():
            return torchsde.sdeint(sde, y0, ts, method=method, dt=workload.dt)[-1]

    return run
