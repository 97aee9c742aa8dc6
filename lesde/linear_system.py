"""The linear system of the class means, in the smallest space that carries it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lesde.derivation.coefficients import Coefficients
from lesde.quadrature import Panels
from lesde.transforms import Transform, logit_directions

__all__ = ["DENSE_LIMIT", "LinearSystem", "contrast_basis", "linear_system"]

DENSE_LIMIT = 2000
"""Largest K·p for which dense (Kp)×(Kp) matrices are formed (32 MB each)."""


# Entries of a rotated matrix this far below its largest are rounding of exact zeros.
ROUNDING = 16 * np.finfo(float).eps


def contrast_basis(n_classes: int) -> np.ndarray:
    """An orthogonal K×K matrix: the first column the grand mean 1/√K, the others Helmert contrasts."""
    K = n_classes
    basis = np.zeros((K, K))
    basis[:, 0] = 1 / np.sqrt(K)
    for j in range(1, K):
        basis[:j, j] = 1.0
        basis[j, j] = -j
        basis[:, j] /= np.sqrt(j * (j + 1))
    return basis


def _clean(matrix: np.ndarray, axes: tuple[int, ...] = (-2, -1)) -> np.ndarray:
    """The matrix with what is only rounding set to zero, so that what is decoupled stays so."""
    size = np.abs(matrix).max(axes, initial=0.0, keepdims=True)
    return np.where(np.abs(matrix) < ROUNDING * size, 0.0, matrix)  # NaN stays


@dataclass(frozen=True)
class LinearSystem:
    """dY = W(t) V Y dt + noise, in the smallest space that carries the class means.

    Y are the class means in the coordinates of :func:`contrast_basis`: grand mean and contrasts. Where
    the two do not mix, as in balanced models, each keeps its own digits; in class coordinates the
    contrasts would drown in the rounding of a grand mean that grows faster.

    Attributes
    ----------
    coefficients : Coefficients
        Gives the class matrix w_l E_kl(t).
    basis : ndarray (K, K)
        The contrast basis.
    left : ndarray (class, feature, rank), or None
        U_l of H_l = U_l V_lᵀ; None where the transform is the identity and the space has K dimensions.
    right : ndarray (class·rank, n)
        V; the identity where the space has K dimensions.
    sources : list of (ndarray (n, n) or None, ndarray (p, p) or None)
        Noise intensities Q and their feature factors, as the parts of a propagator's transition.
        Q is None where the noise depends on time: see :meth:`intensity`.
    """

    coefficients: Coefficients
    basis: np.ndarray
    left: np.ndarray | None
    right: np.ndarray
    sources: list[tuple[np.ndarray | None, np.ndarray | None]]

    @property
    def kernel_is_constant(self) -> bool:
        """Whether the kernel does not depend on time."""
        return self.coefficients.drift_table.is_constant

    @property
    def noise_is_constant(self) -> bool:
        """Whether the noise does not depend on time."""
        return self.coefficients.noise.is_constant

    def kernel_panels(self, times: np.ndarray) -> Panels:
        """Panels between successive times on which the kernel is resolved."""
        return self.coefficients.kernel_panels(times)

    def noise_panels(self, windows: np.ndarray, kept: np.ndarray) -> Panels:
        """Panels on which the noise is resolved, as of :func:`lesde.quadrature.resolve`."""
        return self.coefficients.noise.panels(windows, kept)

    def matrices(self, times: np.ndarray) -> np.ndarray:
        """The class matrix w_l E_kl, shape (time, class, class)."""
        return self.coefficients.weights(times)

    def size(self) -> np.ndarray:
        """Spectral norms of the H_l."""
        return self.coefficients.transform.norms()

    def loss(self, class_matrix: np.ndarray) -> float:
        """The largest rate at which a combination of class means shrinks; 0 where none does."""
        M = self.outer(class_matrix[None])[0] @ self.right
        return max(0.0, -float(np.linalg.eigvalsh((M + M.T) / 2)[0]))

    def outer(self, class_matrix: np.ndarray) -> np.ndarray:
        """W for class matrices (time, class, class), shape (time, n, class·rank)."""
        B = self.basis
        if self.left is None:
            return _clean(B.T @ class_matrix @ B)
        blocks = np.einsum("ka,tkl,lir,lb->taibr", B, class_matrix, self.left, B, optimize=True)
        blocks = _clean(blocks, (1, 2, 3, 4))
        return blocks.reshape(len(class_matrix), self.right.shape[1], self.right.shape[0])

    def intensity(self, square: np.ndarray) -> np.ndarray:
        """Q of the class means, from σ² or σσᵀ as :meth:`lesde.noise.Noise.square` gives it.

        (time, K, K) where the transform is the identity and the noise isotropic, else (time, K·p, K·p).
        """
        counts = self.coefficients.counts
        B, K, p = self.basis, len(counts), self.coefficients.n_features
        if square.ndim == 2:
            Q = _clean((B.T * (square / counts)[:, None, :]) @ B)
            if self.left is None:
                return Q
            blocks = Q[:, :, None, :, None] * np.eye(p)[:, None, :]
            return blocks.reshape(-1, K * p, K * p)
        noise = np.broadcast_to(square, (len(square), K, p, p)) / counts[:, None, None]
        Q = B.T @ (B.T[:, :, None] * noise.reshape(-1, 1, K, p * p))
        Q = Q.reshape(-1, K, K, p, p).swapaxes(2, 3)
        return _clean(Q.reshape(-1, K * p, K * p))


def linear_system(coefficients: Coefficients) -> LinearSystem:
    """Choose the representation of the class means' system."""
    counts = coefficients.counts
    K, p = len(counts), coefficients.n_features
    noise = coefficients.noise
    B = contrast_basis(K)
    sources: list[tuple[np.ndarray | None, np.ndarray | None]]
    if coefficients.transform.kind == "identity" and not noise.is_constant:
        if not noise.is_isotropic and K * p > DENSE_LIMIT:
            raise ValueError(
                f"noise with a matrix that changes in time needs dense matrices of size "
                f"n_classes·n_features = {K * p}, more than {DENSE_LIMIT}, for the exact law; use "
                f"engine='torchsde', or noise that is constant or one number a class at each time."
            )
        sources = [(None, np.eye(p) if noise.is_isotropic else None)]
        return LinearSystem(coefficients, B, None, np.eye(K), sources)
    if coefficients.transform.kind == "identity":
        sources = [(_clean(B.T @ Q @ B), factor) for Q, factor in _class_sources(coefficients)]
        return LinearSystem(coefficients, B, None, np.eye(K), sources)
    if K * p > DENSE_LIMIT:
        raise ValueError(
            f"the exact law of this model needs dense matrices of size n_classes·n_features = {K * p}, "
            f"more than {DENSE_LIMIT}; use engine='torchsde', or transform='identity', which needs "
            f"matrices of size n_classes only."
        )
    left, readout = _factors(coefficients.transform)
    right = np.einsum("lb,lri,la->brai", B, readout, B, optimize=True)
    size = left.shape[-1] * K
    sources = [(None, None)]
    if noise.is_constant:
        covariance = coefficients.noise_covariance / counts[:, None, None]
        Q = np.einsum("ka,kij,kb->aibj", B, covariance, B, optimize=True)
        sources = [(_clean(Q.reshape(K * p, K * p)), None)]
    return LinearSystem(coefficients, B, left, _clean(right.reshape(size, K * p)), sources)


def _factors(transform: Transform) -> tuple[np.ndarray, np.ndarray]:
    """U (class, feature, rank) and V (class, rank, feature) with H_l = U_l V_l."""
    if transform.kind == "logits":
        # By hand: the signs of an SVD would hide that the classes are alike.
        d = logit_directions(transform.n_classes)
        return d[:, :, None], (d / (d**2).sum(1, keepdims=True))[:, None, :]
    H = transform.array()
    p = H.shape[-1]
    if transform.is_shared:
        u, singular, vt = np.linalg.svd(H[:1])
        u, singular, vt = (np.repeat(part, len(H), axis=0) for part in (u, singular, vt))
    else:
        u, singular, vt = np.linalg.svd(H)
    rank = max(1, int((singular > singular.max(initial=0) * p * np.finfo(float).eps).sum(1).max()))
    return u[:, :, :rank] * singular[:, None, :rank], vt[:, :rank]


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
