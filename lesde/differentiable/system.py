"""The linear system of the class means with its coefficients as tensors.

The same system as :mod:`lesde.linear_system`: dY = W(t) V Y dt + noise of intensity Q(t), Y the class
means in contrast coordinates. The space has K dimensions where the transform is the identity and the
noise is a class pattern times one constant feature covariance S, else K·p.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from lesde.differentiable.formulas import BoundTable, Values
from lesde.differentiable.parameters import numbers_of
from lesde.entries import EntryTable
from lesde.linear_system import DENSE_LIMIT, ROUNDING, contrast_basis, linear_system
from lesde.noise import read_noise
from lesde.quadrature import Panels, resolve

if TYPE_CHECKING:
    from lesde.model import LESDE

__all__ = ["TensorNoise", "TensorSystem", "clean"]


def clean(matrix: torch.Tensor) -> torch.Tensor:
    """What is only rounding set to zero, with its gradient kept.

    Entries are compared with the largest of the same item along the first dimension: a strength that
    happens to be zero at these values must still be able to move.
    """
    with torch.no_grad():
        size = matrix.abs().flatten(1).amax(1).view(-1, *(1,) * (matrix.dim() - 1))
        rounding = torch.where(matrix.abs() > ROUNDING * size, torch.zeros_like(matrix), matrix)
    return matrix - rounding


class TensorNoise:
    """σ_k(t)² of a model's noise, with gradients to its free names.

    Parameters
    ----------
    model : LESDE
    values : mapping of str to 0-d tensor
    """

    def __init__(self, model: LESDE, values: Values):
        self.noise = model.noise_table
        self.n_classes, self.n_features = model.n_classes, model.n_features
        self.table: BoundTable | None = None
        if not self.noise.is_numeric:
            given = self.noise.given
            places = ["".join(f"[{i}]" for i in index) for index in np.ndindex(given.shape)]
            names = {
                f"noise{place}": formula
                for place, formula in zip(places, given.ravel(), strict=True)
            }
            index = np.arange(given.size).reshape(given.shape or (1,))
            self.table = BoundTable(EntryTable.from_formulas(names, index), values, "noise")

    @property
    def is_constant(self) -> bool:
        """Whether no factor is a function of time."""
        return self.noise.is_constant

    @property
    def is_isotropic(self) -> bool:
        """Whether every factor is a multiple of the identity matrix."""
        return self.noise.is_isotropic

    def square(self, times: np.ndarray) -> torch.Tensor:
        """σ² (time, 1 or class) where isotropic, else σσᵀ (time, 1 or class, feature, feature)."""
        if self.table is None:
            return torch.from_numpy(np.array(self.noise.square(times)))
        factors = self.table(times)
        if self.noise.given.ndim < 2:
            if bool((factors < 0).any()):
                i, k = (int(j) for j in torch.nonzero(factors < 0)[0])
                raise ValueError(
                    f"noise must not be negative at any time; got {float(factors[i, k].detach()):g} "
                    f"for class {k} at t = {times[i]:g}. Noise is the diffusion σ, whose square is a "
                    f"variance per unit time."
                )
            return factors**2
        if self.noise.given.ndim == 2:
            factors = factors.unsqueeze(1)
        if self.is_isotropic:
            return factors[..., 0, 0] ** 2
        return factors @ factors.mT

    def covariance(self, times: np.ndarray) -> torch.Tensor:
        """σ_k σ_kᵀ at the times, shape (time, class, feature, feature)."""
        square, p = self.square(times), self.n_features
        if self.is_isotropic:
            square = square[:, :, None, None] * torch.eye(p, dtype=torch.float64)
        return square.expand(len(times), self.n_classes, p, p)


class TensorSystem:
    """W(t), V and Q(t) in contrast coordinates.

    Attributes
    ----------
    basis : tensor (K, K)
        The contrast basis.
    right : tensor (r, n)
        V; the identity where n = K.
    feature : tensor (p, p), or None
        S, where the space has n = K dimensions and stands for every feature.
    noise : TensorNoise
    is_constant : bool
        Whether neither kernel nor noise depend on time.
    """

    def __init__(self, model: LESDE, values: Values):
        coefficients = model.derive().coefficients()
        K, p = model.n_classes, model.n_features
        self.noise = TensorNoise(model, values)
        self._drift = BoundTable(coefficients.drift_table, values, "kernel")
        self._entries = BoundTable(coefficients.entries, values, "kernel")
        self._model, self._values = model, values
        self.is_constant = self._drift.is_constant and self.noise.is_constant
        self.counts = torch.tensor(model.counts.tolist(), dtype=torch.float64)
        basis = contrast_basis(K)
        self.basis = torch.from_numpy(basis)
        self.feature: torch.Tensor | None = None
        identity = model.transform.kind == "identity"
        shared = self.noise.is_constant and self.noise.noise.is_shared
        if identity and self.noise.is_isotropic:
            self.feature = torch.eye(p, dtype=torch.float64)
        elif identity and shared:
            self.feature = self.noise.square(np.zeros(1))[0, 0]
        if self.feature is not None:
            self._left, self.right = None, torch.eye(K, dtype=torch.float64)
            return
        if K * p > DENSE_LIMIT:
            raise ValueError(
                f"the law of this model needs dense matrices of size n_classes·n_features = {K * p}, "
                f"more than {DENSE_LIMIT}; use engine='torchsde', or transform='identity' with noise "
                f"of one shape in all classes."
            )
        # The factors of H do not depend on the noise, which may have free names: any other will do.
        plain = linear_system(replace(coefficients, noise=read_noise(1.0, K, p)))
        left = np.broadcast_to(np.eye(p), (K, p, p)) if plain.left is None else plain.left
        self._left = torch.from_numpy(np.array(left))
        right = np.eye(K * p) if plain.left is None else plain.right
        self.right = torch.from_numpy(np.array(right))

    @property
    def n_features(self) -> int:
        """p."""
        return self.noise.n_features

    def weights(self, times: np.ndarray) -> torch.Tensor:
        """The drift's class matrix w_l E_kl, shape (time, class, class)."""
        return self._checked(times, self._drift)

    def _checked(
        self, times: np.ndarray, table: Callable[[np.ndarray], torch.Tensor]
    ) -> torch.Tensor:
        try:
            return table(times)
        except ValueError:
            self._entries(times)  # raises in terms of what the user wrote, where that is at fault
            raise

    @property
    def kernel_is_constant(self) -> bool:
        """Whether the kernel does not depend on time."""
        return self._drift.is_constant

    @property
    def noise_is_constant(self) -> bool:
        """Whether the noise does not depend on time."""
        return self.noise.is_constant

    @torch.no_grad()
    def kernel_panels(self, times: np.ndarray) -> Panels:
        """Panels between successive times on which the kernel is resolved at the current values."""
        places = self._drift.table.places(
            float(times[0]), float(times[-1]), numbers_of(self._values)
        )
        coefficients = self._model.derive().coefficients()
        return resolve(
            lambda at: self._checked(at, self._drift.distinct)[:, None].numpy(),
            times, *places, lambda _, i: coefficients.entry(i),
        )  # fmt: skip

    @torch.no_grad()
    def noise_panels(self, windows: np.ndarray, kept: np.ndarray) -> Panels:
        """Panels on which the noise is resolved, as of :func:`lesde.quadrature.resolve`."""

        def square(times: np.ndarray) -> np.ndarray:
            values = self.noise.square(times)
            return values.reshape(*values.shape[:2], -1).numpy()

        return self.noise.noise.panels(windows, kept, numbers_of(self._values), square)

    @torch.no_grad()
    def matrices(self, times: np.ndarray) -> np.ndarray:
        """The class matrix, shape (time, class, class), without a graph."""
        return self.weights(times).numpy()

    def size(self) -> np.ndarray:
        """Spectral norms of the H_l."""
        return self._model.transform.norms()

    def loss(self, class_matrix: np.ndarray) -> float:
        """The largest rate at which a combination of class means shrinks; 0 where none does."""
        M = self.outer(torch.from_numpy(class_matrix)[None, None])[0, 0] @ self.right
        return max(0.0, -float(torch.linalg.eigvalsh((M + M.mT) / 2)[0]))

    def explain(self, times: np.ndarray) -> None:
        """Raise what the law without gradients raises at these values, if it does."""
        fixed = self._model.substitute(**numbers_of(self._values))
        fixed.derive().transitions(times)

    def outer(self, class_matrix: torch.Tensor) -> torch.Tensor:
        """W for class matrices (panel, node, class, class), shape (panel, node, n, r)."""
        B = self.basis
        if self._left is None:
            return clean(B.T @ class_matrix @ B)
        blocks = torch.einsum("ka,stkl,lir,lb->staibr", B, class_matrix, self._left, B)
        shape = (*class_matrix.shape[:2], self.right.shape[1], self.right.shape[0])
        return clean(blocks).reshape(shape)

    def intensity(self, square: torch.Tensor) -> torch.Tensor:
        """Q of :meth:`TensorNoise.square` at (panel, node, …), shape (panel, node, n, n)."""
        B, K, p = self.basis, len(self.counts), self.n_features
        if self.feature is not None:
            if not self.noise.is_isotropic:  # the noise's size is in S
                square = square.new_ones(square.shape[:3])
            return clean(torch.einsum("ka,stk,kb->stab", B, square / self.counts, B))
        if self.noise.is_isotropic:
            square = square[..., None, None] * torch.eye(p, dtype=torch.float64)
        scaled = square / self.counts[:, None, None]
        Q = torch.einsum("ka,stkij,kb->staibj", B, scaled.expand(*scaled.shape[:2], K, p, p), B)
        return clean(Q).reshape(*square.shape[:2], K * p, K * p)
