"""Maximum likelihood for the free names of a model, through its exact law."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import xarray as xr
from scipy.optimize import minimize
from scipy.special import ndtri

from lesde.analysis.class_means import read_class_means
from lesde.checks import check_choice, check_fraction, check_instance, check_real, shown
from lesde.derivation import derive
from lesde.errors import Diverged
from lesde.laws.law import PathLikelihood, path_likelihood
from lesde.laws.system import MeanSystem
from lesde.laws.transitions import mean_transitions
from lesde.model.kernels import no_linear_drift
from lesde.model.lesde import LESDE

ITERATIONS = 200
CLOSE = 1e-3
"""Part of a standard error below which a Newton step has to be at an optimum."""
COARSE = 0.1
"""Rounding of the data, relative to the noise between two times, from which on a warning says so."""
FLAT = 1e-9
"""Eigenvalues of the information, scaled to a unit diagonal, below which a direction is not identified."""


def calibrate(
    paths: xr.Dataset,
    model: LESDE,
    start: Mapping[str, float],
    *,
    noise: str = "estimate",
    confidence: float = 0.95,
) -> xr.Dataset:
    """Maximum-likelihood estimates of a model's free names, from paths of the class means.

    Between two saved times the class means of a model are Gaussian given those before: X̄(t₁) ~ N(Φ(θ) X̄(t₀), s²C(θ)).
    The likelihood is the product over intervals and replicates, given the first state, exact at any spacing of the
    times. It is maximised by Newton's method in a trust region with the exact Hessian. Standard errors are from the
    inverse of the observed information.

    Parameters
    ----------
    paths : xarray.Dataset
        Features, or statistics from ``lesde.simulate(..., keep="statistics")``, of the size of the model; one set of
        replicates.
    model : LESDE
        Its free names are estimated: those that formulas of kernel or noise leave open, as in
        ``lesde.TwoLevel("a/(1+t)", "b", parameters={"a": None, "b": None})``. Others are held with
        ``model.substitute(b=-0.5)``.
    start : mapping of str to number
        Initial value of the search for every free name. The likelihood may have several maxima; the
        one found is near the start.
    noise : {"estimate", "model"}, default "estimate"
        Estimate the size of the noise too, as a factor s of the model's σ, common to all classes, or take
        s = 1. Estimating it costs little, and a model with a wrong σ has wrong standard errors.
    confidence : float, default 0.95
        Of the intervals, which are estimate ± z standard errors.

    Returns
    -------
    xarray.Dataset
        ``estimate``, ``standard_error``, ``lower``, ``upper``, ``start`` (parameter); ``covariance`` (parameter,
        parameter_); ``noise_scale``, ``noise_scale_error``, the factor s and its standard error (1 and 0 with
        ``noise="model"``); ``log_likelihood``, ``aic``; ``converged``, whether a Newton step at the result is below a
        thousandth of a standard error; ``iterations``. Put back into a model with
        ``model.substitute(**fit.estimate.to_series())``.

    Raises
    ------
    ValueError
        For a start at which the model has no law, or parameters that the paths do not determine, by name.

    Warns
    -----
    UserWarning
        Where the search did not converge.

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
    check_instance("model", model, LESDE, "a lesde.LESDE")
    check_choice("noise", noise, ("estimate", "model"))
    level = check_fraction("confidence", confidence)
    if model.kernel.depends_on_features:
        raise no_linear_drift("calibrate")
    first, n = _start(model, start), len(model.free_parameters)
    times, means = _read(paths, model)
    labels = [*model.free_parameters, *(["noise_scale"] if noise == "estimate" else [])]
    if means[:, 1:].size <= len(labels):
        raise ValueError(
            f"paths hold {means[:, 1:].size} numbers after the first time, too few to estimate {len(labels)} "
            f"with errors; give more replicates or times."
        )
    coefficients, data = derive(model).coefficients(), torch.from_numpy(means.copy())

    def parts(names: torch.Tensor) -> PathLikelihood:
        """The likelihood; raises ValueError or Diverged where the model has no law."""
        values = dict(zip(labels[:n], names.unbind(), strict=True))
        return path_likelihood(mean_transitions(MeanSystem(coefficients, values), times), data)

    def expand(point: np.ndarray) -> Expansion:
        """−log L, its gradient and Hessian in the names, and log s where that is estimated."""
        x = torch.from_numpy(point).requires_grad_()
        value = -parts(x[:n]).value(x[n] if len(labels) > n else 0.0)
        (gradient,) = torch.autograd.grad(value, x, create_graph=True)
        hessian = np.zeros((len(x), len(x)))
        if gradient.requires_grad:
            each = torch.eye(len(x), dtype=torch.float64)
            hessian = torch.autograd.grad(gradient, x, each, is_grads_batched=True)[0].numpy()
        return float(value.detach()), gradient.detach().numpy(), (hessian + hessian.T) / 2

    point = first
    if noise == "estimate":
        with torch.no_grad():
            found = parts(torch.from_numpy(first))
        with np.errstate(divide="ignore"):
            point = np.append(first, 0.5 * np.log(float(found.quadratic) / found.size))
    point, at, iterations = maximise(expand, point)
    refuse_unidentified(at[2], labels)
    covariance = inverse(at[2])
    converged = newton_distance(at) < CLOSE
    theta = point[:n]
    with torch.no_grad():
        values = dict(zip(labels[:n], torch.from_numpy(theta), strict=True))
        variances = mean_transitions(MeanSystem(coefficients, values), times).variances()
    smallest = float(variances.min().sqrt()) * (np.exp(point[n]) if len(point) > n else 1.0)
    stored = np.finfo(paths["mean" if "mean" in paths else "features"].dtype).eps
    rounding = stored * np.abs(means).max() / np.sqrt(float(model.counts.min()))
    if rounding > COARSE * smallest:
        warnings.warn(
            f"the class means are rounded to about {rounding:.1g}, while noise moves them by no more than "
            f"{smallest:.1g} in some direction between saved times, so estimates and errors are off; use paths of "
            f"dtype float64, or saved times further apart.",
            UserWarning,
            stacklevel=2,
        )
    if not converged:
        warnings.warn(
            f"calibrate did not reach a maximum of the likelihood in {iterations} steps: "
            f"{', '.join(f'{n} = {v:.4g}' for n, v in zip(labels, theta, strict=False))}. The result is "
            f"not to be trusted; start elsewhere, or hold some names with model.substitute.",
            UserWarning,
            stacklevel=2,
        )
    error = np.sqrt(np.diag(covariance))
    reach = ndtri((1 + level) / 2) * error[:n]
    scale = float(np.exp(point[n])) if noise == "estimate" else 1.0
    return xr.Dataset(
        {
            "estimate": ("parameter", theta),
            "standard_error": ("parameter", error[:n]),
            "lower": ("parameter", theta - reach),
            "upper": ("parameter", theta + reach),
            "start": ("parameter", first),
            "covariance": (("parameter", "parameter_"), covariance[:n, :n]),
            "noise_scale": scale,
            "noise_scale_error": scale * error[n] if noise == "estimate" else 0.0,
            "log_likelihood": -at[0],
            "aic": 2.0 * (len(labels) + at[0]),
            "converged": converged,
            "iterations": iterations,
        },
        {"parameter": labels[:n], "parameter_": labels[:n]},
        {
            "model": json.dumps(model.describe()),
            "noise": noise,
            "confidence": level,
            "transitions": len(means) * (len(times) - 1),
        },
    )


