"""Linear separability of two sets of points by linear programs, many data sets at once."""

from __future__ import annotations

import numpy as np
from scipy.optimize import linprog
from scipy.sparse import csr_array

from lesde.checks import power_of_two

# in units of the root-mean-square spread
TOLERANCE = 1e-9
# HiGHS's methods and tolerances, the finest it takes first; it may end just short of so small a one
SOLVERS = (("highs", 1e-10), ("highs-ipm", 1e-10), ("highs", 1e-7))
# data sets that share one call: a call costs 6 ms whatever it solves, and a few small programs little more
BATCH = 32
LARGEST_SCATTER = 256


def linear_margins(first: np.ndarray, second: np.ndarray, exact: bool = False) -> np.ndarray:
    """Margin by which a hyperplane separates two sets of points, for R data sets.

    Maximises m subject to w·a − b ≥ m for all a of the first set, w·x − b ≤ −m for all x of the
    second, and |w_j| ≤ 1. The maximum is half the distance of the convex hulls in the sum norm, and
    positive if and only if the sets are linearly separable.

    Sets that the mean gap or Fisher's discriminant separates need no program unless the margin is wanted. The
    others start from the few points that lie deepest in the other set, to which those that lie lowest are
    added until the sets are seen to be inseparable, or separate on all points.

    From points (R, n, p) and (R, m, p): positive where separable, else 0, shape (R,). Unless ``exact``
    only the sign of the result is meaningful. Separations narrower than 1e-9 of the root-mean-square
    spread of the points (1e-6 where HiGHS does not reach its finest tolerance) can be missed, and
    those within the rounding of the points are none.
    """
    both = np.concatenate([first, second], axis=1)
    # by a power of two, so that neither tiny nor huge points lose their squares
    power = power_of_two(np.abs(both).max(axis=(1, 2)))
    both = both / power[:, None, None]
    both = both - both.mean(axis=1, keepdims=True)
    unit = np.sqrt((both**2).sum(axis=2).mean(axis=1))
    unit = np.where(unit > 0, unit, 1.0)
    a, b = np.split(both / unit[:, None, None], [first.shape[1]], axis=1)
    # points are at most 1 before they are centred and divided, and p of them are added
    p = a.shape[2]
    rounding = 4 * p * np.finfo(np.float64).eps * (1 + 1 / unit)
    directions = _discriminants(a, b)
    margins = np.maximum.reduce([_gap(a, b, w, rounding) for w in directions])
    undecided = np.arange(len(a)) if exact else np.flatnonzero(margins <= 0)
    points, sides = (
        np.concatenate([a, -b], axis=1),
        np.repeat([1.0, -1.0], [a.shape[1], b.shape[1]]),
    )
    for some in (undecided[i : i + BATCH] for i in range(0, len(undecided), BATCH)):
        height = np.einsum("rnp,rp->rn", points[some], directions[-1][some])
        chosen = np.empty((len(some), 0), dtype=int)
        while len(some):
            chosen = np.concatenate(
                [chosen, *(_lowest(height, sides == s, p + 2) for s in (1, -1))], 1
            )
            bound, w, offset = _solve(points[some[:, None], chosen], sides[chosen[0]])
            gap = _gap(a[some], b[some], w, rounding[some])
            margins[some] = np.maximum(margins[some], gap)
            height = np.einsum("rnp,rp->rn", points[some], w) - offset[:, None] * sides
            np.put_along_axis(height, chosen, np.inf, axis=1)
            go = (bound > TOLERANCE) & np.isfinite(height).any(axis=1)
            go &= gap < bound - TOLERANCE if exact else margins[some] <= 0
            some, chosen, height = some[go], chosen[go], height[go]
    return margins * unit * power


def _discriminants(a: np.ndarray, b: np.ndarray) -> list[np.ndarray]:
    """The mean gap, and Fisher's discriminant where it is cheap; each (R, p)."""
    gap = a.mean(axis=1) - b.mean(axis=1)
    p = a.shape[2]
    if p > LARGEST_SCATTER:
        return [gap]
    away = np.concatenate([x - x.mean(axis=1, keepdims=True) for x in (a, b)], axis=1)
    scatter = away.swapaxes(1, 2) @ away
    ridge = 1e-9 * np.trace(scatter, axis1=1, axis2=2) + 1e-300
    scatter += ridge[:, None, None] * np.eye(p)
    return [gap, np.linalg.solve(scatter, gap[:, :, None])[:, :, 0]]


def _lowest(height: np.ndarray, of_side: np.ndarray, count: int) -> np.ndarray:
    """Indices (R, ·) of the ``count`` points of a side that lie lowest, in each data set."""
    at = np.flatnonzero(of_side)
    last = min(count, len(at))
    return at[np.argpartition(height[:, at], last - 1, axis=1)[:, :last]]


def _gap(a: np.ndarray, b: np.ndarray, w: np.ndarray, rounding: np.ndarray) -> np.ndarray:
    """Half the empty space between the sets along w of largest entry 1; 0 if they overlap or touch."""
    size = np.abs(w).max(axis=1)
    w = w / np.where(size > 0, size, 1.0)[:, None]
    high = np.einsum("rnp,rp->rn", a, w).min(axis=1)
    low = np.einsum("rnp,rp->rn", b, w).max(axis=1)
    gap = 0.5 * (high - low)
    return np.where(gap > rounding, gap, 0.0)


def _solve(points: np.ndarray, sides: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Largest margin, its normal and its offset, of each data set, in one block-diagonal program.

    From points (R, n, p), those of the second set with their sign turned, and sides ±1 (n,).
    """
    R, n, p = points.shape
    # m − w·x + b·side ≤ 0 for every row
    side, one = np.broadcast_to(sides[:, None], (R, n, 1)), np.ones((R, n, 1))
    values = np.concatenate([-points, side, one], axis=2)
    columns = np.broadcast_to(np.arange(R * (p + 2)).reshape(R, 1, -1), values.shape)
    starts = np.arange(R * n + 1) * (p + 2)
    matrix = csr_array((values.ravel(), columns.ravel(), starts), shape=(R * n, R * (p + 2)))
    cost = np.tile(np.r_[np.zeros(p + 1), -1.0], R)
    bounds = np.tile([*[(-1, 1)] * p, (-np.inf, np.inf), (0, np.inf)], (R, 1))
    for method, tolerance in SOLVERS:
        names = ("primal_feasibility_tolerance", "dual_feasibility_tolerance")
        options = dict.fromkeys(names, tolerance)
        result = linprog(cost, matrix, np.zeros(R * n), None, None, bounds, method, options=options)
        if result.status == 0:
            x = result.x.reshape(R, p + 2)
            return x[:, -1], x[:, :p], x[:, p]
    raise ArithmeticError(f"HiGHS could not solve the separation program: {result.message}")
