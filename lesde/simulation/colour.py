"""The noise factor σ_k applied to standard normals, as cheaply as its structure allows."""

from __future__ import annotations

import numpy as np
import torch

from lesde.derivation.coefficients import Coefficients

__all__ = ["Colour", "multiply_rows"]


def multiply_rows(
    matrices: torch.Tensor, rows: torch.Tensor, classes: torch.Tensor
) -> torch.Tensor:
    """Every row (..., feature) multiplied by the matrix of its class (...), without gathering them."""
    result = torch.empty_like(rows)
    for k, matrix in enumerate(matrices):
        chosen = classes == k
        result[chosen] = rows[chosen] @ matrix.T
    return result


class Colour:
    """σ_k of every class.

    Attributes
    ----------
    uniform : float or None
        σ where it is one number for all classes.
    scale : tensor (class,), or None
        σ_k where they are numbers.
    factors : tensor (class, feature, feature)
        σ_k in general.
    """

    def __init__(self, coefficients: Coefficients, dtype: torch.dtype, device: torch.device):
        self.counts = coefficients.counts
        numbers = coefficients.noise_scale()
        self.uniform: float | None = None
        self.scale: torch.Tensor | None = None
        self.factors = torch.empty(0)
        if numbers is None:
            factors = coefficients.noise_factor.copy()
            self.factors = torch.as_tensor(factors, dtype=dtype, device=device)
        elif (numbers == numbers[0]).all():
            self.uniform = float(numbers[0])
        else:
            self.scale = torch.as_tensor(numbers.copy(), dtype=dtype, device=device)
            labels = torch.as_tensor(np.repeat(np.arange(len(numbers)), self.counts), device=device)
            self._columns = self.scale[labels].unsqueeze(-1)

    def samples(self, normals: torch.Tensor) -> torch.Tensor:
        """σ_k times the normals of all samples (..., sample, feature), sorted by class."""
        if self.uniform is not None:
            return normals * self.uniform
        if self.scale is not None:
            return normals * self._columns
        parts = normals.split(self.counts.tolist(), -2)
        return torch.cat([x @ f.T for x, f in zip(parts, self.factors, strict=True)], -2)

    def rows(self, normals: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        """σ_k times normals (..., feature) of samples of the given classes (...)."""
        if self.uniform is not None:
            return normals * self.uniform
        if self.scale is not None:
            return normals * self.scale[classes].unsqueeze(-1)
        return multiply_rows(self.factors, normals, classes)
