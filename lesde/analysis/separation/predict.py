"""Separation predicted from the exact law of a model, without simulating it."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import xarray as xr
from scipy.special import logsumexp

from lesde.analysis.separation.directions import check_direction, pair_directions
from lesde.analysis.separation.function import log_complement, separation_of_maxima
from lesde.analysis.separation.maxima import Maximum
from lesde.checks import check_instance
from lesde.laws.law import law as law_of
from lesde.model.lesde import LESDE
from lesde.paths import check_dataset


def predict_separation(
    model: LESDE, times: Any, initial: Any, direction: Any = "ensemble"
) -> xr.Dataset:
    """Probability that the classes of a model separate, from its exact law.

    Same statement as ``separation_probability(paths, criterion="projection")``.

    Parameters
    ----------
    model : LESDE
        With a kernel that depends on classes and time only.
    times, initial
        As in `lesde.law`; ``initial``, class means (class, feature) or samples (sample, feature) at
        ``times[0]``, must be given: random means have no mean gap, so no direction.
    direction : "ensemble", "initial" or array
        "ensemble", the default: along the law's mean gap at each time; "initial": along that of the
        first time; else vectors (feature,) or (class, class, feature), see ``separation_probability``.

    Returns
    -------
    xarray.Dataset
        As ``predict_from_law``.

    Examples
    --------
    >>> import lesde
    >>> model = lesde.LESDE(lesde.TwoLevel(alpha=2, beta=-1), 2, 2, n_per_class=20, noise=3.0)
    >>> prediction = lesde.predict_separation(model, [0, 1, 2], initial=[[1, 0], [-1, 0]])
    >>> prediction.probability.values.round(3)
    array([1.   , 0.239, 0.984])
    """
    check_instance("model", model, LESDE, "a lesde.LESDE")
    return predict_from_law(law_of(model, times, initial=initial), direction=direction)


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
        As `lesde.law` returns: ``mean``, ``covariance``, ``within``, ``count``; where there, the
        ``centred_`` ones are used for the gaps, and ``offset`` (sample, feature).
    direction
        As in ``predict_separation``. At times where a pair has the same mean, and so no direction, the result
        is NaN; ValueError where that is all of them.

    Returns
    -------
    xarray.Dataset
        ``pairwise``, ``log_failure`` = log(1 − pairwise), ``log_pairwise`` = log(pairwise),
        ``gap``, ``gap_variance`` (time, class, class_), symmetric, NaN on the diagonal;
        ``probability`` (time), that all pairs separate at once: exact for two classes, NaN for
        more; ``lower`` and ``upper`` (time), the Bonferroni and Fréchet bounds on it, with
        ``log_failure_lower`` and ``log_failure_upper`` the bounds on log(1 − probability). The cost is about
        1 ms of one core per pair and time (`separation_function`), 0.2 ms more per initial deviation.
    """
    check_dataset("law", law, ["mean", "covariance", "within", "count"], "lesde.law")
    # Gaps of classes: without the grand mean, which may be larger by any power of ten.
    centred = "centred_" if {"centred_mean", "centred_covariance"} <= set(law) else ""
    ends = ("time", "class", "feature")
    mean = law[f"{centred}mean"].transpose(*ends).values.astype(np.float64)
    covariance = law[f"{centred}covariance"].transpose(*ends, "class_", "feature_").values
    within = law["within"].transpose(*ends, "feature_").values
    T, K, p = mean.shape
    if K < 2:
        raise ValueError(f"law must have at least 2 classes to separate; got {K}.")
    direction = check_direction(direction, K, p)
    if isinstance(direction, str) and direction == "own":
        raise ValueError(
            "direction='own' is that of each replicate, which a law does not have; use "
            "'ensemble', 'initial' or an array."
        )
    units = pair_directions(direction, mean)
    names = ("pairwise", "log_pairwise", "log_failure", "gap", "gap_variance")
    out = {name: np.full((T, K, K), np.nan) for name in names}
    for k, l in itertools.combinations(range(K), 2):
        defined = np.isfinite(units[:, k, l]).all(axis=1)
        if not defined.any():
            raise ValueError(
                f"initial must give classes {k} and {l} different means, or there is no direction "
                f"to separate along; the law has equal means for them at every time (random initial "
                f"means average to zero). Give `initial` or a `direction`."
            )
        unit = np.where(defined[:, None], units[:, k, l], 0.0)
        gap = np.einsum("tp,tp->t", unit, mean[:, k] - mean[:, l])
        of_gap = covariance[:, k, :, k] + covariance[:, l, :, l]
        of_gap = of_gap - covariance[:, k, :, l] - covariance[:, l, :, k]
        variance = np.maximum(np.einsum("tp,tpq,tq->t", unit, of_gap, unit), 0.0)
        maxima = []
        for c, sign in ((k, -1.0), (l, 1.0)):
            spread = np.einsum("tp,tpq,tq->t", unit, within[:, c], unit)
            scale = np.sqrt(np.maximum(spread, 0.0))
            maximum = Maximum.of_identical(np.full(T, law["count"].values[c]), scale)
            if "offset" in law:
                offset = law["offset"].transpose("sample", "feature").values
                offsets = sign * unit @ offset[law["label"].values == c].T
                maximum = Maximum(scale, offsets, np.ones_like(offsets))
            maxima.append(maximum)
        results = separation_of_maxima(gap, maxima[0], maxima[1], variance)
        for name, values in zip(names, (*results, gap, variance), strict=True):
            out[name][:, k, l] = out[name][:, l, k] = np.where(defined, values, np.nan)

    upper = np.triu_indices(K, 1)
    each, fail = out["pairwise"][:, *upper], out["log_failure"][:, *upper]
    total = np.minimum(logsumexp(fail, axis=1), 0.0)
    bounds = {
        "probability": each[:, 0] if K == 2 else np.full(T, np.nan),
        "lower": np.exp(log_complement(total)),
        "upper": each.min(axis=1),
        "log_failure_lower": fail.max(axis=1),
        "log_failure_upper": total,
    }
    data: dict[str, Any] = {name: (("time", "class", "class_"), v) for name, v in out.items()}
    data |= {name: ("time", values) for name, values in bounds.items()}
    coords = {name: law[name] for name in ("time", "class", "count") if name in law.coords}
    chosen = direction if isinstance(direction, str) else "given"
    return xr.Dataset(
        data, coords, {"criterion": "projection", "direction": chosen, "source": "law"}
    )
