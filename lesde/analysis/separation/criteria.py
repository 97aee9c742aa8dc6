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

from lesde.analysis.class_means import class_averages
from lesde.analysis.separation.linear import linear_margins
from lesde.paths import gap_directions, need_samples

__all__ = [
    "CRITERIA",
    "Frame",
    "criterion",
    "linear",
    "nearest_center",
    "projection",
]

EPS = float(np.finfo(np.float64).eps)


class Frame:
    """All replicates at one time, of which every sample is known, or class means and reaches.

    ``means`` (R, K, p) are the class means; ``direction`` (K, K, p) unit vectors from class l to class k,
    or None where each replicate has its own, along the gap of its means; ``margin`` says that scores must
    be margins, not only of the right sign. Either ``features`` (R, N, p) with ``labels`` (N,) are given,
    or ``means`` with ``reach`` (R, K, K), the reach of class k from its mean toward class l, stored
    with the relative rounding ``precision``. ``exact_direction(k, l)`` is a vector along
    ``direction[k, l]`` in exact numbers.
    """

    def __init__(
        self,
        direction: np.ndarray | None,
        margin: bool,
        *,
        features: Any = None,
        labels: Any = None,
        means: Any = None,
        reach: Any = None,
        precision: float = 0.0,
        exact_direction: Callable[[int, int], np.ndarray] | None = None,
    ):
        self.direction, self.margin = direction, margin
        self._features, self._labels = features, labels
        self.means = class_averages(features, labels) if means is None else means
        self._reach, self._exact_direction = reach, exact_direction
        self._precision = max(precision, 4 * self.means.shape[2] * EPS)

    @property
    def n_classes(self) -> int:
        """Number of classes."""
        return self.means.shape[1]

    @cached_property
    def classes(self) -> list[np.ndarray]:
        """Samples of each class, (R, n_k, p)."""
        if self._features is None:
            raise need_samples("paths", "this criterion")
        return [self._features[:, self._labels == k] for k in range(self.n_classes)]

    @property
    def finite(self) -> bool:
        """True where all numbers are finite; a pair whose means coincide has no reach."""
        if not np.isfinite(self.means).all():
            return False
        if self._reach is None:
            return bool(np.isfinite(self._features).all())
        apart = (self.means[:, :, None] != self.means[:, None]).any(axis=-1)
        known = np.isfinite(self._reach) | ~apart | np.eye(self.n_classes, dtype=bool)
        return bool(known.all())

    def pairs(self) -> list[tuple[int, int]]:
        """All pairs of classes k < l."""
        return list(itertools.combinations(range(self.n_classes), 2))

    def scores(self) -> np.ndarray:
        """An array to fill: (R, K, K), NaN."""
        return np.full((len(self.means), self.n_classes, self.n_classes), np.nan)

    @cached_property
    def _units(self) -> np.ndarray:
        """Unit vectors from class l to class k, (R or 1, K, K, p)."""
        return gap_directions(self.means) if self.direction is None else self.direction[None]

    def clearances(self, k: int, l: int) -> tuple[np.ndarray, np.ndarray]:
        """Least distances (R,) of the samples of both classes from the plane midway between their means.

        The plane is orthogonal to the direction of the pair; samples beyond it count negative.
        """
        unit = self._units[:, k, l, :, None]
        if self._reach is not None:
            half = 0.5 * ((self.means[:, k] - self.means[:, l])[:, None] @ unit)[:, 0, 0]
            return half - self._reach[:, k, l], half - self._reach[:, l, k]
        middle = (0.5 * (self.means[:, k] + self.means[:, l]))[:, None] @ unit
        above, below = self.classes[k] @ unit - middle, middle - self.classes[l] @ unit
        return above.min(axis=(1, 2)), below.min(axis=(1, 2))

    def _rounding(self, k: int, l: int) -> np.ndarray:
        """Scores (R,) of a pair up to which it could be a tie."""
        if self._reach is not None:
            reach = np.abs(self._reach[:, k, l]) + np.abs(self._reach[:, l, k])
            size = 2 * np.abs(self.means).max(axis=(1, 2)) + np.nan_to_num(reach)
            return self._precision * size
        # A gap of class means is off by as many roundings as it has samples, and with it its direction.
        gap = self.means[:, k] - self.means[:, l]
        if self.direction is not None:
            gap = gap.mean(axis=0, keepdims=True)
        length = np.abs(gap).max(axis=1)
        size = np.abs(self._features).max(axis=(1, 2))
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            turned = np.where(length > 0, self._features.shape[1] * (size / length), 0.0)
            return self._precision * (size + turned * size)

    def _exact_clearances(self, replicate: int, k: int, l: int) -> Any:
        """`clearances` (1,) of whole numbers without rounding, up to a factor above 0; None of others."""
        if self._reach is not None:
            return None
        both = [self.classes[c][replicate] for c in (k, l)]
        if all((x == both[0][0]).all() for x in both):  # all samples at one point
            return np.zeros(1), np.zeros(1)
        # from 2**53 every number is whole, so that this says nothing
        if any(((x != np.rint(x)) | (np.abs(x) >= 2.0**53)).any() for x in both):
            return None
        first, second = (np.array([list(map(int, row)) for row in x], dtype=object) for x in both)
        n, m = len(first), len(second)
        if self._exact_direction is not None:
            vector = self._exact_direction(k, l)
        else:
            vector = m * first.sum(axis=0) - n * second.sum(axis=0)
        middle = m * first.sum(axis=0) + n * second.sum(axis=0)
        above = ((2 * n * m * first - middle) @ vector).min(keepdims=True)
        return above, ((middle - 2 * n * m * second) @ vector).min(keepdims=True)

    def compare(self, combine: Callable[[Any, Any], Any]) -> np.ndarray:
        """Scores (R, K, K) that combine the clearances of both classes of each pair.

        A score within its rounding is 0: classes that touch are not separated. Whole numbers are judged
        without rounding.
        """
        scores = self.scores()
        for k, l in self.pairs():
            score = combine(*self.clearances(k, l))
            for r in map(int, np.flatnonzero(np.abs(score) <= self._rounding(k, l))):
                exact = self._exact_clearances(r, k, l)
                true = 0 if exact is None else combine(*exact)[0]
                size = max(abs(score[r]), np.finfo(np.float64).tiny)
                score[r] = size if true > 0 else -size if true < 0 else 0.0
            scores[:, k, l] = scores[:, l, k] = score
        return scores


class Criterion(NamedTuple):
    """A registered criterion, and the arguments of `criterion`."""

    scores: Callable[[Any], np.ndarray]
    directed: bool
    samples: bool


CRITERIA: dict[str, Criterion] = {}


def criterion(name: str, directed: bool = False, samples: bool = False) -> Callable[[Any], Any]:
    """Register a function of a `Frame` as a criterion of `lesde.separation_probability`.

    Parameters
    ----------
    name : str
        Its name in ``separation_probability(paths, criterion=...)``.
    directed : bool, default False
        The criterion compares classes along ``frame.direction``, which the argument ``direction`` sets.
    samples : bool, default False
        The criterion reads every sample, ``frame.classes``; statistics of the classes do not suffice.

    Returns
    -------
    decorator
        The function gets a frame, all replicates at one time, with ``frame.means`` (replicate, class,
        feature), ``frame.classes``, a list of the samples (replicate, sample, feature) of each class, and
        ``frame.clearances(k, l)``, the least distances of the samples of both classes from the plane
        midway between their means. It returns scores (replicate, class, class), symmetric, above 0
        where the pair is separated: ``frame.scores()`` is such an array to fill, ``frame.pairs()`` the
        pairs, ``frame.compare`` decides ties.

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
