"""Processes that carry every sample: for kernels of the features, and where the noise depends on the samples.

Where the kernel depends on classes and time only, cheaper processes have the same law (see `torchsde` and `sgd`);
these serve the other cases. A state consists of the samples (replicate, sample, feature) alone, so with statistics
kept the memory does not grow with the saved times.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from lesde.clocks import StepGrid, iteration_counts, seen_times
from lesde.derivation import derive
from lesde.laws.rule import Transforms, drift, kick, modified_drift, modified_noise, sampling_noise
from lesde.model.lesde import LESDE, Initial
from lesde.processes.pairs import PairInteraction
from lesde.processes.process import BLOCK, Random
from lesde.processes.samples import (
    DTYPE,
    class_means,
    class_sums,
    draw_start,
    expected_directions,
    spread,
)
from lesde.processes.torchsde import ShiftedNoise, drift_slopes, refuse_noise

__all__ = ["ClassInteraction", "IntegratedParticles", "ParticleSGD"]

MOST_SAMPLES = 200_000
"""Samples up to which pairs are summed over: beyond, one step takes minutes."""
CHECKED = 64
"""Steps after which a path is looked at for overflow, and for which what depends on time is tabulated."""


class ClassInteraction:
    """Interaction of all samples under a kernel of classes and time, with the names of `PairInteraction`.

    With a learning rate ``rate``, drift and noise are those of the modified equation between the ``times``.
    """

    def __init__(self, model: LESDE, device: Any, times: np.ndarray, rate: float | None = None):
        self.coefficients, self.counts, self.rate = derive(model).coefficients(), model.counts, rate
        self.transforms = Transforms(model.transform, DTYPE, device)
        self.labels = torch.as_tensor(model.labels, device=device)
        self.shares = torch.as_tensor(model.weights, dtype=DTYPE, device=device)
        self.slopes = None if rate is None else drift_slopes(self.coefficients, times)

    def prepare(self, times: np.ndarray) -> None:
        """Tabulate the kernel at the times that will be asked for next."""
        parts = [self.coefficients.weights(times), self.coefficients.kicks(times)]
        if self.slopes is not None:
            parts.append(self.slopes(times))
        rows = zip(
            *(torch.as_tensor(part, device=self.labels.device) for part in parts), strict=True
        )
        self._tables = dict(zip(times.tolist(), rows, strict=True))

    def drift(self, samples: torch.Tensor, time: float) -> torch.Tensor:
        """b of every sample."""
        return self._spread(self._drift(self._means(samples), time), samples)

    def drift_and_sampling(
        self, samples: torch.Tensor, time: float, normals: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """b, and C^{1/2} applied to normals (replicate, sample)."""
        weights, kicks, *_ = self._tables[time]
        means = self._means(samples)
        roots = (len(self.labels) * self.shares).sqrt().unsqueeze(-1)
        numbers = self._sums(normals.unsqueeze(-1)) / roots
        deviations = self._sums(samples * normals.unsqueeze(-1)) / roots - means * numbers
        plain = drift(self.transforms, weights, means)
        sampled = sampling_noise(
            self.transforms, kicks, self.shares, means, plain, numbers, deviations
        )
        return self._spread(self._drift(means, time), samples), self._spread(sampled, samples)

    def noise(self, own: torch.Tensor, time: float) -> torch.Tensor:
        """The samples' own noise, with what the modified equation adds to whole classes."""
        if self.rate is None:
            return own
        means, push = self._means(own), partial(drift, self.transforms, self._tables[time][0])
        return own + self._spread(modified_noise(push, means, self.rate) - means, own)

    def kick(self, samples: torch.Tensor, drawn: torch.Tensor, time: float) -> torch.Tensor:
        """E_kL H_L X_J of every sample, for the sample J (replicate,) drawn in each replicate."""
        classes = self.labels[drawn]
        columns = self._tables[time][1].mT[classes]
        lanes = torch.arange(len(samples), device=samples.device)
        moved = kick(self.transforms, columns, samples[lanes, drawn].to(DTYPE), classes)
        return self._spread(moved, samples)

    def _drift(self, means: torch.Tensor, time: float) -> torch.Tensor:
        weights, _, *slope = self._tables[time]
        push = partial(drift, self.transforms, weights)
        if self.rate is None:
            return push(means)
        return modified_drift(push, partial(drift, self.transforms, slope[0]), means, self.rate)

    def _means(self, samples: torch.Tensor) -> torch.Tensor:
        return class_means(samples, self.counts).to(DTYPE)

    def _sums(self, samples: torch.Tensor) -> torch.Tensor:
        return class_sums(samples, self.counts).to(DTYPE)

    def _spread(self, means: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        return spread(means.to(like.dtype), self.counts)


class OwnNoise:
    """σ_k at some times, applied to normals of the samples."""

    def __init__(self, noise: Any, times: np.ndarray, counts: np.ndarray):
        self.counts = counts.tolist()
        self.factors = noise.scale(times) if noise.is_isotropic else noise.factor(times)

    def __call__(self, normals: torch.Tensor, index: int) -> torch.Tensor:
        """Normals (replicate, sample, feature) times σ at the time of that index."""
        factors = self.factors[index]
        if factors.ndim == 1 and (factors == factors[0]).all():
            return normals * float(factors[0])
        parts = zip(normals.split(self.counts, 1), factors, strict=True)
        if factors.ndim == 1:
            return torch.cat([part * float(factor) for part, factor in parts], 1)
        return torch.cat(
            [part @ torch.as_tensor(factor.T.copy()).to(part) for part, factor in parts], 1
        )


# --------------------------------------------------------------------------------------------------
# The processes.


@dataclass
class _State:
    samples: torch.Tensor
    interaction: Any
    index: int = 0
    """Of the saved time."""


class _Particles:
    """The part that the two processes of all samples share: 32 replicates at a time, in threads."""

    most_blocks = 1
    parallel = True
    rate: float | None = None
    modified: float | None = None
    """The learning rate of the modified equation, where that is what is integrated."""
    times: np.ndarray
    noise: Any
    directions: np.ndarray | None = None
    draws = 2
    """Arrays of random numbers that are alive at a time."""

    def __init__(self, model: LESDE, initial: Initial, engine: str):
        self.model, self.initial, self.counts = model, initial, model.counts
        self.n_features, self.pairs = model.n_features, model.kernel.depends_on_features
        start = "random" if initial.is_random else "given"
        self.attributes: dict[str, Any] = {"initial": start, "engine": engine}
        if self.pairs:
            self.remedy = (
                "see that the formula of the FeatureKernel is finite for all pairs of samples (r2 is 0 "
                "for a sample and itself, g and c may be negative); else end `times` earlier, weaken "
                "the kernel, or take smaller steps"
            )

    def describe(self) -> dict[str, Any]:
        return self.model.describe()

    def at(self, learning_rate: float) -> Any:
        made = copy.copy(self)
        made.rate = learning_rate
        return made

    def prepare(self, times: np.ndarray, statistics: bool) -> Any:
        made = copy.copy(self)
        made.times = times
        made.noise = derive(self.model).coefficients().noise
        made.noise.factor(times[:1])
        if not self.pairs:
            derive(self.model).coefficients().weights(times)  # not finite there: says so by name
        if statistics:
            made.directions = expected_directions(self.model, self.initial, times)
        return made

    def memory(self, times: np.ndarray, statistics: bool, replicates: int) -> tuple[float, float]:
        N, lanes, pairs = self.model.n_samples, BLOCK, 0
        if self.pairs:
            if N > MOST_SAMPLES:
                raise ValueError(
                    f"a FeatureKernel needs all pairs of samples at every step, {N**2:.2g} for "
                    f"n_per_class = {self.counts.tolist()}; give at most {MOST_SAMPLES:,} samples in all, "
                    f"which stand for larger classes: the drift is an average over the samples."
                )
            interaction = PairInteraction(derive(self.model).coefficients())
            lanes, pairs = self.lanes(min(BLOCK, replicates), interaction), interaction.bytes
        return 0.0, 4.0 * (self.draws * BLOCK + 8 * lanes) * N * self.n_features + pairs

    def start(self, rng: Random, replicates: int) -> _State:
        interaction = self.interaction(rng)
        means, offsets = draw_start(self.model, self.initial, rng)
        samples = spread(means, self.counts)
        samples = (samples if offsets is None else samples + offsets).to(rng.dtype)
        return _State(samples[: self.lanes(rng.wanted, interaction)].contiguous(), interaction)

    def interaction(self, rng: Random) -> Any:
        """The maps from samples to drift, kicks and sampling noise."""
        if self.pairs:
            return PairInteraction(derive(self.model).coefficients(), rng.dtype, rng.device)
        return ClassInteraction(self.model, rng.device, self.times, self.modified)

    def lanes(self, wanted: int, interaction: Any) -> int:
        """The replicates that are computed of a block."""
        return BLOCK

    def observe(self, rng: Random, state: _State) -> dict[str, torch.Tensor]:
        samples = state.samples
        return {"features": samples if len(samples) == rng.replicates else samples[: rng.wanted]}


class IntegratedParticles(_Particles):
    """The SDE of all samples by Euler's method, or by Rößler's SRA1 (method "srk"), as torchsde has them."""

    grid: StepGrid

    def __init__(self, model: LESDE, initial: Initial, method: str, dt: float | None, noise: str):
        super().__init__(model, initial, "torchsde")
        self.method, self.dt, self.kind = method, dt, noise
        self.draws = 3 if method == "srk" else 2

    def prepare(self, times: np.ndarray, statistics: bool) -> Any:
        refuse_noise(self.kind, self.rate)
        made = super().prepare(times, statistics)
        step = self.dt or self.rate or (times[-1] - times[0]) / 100
        made.grid = StepGrid.regular(times, step)
        made.attributes = {**self.attributes, "method": self.method, "dt": step}
        if self.kind != "plain":
            made.attributes["sde"] = self.kind
        if self.kind == "modified":
            made.modified = self.rate
            if not made.noise.is_constant:
                coefficients = derive(self.model).coefficients()
                made.noise = ShiftedNoise(coefficients, times, self.rate or 0.0)
        return made

    def lanes(self, wanted: int, interaction: Any) -> int:
        # Pairs of samples cost more than random numbers: only the replicates that were asked for.
        return interaction.rounded(wanted) if self.pairs else BLOCK

    def advance(self, rng: Random, state: _State, t0: float, t1: float) -> _State:
        first, end = self.grid.saved[state.index : state.index + 2].tolist()
        width = (t1 - t0) / (end - first)
        for begin in range(0, end - first, CHECKED):
            steps = np.arange(begin, min(begin + CHECKED, end - first))
            starts = t0 + steps * width
            sigma = OwnNoise(self.noise, np.append(starts, starts[-1] + width), self.counts)
            if not self.pairs:
                state.interaction.prepare(np.unique([starts, starts + 0.75 * width]))
            step = self._srk if self.method == "srk" else self._euler
            for i, time in enumerate(starts.tolist()):
                state.samples = step(rng.stream("means"), state, sigma, i, time, width)
            if not bool(torch.isfinite(state.samples).all()):
                break
        state.index += 1
        return state

    def _euler(
        self, rng: Random, state: _State, sigma: OwnNoise, i: int, time: float, width: float
    ) -> torch.Tensor:
        x, interaction = state.samples, state.interaction
        own = sigma(self._normals(rng, x), i)
        if self.kind == "plain":
            drift = interaction.drift(x, time)
        else:
            normals = rng.normal(rng.replicates, x.shape[1])[: len(x)]
            drift, sampled = interaction.drift_and_sampling(x, time, normals)
            if self.kind == "modified":
                own = interaction.noise(own, time)
            own = own.add(sampled, alpha=math.sqrt(self.rate or 0.0))
        return x.add(drift, alpha=width).add_(own, alpha=math.sqrt(width))

    def _srk(
        self, rng: Random, state: _State, sigma: OwnNoise, i: int, time: float, width: float
    ) -> torch.Tensor:
        x, interaction = state.samples, state.interaction
        z, other = self._normals(rng, x), self._normals(rng, x)
        # The increment of the Brownian motion, and its mean over the step, as multiples of √width.
        mean = z / 2 + other / math.sqrt(12)
        at_end = sigma(mean, i + 1).mul_(math.sqrt(width))
        rest = sigma(z - mean, i + 1) + sigma(mean, i)
        first = interaction.drift(x, time)
        inside = x.add(first, alpha=0.75 * width).add_(at_end, alpha=1.5)
        second = interaction.drift(inside, time + 0.75 * width)
        moved = x.add(first, alpha=width / 3).add_(second, alpha=2 * width / 3)
        return moved.add_(rest, alpha=math.sqrt(width))

    def _normals(self, rng: Random, samples: torch.Tensor) -> torch.Tensor:
        return rng.normal(rng.replicates, *samples.shape[1:])[: len(samples)]


class ParticleSGD(_Particles):
    """The discrete process with all samples in memory."""

    iterations: np.ndarray

    def __init__(self, model: LESDE, initial: Initial):
        super().__init__(model, initial, "sgd")

    def prepare(self, times: np.ndarray, statistics: bool) -> Any:
        if self.rate is None:
            raise ValueError(
                "learning_rate is the step of engine='sgd'; got learning_rate=None. Give a number or a "
                "sequence."
            )
        iterations = iteration_counts(times, self.rate)
        made = super().prepare(seen_times(times, [self.rate], [iterations]), statistics)
        made.iterations = iterations
        return made

    def advance(self, rng: Random, state: _State, t0: float, t1: float) -> _State:
        first, end = self.iterations[state.index : state.index + 2].tolist()
        rng, rate, x = rng.stream("means"), self.rate or 0.0, state.samples.clone()
        for begin in range(first, end, CHECKED):
            times = self.times[0] + rate * np.arange(begin, min(begin + CHECKED, end))
            sigma = OwnNoise(self.noise, times, self.counts)
            if not self.pairs:
                state.interaction.prepare(times)
            for i, time in enumerate(times.tolist()):
                drawn = rng.integers(x.shape[1], len(x))
                own = sigma(rng.normal(*x.shape), i)
                x.add_(state.interaction.kick(x, drawn, time), alpha=rate)
                x.add_(own, alpha=math.sqrt(rate))
            if not bool(torch.isfinite(x).all()):
                break
        state.samples = x
        state.index += 1
        return state
