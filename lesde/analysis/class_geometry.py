"""What the collapse metrics read off the class means of a batch of frames, wherever they come from."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np

from lesde.linear_system import contrast_basis

__all__ = ["ClassGeometry", "rounding_of", "units"]

# Roundings of the stored precision up to which a class mean may be off: half of one from storing, the
# others from the arithmetic of the layer that made the features.
STORED = 4.0
# Sums of squares of a frame that need no unit of their own: fourth powers of rounding stay in range.
LEAST, MOST = 1e-100, 1e100


def units(size: np.ndarray) -> np.ndarray:
    """Exponents of the powers of two at the given sizes, (F,): 0 for a size that is 0 or not finite."""
    return np.where(np.isfinite(size), np.frexp(np.where(np.isfinite(size), size, 0.0))[1], 0)


def rounding_of(values: np.ndarray, found: np.ndarray | None = None) -> np.ndarray:
    """Relative rounding with which each frame of ``values`` (F, n, p) was stored, shape (F,).

    The precision of the type, and for float64 that of float32 where every value is a number of that: it
    was rounded to it before. Whole numbers are exact: 0. A few values tell most frames.

    ``found`` is the result for further values of the same frames, to be taken together with these.
    """
    precisions = [0.0]
    if np.issubdtype(values.dtype, np.floating):
        single, own = float(np.finfo(np.float32).eps), float(np.finfo(values.dtype).eps)
        precisions += [single, own] if own < single else [own]
    result = np.zeros(len(values)) if found is None else found.copy()
    for coarse, fine in itertools.pairwise(precisions):
        for some in (values[:, :1], values):
            at = np.flatnonzero(result == coarse)
            if len(at):
                fits = _fits(some[at], coarse).all(axis=(1, 2))
                result[at[~fits]] = fine
    return result


def _fits(values: np.ndarray, precision: float) -> np.ndarray:
    """Which values are whole numbers (precision 0), or numbers of single precision."""
    if precision == 0.0:
        # Beyond 1/ε every number of a type is whole.
        return (values == np.rint(values)) & (np.abs(values) < 1 / np.finfo(values.dtype).eps)
    with np.errstate(over="ignore"):
        return values == values.astype(np.float32)


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

    Attributes
    ----------
    exponent : ndarray of int, shape (F,)
        All lengths are in units of 2**exponent. It is 0 unless squares of the features, or products of
        those, would leave the range of float64, which no metric of a ratio should notice.
    stored : ndarray, shape (F,)
        Relative rounding with which the features were stored; 0 for whole numbers.
    total : ndarray, shape (F,)
        Sum of the squares of all features.
    squares : ndarray, shape (F, K, p)
        Mean square of each feature over the samples of each class.
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
    total: Any
    squares: Any
    stored: Any
    exponent: Any
    scatter: Any
    whitened_scatter: Any

    def __init__(
        self,
        n_frames: int,
        n_features: int,
        counts: np.ndarray,
        weights: np.ndarray | None = None,
        bias: np.ndarray | None = None,
    ):
        self.n_frames, self.n_features = n_frames, n_features
        self.counts, self.n_classes = counts, len(counts)
        self.n_samples = int(counts.sum())
        self.weights, self.bias = weights, bias

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

        Means that differ in every feature by no more than its rounding coincide.
        """
        columns = np.einsum("fkp,fkp->fp", self.centred, self.centred)
        total = columns.sum(axis=1)
        apart = total > self.most_noise
        if not apart.all():
            apart |= (columns > self.noise_squares.sum(axis=1)).any(axis=1)
        return np.where(apart, total, 0.0)

    @property
    def _summing(self) -> np.ndarray:
        """Relative rounding of the class means, (K,): a sum of n numbers is off by up to n roundings."""
        return np.maximum(self.counts, self.n_features) * float(np.finfo(np.float64).eps)

    @cached_property
    def summed_squares(self) -> np.ndarray:
        """Square of what a difference from a class mean is off by for the sum, shape (F, K, p)."""
        return self._summing[:, None] ** 2 * self.squares

    @cached_property
    def noise_squares(self) -> np.ndarray:
        """Square of the difference between class means that is rounding, shape (F, K, p).

        In proportion to the *features*, not to their means, which may cancel: each feature is off by
        half a unit of the precision it was stored in, and by several such where a layer of a network
        computed it in the same precision.
        """
        unit = self._summing + STORED * self.stored[:, None]
        return unit[..., None] ** 2 * self.squares

    @cached_property
    def most_noise(self) -> np.ndarray:
        """What the sum of ``noise_squares`` is at most, shape (F,): enough for most frames."""
        return (self._summing.max() + STORED * self.stored) ** 2 * self.total / self.counts.min()

    @property
    def _most_summed(self) -> np.ndarray:
        return self._summing.max() ** 2 * self.total / self.counts.min()

    @cached_property
    def whitening(self) -> np.ndarray:
        """Columns v_j / s_j of the thin SVD of the centred means, shape (F, p, min(K−1, p)).

        A column is zero where s_j is not above the rounding of the means: the pseudo-inverse. Where
        none is, the columns may be turned among themselves, which leaves what they measure as it is.
        Rounding that is independent from mean to mean and feature to feature has singular values up
        to √K + √p times that of one number, √K times of which the noise along a direction holds.
        """
        spread = (1 + np.sqrt(self.n_features / self.n_classes)) ** 2
        turned = self._full_rank_whitening(spread)
        if turned is not None:
            return turned
        _, s, vt = np.linalg.svd(self.centred, full_matrices=False)
        rank = min(self.n_classes - 1, self.n_features)
        along = np.einsum("fp,fjp->fj", self.noise_squares.sum(axis=1), vt**2)
        keep = (s**2 > spread * along) & (s > self._unresolved * s[:, :1])
        s, vt, keep = s[:, :rank], vt[:, :rank], keep[:, :rank]
        scale = np.where(keep, 1.0 / np.where(keep, s, 1.0), 0.0)
        return (vt * scale[..., None]).swapaxes(1, 2)

    @property
    def _unresolved(self) -> float:
        """Ratio of singular values below which a decomposition in float64 does not resolve them."""
        return max(self.n_classes, self.n_features) * float(np.finfo(np.float64).eps)

    def _full_rank_whitening(self, spread: float) -> np.ndarray | None:
        """The same by a QR factorisation, several times as fast; None where a column must be cut.

        With orthonormal contrasts A, the centred means C = A D have CᵀC = DᵀD, and Dᵀ = Q R gives
        (CᵀC)⁺ = W Wᵀ, W = Q R⁻ᵀ. The noise along v_j in units of s_j is at most that along W in all.
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
        with np.errstate(over="ignore", invalid="ignore"):
            turned = q @ inverse.swapaxes(1, 2)
            size = np.einsum("fij,fij->f", inverse, inverse)
            share = self.most_noise * size
            if not (spread * share < 1).all():
                share = np.einsum("fkp,fpr->f", self.noise_squares, turned**2, optimize=True)
            condition = size * np.einsum("fij,fij->f", r, r)
            whole = (spread * share < 1) & (condition * self._unresolved**2 < 1)
        return turned if whole.all() else None

    def not_rounding(self, scatter: np.ndarray) -> np.ndarray:
        """Scatter within classes (F, K), 0 where it is no more than rounding of the means."""
        apart = scatter > self.counts * self._most_summed[:, None]
        if not apart.all():
            apart |= scatter > self.counts * self.summed_squares.sum(axis=2)
        return np.where(apart, scatter, 0.0)

    def not_whitened_rounding(self, scatter: np.ndarray) -> np.ndarray:
        """The same of the whitened scatter of all samples (F,): samples at their mean score 0."""
        size = (self.whitening**2).sum(axis=2)
        apart = scatter > self.n_samples * self._most_summed * size.max(axis=1)
        if not apart.all():
            each = np.einsum("k,fkp->fp", self.counts, self.summed_squares)
            apart |= scatter > (each * size).sum(axis=1)
        return np.where(apart, scatter, 0.0)

    def pairs(self) -> Iterator[tuple[int, np.ndarray]]:
        """For each class k but the last, squared distances of its mean to those of k+1…, (F, ·).

        A distance within the rounding of the means is 0.
        """
        for k in range(self.n_classes - 1):
            gap = (self.centred[:, k + 1 :] - self.centred[:, k : k + 1]) ** 2
            square = gap.sum(axis=2)
            apart = square > self.most_noise[:, None]
            if not apart.all():
                noise = self.noise_squares[:, k + 1 :] + self.noise_squares[:, k : k + 1]
                apart |= (gap > noise).any(axis=2)
            yield k, np.where(apart, square, 0.0)
