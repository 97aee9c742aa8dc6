"""First and second moments of the class means: of SGD, and of the SDEs that approximate it.

The equations of the mean μ and covariance V of the class means, and of W, the expected covariance within
classes, close. With M the map of the drift, D that of the SDE (M, or M − (h/2)(M² + Ṁ) for the modified
equation), N the covariance of the class means' own noise and C that of a kick (:mod:`lesde.laws.rule`), the
SDE has

    dμ/dt = D μ,    dV/dt = D V + V Dᵀ + N + h E C,    dW_k/dt = (1 − 1/n_k) σ_kσ_kᵀ,

and an iteration of the discrete process x ← x + hU + √h ν adds h (M V + V Mᵀ + N) + h² (E C + M V Mᵀ) to V.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from scipy.integrate import solve_ivp

from lesde.checks import (
    bare_array,
    check_choice,
    check_finite_array,
    check_instance,
    check_real,
    check_times,
    shown,
)
from lesde.clocks import StepGrid, iteration_counts, seen_times
from lesde.derivation import derive
from lesde.derivation.coefficients import Coefficients
from lesde.errors import Diverged
from lesde.laws.rule import Transforms, drift, modified_drift, modified_noise, sampling_covariance
from lesde.laws.slopes import drift_derivative, noise_derivative
from lesde.model.lesde import LESDE, Initial, read_initial
from lesde.paths import with_asked_times

__all__ = ["PROCESSES", "moments"]

RELATIVE = 1e-12
"""Tolerance of the solver in each step; the result is right to about ten times this, relatively."""
ABSOLUTE = 1e-14
CHUNK = 1024
OVERFLOW = 1e150
"""A solver that gives up with numbers beyond this met an overflow."""
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
        ``learning_rate`` where given, and with ``"sgd"`` ``iteration`` ([learning_rate,] time) and, where
        times lie between iterations, ``asked_time``. All float64: the recursion and the Euler scheme to
        rounding, the SDEs to about 1e-11 relative.

    Raises
    ------
    TypeError, ValueError
        Naming the argument, what was given and what is allowed; for a kernel that depends on the
        features, whose moments do not close.
    Diverged
        Where the moments overflow.

    Notes
    -----
    The equations are in :mod:`lesde.laws.moments`, those of the modified equation in
    :mod:`lesde.laws.rule`. ``"modified"`` needs the time derivative of kernel and noise: symbolic
    for formulas, finite differences of sixth order for Python callables. A formula with jumps has
    no derivative there, and then the order is 1.

    Cost: a few products of (K·p)×(K·p) matrices for each iteration or step; on one core about 0.1 ms where
    they are small and 15 ms at 300 features. The SDEs' own moments take 0.1 s and 2 s.

    Examples
    --------
    >>> import lesde
    >>> model = lesde.LESDE(lesde.TwoLevel(alpha=2, beta=-1), n_classes=2, n_features=1)
    >>> m = lesde.moments(model, [0, 1], [[1.0], [-1.0]], learning_rate=0.1, process=["sgd", "plain"])
    >>> m["mean"].isel(time=-1, feature=0, **{"class": 0}).values.round(3).tolist()
    [4.046, 4.482]
    """
    check_instance("model", model, LESDE, "a lesde.LESDE")
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
        steps = [rate for rate in rates if rate is not None]
        iterations = [iteration_counts(asked, rate) for rate in steps]
        saved = seen_times(asked, steps, iterations)
    if "sgd" in names or "modified" in names or dt is not None:
        coefficients.weights(
            saved
        )  # a kernel that is not finite there raises an error with its name
    coefficients.noise.factor(saved)

    cells: list[Moments] = []
    for name in names:
        track: list[Moments] = []
        for i, rate in enumerate(rates):
            if name != "plain" or not track:
                counts = iterations[i] if name == "sgd" else None
                track = _track(coefficients, saved, start, name, rate, dt, counts)
            cells += track

    lead = ([("process", len(names))] if several else []) + (
        [("learning_rate", len(rates))] if batched else []
    )
    dims, sizes = [dim for dim, _ in lead], [size for _, size in lead]
    K, p = model.n_classes, model.n_features
    both = ("class", "feature", "class_", "feature_")
    meanings = {
        "mean": (("class", "feature"), (K, p), "class mean"),
        "covariance": (both, (K, p, K, p), "covariance of the class means"),
        "within": (
            ("class", "feature", "feature_"),
            (K, p, p),
            "expected empirical covariance within classes",
        ),
    }
    data: dict[str, Any] = {}
    for name, (own, shape, meaning) in meanings.items():
        values = np.stack([getattr(cell, name) for cell in cells])
        values = values.reshape(*sizes, len(saved), *shape)
        data[name] = ((*dims, "time", *own), values, {"long_name": meaning})
    coords: dict[str, Any] = with_asked_times(
        {"time": ("time", saved, {"long_name": "time"})}, asked
    )
    coords |= {"label": ("sample", model.labels), "count": ("class", model.counts)}
    if iterations:
        counts = np.stack(iterations) if batched else iterations[0]
        along = [*(["learning_rate"] if batched else []), "time"]
        coords["iteration"] = (along, counts, {"long_name": "iteration"})
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
    if not isinstance(value, Sequence) and bare_array("learning_rate", value).ndim == 0:
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


