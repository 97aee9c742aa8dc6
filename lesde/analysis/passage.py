"""First passage of a decaying curve through a threshold, with censored replicates."""

from __future__ import annotations

import numpy as np
from scipy import stats

__all__ = ["first_passage", "median_interval"]


def first_passage(x: np.ndarray, y: np.ndarray, threshold: float) -> np.ndarray:
    """When each replicate first falls to a threshold, by interpolation of log y between frames.

    Parameters
    ----------
    x : ndarray, shape (T,)
    y : ndarray, shape (R, T)
        Non-negative, NaN where missing (passed over).
    threshold : float

    Returns
    -------
    ndarray, shape (R,)
        The first *downward* crossing: from a frame above the threshold to the next one at or
        below it. A replicate that is never above it was there from its first frame. inf: still
        above it at its last frame and at all before (censored); NaN: no values.
    """
    result = np.full(len(y), np.nan)
    for r, row in enumerate(y):
        frames = np.flatnonzero(np.isfinite(row))
        if len(frames) == 0:
            continue
        above = row[frames] > threshold
        if not above.any():
            result[r] = x[frames[0]]
            continue
        down = np.flatnonzero(above[:-1] & ~above[1:])
        if len(down) == 0:
            result[r] = np.inf
            continue
        a, b = frames[down[0]], frames[down[0] + 1]
        # An exact 0 is not reached by a straight line of log y: it counts from its own frame.
        share = np.log(row[a] / threshold) / np.log(row[a] / row[b]) if row[b] > 0 else 1.0
        result[r] = x[a] + share * (x[b] - x[a])
    return result


def median_interval(
    values: np.ndarray, end: float, confidence: float
) -> tuple[float, float, float, float]:
    """Median of censored values, its distribution-free interval, and the share not censored.

    Parameters
    ----------
    values : ndarray, shape (R,)
        inf where censored, NaN where missing.
    end : float
        Where the record ends: a censored value is beyond it, so a limit that falls on one is at
        least that.
    confidence : float

    Returns
    -------
    median, lower, upper, reached : float
        The median is NaN where half or more are censored. The interval runs between order
        statistics, chosen by the binomial distribution so that it covers at least ``confidence``;
        ``upper`` is inf where that order statistic is censored, and both are NaN with too few
        replicates (fewer than 6 at 95%).
    """
    values = np.sort(values[~np.isnan(values)])
    n = len(values)
    if n == 0:
        return np.nan, np.nan, np.nan, np.nan
    reached = float(np.isfinite(values).mean())
    upper_middle = values[n // 2]
    median = (values[(n - 1) // 2] + upper_middle) / 2 if np.isfinite(upper_middle) else np.nan
    # P(Binomial(n, 1/2) < k) < (1 − confidence)/2, so that (values[k−1], values[n−k]) covers the
    # median.
    k = int(stats.binom.ppf((1 - confidence) / 2, n, 0.5))
    if k < 1:
        return float(median), np.nan, np.nan, reached
    return float(median), float(min(values[k - 1], end)), float(values[n - k]), reached
