"""The published estimator of A and B: ratios of logarithms of class means over networks.

It is here to be compared with: at the noise of real networks its first class means, to which every
ratio is taken, rest on a few draws each, so their noise stays in A and B at all times.

References
----------
Zhang, Wang, Su, NeurIPS 2021 (arXiv 2110.05960), and the code published with it.
"""

from __future__ import annotations

import warnings
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from lesde.analysis.class_means import checked_paths, read_class_means
from lesde.analysis.elasticity.fit import choose_transform
from lesde.checks import check_choice, check_fraction, check_labels
from lesde.model.transforms import logit_directions
from lesde.paths import check_dataset

__all__ = [
    "IterationMeans",
    "is_drawn",
    "log_ratio_elasticity",
    "means_of_draws",
    "path_means",
    "published_elasticity",
]


# --------------------------------------------------------------------------------------------------
# The baseline estimator of A and B: ratios of logarithms, sample by sample.


def log_ratio_elasticity(paths: xr.Dataset, transform: str | None = None) -> xr.Dataset:
    """A(t) and B(t) by averaging logarithms of ratios x(t)/x(0).

    Parameters
    ----------
    paths : xarray.Dataset
        As for `lesde.fit_elasticity`; classes of equal size.
    transform : {"identity", "logits"}, optional
        Default: that of the model that the attributes of ``paths`` record, else "identity". H = I: for every sample and coordinate A − B = K log of the ratio of its distance from the grand mean, and for
        every coordinate A + (K−1)B = K log of the ratio of the grand mean. Logits: the same with
        s_i = ⟨d_k, X_i⟩/‖d_k‖ of a sample of class k: A − B from the mean of s, A + B/(K−1) from s_i minus that mean.

    Returns
    -------
    xarray.Dataset
        ``A``, ``B (…, time)``, averaged over replicates, over the dimensions of the features other than replicate, sample and feature;
        ``dropped (…, time)``: the share of ratios that are not positive and finite and so were left out; ``used (…, time)``: how
        many were averaged. NaN where none is left.

    Raises
    ------
    TypeError, ValueError
        For unusable paths, unbalanced classes, or another transform.

    Examples
    --------
    >>> log_ratio_elasticity(paths).A - fit_elasticity(paths).A  # doctest: +SKIP
    """
    if transform is not None:
        check_choice("transform", transform, ("identity", "logits"))
    features, labels, times, groups = checked_paths(paths)
    counts = np.bincount(labels)
    K = len(counts)
    if (counts != counts[0]).any():
        raise ValueError(
            f"paths must have classes of equal size for ratios of logarithms; got {counts.tolist()}. "
            f"Use lesde.fit_elasticity."
        )
    transform = choose_transform(paths, transform, K, features.sizes["feature"]).kind
    check_choice("transform", transform, ("identity", "logits"))
    shape = tuple(features.sizes[d] for d in groups)
    A, B, dropped, used = (np.empty((*shape, len(times))) for _ in range(4))
    for cell in np.ndindex(*shape):
        X = features.isel(dict(zip(groups, cell, strict=True))).values.astype(np.float64)
        if transform == "logits":
            d = logit_directions(K) / np.sqrt(1.0 - 1.0 / K)
            X = np.einsum("rtnp,np->rtn", X, d[labels])[..., None]
        mean = X.mean(2, keepdims=True)  # balanced, so the mean over samples is the grand mean
        common, lost_common, n_common = _mean_log_ratio(mean)
        contrast, lost_contrast, n_contrast = _mean_log_ratio(X - mean)
        if transform == "identity":  # contrast: (A − B)/K, mean: (A + (K−1)B)/K
            B[cell] = common - contrast
            A[cell] = K * contrast + B[cell]
        else:  # mean: (A − B)/K, contrast: (A + B/(K−1))/K
            B[cell] = (K - 1) * (contrast - common)
            A[cell] = K * common + B[cell]
        used[cell] = n_common + n_contrast
        dropped[cell] = (lost_common + lost_contrast) / (used[cell] + lost_common + lost_contrast)
    dims = (*groups, "time")
    result = xr.Dataset(
        {
            "A": (dims, A),
            "B": (dims, B),
            "dropped": (dims, dropped),
            "used": (dims, used.astype(np.int64)),
        },
        coords={"time": times},
        attrs={"transform": transform, "method": "mean of log ratios, sample by sample"},
    )
    return result.assign_coords({d: paths[d] for d in groups if d in paths.coords})


