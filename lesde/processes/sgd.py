"""SGD: the discrete process itself, one sample drawn at every iteration.

An iteration moves every sample i of every class k by h E_kL(t) H_L X_J + √h σ_k ζ_i. All samples of a
class get the same kick, so a replicate is its class displacements D (class, feature) and the samples'
own Brownian parts. Of the latter only the drawn sample's is needed, and since its last visit it has
grown by one Gaussian: p normals per iteration instead of N·p, and the law is exactly the same. All
samples are brought up to date at the saved times.

The own parts do not depend on D. So those of many iterations are prepared at once, and only
D ← D + h E_·L ⊗ H_L (D_L + own part of X_J) is done one by one.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from lesde.clocks import iteration_counts, seen_times
from lesde.derivation import derive
from lesde.laws.rule import Transforms
from lesde.model.lesde import LESDE, Initial
from lesde.processes.process import BLOCK, BlockNoise, Random
from lesde.processes.samples import DTYPE, draw_start, expected_directions, spread

__all__ = ["SGDPaths"]

CHUNK = 256
"""Iterations prepared at once. Changing it changes the stream of random numbers."""
TABLE_BYTES = 2**25
"""Of a table over iterations."""


class Tables:
    """Kicks and ages of noise, tabulated for some thousands of iterations at a time.

    The age is the variance that noise has added: the number of iterations where noise is constant, else
    Σ h σ_k² over them, per class unless all share it.
    """

    def __init__(
        self, model: LESDE, coefficients: Any, start: float, rate: float, last: int, device: Any
    ):
        self.coefficients, self.noise = coefficients, coefficients.noise
        self.start, self.rate, self.last, self.device = start, rate, last, device
        K = model.n_classes
        per_class = not (self.noise.is_constant or self.noise.is_shared)
        labels = torch.as_tensor(model.labels, device=device)
        self.columns = labels if per_class else torch.zeros_like(labels)
        """Column of every sample in the ages."""
        self.constant = coefficients.kick_table.is_constant
        self.length = max(CHUNK, TABLE_BYTES // (8 * K**2))
        self.first = self.end = 0
        self.age = np.zeros((1, K if per_class else 1))
        self.kicks = torch.empty(0)
        # √h σ_k, where noise is constant: one number, one per class, or a matrix per class.
        self.factors: torch.Tensor | None = None
        if self.noise.is_constant:
            zero = np.zeros(1)
            isotropic = self.noise.is_isotropic
            factors = (self.noise.scale(zero) if isotropic else self.noise.factor(zero))[0]
            self.factors = torch.tensor(factors * np.sqrt(rate), device=device)

    def load(self, first: int, end: int) -> None:
        """Tabulate so that the iterations first..end-1, which follow those before, are there."""
        if end <= self.end:
            return
        self.age = self.age[first - self.first :]
        self.first, self.end = first, min(first + self.length, self.last)
        times = self.start + self.rate * np.arange(first, self.end)
        if not self.noise.is_constant:
            scale = self.noise.scale(times)[:, : self.age.shape[1]]
            self.age = np.cumsum(np.concatenate([self.age[:1], self.rate * scale**2]), axis=0)
        if not self.constant or not len(self.kicks):
            values = self.rate * self.coefficients.kicks(times[:1] if self.constant else times)
            # Drawn class first, so that a drawn class picks a row.
            self.kicks = torch.as_tensor(values.swapaxes(1, 2).copy(), device=self.device)

    def ages(self, first: int, end: int) -> torch.Tensor:
        """Ages before the iterations first..end, (iteration, column)."""
        if self.noise.is_constant:
            return torch.arange(first, end + 1, dtype=DTYPE, device=self.device).unsqueeze(1)
        part = self.age[first - self.first : end - self.first + 1]
        return torch.as_tensor(part, device=self.device)

    def columns_of(self, first: int, classes: torch.Tensor) -> torch.Tensor:
        """h E_·L for the drawn classes (iteration, replicate): (iteration, replicate, class)."""
        if self.constant:
            return self.kicks[0][classes]
        steps = torch.arange(len(classes), device=self.device) + (first - self.first)
        return self.kicks[steps.unsqueeze(-1), classes]

    def grow(
        self, normals: torch.Tensor, gaps: torch.Tensor, classes: torch.Tensor
    ) -> torch.Tensor:
        """Normals (…, feature) of samples of the classes (…), scaled for differences of ages (…)."""
        rows = normals * gaps.sqrt().unsqueeze(-1)
        if self.factors is None:
            return rows
        if self.factors.ndim == 1:
            if self.noise.is_shared:
                return rows * self.factors[0]
            return rows * self.factors[classes].unsqueeze(-1)
        return _by_class(self.factors, rows, classes)


def _by_class(matrices: torch.Tensor, rows: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """Every row (..., feature) multiplied by the matrix of its class (...), without gathering them."""
    result = torch.empty_like(rows)
    for k, matrix in enumerate(matrices):
        chosen = classes == k
        result[chosen] = rows[chosen] @ matrix.T
    return result


class OwnParts:
    """The Brownian parts (with initial deviations) of a block's samples, known at their last visit.

    ``value`` (replicate, sample, feature) holds at the age ``visited`` (replicate, sample) of the noise.
    """

    def __init__(
        self, noise: BlockNoise, model: LESDE, start: torch.Tensor | None, dtype: torch.dtype
    ):
        self.noise, self.dtype = noise, dtype
        self.N, self.p = model.n_samples, model.n_features
        shape = (BLOCK, self.N, self.p)
        self.value = torch.zeros(shape, dtype=DTYPE, device=noise.device)
        if start is not None:
            self.value += start
        self.visited = torch.zeros(shape[:2], dtype=DTYPE, device=noise.device)
        self.classes = torch.as_tensor(model.labels, device=noise.device)
        self.lanes = torch.arange(BLOCK, device=noise.device).expand(CHUNK, BLOCK)

    def visit(self, tables: Tables, ages: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw the samples of some iterations, of which ages (iteration + 1, column) are given.

        Returns their classes (iteration, replicate) and their own parts (iteration, replicate,
        feature) when drawn.
        """
        M = len(ages) - 1
        J = self.noise.integers(self.N, M, BLOCK)
        normals = self.noise.normal(M, BLOCK, self.p, dtype=self.dtype).double()
        lanes = self.lanes[:M]
        # Sorted by sample, then iteration, the visits of one sample are neighbours.
        sample, order = J.sort(dim=0, stable=True)
        age = ages[order, tables.columns[sample]]
        opens = torch.ones_like(sample, dtype=torch.bool)
        opens[1:] = sample[1:] != sample[:-1]
        previous = self.visited[lanes, sample]
        previous[1:] = torch.where(opens[1:], previous[1:], age[:-1])
        growth = tables.grow(normals, age - previous, self.classes[sample])
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

    def update(self, tables: Tables, iteration: int) -> None:
        """Bring all samples up to an iteration."""
        normals = self.noise.normal(BLOCK, self.N, self.p, dtype=self.dtype)
        age = tables.ages(iteration, iteration)[0, tables.columns]
        self.value += tables.grow(normals, age - self.visited, self.classes.expand(BLOCK, -1))
        self.visited[:] = age


