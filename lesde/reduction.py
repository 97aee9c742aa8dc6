"""One frame of samples reduced to statistics of its classes: means, covariances, reaches.

The *reach* of class k toward class l is how far its samples go, from their mean, in the direction of the
mean of l: the largest (μ_k − x)·u_kl over the samples x of class k, with u_kl the unit vector from μ_l to
μ_k. Two classes are separated along the gap of their means iff their reaches toward each other are
together less than the gap.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

__all__ = ["gap_directions", "reduce_frame"]

# Values worked on at once, in float64 (1 MB): a block stays in the processor's cache. Samples are cut
# by their number alone, so that results do not depend on how many replicates come together.
BLOCK_VALUES = 2**17


def gap_directions(means: np.ndarray) -> np.ndarray:
    """Unit vectors from class l to class k, shape (..., K, K, p), from means (..., K, p).

    NaN where the means coincide.
    """
    gap = means[..., :, None, :] - means[..., None, :, :]
    # scaled first, so that neither tiny nor huge gaps lose their squares
    size = np.abs(gap).max(axis=-1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        gap = gap / size
        return gap / np.linalg.norm(gap, axis=-1, keepdims=True)


def reduce_frame(samples: Any, counts: Any, directions: Any = None) -> tuple[np.ndarray, ...]:
    """Class means, within-class covariances and reaches of one frame of every replicate.

    Parameters
    ----------
    samples : array or torch tensor on the CPU, shape (R, N, p)
        Sorted by class, finite; any real dtype.
    counts : array of int, shape (K,)
        Samples per class, each at least 1.
    directions : array, shape (K, K, p) or (R, K, K, p), optional
        Unit vectors, at [k, l] from class l to class k, along which to take the reach as well; zero
        where there is none.

    Returns
    -------
    mean : ndarray (R, K, p)
    within : ndarray (R, K, p, p)
        Covariance within the class, divisor n_k.
    reach : ndarray (R, K, K)
        Along the gap of the replicate's own class means; NaN on the diagonal and where means coincide.
    reach_expected : ndarray (R, K, K)
        Only with ``directions``: the same along those; NaN on the diagonal.

        All float64. Deviations are taken from a sample of the class first and from the mean of those
        second, so that they keep their digits however large the mean, and are exactly zero for
        samples that coincide. Every replicate's numbers are the same whatever others come with it.
    """
    values = np.asarray(samples)
    sizes = np.asarray(counts)
    R, N, p = values.shape
    K = len(sizes)
    mean, within = np.empty((R, K, p)), np.empty((R, K, p, p))
    reaches = np.empty((1 if directions is None else 2, R, K, K))
    given = None
    if directions is not None:
        given = np.broadcast_to(np.asarray(directions, dtype=np.float64), (R, K, K, p))
    some = max(1, BLOCK_VALUES // (N * p))
    for rows in (slice(r, r + some) for r in range(0, R, some)):
        groups = _groups(values[rows], sizes)
        for classes, group in groups:
            mean[rows, classes] = group.first + group.shift
        units = [gap_directions(mean[rows])] + ([] if given is None else [given[rows]])
        toward = -np.concatenate(units, axis=2)
        for classes, group in groups:
            along = toward[:, classes]
            scatter, farthest = np.zeros(1), np.full(along.shape[:3], -np.inf)
            for away in group:
                scatter = scatter + away @ away.swapaxes(-1, -2)
                np.maximum(farthest, (along @ away).max(axis=-1), out=farthest)
            within[rows, classes] = scatter / group.size
            for reach, found in zip(reaches, np.split(farthest, len(units), axis=2), strict=True):
                reach[rows, classes] = found
    reaches[..., np.arange(K), np.arange(K)] = np.nan
    return mean, within, *reaches


def _groups(values: np.ndarray, counts: np.ndarray) -> list[tuple[slice, _Deviations]]:
    """The classes, all at once where they are of one size, else one by one."""
    R, _, p = values.shape
    K = len(counts)
    step = K if (counts == counts[0]).all() else 1
    stops = np.cumsum(counts)
    keep = values.size <= BLOCK_VALUES
    groups = []
    for k in range(0, K, step):
        n = int(counts[k])
        part = values[:, stops[k] - n : stops[k + step - 1]].reshape(R, step, n, p)
        groups.append((slice(k, k + step), _Deviations(part, keep)))
    return groups


class _Deviations:
    """Samples of some classes of one size less their class means, a block of samples at a time.

    Iterates over blocks (replicate, class, feature, sample), samples last: sums and maxima over
    contiguous numbers are several times as fast.

    Attributes
    ----------
    first, shift : ndarray (replicate, class, feature)
        The first sample of each class, and the mean of the others' differences from it.
    size : int
        Samples per class.
    """

    def __init__(self, samples: np.ndarray, keep: bool):
        self.samples, self.size = samples, samples.shape[2]
        self.first = samples[:, :, 0].astype(np.float64)
        step = max(1, BLOCK_VALUES // samples.shape[3])
        self._parts = [slice(a, a + step) for a in range(0, self.size, step)]
        blocks = (self._less_first(part) for part in self._parts)
        self._kept = list(blocks) if keep else []
        self.shift = sum(block.sum(axis=-1) for block in self._kept or blocks) / self.size
        for block in self._kept:
            block -= self.shift[..., None]

    def __iter__(self) -> Iterator[np.ndarray]:
        if self._kept:
            yield from self._kept
            return
        for part in self._parts:
            block = self._less_first(part)
            block -= self.shift[..., None]
            yield block

    def _less_first(self, part: slice) -> np.ndarray:
        block = self.samples[:, :, part].swapaxes(-1, -2).astype(np.float64, order="C")
        block -= self.first[..., None]
        return block
