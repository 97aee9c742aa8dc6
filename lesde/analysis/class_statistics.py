"""The collapse metrics from class means and within-class covariances, without the samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from lesde.analysis import class_frames
from lesde.analysis.class_geometry import LEAST, MOST, ClassGeometry, rounding_of, units
from lesde.analysis.collapse_registry import METRICS, batches
from lesde.checks import need_samples

__all__ = ["ClassStatistics", "evaluate_statistics"]


class ClassStatistics(ClassGeometry):
    """A batch of frames of which class means and within-class covariances are known.

    Attributes and methods are those of `ClassGeometry`; there are no samples to iterate over.

    Parameters
    ----------
    means : ndarray, shape (F, K, p), float64
    read_within : callable
        Gives the within-class covariances with divisor n_k, shape (F, K, p, p), when they are needed;
        ``read_within(True)`` their diagonals, (F, K, p).
    stored : ndarray, shape (F,)
    counts, weights, bias
        As for `ClassGeometry`.
    """

    def __init__(
        self,
        means: np.ndarray,
        read_within: Callable[..., np.ndarray],
        stored: np.ndarray,
        counts: np.ndarray,
        weights: np.ndarray | None = None,
        bias: np.ndarray | None = None,
    ):
        super().__init__(len(means), means.shape[2], counts, weights, bias)
        self.stored = stored
        self._read_within = read_within
        variances = np.maximum(read_within(True), 0.0)
        with np.errstate(over="ignore", under="ignore"):
            size = (variances + means**2).sum(axis=(1, 2))
        largest = np.maximum(np.abs(means), np.sqrt(variances)).max(axis=(1, 2))
        usual = (size > LEAST) & (size < MOST)
        self.exponent = np.where(usual, 0, units(largest))
        shift = -self.exponent[:, None, None]
        self.means = np.ldexp(means, shift)
        self.squares = np.ldexp(variances, 2 * shift) + self.means**2
        self.total = self.squares.sum(axis=2) @ counts

    def blocks(self) -> Iterator[Any]:
        raise need_samples("paths", "this metric")

    @cached_property
    def within(self) -> np.ndarray:
        """Within-class covariances, (F, K, p, p), float64."""
        return np.ldexp(self._read_within(), -2 * self.exponent[:, None, None, None])

    @cached_property
    def scatter(self) -> np.ndarray:
        return self.not_rounding(self.counts * np.einsum("fkpp->fk", self.within))

    @cached_property
    def whitened_scatter(self) -> np.ndarray:
        axes = self.whitening[:, None]
        each = np.einsum(
            "fkpr,fkpr->fk", self.within @ axes, np.broadcast_to(axes, self._over(axes))
        )
        # A covariance without spread along these axes may come out below 0 by its rounding.
        return self.not_whitened_rounding(np.maximum(each, 0.0) @ self.counts)

    def _over(self, axes: np.ndarray) -> tuple[int, ...]:
        return (self.n_frames, self.n_classes, *axes.shape[2:])


def evaluate_statistics(
    mean: Any,
    within: Any,
    counts: np.ndarray,
    names: Sequence[str],
    weights: np.ndarray | None,
    bias: np.ndarray | None,
    place: Callable[[tuple[int, ...]], str],
    rounding: float = 0.0,
) -> dict[str, np.ndarray]:
    """Metrics of everything ``mean`` and ``within`` hold, in batches of frames of bounded size.

    Parameters
    ----------
    mean, within : array or lazily read variable, (..., class, feature), (..., class, feature, feature_)
        Indexed with slices only; a batch at a time is turned into an array.
    counts : ndarray of int, shape (class,)
        Samples per class.
    names, weights, bias
        As for `lesde.analysis.collapse_registry.evaluate`.
    place : callable
        Words for an index of ``mean`` (leading dimensions, class, feature), for the error about a value
        that is not finite.
    rounding : float, default 0
        Relative rounding of the features the statistics are of, where it is known.

    Returns
    -------
    dict of ndarray
        float64, of the shape of the leading dimensions.
    """
    *leading, K, p = mean.shape
    if p == 0:
        raise ValueError("paths.mean must have at least one feature; got none.")
    results = {name: np.empty(leading) for name in names}
    most = max(1, class_frames.BLOCK_VALUES // (K * p * p))
    for batch in batches(tuple(leading), most):
        shape = tuple(s.stop - s.start for s in batch)
        size = int(np.prod(shape, dtype=int))
        means = np.asarray(mean[batch]).reshape(size, K, p)
        stored = np.maximum(rounding_of(means), rounding)
        means = means.astype(np.float64)
        _check_finite("mean", means, shape, batch, place)

        def read_within(diagonal=False, batch=batch, shape=shape, size=size) -> np.ndarray:
            values = np.asarray(within[batch]).reshape(size, K, p, p)
            if diagonal:
                values = np.einsum("fkpp->fkp", values)
            values = values.astype(np.float64)
            _check_finite("within", values, shape, batch, place)
            return values

        frames = ClassStatistics(
            means,
            read_within,
            stored,
            counts,
            None if weights is None else weights[batch].reshape(size, K, p),
            None if bias is None else bias[batch].reshape(size, K),
        )
        for name in names:
            results[name][batch] = METRICS[name].compute(frames).reshape(shape)
    return results


def _check_finite(
    name: str,
    values: np.ndarray,
    shape: tuple[int, ...],
    batch: tuple[slice, ...],
    place: Callable[[tuple[int, ...]], str],
) -> None:
    """Raise the error that names the first value of a batch that is not finite."""
    if np.isfinite(values).all():
        return
    at, *rest = np.argwhere(~np.isfinite(values))[0]
    frame = np.unravel_index(at, shape)
    index = (*(int(i) + s.start for i, s in zip(frame, batch, strict=True)), *map(int, rest[:2]))
    raise ValueError(
        f"paths.{name} must be finite; got {values[(at, *rest)]} at {place(index)}. "
        f"Drop the frames after a run diverged."
    )
