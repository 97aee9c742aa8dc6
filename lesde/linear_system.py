"""The linear system of the class means, in the smallest space that carries it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lesde.derivation.coefficients import Coefficients

__all__ = ["DENSE_LIMIT", "LinearSystem", "linear_system"]

DENSE_LIMIT = 2000
"""Largest K·p for which dense (Kp)×(Kp) matrices are formed (32 MB each)."""


@dataclass(frozen=True)
class LinearSystem:
    """dX̄ = W(t) V X̄ dt + noise, in the smallest space that carries it.

    Attributes
    ----------
    coefficients : Coefficients
        Gives the class matrix w_l E_kl(t).
    left : ndarray (class, feature, rank), or None
        U_l of H_l = U_l V_lᵀ; None where the transform is the identity and the space has K dimensions.
    right : ndarray (class·rank, n)
        V; the identity where the space has K dimensions.
    sources : list of (ndarray (n, n), ndarray (p, p) or None)
        Noise intensities Q and their feature factors, as the parts of a :class:`Transition`.
    """

    coefficients: Coefficients
    left: np.ndarray | None
    right: np.ndarray
    sources: list[tuple[np.ndarray, np.ndarray | None]]

    def outer(self, class_matrix: np.ndarray) -> np.ndarray:
        """W for class matrices (time, class, class), shape (time, n, class·rank)."""
        if self.left is None:
            return class_matrix
        blocks = np.einsum("tkl,lir->tkilr", class_matrix, self.left)
        return blocks.reshape(len(class_matrix), self.right.shape[1], self.right.shape[0])


def linear_system(coefficients: Coefficients) -> LinearSystem:
    """Choose the representation of the class means' system."""
    counts = coefficients.counts
    K, p = len(counts), coefficients.noise_factor.shape[-1]
    if coefficients.transform.kind == "identity":
        return LinearSystem(coefficients, None, np.eye(K), _class_sources(coefficients))
    if K * p > DENSE_LIMIT:
        raise ValueError(
            f"the exact law of this model needs dense matrices of size n_classes·n_features = {K * p}, "
            f"more than {DENSE_LIMIT}; use engine='torchsde', or transform='identity', which needs "
            f"matrices of size n_classes only."
        )
    u, singular, vt = np.linalg.svd(coefficients.transform.array())
    rank = max(1, int((singular > singular.max(initial=0) * p * np.finfo(float).eps).sum(1).max()))
    left = u[:, :, :rank] * singular[:, None, :rank]
    right = np.zeros((K, rank, K, p))
    Q = np.zeros((K, p, K, p))
    covariance = coefficients.noise_covariance
    for k in range(K):
        right[k, :, k, :] = vt[k, :rank]
        Q[k, :, k, :] = covariance[k] / counts[k]
    sources: list[tuple[np.ndarray, np.ndarray | None]] = [(Q.reshape(K * p, K * p), None)]
    return LinearSystem(coefficients, left, right.reshape(K * rank, K * p), sources)


def _class_sources(coefficients: Coefficients) -> list[tuple[np.ndarray, np.ndarray | None]]:
    """Noise of the class means as few products of a class and a feature covariance as possible."""
    counts, factors, scale = (
        coefficients.counts,
        coefficients.noise_factor,
        coefficients.noise_scale(),
    )
    if scale is not None:
        return [(np.diag(scale**2 / counts), np.eye(factors.shape[-1]))]
    if (factors == factors[:1]).all():
        return [(np.diag(1.0 / counts), factors[0])]
    units = np.eye(len(counts))
    return [(np.diag(units[k] / counts[k]), factors[k]) for k in range(len(counts))]
