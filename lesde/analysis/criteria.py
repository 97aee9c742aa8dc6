"""What it means for two classes to be separated: one function for each criterion.

A criterion is a function of a ``Frame`` that returns scores (replicate, class, class): positive
where the samples of the two classes are separated, and the margin by which, where it is asked for.
To add one, write the function and decorate it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

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
    """

    features: np.ndarray
    labels: np.ndarray
    direction: np.ndarray | None = None
    margin: bool = False

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
        scores[:, k, l] = scores[:, l, k] = high.min(axis=1) - low.max(axis=1)
    return scores


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
        scores[:, k, l] = scores[:, l, k] = np.minimum(above, below)
    return scores


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