def _start(model: LESDE, start: Any) -> np.ndarray:
    """Initial point of the search, in the order of the model's free names."""
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
    if set(names) != set(start):
        raise ValueError(
            f"start must have a value for every free name of the model ({', '.join(names)}) and for no other; got "
            f"{shown(dict(start))}. Names are held with model.substitute(...)."
        )
    return np.array([check_real(f"start[{name!r}]", start[name]) for name in names])


def _read(paths: Any, model: LESDE) -> tuple[np.ndarray, np.ndarray]:
    """Times and class means (replicate, time, class, feature)."""
    read = read_class_means(paths, with_steps=False)
    many = [str(dim) for dim, size in read.groups.items() if size > 1]
    if many:
        raise ValueError(
            f"paths must hold one set of replicates; it has the dimension(s) {', '.join(many)}. Select "
            f"one with paths.isel({many[0]}=0)."
        )
    counts, p = read.counts.tolist(), read.values.shape[-1]
    if (counts, p) != (model.counts.tolist(), model.n_features):
        raise ValueError(
            f"paths and model must be of one size: the model has {model.n_classes} classes of "
            f"{model.counts.tolist()} samples in {model.n_features} dimensions; paths have {len(counts)} of "
            f"{counts} in {p}."
        )
    return read.times, read.values[0]


