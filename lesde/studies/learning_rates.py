"""Collapse against the learning rate: networks beside the LE-SDE fitted to other networks."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from scipy.stats import t as student

import lesde
from lesde import networks
from lesde.checks import (
    check_choice,
    check_fraction,
    check_integer,
    check_real,
    check_seed,
    check_times,
    shown,
)
from lesde.model.transforms import make_transform
from lesde.paths import check_paths
from lesde.studies.digits import recorded
from lesde.studies.fitted_kernels import Kernels, average_kernels, draw_kernels, frames_of_kernels
from lesde.studies.runner import Progress

__all__ = [
    "LearningRateExperiment",
    "compare_learning_rates",
    "learning_rate_experiment",
    "whole_errors",
]

METRICS = ("nc1", "nc2_etf")
"""Two metrics whose target is 0, so that each is its own distance from collapse."""

NAMES = {"nc1": "NC1", "nc2_etf": "NC2"}
KERNELS = ("the same rate", "the other rates")
MODELS = {"identity": "I-model", "logits": "L-model"}
ENDS = ("", "_lower", "_upper")

HUGE = 1e100
"""Features beyond this have squares that overflow."""


class LearningRateExperiment(NamedTuple):
    """Result of :func:`lesde.studies.learning_rate_experiment`.

    Attributes
    ----------
    logits, penultimate : xarray.Dataset
        Recorded features of the probe images, as :func:`lesde.networks.record_ensemble` makes them.
    comparison : xarray.Dataset
        Result of :func:`lesde.studies.compare_learning_rates` for the logits.
    """

    logits: xr.Dataset
    penultimate: xr.Dataset
    comparison: xr.Dataset


def learning_rate_experiment(
    learning_rates: Sequence[float] = (0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128),
    replicates: int = 32,
    total_time: float = 32.0,
    *,
    classes: int | Sequence[int] = (0, 1, 2, 3),
    train_per_class: int = 100,
    probe_per_class: int = 40,
    widths: Sequence[int] = (32,),
    start: float = 2.0,
    saved_times: int = 24,
    draws: int = 40,
    spread: str = "covariance",
    confidence: float = 0.95,
    seed: int = 0,
    progress: bool | Callable[[int, int], None] = False,
) -> LearningRateExperiment:
    """Train networks on handwritten digits at several learning rates and compare them with the fitted LE-SDE.

    Plain SGD, batch size 1, cross-entropy, one network after another drawn from PyTorch's default initialisation; all
    learning rates run for the same time t = learning rate × iteration.

    Parameters
    ----------
    learning_rates : sequence of float
        The default spans a factor of 64, each dividing the next, so that all are recorded at the same times.
    replicates : int, default 32
        Networks per learning rate. The kernel is fitted to the first half, the second half is predicted.
    total_time : float, default 32
    classes, train_per_class, probe_per_class
        Of :func:`lesde.networks.digits`. NC2 needs 4 classes or more.
    widths : sequence of int, default (32,)
        Hidden layers.
    start, draws, spread, confidence
        As for :func:`lesde.studies.compare_learning_rates`.
    saved_times : int, default 24
        Recordings, denser early; those before ``start`` are used only to show the networks.
    seed : int, default 0
        Of all randomness.
    progress : bool or callable, default False
        Of the training: a progress bar, or called with (done, total).

    Returns
    -------
    LearningRateExperiment

    Raises
    ------
    TypeError, ValueError, Diverged
        As :func:`lesde.networks.record_ensemble` and :func:`lesde.studies.compare_learning_rates`.

    Examples
    --------
    >>> from lesde.studies import learning_rate_experiment
    >>> experiment = learning_rate_experiment()  # doctest: +SKIP
    >>> print(experiment.comparison.attrs["statement"])  # doctest: +SKIP
    >>> axes = lesde.plot.learning_rate_range(experiment.comparison)  # doctest: +SKIP
    """
    start = check_real("start", start, 0.0)
    times = networks.saving_times(total_time, learning_rates, saved_times)
    data = networks.digits(classes, train_per_class, probe_per_class, scaling="standard", seed=seed)
    records = recorded(data, learning_rates, times, replicates, widths, seed, progress)
    layers = networks.collect(records)
    comparison = compare_learning_rates(
        layers["logits"],
        start=start,
        draws=draws,
        spread=spread,
        confidence=confidence,
        seed=seed,
    )
    return LearningRateExperiment(layers["logits"], layers["penultimate"], comparison)


def compare_learning_rates(
    paths: xr.Dataset,
    *,
    start: float | None = None,
    at: float | None = None,
    transforms: str | Sequence[str] | None = None,
    spread: str = "covariance",
    draws: int = 40,
    confidence: float = 0.95,
    seed: int = 0,
    progress: Progress | None = None,
) -> xr.Dataset:
    """NC1 and NC2 of recorded paths at each learning rate, beside what the fitted LE-SDE predicts for them.

    The kernel and the noise are fitted to the first half of the replicates. The discrete process with that kernel then
    runs from the recorded state of each of the others at ``start``, at the learning rate of the paths.

    Parameters
    ----------
    paths : xarray.Dataset
        ``features`` with dimensions ``learning_rate`` (at least 2), ``replicate`` (at least 8), ``time``, ``sample``,
        ``feature``; coordinates ``time``, ``label(sample)`` and ``iteration(learning_rate, time)``, as from
        :func:`lesde.networks.record_ensemble` and from `lesde.simulate` with ``engine="sgd"``.
    start : float, optional
        Time from which the kernel is fitted and the model runs. Default: the first recorded.
    at : float, optional
        Time at which values are compared, one of the recorded. Default: the last.
    transforms : {"identity", "logits"} or sequence of them, optional
        Models to fit. Default: both, "identity" alone unless there is a feature for every class.
    spread : {"covariance", "constant"}, default "covariance"
        Noise of a sample. "covariance": the growth of the networks' pooled covariance within classes in each
        interval, where it grows. "constant": one number, σ of the LE-SDE as published.
    draws : int, default 40
        Kernels fitted to resamples of the networks, each of which runs once from every start.
    confidence : float, default 0.95
    seed : int, default 0
    progress : callable, optional
        Called with (done, total) after each prediction: of one model, kernel and learning rate.

    Returns
    -------
    xarray.Dataset
        Dimensions ``model``, ``kernel``, ``quantity``, ``metric`` and ``learning_rate`` (increasing).

        - ``model``: "I-model" or "L-model". Attribute ``preferred``: the one that diverges at fewer learning rates, and
          among equals the one that predicts the held-out networks better over the whole path, by the smaller mean of
          ``log_error (model, learning_rate)`` over the learning rates at which no model diverges.
        - ``log_error (model, learning_rate)``: root of the mean square of log(network/predicted) over metrics and
          times, with the kernel of the same rate. ``r_squared_common (model, learning_rate)``: the share that the fit
          explains of the movement from one time to the next that fitted networks have in common; it leaves out errors
          that add up along the path.
        - ``kernel``: fitted at "the same rate", or the mean over "the other rates" (weighted by precision), so that
          only the start is used at the predicted learning rate. In the LE-SDE the kernel is a function of t alone.
        - ``quantity``: "value", the geometric mean over replicates at ``at``; "rate", the mean of their rates of exponential
          decay from ``start`` to ``at`` per unit of time, as from `lesde.convergence`.
        - ``network``, ``network_lower``, ``network_upper (quantity, metric, learning_rate)``: of the predicted replicates,
          with the t interval over them.
        - ``predicted``, ``predicted_lower``, ``predicted_upper (model, kernel, …)``: the model's, with the interval in which it puts
          ``network``, a mean over so many replicates. NaN where a path diverges.
        - ``inside (model, kernel, …)``: whether ``network`` is in that interval. ``range_lowest``, ``range_highest``: the longest
          unbroken range of learning rates where it is, NaN where there is none. ``statement``: the same in words, with
          the size of each miss; attribute ``statement`` holds all of them.
        - ``network_path (metric, learning_rate, time)``, ``predicted_path (model, kernel, …)``: geometric means over time from
          ``start`` to ``at``, each with ``_lower`` and ``_upper``.

    Raises
    ------
    TypeError, ValueError
        For paths without what is needed, or arguments that are not as above.

    Notes
    -----
    **Interval.** Each draw gives one mean over the replicates, of a kernel fitted to a resample of the
    networks. Their scatter reflects the uncertainty of kernel and noise and the randomness of the predicted replicates.
    Limits are those of Student's t on the logarithm of a value, with R − 1 degrees of freedom for R fitted replicates.
    They are for one learning rate at a time: where the LE-SDE is true, 1 in 20 lies outside a 95 % interval by chance,
    and the results of one fit, or of replicates with the same number at several learning rates, may be correlated.
    Where the networks' averages hardly determine a rate, the intervals are wider than they need be.

    **Learning rate.** The LE-SDE itself does not depend on the learning rate; only the noise of drawing samples does.
    So the discrete process runs: at every iteration one sample is drawn and moves all others, as with ``engine="sgd"``.

    Examples
    --------
    >>> import numpy as np
    >>> import lesde
    >>> from lesde.studies import compare_learning_rates
    >>> model = lesde.LESDE(lesde.TwoLevel(1.0, -1.0), 4, 4, 10, transform="logits", noise=0.1)
    >>> paths = lesde.simulate(
    ...     model, [0, 0.4, 0.8, 1.2, 1.6], 1.5 * np.eye(4), 16, learning_rate=[0.02, 0.04], engine="sgd"
    ... )
    >>> result = compare_learning_rates(paths, start=0.4, draws=10)
    >>> dict(result.inside.sizes)
    {'model': 2, 'kernel': 2, 'quantity': 2, 'metric': 2, 'learning_rate': 2}
    """
    check_choice("spread", spread, ("covariance", "constant"))
    draws = check_integer("draws", draws, 4, 10**5)
    confidence = check_fraction("confidence", confidence)
    seed = check_seed(seed)
    frames, counts = _compared_frames(paths, start, at)
    names = _transforms(transforms, len(counts), frames.sizes["feature"])
    R, rates = frames.sizes["replicate"] // 2, frames.sizes["learning_rate"]
    fitted, others = frames.isel(replicate=slice(R)), frames.isel(replicate=slice(R, None))
    # Replicates with one number start from one initial state at every learning rate, so they are
    # resampled together.
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(0,)))
    weights = rng.multinomial(R, np.full(R, 1 / R), size=draws) / R

    parts: list[xr.Dataset] = []
    for name in names:
        one_rate = (fitted.isel(learning_rate=i) for i in range(rates))
        same = [draw_kernels(each, counts, name, weights, spread) for each in one_rate]
        other = [average_kernels(same[:i] + same[i + 1 :]) for i in range(rates)]
        found: list[list[np.ndarray]] = []
        for k, kernels in enumerate((same, other)):
            found.append([])
            for i, kernel in enumerate(kernels):
                stream = np.random.SeedSequence(seed, spawn_key=(1, k, i))
                path = others.isel(learning_rate=i)
                found[-1].append(predict(path, kernel, name, counts, stream))
                if progress is not None:
                    done = (len(parts) * len(KERNELS) + k) * rates + i + 1
                    progress(done, len(names) * len(KERNELS) * rates)
        part = model_limits(np.array(found), frames, R, confidence)
        with warnings.catch_warnings():
            # Rates that are not identified show in the share itself.
            warnings.simplefilter("ignore", UserWarning)
            fit = lesde.fit_elasticity(
                fitted, transform=name, estimator="averages", tail=False, smoothing=None
            )
        part["r_squared_common"] = fit["r_squared_common"]
        parts.append(part.assign_coords(kernel=list(KERNELS)))
    labels = xr.DataArray([MODELS[name] for name in names], dims="model", name="model")
    result = _observed(others, confidence).merge(xr.concat(parts, labels))
    result["inside"] = (result["predicted_lower"] <= result["network"]) & (
        result["network"] <= result["predicted_upper"]
    )
    ratio = result["network_path"] / result["predicted_path"].sel(kernel=KERNELS[0])
    square = ratio.copy(data=np.log(ratio.values) ** 2)
    result["log_error"] = square.mean(("metric", "time"), skipna=False) ** 0.5
    result["log_error"].attrs["long_name"] = "error of the logarithm, over metrics and times"
    result = result.assign_attrs(
        preferred=min(whole_errors(result).items(), key=lambda item: item[1])[0],
        start=float(frames.time[0]),
        at=float(frames.time[-1]),
        spread=spread,
        confidence=confidence,
        draws=draws,
        fitted_replicates=R,
        predicted_replicates=others.sizes["replicate"],
        seed=seed,
    )
    return state_ranges(result)


def whole_errors(result: xr.Dataset) -> dict[str, tuple[int, float]]:
    """For each model, the number of learning rates at which it diverges, and its mean ``log_error`` where none does."""
    error = result["log_error"].transpose("model", "learning_rate").values
    fine = np.isfinite(error)
    common = fine.all(0)
    means = error[:, common].mean(1) if common.any() else np.full(len(error), np.inf)
    return {
        str(name): (int((~one).sum()), float(mean))
        for name, one, mean in zip(result["model"].values, fine, means, strict=True)
    }


def _transforms(given: Any, K: int, p: int) -> list[str]:
    if given is None:
        return list(MODELS) if p == K else ["identity"]
    names = [given] if isinstance(given, str) else list(given)
    names = list(dict.fromkeys(check_choice("transforms", name, MODELS) for name in names))
    if not names:
        raise ValueError("transforms must name at least one model; got none. Leave it out for all.")
    if "logits" in names and p != K:
        raise ValueError(
            f"transforms={shown(given)} needs one feature per class for 'logits'; paths have {K} classes "
            f"and {p} features. Use transforms='identity'."
        )
    return names


def _compared_frames(
    paths: Any, start: float | None, at: float | None
) -> tuple[xr.Dataset, np.ndarray]:
    """The compared frames, learning rates increasing and samples sorted by class; the number of samples of each class."""
    dims = ("learning_rate", "replicate", "time", "sample", "feature")
    features, labels = check_paths("paths", paths, dims, 2)
    if set(features.dims) != set(dims):
        raise ValueError(
            f"paths.features must have the dimensions {', '.join(dims)} alone; got "
            f"{', '.join(map(str, features.dims))}."
        )
    if "iteration" not in paths.coords or set(paths["iteration"].dims) - {"learning_rate", "time"}:
        raise ValueError(
            "paths must hold the coordinate iteration(learning_rate, time), the SGD steps done at each "
            "time; networks recorded by lesde.networks and paths of engine='sgd' have it."
        )
    for dim, least in (("learning_rate", 2), ("replicate", 8)):
        if features.sizes[dim] < least:
            raise ValueError(
                f"paths must have at least {least} entries along {dim}; got {features.sizes[dim]}."
            )
    if "learning_rate" not in paths.coords or not (paths["learning_rate"] > 0).all():
        raise ValueError("paths must hold positive learning rates as a coordinate.")
    times = check_times("paths.time", paths["time"].values, 4)
    first = times[0] if start is None else check_real("start", start)
    last = times[-1] if at is None else check_real("at", at)
    near = np.isclose(times, last, rtol=1e-9, atol=1e-12)
    if not near.any():
        raise ValueError(
            f"at must be one of the recorded times, {shown(times.tolist())}; got {last:g}."
        )
    chosen = np.flatnonzero((times >= first - 1e-12) & (times <= times[near][0]))
    if len(chosen) < 4:
        raise ValueError(
            f"start and at must leave at least 4 recorded times; {len(chosen)} lie in [{first:g}, "
            f"{last:g}]."
        )
    order = np.argsort(labels, kind="stable")
    keep = xr.Dataset(
        {"features": features}, coords={"label": paths["label"], "iteration": paths["iteration"]}
    )
    if "learning_rate" not in keep["iteration"].dims:
        keep["iteration"] = keep["iteration"].expand_dims(learning_rate=keep["learning_rate"])
    keep = keep.isel(time=chosen, sample=order).sortby("learning_rate")
    return keep.load(), np.bincount(labels)


def predict(
    paths: xr.Dataset,
    kernels: Kernels,
    transform: str,
    counts: np.ndarray,
    stream: np.random.SeedSequence,
) -> np.ndarray:
    """Means over replicates for every draw of the kernel, (draw, metric, time + 1): log metrics over time, then the rate."""
    x = paths["features"].transpose("time", "replicate", "sample", "feature").values
    times = paths["time"].values
    drawn = Kernels(*(values[1:] for values in kernels))
    frames = frames_of_kernels(
        drawn,
        make_transform(transform, len(counts), x.shape[-1]),
        x[0].astype(np.float64),
        counts,
        paths["iteration"].values,
        float(paths["learning_rate"]),
        np.random.default_rng(stream),
    )
    logs = np.full((len(drawn.alpha), len(METRICS), x.shape[1], len(times)), np.nan)
    label = ("sample", np.repeat(np.arange(len(counts)), counts))
    for t, frame in enumerate(frames):
        if not (np.abs(frame) < HUGE).all():
            break  # the rest stays NaN: a model that diverges predicts nothing
        frame_of = xr.Dataset(
            {"features": (("draw", "replicate", "sample", "feature"), frame)}, {"label": label}
        )
        nc = lesde.neural_collapse(frame_of, METRICS)
        with np.errstate(divide="ignore"):
            logs[..., t] = np.log(np.stack([nc[name].values for name in METRICS], axis=1))
    means = logs.mean(axis=2)
    rates = np.full(means.shape[:2], np.nan)
    if not np.isnan(logs).any():
        # As `lesde.convergence`: power laws have no time 0, and samples at their class means no log NC1.
        kept = (times > 0) & np.isfinite(logs).all(axis=(0, 1, 2))
        slopes = np.polyfit(times[kept], means[..., kept].reshape(-1, kept.sum()).T, 1)[0]
        rates = -slopes.reshape(rates.shape)
    return np.concatenate([means, rates[..., None]], axis=-1)


def model_limits(
    found: np.ndarray, frames: xr.Dataset, fitted: int, confidence: float
) -> xr.Dataset:
    """The model's intervals, from (kernel, learning_rate, draw, metric, time + 1)."""
    data: dict[str, Any] = {}
    limits = interval(found, 2, confidence, fitted - 1, of_mean=False)
    for end, each in zip(ENDS, limits, strict=True):
        each = np.moveaxis(each, 1, 2)  # (kernel, metric, learning_rate, time + 1)
        path, rate = np.exp(each[..., :-1]), each[..., -1]
        dims = ("kernel", "metric", "learning_rate", "time")
        data[f"predicted_path{end}"] = (dims, path)
        both = np.stack([path[..., -1], rate], axis=1)
        data[f"predicted{end}"] = (("kernel", "quantity", *dims[1:-1]), both)
    return xr.Dataset(data, _coords(frames))


