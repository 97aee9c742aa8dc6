"""Brownian increments for torchsde, drawn ahead from the blocks' generators.

torchsde's own ``BrownianInterval`` can be queried anywhere and spends most of a step on that. A
solver with fixed steps asks for every step once and in order, which needs no memory of the path.

Time here is the step index: step m runs from m to m+1 and lasts ``widths[m]`` in the model's time, so
that times are integers, exact in floating point. In that time an increment has variance ``widths[m]``
and the space-time integral is U = ∫_m^{m+1} (W_s − W_m) ds = √width (z/2 + z'/√12), independent z, z'.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torchsde
from torchsde import BaseBrownian

from lesde.processes.process import BlockNoise

__all__ = [
    "METHODS",
    "STAGES",
    "StepIncrements",
    "default_step",
    "integrate",
    "prefetch_length",
]


# --------------------------------------------------------------------------------------------------
# How long steps may be, and the call of torchsde.

METHODS = ("euler", "milstein", "srk")
# Fractions of a step at which each method evaluates the drift (for srk those of Rößler's SRA1).
STAGES = {"euler": (0.0,), "milstein": (0.0,), "srk": (0.0, 0.75)}

ACCURACY = 0.01
TABLE_BYTES = 2**26
# More than a user who gave no step would wait for.
MOST_DEFAULT_STEPS = 10**6


def integrate(
    sde: Any,
    state: torch.Tensor,
    outputs: list[int],
    brownian: torchsde.BaseBrownian,
    method: str,
    gradients: bool = False,
) -> torch.Tensor:
    """States (time, row, channel) at the given step counts, the first that of ``state``."""
    ts = torch.tensor(outputs, dtype=torch.float64)
    # sdeint checks shapes with draws of its own from the global generator: put that back.
    devices = [state.device] if state.device.type == "cuda" else []
    with torch.set_grad_enabled(gradients), torch.random.fork_rng(devices=devices):
        return torchsde.sdeint(sde, state, ts, bm=brownian, method=method, dt=1.0)


def default_step(coefficients: Any, times: np.ndarray, method: str) -> float:
    """A step at which the growth of the class means is accurate to about 1 %.

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
        coefficients.weights(
            edges[i : i + size]
        )  # names the value at fault where the grid meets a pole
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
# Increments of the Brownian motion, in place of those of torchsde.

PREFETCH = 512
PREFETCH_NUMBERS = 2**18


def prefetch_length(channels: int) -> int:
    """Steps whose increments are drawn at once: a number that depends on the model alone.

    On some devices the numbers that a generator gives depend on how many are asked for at once.
    """
    return max(1, min(PREFETCH, PREFETCH_NUMBERS // channels))


class StepIncrements(BaseBrownian):
    """Increments of one stretch of steps after the other, every block's from its own generator.

    Not for adaptive steps, nor for adjoint methods, which query the same path again: only the
    stretch that :meth:`fill` drew last can be asked for. ``channels`` are the noise channels of a block and
    ``length`` the steps of a stretch, at most; ``with_integral`` draws space-time integrals too. ``colour``
    is applied in place to a stretch's increments (step, block, channel): a diffusion that does not depend
    on the state may as well multiply them all at once.
    """

    def __init__(
        self,
        noises: Sequence[BlockNoise],
        channels: int,
        length: int,
        dtype: torch.dtype,
        with_integral: bool = False,
        colour: Callable[[torch.Tensor], object] | None = None,
    ):
        self._shape, self._dtype, self._device = (len(noises), channels), dtype, noises[0].device
        self._noises, self._colour = noises, colour
        self.first = self.end = 0
        # A block's numbers of a stretch lie together, so that they are drawn in one go.
        drawn = (len(noises), length, 2 if with_integral else 1, channels)
        self._drawn = torch.zeros(drawn, dtype=dtype, device=self._device)
        self._steps: list[torch.Tensor] = []
        self._integrals: list[torch.Tensor] = []

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

    def fill(self, first: int, widths: np.ndarray) -> None:
        """Draw the increments of the steps from ``first`` on, of the given widths."""
        if first != self.end:
            raise ValueError(f"stretches must follow each other; got {first} after {self.end}.")
        self.first, self.end = first, first + len(widths)
        drawn = self._drawn[:, : len(widths)]
        for noise, part in zip(self._noises, drawn, strict=True):
            noise.normal_(part)
        roots = torch.as_tensor(np.sqrt(widths), dtype=self.dtype, device=self.device)
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
