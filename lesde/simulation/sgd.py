"""Engine ``sgd``: the discrete process itself, one sample drawn at every iteration.

An iteration moves every sample i of every class k by h E_kL(t) H_L X_J + √h σ_k ζ_i. All samples of a
class get the same kick, so a replicate is its class displacements D (class, feature) and the samples'
own Brownian parts. Of the latter only the drawn sample's is needed, and since its last visit it has
grown by one Gaussian: p normals an iteration instead of N·p, and the law is exactly the same. All
samples are brought up to date at the saved times.

The own parts do not depend on D. So those of many iterations are prepared at once, and what is left
to do one by one is D ← D + h E_·L ⊗ H_L (D_L + own part of X_J).
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import torch

from lesde.derivation.coefficients import Coefficients
from lesde.simulation.classes import spread
from lesde.simulation.colour import multiply_rows
from lesde.simulation.keeping import Keeper
from lesde.simulation.noise import BLOCK
from lesde.simulation.own_parts import CHUNK, TABLE_BYTES, NoiseClock, OwnParts
from lesde.simulation.plan import Block, Plan, Tick, groups
from lesde.transforms import Transform

__all__ = ["SGDEngine", "iteration_counts"]

MOST_ITERATIONS = 10**9
MOST_BLOCKS = 64


def iteration_counts(times: np.ndarray, rate: float) -> np.ndarray:
    """Iterations done at every saved time, (time,) of int: the nearest to (t − t₀)/h.

    Raises
    ------
    ValueError
        When two saved times fall on one iteration, or there are too many iterations to do.
    """
    rounded = np.rint((times - times[0]) / rate)
    if not rounded[-1] <= MOST_ITERATIONS:
        raise ValueError(
            f"learning_rate={rate:g} needs {rounded[-1]:.3g} iterations to reach time {times[-1]:g}, "
            f"more than {MOST_ITERATIONS:.0e}; give a larger learning_rate, or the SDE: "
            f"engine='exact' where the model allows it, else engine='torchsde' with dt."
        )
    counts = rounded.astype(np.int64)
    same = np.diff(counts) == 0
    if same.any():
        i = int(np.argmax(same))
        raise ValueError(
            f"learning_rate={rate:g} is coarser than the saved times: times {times[i]:g} and "
            f"{times[i + 1]:g} fall on the same iteration ({counts[i]}). Give times at least one "
            f"learning rate apart, or a smaller learning_rate."
        )
    return counts


class RowTransform:
    """H_l applied to one vector of one class at a time, float64."""

    def __init__(self, transform: Transform, device: torch.device):
        self.transform = transform
        self.matrices: torch.Tensor | None = None
        if transform.matrices is not None:
            self.matrices = torch.tensor(transform.matrices, device=device)

    def many(self, rows: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        """H_l x for the rows (row, feature) of one block, whose classes are (row,)."""
        if self.matrices is not None:
            return multiply_rows(self.matrices, rows, classes)
        return self._structured(rows, classes)

    def step(self, rows: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        """The same for one row a replicate, whatever the number of blocks, bit for bit."""
        if self.matrices is None:
            return self._structured(rows, classes)
        if self.transform.is_shared:
            blocks = rows.view(-1, BLOCK, rows.shape[-1])
            turned = self.matrices[0].T.expand(len(blocks), -1, -1)
            return torch.bmm(blocks, turned).view_as(rows)
        return torch.bmm(self.matrices[classes], rows.unsqueeze(-1)).squeeze(-1)

    def _structured(self, rows: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        if self.transform.kind == "identity":
            return rows
        # A structured transform acts on a full set of classes: give it the row in every one.
        every = self.transform(rows.unsqueeze(-2).expand(-1, self.transform.n_classes, -1))
        return every[torch.arange(len(rows), device=rows.device), classes]


class Kicks:
    """h E_kl(t) at the iterations 0..last-1, in tables of bounded size."""

    def __init__(
        self, coefficients: Coefficients, start: float, rate: float, last: int, device: torch.device
    ):
        self.coefficients, self.start, self.rate, self.last = coefficients, start, rate, last
        self.device = device
        self.constant = coefficients.kick_table.is_constant
        self.length = max(CHUNK, TABLE_BYTES // (8 * len(coefficients.counts) ** 2))
        self.first = self.end = 0
        self.table = torch.empty(0)

    def columns(self, first: int, classes: torch.Tensor) -> torch.Tensor:
        """h E_·L for the drawn classes (iteration, replicate): (iteration, replicate, class)."""
        M = len(classes)
        if first < self.first or first + M > self.end:
            self.first, self.end = first, min(first + self.length, self.last)
            count = 1 if self.constant else self.end - self.first
            times = self.start + self.rate * np.arange(first, first + count)
            values = self.rate * self.coefficients.kicks(times)
            # Drawn class first, so that a drawn class picks a row.
            self.table = torch.as_tensor(values.swapaxes(1, 2).copy(), device=self.device)
        if self.constant:
            return self.table[0][classes]
        steps = torch.arange(first - self.first, first - self.first + M, device=self.device)
        return self.table[steps.unsqueeze(-1), classes]


class SGDEngine:
    """Runs the discrete process over groups of blocks.

    Parameters
    ----------
    plan : Plan
        With learning rates.
    keeper : Keeper
    """

    def __init__(self, plan: Plan, keeper: Keeper):
        assert plan.rates is not None
        self.plan, self.keeper = plan, keeper
        self.rates = [float(rate) for rate in plan.rates]
        self.iterations = [iteration_counts(plan.times, rate) for rate in self.rates]
        self.transform = RowTransform(plan.coefficients.transform, plan.device)
        K, N, p = plan.n_classes, plan.n_samples, plan.n_features
        self.block_bytes = 8.0 * BLOCK * (N * (3 * p + 1) + CHUNK * (K + 2 * p))
        self.groups = groups(plan, self.block_bytes, MOST_BLOCKS, "the samples of its replicates")

    def run(self, cell: int, blocks: list[Block], tick: Tick) -> None:
        """Fill the rows of some blocks."""
        plan = self.plan
        saved, rate = self.iterations[cell], self.rates[cell]
        clock = NoiseClock(plan, rate, int(saved[-1]))
        displacements, parts = [], []
        for block in blocks:
            means, offsets = plan.initial(cell, block)
            displacements.append(means)
            parts.append(OwnParts(plan, cell, block, offsets, clock))
        D = torch.cat(displacements)
        kicks = Kicks(plan.coefficients, plan.times[0], rate, int(saved[-1]), plan.device)
        self._store(cell, blocks, D, [part.value for part in parts], 0)
        for index, (begin, stop) in enumerate(itertools.pairwise(saved.tolist()), start=1):
            for first in range(begin, stop, CHUNK):
                self._advance(D, parts, kicks, first, min(first + CHUNK, stop))
                if not math.isfinite(float(D.sum())) and not bool(torch.isfinite(D).all()):
                    raise plan.diverged(index)
            self._store(cell, blocks, D, [part.update(stop) for part in parts], index)
            for _ in blocks:
                tick()

    def _advance(
        self, D: torch.Tensor, parts: list[OwnParts], kicks: Kicks, first: int, end: int
    ) -> None:
        """Do iterations first..end-1 on D (replicate, class, feature), in place."""
        K, p = D.shape[1:]
        pushes, columns, drawn = [], [], []
        ages = parts[0].clock.ages(first, end)
        for part in parts:
            classes, own = part.visit(ages)
            pushes.append(self.transform.many(own.view(-1, p), classes.view(-1)).view_as(own))
            columns.append(kicks.columns(first, classes))
            drawn.append(classes)
        classes = torch.cat(drawn, 1)
        push = torch.cat(pushes, 1)
        column = torch.cat(columns, 1).unsqueeze(-1)
        flat = D.view(-1, p)
        row = classes + K * torch.arange(len(D), device=D.device)
        for r, k, x, E in zip(
            row.unbind(0), classes.unbind(0), push.unbind(0), column.unbind(0), strict=True
        ):
            moved = self.transform.step(flat.index_select(0, r), k)
            D.addcmul_(E, moved.add(x).unsqueeze(1))

    def _store(
        self,
        cell: int,
        blocks: list[Block],
        D: torch.Tensor,
        values: list[torch.Tensor],
        index: int,
    ) -> None:
        for block, means, own in zip(blocks, D.split(BLOCK), values, strict=True):
            samples = (spread(means, self.plan.counts) + own).to(self.plan.dtype)
            self.keeper.frame(cell, block, index, samples)
