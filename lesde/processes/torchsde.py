"""The LE-SDE integrated by torchsde: class means step by step, samples drawn about them.

A solver's step keeps means and deviations apart as the SDE does, so that this has the law of stepping
every sample. With the sampling noise √(hC) of SGD the class means depend on the covariance within classes
too, and on nothing else. That covariance is a process of its own, so it is drawn ahead for a stretch of
steps, and the class means are integrated along it.

Time here is the step index (see `lesde.processes.integration`). A state is (block, channel), its channels
(class, replicate, feature).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from lesde.clocks import StepGrid
from lesde.derivation import derive
from lesde.laws.rule import Transforms, drift, modified_drift, modified_noise, sampling_noise
from lesde.laws.slopes import drift_derivative, noise_derivative
from lesde.model.lesde import LESDE, Initial
from lesde.processes.integration import (
    STAGES,
    StepIncrements,
    default_step,
    integrate,
    prefetch_length,
)
from lesde.processes.process import BLOCK, Random
from lesde.processes.samples import DTYPE, AboutMeans, IntervalNoise, Scatter

__all__ = ["NOISES", "IntegratedPaths", "ShiftedNoise", "drift_slopes", "refuse_noise"]

NOISES = ("plain", "sampling", "modified")

Weights = Callable[[np.ndarray], torch.Tensor]


class MeanSDE:
    """The SDE of the class means of some blocks in step time, with torchsde's names.

    ``weights`` gives the drift's class matrices w_l E_kl at times, (time, class, class).
    """

    noise_type = "additive"
    sde_type = "ito"

    def __init__(
        self,
        model: LESDE,
        weights: Weights,
        noise: Any,
        grid: StepGrid,
        method: str,
        device: torch.device,
    ):
        self.model, self.weights, self.noise = model, weights, noise
        self.grid, self.method, self.device = grid, method, device
        self.K, self.p = model.n_classes, model.n_features
        self.channels = self.K * BLOCK * self.p
        self.transforms = Transforms(model.transform, DTYPE, device)
        self.constant = model.entries.is_constant
        self.first = 0
        # Noise that never changes multiplies whole stretches of increments: see `colour`.
        self.fixed = self._factors(grid.times[:1])[0] if noise.is_constant else None

    def load(self, first: int, end: int) -> None:
        """Tabulate drift and noise for the steps first..end-1."""
        self.first = first
        starts, widths = self.grid.starts[first:end], self.grid.widths[first:end]
        self.widths = widths.tolist()
        stages = np.asarray(STAGES[self.method])
        # Times the width, so that a step in step time has the drift of one in the model's.
        if self.constant:
            values = self.weights(starts[:1])[:, None].expand(-1, len(stages), -1, -1)
        else:
            values = self.weights((starts[:, None] + stages * widths[:, None]).ravel())
            values = values.unflatten(0, (len(starts), len(stages)))
        scaled = (values * torch.from_numpy(widths)[:, None, None, None]).to(self.device)
        self._drift = {stage: scaled[:, i].unbind(0) for i, stage in enumerate(stages.tolist())}
        if self.fixed is None:
            self._noise = self._factors(np.append(starts, starts[-1] + widths[-1])).unbind(0)

    def _factors(self, times: np.ndarray) -> torch.Tensor:
        """σ_k/√n_k at the times, to multiply (…, class, replicate, feature)."""
        roots = np.sqrt(self.model.counts)
        if self.noise.is_isotropic:
            values = (self.noise.scale(times) / roots)[..., None, None]
        else:  # transposed, as it multiplies rows from the right
            values = np.swapaxes(self.noise.factor(times), -1, -2) / roots[:, None, None]
        return torch.as_tensor(np.ascontiguousarray(values), dtype=DTYPE, device=self.device)

    def _times(self, factor: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        return values * factor if self.noise.is_isotropic else values @ factor

    def colour(self, increments: torch.Tensor) -> None:
        """Multiply increments (step, block, channel) in place by noise that does not change."""
        if self.fixed is not None:
            view = increments.unflatten(-1, (self.K, BLOCK, self.p))
            view.copy_(self._times(self.fixed, view))

    def matrix(self, t: torch.Tensor) -> torch.Tensor:
        """The drift's class matrix at a stage of a step, times the width."""
        time = float(t)
        step = math.floor(time)
        return self._drift[time - step][step - self.first]

    def f(self, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        rows = y.view(len(y), self.K, BLOCK, self.p)
        return drift(self.transforms, self.matrix(t), rows, -3).view_as(y)

    def g_prod(self, t: torch.Tensor, y: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        if self.fixed is not None:
            return v
        values = v.unflatten(-1, (self.K, BLOCK, self.p))
        return self._times(self._noise[round(float(t)) - self.first], values).reshape(v.shape)

    def f_and_g_prod(
        self, t: torch.Tensor, y: torch.Tensor, v: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return self.f(t, y), self.g_prod(t, y, v)


class ShiftedNoise:
    """σ − (h/2)σ̇, the noise of the modified equation, with the interface of the model's noise."""

    is_constant = False

    def __init__(self, coefficients: Any, times: np.ndarray, rate: float):
        self.plain, self.rate = coefficients.noise, rate
        self.is_isotropic = self.plain.is_isotropic
        self._slope = noise_derivative(coefficients, float(times[0]), float(times[-1]))

    def scale(self, times: np.ndarray) -> np.ndarray:
        """Of isotropic noise, shape (time, class)."""
        return self.plain.scale(times) - 0.5 * self.rate * self._slope(times)[..., 0, 0]

    def factor(self, times: np.ndarray) -> np.ndarray:
        """Shape (time, class, feature, feature)."""
        return self.plain.factor(times) - 0.5 * self.rate * self._slope(times)


def drift_slopes(coefficients: Any, times: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """d/dt of w_l E_kl between the first and the last of the times, (time, class, class)."""
    return drift_derivative(coefficients, float(times[0]), float(times[-1]))


class SamplingSDE(MeanSDE):
    """The SDE of the class means with sampling noise at one learning rate.

    Noise channels of a block: those of the means' own noise; then one number (class, replicate) and one
    vector (class, replicate, feature) for the sample drawn. ``roots``, of the within-class covariances,
    (block, class, replicate, feature, feature) at each step of the stretch, are set from outside.
    """

    noise_type = "general"

    def __init__(self, coefficients: Any, rate: float, modified: bool, *arguments: Any):
        super().__init__(*arguments)
        self.coefficients, self.rate, self.modified = coefficients, rate, modified
        self.own_channels = self.channels
        self.channels = self.K * BLOCK * (2 * self.p + 1)
        self.shares = torch.as_tensor(self.model.weights, dtype=DTYPE, device=self.device)
        self.roots: list[torch.Tensor] = []
        if modified:
            self._slope = drift_slopes(coefficients, self.grid.times)

    def load(self, first: int, end: int) -> None:
        super().load(first, end)
        starts = self.grid.starts[first:end]
        at, times = (starts[:1], len(starts)) if self.constant else (starts, 1)
        tables = [self.coefficients.kicks(at)]
        if self.modified:
            tables.append(self._slope(at))
        self._tables = [
            list(torch.as_tensor(table, dtype=DTYPE, device=self.device).unbind(0)) * times
            for table in tables
        ]

    def colour(self, increments: torch.Tensor) -> None:
        super().colour(increments[..., : self.own_channels])

    def f_and_g_prod(
        self, t: torch.Tensor, y: torch.Tensor, v: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        index = round(float(t)) - self.first
        width = self.widths[index]
        kicks, *slope = (table[index] for table in self._tables)
        matrix = self.matrix(t) / width

        def push(x: torch.Tensor) -> torch.Tensor:
            return drift(self.transforms, matrix, x, -3)

        rows = y.view(len(y), self.K, BLOCK, self.p)
        own, numbers, vector = v.split(
            [self.own_channels, self.K * BLOCK, self.own_channels], dim=1
        )
        own = super().g_prod(t, y, own).reshape(rows.shape)
        moved = push(rows)
        sampled = sampling_noise(
            self.transforms,
            kicks,
            self.shares,
            rows,
            moved,
            numbers.reshape(*rows.shape[:3], 1),
            (self.roots[index] @ vector.reshape(*rows.shape, 1)).squeeze(-1),
            -3,
        )
        if self.modified:
            moved = modified_drift(
                push, lambda x: drift(self.transforms, slope[0], x, -3), rows, self.rate
            )
            own = modified_noise(push, own, self.rate)
        total = own + math.sqrt(self.rate) * sampled
        return (moved * width).reshape(y.shape), total.reshape(y.shape)

    def f(self, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.f_and_g_prod(t, y, y.new_zeros(len(y), self.channels))[0]

    def g_prod(self, t: torch.Tensor, y: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return self.f_and_g_prod(t, y, v)[1]


# --------------------------------------------------------------------------------------------------
# The process.


def refuse_noise(noise: str, rate: float | None) -> None:
    """Refuse the sampling noise of SGD without a learning rate."""
    if noise != "plain" and rate is None:
        raise ValueError(
            f"noise={noise!r} has the sampling noise √(hC) of SGD at learning rate h; got learning_rate="
            f"None. Give learning_rate."
        )


class IntegratedPaths(AboutMeans):
    """The SDE of the class means integrated step by step.

    ``by_samples``, a process of all samples, takes over where other noise than "plain" is wanted with
    the samples themselves.
    """

    def __init__(
        self,
        model: LESDE,
        initial: Initial,
        method: str,
        dt: float | None,
        noise: str,
        by_samples: Any = None,
    ):
        super().__init__(model, initial)
        self.method, self.dt, self.kind, self.by_samples = method, dt, noise, by_samples
        self.rate: float | None = None
        self.weights: Weights | None = None
        """The drift's class matrices with gradients, where they are not the model's own."""

    def at(self, learning_rate: float) -> IntegratedPaths:
        made = copy.copy(self)
        made.rate = learning_rate
        if self.by_samples is not None:
            made.by_samples = self.by_samples.at(learning_rate)
        return made

    def _steps_samples(self, statistics: bool) -> bool:
        return self.kind != "plain" and not (statistics and self.initial.offsets is None)

    def prepare(self, times: np.ndarray, statistics: bool) -> Any:
        refuse_noise(self.kind, self.rate)
        if self._steps_samples(statistics):
            return self.by_samples.prepare(times, statistics)
        return super().prepare(times, statistics)

    def tabulate(self, times: np.ndarray) -> IntervalNoise:
        coefficients = self.coefficients = derive(self.model).coefficients()
        coefficients.weights(
            times
        )  # a kernel that is not finite there raises an error with its name
        coefficients.noise.factor(times[:1])
        step = self.dt or self.rate or default_step(coefficients, times, self.method)
        self.grid = StepGrid.regular(times, step)
        self.attributes = {
            **self.attributes, "engine": "torchsde", "method": self.method, "dt": step,
        }  # fmt: skip
        self.sde_noise: Any = coefficients.noise
        if self.kind != "plain":
            self.attributes["sde"] = self.kind
        if self.kind == "modified" and not coefficients.noise.is_constant:
            self.sde_noise = ShiftedNoise(coefficients, times, self.rate or 0.0)
        return IntervalNoise.of_scheme(self.sde_noise, self.grid, self.method)

    def memory(self, times: np.ndarray, statistics: bool, replicates: int) -> tuple[float, float]:
        if self._steps_samples(statistics):
            return self.by_samples.memory(times, statistics, replicates)
        model = self.model
        K, p = model.n_classes, model.n_features
        numbers = BLOCK * K * p
        tables = 8.0 * K**2 * (12 + len(times) + 2 * prefetch_length(numbers))
        if self.kind == "plain":
            length = prefetch_length(numbers)
            outputs = min(length, len(times)) + 8
            means = 8.0 * numbers * (length * (2 if self.method == "srk" else 1) + outputs)
        else:
            wide = BLOCK * K * (2 * p + 1) + numbers * p
            means = 8.0 * wide * (prefetch_length(wide) + 8)
        return tables, means + self.block_bytes(statistics)

    def _sde(self, device: torch.device) -> MeanSDE:
        def weights(times: np.ndarray) -> torch.Tensor:
            return torch.from_numpy(self.coefficients.weights(times))

        given = self.weights or weights
        arguments = self.model, given, self.sde_noise, self.grid, self.method, device
        if self.kind == "plain":
            return MeanSDE(*arguments)
        assert self.rate is not None
        return SamplingSDE(self.coefficients, self.rate, self.kind == "modified", *arguments)

    def path(
        self, rng: Random, start: torch.Tensor
    ) -> Iterator[tuple[torch.Tensor, np.ndarray | None]]:
        sde, gradients = self._sde(rng.device), self.weights is not None
        K, p = self.model.n_classes, self.model.n_features
        scatter = None
        wide = sde.channels
        if isinstance(sde, SamplingSDE):
            noises = rng.stream("deviations").blocks
            scatter = Scatter(noises, self.counts, p)
            wide += K * BLOCK * p**2  # roots of the scatter are kept for a stretch
        length = prefetch_length(wide)
        with_integral = self.method == "srk"
        means = rng.stream("means").blocks
        brownian = StepIncrements(means, sde.channels, length, DTYPE, with_integral, sde.colour)
        state = start.transpose(1, 2).reshape(len(start), -1)
        for first, end, saved in self.grid.stretches(length):
            marks = [done for done, _ in saved]
            within: list[np.ndarray | None] = [None] * len(marks)
            if bool(torch.isfinite(state).all()):
                sde.load(first, end)
                if isinstance(sde, SamplingSDE) and scatter is not None:
                    within = self._scatter_along(sde, scatter, first, end, marks)
                brownian.fill(first, self.grid.widths[first:end])
                inside = [done for done in marks if done < end]
                outputs = [first, *inside, end]
                states = integrate(sde, state, outputs, brownian, self.method, gradients)
                state = states[-1]
            else:  # nothing is finite any more
                states = state.expand(len(marks) + 1, *state.shape)
            for values, covariance in zip(states[1 : len(marks) + 1], within, strict=True):
                yield values.view(len(start), K, BLOCK, p).transpose(1, 2), covariance

    def _scatter_along(
        self, sde: SamplingSDE, scatter: Scatter, first: int, end: int, marks: list[int]
    ) -> list[np.ndarray | None]:
        """Draw the scatter for the steps first..end-1; its covariances after the steps ``marks``."""
        starts, roots = self.grid.starts[first:end], np.sqrt(self.grid.widths[first:end])
        if sde.noise.is_isotropic:
            factors = sde.noise.scale(starts) * roots[:, None]
        else:
            factors = sde.noise.factor(starts) * roots[:, None, None, None]
        sde.roots = []
        within: list[np.ndarray | None] = []
        for step, factor in enumerate(factors, start=first + 1):
            now = torch.as_tensor(scatter.roots(), device=sde.device)
            sde.roots.append(now.transpose(1, 2).contiguous())
            scatter.advance(factor)
            if step in marks:
                within.append(scatter.covariances())
        return within
