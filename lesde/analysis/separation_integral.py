"""The contour integral behind the separation function, to full relative accuracy in both tails."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np
from scipy.special import log_ndtr

from lesde.analysis.order_statistics import Maximum, TiltedGrid

__all__ = ["Separation", "separation_of_maxima"]

SEARCH_GRID = 64
FINE_GRID = 256
BLOCK = 64
MOST_NODES = 4096
CHUNK = 256
TOLERANCE = 1e-12
# growth of exp(ω² s²/(2n)), of each class, that a double can lose without harm
AFFORDABLE_GROWTH = 3.0


class Separation(NamedTuple):
    """Probability of separation and the logarithms of it and of its complement."""

    probability: np.ndarray
    log_probability: np.ndarray
    log_failure: np.ndarray


def separation_of_maxima(
    gap: np.ndarray, upper: Maximum, lower: Maximum, variance: np.ndarray
) -> Separation:
    """P(gap + Z > D_c) for the overlap D_c of two classes about their own means, Z ~ N(0, v).

    ``D = max(lower) + max(upper)`` is the overlap of two classes whose means coincide, ``upper``
    holding the samples of the upper class with their sign turned. It is D_c, which is made of the
    deviations from the class means, plus the independent noise of those means, of variance
    v_U = s₁²/n₁ + s₂²/n₂. So with the moment generating functions M of the two maxima, and any
    c > 0,

        1 − P = (1/2πi) ∫_{c−i∞}^{c+i∞} exp(−λ gap + λ² (v − v_U)/2) M₁(λ) M₂(λ) dλ/λ,

    and P is minus the same with c < 0. This holds for v above and below v_U. At the saddle point
    c the integrand does not cancel, so that a tail comes out with full relative accuracy.

    All arguments hold M problems. Returns arrays of shape (M,).
    """
    results = [np.empty(len(gap)) for _ in range(3)]
    widest = max(upper.offsets.shape[1], lower.offsets.shape[1])
    chunk = max(1, CHUNK // widest)
    for start in range(0, len(gap), chunk):
        part = slice(start, start + chunk)
        index = np.arange(len(gap))[part]
        pieces = _chunk(gap[part], upper.pick(index), lower.pick(index), variance[part])
        for result, piece in zip(results, pieces, strict=True):
            result[part] = piece
    lost = np.isnan(results[1])
    if lost.any():
        warnings.warn(
            f"{int(lost.sum())} of {len(gap)} separation probabilities are NaN: the class means "
            f"vary so much less than the means of independent samples do, and the classes are so "
            f"small, that the integral needs more than {MOST_NODES} nodes. Simulate these instead.",
            stacklevel=3,
        )
    return Separation(*results)


def _chunk(gap: np.ndarray, first: Maximum, second: Maximum, variance: np.ndarray) -> Separation:
    log_p, log_q = np.empty(len(gap)), np.empty(len(gap))
    moving = (first.scale > 0) | (second.scale > 0)
    alone = (first.count == 1) & (second.count == 1)
    easy = ~moving | alone
    if easy.any():
        top = first.offsets[easy].max(axis=1) + second.offsets[easy].max(axis=1)
        log_p[easy], log_q[easy] = _normal(gap[easy] - top, variance[easy])
    # deviations from a mean cannot all be negative, so two classes whose means coincide overlap
    mean = (first.copies * first.offsets).sum(axis=1) / first.count
    mean = mean + (second.copies * second.offsets).sum(axis=1) / second.count
    touching = ~easy & (variance == 0) & (gap <= mean)
    log_p[touching], log_q[touching] = -np.inf, 0.0
    hard = np.flatnonzero(~easy & ~touching)
    if len(hard):
        a, b = first.pick(hard), second.pick(hard)
        unit = np.sqrt(a.scale**2 + b.scale**2)
        a, b = (Maximum(m.scale / unit, m.offsets / unit[:, None], m.copies) for m in (a, b))
        problem = _Problem(gap[hard] / unit, a, b, variance[hard] / unit**2)
        log_p[hard], log_q[hard] = problem.solve()
    return Separation(np.exp(log_p), log_p + 0.0, log_q + 0.0)


def _normal(gap: np.ndarray, variance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Log probabilities of ``gap + N(0, variance) > 0`` and of its complement."""
    root = np.sqrt(variance)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(root > 0, gap / root, np.where(gap > 0, np.inf, -np.inf))
    return log_ndtr(ratio), log_ndtr(-ratio)


