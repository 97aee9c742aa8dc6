"""Brownian increments for torchsde, drawn step by step from a block's generator.

torchsde's own ``BrownianInterval`` can be queried anywhere and spends most of a step on that. A
solver with fixed steps asks for every step once and in order, which needs no memory of the path.

Time here is the step index: step m runs from m to m+1 and lasts ``widths[m]`` in the model's time, so
that times are integers, exact in floating point. In that time an increment has variance ``widths[m]``
and the space-time integral is U = ∫_m^{m+1} (W_s − W_m) ds = √width (z/2 + z'/√12), independent z, z'.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any

import numpy as np
import torch
from torchsde import BaseBrownian

from lesde.simulation.noise import BLOCK, BlockNoise

__all__ = ["GivenIncrements", "StepIncrements"]


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
        step = round(float(ta))
        if return_A or tb is None or abs(float(ta) - step) + abs(float(tb) - step - 1) > 1e-6:
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
    """Fresh increments at every query: it must be asked for each step once, in order.

    Not for adaptive steps, nor for adjoint methods, which query the same path again. A query
    overwrites the tensors that the one before returned; a solver is done with them by then.

    Parameters
    ----------
    noise : BlockNoise
    widths : ndarray, shape (step,)
        Duration of every step.
    size : int
        Noise channels of a replicate.
    """

    def __init__(self, noise: BlockNoise, widths: np.ndarray, size: int, dtype: torch.dtype):
        super().__init__((BLOCK, size), dtype, noise.device)
        self._noise = noise
        self._roots = np.sqrt(widths).tolist()
        self._next = 0
        self._W = torch.empty(self._shape, dtype=dtype, device=noise.device)
        self._U: torch.Tensor | None = None

    def increments(self, step: int, with_integral: bool) -> Any:
        if step != self._next:
            raise ValueError(f"steps must be queried in order; got {step} after {self._next - 1}.")
        self._next = step + 1
        root = self._roots[step]
        W = self._noise.normal_(self._W).mul_(root)
        if not with_integral:
            return W
        if self._U is None:
            self._U = torch.empty_like(W)
        U = self._noise.normal_(self._U).mul_(root / math.sqrt(12))
        return W, U.add_(W, alpha=0.5)


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
