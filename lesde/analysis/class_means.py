"""The class means of recorded or simulated paths, as one array, read a block at a time."""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable, Iterator
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from lesde.checks import check_times
from lesde.paths import check_paths, check_statistics, is_statistics

# Values a block holds in float64 (2 MB): blocks that stay in the processor's cache run fastest.
BLOCK_VALUES = 2**18


class ClassMeans(NamedTuple):
    """Class means of paths and what belongs to them.

    ``values`` (group, replicate, time, class, feature) in float64, a group being one cell of the other
    dimensions, ``groups``, with their sizes; ``counts`` (class,) the samples per class; ``coords`` the coordinates
    of groups; ``steps`` (group, interval) the SGD iterations in each interval, where known.
    """

    values: np.ndarray
    times: np.ndarray
    counts: np.ndarray
    groups: dict[Hashable, int]
    coords: dict[Hashable, Any]
    steps: np.ndarray | None


def class_averages(values: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Class means (..., class, feature) in float64 of samples (..., sample, feature).

    Where a value is not finite, no mean of its frame need be finite.
    """
    counts = np.bincount(labels)
    shares = np.eye(len(counts))[labels] / counts
    with np.errstate(invalid="ignore", over="ignore"):
        return shares.T @ values.astype(np.float64)


def batches(leading: tuple[int, ...], most: int) -> Iterator[tuple[slice, ...]]:
    """Boxes of at most ``most`` frames that tile the leading dimensions, last ones whole."""
    ranges: list[list[slice]] = []
    for size in reversed(leading):
        step = max(1, min(size, most))
        most //= step
        ranges.insert(0, [slice(a, min(a + step, size)) for a in range(0, size, step)])
    yield from itertools.product(*ranges)


def refuse_not_finite(name: str, source: xr.DataArray, batch: tuple[slice, ...]) -> None:
    """Raise an error that names the first value of a batch of frames that is not finite, if any."""
    values = source.variable[batch].values
    bad = np.argwhere(~np.isfinite(values))
    if len(bad):
        begin = [s.start for s in batch] + [0] * values.ndim
        where = (
            f"{d}={source[d].values[a + i]}"
            for d, a, i in zip(source.dims, begin, bad[0], strict=False)
        )
        raise ValueError(
            f"{name} must be finite; got {values[tuple(bad[0])]} at {', '.join(where)}. Leave such frames or "
            f"samples out with paths.isel(...)."
        )


def read_averages(name: str, features: xr.DataArray, labels: np.ndarray) -> xr.DataArray:
    """Class means (..., class, feature) of features (..., sample, feature), read a block at a time.

    A value that is not finite is refused with its place.
    """
    lead = features.shape[:-2]
    means = np.empty((*lead, int(labels.max()) + 1, features.shape[-1]))
    for batch in batches(lead, max(1, BLOCK_VALUES // math.prod(features.shape[-2:]))):
        means[batch] = class_averages(features.variable[batch].values, labels)
        if not np.isfinite(means[batch]).all():
            refuse_not_finite(name, features, batch)
    dims = (*features.dims[:-2], "class", "feature")
    coords = {d: c for d, c in features.coords.items() if set(c.dims) <= set(dims)}
    return xr.DataArray(means, coords, dims)


def checked_paths(paths: Any) -> tuple[xr.DataArray, np.ndarray, np.ndarray, list[Hashable]]:
    """Features as (group dims..., replicate, time, sample, feature), labels, times, group dims."""
    features, labels = check_paths("paths", paths, ("time", "sample", "feature"), 2)
    features, times, groups = _ordered(paths, features, "sample")
    return features, labels, times, groups


def _ordered(
    paths: xr.Dataset, values: xr.DataArray, dim: str
) -> tuple[xr.DataArray, np.ndarray, list[Hashable]]:
    """Values as (group dims..., replicate, time, ``dim``, feature), times and group dims."""
    if "time" not in paths.coords:
        raise ValueError(
            'paths must hold the coordinate time; add it with paths.assign_coords(time=("time", ...)).'
        )
    times = check_times("paths.time", paths["time"].values)
    if "replicate" not in values.dims:
        values = values.expand_dims("replicate")
    ends = ("replicate", "time", dim, "feature")
    return values.transpose(..., *ends), times, [d for d in values.dims if d not in ends]


def read_class_means(paths: Any, with_steps: bool) -> ClassMeans:
    """Check a dataset of features, or of statistics, and take its class means.

    ``with_steps`` reads the coordinate ``iteration`` too, where there is one.
    """
    if is_statistics(paths):
        counts = check_statistics("paths", paths, {"mean": ["time", "class", "feature"]})
        source, times, groups = _ordered(paths, paths["mean"], "class")
        values = source.values.astype(np.float64)
        if not np.isfinite(values).all():
            refuse_not_finite("paths.mean", source, ())
    else:
        source, labels, times, groups = checked_paths(paths)
        counts = np.bincount(labels)
        values = read_averages("paths.features", source, labels).values
    coords = {
        name: coord.variable
        for name, coord in paths.coords.items()
        if set(coord.dims) <= set(groups) and name not in ("time", "label", "replicate")
    }
    sizes = {dim: source.sizes[dim] for dim in groups}
    steps = _steps(paths, sizes) if with_steps and "iteration" in paths.variables else None
    return ClassMeans(values.reshape(-1, *values.shape[-4:]), times, counts, sizes, coords, steps)


def _steps(paths: xr.Dataset, groups: dict[Hashable, int]) -> np.ndarray:
    """SGD iterations in each interval, (group, interval)."""
    iteration = paths["iteration"].variable
    wanted = {**groups, "time": paths.sizes["time"]}
    if "time" in iteration.dims and set(iteration.dims) <= set(wanted):
        steps = np.diff(iteration.set_dims(wanted).transpose(*wanted).values, axis=-1)
        if (steps >= 1).all() and (steps == np.rint(steps)).all():
            return steps.astype(np.int64).reshape(-1, steps.shape[-1])
    raise ValueError(
        f"paths.iteration must increase by whole numbers from each time to the next, over the dimensions "
        f"{', '.join(map(repr, wanted))}; got {dict(iteration.sizes)}. Leave repeated frames out with "
        f"paths.isel(time=...), or use scheme='exponential'."
    )
