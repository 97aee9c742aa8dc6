"""Elasticity measured directly: `fit_impact`, from what single SGD steps do to the features."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from lesde.analysis.impact_clusters import Clusters, ImpactData, read_impact
from lesde.analysis.impact_frame import ImpactFrame
from lesde.checks import check_choice, check_fraction

__all__ = ["fit_impact"]

LONG = {
    "E": "elasticity between classes",
    "alpha": "within-class elasticity",
    "beta": "between-class elasticity",
    "alpha_minus_beta": "within less between",
    "A": "integral of alpha",
    "B": "integral of beta",
    "A_minus_B": "integral of alpha − beta",
    "relative": "relative change",
    "relative_within": "relative change within classes",
    "relative_between": "relative change between classes",
    "explained": "share of squared change explained",
    "explained_matrix": "share of squared change explained by E",
    "explained_two_level": "share of squared change explained by alpha, beta",
}
MATRICES = ("E", "relative", "explained")
INTEGRALS = {"A": "alpha", "B": "beta", "A_minus_B": "alpha_minus_beta"}


def fit_impact(
    impact: xr.Dataset,
    transform: Any = "identity",
    confidence: float = 0.95,
    *,
    estimator: str = "draws",
    errors: str = "auto",
    kernel: str = "two-level",
) -> xr.Dataset:
    """Estimate E(t), α(t) and β(t) from the changes that single SGD steps make to the features.

    One step at sample J of class L, at learning rate h, moves sample i of class k by ΔX_i = h E_kL H_L X_J +
    noise. With u_J = H_L X_J, the coefficient of the regression of changes on u_J, over drawn samples J of
    class L and moved samples i of class k, is Ê_kL = Σ ⟨ΔX_i, u_J⟩ / (h Σ ‖u_J‖²).

    Parameters
    ----------
    impact : xarray.Dataset
        As `lesde.measure_impact`, :func:`lesde.networks.measure_impact` or
        `lesde.analysis.impact_from_changes` return. Averaged over ``replicate``; every other dimension but
        time (``learning_rate``, …) is kept.
    transform : {"identity", "logits"} or array (p, p) or (K, p, p), default "identity"
        The matrices H_l, as for a model.
    confidence : float, default 0.95
        Level of all intervals.
    estimator : {"draws", "averages"}, default "draws"
        ``"draws"``: every drawn sample has its own u_J and its own changes, as above. ``"averages"``: changes and u_J are
        first averaged over the drawn samples of a class and over replicates, Ê_kL = ⟨mean ΔX̄^k, mean u⟩ / (h
        ‖mean u‖²): the coefficient of the drift of the class means, what ``fit_elasticity(...,
        estimator="averages")`` is after. Both are E_kL where the model holds. In a network
        ``"draws"`` gives less: the scatter of u_J about its mean says little of how a step moves others (or even less where u_J
        is large, since of such a sample the network is sure), but counts in ‖u_J‖².
    errors : {"auto", "replicate", "draw"}, default "auto"
        Jackknife over replicates, or over drawn samples (within their class), with quantiles of Student's t. Errors over
        drawn samples are those for these very networks. ``"auto"``: over replicates from 8 on. Neither counts the
        choice of the samples that are watched, which all draws share.
    kernel : {"two-level", "matrix"}, default "two-level"
        Which of them `lesde.fitted_kernel` makes a kernel of; both are estimated.

    Returns
    -------
    xarray.Dataset
        Over ``time`` where ``impact`` has it; with ``_se``, ``_lower`` and ``_upper`` for each variable:

        - ``E (class, class_)``: first the class moved, then the class drawn.
        - ``alpha``, ``beta``, ``alpha_minus_beta``: the two-level kernel nearest to the changes: means of the diagonal of
          Ê and of the rest, each entry with weight w_k w_l mean‖u_J‖² (J of class l), w the shares of the classes in
          training.
        - ``relative (class, class_)``: mean of ‖ΔX_i‖/‖ΔX_J‖, the relative change of He and Su, which needs neither H nor
          h; ``relative_within``, ``relative_between``, its means with weights w_k w_l. Where ``impact`` has it.
        - ``explained (class, class_)``: share of Σ‖ΔX_i‖² that Ê_kL accounts for; of the average changes for
          ``estimator="averages"``. ``explained_matrix``, ``explained_two_level``: over all pairs of classes, with E or with α, β.
        - ``A``, ``B``, ``A_minus_B``: integrals from the first time by the trapezoidal rule, and, without errors,
          ``alpha_raw``, ``beta_raw``, ``E_raw (interval)``, their slopes, which `lesde.fitted_kernel` takes. Where there are several times.

        Attributes say what was fitted and how.

    Warns
    -----
    UserWarning
        When a class has no drawn sample (NaN), or errors cannot be told.

    Raises
    ------
    TypeError, ValueError
        For arguments that are not as above.

    Notes
    -----
    A drawn sample that is also watched counts among the samples of its class, as in the model. Where training draws
    from N samples and n of them are watched, that happens to one draw in N/n, and then has weight 1/n: on average
    its weight in the class is right.

    References
    ----------
    He, Su, *The Local Elasticity of Neural Networks*, ICLR 2020 (arXiv 1910.06943), for the relative change; Zhang, Wang,
    Su, NeurIPS 2021 (arXiv 2110.05960), for the rule of a step.

    Examples
    --------
    >>> impact = lesde.measure_impact(network, "cross_entropy", (x, y), (x, y), 0.01)  # doctest: +SKIP
    >>> fit = lesde.fit_impact(impact, transform="logits")  # doctest: +SKIP
    >>> float(fit.alpha_minus_beta), float(fit.alpha_minus_beta_se)  # doctest: +SKIP
    """
    confidence = check_fraction("confidence", confidence)
    check_choice("estimator", estimator, ("draws", "averages"))
    check_choice("kernel", kernel, ("two-level", "matrix"))
    data = read_impact(impact)
    H = data.transform(transform)
    clusters = Clusters(data, errors, confidence)
    _warn_of_missing(data)
    found = _estimates(data, clusters, H, estimator)
    result = xr.Dataset(coords=data.coords())
    K = len(data.shares)
    result = result.assign_coords({"class": np.arange(K), "class_": np.arange(K)})
    for name, (values, error, quantile) in found.items():
        _put(result, data, name, values, error, quantile)
    if data.has_time and result.sizes["time"] > 1:
        _add_intervals(result)
    result.attrs.update(
        transform=H.kind,
        kernel=kernel,
        method="regression of one-step changes on the drawn sample's features",
        estimator=estimator,
        errors=clusters.kind,
        confidence=confidence,
        replicates=int(data.dataset["change"].sizes.get("replicate", 1)),
        draws=len(data.labels),
    )
    return result


Found = dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]


def _estimates(data: ImpactData, clusters: Clusters, H: Any, estimator: str) -> Found:
    """Values, errors and quantiles (group, time, ...) of all variables."""
    u, unit = data.scaled_drivers(H)
    change = data.array("change", ("draw", "class", "feature")) / unit[..., None]
    square = data.array("square", ("draw", "class"))
    # A square that left the range of floats says nothing.
    held = (square > np.finfo(float).tiny) & (square < np.inf) | (change == 0).all(-1)
    square = np.where(held, square, np.nan) / unit / unit
    relative = data.array("relative", ("draw", "class")) if "relative" in data.dataset else None
    G, _, T = change.shape[:3]
    frames: list[list[dict[str, np.ndarray]]] = []
    quantiles: list[list[dict[str, np.ndarray]]] = []
    for g in range(G):
        frames.append([])
        quantiles.append([])
        for t in range(T):
            frame = ImpactFrame(
                clusters, data.shares, change[g, :, t], u[g, :, t], data.steps[g], estimator
            )
            frame.add_explained(square[g, :, t])
            if relative is not None:
                frame.add_relative(relative[g, :, t])
            frames[g].append(frame.values)
            quantiles[g].append(frame.quantiles)
    found: Found = {}
    plain = clusters.quantile()
    for name in frames[0][0]:
        values = np.array([[f[name] for f in row] for row in frames])  # (G, T, 1 + unit, ...)
        error = np.array([[clusters.error(v) for v in row] for row in values])
        q = np.array([[f.get(name, plain) for f in row] for row in quantiles])
        q = q.reshape(*q.shape, *[1] * (error.ndim - q.ndim))
        found[name] = values[:, :, 0], error, np.broadcast_to(q, error.shape)
        integral = next((A for A, rate in INTEGRALS.items() if rate == name), None)
        if integral and data.has_time and T > 1:
            sums = _integral(values, data.dataset["time"].values.astype(np.float64))
            error = np.array([[clusters.error(v) for v in row] for row in sums])
            found[integral] = sums[:, :, 0], error, np.broadcast_to(plain, error.shape)
    return found


def _integral(values: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Integral over time, axis 1, from its start, by the trapezoidal rule."""
    width = np.diff(times).reshape(-1, *[1] * (values.ndim - 2))
    steps = (values[:, 1:] + values[:, :-1]) / 2 * width
    return np.concatenate([np.zeros_like(values[:, :1]), np.cumsum(steps, axis=1)], axis=1)


