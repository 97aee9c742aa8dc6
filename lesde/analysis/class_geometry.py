"""What the collapse metrics read off the class means of a batch of frames, wherever they come from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np

from lesde.linear_system import contrast_basis

__all__ = ["ClassGeometry"]


class ClassGeometry(ABC):
    """A batch of frames: class means, what follows from them, and the spread within classes.

    Each quantity is worked out on demand, and once.

    Parameters
    ----------
    n_frames, n_features : int
    counts : ndarray of int, shape (K,)
        Samples per class.
    weights, bias : ndarray or None, shapes (F, K, p) and (F, K)
        The classifier on top of the features, where there is one.
    stored : float, default 0
        Relative rounding with which the class means were stored, where they were.

    Attributes
    ----------
    means, centred : ndarray, shape (F, K, p)
        Class means, and class means less *their* mean (the mean of the class means, so that classes
        count alike whatever their number of samples).
    gram : ndarray, shape (F, K, K)
        Inner products of the centred means.
    scatter : ndarray, shape (F, K)
        Sum over a class's samples of the squared distance to the class mean; 0 within rounding.
    whitened_scatter : ndarray, shape (F,)
        Sum over all samples of the squared whitened deviation from the class mean.
    """

    means: Any
    scatter: Any
    whitened_scatter: Any

    def __init__(
        self,
        n_frames: int,
        n_features: int,
        counts: np.ndarray,
        weights: np.ndarray | None = None,
        bias: np.ndarray | None = None,
        stored: float = 0.0,
    ):
        self.n_frames, self.n_features = n_frames, n_features
        self.counts, self.n_classes = counts, len(counts)
        self.n_samples = int(counts.sum())
        self.weights, self.bias = weights, bias
        self._stored = stored

    @abstractmethod
    def blocks(self) -> Iterator[Any]:
        """The samples, a block at a time, sorted by class within each block."""

    @cached_property
    def centred(self) -> np.ndarray:
        return self.means - self.means.mean(axis=1, keepdims=True)

    @cached_property
    def gram(self) -> np.ndarray:
        return self.centred @ self.centred.swapaxes(1, 2)

    @cached_property
    def between(self) -> np.ndarray:
        """Sum of the squared norms of the centred means, shape (F,); 0 where the means coincide.

        Means that differ by no more than the rounding of their own coordinates coincide.
        """
        return np.where(self._level > self.rounding, self._level, 0.0) ** 2

    @cached_property
    def _level(self) -> np.ndarray:
        return np.sqrt(np.einsum("fkp,fkp->f", self.centred, self.centred))

    @cached_property
    def _size(self) -> np.ndarray:
        return np.sqrt(np.einsum("fkp,fkp->f", self.means, self.means))

    @cached_property
    def rounding(self) -> np.ndarray:
        """Length below which a difference between class means is rounding, shape (F,)."""
        return np.maximum(self.summed, self._stored * self._size)

    @cached_property
    def summed(self) -> np.ndarray:
        """Length below which a difference from class means is rounding, shape (F,).

        A sum of n equal numbers is off by up to n roundings, so the number of samples enters.
        """
        return max(self.n_samples, self.n_features) * np.finfo(np.float64).eps * self._size

    @cached_property
    def whitening(self) -> np.ndarray:
        """Columns v_j / s_j of the thin SVD of the centred means, shape (F, p, min(K−1, p)).

        A column is zero where s_j is not above the rounding of the means: the pseudo-inverse. Where
        none is, the columns may be turned among themselves, which leaves what they measure as it is.
        """
        turned = self._full_rank_whitening()
        if turned is not None:
            return turned
        _, s, vt = np.linalg.svd(self.centred, full_matrices=False)
        rank = min(self.n_classes - 1, self.n_features)
        s, vt = s[:, :rank], vt[:, :rank]
        keep = s > self.rounding[:, None]
        scale = np.where(keep, 1.0 / np.where(keep, s, 1.0), 0.0)
        return (vt * scale[..., None]).swapaxes(1, 2)

    def _full_rank_whitening(self) -> np.ndarray | None:
        """The same by a QR factorisation, several times as fast; None where a column must be cut.

        With orthonormal contrasts A, the centred means C = A D have CᵀC = DᵀD, and Dᵀ = Q R gives
        (CᵀC)⁺ = (Q R⁻ᵀ)(Q R⁻ᵀ)ᵀ. The least singular value of R is at least 1/‖R⁻¹‖_F.
        """
        if self.n_features < self.n_classes - 1:
            return None
        contrasts = contrast_basis(self.n_classes)[:, 1:]
        rows = contrasts.T @ self.centred
        q, r = np.linalg.qr(rows.swapaxes(1, 2))
        try:
            with np.errstate(all="ignore"):
                inverse = np.linalg.inv(r)
        except np.linalg.LinAlgError:
            return None
        with np.errstate(over="ignore"):
            size = np.einsum("fij,fij->f", inverse, inverse) * self.rounding**2
        return q @ inverse.swapaxes(1, 2) if (size < 1).all() else None

    def not_rounding(self, scatter: np.ndarray) -> np.ndarray:
        """Scatter within classes (F, K), 0 where it is no more than rounding of the means."""
        return np.where(scatter > self.counts * self.summed[:, None] ** 2, scatter, 0.0)

    def not_whitened_rounding(self, scatter: np.ndarray) -> np.ndarray:
        """The same of the whitened scatter of all samples (F,): samples at their mean score 0."""
        noise = np.einsum("fpr,fpr->f", self.whitening, self.whitening) * self.summed**2
        return np.where(scatter > self.n_samples * noise, scatter, 0.0)

    def pairs(self) -> Iterator[tuple[int, np.ndarray]]:
        """For each class k but the last, squared distances of its mean to those of k+1…, (F, ·).

        A distance within the rounding of the means is 0.
        """
        for k in range(self.n_classes - 1):
            gap = self.centred[:, k + 1 :] - self.centred[:, k : k + 1]
            square = np.einsum("fkp,fkp->fk", gap, gap)
            yield k, np.where(square > self.rounding[:, None] ** 2, square, 0.0)
