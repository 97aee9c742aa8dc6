"""Class moments of many frames of features, read block by block so that memory stays bounded.

A *frame* is one (sample, feature) array: the features of all samples at one time of one replicate.
`ClassFrames` holds a batch of frames and works out, on demand and once, the quantities the collapse
metrics share: class means, centred means, their singular values, the spread within each class.
Nothing of shape (feature, feature) is ever formed.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from lesde.laws.system import contrast_basis

__all__ = ["ClassFrames", "ClassGeometry", "rounding_of", "units"]


# --------------------------------------------------------------------------------------------------
# What the collapse metrics read off the class means of a batch of frames, wherever they come from.

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


# --------------------------------------------------------------------------------------------------

# Values one block holds in float64 (2 MB): blocks that stay in the processor's cache run fastest.
BLOCK_VALUES = 2**18
# Up to this many features `add.reduceat` beats one sum per class.
_FEW_FEATURES = 16


class Block(NamedTuple):
    """Some samples of every frame, sorted by class.

    ``labels`` (n,) are their classes, ``starts`` the index at which each class present begins,
    ``values`` (F, n, p) their features in float64, possibly a view of the caller's data: not to
    be written to.
    """

    labels: np.ndarray
    starts: np.ndarray
    values: np.ndarray

    @property
    def classes(self) -> np.ndarray:
        """The classes present."""
        return self.labels[self.starts]

    def class_sums(self, values: np.ndarray) -> np.ndarray:
        """Sums of ``values`` (F, n, q) over the samples of each class present."""
        if values.shape[-1] <= _FEW_FEATURES:
            return np.add.reduceat(values, self.starts, axis=1)
        parts = zip(self.starts, self._stops, strict=True)
        return np.stack([values[:, a:b].sum(axis=1) for a, b in parts], axis=1)

    def less(self, values: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """``values`` (F, n, q) less the row (F, K, q) of each sample's class."""
        if values.shape[-1] <= _FEW_FEATURES and rows.shape[1] <= _FEW_FEATURES:
            return (
                values - np.eye(rows.shape[1])[self.labels] @ rows
            )  # faster than picking the rows
        result = np.empty((*values.shape[:2], rows.shape[-1]))
        for k, a, b in zip(self.classes, self.starts, self._stops, strict=True):
            np.subtract(values[:, a:b], rows[:, k, None], out=result[:, a:b])
        return result

    @property
    def _stops(self) -> np.ndarray:
        return np.append(self.starts[1:], len(self.labels))


