"""Data of the figures of the published experiments, computed from the trainings."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import xarray as xr
from scipy.stats import t as student

import lesde
from lesde.analysis.elasticity.published import published_elasticity
from lesde.networks import drawn_means
from lesde.studies.reproduce.protocol import Protocol
from lesde.studies.runner import Progress

MODELS = {"I-model": "identity", "L-model": "logits"}

TAIL = 0.1
"""Last share of training that tail indices are averaged over: 1,000 of 10,000 iterations in the paper."""

SPREAD = 1.5
"""Standard deviations between trials that their contrast must be from zero for the fit to start."""

GROUPS = 10
"""Groups of trials that are left out in turn where fits are repeated."""

RANGES = {"accuracy": (0.0, 1.0), "loss": (0.0, np.inf)}
"""Possible values, where they are bounded."""


def drawn_paths(trained: xr.Dataset, windows: int) -> xr.Dataset:
    """Class means of the drawn training samples of each trial, over windows of training."""
    drawn = xr.Dataset(
        {"features": trained["drawn_logits"].variable},
        coords={
            "replicate": trained["replicate"],
            "label": trained["drawn_label"].variable.astype(np.int64),
            "iteration": ("draw", trained["draw_iteration"].values),
            "time": ("draw", trained["draw_time"].values),
        },
    )
    try:
        return drawn_means(drawn, windows)
    except ValueError as error:
        # Settings check that this is unlikely; their name is another than the function's.
        raise ValueError(f"windows = {windows}: {error} (times= is windows here)") from None


def contrast(means: np.ndarray) -> np.ndarray:
    """Each class's own logit less the mean of the others, averaged over classes, of (..., class, K)."""
    K = means.shape[-1]
    own = np.einsum("...kk->...k", means)
    return (own - (means.sum(-1) - own) / (K - 1)).mean(-1)


def first_known(paths: xr.Dataset) -> tuple[int, bool]:
    """The first window from which on the classes' contrast is well beyond its spread between trials.

    Rates are relative to the class means, so they cannot be estimated before these differ by more than chance; and
    while only some trials have left the plateau at the start, their average is not the path of any trial. The window
    does not depend systematically on the number of trials. If there is none in the first half, the result is the
    window in the middle, and False.
    """
    values = contrast(class_means(paths))
    unknown = np.flatnonzero(values.mean(0) <= SPREAD * values.std(0, ddof=1))
    first, middle = int(unknown[-1]) + 1 if len(unknown) else 0, values.shape[1] // 2
    return min(first, middle), first <= middle


def class_means(paths: xr.Dataset) -> np.ndarray:
    """Class means (trial, time, class, feature)."""
    return paths["features"].transpose("replicate", "time", "sample", "feature").values


def fit(
    paths: xr.Dataset,
    model: str,
    protocol: Protocol,
    first: int | None = None,
    tail: bool | None = None,
) -> xr.Dataset:
    """The kernel fitted to class means from window ``first`` on, by default `first_known`; attribute ``notes`` holds the warnings."""
    start = first_known(paths)[0] if first is None else first
    with noted() as notes:
        found = lesde.fit_elasticity(
            paths.isel(time=slice(start, None)),
            transform=MODELS[model],
            estimator="averages",
            confidence=protocol.confidence,
            tail=tail,
        )
    return found.assign_attrs(notes=[f"{model}: {note}" for note in notes])


def determined(fit: xr.Dataset) -> int:
    """Number of first intervals of a fit through which an LE-ODE can run with the fitted rates.

    That is where the standard errors of both rates, times the interval, are at most 1: class means then change by a factor
    that is known up to a factor of about e.
    """
    width = np.diff(fit["time"].values)
    error = np.maximum(fit["alpha_se"].values, fit["beta_se"].values) * width
    known = fit["identified"].all("level").values & (error <= 1)
    return len(known) if known.all() else int(np.argmin(known))


def ode(fit: xr.Dataset, paths: xr.Dataset, model: str) -> xr.Dataset:
    """The LE-ODE of a fit from the class means at its start: ``mean (time, class, feature)``.

    NaN from the first interval on whose rates the data do not determine.
    """
    times = fit["time"].values
    start = paths["features"].sel(time=times[0]).mean("replicate")
    initial = start.transpose("sample", "feature").values
    noiseless = lesde.LESDE(
        lesde.fitted_kernel(fit),
        n_classes=len(initial),
        n_features=initial.shape[1],
        transform=MODELS[model],
        noise=0.0,
    )
    law = lesde.law(noiseless, times, initial=initial)[["mean"]]
    return law.where(xr.DataArray(np.arange(len(times)) <= determined(fit), dims="time"))


def reached(law: xr.Dataset) -> xr.Dataset:
    """The LE-ODE up to the last time at which its rates are determined."""
    known = np.isfinite(law["mean"].transpose("time", ...).values).all((1, 2))
    return law.isel(time=known)


