"""Collapse against the learning rate: networks beside the LE-SDE fitted to other networks."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from scipy.stats import t as student

import lesde
from lesde.analysis.convergence import fit_line
from lesde.checks import (
    check_choice,
    check_fraction,
    check_integer,
    check_real,
    check_seed,
    check_times,
    shown,
)
from lesde.model.lesde import class_average
from lesde.model.transforms import Transform, make_transform
from lesde.paths import check_paths
from lesde.studies.digits import Progress, digit_records

__all__ = [
    "METRICS",
    "Kernels",
    "LearningRateExperiment",
    "Moments",
    "average_kernels",
    "class_moments",
    "compare_learning_rates",
    "compared_frames",
    "draw_kernels",
    "fit_quality",
    "frames_of_kernels",
    "interval",
    "learning_rate_experiment",
    "longest_run",
    "model_limits",
    "observe",
    "predict",
    "range_words",
    "state_ranges",
    "whole_errors",
]


# --------------------------------------------------------------------------------------------------
# Where a network lies within a model's interval: limits, ranges of learning rates, and words.

NAMES = {"nc1": "NC1", "nc2_etf": "NC2"}


def interval(
    values: np.ndarray, axis: int, confidence: float, free: int, of_mean: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean of the values over an axis and limits by Student's t.

    ``of_mean``: for the mean, known from so many values. Otherwise for one more value like these.
    NaN wherever a value is not finite.
    """
    n = values.shape[axis]
    with np.errstate(invalid="ignore"):
        mean, scatter = values.mean(axis), values.std(axis, ddof=1)
    reach = student.ppf((1 + confidence) / 2, free) * scatter
    reach = reach * np.sqrt(1 / n if of_mean else 1 + 1 / n)
    return mean, mean - reach, mean + reach


def longest_run(inside: np.ndarray) -> tuple[int, int] | None:
    """First and last index of the longest unbroken run of True, the first of several; None for none."""
    best: tuple[int, int] | None = None
    start = None
    for i, yes in enumerate([*inside, False]):
        if yes and start is None:
            start = i
        elif not yes and start is not None:
            if best is None or i - start > best[1] - best[0] + 1:
                best = (start, i - 1)
            start = None
    return best


def state_ranges(result: xr.Dataset) -> xr.Dataset:
    """Add ``range_lowest``, ``range_highest`` and ``statement`` to a comparison.

    Parameters
    ----------
    result : xarray.Dataset
        With ``inside``, ``network``, ``predicted`` and the limits of the latter over ``learning_rate``, increasing, and the other
        dimensions of ``inside``.
    """
    dims = tuple(d for d in ("model", "kernel", "quantity", "metric") if d in result["inside"].dims)
    part = result.transpose(*dims, "learning_rate", ...)
    inside = part["inside"].values
    ends = np.full((2, *inside.shape[:-1]), np.nan)
    words = np.empty(inside.shape[:-1], dtype=object)
    h = part["learning_rate"].values
    for at in np.ndindex(*inside.shape[:-1]):
        run = longest_run(inside[at])
        if run is not None:
            ends[0][at], ends[1][at] = h[run[0]], h[run[1]]
        words[at] = range_words(part.isel(dict(zip(dims, at, strict=True))))
    result = result.assign(
        range_lowest=(dims, ends[0], {"long_name": "lowest learning rate of the range"}),
        range_highest=(dims, ends[1], {"long_name": "highest learning rate of the range"}),
        statement=(dims, words.astype(str)),
    )
    return result.assign_attrs(statement="\n".join(words.ravel()))


