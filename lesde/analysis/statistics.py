"""Statistics of the classes in place of every sample's features: `statistics`."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import xarray as xr

from lesde.analysis.class_means import batches, refuse_not_finite
from lesde.analysis.collapse.frames import rounding_of
from lesde.analysis.separation.directions import unit_pairs
from lesde.checks import available_memory, bare_array, shown_bytes
from lesde.paths import check_dataset, check_paths, gap_directions, reduce_frame

# Feature values read at once: 32 MB in float64.
READ_VALUES = 2**22

ABOUT = {
    "mean": "class mean",
    "within": "covariance within the class",
    "reach": "farthest sample of a class from its mean, toward another class's mean",
    "reach_expected": "farthest sample of a class from its mean, toward another class as expected",
    "direction": "unit vector of the expected gap",
}


def statistics(paths: xr.Dataset, directions: Any = None) -> xr.Dataset:
    """Reduce paths, recorded or simulated, to statistics of the classes.

    `lesde.neural_collapse`, `lesde.separation_probability` and `lesde.fit_elasticity` accept them in place of
    paths. They take K(p + p² + K) numbers per frame rather than Np: far fewer for many samples in few dimensions.

    Parameters
    ----------
    paths : xarray.Dataset
        Variable ``features`` with dimensions ``sample`` and ``feature`` and any others, and coordinate
        ``label(sample)``. A variable read lazily from disk is read a part at a time.
    directions : array, DataArray or law, optional
        Directions along which pairs of classes are compared besides those of each replicate's own
        gaps: an array ([time,] class, class_, feature) with at [k, l], k < l, the vector from class l
        to class k, of any length above zero; a DataArray with these dimensions and possibly others of
        the paths, but not ``replicate``; or the dataset ``lesde.law(model, paths.time, initial=...)``, for its
        expected gaps (where those are zero the pair counts as not separated).

    Returns
    -------
    xarray.Dataset
        Over the other dimensions of ``features``, and in its dtype (float64 for integers of more than
        16 bits; worked out in float64):

        - ``mean (…, class, feature)``: class means;
        - ``within (…, class, feature, feature_)``: covariance within each class, divisor n_k;
        - ``reach (…, class, class_)``: the largest (μ_k − x)·u_kl over the samples x of class k, with
          u_kl the unit vector from μ_l to μ_k. Classes are separated along the gap of their means iff
          reach[k, l] + reach[l, k] < ‖μ_k − μ_l‖, and by the nearest mean iff both are less than half of
          it. NaN on the diagonal and where the means coincide;
        - with ``directions``, these as unit vectors, ``direction``, and ``reach_expected``, the reach along
          them.

        Coordinate ``count(class)``; other variables of ``paths`` without the dimension ``sample`` are
        kept. Attributes are those of ``paths``, with ``keep="statistics"``, ``joint=1`` (reaches of a
        class toward several others go together), ``reach_paths=1`` (and so do those at several times)
        and, where the features were stored less precisely than the result is, ``rounding``, their
        relative rounding.

    Notes
    -----
    Statistics do not serve the criterion ``"linear"``, directions chosen afterwards, ``nc4``, and the figures
    that draw samples. Memory beyond the result is about 100 MB, or one frame if that is larger.

    Examples
    --------
    >>> import lesde
    >>> model = lesde.LESDE(lesde.TwoLevel(2, -1), n_classes=2, n_features=2, n_per_class=500)
    >>> reduced = lesde.statistics(lesde.simulate(model, [0, 1], replicates=4))
    >>> dict(reduced.within.sizes)
    {'replicate': 4, 'time': 2, 'class': 2, 'feature': 2, 'feature_': 2}
    """
    features, labels = check_paths("paths", paths)
    features = features.transpose(..., "sample", "feature")
    dims, lead, p = features.dims[:-2], features.shape[:-2], features.shape[-1]
    counts = np.bincount(labels)
    K, dtype = len(counts), np.result_type(features.dtype, np.float32)
    needed = math.prod(map(float, lead)) * K * (p + p * p + 2 * K) * dtype.itemsize
    if needed > available_memory():
        raise ValueError(
            f"paths has {math.prod(lead)} frames of {K} classes in {p} dimensions, whose statistics need "
            f"{shown_bytes(needed)}, more than the {shown_bytes(available_memory())} at hand. Choose fewer "
            f"times with paths.isel(time=...), or analyse the features themselves."
        )
    ends: dict[str, tuple[str, ...]] = {"mean": ("class", "feature")}
    ends["within"], ends["reach"] = ("class", "feature", "feature_"), ("class", "class_")
    units = None
    if directions is not None:
        ends["reach_expected"] = ("class", "class_")
        given = _directions(directions, features, K)
        missing = {d: n for d, n in features.sizes.items() if d in dims and d not in given.dims}
        units = given.expand_dims(missing).transpose(*dims, "class", "class_", "feature").values

    sizes = {"class": K, "feature": p, "class_": K, "feature_": p}
    arrays = {name: np.empty((*lead, *(sizes[d] for d in ends[name])), dtype) for name in ends}
    precision, limits = np.inf, np.finfo(dtype)
    order = np.argsort(labels, kind="stable")
    for batch in batches(lead, max(1, READ_VALUES // (len(labels) * p))):
        samples = features.variable[batch].values
        shape, samples = samples.shape[:-2], samples.reshape(-1, len(labels), p)
        if not np.isfinite(samples).all():
            refuse_not_finite("paths.features", features, batch)
        precision = min(precision, rounding_of(samples).min())
        along = None if units is None else units[batch].reshape(-1, K, K, p)
        if (np.diff(labels) < 0).any():
            samples = samples[:, order]
        with np.errstate(over="ignore", invalid="ignore"):  # refused below
            found = dict(zip(ends, reduce_frame(samples, counts, along), strict=True))
            for name, values in found.items():
                arrays[name][batch] = values.reshape(*shape, *values.shape[1:])
        # a spread that is not rounding, yet has a square too small for the type
        spread = np.nanmax(np.abs(found["reach"]), axis=(1, 2), initial=0.0)
        lost = spread > limits.eps * np.abs(found["mean"]).max(axis=(1, 2))
        lost &= spread < np.sqrt(limits.tiny / limits.eps)
        whole = all(np.isfinite(arrays[name][batch]).all() for name in ("mean", "within"))
        if lost.any() or not whole:
            raise ValueError(
                f"paths.features are too {'small' if whole else 'large'}: the square of their spread leaves "
                f"the range of {dtype}. Rescale them, or use paths.astype(float)."
            )

    data = {n: v.variable for n, v in paths.data_vars.items() if "sample" not in v.dims}
    data |= {
        n: xr.Variable((*dims, *ends[n]), v, {"long_name": ABOUT[n]}) for n, v in arrays.items()
    }
    if units is not None:
        about = {"long_name": ABOUT["direction"]}
        data["direction"] = xr.Variable(given.dims, given.values.astype(dtype), about)
    coords = {n: c.variable for n, c in paths.coords.items() if "sample" not in c.dims}
    coords["count"] = xr.Variable("class", counts, {"long_name": "samples per class"})
    attrs = paths.attrs | {"keep": "statistics", "joint": 1, "reach_paths": 1}
    if limits.eps < precision < np.inf:
        attrs["rounding"] = float(precision)
    return xr.Dataset(data, coords, attrs)


def _directions(directions: Any, features: xr.DataArray, K: int) -> xr.DataArray:
    """Unit vectors over some of the leading dimensions, then class, class_ and feature."""
    last = ("class", "class_", "feature")
    times = features.coords.get("time")
    given = directions
    if isinstance(directions, xr.Dataset):
        law = check_dataset("directions", directions, ["mean", "covariance"], "lesde.law")
        # Of the law's two means the centred one keeps the gaps' own digits.
        mean = law.get("centred_mean", law["mean"]).transpose("time", "class", "feature")
        units = np.nan_to_num(gap_directions(mean.values), nan=0.0)
        given = xr.DataArray(units, {"time": law["time"].values}, ("time", *last))
    elif not isinstance(directions, xr.DataArray):
        array = bare_array("directions", directions)
        given = xr.DataArray(
            array, dims=("time", *last)[-array.ndim :] if array.ndim in (3, 4) else None
        )
    allowed = {d: n for d, n in features.sizes.items() if d not in ("replicate", "sample")}
    allowed |= {"class": K, "class_": K}
    fits = set(last) <= set(given.dims) and all(allowed.get(d) == n for d, n in given.sizes.items())
    if fits and isinstance(directions, xr.Dataset) and times is not None:
        fits = np.allclose(given["time"], times, rtol=1e-6, atol=0.0)
    if not fits:
        raise ValueError(
            f"directions must be over class, class_, feature, and otherwise only dimensions of the paths but "
            f"replicate, at their times: {', '.join(f'{d}: {n}' for d, n in allowed.items())}; got "
            f"{', '.join(f'{d}: {n}' for d, n in given.sizes.items())}. From a law: "
            f"lesde.law(model, paths.time, initial=...)."
        )
    given = given.transpose(*(d for d in features.dims if d in given.dims and d not in last), *last)
    if isinstance(directions, xr.Dataset):
        return given.drop_vars("time")
    return xr.DataArray(unit_pairs("directions", given.values), dims=given.dims)