def ode_error(law: xr.Dataset, paths: xr.Dataset) -> float:
    """Root of the mean square distance of the LE-ODE from the class means over trials, relative to their size."""
    law = reached(law)
    if law.sizes["time"] < 2:
        return float("nan")
    mean = class_means(paths.sel(time=law["time"].values)).mean(0)
    apart = law["mean"].transpose("time", "class", "feature").values - mean
    return float(np.sqrt((apart**2).sum() / (mean**2).sum()))


def ode_with_error(
    fit: xr.Dataset, paths: xr.Dataset, model: str, protocol: Protocol, progress: Progress
) -> xr.Dataset:
    """The `ode` of a fit, with ``error``, ``error_lower`` and ``error_upper``."""
    law = ode(fit, paths, model)
    with noted():  # the fits to fewer trials say the same again
        error, lower, upper = ode_errors(paths, law, model, protocol, progress)
    return law.assign(error=error, error_lower=lower, error_upper=upper)


def ode_errors(
    paths: xr.Dataset,
    law: xr.Dataset,
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
    without = []
    for left_out in range(number):
        part = paths.isel(replicate=group != left_out)
        other = reached(ode(fit(part, model, protocol, first, tail=False), part, model))
        if other["time"].values[-1] < end:
            return error, np.nan, np.nan
        without.append(ode_error(other.sel(time=slice(None, end)), part))
        progress(left_out + 1, number)
    each = np.array(without) ** 2
    if not np.isfinite(each).all():
        return error, np.nan, np.nan
    square = error**2 - (number - 1) * (each.mean() - error**2)
    scatter = np.sqrt((number - 1) / number * ((each - each.mean()) ** 2).sum())
    reach = student.ppf((1 + protocol.confidence) / 2, number - 1) * scatter
    found, low, high = np.sqrt(np.maximum([square, square - reach, square + reach], 0.0))
    return float(found), float(low), float(high)


def measure_level(trained: xr.Dataset, protocol: Protocol) -> xr.Dataset:
    """Data of figure 4 for one noise level and each trial; attribute ``notes`` holds the warnings.

    ``loss``, ``accuracy (replicate, time)`` on the validation images; ``contrast (replicate, time)`` of the
    class means of the validation images, by their right labels; ``tail_index (replicate, model, rate)``, ``A_minus_B
    (replicate, model)``: the published tail indices of Â and B̂, and Â − B̂ in the tail, each trial's own.

    The paper takes these of class means averaged over trials. Where labels carry no information, such averages are
    noise, and an index is the logarithm of a ratio of noise to noise, as uncertain with a thousand trials as with ten.
    The indices of single trials have a mean, with an interval.
    """
    paths = drawn_paths(trained, protocol.windows)
    X = trained["validation_mean"].transpose("replicate", "time", "class", "feature").values
    level = trained[["loss", "accuracy"]].assign(contrast=(("replicate", "time"), contrast(X)))
    numbers, notes = [], []
    for model in MODELS:
        with noted() as said:
            _published(paths, model)
        notes += [f"{model}, averages over trials: {message}" for message in said]
        with noted():  # of single trials each says the same again
            trials = range(paths.sizes["replicate"])
            numbers.append([_published(paths.isel(replicate=[r]), model) for r in trials])
    together = np.moveaxis(np.array(numbers), 0, 1)  # (replicate, model, number)
    level["tail_index"] = (("replicate", "model", "rate"), together[..., :2])
    level["A_minus_B"] = (("replicate", "model"), together[..., 2])
    return level.assign_coords(model=list(MODELS), rate=["alpha", "beta"]).assign_attrs(notes=notes)


def _published(paths: xr.Dataset, model: str) -> np.ndarray:
    """Tail indices of Â and B̂, and Â − B̂ averaged over the tail, by the published inversion."""
    found = published_elasticity(paths, MODELS[model], tail=TAIL)
    end = found["time"].values > (1 - TAIL) * found["time"].values[-1]
    return np.append(found["tail_index"].values, found["A_minus_B"].values[end].mean())


def mean_interval(
    values: np.ndarray, confidence: float, within: tuple[float, float] = (-np.inf, np.inf)
) -> tuple[Any, Any, Any]:
    """Mean over the first axis, and the ends of its interval by Student's t; NaN are left out.

    ``within`` is the range of possible values, to which the interval is cut.
    """
    number = np.isfinite(values).sum(0)
    mean = np.nanmean(values, axis=0)
    error = np.nanstd(values, axis=0, ddof=1) / np.sqrt(number)
    reach = student.ppf((1 + confidence) / 2, number - 1) * error
    return mean, np.maximum(mean - reach, within[0]), np.minimum(mean + reach, within[1])


@contextmanager
def noted() -> Iterator[list[str]]:
    """Collect the warnings of the package, each once, for the report; others are issued as usual."""
    said: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        yield said
    said += list(dict.fromkeys(str(w.message) for w in caught))