class ClassFrames(ClassGeometry):
    """A batch of frames and their class moments, from every sample.

    Attributes and methods are those of `ClassGeometry`.

    Parameters
    ----------
    read : callable
        ``read(slice)`` gives the features of a range of samples, shape (F, n, p), any real dtype.
    shape : tuple of int
        (F, N, p): number of frames, samples, features.
    labels : ndarray of int, shape (N,)
        Class of each sample, 0 to K−1, in any order, each class present.
    weights, bias : ndarray or None, shapes (F, K, p) and (F, K)
        The classifier on top of the features, where there is one.
    centers : ndarray or None, shape (F, K, p)
        Class centres of other samples, which `closeness` compares to; by default the class means.
    """

    def __init__(
        self,
        read: Callable[[slice], np.ndarray],
        shape: tuple[int, int, int],
        labels: np.ndarray,
        weights: np.ndarray | None = None,
        bias: np.ndarray | None = None,
        centers: np.ndarray | None = None,
    ):
        super().__init__(shape[0], shape[2], np.bincount(labels), weights, bias)
        self._centers = centers
        self._read, self._labels = read, labels
        size = max(1, BLOCK_VALUES // max(1, self.n_frames * self.n_features))
        self._blocks = [
            slice(a, min(a + size, self.n_samples)) for a in range(0, self.n_samples, size)
        ]
        self._kept: Block | None = None
        self._exponent = np.zeros(shape[0], dtype=int)
        self._stored: np.ndarray | None = None
        self._examined = 0  # samples of which the precision is in `_stored`

    def blocks(self) -> Iterator[Block]:
        """The samples, a block at a time, sorted by class within each block."""
        if self._kept is not None:
            yield self._kept
            return
        for block in self._blocks:
            labels, values = self._labels[block], self._read(block)
            if block.start >= self._examined:
                self._stored = rounding_of(values, self._stored)
                self._examined = block.stop
            if (np.diff(labels) < 0).any():
                order = np.argsort(labels, kind="stable")
                labels, values = labels[order], values[:, order]
            starts = np.flatnonzero(np.diff(labels, prepend=-1))
            values = np.asarray(values, dtype=np.float64)
            if self._exponent.any():
                values = np.ldexp(values, -self._exponent[:, None, None])
            found = Block(labels, starts, values)
            if len(self._blocks) == 1:
                self._kept = found
            yield found

    @property
    def averages(self) -> np.ndarray:
        """Class means in the units of the features, (F, K, p), without what the metrics need besides."""
        sums = np.zeros((self.n_frames, self.n_classes, self.n_features))
        with np.errstate(invalid="ignore", over="ignore"):  # the caller reports non-finite features
            for block in self.blocks():
                sums[:, block.classes] += block.class_sums(block.values)
        return sums / self.counts[:, None]

    @cached_property
    def _moments(self) -> tuple[np.ndarray, np.ndarray]:
        """Class means (F, K, p) and sums of squares (F,), after the unit of every frame was chosen."""
        found = self._sums()
        usual = (found[1] > LEAST) & (found[1] < MOST)
        if not usual.all():
            largest = np.zeros(self.n_frames)
            for block in self.blocks():
                largest = np.maximum(largest, np.abs(block.values).max(axis=(1, 2)))
            self._exponent, self._kept = np.where(usual, 0, units(largest)), None
            found = self._sums()
        return found

    def _sums(self) -> tuple[np.ndarray, np.ndarray]:
        means = np.zeros((self.n_frames, self.n_classes, self.n_features))
        total = np.zeros(self.n_frames)
        with np.errstate(invalid="ignore", over="ignore"):  # the caller reports non-finite features
            for block in self.blocks():
                means[:, block.classes] += block.class_sums(block.values)
                flat = block.values.reshape(self.n_frames, -1)
                total += (flat[:, None] @ flat[:, :, None])[:, 0, 0]
        return means / self.counts[:, None], total

    @property
    def exponent(self) -> np.ndarray:
        self._moments  # noqa: B018
        return self._exponent

    @property
    def means(self) -> np.ndarray:
        return self._moments[0]

    @property
    def total(self) -> np.ndarray:
        return self._moments[1]

    @cached_property
    def squares(self) -> np.ndarray:
        sums = np.zeros_like(self.means)
        for block in self.blocks():
            sums[:, block.classes] += block.class_sums(block.values**2)
        return sums / self.counts[:, None]

    @property
    def stored(self) -> np.ndarray:
        self._moments  # noqa: B018
        assert self._stored is not None
        return self._stored

    @cached_property
    def scatter(self) -> np.ndarray:
        result = np.zeros((self.n_frames, self.n_classes))
        for block in self.blocks():
            away = block.less(block.values, self.means)
            squares = np.einsum("fnp,fnp->fn", away, away)
            result[:, block.classes] += block.class_sums(squares[..., None])[..., 0]
        return self.not_rounding(result)

    @cached_property
    def whitened_scatter(self) -> np.ndarray:
        result = np.zeros(self.n_frames)
        centres = self.means @ self.whitening
        for block in self.blocks():
            # Whitening first: the class mean then comes off min(K−1, p) numbers, not p.
            away = block.less(block.values @ self.whitening, centres)
            result += np.einsum("fnr,fnr->f", away, away)
        return self.not_whitened_rounding(result)

    @cached_property
    def _given(self) -> np.ndarray | None:
        """The given centres in the units of the frame."""
        if self._centers is None:
            return None
        return np.ldexp(self._centers, -self.exponent[:, None, None])

    @cached_property
    def _origin(self) -> np.ndarray:
        """Mean of the class centres, (F, 1, p): an offset that all features share does not cancel."""
        centers = self.means if self._given is None else self._given
        return centers.mean(axis=1, keepdims=True)

    @cached_property
    def _rows(self) -> np.ndarray:
        return self.centred if self._given is None else self._given - self._origin

    @cached_property
    def _half_squares(self) -> np.ndarray:
        return np.einsum("fkp,fkp->fk", self._rows, self._rows)[:, None, :] / 2

    def closeness(self, values: np.ndarray) -> np.ndarray:
        """−‖x − c_k‖²/2 up to a term all classes share, (F, n, K), of ``values`` (F, n, p)."""
        return (values - self._origin) @ self._rows.swapaxes(1, 2) - self._half_squares

    def tie(self, values: np.ndarray) -> np.ndarray:
        """Difference of `closeness` that is rounding of the class centres, (F, n).

        A centre that is off by δ changes half the square of a distance d by dδ.
        """
        away = values - self._origin
        reach = np.sqrt(np.einsum("fnp,fnp->fn", away, away))
        reach += np.sqrt(2 * self._half_squares.max(axis=2))
        if self._given is None:
            length = np.sqrt(self.most_noise)
        else:
            unit = max(self.n_samples, self.n_features) * np.finfo(np.float64).eps
            length = unit * _norm(self._given)
        return length[:, None] * reach


def _norm(rows: np.ndarray) -> np.ndarray:
    return np.sqrt(np.einsum("fkp,fkp->f", rows, rows))
