"""Criteria of separation of two classes: one function for each criterion, on samples or on their statistics.

To add a criterion, copy one: it maps a `Frame` to a score for each pair of classes.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from lesde.analysis.separation.linear import linear_margins
from lesde.paths import gap_directions, need_samples

EPS = float(np.finfo(np.float64).eps)


class Frame:
    """All replicates at one time: class means, and how far the samples of each class reach from theirs.

    ``means`` (R, K, p), ``counts`` (K,) samples per class; ``direction`` (K, K, p), unit vectors from class l to
    class k, or None where each replicate's own gap counts; ``classes``, the samples (R, n_k, p) of each, or only
    the ``reach`` (R, K, K) of class k from its mean toward class l; ``margin``, True where the sign of scores
    does not suffice.
    """

    def __init__(
        self,
        means: np.ndarray,
        counts: np.ndarray,
        direction: np.ndarray | None,
        margin: bool,
        *,
        classes: list[np.ndarray] | None = None,
        reach: np.ndarray | None = None,
    ):
        self.means, self.counts, self.direction = means, counts, direction
        self.n_classes = len(counts)
        self._classes, self._reach, self.margin = classes, reach, margin

    @property
    def classes(self) -> list[np.ndarray]:
        """Samples of each class, (R, n_k, p)."""
        if self._classes is None:
            raise need_samples("paths", "this criterion")
        return self._classes

    @property
    def finite(self) -> bool:
        """True where all numbers are finite; a pair whose means coincide has no reach."""
        known = np.isfinite(self.means).all()
        if known and self._reach is not None:
            apart = (self.means[:, :, None] != self.means[:, None]).any(axis=-1)
            known = (np.isfinite(self._reach) | ~apart | np.eye(self.n_classes, dtype=bool)).all()
        return bool(known)

    def pairs(self) -> list[tuple[int, int]]:
        """All pairs of classes k < l."""
        return list(itertools.combinations(range(self.n_classes), 2))

    def scores(self) -> np.ndarray:
        """An array to fill: (R, K, K), NaN."""
        return np.full((len(self.means), self.n_classes, self.n_classes), np.nan)

    @cached_property
    def _measured(self) -> tuple[np.ndarray, np.ndarray]:
        """Clearance of class k from the plane between it and class l, and its rounding, each (R, K, K)."""
        own = self.direction is None
        units = gap_directions(self.means) if self.direction is None else self.direction[None]
        clearance, length, reach = self.scores(), self.scores(), self._reach
        for k in range(self.n_classes):
            gap = self.means[:, k, None] - self.means
            clearance[:, k] = 0.5 * (gap * units[:, k]).sum(axis=2)
            length[:, k] = np.abs(gap if own else gap.mean(axis=0, keepdims=True)).max(axis=2)
            if reach is None:
                away = self.means[:, k, None] - self.classes[k]
                clearance[:, k] -= (away @ units[:, k].swapaxes(1, 2)).max(axis=1)
        # Twice the largest mean, and the reaches, are about the size of the samples.
        size = 2 * np.abs(self.means).max(axis=(1, 2))[:, None, None]
        stored = one = 4 * self.means.shape[2] * EPS
        if reach is None:
            largest = [np.abs(samples).max(axis=(1, 2)) for samples in self.classes]
            size = size + np.max(largest, axis=0)[:, None, None]
        else:
            clearance -= reach
            size = size + np.nan_to_num(np.abs(reach) + np.abs(reach).swapaxes(1, 2))
            stored = max(one, float(np.finfo(reach.dtype).eps))
        # A gap of class means is off by as many roundings as it has samples, and with it its direction.
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            turned = np.where(length > 0, one * self.counts.sum() * (size / length), 0.0)
            return clearance, (stored + turned) * size

    def clearances(self, k: int, l: int) -> tuple[np.ndarray, np.ndarray]:
        """Least distances (R,) of the samples of both classes from the plane midway between their means.

        The plane is orthogonal to the direction of the pair; samples beyond it count negative.
        """
        clearance, _ = self._measured
        return clearance[:, k, l], clearance[:, l, k]

    def compare(self, combine: Callable[[Any, Any], Any]) -> np.ndarray:
        """Scores (R, K, K) that combine the clearances of both classes of each pair.

        A score within its rounding is 0: classes that touch are not separated.
        """
        clearance, rounding = self._measured
        scores = combine(clearance, clearance.swapaxes(1, 2))
        scores = np.where(np.abs(scores) <= rounding, 0.0, scores)
        return np.where(np.eye(self.n_classes, dtype=bool), np.nan, scores)


class Criterion(NamedTuple):
    """A registered criterion, and the arguments of `criterion`."""

    scores: Callable[[Any], np.ndarray]
    directed: bool
    samples: bool


CRITERIA: dict[str, Criterion] = {}


def criterion(name: str, directed: bool = False, samples: bool = False) -> Callable[[Any], Any]:
    """Register a function of a `Frame` as a criterion of `lesde.separation_probability`.

    The function gets a `Frame`, all replicates at one time, with ``means``, ``classes``, ``clearances(k, l)``,
    ``pairs()`` and ``compare``, which decides ties. It returns scores (replicate, class, class), symmetric,
    above 0 where the pair is separated: ``frame.scores()`` is such an array to fill.

    Parameters
    ----------
    name : str
        Its name in ``separation_probability(paths, criterion=...)``.
    directed : bool, default False
        The criterion compares classes along ``frame.direction``, which the argument ``direction`` sets.
    samples : bool, default False
        The criterion reads ``frame.classes``, so that statistics of the classes do not suffice.

    Examples
    --------
    >>> @criterion("unit_gap")
    ... def unit_gap(frame):
    ...     scores = frame.scores()
    ...     for k, l in frame.pairs():
    ...         gap = np.linalg.norm(frame.means[:, k] - frame.means[:, l], axis=1)
    ...         scores[:, k, l] = scores[:, l, k] = gap - 1
    ...     return scores
    >>> del CRITERIA["unit_gap"]
    """

    def register(function: Callable[[Any], np.ndarray]) -> Callable[[Any], np.ndarray]:
        CRITERIA[name] = Criterion(function, directed, samples)
        return function

    return register


@criterion("projection", directed=True)
def projection(frame: Frame) -> np.ndarray:
    """All samples of one class lie beyond all samples of the other along a direction.

    Margin: the width of the empty gap between them along it, negative by their overlap.
    """
    return frame.compare(operator.add)


@criterion("nearest_center")
def nearest_center(frame: Frame) -> np.ndarray:
    """Every sample of each class lies nearer to its own class's mean than to the other's.

    Margin: the least distance of a sample from the plane midway between the two means, negative
    for a sample on the wrong side.
    """
    return frame.compare(np.minimum)


@criterion("linear", samples=True)
def linear(frame: Frame) -> np.ndarray:
    """Some hyperplane has all samples of one class on each side.

    Margin: half the distance of the two convex hulls in the sum norm; 0 where they meet.
    """
    scores = frame.scores()
    for k, l in frame.pairs():
        margins = linear_margins(frame.classes[k], frame.classes[l], exact=frame.margin)
        scores[:, k, l] = scores[:, l, k] = margins
    return scores
