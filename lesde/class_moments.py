"""First and second moments of the class means: of SGD, and of the SDEs that approximate it."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from lesde.checks import check_choice, check_finite_array, check_real, check_times, shown
from lesde.errors import Diverged
from lesde.initial import Initial, read_initial
from lesde.iterations import seen_times, with_asked_times
from lesde.moment_equations import MomentEquations, Moments

if TYPE_CHECKING:
    from lesde.derivation.coefficients import Coefficients
    from lesde.model import LESDE

__all__ = ["PROCESSES", "moments"]

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
    from lesde.model import LESDE

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
    coefficients = model.derive().coefficients()
    _check_model(model, coefficients)
    asked: np.ndarray = saved
    iterations: list[np.ndarray] = []
    if "sgd" in names:
        from lesde.simulation.sgd import iteration_counts  # the engine's, which loads torch

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
        from lesde.simulation.steps import StepGrid

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
