"""Data of the figures of the published experiments, computed from the trainings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from scipy.stats import t as student

import lesde
from lesde.analysis.elasticity.published import published_elasticity
from lesde.networks import drawn_means
from lesde.studies.runner import Data, Progress
from lesde.studies.settings import MODELS, Protocol

TAIL = 0.1
"""Last share of training that tail indices are averaged over: 1,000 of 10,000 iterations in the paper."""

SPREAD = 1.5
"""Standard deviations between trials that their contrast must be from zero for the fit to start."""

GROUPS = 10
"""Groups of trials that are left out in turn where fits are repeated."""

RANGES = {"accuracy": (0.0, 1.0), "loss": (0.0, np.inf)}
"""Possible values, where they are bounded."""


def joined(protocol: Protocol, progress: Progress, *batches: Data) -> Data:
    """All stored trials of a noise level, up to the number asked for."""
    options: dict[str, Any] = {"data_vars": "minimal", "coords": "minimal", "compat": "override"}
    whole = xr.concat(batches, "replicate", combine_attrs="drop_conflicts", **options)
    return whole.sel(replicate=np.arange(protocol.trials))


def drawn_paths(protocol: Protocol, progress: Progress, trained: Data) -> Data:
    """Class means of the drawn training samples of each trial, over windows of training."""
    drawn = xr.Dataset(
        {"features": trained["drawn_logits"].variable},
        coords={
            "replicate": trained["replicate"],
            "label": trained["drawn_label"].variable.astype(np.int64),
            "iteration": trained["draw_iteration"].variable,
            "time": trained["draw_time"].variable,
        },
    )
    return drawn_means(drawn, protocol.windows)


def margins(means: np.ndarray) -> np.ndarray:
    """Each class's own logit less the mean of the others (…, class), of class means (…, class, K)."""
    own = np.einsum("...kk->...k", means)
    return own - (means.sum(-1) - own) / (means.shape[-1] - 1)


def class_means(paths: Data) -> np.ndarray:
    """Class means (trial, time, class, feature)."""
    return paths["features"].transpose("replicate", "time", "sample", "feature").values


def first_known(paths: Data) -> tuple[int, bool]:
    """The first window from which on the classes' contrast is well beyond its spread between trials.

    Rates are relative to the class means, so they cannot be estimated before these differ by more than chance; and
    while only some trials have left the plateau, their average is not the path of any trial. If there is none in the
    first half, the result is the window in the middle, and False.
    """
    values = margins(class_means(paths)).mean(-1)
    unknown = np.flatnonzero(values.mean(0) <= SPREAD * values.std(0, ddof=1))
    first, middle = int(unknown[-1]) + 1 if len(unknown) else 0, values.shape[1] // 2
    return min(first, middle), first <= middle


def fit(
    paths: Data, model: str, protocol: Protocol, first: int | None = None, tail: bool | None = None
) -> Data:
    """The kernel fitted to class means from window ``first`` on, by default `first_known`."""
    start = first_known(paths)[0] if first is None else first
    return lesde.fit_elasticity(
        paths.isel(time=slice(start, None)),
        transform=MODELS[model],
        estimator="averages",
        confidence=protocol.confidence,
        tail=tail,
    )


def fits(protocol: Protocol, progress: Progress, paths: Data) -> Data:
    """The fits of both models, along ``model``, with ``A_published`` and its like: the published inversion, from their start on."""
    found = []
    for model, transform in MODELS.items():
        one = fit(paths, model, protocol)
        old = published_elasticity(paths, transform).sel(time=one["time"])
        old = old[["A", "B", "A_minus_B"]].reset_coords(drop=True)
        old = old - old.isel(time=0)
        found.append(one.merge(old.rename({name: f"{name}_published" for name in old})))
    return xr.concat(found, xr.Variable("model", list(MODELS)), combine_attrs="drop_conflicts")


def determined(fit: Data) -> int:
    """Number of first intervals of a fit through which an LE-ODE can run with the fitted rates.

    That is where the standard errors of both rates, times the interval, are at most 1: class means then change by a factor
    that is known up to a factor of about e.
    """
    error = np.maximum(fit["alpha_se"].values, fit["beta_se"].values) * np.diff(fit["time"].values)
    known = fit["identified"].all("level").values & (error <= 1)
    return len(known) if known.all() else int(np.argmin(known))


def ode(fit: Data, paths: Data, model: str) -> Data:
    """The LE-ODE of a fit from the class means at its start: ``mean (time, class, feature)``.

    NaN from the first interval on whose rates the data do not determine.
    """
    times = fit["time"].values
    initial = class_means(paths.sel(time=times[:1])).mean(0)[0]
    kernel, transform = lesde.fitted_kernel(fit), MODELS[model]
    K, p = initial.shape
    noiseless = lesde.LESDE(kernel, K, p, transform=transform, noise=0.0)
    law = lesde.law(noiseless, times, initial=initial)[["mean"]]
    return law.where(xr.DataArray(np.arange(len(times)) <= determined(fit), dims="time"))


def reached(law: Data) -> Data:
    """The LE-ODE up to the last time at which its rates are determined."""
    return law.isel(time=law["mean"].notnull().all(("class", "feature")).values)


