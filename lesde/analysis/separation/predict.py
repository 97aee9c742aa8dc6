"""Separation predicted from the exact law of a model, without simulating it."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from scipy.special import logsumexp

from lesde.analysis.separation.directions import pair_directions
from lesde.analysis.separation.function import Maximum, log_complement, separation_of_maxima
from lesde.checks import check_finite_array, shown
from lesde.paths import check_dataset

if TYPE_CHECKING:
    from lesde.model.lesde import LESDE

__all__ = ["predict_from_law", "predict_separation"]


def predict_separation(
    model: LESDE, times: Any, initial: Any, direction: Any = "ensemble"
) -> xr.Dataset:
    """Probability that the classes of a model separate, from its exact law.

    Same statement as ``separation_probability(paths, criterion="projection")``: all samples of
    class k lie beyond all samples of class l along the direction of the mean gap.

    Parameters
    ----------
    model : LESDE
        With a kernel that depends on classes and time only.
    times : array_like, shape (T,)
        Times; ``times[0]`` is that of the initial state.
    initial : array_like
        Class means (class, feature) or samples (sample, feature) at ``times[0]``. Random initial
        means (``None``) have no mean gap, so no direction: give them.
    direction : "ensemble", "initial" or array
        "ensemble", the default: along the law's mean gap at each time; "initial": along that of the
        first time; else vectors (feature,) or (class, class, feature), see
        ``separation_probability``.

    Returns
    -------
    xarray.Dataset
        As ``predict_from_law``.
    """
    from lesde.laws.law import law
    from lesde.model.lesde import LESDE

    if not isinstance(model, LESDE):
        raise TypeError(f"model must be a lesde.LESDE; got {shown(model)}.")
    return predict_from_law(law(model, times, initial=initial), direction=direction)


def predict_from_law(law: xr.Dataset, direction: Any = "ensemble") -> xr.Dataset:
    """Probability that classes separate, from a Gaussian law of means and samples.

    Along the unit vector ν of a pair the gap of the class means is N(Δ, v) with
    v = νᵀ(C_kk + C_ll − C_kl − C_lk)ν, a sample varies about its class's process mean with
    variance s² = νᵀ within ν, and the deviations of the samples from their own mean are
    independent of the class means. So P = P(Δ + N(0, v) exceeds the overlap of the deviations),
    whether v is above or below s_k²/n_k + s_l²/n_l. Initial deviations (``offset``) enter exactly.

    Parameters
    ----------
    law : xarray.Dataset
        ``mean`` (time, class, feature), ``covariance`` (time, class, feature, class_, feature_),
        ``within`` (time, class, feature, feature_), coordinate ``count`` (class); optionally
        ``centred_mean`` and ``centred_covariance``, which are then used for the gaps, and
        ``offset`` (sample, feature) with coordinate ``label``.
    direction
        As in ``predict_separation``.

    Returns
    -------
    xarray.Dataset
        ``pairwise``, ``log_failure`` = log(1 − pairwise), ``log_pairwise`` = log(pairwise),
        ``gap``, ``gap_variance`` (time, class, class_), symmetric, NaN on the diagonal;
        ``probability`` (time), that all pairs separate at once: exact for two classes, NaN for
        more; ``lower`` and ``upper`` (time), the Bonferroni and Fréchet bounds on it, with
        ``log_failure_lower`` and ``log_failure_upper`` the bounds on log(1 − probability).

    Raises
    ------
    TypeError, ValueError
        If ``law`` lacks a variable, or a pair of classes has the same mean at every time, so that
        no direction is defined. At single times where that happens the result is NaN.

    Notes
    -----
    Cost: about 1 ms of one core per pair and time; 0.2 ms more per sample with initial deviations. See
    ``separation_function`` for the accuracy and the one corner that costs more.
    """
    law = check_dataset("law", law, ["mean", "covariance", "within"], "model.law")
    # Gaps of classes: without the grand mean, which may be larger by any power of ten.
    centred = "centred_" if {"centred_mean", "centred_covariance"} <= set(law) else ""
    mean = law[f"{centred}mean"].transpose("time", "class", "feature").values.astype(np.float64)
    covariance = (
        law[f"{centred}covariance"]
        .transpose("time", "class", "feature", "class_", "feature_")
        .values
    )
    within = law["within"].transpose("time", "class", "feature", "feature_").values
    if "count" not in law:
        raise ValueError("law must hold the coordinate count(class), as model.law returns.")
    counts = check_finite_array("law['count']", law["count"].values)
    T, K, _ = mean.shape
    if K < 2:
        raise ValueError(f"law must have at least 2 classes to separate; got {K}.")
    nu = pair_directions(direction, mean)
    pairs = list(itertools.combinations(range(K), 2))
    if not np.isfinite(nu).all():
        _refuse_undefined(nu, pairs)
    names = ("pairwise", "log_pairwise", "log_failure", "gap", "gap_variance")
    out = {name: np.full((T, K, K), np.nan) for name in names}
    for k, l in pairs:
        for name, values in zip(
            names, _pair(law, mean, covariance, within, counts, nu, k, l), strict=True
        ):
            out[name][:, k, l] = out[name][:, l, k] = values
    return _assemble(law, out, pairs, direction)


def _refuse_undefined(nu: np.ndarray, pairs: list[tuple[int, int]]) -> None:
    for k, l in pairs:
        if not np.isfinite(nu[:, k, l]).all(axis=1).any():
            raise ValueError(
                f"initial must give classes {k} and {l} different means, or there is no direction "
                f"to separate along; the law has equal means for them at every time (random initial "
                f"means average to zero). Give `initial` or a `direction`."
            )


def _pair(
    law: xr.Dataset,
    mean: np.ndarray,
    covariance: np.ndarray,
    within: np.ndarray,
    counts: np.ndarray,
    nu: np.ndarray,
    k: int,
    l: int,
) -> tuple[np.ndarray, ...]:
    """Probability, its two logarithms, gap and its variance for one pair at all times."""
    T = len(mean)
    v = nu[:, k, l]
    good = np.isfinite(v).all(axis=1)
    u = np.where(good[:, None], v, 0.0)
    gap = np.einsum("tp,tp->t", u, mean[:, k] - mean[:, l])
    blocks = covariance[:, k, :, k] + covariance[:, l, :, l]
    blocks = blocks - covariance[:, k, :, l] - covariance[:, l, :, k]
    variance = np.maximum(np.einsum("tp,tpq,tq->t", u, blocks, u), 0.0)
    maxima = []
    for c, sign in ((k, -1.0), (l, 1.0)):
        scale = np.sqrt(np.maximum(np.einsum("tp,tpq,tq->t", u, within[:, c], u), 0.0))
        if "offset" in law:
            members = law["offset"].transpose("sample", "feature").values[law["label"].values == c]
            offsets = sign * u @ members.T
            maxima.append(Maximum(scale, offsets, np.ones_like(offsets)))
        else:
            maxima.append(Maximum.of_identical(np.full(T, counts[c]), scale))
    results = separation_of_maxima(gap, maxima[0], maxima[1], variance)
    return tuple(np.where(good, values, np.nan) for values in (*results, gap, variance))


def _assemble(
    law: xr.Dataset, out: dict[str, np.ndarray], pairs: list[tuple[int, int]], direction: Any
) -> xr.Dataset:
    T, K, _ = out["pairwise"].shape
    k, l = np.array(pairs).T
    each = out["pairwise"][:, k, l]
    fail = out["log_failure"][:, k, l]
    undefined = np.isnan(fail).any(axis=1)
    fail = np.where(np.isnan(fail), 0.0, fail)
    worst = fail.max(axis=1)
    total = np.minimum(logsumexp(fail, axis=1), 0.0)
    exact = each[:, 0] if K == 2 else np.full(T, np.nan)
    bounds = {
        "probability": exact,
        "lower": np.where(undefined, np.nan, np.exp(log_complement(total))),
        "upper": np.where(undefined, np.nan, np.where(undefined, 0.0, each.min(axis=1))),
        "log_failure_lower": np.where(undefined, np.nan, worst),
        "log_failure_upper": np.where(undefined, np.nan, total),
    }
    data: dict[str, Any] = {
        name: (("time", "class", "class_"), values) for name, values in out.items()
    }
    data |= {name: (("time",), values) for name, values in bounds.items()}
    coords = {name: law[name] for name in ("time", "class", "count") if name in law.coords}
    attrs = {
        "criterion": "projection",
        "direction": direction if isinstance(direction, str) else "given",
        "source": "law",
    }
    return xr.Dataset(data, coords=coords, attrs=attrs)
