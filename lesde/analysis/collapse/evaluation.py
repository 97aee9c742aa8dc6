"""Neural collapse of simulated or recorded features: the register of metrics, and `neural_collapse`."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from lesde.analysis import class_means
from lesde.analysis.class_means import batches, read_averages
from lesde.analysis.collapse.frames import Frames, SampleFrames, StatisticsFrames
from lesde.checks import check_choices, check_finite_array, check_labels
from lesde.paths import check_paths, check_statistics, is_statistics, need_samples


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

    The function gets ``frames``, a `lesde.analysis.collapse.frames.Frames`, and returns a value for each; it
    becomes one of arrays, as `lesde.analysis.collapse.metrics` describes.

    Parameters
    ----------
    target : float, default 0
        Value of the metric under perfect collapse; `lesde.convergence` follows the distance to it.
    classifier : bool, default False
        The metric needs the weights of a linear classifier (``frames.weights``, ``frames.bias``).
    samples : bool, default False
        The metric reads every sample (``frames.blocks()``), so that statistics do not suffice.
    centers : bool, default False
        The metric compares samples to class centres (``frames.closeness``), which may be given:
        those of training features for held-out ones.
    usual : bool, default True
        `lesde.neural_collapse` computes the metric where none is named.

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
            array, label = np.asarray(features), check_labels("labels", labels)
            if array.ndim < 2 or array.shape[-2] != len(label):
                raise ValueError(
                    f"features must have shape (..., sample, feature), with a sample for each of the "
                    f"{len(label)} labels; got an array of shape {array.shape}."
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
        integers 0 to K−1, K ≥ 2, in any order, classes of any sizes, in any real dtype. A variable read
        lazily from disk is read a batch at a time. Or a dataset of statistics, as `lesde.statistics`
        returns: variables ``mean`` and ``within``, coordinate ``count``.
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
        whose class means are taken; or the centres themselves, given as ``weights`` are.

    Returns
    -------
    xarray.Dataset
        One float64 variable per metric over the dimensions of ``features`` other than ``sample``
        and ``feature``, in their order and with their coordinates, with attributes ``long_name`` and
        ``target``, the value under perfect collapse. Coordinate ``count(class)``: samples per class.

    Notes
    -----
    `lesde.analysis.collapse.metrics` defines each metric and its degenerate cases. In short: the centre is
    the mean of the class means, and ratios are inf where class means coincide, up to the rounding of the
    *features*. No metric is ever negative, and all are the same in every unit of the features. Features beyond
    1e140, or all within 1e-130, are refused, as their squares come near the ends of float64. Paths that start
    with every sample at its class mean have NC1 = 0 at the first time.

    From statistics the metrics are the same up to the rounding of the dtype they are stored in,
    times the ratio of the spread in all directions to that along the class means for NC1, and of the
    size of the class means to their distances where these enter.

    The cost is one pass over the features for class means and variances, and one more for each of
    ``nc1``, ``nc4`` and ``ncc_accuracy``. Memory beyond the features is about 10 MB and a few arrays of
    the size of the class means of one frame, whatever the number of frames and samples; no array of shape
    (feature, feature) is formed. Of paths given as ``centers`` the class means are kept for all frames.

    Examples
    --------
    >>> nc = lesde.neural_collapse(paths, metrics=["nc1", "nc2_etf"])  # doctest: +SKIP
    >>> nc.nc1.mean("replicate").plot(hue="learning_rate", yscale="log")  # doctest: +SKIP
    """
    reduced = is_statistics(paths)
    last: tuple[str, ...] = ("class" if reduced else "sample", "feature")
    if reduced:
        wanted = {"mean": last, "within": (*last, "feature_")}
        counts, source = check_statistics("paths", paths, wanted), paths["mean"]
    else:
        source, labels = check_paths("paths", paths, minimum_classes=2)
        counts = np.bincount(labels)
    source = source.transpose(..., *last)
    lead = source.shape[:-2]
    sizes = dict(zip(source.dims[:-2], lead, strict=True))
    ends: dict[Hashable, int] = {"class": len(counts), "feature": source.shape[-1]}

    if weights is None and bias is None and "weights" in paths:
        weights, bias = paths["weights"], paths.get("bias")
    if weights is None and bias is not None:
        raise ValueError("bias is only used with weights; give weights too, or leave bias out.")
    names = _names(metrics, weights is not None, not reduced, centers is not None)
    beside = [
        None if weights is None else _align("weights", weights, sizes, ends),
        None if bias is None else _align("bias", bias, sizes, {"class": len(counts)}),
        None if centers is None else _align("centers", _means(centers, source), sizes, ends),
    ]

    results = {name: np.empty(lead) for name in names}
    each = (ends["class"] * ends["feature"] if reduced else source.shape[-2]) * ends["feature"]
    for batch in batches(lead, max(1, class_means.BLOCK_VALUES // each)):
        own_weights, own_bias, own_centers = (
            None if given is None else given[batch].reshape(-1, *given.shape[len(lead) :])
            for given in beside
        )
        frames: Frames
        if reduced:
            within = paths["within"].transpose(*sizes, *wanted["within"])
            rounding = float(paths.attrs.get("rounding", 0.0))
            frames = StatisticsFrames(source, within, batch, counts, rounding)
        else:
            frames = SampleFrames(source, batch, labels, own_centers)
        frames.weights, frames.bias = own_weights, own_bias
        for name, values in results.items():
            values[batch] = METRICS[name].compute(frames).reshape(values[batch].shape)

    result = xr.Dataset(
        {name: (list(sizes), values) for name, values in results.items()},
        {name: c for name, c in source.coords.items() if set(c.dims) <= set(sizes)},
        paths.attrs,
    )
    for name in names:
        entry = METRICS[name]
        result[name].attrs = {"long_name": entry.title, "target": entry.target}
    return result.assign_coords(count=("class", counts))


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
                f"metrics: {name!r} needs the weights of a classifier; give weights=, or paths with a "
                f"variable 'weights'."
            )
    return names


def _align(
    name: str, value: Any, sizes: Mapping[Hashable, int], ends: Mapping[Hashable, int]
) -> np.ndarray:
    """Values over the leading dimensions of the features and then ``ends``, a float64 view."""
    wanted: dict[Hashable, int] = {**sizes, **ends}
    fits = True
    named = isinstance(value, xr.DataArray)
    array = check_finite_array(name, value.values if named else value)
    if named:
        variable = xr.Variable(["feature" if d == "feature_in" else d for d in value.dims], array)
        fits = set(variable.dims) <= set(wanted)
        if fits:
            full = variable.set_dims({d: variable.sizes.get(d, 1) for d in wanted})
            array = full.transpose(*wanted).values
    if fits and array.shape[-len(ends) :] == tuple(ends.values()):
        with contextlib.suppress(ValueError):
            return np.broadcast_to(array, tuple(wanted.values()))
    given, lead = (", ".join(f"{d}: {n}" for d, n in each.items()) for each in (ends, sizes))
    raise ValueError(
        f"{name} must fit the features, ({given}) after leading dimensions that broadcast to "
        f"({lead or 'none'}); got {dict(value.sizes) if named else f'shape {array.shape}'}."
    )


def _means(centers: Any, source: xr.DataArray) -> Any:
    """Class centres: of paths or statistics, their class means, at the coordinates of ``source``."""
    if isinstance(centers, xr.Dataset) and is_statistics(centers):
        centers = centers["mean"]
    elif isinstance(centers, xr.Dataset):
        features, labels = check_paths("centers", centers)
        features = features.transpose(..., "sample", "feature")
        centers = read_averages("centers.features", features, labels)
    if isinstance(centers, xr.DataArray):  # the same coordinates, or an error that names them
        xr.align(centers, source, join="exact", exclude=["class", "sample", "feature"])
    return centers
