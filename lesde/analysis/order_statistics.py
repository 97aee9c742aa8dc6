"""The largest of many independent normal samples, exponentially tilted.

For samples ``y_j + s ζ`` (``m_j`` copies of each ``y_j``, ζ standard normal) the largest has
distribution function ``∏ Φ((x − y_j)/s)^{m_j}``. What the separation of two classes needs is its
moment generating function ``E exp(λ max)`` for complex λ, without overflow or loss of digits for
1 to 10⁷ samples and any tilt. Every integrand here is evaluated as a logarithm, on a grid laid over
the part that matters; the trapezoidal rule then converges geometrically, because the integrand is
analytic and falls to nothing at both ends.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from scipy.special import log_ndtr

__all__ = ["Maximum", "TiltedGrid"]

LOG_ROOT_2PI = 0.5 * np.log(2.0 * np.pi)
# exp(-45) is far below the rounding of a sum of order one
NEGLIGIBLE = 45.0
SEARCH_POINTS = 24


@dataclass(frozen=True)
class TiltedGrid:
    """The law of the maximum times ``exp(c max)``, normalised, on a grid.

    Attributes
    ----------
    positions : ndarray (M, Q)
        Grid positions less ``centre``, in the units of the samples.
    weights : ndarray (M, Q)
        Probabilities, summing to one over the grid.
    log_mass : ndarray (M,)
        ``log E exp(c max)``.
    centre, variance : ndarray (M,)
        Mean and variance of the tilted law.
    standard : ndarray (M, Q)
        Grid positions in units of ``s``.
    step : ndarray (M,)
        Spacing of ``standard``.
    """

    positions: np.ndarray
    weights: np.ndarray
    log_mass: np.ndarray
    centre: np.ndarray
    variance: np.ndarray
    standard: np.ndarray
    step: np.ndarray

    def pick(self, index: np.ndarray) -> TiltedGrid:
        """The problems of the given index."""
        return TiltedGrid(*(getattr(self, field.name)[index] for field in fields(self)))


@dataclass(frozen=True)
class Maximum:
    """The largest of independent normal samples, for M problems at once.

    Parameters
    ----------
    scale : ndarray (M,)
        Standard deviation ``s`` of a sample; 0 is allowed.
    offsets : ndarray (M, J)
        Means ``y_j`` of the samples.
    copies : ndarray (M, J)
        How many samples have each mean.
    """

    scale: np.ndarray
    offsets: np.ndarray
    copies: np.ndarray

    @classmethod
    def of_identical(cls, count: np.ndarray, scale: np.ndarray) -> Maximum:
        """``count`` samples of mean 0."""
        scale = np.asarray(scale, dtype=np.float64)
        return cls(scale, np.zeros((len(scale), 1)), np.asarray(count, dtype=np.float64)[:, None])

    @property
    def count(self) -> np.ndarray:
        """Number of samples, shape (M,)."""
        return self.copies.sum(axis=1)

    @property
    def own_mean_variance(self) -> np.ndarray:
        """Variance s²/n of the mean of the samples about the mean of the ``y_j``."""
        return self.scale**2 / self.count

    def pick(self, index: np.ndarray) -> Maximum:
        """The problems of the given index."""
        return Maximum(self.scale[index], self.offsets[index], self.copies[index])

    def log_density(self, standard: np.ndarray) -> np.ndarray:
        """Log density of ``max/s`` at positions in units of ``s``, real or complex.

        The density is entire, so it may be taken off the real line. Shape (M, Q).
        """
        scale = np.where(self.scale > 0, self.scale, 1.0)
        if self.offsets.shape[1] == 1:
            z = standard - (self.offsets / scale[:, None])
            n = self.copies
            return np.log(n) - LOG_ROOT_2PI - 0.5 * z * z + (n - 1.0) * log_ndtr(z)
        z = standard[:, :, None] - (self.offsets / scale[:, None])[:, None, :]
        below = log_ndtr(z)
        copies = self.copies[:, None, :]
        # the hazards φ/Φ grow only linearly to the left; to the right the largest sets the scale
        hazard = -0.5 * z * z - below
        top = hazard.real.max(axis=2, keepdims=True)
        hazard = np.log((copies * np.exp(hazard - top)).sum(axis=2)) + top[:, :, 0]
        return (copies * below).sum(axis=2) + hazard - LOG_ROOT_2PI

    def support(self, tilt: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Interval outside which ``density · exp(tilt · max)`` is negligible, in units of s.

        Each term of the density is log-concave with second derivative at most −1, so its mode
        lies within the first bracket and the rest within ten units of it; the bracket is then
        narrowed on a coarse grid.
        """
        scale = np.where(self.scale > 0, self.scale, 1.0)
        standard_tilt = tilt * self.scale
        y = self.offsets / scale[:, None]
        low = y.min(axis=1) + standard_tilt - 10.0
        high = y.max(axis=1) + np.maximum(standard_tilt, 0.0)
        high = high + np.sqrt(2.0 * np.log(self.count)) + 11.0
        fractions = np.linspace(0.0, 1.0, SEARCH_POINTS)
        rows = np.arange(len(low))
        for _ in range(60):
            grid = low[:, None] + (high - low)[:, None] * fractions
            value = self.log_density(grid) + standard_tilt[:, None] * grid
            best = np.argmax(value, axis=1)
            kept = value >= value[rows, best][:, None] - NEGLIGIBLE
            first = np.maximum(np.argmax(kept, axis=1) - 1, 0)
            last = np.minimum(SEARCH_POINTS - np.argmax(kept[:, ::-1], axis=1), SEARCH_POINTS - 1)
            share = fractions[last] - fractions[first]
            low, high = grid[rows, first], grid[rows, last]
            if (share > 0.7).all():
                break
        return low, high

    def tilted(
        self,
        tilt: np.ndarray,
        points: int,
        support: tuple[np.ndarray, np.ndarray] | None = None,
    ) -> TiltedGrid:
        """The tilted law on ``points`` equidistant positions; ``tilt`` has shape (M,)."""
        low, high = self.support(tilt) if support is None else support
        fixed = self.scale == 0
        step = (high - low) / (points - 1)
        standard = low[:, None] + step[:, None] * np.arange(points)
        log_weight = self.log_density(standard) + (tilt * self.scale)[:, None] * standard
        peak = log_weight.max(axis=1)
        weights = np.exp(log_weight - peak[:, None])
        mass = weights.sum(axis=1)
        weights /= mass[:, None]
        # the peak can be 1e12 in size, so that its sum with log(mass) would lose the digits
        middle = low + step * (points // 2)
        around = standard - middle[:, None]
        centre = (weights * around).sum(axis=1)
        around -= centre[:, None]
        centre += middle
        total = peak + np.log(mass)
        variance = (weights * around**2).sum(axis=1) * self.scale**2
        log_mass = total + np.log(step)
        top = self.offsets.max(axis=1)
        return TiltedGrid(
            positions=around * self.scale[:, None],
            weights=weights,
            log_mass=np.where(fixed, tilt * top, log_mass),
            centre=np.where(fixed, top, centre * self.scale),
            variance=variance,
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

        Parameters
        ----------
        tilt : ndarray (M,)
        omega : ndarray (M, W)
        grid : TiltedGrid
            As ``tilted(tilt, ...)`` gives it.

        Returns
        -------
        ndarray (M, W), complex
            Relative to the value at ω = 0, with the phase of ``grid.centre`` taken out.
        """
        n, s = self.count, self.scale
        shift = omega * (s / n)[:, None]
        result = np.empty(omega.shape, dtype=complex)
        normal = grid.log_mass - np.log(grid.step)
        centre = np.where(s > 0, grid.centre / np.where(s > 0, s, 1.0), 0.0)
        for w in range(omega.shape[1]):
            z = grid.standard + 1j * shift[:, w, None]
            lam = (tilt + 1j * omega[:, w]) * s
            # λ² − tilt² without forming the squares
            squares = 1j * omega[:, w] * s * (lam + tilt * s)
            exponent = (
                self.log_density(z)
                + (tilt * s)[:, None] * z
                + 1j * (omega[:, w] * s)[:, None] * (z - centre[:, None])
                - (squares / (2.0 * n))[:, None]
                - normal[:, None]
            )
            result[:, w] = np.exp(exponent).sum(axis=1)
        return np.where(s[:, None] > 0, result, 1.0)
