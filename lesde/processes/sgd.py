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
from lesde.model.transforms import Transform
from lesde.processes.plan import Block, Keeper, Plan, Tick, groups, spread
from lesde.processes.random import BLOCK

__all__ = [
    "CHUNK",
    "TABLE_BYTES",
    "Colour",
    "NoiseClock",
    "OwnParts",
    "SGDEngine",
    "iteration_counts",
    "multiply_rows",
]


# --------------------------------------------------------------------------------------------------
# The noise factor σ_k applied to standard normals, as cheaply as its structure allows.


def multiply_rows(
    matrices: torch.Tensor, rows: torch.Tensor, classes: torch.Tensor
) -> torch.Tensor:
    """Every row (..., feature) multiplied by the matrix of its class (...), without gathering them."""
    result = torch.empty_like(rows)
    for k, matrix in enumerate(matrices):
        chosen = classes == k
        result[chosen] = rows[chosen] @ matrix.T
    return result


class Colour:
    """σ_k of every class.

    Attributes
    ----------
    uniform : float or None
        σ where it is one number for all classes.
    scale : tensor (class,), or None
        σ_k where they are numbers.
    factors : tensor (class, feature, feature)
        σ_k in general.
    """

    def __init__(self, coefficients: Coefficients, dtype: torch.dtype, device: torch.device):
        self.counts = coefficients.counts
        numbers = coefficients.noise_scale()
        self.uniform: float | None = None
        self.scale: torch.Tensor | None = None
        self.factors = torch.empty(0)
        if numbers is None:
            factors = coefficients.noise_factor.copy()
            self.factors = torch.as_tensor(factors, dtype=dtype, device=device)
        elif (numbers == numbers[0]).all():
            self.uniform = float(numbers[0])
        else:
            self.scale = torch.as_tensor(numbers.copy(), dtype=dtype, device=device)
            labels = torch.as_tensor(np.repeat(np.arange(len(numbers)), self.counts), device=device)
            self._columns = self.scale[labels].unsqueeze(-1)

    def samples(self, normals: torch.Tensor) -> torch.Tensor:
        """σ_k times the normals of all samples (..., sample, feature), sorted by class."""
        if self.uniform is not None:
            return normals * self.uniform
        if self.scale is not None:
            return normals * self._columns
        parts = normals.split(self.counts.tolist(), -2)
        return torch.cat([x @ f.T for x, f in zip(parts, self.factors, strict=True)], -2)

    def rows(self, normals: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        """σ_k times normals (..., feature) of samples of the given classes (...)."""
        if self.uniform is not None:
            return normals * self.uniform
        if self.scale is not None:
            return normals * self.scale[classes].unsqueeze(-1)
        return multiply_rows(self.factors, normals, classes)


# --------------------------------------------------------------------------------------------------
# The samples' own noise in the discrete process, drawn when a sample is drawn or saved.

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


# --------------------------------------------------------------------------------------------------

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
