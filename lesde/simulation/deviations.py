"""The deviations of samples from their class mean, drawn at the saved times only.

For a kernel of classes and time every sample of a class has the same drift, so a deviation is its
initial value plus Brownian motion less that motion's average over the class: σ(W_i − W̄_k). It does not
depend on the class means.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from lesde.noise import finite_variance
from lesde.simulation.classes import class_sums, spread
from lesde.simulation.noise import BLOCK
from lesde.simulation.plan import Block, Plan
from lesde.simulation.steps import StepGrid

__all__ = ["Deviations", "IntervalNoise", "square_roots"]


NUMBERS = 2**20
"""Numbers of a block that are worked on together: few enough for the last cache, with as few calls as can be."""

ROW = 32
"""Numbers that are shifted in one go where samples are placed."""

STEPS = 2**12
"""Steps at which noise is tabulated at once."""


@dataclass(frozen=True)
class IntervalNoise:
    """What noise adds to a sample over the intervals between saved times.

    Attributes
    ----------
    scale : ndarray (interval, class), or None
        Its standard deviation per coordinate, where noise is isotropic.
    factors : ndarray (interval, class, feature, feature)
        A root of its covariance, otherwise.
    """

    scale: np.ndarray | None
    factors: np.ndarray

    @classmethod
    @np.errstate(over="ignore", invalid="ignore")
    def exact(cls, noise: Any, times: np.ndarray) -> IntervalNoise:
        """The integral of the noise between successive times."""
        if noise.is_isotropic:
            return cls(np.sqrt(noise.integrated_scale(times)), np.empty(0))
        if noise.is_constant:
            widths = np.diff(times)[:, None, None, None]
            factors = noise.factor(times[:-1]) * np.sqrt(widths)
            finite_variance(factors @ factors.swapaxes(-1, -2), times)
            return cls(None, factors)
        return cls(None, square_roots(noise.integrated(times)))

    @classmethod
    @np.errstate(over="ignore", invalid="ignore")
    def of_scheme(cls, noise: Any, grid: StepGrid, method: str) -> IntervalNoise:
        """What a solver's steps add, which differs from the integral where noise depends on time."""
        if noise.is_constant:
            return cls.exact(noise, grid.times)
        sums: Any = 0.0
        for first in range(0, len(grid.starts), STEPS):
            sums = sums + _added(noise, grid, method, first, min(first + STEPS, len(grid.starts)))
        finite_variance(sums, grid.times)
        if noise.is_isotropic:
            return cls(np.sqrt(sums[..., 0, 0]), np.empty(0))
        return cls(None, square_roots(sums))

    def __getitem__(self, interval: int) -> np.ndarray:
        """The roots of every class: (class,) where isotropic, else (class, feature, feature)."""
        return self.factors[interval] if self.scale is None else self.scale[interval]

    @cached_property
    def common(self) -> list[float | None]:
        """For every interval the standard deviation that all classes share, None where they do not."""
        if self.scale is None:
            return [None] * len(self.factors)
        shared = (self.scale == self.scale[:, :1]).all(axis=1).tolist()
        first = self.scale[:, 0].tolist()
        return [value if one else None for one, value in zip(shared, first, strict=True)]

    def grown(self) -> list[np.ndarray]:
        """Roots of what noise has added up to every saved time, the first of them zero."""
        if self.scale is not None:
            sums = np.sqrt(np.cumsum(self.scale**2, axis=0))
            return [np.zeros_like(sums[0]), *sums]
        covariances = self.factors @ self.factors.swapaxes(-1, -2)
        roots = square_roots(np.cumsum(covariances, axis=0))
        return [np.zeros_like(roots[0]), *roots]


def _added(noise: Any, grid: StepGrid, method: str, first: int, end: int) -> np.ndarray:
    """What steps first..end-1 add to the covariance in every interval, (interval, class, …, …)."""
    starts, widths = grid.starts[first:end], grid.widths[first:end]
    edges = np.append(starts, starts[-1] + widths[-1])
    values = noise.scale(edges)[..., None, None] if noise.is_isotropic else noise.factor(edges)
    left, right = values[:-1], values[1:]
    squares = left @ left.swapaxes(-1, -2)
    if method == "srk":  # σ(t+Δ)(I − U/Δ) + σ(t) U/Δ, with the increment I and its integral U
        mixed = left @ right.swapaxes(-1, -2)
        squares = squares + right @ right.swapaxes(-1, -2)
        squares = (squares + (mixed + mixed.swapaxes(-1, -2)) / 2) / 3
    sums = np.zeros((len(grid.times) - 1, *squares.shape[1:]))
    interval = grid.interval(np.arange(first, end))
    begins = np.flatnonzero(np.diff(interval, prepend=-1))
    sums[interval[begins]] = np.add.reduceat(squares * widths[:, None, None, None], begins, axis=0)
    return sums