def range_words(cell: xr.Dataset) -> str:
    """What is to be said of one model, kernel, quantity and metric."""
    h = cell["learning_rate"].values
    inside = cell["inside"].values.astype(bool)
    metric = str(cell["metric"].values)
    name = NAMES.get(metric, metric)
    what = name if _is_value(cell) else f"rate of {name}"
    lead = f"{cell['model'].values}, kernel of {cell['kernel'].values}, {what}: "
    run = longest_run(inside)
    if run is None:
        return f"{lead}inside the interval at none of {len(h)} learning rates. {_misses(cell)}"
    low, high = h[run[0]], h[run[1]]
    stretch = f"at h = {low:g}" if run[0] == run[1] else f"from h = {low:g} to {high:g}"
    others = [f"{v:g}" for i, v in enumerate(h) if inside[i] and not run[0] <= i <= run[1]]
    also = f", and at {', '.join(others)}" if others else ""
    text = f"{lead}inside the interval {stretch}{also} ({_width(cell)})."
    return text if inside.all() else f"{text} {_misses(cell)}"


def _is_value(cell: xr.Dataset) -> bool:
    return str(cell["quantity"].values) == "value"


def _width(cell: xr.Dataset) -> str:
    """How much the widest interval allows that the network is in: one that allows anything says nothing."""
    part = cell.isel(learning_rate=np.flatnonzero(cell["inside"].values))
    if _is_value(cell):
        factor = float((part["predicted_upper"] / part["predicted"]).max())
        return f"within a factor of {factor:.2f} of the prediction"
    reach = float((part["predicted_upper"] - part["predicted"]).max())
    return f"within {reach:.2g} of the prediction"


def _misses(cell: xr.Dataset) -> str:
    """By how much the model misses where it does."""
    parts = []
    for i in np.flatnonzero(~cell["inside"].values.astype(bool)):
        one = cell.isel(learning_rate=int(i))
        network, model = one["network"].values, one["predicted"].values
        at = f"at {float(one['learning_rate']):g} "
        if not np.isfinite(model):
            parts.append(at + "the model diverges")
        elif _is_value(cell):
            parts.append(at + f"network/model = {np.divide(network, model):.2f}")
        else:
            parts.append(at + f"{network:.3g} against {model:.3g}")
    return "Outside: " + ", ".join(parts) + "."


# --------------------------------------------------------------------------------------------------
# The discrete process of many fitted kernels side by side.


class Kernels(NamedTuple):
    """Several kernels of two levels and their noise, constant within each interval.

    Attributes
    ----------
    alpha, beta : ndarray, shape (draw, interval)
    noise : ndarray, shape (draw, interval, feature, feature)
        S with S Sᵀ the covariance per unit of time of a sample's own noise.
    """

    alpha: np.ndarray
    beta: np.ndarray
    noise: np.ndarray


def frames_of_kernels(
    kernels: Kernels,
    transform: Transform,
    starts: np.ndarray,
    counts: np.ndarray,
    iterations: np.ndarray,
    learning_rate: float,
    rng: np.random.Generator,
) -> Iterator[np.ndarray]:
    """Features at the saved times, one frame after the other.

    Parameters
    ----------
    kernels : Kernels
    transform : Transform
    starts : ndarray, shape (replicate, sample, feature)
        Samples sorted by class. Every kernel runs from every one of them.
    counts : ndarray of int, shape (class,)
    iterations : ndarray of int, shape (interval + 1,)
        Iterations done at the saved times.
    learning_rate : float
    rng : numpy Generator

    Yields
    ------
    ndarray, shape (draw, replicate, sample, feature)
        Of the first saved time, then of each other. A path that overflows goes on as inf or NaN.

    Notes
    -----
    One iteration draws a class L with probability n_L/N and a sample J in it, and moves all samples of
    class k by h E_kL H_L X_J + √h S ζ with their own ζ. The first part is common to a class; of the second only
    that of the drawn sample is needed before the next saved time, so it is brought up to date when it is drawn.
    """
    B, R, (N, p), K = len(kernels.alpha), len(starts), starts.shape[1:], len(counts)
    paths = np.arange(B * R)
    own = np.broadcast_to(starts, (B, R, N, p)).reshape(B * R, N, p).copy()
    shift = np.zeros((B * R, K, p))
    label = np.repeat(np.arange(K), counts)
    matrices = None if transform.kind == "identity" else transform.array()
    yield own.reshape(B, R, N, p).copy()
    for j, steps in enumerate(np.diff(iterations)):
        E = learning_rate * _entries(kernels.alpha[:, j], kernels.beta[:, j], K).repeat(R, axis=0)
        S = np.sqrt(learning_rate) * kernels.noise[:, j].repeat(R, axis=0)
        seen = np.zeros((B * R, N))
        with np.errstate(over="ignore", invalid="ignore"):
            for m in range(int(steps)):
                drawn = rng.integers(N, size=B * R)
                k = label[drawn]
                _catch_up(own, seen, paths, drawn, m, S, rng)
                x = shift[paths, k] + own[paths, drawn]
                if matrices is not None:
                    x = np.einsum("bij,bj->bi", matrices[k], x)
                shift += E[paths, :, k][:, :, None] * x[:, None]
            left = np.sqrt(steps - seen)[..., None] * rng.standard_normal((B * R, N, p))
            own += left @ S.swapaxes(1, 2)
            yield (own + shift[:, label]).reshape(B, R, N, p)


