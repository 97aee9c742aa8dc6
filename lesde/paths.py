"""Datasets of paths from plain arrays: `from_arrays`."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from lesde.checks import bare_array, check_finite_array, check_times, real_array, shown

__all__ = ["from_arrays"]

LEADING = ("learning_rate", "replicate", "time")
ARGUMENTS = {"learning_rate": "learning_rate", "replicate": "replicate", "time": "times"}


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
        Real and finite. A leading axis is there where the argument of its name, below, is a sequence;
        one axis more, beside at least one of those, is that of replicates.
    labels : array, shape (sample,), or one-hot (sample, class)
        The class of each sample, in any order: integers, texts, or anything else that sorts.
    times : float or sequence of float, default 0
        Time of each frame, strictly increasing; of features during SGD, the sum of the learning rates
        of the steps before.
    replicate : sequence, optional
        Names of independent copies, such as the seeds of networks. Default: 0 to R−1.
    learning_rate : float or sequence of float, optional
        A number is noted beside the paths.
    weights : array, shape (class, feature), optional
        The linear classifier on top of the features, for NC3 and NC4: a row per class, in the order of
        ``classes`` (below). It may have the leading axes of the features too.
    bias : array, shape (class,), optional
        The classifier's bias, likewise; none by default.

    Returns
    -------
    xarray.Dataset
        ``features ([learning_rate,] replicate, time, sample, feature)``, samples in the order given
        and in their own floating dtype (float64 for integers); ``weights`` and ``bias`` where given;
        coordinates ``replicate``, ``time``, ``label(sample)``, integers 0 to K−1, and
        ``learning_rate`` where given. Attribute ``classes``: what class k was called in ``labels``,
        the distinct labels in sorted order, or the numbers of the one-hot columns that occur.

    Raises
    ------
    TypeError, ValueError
        Naming the argument, what was given and what is allowed.

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
    coords = _coordinates(times, replicate, learning_rate)
    axes = _axes(values.shape, [name for name in LEADING if np.ndim(coords[name])])
    lead = dict(zip(axes, values.shape, strict=False))
    coords["time"] = np.atleast_1d(coords["time"])
    coords["replicate"] = np.arange(lead.get("replicate", 1)) if replicate is None else replicate
    for name, size in lead.items():
        if len(coords[name]) != size:
            raise ValueError(
                f"{ARGUMENTS[name]} must have an entry for each of the {size} along the axis {name!r} of "
                f"features {_read(values.shape, axes)}; got {len(coords[name])}."
            )
    label, classes = _labels(labels, values.shape[-2])

    dims = [name for name in LEADING if name in lead or name != "learning_rate"]
    sizes = {"sample": values.shape[-2], "feature": values.shape[-1], "class": len(classes)}
    added = tuple(i for i, name in enumerate(dims) if name not in lead)
    data = {"features": ((*dims, "sample", "feature"), np.expand_dims(values, added))}
    if bias is not None and weights is None:
        raise ValueError("bias belongs to a classifier; give its weights too.")
    for name, value, last in (
        ("weights", weights, ("class", "feature")),
        ("bias", bias, ("class",)),
    ):
        if value is None:
            continue
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
    found: dict[str, Any] = {"label": ("sample", label)}
    for name, value in coords.items():
        if value is not None:
            found[name] = (
                (name,) if np.ndim(value) else (),
                value,
                {"long_name": name.replace("_", " ")},
            )
    return xr.Dataset(data, found, {"classes": classes})


def _numbers(name: str, value: Any) -> np.ndarray:
    """Real finite numbers in their own floating dtype."""
    checked, array = check_finite_array(name, value), real_array(name, value)
    own = str(getattr(value, "dtype", "")).removeprefix("torch.")
    if own in ("float16", "float32"):
        array = array.astype(own)  # of a tensor
    if name == "features" and (array.ndim < 2 or 0 in array.shape):
        raise ValueError(
            "features must have shape ([learning_rate,] [replicate,] [time,] sample, feature), with at "
            f"least one of each; got {array.shape}."
        )
    return array if np.issubdtype(array.dtype, np.floating) else checked


def _coordinates(times: Any, replicate: Any, learning_rate: Any) -> dict[str, Any]:
    """Checked coordinates; a number stays one."""
    if learning_rate is not None:
        learning_rate = check_finite_array("learning_rate", learning_rate, [(), ("L",)])
        if (learning_rate <= 0).any() or len(np.unique(learning_rate)) < learning_rate.size:
            raise ValueError(
                f"learning_rate must hold distinct positive numbers; got {shown(learning_rate.tolist())}."
            )
    if replicate is not None:
        names = np.asarray(replicate)
        if names.ndim != 1 or len(np.unique(names)) < len(names):
            raise ValueError(
                f"replicate must be a sequence of distinct names, one for each; got {shown(replicate)}."
            )
        replicate = names
    times = 0.0 if times is None else times
    checked = check_times("times", np.atleast_1d(real_array("times", times)), 1)
    return {
        "learning_rate": learning_rate,
        "replicate": replicate,
        "time": checked if np.ndim(times) else checked[0],
    }


def _axes(shape: tuple[int, ...], named: list[str]) -> list[str]:
    """The leading axes in order: those named by an argument, and that of replicates where one is over."""
    more = len(shape) - 2 - len(named)
    if more == 1 and named and "replicate" not in named:
        return [name for name in LEADING if name in (*named, "replicate")]
    if more:
        said = ", ".join(ARGUMENTS[name] for name in named) or "no argument"
        raise ValueError(
            f"features of shape {shape} have {len(shape) - 2} axes before (sample, feature), and {said} "
            f"names them; give times, replicate and learning_rate as sequences for the axes that are "
            f"there, which come in the order learning_rate, replicate, time."
        )
    return named


def _read(shape: tuple[int, ...], axes: list[str]) -> str:
    return f"({', '.join(f'{d}: {n}' for d, n in zip([*axes, 'sample', 'feature'], shape, strict=True))})"


def _labels(value: Any, n_samples: int) -> tuple[np.ndarray, list[Any]]:
    """Integers 0 to K−1 per sample, and what each class was called."""
    allowed = (
        f"labels must hold the class of each of the {n_samples} samples, as integers, texts or other "
        f"values that sort, or as one-hot rows (sample, class)"
    )
    try:
        array = bare_array("labels", value)
        if array.ndim == 2 and len(array) == n_samples:
            numbers = array.astype(float)
            if not (np.isin(numbers, (0, 1)).all() and (numbers.sum(axis=1) == 1).all()):
                raise ValueError(f"{allowed}; got two axes whose rows are not one-hot.")
            array = numbers.argmax(axis=1)
        if array.shape != (n_samples,):
            raise ValueError(f"{allowed}; got shape {array.shape}.")
        if array.dtype.kind == "c" or (array.dtype.kind == "f" and not (array % 1 == 0).all()):
            raise ValueError(f"{allowed}; got {shown(array.tolist())}, not whole numbers.")
        classes, label = np.unique(array, return_inverse=True)
    except TypeError:
        raise TypeError(f"{allowed}; got {shown(value)}, which do not sort.") from None
    if array.dtype.kind in "f":
        classes = classes.astype(np.int64)
    return label.astype(np.int64), classes.tolist()