def ode_error(law: Data, paths: Data) -> float:
    """Root of the mean square distance of the LE-ODE from the class means over trials, relative to their size."""
    law = reached(law)
    if law.sizes["time"] < 2:
        return float("nan")
    mean = class_means(paths.sel(time=law["time"].values)).mean(0)
    apart = law["mean"].transpose("time", "class", "feature").values - mean
    return float(np.sqrt((apart**2).sum() / (mean**2).sum()))


def odes(protocol: Protocol, progress: Progress, paths: Data, fits: Data) -> Data:
    """The LE-ODEs of both models, with ``error``, ``error_lower`` and ``error_upper``."""
    found = []
    for model in MODELS:
        law = ode(fits.sel(model=model), paths, model)
        error, lower, upper = ode_errors(paths, law, model, protocol, progress)
        found.append(law.assign(error=error, error_lower=lower, error_upper=upper))
    return xr.concat(found, xr.Variable("model", list(MODELS)))


def ode_errors(
    paths: Data,
    law: Data,
    model: str,
    protocol: Protocol,
    progress: Progress = lambda done, total: None,
) -> tuple[float, float, float]:
    """`ode_error` of a model's LE-ODE with its interval: the jackknife over trials, or :data:`GROUPS` groups of more than twice as many.

    Its square is to second order a quadratic function of the class means, to which their noise adds a bias that the
    jackknife removes. All fits begin where that of all trials does: the error depends on the start, and the interval is
    for this one. Limits are NaN with fewer than four trials, as fits need three, and where some fit does not determine
    the rates for as long as that of all trials; the bias is then not removed.
    """
    R, law = paths.sizes["replicate"], reached(law)
    error, end = ode_error(law, paths), law["time"].values[-1]
    if R < 4:
        return error, np.nan, np.nan
    # Groups of one size, or nearly: few trials one by one.
    number = R if R <= 2 * GROUPS else GROUPS
    first, group = first_known(paths)[0], np.arange(R) % number
    without = np.full(number, np.nan)
    for left_out in range(number):
        part = paths.isel(replicate=group != left_out)
        other = reached(ode(fit(part, model, protocol, first, tail=False), part, model))
        if other["time"].values[-1] < end:
            break
        without[left_out] = ode_error(other.sel(time=slice(None, end)), part) ** 2
        progress(left_out + 1, number)
    if not np.isfinite(without).all():
        return error, np.nan, np.nan
    square = error**2 - (number - 1) * (without.mean() - error**2)
    scatter = np.sqrt((number - 1) / number * ((without - without.mean()) ** 2).sum())
    reach = student.ppf((1 + protocol.confidence) / 2, number - 1) * scatter
    found, low, high = np.sqrt(np.maximum([square, square - reach, square + reach], 0.0))
    return float(found), float(low), float(high)


def measure_level(protocol: Protocol, progress: Progress, *batches: Data) -> Data:
    """Data of figure 4 for one noise level and each trial.

    ``loss``, ``accuracy (replicate, time)`` on the validation images; ``contrast (replicate, time)`` of the
    class means of the validation images, by their right labels; ``tail_index (replicate, model, rate)``, ``A_minus_B
    (replicate, model)``: the published tail indices of Â and B̂, and Â − B̂ in the tail, each trial's own.
    Of class means averaged over trials, as in the paper, they are noise where labels carry no information.
    """
    trained = joined(protocol, progress, *batches)
    paths = drawn_paths(protocol, progress, trained)
    each = paths.rename(replicate="trial").expand_dims("replicate")
    X = trained["validation_mean"].transpose("replicate", "time", "class", "feature").values
    found = []
    for transform in MODELS.values():
        one = published_elasticity(each, transform, tail=TAIL)
        end = one["time"] > (1 - TAIL) * one["time"][-1]
        last = one["A_minus_B"].isel(time=end.values).mean("time", skipna=False)
        one = xr.Dataset({"tail_index": one["tail_index"], "A_minus_B": last})
        found.append(one.rename(trial="replicate", level="rate"))
    both = xr.concat(found, xr.Variable("model", list(MODELS)))
    level = trained[["loss", "accuracy"]]
    level["contrast"] = (("replicate", "time"), margins(X).mean(-1))
    return level.merge(both.transpose("replicate", "model", "rate"))


def phases(levels: Sequence[float], progress: Progress, *measured: Data) -> Data:
    """Data of figure 4, along ``noise_level``."""
    dim = xr.Variable("noise_level", list(levels))
    return xr.concat(measured, dim, combine_attrs="drop_conflicts")


def averages(trials: Data, confidence: float) -> Data:
    """Means over trials, and their limits by Student's t as ``_lower`` and ``_upper``; NaN are left out."""
    number = trials.count("replicate")
    mean = trials.mean("replicate")
    quantile = xr.apply_ufunc(lambda n: student.ppf((1 + confidence) / 2, n - 1), number)
    reach = quantile * trials.std("replicate", ddof=1) / np.sqrt(number)
    found = mean.copy()
    for name in map(str, mean):
        low, high = RANGES.get(name, (-np.inf, np.inf))
        found[f"{name}_lower"] = (mean[name] - reach[name]).clip(low)
        found[f"{name}_upper"] = (mean[name] + reach[name]).clip(max=high)
    return found
