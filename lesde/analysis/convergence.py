"""Speed at which the collapse metrics decay: rates, exponents, preferred law, time to a threshold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import xarray as xr
from scipy import optimize, stats

from lesde.analysis.collapse import target_of
from lesde.checks import check_choices, check_fraction, check_real, check_times, shown
from lesde.paths import check_dataset

CLOCKS = ("time", "iteration")
LAWS = ("none", "exponential", "power law")
EPS = float(np.finfo(np.float64).eps)
# Autocorrelations φ at equal steps of log(1 − φ) from 0 to 1 − 10⁻⁴: the grid of the marginalised
# interval and, by its density, the prior 1/(1 − φ). Trajectories of an SDE lie close to φ = 1,
# where a flat prior covers far too rarely.
PHI = 1 - 10.0 ** (-4 * (np.arange(64) + 0.5) / 64)

ENDS = ("", "_lower", "_upper")
LAW_OF = {"exponential": "rate", "power_law": "exponent"}
NUMBERS = [f"{number}{end}" for number in LAW_OF.values() for end in ENDS]
NUMBERS += [f"{what}_{law}" for what in ("amplitude", "r_squared") for law in LAW_OF]
NUMBERS += [f"time_to_threshold{end}" for end in (*ENDS, "_fitted")]
NUMBERS += ["reached", "weight_exponential", "window_start", "window_stop", "frames", "replicates"]


def convergence(
    nc: xr.Dataset,
    metrics: str | Sequence[str] | None = None,
    against: str | Sequence[str] | None = None,
    threshold: float | Mapping[str, float] = 0.1,
    start: float | None = None,
    stop: float | None = None,
    offset: float = 0.0,
    confidence: float = 0.95,
) -> xr.Dataset:
    """Fit exponential and power-law decay to collapse metrics and report which one the data prefer.

    Parameters
    ----------
    nc : xarray.Dataset
        As `lesde.neural_collapse` returns: variables over ``time``, usually ``replicate``, and any other
        dimensions (such as ``learning_rate``), each of whose entries is fitted by itself.
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
    offset : float, default 0
        The power law is y = a u^(−q) with u = time + offset. A kernel with β ~ 1/(1+t) wants
        ``offset=1``. Frames with u ≤ 0 enter no fit. On the iteration clock u counts iterations
        from the same instant.
    confidence : float, default 0.95

    Returns
    -------
    xarray.Dataset
        Dimensions ``metric``, the others of ``nc`` but ``replicate`` and ``time``, and ``clock``
        (entries of ``against``). Rates are per unit of the clock.

        - ``rate`` and ``exponent``, with ``_lower`` and ``_upper``, ``amplitude_exponential`` and
          ``amplitude_power_law``: y = a exp(−r x) and y = a u^(−q).
        - ``law``: ``"exponential"``, ``"power law"``, or ``"none"`` where neither a rate nor an
          exponent is positive at the given confidence: no decay was seen, whatever the weight.
        - ``weight_exponential``: Akaike weight of the exponential against the power law. Near ½ the data
          do not favour either.
        - ``r_squared_exponential``, ``r_squared_power_law``: of the lines through log y.
        - ``time_to_threshold`` with ``_lower``, ``_upper``: median over replicates of the first
          passage and its distribution-free interval; NaN where half the replicates or more have
          not reached it; ``_upper`` inf where the record is too short to bound it; limits NaN
          with fewer than 6 replicates (at 95%). ``reached``: share of the replicates that got
          there. ``time_to_threshold_fitted``: where the preferred law crosses, even beyond the record.
        - ``window_start``, ``window_stop`` (on the time clock), ``frames``, ``replicates``: the
          data used in the fit.
        - with three learning rates or more, ``learning_rate_exponent``, ``_lower``, ``_upper``,
          over the other dimensions: slope c of log r on log h, r ~ h^c, with the t interval of
          its residuals; only where all rates are positive. A rate per iteration that is h times a
          rate per unit of time has c = 1.

    Notes
    -----
    **Fit.** Least squares of log y on x and on log u, frames weighted equally. Values
    that are 0, NaN or infinite are left out. With three replicates or more each is fitted by
    itself and the interval is the t interval over replicates, whose scatter includes the
    effect of correlation within a trajectory. With one or two the residuals of their mean curve are taken
    for an AR(1) process over frames and the interval is averaged over its unknown correlation: it is wide
    where the curve is not a line. Neither includes the bias of fitting a line to a curve: leave out a
    transient or a floor by ``start`` and ``stop``. ``amplitude_*`` is the geometric mean.

    **Evidence.** Both laws have the same number of parameters, so AICc and BIC differ by the same
    amount, twice the log-likelihood ratio; the likelihood is that of the geometric mean over
    replicates, on the same frames, with AR(1) residuals. Evenly spaced frames resolve an exponential,
    logarithmically spaced ones a power law.

    Examples
    --------
    >>> rates = lesde.convergence(lesde.neural_collapse(paths), start=1.0)  # doctest: +SKIP
    >>> rates.rate.sel(metric="nc1", clock="time")  # doctest: +SKIP
    """
    check_dataset("nc", nc, ["time"], "lesde.neural_collapse")
    names = [str(name) for name, variable in nc.data_vars.items() if "time" in variable.dims]
    if not names:
        raise ValueError("nc must hold variables over 'time', as lesde.neural_collapse returns.")
    if metrics is not None:
        names = check_choices("metrics", metrics, names)
    check_dataset("nc", nc, names, "lesde.neural_collapse")
    levels = threshold if isinstance(threshold, Mapping) else dict.fromkeys(names, threshold)
    if not set(names) <= set(levels):
        raise ValueError(f"threshold must hold every metric fitted; got {shown(dict(levels))}.")
    levels = {name: check_real("threshold", levels[name], 0.0, open_minimum=True) for name in names}
    confidence = check_fraction("confidence", confidence)
    offset = check_real("offset", offset)
    times = check_times("nc.time", nc["time"].values)
    low = -np.inf if start is None else check_real("start", start)
    high = np.inf if stop is None else check_real("stop", stop)
    frames = np.flatnonzero((times >= low) & (times <= high))
    if len(frames) < 3:
        raise ValueError(
            f"start and stop must leave at least 3 of the {len(times)} frames between {times[0]:g} and "
            f"{times[-1]:g}; got {len(frames)} in [{low:g}, {high:g}]."
        )

    clocks = _clocks(nc, against, offset).isel(time=frames)
    found = []
    for name in names:
        y = abs(nc[name].astype(np.float64) - target_of(nc[name])).isel(time=frames)
        if "replicate" not in y.dims:
            y = y.expand_dims("replicate")
        found.append(
            xr.apply_ufunc(
                _fit,
                y.drop_vars(y.coords),
                clocks["x"],
                clocks["shift"],
                times[frames],
                levels[name],
                confidence,
                input_core_dims=[["replicate", "time"], ["time"], [], ["frame"], [], []],
                output_core_dims=[["number"]],
                vectorize=True,
            )
        )
    joined = xr.concat(found, "metric").assign_coords(metric=names, number=["law", *NUMBERS])
    result = joined.transpose("metric", ..., "clock", "number").to_dataset("number")
    for name in ("law", "frames", "replicates"):
        result[name] = result[name].astype(np.int64)
    result["law"] = (result["law"].dims, np.array(LAWS)[result["law"].values])
    coords = {key: coord for key, coord in nc.coords.items() if set(coord.dims) <= set(result.dims)}
    result = result.assign_coords(coords | {"threshold": ("metric", list(levels.values()))})
    result.attrs = {"confidence": confidence, "offset": offset}
    result = _against_learning_rate(result, confidence)
    for key, values in result.items():
        values.attrs["long_name"] = str(key).replace("_", " ")
    return result


def _clocks(nc: xr.Dataset, against: str | Sequence[str] | None, offset: float) -> xr.Dataset:
    """Abscissas by clock: ``x`` (clock, …, time) of an exponential, and ``shift`` (clock, …), u − x of a power law.

    u = 0 is time = −offset, to which an iteration count that is a straight line in time (up to rounding) is
    continued; one that is not (a learning-rate schedule) has u = x.
    """
    time = nc["time"].astype(np.float64).drop_vars(nc["time"].coords)
    clocks = {"time": xr.Dataset({"x": time, "shift": offset})}
    x = _iteration(nc, time)
    if x is not None:
        # Anchored at the first frame, so that both clocks share a frame at u = 0 where counts are rounded.
        first, begin = x.isel(time=0), time.isel(time=0)
        slope = (x.isel(time=-1) - first) / (time.isel(time=-1) - begin)
        away = abs(x - first - slope * (time - begin)).max("time")
        straight = away <= 1 + 1e-6 * abs(x).max("time")
        shift = (slope * (begin + offset) - first).where(straight, 0.0)
        clocks["iteration"] = xr.Dataset({"x": x, "shift": shift})
    names = list(clocks) if against is None else check_choices("against", against, CLOCKS)
    if not set(names) <= set(clocks):
        raise ValueError(
            "against='iteration' needs a coordinate iteration(time) or a positive coordinate "
            "learning_rate; add one with nc.assign_coords(iteration=('time', steps))."
        )
    return xr.concat([clocks[name] for name in names], xr.IndexVariable("clock", names))


def _iteration(nc: xr.Dataset, time: xr.DataArray) -> xr.DataArray | None:
    """Iteration of each frame, (…, time), or None where the dataset does not determine it."""
    if "iteration" in nc.coords:
        x = nc["iteration"].drop_vars(nc["iteration"].coords).astype(np.float64)
        good = "time" in x.dims and "replicate" not in x.dims and bool(np.isfinite(x).all())
        if not good or (x.diff("time") < 0).any() or (x.isel(time=-1) == x.isel(time=0)).any():
            raise ValueError(
                f"nc.iteration must be a coordinate over time, not over replicates, finite and increasing "
                f"in time; got {', '.join(map(repr, x.dims)) or 'no dimension'}, {shown(x.values)}."
            )
        return x
    rate = nc.coords.get("learning_rate")
    if rate is None or "replicate" in rate.dims or not (rate > 0).all():
        return None
    return (time - time.isel(time=0)) / rate.drop_vars(rate.coords).astype(np.float64)


def _fit(
    y: np.ndarray,
    x: np.ndarray,
    shift: float,
    times: np.ndarray,
    threshold: float,
    confidence: float,
) -> np.ndarray:
    """The number of the law and those of `NUMBERS`, of one curve y (replicate, time) on one clock."""
    y, u = np.where(np.isfinite(y), y, np.nan), x + shift
    passages = median_interval(first_passage(x, y, threshold), float(x[-1]), confidence)
    found = dict.fromkeys(("law", *NUMBERS), np.nan) | {"law": 0, "frames": 0, "replicates": 0}
    found |= zip((*(f"time_to_threshold{end}" for end in ENDS), "reached"), passages, strict=True)
    z = np.log(y, where=(y > 0) & (u > 0), out=np.full(y.shape, np.nan))
    z = z[np.isfinite(z).sum(axis=1) >= 3]
    frames = np.flatnonzero(np.isfinite(z).any(axis=0))
    if len(frames) < 3:
        return np.array(list(found.values()))
    curve = np.nanmean(z[:, frames], axis=0)
    likelihoods, lines = [], []
    for (law, number), abscissa in zip(LAW_OF.items(), (x[frames], np.log(u[frames])), strict=True):
        likelihood, found[f"r_squared_{law}"] = _log_evidence(abscissa, curve)
        line = fit_line(abscissa, z[:, frames], confidence)
        # a falling slope as a positive rate
        found |= zip(
            (f"{number}{end}" for end in ENDS), (-line.slope, -line.upper, -line.lower), strict=True
        )
        found[f"amplitude_{law}"] = np.exp(np.clip(line.intercept, -745, 709))
        likelihoods.append(likelihood)
        lines.append(line)
    weight = 1 / (1 + np.exp(np.clip(likelihoods[1] - likelihoods[0], -700, 700)))
    if any(line.upper < 0 for line in lines):
        chosen = 0 if weight >= 0.5 else 1
        found["law"], line = chosen + 1, lines[chosen]
        if line.slope < 0:
            at = (np.log(threshold) - line.intercept) / line.slope
            found["time_to_threshold_fitted"] = np.exp(min(at, 709.0)) - shift if chosen else at
    found |= {"weight_exponential": weight, "frames": len(frames), "replicates": len(z)}
    found |= {"window_start": times[frames[0]], "window_stop": times[frames[-1]]}
    return np.array(list(found.values()))


class Line(NamedTuple):
    """A fitted line: slope with confidence limits, and intercept."""

    slope: float
    lower: float
    upper: float
    intercept: float


def fit_line(x: np.ndarray, z: np.ndarray, confidence: float) -> Line:
    """Least-squares slope of z on x, common to independent replicates, with a confidence interval.

    From z (replicate, time), NaN where missing, at least three values each. With three replicates or more,
    the mean of their own slopes, with the t interval of these; with one or two, the slope of their mean, with
    the interval marginalised over the autocorrelation of AR(1) residuals (`_reach`).
    """
    if len(z) < 3:
        common = np.isfinite(z).all(axis=0)
        x, z = x[common], z[:, common].mean(axis=0, keepdims=True)
        if len(x) < 3:
            return Line(np.nan, np.nan, np.nan, np.nan)
    present = np.isfinite(z)
    n = present.sum(axis=1)
    filled = np.where(present, z, 0.0)
    x_mean = present @ x / n
    away = np.where(present, x - x_mean[:, None], 0.0)
    weights = away / (away**2).sum(axis=1, keepdims=True)
    slopes = (weights * filled).sum(axis=1)
    mean = float(slopes.mean())
    intercept = float((filled.sum(axis=1) / n - slopes * x_mean).mean())
    if len(z) == 1:
        half = _reach(x, z[0], weights[0], confidence)
    else:
        half = float(stats.t.ppf((1 + confidence) / 2, len(z) - 1) * stats.sem(slopes))
    return Line(mean, mean - half, mean + half, intercept)


def _whitened(
    x: np.ndarray, z: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Generalised least squares of z on x with AR(1) residuals, at every autocorrelation of the grid.

    Residual squares, information on slope and intercept, and log determinant of the residuals' correlation.
    """
    phi = PHI[:, None]
    scale = np.sqrt(1 - phi**2)
    # About the plain means: the sums below would otherwise cancel.
    one, u, v = (
        np.concatenate([np.full((len(PHI), 1), c[0]), (c[1:] - phi * c[:-1]) / scale], axis=1)
        for c in (np.ones(len(x)), x - x.mean(), z - z.mean())
    )
    norm = (one**2).sum(axis=1)
    u = u - ((one * u).sum(axis=1) / norm)[:, None] * one
    v = v - ((one * v).sum(axis=1) / norm)[:, None] * one
    information = (u * u).sum(axis=1)
    residual = (v * v).sum(axis=1) - (u * v).sum(axis=1) ** 2 / information
    log_det = 2 * (len(x) - 1) * np.log(scale[:, 0])
    return np.maximum(residual, _floor(z)), information, norm, log_det


