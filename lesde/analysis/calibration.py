"""Maximum likelihood for the free names of a model, through its exact law."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from scipy.special import ndtri

from lesde.analysis.class_means import power_of_two, read_class_means
from lesde.analysis.likelihood_search import (
    CLOSE,
    inverse,
    maximise,
    newton_distance,
    refuse_unidentified,
)
from lesde.checks import (
    check_choice,
    check_fraction,
    check_real,
    shown,
)
from lesde.feature_kernel import no_linear_drift

if TYPE_CHECKING:
    from lesde.analysis.path_objective import PathObjective
    from lesde.model import LESDE

__all__ = ["calibrate"]

NOISE = ("estimate", "model")
# Rounding of the data, relative to the noise of a transition, from which on it is told.
COARSE = 0.1


def calibrate(
    paths: xr.Dataset,
    model: LESDE,
    start: Mapping[str, float],
    *,
    noise: str = "estimate",
    confidence: float = 0.95,
) -> xr.Dataset:
    """Maximum-likelihood estimates of a model's free names, from paths of the class means.

    Between two saved times the class means of a model are Gaussian given those before: X̄(t₁) ~
    N(Φ(θ) X̄(t₀), s²C(θ)). The likelihood is the product over intervals and replicates, given the
    first state, exact at any spacing of the times. It is maximised by Newton's method in a trust
    region with the exact Hessian. Standard errors are from the inverse of the observed information.

    Parameters
    ----------
    paths : xarray.Dataset
        Features, or statistics as of ``lesde.simulate(..., keep="statistics")``, of the size of the
        model; one set of replicates.
    model : LESDE
        Its free names are estimated: those that formulas of kernel or noise leave open, as in
        ``lesde.TwoLevel("a/(1+t)", "b", parameters={"a": None, "b": None})``. Others are held with
        ``model.substitute(b=-0.5)``.
    start : mapping of str to number
        Where the search starts, for every free name. The likelihood may have several maxima; the
        one found is near the start.
    noise : {"estimate", "model"}, default "estimate"
        Whether the size of the noise is estimated too, as a factor s of the model's σ, common to
        all classes, or s = 1. Estimating it costs little, and a model with a wrong σ has wrong
        standard errors.
    confidence : float, default 0.95
        Of the intervals, which are estimate ± z standard errors.

    Returns
    -------
    xarray.Dataset
        ``estimate``, ``standard_error``, ``lower``, ``upper``, ``start`` (parameter); ``covariance``
        (parameter, parameter_); ``noise_scale``, ``noise_scale_error``, the factor s and its
        standard error (1 and 0 with ``noise="model"``); ``log_likelihood``, ``aic``; ``converged``,
        whether a Newton step at the result is below a thousandth of a standard error;
        ``iterations``. Put back into a model with ``model.substitute(**fit.estimate.to_series())``.

    Raises
    ------
    TypeError, ValueError
        For paths of another size than the model, a free name without a start, a start at which the
        model has no law, or parameters that the paths do not identify, by name.

    Warns
    -----
    UserWarning
        Where the search did not converge; where the rounding of the paths is not small against
        the noise.

    Notes
    -----
    The law is that of the LE-SDE. Paths of the engine "sgd", or of a network, have the sampling noise of
    SGD on top, so that standard errors hold for small learning rates only.

    Examples
    --------
    >>> import lesde
    >>> kernel = lesde.TwoLevel("a/(1+t)", "b", parameters={"a": None, "b": None})
    >>> model = lesde.LESDE(kernel, n_classes=3, n_features=2, n_per_class=20)
    >>> truth = model.substitute(a=2, b=-0.5)
    >>> paths = lesde.simulate(truth, [0, 1, 2, 3], replicates=64, dtype="float64")
    >>> fit = lesde.calibrate(paths, model, start={"a": 1, "b": 0})
    >>> bool(fit.converged)
    True
    """
    from lesde.model import LESDE

    if not isinstance(model, LESDE):
        raise TypeError(f"model must be a lesde.LESDE; got {shown(model)}.")
    check_choice("noise", noise, NOISE)
    level = check_fraction("confidence", confidence)
    if model.kernel.depends_on_features:
        raise no_linear_drift("calibrate")
    names, first = _start(model, start)
    times, means, resolution = _read(paths, model)
    unknowns = len(names) + (noise == "estimate")
    if means[:, 1:].size <= unknowns:
        raise ValueError(
            f"paths hold {means[:, 1:].size} numbers after the first time, too few to estimate {unknowns} "
            f"with errors; give more replicates or times."
        )

    from lesde.analysis.path_objective import PathObjective

    # With its size estimated, noise goes by the unit of the features; in one of their own size no square leaves the
    # range of floats.
    unit = float(power_of_two(np.abs(means).max())) if noise == "estimate" else 1.0
    means = means / unit
    objective = PathObjective(model, names, times, means, noise == "estimate")
    theta, at, iterations = maximise(objective, first)
    log_scale = objective.best_log_scale(theta)
    information = objective.information(theta, log_scale)
    labels = (*names, "noise_scale")[: len(information)]
    refuse_unidentified(information, np.append(theta, 1.0)[: len(information)], labels)
    covariance = inverse(information)
    converged = newton_distance(at) < CLOSE and bool(np.isfinite(covariance).all())
    if not converged:
        warnings.warn(
            f"calibrate did not reach a maximum of the likelihood in {iterations} steps: "
            f"{', '.join(f'{n} = {v:.4g}' for n, v in zip(names, theta, strict=True))}. The result is "
            f"not to be trusted; start elsewhere, or hold some names with model.substitute.",
            UserWarning,
            stacklevel=2,
        )
    _warn_of_rounding(objective, theta, log_scale, resolution)
    log_unit = float(np.log(unit))
    log_likelihood = -at[0] - means[:, 1:].size * log_unit
    log_scale += log_unit
    return _result(model, names, first, theta, covariance, log_scale, objective, level, {
        "log_likelihood": log_likelihood,
        "converged": bool(converged), "iterations": iterations, "noise": noise,
    })  # fmt: skip


def _start(model: LESDE, start: Any) -> tuple[tuple[str, ...], np.ndarray]:
    names = model.free_parameters
    if not isinstance(start, Mapping):
        raise TypeError(
            f"start must be a mapping of names to numbers, such as {{'a': 1.0}}; got {shown(start)}."
        )
    if not names:
        raise ValueError(
            "model has no free names to calibrate; leave some open in a formula of the kernel, as in "
            'lesde.TwoLevel("a/(1+t)", "b", parameters={"a": None, "b": None}).'
        )
    missing = [name for name in names if name not in start]
    if missing:
        raise ValueError(
            f"start must have a value for every free name of the model ({', '.join(names)}); "
            f"{', '.join(missing)} missing. Give one, or hold it with model.substitute({missing[0]}=...)."
        )
    unknown = [str(name) for name in start if name not in names]
    if unknown:
        raise ValueError(
            f"start has {', '.join(unknown)}; the free names of the model are {', '.join(names)}."
        )
    values = [check_real(f"start[{name!r}]", start[name]) for name in names]
    return names, np.array(values)


def _read(paths: Any, model: LESDE) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Times, class means (replicate, time, class, feature), and the relative rounding of a class mean."""
    read = read_class_means(paths, with_steps=False)
    many = [str(dim) for dim, size in read.groups.items() if size > 1]
    if many:
        raise ValueError(
            f"paths must hold one set of replicates; it has the dimension(s) {', '.join(many)}. Select "
            f"one with paths.isel({many[0]}=0)."
        )
    values = read.values[0]
    wanted = (model.n_classes, model.n_features)
    if values.shape[2:] != wanted or not np.array_equal(read.counts, model.counts):
        raise ValueError(
            f"paths and model must be of one size: the model has {wanted[0]} classes of "
            f"{model.counts.tolist()} samples in {wanted[1]} dimensions; paths have {values.shape[2]} of "
            f"{read.counts.tolist()} in {values.shape[3]}."
        )
    # The rounding of samples averages out in their mean; that of a mean itself does not.
    averaged = "features" in paths
    kind = paths["features" if averaged else "mean"].dtype
    rounding = np.finfo(kind).eps if np.issubdtype(kind, np.floating) else 0.0
    return read.times, values, rounding / np.sqrt(12.0 * (read.counts if averaged else 1))