@dataclass
class _State:
    D: torch.Tensor
    """Class displacements (replicate, class, feature), float64."""
    parts: list[OwnParts]
    tables: Tables
    index: int = 0


class SGDPaths:
    """SGD on a model whose kernel depends on classes and time."""

    most_blocks = 64
    directions: np.ndarray | None = None
    iterations: np.ndarray
    times: np.ndarray
    coefficients: Any

    def __init__(self, model: LESDE, initial: Initial):
        self.model, self.initial, self.counts = model, initial, model.counts
        self.n_features = model.n_features
        self.rate: float | None = None
        start = "random" if initial.is_random else "given"
        self.attributes = {"initial": start, "engine": "sgd"}

    def describe(self) -> dict[str, Any]:
        return self.model.describe()

    def at(self, learning_rate: float) -> SGDPaths:
        made = copy.copy(self)
        made.rate = learning_rate
        return made

    def _iterations(self, times: np.ndarray) -> np.ndarray:
        if self.rate is None:
            raise ValueError(
                "learning_rate is the step of engine='sgd'; got learning_rate=None. Give a number or a "
                "sequence, or use engine='exact' for the limit of small learning rates."
            )
        return iteration_counts(times, self.rate)

    def memory(self, times: np.ndarray, statistics: bool, replicates: int) -> tuple[float, float]:
        K, N, p = self.model.n_classes, self.model.n_samples, self.model.n_features
        last = int(self._iterations(times)[-1])
        constant = self.model.entries.is_constant
        held = 1 if constant else min(last, max(CHUNK, TABLE_BYTES / (8 * K**2)))
        block = 8.0 * BLOCK * (N * (3 * p + 1) + CHUNK * (K + 2 * p))
        return 8.0 * K**2 * (12 + 2 * held), block

    def prepare(self, times: np.ndarray, statistics: bool) -> SGDPaths:
        made = copy.copy(self)
        made.iterations = self._iterations(times)
        made.coefficients = derive(self.model).coefficients()
        assert self.rate is not None
        made.times = seen_times(times, [self.rate], [made.iterations])
        if statistics:
            made.directions = expected_directions(self.model, self.initial, made.times)
        return made

    def start(self, rng: Random, replicates: int) -> _State:
        means, offsets = draw_start(self.model, self.initial, rng)
        own = [None] * len(rng.blocks) if offsets is None else offsets.split(BLOCK)
        noises = rng.stream("deviations").blocks
        parts = [
            OwnParts(noise, self.model, part, rng.dtype)
            for noise, part in zip(noises, own, strict=True)
        ]
        last = int(self.iterations[-1])
        assert self.rate is not None
        begin = float(self.times[0])
        tables = Tables(self.model, self.coefficients, begin, self.rate, last, rng.device)
        self.transforms = Transforms(self.model.transform, DTYPE, rng.device)
        return _State(means.clone(), parts, tables)

    def advance(self, rng: Random, state: _State, t0: float, t1: float) -> _State:
        begin, stop = self.iterations[state.index : state.index + 2].tolist()
        state.index += 1
        for first in range(begin, stop, CHUNK):
            self._iterate(state, first, min(first + CHUNK, stop))
            if not bool(torch.isfinite(state.D).all()):
                break  # seen by the loop
        for part in state.parts:
            part.update(state.tables, stop)
        return state

    def observe(self, rng: Random, state: _State) -> dict[str, torch.Tensor]:
        samples = spread(state.D, self.counts)
        samples = samples.view(len(state.parts), BLOCK, *samples.shape[1:])
        placed = [a + part.value for a, part in zip(samples, state.parts, strict=True)]
        return {"features": torch.cat(placed).to(rng.dtype)}

    def _iterate(self, state: _State, first: int, end: int) -> None:
        """Do the iterations first..end-1 on D, in place."""
        D, tables, (K, p) = state.D, state.tables, state.D.shape[1:]
        tables.load(first, end)
        ages = tables.ages(first, end)
        pushes, drawn = [], []
        for part in state.parts:
            classes, own = part.visit(tables, ages)
            push = self._push_many(own.view(-1, p), classes.view(-1))
            pushes.append(push.view_as(own))
            drawn.append(classes)
        classes, push = torch.cat(drawn, 1), torch.cat(pushes, 1)
        columns = tables.columns_of(first, classes).unsqueeze(-1)
        flat = D.view(-1, p)
        rows = classes + K * torch.arange(len(D), device=D.device)
        for row, k, x, E in zip(
            rows.unbind(0), classes.unbind(0), push.unbind(0), columns.unbind(0), strict=True
        ):
            moved = self._push(flat.index_select(0, row), k)
            D.addcmul_(E, moved.add(x).unsqueeze(1))

    def _push(self, rows: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        """H_l x for rows of the classes (row,), bit for bit whatever the number of blocks."""
        transforms = self.transforms
        if transforms.matrices is not None and transforms.is_shared:
            # One product per block: the rounding of a longer one depends on its length.
            turned = transforms.matrices[0].T
            blocks = rows.view(-1, BLOCK, rows.shape[-1])
            return torch.bmm(blocks, turned.expand(len(blocks), -1, -1)).view_as(rows)
        return transforms.rows(rows, classes)

    def _push_many(self, rows: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        """The same for so many rows that a matrix for each would not fit."""
        transforms = self.transforms
        if transforms.matrices is not None and not transforms.is_shared:
            return _by_class(transforms.matrices, rows, classes)
        return self._push(rows, classes)
