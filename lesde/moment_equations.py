"""Equations of the first two moments of the class means: the discrete process and three SDEs.

Everything is quadratic, so the moments close: mean μ and covariance V of the class means x, and the
expectation W of the covariance within classes, which enters the sampling noise only through its
expectation because deviations from the class means are independent of the class means.

Discrete process, iteration t → t + h:

    μ ← (1 + hM) μ
    V ← V + h(MV + VMᵀ) + hQ + h² (E UUᵀ − bbᵀ),   U the kick, b = Mμ its mean
    W_k ← W_k + h (1 − 1/n_k) σ_kσ_kᵀ

SDE with drift D x, noise covariance A and sampling noise h C:

    dμ/dt = Dμ,   dV/dt = DV + VDᵀ + A + h E C,   dW_k/dt = (1 − 1/n_k) σ_kσ_kᵀ .
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.integrate import solve_ivp

from lesde.derivation.coefficients import Coefficients
from lesde.errors import Diverged
from lesde.sampling_noise import (
    block_operator,
    modified_drift,
    modified_noise,
    sampling_covariance,
)
from lesde.time_derivative import drift_derivative, noise_derivative

__all__ = ["MomentEquations", "Moments"]

RELATIVE = 1e-12
"""Tolerance of the solver a step; the result is right to about ten times this, relatively."""
ABSOLUTE = 1e-14
CHUNK = 1024
OVERFLOW = 1e150
"""A solver that gives up with numbers beyond this met an overflow."""


@dataclass(frozen=True)
class Moments:
    """First and second moments at one time.

    Attributes
    ----------
    mean : ndarray (K·p,)
    covariance : ndarray (K·p, K·p)
        Of the class means.
    within : ndarray (K, p, p)
        Expected empirical covariance within classes, divisor n_k.
    """

    mean: np.ndarray
    covariance: np.ndarray
    within: np.ndarray

    def packed(self) -> np.ndarray:
        """All numbers in one vector."""
        return np.concatenate([self.mean, self.covariance.ravel(), self.within.ravel()])

    def unpacked(self, vector: np.ndarray) -> Moments:
        """Moments of the shapes of these from such a vector."""
        n = len(self.mean)
        covariance = vector[n : n + n * n].reshape(n, n)
        return Moments(vector[:n], covariance, vector[n + n * n :].reshape(self.within.shape))


@dataclass(frozen=True)
class Rates:
    """What the equations hold at one time.

    Attributes
    ----------
    kicks : ndarray (K, K)
        E_kl.
    drift : ndarray (K·p, K·p)
        M.
    noise : ndarray (K·p, K·p)
        Covariance of the class means' own noise, a unit of time.
    growth : ndarray (K, p, p)
        dW/dt.
    effective : ndarray (K·p, K·p)
        The drift of the SDE: M, or that of the modified equation.
    """

    kicks: np.ndarray
    drift: np.ndarray
    noise: np.ndarray
    growth: np.ndarray
    effective: np.ndarray


class MomentEquations:
    """The equations of one process at one learning rate.

    Parameters
    ----------
    coefficients : Coefficients
        Of a kernel that depends on classes and time only.
    process : {"sgd", "plain", "sampling", "modified"}
    rate : float
        The learning rate h; 0 for "plain".
    start, end : float
        The times within which callables may be asked for their derivative.
    """

    def __init__(
        self, coefficients: Coefficients, process: str, rate: float, start: float, end: float
    ):
        self.coefficients, self.process, self.h = coefficients, process, rate
        self.counts = coefficients.counts
        self.weights = self.counts / self.counts.sum()
        self.H = coefficients.transform.array()
        self.K, self.p = len(self.counts), self.H.shape[-1]
        modified = process == "modified"
        self.slope = drift_derivative(coefficients, start, end) if modified else None
        self.noise_slope = noise_derivative(coefficients, start, end) if modified else None
        self.constant = coefficients.drift_table.is_constant and coefficients.noise.is_constant
        self._known: Rates | None = None

    def rates(self, times: np.ndarray) -> Callable[[int], Rates]:
        """What the equations hold at the times, by their position; tables are made at once."""
        if self.constant and self._known is not None:
            known = self._known
            return lambda i: known
        at = times[:1] if self.constant else times
        kicks = self.coefficients.kicks(at)
        matrices = self.coefficients.weights(at)
        factors = self.coefficients.noise.factor(at)
        slopes = None
        if self.slope is not None and self.noise_slope is not None:
            slopes = self.slope(at)
            factors = factors - 0.5 * self.h * self.noise_slope(at)

        def rates(i: int) -> Rates:
            slope = None if slopes is None else slopes[i]
            return self._rates(kicks[i], matrices[i], factors[i], slope)

        if self.constant:
            known = self._known = rates(0)
            return lambda i: known
        return rates

    def _rates(
        self, kicks: np.ndarray, matrix: np.ndarray, factor: np.ndarray, slope: np.ndarray | None
    ) -> Rates:
        K, p = self.K, self.p
        M = block_operator(matrix, self.H)
        covariance = factor @ factor.swapaxes(1, 2)
        growth = (1 - 1 / self.counts)[:, None, None] * covariance
        own = np.zeros((K, p, K, p))
        classes = np.arange(K)
        if slope is None:
            own[classes, :, classes] = covariance / self.counts[:, None, None]
            return Rates(kicks, M, own.reshape(K * p, K * p), growth, M)
        # The maps on class means, applied to all unit vectors at once: columns become rows.
        transform, derivative = self.coefficients.transform, slope

        def push(means: np.ndarray) -> np.ndarray:
            return matrix @ transform(means)

        def turn(means: np.ndarray) -> np.ndarray:
            return derivative @ transform(means)

        units = np.eye(K * p).reshape(K * p, K, p)
        drift = modified_drift(push, turn, units, self.h).reshape(K * p, K * p).T
        own[classes, :, classes] = factor / np.sqrt(self.counts)[:, None, None]
        columns = own.reshape(K * p, K * p).T.reshape(K * p, K, p)
        root = modified_noise(push, columns, self.h).reshape(K * p, K * p)
        return Rates(kicks, M, root.T @ root, growth, drift)

    def _kick_covariance(self, rates: Rates, state: Moments) -> np.ndarray:
        """E UUᵀ − b bᵀ for the kick U, with b = M μ: E C + M V Mᵀ."""
        K, p = self.K, self.p
        blocks = np.einsum("kikj->kij", state.covariance.reshape(K, p, K, p))
        mean = state.mean.reshape(K, p)
        return sampling_covariance(rates.kicks, self.weights, self.H, mean, blocks + state.within)

    def derivative(self, rates: Rates, state: Moments) -> Moments:
        """d/dt of the moments of the SDE."""
        D, V = rates.effective, state.covariance
        carried = D @ V
        change = carried + carried.T + rates.noise
        if self.h:
            spread = rates.drift @ V @ rates.drift.T
            change = change + self.h * (self._kick_covariance(rates, state) - spread)
        return Moments(D @ state.mean, change, rates.growth)

    def euler(self, rates: Rates, state: Moments, dt: float) -> Moments:
        """The moments after one Euler-Maruyama step of the SDE."""
        D, V = rates.effective, state.covariance
        change = self.derivative(rates, state)
        mean, within = state.mean + dt * change.mean, state.within + dt * change.within
        return Moments(mean, V + dt * change.covariance + dt**2 * (D @ V @ D.T), within)

    def iterate(self, rates: Rates, state: Moments) -> Moments:
        """The moments after one iteration of the discrete process.

        x ← x + hU + √h ν, and cov(x, U) = V Mᵀ.
        """
        h, V = self.h, state.covariance
        carried = rates.drift @ V
        covariance = V + h * (carried + carried.T + rates.noise)
        covariance += h**2 * self._kick_covariance(rates, state)
        mean = state.mean + h * (rates.drift @ state.mean)
        return Moments(mean, covariance, state.within + h * rates.growth)

    def iterations(self, state: Moments, times: np.ndarray) -> Moments:
        """The moments after iterations that begin at the times."""
        for first in range(0, len(times), CHUNK):
            part = times[first : first + CHUNK]
            rates = self.rates(part)
            for i in range(len(part)):
                state = self.iterate(rates(i), state)
        return state

    def steps(self, state: Moments, starts: np.ndarray, widths: np.ndarray) -> Moments:
        """The moments after Euler steps."""
        for first in range(0, len(starts), CHUNK):
            part = starts[first : first + CHUNK]
            rates = self.rates(part)
            for i in range(len(part)):
                state = self.euler(rates(i), state, float(widths[first + i]))
        return state

    def pieces(self, times: np.ndarray) -> np.ndarray:
        """The times with those between at which the solver starts anew, so that it misses nothing.

        On each piece kernel and noise are resolved by one polynomial.
        """
        if len(times) == 1:
            return times
        edges = [times]
        if not self.coefficients.drift_table.is_constant:
            edges.append(self.coefficients.kernel_panels(times).starts)
        noise = self.coefficients.noise
        noise.check_variance(times)
        if not noise.is_constant:
            edges.append(noise.panels(times).starts)
        return np.unique(np.concatenate(edges))

    def solve(self, state: Moments, start: float, end: float) -> Moments:
        """The moments of the SDE at ``end`` from those at ``start``, two neighbours of :meth:`pieces`.

        Raises
        ------
        Diverged
            Where they overflow.
        ValueError
            Where the solver cannot go on, because kernel or noise change too abruptly.
        """
        # A kernel may have no value at an end, such as log(t) at 0.
        part = np.finfo(float).eps * (end - start)
        inside = (
            max(np.nextafter(start, end), start + part),
            min(np.nextafter(end, start), end - part),
        )

        last, largest = start, 0.0

        def right(t: float, y: np.ndarray) -> np.ndarray:
            nonlocal last, largest
            last, largest = t, float(np.abs(y * unit).max())
            # A kernel may jump at a saved time: the interval knows its own side only.
            at = np.clip([t], *inside)
            return self.derivative(self.rates(at)(0), state.unpacked(y * unit)).packed() / unit

        # The solver squares what it estimates: in units of a power of two it does not overflow with that.
        unit = np.exp2(np.floor(np.log2(self._scale(state, start, end))))
        if not np.isfinite(unit).all():
            raise Diverged(end, "the moments", "end `times` earlier or weaken kernel and noise")
        with np.errstate(over="ignore", invalid="ignore"):
            solution = solve_ivp(
                right, (start, end), state.packed() / unit, method="DOP853", t_eval=[end],
                rtol=RELATIVE, atol=ABSOLUTE,
            )  # fmt: skip
        result = solution.y[:, -1] * unit if solution.success else None
        if result is not None and np.isfinite(result).all():
            return state.unpacked(result)
        if not largest < OVERFLOW:  # NaN counts
            raise Diverged(last, "the moments", "end `times` earlier or weaken the kernel")
        raise ValueError(
            f"the moments cannot be integrated from {start:g} to {end:g}: kernel or noise change too "
            f"abruptly at t = {last:g} ({solution.message}). End `times` earlier, or give a smoother "
            f"formula."
        )

    def _scale(self, state: Moments, start: float, end: float) -> np.ndarray:
        """Sizes of mean, covariance and within, of which the solver may err by a tiny share."""
        width = end - start
        change = self.derivative(self.rates(np.array([start + width / 2]))(0), state)
        parts = []
        for name in ("mean", "covariance", "within"):
            value, slope = getattr(state, name), getattr(change, name)
            size = np.abs(value).max() + width * np.abs(slope).max()
            parts.append(np.full(value.size, size if size > 0 else 1.0))
        return np.concatenate(parts)