def _warn_of_rounding(
    objective: PathObjective, theta: np.ndarray, log_scale: float, resolution: np.ndarray
) -> None:
    import torch

    with torch.no_grad():
        steps = objective.transitions(torch.from_numpy(theta))
        shape = steps.noise.diagonal(dim1=-2, dim2=-1)
        if steps.feature is not None:
            shape = shape * steps.feature.diagonal().min()
        smallest = float(shape.min().sqrt()) * np.exp(log_scale)
        size = objective.means.abs().amax((0, 1, 3)).numpy()
    rounding = float((resolution * size).max())
    if rounding > COARSE * smallest:
        warnings.warn(
            f"the class means are rounded to about {rounding:.1g}, while noise moves them by no more "
            f"than {smallest:.1g} in some direction between saved times, so estimates and errors are "
            f"off; use paths of dtype float64, or saved times further apart.",
            UserWarning,
            stacklevel=3,
        )


def _result(
    model: LESDE,
    names: tuple[str, ...],
    first: np.ndarray,
    theta: np.ndarray,
    covariance: np.ndarray,
    log_scale: float,
    objective: PathObjective,
    confidence: float,
    about: dict[str, Any],
) -> xr.Dataset:
    n = len(names)
    error = np.sqrt(np.diag(covariance))
    reach = ndtri((1 + confidence) / 2) * error[:n]
    scale = float(np.exp(log_scale))
    log_likelihood = about["log_likelihood"]
    along = "parameter"
    R, T = objective.means.shape[:2]
    return xr.Dataset(
        {
            "estimate": (along, theta),
            "standard_error": (along, error[:n]),
            "lower": (along, theta - reach),
            "upper": (along, theta + reach),
            "start": (along, first),
            "covariance": ((along, f"{along}_"), covariance[:n, :n]),
            "noise_scale": scale,
            "noise_scale_error": scale * error[n] if len(error) > n else 0.0,
            "log_likelihood": log_likelihood,
            "aic": 2.0 * len(error) - 2.0 * log_likelihood,
            "converged": about["converged"],
            "iterations": about["iterations"],
        },
        {along: list(names), f"{along}_": list(names)},
        {
            "model": json.dumps(model.describe()),
            "noise": about["noise"],
            "confidence": confidence,
            "transitions": R * (T - 1),
        },
    )
