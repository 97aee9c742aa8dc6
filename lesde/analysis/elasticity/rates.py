"""Tail indices: how fast elasticity dies out.

α ~ t^{−r}. With r < 1 its integral A grows without bound and the classes separate; with r > 1 it does
not. Two estimates, both by generalised least squares over a tail window:

* from the increments of A, fitted by those of a power law, ΔA_i = c ∫ (t + s)^{−r} dt over interval i. It is
  consistent for every r, and for a rate of either sign. The offset s of the clock may be given or
  left to the data; over a window of a decade a wrong one moves r by as much as s/t there;
* the slope of logarithms r = 1 − d log A / d log t of Zhang, Wang, Su (NeurIPS 2021, arXiv
  2110.05960). An A that only grows has a slope of at least 0, so this one never passes 1, and it
  approaches r slowly because A remembers what came before the window.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.linalg import cho_solve_banded, cholesky_banded
from scipy.optimize import brentq, minimize_scalar
from scipy.special import exprel

__all__ = [
    "MINIMUM_INTERVALS",
    "TailEstimate",
    "log_slope",
    "power_tail",
    "smooth_rates",
    "tail_window",
]


# --------------------------------------------------------------------------------------------------
# Smooth rates from noisy ones: a penalised least-squares smoother, averaged over its amount.

MINIMUM_INTERVALS = 5
ORDER = 2
# log λ from raw rates, relative to the least precision, to nearly a straight line, relative to the greatest (n
# intervals, order 2: λ ~ n⁴). Further up all curves are lines and equally likely: weight there would hide curvature
# that is weaker than the noise, and bands would cover less than they say.
LEAST, MOST = -8.0, -8.0
COARSE, POINTS = 2.0, 13
"""Distance of points over all of that, and number of points over where the weight is found to be."""


def smooth_rates(values: np.ndarray, precision: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Smooth one or several rates jointly.

    Parameters
    ----------
    values : ndarray, shape (interval, rate)
        Raw rates.
    precision : ndarray, shape (interval, rate, rate)
        Their inverse covariance in each interval; zero in directions the data do not tell.

    Returns
    -------
    smooth : ndarray, shape (interval, rate)
    covariance : ndarray, shape (interval, rate, rate)
        Of the smooth rates, interval by interval.
    """
    n, q = values.shape
    known = [precision[precision[:, j, j] > 0, j, j] for j in range(q)]
    typical = np.array([np.median(p) if len(p) else 1.0 for p in known])
    least, most = (
        np.array([end(p) / unit if len(p) else 1.0 for p, unit in zip(known, typical, strict=True)])
        for end in (np.min, np.max)
    )
    penalties = _penalty_bands(n, q)
    data = _block_bands(precision)
    right = np.einsum("ijk,ik->ij", precision, values).ravel()

    # So little that it matters only where neither data nor penalty hold a rate.
    held = data.copy()
    held[-1] += 1e-12 * np.tile(typical, n)

    def factor(log_penalty: np.ndarray) -> np.ndarray:
        bands = held + np.einsum("j,jan->an", typical * np.exp(log_penalty), penalties)
        return cholesky_banded(bands, check_finite=False)

    def criterion(log_penalty: np.ndarray) -> float:
        root = factor(log_penalty)
        quadratic = right @ cho_solve_banded((root, False), right, check_finite=False)
        return float(2 * np.log(root[-1]).sum() - (n - ORDER) * log_penalty.sum() - quadratic)

    def posterior(
        low: np.ndarray, high: np.ndarray, number: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """The midpoints of a box's cells that matter, and their weights."""
        axes = [
            a + (b - a) * (np.arange(m) + 0.5) / m
            for a, b, m in zip(low, high, number, strict=True)
        ]
        grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, q)
        score = np.array([criterion(point) for point in grid])
        weight = np.exp(-0.5 * (score - score.min()))
        keep = weight > 1e-4
        return grid[keep], weight[keep] / weight[keep].sum()

    # The posterior of log λ on a grid over all that could be, then on a finer one over where its weight is.
    low, high = np.log(least) + LEAST, np.log(most) + 2 * ORDER * np.log(n) + MOST
    number = np.ceil((high - low) / COARSE).astype(int)
    grid, _ = posterior(low, high, number)
    low, high = np.maximum(low, grid.min(0) - COARSE), np.minimum(high, grid.max(0) + COARSE)
    grid, weight = posterior(low, high, np.full(q, POINTS))
    curves, spread = [], np.zeros((n, q, q))
    for w, point in zip(weight, grid, strict=True):
        root = factor(point)
        curves.append(cho_solve_banded((root, False), right).reshape(n, q))
        spread += w * _diagonal_blocks(root, n, q)
    smooth = np.einsum("w,wij->ij", weight, np.stack(curves))
    apart = np.stack(curves) - smooth
    return smooth, spread + np.einsum("w,wij,wik->ijk", weight, apart, apart)


