"""Class means under the sampling noise of SGD, without samples.

The sampling noise √(hC) depends on the class means and on the covariance within classes, and on nothing
else. That covariance is a process of its own (see ``lesde.simulation.scatter``), so it is drawn ahead
for a stretch of steps, and torchsde integrates the class means along it.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
import torch

from lesde.errors import Diverged
from lesde.laws.rule import Transforms, modified_drift, modified_noise, sampling_noise
from lesde.laws.slopes import drift_derivative, noise_derivative
from lesde.laws.transitions import Transition
from lesde.processes.deviations import IntervalNoise, Scatter
from lesde.processes.integration import (
    STAGES,
    StepGrid,
    StepIncrements,
    global_numbers_kept,
    integrate,
    prefetch_length,
    solve,
)
from lesde.processes.plan import Block, Plan
from lesde.processes.random import BLOCK

__all__ = [
    "MOST_BLOCKS",
    "ClassMaps",
    "DriftTable",
    "ExactMeans",
    "IntegratedMeans",
    "MeanPaths",
    "MeanSDE",
    "NoiseTable",
    "SampledMeans",
    "SamplingSDE",
    "ShiftedNoise",
    "captured_steps",
    "drift_slopes",
    "from_rows",
    "to_rows",
]


# --------------------------------------------------------------------------------------------------
# The LE-SDE of the class means, in torchsde's words.

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


# --------------------------------------------------------------------------------------------------
# A stretch of torchsde's steps as one CUDA graph.

LARGEST_STATES = 2**24
"""Numbers of a stretch's states; larger ones keep a GPU busy without a graph."""

Replay = Callable[[torch.Tensor], torch.Tensor]


def captured_steps(
    sde: MeanSDE, brownian: StepIncrements, method: str, length: int, state: torch.Tensor
) -> Replay | None:
    """A function from a state to the states (step, row, channel) of a full stretch, or None.

    None where there is nothing to gain: on the CPU, for large states, and for runs shorter than two
    stretches. Before each call the stretch's increments and tables must have been filled.
    """
    few = int(sde.grid.saved[-1]) < 2 * length
    if state.device.type != "cuda" or few or state.numel() * length > LARGEST_STATES:
        return None
    return _Captured(sde, brownian, method, length, state)


class _Captured:
    def __init__(
        self,
        sde: MeanSDE,
        brownian: StepIncrements,
        method: str,
        length: int,
        state: torch.Tensor,
    ):
        self.sde, self.brownian, self.method, self.length = sde, brownian, method, length
        self.state = state.clone()
        self.graph: torch.cuda.CUDAGraph | None = None
        self.failed = False

    def __call__(self, state: torch.Tensor) -> torch.Tensor:
        self.state.copy_(state)
        if self.failed:
            return self._solve()
        if self.graph is None:
            try:
                self._capture()
            except RuntimeError as error:
                self.failed, self.graph = True, None
                warnings.warn(
                    f"the steps could not be recorded as a CUDA graph ({error}); they run one by one, "
                    f"which is slower and gives the same numbers.",
                    UserWarning,
                    stacklevel=2,
                )
                return self._solve()
        # The recorded steps read the memory of the first stretch's tables.
        self._refresh()
        assert self.graph is not None
        self.graph.replay()
        return self.states.clone()

    def _solve(self) -> torch.Tensor:
        first = self.brownian.first
        outputs = list(range(first, first + self.length + 1))
        with torch.no_grad(), global_numbers_kept(self.state.device):
            return solve(self.sde, self.state, outputs, self.brownian, self.method)

    def _capture(self) -> None:
        device = self.state.device
        first = self.brownian.first
        outputs = list(range(first, first + self.length + 1))
        self.tables = (self.sde.drift_table, self.sde.noise_table)
        with torch.no_grad(), global_numbers_kept(device):
            side = torch.cuda.Stream(device)
            side.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(side):
                solve(self.sde, self.state, outputs, self.brownian, self.method)
            torch.cuda.current_stream(device).wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self.states = solve(self.sde, self.state, outputs, self.brownian, self.method)
        self.graph = graph

    def _refresh(self) -> None:
        for recorded, current in zip(
            self.tables, (self.sde.drift_table, self.sde.noise_table), strict=True
        ):
            if recorded is not None and current is not None and recorded is not current:
                recorded.overwrite(current)


