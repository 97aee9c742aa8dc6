"""The SDE of every sample of a block, as torchsde calls it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from lesde.simulation.classes import spread
from lesde.simulation.noise import BLOCK
from lesde.simulation.plan import Plan
from lesde.simulation.sampled_means import ShiftedNoise
from lesde.simulation.steps import STAGES, StepGrid

__all__ = ["OwnNoise", "SampleSDE"]


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
