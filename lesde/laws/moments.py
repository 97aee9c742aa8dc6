"""First and second moments of the class means: of SGD, and of the SDEs that approximate it."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import sympy as sp
import xarray as xr
from scipy.integrate import solve_ivp
from sympy.core.function import AppliedUndef

from lesde.checks import check_choice, check_finite_array, check_real, check_times, shown
from lesde.derivation import derive
from lesde.derivation.coefficients import Coefficients
from lesde.errors import Diverged
from lesde.model.formula import TIME, EntryTable, Formula
from lesde.model.lesde import Initial, read_initial
from lesde.paths import seen_times, with_asked_times

if TYPE_CHECKING:
    from lesde.model.lesde import LESDE

__all__ = [
    "PROCESSES",
    "MomentEquations",
    "Moments",
    "block_operator",
    "difference",
    "drift_derivative",
    "modified_drift",
    "modified_noise",
    "moments",
    "noise_derivative",
    "sampling_covariance",
    "sampling_increment",
]


# --------------------------------------------------------------------------------------------------
# Derivatives in time of kernels and noise: exact for formulas, finite differences for callables.

NODES = 7
STEP = 5e-3
ROUGH = 1e-2
"""Two estimates may differ by this share of the callable's size, per spacing of the nodes."""

Times = Callable[[np.ndarray], np.ndarray]


def drift_derivative(coefficients: Coefficients, start: float, end: float) -> Times:
    """d/dt of w_l E_kl(t): a function from times (time,) to (time, class, class).

    Parameters
    ----------
    coefficients : Coefficients
    start, end : float
        The times within which callables may be asked.
    """
    table = coefficients.drift_table
    slopes = [_slope(value, table.functions, start, end) for value in table.values]
    functions = {name: f for slope in slopes for name, f in slope.functions.items()}
    names = tuple(f"time derivative of {sp.sstr(value)}" for value in table.values)
    return EntryTable(tuple(slope.expression for slope in slopes), table.index, functions, names)


def noise_derivative(coefficients: Coefficients, start: float, end: float) -> Times:
    """d/dt of σ_k(t): a function from times (time,) to (time, class, feature, feature).

    Parameters are those of :func:`drift_derivative`.
    """
    noise = coefficients.noise
    K, p = noise.n_classes, noise.n_features
    if noise.is_constant:
        return lambda times: np.zeros((len(times), K, p, p))
    slopes = {f: _slope(f.expression, f.functions, start, end) for f in set(noise.given.ravel())}

    def derivative(times: np.ndarray) -> np.ndarray:
        values = {
            formula: slope(times, f"time derivative of the noise {formula.expression}")
            for formula, slope in slopes.items()
        }
        flat = np.stack([values[formula] for formula in noise.given.ravel()], axis=1)
        given = flat.reshape(len(times), *noise.given.shape)
        if noise.given.ndim < 2:
            scale = np.broadcast_to(given.reshape(len(times), -1), (len(times), K))
            return scale[:, :, None, None] * np.eye(p)
        return np.broadcast_to(given.reshape(len(times), -1, p, p), (len(times), K, p, p))

    return derivative


def _slope(
    expression: sp.Expr, functions: Mapping[str, Callable[..., Any]], start: float, end: float
) -> Formula:
    """The derivative of a formula, with differences for the callables in it."""
    used = dict(functions)
    replaced: dict[sp.Expr, sp.Expr] = {}
    for atom in expression.atoms(AppliedUndef):
        name = atom.func.__name__
        if name in functions:
            used[f"{name}_slope"] = difference(functions[name], name, start, end)
            replaced[sp.Derivative(atom, TIME)] = sp.Function(f"{name}_slope", real=True)(TIME)
    return Formula(sp.diff(expression, TIME).xreplace(replaced), used)


