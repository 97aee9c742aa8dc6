"""The contract of datasets of paths, which are made, checked and reduced to statistics here.

Paths are features of samples through time, of several replicates: ``features ([learning_rate,] replicate, time,
sample, feature)`` with the coordinates ``label(sample)``, the class of each sample, and ``time``. Where only the
classes matter, their statistics stand for the samples: ``mean``, ``within`` and ``reach`` with ``count(class)``.
"""

from __future__ import annotations

import importlib.metadata
import json
import warnings
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import xarray as xr

from lesde.checks import (
    available_memory,
    bare_array,
    check_finite_array,
    check_labels,
    check_times,
    real_array,
    shown,
    shown_bytes,
)
from lesde.clocks import with_asked_times

LEADING = ("learning_rate", "replicate", "time")
"""Dimensions before those of a sample or class, in their order."""
CLOCKS = ("time", "iteration", "learning_rate")
"""Coordinates that the analyses count with, wherever a dataset has them."""
TEXTS = {
    "features": {"long_name": "feature", "units": "1"},
    "mean": {"long_name": "class mean", "units": "1"},
    "within": {"long_name": "within-class covariance, divisor n_k", "units": "1"},
    "reach": {"long_name": "reach of a class toward another's mean, from its own", "units": "1"},
    "reach_expected": {"long_name": "reach along the expected gap", "units": "1"},
    "direction": {"long_name": "unit vector of the expected gap"},
}


# --------------------------------------------------------------------------------------------------
# Checks of the datasets that a user gives to an analysis or a figure.


def check_dataset(name: str, value: Any, variables: Sequence[str], source: str) -> xr.Dataset:
    """A dataset that holds the given variables; ``source`` says which call makes such a dataset."""
    if not isinstance(value, xr.Dataset):
        raise TypeError(
            f"{name} must be an xarray.Dataset, as {source} returns; got {shown(type(value).__name__)}."
        )
    missing = [variable for variable in variables if variable not in value]
    if missing:
        raise ValueError(
            f"{name} must hold the variable(s) {', '.join(variables)}, as {source} returns; "
            f"{', '.join(missing)} missing, found {', '.join(map(str, value.variables)) or 'nothing'}."
        )
    for variable in dict.fromkeys((*variables, *(c for c in CLOCKS if c in value.variables))):
        array = value[variable]
        if array.dtype.kind not in "biuf" and variable != "label":  # labels have their own check
            raise TypeError(
                f"{name}.{variable} must hold real numbers; got the dtype {array.dtype}."
            )
        for dim, size in array.sizes.items():
            if size == 0:
                raise ValueError(f"{name}.{variable} must hold at least one {dim}; it is empty.")
        if variable in ("time", "learning_rate") and not np.isfinite(array.values).all():
            raise ValueError(f"{name}.{variable} must be finite; leave out entries without one.")
    return value


def check_paths(
    name: str, value: Any, dims: Sequence[str] = ("sample", "feature"), minimum_classes: int = 1
) -> tuple[xr.DataArray, np.ndarray]:
    """The features and labels of a dataset of paths that has at least the given dimensions."""
    if is_statistics(value):
        raise need_samples(name)
    source = "lesde.simulate, lesde.from_arrays or a recorder"
    check_dataset(name, value, ["features", "label"], source)
    features, labels = value["features"], value["label"]
    if features.dtype.kind == "b":
        raise TypeError(f"{name}.features must hold real numbers; got the dtype {features.dtype}.")
    _check_dims(f"{name}.features", features, dims)
    _check_dims(f"{name}.label", labels, ("sample",))
    found = check_labels(f"{name}.label", labels.values)
    if found.max() + 1 < minimum_classes:
        raise ValueError(
            f"{name} must hold at least {minimum_classes} classes; got {found.max() + 1}."
        )
    return features, found


def _check_dims(name: str, array: xr.DataArray, dims: Sequence[str]) -> None:
    if not set(dims) <= set(array.dims):
        raise ValueError(
            f"{name} must have the dimensions {', '.join(map(repr, dims))}; got "
            f"{', '.join(map(repr, array.dims)) or 'none'}. Rename them with .rename(...)."
        )