def _observed(paths: xr.Dataset, confidence: float) -> xr.Dataset:
    """The predicted replicates themselves: value, rate and path with t intervals."""
    nc = lesde.neural_collapse(paths, METRICS)
    dims = ("replicate", "learning_rate", "time")
    with np.errstate(divide="ignore"):
        logs = np.log(np.stack([nc[name].transpose(*dims).values for name in METRICS], axis=1))
    path = interval(logs, 0, confidence, len(logs) - 1, of_mean=True)
    fitted = lesde.convergence(nc, list(METRICS), against="time", confidence=confidence)
    rates = fitted.sel(clock="time").transpose("metric", "learning_rate", ...)
    data: dict[str, Any] = {}
    for end, curve in zip(ENDS, path, strict=True):
        value = np.exp(curve)
        both = np.stack([value[..., -1], rates[f"rate{end}"].values])
        data[f"network{end}"] = (("quantity", "metric", "learning_rate"), both)
        data[f"network_path{end}"] = (("metric", "learning_rate", "time"), value)
    return xr.Dataset(data, _coords(paths))


def _coords(paths: xr.Dataset) -> dict[str, Any]:
    rates = ("learning_rate", paths["learning_rate"].values, {"long_name": "learning rate"})
    return {
        "quantity": ["value", "rate"],
        "metric": list(METRICS),
        "learning_rate": rates,
        "time": paths["time"].values,
    }


