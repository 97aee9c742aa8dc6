"""What the figures of the published experiments show, from the trainings."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import xarray as xr
from scipy.stats import t as student

import lesde
from lesde.analysis.fitted_kernel import fitted_kernel
from lesde.analysis.published_ratios import published_elasticity
from lesde.networks import drawn_means
from lesde.study.reproduce_protocol import Protocol

__all__ = [
    "ESTIMATOR",
    "MODELS",
    "RANGES",
    "contrast",
    "determined",
    "drawn_paths",
    "first_known",
    "fit_models",
    "mean_interval",
    "measure_level",
    "ode_errors",
    "run_odes",
    "told",
]

ESTIMATOR = "averages"
"""How kernels are fitted; see `lesde.fit_elasticity`."""

MODELS = {"identity": "I-model", "logits": "L-model"}

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
        {"features": trained["drawn_logits"].rename(None)},
        coords={
            "label": trained["drawn_label"].astype(np.int64),
            "iteration": ("draw", trained["draw_iteration"].values),
            "time": ("draw", trained["draw_time"].values),
        },
    )
    drawn = drawn.drop_vars(["draw_iteration", "draw_time"], errors="ignore")
    try:
        return drawn_means(drawn, windows)
    except ValueError as error:
        # Settings check that this is unlikely; their name is another than the function's.
        raise ValueError(f"windows = {windows}: {error} (times= is windows here)") from None


def contrast(means: np.ndarray) -> np.ndarray:
    """A class's own logit less the mean of the others, averaged over classes, of (..., class, K)."""
    K = means.shape[-1]
    own = np.einsum("...kk->...k", means)
    return (own - (means.sum(-1) - own) / (K - 1)).mean(-1)


def first_known(paths: xr.Dataset) -> tuple[int, bool]:
    """The first window from which on the classes' contrast is well beyond its spread between trials.

    Rates are relative to the class means, so that nothing can be said of them before these differ by more
    than chance; and while some trials have left the plateau at the start and others have not, their average is the
    path of none. However many trials there are, it is the same window but for chance; where there is none in the first
    half, that in the middle, and False.
    """
    values = contrast(paths["features"].transpose("replicate", "time", "sample", "feature").values)
    unknown = np.flatnonzero(values.mean(0) <= SPREAD * values.std(0, ddof=1))
    first, middle = int(unknown[-1]) + 1 if len(unknown) else 0, values.shape[1] // 2
    return min(first, middle), first <= middle


def fit_models(
    paths: xr.Dataset, protocol: Protocol, first: int | None = None
) -> tuple[dict[str, xr.Dataset], dict[str, list[str]]]:
    """Fits of both models to class means from window ``first`` on, by default `first_known`, and what was warned of."""
    known = True
    if first is None:
        first, known = first_known(paths)
    part = paths.isel(time=slice(first, None))
    fits, notes = {}, {}
    for transform, name in MODELS.items():
        with noted() as seen:
            fits[name] = lesde.fit_elasticity(
                part, transform=transform, estimator=ESTIMATOR, confidence=protocol.confidence
            )
        notes[name] = [f"{name}: {message}" for message in seen]
    if not known:
        notes["start"] = [
            f"The classes' contrast is not known, at no time in the first half of training is it {SPREAD:g} standard deviations "
            f"between trials from zero: rates are of the second half, and hardly determined. Train longer, or more trials."
        ]
    return fits, notes


def determined(fit: xr.Dataset) -> int:
    """How many of the first intervals of a fit have rates with which an LE-ODE can run through them.

    That is where the standard errors of both rates, times the interval, are at most 1: class means then change by a factor
    that is known to a factor of about e.
    """
    width = np.diff(fit["time"].values)
    error = np.maximum(fit["alpha_se"].values, fit["beta_se"].values) * width
    known = fit["identified"].all("level").values & (error <= 1)
    return len(known) if known.all() else int(np.argmin(known))


def run_odes(fits: dict[str, xr.Dataset], paths: xr.Dataset) -> dict[str, xr.Dataset]:
    """The LE-ODE of each fit from the class means at its start: ``mean (time, class, feature)``.

    NaN from the first interval on whose rates the data do not tell.
    """
    transforms = {name: transform for transform, name in MODELS.items()}
    laws = {}
    for name, fit in fits.items():
        times = fit["time"].values
        start = paths["features"].sel(time=times[0]).mean("replicate")
        initial = start.transpose("sample", "feature").values
        model = lesde.LESDE(
            fitted_kernel(fit),
            n_classes=len(initial),
            n_features=initial.shape[1],
            transform=transforms[name],
            noise=0.0,
        )
        law = model.law(times, initial=initial)[["mean"]]
        reached = xr.DataArray(np.arange(len(times)) <= determined(fit), dims="time")
        laws[name] = law.where(reached)
    return laws


def told(law: xr.Dataset) -> xr.Dataset:
    """The LE-ODE up to where its rates are told."""
    known = np.isfinite(law["mean"].transpose("time", ...).values).all((1, 2))
    return law.isel(time=known)


