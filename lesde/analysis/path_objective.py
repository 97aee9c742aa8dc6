"""The negative log-likelihood of paths of class means as a function of a model's free names."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch

from lesde.differentiable.likelihood import PathLikelihood, path_likelihood
from lesde.differentiable.system import TensorSystem
from lesde.differentiable.transitions import MeanTransitions, mean_transitions

if TYPE_CHECKING:
    from lesde.model import LESDE

__all__ = ["Expansion", "PathObjective"]

Expansion = tuple[float, np.ndarray, np.ndarray]


class PathObjective:
    """−log L(θ) of observed class means, with its gradient and Hessian.

    Parameters
    ----------
    model : LESDE
        With free names.
    names : sequence of str
        The free names in the order of θ.
    times : ndarray, shape (time,)
    means : ndarray, shape (replicate, time, class, feature), float64
    profile : bool
        Whether a common factor s of the noise is put at its best value for every θ: s² is then the
        mean of eᵀC⁻¹e over the numbers observed.
    """

    def __init__(
        self,
        model: LESDE,
        names: tuple[str, ...],
        times: np.ndarray,
        means: np.ndarray,
        profile: bool,
    ):
        self.model, self.names, self.times, self.profile = model, names, times, profile
        self.means = torch.from_numpy(np.ascontiguousarray(means))

    def transitions(self, theta: torch.Tensor) -> MeanTransitions:
        """The law's transitions at θ, part of its graph."""
        values = dict(zip(self.names, theta.unbind(), strict=True))
        return mean_transitions(TensorSystem(self.model, values), self.times)

    def parts(self, theta: torch.Tensor) -> PathLikelihood:
        """The likelihood at θ; raises where the model has no law there."""
        return path_likelihood(self.transitions(theta), self.means)

    def best_log_scale(self, theta: np.ndarray) -> float:
        """log s: of the noise's best common factor, or 0."""
        return 0.5 * math.log(self.misfit(theta)) if self.profile else 0.0

    def misfit(self, theta: np.ndarray) -> float:
        """Mean square of what the law at θ leaves unexplained, in units of its noise."""
        with torch.no_grad():
            parts = self.parts(torch.from_numpy(np.array(theta)))
        return float(parts.quadratic) / parts.size

    def _value(self, theta: torch.Tensor) -> torch.Tensor:
        parts = self.parts(theta)
        scale = 0.5 * torch.log(parts.quadratic / parts.size) if self.profile else 0.0
        return -parts.value(scale)

    def expand(self, theta: np.ndarray) -> Expansion:
        """Value, gradient (parameter,) and Hessian (parameter, parameter) at θ.

        Raises ValueError or Diverged where the model has no law there.
        """
        return _expand(self._value, torch.from_numpy(np.array(theta)))

    def information(self, theta: np.ndarray, log_scale: float) -> np.ndarray:
        """Observed information of θ, and of log s in the last place where it is estimated."""
        if not self.profile:
            return self.expand(theta)[2]

        def joint(point: torch.Tensor) -> torch.Tensor:
            return -self.parts(point[:-1]).value(point[-1])

        return _expand(joint, torch.tensor([*theta, log_scale], dtype=torch.float64))[2]


def _expand(function: Callable[[torch.Tensor], torch.Tensor], point: torch.Tensor) -> Expansion:
    point = point.requires_grad_()
    value = function(point)
    (gradient,) = torch.autograd.grad(value, point, create_graph=True)
    rows = [
        torch.autograd.grad(entry, point, retain_graph=True, allow_unused=True)[0]
        if entry.requires_grad
        else None
        for entry in gradient
    ]
    hessian = torch.stack([torch.zeros_like(point) if row is None else row for row in rows]).numpy()
    return float(value.detach()), gradient.detach().numpy(), (hessian + hessian.T) / 2
