"""One training seen on training and on held-out images: a probe of both, and records of its parts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import xarray as xr

from lesde.checks import bare_array, check_instance, shown
from lesde.networks.data import ImageData


def probe_both(data: ImageData) -> tuple[ImageData, np.ndarray]:
    """Data whose probe holds training images, followed by the held-out images of the original probe.

    Training does not depend on the probe, so one training serves both; `split_records` takes the
    records apart.

    Parameters
    ----------
    data : ImageData
        With a probe of held-out images, as ``digits(..., probe="held_out")`` gives.

    Returns
    -------
    data : ImageData
        The same training set; the probe begins with the first training images of each class, as many as it
        held of that class, or all there are, with the labels they are trained with.
    split : ndarray of str, shape (sample,)
        ``"train"`` or ``"held_out"``, for each image of the probe.

    Examples
    --------
    >>> from lesde.networks import digits, probe_both
    >>> data = digits(classes=4, n_train_per_class=60, n_probe_per_class=20, probe="held_out")
    >>> both, split = probe_both(data)
    >>> both.probe_x.shape, int((split == "train").sum())
    ((160, 64), 80)
    """
    check_instance("data", data, ImageData, "an ImageData")
    rows = {image.tobytes() for image in data.train_x}
    if all(image.tobytes() in rows for image in data.probe_x):
        raise ValueError(
            "data must have a probe of held-out images; all of its probe images are training images. "
            'Make it with probe="held_out".'
        )
    counts = np.bincount(data.probe_y)
    chosen = np.concatenate([np.flatnonzero(data.train_y == k)[:n] for k, n in enumerate(counts)])
    split = np.repeat(["train", "held_out"], [len(chosen), len(data.probe_y)])
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
        By part, in order of appearance, and layer, for `lesde.layer_collapse`, without ``loss`` and
        ``accuracy``, which are of the whole probe; the layer ``"logits"`` gets the ``accuracy`` of the part.
        Datasets without samples, such as ``"drawn"``, are left out. What was opened lazily stays so, apart
        from the logits.

    Examples
    --------
    >>> parts = split_records(collect(records), split)  # doctest: +SKIP
    >>> depth = lesde.layer_collapse(parts)  # doctest: +SKIP
    """
    names = bare_array("split", split)
    if names.ndim != 1 or names.dtype.kind not in "US":
        raise TypeError(f"split must be a one-dimensional array of names; got {shown(split)}.")
    check_instance("records", records, Mapping, "a dict of datasets by layer")  # type: ignore[type-abstract]
    sampled = {layer: paths for layer, paths in records.items() if "sample" in paths.dims}
    for layer, paths in sampled.items():
        if paths.sizes["sample"] != len(names):
            raise ValueError(
                f"split must have one name for each of the {paths.sizes['sample']} samples of the layer "
                f"{layer!r}; got {len(names)}."
            )
    parts: dict[str, dict[str, xr.Dataset]] = {}
    for part in dict.fromkeys(names.tolist()):
        parts[part] = {}
        for layer, paths in sampled.items():
            found = paths.isel(sample=names == part).drop_vars(
                ["loss", "accuracy"], errors="ignore"
            )
            if layer == "logits":
                right = found["features"].argmax("feature") == found["label"]
                about = f"accuracy on the samples {part!r}"
                found["accuracy"] = right.mean("sample").assign_attrs(long_name=about)
            parts[part][layer] = found.assign_attrs(split=part)
    return parts
