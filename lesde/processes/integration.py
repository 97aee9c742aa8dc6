"""Brownian increments for torchsde, drawn ahead from the blocks' generators, and how long steps may be.

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
from scipy.integrate import trapezoid
from torchsde import BaseBrownian

from lesde.processes.process import BlockNoise

METHODS = ("euler", "milstein", "srk")
# Fractions of a step at which each method evaluates the drift (for srk those of Rößler's SRA1).
STAGES = {"euler": (0.0,), "milstein": (0.0,), "srk": (0.0, 0.75)}

ACCURACY = 0.01
GRID = 1000
"""Points of the run at which the kernel is looked at for the default step."""
TABLE_NUMBERS = 2**23
PREFETCH = 512
PREFETCH_NUMBERS = 2**18


def integrate(
    sde: Any,
    state: torch.Tensor,
    outputs: list[int],
    brownian: BaseBrownian,
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
    edges = np.union1d(np.linspace(times[0], times[-1], GRID + 1), times)
    parts = np.array_split(edges, 1 + len(edges) * len(coefficients.counts) ** 2 // TABLE_NUMBERS)
    matrices = (coefficients.weights(part) for part in parts)
    rate = np.concatenate([np.abs(matrix).sum(-1).max(-1) for matrix in matrices])
    rate = rate * coefficients.transform.norms().max()
    order, factor = (2, 6) if method == "srk" else (1, 2)
    error = float(trapezoid(rate ** (order + 1), edges)) / factor
    step = (ACCURACY / error) ** (1 / order) if error > 0 else span
    return float(min(step, span / 100))


def prefetch_length(channels: int) -> int:
    """Steps whose increments are drawn at once: a number that depends on the model alone.

    On some devices the numbers that a generator gives depend on how many are asked for at once.
    """
    return max(1, min(PREFETCH, PREFETCH_NUMBERS // channels))


class StepIncrements(BaseBrownian):
    """Increments of one stretch of steps after the other, every block's from its own generator.

    Not for adaptive steps, nor for adjoint methods, which query the same path again: only the
    stretch that :meth:`fill` drew last can be asked for. ``channels`` are the noise channels of a block;
    ``with_integral`` draws space-time integrals too. ``colour`` is applied in place to a stretch's increments
    (step, block, channel): a diffusion that does not depend on the state may as well multiply them all at once.
    """

    levy_area_approximation = "space-time"
    shape: Any = None
    dtype = torch.float64
    device: Any = None

    def __init__(
        self,
        noises: Sequence[BlockNoise],
        channels: int,
        with_integral: bool = False,
        colour: Callable[[torch.Tensor], object] | None = None,
    ):
        self.shape, self.device = (len(noises), channels), noises[0].device
        self._noises, self._parts, self._colour = noises, 1 + with_integral, colour
        self.first = 0
        self._steps: list[Any] = []

    def __call__(
        self, ta: Any, tb: Any = None, return_U: bool = False, return_A: bool = False
    ) -> Any:
        found = self._steps[round(float(ta)) - self.first]
        return found if return_U else found[0]

    def __repr__(self) -> str:
        return f"{type(self).__name__}{self.shape}"

    def fill(self, first: int, widths: np.ndarray) -> None:
        """Draw the increments of the steps from ``first`` on, which follow those before, of the given widths."""
        # A block's numbers of a stretch lie together, so that they are drawn in one go.
        shape = (len(widths), self._parts, self.shape[1])
        drawn = torch.stack([noise.normal(*shape, dtype=self.dtype) for noise in self._noises])
        drawn.mul_(torch.as_tensor(np.sqrt(widths), device=self.device)[:, None, None])
        parts = list(drawn.permute(2, 1, 0, 3))
        if len(parts) == 2:
            parts[1].div_(math.sqrt(12)).add_(parts[0], alpha=0.5)
        if self._colour is not None:
            for part in parts:
                self._colour(part)
        self.first, self._steps = first, list(zip(*(part.unbind(0) for part in parts), strict=True))
