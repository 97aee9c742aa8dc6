"""The level at which a quantity measured in trials crosses a value, with an interval, and in words."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.stats import t as student
from sklearn.isotonic import isotonic_regression

__all__ = ["Crossing", "crossing", "in_words"]


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
        """True where both ends of the interval lie between the levels."""
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
    Between levels, values are interpolated linearly, each trial's on its own. The estimate is where the
    means over trials fall through the target; of several such places, that nearest to where their isotonic regression
    does. The interval holds every level at which a t-test over trials of the interpolated values does not reject the
    target (Fieller's theorem, piece by piece), and all levels between these. For normal values that test is exact for
    any number of trials, up to the error of interpolation.

    Raises
    ------
    ValueError
        With fewer than two levels or trials, or shapes that do not fit.
    """
    x, y = np.asarray(levels, dtype=np.float64), np.asarray(values, dtype=np.float64) - target
    if x.ndim != 1 or len(x) < 2 or (np.diff(x) <= 0).any():
        raise ValueError("levels must be at least two increasing numbers.")
    if y.ndim != 2 or y.shape[1] != len(x) or len(y) < 2:
        raise ValueError(
            f"values must be of shape (trial, {len(x)}) with at least two trials; got {y.shape}."
        )
    quantile = float(student.ppf((1 + confidence) / 2, len(y) - 1))
    mean, covariance = y.mean(0), np.cov(y.T) * (quantile**2 / len(y))
    kept = [
        x[i] + share * (x[i + 1] - x[i])
        for i in range(len(x) - 1)
        for share in _kept(mean[i : i + 2], covariance[i : i + 2, i : i + 2])
    ]
    value = _falls_through_zero(x, mean)
    if not kept:
        return Crossing(value, np.nan, np.nan)
    lower = -np.inf if min(kept) == x[0] else float(min(kept))
    upper = np.inf if max(kept) == x[-1] else float(max(kept))
    return Crossing(value, lower, upper)


def _kept(mean: np.ndarray, spread: np.ndarray) -> list[float]:
    """Ends of the part between two levels, in shares, where the square of the mean is at most its spread."""
    # Both are quadratic in the share: the difference is positive where the target is rejected.
    step = np.array([-1.0, 1.0])
    a = (mean[1] - mean[0]) ** 2 - step @ spread @ step
    b = 2 * (mean[0] * (mean[1] - mean[0]) - spread[0] @ step)
    c = mean[0] ** 2 - spread[0, 0]
    root = b * b - 4 * a * c
    # Without spread the parabola touches zero; rounding must not change that.
    root = np.sqrt(root) if root > 0 else (0.0 if root > -1e-9 * b * b else np.nan)
    # The form that does not cancel: q/a and c/q.
    q = -(b + np.copysign(root, b)) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        roots = np.divide([q, c], [a, q])
    inside = [float(share) for share in roots if 0 <= share <= 1]
    ends = [share for share in (0.0, 1.0) if a * share**2 + b * share + c <= 0]
    return inside + ends


def _falls_through_zero(x: np.ndarray, values: np.ndarray) -> float:
    """Point at which the line through the values falls through zero; of several, that nearest to the crossing
    of the closest non-increasing values."""
    falling = isotonic_regression(values, increasing=False)
    if not falling[0] > 0 > falling[-1]:
        return float("nan")
    after = int(np.searchsorted(-falling, 0.0))
    zero = x[falling == 0]
    place = (
        (zero[0] + zero[-1]) / 2
        if len(zero)
        else np.interp(0.0, -falling[after - 1 : after + 1], x[after - 1 : after + 1])
    )
    down = np.flatnonzero((values[:-1] > 0) & (values[1:] <= 0))
    share = values[down] / (values[down] - values[down + 1])
    falls = x[down] + share * np.diff(x)[down]
    return float(falls[np.argmin(np.abs(falls - place))])


def in_words(
    quantity: str,
    found: Crossing,
    critical: float,
    confidence: float,
    levels: np.ndarray | None = None,
) -> str:
    """The transition as a statement; with the noise levels, also where they are too far apart for one."""
    name, theory = f"Critical p by {quantity}", f"theory {critical:.3f}"
    below, above = found.lower == -np.inf, found.upper == np.inf
    if np.isnan(found.lower):
        return f"{name}: not found between the noise levels; {theory}."
    if below and above:
        return f"{name}: not determined by these trials; {theory}."
    inside = found.lower <= critical <= found.upper
    if quantity.startswith("tail index") and not (below or above):
        where = "lies in this range" if inside else "lies outside of this range"
        return (
            f"{quantity[0].upper()}{quantity[1:]}: not below 1 ({confidence:.0%}) for p in [{found.lower:.3f}, {found.upper:.3f}]; "
            f"{theory}, which {where}."
        )
    if below or above:
        bound = f"below {found.upper:.3f}" if below else f"above {found.lower:.3f}"
        side = "below" if below else "above"
        verdict = "which does not contradict" if inside else "which contradicts"
        return f"{name}: {bound}, not bounded from {side} ({confidence:.0%}), {verdict} {theory}."
    where = "lies in the interval" if inside else "lies outside of the interval"
    value = f"{found.value:.3f} " if np.isfinite(found.value) else "in "
    text = f"{name}: {value}[{found.lower:.3f}, {found.upper:.3f}] ({confidence:.0%}); {theory}, which {where}."
    # At a level there is nothing to interpolate.
    if inside or levels is None or np.isclose(levels, critical).any():
        return text
    # Between levels a straight line stands in for the curve.
    low, high = sorted((critical, found.lower if critical < found.lower else found.upper))
    between = (levels > low) & (levels < high)
    if between.any() or not (levels[0] <= low < high <= levels[-1]):
        return text
    before, after = levels[levels <= low].max(), levels[levels >= high].min()
    return (
        f"{text} But no noise level lies between them, and how values run from p = {before:.3g} to {after:.3g} is not known: "
        f"add levels there."
    )
