"""The steps of an integration, how long they may be, and the call of torchsde.

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
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torchsde

__all__ = [
    "METHODS",
    "STAGES",
    "StepGrid",
    "default_step",
    "global_numbers_kept",
    "integrate",
    "solve",
]

METHODS = ("euler", "milstein", "srk")
# Fractions of a step at which each method evaluates the drift (for srk those of Rößler's SRA1).
STAGES = {"euler": (0.0,), "milstein": (0.0,), "srk": (0.0, 0.75)}

ACCURACY = 0.01
TABLE_BYTES = 2**26
MOST_STEPS = 10**8
# More than a user who gave no step would wait for.
MOST_DEFAULT_STEPS = 10**6


class _Column:
    """Begins or widths of steps, worked out where they are asked for: there may be 10⁸ of them."""

    def __init__(self, grid: StepGrid, begins: bool):
        self._grid, self._begins = grid, begins

    def __len__(self) -> int:
        return int(self._grid.saved[-1])

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, slice):
            key = np.arange(*key.indices(len(self)))
        elif isinstance(key, int):
            key %= len(self)
        grid = self._grid
        i = grid.interval(key)
        widths = grid.interval_widths[i]
        return grid.times[i] + (key - grid.saved[i]) * widths if self._begins else widths


@dataclass(frozen=True)
class StepGrid:
    """The steps of a run: every saved interval divided evenly.

    Attributes
    ----------
    times : ndarray, shape (time,)
        The saved times.
    saved : ndarray of int, shape (time,)
        Number of steps done at every saved time.
    """

    times: np.ndarray
    saved: np.ndarray

    @classmethod
    def regular(cls, times: np.ndarray, dt: float) -> StepGrid:
        """Steps of at most ``dt`` that divide every saved interval evenly."""
        # An interval that is a multiple of dt up to rounding gets just so many steps.
        needed = np.maximum(1, np.ceil(np.diff(times) / dt * (1 - 1e-12) - 1e-9))
        if needed.sum() > MOST_STEPS:
            raise ValueError(
                f"an integration step of {dt:g} needs {needed.sum():.3g} steps for these times, more "
                f"than {MOST_STEPS:.0e}; give a larger dt, or use engine='exact'."
            )
        return cls(times, np.concatenate([[0], np.cumsum(needed.astype(np.int64))]))

    @cached_property
    def interval_widths(self) -> np.ndarray:
        """Δ in every saved interval, shape (interval,)."""
        return np.diff(self.times) / np.diff(self.saved)

    def interval(self, steps: Any) -> Any:
        """The saved interval of a step, or of an array of them."""
        return np.searchsorted(self.saved, steps, side="right") - 1

    @property
    def starts(self) -> _Column:
        """Begin of every step; takes a number, a slice or an array of step numbers."""
        return _Column(self, True)

    @property
    def widths(self) -> _Column:
        """Duration of every step, in the same way."""
        return _Column(self, False)

    def stretches(self, length: int) -> Iterator[tuple[int, int, list[tuple[int, int]]]]:
        """Runs of at most ``length`` steps, as (first, end, saved).

        ``saved`` lists (steps done, index of the saved time) for the saved times that end in the run.
        """
        total = int(self.saved[-1])
        for first in range(0, total, length):
            end = min(first + length, total)
            indices = range(*np.searchsorted(self.saved, [first, end], side="right"))
            yield first, end, [(int(self.saved[i]), i) for i in indices]


def integrate(
    sde: Any,
    state: torch.Tensor,
    outputs: list[int],
    brownian: torchsde.BaseBrownian,
    method: str,
) -> torch.Tensor:
    """States (time, row, channel) at the given step counts, the first that of ``state``."""
    # sdeint checks shapes with draws of its own from the global generator: put that back.
    with torch.no_grad(), global_numbers_kept(state.device):
        return solve(sde, state, outputs, brownian, method)


def global_numbers_kept(device: torch.device) -> Any:
    """A context that leaves torch's global generators as they were."""
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])


def solve(
    sde: Any,
    state: torch.Tensor,
    outputs: list[int],
    brownian: torchsde.BaseBrownian,
    method: str,
) -> torch.Tensor:
    """The call of ``sdeint`` behind :func:`integrate`."""
    ts = torch.tensor(outputs, dtype=torch.float64)
    return torchsde.sdeint(sde, state, ts, bm=brownian, method=method, dt=1.0)


def default_step(coefficients: Any, times: np.ndarray, method: str) -> float:
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
