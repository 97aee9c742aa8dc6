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

from lesde.analysis.class_geometry import ClassGeometry

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
        self._given = centers
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
        size = self._size if self._given is None else _norm(self._given)
        unit = max(self.n_samples, self.n_features) * np.finfo(np.float64).eps
        return unit * size[:, None] * reach


def _norm(rows: np.ndarray) -> np.ndarray:
    return np.sqrt(np.einsum("fkp,fkp->f", rows, rows))
