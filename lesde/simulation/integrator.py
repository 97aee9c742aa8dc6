"""Engine ``torchsde``: the paths integrated step by step by torchsde's solvers.

torchsde adds steps to a floating-point time and interpolates between steps at the output times, which
leaves tiny extra steps and interpolation errors. Here its time is the step index: step m covers a
width Δ_m of the model's time, the drift is multiplied by Δ_m and the Brownian increment has variance
Δ_m. Times are then integers, exact in float64, every output time is the end of a step, and one call of
``sdeint`` serves many saved times with steps of different widths.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torchsde

from lesde.derivation.coefficients import Coefficients
from lesde.simulation.brownian import StepIncrements
from lesde.simulation.colour import Colour
from lesde.simulation.packing import Packing, make_packing, spread
from lesde.simulation.plan import Plan, Tick

__all__ = ["METHODS", "IntegratorEngine", "StepGrid", "StepSDE", "default_step", "integrate"]

METHODS = ("euler", "milstein", "srk")
# Fractions of a step at which each method evaluates the drift (for srk those of Rößler's SRA1).
STAGES = {"euler": (0.0,), "milstein": (0.0,), "srk": (0.0, 0.75)}

ACCURACY = 0.01
TABLE_BYTES = 2**26
RESULT_BYTES = 2**26
MOST_STEPS = 10**8
# More than a user who gave no step would wait for.
MOST_DEFAULT_STEPS = 10**6
# Saved times per call of sdeint, so that an overflow is noticed soon.
LARGEST_PART = 16


@dataclass(frozen=True)
class StepGrid:
    """The steps of a run.

    Attributes
    ----------
    starts, widths : ndarray, shape (step,)
        Begin and duration of every step.
    saved : ndarray of int, shape (time,)
        Number of steps done at every saved time.
    """

    starts: np.ndarray
    widths: np.ndarray
    saved: np.ndarray

    @classmethod
    def regular(cls, times: np.ndarray, dt: float) -> StepGrid:
        """Steps of at most ``dt`` that divide every saved interval evenly."""
        gaps = np.diff(times)
        # An interval that is a multiple of dt up to rounding gets just so many steps.
        needed = np.maximum(1, np.ceil(gaps / dt * (1 - 1e-12) - 1e-9))
        if needed.sum() > MOST_STEPS:
            raise ValueError(
                f"an integration step of {dt:g} needs {needed.sum():.3g} steps for these times, more "
                f"than {MOST_STEPS:.0e}; give a larger dt, or use engine='exact'."
            )
        counts = needed.astype(np.int64)
        saved = np.concatenate([[0], np.cumsum(counts)])
        widths = np.repeat(gaps / counts, counts)
        within = np.arange(saved[-1]) - np.repeat(saved[:-1], counts)
        return cls(np.repeat(times[:-1], counts) + within * widths, widths, saved)

    def chunks(self, limit: int) -> Iterator[tuple[int, int]]:
        """Runs of at most ``limit`` steps, as (first, end)."""
        total = int(self.saved[-1])
        for first in range(0, total, limit):
            yield first, min(first + limit, total)


class DriftTable:
    """The drift's class matrices, times the step's width, at every stage of the steps of a chunk."""

    def __init__(self, plan: Plan, grid: StepGrid, method: str, first: int, end: int):
        self.first, self.stages = first, STAGES[method]
        coefficients = plan.coefficients
        widths, starts = grid.widths[first:end], grid.starts[first:end]
        offsets = np.asarray(self.stages)
        if coefficients.drift_table.is_constant:
            values = coefficients.weights(starts[:1])[:, None]
        else:
            times = starts[:, None] + offsets * widths[:, None]
            values = coefficients.weights(times.ravel())
            values = values.reshape(len(starts), len(offsets), *values.shape[1:])
        scaled = torch.as_tensor(
            values * widths[:, None, None, None], dtype=plan.dtype, device=plan.device
        )
        columns = [scaled[:, s].unbind(0) for s in range(scaled.shape[1])]
        self.values = columns * (len(self.stages) // len(columns))

    def at(self, time: float) -> torch.Tensor:
        """The matrix (class, class) at a step time such as 7 or 7.75."""
        step = math.floor(time)
        for stage, values in zip(self.stages, self.values, strict=True):
            if time - step == stage:
                return values[step - self.first]
        raise ValueError(f"the drift is tabulated at {self.stages} of a step; asked at {time}.")


class StepSDE:
    """The LE-SDE of one block in step time, with torchsde's names.

    Parameters
    ----------
    coefficients : Coefficients
    packing : Packing
    dtype, device
    """

    noise_type = "additive"
    sde_type = "ito"

    def __init__(
        self,
        coefficients: Coefficients,
        packing: Packing,
        dtype: torch.dtype,
        device: torch.device,
    ):
        self.transform = coefficients.transform
        self.packing = packing
        self.table: DriftTable | None = None
        self._spaces: dict[str, torch.Tensor] = {}
        self.colour = Colour(coefficients, dtype, device)
        self.channels = None if self.colour.scale is None else packing.scale(self.colour.scale)

    def f(self, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Drift of every channel over one step, shape (replicate, channel)."""
        assert self.table is not None
        means = self.transform(self.packing.means(y))
        drift = self.table.at(float(t)) @ means
        return self.packing.spread(drift, self._space("drift", y))

    def _space(self, name: str, like: torch.Tensor) -> torch.Tensor:
        """Memory that every call writes again: the solvers use a value before they ask for the next."""
        space = self._spaces.get(name)
        if space is None or space.shape != like.shape:
            space = self._spaces[name] = torch.empty_like(like)
        return space

    def g_prod(self, t: torch.Tensor, y: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """σ times Brownian increments, shape (replicate, channel)."""
        if self.colour.uniform is not None:
            return torch.mul(v, self.colour.uniform, out=self._space("noise", v))
        if self.channels is not None:
            return torch.mul(v, self.channels, out=self._space("noise", v))
        return self.packing.apply(self.colour.factors, v)

    def f_and_g_prod(
        self, t: torch.Tensor, y: torch.Tensor, v: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return self.f(t, y), self.g_prod(t, y, v)


def integrate(
    sde: StepSDE,
    state: torch.Tensor,
    outputs: list[int],
    brownian: torchsde.BaseBrownian,
    method: str,
) -> torch.Tensor:
    """States (time, replicate, channel) at the given step counts, the first that of ``state``."""
    ts = torch.tensor(outputs, dtype=torch.float64)
    cuda = [state.device] if state.device.type == "cuda" else []
    # sdeint checks shapes with draws of its own from the global generator: put that back.
    with torch.no_grad(), torch.random.fork_rng(devices=cuda):
        return torchsde.sdeint(sde, state, ts, bm=brownian, method=method, dt=1.0)


def default_step(coefficients: Coefficients, times: np.ndarray, method: str) -> float:
    """A step at which the class means' growth is right to about 1 %.

    With the rate ρ(t) = ‖w E(t)‖ max‖H_l‖, a bound on the norm of the drift's matrix, the relative
    error of the growth over the run is about dt/2 ∫ρ² for methods of first order and dt²/6 ∫ρ³ for
    ``srk``. The step is at most a hundredth of the run, so that noise and kernel are resolved.
    """
    span = times[-1] - times[0]
    edges = np.unique(np.concatenate([np.linspace(times[0], times[-1], 1001), times]))
    widths = np.diff(edges)
    middles = edges[:-1] + widths / 2
    size = max(1, TABLE_BYTES // (8 * len(coefficients.counts) ** 2))
    for i in range(0, len(edges), size):
        coefficients.weights(edges[i : i + size])  # a pole is told by name where the grid meets it
    matrices = (coefficients.weights(middles[i : i + size]) for i in range(0, len(middles), size))
    rate = np.concatenate([np.abs(matrix).sum(-1).max(-1) for matrix in matrices])
    if coefficients.transform.kind == "matrix":
        rate = rate * np.linalg.norm(coefficients.transform.array(), 2, axis=(-2, -1)).max()
    if method == "srk":
        error = float((rate**3 * widths).sum()) / 6
        step = math.sqrt(ACCURACY / error) if error > 0 else span
    else:
        error = float((rate**2 * widths).sum()) / 2
        step = ACCURACY / error if error > 0 else span
    step = float(min(step, span / 100))
    if span / step > MOST_DEFAULT_STEPS:
        raise ValueError(
            f"engine='torchsde' needs {span / step:.2g} steps to be right to 1 % for this kernel, whose "
            f"rates reach {rate.max():.3g}; end `times` earlier, use engine='exact', or give dt to "
            f"accept a coarser step."
        )
    return step


class IntegratorEngine:
    """Runs torchsde over the blocks.

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

    def run(self, cell: int, out: np.ndarray, tick: Tick) -> None:
        """Fill ``out`` (replicate, time, sample, feature)."""
        plan, grid = self.plan, self.grids[cell]
        coefficients, dtype, device = plan.coefficients, plan.dtype, plan.device
        packing = make_packing(coefficients.counts, plan.n_features)
        sde = StepSDE(coefficients, packing, dtype, device)
        per_step = 8 * len(STAGES[self.method]) * len(coefficients.counts) ** 2
        limit = max(1, TABLE_BYTES // per_step)
        tables = {}
        for block in plan.blocks():
            noise = plan.noise(cell, block)
            means, offsets = plan.initial(noise, block)
            samples = spread_initial(means, offsets, packing).to(dtype)
            plan.store(out, block, 0, samples)
            state = packing.pack(samples)
            brownian = StepIncrements(noise, grid.widths, packing.size, dtype)
            fitting = RESULT_BYTES // (state.numel() * state.element_size())
            held = min(max(1, fitting), LARGEST_PART)
            for first, end in grid.chunks(limit):
                if (first, end) not in tables:
                    tables = {(first, end): DriftTable(plan, grid, self.method, first, end)}
                sde.table = tables[first, end]
                inside = (grid.saved > first) & (grid.saved < end)
                outputs = [first, *grid.saved[inside].tolist(), end]
                for i in range(0, len(outputs) - 1, held):
                    part = outputs[i : i + held + 1]
                    states = integrate(sde, state, part, brownian, self.method)
                    state = states[-1]
                    for done, values in zip(part[1:], states[1:], strict=True):
                        index = int(np.searchsorted(grid.saved, done))
                        if grid.saved[index] == done:
                            plan.store(out, block, index, packing.unpack(values))
                            tick()


def spread_initial(
    means: torch.Tensor, offsets: torch.Tensor | None, packing: Packing
) -> torch.Tensor:
    """All samples (replicate, sample, feature) at the start."""
    samples = spread(means, packing.counts)
    return samples if offsets is None else samples + offsets