def _diagonal_blocks(root: np.ndarray, n: int, q: int) -> np.ndarray:
    full = cho_solve_banded((root, False), np.eye(n * q), check_finite=False).reshape(n, q, n, q)
    return np.stack([full[i, :, i] for i in range(n)])


def _block_bands(blocks: np.ndarray) -> np.ndarray:
    """Upper bands of the block-diagonal precision, with room for the penalty's bandwidth 2q."""
    n, q = blocks.shape[:2]
    bands = np.zeros((ORDER * q + 1, n * q))
    for a in range(q):
        for c in range(a, q):
            bands[ORDER * q - (c - a), c::q] = blocks[:, a, c]
    return bands


def _penalty_bands(n: int, q: int) -> np.ndarray:
    """Upper bands of DᵀD for every rate, D the second differences, rates interleaved."""
    D = np.diff(np.eye(n), n=ORDER, axis=0)
    square = D.T @ D
    bands = np.zeros((q, ORDER * q + 1, n * q))
    for j in range(q):
        for lag in range(ORDER + 1):
            bands[j, ORDER * q - lag * q, j + lag * q :: q] = np.diagonal(square, lag)
    return bands


# --------------------------------------------------------------------------------------------------

SEARCH = (-5.0, 12.0)
POLISH = 4
OFFSETS = 17
"""Offsets on the grid from 0 to the last time of the window."""


@dataclass(frozen=True)
class TailEstimate:
    """A tail index and what its variance is made of.

    Attributes
    ----------
    index : float
        r, NaN where it cannot be estimated.
    weights : ndarray, shape (interval,)
        Derivative of r with respect to the increment of A in every interval.
    reason : str
        Why the index is NaN, else empty.
    offset : float
        s of the rate ~ (t + s)^{−r}.
    gain : float
        By how much an offset, at its best, lowers the sum of weighted squares.
    limits : callable or None
        Where the offset is left to the data: least and greatest index with which some offset has a sum of weighted squares at
        most so far above the least.
    """

    index: float
    weights: np.ndarray
    reason: str = ""
    offset: float = 0.0
    gain: float = 0.0
    limits: Callable[[float], tuple[float, float]] | None = None


def tail_window(times: np.ndarray, tail: float | tuple[float, float] | None) -> tuple[float, float]:
    """First and last time of the tail; by default the second half of the positive times in log t."""
    positive = times[times > 0]
    if tail is None:
        if len(positive) < 2:
            return np.nan, np.nan
        return float(np.sqrt(positive[0] * positive[-1])), float(positive[-1])
    if isinstance(tail, tuple):
        return tail
    return tail, float(times[-1])


def _inside(times: np.ndarray, window: tuple[float, float]) -> np.ndarray:
    slack = 1e-9 * abs(window[1])
    return (times[:-1] >= window[0] - slack) & (times[1:] <= window[1] + slack) & (times[:-1] > 0)