def difference(
    function: Callable[..., Any], name: str, start: float, end: float
) -> Callable[[Any], np.ndarray]:
    """The derivative of a vectorised callable by differences of sixth order, never outside the times.

    Nodes are 1/200 apart, or 1/100 of the times' length where that is less; near an end they all lie on
    the inner side. A second estimate from nodes half as far apart must agree: a jump has no derivative.

    Raises
    ------
    ValueError
        When called near a jump, or where the callable changes much within 1/200.
    """
    length = end - start
    spacing = max(min(STEP, length / 100), 1e-7 * max(abs(start), abs(end)))
    spacing = min(spacing, length / (NODES - 1))
    unit = _slope_weights(np.arange(NODES))

    def estimate(t: np.ndarray, width: float) -> tuple[np.ndarray, np.ndarray]:
        left = np.clip(t - width * (NODES // 2), start, max(start, end - width * (NODES - 1)))
        nodes = np.clip(left[..., None] + width * np.arange(NODES), start, end)
        values = np.broadcast_to(np.asarray(function(nodes), dtype=np.float64), nodes.shape)
        return (unit((t - left) / width) * values).sum(-1) / width, np.abs(values).max(-1)

    def slope(times: Any) -> np.ndarray:
        t = np.asarray(times, dtype=np.float64)
        coarse, size = estimate(t, spacing)
        fine, _ = estimate(t, spacing / 2)
        rough = np.abs(coarse - fine) * spacing > ROUGH * size
        if rough.any():
            raise ValueError(
                f"the function {name} has no usable derivative at t = {float(t[rough].flat[0]):g}, "
                f"which the modified equation needs: it jumps there, or changes much within "
                f"{spacing:g}. Give a smooth function or a formula, or use process='sampling'."
            )
        return fine

    return slope


def _slope_weights(nodes: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Weights (..., node) of the interpolating polynomial's derivative at points in units of nodes."""
    # Lagrange polynomials as power series, differentiated; seven nodes leave them well conditioned.
    centre = nodes.mean()
    series = np.linalg.inv(np.vander(nodes - centre, increasing=True))  # (power, node)
    powers = np.arange(1, len(nodes))

    def weights(x: np.ndarray) -> np.ndarray:
        return ((x[..., None] - centre) ** (powers - 1) * powers) @ series[1:]

    return weights


# --------------------------------------------------------------------------------------------------
# The sampling noise of SGD, and the SDE of second weak order: maps on class means.

Push = Callable[[Any], Any]
"""A linear map of class means."""


def modified_drift(push: Push, slope: Push, means: Any, rate: float) -> Any:
    """Drift of the modified equation, b − (h/2)(M b + Ṁ x), in the shape of ``means``.

    Parameters
    ----------
    push : callable
        x ↦ M x = Σ_l w_l E_kl(t) H_l X̄^l.
    slope : callable
        x ↦ Ṁ x, the same with the time derivative of the class matrix (see
        :func:`lesde.time_derivative.drift_derivative`).
    means : array or tensor
        x, in whatever layout the two maps take.
    rate : float
        The learning rate h; 0 gives the drift b of the plain SDE.
    """
    drift = push(means)
    return drift - 0.5 * rate * (push(drift) + slope(means))


def modified_noise(push: Push, noise: Any, rate: float) -> Any:
    """(1 − hM/2) applied to the noise of the class means, in the shape of ``noise``.

    What it adds to the mean of class k, −(h/2) Σ_l w_l E_kl H_l ν_l, is added to every sample of class k:
    the deviations of samples from their class mean have no other noise than in the plain SDE. Where σ
    depends on time, both are to be made with σ − (h/2)σ̇ (see
    :func:`lesde.time_derivative.noise_derivative`).

    Parameters
    ----------
    push : callable
        x ↦ M x.
    noise : array or tensor
        ν_k, the mean over class k of the samples' own noise.
    rate : float
        The learning rate h.
    """
    return noise - 0.5 * rate * push(noise)


def sampling_increment(
    kick: Push, means: Any, drift: Any, normals: Any, shared: Any, deviations: Any
) -> Any:
    """C^{1/2} applied to normals: one number a class and one vector a class.

    Σ_l √w_l [E_kl H_l (X̄^l z_l + d_l) − b_k z_l] has covariance C, for independent z_l ~ N(0, 1) and
    d_l ~ N(0, W_l). With one normal ξ_j a sample, z_l = n_l^{-1/2} Σ_j ξ_j and d_l = n_l^{-1/2} Σ_j Y_j ξ_j are such,
    Y_j being the deviations of the samples of class l from its mean. Every sample of class k gets the
    same increment: √(h dt) times this.

    Parameters
    ----------
    kick : callable
        x ↦ Σ_l √w_l E_kl(t) H_l x^l.
    means, drift : array or tensor
        X̄ and b = M X̄, in the layout of ``kick``.
    normals, shared : array or tensor
        z_l and Σ_l √w_l z_l, of shapes that broadcast against ``means``.
    deviations : array or tensor
        d, in the layout of ``kick``.
    """
    return kick(means * normals + deviations) - drift * shared


def block_operator(matrix: np.ndarray, transforms: np.ndarray) -> np.ndarray:
    """The matrix with blocks G_kl H_l, shape (K·p, K·p), of G (K, K) and H (K, p, p)."""
    K, p, _ = transforms.shape
    return np.einsum("kl,lij->kilj", matrix, transforms).reshape(K * p, K * p)


def sampling_covariance(
    kicks: np.ndarray,
    weights: np.ndarray,
    transforms: np.ndarray,
    mean: np.ndarray,
    second: np.ndarray,
) -> np.ndarray:
    """Covariance C of one kick for class means known to be ``mean``, plus Σ w_l E E ⊗ H_l T_l H_lᵀ.

    With T = W this is C itself. Where the class means are random, with mean ``mean`` and a covariance V,
    E C is this with T_l = V_ll + W_l, less M V Mᵀ. Products of the means are taken of their differences
    from b, so that nothing cancels.

    Parameters
    ----------
    kicks : ndarray (class, class)
        E_kl(t).
    weights : ndarray (class,)
        w_l.
    transforms : ndarray (class, feature, feature)
        H_l.
    mean : ndarray (class, feature)
    second : ndarray (class, feature, feature)
        T_l.

    Returns
    -------
    ndarray (K·p, K·p)
    """
    K, p = mean.shape
    pushed = np.einsum("lij,lj->li", transforms, mean)
    each = kicks[:, :, None] * pushed  # E_kl H_l X̄^l: (moved class, drawn class, feature)
    centred = each - (weights[:, None] * each).sum(1, keepdims=True)
    centred = (centred * np.sqrt(weights)[:, None]).transpose(0, 2, 1).reshape(K * p, K)
    spread = transforms @ second @ transforms.swapaxes(1, 2)
    pairs = kicks[:, None, :] * kicks[None, :, :] * weights  # (k, m, l)
    blocks = (pairs.reshape(K * K, K) @ spread.reshape(K, p * p)).reshape(K, K, p, p)
    return centred @ centred.T + blocks.transpose(0, 2, 1, 3).reshape(K * p, K * p)


# --------------------------------------------------------------------------------------------------
# Equations of the first two moments of the class means: the discrete process and three SDEs.

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


# --------------------------------------------------------------------------------------------------

PROCESSES = ("sgd", "plain", "sampling", "modified")
LARGEST = 300
"""Largest K·p: the state has (K·p)² numbers, and a step multiplies matrices of that size."""


def moments(
    model: LESDE,
    times: Any,
    initial: Any = None,
    learning_rate: float | Sequence[float] | None = None,
    process: str | Sequence[str] = "sgd",
    dt: float | None = None,
) -> xr.Dataset:
    """Mean and covariance of the class means, without simulation.

    Four processes can be asked for, at a learning rate h:

    - ``"sgd"``, the discrete process: at every iteration one sample is drawn and moves all others;
    - ``"plain"``, the LE-SDE, its limit for h → 0;
    - ``"sampling"``, the LE-SDE with the sampling noise √(hC) dB of SGD added;
    - ``"modified"``, that with drift and noise corrected to first order in h, so that its moments at a
      fixed time differ from those of ``"sgd"`` by O(h²). Those of the other two differ by O(h).

    Parameters
    ----------
    model : LESDE
        With a kernel that depends on classes and time only, and at most 300 class-mean features.
    times : array, shape (time,)
        Strictly increasing; ``times[0]`` is the time of the initial state. With ``"sgd"`` all
        processes are taken at the times of the nearest iterations, as in :func:`lesde.simulate`.
    initial : None or array, optional
        (class, feature) class means, every sample at its mean; (sample, feature) samples sorted by
        class; None, the default, for random means N(0, I/p), whose covariance is then included.
    learning_rate : float or sequence of float
        h. Needed by all processes but ``"plain"``, which does not depend on it and is repeated for
        every entry. A sequence becomes the dimension ``learning_rate``.
    process : str or sequence of str, default "sgd"
        A sequence becomes the dimension ``process``.
    dt : float, optional
        For the SDEs: the moments of their Euler-Maruyama scheme with steps of at most ``dt`` that
        divide every saved interval evenly. With ``process="sampling"`` and ``dt`` equal to h they are
        those of ``"sgd"``. By default the SDEs' own.

    Returns
    -------
    xarray.Dataset
        ``mean`` (time, class, feature); ``covariance`` (time, class, feature, class_, feature_) of the
        class means; ``within`` (time, class, feature, feature_), the expectation of the empirical
        covariance within classes (divisor n_k), initial deviations included. Dimensions ``process`` and
        ``learning_rate`` come first where asked for. Coordinates ``label`` (sample), ``count`` (class),
        ``learning_rate`` where given, and with ``"sgd"`` ``iteration`` ([learning_rate,] time) and,
        where times lie between iterations, ``asked_time``. All float64: the recursion and the Euler scheme to rounding, the SDEs to about 1e-11 relative.

    Raises
    ------
    TypeError, ValueError
        Naming the argument, what was given and what is allowed; for a kernel that depends on the
        features, whose moments do not close.
    Diverged
        Where the moments overflow.

    Notes
    -----
    The equations are in :mod:`lesde.moment_equations`, those of the modified equation in
    :mod:`lesde.sampling_noise`. ``"modified"`` needs the time derivative of kernel and noise: symbolic
    for formulas, finite differences of sixth order for Python callables. A formula with jumps has
    no derivative there, and then the order is 1.

    Cost: a few products of (K·p)×(K·p) matrices an iteration or step; on one core about 0.1 ms where they are
    small and 15 ms at 300 features. The SDEs' own moments take 0.1 s and 2 s.

    Examples
    --------
    >>> import lesde
    >>> model = lesde.LESDE(lesde.TwoLevel(alpha=2, beta=-1), n_classes=2, n_features=1)
    >>> m = lesde.moments(model, [0, 1], [[1.0], [-1.0]], learning_rate=0.1, process=["sgd", "plain"])
    >>> m["mean"].isel(time=-1, feature=0, **{"class": 0}).values.round(3).tolist()
    [4.046, 4.482]
    """
    from lesde.model.lesde import LESDE

    if not isinstance(model, LESDE):
        raise TypeError(f"model must be a lesde.LESDE; got {shown(model)}.")
    saved = check_times("times", times, minimum_length=1)
    start = read_initial(model, initial)
    names, several = _processes(process)
    rates, batched = _rates(learning_rate, names)
    if dt is not None:
        dt = check_real("dt", dt, 0.0, open_minimum=True)
        if "sgd" in names:
            raise ValueError(
                "dt is the Euler step of an SDE; got it with process='sgd', whose step is learning_rate. "
                "Leave dt out, or leave 'sgd' out of process."
            )
    coefficients = derive(model).coefficients()
    _check_model(model, coefficients)
    asked: np.ndarray = saved
    iterations: list[np.ndarray] = []
    if "sgd" in names:
        from lesde.paths import iteration_counts

        steps = [rate for rate in rates if rate is not None]
        iterations = [iteration_counts(asked, rate) for rate in steps]
        saved = seen_times(asked, steps, iterations)
    if "sgd" in names or "modified" in names or dt is not None:
        coefficients.weights(saved)  # a kernel that is not finite there says so by name
    coefficients.noise.factor(saved)

    cells: list[Moments] = []
    for name in names:
        track: list[Moments] = []
        for i, rate in enumerate(rates):
            if name != "plain" or not track:
                counts = iterations[i] if name == "sgd" else None
                track = _track(coefficients, saved, start, name, rate, dt, counts)
            cells += track
    clock = with_asked_times({"time": ("time", saved, {"long_name": "time"})}, asked)
    if iterations:
        about = {"long_name": "iteration"}
        values = np.stack(iterations) if batched else iterations[0]
        lead = ("learning_rate",) if batched else ()
        clock["iteration"] = ((*lead, "time"), values, about)
    return _dataset(model, clock, start, names, several, rates, batched, cells, dt)


def _processes(value: Any) -> tuple[list[str], bool]:
    if isinstance(value, str):
        return [check_choice("process", value, PROCESSES)], False
    if not isinstance(value, Sequence) or not value:
        raise TypeError(
            f"process must be one of {', '.join(map(repr, PROCESSES))}, or a list of them; got "
            f"{shown(value)}."
        )
    names = [check_choice("process", name, PROCESSES) for name in value]
    if len(set(names)) < len(names):
        raise ValueError(f"process must not repeat a name; got {shown(names)}.")
    return names, True


def _rates(value: Any, names: list[str]) -> tuple[list[float | None], bool]:
    if value is None:
        needy = [name for name in names if name != "plain"]
        if needy:
            raise ValueError(
                f"learning_rate must be given for process={needy[0]!r}; only 'plain', the limit of small "
                f"learning rates, has none."
            )
        return [None], False
    if not isinstance(value, Sequence) and np.ndim(value) == 0:
        value = value.item() if isinstance(value, np.ndarray | np.generic) else value
        return [check_real("learning_rate", value, 0.0, open_minimum=True)], False
    array = check_finite_array("learning_rate", value, [("L",)])
    if len(array) == 0 or (array <= 0).any() or len(np.unique(array)) < len(array):
        raise ValueError(
            f"learning_rate must hold distinct positive values, at least one; got "
            f"{shown(array.tolist())}."
        )
    return array.tolist(), True


def _check_model(model: LESDE, coefficients: Coefficients) -> None:
    if getattr(coefficients, "depends_on_features", False):
        raise ValueError(
            f"model must have a kernel that depends on classes and time only; got {shown(model.kernel)}, "
            f"for which the moments of the class means depend on all higher ones. Estimate them with "
            f"lesde.simulate."
        )
    size = model.n_classes * model.n_features
    if size > LARGEST:
        raise ValueError(
            f"model has n_classes·n_features = {size} class-mean features; moments are computed for up to "
            f"{LARGEST}. Take fewer features, or simulate with lesde.simulate."
        )


def _track(
    coefficients: Coefficients,
    times: np.ndarray,
    start: Initial,
    process: str,
    rate: float | None,
    dt: float | None,
    counts: np.ndarray | None,
) -> list[Moments]:
    """The moments of one process at one learning rate at all times, for SGD after so many iterations."""
    h = 0.0 if process == "plain" or rate is None else rate
    equations = MomentEquations(coefficients, process, h, float(times[0]), float(times[-1]))
    state = _initial_moments(coefficients, start)
    pieces = equations.pieces(times) if counts is None and dt is None else times
    track = [state]
    if counts is None and dt is not None:
        from lesde.paths import StepGrid

        grid = StepGrid.regular(times, dt)
    with np.errstate(over="ignore", invalid="ignore"):
        for i in range(1, len(times)):
            if counts is not None:
                at = times[0] + h * np.arange(counts[i - 1], counts[i])
                state = equations.iterations(state, at)
            elif dt is not None:
                part = slice(grid.saved[i - 1], grid.saved[i])
                state = equations.steps(state, grid.starts[part], grid.widths[part])
            else:
                ends = pieces[(pieces >= times[i - 1]) & (pieces <= times[i])].tolist()
                for left, right in itertools.pairwise(ends):
                    state = equations.solve(state, left, right)
            if not np.isfinite(state.packed()).all():
                raise Diverged(times[i], "the moments", "end `times` earlier or weaken the kernel")
            track.append(state)
    return track


def _initial_moments(coefficients: Coefficients, start: Initial) -> Moments:
    counts = coefficients.counts
    K, p = len(counts), coefficients.noise.n_features
    within = np.zeros((K, p, p))
    if start.offsets is not None:
        first = 0
        for k, n in enumerate(counts):
            rows = start.offsets[first : first + n]
            within[k] = rows.T @ rows / n
            first += n
    if start.means is None:
        return Moments(np.zeros(K * p), np.eye(K * p) / p, within)
    return Moments(start.means.ravel().copy(), np.zeros((K * p, K * p)), within)


def _dataset(
    model: LESDE,
    clock: dict[str, Any],
    start: Initial,
    names: list[str],
    several: bool,
    rates: list[float | None],
    batched: bool,
    cells: list[Moments],
    dt: float | None,
) -> xr.Dataset:
    K, p, T = model.n_classes, model.n_features, len(clock["time"][1])
    lead = [("process", len(names))] if several else []
    lead += [("learning_rate", len(rates))] if batched else []
    dims, sizes = [d for d, _ in lead], [n for _, n in lead]

    def gather(name: str, shape: tuple[int, ...]) -> np.ndarray:
        return np.stack([getattr(cell, name) for cell in cells]).reshape(*sizes, T, *shape)

    data: dict[str, Any] = {
        "mean": (
            (*dims, "time", "class", "feature"),
            gather("mean", (K, p)),
            {"long_name": "class mean"},
        ),
        "covariance": (
            (*dims, "time", "class", "feature", "class_", "feature_"),
            gather("covariance", (K, p, K, p)),
            {"long_name": "covariance of the class means"},
        ),
        "within": (
            (*dims, "time", "class", "feature", "feature_"),
            gather("within", (K, p, p)),
            {"long_name": "expected empirical covariance within classes"},
        ),
    }
    coords: dict[str, Any] = {
        **clock,
        "label": ("sample", model.labels),
        "count": ("class", model.counts),
    }
    if several:
        coords["process"] = ("process", names)
    if rates[0] is not None:
        about = {"long_name": "learning rate"}
        coords["learning_rate"] = (
            ("learning_rate", np.array(rates), about) if batched else ((), rates[0], about)
        )
    attrs: dict[str, Any] = {
        "model": json.dumps(model.describe()),
        "initial": "random" if start.is_random else "given",
        "process": ", ".join(names),
    }
    if dt is not None:
        attrs["dt"] = dt
    return xr.Dataset(data, coords, attrs)
