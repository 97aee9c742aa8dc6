"""What it means for two classes to be separated: one function for each criterion.

A criterion is a function of a ``Frame`` that returns scores (replicate, class, class): positive
where the samples of the two classes are separated, and the margin by which, where it is asked for.
To add one, write the function and decorate it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np

from lesde.analysis.directions import gap_directions
from lesde.analysis.linear_program import linear_margins

__all__ = ["CRITERIA", "DIRECTED", "Frame", "criterion"]


@dataclass(frozen=True)
class Frame:
    """All replicates at one time.

    Attributes
    ----------
    features : ndarray (R, N, p), float64
    labels : ndarray (N,)
        Classes 0 to K−1, in any order.
    direction : ndarray (K, K, p) or None
        Unit vectors from class l to class k; None where each replicate has its own.
    margin : bool
        Whether the scores must be margins, or need only the right sign.
    exact : callable or None
        ``exact(k, l)`` is a vector along ``direction[k, l]`` of exact numbers, for ties.
    """

    features: np.ndarray
    labels: np.ndarray
    direction: np.ndarray | None = None
    margin: bool = False
    exact: Callable[[int, int], np.ndarray] | None = None

    @cached_property
    def n_classes(self) -> int:
        return int(self.labels.max()) + 1

    @cached_property
    def classes(self) -> list[np.ndarray]:
        """Samples of each class, (R, n_k, p)."""
        return [self.features[:, self.labels == k] for k in range(self.n_classes)]

    @cached_property
    def means(self) -> np.ndarray:
        """Class means, (R, K, p)."""
        return np.stack([samples.mean(axis=1) for samples in self.classes], axis=1)

    @cached_property
    def size(self) -> np.ndarray:
        """Largest feature of each replicate, (R,)."""
        return np.maximum(self.features.max(axis=(1, 2)), -self.features.min(axis=(1, 2)))

    def rounding(self, k: int, l: int) -> np.ndarray:
        """What the place of a sample along a direction is off by, (R,), in units of the features.

        A gap of class means is off by as many roundings as it has samples, and with it its direction.
        """
        unit = np.finfo(np.float64).eps * self.features.shape[2]
        gap = self.means[:, k] - self.means[:, l]
        if self.direction is not None:
            gap = gap.mean(axis=0, keepdims=True)
        length = np.abs(gap).max(axis=1)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            turned = np.where(length > 0, self.features.shape[1] * (self.size / length), 0.0)
            return 4 * unit * (self.size + turned * self.size)

    def whole(self, replicate: int, k: int) -> np.ndarray | None:
        """Samples (n_k, p) of a class as integers; None where they are not whole numbers.

        From 2**53 every number is whole, so that this says nothing.
        """
        samples = self.classes[k][replicate]
        if not ((samples == np.rint(samples)) & (np.abs(samples) < 2.0**53)).all():
            return None
        return np.array([[int(x) for x in row] for row in samples], dtype=object)

    def settle(
        self,
        k: int,
        l: int,
        scores: np.ndarray,
        judge: Callable[[np.ndarray, np.ndarray], int],
    ) -> np.ndarray:
        """Scores (R,) of a pair with those that could be a tie decided.

        A score within the rounding of the features' places is 0: classes that touch are not separated.
        Whole numbers are judged without rounding, by ``judge``, a function of the two classes' samples
        with the right sign.
        """
        for r in map(int, np.flatnonzero(np.abs(scores) <= self.rounding(k, l))):
            first, second = self.whole(r, k), self.whole(r, l)
            exact = 0 if first is None or second is None else judge(first, second)
            least = np.finfo(np.float64).tiny
            scores[r] = 0.0 if exact == 0 else np.copysign(max(abs(scores[r]), least), exact)
        return scores

    def pairs(self) -> list[tuple[int, int]]:
        return list(itertools.combinations(range(self.n_classes), 2))

    def scores(self) -> np.ndarray:
        """An array to fill: (R, K, K), NaN."""
        K = self.n_classes
        return np.full((len(self.features), K, K), np.nan)


Criterion = Callable[[Frame], np.ndarray]
CRITERIA: dict[str, Criterion] = {}
DIRECTED: set[str] = set()


def criterion(name: str, directed: bool = False) -> Callable[[Criterion], Criterion]:
    """Register a criterion under the name that ``separation_probability`` knows it by.

    ``directed``: it compares classes along ``Frame.direction``.
    """

    def register(function: Criterion) -> Criterion:
        CRITERIA[name] = function
        if directed:
            DIRECTED.add(name)
        return function

    return register


@criterion("projection", directed=True)
def projection(frame: Frame) -> np.ndarray:
    """All samples of one class lie beyond all samples of the other along a direction.

    Margin: the width of the empty gap between them along it, negative by their overlap.
    """
    scores = frame.scores()
    own = gap_directions(frame.means) if frame.direction is None else None
    for k, l in frame.pairs():
        if own is not None:
            high = np.einsum("rnp,rp->rn", frame.classes[k], own[:, k, l])
            low = np.einsum("rnp,rp->rn", frame.classes[l], own[:, k, l])
        else:
            assert frame.direction is not None
            high = frame.classes[k] @ frame.direction[k, l]
            low = frame.classes[l] @ frame.direction[k, l]
        apart = frame.settle(k, l, high.min(axis=1) - low.max(axis=1), partial(_along, frame, k, l))
        scores[:, k, l] = scores[:, l, k] = apart
    return scores


def _along(frame: Frame, k: int, l: int, first: np.ndarray, second: np.ndarray) -> int:
    """Sign of the empty gap between whole numbers along the direction of a pair."""
    if frame.direction is None:
        vector = _gap(first, second)
    elif frame.exact is not None:
        vector = frame.exact(k, l)
    else:
        return 0
    apart = (first @ vector).min() - (second @ vector).max()
    return int(apart > 0) - int(apart < 0)


def _gap(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Gap of the means of whole numbers (n, p), times the numbers of samples."""
    return len(second) * first.sum(axis=0) - len(first) * second.sum(axis=0)