def is_statistics(value: Any) -> bool:
    """True if a dataset holds statistics of the classes in place of every sample's features."""
    return (
        isinstance(value, xr.Dataset)
        and "mean" in value
        and "features" not in value
        and "covariance" not in value  # that is a law
        and not {"reach", "within", "count"}.isdisjoint(value.variables)
    )


def need_samples(name: str, what: str = "this") -> ValueError:
    """The error for a dataset of statistics where every sample's features are needed."""
    return ValueError(
        f"{name} must hold the features of every sample for {what}; it holds statistics of the classes "
        f"only. Simulate with keep='features', or pass the recorded features themselves."
    )


def check_statistics(
    name: str, value: xr.Dataset, variables: Mapping[str, Sequence[str]]
) -> np.ndarray:
    """Samples per class of a dataset of statistics that holds variables with at least some dimensions."""
    check_dataset(name, value, [*variables, "count"], "lesde.simulate with keep='statistics'")
    for variable, dims in {**variables, "count": ["class"]}.items():
        _check_dims(f"{name}.{variable}", value[variable], dims)
    if len({frozenset(value[v].dims) - set(dims) for v, dims in variables.items()}) > 1:
        raise ValueError(f"{name} must hold {', '.join(variables)} over the same other dimensions.")
    counts = value["count"].values
    if not np.issubdtype(counts.dtype, np.integer) or (counts < 1).any():
        raise ValueError(f"{name}.count must hold positive integers; got {shown(counts.tolist())}.")
    if len(counts) < 2:
        raise ValueError(f"{name} must hold at least 2 classes; got {len(counts)}.")
    return counts.astype(np.int64)


# --------------------------------------------------------------------------------------------------
# The dataset of simulated arrays.

SHARE = 0.8  # of the available memory, which a run may take, result included
WORKING_SHARE = 0.5  # of what the result leaves, for working arrays where no limit is given


def working_memory(limit: float | None, result: float, device: Any, shape: str) -> float:
    """Bytes that working arrays may take, after checking that the result, on the host, fits."""
    available = SHARE * available_memory()
    allowed = available if limit is None else min(limit, available)
    if result > allowed:
        bound = "that may be used here" if allowed == available else "of memory_limit"
        raise ValueError(
            f"the result needs {shown_bytes(result)} ({shape}), more than the {shown_bytes(allowed)} {bound}. "
            f"Ask for fewer replicates or times and run the rest with first_replicate"
            f"{'' if 'statistics' in shape else ', or for keep=' + repr('statistics')}."
        )
    if device.type == "cuda":
        import torch  # heavy, and there already

        return min(np.inf if limit is None else limit, SHARE * torch.cuda.mem_get_info(device)[0])
    return (WORKING_SHARE if limit is None else 1.0) * (allowed - result)


def as_dataset(
    variables: dict[str, tuple[tuple[str, ...], np.ndarray]],
    coords: dict[str, Any],
    times: np.ndarray,
    first_replicate: int,
    rates: np.ndarray | None,
    batched: bool,
    about: dict[str, Any],
    settings: dict[str, Any],
    *,
    fixed: dict[str, tuple[tuple[str, ...], np.ndarray]] | None = None,
    asked: np.ndarray | None = None,
    iterations: np.ndarray | None = None,
) -> xr.Dataset:
    """Simulated paths with their coordinates and attributes.

    ``variables`` map a name to the dimensions after (learning_rate, replicate, time) and the array (cell, replicate,
    time, ...); cells are learning rates, a dimension where ``batched``. ``fixed`` are variables that all cells and
    replicates share; ``about`` becomes the attribute ``model``. ``asked`` are the times asked for, where others were seen.
    """
    replicates = next(iter(variables.values()))[1].shape[1]
    replicate = np.arange(first_replicate, first_replicate + replicates)
    coords = {
        "replicate": ("replicate", replicate, {"long_name": "replicate"}),
        "time": ("time", times, {"long_name": "time"}),
        **coords,
    }
    if asked is not None:
        coords = with_asked_times(coords, asked)
    if rates is not None:
        coords["learning_rate"] = ("learning_rate", rates, {"long_name": "learning rate"})
    if iterations is not None:
        grid = ("learning_rate", "time")
        coords["iteration"] = (grid, iterations, {"long_name": "iteration"})
    data: dict[str, Any] = {
        name: ((*LEADING, *dims), array, TEXTS.get(name, {}))
        for name, (dims, array) in variables.items()
    }
    data |= {name: (dims, array, TEXTS[name]) for name, (dims, array) in (fixed or {}).items()}
    attrs = {"model": json.dumps(about), **settings, "versions": _versions()}
    dataset = xr.Dataset(data, coords, attrs)
    return dataset if batched else dataset.isel(learning_rate=0)