def ode_error(law: xr.Dataset, paths: xr.Dataset) -> float:
    """Root of the mean square distance of the LE-ODE from the class means over trials, relative to their size."""
    law = told(law)
    if law.sizes["time"] < 2:
        return float("nan")
    part = paths["features"].sel(time=law["time"].values).mean("replicate")
    mean = part.transpose("time", "sample", "feature").values
    apart = law["mean"].transpose("time", "class", "feature").values - mean
    return float(np.sqrt((apart**2).sum() / (mean**2).sum()))


def ode_errors(
    paths: xr.Dataset, laws: dict[str, xr.Dataset], protocol: Protocol
) -> dict[str, tuple[float, float, float]]:
    """`ode_error` of the LE-ODE of each model with its interval: the jackknife over trials, or :data:`GROUPS` groups of more than twice as many.

    Its square is to second order a quadratic function of the class means, to which their noise adds: the jackknife takes that
    off. All fits begin where that of all trials does: the error depends on the start, and the interval is for this
    one. Limits are NaN with fewer than four trials, as fits need three, and where some fit does not tell the rates as long as that of all trials; the noise then
    is not taken off.
    """
    first, _ = first_known(paths)
    R = paths.sizes["replicate"]
    # Groups of one size, or nearly: few trials one by one.
    number = R if R <= 2 * GROUPS else GROUPS
    group = np.arange(R) % number

    whole = {name: told(law) for name, law in laws.items()}
    errors = {name: ode_error(law, paths) for name, law in whole.items()}
    if R < 4:
        return {name: (error, np.nan, np.nan) for name, error in errors.items()}
    without: dict[str, list[float]] = {name: [] for name in whole}
    for g in range(number):
        part = paths.isel(replicate=group != g)
        with noted():  # the fits to fewer trials say the same again
            fits, _ = fit_models(part, protocol, first)
            others = run_odes(fits, part)
        for name, law in others.items():
            end = whole[name]["time"].values[-1]
            reaches = told(law)["time"].values[-1] >= end
            cut = law.sel(time=slice(None, end))
            without[name].append(ode_error(cut, part) if reaches else np.nan)
    result = {}
    for name, error in errors.items():
        each = np.array(without[name]) ** 2
        if not np.isfinite(each).all():
            result[name] = (error, np.nan, np.nan)
            continue
        square = error**2 - (number - 1) * (each.mean() - error**2)
        scatter = np.sqrt((number - 1) / number * ((each - each.mean()) ** 2).sum())
        reach = student.ppf((1 + protocol.confidence) / 2, number - 1) * scatter
        ends = np.sqrt(np.maximum([square, square - reach, square + reach], 0.0))
        result[name] = (float(ends[0]), float(ends[1]), float(ends[2]))
    return result


def measure_level(trained: xr.Dataset, protocol: Protocol) -> tuple[xr.Dataset, list[str]]:
    """What figure 4 shows of one noise level, each trial's; and what was warned of.

    ``loss``, ``accuracy (replicate, time)`` on the validation images; ``contrast (replicate, time)`` of the
    class means of the validation images, by their right labels; ``tail_index (replicate, model, rate)``, ``A_minus_B
    (replicate, model)``: the published tail indices of Â and B̂, and Â − B̂ in the tail, each trial's own.

    The paper takes these of class means averaged over trials. Where labels say nothing, such averages are noise, and an index
    is the logarithm of a ratio of noise to noise, which is as uncertain with a thousand trials as with ten. Those of single trials
    have a mean, and an interval for it.
    """
    paths = drawn_paths(trained, protocol.windows)
    X = trained["validation_mean"].transpose("replicate", "time", "class", "feature").values
    level = trained[["loss", "accuracy"]].assign(contrast=(("replicate", "time"), contrast(X)))
    trials = range(paths.sizes["replicate"])
    numbers, seen = [], []
    for transform, name in MODELS.items():
        with noted() as said:
            _published(paths, transform)
        with noted():  # of single trials each says the same again
            each = [_published(paths.isel(replicate=[r]), transform) for r in trials]
        numbers.append(np.stack(each))
        seen += [f"{name}, averages over trials: {message}" for message in said]
    together = np.stack(numbers, axis=1)
    level["tail_index"] = (("replicate", "model", "rate"), together[..., :2])
    level["A_minus_B"] = (("replicate", "model"), together[..., 2])
    level = level.assign_coords(model=list(MODELS.values()), rate=["alpha", "beta"])
    return level, seen


def _published(paths: xr.Dataset, transform: str) -> np.ndarray:
    """Tail indices of Â and B̂, and Â − B̂ averaged over the tail, by the published inversion."""
    found = published_elasticity(paths, transform, tail=TAIL)
    end = found["time"].values > (1 - TAIL) * found["time"].values[-1]
    difference = found["A_minus_B"].values[end].mean()
    return np.append(found["tail_index"].values, difference)


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
    """Collect the warnings of the package, each once, for the report; others go their way."""
    said: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        yield said
    said += list(dict.fromkeys(str(w.message) for w in caught))
