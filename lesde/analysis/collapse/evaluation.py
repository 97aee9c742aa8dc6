"""Neural collapse of simulated or recorded features: the register of metrics, and `neural_collapse`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from lesde.analysis import class_means
from lesde.analysis.class_means import batches, read_averages
from lesde.analysis.collapse.frames import (
    Frames,
    SampleFrames,
    StatisticsFrames,
)
from lesde.checks import check_choices, check_finite_array, check_labels, shown
from lesde.paths import check_paths, check_statistics, is_statistics, need_samples

__all__ = ["METRICS", "Metric", "metric", "neural_collapse", "target_of"]


@dataclass(frozen=True)
class Metric:
    """A registered metric: from a batch of F frames to F values, and what `metric` was given."""

    compute: Callable[[Any], np.ndarray]
    title: str
    target: float
    classifier: bool
    samples: bool
    centers: bool
    usual: bool


METRICS: dict[str, Metric] = {}


def target_of(variable: xr.DataArray) -> float:
    """A metric's value under perfect collapse: the attribute of a variable, or else by its name."""
    name = str(variable.name)
    known = METRICS[name].target if name in METRICS else 0.0
    return float(variable.attrs.get("target", known))


def metric(
    *,
    target: float = 0.0,
    classifier: bool = False,
    samples: bool = False,
    centers: bool = False,
    usual: bool = True,
) -> Callable[[Any], Any]:
    """Register a function of a batch of frames as a metric, and make it a function of arrays.

    Parameters
    ----------
    target : float, default 0
        Value of the metric under perfect collapse; `lesde.convergence` follows the distance to it.
    classifier : bool, default False
        The metric needs the weights of a linear classifier (``frames.weights``, ``frames.bias``).
    samples : bool, default False
        The metric reads every sample (``frames.blocks()``), so that class means and within-class
        covariances do not suffice.
    centers : bool, default False
        The metric compares samples to class centres (``frames.closeness``), which may be given:
        those of training features for held-out ones.
    usual : bool, default True
        `lesde.neural_collapse` computes the metric where none is named.

    Notes
    -----
    The function gets ``frames``, a `lesde.analysis.collapse.frames.Frames`, and
    returns a value for each. Lengths are in units of two to the power ``frames.exponent``, which is 0 for
    features between about 1e-50 and 1e50 in size.

    Returns
    -------
    decorator
        Gives a function ``(features, labels) -> ndarray`` for ``features`` of shape (..., sample,
        feature), or ``(features, labels, weights, bias=None)`` for a classifier's metric; metrics with
        centres also have the keyword ``centers=None``, of shape (..., class, feature).

    Examples
    --------
    >>> @metric()
    ... def largest_norm(frames):
    ...     "Largest distance of a class mean from the centre."
    ...     return np.sqrt(np.einsum("fkk->fk", frames.gram).max(axis=1))
    >>> float(largest_norm(np.array([[3.0, 0.0], [-3.0, 0.0]]), np.array([0, 1])))
    3.0
    >>> del METRICS["largest_norm"]
    """

    def register(compute: Callable[[Any], np.ndarray]) -> Callable[..., np.ndarray]:
        name = compute.__name__
        title = (inspect.getdoc(compute) or name).splitlines()[0]
        METRICS[name] = Metric(compute, title, target, classifier, samples, centers, usual)

        def of_arrays(
            features: Any,
            labels: Any,
            weights: Any = None,
            bias: Any = None,
            *,
            centers: Any = None,
        ) -> np.ndarray:
            array = np.asarray(features)
            if array.ndim < 2:
                raise ValueError(
                    f"features must have shape (..., sample, feature); got an array of shape {array.shape}."
                )
            label = check_labels("labels", labels)
            if len(label) != array.shape[-2]:
                raise ValueError(
                    f"labels must have one entry per sample, {array.shape[-2]} for features of shape "
                    f"{array.shape}; got {len(label)}."
                )
            dims = (*(f"axis{i}" for i in range(array.ndim - 2)), "sample", "feature")
            paths = xr.Dataset({"features": (dims, array)}, {"label": ("sample", label)})
            return neural_collapse(paths, name, weights, bias, centers)[name].values[()]

        of_arrays.__name__ = of_arrays.__qualname__ = name
        of_arrays.__doc__, of_arrays.__module__ = compute.__doc__, compute.__module__
        return of_arrays

    return register


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
        whose class means are taken; or the centres themselves, a DataArray with
        dimensions ``class``, ``feature`` and any of the others of the features, or an array (...,
        class, feature). All other metrics are those of ``paths`` alone.

    Returns
    -------
    xarray.Dataset
        One float64 variable per metric over the dimensions of ``features`` other than ``sample``
        and ``feature``, in their order and with their coordinates: ``nc1``, ``nc1_trace``,
        ``nc1_cdnv``, ``nc2_etf``, ``nc2_norm_cv``, ``nc2_angle_std``, with weights ``nc3``,
        ``nc3_duality``, ``nc4``, and ``ncc_accuracy`` where it is asked for. Each has attributes
        ``long_name`` and ``target``, its value under perfect collapse. Coordinate ``count(class)``: samples per class.

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
    The docstring of each metric, for example `lesde.analysis.collapse.metrics.nc1`, has its definition, its
    convention for unbalanced classes and its degenerate cases. In short: the centre is the mean of
    the class means, and ratios are inf where class means coincide. No metric is ever negative.
    Paths that start with every sample at its class mean have NC1 = 0 at the first time.

    All metrics are ratios, and the same at every scale that the dtype holds. Class means coincide
    where they differ by no more than the rounding of the *features*: if each class is centred to 0, their
    means coincide, whatever rounding errors remain.

    From statistics the metrics are the same up to rounding: that of the dtype they are stored in,
    times the ratio of the spread in all directions to that along the class means for NC1, and of the
    size of the class means to their distances where these enter.

    The cost is one pass over the features for class means and variances, and one more for each of
    ``nc1``, ``nc4`` and ``ncc_accuracy``. Memory beyond the features is about 10 MB and a few arrays of
    the size of the class means of one frame, (class, feature) in float64, whatever the number of
    frames and samples; no array of shape (feature, feature) is formed. Paths given as ``centers`` are
    read a frame at a time, and their class means are kept for all frames.

    Examples
    --------
    >>> nc = lesde.neural_collapse(paths, metrics=["nc1", "nc2_etf"])  # doctest: +SKIP
    >>> nc.nc1.mean("replicate").plot(hue="learning_rate", yscale="log")  # doctest: +SKIP
    """
    labels = None
    last: tuple[Hashable, ...] = ("sample", "feature")
    if is_statistics(paths):
        last = ("class", "feature")
        wanted = {"mean": last, "within": (*last, "feature_")}
        counts, source = check_statistics("paths", paths, wanted), paths["mean"]
    else:
        source, labels = check_paths("paths", paths)
        counts = np.bincount(labels)
        if len(counts) < 2:
            raise ValueError(
                "paths must hold at least two classes, neural collapse compares classes; paths.label "
                "has one. Record samples of another class."
            )
    leading = [dim for dim in source.dims if dim not in last]
    source = source.transpose(*leading, *last)
    sizes = {dim: source.sizes[dim] for dim in leading}
    ends: dict[Hashable, int] = {"class": len(counts), "feature": source.sizes["feature"]}

    if weights is None and bias is None and "weights" in paths:
        weights, bias = paths["weights"], paths.get("bias")
    if weights is None and bias is not None:
        raise ValueError("bias is only used with weights; give weights too, or leave bias out.")
    if weights is not None:
        weights = _align("weights", weights, sizes, ends)
    if bias is not None:
        bias = _align("bias", bias, sizes, {"class": ends["class"]})
    names = _names(metrics, weights is not None, labels is not None, centers is not None)
    if centers is not None:
        centers = _read_centers(centers, source, sizes, ends)

    lead = tuple(sizes.values())
    results = {name: np.empty(lead) for name in names}
    rows = len(counts) * ends["feature"] if labels is None else source.shape[-2]
    for batch in batches(lead, max(1, class_means.BLOCK_VALUES // (rows * ends["feature"]))):
        beside = [
            None if given is None else given[batch].reshape(-1, *given.shape[len(lead) :])
            for given in (weights, bias, centers)
        ]
        frames: Frames
        if labels is None:
            within = paths["within"].transpose(*leading, *wanted["within"])
            rounding = float(paths.attrs.get("rounding", 0.0))
            frames = StatisticsFrames(source, within, batch, counts, rounding, *beside[:2])
        else:
            frames = SampleFrames(source, batch, labels, *beside)
        for name in names:
            found = METRICS[name].compute(frames)
            results[name][batch] = found.reshape(results[name][batch].shape)

    coords: dict[Hashable, Any] = {
        name: coord for name, coord in source.coords.items() if set(coord.dims) <= set(leading)
    }
    data = {}
    for name, values in results.items():
        about = {"long_name": METRICS[name].title, "target": METRICS[name].target}
        data[name] = (leading, values, about)
    return xr.Dataset(data, coords | {"count": ("class", counts)}, dict(paths.attrs))


def _names(
    metrics: str | Sequence[str] | None, classifier: bool, samples: bool, centers: bool
) -> list[str]:
    """The metrics asked for, or those that can be computed from what is there."""
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
    names = check_choices("metrics", metrics, METRICS)
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


def _align(
    name: str, value: Any, leading: Mapping[Hashable, int], ends: Mapping[Hashable, int]
) -> np.ndarray:
    """A float64 view over the leading dimensions of the features, and then those of ``ends``."""
    wanted = {**leading, **ends}
    if isinstance(value, xr.DataArray):
        value = value.rename({dim: "feature" for dim in value.dims if dim == "feature_in"})
        if not set(ends) <= set(value.dims) <= set(wanted):
            raise ValueError(
                f"{name} must have the dimensions {', '.join(map(repr, ends))} and otherwise only "
                f"those of the features ({', '.join(map(repr, leading)) or 'none'}); "
                f"got {', '.join(map(repr, value.dims))}."
            )
        missing = [i for i, dim in enumerate(wanted) if dim not in value.dims]
        value = value.transpose(*(dim for dim in wanted if dim in value.dims)).values
        value = np.expand_dims(value, missing)
    array = check_finite_array(name, value)
    last = tuple(ends.values())
    try:
        if array.shape[-len(last) :] != last:
            raise ValueError
        return np.broadcast_to(array, tuple(wanted.values()))
    except ValueError:
        given = ", ".join(f"{dim}: {size}" for dim, size in ends.items())
        dims = ", ".join(f"{dim}: {size}" for dim, size in leading.items()) or "none"
        raise ValueError(
            f"{name} must fit the features, ({given}) after leading dimensions that broadcast to "
            f"({dims}); got shape {shown(np.shape(value))}."
        ) from None


def _read_centers(
    value: Any, source: xr.DataArray, leading: Mapping[Hashable, int], ends: Mapping[Hashable, int]
) -> np.ndarray:
    """Class centres (..., class, feature) of other samples, over the leading dimensions of ``source``."""
    if isinstance(value, xr.Dataset) and is_statistics(value):
        value = value["mean"]
    elif isinstance(value, xr.Dataset):
        features, labels = check_paths("centers", value)
        features = features.transpose(..., "sample", "feature")
        value = read_averages("centers.features", features, labels)
    if isinstance(value, xr.DataArray):
        for dim in leading:
            known = dim in value.dims and dim in value.coords and dim in source.coords
            if known and not np.array_equal(value[dim].values, source[dim].values):
                raise ValueError(
                    f"centers must have the {dim} of paths; they differ. Choose what both have, for "
                    f"example with xarray.align(..., join='inner')."
                )
    return _align("centers", value, leading, ends)