# --------------------------------------------------------------------------------------------------
# Paths of the class means at the saved times: from the exact law, or integrated by torchsde.

MOST_BLOCKS = 8
"""Blocks side by side: more gain little."""


class MeanPaths(Protocol):
    """What gives the class means of blocks, one saved time after the other."""

    def block_bytes(self) -> float:
        """Working memory of a block."""

    def paths(self, cell: int, blocks: list[Block], start: torch.Tensor) -> Iterator[torch.Tensor]:
        """Class means (block, replicate, class, feature), float64, at the second, third, … time."""

    def interval_noise(self, cell: int) -> IntervalNoise:
        """What noise adds to a sample between saved times."""


class ExactMeans:
    """Gaussian transitions between the saved times; computed once for all replicates.

    Parameters
    ----------
    plan : Plan
    steps : list of Transition
        The derivation's, between the plan's times.
    """

    def __init__(self, plan: Plan, steps: list[Transition]):
        self.plan, self.steps = plan, steps
        last = None
        for time, step in zip(plan.times[1:], self.steps, strict=True):
            if step is last:  # equal intervals share one
                continue
            last = step
            if not all(np.isfinite(part).all() for part in (step.phi, *(c for c, _ in step.parts))):
                raise Diverged(time)

        self.parts = self.steps[0].n_normals
        self.ahead = prefetch_length(BLOCK * plan.n_classes * plan.n_features * self.parts)

    def block_bytes(self) -> float:
        """Working memory of a block."""
        size = BLOCK * self.plan.n_classes * self.plan.n_features
        return 8.0 * size * (4 + self.ahead * (2 + self.parts))

    def interval_noise(self, cell: int) -> IntervalNoise:
        """What noise adds to a sample between saved times."""
        return IntervalNoise.exact(self.plan.coefficients.noise, self.plan.times)

    def paths(self, cell: int, blocks: list[Block], start: torch.Tensor) -> Iterator[torch.Tensor]:
        """Class means (block, replicate, class, feature) at the second, third, … saved time."""
        plan = self.plan
        noises = [plan.noise(cell, block, "means") for block in blocks]
        K, p = plan.n_classes, plan.n_features
        # Coordinates are (…, contrast, replicate, feature): grand mean and contrasts, each with its
        # own digits, and products with matrices of few rows and many columns.
        basis = self.steps[0].basis
        state = _left(basis.T, start.transpose(1, 2).cpu().numpy())
        for first in range(0, len(self.steps), self.ahead):
            steps = self.steps[first : first + self.ahead]
            shape = (len(steps), self.parts, K, BLOCK, p)
            draws = [noise.normal(*shape, dtype=torch.float64) for noise in noises]
            # Not around the yield, where the setting would be the caller's too.
            with np.errstate(over="ignore", invalid="ignore"):
                noise = self._coloured(steps, torch.stack(draws).cpu().numpy())
                self._accumulate(steps, state, noise)
                state = noise[:, -1]
                means = torch.from_numpy(_left(basis, noise))
            yield from means.permute(1, 0, 3, 2, 4).to(plan.device)

    @staticmethod
    def _accumulate(steps: list[Transition], state: np.ndarray, noise: np.ndarray) -> None:
        """Turn the noise of successive intervals into states, in place."""
        rows = noise.reshape(*noise.shape[:3], -1)
        last = state.reshape(len(state), len(rows[0, 0]), -1)
        for i, step in enumerate(steps):
            if step.is_small(step.phi):
                last = np.add(step.phi @ last, rows[:, i], out=rows[:, i])
            else:
                moved = _apply(step, step.phi, last.reshape(state.shape))
                last = np.add(moved.reshape(last.shape), rows[:, i], out=rows[:, i])

    def _coloured(self, steps: list[Transition], normals: np.ndarray) -> np.ndarray:
        """The noise of successive intervals, (block, interval, contrast, replicate, feature)."""
        total = np.empty_like(normals[:, :, 0])
        first = 0
        for _, same in itertools.groupby(steps, key=id):
            count = len(list(same))
            step, rows = steps[first], normals[:, first : first + count]
            parts = []
            for i, (root, (_, factor)) in enumerate(zip(step.roots, step.parts, strict=True)):
                part = _apply(step, root, rows[:, :, i])
                parts.append(part if factor is None or _is_unit(factor) else part @ factor.T)
            total[:, first : first + count] = sum(parts[1:], parts[0])
            first += count
        return total