def _floor(z: np.ndarray) -> float:
    """Residual sum of squares below which it is rounding."""
    return len(z) * (16 * EPS * max(1.0, float(np.abs(z).max()))) ** 2


def _reach(x: np.ndarray, z: np.ndarray, weights: np.ndarray, confidence: float) -> float:
    """Half the interval of a slope Σ weight × z with AR(1) residuals, averaged over the autocorrelation.

    Given φ the estimate has about a t distribution, with the residuals' variance from generalised least
    squares. The interval is that of the mixture of these over φ, weighted by the restricted likelihood times
    the prior 1/(1 − φ) on (0, 1 − 10⁻⁴). On simulated AR(1) noise, 20 to 200 frames, its 95% interval
    covers the slope in 94 to 100% of cases for φ ≤ 0.98, and in 87 to 95% for a random walk.
    """
    rss, information, norm, log_det = _whitened(x, z)
    free = len(z) - 2
    log_weight = -0.5 * (free * np.log(rss) + log_det + np.log(norm) + np.log(information))
    chance = np.exp(log_weight - log_weight.max())
    chance /= chance.sum()
    lags = np.correlate(weights, weights, "full")[len(z) - 1 :]
    lags[1:] *= 2
    variance = rss / free * np.maximum(PHI[:, None] ** np.arange(len(z)) @ lags, 0.0)
    scale = np.sqrt(variance)

    def beyond(reach: float) -> float:
        return float(chance @ stats.t.sf(reach / scale, free)) - (1 - confidence) / 2

    most = float(scale.max()) * stats.t.ppf((1 + confidence) / 2, free)
    return optimize.brentq(beyond, 0.0, most * 1.001, xtol=1e-9 * most)


