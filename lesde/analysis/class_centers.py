"""Class centres of other samples, such as those of training features for held-out ones."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from functools import partial
from typing import Any

import numpy as np
import xarray as xr

from lesde.analysis.alignment import align
from lesde.analysis.class_frames import ClassFrames
from lesde.analysis.collapse_registry import refuse
from lesde.checks import check_paths, is_statistics

__all__ = ["PathCenters", "read_centers"]


class PathCenters:
    """Class means of paths, worked out for a batch of frames when it is asked for.

    Parameters
    ----------
    features : xarray.DataArray
        Dimensions ``sample``, ``feature`` and any of those of the features the centres are for; may
        be read lazily from disk.
    labels : ndarray of int, shape (sample,)
    leading : sequence of str
        Leading dimensions of the features the centres are for, in order.
    """

    def __init__(self, features: xr.DataArray, labels: np.ndarray, leading: Sequence[Hashable]):
        own = [dim for dim in leading if dim in features.dims]
        self._source = features.transpose(*own, "sample", "feature").variable
        self._labels = labels
        self._has = [dim in own for dim in leading]

    def __getitem__(self, batch: tuple[slice, ...]) -> np.ndarray:
        """Class means of a batch of frames, (..., class, feature), float64."""
        own = tuple(s for s, has in zip(batch, self._has, strict=True) if has)
        sizes = tuple(s.stop - s.start for s in own)
        n_samples, n_features = self._source.shape[-2:]
        count = int(np.prod(sizes, dtype=int))
        read = partial(_read, self._source, own, (count, -1, n_features))
        means = ClassFrames(read, (count, n_samples, n_features), self._labels).averages
        if not np.isfinite(means).all():
            try:
                refuse(self._source, own, lambda index: f"index {index}")
            except ValueError as error:
                raise ValueError(f"centers: {error}") from None
        shape = [s.stop - s.start if has else 1 for s, has in zip(batch, self._has, strict=True)]
        full = [s.stop - s.start for s in batch]
        return np.broadcast_to(means.reshape(*shape, *means.shape[1:]), (*full, *means.shape[1:]))


def _read(
    source: xr.Variable, batch: tuple[slice, ...], shape: tuple[int, ...], block: slice
) -> np.ndarray:
    return np.asarray(source[(*batch, block)]).reshape(shape)


def read_centers(value: Any, features: xr.DataArray, n_classes: int) -> Any:
    """Class centres for features (..., sample, feature), to be indexed by a batch of frames.

    Parameters
    ----------
    value : Dataset, DataArray or array_like
        Paths, whose class means are the centres, or their statistics; or the centres (..., class,
        feature). Leading dimensions are some of those of the features, with the same coordinates.
    features : xarray.DataArray, (..., sample, feature)
    n_classes : int
    """
    leading = {dim: features.sizes[dim] for dim in features.dims[:-2]}
    ends = {"class": n_classes, "feature": features.sizes["feature"]}
    if isinstance(value, xr.Dataset) and is_statistics(value):
        value = value["mean"]
    if not isinstance(value, xr.Dataset):
        if isinstance(value, xr.DataArray):
            _check_coords(value, features)
        return align("centers", value, leading, ends)
    found, labels = check_paths("centers", value)
    given = {"class": int(labels.max()) + 1, "feature": found.sizes["feature"]}
    if given != ends:
        raise ValueError(
            f"centers must have the {n_classes} classes and {ends['feature']} features of paths; got "
            f"{given['class']} classes and {given['feature']} features."
        )
    foreign = [dim for dim in found.dims if dim not in (*leading, "sample", "feature")]
    wrong = [d for d in found.dims if d in leading and found.sizes[d] != leading[d]]
    if foreign or wrong:
        dims = ", ".join(f"{dim}: {size}" for dim, size in leading.items()) or "none"
        raise ValueError(
            f"centers must have only leading dimensions that paths has too ({dims}); got "
            f"{', '.join(f'{d}: {found.sizes[d]}' for d in (*foreign, *wrong))}."
        )
    _check_coords(found, features)
    return PathCenters(found, labels, list(leading))


def _check_coords(centers: xr.DataArray, features: xr.DataArray) -> None:
    """Refuse centres of other times, replicates or learning rates than those of the features."""
    for dim in features.dims[:-2]:
        known = dim in centers.dims and dim in centers.coords and dim in features.coords
        if known and not np.array_equal(centers[dim].values, features[dim].values):
            raise ValueError(
                f"centers must have the {dim} of paths; they differ. Choose what both have, for "
                f"example with xarray.align(..., join='inner')."
            )