def _put(
    result: xr.Dataset,
    data: ImpactData,
    name: str,
    values: np.ndarray,
    error: np.ndarray,
    quantile: np.ndarray,
) -> None:
    """A variable with its errors under its own dimensions."""
    over = ("time",) if data.has_time else ()
    dims = (*data.groups, *over, *(("class", "class_") if name in MATRICES else ()))
    own = values.shape[1:] if data.has_time else values.shape[2:]
    shape = (*data.groups.values(), *own)
    parts: Mapping[str, np.ndarray] = {
        "": values,
        "_se": error,
        "_lower": values - quantile * error,
        "_upper": values + quantile * error,
    }
    for end, part in parts.items():
        words = f"standard error of {LONG[name]}" if end == "_se" else LONG[name]
        attrs = {"long_name": words} if end in ("", "_se") else {}
        result[f"{name}{end}"] = (dims, part.reshape(shape), attrs)


def _add_intervals(result: xr.Dataset) -> None:
    """Mean rates between saved times, in the form that `lesde.fitted_kernel` reads."""
    times = result["time"].values.astype(np.float64)
    result.coords["interval"] = (times[1:] + times[:-1]) / 2
    result.coords["start"] = ("interval", times[:-1])
    result.coords["end"] = ("interval", times[1:])
    for name in ("alpha", "beta", "alpha_minus_beta", "E"):
        values = result[name]
        axis = values.dims.index("time")
        v = np.moveaxis(values.values, axis, 0)
        dims = ["interval" if d == "time" else d for d in values.dims]
        result[f"{name}_raw"] = (
            dims,
            np.moveaxis((v[1:] + v[:-1]) / 2, 0, axis),
            {"long_name": f"{LONG[name]}, mean over interval"},
        )


def _warn_of_missing(data: ImpactData) -> None:
    missing = sorted(set(range(len(data.shares))) - set(data.labels.tolist()))
    if missing:
        warnings.warn(
            f"impact has no drawn sample of class {', '.join(map(str, missing))}: what such a step does is "
            f"NaN, and α and β are those of the other classes. Draw samples of every class.",
            UserWarning,
            stacklevel=3,
        )