def interval(
    values: np.ndarray, axis: int, confidence: float, free: int, of_mean: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean of the values over an axis and limits by Student's t, NaN wherever a value is not finite.

    ``of_mean``: for the mean, known from so many values. Otherwise for one more value like these.
    """
    n = values.shape[axis]
    with np.errstate(invalid="ignore"):
        mean, scatter = values.mean(axis), values.std(axis, ddof=1)
    reach = student.ppf((1 + confidence) / 2, free) * scatter
    reach = reach * np.sqrt(1 / n if of_mean else 1 + 1 / n)
    return mean, mean - reach, mean + reach


def state_ranges(result: xr.Dataset) -> xr.Dataset:
    """Add ``range_lowest``, ``range_highest`` and ``statement`` to a comparison with increasing learning rates."""
    dims = ("model", "kernel", "quantity", "metric")
    part = result.transpose(*dims, "learning_rate", ...)
    shape, h = part["inside"].shape[:-1], part["learning_rate"].values
    lowest, highest = np.full(shape, np.nan), np.full(shape, np.nan)
    words = np.empty(shape, dtype=object)
    for at in np.ndindex(*shape):
        cell = part.isel(dict(zip(dims, at, strict=True)))
        run = longest_run(cell["inside"].values)
        if run is not None:
            lowest[at], highest[at] = h[run[0]], h[run[1]]
        words[at] = _range_words(cell, run)
    result = result.assign(
        range_lowest=(dims, lowest, {"long_name": "lowest learning rate of the range"}),
        range_highest=(dims, highest, {"long_name": "highest learning rate of the range"}),
        statement=(dims, words.astype(str)),
    )
    return result.assign_attrs(statement="\n".join(words.ravel()))


def longest_run(inside: np.ndarray) -> tuple[int, int] | None:
    """First and last index of the longest unbroken run of True, the first of several; None for none."""
    runs, start = [], 0
    for yes, group in groupby(inside):
        end = start + len(list(group))
        if yes:
            runs.append((start, end - 1))
        start = end
    return max(runs, key=lambda run: run[1] - run[0], default=None)


def _range_words(cell: xr.Dataset, run: tuple[int, int] | None) -> str:
    """The statement on one model, kernel, quantity and metric."""
    h, inside = cell["learning_rate"].values, cell["inside"].values.astype(bool)
    is_value = str(cell["quantity"].values) == "value"
    name = NAMES.get(str(cell["metric"].values), str(cell["metric"].values))
    what = name if is_value else f"rate of {name}"
    lead = f"{cell['model'].values}, kernel of {cell['kernel'].values}, {what}: "

    missed = []
    for i in np.flatnonzero(~inside):
        network, model = (cell[name].values[i] for name in ("network", "predicted"))
        if not np.isfinite(model):
            missed.append(f"at {h[i]:g} the model diverges")
        elif is_value:
            missed.append(f"at {h[i]:g} network/model = {np.divide(network, model):.2f}")
        else:
            missed.append(f"at {h[i]:g} {network:.3g} against {model:.3g}")
    misses = f" Outside: {', '.join(missed)}." if missed else ""
    if run is None:
        return f"{lead}inside the interval at none of {len(h)} learning rates.{misses}"

    low, high = run
    stretch = f"at h = {h[low]:g}" if low == high else f"from h = {h[low]:g} to {h[high]:g}"
    others = [f"{v:g}" for i, v in enumerate(h) if inside[i] and not low <= i <= high]
    also = f", and at {', '.join(others)}" if others else ""
    # The widest interval is given, since a very wide one is no evidence.
    upper, predicted = (cell[name].values[inside] for name in ("predicted_upper", "predicted"))
    width = (
        f"within a factor of {(upper / predicted).max():.2f} of the prediction"
        if is_value
        else f"within {(upper - predicted).max():.2g} of the prediction"
    )
    return f"{lead}inside the interval {stretch}{also} ({width}).{misses}"
