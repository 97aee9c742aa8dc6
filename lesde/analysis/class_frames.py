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

from lesde.analysis.class_geometry import LEAST, MOST, ClassGeometry, rounding_of, units

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
