"""The samples' own noise in the discrete process, drawn when a sample is drawn or saved.

Between two visits a sample's own part is Brownian motion, so what it gains depends on the age of the
noise at both only: p normals an iteration in place of one for every state dimension.
"""

from __future__ import annotations

import numpy as np
import torch

from lesde.simulation.colour import Colour
from lesde.simulation.noise import BLOCK
from lesde.simulation.plan import Block, Plan

__all__ = ["CHUNK", "TABLE_BYTES", "NoiseClock", "OwnParts"]

CHUNK = 256
"""Iterations prepared at once. Changing it changes the stream of random numbers."""

TABLE_BYTES = 2**25
"""Of a table over iterations."""


class NoiseClock:
    """The age of noise, and what noise adds to a sample between two ages.

    Where noise is constant the age is the number of iterations; else Σ h σ_k² over them.

    Parameters
    ----------
    plan : Plan
    rate : float
        h: iteration m adds √h σ_k(t₀ + m h) ζ.
    last : int
        Iterations of the run.
    """

    def __init__(self, plan: Plan, rate: float, last: int):
        self.plan, self.rate, self.last = plan, rate, last
        self.noise = noise = plan.coefficients.noise
        self.colour: Colour | None = None
        columns = 1
        if noise.is_constant:
            self.colour = Colour(plan.coefficients, torch.float64, plan.device)
        elif not noise.is_shared:
            columns = plan.n_classes
        labels = np.repeat(np.arange(plan.n_classes) % columns, plan.counts)
        self.columns = torch.as_tensor(labels, device=plan.device)
        """Column of every sample in :meth:`ages`: classes share one where they share the noise."""
        self.length = max(CHUNK, TABLE_BYTES // (8 * columns))
        self.first = 0
        self.table = np.zeros((1, columns))

    def ages(self, first: int, end: int) -> torch.Tensor:
        """Ages before iterations first..end, (iteration, column); called in order of the iterations."""
        if self.noise.is_constant:
            counts = torch.arange(first, end + 1, dtype=torch.float64, device=self.plan.device)
            return counts.unsqueeze(1)
        if end >= self.first + len(self.table):
            start, self.first = self.table[first - self.first], first
            count = min(self.length, self.last - first)
            times = self.plan.times[0] + self.rate * np.arange(first, first + count)
            scale = self.noise.scale(times)[:, : len(start)]
            self.table = np.cumsum(np.concatenate([start[None], self.rate * scale**2]), axis=0)
        values = self.table[first - self.first : end - self.first + 1]
        return torch.as_tensor(values, device=self.plan.device)

    def rows(
        self, normals: torch.Tensor, gaps: torch.Tensor, classes: torch.Tensor
    ) -> torch.Tensor:
        """Normals (…, feature) of samples of the classes (…), scaled for differences of ages (…)."""
        if self.colour is None:
            return normals * gaps.sqrt().unsqueeze(-1)
        return self.colour.rows(normals * (gaps * self.rate).sqrt().unsqueeze(-1), classes)

    def samples(self, normals: torch.Tensor, gaps: torch.Tensor) -> torch.Tensor:
        """The same for all samples (…, sample, feature), sorted by class."""
        if self.colour is None:
            return normals * gaps.sqrt().unsqueeze(-1)
        return self.colour.samples(normals * (gaps * self.rate).sqrt().unsqueeze(-1))


class OwnParts:
    """The Brownian parts (with initial deviations) of a block's samples, known at their last visit.

    Attributes
    ----------
    value : tensor (replicate, sample, feature), float64
    visited : tensor (replicate, sample), float64
        The age of the noise at which ``value`` holds.
    """

    def __init__(
        self, plan: Plan, cell: int, block: Block, offsets: torch.Tensor | None, clock: NoiseClock
    ):
        counts = plan.counts
        self.noise, self.clock = plan.noise(cell, block, "deviations"), clock
        self.N, self.p = int(counts.sum()), plan.n_features
        device = plan.device
        self.drawn_dtype = plan.dtype
        self.value = torch.zeros(BLOCK, self.N, self.p, dtype=torch.float64, device=device)
        if offsets is not None:
            self.value += offsets
        self.visited = torch.zeros(BLOCK, self.N, dtype=torch.float64, device=device)
        self.classes = torch.as_tensor(np.repeat(np.arange(len(counts)), counts), device=device)
        self.lanes = torch.arange(BLOCK, device=device).expand(CHUNK, BLOCK)

    def visit(self, ages: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw the samples of some iterations, of which ages (iteration + 1, column) are given.

        Returns their classes (iteration, replicate) and their own parts (iteration, replicate,
        feature) when drawn.
        """
        M = len(ages) - 1
        J = self.noise.integers(self.N, M, BLOCK)
        normals = self.noise.normal(M, BLOCK, self.p, dtype=self.drawn_dtype).double()
        lanes = self.lanes[:M]
        # Sorted by sample, then iteration, the visits of one sample are neighbours.
        sample, order = J.sort(dim=0, stable=True)
        age = ages[order, self.clock.columns[sample]]
        opens = torch.ones_like(sample, dtype=torch.bool)
        opens[1:] = sample[1:] != sample[:-1]
        previous = self.visited[lanes, sample]
        previous[1:] = torch.where(opens[1:], previous[1:], age[:-1])
        growth = self.clock.rows(normals, age - previous, self.classes[sample])
        total = growth.cumsum(0)
        position = torch.arange(M, device=J.device).unsqueeze(-1)
        opened = torch.where(opens, position, 0).cummax(0).values.unsqueeze(-1)
        before = (total - growth).gather(0, opened.expand(-1, -1, self.p))
        own = self.value[lanes, sample] + (total - before)

        closes = torch.ones_like(opens)
        closes[:-1] = opens[1:]
        where = (lanes[closes], sample[closes])
        self.value[where] = own[closes]
        self.visited[where] = age[closes]
        in_order = torch.empty_like(own)
        in_order.scatter_(0, order.unsqueeze(-1).expand_as(own), own)
        return self.classes[J], in_order

    def update(self, iteration: int) -> torch.Tensor:
        """Bring all samples up to an iteration."""
        normals = self.noise.normal(BLOCK, self.N, self.p, dtype=self.drawn_dtype)
        age = self.clock.ages(iteration, iteration)[0, self.clock.columns]
        self.value += self.clock.samples(normals, age - self.visited)
        self.visited[:] = age
        return self.value
