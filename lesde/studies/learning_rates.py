"""Collapse against the learning rate: networks beside the LE-SDE fitted to other networks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import xarray as xr
from scipy.stats import t as student

import lesde
from lesde import checks, networks
from lesde.analysis.convergence import ENDS
from lesde.model.transforms import make_transform
from lesde.paths import check_paths
from lesde.studies.digits import recorded
from lesde.studies.fitted_kernels import Kernels, average_kernels, draw_kernels, frames_of_kernels
from lesde.studies.runner import Data, Progress
from lesde.studies.settings import MODELS, RATES

METRICS = ["nc1", "nc2_etf"]
"""Two metrics whose target is 0, so that each is its own distance from collapse."""

NAMES = {"nc1": "NC1", "nc2_etf": "NC2"}
KERNELS = ("the same rate", "the other rates")
MODEL_OF = {transform: model for model, transform in MODELS.items()}
ORDER = ("model", "kernel", "quantity", "metric")

HUGE = 1e100
"""Features beyond this have squares that overflow."""


class LearningRateExperiment(NamedTuple):
    """Result of :func:`lesde.studies.learning_rate_experiment`.

    ``logits`` and ``penultimate`` are the recorded features of the probe images, as
    :func:`lesde.networks.record_ensemble` makes them, ``comparison`` is the result of
    :func:`lesde.studies.compare_learning_rates` for the logits.
    """

    logits: Data
    penultimate: Data
    comparison: Data


def learning_rate_experiment(
    learning_rates: Sequence[float] = RATES,
    replicates: int = 32,
    total_time: float = 32.0,
    *,
    classes: int | Sequence[int] = (0, 1, 2, 3),
    train_per_class: int = 100,
    probe_per_class: int = 40,
    widths: Sequence[int] = (32,),
    start: float = 2.0,
    saved_times: int = 24,
    draws: int = 40,
    spread: str = "covariance",
    confidence: float = 0.95,
    seed: int = 0,
    progress: bool | Callable[[int, int], None] = False,
) -> LearningRateExperiment:
    """Train networks on handwritten digits at several learning rates and compare them with the fitted LE-SDE.

    Plain SGD, batch size 1, cross-entropy, PyTorch's default initialisation.

    Parameters
    ----------
    learning_rates : sequence of float
        The default spans a factor of 64, each dividing the next, so that all are recorded at the same times.
    replicates : int, default 32
        Networks per learning rate. The kernel is fitted to the first half, the second half is predicted.
    total_time : float, default 32
        Learning rate × iterations.
    classes, train_per_class, probe_per_class
        Of :func:`lesde.networks.digits`. NC2 needs 4 classes or more.
    widths, saved_times
        Hidden layers; recordings, denser early.
    start, draws, spread, confidence, seed, progress
        As for :func:`lesde.studies.compare_learning_rates`; the seed is that of all randomness, progress that of training.

    Returns
    -------
    LearningRateExperiment

    Examples
    --------
    >>> experiment = lesde.studies.learning_rate_experiment()  # doctest: +SKIP
    >>> axes = lesde.plot.learning_rate_range(experiment.comparison)  # doctest: +SKIP
    """
    times = networks.saving_times(total_time, learning_rates, saved_times)
    data = networks.digits(classes, train_per_class, probe_per_class, scaling="standard", seed=seed)
    options: dict[str, Any] = {"seed": seed, "progress": progress}
    records = recorded(data, learning_rates, times, replicates, widths, **options)
    layers = networks.collect(records)
    given: dict[str, Any] = {"draws": draws, "spread": spread, "confidence": confidence}
    comparison = compare_learning_rates(layers["logits"], start=start, seed=seed, **given)
    return LearningRateExperiment(layers["logits"], layers["penultimate"], comparison)


def compare_learning_rates(
    paths: Data,
    *,
    start: float | None = None,
    transforms: str | Sequence[str] | None = None,
    spread: str = "covariance",
    draws: int = 40,
    confidence: float = 0.95,
    seed: int = 0,
    progress: Progress | None = None,
) -> Data:
    """NC1 and NC2 of recorded paths at each learning rate, beside what the fitted LE-SDE predicts for them.

    The kernel and the noise are fitted to the first half of the replicates. The discrete process with that kernel then
    runs from the recorded state of each of the others at ``start``, at the learning rate of the paths: at every
    iteration one sample is drawn and moves all others, as with ``engine="sgd"``.

    Parameters
    ----------
    paths : xarray.Dataset
        ``features`` with dimensions ``learning_rate`` (at least 2), ``replicate`` (at least 8), ``time``, ``sample``,
        ``feature``; coordinates ``time``, ``label(sample)`` and ``iteration(learning_rate, time)``, as from
        :func:`lesde.networks.record_ensemble` and from `lesde.simulate` with ``engine="sgd"``.
    start : float, optional
        Time from which the kernel is fitted and the model runs. Default: the first recorded.
    transforms : {"identity", "logits"} or sequence of them, optional
        Models to fit. Default: both, "identity" alone unless there is a feature for every class.
    spread : {"covariance", "constant"}, default "covariance"
        Noise of a sample. "covariance": the growth of the networks' pooled covariance within classes in each
        interval, where it grows. "constant": one number, σ of the LE-SDE as published.
    draws : int, default 40
        Kernels fitted to resamples of the networks, each of which runs once from every start.
    confidence : float, default 0.95
    seed : int, default 0
    progress : callable, optional
        Called with (done, total) after each prediction: of one model, kernel and learning rate.

    Returns
    -------
    xarray.Dataset
        - ``network (quantity, metric, learning_rate)``: of the predicted replicates, with their t interval. ``quantity``
          is "value", the geometric mean at the last time, or "rate", the mean rate of exponential decay from ``start`` on.
        - ``predicted (model, kernel, quantity, metric, learning_rate)``, with the interval in which the model puts
          ``network``, a mean over so many replicates; NaN where a path diverges. ``kernel`` is that of "the same rate", or the
          mean of "the other rates" (weighted by precision): in the LE-SDE it is a function of t alone.
        - ``inside``: whether ``network`` is in that interval; ``range_lowest``, ``range_highest``: the longest unbroken range of
          learning rates where it is, NaN for none.
        - ``network_path (metric, learning_rate, time)``, ``predicted_path (model, kernel, …)``: geometric means over time.
        - ``log_error (model, learning_rate)``: root of the mean square of log(network/predicted) over metrics and
          times, with the kernel of the same rate. Attribute ``preferred``: the model that diverges at fewer learning
          rates, and among equals the one with the smaller mean of it, where no model diverges.

        Limits end in ``_lower`` and ``_upper``.

    Notes
    -----
    Each draw gives one mean over the replicates, of a kernel fitted to a resample of the networks. Their scatter reflects
    the uncertainty of kernel and noise and the randomness of the predicted replicates. Limits are those of Student's t
    on the logarithm of a value, with R − 1 degrees of freedom for R fitted replicates. They are for one learning rate at
    a time, and results at several may be correlated. Where the networks' averages hardly determine a rate, the
    intervals are wider than they need be.

    Examples
    --------
    >>> import numpy as np
    >>> import lesde
    >>> from lesde.studies import compare_learning_rates
    >>> model = lesde.LESDE(lesde.TwoLevel(1.0, -1.0), 4, 4, 10, transform="logits", noise=0.1)
    >>> paths = lesde.simulate(
    ...     model, [0, 0.4, 0.8, 1.2, 1.6], 1.5 * np.eye(4), 16, learning_rate=[0.02, 0.04], engine="sgd"
    ... )
    >>> dict(compare_learning_rates(paths, start=0.4, draws=10).inside.sizes)
    {'model': 2, 'kernel': 2, 'quantity': 2, 'metric': 2, 'learning_rate': 2}
    """
    checks.check_choice("spread", spread, ("covariance", "constant"))
    draws = checks.check_integer("draws", draws, 4, 10**5)
    confidence = checks.check_fraction("confidence", confidence)
    seed = checks.check_seed(seed)
    frames, counts = _compared_frames(paths, start)
    names = _transforms(transforms, len(counts), frames.sizes["feature"])
    R, rates = frames.sizes["replicate"] // 2, frames.sizes["learning_rate"]
    fitted, others = frames.isel(replicate=slice(R)), frames.isel(replicate=slice(R, None))
    # Replicates with one number start from one initial state at every learning rate, so they are
    # resampled together.
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(0,)))
    weights = rng.multinomial(R, np.full(R, 1 / R), size=draws) / R

    parts, done = [], 0
    for name in names:
        one_rate = (fitted.isel(learning_rate=i) for i in range(rates))
        same = [draw_kernels(each, counts, name, weights, spread) for each in one_rate]
        other = [average_kernels(same[:i] + same[i + 1 :]) for i in range(rates)]
        found: list[list[Data]] = [[], []]
        for k, i in np.ndindex(2, rates):
            stream = np.random.SeedSequence(seed, spawn_key=(1, k, i))
            path, kernels = others.isel(learning_rate=i), (same, other)[k][i]
            found[k].append(predict(path, kernels, name, counts, stream))
            done += 1
            if progress is not None:
                progress(done, len(names) * 2 * rates)
        drawn = xr.combine_nested(found, ["kernel", "learning_rate"])
        ends = limits(drawn, "draw", confidence, R - 1, of_mean=False)
        parts.append(quantities("predicted", ends))
    models = xr.concat(parts, xr.Variable("model", [MODEL_OF[name] for name in names]))
    result = observed(others, confidence).merge(models.assign_coords(kernel=list(KERNELS)))
    low, high = result["predicted_lower"], result["predicted_upper"]
    result["inside"] = (low <= result["network"]) & (result["network"] <= high)
    ratio = result["network_path"] / result["predicted_path"].sel(kernel=KERNELS[0], drop=True)
    logs: Any = np.log(ratio)
    result["log_error"] = (logs**2).mean(("metric", "time"), skipna=False) ** 0.5
    result["log_error"].attrs["long_name"] = "error of the logarithm, over metrics and times"
    result["learning_rate"].attrs["long_name"] = "learning rate"
    result = result.assign_attrs(
        preferred=str(whole_errors(result).index[0]),
        start=float(frames.time[0]),
        at=float(frames.time[-1]),
        spread=spread,
        confidence=confidence,
        draws=draws,
        fitted_replicates=R,
        predicted_replicates=others.sizes["replicate"],
        seed=seed,
    )
    return longest_ranges(result.transpose(*ORDER, "learning_rate", "time"))


def whole_errors(result: Data) -> pd.DataFrame:
    """The number of learning rates at which each model ``diverges``, and its mean log ``error`` where none does; best first."""
    fine = result["log_error"].notnull()
    error = result["log_error"].where(fine.all("model")).mean("learning_rate")
    found = xr.Dataset({"diverges": (~fine).sum("learning_rate"), "error": error})
    return found.to_dataframe().sort_values(["diverges", "error"])


def _transforms(given: Any, K: int, p: int) -> list[str]:
    if given is None:
        return list(MODEL_OF) if p == K else ["identity"]
    names = [given] if isinstance(given, str) else list(given)
    names = list(dict.fromkeys(checks.check_choice("transforms", name, MODEL_OF) for name in names))
    if not names or ("logits" in names and p != K):
        raise ValueError(
            f"transforms must be of 'identity' and, with one feature per class, 'logits'; got {checks.shown(given)} for paths with "
            f"{K} classes and {p} features."
        )
    return names


def _compared_frames(paths: Any, start: float | None) -> tuple[xr.Dataset, np.ndarray]:
    """The compared frames, learning rates increasing and samples sorted by class; the number of samples of each class."""
    least = {"learning_rate": 2, "replicate": 8, "time": 4, "sample": 2, "feature": 1}
    features, labels = check_paths("paths", paths, list(least), 2)
    times = checks.check_times("paths.time", paths["time"].values)
    first = times[0] if start is None else checks.check_real("start", start)
    features = features.isel(time=times >= first - 1e-12)
    if dict(features.sizes).keys() != least.keys() or any(
        features.sizes[d] < least[d] for d in least
    ):
        raise ValueError(
            f"paths.features must have the dimensions {', '.join(least)} alone, and at least {least} entries from start on; "
            f"got {dict(features.sizes)}."
        )
    if not {"iteration", "learning_rate"} <= set(paths.coords):
        raise ValueError(
            "paths must hold the coordinates learning_rate and iteration(learning_rate, time), the SGD steps done at each "
            "time, as networks recorded by lesde.networks and paths of engine='sgd' do."
        )
    iteration = paths["iteration"].broadcast_like(paths["learning_rate"])
    keep = xr.Dataset({"features": features}, {"label": paths["label"]})
    keep = keep.assign_coords(iteration=iteration.sel(time=features["time"]))
    keep = keep.isel(sample=np.argsort(labels, kind="stable")).sortby("learning_rate")
    return keep.load(), np.bincount(labels)


def log_metrics(paths: Data) -> xr.DataArray:
    """Logarithms of the metrics, along ``metric``."""
    with np.errstate(divide="ignore"):
        metrics = lesde.neural_collapse(paths, METRICS).reset_coords(drop=True)
        logs: xr.DataArray = xr.apply_ufunc(np.log, metrics.to_dataarray("metric"))
    return logs


def predict(
    paths: Data,
    kernels: Kernels,
    transform: str,
    counts: np.ndarray,
    stream: np.random.SeedSequence,
) -> Data:
    """Means over replicates for every draw of the kernel: ``path (draw, metric, time)``, log metrics, and their ``rate``."""
    x = paths["features"].transpose("time", "replicate", "sample", "feature").values
    frames = frames_of_kernels(
        Kernels(*(values[1:] for values in kernels)),
        make_transform(transform, len(counts), x.shape[-1]),
        x[0].astype(np.float64),
        counts,
        paths["iteration"].values,
        float(paths["learning_rate"]),
        np.random.default_rng(stream),
    )
    label = ("sample", np.repeat(np.arange(len(counts)), counts))
    logs = []
    for frame in frames:
        if not (np.abs(frame) < HUGE).all():
            break  # the rest is NaN: a model that diverges predicts nothing
        features = (("draw", "replicate", "sample", "feature"), frame)
        logs.append(log_metrics(xr.Dataset({"features": features}, {"label": label})))
    path = xr.concat(logs, "time").assign_coords(time=paths["time"].values[: len(logs)])
    path = path.reindex(time=paths["time"].values)
    # As `lesde.convergence`: power laws have no time 0, and samples at their class means no log NC1.
    finite = (abs(path) < np.inf).all(("draw", "metric", "replicate")) & (path["time"] > 0)
    kept = path.isel(time=finite.values)
    path = path.mean("replicate", skipna=False)
    rate = path.isel(time=-1, drop=True) * np.nan
    if len(logs) == path.sizes["time"]:
        slopes = kept.mean("replicate").polyfit("time", 1)["polyfit_coefficients"]
        rate = -slopes.sel(degree=1, drop=True)
    return xr.Dataset({"path": path, "rate": rate}, {"learning_rate": paths["learning_rate"]})


def limits(values: Data, dim: str, confidence: float, free: int, of_mean: bool) -> list[Data]:
    """Mean of the values over a dimension and limits by Student's t, NaN wherever a value is not finite.

    ``of_mean``: for the mean, known from so many values. Otherwise for one more value like these.
    """
    with np.errstate(invalid="ignore"):
        mean = values.mean(dim, skipna=False)
        scatter = values.std(dim, ddof=1, skipna=False)
    width = np.sqrt(1 / values.sizes[dim] + (not of_mean))
    reach = student.ppf((1 + confidence) / 2, free) * width * scatter
    return [mean, mean - reach, mean + reach]


def quantities(name: str, ends: Sequence[Data]) -> Data:
    """Values at the end and rates along ``quantity``, and whole paths, from the limits of log metrics and of rates."""
    data = {}
    for end, each in zip(ENDS, ends, strict=True):
        path: Any = np.exp(each["path"])
        both = [path.isel(time=-1, drop=True), each["rate"]]
        data[f"{name}{end}"] = xr.concat(both, xr.Variable("quantity", ["value", "rate"]))
        data[f"{name}_path{end}"] = path
    return xr.Dataset(data)


def observed(paths: Data, confidence: float) -> Data:
    """The predicted replicates themselves: value, rate and path with t intervals."""
    logs = xr.Dataset({"path": log_metrics(paths)})
    ends = limits(logs, "replicate", confidence, paths.sizes["replicate"] - 1, of_mean=True)
    nc = lesde.neural_collapse(paths, METRICS)
    rates = lesde.convergence(nc, METRICS, against="time", confidence=confidence)
    rates = rates.sel(clock="time").reset_coords(drop=True)
    return quantities(
        "network",
        [each.assign(rate=rates[f"rate{end}"]) for each, end in zip(ends, ENDS, strict=True)],
    )


def longest_ranges(result: Data) -> Data:
    """Add ``range_lowest`` and ``range_highest`` to a comparison with increasing learning rates."""
    h, inside = result["learning_rate"].values, result["inside"].transpose(*ORDER, "learning_rate")
    ends = np.full((2, *inside.shape[:-1]), np.nan)
    for at in np.ndindex(*inside.shape[:-1]):
        runs = groupby(range(len(h)), inside.values[at].__getitem__)
        run = max((list(run) for yes, run in runs if yes), key=len, default=None)
        if run:
            ends[:, *at] = h[[run[0], run[-1]]]
    return result.assign(
        range_lowest=(ORDER, ends[0], {"long_name": "lowest learning rate of the range"}),
        range_highest=(ORDER, ends[1], {"long_name": "highest learning rate of the range"}),
    )