def _log_evidence(x: np.ndarray, z: np.ndarray) -> tuple[float, float]:
    """Maximised log-likelihood of a line with AR(1) residuals, and plain R² (NaN for a constant curve)."""
    rss, _, _, log_det = _whitened(x, z)
    likelihood = -0.5 * (len(z) * np.log(rss / len(z)) + log_det)
    u, v = x - x.mean(), z - z.mean()
    r_squared = (u @ v) ** 2 / ((u @ u) * (v @ v)) if v @ v > _floor(z) else np.nan
    return float(likelihood.max()), float(r_squared)


def first_passage(x: np.ndarray, y: np.ndarray, threshold: float) -> np.ndarray:
    """Time at which each replicate first falls to a threshold, by interpolation of log y between frames, (R,).

    From y (replicate, time), non-negative, NaN where missing: the first *downward* crossing, between two
    frames; the first frame of a replicate that is never above. inf: never crossed down; NaN: no values.
    """
    result = np.full(len(y), np.nan)
    for r, row in enumerate(y):
        frames = np.flatnonzero(np.isfinite(row))
        above = row[frames] > threshold
        down = np.flatnonzero(above[:-1] & ~above[1:])
        if len(down):
            a, b = frames[down[0]], frames[down[0] + 1]
            # An exact 0 is not reached by a straight line of log y: it counts from its own frame.
            share = np.log(row[a] / threshold) / np.log(row[a] / row[b]) if row[b] > 0 else 1.0
            result[r] = x[a] + share * (x[b] - x[a])
        elif len(frames):
            result[r] = np.inf if above.any() else x[frames[0]]
    return result