def _power_integral(start: np.ndarray, end: np.ndarray, index: np.ndarray | float) -> np.ndarray:
    """∫ s^{−r} ds over each interval, also at r = 1."""
    length = np.log(end / start)
    return start ** (1 - index) * length * exprel((1 - index) * length)


def power_tail(
    times: np.ndarray,
    increments: np.ndarray,
    variances: np.ndarray,
    window: tuple[float, float],
    threshold: float,
    offset: float | None = 0.0,
) -> TailEstimate:
    """r from the increments of A.

    Parameters
    ----------
    times : ndarray, shape (time,)
    increments, variances : ndarray, shape (time − 1,)
        ΔA and its variance per interval.
    window : (float, float)
    threshold : float
        How many standard errors the integral over the tail must be from zero.
    offset : float or None
        s, or None for the one between 0 and the end of the window that fits best, if by Akaike's criterion it fits
        better than none.
    """
    weights = np.zeros(len(increments))
    use = _inside(times, window) & np.isfinite(variances) & (variances > 0)
    if use.sum() < 3:
        return TailEstimate(np.nan, weights, "fewer than 3 intervals of the tail can be used")
    y, w = increments[use], 1.0 / variances[use]
    scale = float(np.sqrt(times[1:][use][-1] * times[:-1][use][0]))
    start, end = times[:-1][use] / scale, times[1:][use] / scale

    def gain(index: np.ndarray | float, offset: np.ndarray | float) -> np.ndarray:
        """Fall of the weighted squares by the best power law of each index and offset."""
        r, s = np.broadcast_arrays(index, offset)
        s = s[..., None]
        unit = 1 + s  # of the same order at all offsets
        g = _power_integral((start + s) / unit, (end + s) / unit, r[..., None])
        return (g @ (w * y)) ** 2 / (g**2 @ w)

    last = float(end[-1])
    offsets = np.array([0.0 if offset is None else offset / scale])
    if offset is None:
        offsets = np.append(offsets, np.geomspace(start[0] / 100, last, OFFSETS - 1))
    grid = np.linspace(*SEARCH, 171)
    gains = gain(grid[:, None], offsets)
    tops = gains.argmax(0)
    if gains.max() < threshold**2:
        return TailEstimate(np.nan, weights, "the rate there cannot be told from zero")

    def best_index(s: float) -> tuple[float, float]:
        """The best index at an offset, and its gain; NaN at the ends of the search."""
        near = slice(*np.searchsorted(offsets, [s, s], "right") + np.array([-1, 1]))
        i, j = tops[near].min(), tops[near].max()
        if i == 0 or j == len(grid) - 1:
            return np.nan, float(gain(grid[j], s))
        found = minimize_scalar(
            lambda r: -float(gain(r, s)), bounds=(grid[i - 1], grid[j + 1]), method="bounded",
            options={"xatol": 1e-8},
        )  # fmt: skip
        return float(found.x), -float(found.fun)

    def best_offset(r: float) -> tuple[float, float]:
        """The best offset at an index, and its gain."""
        return _highest(lambda s: float(gain(r, s)), gain(r, offsets), offsets, 1e-3)

    none = best_index(float(offsets[0]))
    s, most = offsets[0], none[1]
    if offset is None:
        # Indices of the grid are too far apart to compare offsets by.
        profile = np.array([best_index(float(s))[1] for s in offsets])
        s, most = _highest(lambda s: best_index(s)[1], profile, offsets, 1e-6)
    if most - none[1] <= 2:  # Akaike's price of a parameter
        s = offsets[0]
    index = best_index(float(s))[0]
    if np.isnan(index):
        return TailEstimate(np.nan, weights, "no power law fits")
    d = 1e-5
    from_, to = start + s, end + s
    for _ in range(POLISH):  # minimising finds half the digits; the gradient's root has all
        g = _power_integral(from_, to, index)
        c = (w * y * g).sum() / (w * g * g).sum()
        slope = c * (_power_integral(from_, to, index + d) - _power_integral(from_, to, index - d))
        J = np.stack([g, slope / (2 * d)])
        weights[use] = np.linalg.solve((J * w) @ J.T, J * w)[1]
        index += float(weights[use] @ (y - c * g))
    if offset is not None:
        return TailEstimate(index, weights, offset=offset)

    def limits(reach: float) -> tuple[float, float]:
        def above(r: float) -> float:
            return best_offset(r)[1] - (most - reach)

        found = []
        for step in (-1, 1):
            outward = (grid - index) * step > 0
            outer, seen = grid[outward][::step], gains.max(1)[outward][::step] >= most - reach
            # Between offsets of the grid the best one may reach further than the last index seen.
            outer = outer[int(np.flatnonzero(seen)[-1]) if seen.any() else 0 :]
            inner, limit = index, step * np.inf
            for r in outer:
                if above(r) < 0:
                    limit = brentq(above, inner, r, xtol=1e-6) if above(inner) > 0 else inner
                    break
                inner = r
            found.append(float(limit))
        return found[0], found[1]

    return TailEstimate(index, weights, "", float(s) * scale, most - none[1], limits)


