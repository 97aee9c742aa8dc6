"""The quantities that collapse metrics take from a batch of frames: class means, spread, and their rounding.

A *frame* is one (sample, feature) array: the features of all samples at one time of one replicate.
`Frames` holds what follows from the means and variances of its classes. `SampleFrames` takes these
from the samples, a block at a time, so that memory stays bounded; `StatisticsFrames` from class means
and within-class covariances. No array (feature, feature) is formed beyond those that are given.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from lesde.analysis import class_means
from lesde.analysis.class_means import refuse_not_finite
from lesde.paths import need_samples

EPS = float(np.finfo(np.float64).eps)
SINGLE = float(np.finfo(np.float32).eps)
# Roundings of the stored precision up to which a class mean may be off: half of one from storing, the
# others from the arithmetic of the layer that made the features.
STORED = 4.0
# Mean squares of features between which the squares of their rounding are in the range of float64.
LEAST, MOST = 1e-260, 1e280


def rounding_of(values: np.ndarray) -> np.ndarray:
    """Relative rounding with which each frame of ``values`` (F, n, p) was stored, shape (F,).

    That of the type, or of float32 where all values of a float64 frame are numbers of float32; 0 for
    integers, which are exact.
    """
    if values.dtype.kind != "f":
        return np.zeros(len(values))
    found = np.full(len(values), float(np.finfo(values.dtype).eps))
    if values.dtype == np.float64:
        at = np.arange(len(values))
        for some in (values[:, :1], values):  # one sample decides for most frames
            with np.errstate(over="ignore"):
                single = (some[at] == some[at].astype(np.float32)).all(axis=(1, 2))
            at = at[single]
        found[at] = SINGLE
    return found


class Frames(ABC):
    """A batch of F frames: class means, what follows from them, and the spread within classes.

    ``means`` and ``variances`` (F, K, p) are those of each feature in each class (divisor n_k), ``centred`` the
    means less *their* mean, so that classes count alike whatever their size; ``counts`` (K,) the samples per
    class, ``stored`` (F,) the relative rounding of the features, ``weights`` (F, K, p) and ``bias`` (F, K)
    those of a classifier, or None. ``rounding`` (F, K, p) is the squared error of a class mean from summation, up
    to n roundings of n numbers, in proportion to the *features*, not to their means, which may cancel; ``noise``
    the same with the precision that the features were stored in.
    """

    weights: Any = None
    bias: Any = None

    def __init__(
        self, means: np.ndarray, variances: np.ndarray, counts: np.ndarray, stored: np.ndarray
    ):
        self.n_frames, self.n_classes, self.n_features = means.shape
        self.counts, self.n_samples = counts, int(counts.sum())
        self.means, self.variances, self.stored = means, variances, stored
        self.centred = means - means.mean(axis=1, keepdims=True)
        squares = variances + means**2
        size = squares.max(axis=(1, 2))
        if not (((size > LEAST) & (size < MOST)) | ~means.any(axis=(1, 2))).all():
            raise ValueError(
                f"paths must hold features of sizes from {LEAST**0.5:.0e} to {MOST**0.5:.0e}, whose squares "
                f"float64 holds; got others. Rescale them, which changes no metric."
            )
        summing = np.maximum(counts, self.n_features)[:, None] * EPS
        self.rounding = summing**2 * squares
        self.noise = (summing + STORED * stored[:, None, None]) ** 2 * squares

    def blocks(self) -> Iterator[Block]:
        """The samples, a block at a time, sorted by class within each block."""
        raise need_samples("paths", "this metric")

    @abstractmethod
    def spread_along(self, axes: np.ndarray) -> np.ndarray:
        """Sum over samples and axes of the squared deviation from the class mean, from axes (F, p, r)."""

    @cached_property
    def gram(self) -> np.ndarray:
        """Inner products of the centred means, (F, K, K)."""
        return self.centred @ self.centred.swapaxes(1, 2)

    @cached_property
    def between(self) -> np.ndarray:
        """Sum of the squared norms of the centred means, (F,); 0 where all differ by rounding only."""
        columns = np.einsum("fkp,fkp->fp", self.centred, self.centred)
        apart = (columns > self.noise.sum(axis=1)).any(axis=1)
        return np.where(apart, columns.sum(axis=1), 0.0)

    @cached_property
    def norms(self) -> np.ndarray:
        """Norms of the centred means, (F, K); 0 where a mean is at the centre within rounding."""
        apart = self.centred**2 > self.noise + self.noise.mean(axis=1, keepdims=True)
        squares = np.einsum("fkk->fk", self.gram)
        return np.where(apart.any(axis=2), np.sqrt(squares), 0.0)

    def pairs(self) -> Iterator[tuple[int, np.ndarray]]:
        """For each class k but the last, squared distances of its mean to those of k+1…, (F, ·).

        A distance within the rounding of the means is 0.
        """
        for k in range(self.n_classes - 1):
            gap = (self.centred[:, k + 1 :] - self.centred[:, k : k + 1]) ** 2
            apart = (gap > self.noise[:, k + 1 :] + self.noise[:, k : k + 1]).any(axis=2)
            yield k, np.where(apart, gap.sum(axis=2), 0.0)

    @cached_property
    def scatter(self) -> np.ndarray:
        """Sum per class of the squared distances to the class mean, (F, K); 0 within rounding."""
        variance = self.variances.sum(axis=2)
        return np.where(variance > self.rounding.sum(axis=2), variance, 0.0) * self.counts

    @cached_property
    def whitening(self) -> np.ndarray:
        """Columns v_j / s_j of the thin SVD of the centred means, (F, p, min(K−1, p)).

        A column is zero where s_j is not above the rounding of the means: the pseudo-inverse.
        Rounding that is independent from mean to mean and feature to feature has singular values up
        to √K + √p times that of one number; the noise along a direction includes √K times it.
        """
        _, s, vt = np.linalg.svd(self.centred, full_matrices=False)
        rank = min(self.n_classes - 1, self.n_features)
        s, vt = s[:, :rank], vt[:, :rank]
        most = (1 + np.sqrt(self.n_features / self.n_classes)) ** 2
        along = most * np.einsum("fp,fjp->fj", self.noise.sum(axis=1), vt**2)
        resolved = max(self.n_classes, self.n_features) * EPS * s[:, :1]
        keep = (s**2 > along) & (s > resolved)
        scale = np.where(keep, 1.0 / np.where(keep, s, 1.0), 0.0)
        return (vt * scale[..., None]).swapaxes(1, 2)

    @cached_property
    def whitened_scatter(self) -> np.ndarray:
        """Sum over all samples of the squared whitened deviation from the class mean, (F,)."""
        scatter = self.spread_along(self.whitening)
        size = (self.whitening**2).sum(axis=2)
        rounding = np.einsum("k,fkp,fp->f", self.counts, self.rounding, size)
        return np.where(scatter > rounding, scatter, 0.0)


class Block(NamedTuple):
    """Some samples of every frame, sorted by class: their classes (n,), and features (F, n, p) in float64.

    The features may be a view of the caller's data: not to be written to.
    """

    labels: np.ndarray
    values: np.ndarray


class SampleFrames(Frames):
    """A batch of the frames of features (..., sample, feature), of which every sample is known.

    ``labels`` (N,) are the samples' classes in any order. ``centers`` (F, K, p) are class centres of other
    samples, to which `closeness` compares; by default the class means.
    """

    def __init__(
        self,
        source: xr.DataArray,
        batch: tuple[slice, ...],
        labels: np.ndarray,
        centers: np.ndarray | None = None,
    ):
        self._shape = math.prod(s.stop - s.start for s in batch), -1, source.shape[-1]
        self._source, self._batch, self._labels = source.variable, batch, labels
        size = max(1, class_means.BLOCK_VALUES // (self._shape[0] * source.shape[-1]))
        self._parts = [slice(a, a + size) for a in range(0, len(labels), size)]
        self._kept: tuple[np.ndarray, np.ndarray] | None = None
        self.stored = np.full(self._shape[0], np.inf)
        counts = np.bincount(labels)
        with np.errstate(over="ignore", invalid="ignore"):  # refused below
            means, variances = self._moments(counts)
            if not np.isfinite(means).all():
                refuse_not_finite("paths.features", source, batch)
            super().__init__(means, variances, counts, self.stored)
        self._own = centers is None
        self._centers = means if centers is None else centers
        # An offset that all features share does not cancel.
        self._origin = self._centers.mean(axis=1, keepdims=True)

    def _moments(self, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Means and variances in one pass, from differences to the first sample of each class.

        So both keep their digits however far the class is from the origin, and samples that coincide
        have no variance at all.
        """
        shape = (len(counts), self._shape[0], self._shape[2])
        first, sums, squares = np.full(shape, np.nan), np.zeros(shape), np.zeros(shape)
        known = np.zeros(len(counts), dtype=bool)
        for k, samples in self._classes():
            if not known[k]:
                first[k], known[k] = samples[0], True
            away = samples - first[k]
            sums[k] += away.sum(axis=0)
            squares[k] += np.einsum("nfp,nfp->fp", away, away)
        shift = sums / counts[:, None, None]
        variances = np.maximum(squares / counts[:, None, None] - shift**2, 0.0)
        return (first + shift).swapaxes(0, 1), variances.swapaxes(0, 1)

    def _sorted(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Classes (n,) and features (n, F, p) of each block, sorted by class.

        Samples come first, so that sums over them run over contiguous numbers however few features.
        """
        if self._kept is not None:
            yield self._kept
            return
        for part in self._parts:
            labels, values = self._labels[part], self._source[(*self._batch, part)].values
            values = values.reshape(self._shape)
            self.stored = np.minimum(self.stored, rounding_of(values))
            values = values.swapaxes(0, 1)
            if (np.diff(labels) < 0).any():
                order = np.argsort(labels, kind="stable")
                labels, values = labels[order], values[order]
            values = np.ascontiguousarray(values, dtype=np.float64)
            if len(self._parts) == 1:
                self._kept = labels, values
            yield labels, values

    def _classes(self) -> Iterator[tuple[int, np.ndarray]]:
        """Features (n, F, p) of one class of each block after the other."""
        for labels, values in self._sorted():
            starts = np.flatnonzero(np.diff(labels, prepend=-1))
            for a, b in itertools.pairwise([*starts, len(labels)]):
                yield labels[a], values[a:b]

    def blocks(self) -> Iterator[Block]:
        """The samples, a block at a time, sorted by class within each block."""
        for labels, values in self._sorted():
            yield Block(labels, values.swapaxes(0, 1))

    def spread_along(self, axes: np.ndarray) -> np.ndarray:
        """Sum over samples and axes of the squared deviation from the class mean, from axes (F, p, r)."""
        result = np.zeros(self.n_frames)
        for k, samples in self._classes():
            along = (samples - self.means[:, k]).swapaxes(0, 1) @ axes
            result += np.einsum("fnr,fnr->f", along, along)
        return result

    def closeness(self, values: np.ndarray) -> np.ndarray:
        """−‖x − c_k‖²/2 up to a term all classes share, (F, n, K), of ``values`` (F, n, p)."""
        rows = self._centers - self._origin
        return (values - self._origin) @ rows.swapaxes(1, 2) - (rows**2).sum(axis=2)[:, None] / 2

    def tie(self, values: np.ndarray) -> np.ndarray:
        """Difference of `closeness` that is rounding of the centres, (F, n).

        A centre that is off by δ changes half the square of a distance d by dδ.
        """
        farthest = np.linalg.norm(self._centers - self._origin, axis=2).max(axis=1)
        if self._own:
            off = np.sqrt(self.noise.sum(axis=2).max(axis=1))
        else:
            summing = max(self.n_samples, self.n_features) * EPS
            off = summing * np.linalg.norm(self._centers, axis=(1, 2))
        return off[:, None] * (np.linalg.norm(values - self._origin, axis=2) + farthest[:, None])


class StatisticsFrames(Frames):
    """A batch of the frames of class means (..., class, feature) and within-class covariances.

    ``rounding`` is the relative rounding of the features they are of, where it is known.
    """

    def __init__(
        self,
        mean: xr.DataArray,
        within: xr.DataArray,
        batch: tuple[slice, ...],
        counts: np.ndarray,
        rounding: float,
    ):
        K, p = mean.shape[-2:]
        means = mean.variable[batch].values.reshape(-1, K, p)
        covariances = within.variable[batch].values.reshape(-1, K, p, p).astype(np.float64)
        # The variances alone serve NC2.
        variances = np.einsum("fkpp->fkp", covariances)
        for name, source, values in (("mean", mean, means), ("within", within, variances)):
            if not np.isfinite(values).all():
                refuse_not_finite(f"paths.{name}", source, batch)
        stored = np.maximum(rounding_of(means), rounding)
        super().__init__(means.astype(np.float64), np.maximum(variances, 0.0), counts, stored)
        self._within = within, batch, covariances

    def spread_along(self, axes: np.ndarray) -> np.ndarray:
        """Sum over samples and axes of the squared deviation from the class mean, from axes (F, p, r)."""
        within, batch, covariances = self._within
        if not np.isfinite(covariances).all():
            refuse_not_finite("paths.within", within, batch)
        along = np.einsum("fkpr,fpr->fk", covariances @ axes[:, None], axes)
        # rounding may make a covariance without spread along these axes slightly negative
        return np.maximum(along, 0.0) @ self.counts
