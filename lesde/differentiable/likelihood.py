"""The likelihood of paths of class means under Gaussian transitions."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from lesde.differentiable.transitions import MeanTransitions

__all__ = ["PathLikelihood", "path_likelihood"]


@dataclass(frozen=True, eq=False)
class PathLikelihood:
    """What the log-density of paths is made of, given their first state.

    With the noise's covariances multiplied by s² the log-density is
    −(quadratic/s² + log_determinant + size (log 2π + log s²))/2.

    Attributes
    ----------
    quadratic : tensor ()
        Σ eᵀC⁻¹e over intervals and replicates, e = X̄(t₁) − Φ X̄(t₀).
    log_determinant : tensor ()
        Σ log det C over the same.
    size : int
        Numbers observed: replicates × intervals × classes × features.
    """

    quadratic: torch.Tensor
    log_determinant: torch.Tensor
    size: int

    def value(self, log_scale: torch.Tensor | float = 0.0) -> torch.Tensor:
        """The log-density where noise is exp(log_scale) times that of the transitions."""
        shrink = (
            math.exp(-2 * log_scale) if isinstance(log_scale, float) else torch.exp(-2 * log_scale)
        )
        level = math.log(2 * math.pi) + 2 * log_scale
        return -(self.quadratic * shrink + self.log_determinant + self.size * level) / 2


def path_likelihood(steps: MeanTransitions, means: torch.Tensor) -> PathLikelihood:
    """The likelihood of class means, given those at the first time.

    Parameters
    ----------
    steps : MeanTransitions
    means : tensor, shape (replicate, time, class, feature), float64
        Time as in the transitions.

    Raises
    ------
    ValueError
        Where the noise leaves some direction of the class means without a density.
    """
    basis = steps.basis
    kind = torch.from_numpy(steps.kind)
    state = basis.T @ means
    error = state[:, 1:] - steps.apply(steps.phi[kind], state[:, :-1])
    R, T, K, p = error.shape
    root = _root(steps.noise)
    log_each = root.diagonal(dim1=-2, dim2=-1).log().sum(-1)[kind]
    if steps.feature is None:
        flat = error.reshape(R, T, K * p).permute(1, 2, 0)
        white = torch.linalg.solve_triangular(root[kind], flat, upper=False)
        log_determinant = 2 * R * log_each.sum()
    else:
        shape = _root(steps.feature)
        turned = torch.linalg.solve_triangular(shape, error.reshape(-1, p).T, upper=False)
        columns = turned.reshape(p, R, T, K).permute(2, 3, 1, 0).reshape(T, K, R * p)
        white = torch.linalg.solve_triangular(root[kind], columns, upper=False)
        log_determinant = 2 * R * (p * log_each.sum() + T * K * shape.diagonal().log().sum())
    return PathLikelihood((white**2).sum(), log_determinant, R * T * K * p)


def _root(covariance: torch.Tensor) -> torch.Tensor:
    """Cholesky factors (…, n, n)."""
    root, failed = torch.linalg.cholesky_ex(covariance)
    if bool(failed.any()):
        raise ValueError(
            "noise must move the class means in every direction for their paths to have a density; the "
            "covariance of a transition is singular. Give every class noise above zero, with a factor "
            "of full rank."
        )
    return root
