"""Straight lines through logarithms: slopes with intervals, and the evidence for an abscissa.

Exponential decay is a straight line of log y on x, a power law one of log y on log x. The
deviations of a trajectory from its line are correlated from frame to frame, often as strongly as
those of a random walk; intervals that ignore it are far too short. Here they are a first-order
autoregression over frames.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import optimize, stats

__all__ = ["Line", "fit_line", "log_evidence"]

# Autocorrelations φ at equal steps of log(1 − φ) from 0 to 1 − 10⁻⁴: the grid of the marginalised
# interval and, by its density, the prior 1/(1 − φ). Trajectories of an SDE lie close to φ = 1,
# where a flat prior covers far too rarely.
_PHI = 1 - 10.0 ** (-4 * (np.arange(64) + 0.5) / 64)


class Line(NamedTuple):
    """A fitted line: slope with confidence limits, intercept, and replicates it rests on."""

    slope: float
    lower: float
    upper: float
    intercept: float
    replicates: int


_NO_LINE = Line(np.nan, np.nan, np.nan, np.nan, 0)


def fit_line(x: np.ndarray, z: np.ndarray, confidence: float) -> Line:
    """Least-squares slope of z on x, common to independent replicates, with a confidence interval.

    Parameters
    ----------
    x : ndarray, shape (T,)
    z : ndarray, shape (R, T)
        NaN where missing. A replicate with fewer than three values is left out.
    confidence : float

    Returns
    -------
    Line
        With three replicates or more: one ordinary least-squares line each, the means of their
        slopes and intercepts, and the t interval of the slopes (R − 1 degrees of freedom):
        whatever correlation one trajectory has, it is in their scatter. With one or two: the
        slope and intercepts by generalised least squares with AR(1) residuals, and the
        equal-tailed interval of the slope marginalised over the autocorrelation
        (`_marginal_slope`).
    """
    z = z[np.isfinite(z).sum(axis=1) >= 3]
    if len(z) == 0:
        return _NO_LINE
    if len(z) < 3:
        return _marginal_slope(x, z, confidence)
    present = np.isfinite(z)
    n = present.sum(axis=1)
    filled = np.where(present, z, 0.0)
    x_mean = present @ x / n
    z_mean = filled.sum(axis=1) / n
    away = np.where(present, x - x_mean[:, None], 0.0)
    slopes = (away * filled).sum(axis=1) / (away**2).sum(axis=1)
    mean = slopes.mean()
    half = stats.t.ppf((1 + confidence) / 2, len(z) - 1) * slopes.std(ddof=1) / np.sqrt(len(z))
    intercept = (z_mean - slopes * x_mean).mean()
    return Line(float(mean), float(mean - half), float(mean + half), float(intercept), len(z))


class _Sums(NamedTuple):
    """Generalised least-squares sums, each an array over the autocorrelations of the grid."""

    xx: np.ndarray
    xz: np.ndarray
    zz: np.ndarray
    log_det: np.ndarray  # of the residuals' correlation matrix
    log_det_ones: np.ndarray  # of the intercepts' block of XᵀV⁻¹X
    x_mean: np.ndarray
    z_mean: np.ndarray

    @property
    def slope(self) -> np.ndarray:
        return self.xz / self.xx

    @property
    def rss(self) -> np.ndarray:
        return np.maximum(self.zz - self.xz**2 / self.xx, 0.0)


def _sums(x: np.ndarray, z: np.ndarray) -> tuple[_Sums, int]:
    """Sums over replicates with an intercept each partialled out, and the number of values."""
    total = np.zeros((5, len(_PHI)))
    means = np.zeros((2, len(_PHI)))
    count = 0
    for row in z:
        frames = np.flatnonzero(np.isfinite(row))
        phi = _PHI[:, None] ** np.diff(frames)  # missing frames weaken the correlation
        scale = np.sqrt(1 - phi**2)

        def white(v: np.ndarray, phi: np.ndarray = phi, scale: np.ndarray = scale) -> np.ndarray:
            first = np.full((len(_PHI), 1), v[0])
            return np.concatenate([first, (v[1:] - phi * v[:-1]) / scale], axis=1)

        # About the plain means first: the sums below would otherwise cancel.
        x_row, z_row = x[frames] - x[frames].mean(), row[frames] - row[frames].mean()
        one, u, v = white(np.ones(len(frames))), white(x_row), white(z_row)
        norm = (one**2).sum(axis=1)
        u_mean, v_mean = (one * u).sum(axis=1) / norm, (one * v).sum(axis=1) / norm
        u, v = u - u_mean[:, None] * one, v - v_mean[:, None] * one
        total += [
            (u * u).sum(axis=1),
            (u * v).sum(axis=1),
            (v * v).sum(axis=1),
            np.log(scale**2).sum(axis=1),
            np.log(norm),
        ]
        means += [u_mean + x[frames].mean(), v_mean + row[frames].mean()]
        count += len(frames)
    return _Sums(*total, *(means / len(z))), count


def _floor(z: np.ndarray, count: int) -> float:
    """Residual sum of squares below which it is rounding."""
    return count * (16 * np.finfo(np.float64).eps * max(1.0, float(np.nanmax(np.abs(z))))) ** 2


def _marginal_slope(x: np.ndarray, z: np.ndarray, confidence: float) -> Line:
    """Slope with AR(1) residuals and its interval, averaged over the autocorrelation.

    Given φ the slope has a t distribution about its generalised least-squares value. Its interval
    is that of the mixture of these over φ, weighted by the restricted likelihood times the prior
    1/(1 − φ) on (0, 1 − 10⁻⁴). On simulated AR(1) noise, 20 to 200 frames, its 95% interval
    covers the slope in 94 to 100% of cases for φ ≤ 0.98, and in 87 to 93% for a random walk.
    """
    sums, count = _sums(x, z)
    free = count - len(z) - 1
    rss = np.maximum(sums.rss, _floor(z, count))
    log_weight = -0.5 * (free * np.log(rss) + sums.log_det + sums.log_det_ones + np.log(sums.xx))
    weight = np.exp(log_weight - log_weight.max())
    weight /= weight.sum()
    scale = np.sqrt(rss / free / sums.xx)
    best = float(weight @ sums.slope)
    intercept = float(weight @ (sums.z_mean - sums.slope * sums.x_mean))

    def tail(value: float, level: float) -> float:
        return float(weight @ stats.t.cdf((value - sums.slope) / scale, free)) - level

    used = weight > 1e-12
    reach = (sums.slope[used], scale[used] * stats.t.ppf(0.5 + confidence / 2, free))
    low, high = (reach[0] - reach[1]).min(), (reach[0] + reach[1]).max()
    width = high - low
    limits = [
        optimize.brentq(tail, low - width, high + width, args=(level,), xtol=1e-9 * width)
        for level in ((1 - confidence) / 2, (1 + confidence) / 2)
    ]
    return Line(best, limits[0], limits[1], intercept, len(z))


def log_evidence(x: np.ndarray, z: np.ndarray) -> tuple[float, float]:
    """Maximised log-likelihood of a line with AR(1) residuals, and the plain R² of the line.

    Parameters
    ----------
    x, z : ndarray, shape (T,)
        One curve; NaN in z where missing.

    Returns
    -------
    log_likelihood, r_squared : float
        R² is NaN for a constant curve.
    """
    sums, count = _sums(x, z[None])
    floor = _floor(z, count)
    likelihood = -0.5 * (count * np.log(np.maximum(sums.rss, floor) / count) + sums.log_det)
    present = np.isfinite(z)
    u, v = x[present] - x[present].mean(), z[present] - z[present].mean()
    total = v @ v
    r_squared = (u @ v) ** 2 / ((u @ u) * total) if total > floor else np.nan
    return float(likelihood.max()), float(r_squared)
