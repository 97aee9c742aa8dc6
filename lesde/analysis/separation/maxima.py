"""The largest of many independent normal samples, exponentially tilted."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from scipy.special import log_ndtr

LOG_ROOT_2PI = 0.5 * np.log(2.0 * np.pi)
# exp(-45) is far below the rounding of a sum of order one
NEGLIGIBLE = 45.0
SEARCH_POINTS = 24


def pick(problems: Any, index: Any) -> Any:
    """The problems of the given index, of a tuple of arrays over problems, or of such tuples."""
    parts = (pick(part, index) if isinstance(part, tuple) else part[index] for part in problems)
    return type(problems)(*parts)


class TiltedGrid(NamedTuple):
    """The law of M maxima times ``exp(c max)``, normalised, on grids of Q points.

    ``standard`` (M, Q) are positions in units of the samples' standard deviation, ``step`` (M,) their
    spacing, ``positions`` (M, Q) those less ``centre`` in the units of the samples, ``weights`` (M, Q) the
    probabilities. ``log_mass`` is log E exp(c max), ``centre`` and ``variance`` belong to the tilted law.
    """

    positions: np.ndarray
    weights: np.ndarray
    log_mass: np.ndarray
    centre: np.ndarray
    variance: np.ndarray
    standard: np.ndarray
    step: np.ndarray


class Maximum(NamedTuple):
    """The largest of independent normal samples, for M problems at once.

    Samples have the standard deviation ``scale`` (M,), 0 is allowed, and means ``offsets`` (M, J), each
    of which belongs to as many samples as ``copies`` (M, J) says.
    """

    scale: np.ndarray
    offsets: np.ndarray
    copies: np.ndarray

    @classmethod
    def of_identical(cls, number: np.ndarray, scale: np.ndarray) -> Maximum:
        """The largest of ``number`` samples of mean 0."""
        return cls(scale, np.zeros((len(scale), 1)), np.asarray(number, dtype=np.float64)[:, None])

    @property
    def number(self) -> np.ndarray:
        """Number of samples, (M,)."""
        return self.copies.sum(axis=1)

    @property
    def own_mean_variance(self) -> np.ndarray:
        """Variance s²/n of the mean of the samples about the mean of their means."""
        return self.scale**2 / self.number

    @property
    def _means(self) -> np.ndarray:
        """Means of the samples in units of s, (M, J)."""
        return self.offsets / np.where(self.scale > 0, self.scale, 1.0)[:, None]

    def log_density(self, standard: np.ndarray) -> np.ndarray:
        """Log density of ``max/s`` at positions in units of ``s``, real or complex, shape (M, Q).

        The density is entire, so it may be taken off the real line.
        """
        if self.offsets.shape[1] == 1:  # the usual case, without the sum over means
            z = standard - self._means
            power = (self.copies - 1.0) * log_ndtr(z)
            return np.log(self.copies) - LOG_ROOT_2PI - 0.5 * z * z + power
        z = standard[:, :, None] - self._means[:, None, :]
        below, copies = log_ndtr(z), self.copies[:, None, :]
        # the hazards φ/Φ grow only linearly to the left; to the right the largest sets the scale
        hazard = -0.5 * z * z - below
        top = hazard.real.max(axis=2, keepdims=True)
        hazard = np.log((copies * np.exp(hazard - top)).sum(axis=2)) + top[:, :, 0]
        return (copies * below).sum(axis=2) + hazard - LOG_ROOT_2PI

    def _support(self, tilt: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Interval outside which ``density · exp(tilt · max)`` is negligible, in units of s.

        Each term of the density is log-concave with second derivative at most −1, so its mode
        lies within the first bracket and the rest within ten units of it; the bracket is then
        narrowed on a coarse grid.
        """
        tilt, y = tilt * self.scale, self._means
        low = y.min(axis=1) + tilt - 10.0
        high = y.max(axis=1) + np.maximum(tilt, 0.0) + np.sqrt(2.0 * np.log(self.number)) + 11.0
        fractions, rows = np.linspace(0.0, 1.0, SEARCH_POINTS), np.arange(len(low))
        for _ in range(60):
            grid = low[:, None] + (high - low)[:, None] * fractions
            value = self.log_density(grid) + tilt[:, None] * grid
            kept = value >= value.max(axis=1, keepdims=True) - NEGLIGIBLE
            first = np.maximum(np.argmax(kept, axis=1) - 1, 0)
            last = np.minimum(SEARCH_POINTS - np.argmax(kept[:, ::-1], axis=1), SEARCH_POINTS - 1)
            low, high = grid[rows, first], grid[rows, last]
            if (fractions[last] - fractions[first] > 0.7).all():
                break
        return low, high

    def tilted(self, tilt: np.ndarray, points: int) -> TiltedGrid:
        """The law tilted by ``tilt`` (M,) on ``points`` equidistant positions."""
        low, high = self._support(tilt)
        step = (high - low) / (points - 1)
        standard = low[:, None] + step[:, None] * np.arange(points)
        log_weight = self.log_density(standard) + (tilt * self.scale)[:, None] * standard
        peak = log_weight.max(axis=1)
        weights = np.exp(log_weight - peak[:, None])
        mass = weights.sum(axis=1)
        weights /= mass[:, None]
        # about the middle first: positions may be large
        middle = low + step * (points // 2)
        away = (weights * (standard - middle[:, None])).sum(axis=1)
        around = standard - middle[:, None] - away[:, None]
        fixed, top = self.scale == 0, self.offsets.max(axis=1)
        return TiltedGrid(
            positions=around * self.scale[:, None],
            weights=weights,
            log_mass=np.where(fixed, tilt * top, peak + np.log(mass) + np.log(step)),
            centre=np.where(fixed, top, (away + middle) * self.scale),
            variance=(weights * around**2).sum(axis=1) * self.scale**2,
            standard=standard,
            step=step,
        )

    def transform_of_deviations(
        self, tilt: np.ndarray, omega: np.ndarray, grid: TiltedGrid
    ) -> np.ndarray:
        """``E exp(λ (max − mean))`` over its value at λ = tilt, at λ = tilt + i ω.

        ``mean`` is the noise in the mean of the samples, which is independent of the deviations
        from it, so the result is ``E exp(λ max) · exp(−λ² s²/(2n))``; the second factor grows as
        ``exp(ω² s²/(2n))`` and would bury the result in rounding. Moving the path of integration
        to ``x + i ω s/n`` makes the integrand fall at the same rate, and nothing cancels.
        Relative to the value at ω = 0, with the phase of ``grid.centre`` taken out; ``omega`` is (M, W).
        """
        n, s = self.number, self.scale
        centre = np.where(s > 0, grid.centre / np.where(s > 0, s, 1.0), 0.0)[:, None]
        normal = grid.log_mass - np.log(grid.step)
        result = np.empty(omega.shape, dtype=complex)
        for w, rate in enumerate((omega * s[:, None]).T):
            z = grid.standard + 1j * (rate / n)[:, None]
            # λ² − tilt² without forming the squares
            squares = 1j * rate * (2.0 * tilt * s + 1j * rate)
            exponent = self.log_density(z) + (tilt * s)[:, None] * z
            exponent += 1j * rate[:, None] * (z - centre) - (squares / (2.0 * n) + normal)[:, None]
            result[:, w] = np.exp(exponent).sum(axis=1)
        return np.where(s[:, None] > 0, result, 1.0)
