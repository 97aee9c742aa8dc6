"""Brownian increments for torchsde, drawn ahead from the blocks' generators.

torchsde's own ``BrownianInterval`` can be queried anywhere and spends most of a step on that. A
solver with fixed steps asks for every step once and in order, which needs no memory of the path.

Time here is the step index: step m runs from m to m+1 and lasts ``widths[m]`` in the model's time, so
that times are integers, exact in floating point. In that time an increment has variance ``widths[m]``
and the space-time integral is U = ∫_m^{m+1} (W_s − W_m) ds = √width (z/2 + z'/√12), independent z, z'.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torchsde
from torchsde import BaseBrownian

from lesde.processes.random import BlockNoise

__all__ = [
    "METHODS",
    "STAGES",
    "GivenIncrements",
    "StepGrid",
    "StepIncrements",
    "default_step",
    "global_numbers_kept",
    "integrate",
    "prefetch_length",
    "solve",
]


# --------------------------------------------------------------------------------------------------
# The steps of an integration, how long they may be, and the call of torchsde.

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


# --------------------------------------------------------------------------------------------------

PREFETCH = 512
PREFETCH_NUMBERS = 2**18


def prefetch_length(channels: int) -> int:
    """Steps whose increments are drawn at once: a number that depends on the model alone.

    On some devices the numbers that a generator gives depend on how many are asked for at once.
    """
    return max(1, min(PREFETCH, PREFETCH_NUMBERS // channels))


class _UnitSteps(BaseBrownian):
    """What torchsde asks of a Brownian motion, for steps from m to m+1."""

    def __init__(self, shape: tuple[int, int], dtype: torch.dtype, device: torch.device):
        self._shape, self._dtype, self._device = shape, dtype, device

    @abstractmethod
    def increments(self, step: int, with_integral: bool) -> Any:
        """The increment over [step, step + 1], and its space-time integral where asked for."""

    def __call__(
        self, ta: Any, tb: Any = None, return_U: bool = False, return_A: bool = False
    ) -> Any:
        start = float(ta)
        step = round(start)
        if return_A or tb is None or abs(start - step) + abs(float(tb) - step - 1) > 1e-6:
            raise ValueError(
                f"only whole steps of fixed size can be queried, without Lévy area; got {ta} to {tb}."
            )
        return self.increments(step, return_U)

    @property
    def shape(self) -> tuple[int, int]:
        return self._shape

    @property
    def dtype(self) -> torch.dtype:
        return self._dtype

    @property
    def device(self) -> torch.device:
        return self._device

    @property
    def levy_area_approximation(self) -> str:
        return "space-time"

    def __repr__(self) -> str:
        return f"{type(self).__name__}(shape={self._shape}, dtype={self._dtype})"


class StepIncrements(_UnitSteps):
    """Increments of one stretch of steps after the other, every block's from its own generator.

    Not for adaptive steps, nor for adjoint methods, which query the same path again: only the
    stretch that :meth:`fill` drew last can be asked for.

    Parameters
    ----------
    noises : sequence of BlockNoise, length block
    channels : int
        Noise channels of a block.
    length : int
        Steps of a stretch, at most.
    with_integral : bool
        Whether space-time integrals are wanted.
    select : tensor of int, optional
        The channels that are handed out, where not all that are drawn are wanted.
    padding : int, default 0
        Further rows of zeros, for devices on which the bits of a product depend on its size.
    colour : callable, optional
        Applied in place to a stretch's increments (step, block, channel): a diffusion that does not
        depend on the state may as well multiply them all at once.
    """

    def __init__(
        self,
        noises: Sequence[BlockNoise],
        channels: int,
        length: int,
        dtype: torch.dtype,
        with_integral: bool = False,
        colour: Callable[[torch.Tensor], object] | None = None,
        padding: int = 0,
        select: torch.Tensor | None = None,
    ):
        device = noises[0].device
        rows = len(noises) + padding
        super().__init__((rows, channels if select is None else len(select)), dtype, device)
        self._select = select
        self._noises, self._colour = noises, colour
        self.first = self.end = 0
        parts = 2 if with_integral else 1
        # A block's numbers of a stretch lie together, so that they are drawn in one go.
        self._drawn = torch.zeros(rows, length, parts, channels, dtype=dtype, device=device)
        self._steps: list[torch.Tensor] = []
        self._integrals: list[torch.Tensor] = []

    def fill(self, first: int, widths: np.ndarray) -> None:
        """Draw the increments of the steps from ``first`` on, of the given widths."""
        if first != self.end:
            raise ValueError(f"stretches must follow each other; got {first} after {self.end}.")
        self.first, self.end = first, first + len(widths)
        drawn = self._drawn[:, : len(widths)]
        for noise, part in zip(self._noises, drawn, strict=False):
            noise.normal_(part)
        roots = torch.as_tensor(np.sqrt(widths), dtype=self.dtype, device=self.device)
        if self._select is not None:
            drawn = drawn[..., self._select]
        drawn.mul_(roots[:, None, None])
        steps = drawn[:, :, 0].transpose(0, 1)
        if drawn.shape[2] == 2:
            integrals = drawn[:, :, 1].transpose(0, 1)
            integrals.div_(math.sqrt(12)).add_(steps, alpha=0.5)
            if self._colour is not None:
                self._colour(integrals)
            self._integrals = list(integrals.unbind(0))
        if self._colour is not None:
            self._colour(steps)
        self._steps = list(steps.unbind(0))

    def increments(self, step: int, with_integral: bool) -> Any:
        if not self.first <= step < self.end:
            raise ValueError(
                f"steps {self.first} to {self.end - 1} are drawn; got a query of step {step}."
            )
        W = self._steps[step - self.first]
        return (W, self._integrals[step - self.first]) if with_integral else W


class GivenIncrements(_UnitSteps):
    """Increments given beforehand, for runs that share one Brownian path.

    Parameters
    ----------
    W, U : tensor, shape (step, replicate, channel)
        Increments and space-time integrals over every step, U in units of the step.
    """

    def __init__(self, W: torch.Tensor, U: torch.Tensor):
        super().__init__((W.shape[1], W.shape[2]), W.dtype, W.device)
        self._W, self._U = W, U

    def increments(self, step: int, with_integral: bool) -> Any:
        return (self._W[step], self._U[step]) if with_integral else self._W[step]

    def coarsen(self, factor: int) -> GivenIncrements:
        """The same path seen with steps ``factor`` times as long."""
        steps, *rest = self._W.shape
        if steps % factor:
            raise ValueError(f"factor must divide the {steps} steps; got {factor}.")
        W = self._W.reshape(steps // factor, factor, *rest)
        U = self._U.reshape(steps // factor, factor, *rest)
        before = W.cumsum(1) - W  # the path at the start of every fine step
        return GivenIncrements(W.sum(1), (before + U).sum(1) / factor)
