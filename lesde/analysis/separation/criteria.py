"""The criteria of separation from statistics: class means, and how far classes reach toward each other.

A function here gives the same scores as the criterion of its name in `lesde.analysis.criteria`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
from scipy.optimize import linprog
from scipy.sparse import csr_array

from lesde.analysis.separation.directions import gap_directions
from lesde.paths import need_samples

__all__ = [
    "CRITERIA",
    "DIRECTED",
    "REDUCED",
    "Frame",
    "ReducedFrame",
    "check_reducible",
    "criterion",
    "linear_margins",
    "reduced_criterion",
]


# --------------------------------------------------------------------------------------------------
# Linear separability of two sets of points by linear programs, many data sets at once.

# in units of the root-mean-square spread
TOLERANCE = 1e-9
# HiGHS's methods and tolerances, the finest it takes first; it may end just short of so small a one
SOLVERS = (("highs", 1e-10), ("highs-ipm", 1e-10), ("highs", 1e-7))
# data sets that share one call: a call costs 6 ms whatever it solves, and 32 small programs little more
BATCH = 32
LARGEST_SCATTER = 256


def linear_margins(first: np.ndarray, second: np.ndarray, exact: bool = False) -> np.ndarray:
    """Margin by which a hyperplane separates two sets of points, for R data sets.

    Maximises m subject to w·a − b ≥ m for all a of the first set, w·x − b ≤ −m for all x of the
    second, and |w_j| ≤ 1. The maximum is half the distance of the convex hulls in the sum norm, and
    positive if and only if the sets are linearly separable.

    Two things keep programs few and small. Sets that the mean gap or Fisher's discriminant already
    separates need none unless the margin is wanted. The others start from the few points that
    lie deepest in the other set: where these cannot be separated nothing can, else the points that
    their plane puts wrongly are added and the program is solved again. A positive answer is checked
    on all points. Programs of several data sets are solved as one block-diagonal program by HiGHS.

    Parameters
    ----------
    first, second : ndarray (R, n, p) and (R, m, p)
    exact : bool
        False: only the sign of the result has a meaning. True: the maximal margin.

    Returns
    -------
    ndarray (R,)
        Positive where separable, else 0. Separations narrower than 1e-9 of the root-mean-square
        spread of the points (1e-6 where HiGHS does not reach its finest tolerance) can be missed, and
        those within the rounding of the points are none.
    """
    both = np.concatenate([first, second], axis=1)
    # by a power of two, so that neither tiny nor huge points lose their squares
    power = np.frexp(np.abs(both).max(axis=(1, 2)))[1]
    first, second, both = (np.ldexp(x, -power[:, None, None]) for x in (first, second, both))
    centre = both.mean(axis=1, keepdims=True)
    unit = np.sqrt(((both - centre) ** 2).sum(axis=2).mean(axis=1))
    unit = np.where(unit > 0, unit, 1.0)
    a = (first - centre) / unit[:, None, None]
    b = (second - centre) / unit[:, None, None]
    # points are at most 1 before they are centred and divided, and p of them are added
    rounding = 4 * a.shape[2] * np.finfo(np.float64).eps * (1 + 1 / unit)
    directions = _discriminants(a, b)
    gaps = np.stack([_gap(a, b, w) for w in directions])
    margins = np.where(gaps.max(axis=0) > rounding, gaps.max(axis=0), 0.0)
    open_cases = np.arange(len(a)) if exact else np.flatnonzero(margins <= 0)
    start = directions[-1]
    for i in range(0, len(open_cases), BATCH):
        part = open_cases[i : i + BATCH]
        margins[part] = _cutting_planes(a[part], b[part], start[part], rounding[part], exact)
    return np.ldexp(margins * unit, power)


def _discriminants(a: np.ndarray, b: np.ndarray) -> list[np.ndarray]:
    """The mean gap, and Fisher's discriminant where it is cheap; each (R, p)."""
    gap = a.mean(axis=1) - b.mean(axis=1)
    p = a.shape[2]
    if p > LARGEST_SCATTER:
        return [gap]
    scatter = np.zeros((len(a), p, p))
    for x in (a, b):
        x = x - x.mean(axis=1, keepdims=True)
        scatter += x.transpose(0, 2, 1) @ x
    ridge = 1e-9 * np.trace(scatter, axis1=1, axis2=2) + 1e-300
    scatter += ridge[:, None, None] * np.eye(p)
    return [gap, np.linalg.solve(scatter, gap[:, :, None])[:, :, 0]]