@cache
def _versions() -> str:
    names = ("lesde", "torch", "torchsde", "numpy")
    return json.dumps({name: importlib.metadata.version(name) for name in names})


def warn_of_lost_digits(means: np.ndarray, dtype: str) -> None:
    """Warn where a grand mean leaves the differences between the last class means few digits.

    ``means`` have the shape (..., class, feature).
    """
    size = np.abs(means).max(axis=(-2, -1))
    spread = np.abs(means - means.mean(axis=-2, keepdims=True)).max(axis=(-2, -1))
    few = 1e3 * np.finfo(dtype).eps
    if means.shape[-2] > 1 and (spread < few * size).mean() > 0.5:
        remedy = "use dtype='float64'" if dtype == "float32" else "end `times` earlier"
        warnings.warn(
            f"at the last time the class means differ by less than {few:.0e} of their size, so {dtype} "
            f"leaves their differences few digits: do not trust separation and collapse of these paths "
            f"there; {remedy}, or ask lesde.law, which keeps them apart.",
            UserWarning,
            stacklevel=3,
        )


# --------------------------------------------------------------------------------------------------
# One frame of samples reduced to statistics of its classes: means, covariances, reaches.

# Values worked on at once, in float64 (1 MB): a block of replicates stays in the processor's cache.
BLOCK_VALUES = 2**17