# --------------------------------------------------------------------------------------------------
# The equations.


class Moments(NamedTuple):
    """The moments at one time: μ (K, p) and V (K·p, K·p) of the class means, W (K, p, p) within classes."""

    mean: np.ndarray
    covariance: np.ndarray
    within: np.ndarray

    def packed(self) -> np.ndarray:
        """All numbers in one vector."""
        return np.concatenate([part.ravel() for part in self])

    def unpacked(self, vector: np.ndarray) -> Moments:
        """Moments of the shapes of these from such a vector."""
        parts = np.split(vector, np.cumsum([part.size for part in self])[:-1])
        return Moments(*(new.reshape(old.shape) for new, old in zip(parts, self, strict=True)))


@dataclass(frozen=True)
class Rates:
    """The coefficients of the equations at one time.

    ``kicks`` is E_kl, ``push`` is x ↦ M x, ``effective`` x ↦ D x, ``noise`` N and ``growth`` dW/dt.
    """

    kicks: np.ndarray
    push: Callable[[np.ndarray], np.ndarray]
    effective: Callable[[np.ndarray], np.ndarray]
    noise: np.ndarray
    growth: np.ndarray


class MomentEquations:
    """The equations of one of the :data:`PROCESSES` at a learning rate h, which is 0 for "plain".

    Callables are asked for their derivative between ``start`` and ``end``.
    """

    def __init__(
        self, coefficients: Coefficients, process: str, rate: float, start: float, end: float
    ):
        self.coefficients, self.h = coefficients, rate
        self.transforms = Transforms(coefficients.transform)
        self.counts = coefficients.counts
        self.shares = self.counts / self.counts.sum()
        self.K, self.p = len(self.counts), coefficients.n_features
        self.slopes: tuple[Callable[..., np.ndarray], ...] = ()
        if process == "modified":
            derivatives = drift_derivative, noise_derivative
            self.slopes = tuple(each(coefficients, start, end) for each in derivatives)
        self.constant = coefficients.drift_table.is_constant and coefficients.noise.is_constant
        self._known: Rates | None = None

    def rates(self, times: np.ndarray) -> Callable[[int], Rates]:
        """The coefficients at the times, by their position; tables are made at once."""
        if self._known is not None:
            known = self._known
            return lambda i: known
        at = times[:1] if self.constant else times
        tables = [self.coefficients.kicks(at), self.coefficients.weights(at)]
        factors = self.coefficients.noise.factor(at)
        if self.slopes:
            drift_slope, noise_slope = self.slopes
            tables.append(drift_slope(at))
            factors = factors - 0.5 * self.h * noise_slope(at)
        spread = factors @ factors.swapaxes(-1, -2)
        if not self.slopes and self.coefficients.noise.is_constant:
            own = self._own_noise(spread[0])
            noise = lambda i: own  # noqa: E731
        else:
            noise = lambda i: self._own_noise(spread[i])  # noqa: E731
        if self.constant:
            self._known = self._rates(noise(0), *(column[0] for column in tables))
            return self.rates(times)
        return lambda i: self._rates(noise(i), *(column[i] for column in tables))

    def _own_noise(self, covariance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """N of the plain SDE and dW/dt, from σσᵀ (class, feature, feature)."""
        each, classes = self.counts[:, None, None], np.arange(self.K)
        noise = np.zeros((self.K, self.p, self.K, self.p))
        noise[classes, :, classes] = covariance / each
        return noise.reshape(self.K * self.p, -1), (1 - 1 / each) * covariance

    def _rates(
        self,
        own: tuple[np.ndarray, np.ndarray],
        kicks: np.ndarray,
        weights: np.ndarray,
        *slope: np.ndarray,
    ) -> Rates:
        noise, growth = own

        def push(means: np.ndarray) -> np.ndarray:
            return drift(self.transforms, weights, means)

        if not slope:
            return Rates(kicks, push, push, noise, growth)

        def effective(means: np.ndarray) -> np.ndarray:
            turned = lambda x: drift(self.transforms, slope[0], x)  # noqa: E731
            return modified_drift(push, turned, means, self.h)

        half = self._rows(lambda x: modified_noise(push, x, self.h), noise)
        whole = self._rows(lambda x: modified_noise(push, x, self.h), half.T)
        return Rates(kicks, push, effective, whole, growth)

    def _rows(self, function: Callable[[np.ndarray], np.ndarray], matrix: np.ndarray) -> np.ndarray:
        """A map of class means applied to every row of a matrix: A Fᵀ."""
        return function(matrix.reshape(-1, self.K, self.p)).reshape(matrix.shape)

    def _kick_covariance(self, rates: Rates, state: Moments) -> np.ndarray:
        """E UUᵀ − b bᵀ for the kick U, with b = M μ: E C + M V Mᵀ."""
        K, p = self.K, self.p
        blocks = np.einsum("kikj->kij", state.covariance.reshape(K, p, K, p))
        return sampling_covariance(
            self.transforms, rates.kicks, self.shares, state.mean, blocks + state.within
        )

    def derivative(self, rates: Rates, state: Moments) -> Moments:
        """d/dt of the moments of the SDE."""
        V = state.covariance
        carried = self._rows(rates.effective, V)
        change = carried + carried.T + rates.noise
        if self.h:
            spread = self._rows(rates.push, self._rows(rates.push, V).T)
            change = change + self.h * (self._kick_covariance(rates, state) - spread)
        return Moments(rates.effective(state.mean), change, rates.growth)

    def euler(self, rates: Rates, state: Moments, dt: float) -> Moments:
        """The moments after one Euler-Maruyama step of the SDE."""
        change = self.derivative(rates, state)
        second = self._rows(rates.effective, self._rows(rates.effective, state.covariance).T)
        mean, covariance, within = (a + dt * b for a, b in zip(state, change, strict=True))
        return Moments(mean, covariance + dt**2 * second, within)

    def iterate(self, rates: Rates, state: Moments, _: float) -> Moments:
        """The moments after one iteration of the discrete process."""
        h, V = self.h, state.covariance
        carried = self._rows(rates.push, V)
        covariance = V + h * (carried + carried.T + rates.noise)
        covariance += h**2 * self._kick_covariance(rates, state)
        mean = state.mean + h * rates.push(state.mean)
        return Moments(mean, covariance, state.within + h * rates.growth)

    def follow(
        self,
        step: Callable[[Rates, Moments, float], Moments],
        state: Moments,
        starts: np.ndarray,
        widths: np.ndarray,
    ) -> Moments:
        """The moments after steps (:meth:`iterate` or :meth:`euler`) that begin at the starts."""
        for first in range(0, len(starts), CHUNK):
            part = starts[first : first + CHUNK]
            rates = self.rates(part)
            for i in range(len(part)):
                state = step(rates(i), state, float(widths[first + i]))
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

        # The solver squares its estimates: in units of a power of two these squares do not overflow.
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
        for value, slope in zip(state, change, strict=True):
            size = float(np.abs(value).max() + width * np.abs(slope).max())
            parts.append(np.full(value.size, size if size > 0 else 1.0))
        return np.concatenate(parts)


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
        grid = StepGrid.regular(times, dt)
    with np.errstate(over="ignore", invalid="ignore"):
        for i in range(1, len(times)):
            if counts is not None:
                starts = times[0] + h * np.arange(counts[i - 1], counts[i])
                state = equations.follow(equations.iterate, state, starts, np.full(len(starts), h))
            elif dt is not None:
                part = slice(grid.saved[i - 1], grid.saved[i])
                steps = grid.starts[part], grid.widths[part]
                state = equations.follow(equations.euler, state, *steps)
            else:
                ends = pieces[(pieces >= times[i - 1]) & (pieces <= times[i])].tolist()
                for first, last in itertools.pairwise(ends):
                    state = equations.solve(state, first, last)
            if not np.isfinite(state.packed()).all():
                raise Diverged(times[i], "the moments", "end `times` earlier or weaken the kernel")
            track.append(state)
    return track


def _initial_moments(coefficients: Coefficients, start: Initial) -> Moments:
    counts, p = coefficients.counts, coefficients.n_features
    K = len(counts)
    within = np.zeros((K, p, p))
    if start.offsets is not None:
        rows = np.split(start.offsets, np.cumsum(counts)[:-1])
        within = np.stack([own.T @ own / len(own) for own in rows])
    if start.means is None:
        return Moments(np.zeros((K, p)), np.eye(K * p) / p, within)
    return Moments(start.means.copy(), np.zeros((K * p, K * p)), within)
