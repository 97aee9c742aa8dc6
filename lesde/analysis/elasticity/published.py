"""The published estimator of A and B: logarithms of ratios of class means.

It serves as a baseline: at the noise of real networks the first class means, the denominators of all ratios, are
averages of a few draws each, so their noise stays in A and B at all times.
"""

from __future__ import annotations

import warnings
from collections.abc import Hashable
from typing import Any

import numpy as np
import xarray as xr

from lesde.analysis.class_means import read_class_means
from lesde.checks import check_choice, check_fraction, check_labels
from lesde.paths import check_dataset


def _mean_log(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean of the logarithms of the sizes over the last axis, and how many of them are not finite."""
    good = np.isfinite(values) & (values != 0)
    used = good.sum(-1)
    total = np.log(np.where(good, np.abs(values), 1.0)).sum(-1)
    return np.where(used > 0, total / np.maximum(used, 1), np.nan), (~good).sum(-1)


def published_elasticity(
    paths: xr.Dataset, transform: str = "identity", tail: float = 0.1
) -> xr.Dataset:
    """A(t) and B(t) by the inversion that Zhang, Wang and Su published: a baseline.

    Class means X̄^k are averaged over all networks at every iteration, and every logarithm below is taken of the mean at an
    iteration over that at the first. Where noise makes such a ratio negative, its absolute value is taken, as the published
    code does; here that is counted, and a warning says so.

    Parameters
    ----------
    paths : xarray.Dataset
        The drawn samples that `lesde.networks.record_ensemble` records with ``drawn=True``: ``features ([learning_rate,]
        replicate, draw, feature)``, ``label ([learning_rate,] replicate, draw)``, ``iteration (draw)``, ``time``. Or
        paths, as for `lesde.fit_elasticity`.
    transform : {"identity", "logits"}, default "identity"
        The I-model or the L-model, which needs as many features as classes.
    tail : float, default 0.1
        Last share of the iterations, over which tail indices are averaged (1,000 of 10,000 in the paper).

    Returns
    -------
    xarray.Dataset
        - ``A``, ``B``, ``A_minus_B (…, time)``: NaN where no network drew some class.
        - ``negative (…, time)``: share of the ratios that are negative, whose absolute value was taken.
        - ``left_out (…, time)``: share of the ratios that are zero or not finite, without a logarithm.
        - ``tail_index (…, level)``, for α and β: 1 − the mean over the tail of log|A| / log m, m counting iterations from 1;
          NaN for paths without the coordinate ``iteration``.
        - ``tail_negative (…, level)``: share of that tail in which A (or B) has the rarer sign; it is left out.

        Coordinates ``time``, and ``iteration`` where it is known.

    Warns
    -----
    UserWarning
        Where absolute values of negative ratios were taken, or a tail has both signs.

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
    drawn = isinstance(paths, xr.Dataset) and "draw" in paths.dims
    means, groups, coords = (_means_of_draws if drawn else _means_of_paths)(paths)
    K, p = means.shape[-2:]
    if transform == "logits" and p != K:
        raise ValueError(f"transform='logits' needs as many features as classes; got {p} and {K}.")
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        ratios = (_identity_ratios if transform == "identity" else _logit_ratios)(means)
    (one, lost_one), (two, lost_two) = map(_mean_log, ratios)
    if transform == "identity":  # the ratios are exp(A) and exp(−B)
        A, B = one, -two
    else:  # exp((A − B)/K) and exp((A + B/(K−1))/K)
        A, B = one + (K - 1) * two, (K - 1) * (two - one)
    known = np.isfinite(means).all((-1, -2))
    negative = np.where(known, np.mean([(r < 0).mean(-1) for r in ratios], axis=0), np.nan)
    left_out = np.where(known, (lost_one + lost_two) / (2 * ratios[0].shape[-1]), np.nan)
    parts = {"A": A, "B": B, "A_minus_B": A - B, "negative": negative, "left_out": left_out}
    result = xr.Dataset(
        {name: ((*groups, "time"), values) for name, values in parts.items()},
        coords=coords,
        attrs={"transform": transform, "method": "published log ratios of class means"},
    )
    indices, shares = zip(*(_tail_index(result[name], tail) for name in "AB"), strict=True)
    for name, each in (("tail_index", indices), ("tail_negative", shares)):
        result[name] = xr.concat(each, "level", coords="minimal", compat="override")
    result.coords["level"] = ["alpha", "beta"]
    if (result["negative"] > 0).any():
        warnings.warn(
            f"{float(result['negative'].mean()):.2%} of the ratios are negative, and logarithms are those of absolute "
            f"values: noise is as large as what they measure. Use lesde.fit_elasticity.",
            UserWarning,
            stacklevel=2,
        )
    if (result["tail_negative"] > 0).any():
        warnings.warn(
            "A or B has both signs in the tail; the rarer is left out of its tail index, by the shares "
            "tail_negative.",
            UserWarning,
            stacklevel=2,
        )
    return result


Means = tuple[np.ndarray, list[Hashable], dict[Hashable, Any]]
"""Means over networks (*groups, time, class, feature), the names of the groups, and coordinates."""


def _means_of_paths(paths: xr.Dataset) -> Means:
    """Of paths, over replicates and the samples of each class."""
    data = read_class_means(paths, with_steps=False)
    coords = dict(data.coords) | {"time": data.times}
    if "iteration" in paths.variables:
        coords["iteration"] = paths["iteration"].variable
    values = data.values.mean(1)
    return values.reshape(*data.groups.values(), *values.shape[1:]), list(data.groups), coords


def _means_of_draws(drawn: xr.Dataset) -> Means:
    """Of drawn samples, over those of each class that the replicates drew at an iteration; NaN where there are none."""
    check_dataset("paths", drawn, ["features", "label", "iteration"], "record_ensemble(drawn=True)")
    groups = [d for d in drawn["features"].dims if d not in ("replicate", "draw", "feature")]
    lead = (*groups, "replicate", "draw")
    X = drawn["features"].transpose(*lead, "feature").values
    labels = drawn["label"].transpose(*lead).values
    check_labels("paths.label", labels.ravel())
    iteration, at = np.unique(drawn["iteration"].values, return_inverse=True)
    *shape, _, _, p = X.shape
    G, M, K = int(np.prod(shape)), len(iteration), int(labels.max()) + 1
    cell = ((np.arange(G).reshape(*shape, 1, 1) * M + at) * K + labels).ravel()
    count = np.bincount(cell, minlength=G * M * K)
    columns = X.reshape(-1, p).astype(np.float64).T
    sums = np.stack([np.bincount(cell, column, G * M * K) for column in columns], -1)
    means = (sums / np.where(count, count, np.nan)[:, None]).reshape(*shape, M, K, p)
    if not np.isfinite(means[..., 0, :, :]).all():
        raise ValueError(
            "paths must hold a finite draw of every class at the first iteration, over all replicates: ratios "
            "are taken to it. Use more replicates."
        )
    coords: dict[Hashable, Any] = {d: drawn[d].variable for d in groups if d in drawn.coords}
    coords["iteration"] = ("time", iteration)
    if "time" in drawn.variables:
        moments = np.atleast_2d(drawn["time"].values)
        rows = np.unique(moments[:, np.flatnonzero(np.diff(at, prepend=-1))], axis=0)
        if len(rows) == 1:
            coords["time"] = rows[0]
    return means, groups, coords


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


def _tail_index(A: xr.DataArray, tail: float) -> tuple[xr.DataArray, xr.DataArray]:
    """1 − the mean of log|A| / log m over the tail, and the share of the rarer sign, which is left out."""
    if "iteration" not in A.coords:
        nothing = xr.full_like(A.isel(time=0, drop=True), np.nan)
        return nothing, nothing
    number = A["iteration"] + 1
    inside = (number > (1 - tail) * number.max("time")) & (A != 0) & (number > 1)
    A = A.where(inside)
    sign = A / abs(A)
    rarer = sign * sign.sum("time") < 0
    share = rarer.sum("time") / sign.notnull().sum("time")
    logs = xr.apply_ufunc(np.log, abs(A.where(~rarer)))
    slopes = logs / xr.apply_ufunc(np.log, number.where(number > 1))
    return 1 - slopes.mean("time"), share