def _left(matrix: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """A matrix of classes or contrasts times rows (…, class, replicate, feature)."""
    return (matrix @ rows.reshape(*rows.shape[:-2], -1)).reshape(rows.shape)


def _apply(step: Transition, matrix: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """A matrix of a transition times rows (…, contrast, replicate, feature)."""
    if step.is_small(matrix):
        return _left(matrix, rows)
    return step.apply(matrix, rows.swapaxes(-3, -2)).swapaxes(-3, -2)


def _is_unit(factor: np.ndarray) -> bool:
    return bool((factor == np.eye(len(factor))).all())


class IntegratedMeans:
    """The class means integrated step by step by torchsde.

    Parameters
    ----------
    plan : Plan
    method : {"euler", "milstein", "srk"}
    steps : list of float
        The step of every cell.
    """

    def __init__(self, plan: Plan, method: str, steps: list[float]):
        self.plan, self.method = plan, method
        self.grids = [StepGrid.regular(plan.times, dt) for dt in steps]
        self.sdes = [MeanSDE(plan, grid, method) for grid in self.grids]
        self.length = prefetch_length(self.sdes[0].channels)

    def block_bytes(self) -> float:
        """Working memory of a block."""
        channels = self.sdes[0].channels
        parts = 2 if self.method == "srk" else 1
        outputs = min(self.length, len(self.plan.times)) + 8
        return 8.0 * channels * (self.length * parts + outputs)

    def interval_noise(self, cell: int) -> IntervalNoise:
        """What the solver's steps add to a sample between saved times."""
        noise = self.sdes[cell].noise
        return IntervalNoise.of_scheme(noise, self.grids[cell], self.method)

    def paths(self, cell: int, blocks: list[Block], start: torch.Tensor) -> Iterator[torch.Tensor]:
        """Class means (block, replicate, class, feature) at the second, third, … saved time."""
        plan, grid, sde = self.plan, self.grids[cell], self.sdes[cell]
        noises = [plan.noise(cell, block, "means") for block in blocks]
        # On other devices the bits of a product may depend on the number of rows: keep that fixed.
        padding = 0 if plan.device.type == "cpu" else MOST_BLOCKS - len(blocks)
        brownian = StepIncrements(
            noises, sde.channels, self.length, DTYPE, self.method == "srk", sde.colour, padding
        )
        state = torch.nn.functional.pad(to_rows(start), (0, 0, 0, padding))
        replayed = captured_steps(sde, brownian, self.method, self.length, state)
        for first, end, saved in grid.stretches(self.length):
            sde.load(first, end)
            brownian.fill(first, grid.widths[first:end])
            marks = [done for done, _ in saved]
            if replayed is not None and end - first == self.length:
                states = replayed(state)
                wanted = [states[done - first] for done in marks]
            else:
                inside = [done for done in marks if done < end]
                states = integrate(sde, state, [first, *inside, end], brownian, self.method)
                wanted = list(states[1 : len(marks) + 1])
            state = states[-1]
            for values in wanted:
                yield from_rows(values[: len(blocks)], plan.n_classes)
            if not bool(torch.isfinite(state).all()):
                later = int(np.searchsorted(grid.saved, end))
                raise plan.diverged(later)


# --------------------------------------------------------------------------------------------------


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
        self.shares = torch.as_tensor(plan.counts / plan.n_samples, dtype=DTYPE, device=plan.device)
        self.transforms = Transforms(plan.coefficients.transform, DTYPE, plan.device)
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
        values = torch.as_tensor(coefficients.kicks(at), dtype=DTYPE, device=self.plan.device)
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
        deviations = (self.roots[index] @ vector).squeeze(-1)
        sampled = sampling_noise(
            self.transforms, self.kicks[index], self.shares, rows, drift, z, deviations, -3
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
