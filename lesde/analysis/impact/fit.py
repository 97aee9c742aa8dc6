"""Elasticity measured directly: `fit_impact`, from the effect of single SGD steps on the features."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import xarray as xr

from lesde.analysis.impact.clusters import Clusters, read_impact
from lesde.checks import check_choice, check_fraction
from lesde.model.transforms import make_transform

__all__ = ["fit_impact"]

MATRICES = ("E", "relative", "explained")
INTEGRALS = {"alpha": "A", "beta": "B", "alpha_minus_beta": "A_minus_B"}


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
        As `lesde.measure_impact`, :func:`lesde.networks.measure_impact` or `lesde.analysis.impact_from_changes` return.
        Averaged over ``replicate``; every other dimension but time (``learning_rate``, …) is kept.
    transform : {"identity", "logits"} or array (p, p) or (K, p, p), default "identity"
        The matrices H_l, as for a model.
    confidence : float, default 0.95
        Level of all intervals.
    estimator : {"draws", "averages"}, default "draws"
        ``"draws"``: every drawn sample has its own u_J and its own changes, as above. ``"averages"``: changes and u_J are
        first averaged over the drawn samples of a class and over replicates, Ê_kL = ⟨mean ΔX̄^k, mean u⟩ / (h ‖mean u‖²):
        the coefficient of the drift of the class means, what ``fit_elasticity(..., estimator="averages")`` is after. Both
        are E_kL where the model holds. In a network ``"draws"`` gives smaller values: the scatter of u_J about its mean
        hardly affects how a step moves others, but counts in ‖u_J‖².
    errors : {"auto", "replicate", "draw"}, default "auto"
        Jackknife over replicates, or over drawn samples (within their class, and for these networks only), with quantiles
        of Student's t. ``"auto"``: over replicates from 8 on. Neither includes the choice of the watched samples.
    kernel : {"two-level", "matrix"}, default "two-level"
        The one that `lesde.fitted_kernel` turns into a kernel; both are estimated.

    Returns
    -------
    xarray.Dataset
        Over ``time`` where ``impact`` has it; with ``_se``, ``_lower`` and ``_upper`` for each variable:

        - ``E (class, class_)``: first the class moved, then the class drawn.
        - ``alpha``, ``beta``, ``alpha_minus_beta``: the two-level kernel nearest to the changes: means of the diagonal of
          Ê and of the rest, each entry with weight w_k w_l mean‖u_J‖² (J of class l), w the shares of the classes in training.
        - ``relative (class, class_)``: mean of ‖ΔX_i‖/‖ΔX_J‖, the relative change of He and Su, which needs neither H nor
          h; ``relative_within``, ``relative_between``, its means with weights w_k w_l. Where ``impact`` has it.
        - ``explained (class, class_)``: share of Σ‖ΔX_i‖² (of the average changes for ``"averages"``) that Ê_kL accounts
          for. ``explained_matrix``, ``explained_two_level``: over all pairs of classes, with E or with α, β.
        - ``A``, ``B``, ``A_minus_B``: integrals from the first time by the trapezoidal rule, and, without errors,
          ``alpha_raw``, ``beta_raw``, ``E_raw (interval)``, their slopes, which `lesde.fitted_kernel` takes. Where there are
          several times.

        Attributes say what was fitted and how.

    Warns
    -----
    UserWarning
        When a class has no drawn sample (NaN), or errors cannot be estimated.

    Notes
    -----
    A drawn sample that is also watched counts among the samples of its class, as in the model. Where training draws from
    N samples and n are watched, that happens to one draw in N/n, and then has weight 1/n: right on average.

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
    H = make_transform(transform, len(data.shares), data.dataset.sizes["feature"])
    clusters = Clusters(data, errors, confidence)
    K = len(data.shares)
    missing = sorted(set(range(K)) - set(data.labels.tolist()))
    if missing:
        warnings.warn(
            f"impact has no drawn sample of class {', '.join(map(str, missing))}: the effect of such steps is "
            f"NaN, and α and β are those of the other classes. Draw samples of every class.",
            UserWarning,
            stacklevel=2,
        )
    u = data.drivers(H)
    change = data.array("change", "draw", "class", "feature")
    square = data.array("square", "draw", "class")
    relative = data.array("relative", "draw", "class") if "relative" in impact else None
    G, _, T = change.shape[:3]
    frames: dict[str, list[np.ndarray]] = {}
    quantiles: dict[str, list[np.ndarray]] = {}
    for g, t in np.ndindex(G, T):
        at = (g, slice(None), t)
        parts = change[at] / data.steps[g], square[at] / data.steps[g] ** 2, u[at]
        frame, own = _at_one_time(clusters, data.shares, *parts, estimator)
        if relative is not None:
            frame |= _relative(clusters, data.shares, relative[at])
        for name, values in frame.items():
            frames.setdefault(name, []).append(values)
            quantiles.setdefault(name, []).append(own.get(name, clusters.quantile()))

    result = xr.Dataset(coords=data.coords())
    result = result.assign_coords({"class": np.arange(K), "class_": np.arange(K)})

    def put(name: str, values: np.ndarray, quantile: np.ndarray) -> None:
        """Estimates (group, time, 1 + unit, ...) with errors and limits."""
        whole, error = values[:, :, 0], clusters.error(np.moveaxis(values, 2, 0))
        quantile = quantile.reshape(*quantile.shape, *[1] * (error.ndim - quantile.ndim))
        reach = quantile * error
        dims = (*data.groups, *data.over, *(("class", "class_") if name in MATRICES else ()))
        parts = {"": whole, "_se": error, "_lower": whole - reach, "_upper": whole + reach}
        for end, part in parts.items():
            result[name + end] = (dims, data.shaped(part))

    several = bool(data.over) and T > 1
    times = impact["time"].values.astype(np.float64) if several else np.zeros(1)
    for name, each in frames.items():
        values = np.array(each).reshape(G, T, *each[0].shape)
        own_quantiles = np.array(quantiles[name])
        put(name, values, own_quantiles.reshape(G, T, *own_quantiles.shape[1:]))
        if several and name in INTEGRALS:
            steps = (values[:, 1:] + values[:, :-1]) / 2 * np.diff(times)[:, None]
            sums = np.concatenate([0 * values[:, :1], np.cumsum(steps, axis=1)], axis=1)
            put(INTEGRALS[name], sums, clusters.quantile())
    if several:
        result = result.assign_coords(
            interval=(times[1:] + times[:-1]) / 2,
            start=("interval", times[:-1]),
            end=("interval", times[1:]),
        )
        for name in (*INTEGRALS, "E"):
            mean = result[name].variable.rolling_window("time", 2, "pair").isel(time=slice(1, None))
            dims = ["interval" if d == "time" else d for d in result[name].dims]
            result[f"{name}_raw"] = (dims, mean.mean("pair", skipna=False).values)
    return result.assign_attrs(
        transform=H.kind,
        kernel=kernel,
        method="regression of one-step changes on the drawn sample's features",
        estimator=estimator,
        errors=clusters.kind,
        confidence=confidence,
        replicates=int(impact["change"].sizes.get("replicate", 1)),
        draws=len(data.labels),
    )


def _at_one_time(
    clusters: Clusters,
    shares: np.ndarray,
    change: np.ndarray,
    square: np.ndarray,
    u: np.ndarray,
    estimator: str,
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """E, α, β and the share that they explain at one time, whole and without each unit (1 + unit, ...).

    From mean changes (replicate, draw, moved class, feature) and mean squared changes (replicate, draw, moved class),
    per learning rate, and u_J (replicate, draw, feature). With them come quantiles of those in which units carry unequal
    weights.
    """
    count = clusters.sums(np.ones(u.shape[:2]))  # (1 + unit, drawn class)

    def mean(values: np.ndarray) -> np.ndarray:
        """Means by class; NaN for a class that is not drawn."""
        number = np.where(count > 0, count, np.nan)
        return clusters.sums(values) / number.reshape(*count.shape, *[1] * (values.ndim - 2))

    length = np.einsum("rdp,rdp->rd", u, u)
    if estimator == "draws":
        along, size, moved = mean(np.einsum("rdkp,rdp->rdk", change, u)), mean(length), mean(square)
    else:
        moving, driver = mean(change), mean(u)
        along = np.einsum("clkp,clp->clk", moving, driver)
        size = np.einsum("clp,clp->cl", driver, driver)
        moved = np.einsum("clkp,clkp->clk", moving, moving)
    # From here on (1 + unit, moved class, drawn class).
    along, moved = along.swapaxes(1, 2), moved.swapaxes(1, 2)
    size = np.broadcast_to(size[:, None], along.shape)
    same = np.eye(len(shares), dtype=bool)
    total = _totals(count, shares)
    with np.errstate(all="ignore"):
        alpha, beta = (total(along, where) / total(size, where) for where in (same, ~same))
        fitted, every = along**2 / size, np.ones_like(same)
        two = alpha**2 * total(size, same) + beta**2 * total(size, ~same)
        values = {
            "E": along / size,
            "alpha": alpha,
            "beta": beta,
            "alpha_minus_beta": alpha - beta,
            "explained": fitted / moved,
            "explained_matrix": total(fitted, every) / total(moved, every),
            "explained_two_level": two / total(moved, every),
        }
    if estimator == "averages":
        return values, {}
    sums = clusters.sums(length)  # units count by the ‖u_J‖² that they carry
    carried = sums[:1] - sums[1:]  # (unit, drawn class)
    quantiles = {"E": np.broadcast_to(clusters.quantile(carried), same.shape)}
    each = carried / np.where(count[0] > 0, count[0], np.nan)
    for name, where in (("alpha", same), ("beta", ~same)):
        weight = (np.outer(shares, shares) * where).sum(0)
        quantiles[name] = clusters.quantile(np.nan_to_num(each * weight).sum(1))
    quantiles["alpha_minus_beta"] = np.maximum(quantiles["alpha"], quantiles["beta"])
    return values, quantiles


def _totals(count: np.ndarray, shares: np.ndarray) -> Any:
    """Σ w_k w_l over some entries of matrices (1 + unit, class, class), without those of classes never drawn."""
    weights, drawn = np.outer(shares, shares), count[0] > 0

    def total(values: np.ndarray, where: np.ndarray) -> np.ndarray:
        use = where & drawn
        return (values[:, use] * weights[use]).sum(1)

    return total


def _relative(
    clusters: Clusters, shares: np.ndarray, relative: np.ndarray
) -> dict[str, np.ndarray]:
    """Means of relative changes (replicate, draw, moved class), NaN where the drawn sample did not move."""
    known = np.isfinite(relative)
    number = clusters.sums(known.astype(np.float64))
    sums = clusters.sums(np.where(known, relative, 0.0))
    mean = (sums / np.where(number > 0, number, np.nan)).swapaxes(1, 2)
    total = _totals(clusters.sums(np.ones(relative.shape[:2])), shares)
    same, ones = np.eye(len(shares), dtype=bool), np.ones_like(mean)
    with np.errstate(all="ignore"):
        within, between = (total(mean, where) / total(ones, where) for where in (same, ~same))
    return {"relative": mean, "relative_within": within, "relative_between": between}
