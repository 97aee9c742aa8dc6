"""First and second moments of the class means: of SGD, and of the SDEs that approximate it.

The equations of the mean μ and covariance V of the class means, and of W, the expected covariance within
classes, close. With M the map of the drift, D that of the SDE (M, or M − (h/2)(M² + Ṁ) for the modified
equation), N the covariance of the class means' own noise and C that of a kick (:mod:`lesde.laws.rule`), the
SDE has

    dμ/dt = D μ,    dV/dt = D V + V Dᵀ + N + h E C,    dW_k/dt = (1 − 1/n_k) σ_kσ_kᵀ,

and an iteration of the discrete process x ← x + hU + √h ν adds h (M V + V Mᵀ + N) + h² (E C + M V Mᵀ) to V, as
an Euler step of length h of the SDE with D = M does.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import xarray as xr
from scipy.integrate import solve_ivp

from lesde.checks import (
    bare_array,
    check_choices,
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
from lesde.laws.rule import Transforms, modified_drift, modified_noise, sampling_covariance
from lesde.laws.slopes import drift_derivative, noise_derivative
from lesde.model.lesde import LESDE, Initial, read_initial
from lesde.paths import with_asked_times

RELATIVE = 1e-12
"""Tolerance of the solver in each step; the result is right to about ten times this, relatively."""
ABSOLUTE = 1e-14
"""Likewise, relative to the size of mean, covariance and within."""
TABLE_NUMBERS = 2**20
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
        ``mean`` (time, class, feature) and ``covariance`` (time, class, feature, class_, feature_) of the
        class means; ``within`` (time, class, feature, feature_), the expectation of the empirical covariance
        within classes (divisor n_k), initial deviations included. Dimensions ``process`` and ``learning_rate``
        come first where asked for. Coordinates as from :func:`lesde.simulate`. All float64: the recursion and
        the Euler scheme to rounding, the SDEs to about 1e-11 relative.

    Raises
    ------
    ValueError
        For a kernel that depends on the features, whose moments do not close.
    Diverged
        Where the moments overflow.

    Notes
    -----
    The equations are in :mod:`lesde.laws.moments`, those of the modified equation in
    :mod:`lesde.laws.rule`. ``"modified"`` needs the time derivative of kernel and noise, so numbers or
    formulas. A formula with jumps has no derivative there, and then the order is 1.

    Cost: a few products of (K·p)×(K·p) matrices for each iteration or step; on one core about 0.05 ms where
    they are small and 2 ms at 200 class-mean features.

    Examples
    --------
    >>> import lesde
    >>> model = lesde.LESDE(lesde.TwoLevel(alpha=2, beta=-1), n_classes=2, n_features=1)
    >>> m = lesde.moments(model, [0, 1], [[1.0], [-1.0]], learning_rate=0.1, process=["sgd", "plain"])
    >>> m["mean"].isel(time=-1, feature=0, **{"class": 0}).values.round(3).tolist()
    [4.046, 4.482]
    """
    check_instance("model", model, LESDE, "a lesde.LESDE")
    asked = saved = check_times("times", times, minimum_length=1)
    start = read_initial(model, initial)
    names, several = check_choices("process", process, PROCESSES), not isinstance(process, str)
    rates, batched = read_learning_rates(learning_rate)
    needy = [name for name in names if name != "plain"]
    if rates is None and needy:
        raise ValueError(
            f"learning_rate must be given for process={needy[0]!r}; only 'plain', the limit of small "
            f"learning rates, has none."
        )
    if dt is not None:
        dt = check_real("dt", dt, 0.0, open_minimum=True)
        if "sgd" in names:
            raise ValueError(
                "dt is the Euler step of an SDE; got it with process='sgd', whose step is learning_rate. "
                "Leave dt out, or leave 'sgd' out of process."
            )
    if model.kernel.depends_on_features:
        raise ValueError(
            f"model must have a kernel that depends on classes and time only; got {shown(model.kernel)}, "
            f"for which the moments of the class means depend on all higher ones. Estimate them with "
            f"lesde.simulate."
        )
    K, p = model.n_classes, model.n_features
    if K * p > LARGEST:
        raise ValueError(
            f"model has n_classes·n_features = {K * p} class-mean features; moments are computed for up to "
            f"{LARGEST}. Take fewer features, or simulate with lesde.simulate."
        )
    coefficients = derive(model).coefficients()
    steps = [] if rates is None else rates.tolist()
    iterations: list[np.ndarray] = []
    if "sgd" in names:
        iterations = [iteration_counts(asked, rate) for rate in steps]
        saved = seen_times(asked, steps, iterations)
    if dt is not None or names != ["plain"]:  # a kernel may have a pole at the first of them
        coefficients.weights(saved)
    coefficients.noise.factor(saved)

    cells = []
    for name in names:
        for i, rate in enumerate(steps or [0.0]):
            counts = iterations[i] if name == "sgd" else None
            cells += _track(coefficients, saved, start, name, rate, dt, counts)

    along = ["learning_rate"] if batched else []
    lead = ["process", *along] if several else along
    sizes = {"process": len(names), "learning_rate": len(steps), "time": len(saved)}
    sizes |= {"class": K, "class_": K, "feature": p, "feature_": p}
    meanings = {
        "mean": (["class", "feature"], "class mean"),
        "covariance": (["class", "feature", "class_", "feature_"], "covariance of the class means"),
        "within": (
            ["class", "feature", "feature_"],
            "expected empirical covariance within classes",
        ),
    }
    data: dict[str, Any] = {}
    for name, (own, meaning) in meanings.items():
        dims = [*lead, "time", *own]
        values = np.stack([getattr(cell, name) for cell in cells])
        data[name] = (dims, values.reshape([sizes[d] for d in dims]), {"long_name": meaning})
    time = {"time": ("time", saved, {"long_name": "time"})}
    coords: dict[str, Any] = with_asked_times(time, asked)
    coords |= {"label": ("sample", model.labels), "count": ("class", model.counts)}
    if iterations:
        counts = np.stack(iterations) if batched else iterations[0]
        coords["iteration"] = ([*along, "time"], counts, {"long_name": "iteration"})
    if several:
        coords["process"] = ("process", names)
    if rates is not None:
        coords["learning_rate"] = (along, rates if batched else steps[0])
        coords["learning_rate"] += ({"long_name": "learning rate"},)
    attrs: dict[str, Any] = {
        "model": json.dumps(model.describe()),
        "initial": "random" if start.is_random else "given",
        "process": ", ".join(names),
    }
    return xr.Dataset(data, coords, attrs if dt is None else {**attrs, "dt": dt})


