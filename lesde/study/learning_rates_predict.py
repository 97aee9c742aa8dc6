"""What is compared at each learning rate: metrics of networks, and of paths of fitted kernels."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

import lesde
from lesde.analysis.decay import fit_line
from lesde.checks import check_paths, check_real, check_times, shown
from lesde.study.learning_rates_process import Kernels, frames_of_kernels
from lesde.study.learning_rates_range import interval
from lesde.transforms import make_transform

__all__ = ["METRICS", "compared_frames", "model_limits", "observe", "predict"]

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
