"""Linear separability of two sets of points by linear programs, many data sets at once."""

from __future__ import annotations

import numpy as np
from scipy.optimize import linprog
from scipy.sparse import csr_array

from lesde.checks import power_of_two

__all__ = ["linear_margins"]

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
    lie deepest in the other set: if these cannot be separated, the sets cannot. Otherwise the points on
    the wrong side of their plane are added and the program is solved again. A positive answer is checked
    on all points. Programs of several data sets are solved as one block-diagonal program by HiGHS.

    From points (R, n, p) and (R, m, p): positive where separable, else 0, shape (R,). Unless ``exact``
    only the sign of the result is meaningful. Separations narrower than 1e-9 of the root-mean-square
    spread of the points (1e-6 where HiGHS does not reach its finest tolerance) can be missed, and
    those within the rounding of the points are none.
    """
    both = np.concatenate([first, second], axis=1)
    # by a power of two, so that neither tiny nor huge points lose their squares
    power = power_of_two(np.abs(both).max(axis=(1, 2)))
    first, second, both = (x / power[:, None, None] for x in (first, second, both))
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
    return margins * unit * power


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
