"""Class means under the sampling noise of SGD, without samples.

The sampling noise √(hC) depends on the class means and on the covariance within classes, and on nothing
else. That covariance is a process of its own (see ``lesde.simulation.scatter``), so it is drawn ahead
for a stretch of steps, and torchsde integrates the class means along it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from lesde.sampling_noise import modified_drift, modified_noise, sampling_increment
from lesde.simulation.brownian import StepIncrements, prefetch_length
from lesde.simulation.deviations import IntervalNoise
from lesde.simulation.mean_sde import DTYPE, MeanSDE, from_rows, to_rows
from lesde.simulation.noise import BLOCK
from lesde.simulation.plan import Block, Plan
from lesde.simulation.scatter import Scatter
from lesde.simulation.steps import StepGrid, integrate
from lesde.time_derivative import drift_derivative, noise_derivative

__all__ = ["SampledMeans", "SamplingSDE", "ShiftedNoise", "drift_slopes"]


class ShiftedNoise:
    """σ − (h/2)σ̇, the noise of the modified equation, with the interface of ``lesde.noise.Noise``."""

    is_constant = False

    def __init__(self, plan: Plan, rate: float):
        self.plain, self.rate = plan.coefficients.noise, rate
        self.is_isotropic = self.plain.is_isotropic
        self.is_shared = self.plain.is_shared
        self._slope = noise_derivative(
            plan.coefficients, float(plan.times[0]), float(plan.times[-1])
        )

    def scale(self, times: np.ndarray) -> np.ndarray:
        """Of isotropic noise, shape (time, class)."""
        return self.plain.scale(times) - 0.5 * self.rate * self._slope(times)[..., 0, 0]

    def factor(self, times: np.ndarray) -> np.ndarray:
        """Shape (time, class, feature, feature)."""
        return self.plain.factor(times) - 0.5 * self.rate * self._slope(times)


def drift_slopes(plan: Plan, times: np.ndarray) -> torch.Tensor:
    """d/dt of w_l E_kl at the times, (time, class, class)."""
    slope = drift_derivative(plan.coefficients, float(plan.times[0]), float(plan.times[-1]))
    return torch.as_tensor(slope(times), dtype=DTYPE, device=plan.device)


class SamplingSDE(MeanSDE):
    """The SDE of the class means with sampling noise, at one learning rate.

    Noise channels of a block: those of the means' own noise, (class, replicate, feature); then one
    number (class, replicate) and one vector (class, replicate, feature) for the sample drawn.

    Attributes
    ----------
    roots : list of tensor (block, class, replicate, feature, feature), one a step of the stretch
        Square roots of the within-class covariances.
    """

    noise_type = "general"

    def __init__(self, plan: Plan, grid: StepGrid, rate: float):
        self.rate, self.modified = rate, plan.sde == "modified"
        super().__init__(plan, grid, "euler")
        self.weights = np.sqrt(plan.counts / plan.n_samples)
        shares = torch.as_tensor(self.weights, dtype=DTYPE, device=plan.device)
        self.shares = shares[:, None, None]
        self.roots: list[torch.Tensor] = []
        self.kicks: list[torch.Tensor] = []
        self.slopes: list[torch.Tensor] = []

    def _noise(self) -> Any:
        noise = self.plan.coefficients.noise
        return (
            noise if noise.is_constant or not self.modified else ShiftedNoise(self.plan, self.rate)
        )

    @property
    def channels(self) -> int:
        return self.K * BLOCK * (2 * self.p + 1)

    def load(self, first: int, end: int) -> None:
        """Tabulate drift, noise and kicks for the steps first..end-1."""
        super().load(first, end)
        starts = self.grid.starts[first:end]
        coefficients = self.plan.coefficients
        constant = coefficients.kick_table.is_constant
        at = starts[:1] if constant else starts
        values = torch.as_tensor(
            coefficients.kicks(at) * self.weights, dtype=DTYPE, device=self.plan.device
        )
        times = len(starts) if constant else 1
        self.kicks = list(values.unbind(0)) * times
        if self.modified:
            self.slopes = list(drift_slopes(self.plan, at).unbind(0)) * times

    def colour(self, increments: torch.Tensor) -> None:
        """Multiply the means' own increments by noise that does not change, in place."""
        super().colour(increments[..., : self.K * BLOCK * self.p])

    def f_and_g_prod(
        self, t: torch.Tensor, y: torch.Tensor, v: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Drift over one step and noise, both (block, channel)."""
        assert self.drift_table is not None
        own_size = self.K * BLOCK * self.p
        time = float(t)
        step = math.floor(time)
        index = step - self.drift_table.first
        shape = (len(y), self.K, BLOCK, self.p)
        width = float(self.grid.widths[step])
        rows = y.view(shape)
        matrix = self.drift_table.at(time) / width
        drift = self.maps(matrix, rows)
        own = super().g_prod(t, y, v[:, :own_size]).reshape(shape)
        z = v[:, own_size : own_size + self.K * BLOCK].reshape(*shape[:3], 1)
        vector = v[:, own_size + self.K * BLOCK :].reshape(*shape, 1)
        sampled = sampling_increment(
            lambda x: self.maps(self.kicks[index], x),
            rows,
            drift,
            z,
            (z * self.shares).sum(1, keepdim=True),
            (self.roots[index] @ vector).squeeze(-1),
        )
        if self.modified:
            drift = modified_drift(
                lambda x: self.maps(matrix, x),
                lambda x: self.maps(self.slopes[index], x),
                rows,
                self.rate,
            )
            own = modified_noise(lambda x: self.maps(matrix, x), own, self.rate)
        total = own + math.sqrt(self.rate) * sampled
        return (drift * width).reshape(y.shape), total.reshape(y.shape)

    def f(self, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Drift over one step."""
        return self.f_and_g_prod(t, y, y.new_zeros(len(y), self.channels))[0]

    def g_prod(self, t: torch.Tensor, y: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Noise over one step."""
        return self.f_and_g_prod(t, y, v)[1]


class SampledMeans:
    """Class means with sampling noise at the saved times, with the scatter that drives it.

    Parameters
    ----------
    plan : Plan
        Started from class means, with learning rates.
    steps : list of float
        The step of every cell.
    """

    def __init__(self, plan: Plan, steps: list[float]):
        assert plan.rates is not None
        self.plan = plan
        self.grids = [StepGrid.regular(plan.times, dt) for dt in steps]
        self.sdes = [
            SamplingSDE(plan, grid, rate)
            for grid, rate in zip(self.grids, plan.rates.tolist(), strict=True)
        ]
        # Roots of the scatter are kept for a stretch, so they count as well.
        wide = self.sdes[0].channels + plan.n_classes * BLOCK * plan.n_features**2
        self.length = prefetch_length(wide)

    def block_bytes(self) -> float:
        """Working memory of a block."""
        plan = self.plan
        numbers = self.sdes[0].channels + plan.n_classes * BLOCK * plan.n_features**2
        return 8.0 * numbers * (self.length + 8)

    def interval_noise(self, cell: int) -> IntervalNoise:
        """What the solver's steps add to a sample between saved times."""
        return IntervalNoise.of_scheme(self.sdes[cell].noise, self.grids[cell], "euler")

    def frames(
        self, cell: int, blocks: list[Block], start: torch.Tensor
    ) -> Iterator[tuple[torch.Tensor, np.ndarray]]:
        """Class means and within-class covariances at all saved times."""
        plan, grid, sde = self.plan, self.grids[cell], self.sdes[cell]
        noises = [plan.noise(cell, block, "means") for block in blocks]
        brownian = StepIncrements(noises, sde.channels, self.length, DTYPE, False, sde.colour)
        own = [plan.noise(cell, block, "deviations") for block in blocks]
        scatter = Scatter(own, plan.counts, plan.n_features)
        yield start, scatter.covariances()
        state = to_rows(start)
        for first, end, saved in grid.stretches(self.length):
            sde.load(first, end)
            wanted = {done for done, _ in saved}
            sde.roots, within = [], []
            for step, factors in enumerate(self._factors(sde, first, end), start=first + 1):
                sde.roots.append(self._roots(scatter))
                scatter.advance(factors)
                if step in wanted:
                    within.append(scatter.covariances())
            brownian.fill(first, grid.widths[first:end])
            inside = [done for done, _ in saved if done < end]
            states = integrate(sde, state, [first, *inside, end], brownian, "euler")
            state = states[-1]
            for values, covariance in zip(states[1 : len(saved) + 1], within, strict=True):
                yield from_rows(values, plan.n_classes), covariance

    def _factors(self, sde: SamplingSDE, first: int, end: int) -> np.ndarray:
        """Roots of what the steps add to a sample, (step, class) or (step, class, p, p)."""
        starts, roots = self._part(sde, first, end)
        if sde.noise.is_isotropic:
            return sde.noise.scale(starts) * roots[:, None]
        return sde.noise.factor(starts) * roots[:, None, None, None]

    @staticmethod
    def _part(sde: SamplingSDE, first: int, end: int) -> tuple[np.ndarray, np.ndarray]:
        return sde.grid.starts[first:end], np.sqrt(sde.grid.widths[first:end])

    def _roots(self, scatter: Scatter) -> torch.Tensor:
        """Roots of the within-class covariances, (block, class, replicate, feature, feature)."""
        roots = torch.as_tensor(scatter.roots(), device=self.plan.device)
        return roots.transpose(1, 2).contiguous()