def log_complement(log_p: np.ndarray) -> np.ndarray:
    """log(1 − exp(log_p)) for log_p ≤ 0."""
    log_p = np.minimum(log_p, 0.0)
    with np.errstate(divide="ignore"):
        return np.where(log_p > -np.log(2.0), np.log(-np.expm1(log_p)), np.log1p(-np.exp(log_p)))


class _Problem:
    """M integrals at once, in units where s₁² + s₂² = 1."""

    def __init__(self, gap: np.ndarray, first: Maximum, second: Maximum, variance: np.ndarray):
        self.gap, self.first, self.second, self.variance = gap, first, second, variance
        self.extra = variance - first.own_mean_variance - second.own_mean_variance

    def pick(self, index: np.ndarray) -> _Problem:
        return _Problem(
            self.gap[index], self.first.pick(index), self.second.pick(index), self.variance[index]
        )

    def cumulants(self, tilt: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """First and second derivative of the cumulant generating function of D_c + Z."""
        one = self.first.tilted(tilt, SEARCH_GRID)
        two = self.second.tilted(tilt, SEARCH_GRID)
        mean = one.centre + two.centre + tilt * self.extra
        return mean, one.variance + two.variance + self.extra

    def saddle(self) -> tuple[np.ndarray, np.ndarray]:
        """Where the integrand is least along the real axis, on the side of the rarer event.

        Any point of that side gives the same integral, so a rough one serves. Newton's method in
        the logarithm of |c|, kept inside a bracket.
        """
        mean, spread = self.cumulants(np.zeros(len(self.gap)))
        spread = np.maximum(spread, 1e-300)
        side = np.where(self.gap >= mean, 1.0, -1.0)
        far = np.abs(self.gap - mean)
        start = far / spread + 1.0 / np.sqrt(spread)
        log_c = np.log(start)
        low, high = np.full(len(far), -np.inf), np.full(len(far), np.inf)
        active = np.ones(len(far), dtype=bool)
        for _ in range(80):
            i = np.flatnonzero(active)
            c = np.exp(log_c[i])
            mean_i, var_i = self.pick(i).cumulants(side[i] * c)
            slope = side[i] * (mean_i - self.gap[i]) - 1.0 / c
            curve = np.maximum(var_i, 0.0) + 1.0 / c**2
            low[i] = np.where(slope < 0, log_c[i], low[i])
            high[i] = np.where(slope >= 0, log_c[i], high[i])
            move = np.clip(-slope / (curve * c), -3.0, 3.0)
            # Newton in c rather than in its logarithm when the step is small
            target = log_c[i] + np.where(np.abs(move) < 0.5, np.log1p(move), move)
            inside = (target > low[i]) & (target < high[i])
            target = np.where(inside, target, 0.5 * (low[i] + high[i]))
            active[i] = np.abs(slope) > 0.05 * np.sqrt(curve)
            log_c[i] = np.where(active[i], target, log_c[i])
            if not active.any():
                break
        return side, side * np.exp(log_c)

    def solve(self) -> tuple[np.ndarray, np.ndarray]:
        side, tilt = self.saddle()
        one = self.first.tilted(tilt, FINE_GRID)
        two = self.second.tilted(tilt, FINE_GRID)
        log_peak = (
            one.log_mass
            + two.log_mass
            + 0.5 * tilt**2 * self.extra
            - tilt * self.gap
            - np.log(np.abs(tilt))
        )
        value = _oscillatory(self, tilt, one, two)
        with np.errstate(invalid="ignore"):
            log_rare = np.minimum(log_peak + np.log(value), 0.0)
        log_other = log_complement(log_rare)
        rare_is_failure = side > 0
        return (
            np.where(rare_is_failure, log_other, log_rare),
            np.where(rare_is_failure, log_rare, log_other),
        )


def _oscillatory(
    problem: _Problem, tilt: np.ndarray, one: TiltedGrid, two: TiltedGrid
) -> np.ndarray:
    """(1/π) ∫₀^∞ Re(integrand at tilt + iω over its value at tilt) dω by the trapezoidal rule.

    With spacing h the rule gives the tail probability plus its images at distance 2π/h, damped by
    the tilt; the first h makes them negligible for a normal overlap, and it is halved until the
    sum stands still.
    """
    spread = np.sqrt(one.variance + two.variance + np.maximum(problem.extra, 0.0))
    spread = np.maximum(spread, np.sqrt(problem.variance))
    step = 2.0 * np.pi / (10.0 * spread + 38.0 / np.abs(tilt))
    integrand = _Integrand(problem, tilt, one, two)
    total = step * (_sum(integrand, step, 0.0) - 0.5)
    active = np.arange(len(step))
    for _ in range(8):
        part = integrand.pick(active)
        h = step[active]
        finer = 0.5 * (total[active] + h * _sum(part, h, 0.5))
        # a sum that was given up is NaN, and compares false
        moved = np.abs(finer - total[active]) > 3.0 * part.tolerance * np.abs(finer)
        total[active] = finer
        step[active] = 0.5 * h
        active = active[moved]
        if not len(active):
            return total / np.pi
    total[active] = np.nan
    return total / np.pi


def _sum(integrand: _Integrand, step: np.ndarray, shift: float) -> np.ndarray:
    """Sum of the real part over ω = (shift + m) h, m = 0, 1, ... until the rest is negligible."""
    total = np.zeros(len(step))
    active = np.arange(len(step))
    base = 0
    while len(active):
        part = integrand.pick(active)
        values = part.block(step[active], base, shift)
        total[active] += values.real.sum(axis=1)
        base += BLOCK
        # a power law in ω leaves about m times the last term; below that there is only noise
        last = np.abs(values[:, -4:]).max(axis=1) / np.abs(total[active])
        active = active[~((last * base < part.tolerance) | (last < 0.3 * part.tolerance))]
        if base >= MOST_NODES:
            total[active] = np.nan
            break
    return total


class _Integrand:
    """The integrand over its value at ω = 0, for M problems."""

    def __init__(self, problem: _Problem, tilt: np.ndarray, one: TiltedGrid, two: TiltedGrid):
        self.problem, self.tilt, self.one, self.two = problem, tilt, one, two
        # logarithms of this size were subtracted to get the weights
        size = np.abs(tilt) * (np.abs(one.centre) + np.abs(two.centre))
        size = size + np.abs(one.log_mass) + np.abs(two.log_mass)
        self.tolerance = TOLERANCE + 8.0 * np.finfo(float).eps * size

    def pick(self, index: np.ndarray) -> _Integrand:
        if len(index) == len(self.tilt):
            return self
        return _Integrand(
            self.problem.pick(index), self.tilt[index], self.one.pick(index), self.two.pick(index)
        )

    def block(self, step: np.ndarray, base: int, shift: float) -> np.ndarray:
        """Values at ω = (shift + base + m) h for m < BLOCK."""
        omega = step[:, None] * (shift + base + np.arange(BLOCK))
        p, c = self.problem, self.tilt[:, None]
        phase = self.one.centre + self.two.centre - p.gap
        value = c / (c + 1j * omega)
        # variance of the normal factor: v, less that of the mean noise still inside a transform
        variance = p.variance.copy()
        contracting = p.extra < -1e-9 * p.variance
        for maximum, grid in ((p.first, self.one), (p.second, self.two)):
            own = maximum.own_mean_variance
            delicate = contracting & (0.5 * omega[:, -1] ** 2 * own > AFFORDABLE_GROWTH)
            i = np.flatnonzero(~delicate)
            if len(i):
                part = grid.pick(i)
                inside = _characteristic(part, step[i], base + shift)
                # beyond, the transform has vanished but its sum over the grid comes back
                resolved = np.pi / np.maximum(part.step * maximum.scale[i], 1e-300)
                value[i] *= np.where(omega[i] <= resolved[:, None], inside, 0.0)
                variance[i] -= own[i]
            i = np.flatnonzero(delicate)
            if len(i):
                value[i] *= maximum.pick(i).transform_of_deviations(
                    self.tilt[i], omega[i], grid.pick(i)
                )
        left = variance[:, None]
        value *= np.exp(1j * omega * (phase[:, None] + c * left) - 0.5 * omega**2 * left)
        return value


def _characteristic(grid: TiltedGrid, step: np.ndarray, base: float) -> np.ndarray:
    """Σ_j p_j exp(i ω x_j) at BLOCK equidistant ω, as a product of two small matrices."""
    inner = int(np.sqrt(BLOCK))
    x = step[:, None] * grid.positions
    left = np.exp(1j * (base + inner * np.arange(inner))[:, None] * x[:, None, :])
    left *= grid.weights[:, None, :]
    right = np.exp(1j * x[:, :, None] * np.arange(inner))
    return (left @ right).reshape(len(step), BLOCK)
