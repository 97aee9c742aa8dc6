"""The class means of recorded or simulated paths, as one array, read a block at a time."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import xarray as xr

from lesde.analysis.collapse.frames import ClassFrames
from lesde.checks import check_times
from lesde.paths import check_paths, check_statistics, is_statistics

__all__ = ["ClassMeans", "power_of_two", "read_class_means"]


# Feature values read at once: 64 MB in float64.
BLOCK_VALUES = 2**23


@dataclass(frozen=True)
class ClassMeans:
    """Class means of paths and what belongs to them.

    Attributes
    ----------
    values : ndarray, shape (group, replicate, time, class, feature), float64
        A *group* is one cell of the dimensions other than replicate, time, sample and feature.
    times : ndarray, shape (time,)
    counts : ndarray of int, shape (class,)
        Samples per class.
    groups : dict of dimension to size
        The dimensions that make up ``group``, in order.
    coords : dict
        Coordinates along those dimensions, and scalar ones, for the result.
    steps : ndarray of int, shape (group, interval), or None
        SGD iterations in each interval, where the paths have the coordinate ``iteration``.
    """

    values: np.ndarray
    times: np.ndarray
    counts: np.ndarray
    groups: dict[Hashable, int]
    coords: dict[Hashable, Any]
    steps: np.ndarray | None


def power_of_two(sizes: Any) -> np.ndarray:
    """The powers of two at or below positive numbers, 1 for 0: units in which no square leaves the range of floats.

    Dividing by one changes no digit.
    """
    return np.where(np.asarray(sizes) > 0, np.ldexp(1.0, np.frexp(sizes)[1] - 1), 1.0)


def checked_paths(paths: Any) -> tuple[xr.DataArray, np.ndarray, np.ndarray, list[Hashable]]:
    """Features as (group dims..., replicate, time, sample, feature), labels, times, group dims."""
    features, labels = check_paths("paths", paths, ("time", "sample", "feature"))
    if labels.max() == 0:
        raise ValueError(
            "paths must hold at least two classes to tell α from β; paths.label has one."
        )
    return _ordered(paths, features, "sample", labels)


def _checked_statistics(
    paths: xr.Dataset,
) -> tuple[xr.DataArray, np.ndarray, np.ndarray, list[Hashable]]:
    """Class means as (group dims..., replicate, time, class, feature), counts, times, group dims."""
    counts = check_statistics("paths", paths, {"mean": ["time", "class", "feature"]})
    return _ordered(paths, paths["mean"], "class", counts)


def _ordered(
    paths: xr.Dataset, values: xr.DataArray, dim: str, sizes: np.ndarray
) -> tuple[xr.DataArray, np.ndarray, np.ndarray, list[Hashable]]:
    if "time" not in paths.coords:
        raise ValueError(
            'paths must hold the coordinate time; add it with paths.assign_coords(time=("time", ...)).'
        )
    times = check_times("paths.time", paths["time"].values)
    if "replicate" not in values.dims:
        values = values.expand_dims("replicate")
    groups = [d for d in values.dims if d not in ("replicate", "time", dim, "feature")]
    values = values.transpose(*groups, "replicate", "time", dim, "feature")
    return values, sizes, times, groups


def read_class_means(paths: Any, with_steps: bool) -> ClassMeans:
    """Check a dataset of paths and average it over the samples of each class.

    Parameters
    ----------
    paths : xarray.Dataset
        Of features, or of statistics, whose class means are taken.
    with_steps : bool
        Whether to read the coordinate ``iteration``, where there is one.

    Raises
    ------
    TypeError, ValueError
        For a dataset without features, labels, times or a second class; for a class mean that is
        not finite (the message says where); for an ``iteration`` that does not increase.
    """
    if is_statistics(paths):
        read = "mean"
        mean, counts, times, groups = _checked_statistics(paths)
        shape = tuple(mean.sizes[d] for d in groups)
        values = mean.values.astype(np.float64)
    else:
        read = "features"
        features, labels, times, groups = checked_paths(paths)
        shape = tuple(features.sizes[d] for d in groups)
        counts = np.bincount(labels)
        values = _averages(features, labels, groups, shape)
    bad = ~np.isfinite(values)
    if bad.any():
        at = np.argwhere(bad)[0]
        where = [f"{d} {i}" for d, i in zip([*groups, "replicate"], at, strict=False)]
        raise ValueError(
            f"paths.{read} must be finite; at {', '.join(where)}, time {times[at[-3]]:g} a mean of "
            f"class {at[-2]} is not. Leave that replicate or those times out with paths.isel(...)."
        )
    keep = set(groups)
    coords = {
        name: coord.variable
        for name, coord in paths.coords.items()
        if set(coord.dims) <= keep and name not in ("time", "label", "replicate")
    }
    return ClassMeans(
        values.reshape(-1, *values.shape[-4:]),
        times,
        counts,
        dict(zip(groups, shape, strict=True)),
        coords,
        _steps(paths, groups, shape) if with_steps else None,
    )


def _averages(
    features: xr.DataArray, labels: np.ndarray, groups: list[Hashable], shape: tuple[int, ...]
) -> np.ndarray:
    """Class means (*shape, replicate, time, class, feature)."""
    R, T, N, p = features.shape[-4:]
    values = np.empty((*shape, R, T, int(labels.max()) + 1, p))
    block = max(1, BLOCK_VALUES // max(1, T * N * p))
    for cell in np.ndindex(*shape):
        frames = features.isel(dict(zip(groups, cell, strict=True)))
        for first in range(0, R, block):
            part = frames.isel(replicate=slice(first, first + block)).values
            flat = part.reshape(-1, N, p)
            means = ClassFrames(partial(_samples, flat), flat.shape, labels).averages
            values[(*cell, slice(first, first + block))] = means.reshape(*part.shape[:2], -1, p)
    return values


def _samples(frames: np.ndarray, samples: slice) -> np.ndarray:
    return frames[:, samples]


def _steps(paths: xr.Dataset, groups: list[Hashable], shape: tuple[int, ...]) -> np.ndarray | None:
    if "iteration" not in paths.variables:
        return None
    iteration = paths["iteration"]
    if "time" not in iteration.dims or not set(iteration.dims) <= {*groups, "time"}:
        raise ValueError(
            f"paths.iteration must have the dimension 'time' and any of {groups}; got "
            f"{iteration.dims}. Drop it with paths.drop_vars('iteration') to fit in continuous time."
        )
    missing = {d: n for d, n in zip(groups, shape, strict=True) if d not in iteration.dims}
    full = iteration.expand_dims(missing).transpose(*groups, "time").values
    steps = np.diff(full, axis=-1).reshape(int(np.prod(shape)), -1)
    if not np.issubdtype(steps.dtype, np.integer):
        if (steps != np.rint(steps)).any():
            raise ValueError("paths.iteration must hold whole numbers of SGD steps.")
        steps = np.rint(steps).astype(np.int64)
    if (steps < 1).any():
        g, i = np.argwhere(steps < 1)[0]
        raise ValueError(
            f"paths.iteration must increase from each time to the next; it goes up by "
            f"{steps[g, i]} between times {i} and {i + 1}. Leave repeated frames out with "
            f"paths.isel(time=...), or use scheme='exponential'."
        )
    return steps
