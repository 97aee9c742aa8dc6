"""Smooth rates from noisy ones: a penalised least-squares smoother, averaged over its amount.

Raw rates are independent from interval to interval and have known precisions. For given λ the smooth
rates minimise

    Σ_i (y_i − f_i)ᵀ P_i (y_i − f_i) + Σ_j λ_j Σ_i (f_{i+1,j} − 2 f_{i,j} + f_{i−1,j})²,

a discrete smoothing spline in the number of the interval: saved times that are dense where the kernel
changes fast are dense here too. It is linear in y, and with f a doubly integrated random walk it is the mean
of f given y, with covariance (P + Λ)^{-1}. Such bands include the bias of smoothing, on average over the
curve. They are too narrow when λ is taken as known, so curves and bands are averaged over λ with the weights
of the restricted likelihood (REML), flat in log λ.

References
----------
Wahba, *Bayesian "confidence intervals" for the cross-validated smoothing spline*, JRSS B 45 (1983);
Nychka, *Bayesian confidence intervals for smoothing splines*, JASA 83 (1988); Eilers, *A perfect
smoother*, Analytical Chemistry 75 (2003), for the discrete penalty.
"""

from __future__ import annotations

import numpy as np
from scipy.linalg import cho_solve_banded, cholesky_banded

__all__ = ["MINIMUM_INTERVALS", "smooth_rates"]

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
