"""The LE-SDE integrated by torchsde: class means step by step, samples drawn about them.

A solver's step keeps means and deviations apart as the SDE does, so that this has the law of stepping
every sample. With the sampling noise √(hC) of SGD the class means depend on the covariance within classes
too, and on nothing else. That covariance is a process of its own (so are the deviations, where samples are
kept), so it is drawn ahead for a stretch of steps, and the class means are integrated along it.

Time here is the step index (see `lesde.processes.integration`). A state is (block, channel), its channels
(class, replicate, feature).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
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
from lesde.processes.samples import (
    DTYPE,
    AboutMeans,
    Scatter,
    Steps,
    class_means,
    class_sums,
    scheme_noise,
    spread,
    times_noise,
)

NOISES = ("plain", "sampling", "modified")


class MeanSDE:
    """The SDE of the class means of some blocks in step time, with torchsde's names.

    ``weights`` gives the drift's class matrices w_l E_kl at times, (time, class, class).
    """

    noise_type = "additive"
    sde_type = "ito"

    def __init__(
        self,
        model: LESDE,
        weights: Callable[[np.ndarray], torch.Tensor],
        noise: Any,
        grid: StepGrid,
        method: str,
        device: torch.device,
    ):
        self.model, self.weights, self.noise = model, weights, noise
        self.grid, self.method, self.device = grid, method, device
        self.K, self.p = model.n_classes, model.n_features
        self.channels = self.own_channels = self.K * BLOCK * self.p
        self.transforms = Transforms(model.transform, DTYPE, device)
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
        if self.model.entries.is_constant:
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
            own = increments[..., : self.own_channels].unflatten(-1, (self.K, BLOCK, self.p))
            own.copy_(self._times(self.fixed, own))

    def matrix(self, t: torch.Tensor) -> torch.Tensor:
        """The drift's class matrix at a stage of a step, times the width."""
        time = float(t)
        step = math.floor(time)
        return self._drift[time - step][step - self.first]

    def f(self, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        rows = y.view(len(y), self.K, BLOCK, self.p)
        return drift(self.transforms, self.matrix(t), rows, -3).view_as(y)

    def g_prod(self, t: torch.Tensor, y: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        own = v[:, : self.own_channels]
        if self.fixed is not None:
            return own
        values = own.unflatten(-1, (self.K, BLOCK, self.p))
        return self._times(self._noise[round(float(t)) - self.first], values).reshape(y.shape)


class SamplingSDE(MeanSDE):
    """The SDE of the class means with sampling noise at one learning rate; ``modified`` corrects it to first order.

    Noise channels of a block: those of the means' own noise; then one number (class, replicate) for the sample
    drawn. ``pulls``, the deviation of that sample (block, class, replicate, feature) at each step of the stretch,
    are set from outside.
    """

    noise_type = "general"

    def __init__(self, coefficients: Any, rate: float, modified: bool, *arguments: Any):
        super().__init__(*arguments)
        self.coefficients, self.rate = coefficients, rate
        self.channels += self.K * BLOCK
        self.shares = torch.as_tensor(self.model.weights, dtype=DTYPE, device=self.device)
        self.pulls: list[torch.Tensor] = []
        self._slope: Any = None
        if modified:
            self._slope = drift_derivative(coefficients)

    def load(self, first: int, end: int) -> None:
        super().load(first, end)
        starts = self.grid.starts[first:end]
        at = starts[:1] if self.model.entries.is_constant else starts
        tables = [self.coefficients.kicks(at)]
        if self._slope is not None:
            tables.append(self._slope(at))
        self._tables = [
            torch.as_tensor(table, dtype=DTYPE, device=self.device).expand(len(starts), -1, -1)
            for table in tables
        ]

    def f_and_g_prod(
        self, t: torch.Tensor, y: torch.Tensor, v: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        index = round(float(t)) - self.first
        width = self.widths[index]
        kicks, *slope = (table[index] for table in self._tables)
        push = partial(drift, self.transforms, self.matrix(t) / width, class_axis=-3)
        rows = y.view(len(y), self.K, BLOCK, self.p)
        own = self.g_prod(t, y, v).reshape(rows.shape)
        numbers = v[:, self.own_channels :].reshape(*rows.shape[:3], 1)
        pulls = self.pulls[index] * math.sqrt(width)
        moved = push(rows)
        sampled = sampling_noise(
            self.transforms, kicks, self.shares, rows, moved, numbers, pulls, -3
        )
        if slope:
            turned = partial(drift, self.transforms, slope[0], class_axis=-3)
            moved = modified_drift(push, turned, rows, self.rate)
            own = modified_noise(push, own, self.rate)
        total = own + math.sqrt(self.rate) * sampled
        return (moved * width).reshape(y.shape), total.reshape(y.shape)


class ShiftedNoise:
    """σ − (h/2)σ̇, the noise of the modified equation, with the interface of the model's noise."""

    is_constant = False

    def __init__(self, coefficients: Any, rate: float):
        self.plain = noise = coefficients.noise
        self.is_isotropic, self.n_classes = noise.is_isotropic, noise.n_classes
        self.n_features, self.rate = noise.n_features, rate
        self._slope = noise_derivative(coefficients)

    def scale(self, times: np.ndarray) -> np.ndarray:
        """Of isotropic noise, shape (time, class)."""
        return self.factor(times)[..., 0, 0]

    def factor(self, times: np.ndarray) -> np.ndarray:
        """Shape (time, class, feature, feature)."""
        return self.plain.factor(times) - 0.5 * self.rate * self._slope(times)


class Deviations:
    """The deviations of all samples, with the names of :class:`lesde.processes.samples.Scatter`."""

    def __init__(self, rng: Random, counts: np.ndarray, p: int, offsets: torch.Tensor | None):
        self.rng, self.counts = rng.stream("deviations"), counts
        shape = (rng.replicates, int(counts.sum()), p)
        self.values = torch.zeros(shape, dtype=rng.dtype, device=rng.device)
        if offsets is not None:
            self.values += offsets

    def advance(self, factors: np.ndarray) -> None:
        """Add noise of covariance A Aᵀ to every deviation, A (class,) or (class, feature, feature)."""
        draws = self.rng.normal(*self.values.shape)
        self.values = times_noise(draws, factors, self.counts).add_(self.values)

    def seen(self) -> torch.Tensor:
        """The deviations, which need not have the mean zero."""
        return self.values

    def pulls(self) -> torch.Tensor:
        """√n_l times the mean of the deviations from their mean, each times a normal of its own."""
        normals = self.rng.normal(*self.values.shape[:2], 1)
        values = self.values - spread(class_means(self.values, self.counts), self.counts)
        roots = torch.tensor(np.sqrt(self.counts), device=values.device).unsqueeze(-1)
        pulled = class_sums(values * normals, self.counts) / roots
        return pulled.to(DTYPE).unflatten(0, (-1, BLOCK)).transpose(1, 2).contiguous()


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
    """The SDE of the class means integrated step by step."""

    def __init__(self, model: LESDE, initial: Initial, method: str, dt: float | None, noise: str):
        super().__init__(model, initial, "torchsde")
        self.method, self.dt, self.kind = method, dt, noise
        # A step of the class means of all blocks costs hardly more than of one; drawing deviations does.
        self.parallel = noise != "plain"
        self.weights: Callable[[np.ndarray], torch.Tensor] | None = None
        """The drift's class matrices with gradients, where they are not the model's own."""

    def tabulate(self, times: np.ndarray) -> np.ndarray:
        refuse_noise(self.kind, self.rate)
        coefficients = self.coefficients = derive(self.model).coefficients()
        # A kernel or noise that is not finite there raises an error with its name.
        coefficients.weights(times)
        coefficients.noise.factor(times[:1])
        step = self.dt or self.rate or default_step(coefficients, times, self.method)
        self.grid = StepGrid.regular(times, step)
        self.attributes = {**self.attributes, "method": self.method, "dt": step}
        self.sde_noise: Any = coefficients.noise
        if self.kind != "plain":
            self.attributes["sde"] = self.kind
        if self.kind == "modified" and not coefficients.noise.is_constant:
            self.sde_noise = ShiftedNoise(coefficients, self.rate or 0.0)
        return scheme_noise(self.sde_noise, self.grid, self.method)

    def _sde(self, device: torch.device) -> MeanSDE:
        weights = self.weights or (lambda at: torch.from_numpy(self.coefficients.weights(at)))
        arguments = self.model, weights, self.sde_noise, self.grid, self.method, device
        if self.kind == "plain":
            return MeanSDE(*arguments)
        return SamplingSDE(self.coefficients, self.rate or 0.0, self.kind == "modified", *arguments)

    def path(self, rng: Random, start: torch.Tensor, offsets: torch.Tensor | None) -> Steps:
        sde, gradients = self._sde(rng.device), self.weights is not None
        K, N, p = self.model.n_classes, self.model.n_samples, self.model.n_features
        walk: Scatter | Deviations | None = None
        wide = sde.channels
        if self.kind != "plain" and self.reduced:
            walk, wide = Scatter(rng, self.counts, p), wide + K * BLOCK * p * (p + 1)
        elif self.kind != "plain":  # the deviations at the saved times of a stretch are kept
            walk, wide = Deviations(rng, self.counts, p, offsets), wide + BLOCK * (K + N) * p
        length, noises = prefetch_length(wide), rng.stream("means").blocks
        brownian = StepIncrements(noises, sde.channels, self.method == "srk", sde.colour)
        state = start.transpose(1, 2).reshape(len(start), -1)
        for first, end, saved in self.grid.stretches(length):
            marks = [done for done, _ in saved]
            states = state.expand(len(marks) + 1, *state.shape)
            seen: list[Any] = [None] * len(marks)
            if bool(torch.isfinite(state).all()):
                sde.load(first, end)
                if isinstance(sde, SamplingSDE) and walk is not None:
                    seen = self._walk_along(sde, walk, first, end, marks)
                brownian.fill(first, self.grid.widths[first:end])
                outputs = [first, *(done for done in marks if done < end), end]
                states = integrate(sde, state, outputs, brownian, self.method, gradients)
                state = states[-1]
            for values, own in zip(states[1 : len(marks) + 1], seen, strict=True):
                yield values.view(len(start), K, BLOCK, p).transpose(1, 2), own

    def _walk_along(
        self, sde: SamplingSDE, walk: Scatter | Deviations, first: int, end: int, marks: list[int]
    ) -> list[Any]:
        """Draw deviations or their scatter for the steps first..end-1; those seen after the steps ``marks``."""
        starts, roots = self.grid.starts[first:end], np.sqrt(self.grid.widths[first:end])
        if sde.noise.is_isotropic:
            factors = sde.noise.scale(starts) * roots[:, None]
        else:
            factors = sde.noise.factor(starts) * roots[:, None, None, None]
        sde.pulls, seen = [], []
        for step, factor in enumerate(factors, start=first + 1):
            sde.pulls.append(walk.pulls().to(sde.device))
            walk.advance(factor)
            if step in marks:
                seen.append(walk.seen())
        return seen
