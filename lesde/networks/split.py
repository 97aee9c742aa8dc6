"""One training seen on training and on held-out images: a probe of both, and records of its parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import xarray as xr

from lesde.checks import bare_array, check_integer, check_names, shown
from lesde.networks.data import ImageData

__all__ = ["probe_both", "split_records"]


def probe_both(
    data: ImageData, n_per_class: int | None = None, names: Sequence[str] = ("train", "held_out")
) -> tuple[ImageData, np.ndarray]:
    """Data whose probe holds training images, followed by the held-out images of the original probe.

    Training does not depend on the probe, so one training serves both; `split_records` takes the
    records apart.

    Parameters
    ----------
    data : ImageData
        With a probe of held-out images, as ``digits(..., probe="held_out")`` gives.
    n_per_class : int, optional
        Training images per class in the probe: the first ones, with the labels they are trained with
        (wrong ones included). Default: as many of each class as the probe holds, or all there are.
    names : sequence of two str
        What the two parts are called.

    Returns
    -------
    data : ImageData
        The same training set; the probe has the training images first, sorted by class.
    split : ndarray of str, shape (sample,)
        The part each image of the probe belongs to.

    Raises
    ------
    TypeError, ValueError
        For a number that is not positive or more than there are of a class, a probe that holds training
        images already, or names that are not two different ones.

    Examples
    --------
    >>> from lesde.networks import digits, probe_both
    >>> data = digits(classes=4, n_train_per_class=60, n_probe_per_class=20, probe="held_out")
    >>> both, split = probe_both(data)
    >>> both.probe_x.shape, int((split == "train").sum())
    ((160, 64), 80)
    """
    if not isinstance(data, ImageData):
        raise TypeError(f"data must be an ImageData; got {shown(type(data).__name__)}.")
    if len(check_names("names", names)) != 2 or len(names) != 2:
        raise ValueError(f"names must be two different names; got {shown(names)}.")
    rows = {image.tobytes() for image in data.train_x}
    shared = sum(image.tobytes() in rows for image in data.probe_x)
    if shared == len(data.probe_x):
        raise ValueError(
            "data must have a probe of held-out images; all of its probe images are training images. "
            'Make it with probe="held_out".'
        )
    there = np.bincount(data.train_y)
    if n_per_class is None:
        wanted = np.minimum(np.bincount(data.probe_y), there)
    else:
        number = check_integer("n_per_class", n_per_class)
        if number > there.min():
            raise ValueError(
                f"n_per_class must be at most the training images of every class, {there.tolist()}; "
                f"got {number}."
            )
        wanted = np.full(len(there), number)
    chosen = np.concatenate(
        [np.flatnonzero(data.train_y == k)[:n] for k, n in enumerate(wanted.tolist())]
    )
    split = np.repeat(np.asarray(names, dtype=str), [len(chosen), len(data.probe_y)])
    both = replace(
        data,
        probe_x=np.concatenate([data.train_x[chosen], data.probe_x]),
        probe_y=np.concatenate([data.train_y[chosen], data.probe_y]),
        name=f"{data.name}, with training images in the probe",
    )
    return both, split


def split_records(
    records: Mapping[str, xr.Dataset], split: Any
) -> dict[str, dict[str, xr.Dataset]]:
    """Records of one probe taken apart into records of its parts.

    Parameters
    ----------
    records : mapping
        From layer to paths, as `collect` returns or `record_ensemble` yields.
    split : array of str, shape (sample,)
        The part each sample belongs to, as `probe_both` returns.

    Returns
    -------
    dict of str to dict of str to xarray.Dataset
        By part, in order of appearance, and layer, for `lesde.layer_collapse`. Everything without the
        dimension ``sample`` is in every part, except for ``loss`` and ``accuracy``, which are of the whole
        probe. Where the layer ``"logits"`` was recorded it gets the ``accuracy`` of the part. Datasets
        without samples, such as ``"drawn"``, are left out. What was opened lazily stays so, apart
        from the logits.

    Raises
    ------
    TypeError, ValueError
        If ``split`` does not name a part for every sample of every dataset.

    Examples
    --------
    >>> parts = split_records(collect(records), split)  # doctest: +SKIP
    >>> depth = lesde.layer_collapse(parts)  # doctest: +SKIP
    """
    names = bare_array("split", split)
    if names.ndim != 1 or names.dtype.kind not in "US":
        raise TypeError(
            f"split must be a one-dimensional array of names, one per sample; got {shown(split)}."
        )
    if not isinstance(records, Mapping) or not all(
        isinstance(paths, xr.Dataset) for paths in records.values()
    ):
        raise TypeError(
            f"records must map the names of layers to datasets; got {shown(type(records).__name__)}."
        )
    for layer, paths in records.items():
        if paths.sizes.get("sample", len(names)) != len(names):
            raise ValueError(
                f"split must have one name for each of the {paths.sizes['sample']} samples of the layer "
                f"{layer!r}; got {len(names)}."
            )
    parts: dict[str, dict[str, xr.Dataset]] = {}
    for part in dict.fromkeys(names.tolist()):
        at = np.flatnonzero(names == part)
        # A slice is read faster than a list of samples.
        run = at[-1] - at[0] + 1 == len(at)
        where: Any = slice(int(at[0]), int(at[-1]) + 1) if run else at
        parts[part] = {}
        for layer, paths in records.items():
            if "sample" not in paths.dims:
                continue
            found = paths.isel(sample=where).drop_vars(["loss", "accuracy"], errors="ignore")
            if layer == "logits":
                right = found["features"].argmax("feature") == found["label"]
                about = f"accuracy on the samples {part!r}"
                found["accuracy"] = right.mean("sample").assign_attrs(long_name=about)
            parts[part][layer] = found.assign_attrs(split=part)
    return parts
