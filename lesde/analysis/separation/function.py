"""The separation function F: the probability that two normal samples of given sizes separate."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import numpy as np
from scipy.special import log_ndtr

from lesde.analysis.separation.maxima import Maximum, TiltedGrid, pick
from lesde.checks import check_finite_array

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


def separation_function(
    gap: Any, n1: Any, n2: Any, s1: Any = 1.0, s2: Any = 1.0, extra_variance: Any = 0.0
) -> Separation:
    """Probability that every one of n₁ samples lies above every one of n₂ samples.

    The samples are independent normals with standard deviations ``s1`` and ``s2`` about means that
    lie ``gap`` apart:

        F = ∫ n₂ φ(y) Φ(y)^(n₂−1) Φ((gap − s₂ y)/s₁)^(n₁) dy .

    ``extra_variance`` lets the distance of the two means be random as well, normal about ``gap``:
    the result is E F(gap + R) with R ~ N(0, extra_variance). It may be negative down to
    −(s₁²/n₁ + s₂²/n₂), which says that the *realised* means of the samples vary less than those of
    independent samples do; at that end they are exactly ``gap`` apart.

    Parameters
    ----------
    gap : array_like
        Distance of the means, any finite value.
    n1, n2 : array_like of int
        Samples of the upper and of the lower class, at least 1.
    s1, s2, extra_variance : array_like
        In units, and squared units, of ``gap``. All arguments broadcast.

    Returns
    -------
    Separation
        Named tuple ``probability, log_probability, log_failure``, float64 of the broadcast shape;
        ``log_failure`` is log(1 − probability) and keeps its digits when the probability rounds to 1.

    Notes
    -----
    Against 30-digit quadrature the logarithms are right to 1e-11 relative for gaps of 0 to 10⁶ and 1 to
    10⁷ samples; about 1 ms of one core per value. With a negative extra variance, from about five samples
    per class on, 0.2 s at most. With fewer the integrand falls as a power only, and the cost grows as
    sqrt((s₁²/n₁ + s₂²/n₂)/v), v being the variance left: up to 100 ms for a ratio of 10, seconds for 10⁵;
    beyond that the value is NaN, with a warning.

    Examples
    --------
    >>> result = separation_function([2.0, 20.0], n1=100, n2=100)
    >>> [f"{value:.6g}" for value in result.log_failure]
    ['-8.33438e-15', '-94.3627']
    """
    names = ("gap", "n1", "n2", "s1", "s2", "extra_variance")
    given = (gap, n1, n2, s1, s2, extra_variance)
    arrays = [check_finite_array(name, value) for name, value in zip(names, given, strict=True)]
    for name, array in zip(names[1:5], arrays[1:5], strict=True):
        if name in ("n1", "n2") and ((array < 1) | (array != np.floor(array))).any():
            raise ValueError(f"{name} must hold whole numbers of at least 1; got {array.min():g}.")
        if (array < 0).any():
            raise ValueError(f"{name} must hold standard deviations >= 0; got {array.min():g}.")
    try:
        arrays = list(np.broadcast_arrays(*arrays))
    except ValueError as error:
        raise ValueError(f"the arguments must broadcast together: {error}") from None
    d, m1, m2, r1, r2, extra = (array.ravel() for array in arrays)
    own = r1**2 / m1 + r2**2 / m2
    if (extra < -own * (1.0 + 1e-12)).any():
        i = int(np.argmin(extra + own))
        raise ValueError(
            f"extra_variance must be at least -(s1²/n1 + s2²/n2) = {-own[i]:g}; got {extra[i]:g}."
        )
    upper, lower = Maximum.of_identical(m1, r1), Maximum.of_identical(m2, r2)
    result = separation_of_maxima(d, upper, lower, np.maximum(own + extra, 0.0))
    return Separation(*(values.reshape(arrays[0].shape)[()] for values in result))


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

    All arguments hold M problems; so do the results.
    """
    first, second = upper, lower
    still = (first.scale == 0) & (second.scale == 0)
    easy = still | ((first.number == 1) & (second.number == 1))
    beyond = gap - first.offsets.max(axis=1) - second.offsets.max(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = beyond / np.sqrt(variance)
    ratio = np.where(variance > 0, ratio, np.where(beyond > 0, np.inf, -np.inf))
    # deviations from a mean cannot all be negative, so two classes whose means coincide overlap
    means = sum((m.copies * m.offsets).sum(axis=1) / m.number for m in (first, second))
    ratio = np.where(~easy & (variance == 0) & (gap <= means), -np.inf, ratio)
    log_p, log_q = log_ndtr(ratio), log_ndtr(-ratio)
    hard = np.flatnonzero(~easy & ((variance > 0) | (gap > means)))
    chunk = max(1, CHUNK // max(first.offsets.shape[1], second.offsets.shape[1]))
    for part in (hard[i : i + chunk] for i in range(0, len(hard), chunk)):
        problem = pick(_Problem(gap, first, second, variance), part)
        log_p[part], log_q[part] = _solve(problem)
    lost = np.isnan(log_p)
    if lost.any():
        warnings.warn(
            f"{int(lost.sum())} of {len(gap)} separation probabilities are NaN: the classes are so small, and "
            f"their means so fixed, that the integral needs more than {MOST_NODES} nodes. Simulate these.",
            stacklevel=3,
        )
    return Separation(np.exp(log_p), log_p + 0.0, log_q + 0.0)


def log_complement(log_p: np.ndarray) -> np.ndarray:
    """log(1 − exp(log_p)) for log_p ≤ 0."""
    log_p = np.minimum(log_p, 0.0)
    with np.errstate(divide="ignore"):
        return np.where(log_p > -np.log(2.0), np.log(-np.expm1(log_p)), np.log1p(-np.exp(log_p)))


class _Problem(NamedTuple):
    """M problems: a normal gap of two classes, of a mean and a variance, and the maxima of their overlap."""

    gap: np.ndarray
    first: Maximum
    second: Maximum
    variance: np.ndarray

    @property
    def extra(self) -> np.ndarray:
        """Variance of the gap less that of the means of independent samples."""
        return self.variance - self.first.own_mean_variance - self.second.own_mean_variance


def _solve(problem: _Problem) -> tuple[np.ndarray, np.ndarray]:
    """Logarithms of the probabilities and of their complements, by the integral through the saddle point."""
    gap, *maxima, variance = problem
    unit = np.hypot(maxima[0].scale, maxima[1].scale)
    first, second = (Maximum(m.scale / unit, m.offsets / unit[:, None], m.copies) for m in maxima)
    problem = _Problem(gap / unit, first, second, variance / unit**2)
    side, tilt = _saddle(problem)
    one, two = first.tilted(tilt, FINE_GRID), second.tilted(tilt, FINE_GRID)
    log_peak = one.log_mass + two.log_mass + 0.5 * tilt**2 * problem.extra
    log_peak -= tilt * problem.gap + np.log(np.abs(tilt))
    # logarithms of this size were subtracted to get the weights
    size = np.abs(tilt) * (np.abs(one.centre) + np.abs(two.centre))
    size = size + np.abs(one.log_mass) + np.abs(two.log_mass)
    tolerance = TOLERANCE + 8.0 * np.finfo(float).eps * size
    value = _integral(_Integrand(problem, tilt, one, two, tolerance))
    with np.errstate(invalid="ignore"):
        log_rare = np.minimum(log_peak + np.log(value), 0.0)
    log_other = log_complement(log_rare)
    failure = side > 0  # is the rarer event
    return np.where(failure, log_other, log_rare), np.where(failure, log_rare, log_other)


def _saddle(problem: _Problem) -> tuple[np.ndarray, np.ndarray]:
    """Point of the real axis where the integrand is least, on the side ±1 of the rarer event.

    Any point of that side gives the same integral, so a rough one serves: Newton's method for a convex
    function of |c|, kept inside a bracket.
    """

    def cumulants(tilt: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and variance of the overlap and the gap's noise, tilted."""
        one, two = (m.tilted(tilt, SEARCH_GRID) for m in (problem.first, problem.second))
        mean = one.centre + two.centre + tilt * problem.extra
        return mean, one.variance + two.variance + problem.extra

    mean, spread = cumulants(np.zeros(len(problem.gap)))
    spread = np.maximum(spread, 1e-300)
    side = np.where(problem.gap >= mean, 1.0, -1.0)
    c = np.abs(problem.gap - mean) / spread + 1.0 / np.sqrt(spread)
    low, high = np.zeros(len(c)), np.full(len(c), np.inf)
    for _ in range(80):
        mean, spread = cumulants(side * c)
        slope = side * (mean - problem.gap) - 1.0 / c
        curve = np.maximum(spread, 0.0) + 1.0 / c**2
        far = np.abs(slope) > 0.05 * np.sqrt(curve)
        if not far.any():
            break
        low, high = np.where(slope < 0, c, low), np.where(slope < 0, high, c)
        target = np.clip(c - slope / curve, 0.05 * c, 20.0 * c)
        inside = (target > low) & (target < high)
        with np.errstate(invalid="ignore"):
            target = np.where(inside, target, np.sqrt(low * high))
        c = np.where(far, target, c)
    return side, side * c


def _integral(integrand: _Integrand) -> np.ndarray:
    """(1/π) ∫₀^∞ Re(integrand at tilt + iω over its value at tilt) dω by the trapezoidal rule.

    Spacing h adds images at distance 2π/h, damped by the tilt, negligible for a normal overlap at the first h,
    which is halved until the sum stands still.
    """
    problem, tilt, one, two, _ = integrand
    spread = np.sqrt(one.variance + two.variance + np.maximum(problem.extra, 0.0))
    spread = np.maximum(spread, np.sqrt(problem.variance))
    step = 2.0 * np.pi / (10.0 * spread + 38.0 / np.abs(tilt))
    total = step * (_sum(integrand, step, 0.0) - 0.5)
    active = np.arange(len(step))
    for _ in range(8):
        part, h = pick(integrand, active), step[active]
        finer = 0.5 * (total[active] + h * _sum(part, h, 0.5))
        # a sum that was given up is NaN, and compares false
        moved = np.abs(finer - total[active]) > 3.0 * part.tolerance * np.abs(finer)
        total[active], step[active] = finer, 0.5 * h
        active = active[moved]
        if not len(active):
            return total / np.pi
    total[active] = np.nan
    return total / np.pi


def _sum(integrand: _Integrand, step: np.ndarray, shift: float) -> np.ndarray:
    """Sum of the real part over ω = (shift + m) h, m = 0, 1, ... until the rest is negligible."""
    total = np.zeros(len(step))
    active = np.arange(len(step))
    for base in range(0, MOST_NODES, BLOCK):
        part = pick(integrand, active)
        values = part.block(step[active], base, shift)
        total[active] += values.real.sum(axis=1)
        # a power law in ω leaves about m times the last term; below that there is only noise
        last = np.abs(values[:, -4:]).max(axis=1) / np.abs(total[active])
        done = (last * (base + BLOCK) < part.tolerance) | (last < 0.3 * part.tolerance)
        active = active[~done]
        if not len(active):
            return total
    total[active] = np.nan
    return total


class _Integrand(NamedTuple):
    """The integrand over its value at ω = 0, for M problems."""

    problem: _Problem
    tilt: np.ndarray
    one: TiltedGrid
    two: TiltedGrid
    tolerance: np.ndarray

    def block(self, step: np.ndarray, base: int, shift: float) -> np.ndarray:
        """Values at ω = (shift + base + m) h for m < BLOCK."""
        omega = step[:, None] * (shift + base + np.arange(BLOCK))
        p, c = self.problem, self.tilt[:, None]
        value = c / (c + 1j * omega)
        # variance of the normal factor: v, less that of the mean noise still inside a transform
        left = p.variance[:, None].copy()
        contracting = p.extra < -1e-9 * p.variance
        for maximum, grid in ((p.first, self.one), (p.second, self.two)):
            own = maximum.own_mean_variance
            delicate = contracting & (0.5 * omega[:, -1] ** 2 * own > AFFORDABLE_GROWTH)
            i = np.flatnonzero(~delicate)
            inside = _characteristic(pick(grid, i), step[i], base + shift)
            # beyond, the transform has vanished but its sum over the grid comes back
            resolved = np.pi / np.maximum(grid.step * maximum.scale, 1e-300)[i, None]
            value[i] *= np.where(omega[i] <= resolved, inside, 0.0)
            left[i, 0] -= own[i]
            i = np.flatnonzero(delicate)
            few = pick(maximum, i)
            value[i] *= few.transform_of_deviations(self.tilt[i], omega[i], pick(grid, i))
        phase = (self.one.centre + self.two.centre - p.gap)[:, None]
        return value * np.exp(1j * omega * (phase + c * left) - 0.5 * omega**2 * left)


def _characteristic(grid: TiltedGrid, step: np.ndarray, base: float) -> np.ndarray:
    """Σ_j p_j exp(i ω x_j) at BLOCK equidistant ω, as a product of two small matrices."""
    inner = int(np.sqrt(BLOCK))
    x = step[:, None] * grid.positions
    left = np.exp(1j * (base + inner * np.arange(inner))[:, None] * x[:, None, :])
    left *= grid.weights[:, None, :]
    right = np.exp(1j * x[:, :, None] * np.arange(inner))
    return (left @ right).reshape(len(step), BLOCK)
