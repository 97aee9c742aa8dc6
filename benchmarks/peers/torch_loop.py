"""Plain torch: loops over preallocated arrays, and the drawing of normals alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from benchmarks.peers.shipped_torchsde import start
from benchmarks.timing import cores
from benchmarks.workloads import Workload

__all__ = ["discrete_loop", "draw_in_threads", "draw_only", "euler_loop"]


def _generator(device: Any) -> torch.Generator:
    return torch.Generator(device or "cpu").manual_seed(0)


def draw_only(workload: Workload, device: Any = None) -> Callable[[], torch.Tensor]:
    """One normal for every state dimension and step, and nothing else."""
    out = torch.empty(workload.size, device=device)
    generator = _generator(device)

    def run() -> torch.Tensor:
        for _ in range(workload.steps):
            out.normal_(generator=generator)
        return out

    return run


def draw_in_threads(workload: Workload) -> Callable[[], list[torch.Tensor]]:
    """The same with the state split over Python threads, each with a generator of its own."""
    count = cores()
    parts = torch.empty(workload.size).tensor_split(count)
    generators = [torch.Generator().manual_seed(i) for i in range(count)]

    def fill(part: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        for _ in range(workload.steps):
            part.normal_(generator=generator)
        return part

    def run() -> list[torch.Tensor]:
        with ThreadPoolExecutor(count) as pool:
            return list(pool.map(fill, parts, generators))

    return run


def euler_loop(workload: Workload, device: Any = None) -> Callable[[], torch.Tensor]:
    """Euler's method on all samples, every array allocated once."""
    first = start(workload, device)
    y, noise = torch.empty_like(first), torch.empty_like(first)
    weights = torch.tensor(workload.dt * workload.weights, dtype=torch.float32, device=device)
    R, K, _, p = workload.shape
    means = torch.empty(R, K, p, device=device)
    drift = torch.empty_like(means)
    many = weights.expand(R, K, K)
    scale = workload.noise * math.sqrt(workload.dt)
    generator = _generator(device)

    def run() -> torch.Tensor:
        y.copy_(first)
        for _ in range(workload.steps):
            noise.normal_(0.0, scale, generator=generator)
            torch.mean(y, 2, out=means)
            torch.bmm(many, means, out=drift)
            y.add_(noise).add_(drift.unsqueeze(2))
        return y

    return run


def discrete_loop(workload: Workload, device: Any = None) -> Callable[[], torch.Tensor]:
    """The discrete process on all samples: draw one, move all, add noise."""
    first = start(workload, device)
    y, noise = torch.empty_like(first), torch.empty_like(first)
    R, K, n, p = workload.shape
    columns = torch.tensor(workload.dt * workload.elasticity.T, dtype=torch.float32, device=device)
    scale = workload.noise * math.sqrt(workload.dt)
    generator = _generator(device)
    rows = y.view(R * K * n, p)
    base = K * n * torch.arange(R, device=device)

    def run() -> torch.Tensor:
        y.copy_(first)
        drawn = torch.randint(K * n, (workload.steps, R), generator=generator, device=device)
        classes = drawn // n
        for J, L in zip((drawn + base).unbind(0), classes.unbind(0), strict=True):
            kick = columns[L].unsqueeze(2) * rows[J].unsqueeze(1)
            noise.normal_(0.0, scale, generator=generator)
            y.add_(noise).add_(kick.unsqueeze(2))
        return y

    return run