def read_learning_rates(value: Any) -> tuple[np.ndarray | None, bool]:
    """Learning rates (cell,), and whether they are a dimension of the result."""
    if value is None:
        return None, False
    if isinstance(value, str) or (
        not isinstance(value, Sequence) and bare_array("learning_rate", value).ndim == 0
    ):
        value = value.item() if isinstance(value, np.ndarray) else value
        return np.array([check_real("learning_rate", value, 0.0, open_minimum=True)]), False
    rates = check_finite_array("learning_rate", value, [("L",)])
    if len(rates) == 0 or (rates <= 0).any() or len(np.unique(rates)) < len(rates):
        raise ValueError(
            f"learning_rate must hold distinct positive values, at least one; got "
            f"{shown(rates.tolist())}."
        )
    return rates, True


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


class Rates(NamedTuple):
    """The coefficients of the equations at one time: E_kl, M, D, N and dW/dt; D and N of the process at hand."""

    kicks: np.ndarray
    M: np.ndarray
    D: np.ndarray
    N: np.ndarray
    growth: np.ndarray


class MomentEquations:
    """The equations of one of the :data:`PROCESSES` at a learning rate h, which is 0 for "plain"."""

    def __init__(self, coefficients: Coefficients, process: str, rate: float):
        self.coefficients, self.h = coefficients, rate
        self.transforms = Transforms(coefficients.transform)
        self.counts = coefficients.counts
        self.shares = self.counts / self.counts.sum()
        self.size = len(self.counts) * coefficients.n_features
        self.slopes: list[Callable[..., np.ndarray]] = []
        if process == "modified":
            self.slopes = [drift_derivative(coefficients), noise_derivative(coefficients)]
        self.constant = coefficients.drift_table.is_constant and coefficients.noise.is_constant

    def rates(self, times: np.ndarray) -> list[Rates]:
        """The coefficients at the times."""
        at = times[:1] if self.constant else times
        kicks, weights = self.coefficients.kicks(at), self.coefficients.weights(at)
        factors = self.coefficients.noise.factor(at)
        M = D = self._blocks(weights)
        one, each = np.eye(self.size), self.counts[:, None, None]
        root = one
        if self.slopes:
            turned = self._blocks(self.slopes[0](at))
            factors = factors - 0.5 * self.h * self.slopes[1](at)
            D = modified_drift(lambda x: M @ x, lambda x: turned @ x, one, self.h)
            root = modified_noise(lambda x: M @ x, one, self.h)
        spread = factors @ factors.swapaxes(-1, -2)
        own = np.einsum("tkij,kl->tkilj", spread / each, np.eye(len(each)))
        N = root @ own.reshape(M.shape) @ root.swapaxes(-1, -2)
        growth = (1 - 1 / each) * spread
        rows = [Rates(*row) for row in zip(kicks, M, D, N, growth, strict=True)]
        return rows * len(times) if self.constant else rows

    def _blocks(self, weights: np.ndarray) -> np.ndarray:
        return self.transforms.blocks(torch.from_numpy(weights)).numpy()

    def _kick_covariance(self, rates: Rates, state: Moments) -> np.ndarray:
        """E UUᵀ − b bᵀ for the kick U, with b = M μ: E C + M V Mᵀ."""
        K, p = state.mean.shape
        blocks = np.einsum("kikj->kij", state.covariance.reshape(K, p, K, p))
        return sampling_covariance(
            self.transforms, rates.kicks, self.shares, state.mean, blocks + state.within
        )

    def derivative(self, rates: Rates, state: Moments) -> Moments:
        """d/dt of the moments of the SDE."""
        carried = rates.D @ state.covariance
        change = carried + carried.T + rates.N
        if self.h:
            again = rates.M @ state.covariance @ rates.M.T
            change += self.h * (self._kick_covariance(rates, state) - again)
        moved = rates.D @ state.mean.ravel()
        return Moments(moved.reshape(state.mean.shape), change, rates.growth)

    def follow(self, state: Moments, starts: np.ndarray, widths: np.ndarray) -> Moments:
        """The moments after Euler-Maruyama steps of the SDE that begin at the starts."""
        at_once = len(starts) if self.constant else max(1, TABLE_NUMBERS // self.size**2)
        for first in range(0, len(starts), max(1, at_once)):
            part = slice(first, first + at_once)
            for rates, width in zip(self.rates(starts[part]), widths[part].tolist(), strict=True):
                change = self.derivative(rates, state)
                second = rates.D @ state.covariance @ rates.D.T
                mean, V, within = (a + width * b for a, b in zip(state, change, strict=True))
                state = Moments(mean, V + width**2 * second, within)
        return state

    def pieces(self, times: np.ndarray) -> np.ndarray:
        """The times with those between at which the solver starts anew, so that it misses nothing.

        On each piece kernel and noise are resolved by one polynomial.
        """
        edges, noise = [times], self.coefficients.noise
        noise.check_variance(times)
        if len(times) > 1 and not self.coefficients.drift_table.is_constant:
            edges.append(self.coefficients.kernel_panels(times).starts)
        if len(times) > 1 and not noise.is_constant:
            edges.append(noise.panels(times).starts)
        return np.unique(np.concatenate(edges))

    def solve(self, state: Moments, start: float, end: float) -> Moments:
        """The moments of the SDE at ``end`` from those at ``start``, two neighbours of :meth:`pieces`."""
        # A kernel may have no value at an end, such as log(t) at 0, and may jump there: it is asked inside.
        part = np.finfo(float).eps * (end - start)
        low = max(np.nextafter(start, end), start + part)
        high = min(np.nextafter(end, start), end - part)
        known = self.rates(np.array([(start + end) / 2]))[0]

        last = start

        def right(t: float, y: np.ndarray) -> np.ndarray:
            nonlocal last
            last = t
            rates = known if self.constant else self.rates(np.clip([t], low, high))[0]
            return self.derivative(rates, state.unpacked(y)).packed()

        # The tolerance is for each of mean, covariance and within by its own size.
        sizes = [
            np.full(a.size, np.abs(a).max() + (end - start) * np.abs(b).max() or 1.0)
            for a, b in zip(state, self.derivative(known, state), strict=True)
        ]
        solution = solve_ivp(
            right, (start, end), state.packed(), method="DOP853", t_eval=[end], rtol=RELATIVE,
            atol=ABSOLUTE * np.concatenate(sizes),
        )  # fmt: skip
        if not solution.success or not np.isfinite(solution.y).all():
            raise Diverged(last, "the moments", "end `times` earlier or weaken kernel and noise")
        return state.unpacked(solution.y[:, -1])


def _track(
    coefficients: Coefficients,
    times: np.ndarray,
    start: Initial,
    process: str,
    rate: float,
    dt: float | None,
    counts: np.ndarray | None,
) -> list[Moments]:
    """The moments of one process at one learning rate at all times, for SGD after so many iterations."""
    h = 0.0 if process == "plain" else rate
    equations = MomentEquations(coefficients, process, h)
    track = [_initial_moments(coefficients, start)]
    pieces = equations.pieces(times) if counts is None and dt is None else times
    grid = None if dt is None else StepGrid.regular(times, dt)
    with np.errstate(over="ignore", invalid="ignore"):
        for i in range(1, len(times)):
            state = track[-1]
            if counts is not None:  # to second moments a step of the SDE with sampling noise
                starts = times[0] + h * np.arange(counts[i - 1], counts[i])
                state = equations.follow(state, starts, np.full(len(starts), h))
            elif grid is not None:
                part = slice(grid.saved[i - 1], grid.saved[i])
                state = equations.follow(state, grid.starts[part], grid.widths[part])
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