def _shift_classes(values: torch.Tensor, shift: torch.Tensor, out: torch.Tensor) -> None:
    """Add a row of every class to its samples, for classes of equal size.

    ``values``, ``out`` (time, row, sample, feature), ``shift`` (time, row, class, feature). The row is
    repeated for several samples, because a loop over the few numbers of one sample is slow.
    """
    K, p = shift.shape[2:]
    n = values.shape[2] // K
    several = max(1, min(n, ROW // p))
    wide = shift.unsqueeze(3).expand(-1, -1, -1, several, -1)
    repeated = wide.flatten(3).unsqueeze(3)
    values, out = values.unflatten(2, (K, n)), out.unflatten(2, (K, n))
    whole = n - n % several
    for samples, at_once in ((slice(0, whole), several), (slice(whole, n), 1)):
        if samples.start < samples.stop:
            parts = (x[:, :, :, samples] for x in (values, out))
            rows, target = (part.view(*part.shape[:3], -1, at_once * p) for part in parts)
            torch.add(rows, repeated[..., : at_once * p], out=target)


def square_roots(covariances: np.ndarray) -> np.ndarray:
    """A with A Aᵀ the covariances (…, feature, feature), of any rank."""
    values, vectors = np.linalg.eigh(covariances)
    return vectors * np.sqrt(np.clip(values, 0.0, None))[..., None, :]


class Deviations:
    """The samples of one block, without their drift, at successive saved times.

    Parameters
    ----------
    plan : Plan
    cell : int
    block : Block
    offsets : tensor (replicate, sample, feature), or None
        Initial deviations.
    noise : IntervalNoise
    """

    def __init__(
        self,
        plan: Plan,
        cell: int,
        block: Block,
        offsets: torch.Tensor | None,
        noise: IntervalNoise,
    ):
        self.counts, self.noise = plan.counts, noise
        self.generator = plan.noise(cell, block, "deviations")
        # Not centred: the average over a class is taken off where samples are placed.
        shape = (BLOCK, plan.n_samples, plan.n_features)
        self.last = torch.zeros(shape, dtype=plan.dtype, device=plan.device)
        if offsets is not None:
            self.last += offsets
        self._space = torch.empty(
            (self.times_at_once(plan), *shape), dtype=plan.dtype, device=plan.device
        )
        sizes = torch.tensor(self.counts.tolist(), dtype=torch.float64, device=plan.device)
        self.sizes = sizes.unsqueeze(-1)
        self.balanced = bool((self.counts == self.counts[0]).all())

    @staticmethod
    def times_at_once(plan: Plan) -> int:
        """Saved times whose deviations are drawn together; depends on the model alone."""
        return max(1, min(64, NUMBERS // (BLOCK * plan.n_samples * plan.n_features)))

    @classmethod
    def bytes(cls, plan: Plan) -> float:
        """Working memory of a block."""
        size = torch.empty(0, dtype=plan.dtype).element_size()
        frames = 3.0 + cls.times_at_once(plan)
        return frames * size * BLOCK * plan.n_samples * plan.n_features

    def first(self) -> torch.Tensor:
        """The deviations at the first time, (1, replicate, sample, feature)."""
        return self.last.unsqueeze(0)

    def following(self, first: int, count: int) -> torch.Tensor:
        """The deviations at the ends of ``count`` intervals, (time, replicate, sample, feature).

        Overwritten by the next call.
        """
        values = self.generator.normal_(self._space[:count])
        last = self.last
        for i, part in enumerate(values):
            common = self.noise.common[first + i]
            if common is None:
                self._scale(part, first + i)
                part.add_(last)
            else:
                torch.add(last, part, alpha=common, out=part)
            last = part
        self.last.copy_(values[-1])
        return values

    def _scale(self, draws: torch.Tensor, interval: int) -> None:
        """Multiply normals (replicate, sample, feature) by each class's noise, in place."""
        roots, first = self.noise[interval], 0
        for n, root in zip(self.counts, roots, strict=True):
            part = draws[:, first : first + int(n)]
            if root.ndim == 0:
                part.mul_(float(root))
            else:
                turned = torch.as_tensor(root.T.copy(), dtype=draws.dtype, device=draws.device)
                part.copy_(part @ turned)
            first += int(n)

    def place(self, values: torch.Tensor, means: torch.Tensor, out: torch.Tensor) -> None:
        """Write samples, deviations about class means, into ``out``.

        Parameters
        ----------
        values : tensor (time, replicate, sample, feature)
        means : tensor (time, replicate, class, feature), float64
        out : tensor (time, row, sample, feature)
            Replicates beyond its rows are dropped.
        """
        rows = out.shape[1]
        sums = class_sums(values, self.counts)
        shift = (means - sums.double() / self.sizes).to(values.dtype)[:, :rows]
        values = values[:, :rows]
        direct = out.device == values.device
        target = out if direct else torch.empty_like(values)
        if self.balanced:
            _shift_classes(values, shift, target)
        else:
            torch.add(values, spread(shift, self.counts), out=target)
        if not direct:
            out.copy_(target)
