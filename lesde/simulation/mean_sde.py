"""The LE-SDE of the class means, in torchsde's words.

The drift is the same for all samples of a class and depends on class means only, and noise does not
depend on the state. So the class means X̄^k obey a closed SDE, dX̄^k = b_k(X̄) dt + σ_k/√n_k dW̄_k, and the
deviations of the samples from their mean are Brownian and independent of it. A solver's step commutes
with that split: integrating the means alone and drawing the deviations where they are wanted has
exactly the law of integrating every sample with the same steps, and needs K·p random numbers a step
where that needs N·p.

A row of a state is a block of replicates, laid out as (class, replicate, feature): then the sum over
classes is one batched matrix product whose shape does not depend on the number of blocks, and neither
do its bits.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from lesde.simulation.noise import BLOCK
from lesde.simulation.plan import Plan
from lesde.simulation.steps import STAGES, StepGrid

__all__ = ["ClassMaps", "DriftTable", "MeanSDE", "NoiseTable", "from_rows", "to_rows"]

DTYPE = torch.float64
"""Of the class means: they are few, and differences between them may be small against their size."""


def to_rows(means: torch.Tensor) -> torch.Tensor:
    """Class means (block, replicate, class, feature) as states (block, channel)."""
    return means.transpose(1, 2).reshape(len(means), -1)


def from_rows(states: torch.Tensor, n_classes: int) -> torch.Tensor:
    """States (…, block, channel) as class means (…, block, replicate, class, feature), a view."""
    return states.view(*states.shape[:-1], n_classes, BLOCK, -1).transpose(-3, -2)


class StageTable:
    """Values at the stages of the steps of a stretch, looked up by step time."""

    def __init__(
        self,
        first: int,
        stages: tuple[float, ...],
        values: list[list[torch.Tensor]],
        memory: torch.Tensor,
    ):
        self.first, self.stages, self.values, self.memory = first, stages, values, memory

    @property
    def end(self) -> int:
        """The step after the stretch."""
        return self.first + len(self.values[0])

    def overwrite(self, other: StageTable) -> None:
        """Take another stretch's values, in the same memory."""
        self.memory.copy_(other.memory)

    def at(self, time: float) -> Any:
        """The value at a step time such as 7 or 7.75."""
        step = math.floor(time)
        for stage, values in zip(self.stages, self.values, strict=True):
            if time - step == stage and 0 <= step - self.first < len(values):
                return values[step - self.first]
            if stage == 1.0 and time == step and step - 1 - self.first == len(values) - 1:
                return values[-1]  # the end of the stretch
        raise ValueError(f"values are tabulated at {self.stages} of a step; asked at {time}.")


