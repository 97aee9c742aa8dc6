"""Elasticity by distance: `impact_by_distance`, and the feature kernel nearest to it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr
from scipy.optimize import least_squares
from scipy.stats import t as student

from lesde.analysis.impact.clusters import Clusters, drivers, read_impact
from lesde.analysis.impact.moments import DISTANCES
from lesde.checks import check_fraction, check_real, shown
from lesde.model.formula import VARIABLES, compiled
from lesde.model.kernels import FeatureKernel
from lesde.model.transforms import make_transform
from lesde.paths import check_dataset

MOST_STEPS = 200
APART = 1e6
"""Condition of the slopes from which on parameters are not identified: that of numerical derivatives."""
NEARBY = (0.1, 10.0, 0.01, 100.0)
"""Factors of the starts of a search beside the one asked for."""
FELT, FAR = 1e-5, 1e3
"""Least relative effect on the strengths, required of a parameter beyond this many times its start."""


def impact_by_distance(
    impact: xr.Dataset,
    transform: Any = "identity",
    confidence: float = 0.95,
    *,
    errors: str = "auto",
) -> xr.Dataset:
    """The strength κ with which a step at a sample moves another, by the distance between the two.

    In each bin of distance, for samples of one class and of different ones apart, the coefficient Σ ⟨ΔX_i, u_J⟩ /
    (h Σ ‖u_J‖²) of the regression of changes on u_J = H_L X_J: where the changes come from a `lesde.FeatureKernel`,
    the mean of its strength over the pairs of the bin, each with weight ‖u_J‖².

    Parameters
    ----------
    impact : xarray.Dataset
        As for `lesde.fit_impact`, measured with ``by="r2"`` or another distance.
    transform, confidence, errors
        As for `lesde.fit_impact`.

    Returns
    -------
    xarray.Dataset
        Over ``time`` where ``impact`` has it, ``pair`` ("same" class or "other") and ``bin``: ``strength`` with ``_se``,
        ``_lower``, ``_upper``, NaN in a bin without pairs; ``distance``, the mean over the pairs of the bin, with the same
        weights; ``count``, their number; ``weight``, Σ ‖u_J‖² over them. ``strength_covariance (pair, bin, pair_, bin_)``:
        the bins share drawn samples, so their errors are not independent. ``bin_edges (edge)``.

    Examples
    --------
    >>> impact = lesde.measure_impact(network, "cross_entropy", drawn, probe, 0.01, by="r2")  # doctest: +SKIP
    >>> strength = lesde.impact_by_distance(impact)  # doctest: +SKIP
    >>> ax = lesde.plot.impact_by_distance(strength)  # doctest: +SKIP
    """
    confidence = check_fraction("confidence", confidence)
    data = read_impact(impact)
    if "bin_change" not in data:
        raise ValueError(
            "impact was not measured by distance; measure it with by='r2' or by='cosine' (ensembles also by "
            "'input_r2' or 'input_cosine')."
        )
    H = make_transform(transform, data.sizes["class"], data.sizes["feature"])
    clusters = Clusters(data, errors, confidence)
    u = drivers(data, H)
    length = xr.dot(u, u, dim="feature")
    weight = clusters.totals(data["bin_count"] * length)
    changes = clusters.totals(xr.dot(data["bin_change"], u, dim="feature")) / data["step"]
    strength, whole = changes / weight.where(weight > 0), weight.isel(unit=0)
    distance = (data["bin_distance"] * length).sum(("replicate", "draw")) / whole.where(whole > 0)
    away, error = clusters.deviations(strength), clusters.error(strength)
    reach = clusters.quantile((whole - weight).isel(unit=slice(1, None))) * error
    strength = strength.isel(unit=0)
    parts = {
        "strength": strength.assign_attrs(long_name="strength of elasticity"),
        "strength_se": error,
        "strength_lower": strength - reach,
        "strength_upper": strength + reach,
        "distance": distance.assign_attrs(long_name=DISTANCES[impact.attrs["by"]]),
        "count": data["bin_count"].sum(("replicate", "draw")),
        "weight": whole,
        "strength_covariance": xr.dot(away, away.rename(pair="pair_", bin="bin_"), dim="unit"),
        "bin_edges": data["bin_edges"],
    }
    ends = ("pair", "bin", "pair_", "bin_", "edge")
    result = xr.Dataset(parts).transpose(..., *ends, missing_dims="ignore")
    return result.assign_attrs(
        by=impact.attrs["by"],
        transform=H.kind,
        errors=clusters.kind,
        freedom=clusters.freedom,
        confidence=confidence,
    )


def fit_feature_kernel(
    strength: xr.Dataset, formula: Any, start: Mapping[str, float], confidence: float = 0.95
) -> xr.Dataset:
    """Fit the free parameters of a `lesde.FeatureKernel` to strengths by distance.

    Least squares over the bins with the weights Σ ‖u_J‖² of the regression on pairs, the formula taken at the mean distance
    of each bin: right to first order in the width of a bin, so use many. Errors follow from the covariance of the bins.

    Parameters
    ----------
    strength : xarray.Dataset
        As `lesde.impact_by_distance` returns, by "r2" or "cosine" of features, at one time: select it with
        ``strength.isel(time=...)``.
    formula : str or sympy.Expr
        In ``r2`` (or ``c``, where ``strength`` is by cosine), ``s``, and the parameters.
    start : mapping of str to float
        Initial values of the parameters. The search also starts with each of them ten and a hundred times larger and
        smaller, and the best fit is taken: for formulas that are not linear in them, least squares has several minima.
    confidence : float, default 0.95

    Returns
    -------
    xarray.Dataset
        ``value (parameter)`` with ``_se``, ``_lower``, ``_upper``; ``chi_square``, Σ (residual/se)² over the bins, which is near
        ``freedom``, bins less parameters, where the formula fits and bins are nearly independent. Attribute ``formula``.

    Raises
    ------
    ValueError
        Where the strengths do not determine the parameters, or the search does not end.

    Examples
    --------
    >>> fit = lesde.fit_feature_kernel(strength, "a*exp(-r2/b)", {"a": 1, "b": 2})  # doctest: +SKIP
    >>> kernel = lesde.FeatureKernel(fit.attrs["formula"],
    ...     parameters=dict(zip(fit.parameter.values, fit.value.values)))  # doctest: +SKIP
    """
    confidence = check_fraction("confidence", confidence)
    columns = ("strength", "strength_se", "distance", "weight")
    check_dataset("strength", strength, columns, "lesde.impact_by_distance")
    extra = [str(d) for d in strength["strength"].dims if d not in ("pair", "bin")]
    if extra:
        raise ValueError(
            f"strength must be over pair and bin alone; select {', '.join(extra)} with strength.isel(...)."
        )
    names = list(start)
    begin = np.array([check_real(f"start[{name!r}]", start[name]) for name in names])
    curve, text = _curve(strength, formula, names)

    ordered = strength.transpose("pair", "bin", ...)
    y, error, x, weight = (ordered[name].values.ravel() for name in columns)
    s = np.repeat([1.0 if pair == "same" else 0.0 for pair in strength["pair"].values], len(x) // 2)
    known = np.isfinite(y) & np.isfinite(error) & (error > 0)
    if known.sum() < max(len(names), 1):
        raise ValueError(
            f"strength must have at least as many bins with errors as there are parameters, "
            f"{len(names)}; it has {int(known.sum())}."
        )
    y, error, x, s = y[known], error[known], x[known], s[known]
    # The error of a bin of few pairs is not known well enough to weight the bin by it.
    root = np.sqrt(weight[known] / weight[known].mean())

    def residual(values: np.ndarray) -> np.ndarray:
        return (curve(x, s, values) - y) * root

    best = _search(residual, begin)
    if best is None:
        raise ValueError(
            f"the search for {', '.join(names)} from start={shown(dict(start))} did not end in {MOST_STEPS} steps at finite "
            f"strengths; give other values in start, or a formula with fewer parameters."
        )
    size = np.linalg.norm(best.jac, axis=0)
    felt = size * np.abs(best.x) > FELT * np.linalg.norm(y * root)
    away = (np.abs(best.x) > FAR * np.abs(begin)) & (begin != 0)
    if (size == 0).any() or (away & ~felt).any() or np.linalg.cond(best.jac / size) > APART:
        where = ", ".join(
            f"{name} = {value:.3g}" for name, value in zip(names, best.x, strict=True)
        )
        raise ValueError(
            f"the strengths do not determine the parameters: the search went to {where}, where they hardly depend on one of "
            f"them, or on two in the same way. Give other values in start, or a formula with fewer parameters."
        )
    # In units of each column: parameters may be of very different sizes.
    gain = np.linalg.pinv(best.jac / size) / size[:, None] * root
    bins = ordered["strength_covariance"].transpose("pair", "bin", "pair_", "bin_").values
    bins = bins.reshape(len(known), len(known))[np.ix_(known, known)]
    spread = np.sqrt(np.diag(gain @ bins @ gain.T))
    units = float(strength.attrs.get("freedom", np.inf))
    reach = student.ppf((1 + confidence) / 2, max(units, 1.0)) * spread
    return xr.Dataset(
        {
            "value": ("parameter", best.x),
            "value_se": ("parameter", spread),
            "value_lower": ("parameter", best.x - reach),
            "value_upper": ("parameter", best.x + reach),
            "chi_square": float((((curve(x, s, best.x) - y) / error) ** 2).sum()),
            "freedom": len(y) - len(names),
        },
        {"parameter": names},
        {"formula": text, "confidence": confidence},
    )


def _search(residual: Any, begin: np.ndarray) -> Any:
    """The best of the least-squares fits from several starts that converge; None where none does."""
    others = [
        np.where(i == np.arange(len(begin)), f, 1.0) for i in range(len(begin)) for f in NEARBY
    ]
    best = None
    for start in np.unique([begin, *(begin * factors for factors in others)], axis=0):
        if np.isfinite(residual(start)).all():
            try:
                found = least_squares(residual, start, x_scale="jac", max_nfev=MOST_STEPS)
            except (ValueError, np.linalg.LinAlgError):
                continue  # the search met numbers that are not finite
            if found.success and (best is None or found.cost < best.cost * (1 - 1e-9)):
                best = found
    return best


def _curve(strength: xr.Dataset, formula: Any, names: list[str]) -> tuple[Any, str]:
    """The strength as a function of (distance, s, parameters), and the formula as text."""
    by = strength.attrs.get("by")
    if by not in ("r2", "cosine"):
        raise ValueError(
            f"strength must be by 'r2' or 'cosine' of features, on which a FeatureKernel depends; got "
            f"by={by!r}."
        )
    distance = "r2" if by == "r2" else "c"
    allowed = (
        f"formula must be in {distance}, s and all of the parameters in start, {', '.join(names)}"
    )
    try:
        expression = FeatureKernel(formula, {name: None for name in names}).formula.expression
    except ValueError as error:
        raise ValueError(f"{allowed}; got {shown(formula)}: {str(error).split('. ')[0]}.") from None
    symbols = {str(x): x for x in expression.free_symbols}
    if set(names) - set(symbols) or set(symbols) - {distance, "s", *names}:
        raise ValueError(f"{allowed}; got {', '.join(sorted(symbols))}.")
    arguments = [VARIABLES[distance], VARIABLES["s"], *(symbols[name] for name in names)]
    function = compiled(expression, arguments)

    def curve(x: np.ndarray, s: np.ndarray, values: np.ndarray) -> np.ndarray:
        with np.errstate(all="ignore"):
            return np.broadcast_to(np.asarray(function(x, s, *values), np.float64), x.shape)

    return curve, str(expression)
