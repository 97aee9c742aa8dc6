"""Tail indices: the speed at which elasticity dies out.

α ~ t^{−r}. With r < 1 its integral A grows without bound and the classes separate; with r > 1 it does
not. Two estimates, both by generalised least squares over a tail window:

* from the increments of A, fitted by those of a power law, ΔA_i = c ∫ (t + s)^{−r} dt over interval i. It is
  consistent for every r, and for a rate of either sign. The offset s of the clock may be given or
  fitted; over a window of a decade a wrong one moves r by as much as s/t there;
* the slope of logarithms r = 1 − d log A / d log t of Zhang, Wang, Su (NeurIPS 2021, arXiv
  2110.05960). An A that only grows has a slope of at least 0, so this one never passes 1, and it
  approaches r slowly because A includes the time before the window.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq, minimize_scalar
from scipy.special import exprel

INDICES = np.linspace(-5.0, 12.0, 171)
"""The search for an index; one at an end is none."""
OFFSETS = 17
"""Offsets on the grid from 0 to the last time of the window."""
POLISH = 4


@dataclass(frozen=True)
class TailEstimate:
    """A tail index, with the weights of its variance."""

    index: float  # r, NaN where it cannot be estimated
    weights: np.ndarray  # derivative of r with respect to the increment of A in every interval
    reason: str = ""  # why the index is NaN
    offset: float = np.nan  # s of the rate ~ (t + s)^{−r}
    gain: float = np.nan  # by how much an offset, at its best, lowers the sum of weighted squares
    # Where the offset is left to the data: least and greatest index with which some offset has a sum of weighted squares
    # at most so far above the least.
    limits: Callable[[float], tuple[float, float]] | None = None


def tail_window(times: np.ndarray, tail: float | tuple[float, float] | None) -> tuple[float, float]:
    """First and last time of the tail; by default the second half of the positive times in log t."""
    positive = times[times > 0]
    if tail is None:
        if len(positive) < 2:
            return np.nan, np.nan
        return float(np.sqrt(positive[0] * positive[-1])), float(positive[-1])
    return tail if isinstance(tail, tuple) else (tail, float(times[-1]))


def _inside(times: np.ndarray, window: tuple[float, float]) -> np.ndarray:
    """Mask of the intervals in the window."""
    slack = 1e-9 * abs(window[1])
    return (times[:-1] >= window[0] - slack) & (times[1:] <= window[1] + slack) & (times[:-1] > 0)


def _power_integral(start: np.ndarray, end: np.ndarray, index: np.ndarray | float) -> np.ndarray:
    """∫ s^{−r} ds over each interval, also at r = 1."""
    length = np.log(end / start)
    return start ** (1 - index) * length * exprel((1 - index) * length)


def _highest(
    function: Callable[[float], float], values: np.ndarray, grid: np.ndarray, tolerance: float
) -> tuple[float, float]:
    """Place and value of the maximum of a function with these values on a grid, at its ends or between."""
    i = int(np.argmax(values))
    bounds = grid[max(i - 1, 0)], grid[min(i + 1, len(grid) - 1)]
    found = minimize_scalar(
        lambda x: -function(x), bounds=bounds, method="bounded",
        options={"xatol": tolerance * abs(bounds[1])},
    )  # fmt: skip
    return max((float(grid[i]), float(values[i])), (found.x, -found.fun), key=lambda at: at[1])


def power_tail(
    times: np.ndarray,
    increments: np.ndarray,
    variances: np.ndarray,
    window: tuple[float, float],
    threshold: float,
    offset: float | None = 0.0,
) -> TailEstimate:
    """r from the increments ΔA of the intervals and their variances.

    The integral over the tail must be ``threshold`` standard errors from zero. Without an ``offset`` the one between 0 and
    the end of the window that fits best is taken, if by Akaike's criterion it fits better than none.
    """
    weights = np.zeros(len(increments))
    use = _inside(times, window) & np.isfinite(variances) & (variances > 0)
    if use.sum() < 3:
        return TailEstimate(np.nan, weights, "fewer than 3 intervals of the tail can be used")
    y, w = increments[use], 1.0 / variances[use]
    scale = float(np.sqrt(times[1:][use][-1] * times[:-1][use][0]))
    start, end = times[:-1][use] / scale, times[1:][use] / scale

    def score(index: np.ndarray | float, offset: np.ndarray | float) -> np.ndarray:
        """Less the weighted squares that the best power law of each index and offset leaves."""
        r, s = np.asarray(index)[..., None], np.asarray(offset)[..., None]
        g = _power_integral((start + s) / (1 + s), (end + s) / (1 + s), r)
        c = g @ (w * y) / (g**2 @ w)
        return -((y - c[..., None] * g) ** 2 @ w)

    def best_index(s: float) -> tuple[float, float]:
        """The best index at an offset, and its score."""
        return _highest(lambda r: float(score(r, s)), score(INDICES, s), INDICES, 1e-8)

    offsets = np.array([0.0 if offset is None else offset / scale])
    if offset is None:
        offsets = np.append(offsets, np.geomspace(start[0] / 100, float(end[-1]), OFFSETS - 1))
    # Indices of the grid are too far apart to compare offsets.
    profile = np.array([best_index(s)[1] for s in offsets])
    if profile.max() + w @ y**2 < threshold**2:
        return TailEstimate(
            np.nan, weights, "the rate there does not differ significantly from zero"
        )
    s, most = float(offsets[0]), float(profile[0])
    if offset is None:
        best, most = _highest(lambda s: best_index(s)[1], profile, offsets, 1e-6)
        if most - profile[0] > 2:  # Akaike's price of a parameter
            s = best
    index, _ = best_index(s)
    if not INDICES[1] < index < INDICES[-2]:
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
            best = _highest(lambda s: float(score(r, s)), score(r, offsets), offsets, 1e-3)
            return best[1] - (most - reach)

        found = []
        for step in (-1, 1):
            inner, limit = index, step * np.inf
            for r in INDICES[(INDICES - index) * step > 0][::step]:
                if score(r, offsets).max() < most - reach and above(r) < 0:
                    limit = brentq(above, inner, r, xtol=1e-6) if above(inner) > 0 else inner
                    break
                inner = r
            found.append(float(limit))
        return found[0], found[1]

    return TailEstimate(index, weights, "", s * scale, most - profile[0], limits)


def log_slope(
    times: np.ndarray, increments: np.ndarray, variances: np.ndarray, window: tuple[float, float]
) -> TailEstimate:
    """1 − d log|A| / d log t, by least squares weighted with the covariance of Â, a random walk."""
    weights = np.zeros(len(increments))
    inside = _inside(times, window)
    at = np.flatnonzero(np.append(False, inside) | np.append(inside, False))
    at = at[at > 0]
    if len(at) < 3:
        return TailEstimate(np.nan, weights, "fewer than 3 times of the tail can be used")
    before = variances[: at[-1]]
    if not np.isfinite(before).all() or not (before > 0).all():
        return TailEstimate(np.nan, weights, "the integral has no finite standard error")
    A = np.cumsum(increments)[at - 1]
    if not (A > 0).all() and not (A < 0).all():
        return TailEstimate(np.nan, weights, "the integral changes sign there")
    accumulated = np.cumsum(variances)[at - 1]
    walk = np.minimum.outer(accumulated, accumulated)
    X = np.stack([np.ones(len(A)), np.log(times[at])])
    y = np.log(np.abs(A))
    solved = np.linalg.solve(walk, (X * A).T).T * A  # Xᵀ W, W the inverse covariance of log A
    inverse = np.linalg.inv(solved @ X.T)
    estimate = inverse @ solved @ y
    # W depends on A too, which matters where A is no pure power.
    residual, side = y - estimate @ X, inverse[1] @ X
    pulls = np.linalg.solve(walk, np.stack([A * residual, A * side], axis=1))
    slope = (inverse @ solved)[1] / A + side * pulls[:, 0] + residual * pulls[:, 1]
    reach = at[:, None] > np.arange(len(increments))
    return TailEstimate(1.0 - float(estimate[1]), -slope @ reach)