def median_interval(
    values: np.ndarray, end: float, confidence: float
) -> tuple[float, float, float, float]:
    """Median of values, inf where censored, its distribution-free interval, and the share not censored.

    The median is NaN where half or more are censored, the interval with too few values (fewer than 6 at 95%);
    ``end``, where the record ends, is the least that a censored value can be.
    """
    values = np.sort(values[~np.isnan(values)])
    n = len(values)
    if n == 0:
        return np.nan, np.nan, np.nan, np.nan
    reached = float(np.isfinite(values).mean())
    median = float(np.median(values)) if np.isfinite(values[n // 2]) else np.nan
    # P(Binomial(n, 1/2) < k) < (1 − confidence)/2, so that (values[k−1], values[n−k]) covers the median.
    k = int(stats.binom.ppf((1 - confidence) / 2, n, 0.5))
    if k < 1:
        return median, np.nan, np.nan, reached
    return median, float(min(values[k - 1], end)), float(values[n - k]), reached


def _against_learning_rate(result: xr.Dataset, confidence: float) -> xr.Dataset:
    """Add the slope of log rate on log learning rate and its t interval, where there are three or more.

    NaN where a rate is not positive.
    """
    rate = result["rate"]
    if rate.sizes.get("learning_rate", 0) < 3 or not (rate["learning_rate"] > 0).all():
        return result
    h = np.log(rate["learning_rate"].values.astype(np.float64))

    def regression(rates: np.ndarray) -> tuple[float, float, float]:
        if not (rates > 0).all():
            return np.nan, np.nan, np.nan
        line = stats.linregress(h, np.log(rates))
        half = stats.t.ppf((1 + confidence) / 2, len(h) - 2) * line.stderr
        return line.slope, line.slope - half, line.slope + half

    limits = xr.apply_ufunc(
        regression,
        rate,
        input_core_dims=[["learning_rate"]],
        output_core_dims=[[], [], []],
        vectorize=True,
    )
    names = (f"learning_rate_exponent{end}" for end in ENDS)
    return result.assign(
        {name: values.variable for name, values in zip(names, limits, strict=True)}
    )