Expansion = tuple[float, np.ndarray, np.ndarray]
"""Value, gradient and Hessian."""


def maximise(
    function: Callable[[np.ndarray], Expansion], first: np.ndarray
) -> tuple[np.ndarray, Expansion, int]:
    """Where −log L is least, its expansion there, and the steps taken.

    The search is in units of 1/√H_ii at the start, about standard errors.
    """
    value, _, hessian = function(first)  # errors at the start are shown to the user
    if not np.isfinite(value):
        raise ValueError(
            "start must have a finite likelihood: there the model overflows, or the paths follow it without any noise, "
            "whose size cannot be estimated then. Start nearer to the paths, or use noise='model'."
        )
    curvature = np.abs(np.diag(hessian))
    unit = 1 / np.sqrt(np.where(curvature > 0, curvature, 1.0))

    @lru_cache(maxsize=2)
    def expand(key: bytes) -> Expansion:
        try:
            value, gradient, hessian = function(first + unit * np.frombuffer(key))
        except (ValueError, Diverged):
            value = np.inf
        if not np.isfinite(value):  # no law there: the step is rejected, whatever the derivatives
            return np.inf, np.zeros(len(unit)), np.zeros((len(unit), len(unit)))
        return value, gradient * unit, hessian * np.outer(unit, unit)

    found = minimize(
        lambda z: expand(z.tobytes())[0],
        np.zeros(len(first)),
        jac=lambda z: expand(z.tobytes())[1],
        hess=lambda z: expand(z.tobytes())[2],
        method="trust-exact",
        options={
            "maxiter": ITERATIONS,
            "gtol": CLOSE,
            "initial_trust_radius": 100.0,
            "max_trust_radius": 1e6,
        },
    )
    point = first + unit * found.x
    at = function(point)
    # Near the optimum values differ by less than their rounding; gradients still give a direction.
    for _ in range(3):
        if newton_distance(at) < 1.0:
            point = point - np.linalg.solve(at[2], at[1])
            at = function(point)
    return point, at, int(found.nit)


def newton_distance(at: Expansion) -> float:
    """Length of a Newton step in standard errors; infinite where the Hessian is not definite."""
    _, gradient, hessian = at
    square = gradient @ inverse(hessian, FLAT) @ gradient
    return float(np.sqrt(square)) if np.isfinite(square) else np.inf


def inverse(information: np.ndarray, least: float = 0.0) -> np.ndarray:
    """The inverse of an information matrix; NaN where it is not positive definite.

    Its least eigenvalue, once scaled to a unit diagonal, must be above ``least``.
    """
    scaled, unit = _scaled(information)
    if not np.isfinite(scaled).all() or np.linalg.eigvalsh(scaled)[0] <= least:
        return np.full(information.shape, np.nan)
    return np.linalg.inv(scaled) * np.outer(unit, unit)


def _scaled(information: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The information in units of one parameter each, which may differ by powers of ten, and these."""
    unit = 1 / np.sqrt(np.maximum(np.abs(np.diag(information)), 1e-20))
    return information * np.outer(unit, unit), unit


def refuse_unidentified(information: np.ndarray, labels: list[str]) -> None:
    """Raise where the likelihood does not change along some direction of the parameters (and log s)."""
    values, vectors = np.linalg.eigh(_scaled(information)[0])
    if abs(values[0]) < FLAT:
        weights = np.abs(vectors[:, 0])
        flat = [n for n, w in zip(labels, weights, strict=True) if w > 0.1 * weights.max()]
        raise ValueError(
            f"the paths do not determine {' and '.join(flat)}: their likelihood does not change with such names, or when "
            f'they change together. Hold one with model.substitute({flat[0]}=...), with noise="model" where the '
            f"model has a name for the size of the noise, or use paths that determine them."
        )
