"""How fast the collapse metrics decay: rates, exponents, preferred law, time to a threshold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from lesde.analysis.clocks import Clock, read_clocks
from lesde.analysis.collapse import target_of
from lesde.analysis.decay import Line, fit_line, log_evidence
from lesde.analysis.decay_window import decay_window
from lesde.analysis.learning_rate_law import against_learning_rate
from lesde.analysis.passage import first_passage, median_interval
from lesde.checks import check_choice, check_dataset, check_fraction, check_names, check_real, shown

__all__ = ["convergence"]

_LAWS = ("exponential", "power law")
_NUMBERS = {
    "rate": "rate r of y = a exp(−r x)",
    "rate_lower": "lower confidence limit of the rate",
    "rate_upper": "upper confidence limit of the rate",
    "exponent": "exponent q of y = a u^(−q)",
    "exponent_lower": "lower confidence limit of the exponent",
    "exponent_upper": "upper confidence limit of the exponent",
    "amplitude_exponential": "a of y = a exp(−r x)",
    "amplitude_power_law": "a of y = a u^(−q)",
    "weight_exponential": "Akaike weight of the exponential against the power law",
    "r_squared_exponential": "share of the variance of log y on a line in x",
    "r_squared_power_law": "share of the variance of log y on a line in log u",
    "time_to_threshold": "median first passage through the threshold",
    "time_to_threshold_lower": "lower confidence limit of the median first passage",
    "time_to_threshold_upper": "upper confidence limit of the median first passage",
    "time_to_threshold_fitted": "when the fitted law is at the threshold",
    "reached": "share of replicates that reached the threshold",
    "window_start": "first frame of the fit",
    "window_stop": "last frame of the fit",
    "frames": "frames in the fit",
    "replicates": "replicates in the fit",
}


def convergence(
    nc: xr.Dataset,
    metrics: str | Sequence[str] | None = None,
    against: str | Sequence[str] | None = None,
    threshold: float | Mapping[str, float] = 0.1,
    start: float | None = None,
    stop: float | None = None,
    window: str = "all",
    offset: float = 0.0,
    confidence: float = 0.95,
) -> xr.Dataset:
    """Fit exponential and power-law decay to collapse metrics and say which one the data prefer.

    Parameters
    ----------
    nc : xarray.Dataset
        As `lesde.neural_collapse` returns: variables over ``time``, usually ``replicate``, and
        any other dimensions (such as ``learning_rate``), each of whose entries is fitted by
        itself.
    metrics : str or sequence of str, optional
        Variables to fit. Default: all that have the dimension ``time``. What is fitted is the
        distance y = \\|value − target\\| to the variable's attribute ``target`` (0 if it has
        none): for ``nc4``, the share of samples on which the two rules disagree.
    against : {"time", "iteration"} or both, optional
        Abscissa x. ``"iteration"`` needs a coordinate ``iteration([learning_rate,] time)``, or a
        coordinate ``learning_rate`` h > 0, with which the iteration is (time − first time)/h.
        Default: all that the dataset has.
    threshold : float or mapping from metric to float, default 0.1
        Level of y for the time to the threshold.
    start, stop : float, optional
        Frames with start ≤ time ≤ stop are used, on the time clock, for everything. Default: all.
    window : {"all", "auto"}, default "all"
        ``"auto"`` fits the rates on the stretch after a transient and before a floor, chosen per
        metric and learning rate by a penalised broken line through the geometric mean of the
        replicates; see `lesde.analysis.decay_window.decay_window` for the rule and its limits.
        Thresholds are read off all frames between start and stop.
    offset : float, default 0
        The power law is y = a u^(−q) with u = time + offset. A kernel with β ~ 1/(1+t) wants
        ``offset=1``. Frames with u ≤ 0 enter no fit. On the iteration clock u counts iterations
        from the same instant, u = 0.
    confidence : float, default 0.95

    Returns
    -------
    xarray.Dataset
        Dimensions ``metric``, the others of ``nc`` but ``replicate`` and ``time``, and ``clock``
        (entries of ``against``). Rates are per unit of the clock.

        - ``rate``, ``rate_lower``, ``rate_upper``, ``amplitude_exponential``: y = a exp(−r x).
        - ``exponent``, ``exponent_lower``, ``exponent_upper``, ``amplitude_power_law``: y = a
          u^(−q).
        - ``law``: ``"exponential"``, ``"power law"``, or ``"none"`` where neither a rate nor an
          exponent is positive at the given confidence: no decay was seen, whatever the weight
          says.
        - ``weight_exponential``: Akaike weight of the exponential; 1 minus it is that of the
          power law. Near ½ the data do not tell.
        - ``r_squared_exponential``, ``r_squared_power_law``: of the lines through log y. Both
          low: neither law describes the curve.
        - ``time_to_threshold`` with ``_lower``, ``_upper``: median over replicates of the first
          passage and its distribution-free interval; NaN where half the replicates or more have
          not reached it; ``_upper`` inf where the record is too short to bound it; limits NaN
          with fewer than 6 replicates (at 95%). ``reached``: share of the replicates that got
          there. ``time_to_threshold_fitted``: where the preferred law crosses, an extrapolation
          if beyond the record; NaN for ``"none"``.
        - ``window_start``, ``window_stop`` (on the time clock), ``frames``, ``replicates``: what
          the fit rests on.
        - with three learning rates or more, ``learning_rate_exponent``, ``_lower``, ``_upper``,
          over the other dimensions: slope c of log r on log h, r ~ h^c, with the t interval of
          its residuals; only where all rates are positive. A rate per iteration that is h times a
          rate per unit of time has c = 1.

    Raises
    ------
    ValueError, TypeError
        For arguments that do not fit; the message says what is allowed.

    Notes
    -----
    **Fit.** Least squares of log y on x and on log u, frames weighted equally. Values
    that are 0, NaN or infinite have no logarithm and are left out: paths that start at their
    class means have NC1 = 0 at the first time. With three replicates or more each is fitted by
    itself and the interval is the t interval over replicates: the correlation within a trajectory
    is accounted for, by being in the scatter of the slopes. With one or two the residuals are taken for an
    AR(1) process over frames and the interval of the same slope is averaged over its unknown correlation: wide
    where the curve is no line, since its departures look like noise that wanders. In both
    cases the interval is that of the slope of the best line over the window: it does not hold the
    bias of fitting a line to what is none. ``amplitude_*`` is the geometric mean.

    **Evidence.** Both laws have the same number of parameters, so AICc and BIC differ by the same
    amount, twice the log-likelihood ratio; the likelihood is that of the geometric mean over
    replicates, on the same frames, with AR(1) residuals. Frame spacing matters: evenly spaced
    frames resolve an exponential, logarithmically spaced ones a power law.

    Examples
    --------
    >>> rates = lesde.convergence(lesde.neural_collapse(paths), start=1.0)  # doctest: +SKIP
    >>> rates.rate.sel(metric="nc1", clock="time")  # doctest: +SKIP
    """
    check_dataset("nc", nc, [], "lesde.neural_collapse")
    if "time" not in nc.dims:
        raise ValueError(
            f"nc must have the dimension 'time'; got {', '.join(map(str, nc.dims)) or 'none'}. "
            f"A single frame has no rate."
        )
    names = _metrics(nc, metrics)
    check_dataset("nc", nc, names, "lesde.neural_collapse")
    levels = _thresholds(threshold, names)
    confidence = check_fraction("confidence", confidence)
    check_choice("window", window, ("all", "auto"))
    offset = check_real("offset", offset)

    dims_seen = dict.fromkeys(d for name in names for d in nc[name].dims)
    groups = [d for d in dims_seen if d not in ("time", "replicate")]
    sizes = tuple(nc.sizes[d] for d in groups)
    chosen = _selected(nc["time"].values, start, stop)
    clocks = [clock.take(chosen) for clock in read_clocks(nc, against, groups, offset)]
    nc = nc.isel(time=chosen)
    times = nc["time"].values
    shape = (len(names), *sizes, len(clocks))
    numbers = {name: np.full(shape, np.nan) for name in _NUMBERS}
    law = np.full(shape, "none", dtype="<U11")
    for m, name in enumerate(names):
        values = _distance(nc[name], groups, sizes)
        for g in np.ndindex(*sizes):
            for c, clock in enumerate(clocks):
                found = _fit(clock.at(g), times, values[g], levels[name], window, confidence)
                law[(m, *g, c)] = found.pop("law")
                for key, value in found.items():
                    numbers[key][(m, *g, c)] = value

    dims = ("metric", *groups, "clock")
    coords = {key: coord for key, coord in nc.coords.items() if set(coord.dims) <= set(groups)}
    data: dict[str, Any] = {
        key: (dims, numbers[key], {"long_name": title}) for key, title in _NUMBERS.items()
    }
    for key in ("frames", "replicates"):
        data[key] = (dims, numbers[key].astype(np.int64), {"long_name": _NUMBERS[key]})
    data["law"] = (dims, law, {"long_name": "law the data prefer"})
    coords["threshold"] = ("metric", [levels[name] for name in names])
    result = xr.Dataset(
        data, coords | {"metric": names, "clock": [clock.name for clock in clocks]}
    ).assign_attrs(confidence=confidence, offset=offset, window=window)
    return against_learning_rate(result, confidence)


def _metrics(nc: xr.Dataset, metrics: str | Sequence[str] | None) -> list[str]:
    known = [str(name) for name, variable in nc.data_vars.items() if "time" in variable.dims]
    if not known:
        raise ValueError(
            "nc must hold a variable over 'time', as lesde.neural_collapse returns; got none."
        )
    if metrics is None:
        return known
    chosen = check_names("metrics", metrics)
    if not chosen:
        raise ValueError("metrics must name at least one variable; got none. Leave it out for all.")
    return list(dict.fromkeys(check_choice("metrics", name, known) for name in chosen))


def _thresholds(threshold: float | Mapping[str, float], names: list[str]) -> dict[str, float]:
    if not isinstance(threshold, Mapping):
        level = check_real("threshold", threshold, 0.0, open_minimum=True)
        return dict.fromkeys(names, level)
    missing = [name for name in names if name not in threshold]
    if missing:
        raise ValueError(
            f"threshold must hold every metric fitted; got {shown(dict(threshold))}, without "
            f"{', '.join(missing)}."
        )
    return {
        name: check_real(f"threshold[{name!r}]", threshold[name], 0.0, open_minimum=True)
        for name in names
    }


def _selected(times: np.ndarray, start: float | None, stop: float | None) -> np.ndarray:
    low = -np.inf if start is None else check_real("start", start)
    high = np.inf if stop is None else check_real("stop", stop)
    frames = np.flatnonzero((times >= low) & (times <= high))
    if len(frames) < 3:
        raise ValueError(
            f"start and stop must leave at least 3 frames; {len(frames)} of the {len(times)} "
            f"between {times[0]:g} and {times[-1]:g} lie in [{low:g}, {high:g}]."
        )
    return frames


def _distance(variable: xr.DataArray, groups: list[Any], sizes: tuple[int, ...]) -> np.ndarray:
    """Distance of a metric to its target, (*groups, replicate, time), infinities as NaN."""
    if "replicate" not in variable.dims:
        variable = variable.expand_dims("replicate")
    missing = {d: n for d, n in zip(groups, sizes, strict=True) if d not in variable.dims}
    variable = variable.expand_dims(missing).transpose(*groups, "replicate", "time")
    values = np.abs(variable.values.astype(np.float64) - target_of(variable))
    return np.where(np.isfinite(values), values, np.nan)


def _fit(
    clock: Clock, times: np.ndarray, y: np.ndarray, threshold: float, window: str, confidence: float
) -> dict[str, Any]:
    """Every number of `convergence` for one metric, one curve and one clock; y is (R, T)."""
    x, u = clock.x, clock.u
    found: dict[str, Any] = {"law": "none"}
    found |= _passages(x, y, threshold, confidence)
    usable = (y > 0) & (u > 0)
    z = np.log(y, where=usable, out=np.full(y.shape, np.nan))
    z = z[np.isfinite(z).sum(axis=1) >= 3]
    frames = np.flatnonzero(np.isfinite(z).any(axis=0)) if len(z) else np.empty(0, dtype=int)
    if len(frames) < 3:
        return found | {"frames": 0, "replicates": 0}
    curve = np.nanmean(z[:, frames], axis=0)
    if window == "auto":
        a, b = decay_window([x[frames], np.log(u[frames])], curve)
        frames, curve = frames[a:b], curve[a:b]
    x_fit, log_u, z = x[frames], np.log(u[frames]), z[:, frames]
    lines = [fit_line(x_fit, z, confidence), fit_line(log_u, z, confidence)]
    if lines[0].replicates == 0:
        return found | {"frames": 0, "replicates": 0}
    (like_exp, r2_exp), (like_pow, r2_pow) = log_evidence(x_fit, curve), log_evidence(log_u, curve)
    weight = float(1 / (1 + np.exp(np.clip(like_pow - like_exp, -700, 700))))
    if any(line.upper < 0 for line in lines):
        chosen = 0 if weight >= 0.5 else 1
        found["law"] = _LAWS[chosen]
        line = lines[chosen]
        if line.slope < 0:
            at = (np.log(threshold) - line.intercept) / line.slope
            found["time_to_threshold_fitted"] = (
                at if chosen == 0 else np.exp(min(at, 709.0)) - clock.shift
            )
    for prefix, amplitude, line in (
        ("rate", "amplitude_exponential", lines[0]),
        ("exponent", "amplitude_power_law", lines[1]),
    ):
        found |= _decay(prefix, line)
        found[amplitude] = np.exp(np.clip(line.intercept, -745, 709))
    return found | {
        "weight_exponential": weight,
        "r_squared_exponential": r2_exp,
        "r_squared_power_law": r2_pow,
        "window_start": times[frames[0]],
        "window_stop": times[frames[-1]],
        "frames": len(frames),
        "replicates": lines[0].replicates,
    }


def _decay(prefix: str, line: Line) -> dict[str, float]:
    """A falling slope as a positive rate."""
    return {prefix: -line.slope, f"{prefix}_lower": -line.upper, f"{prefix}_upper": -line.lower}


def _passages(
    x: np.ndarray, y: np.ndarray, threshold: float, confidence: float
) -> dict[str, float]:
    median, lower, upper, reached = median_interval(
        first_passage(x, y, threshold), float(x[-1]), confidence
    )
    return {
        "time_to_threshold": median,
        "time_to_threshold_lower": lower,
        "time_to_threshold_upper": upper,
        "reached": reached,
    }