def _highest(
    function: Callable[[float], float], values: np.ndarray, grid: np.ndarray, tolerance: float
) -> tuple[float, float]:
    """Where a function with these values on a grid is highest, at its ends or between, and how high."""
    i = int(np.argmax(values))
    low, high = grid[max(i - 1, 0)], grid[min(i + 1, len(grid) - 1)]
    found = minimize_scalar(
        lambda x: -function(x), bounds=(low, high), method="bounded",
        options={"xatol": tolerance * high},
    )  # fmt: skip
    own = function(float(grid[i]))
    return (float(found.x), -float(found.fun)) if -found.fun > own else (float(grid[i]), own)


def log_slope(
    times: np.ndarray, increments: np.ndarray, variances: np.ndarray, window: tuple[float, float]
) -> TailEstimate:
    """1 − d log|A| / d log t, by least squares weighted with the covariance of Â, a random walk.

    Arguments as for `power_tail`.
    """
    weights = np.zeros(len(increments))
    use = np.concatenate([[False], _inside(times, window)])
    use[:-1] |= use[1:]
    use[0] = False
    if use.sum() < 3:
        return TailEstimate(np.nan, weights, "fewer than 3 times of the tail can be used")
    last = int(np.flatnonzero(use)[-1])
    if not np.isfinite(variances[:last]).all() or not (variances[:last] > 0).all():
        return TailEstimate(np.nan, weights, "the integral has no finite standard error")
    A = np.cumsum(increments)[np.flatnonzero(use) - 1]
    if not (A > 0).all() and not (A < 0).all():
        return TailEstimate(np.nan, weights, "the integral changes sign there")
    accumulated = np.cumsum(variances)[np.flatnonzero(use) - 1]
    walk = np.minimum.outer(accumulated, accumulated)
    X = np.stack([np.ones(len(A)), np.log(times[use])])
    y = np.log(np.abs(A))
    solved = np.linalg.solve(walk, (X * A).T).T * A  # Xᵀ W, W the inverse covariance of log A
    inverse = np.linalg.inv(solved @ X.T)
    estimate = inverse @ solved @ y
    # W depends on A too, which matters where A is no pure power.
    residual, side = y - estimate @ X, inverse[1] @ X
    pulls = np.linalg.solve(walk, np.stack([A * residual, A * side], axis=1))
    slope = (inverse @ solved)[1] / A + side * pulls[:, 0] + residual * pulls[:, 1]
    reach = np.flatnonzero(use)[:, None] > np.arange(len(increments))
    return TailEstimate(1.0 - float(estimate[1]), -slope @ reach)
