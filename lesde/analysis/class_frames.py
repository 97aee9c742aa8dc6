"""Class moments of many frames of features, read block by block so that memory stays bounded.

A *frame* is one (sample, feature) array: the features of all samples at one time of one replicate.
`ClassFrames` holds a batch of frames and works out, on demand and once, the quantities the collapse
metrics share: class means, centred means, their singular values, the spread within each class.
Nothing of shape (feature, feature) is ever formed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from typing import NamedTuple

import numpy as np

__all__ = ["ClassFrames"]

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
        stops = np.append(self.starts[1:], len(self.labels))
        sums = [values[:, a:b].sum(axis=1) for a, b in zip(self.starts, stops, strict=True)]
        return np.stack(sums, axis=1)

    def less(self, values: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """``values`` (F, n, q) less the row (F, K, q) of each sample's class."""
        result = np.empty((*values.shape[:2], rows.shape[-1]))
        np.take(rows, self.labels, axis=1, out=result, mode="clip")  # "clip" writes without a copy
        return np.subtract(values, result, out=result)


class ClassFrames:
    """A batch of frames and their class moments.

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

    Attributes
    ----------
    counts : ndarray, shape (K,)
        Samples per class.
    means, centred : ndarray, shape (F, K, p)
        Class means, and class means less *their* mean (the mean of the class means, so that classes
        count alike whatever their number of samples).
    gram : ndarray, shape (F, K, K)
        Inner products of the centred means.
    scatter : ndarray, shape (F, K)
        Sum over a class's samples of the squared distance to the class mean; 0 within rounding.
    """

    def __init__(
        self,
        read: Callable[[slice], np.ndarray],
        shape: tuple[int, int, int],
        labels: np.ndarray,
        weights: np.ndarray | None = None,
        bias: np.ndarray | None = None,
    ):
        self.n_frames, self.n_samples, self.n_features = shape
        self.counts = np.bincount(labels)
        self.n_classes = len(self.counts)
        self.weights, self.bias = weights, bias
        self._read, self._labels = read, labels
        size = max(1, BLOCK_VALUES // max(1, self.n_frames * self.n_features))
        self._blocks = [
            slice(a, min(a + size, self.n_samples)) for a in range(0, self.n_samples, size)
        ]
        self._kept: Block | None = None

    def blocks(self) -> Iterator[Block]:
        """The samples, a block at a time, sorted by class within each block."""
        if self._kept is not None:
            yield self._kept
            return
        for block in self._blocks:
            labels, values = self._labels[block], self._read(block)
            if (np.diff(labels) < 0).any():
                order = np.argsort(labels, kind="stable")
                labels, values = labels[order], values[:, order]
            starts = np.flatnonzero(np.diff(labels, prepend=-1))
            found = Block(labels, starts, np.asarray(values, dtype=np.float64))
            if len(self._blocks) == 1:
                self._kept = found
            yield found

    @cached_property
    def means(self) -> np.ndarray:
        sums = np.zeros((self.n_frames, self.n_classes, self.n_features))
        with np.errstate(invalid="ignore", over="ignore"):  # the caller reports non-finite features
            for block in self.blocks():
                sums[:, block.classes] += block.class_sums(block.values)
        return sums / self.counts[:, None]

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
    def rounding(self) -> np.ndarray:
        """Length below which a difference from or between class means is rounding, shape (F,).

        A sum of n equal numbers is off by up to n roundings, so the number of samples enters.
        """
        size = np.sqrt(np.einsum("fkp,fkp->f", self.means, self.means))
        return max(self.n_samples, self.n_features) * np.finfo(np.float64).eps * size

    @cached_property
    def whitening(self) -> np.ndarray:
        """Columns v_j / s_j of the thin SVD of the centred means, shape (F, p, min(K−1, p)).

        A column is zero where s_j is not above the rounding of the means: the pseudo-inverse.
        """
        _, s, vt = np.linalg.svd(self.centred, full_matrices=False)
        rank = min(self.n_classes - 1, self.n_features)
        s, vt = s[:, :rank], vt[:, :rank]
        keep = s > self.rounding[:, None]
        scale = np.where(keep, 1.0 / np.where(keep, s, 1.0), 0.0)
        return (vt * scale[..., None]).swapaxes(1, 2)

    @cached_property
    def scatter(self) -> np.ndarray:
        result = np.zeros((self.n_frames, self.n_classes))
        for block in self.blocks():
            away = block.less(block.values, self.means)
            squares = np.einsum("fnp,fnp->fn", away, away)
            result[:, block.classes] += block.class_sums(squares[..., None])[..., 0]
        return np.where(result > self.counts * self.rounding[:, None] ** 2, result, 0.0)

    @cached_property
    def whitened_scatter(self) -> np.ndarray:
        """Sum over all samples of the squared whitened deviation from the class mean, (F,)."""
        result = np.zeros(self.n_frames)
        centres = self.means @ self.whitening
        for block in self.blocks():
            # Whitening first: the class mean then comes off min(K−1, p) numbers, not p.
            away = block.less(block.values @ self.whitening, centres)
            result += np.einsum("fnr,fnr->f", away, away)
        # The rounding of the class means, whitened: samples that all lie at their mean score 0.
        noise = np.einsum("fpr,fpr->f", self.whitening, self.whitening) * self.rounding**2
        return np.where(result > self.n_samples * noise, result, 0.0)

    def pairs(self) -> Iterator[tuple[int, np.ndarray]]:
        """For each class k but the last, squared distances of its mean to those of k+1…, (F, ·).

        A distance within the rounding of the means is 0.
        """
        for k in range(self.n_classes - 1):
            gap = self.centred[:, k + 1 :] - self.centred[:, k : k + 1]
            square = np.einsum("fkp,fkp->fk", gap, gap)
            yield k, np.where(square > self.rounding[:, None] ** 2, square, 0.0)
