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
from lesde.processes.process import BLOCK, Random
from lesde.processes.samples import (
    DTYPE,
    ModelProcess,
    draw_start,
    expected_directions,
    spread,
)

CHUNK = 256
"""Iterations prepared at once, fewer where a table of kicks over them were large. It is part of the stream."""
TABLE_NUMBERS = 2**22


def sgd_iterations(times: np.ndarray, rate: float | None) -> np.ndarray:
    """Iterations done at every saved time; without a learning rate there are none."""
    if rate is None:
        raise ValueError(
            "learning_rate is the step of engine='sgd'; got learning_rate=None. Give a number or a "
            "sequence, or use engine='exact' for the limit of small learning rates."
        )
    return iteration_counts(times, rate)


@dataclass
class _State:
    D: torch.Tensor
    """Class displacements (replicate, class, feature), float64."""
    own: torch.Tensor
    """Samples' own parts (replicate, sample, feature), float64, when they were last visited."""
    visited: torch.Tensor
    """The age of the noise then, (replicate, sample)."""
    age: np.ndarray
    """The age of the noise now, (column,)."""
    index: int = 0
    """Of the saved time."""


class SGDPaths(ModelProcess):
    """SGD on a model whose kernel depends on classes and time.

    The age of noise is the variance that it has added, Σ h σ_k² over the iterations, in a column per class unless
    all share it; for constant matrices σ_k it is the time.
    """

    iterations: np.ndarray
    times: np.ndarray
    coefficients: Any

    def prepare(self, times: np.ndarray, statistics: bool) -> SGDPaths:
        made = copy.copy(self)
        made.iterations = sgd_iterations(times, self.rate)
        made.times = seen_times(times, [self.rate or 0.0], [made.iterations])
        made.coefficients = derive(self.model).coefficients()
        if statistics:
            made.directions = expected_directions(self.model, self.initial, made.times)
        return made

    def start(self, rng: Random, replicates: int) -> _State:
        means, offsets = draw_start(self.model, self.initial, rng)
        shape = (replicates, self.model.n_samples, self.model.n_features)
        own = torch.zeros(shape, dtype=DTYPE, device=rng.device)
        if offsets is not None:
            own += offsets
        noise = self.coefficients.noise
        one = noise.is_shared or not noise.is_isotropic
        self.matrices = None
        if not noise.is_isotropic:
            self.matrices = torch.tensor(noise.factor(np.zeros(1))[0], device=rng.device)
        self.transforms = Transforms(self.model.transform, DTYPE, rng.device)
        self.labels = torch.as_tensor(self.model.labels, device=rng.device)
        self.columns = torch.zeros_like(self.labels) if one else self.labels
        age = np.zeros(1 if one else self.model.n_classes)
        return _State(means.clone(), own, torch.zeros_like(own[..., 0]), age)

    def advance(self, rng: Random, state: _State, t0: float, t1: float) -> _State:
        begin, stop = self.iterations[state.index : state.index + 2].tolist()
        state.index += 1
        rng = rng.stream("deviations")
        chunk = CHUNK
        if not self.coefficients.kick_table.is_constant:
            chunk = int(np.clip(TABLE_NUMBERS // len(self.counts) ** 2, 1, CHUNK))
        for first in range(begin, stop, chunk):
            self._iterate(rng, state, first, min(first + chunk, stop))
            if not bool(torch.isfinite(state.D).all()):
                break  # seen by the loop
        # All samples are brought up to the last iteration.
        ages = torch.as_tensor(state.age, device=rng.device)[self.columns]
        normals = rng.normal(*state.own.shape)
        state.own += self._grown(
            normals, ages - state.visited, self.labels.expand(len(normals), -1)
        )
        state.visited[:] = ages
        return state

    def observe(self, rng: Random, state: _State) -> dict[str, torch.Tensor]:
        return {"features": (spread(state.D, self.counts) + state.own).to(rng.dtype)}

    def _iterate(self, rng: Random, state: _State, first: int, end: int) -> None:
        """Do the iterations first..end-1, in place."""
        times = self.times[0] + (self.rate or 0.0) * np.arange(first, end)
        at = times[:1] if self.coefficients.kick_table.is_constant else times
        # Drawn class first, so that a drawn class picks a row.
        kicks = (self.rate or 0.0) * self.coefficients.kicks(at).swapaxes(1, 2)
        tables = torch.tensor(kicks, device=rng.device)
        classes, own = self._visit(rng, state, self._ages(state, times))
        classes, own = classes.T.contiguous(), own.transpose(0, 1).contiguous()
        step = torch.arange(len(times), device=rng.device) % len(tables)
        columns = tables[step.unsqueeze(-1), classes].unsqueeze(-1)
        D = state.D
        flat = D.view(-1, D.shape[-1])
        rows = classes + D.shape[1] * torch.arange(len(D), device=D.device)
        for row, k, x, E in zip(
            rows.unbind(0), classes.unbind(0), own.unbind(0), columns.unbind(0), strict=True
        ):
            moved = self._push(flat.index_select(0, row).add_(x), k)
            D.addcmul_(E, moved.unsqueeze(1))

    def _ages(self, state: _State, times: np.ndarray) -> torch.Tensor:
        """Ages before and after each of the iterations at these times, (iteration + 1, column)."""
        added: Any = np.ones((len(times), 1))
        if self.matrices is None:
            added = self.coefficients.noise.scale(times)[:, : len(state.age)] ** 2
        ages = np.concatenate([state.age[None], (self.rate or 0.0) * added]).cumsum(0)
        state.age = ages[-1]
        return torch.as_tensor(ages, device=state.D.device)

    def _visit(
        self, rng: Random, state: _State, ages: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw the samples of some iterations; their classes and own parts (replicate, iteration[, feature])."""
        R, N, p = state.own.shape
        M = len(ages) - 1
        J = rng.integers(N, R, M)
        normals = rng.normal(R, M, p).double()
        # Sorted by sample, then iteration, the visits of one sample are neighbours.
        sample, order = J.sort(dim=1, stable=True)
        place = sample + N * torch.arange(R, device=J.device).unsqueeze(1)
        column = _picked(self.columns, sample)
        age = _picked(ages.flatten(), order * ages.shape[1] + column)
        opens = torch.ones_like(sample, dtype=torch.bool)
        opens[:, 1:] = sample[:, 1:] != sample[:, :-1]
        visited, flat = state.visited.view(-1), state.own.view(-1, p)
        previous = _picked(visited, place)
        previous[:, 1:] = torch.where(opens[:, 1:], previous[:, 1:], age[:, :-1])
        growth = self._grown(normals, age - previous, _picked(self.labels, sample))
        # What a sample has grown in this chunk: a running total less that before its first visit.
        total = growth.cumsum(1)
        position = torch.arange(R * M, device=J.device).view(R, M)
        opened = torch.where(opens, position, 0).cummax(1).values
        before = _picked((total - growth).view(-1, p), opened)
        own = _picked(flat, place) + (total - before)

        closes = torch.ones_like(opens)
        closes[:, :-1] = opens[:, 1:]
        last = closes.flatten().nonzero().squeeze(1)
        at = _picked(place.flatten(), last)
        flat.index_copy_(0, at, _picked(own.view(-1, p), last))
        visited.index_copy_(0, at, _picked(age.flatten(), last))
        in_order = torch.empty_like(own)
        in_order.scatter_(1, order.unsqueeze(-1).expand_as(own), own)
        return _picked(self.labels, J), in_order

    def _grown(
        self, normals: torch.Tensor, gaps: torch.Tensor, classes: torch.Tensor
    ) -> torch.Tensor:
        """Normals (…, feature) of samples of the classes (…), scaled for differences of ages (…)."""
        rows = normals * gaps.sqrt().unsqueeze(-1)
        if self.matrices is None:
            return rows
        return _by_class(self.matrices, rows, classes)

    def _push(self, rows: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        """H_l x for rows of the classes (row,), bit for bit whatever the number of blocks."""
        transforms = self.transforms
        if transforms.matrices is None:
            return transforms.rows(rows, classes)
        if transforms.is_shared:
            # One product per block: the rounding of a longer one depends on its length.
            turned = transforms.matrices[0].T
            blocks = rows.view(-1, BLOCK, rows.shape[-1])
            return torch.bmm(blocks, turned.expand(len(blocks), -1, -1)).view_as(rows)
        return transforms.rows(rows, classes)


def _picked(rows: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Rows (row, …) at an index of any shape, in a third of the time of ``rows[index]``."""
    return rows.index_select(0, index.flatten()).view(*index.shape, *rows.shape[1:])


def _by_class(matrices: torch.Tensor, rows: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """Rows (replicate, …, feature) times the matrices of their classes (replicate, …), block by block."""
    result = torch.empty_like(rows)
    for x, drawn, out in zip(*(each.split(BLOCK) for each in (rows, classes, result)), strict=True):
        for k, matrix in enumerate(matrices):
            chosen = drawn == k
            out[chosen] = x[chosen] @ matrix.T
    return result
