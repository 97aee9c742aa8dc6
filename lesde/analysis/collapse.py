"""Neural collapse of simulated or recorded features: `neural_collapse` and its metrics."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import xarray as xr

from lesde.analysis.alignment import align
from lesde.analysis.class_centers import read_centers
from lesde.analysis.class_statistics import evaluate_statistics
from lesde.analysis.collapse_metrics import (
    nc1,
    nc1_cdnv,
    nc1_trace,
    nc2_angle_std,
    nc2_etf,
    nc2_norm_cv,
    nc3,
    nc3_duality,
    nc4,
    ncc_accuracy,
)
from lesde.analysis.collapse_registry import METRICS, Metric, evaluate, metric, target_of
from lesde.checks import (
    check_choice,
    check_names,
    check_paths,
    check_statistics,
    is_statistics,
    need_samples,
)

__all__ = [
    "METRICS",
    "Metric",
    "metric",
    "nc1",
    "nc1_cdnv",
    "nc1_trace",
    "nc2_angle_std",
    "nc2_etf",
    "nc2_norm_cv",
    "nc3",
    "nc3_duality",
    "nc4",
    "ncc_accuracy",
    "neural_collapse",
    "target_of",
]


def neural_collapse(
    paths: xr.Dataset,
    metrics: str | Sequence[str] | None = None,
    weights: Any = None,
    bias: Any = None,
    centers: Any = None,
) -> xr.Dataset:
    """Neural-collapse metrics of every frame of a dataset of features.

    Parameters
    ----------
    paths : xarray.Dataset
        Variable ``features`` with dimensions ``sample`` and ``feature`` and any others
        (``learning_rate``, ``replicate``, ``time``, …), and coordinate ``label(sample)``:
        integers 0 to K−1, K ≥ 2, in any order, classes of any sizes. Features may be stored in
        any real dtype and are converted to float64 a batch at a time; a variable read lazily from
        disk is read a batch at a time. Or a dataset of statistics, as `lesde.statistics` returns:
        variables ``mean`` and ``within``, coordinate ``count``.
    metrics : str or sequence of str, optional
        Names of registered metrics; only what they need is computed. Default: all those of NC1 to
        NC4, those of a classifier (``nc3``, ``nc3_duality``, ``nc4``) only where there are weights,
        and ``nc4``, which compares rules on every sample, only where ``paths`` holds features.
        ``ncc_accuracy``, the accuracy of the nearest class centre, is computed where it is named
        or ``centers`` are given.
    weights : DataArray or array_like, optional
        Weights of the linear classifier on top of the features. A DataArray has dimensions
        ``class`` and ``feature`` (or ``feature_in``) and any of the others of the features; an
        array has shape (..., class, feature) and broadcasts against their leading dimensions in
        the order of ``paths.features``. Default: the variable ``weights`` of ``paths`` if it has
        one.
    bias : DataArray or array_like, optional
        Bias of the classifier, (..., class), used by ``nc4``. Default: the variable ``bias`` of
        ``paths`` where its ``weights`` are used, else zero.
    centers : Dataset, DataArray or array_like, optional
        Class centres for ``nc4`` and ``ncc_accuracy`` in place of the class means of ``paths``: for
        held-out features, the paths of the training features at the same layer (or their statistics),
        whose class means are taken a batch at a time; or the centres themselves, a DataArray with
        dimensions ``class``, ``feature`` and any of the others of the features, or an array (...,
        class, feature). All other metrics are those of ``paths`` alone.

    Returns
    -------
    xarray.Dataset
        One float64 variable per metric over the dimensions of ``features`` other than ``sample``
        and ``feature``, in their order and with their coordinates: ``nc1``, ``nc1_trace``,
        ``nc1_cdnv``, ``nc2_etf``, ``nc2_norm_cv``, ``nc2_angle_std``, with weights ``nc3``,
        ``nc3_duality``, ``nc4``, and ``ncc_accuracy`` where it is asked for. Each has attributes ``long_name`` and ``target``, its value under perfect
        collapse. Coordinate ``count(class)``: samples per class.

    Raises
    ------
    ValueError
        For a feature that is not finite (the message says where), fewer than two classes, an
        unknown metric, weights or centres that do not fit the features, or centres that no metric
        uses.
    TypeError
        For an argument of the wrong kind.

    Notes
    -----
    Definitions, conventions for unbalanced classes and degenerate cases stand with
    each metric, for example `lesde.analysis.collapse.nc1`. In short: the centre is the mean of
    the class means, and ratios are inf where class means coincide. No metric is ever negative.
    Paths that start with every sample at its class mean have NC1 = 0 at the first time.

    All metrics are ratios, and the same at every scale that the dtype holds. Class means coincide
    where they differ by no more than the rounding of the *features*, so that classes each centred to
    0 have coinciding means whatever rounding left of them.

    From statistics the metrics are the same up to rounding: that of the dtype they are stored in,
    times the ratio of the spread in all directions to that along the class means for NC1, and of the
    size of the class means to their distances where these enter.

    The cost is one pass over the features for NC2 and one more for each of the spread NC1 whitens
    and the one it does not. Memory beyond the features is about 10 MB and a few arrays of the
    size of the class means of one frame, (class, feature) in float64, whatever the number of
    frames and samples; no array of shape (feature, feature) is formed.

    Examples
    --------
    >>> nc = lesde.neural_collapse(paths, metrics=["nc1", "nc2_etf"])  # doctest: +SKIP
    >>> nc.nc1.mean("replicate").plot(hue="learning_rate", yscale="log")  # doctest: +SKIP
    """
    reduced = is_statistics(paths)
    if reduced:
        own: dict[str, list[str]] = {
            "mean": ["class", "feature"],
            "within": ["class", "feature", "feature_"],
        }
        counts = check_statistics("paths", paths, own)
        features, last = paths["mean"], ("class", "feature")
    else:
        features, labels = check_paths("paths", paths)
        counts, last = np.bincount(labels), ("sample", "feature")
    leading = [dim for dim in features.dims if dim not in last]
    features = features.transpose(*leading, *last)
    sizes = {dim: features.sizes[dim] for dim in leading}
    ends = {"class": len(counts), "feature": features.sizes["feature"]}

    if weights is None and bias is None and "weights" in paths:
        weights, bias = paths["weights"], paths.get("bias")
    if weights is None and bias is not None:
        raise ValueError("bias is only used with weights; give weights too, or leave bias out.")
    if weights is not None:
        weights = align("weights", weights, sizes, ends)
    if bias is not None:
        bias = align("bias", bias, sizes, {"class": ends["class"]})

    names = _names(metrics, weights is not None, not reduced, centers is not None)
    if centers is not None:
        centers = read_centers(centers, features, ends["class"])

    def place(index: tuple[int, ...]) -> str:
        parts = []
        for dim, i in zip(features.dims, index, strict=True):
            known = dim in features.coords and features.coords[dim].ndim == 1
            parts.append(f"{dim}={features.coords[dim].values[i]}" if known else f"{dim} {i}")
        return ", ".join(parts)

    if reduced:
        within = paths["within"].transpose(*leading, *own["within"])
        values = evaluate_statistics(
            features.variable,
            within.variable,
            counts,
            names,
            weights,
            bias,
            place,
            float(paths.attrs.get("rounding", 0.0)),
        )
    else:
        values = evaluate(features.variable, labels, names, weights, bias, place, centers)
    coords: dict[Hashable, Any] = {
        name: coord for name, coord in features.coords.items() if set(coord.dims) <= set(leading)
    }
    coords["count"] = ("class", counts)
    return xr.Dataset(
        {
            name: (
                leading,
                value,
                {"long_name": METRICS[name].title, "target": METRICS[name].target},
            )
            for name, value in values.items()
        },
        coords=coords,
        attrs=dict(paths.attrs),
    )


def _names(
    metrics: str | Sequence[str] | None, classifier: bool, samples: bool, centers: bool
) -> list[str]:
    if centers and not samples:
        raise need_samples("paths", "centers")
    if metrics is None:
        return [
            name
            for name, entry in METRICS.items()
            if (classifier or not entry.classifier)
            and (samples or not entry.samples)
            and (entry.usual or (centers and entry.centers))
        ]
    chosen = check_names("metrics", metrics)
    if not chosen:
        raise ValueError("metrics must name at least one metric; got none. Leave it out for all.")
    names = list(dict.fromkeys(check_choice("metrics", name, METRICS) for name in chosen))
    for name in names:
        if METRICS[name].samples and not samples:
            raise need_samples("paths", f"the metric {name!r}")
        if METRICS[name].classifier and not classifier:
            raise ValueError(
                f"metrics: {name!r} needs the weights of a classifier; got none. Give weights=, or "
                f"paths with a variable 'weights'."
            )
    if centers and not any(METRICS[name].centers for name in names):
        users = [name for name, entry in METRICS.items() if entry.centers]
        raise ValueError(
            f"centers is only used by {', '.join(map(repr, users))}; got metrics "
            f"{', '.join(map(repr, names))}. Name one of those, or leave centers out."
        )
    return names