def _mean_log_ratio(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean of log x(t)/x(0) over all but time, of (r, t, n, p); how many were left out and used."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        ratio = values / values[:, :1]
        good = np.isfinite(ratio) & (ratio > 0)
        logs = np.log(np.where(good, ratio, 1.0))
    used = good.sum((0, 2, 3))
    total = logs.sum((0, 2, 3))
    mean = np.where(used > 0, total / np.maximum(used, 1), np.nan)
    return mean, (~good).sum((0, 2, 3)), used


# --------------------------------------------------------------------------------------------------
# Class means over networks at every iteration, of drawn samples or of paths.


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


# --------------------------------------------------------------------------------------------------

LEVELS = {"alpha": "A", "beta": "B"}


def published_elasticity(
    paths: xr.Dataset, transform: str = "identity", tail: float = 0.1
) -> xr.Dataset:
    """A(t) and B(t) by the inversion that Zhang, Wang and Su published: a baseline.

    Class means X̄^k are averaged over all networks at every iteration, and every logarithm below is taken of
    the mean at an iteration over that at the first. Where noise makes such a ratio negative, its
    absolute value is taken, as the published code does; here that is counted, and told in a warning.

    Parameters
    ----------
    paths : xarray.Dataset
        The drawn samples that `lesde.networks.record_ensemble` records with ``drawn=True``: ``features ([learning_rate,]
        replicate, draw, feature)``, ``label ([learning_rate,] replicate, draw)``, ``iteration (draw)``, ``time``. Or
        paths, as for `lesde.fit_elasticity`.
    transform : {"identity", "logits"}, default "identity"
        The I-model or the L-model.
    tail : float, default 0.1
        Last share of the iterations, over which tail indices are averaged (1,000 of 10,000 in the paper).

    Returns
    -------
    xarray.Dataset
        - ``A``, ``B``, ``A_minus_B (…, time)``: NaN where no network drew some class.
        - ``negative (…, time)``: share of the ratios that are negative, whose absolute value was taken.
        - ``left_out (…, time)``: share of the ratios that are zero or not finite, without a logarithm.
        - ``tail_index (…, level)``, for α and β: 1 − the mean over the tail of log|A| / log m, where m counts iterations from 1. NaN
          for paths without the coordinate ``iteration``.
        - ``tail_negative (…, level)``: share of that tail in which A (or B) has the rarer sign; it is left out.

        Coordinates ``time``, and ``iteration`` where it is known.

    Warns
    -----
    UserWarning
        Where absolute values of negative ratios were taken, or a tail has both signs.

    Raises
    ------
    TypeError, ValueError
        For unusable data; where no network draws some class at the first iteration; for
        ``"logits"`` with a number of features other than K.

    Notes
    -----
    With the grand mean X̄, c₀ = X̄(0) and c_k = X̄^k(0) − X̄(0), in the I-model, coordinate by coordinate,

        ``Â = log |X̄ (X̄^k − X̄)^{K−1} / (c₀ c_k^{K−1})|,    B̂ = −log |c₀ (X̄^k − X̄) / (c_k X̄)|,``

    averaged over classes and coordinates. In the L-model, with d_k = e_k − 1/K,

        s = (Σ_{k<K} X̄^k_k − Σ_{j<K} X̄^K_j − Σ_k Σ_{j≠k} X̄^k_j) / (2(K−1)),    f = Σ_{k<K} ⟨d_k, X̄^k − s d_k⟩,

    A − B = K log|s/s(0)| and A + B/(K−1) = K log|f/f(0)|. This is exact without noise for class means whose
    coordinates sum to zero; another sum is a constant of the L-model, which the published s takes in. The
    formulas are published for K = 3; for other K, s and f are those with the same properties.

    References
    ----------
    Zhang, Wang, Su, NeurIPS 2021 (arXiv 2110.05960), and the code published with it, github.com/zjiayao/le_sde.

    Examples
    --------
    >>> published_elasticity(record["drawn"], "logits").A  # doctest: +SKIP
    """
    check_choice("transform", transform, ("identity", "logits"))
    tail = check_fraction("tail", tail)
    means = means_of_draws(paths) if is_drawn(paths) else path_means(paths)
    ratios = _identity_ratios if transform == "identity" else _logit_ratios
    K, p = means.values.shape[-2:]
    if transform == "logits" and p != K:
        raise ValueError(f"transform='logits' needs as many features as classes; got {p} and {K}.")
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        one, two = ratios(means.values)
        logs, lost, negative = zip(*(_mean_log_of_size(r) for r in (one, two)), strict=True)
    if transform == "identity":  # the ratios are exp(A) and exp(−B)
        A, B = logs[0], -logs[1]
    else:  # exp((A − B)/K) and exp((A + B/(K−1))/K)
        A, B = logs[0] + (K - 1) * logs[1], (K - 1) * (logs[1] - logs[0])
    known = np.isfinite(means.values).all((-1, -2))
    share = np.where(known, np.mean(negative, axis=0), np.nan)
    dims = (*means.groups, "time")
    result = xr.Dataset(
        {
            "A": (dims, A),
            "B": (dims, B),
            "A_minus_B": (dims, A - B),
            "negative": (dims, share),
            "left_out": (dims, np.where(known, np.mean(lost, axis=0), np.nan)),
        },
        coords=means.coords,
        attrs={"transform": transform, "method": "published log ratios of class means"},
    )
    _add_tail_indices(result, tail)
    _warn_of_signs(result)
    return result


def _identity_ratios(X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ratios (…, time, class × coordinate) that are exp(A) and exp(−B) without noise."""
    K = X.shape[-2]
    mean = X.mean(-2, keepdims=True)
    apart = X - mean
    common, contrast = mean / mean[..., :1, :, :], apart / apart[..., :1, :, :]
    flat = (*X.shape[:-2], -1)
    return (common * contrast ** (K - 1)).reshape(flat), (contrast / common).reshape(flat)


def _logit_ratios(X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ratios (…, time, 1) that are exp((A − B)/K) and exp((A + B/(K−1))/K) without noise."""
    K = X.shape[-1]
    own = np.eye(K, dtype=bool)
    diagonal, last = X[..., own], X[..., -1, :]
    apart = X[..., ~own].sum(-1)
    s = (diagonal[..., :-1].sum(-1) - last[..., :-1].sum(-1) - apart) / (2 * (K - 1))
    # ⟨d_k, d_k⟩ = 1 − 1/K, and ⟨d_k, x⟩ is a coordinate less the mean of all.
    along = diagonal - X.mean(-1)
    f = along[..., :-1].sum(-1) - (K - 1) * (1 - 1 / K) * s
    return (s / s[..., :1])[..., None], (f / f[..., :1])[..., None]


def _mean_log_of_size(ratio: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean of log|ratio| over the last axis; shares without a logarithm, and negative."""
    size = np.abs(ratio)
    good = np.isfinite(size) & (size > 0)
    number = good.sum(-1)
    total = np.log(np.where(good, size, 1.0)).sum(-1)
    mean = np.where(number > 0, total / np.maximum(number, 1), np.nan)
    return mean, (~good).mean(-1), (ratio < 0).mean(-1)


def _add_tail_indices(result: xr.Dataset, tail: float) -> None:
    if "iteration" not in result.variables:
        bare = result["A"].isel(time=0, drop=True).drop_vars("iteration", errors="ignore")
        nothing = xr.full_like(bare, np.nan)
        indices = shares = [nothing] * len(LEVELS)
    else:
        number = result["iteration"] + 1
        inside = number > (1 - tail) * number.max("time")
        indices, shares = [], []
        for variable in LEVELS.values():
            A = result[variable].where(inside & (result[variable] != 0) & (number > 1))
            sign = A / abs(A)
            rarer = sign * sign.sum("time") < 0
            shares.append(rarer.sum("time") / sign.notnull().sum("time"))
            logs = xr.apply_ufunc(np.log, abs(A.where(~rarer)))
            logs = logs / xr.apply_ufunc(np.log, number.where(number > 1))
            indices.append(1 - logs.mean("time"))
    for name, parts in (("tail_index", indices), ("tail_negative", shares)):
        result[name] = xr.concat(parts, "level", coords="minimal", compat="override")
    result.coords["level"] = list(LEVELS)


def _warn_of_signs(result: xr.Dataset) -> None:
    if (result["negative"] > 0).any():
        warnings.warn(
            f"{float(result['negative'].mean()):.2%} of the ratios are negative: noise is as large as what they "
            f"measure, and logarithms are those of absolute values. Use lesde.fit_elasticity.",
            UserWarning,
            stacklevel=3,
        )
    if (result["tail_negative"] > 0).any():
        warnings.warn(
            "A or B has both signs in the tail; the rarer is left out of its tail index, by the shares "
            "tail_negative.",
            UserWarning,
            stacklevel=3,
        )
