"""Engines that carry every sample: for kernels of the features, and where samples steer the noise.

Where the kernel depends on classes and time only, cheaper engines have the same law (see ``reduced``
and ``sgd``); these serve what is left. A run works on one block of replicates at a time and stores
nothing but the state, so with statistics kept its memory does not grow with the saved times.
"""

from __future__ import annotations

import itertools
import math
import threading
from typing import Any

import numpy as np
import torch

from lesde.simulation.brownian import StepIncrements
from lesde.simulation.class_interaction import ClassInteraction
from lesde.simulation.classes import all_samples
from lesde.simulation.interaction import Interaction
from lesde.simulation.keeping import Keeper
from lesde.simulation.noise import BLOCK
from lesde.simulation.plan import Block, Plan, Tick, groups
from lesde.simulation.sample_sde import OwnNoise, SampleSDE
from lesde.simulation.sgd import iteration_counts
from lesde.simulation.steps import StepGrid, integrate

__all__ = ["IntegratedSamples", "Interactions", "ParticleSGD"]

AHEAD = 2**20
"""Random numbers of a block that are drawn at once."""
MOST_SAMPLES = 200_000
"""Samples up to which pairs are summed over: beyond, one step takes minutes."""
CHECKED = 64
"""Steps after which a path is looked at for overflow."""


class Interactions:
    """The maps from samples to drift, kicks and sampling noise: one object a thread.

    Parameters
    ----------
    plan : Plan
    """

    def __init__(self, plan: Plan):
        self.plan = plan
        self._own = threading.local()
        self._kernel = plan.coefficients.depends_on_features and self._feature_kernel()

    def _feature_kernel(self) -> Interaction:
        plan = self.plan
        if plan.n_samples > MOST_SAMPLES:
            raise ValueError(
                f"a FeatureKernel needs all pairs of samples at every step, {plan.n_samples**2:.2g} for "
                f"n_per_class = {plan.counts.tolist()}; give at most {MOST_SAMPLES:,} samples in all, "
                f"which stand for larger classes: the drift is an average over the samples."
            )
        if not hasattr(self._own, "made"):
            self._own.made = Interaction(plan.coefficients, plan.dtype, plan.device)
        return self._own.made

    def __call__(self, rate: float | None) -> Any:
        """That of the calling thread; ``rate`` is for the modified equation."""
        if self.plan.coefficients.depends_on_features:
            return self._feature_kernel()
        return ClassInteraction(self.plan, rate)

    def bytes(self) -> float:
        """Working memory of a block."""
        if not self._kernel:
            return 0.0
        lanes = most_lanes(self.plan)
        return float(self._kernel.tile_bytes + lanes * self._kernel.bytes_per_replicate)


def live_lanes(plan: Plan, block: Block) -> int:
    """The replicates of a block that are computed.

    A pair of samples costs more than its random numbers, so those of a feature kernel that nobody asked
    for are left out: its results do not depend on how many come together.
    """
    wanted = block.rows.stop - block.rows.start
    return wanted if plan.coefficients.depends_on_features else BLOCK


def most_lanes(plan: Plan) -> int:
    """The most replicates that are computed of any block."""
    return max(live_lanes(plan, block) for block in plan.blocks())


