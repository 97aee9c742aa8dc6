"""Paths of the class means at the saved times: from the exact law, or integrated by torchsde."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Protocol

import numpy as np
import torch

from lesde.errors import Diverged
from lesde.propagator import Transition
from lesde.simulation.brownian import StepIncrements, prefetch_length
from lesde.simulation.deviations import IntervalNoise
from lesde.simulation.graphs import captured_steps
from lesde.simulation.mean_sde import DTYPE, MeanSDE, from_rows, to_rows
from lesde.simulation.noise import BLOCK
from lesde.simulation.plan import Block, Plan
from lesde.simulation.steps import StepGrid, integrate

__all__ = ["MOST_BLOCKS", "ExactMeans", "IntegratedMeans", "MeanPaths"]

MOST_BLOCKS = 8
"""Blocks side by side: more gain little."""


class MeanPaths(Protocol):
    """What gives the class means of blocks, one saved time after the other."""

    def block_bytes(self) -> float:
        """Working memory of a block."""

    def paths(self, cell: int, blocks: list[Block], start: torch.Tensor) -> Iterator[torch.Tensor]:
        """Class means (block, replicate, class, feature), float64, at the second, third, … time."""

    def interval_noise(self, cell: int) -> IntervalNoise:
        """What noise adds to a sample between saved times."""


class ExactMeans:
    """Gaussian transitions between the saved times; computed once for all replicates.

    Parameters
    ----------
    plan : Plan
    steps : list of Transition
        The derivation's, between the plan's times.
    """

    def __init__(self, plan: Plan, steps: list[Transition]):
        self.plan, self.steps = plan, steps
        last = None
        for time, step in zip(plan.times[1:], self.steps, strict=True):
            if step is last:  # equal intervals share one
                continue
            last = step
            if not all(np.isfinite(part).all() for part in (step.phi, *(c for c, _ in step.parts))):
                raise Diverged(time)

        self.parts = self.steps[0].n_normals
        self.ahead = prefetch_length(BLOCK * plan.n_classes * plan.n_features * self.parts)

    def block_bytes(self) -> float:
        """Working memory of a block."""
        size = BLOCK * self.plan.n_classes * self.plan.n_features
        return 8.0 * size * (4 + self.ahead * (2 + self.parts))

    def interval_noise(self, cell: int) -> IntervalNoise:
        """What noise adds to a sample between saved times."""
        return IntervalNoise.exact(self.plan.coefficients.noise, self.plan.times)

    def paths(self, cell: int, blocks: list[Block], start: torch.Tensor) -> Iterator[torch.Tensor]:
        """Class means (block, replicate, class, feature) at the second, third, … saved time."""
        plan = self.plan
        noises = [plan.noise(cell, block, "means") for block in blocks]
        K, p = plan.n_classes, plan.n_features
        # Coordinates are (…, contrast, replicate, feature): grand mean and contrasts, each with its
        # own digits, and products with matrices of few rows and many columns.
        basis = self.steps[0].basis
        state = _left(basis.T, start.transpose(1, 2).cpu().numpy())
        for first in range(0, len(self.steps), self.ahead):
            steps = self.steps[first : first + self.ahead]
            shape = (len(steps), self.parts, K, BLOCK, p)
            draws = [noise.normal(*shape, dtype=torch.float64) for noise in noises]
            # Not around the yield, where the setting would be the caller's too.
            with np.errstate(over="ignore", invalid="ignore"):
                noise = self._coloured(steps, torch.stack(draws).cpu().numpy())
                self._accumulate(steps, state, noise)
                state = noise[:, -1]
                means = torch.from_numpy(_left(basis, noise))
            yield from means.permute(1, 0, 3, 2, 4).to(plan.device)

    @staticmethod
    def _accumulate(steps: list[Transition], state: np.ndarray, noise: np.ndarray) -> None:
        """Turn the noise of successive intervals into states, in place."""
        rows = noise.reshape(*noise.shape[:3], -1)
        last = state.reshape(len(state), len(rows[0, 0]), -1)
        for i, step in enumerate(steps):
            if step.is_small(step.phi):
                last = np.add(step.phi @ last, rows[:, i], out=rows[:, i])
            else:
                moved = _apply(step, step.phi, last.reshape(state.shape))
                last = np.add(moved.reshape(last.shape), rows[:, i], out=rows[:, i])

    def _coloured(self, steps: list[Transition], normals: np.ndarray) -> np.ndarray:
        """The noise of successive intervals, (block, interval, contrast, replicate, feature)."""
        total = np.empty_like(normals[:, :, 0])
        first = 0
        for _, same in itertools.groupby(steps, key=id):
            count = len(list(same))
            step, rows = steps[first], normals[:, first : first + count]
            parts = []
            for i, (root, (_, factor)) in enumerate(zip(step.roots, step.parts, strict=True)):
                part = _apply(step, root, rows[:, :, i])
                parts.append(part if factor is None or _is_unit(factor) else part @ factor.T)
            total[:, first : first + count] = sum(parts[1:], parts[0])
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


def _is_unit(factor: np.ndarray) -> bool:
    return bool((factor == np.eye(len(factor))).all())


class IntegratedMeans:
    """The class means integrated step by step by torchsde.

    Parameters
    ----------
    plan : Plan
    method : {"euler", "milstein", "srk"}
    steps : list of float
        The step of every cell.
    """

    def __init__(self, plan: Plan, method: str, steps: list[float]):
        self.plan, self.method = plan, method
        self.grids = [StepGrid.regular(plan.times, dt) for dt in steps]
        self.sdes = [MeanSDE(plan, grid, method) for grid in self.grids]
        self.length = prefetch_length(self.sdes[0].channels)

    def block_bytes(self) -> float:
        """Working memory of a block."""
        channels = self.sdes[0].channels
        parts = 2 if self.method == "srk" else 1
        outputs = min(self.length, len(self.plan.times)) + 8
        return 8.0 * channels * (self.length * parts + outputs)

    def interval_noise(self, cell: int) -> IntervalNoise:
        """What the solver's steps add to a sample between saved times."""
        noise = self.sdes[cell].noise
        return IntervalNoise.of_scheme(noise, self.grids[cell], self.method)

    def paths(self, cell: int, blocks: list[Block], start: torch.Tensor) -> Iterator[torch.Tensor]:
        """Class means (block, replicate, class, feature) at the second, third, … saved time."""
        plan, grid, sde = self.plan, self.grids[cell], self.sdes[cell]
        noises = [plan.noise(cell, block, "means") for block in blocks]
        # On other devices the bits of a product may depend on the number of rows: keep that fixed.
        padding = 0 if plan.device.type == "cpu" else MOST_BLOCKS - len(blocks)
        brownian = StepIncrements(
            noises, sde.channels, self.length, DTYPE, self.method == "srk", sde.colour, padding
        )
        state = torch.nn.functional.pad(to_rows(start), (0, 0, 0, padding))
        replayed = captured_steps(sde, brownian, self.method, self.length, state)
        for first, end, saved in grid.stretches(self.length):
            sde.load(first, end)
            brownian.fill(first, grid.widths[first:end])
            marks = [done for done, _ in saved]
            if replayed is not None and end - first == self.length:
                states = replayed(state)
                wanted = [states[done - first] for done in marks]
            else:
                inside = [done for done in marks if done < end]
                states = integrate(sde, state, [first, *inside, end], brownian, self.method)
                wanted = list(states[1 : len(marks) + 1])
            state = states[-1]
            for values in wanted:
                yield from_rows(values[: len(blocks)], plan.n_classes)
            if not bool(torch.isfinite(state).all()):
                later = int(np.searchsorted(grid.saved, end))
                raise plan.diverged(later)