class DriftTable(StageTable):
    """The drift's class matrices, times the step's width, at every stage of the steps of a stretch."""

    def __init__(self, plan: Plan, grid: StepGrid, method: str, first: int, end: int):
        coefficients = plan.coefficients
        stages = STAGES[method]
        widths, starts = grid.widths[first:end], grid.starts[first:end]
        offsets = np.asarray(stages)
        if coefficients.drift_table.is_constant:
            values = coefficients.weights(starts[:1])[:, None]
        else:
            times = starts[:, None] + offsets * widths[:, None]
            values = coefficients.weights(times.ravel())
            values = values.reshape(len(starts), len(offsets), *values.shape[1:])
        scaled = torch.as_tensor(
            values * widths[:, None, None, None], dtype=DTYPE, device=plan.device
        )
        columns = [list(scaled[:, s].unbind(0)) for s in range(scaled.shape[1])]
        super().__init__(first, stages, columns * (len(stages) // len(columns)), scaled)


class NoiseTable(StageTable):
    """σ_k(t)/√n_k at the begin and end of the steps, as factors over (class, replicate, feature)."""

    def __init__(self, plan: Plan, noise: Any, grid: StepGrid, first: int, end: int):
        edges = np.append(grid.starts[first:end], grid.starts[end - 1] + grid.widths[end - 1])
        memory = mean_noise(plan, noise, edges)
        values = list(memory.unbind(0))
        super().__init__(first, (0.0, 1.0), [values[:-1], values[1:]], memory)


def mean_noise(plan: Plan, noise: Any, times: np.ndarray) -> torch.Tensor:
    """σ_k/√n_k at the times: (time, class, 1, 1) where isotropic, else (time, class, feature, feature)."""
    roots = np.sqrt(plan.counts)
    if noise.is_isotropic:
        values = (noise.scale(times) / roots)[..., None, None]
    else:
        # Transposed, as it multiplies rows from the right.
        values = np.swapaxes(noise.factor(times), -1, -2) / roots[:, None, None]
    return torch.as_tensor(np.ascontiguousarray(values), dtype=DTYPE, device=plan.device)


class ClassMaps:
    """Linear maps of class means, Σ_l A_kl H_l x^l, in float64.

    Rows are (block, class, replicate, feature).

    Parameters
    ----------
    plan : Plan
    """

    def __init__(self, plan: Plan):
        self.K, self.p = plan.n_classes, plan.n_features
        self.transform = plan.coefficients.transform
        self.matrices: torch.Tensor | None = None
        if self.transform.kind == "matrix":
            turned = np.ascontiguousarray(np.swapaxes(self.transform.array(), -1, -2))
            self.matrices = torch.as_tensor(turned, dtype=DTYPE, device=plan.device)

    def push(self, rows: torch.Tensor) -> torch.Tensor:
        """H_l x^l."""
        if self.transform.kind == "identity":
            return rows
        if self.matrices is not None:
            return rows @ self.matrices
        # H_l x = d_l ⟨d_l, x⟩/‖d_l‖², with ⟨d_l, x⟩ = x_l − mean(x), ‖d_l‖² = 1 − 1/K.
        own = rows.diagonal(dim1=1, dim2=3).transpose(1, 2)
        score = (own - rows.mean(-1)) / (1.0 - 1.0 / self.K)
        pushed = (score / -self.K).unsqueeze(-1).repeat(1, 1, 1, self.p)
        pushed.diagonal(dim1=1, dim2=3).add_(score.transpose(1, 2))
        return pushed

    def __call__(self, matrix: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Σ_l A_kl H_l x^l for a matrix A (class, class)."""
        blocks = len(rows)
        pushed = self.push(rows).reshape(blocks, self.K, -1)
        return torch.bmm(matrix.expand(blocks, -1, -1), pushed).view_as(rows)


class MeanSDE:
    """The SDE of the class means of some blocks in step time.

    Parameters
    ----------
    plan : Plan
    grid : StepGrid
    method : {"euler", "milstein", "srk"}
    """

    noise_type = "additive"
    sde_type = "ito"

    def __init__(self, plan: Plan, grid: StepGrid, method: str):
        self.plan, self.grid, self.method = plan, grid, method
        self.K, self.p = plan.n_classes, plan.n_features
        self.maps = ClassMaps(plan)
        self.noise = self._noise()
        self.isotropic = self.noise.is_isotropic
        # Noise that never changes multiplies whole stretches of increments: see `colour`.
        self.fixed: torch.Tensor | None = None
        if self.noise.is_constant:
            self.fixed = mean_noise(plan, self.noise, plan.times[:1])[0]
        self.drift_table: DriftTable | None = None
        self.noise_table: NoiseTable | None = None
        self._space: torch.Tensor | None = None

    def _noise(self) -> Any:
        """σ_k(t), with the interface of :class:`lesde.noise.Noise`."""
        return self.plan.coefficients.noise

    @property
    def channels(self) -> int:
        """Noise channels of a block."""
        return self.K * BLOCK * self.p

    def load(self, first: int, end: int) -> None:
        """Tabulate drift and noise for the steps first..end-1."""
        table = self.drift_table
        if table is not None and (table.first, table.end) == (first, end):
            return
        self.drift_table = DriftTable(self.plan, self.grid, self.method, first, end)
        if self.fixed is None:
            self.noise_table = NoiseTable(self.plan, self.noise, self.grid, first, end)

    def colour(self, increments: torch.Tensor) -> None:
        """Multiply increments (step, block, channel) in place by noise that does not change."""
        if self.fixed is not None:
            view = increments.unflatten(-1, (self.K, BLOCK, self.p))
            view.copy_(self._factor(self.fixed, view))

    def _factor(self, factor: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """The noise's factor times values (…, class, replicate, feature)."""
        return values * factor if self.isotropic else values @ factor

    def f(self, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Drift over one step, shape (block, channel)."""
        assert self.drift_table is not None
        rows = y.view(len(y), self.K, BLOCK, self.p)
        return self.maps(self.drift_table.at(float(t)), rows).view_as(y)

    def g_prod(self, t: torch.Tensor, y: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """σ/√n times increments, shape (block, channel)."""
        if self.noise_table is None:
            return v
        values = v.unflatten(-1, (self.K, BLOCK, self.p))
        return self._factor(self.noise_table.at(float(t)), values).reshape(v.shape)

    def f_and_g_prod(
        self, t: torch.Tensor, y: torch.Tensor, v: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return self.f(t, y), self.g_prod(t, y, v)
