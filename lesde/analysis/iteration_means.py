"""Class means over networks at every iteration, of drawn samples or of paths."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from lesde.analysis.class_means import read_class_means
from lesde.checks import check_dataset, check_labels

__all__ = ["IterationMeans", "is_drawn", "means_of_draws", "path_means"]


@dataclass(frozen=True)
class IterationMeans:
    """Means over networks: values (*groups, time, class, feature), NaN where nothing was drawn."""

    values: np.ndarray
    groups: list[Hashable]
    coords: dict[Hashable, Any]


def is_drawn(paths: Any) -> bool:
    """Whether a dataset holds drawn samples in place of paths."""
    return isinstance(paths, xr.Dataset) and "draw" in paths.dims


def path_means(paths: xr.Dataset) -> IterationMeans:
    """Of paths, over replicates and the samples of each class."""
    data = read_class_means(paths, with_steps=False)
    values = data.values.mean(1)
    coords = dict(data.coords) | {"time": data.times}
    if "iteration" in paths.variables:
        coords["iteration"] = paths["iteration"].variable
    shape = tuple(data.groups.values())
    return IterationMeans(values.reshape(*shape, *values.shape[1:]), list(data.groups), coords)


def means_of_draws(drawn: xr.Dataset) -> IterationMeans:
    """Of drawn samples: over those of each class that the replicates drew at an iteration."""
    check_dataset("paths", drawn, ["features", "label", "iteration"], "record_ensemble(drawn=True)")
    features = drawn["features"]
    groups = [d for d in features.dims if d not in ("replicate", "draw", "feature")]
    lead = (*groups, "replicate", "draw")
    if set(features.dims) != {*lead, "feature"} or set(drawn["label"].dims) != set(lead):
        raise ValueError(
            f"paths of drawn samples must have features ({', '.join(map(str, lead))}, feature) and labels "
            f"({', '.join(map(str, lead))}); got {features.dims} and {drawn['label'].dims}."
        )
    X = features.transpose(*lead, "feature").values
    labels = drawn["label"].transpose(*lead).values
    check_labels("paths.label", labels.ravel())
    iteration, at = np.unique(drawn["iteration"].values, return_inverse=True)
    K, M, p = int(labels.max()) + 1, len(iteration), X.shape[-1]
    shape = X.shape[: len(groups)]
    cell = (np.arange(int(np.prod(shape))).reshape(*shape, 1, 1) * M + at) * K + labels
    size = int(np.prod(shape)) * M * K
    flat = X.reshape(-1, p).astype(np.float64)
    count = np.bincount(cell.ravel(), minlength=size)
    sums = [np.bincount(cell.ravel(), weights=flat[:, j], minlength=size) for j in range(p)]
    values = np.stack(sums, -1) / np.where(count, count, np.nan)[:, None]
    values = values.reshape(*shape, M, K, p)
    if not np.isfinite(values[..., 0, :, :]).all():
        raise ValueError(
            "paths must hold a finite draw of every class at the first iteration, over all replicates: ratios "
            "are taken to it. Use more replicates."
        )
    coords: dict[Hashable, Any] = {d: drawn[d].variable for d in groups if d in drawn.coords}
    coords["iteration"] = ("time", iteration)
    if "time" in drawn.variables:
        moments = drawn["time"].variable
        first = np.flatnonzero(np.diff(at, prepend=-1))
        rows = np.unique(np.atleast_2d(moments.values)[:, first], axis=0)
        if len(rows) == 1:
            coords["time"] = rows[0]
    return IterationMeans(values, groups, coords)