def gap_directions(means: np.ndarray) -> np.ndarray:
    """Unit vectors from class l to class k, (..., K, K, p), from means (..., K, p); NaN where these coincide."""
    gap = means[..., :, None, :] - means[..., None, :, :]
    # scaled first, so that neither tiny nor huge gaps lose their squares
    size = np.abs(gap).max(axis=-1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        gap = gap / size
        return gap / np.linalg.norm(gap, axis=-1, keepdims=True)


def reduce_frame(samples: Any, counts: Any, directions: Any = None) -> tuple[np.ndarray, ...]:
    """Class means, within-class covariances and reaches of one frame of every replicate.

    ``samples`` (R, N, p) are sorted by class, ``counts`` (K,) says how many each has. Returned are, in float64, the
    means (R, K, p), the covariances with divisor n_k (R, K, p, p), and the reaches (R, K, K) along the gaps of the
    replicate's own class means, NaN on the diagonal and where means coincide; with ``directions`` ([R,] K, K, p), at
    [k, l] a unit vector from class l to class k or zero, also those along them. Deviations are taken from a sample of
    the class first and from the mean of those second, so that they keep their digits however large the mean, and are
    exactly zero for samples that coincide. No replicate's numbers depend on the others.
    """
    values, sizes = np.asarray(samples), np.asarray(counts)
    (R, N, p), K = values.shape, len(sizes)
    mean, within = np.empty((R, K, p)), np.empty((R, K, p, p))
    reaches = np.empty((1 if directions is None else 2, R, K, K))
    # Classes of one size come all at once, others one by one.
    step = K if (sizes == sizes[0]).all() else 1
    stops = np.cumsum(sizes)
    some = max(1, BLOCK_VALUES // (N * p))
    for rows in (slice(r, min(r + some, R)) for r in range(0, R, some)):
        groups = []
        for k in range(0, K, step):
            classes, n = slice(k, k + step), sizes[k]
            block = values[rows, stops[k] - n : stops[k + step - 1]].reshape(-1, step, n, p)
            # Samples last: sums and maxima over contiguous numbers are several times as fast.
            away = block.swapaxes(-1, -2).astype(np.float64, order="C")
            first = away[..., :1].copy()
            away -= first
            shift = away.mean(axis=-1, keepdims=True)
            away -= shift
            mean[rows, classes] = (first + shift)[..., 0]
            within[rows, classes] = away @ away.swapaxes(-1, -2) / n
            groups.append((classes, away))
        toward = [gap_directions(mean[rows])]
        if directions is not None:
            given = np.asarray(directions, dtype=np.float64)
            toward.append(given if given.ndim == 3 else given[rows])
        for reach, units in zip(reaches, toward, strict=True):
            for classes, away in groups:
                reach[rows, classes] = (-units[..., classes, :, :] @ away).max(axis=-1)
    reaches[..., np.arange(K), np.arange(K)] = np.nan
    return mean, within, *reaches


# --------------------------------------------------------------------------------------------------
# The dataset of a user's own arrays.


def from_arrays(
    features: Any,
    labels: Any,
    times: Any = None,
    *,
    replicate: Any = None,
    learning_rate: Any = None,
    weights: Any = None,
    bias: Any = None,
) -> xr.Dataset:
    """A dataset of paths from features and labels of any origin, for every analysis and figure.

    Parameters
    ----------
    features : array or tensor, shape ([learning_rate,] [replicate,] [time,] sample, feature)
        A leading axis is present where the argument of its name, below, is a sequence; one more axis
        beside these is that of replicates.
    labels : array, shape (sample,), or one-hot (sample, class)
        The class of each sample, in any order: integers, texts, or anything else that sorts.
    times : float or sequence of float, default 0
        Time of each frame; of features during SGD, the sum of the learning rates of the steps before.
    replicate : sequence, optional
        Names of independent copies, such as the seeds of networks. Default: 0 to R−1.
    learning_rate : float or sequence of float, optional
        A single number becomes a scalar coordinate.
    weights, bias : array, shape (class, feature) and (class,), optional
        The linear classifier on top of the features, for NC3 and NC4: a row per class, in the order of
        ``classes`` (below). They may have the leading axes of the features too.

    Returns
    -------
    xarray.Dataset
        ``features ([learning_rate,] replicate, time, sample, feature)``, samples in the order given
        and in their own floating dtype (float64 for integers); ``weights`` and ``bias``; coordinates
        ``replicate``, ``time``, ``label(sample)``, integers 0 to K−1, and ``learning_rate``. Attribute
        ``classes``: the distinct labels in sorted order, or the numbers of the one-hot columns that occur.

    Examples
    --------
    >>> import numpy as np
    >>> import lesde
    >>> rng = np.random.default_rng(0)
    >>> labels = ["cat", "dog", "cat", "dog", "bird", "bird"]
    >>> paths = lesde.from_arrays(rng.normal(size=(5, 6, 3)), labels, times=range(5))
    >>> dict(paths.features.sizes)
    {'replicate': 1, 'time': 5, 'sample': 6, 'feature': 3}
    >>> paths.attrs["classes"]
    ['bird', 'cat', 'dog']
    >>> lesde.neural_collapse(paths).nc1_trace.dims
    ('replicate', 'time')
    """
    values = _numbers("features", features)
    if values.ndim < 2 or 0 in values.shape:
        raise ValueError(
            "features must have shape ([learning_rate,] [replicate,] [time,] sample, feature), with at "
            f"least one of each; got {values.shape}."
        )
    coords: dict[str, Any] = {}
    if learning_rate is not None:
        rates = check_finite_array("learning_rate", learning_rate, [(), ("L",)])
        if (rates <= 0).any() or len(np.unique(rates)) < rates.size:
            raise ValueError(f"learning_rate must hold distinct positive numbers; got {rates}.")
        coords["learning_rate"] = rates
    if replicate is not None:
        names = bare_array("replicate", replicate)
        if names.ndim != 1 or len(set(map(str, names))) < len(names):
            raise ValueError(
                f"replicate must be a sequence of distinct names, one for each; got {shown(replicate)}."
            )
        coords["replicate"] = names
    given = real_array("times", 0.0 if times is None else times)
    coords["time"] = check_times("times", np.atleast_1d(given), 1)

    named = coords | {"time": given}
    axes = [axis for axis in LEADING if np.ndim(named.get(axis, 0))]
    more = values.ndim - 2 - len(axes)
    if more == 1 and axes and "replicate" not in axes:
        axes = [axis for axis in LEADING if axis in (*axes, "replicate")]
    elif more:
        raise ValueError(
            f"features of shape {values.shape} have {values.ndim - 2} axes before (sample, feature), and "
            f"{', '.join(axes) or 'no argument'} names them; give times, replicate and learning_rate as sequences "
            f"for the axes that are there, which come in the order learning_rate, replicate, time."
        )
    lead = dict(zip(axes, values.shape, strict=False))
    for axis, value in coords.items():
        if value.ndim and len(value) != lead.get(axis, len(value)):
            name = "times" if axis == "time" else axis
            raise ValueError(
                f"{name} must name the {lead[axis]} entries of its axis of features; got {len(value)}."
            )
    coords.setdefault("replicate", np.arange(lead.get("replicate", 1)))
    label, classes = _labels(labels, values.shape[-2])

    dims = [axis for axis in LEADING if axis in lead or axis != "learning_rate"]
    added = tuple(i for i, axis in enumerate(dims) if axis not in lead)
    data = {"features": ((*dims, "sample", "feature"), np.expand_dims(values, added))}
    if bias is not None and weights is None:
        raise ValueError("bias belongs to a classifier; give its weights too.")
    sizes = {"class": len(classes), "feature": values.shape[-1]}
    for name, value in {"weights": weights, "bias": bias}.items():
        if value is None:
            continue
        last = ("class", "feature") if name == "weights" else ("class",)
        array, own = _numbers(name, value), tuple(sizes[dim] for dim in last)
        if array.shape == own:
            data[name] = (last, array)
        elif array.shape == (*lead.values(), *own):
            data[name] = ((*dims, *last), np.expand_dims(array, added))
        else:
            raise ValueError(
                f"{name} must have shape {own}, with a row for each of the classes {shown(classes)}, or "
                f"{(*lead.values(), *own)}, with the leading axes of features; got {array.shape}."
            )
    about = {"label": ("sample", label)} | {
        name: ((name,) if value.ndim else (), value, {"long_name": name.replace("_", " ")})
        for name, value in coords.items()
    }
    return xr.Dataset(data, about, {"classes": classes})


def _numbers(name: str, value: Any) -> np.ndarray:
    """Real finite numbers in their own floating dtype."""
    array, checked = real_array(name, value), check_finite_array(name, value)
    return array if array.dtype.kind == "f" else checked


def _labels(value: Any, n_samples: int) -> tuple[np.ndarray, list[Any]]:
    """Integers 0 to K−1 per sample, and the given name of each class."""
    allowed = (
        f"labels must hold the class of each of the {n_samples} samples, as integers, texts or other "
        f"values that sort, or as one-hot rows (sample, class); got"
    )
    array = bare_array("labels", value)
    if array.ndim == 2 and len(array) == n_samples:
        if not (np.isin(array, (0, 1)).all() and (array.sum(axis=1) == 1).all()):
            raise ValueError(f"{allowed} two axes whose rows are not one-hot.")
        array = array.argmax(axis=1)
    kind = array.dtype.kind
    if array.shape != (n_samples,) or kind == "c" or (kind == "f" and (array % 1 != 0).any()):
        raise ValueError(f"{allowed} shape {array.shape}, {shown(array.tolist())}.")
    try:
        classes, label = np.unique(array.astype(int) if kind == "f" else array, return_inverse=True)
    except TypeError:
        raise TypeError(f"{allowed} {shown(value)}, which do not sort.") from None
    return label.astype(np.int64), classes.tolist()
