"""Runs the engines of linear models: class means from their own process, and what lies about them.

Class means and the samples' deviations from them are independent, so the means are computed at
whatever steps their engine needs, and deviations, or their statistics, are drawn at the saved times.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from lesde.errors import Diverged
from lesde.paths import gap_directions
from lesde.processes.deviations import Deviations, IntervalNoise, Scatter, draw_reach
from lesde.processes.means import MOST_BLOCKS, MeanPaths
from lesde.processes.plan import (
    Block,
    Features,
    Keeper,
    Plan,
    Statistics,
    Tick,
    all_samples,
    groups,
)
from lesde.processes.random import BLOCK, BlockNoise

__all__ = ["ClassFrame", "Reach", "SampleEngine", "StatisticsEngine", "scattered"]


REACH_TIMES = 32
REACH_NUMBERS = 2**19
"""Saved times whose reaches are drawn at once, and numbers of their directions."""
WORTH_THREADS = 512
"""Numbers of a replicate from which threads gain more than they cost."""


class SampleEngine:
    """Every sample at the saved times.

    Parameters
    ----------
    plan : Plan
    keeper : Keeper
    means : MeanPaths
    """

    def __init__(self, plan: Plan, keeper: Keeper, means: MeanPaths):
        self.plan, self.keeper, self.means = plan, keeper, means
        self.block_bytes = means.block_bytes() + Deviations.bytes(plan)
        self.groups = groups(plan, self.block_bytes, MOST_BLOCKS, "the samples of its replicates")
        self.parallel = plan.n_samples * plan.n_features >= WORTH_THREADS
        self.noises = [means.interval_noise(cell) for cell in range(plan.cells)]

    def run(self, cell: int, blocks: list[Block], tick: Tick) -> None:
        """Fill the rows of some blocks."""
        plan = self.plan
        starts, deviations = [], []
        for block in blocks:
            means, offsets = plan.initial(cell, block)
            starts.append(means)
            samples = all_samples(means, offsets, plan.counts, plan.dtype)
            self.keeper.frame(cell, block, 0, samples)
            deviations.append(Deviations(plan, cell, block, offsets, self.noises[cell]))
        start = torch.stack(starts)
        several, last = Deviations.times_at_once(plan), len(plan.times) - 1
        waiting: list[torch.Tensor] = []
        paths = self.means.paths(cell, blocks, start)
        for index in range(1, last + 1):
            try:
                waiting.append(next(paths))
            except Diverged:  # in the paths' precision a time before may have been too large
                if waiting:
                    self._check(index - len(waiting), torch.stack(waiting))
                raise
            if len(waiting) == several or index == last:
                begin, several_means = index - len(waiting), torch.stack(waiting)
                self._check(begin + 1, several_means)
                values = [own.following(begin, len(waiting)) for own in deviations]
                self._place(cell, blocks, begin + 1, several_means, deviations, values)
                for _ in range(len(blocks) * len(waiting)):
                    tick()
                waiting = []

    def _check(self, first: int, means: torch.Tensor) -> None:
        """Raise Diverged at the first of some saved times at which class means are not finite.

        Or not in the paths' precision.
        """
        rounded = means.to(self.plan.dtype)
        if not math.isfinite(float(rounded.sum())):  # one sum is cheaper than a mask
            for i, frame in enumerate(rounded):
                self.keeper.check(first + i, frame)

    def _place(
        self,
        cell: int,
        blocks: list[Block],
        first: int,
        means: torch.Tensor,
        deviations: list[Deviations],
        values: list[torch.Tensor],
    ) -> None:
        """Hand over successive saved times; means are (time, block, replicate, class, feature)."""
        times = slice(first, first + len(means))
        for b, (block, own) in enumerate(zip(blocks, deviations, strict=True)):
            if isinstance(self.keeper, Features):
                out = self.keeper.view(cell, block, times)
                own.place(values[b], means[:, b], out)
                if not math.isfinite(float(out.sum())):
                    for i, frame in enumerate(out):
                        self.keeper.check(first + i, frame)
                continue
            samples = torch.empty_like(values[b])
            own.place(values[b], means[:, b], samples)
            for i, frame in enumerate(samples):
                self.keeper.frame(cell, block, first + i, frame)


ClassFrame = tuple[torch.Tensor, np.ndarray]
"""Class means (block, replicate, class, feature) and within-class covariances (…, feature, feature)."""


class Reach:
    """How far classes reach toward each other, drawn anew at every saved time.

    The law at each time is that of the samples; draws at different times are independent of each
    other, and of the within-class covariance, given the class means.

    Parameters
    ----------
    plan : Plan
        Started from class means: every sample's deviation is then Gaussian.
    noise : IntervalNoise
    """

    def __init__(self, plan: Plan, noise: IntervalNoise):
        self.counts, self.roots = plan.counts, noise.grown()

    def __call__(
        self, first: int, noise: BlockNoise, directions: np.ndarray
    ) -> tuple[np.ndarray, bool]:
        """Reaches of a block at successive saved times, and whether jointly.

        ``directions`` (time, set, replicate, class, class_, feature) are unit vectors from class_ to
        class, in any number of sets; the result is (time, set, replicate, class, class_).
        """
        roots = np.stack(self.roots[first : first + len(directions)])
        if roots.ndim == 2:
            turned = directions * roots[:, None, None, :, None, None]
        else:
            turned = directions @ roots[:, None, None]
        # The noise's factor goes into the directions, so that all times are drawn at once.
        flat = turned.reshape(-1, *turned.shape[3:])
        reach, joint = draw_reach(noise, 1.0, self.counts, flat)
        return reach.reshape(turned.shape[:-1]), joint


class StatisticsEngine:
    """Statistics of each class at the saved times, at a cost that does not depend on its samples.

    Parameters
    ----------
    plan : Plan
        Started from class means.
    keeper : Statistics
    means : MeanPaths, or what yields class means with the scatter that goes with them
    """

    def __init__(self, plan: Plan, keeper: Statistics, means: Any):
        self.plan, self.keeper, self.means = plan, keeper, means
        keeper.reach_paths = False
        # Reaches of several times are drawn at once, of a number that depends on the model alone.
        size = BLOCK * plan.n_classes**2 * plan.n_features
        self.batch = max(1, min(REACH_TIMES, REACH_NUMBERS // size))
        numbers = 8.0 * size * 6 * self.batch
        scatter = Scatter.bytes(plan.counts, plan.n_features)
        self.block_bytes = means.block_bytes() + scatter + numbers
        self.groups = groups(plan, self.block_bytes, MOST_BLOCKS, "class means and scatter")
        self.noises = [means.interval_noise(cell) for cell in range(plan.cells)]
        self.reaches = [Reach(plan, noise) for noise in self.noises]

    def run(self, cell: int, blocks: list[Block], tick: Tick) -> None:
        """Fill the rows of some blocks."""
        start = torch.stack([self.plan.initial(cell, block)[0] for block in blocks])
        noises = [self.plan.noise(cell, block, "reach") for block in blocks]
        frames: list[tuple[np.ndarray, np.ndarray]] = []
        first = 0
        for index, (means, within) in enumerate(self._frames(cell, blocks, start)):
            self.keeper.check(index, means.to(self.plan.dtype))
            frames.append((means.cpu().numpy(), within))
            if len(frames) == self.batch or index == len(self.plan.times) - 1:
                self._keep(cell, blocks, noises, first, frames, tick)
                first, frames = index + 1, []

    def _keep(
        self,
        cell: int,
        blocks: list[Block],
        noises: list[BlockNoise],
        first: int,
        frames: list[tuple[np.ndarray, np.ndarray]],
        tick: Tick,
    ) -> None:
        """Draw the reaches at some successive times and hand all statistics over."""
        keeper = self.keeper
        for b, (block, noise) in enumerate(zip(blocks, noises, strict=True)):
            directions = gap_directions(np.stack([means[b] for means, _ in frames]))[:, None]
            if keeper.directions is not None:
                fixed = keeper.directions[first : first + len(frames), None, None]
                fixed = np.broadcast_to(fixed, directions.shape)
                directions = np.concatenate([directions, fixed], axis=1)
            reach, joint = self.reaches[cell](first, noise, directions)
            keeper.joint &= joint
            for i, (means, within) in enumerate(frames):
                keeper.statistics(cell, block, first + i, means[b], within[b], *reach[i])
                if first + i:
                    tick()

    def _frames(self, cell: int, blocks: list[Block], start: torch.Tensor) -> Iterator[ClassFrame]:
        if hasattr(self.means, "frames"):
            yield from self.means.frames(cell, blocks, start)
        else:
            paths = self.means.paths(cell, blocks, start)
            yield from scattered(self.plan, cell, blocks, start, paths, self.noises[cell])


def scattered(
    plan: Plan,
    cell: int,
    blocks: list[Block],
    start: torch.Tensor,
    paths: Iterator[torch.Tensor],
    noise: IntervalNoise,
) -> Iterator[ClassFrame]:
    """Class means at all saved times with the scatter of deviations that do not depend on them."""
    noises = [plan.noise(cell, block, "deviations") for block in blocks]
    scatter = Scatter(noises, plan.counts, plan.n_features)
    yield start, scatter.covariances()
    for index, means in enumerate(paths):
        scatter.advance(noise[index])
        yield means, scatter.covariances()
