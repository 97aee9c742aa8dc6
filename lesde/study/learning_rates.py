"""Collapse against the learning rate: networks beside the LE-SDE fitted to other networks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from lesde.checks import check_choice, check_fraction, check_integer, check_real, check_seed, shown
from lesde.study.digit_networks import Progress, digit_records
from lesde.study.learning_rates_kernel import (
    average_kernels,
    class_moments,
    draw_kernels,
    fit_quality,
)
from lesde.study.learning_rates_predict import compared_frames, model_limits, observe, predict
from lesde.study.learning_rates_range import state_ranges

__all__ = [
    "LearningRateExperiment",
    "compare_learning_rates",
    "learning_rate_experiment",
    "whole_errors",
]

KERNELS = ("the same rate", "the other rates")
MODELS = {"identity": "I-model", "logits": "L-model"}


class LearningRateExperiment(NamedTuple):
    """What `learning_rate_experiment` returns.

    Attributes
    ----------
    logits, penultimate : xarray.Dataset
        Recorded features of the probe images, as :func:`lesde.networks.record_ensemble` makes them.
    comparison : xarray.Dataset
        As :func:`compare_learning_rates` makes of the logits.
    """

    logits: xr.Dataset
    penultimate: xr.Dataset
    comparison: xr.Dataset


def learning_rate_experiment(
    learning_rates: Sequence[float] = (0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128),
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
    progress: bool | Progress = False,
) -> LearningRateExperiment:
    """Train networks on handwritten digits at several learning rates and compare them with the fitted LE-SDE.

    Plain SGD, batch size 1, cross-entropy, one network after another drawn from PyTorch's default initialisation; all
    learning rates run for the same time t = learning rate × iteration.

    Parameters
    ----------
    learning_rates : sequence of float
        The default spans a factor of 64, each dividing the next, so that all are recorded at the same times.
    replicates : int, default 32
        Networks a learning rate. The kernel is fitted to the first half, the second half is predicted.
    total_time : float, default 32
    classes, train_per_class, probe_per_class
        Of :func:`lesde.networks.digits`. NC2 needs 4 classes or more.
    widths : sequence of int, default (32,)
        Hidden layers.
    start, draws, spread, confidence
        As for :func:`compare_learning_rates`.
    saved_times : int, default 24
        Recordings, denser early; those before ``start`` only show the networks.
    seed : int, default 0
        Of all randomness.
    progress : bool or callable, default False
        Of the training: a progress bar, or called with (done, total).

    Returns
    -------
    LearningRateExperiment

    Raises
    ------
    TypeError, ValueError, Diverged
        As :func:`lesde.networks.record_ensemble` and :func:`compare_learning_rates`.

    Examples
    --------
    >>> from lesde.study.learning_rates import learning_rate_experiment
    >>> experiment = learning_rate_experiment()  # doctest: +SKIP
    >>> print(experiment.comparison.attrs["statement"])  # doctest: +SKIP
    >>> axes = lesde.plot.learning_rate_range(experiment.comparison)  # doctest: +SKIP
    """
    from lesde.networks import collect

    start = check_real("start", start, 0.0)
    records = digit_records(
        learning_rates,
        replicates,
        total_time,
        saved_times,
        classes=classes,
        train_per_class=train_per_class,
        probe_per_class=probe_per_class,
        widths=widths,
        seed=seed,
        progress=progress,
    )
    layers = collect(records)
    comparison = compare_learning_rates(
        layers["logits"],
        start=start,
        draws=draws,
        spread=spread,
        confidence=confidence,
        seed=seed,
    )
    return LearningRateExperiment(layers["logits"], layers["penultimate"], comparison)


def compare_learning_rates(
    paths: xr.Dataset,
    *,
    start: float | None = None,
    at: float | None = None,
    transforms: str | Sequence[str] | None = None,
    spread: str = "covariance",
    draws: int = 40,
    confidence: float = 0.95,
    seed: int = 0,
    progress: Progress | None = None,
) -> xr.Dataset:
    """NC1 and NC2 of recorded paths at each learning rate, beside what the fitted LE-SDE predicts for them.

    The kernel and the noise are fitted to the first half of the replicates. From the recorded state of
    each of the others at ``start`` the discrete process with that kernel runs, at the learning rate of the paths.

    Parameters
    ----------
    paths : xarray.Dataset
        ``features`` with dimensions ``learning_rate`` (at least 2), ``replicate`` (at least 8), ``time``, ``sample``,
        ``feature``; coordinates ``time``, ``label(sample)`` and ``iteration(learning_rate, time)``, as of
        :func:`lesde.networks.record_ensemble` and of `lesde.simulate` with ``engine="sgd"``.
    start : float, optional
        Time from which the kernel is fitted and the model runs. Default: the first recorded.
    at : float, optional
        Time at which values are compared, one of the recorded. Default: the last.
    transforms : {"identity", "logits"} or sequence of them, optional
        Models to fit. Default: both, "identity" alone unless there is a feature for every class.
    spread : {"covariance", "constant"}, default "covariance"
        Noise of a sample. "covariance": that with which the pooled covariance within classes of the networks
        grows, interval by interval, wherever it does. "constant": one number, σ of the LE-SDE as published.
    draws : int, default 40
        Kernels fitted to resamples of the networks, each of which runs once from every start.
    confidence : float, default 0.95
    seed : int, default 0
    progress : callable, optional
        Called with (done, total) after each prediction: of one model, kernel and learning rate.

    Returns
    -------
    xarray.Dataset
        Dimensions ``model``, ``kernel``, ``quantity``, ``metric`` and ``learning_rate`` (increasing).

        - ``model``: "I-model" or "L-model". Attribute ``preferred``: that which predicts the held-out networks better over the
          whole way, by the smaller mean of ``log_error (model, learning_rate)`` over the learning rates at which no model diverges; before that, the
          one that diverges at fewer.
        - ``log_error (model, learning_rate)``: root of the mean square of log(network/predicted) over metrics and times, with
          the kernel of the same rate. ``r_squared_common (model, learning_rate)``: of the movement from one time to the next that
          fitted networks have in common, the share that the fit explains; errors that add up along the way are not in it.
        - ``kernel``: fitted at "the same rate", or the mean over "the other rates" (weighted by precision), so that nothing
          at the predicted learning rate is used but the start. In the LE-SDE the kernel is a function of t alone.
        - ``quantity``: "value", the geometric mean over replicates at ``at``; "rate", the mean of their rates of exponential
          decay from ``start`` to ``at`` per unit of time, as of `lesde.convergence`.
        - ``network``, ``network_lower``, ``network_upper (quantity, metric, learning_rate)``: of the predicted replicates,
          with the t interval over them.
        - ``predicted``, ``predicted_lower``, ``predicted_upper (model, kernel, …)``: the model's, with the interval in which it puts
          ``network``, a mean over so many replicates. NaN where a path diverges.
        - ``inside (model, kernel, …)``: whether ``network`` is in that interval. ``range_lowest``, ``range_highest``: the longest
          unbroken range of learning rates where it is, NaN where there is none. ``statement``: the same in words, with
          what is missed by how much; attribute ``statement`` holds all of them.
        - ``network_path (metric, learning_rate, time)``, ``predicted_path (model, kernel, …)``: geometric means over time from
          ``start`` to ``at``, each with ``_lower`` and ``_upper``.

    Raises
    ------
    TypeError, ValueError
        For paths without what is needed, or arguments that are not as above.

    Notes
    -----
    **Interval.** Each draw gives one mean over the replicates, of a kernel fitted to a resample of the networks. Their scatter
    holds the uncertainty of kernel and noise and the randomness of the predicted replicates. Limits are those of Student's
    t on the logarithm of a value, with R − 1 degrees of freedom for R fitted replicates. They are for one learning
    rate at a time: where the LE-SDE is true, 1 in 20 lies outside a 95 % interval by chance, and the fits at one learning rate
    and replicates with the same number at several may share chance. Where the networks' averages hardly tell a
    rate, the intervals are wider than they need be.

    **Learning rate.** The LE-SDE itself does not know the learning rate. What depends on it in the model is the noise of
    drawing samples, so it is the discrete process that runs: at every iteration one sample is drawn and moves all others,
    as with ``engine="sgd"``.

    Examples
    --------
    >>> import numpy as np
    >>> import lesde
    >>> from lesde.study.learning_rates import compare_learning_rates
    >>> model = lesde.LESDE(lesde.TwoLevel(1.0, -1.0), 4, 4, 10, transform="logits", noise=0.1)
    >>> paths = lesde.simulate(
    ...     model, [0, 0.4, 0.8, 1.2, 1.6], 1.5 * np.eye(4), 16, learning_rate=[0.02, 0.04], engine="sgd"
    ... )
    >>> result = compare_learning_rates(paths, start=0.4, draws=10)
    >>> dict(result.inside.sizes)
    {'model': 2, 'kernel': 2, 'quantity': 2, 'metric': 2, 'learning_rate': 2}
    """
    check_choice("spread", spread, ("covariance", "constant"))
    draws = check_integer("draws", draws, 4, 10**5)
    confidence = check_fraction("confidence", confidence)
    seed = check_seed(seed)
    frames, counts = compared_frames(paths, start, at)
    names = _transforms(transforms, len(counts), frames.sizes["feature"])
    R = frames.sizes["replicate"] // 2
    fitted, others = frames.isel(replicate=slice(R)), frames.isel(replicate=slice(R, None))
    moments = class_moments(fitted, counts)
    # Replicates with one number start from one initial state at every learning rate, so they are
    # resampled together.
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(0,)))
    weights = rng.multinomial(R, np.full(R, 1 / R), size=draws) / R

    parts: list[xr.Dataset] = []
    total = len(names) * len(KERNELS) * len(moments)
    for name in names:
        same = [draw_kernels(m, name, weights, spread) for m in moments]
        other = [average_kernels(same[:i] + same[i + 1 :]) for i in range(len(same))]
        found: list[list[np.ndarray]] = []
        for k, kernels in enumerate((same, other)):
            found.append([])
            for i, kernel in enumerate(kernels):
                one = others.isel(learning_rate=i)
                found[-1].append(predict(one, kernel, name, counts, (seed, k, i)))
                if progress is not None:
                    done = (len(parts) * len(KERNELS) + k) * len(moments) + i + 1
                    progress(done, total)
        part = model_limits(np.array(found), frames, R, confidence)
        part["r_squared_common"] = fit_quality(fitted, name)
        parts.append(part.assign_coords(kernel=list(KERNELS)))
    labels = xr.DataArray([MODELS[name] for name in names], dims="model", name="model")
    result = observe(others, confidence).merge(xr.concat(parts, labels))
    result["inside"] = (result["predicted_lower"] <= result["network"]) & (
        result["network"] <= result["predicted_upper"]
    )
    ratio = result["network_path"] / result["predicted_path"].sel(kernel=KERNELS[0])
    square = ratio.copy(data=np.log(ratio.values) ** 2)
    result["log_error"] = square.mean(("metric", "time"), skipna=False) ** 0.5
    result["log_error"].attrs["long_name"] = "error of the logarithm, over metrics and times"
    result = result.assign_attrs(
        preferred=min(whole_errors(result).items(), key=lambda item: item[1])[0],
        start=float(frames.time[0]),
        at=float(frames.time[-1]),
        spread=spread,
        confidence=confidence,
        draws=draws,
        fitted_replicates=R,
        predicted_replicates=others.sizes["replicate"],
        seed=seed,
    )
    return state_ranges(result)


def whole_errors(result: xr.Dataset) -> dict[str, tuple[int, float]]:
    """Of each model, at how many learning rates it diverges, and the mean ``log_error`` over those at which none does."""
    error = result["log_error"].transpose("model", "learning_rate").values
    fine = np.isfinite(error)
    common = fine.all(0)
    means = error[:, common].mean(1) if common.any() else np.full(len(error), np.inf)
    return {
        str(name): (int((~one).sum()), float(mean))
        for name, one, mean in zip(result["model"].values, fine, means, strict=True)
    }


def _transforms(given: Any, K: int, p: int) -> list[str]:
    if given is None:
        return list(MODELS) if p == K else ["identity"]
    names = [given] if isinstance(given, str) else list(given)
    names = list(dict.fromkeys(check_choice("transforms", name, MODELS) for name in names))
    if not names:
        raise ValueError("transforms must name at least one model; got none. Leave it out for all.")
    if "logits" in names and p != K:
        raise ValueError(
            f"transforms={shown(given)} needs one feature per class for 'logits'; paths have {K} classes "
            f"and {p} features. Use transforms='identity'."
        )
    return names
