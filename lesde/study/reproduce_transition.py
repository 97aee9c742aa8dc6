"""Where a quantity measured in trials at several levels crosses a value, with an interval."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.stats import t as student

__all__ = ["Crossing", "crossing"]


class Crossing(NamedTuple):
    """The level at which a mean over trials crosses a target.

    ``value`` is NaN where it does not cross between the levels. ``lower`` and ``upper`` are −inf and inf where the
    interval goes beyond the levels, and NaN where no level is in it.
    """

    value: float
    lower: float
    upper: float

    @property
    def bounded(self) -> bool:
        """Whether both ends of the interval lie between the levels."""
        return bool(np.isfinite([self.lower, self.upper]).all())


def crossing(
    levels: np.ndarray, values: np.ndarray, target: float = 0.0, confidence: float = 0.95
) -> Crossing:
    """The level at which the mean of a falling quantity is at the target.

    Parameters
    ----------
    levels : array (L,)
        Increasing.
    values : array (trial, L)
        One trial's values at all levels; trials are independent, the values of one need not be.
    target : float
    confidence : float
        Of the interval.

    Returns
    -------
    Crossing

    Notes
    -----
    Between levels, values are interpolated linearly, each trial's on its own. The estimate is where the means over trials
    fall through the target; of several such places, that nearest to where their isotonic regression does. The interval holds every level at which a t-test over trials of the interpolated
    values does not reject the target (Fieller's theorem, piece by piece), and what lies between such levels. For normal values
    that test is exact however few trials there are, but for the error of interpolating.

    Raises
    ------
    ValueError
        With fewer than two levels or trials, or shapes that do not fit.
    """
    x, y = np.asarray(levels, dtype=np.float64), np.asarray(values, dtype=np.float64) - target
    _check(x, y)
    quantile = float(student.ppf((1 + confidence) / 2, len(y) - 1))
    mean, covariance = y.mean(0), np.atleast_2d(np.cov(y.T)) * (quantile**2 / len(y))
    value = _where_zero(x, mean)
    kept = [
        (x[i] + share * (x[i + 1] - x[i]))
        for i in range(len(x) - 1)
        for share in _kept(mean[i : i + 2], covariance[i : i + 2, i : i + 2])
    ]
    if not kept:
        return Crossing(value, np.nan, np.nan)
    lower = -np.inf if min(kept) == x[0] else float(min(kept))
    upper = np.inf if max(kept) == x[-1] else float(max(kept))
    return Crossing(value, lower, upper)


def _check(levels: np.ndarray, values: np.ndarray) -> None:
    if levels.ndim != 1 or len(levels) < 2 or (np.diff(levels) <= 0).any():
        raise ValueError("levels must be at least two increasing numbers.")
    if values.ndim != 2 or values.shape[1] != len(levels) or len(values) < 2:
        raise ValueError(
            f"values must be of shape (trial, {len(levels)}) with at least two trials; got {values.shape}."
        )


def _kept(mean: np.ndarray, spread: np.ndarray) -> list[float]:
    """Ends of the shares of the way between two levels where the square of the mean is at most its spread."""
    # Both are quadratic in the share: the difference is positive where the target is rejected.
    step = np.array([-1.0, 1.0])
    a = mean[1] ** 2 + mean[0] ** 2 - 2 * mean[0] * mean[1] - step @ spread @ step
    b = 2 * (mean[0] * (mean[1] - mean[0]) - spread[0] @ step)
    c = mean[0] ** 2 - spread[0, 0]
    root = b * b - 4 * a * c
    # Without spread the parabola touches zero, and rounding must not lift it off.
    root = np.sqrt(root) if root > 0 else (0.0 if root > -1e-9 * b * b else np.nan)
    # The form that does not cancel: q/a and c/q.
    q = -(b + np.copysign(root, b)) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        roots = np.divide([q, c], [a, q])
    inside = [float(share) for share in roots if 0 <= share <= 1]
    ends = [share for share in (0.0, 1.0) if a * share**2 + b * share + c <= 0]
    return inside + ends


def _falling(values: np.ndarray) -> np.ndarray:
    """The nearest values that nowhere rise (pool adjacent violators, equal weights)."""
    pools: list[tuple[float, int]] = []
    for value in values:
        pools.append((float(value), 1))
        while len(pools) > 1 and pools[-2][0] < pools[-1][0]:
            (a, n), (b, m) = pools[-2:]
            pools[-2:] = [((a * n + b * m) / (n + m), n + m)]
    return np.concatenate([np.full(n, value) for value, n in pools])


def _where_zero(x: np.ndarray, values: np.ndarray) -> float:
    """Where the line through the values falls through zero; of several such places, that nearest to where
    the falling values do."""
    smooth = _falling(values)
    if not smooth[0] > 0 > smooth[-1]:
        return float("nan")
    place = _through_zero(x, smooth)
    down = np.flatnonzero((values[:-1] > 0) & (values[1:] <= 0))
    share = values[down] / (values[down] - values[down + 1])
    falls = x[down] + share * np.diff(x)[down]
    return float(falls[np.argmin(np.abs(falls - place))])


def _through_zero(x: np.ndarray, falling: np.ndarray) -> float:
    """The middle of where falling values are zero, or the place between that the line through them is."""
    zero = np.flatnonzero(falling == 0)
    if len(zero):
        return float((x[zero[0]] + x[zero[-1]]) / 2)
    after = int(np.searchsorted(-falling, 0.0))
    high, low = falling[after - 1], falling[after]
    return float(x[after - 1] + (x[after] - x[after - 1]) * high / (high - low))
