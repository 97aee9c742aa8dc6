"""The level at which a quantity measured in trials crosses a value, with an interval, and in words."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.stats import t as student
from sklearn.isotonic import isotonic_regression

from lesde.text import with_interval


class Crossing(NamedTuple):
    """The level at which a mean over trials crosses a target.

    ``value`` is NaN where it does not cross between the levels. ``lower`` and ``upper`` are −inf and inf where the
    interval goes beyond the levels, and NaN where no level is in it.
    """

    value: float
    lower: float
    upper: float


def crossing(
    levels: np.ndarray, values: np.ndarray, target: float = 0.0, confidence: float = 0.95
) -> Crossing:
    """The level at which the mean of a falling quantity is at the target.

    Parameters
    ----------
    levels : array (L,)
        Increasing, at least two.
    values : array (trial, L)
        One trial's values at all levels; trials, at least two, are independent, the values of one need not be.
    target : float
    confidence : float
        Of the interval.

    Returns
    -------
    Crossing

    Notes
    -----
    Between levels, values are interpolated linearly, each trial's on its own. The estimate is where the
    means over trials fall through the target; of several such places, the one between the levels where their isotonic
    regression does. The interval holds every level at which a t-test over trials of the interpolated values does not
    reject the target (Fieller's theorem, piece by piece), and all levels between these. For normal values that test is
    exact for any number of trials, up to the error of interpolation.
    """
    x, y = np.asarray(levels, dtype=np.float64), np.asarray(values, dtype=np.float64) - target
    if y.shape != (len(y), len(x)) or min(y.shape) < 2 or (np.diff(x) <= 0).any():
        raise ValueError(
            f"levels must increase and values be of shape (trial, level), at least 2 of each; got {x} and {y.shape}."
        )
    quantile = float(student.ppf((1 + confidence) / 2, len(y) - 1))
    mean, covariance = y.mean(0), np.cov(y.T) * (quantile**2 / len(y))
    kept = [
        float(x[i] + share * (x[i + 1] - x[i]))
        for i in range(len(x) - 1)
        for share in _kept(mean[i : i + 2], covariance[i : i + 2, i : i + 2])
    ]
    value, falling = float("nan"), isotonic_regression(mean, increasing=False)
    if falling[0] > 0 > falling[-1]:
        # Between these levels the means themselves fall too: a block of the regression ends above its mean.
        after = int(np.argmax(falling <= 0))
        pair = [after, after - 1]
        value = float(np.interp(0.0, mean[pair], x[pair]))
    if not kept:
        return Crossing(value, np.nan, np.nan)
    lower, upper = min(kept), max(kept)
    return Crossing(value, -np.inf if lower == x[0] else lower, np.inf if upper == x[-1] else upper)


def _kept(mean: np.ndarray, spread: np.ndarray) -> list[float]:
    """Ends of the part between two levels, in shares, where the square of the mean is at most its spread."""
    # Both are quadratic in the share: the difference is positive where the target is rejected.
    step = np.array([-1.0, 1.0])
    a = (mean[1] - mean[0]) ** 2 - step @ spread @ step
    b = 2 * (mean[0] * (mean[1] - mean[0]) - spread[0] @ step)
    c = mean[0] ** 2 - spread[0, 0]
    roots = np.roots([a, b, c])
    # Without spread the parabola touches zero; rounding must not part its roots.
    inside = [float(r.real) for r in roots if 0 <= r.real <= 1 and abs(r.imag) < 1e-7]
    ends = [share for share in (0.0, 1.0) if a * share**2 + b * share + c <= 0]
    return inside + ends


def in_words(quantity: str, found: Crossing, critical: float, confidence: float) -> str:
    """The transition as a statement."""
    if not np.isfinite([found.lower, found.upper]).any():
        return f"Critical p by {quantity}: not determined by these trials; theory {critical:.3f}."
    inside = "inside" if found.lower <= critical <= found.upper else "outside"
    interval = f"{with_interval(*found)} ({confidence:.0%})".replace("– [", "in [")
    return (
        f"Critical p by {quantity}: {interval}; theory {critical:.3f}, which lies {inside} of it."
    )