@criterion("nearest_center")
def nearest_center(frame: Frame) -> np.ndarray:
    """Every sample of each class lies nearer to its own class's mean than to the other's.

    Margin: the least distance of a sample from the plane midway between the two means, negative
    for a sample on the wrong side.
    """
    scores = frame.scores()
    direction = gap_directions(frame.means)
    for k, l in frame.pairs():
        unit = direction[:, k, l]
        middle = 0.5 * (frame.means[:, k] + frame.means[:, l])
        above = np.einsum("rnp,rp->rn", frame.classes[k] - middle[:, None], unit).min(axis=1)
        below = np.einsum("rnp,rp->rn", middle[:, None] - frame.classes[l], unit).min(axis=1)
        nearest = frame.settle(k, l, np.minimum(above, below), _nearest)
        scores[:, k, l] = scores[:, l, k] = nearest
    return scores


def _nearest(first: np.ndarray, second: np.ndarray) -> int:
    """Sign of the least distance of whole numbers to the plane midway between their means."""
    n, m, vector = len(first), len(second), _gap(first, second)
    middle = m * first.sum(axis=0) + n * second.sum(axis=0)
    above = ((2 * n * m * first - middle) @ vector).min()
    below = ((middle - 2 * n * m * second) @ vector).min()
    apart = min(above, below)
    return int(apart > 0) - int(apart < 0)


@criterion("linear")
def linear(frame: Frame) -> np.ndarray:
    """Some hyperplane has all samples of one class on each side.

    Margin: half the distance of the two convex hulls in the sum norm; 0 where they meet.
    """
    scores = frame.scores()
    for k, l in frame.pairs():
        margins = linear_margins(frame.classes[k], frame.classes[l], exact=frame.margin)
        scores[:, k, l] = scores[:, l, k] = margins
    return scores
