"""The published estimator of A and B: ratios of logarithms of class means over networks.

It is here to be compared with: at the noise of real networks its first class means, to which every
ratio is taken, rest on a few draws each, so their noise stays in A and B at all times.

References
----------
Zhang, Wang, Su, NeurIPS 2021 (arXiv 2110.05960), and the code published with it.
"""

from __future__ import annotations

import warnings

import numpy as np
import xarray as xr

from lesde.analysis.iteration_means import is_drawn, means_of_draws, path_means
from lesde.checks import check_choice, check_fraction

__all__ = ["published_elasticity"]

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
