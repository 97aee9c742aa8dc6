"""Processes that carry every sample: for kernels of the features.

Where the kernel depends on classes and time only, cheaper processes have the same law (see `torchsde` and `sgd`).
A state consists of the samples (replicate, sample, feature) alone, so with statistics kept the memory does not
grow with the saved times.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from lesde.clocks import StepGrid, seen_times
from lesde.derivation import derive
from lesde.errors import Diverged
from lesde.model.lesde import LESDE, Initial
from lesde.processes.pairs import PairInteraction
from lesde.processes.process import Random
from lesde.processes.samples import ModelProcess, draw_start, spread, times_noise
from lesde.processes.sgd import sgd_iterations
from lesde.processes.torchsde import refuse_noise

MOST_SAMPLES = 200_000
"""Samples up to which pairs are summed over: beyond, one step takes minutes."""
CHECKED = 64
"""Steps after which a path is looked at for overflow, and for which what depends on time is tabulated."""
FORMULA = (
    "see that the formula of the FeatureKernel is finite for all pairs of samples (r2 is 0 for a sample and "
    "itself, g and c may be negative); else end `times` earlier, weaken the kernel, or take smaller steps"
)


@dataclass
class _State:
    samples: torch.Tensor
    interaction: PairInteraction
    index: int = 0
    """Of the saved time."""


class _Particles(ModelProcess):
    """The part that the two processes of all samples share."""

    parallel = True
    times: np.ndarray
    noise: Any

    def __init__(self, model: LESDE, initial: Initial, engine: str):
        super().__init__(model, initial, engine)
        if model.n_samples > MOST_SAMPLES:
            raise ValueError(
                f"a FeatureKernel needs all pairs of samples at every step, {model.n_samples**2:.2g} for "
                f"n_per_class = {self.counts.tolist()}; give at most {MOST_SAMPLES:,} samples in all, "
                f"which stand for larger classes: the drift is an average over the samples."
            )

    def prepare(self, times: np.ndarray, statistics: bool) -> Any:
        made = copy.copy(self)
        made.times, made.noise = times, derive(self.model).coefficients().noise
        made.noise.factor(times[:1])  # not finite there: says so by name
        return made

    def start(self, rng: Random, replicates: int) -> _State:
        interaction = PairInteraction(derive(self.model).coefficients(), rng.dtype, rng.device)
        means, offsets = draw_start(self.model, self.initial, rng)
        samples = spread(means, self.counts)
        samples = (samples if offsets is None else samples + offsets).to(rng.dtype)
        # Pairs of samples cost more than random numbers: only the replicates that were asked for.
        return _State(samples[: interaction.rounded(rng.wanted)].contiguous(), interaction)

    def _normals(self, rng: Random, samples: torch.Tensor) -> torch.Tensor:
        return rng.normal(rng.replicates, *samples.shape[1:])[: len(samples)]

    def _sigma(self, times: np.ndarray) -> np.ndarray:
        """σ_k at the times, numbers or matrices."""
        return self.noise.scale(times) if self.noise.is_isotropic else self.noise.factor(times)

    def _own(self, normals: torch.Tensor, sigma: np.ndarray) -> torch.Tensor:
        return times_noise(normals, sigma, self.counts)

    def _check(self, samples: torch.Tensor, time: float) -> None:
        if not bool(torch.isfinite(samples).all()):
            raise Diverged(time, "the features", FORMULA)

    def observe(self, rng: Random, state: _State) -> dict[str, torch.Tensor]:
        samples = state.samples
        return {"features": samples if len(samples) == rng.replicates else samples[: rng.wanted]}


class IntegratedParticles(_Particles):
    """The SDE of all samples under a kernel of the features.

    By Euler's method, or by Rößler's SRA1 (method "srk"), as torchsde has them.
    """

    grid: StepGrid

    def __init__(self, model: LESDE, initial: Initial, method: str, dt: float | None, noise: str):
        super().__init__(model, initial, "torchsde")
        self.method, self.dt, self.kind = method, dt, noise

    def prepare(self, times: np.ndarray, statistics: bool) -> Any:
        refuse_noise(self.kind, self.rate)
        made = super().prepare(times, statistics)
        step = self.dt or self.rate or (times[-1] - times[0]) / 100
        made.grid = StepGrid.regular(times, step)
        made.attributes = {**self.attributes, "method": self.method, "dt": step}
        if self.kind != "plain":
            made.attributes["sde"] = self.kind
        return made

    def advance(self, rng: Random, state: _State, t0: float, t1: float) -> _State:
        first, end = self.grid.saved[state.index : state.index + 2].tolist()
        width = (t1 - t0) / (end - first)
        for begin in range(0, end - first, CHECKED):
            starts = t0 + width * np.arange(begin, min(begin + CHECKED, end - first))
            sigma = self._sigma(np.append(starts, starts[-1] + width))
            step = self._srk if self.method == "srk" else self._euler
            for i, time in enumerate(starts.tolist()):
                state.samples = step(rng.stream("means"), state, sigma, i, time, width)
            self._check(state.samples[: rng.wanted], t1)
        state.index += 1
        return state

    def _euler(
        self, rng: Random, state: _State, sigma: np.ndarray, i: int, time: float, width: float
    ) -> torch.Tensor:
        x = state.samples
        own = self._own(self._normals(rng, x), sigma[i])
        if self.kind == "plain":
            drift = state.interaction.drift(x, time)
        else:
            normals = rng.normal(rng.replicates, x.shape[1])[: len(x)]
            drift, sampled = state.interaction.drift_and_sampling(x, time, normals)
            own = own.add(sampled, alpha=math.sqrt(self.rate or 0.0))
        return x.add(drift, alpha=width).add_(own, alpha=math.sqrt(width))

    def _srk(
        self, rng: Random, state: _State, sigma: np.ndarray, i: int, time: float, width: float
    ) -> torch.Tensor:
        x, interaction = state.samples, state.interaction
        z, other = self._normals(rng, x), self._normals(rng, x)
        # The increment of the Brownian motion, and its mean over the step, as multiples of √width.
        mean = z / 2 + other / math.sqrt(12)
        at_end = self._own(mean.clone(), sigma[i + 1]).mul_(math.sqrt(width))
        rest = self._own(z - mean, sigma[i + 1]) + self._own(mean, sigma[i])
        first = interaction.drift(x, time)
        inside = x.add(first, alpha=0.75 * width).add_(at_end, alpha=1.5)
        second = interaction.drift(inside, time + 0.75 * width)
        moved = x.add(first, alpha=width / 3).add_(second, alpha=2 * width / 3)
        return moved.add_(rest, alpha=math.sqrt(width))


class ParticleSGD(_Particles):
    """The discrete process with all samples in memory."""

    iterations: np.ndarray

    def prepare(self, times: np.ndarray, statistics: bool) -> Any:
        iterations = sgd_iterations(times, self.rate)
        seen = seen_times(times, [self.rate or 0.0], [iterations])
        made = super().prepare(seen, statistics)
        made.iterations = iterations
        return made

    def advance(self, rng: Random, state: _State, t0: float, t1: float) -> _State:
        first, end = self.iterations[state.index : state.index + 2].tolist()
        rng, rate, x = rng.stream("means"), self.rate or 0.0, state.samples.clone()
        for begin in range(first, end, CHECKED):
            times = self.times[0] + rate * np.arange(begin, min(begin + CHECKED, end))
            sigma = self._sigma(times)
            for i, time in enumerate(times.tolist()):
                drawn = rng.integers(x.shape[1], rng.replicates)[: len(x)]
                own = self._own(self._normals(rng, x), sigma[i])
                x.add_(state.interaction.kick(x, drawn, time), alpha=rate)
                x.add_(own, alpha=math.sqrt(rate))
            self._check(x[: rng.wanted], t1)
        state.samples = x
        state.index += 1
        return state
