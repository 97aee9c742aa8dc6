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

from lesde.laws.rule import modified_drift, modified_noise
from lesde.processes.integration import STAGES, StepGrid, StepIncrements, integrate
from lesde.processes.means import DTYPE, ClassMaps, ShiftedNoise, drift_slopes
from lesde.processes.pairs import Interaction
from lesde.processes.plan import (
    Block,
    Keeper,
    Plan,
    Tick,
    all_samples,
    class_means,
    class_sums,
    groups,
    spread,
)
from lesde.processes.random import BLOCK
from lesde.processes.sgd import iteration_counts

__all__ = [
    "ClassInteraction",
    "IntegratedSamples",
    "Interactions",
    "OwnNoise",
    "ParticleSGD",
    "SampleSDE",
]


# --------------------------------------------------------------------------------------------------
# How samples move each other where the kernel depends on classes and time, sample by sample.


class ClassInteraction:
    """Drift, kicks and sampling noise of a kernel of classes and time.

    Samples are (replicate, sample, feature), sorted by class; results have their shape and dtype.

    Parameters
    ----------
    plan : Plan
    rate : float or None
        The learning rate, for the modified equation.
    """

    def __init__(self, plan: Plan, rate: float | None = None):
        self.plan, self.counts = plan, plan.counts
        self.rate = rate if plan.sde == "modified" else None
        self.maps = ClassMaps(plan)
        self._tables: dict[float, tuple[torch.Tensor, ...]] = {}
        self._labels = torch.as_tensor(
            np.repeat(np.arange(plan.n_classes), plan.counts), device=plan.device
        )

    def prepare(self, times: np.ndarray) -> None:
        """Tabulate the kernel at the times that will be asked for next."""
        coefficients = self.plan.coefficients
        unique = np.unique(times)
        parts = [coefficients.weights(unique), coefficients.kicks(unique)]
        tables = [torch.as_tensor(part, dtype=DTYPE, device=self.plan.device) for part in parts]
        if self.rate is not None:
            tables.append(drift_slopes(self.plan, unique))
        rows = zip(*(table.unbind(0) for table in tables), strict=True)
        self._tables = dict(zip(unique.tolist(), rows, strict=True))

    def _at(self, time: float) -> tuple[torch.Tensor, ...]:
        if time not in self._tables:
            self.prepare(np.array([time]))
        return self._tables[time]

    def _rows(self, means: torch.Tensor) -> torch.Tensor:
        """Class means (replicate, class, feature) as the one block (1, class, replicate, feature)."""
        return means.double().transpose(0, 1).unsqueeze(0).contiguous()

    def _spread(self, rows: torch.Tensor, samples: torch.Tensor) -> torch.Tensor:
        return spread(rows[0].transpose(0, 1).to(samples.dtype), self.counts)

    def drift(self, samples: torch.Tensor, time: float) -> torch.Tensor:
        """b of every sample, in a modified equation with its correction."""
        matrix, _, *slope = self._at(time)
        rows = self._rows(class_means(samples, self.counts))
        if self.rate is None:
            return self._spread(self.maps(matrix, rows), samples)
        turned = modified_drift(
            lambda x: self.maps(matrix, x), lambda x: self.maps(slope[0], x), rows, self.rate
        )
        return self._spread(turned, samples)

    def noise(self, noise: torch.Tensor, time: float) -> torch.Tensor:
        """The samples' own noise, in a modified equation with what it adds to whole classes."""
        if self.rate is None:
            return noise
        matrix = self._at(time)[0]
        rows = self._rows(class_means(noise, self.counts))
        change = modified_noise(lambda x: self.maps(matrix, x), rows, self.rate) - rows
        return noise + self._spread(change, noise)

    def kick(self, samples: torch.Tensor, drawn: torch.Tensor, time: float) -> torch.Tensor:
        """E_kL H_L X_J of every sample, for the sample J (replicate,) drawn in each replicate."""
        kicks = self._at(time)[1]
        lanes = torch.arange(len(samples), device=samples.device)
        classes = self._labels[drawn]
        rows = torch.zeros(
            (len(samples), self.plan.n_classes, samples.shape[-1]),
            dtype=DTYPE,
            device=samples.device,
        )
        rows[lanes, classes] = samples[lanes, drawn].double()
        return self._spread(self.maps(kicks, self._rows(rows)), samples)

    def drift_and_sampling(
        self, samples: torch.Tensor, time: float, normals: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The drift, and C^{1/2} applied to one normal a sample, (1/√N) Σ_j (E_kl H_l X_j − b_k) ξ_j.

        b is that of the plain equation in either case.
        """
        matrix, kicks, *slope = self._at(time)
        rows = self._rows(class_means(samples, self.counts))
        plain = self.maps(matrix, rows)
        moved = self._rows(class_sums(samples * normals.unsqueeze(-1), self.counts))
        shared = normals.double().sum(1)[None, None, :, None]
        sampled = (self.maps(kicks, moved) - plain * shared) / math.sqrt(samples.shape[1])
        drift = plain
        if self.rate is not None:
            drift = modified_drift(
                lambda x: self.maps(matrix, x), lambda x: self.maps(slope[0], x), rows, self.rate
            )
        return self._spread(drift, samples), self._spread(sampled, samples)


# --------------------------------------------------------------------------------------------------
# The SDE of every sample of a block, as torchsde calls it.


class OwnNoise:
    """σ_k(t) applied to normals of every sample.

    Parameters
    ----------
    plan : Plan
    noise : Noise, or what has its interface
    """

    def __init__(self, plan: Plan, noise: Any):
        self.plan, self.noise = plan, noise
        self._known: dict[float, torch.Tensor | float] = {}

    def prepare(self, times: np.ndarray) -> None:
        """Tabulate the noise at the times that will be asked for next."""
        unique = np.unique(times)
        plan, noise = self.plan, self.noise
        at = unique[:1] if noise.is_constant else unique
        values: list[Any]
        if noise.is_isotropic and noise.is_shared:
            values = noise.scale(at)[:, 0].tolist()
        elif noise.is_isotropic:
            scale = torch.as_tensor(noise.scale(at), dtype=plan.dtype, device=plan.device)
            values = list(spread(scale.unsqueeze(-1), plan.counts).unbind(0))
        else:
            factors = np.ascontiguousarray(np.swapaxes(noise.factor(at), -1, -2))
            values = list(torch.as_tensor(factors, dtype=plan.dtype, device=plan.device).unbind(0))
        self._known = dict(zip(unique.tolist(), values * (len(unique) // len(at)), strict=True))

    def __call__(self, normals: torch.Tensor, time: float) -> torch.Tensor:
        """Normals (replicate, sample, feature) times σ."""
        if time not in self._known:
            self.prepare(np.array([time]))
        factor = self._known[time]
        if self.noise.is_isotropic:
            return normals * factor
        assert isinstance(factor, torch.Tensor)
        parts = normals.split(self.plan.counts.tolist(), 1)
        return torch.cat([part @ own for part, own in zip(parts, factor, strict=True)], 1)


class SampleSDE:
    """The SDE of all samples of a block in step time, with torchsde's names.

    The state is one row, (1, replicate·sample·feature); with sampling noise one more noise channel a
    sample follows those of the state.

    Parameters
    ----------
    plan : Plan
    grid : StepGrid
    rate : float or None
        The learning rate, where the SDE has sampling noise.
    interaction : Interaction or ClassInteraction
    lanes : int, default 32
        The replicates that are wanted of the block.
    """

    sde_type = "ito"

    def __init__(
        self, plan: Plan, grid: StepGrid, rate: float | None, interaction: Any, lanes: int = BLOCK
    ):
        self.plan, self.grid = plan, grid
        self.rate = None if plan.sde == "plain" else rate
        self.noise_type = "additive" if self.rate is None else "general"
        self.interaction = interaction
        noise = plan.coefficients.noise
        if plan.sde == "modified" and not noise.is_constant:
            assert rate is not None
            noise = ShiftedNoise(plan, rate)
        self.own = OwnNoise(plan, noise)
        self.shape = (lanes, plan.n_samples, plan.n_features)
        # Only these are wanted of the numbers that a block draws, in the order drawn.
        self.select: torch.Tensor | None = None
        if lanes < BLOCK:
            own = torch.arange(math.prod(self.shape))
            extra = torch.arange(lanes * plan.n_samples) + BLOCK * math.prod(self.shape[1:])
            chosen = own if self.rate is None else torch.cat([own, extra])
            self.select = chosen.to(plan.device)

    @property
    def channels(self) -> int:
        """Noise channels of a block."""
        each = self.plan.n_features + (0 if self.rate is None else 1)
        return BLOCK * self.plan.n_samples * each

    def load(self, first: int, end: int, method: str) -> None:
        """Tabulate what depends on time for the steps first..end-1."""
        starts, widths = self.grid.starts[first:end], self.grid.widths[first:end]
        stages = np.unique([*STAGES[method], 0.0, 1.0 if method == "srk" else 0.0])
        times = np.array([starts + stage * widths for stage in stages]).ravel()
        self.own.prepare(times)
        if hasattr(self.interaction, "prepare"):
            self.interaction.prepare(times)

    def _time(self, t: torch.Tensor) -> tuple[float, float]:
        """The model's time and the step's width at a step time."""
        step = min(math.floor(float(t)), len(self.grid.widths) - 1)
        width = float(self.grid.widths[step])
        return float(self.grid.starts[step] + (float(t) - step) * width), width

    def f(self, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Drift over one step."""
        time, width = self._time(t)
        return self.interaction.drift(y.view(self.shape), time).mul(width).reshape(y.shape)

    def g_prod(self, t: torch.Tensor, y: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Noise over one step."""
        if self.rate is None:
            return self.own(v.view(self.shape), self._time(t)[0]).reshape(y.shape)
        return self.f_and_g_prod(t, y, v)[1]

    def f_and_g_prod(
        self, t: torch.Tensor, y: torch.Tensor, v: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        time, width = self._time(t)
        samples = y.view(self.shape)
        own = self.own(v[:, : y.shape[1]].view(self.shape), time)
        if self.rate is None:
            drift = self.interaction.drift(samples, time)
        else:
            normals = v[:, y.shape[1] :].view(self.shape[:2])
            drift, sampled = self.interaction.drift_and_sampling(samples, time, normals)
            if self.plan.sde == "modified":
                own = self.interaction.noise(own, time)
            own = own.add(sampled, alpha=math.sqrt(self.rate))
        return drift.mul(width).reshape(y.shape), own.reshape(y.shape)


# --------------------------------------------------------------------------------------------------

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
