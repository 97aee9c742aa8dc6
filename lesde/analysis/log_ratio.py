"""The baseline estimator of A and B: ratios of logarithms, sample by sample.

In a balanced two-level model without noise every contrast of features grows by the same factor, and so
does their mean, so two logarithms of ratios to the start give A and B. This inverts them sample by
sample, as estimates in the manner of Zhang, Wang and Su do. It is here to compare `fit_elasticity`
with: noise enters the logarithms, ratios that noise made negative must be left out, and what is left is
biased.

References
----------
Zhang, Wang, Su, NeurIPS 2021 (arXiv 2110.05960): the growth of both models and its inversion.
"""

from __future__ import annotations

import numpy as np
import xarray as xr

from lesde.analysis.class_means import checked_paths
from lesde.analysis.elasticity_records import choose_transform
from lesde.checks import check_choice
from lesde.transforms import logit_directions

__all__ = ["log_ratio_elasticity"]


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