def _catch_up(
    own: np.ndarray,
    seen: np.ndarray,
    paths: np.ndarray,
    drawn: np.ndarray,
    m: int,
    S: np.ndarray,
    rng: np.random.Generator,
) -> None:
    """Give the drawn samples the noise of the iterations since they were last drawn."""
    z = rng.standard_normal((len(paths), own.shape[-1]))
    z *= np.sqrt(m - seen[paths, drawn])[:, None]
    own[paths, drawn] += np.einsum("bij,bj->bi", S, z)
    seen[paths, drawn] = m


def _entries(alpha: np.ndarray, beta: np.ndarray, K: int) -> np.ndarray:
    """E of two levels, (draw, class, class)."""
    return beta[:, None, None] + (alpha - beta)[:, None, None] * np.eye(K)


# --------------------------------------------------------------------------------------------------
# Fitted kernels with their uncertainty, from fits to resamples of the networks.


class Moments:
    """Class means and pooled covariances within classes of each network at one learning rate.

    Attributes
    ----------
    means : ndarray, shape (replicate, time, class, feature)
    within : ndarray, shape (replicate, time, feature, feature)
        Divided by N − K, so that its growth is that of the process.
    times : ndarray, shape (time,)
    iterations : ndarray of int, shape (time,)
    """

    def __init__(self, paths: xr.Dataset, counts: np.ndarray):
        x = paths["features"].transpose("replicate", "time", "sample", "feature").values
        x = x.astype(np.float64)
        self.means = class_average(x, counts)
        away = x - np.repeat(self.means, counts, axis=-2)
        self.within = np.einsum("rtia,rtib->rtab", away, away) / (counts.sum() - len(counts))
        self.times = paths["time"].values.astype(np.float64)
        self.iterations = paths["iteration"].values.astype(np.int64)
        self.counts = counts

    def averages(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Means and covariances averaged with weights (draw, replicate)."""
        return np.tensordot(weights, self.means, 1), np.tensordot(weights, self.within, 1)


def class_moments(paths: xr.Dataset, counts: np.ndarray) -> list[Moments]:
    """The moments of every learning rate; samples must be sorted by class."""
    return [
        Moments(paths.isel(learning_rate=i), counts) for i in range(paths.sizes["learning_rate"])
    ]


def fit_quality(paths: xr.Dataset, transform: str) -> xr.DataArray:
    """Share of the movement common to the networks that a fit explains, (learning_rate,)."""
    with warnings.catch_warnings():
        # Rates that are not identified show in the share itself.
        warnings.filterwarnings("ignore", message="the paths do not tell")
        fit = lesde.fit_elasticity(
            paths, transform=transform, estimator="averages", tail=False, smoothing=None
        )
    return fit["r_squared_common"]


def draw_kernels(moments: Moments, transform: str, weights: np.ndarray, spread: str) -> Kernels:
    """The kernel fitted to all networks, then one fitted to each resample of them.

    Parameters
    ----------
    moments : Moments
    transform : {"identity", "logits"}
    weights : ndarray, shape (draw, replicate)
        How often each network is in a resample, over their number.
    spread : {"covariance", "constant"}

    Returns
    -------
    Kernels
        With 1 + draw entries, the first that of the fit. Resamples of R networks vary by (R−1)/R of what
        they should; their distances from the fit are stretched accordingly.

    Notes
    -----
    Where the average class means hardly tell a rate (in the L-model the contrasts of scores, if all classes are alike), a
    resample may tell it worse than all networks do: the draws then vary more than the fit.
    """
    R = weights.shape[1]
    means, within = moments.averages(np.concatenate([np.full((1, R), 1 / R), weights]))
    fit = _fit(means, moments, transform)
    stretch = np.sqrt(R / (R - 1))
    alpha, beta, Q = (
        values[:1] + np.concatenate([0 * values[:1], stretch * (values[1:] - values[:1])])
        for values in (
            fit["alpha"].values,
            fit["beta"].values,
            _growth(within, moments.times, spread),
        )
    )
    return Kernels(alpha, beta, _root(Q))


def _root(Q: np.ndarray) -> np.ndarray:
    """S with S Sᵀ = Q; a draw may leave the non-negative matrices, and is taken back to them."""
    values, vectors = np.linalg.eigh(Q)
    return vectors * np.sqrt(np.maximum(values, 0.0))[..., None, :]


def average_kernels(kernels: list[Kernels]) -> Kernels:
    """One kernel for all learning rates: the weighted mean of theirs, draw by draw.

    The weights are the precisions of α − β, averaged over time: the scatter of the draws grows with
    the learning rate.
    """
    variance = np.array([(k.alpha - k.beta)[1:].var(axis=0).mean() for k in kernels])
    floor = 1e-12 * max(float(variance.max()), 1e-300)
    weights = 1 / np.maximum(variance, floor)
    weights /= weights.sum()
    alpha, beta, Q = (
        np.tensordot(weights, np.stack(values), 1)
        for values in zip(
            *((k.alpha, k.beta, k.noise @ k.noise.swapaxes(-1, -2)) for k in kernels), strict=True
        )
    )
    return Kernels(alpha, beta, _root(Q))


def _fit(means: np.ndarray, moments: Moments, transform: str) -> xr.Dataset:
    """Rates of the LE-ODE through averaged class means (draw, time, class, feature)."""
    K = means.shape[2]
    # Averages of networks are paths with one sample a class, and no other replicates.
    averages = xr.Dataset(
        {"features": (("draw", "replicate", "time", "sample", "feature"), means[:, None])},
        coords={
            "time": moments.times,
            "label": ("sample", np.arange(K)),
            "iteration": ("time", moments.iterations),
        },
    )
    with warnings.catch_warnings():
        # The errors are those of the resamples.
        warnings.filterwarnings("ignore", message="paths has 1 replicate")
        warnings.filterwarnings("ignore", message="the paths do not tell")
        return lesde.fit_elasticity(averages, transform=transform, tail=False)


def _growth(within: np.ndarray, times: np.ndarray, spread: str) -> np.ndarray:
    """Covariance per unit of time of the own noise, (draw, interval, feature, feature)."""
    width = np.diff(times)
    p = within.shape[-1]
    if spread == "constant":
        elapsed = times - times[0]
        grown = np.einsum("btaa->bt", within - within[:, :1]) / p
        slope = np.maximum(grown @ elapsed / (elapsed @ elapsed), 0.0)
        return np.broadcast_to(
            slope[:, None, None, None] * np.eye(p), (len(slope), len(width), p, p)
        )
    # The noise of the LE-SDE only adds. What the networks take back is made up for later, so that
    # the covariance is theirs wherever it can be.
    reached, rates = within[:, 0].copy(), []
    for j, dt in enumerate(width):
        values, vectors = np.linalg.eigh(within[:, j + 1] - reached)
        add = (vectors * np.maximum(values, 0.0)[:, None, :]) @ vectors.swapaxes(-1, -2)
        reached += add
        rates.append(add / dt)
    return np.stack(rates, axis=1)


# --------------------------------------------------------------------------------------------------
# What is compared at each learning rate: metrics of networks, and of paths of fitted kernels.

METRICS = ("nc1", "nc2_etf")
"""Two metrics whose target is 0, so that each is its own distance from collapse."""

HUGE = 1e100
"""Features beyond this have squares that overflow."""


def compared_frames(
    paths: Any, start: float | None, at: float | None
) -> tuple[xr.Dataset, np.ndarray]:
    """The compared frames, learning rates increasing and samples sorted by class; samples a class."""
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


def _slopes(times: np.ndarray, logs: np.ndarray) -> np.ndarray:
    """Rate of decay of logs (..., replicate, time): mean over replicates, (...)."""
    lead = logs.shape[:-2]
    found = [-fit_line(times, part, 0.95).slope for part in logs.reshape(-1, *logs.shape[-2:])]
    return np.reshape(found, lead)


def predict(
    paths: xr.Dataset,
    kernels: Kernels,
    transform: str,
    counts: np.ndarray,
    stream: tuple[int, ...],
) -> np.ndarray:
    """Means over replicates for every draw of the kernel: log metrics over time, then the rate, (draw, metric, time + 1).

    ``stream`` is the seed and what tells this call from others with that seed.
    """
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
        np.random.default_rng(np.random.SeedSequence(stream[0], spawn_key=(1, *stream[1:]))),
    )
    shape = (len(drawn.alpha), len(METRICS), x.shape[1], len(times))
    logs = np.full(shape, np.nan)
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
        rates = _slopes(times[kept], logs[..., kept])
    return np.concatenate([means, rates[..., None]], axis=-1)


def observe(paths: xr.Dataset, confidence: float) -> xr.Dataset:
    """The predicted replicates themselves: value, rate and path with t intervals."""
    nc = lesde.neural_collapse(paths, METRICS)
    dims = ("replicate", "learning_rate", "time")
    with np.errstate(divide="ignore"):
        logs = np.log(np.stack([nc[name].transpose(*dims).values for name in METRICS], axis=1))
    path = interval(logs, 0, confidence, len(logs) - 1, True)
    fitted = lesde.convergence(nc, list(METRICS), against="time", confidence=confidence)
    rates = fitted.sel(clock="time").transpose("metric", "learning_rate", ...)
    data: dict[str, Any] = {}
    for end, curve in zip(("", "_lower", "_upper"), path, strict=True):
        value = np.exp(curve)
        both = np.stack([value[..., -1], rates[f"rate{end}"].values])
        data[f"network{end}"] = (("quantity", "metric", "learning_rate"), both)
        data[f"network_path{end}"] = (("metric", "learning_rate", "time"), value)
    return xr.Dataset(data, _coords(paths))


def model_limits(
    found: np.ndarray, frames: xr.Dataset, fitted: int, confidence: float
) -> xr.Dataset:
    """The model's intervals, from (kernel, learning_rate, draw, metric, time + 1)."""
    limits = interval(found, 2, confidence, fitted - 1, False)
    data: dict[str, Any] = {}
    dims = ("kernel", "quantity", "metric", "learning_rate")
    for end, each in zip(("", "_lower", "_upper"), limits, strict=True):
        each = np.moveaxis(each, 1, 2)  # (kernel, metric, learning_rate, time + 1)
        path, rate = np.exp(each[..., :-1]), each[..., -1]
        data[f"predicted{end}"] = (dims, np.stack([path[..., -1], rate], axis=1))
        data[f"predicted_path{end}"] = (("kernel", "metric", "learning_rate", "time"), path)
    return xr.Dataset(data, _coords(frames))


def _coords(paths: xr.Dataset) -> dict[str, Any]:
    rates = ("learning_rate", paths["learning_rate"].values, {"long_name": "learning rate"})
    return {
        "quantity": ["value", "rate"],
        "metric": list(METRICS),
        "learning_rate": rates,
        "time": paths["time"].values,
    }


# --------------------------------------------------------------------------------------------------

KERNELS = ("the same rate", "the other rates")
MODELS = {"identity": "I-model", "logits": "L-model"}


class LearningRateExperiment(NamedTuple):
    """What `learning_rate_experiment` returns.

    Attributes
    ----------
    logits, penultimate : xarray.Dataset
        Recorded features of the probe images, as :func:`lesde.networks.record_ensemble` makes them.
    comparison : xarray.Dataset
        As :func:`compare_learning_rates` makes of the logits.
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
    progress: bool | Progress = False,
) -> LearningRateExperiment:
    """Train networks on handwritten digits at several learning rates and compare them with the fitted LE-SDE.

    Plain SGD, batch size 1, cross-entropy, one network after another drawn from PyTorch's default initialisation; all
    learning rates run for the same time t = learning rate × iteration.

    Parameters
    ----------
    learning_rates : sequence of float
        The default spans a factor of 64, each dividing the next, so that all are recorded at the same times.
    replicates : int, default 32
        Networks a learning rate. The kernel is fitted to the first half, the second half is predicted.
    total_time : float, default 32
    classes, train_per_class, probe_per_class
        Of :func:`lesde.networks.digits`. NC2 needs 4 classes or more.
    widths : sequence of int, default (32,)
        Hidden layers.
    start, draws, spread, confidence
        As for :func:`compare_learning_rates`.
    saved_times : int, default 24
        Recordings, denser early; those before ``start`` only show the networks.
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
        As :func:`lesde.networks.record_ensemble` and :func:`compare_learning_rates`.

    Examples
    --------
    >>> from lesde.study.learning_rates import learning_rate_experiment
    >>> experiment = learning_rate_experiment()  # doctest: +SKIP
    >>> print(experiment.comparison.attrs["statement"])  # doctest: +SKIP
    >>> axes = lesde.plot.learning_rate_range(experiment.comparison)  # doctest: +SKIP
    """
    from lesde.networks import collect

    start = check_real("start", start, 0.0)
    records = digit_records(
        learning_rates,
        replicates,
        total_time,
        saved_times,
        classes=classes,
        train_per_class=train_per_class,
        probe_per_class=probe_per_class,
        widths=widths,
        seed=seed,
        progress=progress,
    )
    layers = collect(records)
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

    The kernel and the noise are fitted to the first half of the replicates. From the recorded state of
    each of the others at ``start`` the discrete process with that kernel runs, at the learning rate of the paths.

    Parameters
    ----------
    paths : xarray.Dataset
        ``features`` with dimensions ``learning_rate`` (at least 2), ``replicate`` (at least 8), ``time``, ``sample``,
        ``feature``; coordinates ``time``, ``label(sample)`` and ``iteration(learning_rate, time)``, as of
        :func:`lesde.networks.record_ensemble` and of `lesde.simulate` with ``engine="sgd"``.
    start : float, optional
        Time from which the kernel is fitted and the model runs. Default: the first recorded.
    at : float, optional
        Time at which values are compared, one of the recorded. Default: the last.
    transforms : {"identity", "logits"} or sequence of them, optional
        Models to fit. Default: both, "identity" alone unless there is a feature for every class.
    spread : {"covariance", "constant"}, default "covariance"
        Noise of a sample. "covariance": that with which the pooled covariance within classes of the networks
        grows, interval by interval, wherever it does. "constant": one number, σ of the LE-SDE as published.
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

        - ``model``: "I-model" or "L-model". Attribute ``preferred``: that which predicts the held-out networks better over the
          whole way, by the smaller mean of ``log_error (model, learning_rate)`` over the learning rates at which no model diverges; before that, the
          one that diverges at fewer.
        - ``log_error (model, learning_rate)``: root of the mean square of log(network/predicted) over metrics and times, with
          the kernel of the same rate. ``r_squared_common (model, learning_rate)``: of the movement from one time to the next that
          fitted networks have in common, the share that the fit explains; errors that add up along the way are not in it.
        - ``kernel``: fitted at "the same rate", or the mean over "the other rates" (weighted by precision), so that nothing
          at the predicted learning rate is used but the start. In the LE-SDE the kernel is a function of t alone.
        - ``quantity``: "value", the geometric mean over replicates at ``at``; "rate", the mean of their rates of exponential
          decay from ``start`` to ``at`` per unit of time, as of `lesde.convergence`.
        - ``network``, ``network_lower``, ``network_upper (quantity, metric, learning_rate)``: of the predicted replicates,
          with the t interval over them.
        - ``predicted``, ``predicted_lower``, ``predicted_upper (model, kernel, …)``: the model's, with the interval in which it puts
          ``network``, a mean over so many replicates. NaN where a path diverges.
        - ``inside (model, kernel, …)``: whether ``network`` is in that interval. ``range_lowest``, ``range_highest``: the longest
          unbroken range of learning rates where it is, NaN where there is none. ``statement``: the same in words, with
          what is missed by how much; attribute ``statement`` holds all of them.
        - ``network_path (metric, learning_rate, time)``, ``predicted_path (model, kernel, …)``: geometric means over time from
          ``start`` to ``at``, each with ``_lower`` and ``_upper``.

    Raises
    ------
    TypeError, ValueError
        For paths without what is needed, or arguments that are not as above.

    Notes
    -----
    **Interval.** Each draw gives one mean over the replicates, of a kernel fitted to a resample of the networks. Their scatter
    holds the uncertainty of kernel and noise and the randomness of the predicted replicates. Limits are those of Student's
    t on the logarithm of a value, with R − 1 degrees of freedom for R fitted replicates. They are for one learning
    rate at a time: where the LE-SDE is true, 1 in 20 lies outside a 95 % interval by chance, and the fits at one learning rate
    and replicates with the same number at several may share chance. Where the networks' averages hardly tell a
    rate, the intervals are wider than they need be.

    **Learning rate.** The LE-SDE itself does not know the learning rate. What depends on it in the model is the noise of
    drawing samples, so it is the discrete process that runs: at every iteration one sample is drawn and moves all others,
    as with ``engine="sgd"``.

    Examples
    --------
    >>> import numpy as np
    >>> import lesde
    >>> from lesde.study.learning_rates import compare_learning_rates
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
    frames, counts = compared_frames(paths, start, at)
    names = _transforms(transforms, len(counts), frames.sizes["feature"])
    R = frames.sizes["replicate"] // 2
    fitted, others = frames.isel(replicate=slice(R)), frames.isel(replicate=slice(R, None))
    moments = class_moments(fitted, counts)
    # Replicates with one number start from one initial state at every learning rate, so they are
    # resampled together.
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(0,)))
    weights = rng.multinomial(R, np.full(R, 1 / R), size=draws) / R

    parts: list[xr.Dataset] = []
    total = len(names) * len(KERNELS) * len(moments)
    for name in names:
        same = [draw_kernels(m, name, weights, spread) for m in moments]
        other = [average_kernels(same[:i] + same[i + 1 :]) for i in range(len(same))]
        found: list[list[np.ndarray]] = []
        for k, kernels in enumerate((same, other)):
            found.append([])
            for i, kernel in enumerate(kernels):
                one = others.isel(learning_rate=i)
                found[-1].append(predict(one, kernel, name, counts, (seed, k, i)))
                if progress is not None:
                    done = (len(parts) * len(KERNELS) + k) * len(moments) + i + 1
                    progress(done, total)
        part = model_limits(np.array(found), frames, R, confidence)
        part["r_squared_common"] = fit_quality(fitted, name)
        parts.append(part.assign_coords(kernel=list(KERNELS)))
    labels = xr.DataArray([MODELS[name] for name in names], dims="model", name="model")
    result = observe(others, confidence).merge(xr.concat(parts, labels))
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
    """Of each model, at how many learning rates it diverges, and the mean ``log_error`` over those at which none does."""
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
