"""Elasticity measured directly: `fit_impact`, from the effect of single SGD steps on the features."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import xarray as xr

from lesde.analysis.impact.clusters import Clusters, drivers, read_impact
from lesde.checks import check_choice, check_fraction
from lesde.model.transforms import make_transform

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
    K = data.sizes["class"]
    H = make_transform(transform, K, data.sizes["feature"])
    clusters = Clusters(data, errors, confidence)
    missing = sorted(set(range(K)) - set(data["drawn_label"].values.tolist()))
    if missing:
        warnings.warn(
            f"impact has no drawn sample of class {', '.join(map(str, missing))}: the effect of such steps is "
            f"NaN, and α and β are those of the other classes. Draw samples of every class.",
            UserWarning,
            stacklevel=2,
        )
    values, quantiles = _estimates(data, clusters, drivers(data, H), estimator)
    several = "time" in data["change"].dims and data.sizes["time"] > 1
    if several:
        for name, integral in INTEGRALS.items():
            values[integral] = values[name].cumulative_integrate("time")
    parts = {}
    for name, value in values.items():
        error = clusters.error(value)
        reach = quantiles.get(name, clusters.quantile()) * error
        whole = parts[name] = value.isel(unit=0)
        parts |= {
            f"{name}_se": error,
            f"{name}_lower": whole - reach,
            f"{name}_upper": whole + reach,
        }
    result = xr.Dataset(parts).assign_coords({"class": np.arange(K), "class_": np.arange(K)})
    if several:
        times = data["time"].values.astype(np.float64)
        result = result.assign_coords(
            interval=(times[1:] + times[:-1]) / 2,
            start=("interval", times[:-1]),
            end=("interval", times[1:]),
        )
        for name in (*INTEGRALS, "E"):
            mean = result[name].rolling(time=2).mean().isel(time=slice(1, None))
            result[f"{name}_raw"] = mean.drop_vars("time").rename(time="interval")
    lead = [
        d for d in data["change"].dims if d not in ("replicate", "time", "draw", "class", "feature")
    ]
    result = result.transpose(*lead, "time", "interval", "class", "class_", missing_dims="ignore")
    return result.assign_coords({n: data[n] for n in ("count", "share", "step")}).assign_attrs(
        transform=H.kind,
        kernel=kernel,
        method="regression of one-step changes on the drawn sample's features",
        estimator=estimator,
        errors=clusters.kind,
        confidence=confidence,
        replicates=data.sizes["replicate"],
        draws=data.sizes["draw"],
    )


Estimates = dict[str, xr.DataArray]


def _estimates(
    data: xr.Dataset, clusters: Clusters, u: xr.DataArray, estimator: str
) -> tuple[Estimates, Estimates]:
    """E, α, β, the share that they explain, and relative changes (unit, ..., moved class, drawn class).

    With them come quantiles of those in which units carry unequal weights.
    """
    change, square = data["change"] / data["step"], data["square"] / data["step"] ** 2
    # By drawn class; NaN for one that is not drawn.
    count = clusters.sums(xr.ones_like(data["drawn"].isel(feature=0)).astype(float))
    drawn = count.isel(unit=0) > 0
    count = count.where(count > 0)
    length = xr.dot(u, u, dim="feature")
    if estimator == "draws":
        along = clusters.sums(xr.dot(change, u, dim="feature")) / count
        size, moved = clusters.sums(length) / count, clusters.sums(square) / count
    else:
        moving, driver = clusters.sums(change) / count, clusters.sums(u) / count
        along, size, moved = (
            xr.dot(one, other, dim="feature")
            for one, other in ((moving, driver), (driver, driver), (moving, moving))
        )
    share = data["share"].drop_vars("class")
    weights = share * share.rename({"class": "class_"})
    same = xr.DataArray(np.eye(len(share), dtype=bool), dims=("class", "class_"))
    every = xr.ones_like(same)

    def total(values: xr.DataArray, where: xr.DataArray) -> xr.DataArray:
        """Σ w_k w_l over some pairs of classes, without those never drawn."""
        return (values * weights).where(where & drawn, 0.0).sum(("class", "class_"), skipna=False)

    alpha, beta = (total(along, where) / total(size, where) for where in (same, ~same))
    fitted = along**2 / size
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
    if "relative" in data:  # NaN where the drawn sample did not move
        known = data["relative"].notnull()
        number = clusters.sums(known.astype(float))
        relative = clusters.sums(data["relative"].fillna(0.0)) / number.where(number > 0)
        values["relative"] = relative
        for name, where in (("relative_within", same), ("relative_between", ~same)):
            values[name] = total(relative, where) / total(xr.ones_like(relative), where)
    if estimator == "averages":
        return values, {}
    sums = clusters.sums(length)  # units count by the ‖u_J‖² that they carry
    carried = (sums.isel(unit=0) - sums).isel(unit=slice(1, None))
    quantiles = {"E": clusters.quantile(carried)}
    each = carried / count.isel(unit=0)
    for name, where in (("alpha", same), ("beta", ~same)):
        weight = (weights * where).sum("class")
        quantiles[name] = clusters.quantile((each * weight).sum("class_"))
    one, other = quantiles["alpha"], quantiles["beta"]
    quantiles["alpha_minus_beta"] = one.where(one > other, other)
    return values, quantiles
