"""Smooth rates from noisy ones: a penalised least-squares smoother, averaged over the amount of smoothing."""

from __future__ import annotations

import numpy as np
from scipy.linalg import cho_solve_banded, cholesky_banded

MINIMUM_INTERVALS = 5
ORDER = 2
# log λ from raw rates, relative to the least precision, to nearly a straight line, relative to the greatest (n
# intervals, order 2: λ ~ n⁴). Further up all curves are lines and equally likely: weight there would hide curvature
# that is weaker than the noise, and bands would cover less than stated.
LEAST, MOST = -8.0, -8.0
COARSE, POINTS = 2.0, 13
"""Distance of points over all of that, and number of points over where the weight is found to be."""


def smooth_rates(values: np.ndarray, precision: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Smooth one or several rates jointly.

    The smooth rates (interval, rate) and their covariance interval by interval (interval, rate, rate), from raw rates
    (interval, rate) and their inverse covariance, zero in directions that the data do not determine.
    """
    n, q = values.shape
    known = [precision[precision[:, j, j] > 0, j, j] for j in range(q)]
    known = [p if len(p) else np.ones(1) for p in known]
    typical = np.array([np.median(p) for p in known])
    least, most = (np.array([end(p) for p in known]) / typical for end in (np.min, np.max))
    right = np.einsum("ijk,ik->ij", precision, values).ravel()

    # Upper bands of the precision, and of DᵀD for every rate (D the second differences, rates interleaved).
    data = np.zeros((ORDER * q + 1, n * q))
    for a in range(q):
        for c in range(a, q):
            data[ORDER * q - (c - a), c::q] = precision[:, a, c]
    # So little that it matters only where neither data nor penalty hold a rate.
    data[-1] += 1e-12 * np.tile(typical, n)
    D = np.diff(np.eye(n), n=ORDER, axis=0)
    square = D.T @ D
    penalties = np.zeros((q, ORDER * q + 1, n * q))
    for j in range(q):
        for lag in range(ORDER + 1):
            penalties[j, ORDER * q - lag * q, j + lag * q :: q] = np.diagonal(square, lag)

    def factor(log_penalty: np.ndarray) -> np.ndarray:
        bands = data + np.einsum("j,jan->an", typical * np.exp(log_penalty), penalties)
        return cholesky_banded(bands, check_finite=False)

    def criterion(log_penalty: np.ndarray) -> float:
        """−2 log of the restricted likelihood."""
        root = factor(log_penalty)
        quadratic = right @ cho_solve_banded((root, False), right, check_finite=False)
        return float(2 * np.log(root[-1]).sum() - (n - ORDER) * log_penalty.sum() - quadratic)

    def posterior(
        low: np.ndarray, high: np.ndarray, number: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """The midpoints of a box's cells that matter, and their weights."""
        ends = zip(low, high, number, strict=True)
        axes = [a + (b - a) * (np.arange(m) + 0.5) / m for a, b, m in ends]
        grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, q)
        score = np.array([criterion(point) for point in grid])
        weight = np.exp(-0.5 * (score - score.min()))
        keep = weight > 1e-4
        return grid[keep], weight[keep] / weight[keep].sum()

    # The posterior of log λ on a grid over all that could be, then on a finer one over where its weight is.
    low, high = np.log(least) + LEAST, np.log(most) + 2 * ORDER * np.log(n) + MOST
    grid, _ = posterior(low, high, np.ceil((high - low) / COARSE).astype(int))
    low, high = np.maximum(low, grid.min(0) - COARSE), np.minimum(high, grid.max(0) + COARSE)
    grid, weight = posterior(low, high, np.full(q, POINTS))
    curves, spread, every = [], np.zeros((n, q, q)), np.arange(n)
    for w, point in zip(weight, grid, strict=True):
        root = factor(point)
        curves.append(cho_solve_banded((root, False), right).reshape(n, q))
        full = cho_solve_banded((root, False), np.eye(n * q), check_finite=False)
        spread += w * full.reshape(n, q, n, q)[every, :, every]
    smooth = np.einsum("w,wij->ij", weight, np.stack(curves))
    apart = np.stack(curves) - smooth
    return smooth, spread + np.einsum("w,wij,wik->ijk", weight, apart, apart)
