"""The LE-SDE from its exact law: Gaussian transitions of the class means between the saved times.

The transitions are computed once for all replicates, so that the cost does not depend on any step. Only
for kernels of classes and time.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from lesde.derivation import derive
from lesde.laws.system import contrast_basis
from lesde.laws.transitions import Transition, transitions
from lesde.processes.integration import prefetch_length
from lesde.processes.process import BLOCK, Random
from lesde.processes.samples import DTYPE, AboutMeans, IntervalNoise

__all__ = ["ExactPaths"]


class ExactPaths(AboutMeans):
    """The law of the LE-SDE at the saved times."""

    def __init__(self, model: Any, initial: Any):
        super().__init__(model, initial)
        self.attributes["engine"] = "exact"

    def tabulate(self, times: np.ndarray) -> IntervalNoise:
        coefficients = derive(self.model).coefficients()
        with np.errstate(over="ignore", invalid="ignore"):
            steps = transitions(coefficients, times)
        # From a growth that overflows on nothing is finite.
        finite = {
            id(s): all(np.isfinite(m).all() for m in (s.phi, *(c for c, _ in s.parts)))
            for s in steps
        }
        self.steps = list(itertools.takewhile(lambda step: finite[id(step)], steps))
        return IntervalNoise.exact(coefficients.noise, times)

    def memory(self, times: np.ndarray, statistics: bool, replicates: int) -> tuple[float, float]:
        model = self.model
        K, p = model.n_classes, model.n_features
        # The law of a kernel that changes in time holds it at all nodes of an interval.
        constant = model.entries.is_constant
        size, widths = K if model.transform.kind == "identity" else K * p, np.diff(times)
        alike = constant and np.allclose(widths, widths[0], rtol=1e-12)
        tables = (45 if constant else 200) + 4 * (1 if alike else len(widths))
        numbers = BLOCK * K * p
        means = 8.0 * numbers * (4 + prefetch_length(numbers) * 3)
        return 8.0 * size**2 * tables, means + self.block_bytes(statistics)

    def path(self, rng: Random, start: torch.Tensor) -> Iterator[tuple[torch.Tensor, None]]:
        K, p = self.model.n_classes, self.model.n_features
        parts = self.steps[0].n_normals if self.steps else 1
        ahead = prefetch_length(BLOCK * K * p * parts)
        # Coordinates are (…, contrast, replicate, feature): grand mean and contrasts, each with its
        # own digits, and products with matrices of few rows and many columns.
        basis = contrast_basis(K)
        state = _left(basis.T, start.transpose(1, 2).cpu().numpy())
        for first in range(0, len(self.steps), ahead):
            steps = self.steps[first : first + ahead]
            shape = (len(steps), parts, K, BLOCK, p)
            draws = [noise.normal(*shape, dtype=DTYPE) for noise in rng.stream("means").blocks]
            # Not around the yield, where the setting would be the caller's too.
            with np.errstate(over="ignore", invalid="ignore"):
                rows = _noise(steps, torch.stack(draws).cpu().numpy())
                for i, step in enumerate(steps):
                    rows[:, i] += _apply(step, step.phi, state)
                    state = rows[:, i]
                means = torch.from_numpy(_left(basis, rows)).to(rng.device)
            for mean in means.unbind(1):
                yield mean.transpose(1, 2), None
        yield from itertools.repeat((torch.full_like(start, torch.nan), None))


def _noise(steps: list[Transition], normals: np.ndarray) -> np.ndarray:
    """The noise of successive intervals (block, interval, contrast, replicate, feature)."""
    total = np.zeros_like(normals[:, :, 0])
    first = 0
    for _, same in itertools.groupby(steps, key=id):  # equal intervals share a transition
        count = len(list(same))
        step, part = steps[first], slice(first, first + count)
        for i, (root, (_, factor)) in enumerate(zip(step.roots, step.parts, strict=True)):
            rows = _apply(step, root, normals[:, part, i])
            if factor is not None and not (factor == np.eye(len(factor))).all():
                rows = rows @ factor.T
            total[:, part] += rows
        first += count
    return total


def _left(matrix: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """A matrix of classes or contrasts times rows (…, class, replicate, feature)."""
    return (matrix @ rows.reshape(*rows.shape[:-2], -1)).reshape(rows.shape)


def _apply(step: Transition, matrix: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """A matrix of a transition times rows (…, contrast, replicate, feature)."""
    if step.is_small(matrix):
        return _left(matrix, rows)
    return step.apply(matrix, rows.swapaxes(-3, -2)).swapaxes(-3, -2)