class IntegratedSamples:
    """All samples integrated step by step by torchsde.

    Parameters
    ----------
    plan : Plan
    keeper : Keeper
    method : {"euler", "milstein", "srk"}
    steps : list of float
        The step of every cell.
    """

    parallel = True

    def __init__(self, plan: Plan, keeper: Keeper, method: str, steps: list[float]):
        self.plan, self.keeper, self.method = plan, keeper, method
        self.grids = [StepGrid.regular(plan.times, dt) for dt in steps]
        channels = BLOCK * plan.n_samples * (plan.n_features + (plan.sde != "plain"))
        self.length = max(1, min(CHECKED, AHEAD // channels))
        size = torch.empty(0, dtype=plan.dtype).element_size()
        parts = 2 if method == "srk" else 1
        self.interactions = Interactions(plan)
        lanes = most_lanes(plan)
        drawn = channels * (self.length * parts + 1)
        self.block_bytes = (
            size * (drawn + channels / BLOCK * lanes * 11) + self.interactions.bytes()
        )
        self.groups = groups(plan, self.block_bytes, 1, "the samples of its replicates")

    def run(self, cell: int, blocks: list[Block], tick: Tick) -> None:
        """Fill the rows of a block."""
        plan, grid = self.plan, self.grids[cell]
        (block,) = blocks
        rate = None if plan.rates is None else float(plan.rates[cell])
        lanes = live_lanes(plan, block)
        sde = SampleSDE(plan, grid, rate, self.interactions(rate), lanes)
        noise = plan.noise(cell, block, "means")
        brownian = StepIncrements(
            [noise],
            sde.channels,
            self.length,
            plan.dtype,
            self.method == "srk",
            select=sde.select,
        )
        samples = all_samples(*plan.initial(cell, block), plan.counts, plan.dtype)[:lanes]
        self.keeper.frame(cell, block, 0, samples)
        state = samples.view(1, -1)
        for first, end, saved in grid.stretches(self.length):
            sde.load(first, end, self.method)
            brownian.fill(first, grid.widths[first:end])
            # One call a saved time: a call keeps the states at all its output times.
            marks = [done for done, _ in saved]
            for begin, stop in itertools.pairwise(sorted({first, *marks, end})):
                state = integrate(sde, state, [begin, stop], brownian, self.method)[-1]
                for done, index in saved:
                    if done == stop:
                        self.keeper.frame(cell, block, index, state.view(sde.shape))
                        tick()
            if not bool(torch.isfinite(state).all()):
                later = int(np.searchsorted(grid.saved, end))
                raise plan.diverged(later)


class ParticleSGD:
    """The discrete process with all samples in memory.

    Parameters
    ----------
    plan : Plan
        With learning rates.
    keeper : Keeper
    """

    parallel = True

    def __init__(self, plan: Plan, keeper: Keeper):
        assert plan.rates is not None
        self.plan, self.keeper = plan, keeper
        self.rates = [float(rate) for rate in plan.rates]
        self.iterations = [iteration_counts(plan.times, rate) for rate in self.rates]
        size = torch.empty(0, dtype=plan.dtype).element_size()
        self.interactions = Interactions(plan)
        lanes = most_lanes(plan)
        numbers = (3 * BLOCK + 5 * lanes) * plan.n_samples * plan.n_features
        self.block_bytes = float(size * numbers) + self.interactions.bytes()
        self.groups = groups(plan, self.block_bytes, 1, "the samples of its replicates")

    def run(self, cell: int, blocks: list[Block], tick: Tick) -> None:
        """Fill the rows of a block."""
        plan = self.plan
        (block,) = blocks
        rate, saved = self.rates[cell], self.iterations[cell]
        interaction = self.interactions(None)
        own = OwnNoise(plan, plan.coefficients.noise)
        noise = plan.noise(cell, block, "means")
        lanes = live_lanes(plan, block)
        samples = all_samples(*plan.initial(cell, block), plan.counts, plan.dtype)
        normals = torch.empty_like(samples)
        samples = samples[:lanes]
        self.keeper.frame(cell, block, 0, samples)
        for first in range(0, int(saved[-1]), CHECKED):
            end = min(first + CHECKED, int(saved[-1]))
            times = plan.times[0] + rate * np.arange(first, end)
            own.prepare(times)
            if hasattr(interaction, "prepare"):
                interaction.prepare(times)
            drawn = noise.integers(plan.n_samples, CHECKED, BLOCK)
            for m, time in enumerate(times.tolist()):
                kick = interaction.kick(samples, drawn[m, :lanes], time)
                samples.add_(kick, alpha=rate)
                fresh = own(noise.normal_(normals)[:lanes], time)
                samples.add_(fresh, alpha=math.sqrt(rate))
                for index in np.flatnonzero(saved == first + m + 1):
                    self.keeper.frame(cell, block, int(index), samples)
                    tick()
            if not bool(torch.isfinite(samples).all()):
                later = int(np.searchsorted(saved, end))
                raise plan.diverged(later)