def _gap(a: np.ndarray, b: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Empty space between the sets along w, for w of largest entry 1; negative if they overlap."""
    size = np.abs(w).max(axis=1)
    w = w / np.where(size > 0, size, 1.0)[:, None]
    high = np.einsum("rnp,rp->rn", a, w).min(axis=1)
    low = np.einsum("rnp,rp->rn", b, w).max(axis=1)
    return 0.5 * (high - low)


def _cutting_planes(
    a: np.ndarray, b: np.ndarray, start: np.ndarray, rounding: np.ndarray, exact: bool
) -> np.ndarray:
    R, n, p = a.shape
    m = b.shape[1]
    margins = np.zeros(R)
    points = np.concatenate([a, -b], axis=1)
    sign = np.concatenate([np.ones(n), -np.ones(m)])
    height = np.einsum("rnp,rp->rn", points, start)
    chosen = np.zeros((R, n + m), dtype=bool)
    depth = p + 2
    for side in (slice(0, n), slice(n, n + m)):
        _take_least(chosen[:, side], height[:, side], depth)
    active = np.arange(R)
    while len(active):
        bound, w, offset = _solve(points[active], sign, chosen[active])
        gap = _gap(a[active], b[active], w)
        slack = np.einsum("rnp,rp->rn", points[active], w) - offset[:, None] * sign
        missing = (slack < bound[:, None] - TOLERANCE) & ~chosen[active]
        apart = gap > rounding[active]
        hopeless = (bound <= TOLERANCE) & ~apart
        found = ~missing.any(axis=1) if exact else apart
        stuck = ~missing.any(axis=1)
        done = hopeless | found | stuck
        margins[active] = np.where(apart, gap, 0.0)
        go = np.flatnonzero(~done)
        fresh = chosen[active[go]]
        ranks = np.where(missing[go], slack[go], np.inf)
        for side in (slice(0, n), slice(n, n + m)):
            _take_least(fresh[:, side], ranks[:, side], depth)
        chosen[active[go]] = fresh
        active = active[go]
    return margins


def _take_least(chosen: np.ndarray, values: np.ndarray, count: int) -> None:
    """Mark in each row the ``count`` least finite values; changes ``chosen`` in place."""
    count = min(count, values.shape[1])
    columns = np.argpartition(values, count - 1, axis=1)[:, :count]
    rows = np.arange(len(values))[:, None]
    chosen[rows, columns] |= np.isfinite(values[rows, columns])


def _solve(
    points: np.ndarray, sign: np.ndarray, chosen: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Largest margin, normal and offset on the chosen points of each data set, in one program."""
    R, _, p = points.shape
    width = p + 2
    which, point = np.nonzero(chosen)
    # m − w·x + b·sign ≤ 0 for every row
    values = np.concatenate(
        [-points[which, point], sign[point][:, None], np.ones((len(which), 1))], axis=1
    )
    columns = which[:, None] * width + np.arange(width)
    indptr = np.arange(len(which) + 1) * width
    matrix = csr_array((values.ravel(), columns.ravel(), indptr), shape=(len(which), R * width))
    cost = np.zeros((R, width))
    cost[:, -1] = -1.0
    low = np.concatenate([-np.ones(p), [-np.inf, 0.0]])
    high = np.concatenate([np.ones(p), [np.inf, np.inf]])
    for method, feasible in SOLVERS:
        result = linprog(
            cost.ravel(),
            A_ub=matrix,
            b_ub=np.zeros(len(which)),
            bounds=np.stack([np.tile(low, R), np.tile(high, R)], axis=1),
            method=method,
            options={
                "primal_feasibility_tolerance": feasible,
                "dual_feasibility_tolerance": feasible,
            },
        )
        if result.status == 0:
            break
    if result.status != 0:
        raise ArithmeticError(f"HiGHS could not solve the separation program: {result.message}")
    x = result.x.reshape(R, width)
    return x[:, -1], x[:, :p], x[:, p]


# --------------------------------------------------------------------------------------------------
# What it means for two classes to be separated: one function for each criterion.


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
        vector = _gap_of_criteria(first, second)
    elif frame.exact is not None:
        vector = frame.exact(k, l)
    else:
        return 0
    apart = (first @ vector).min() - (second @ vector).max()
    return int(apart > 0) - int(apart < 0)


def _gap_of_criteria(first: np.ndarray, second: np.ndarray) -> np.ndarray:
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
    n, m, vector = len(first), len(second), _gap_of_criteria(first, second)
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


# --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ReducedFrame:
    """All replicates at one time.

    Attributes
    ----------
    means : ndarray (R, K, p), float64
    reach : ndarray (R, K, K)
        How far class k reaches from its mean toward class l, along ``direction``.
    direction : ndarray (K, K, p) or None
        Unit vectors from class l to class k; None for the gaps of each replicate's own means.
    """

    means: np.ndarray
    reach: np.ndarray
    direction: np.ndarray | None = None

    @cached_property
    def gaps(self) -> np.ndarray:
        """Distance of the class means along the direction, (R, K, K)."""
        gap = self.means[:, :, None] - self.means[:, None]
        if self.direction is not None:
            return np.einsum("rklp,klp->rkl", gap, self.direction)
        # scaled first, so that neither tiny nor huge gaps lose their squares
        size = np.abs(gap).max(axis=-1)
        unit = gap / np.where(size > 0, size, 1.0)[..., None]
        return size * np.linalg.norm(unit, axis=-1)


ReducedCriterion = Callable[[ReducedFrame], np.ndarray]
REDUCED: dict[str, ReducedCriterion] = {}


def reduced_criterion(name: str) -> Callable[[ReducedCriterion], ReducedCriterion]:
    """Register the form that a criterion takes on statistics, under the criterion's name."""

    def register(function: ReducedCriterion) -> ReducedCriterion:
        REDUCED[name] = function
        return function

    return register


def check_reducible(criterion: str, direction: Any) -> None:
    """Raise where statistics do not tell whether classes are separated."""
    if criterion not in REDUCED:
        raise need_samples("paths", f"criterion={criterion!r}")
    given = not isinstance(direction, str)
    if criterion in DIRECTED and (given or direction == "initial"):
        what = "a direction given as an array" if given else "direction='initial'"
        raise need_samples("paths", f"{what} (statistics know 'own' and 'ensemble')")


@reduced_criterion("projection")
def projection_of_reduced_criteria(frame: ReducedFrame) -> np.ndarray:
    """The gap of the means less what both classes reach into it."""
    return frame.gaps - (frame.reach + frame.reach.swapaxes(1, 2))


@reduced_criterion("nearest_center")
def nearest_center_of_reduced_criteria(frame: ReducedFrame) -> np.ndarray:
    """Half the gap of the means less the farther of the two reaches."""
    return 0.5 * frame.gaps - np.maximum(frame.reach, frame.reach.swapaxes(1, 2))
