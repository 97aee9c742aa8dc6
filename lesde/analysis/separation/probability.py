"""Probability that the classes of an ensemble of trajectories are separated: `separation_probability`."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import xarray as xr
from tqdm.auto import tqdm

from lesde.analysis.separation.counting import Counter, refuse_what_needs_samples
from lesde.analysis.separation.criteria import CRITERIA
from lesde.analysis.separation.intervals import METHODS, binomial_interval, replicates_to_add
from lesde.checks import (
    check_choice,
    check_flag,
    check_fraction,
    check_integer,
    check_real,
    check_times,
    shown,
)
from lesde.model.lesde import LESDE
from lesde.processes.process import BLOCK
from lesde.simulation import simulate

# float32 features of one batch
BATCH_BYTES = 1 << 27
MOST_IN_BATCH = 4096


def separation_probability(
    paths: Any,
    criterion: str = "projection",
    confidence: float = 0.95,
    interval: str = "wilson",
    direction: Any = "auto",
    precision: float | None = None,
    max_replicates: int = 65536,
    margin: bool = False,
    progress: bool = False,
    **simulation: Any,
) -> xr.Dataset:
    """Estimate the probability that the classes are separated, at every time.

    Parameters
    ----------
    paths : xarray.Dataset, LESDE or another process
        Trajectories, simulated or recorded: variable ``features`` with the dims sample and feature,
        replicate, and any others, which are kept; coordinate ``label`` (sample). Without replicate
        there is one trial. Or statistics of the classes, as `lesde.statistics` or
        ``lesde.simulate(..., keep="statistics")`` returns. Or a model or process, which is then simulated
        batch by batch; only counts are kept, so memory does not grow.
    criterion : str
        "projection": all samples of one class lie beyond all samples of the other along
        ``direction``. "linear": some hyperplane separates them. "nearest_center": each sample is
        nearer to its own class's mean than to the other's. All classes are separated at once where
        every pair is. Statistics do not determine "linear". Classes that touch, up to rounding, are not
        separated.
    confidence : float
        Of each interval by itself, between 0 and 1.
    interval : "wilson" or "clopper-pearson"
        See ``binomial_interval``.
    direction : "auto", "ensemble", "own", "initial" or array
        For "projection". "ensemble": along the gap of the class means averaged over replicates, at each
        time; a replicate whose noise put the classes in the opposite order is not separated. "own": along
        each replicate's own gap, for random initial means, whose average means nothing. "initial": the
        ensemble's at the first time. An array (feature,) serves every pair, its sign chosen by the ensemble
        gap; an array (class, class, feature) has at [k, l], k < l, the vector from class l to class k.
        "auto", the default: "ensemble" where the cosine between the class means (less their mean) of two
        replicates is above 1/2 on average, at the first time or at the last (0.99 with fewer than 8
        replicates, which can be that close by chance), else "own". Statistics know "own", and "ensemble"
        where they hold ``reach_expected``, along the expected gap of the law.
    precision : float, optional
        Largest half-width allowed for the widest interval of ``probability`` over times (and learning
        rates). With a model, replicates are added until it is reached; else a warning says what is missing.
    max_replicates : int
        Number at which adding stops.
    margin : bool
        Also return by how much they are separated: see Returns.
    progress : bool
        Show a bar over replicates (models only).
    **simulation
        Of a model, keywords of `lesde.simulate`: ``times`` (required), ``initial``, ``replicates`` (256;
        those to begin with), ``keep``, ...

    Returns
    -------
    xarray.Dataset
        ``probability``, ``lower``, ``upper``, ``successes`` (leading dims: [learning_rate,] time),
        ``pairwise``, ``pairwise_lower``, ``pairwise_upper`` (..., class, class_), symmetric and NaN
        on the diagonal, and the scalar ``trials``. With ``margin``: ``margin_mean`` and
        ``margin_std`` (..., class, class_) over replicates and, from a dataset, ``margin``
        (..., replicate, class, class_), in units of the features: the empty gap between the classes
        along the direction ("projection"), half the distance of the convex hulls in the sum norm
        ("linear"), the least distance of a sample to the plane between the means
        ("nearest_center"); negative, or 0 for "linear", where the pair is not separated. Of statistics of
        more than two classes whose attribute ``joint`` is 0 only the pairs' numbers are known; the others
        are NaN, with a warning.

    Notes
    -----
    The ensemble direction is estimated from the trajectories it is then used on (of a model, from the first
    batch), which biases the estimate upwards. With 2 classes of 10 samples in 50 dimensions and a true
    probability of 0.119, 8 replicates give 0.20 on average, 64 give 0.127; with 40 samples in 4 dimensions
    16 replicates are enough. Where p/(R n) is not small give the direction, or reduce the paths with
    ``lesde.statistics(paths, directions=lesde.law(model, paths.time, initial=means))``. With ``precision`` the
    number of replicates depends on the counts, which moves the coverage by about 0.01.

    Examples
    --------
    >>> prob = separation_probability(paths)  # doctest: +SKIP
    >>> prob = separation_probability(
    ...     model, precision=0.01, times=[0, 1, 2], initial=means
    ... )  # doctest: +SKIP
    """
    criterion = check_choice("criterion", criterion, CRITERIA)
    interval = check_choice("interval", interval, METHODS)
    confidence = check_fraction("confidence", confidence)
    limit = check_integer("max_replicates", max_replicates)
    margin, progress = check_flag("margin", margin), check_flag("progress", progress)
    if precision is not None:
        precision = check_real("precision", precision, 0.0, 0.5, open_minimum=True)
    counter = Counter(criterion, direction, margin)
    recorded = isinstance(paths, xr.Dataset)

    def missing() -> int:
        """Further replicates that the precision needs."""
        counts = counter.successes if counter.joint else counter.pairs
        lower, upper = binomial_interval(counts, counter.trials, confidence, interval)
        width = float((upper - lower).max() / 2.0)
        if precision is None or width <= precision:
            return 0
        return replicates_to_add(counter.trials, width, precision, BLOCK)

    if not recorded and not hasattr(paths, "counts"):
        raise TypeError(
            f"paths must be an xarray.Dataset of trajectories, or a lesde.LESDE or another process to "
            f"simulate; got {shown(type(paths).__name__)}."
        )
    if recorded and simulation:
        raise TypeError(
            f"{', '.join(simulation)}: keywords of the simulation need a model in place of "
            f"paths; got a dataset, which is already simulated."
        )
    if recorded:
        counter.add(paths)
    else:
        _simulate(counter, paths, limit, precision and missing, progress, simulation)
    if more := missing():
        warnings.warn(
            f"precision={precision:g} was not reached with {counter.trials} replicates; about {more} more are "
            f"needed. Raise max_replicates, or give a model to simulate.",
            UserWarning,
            stacklevel=2,
        )
    if not counter.joint:
        warnings.warn(
            "these statistics hold the law of each pair of classes, not that of all pairs at once "
            "(attribute joint is not 1): probability is NaN. Use pairwise, or keep='features'.",
            UserWarning,
            stacklevel=2,
        )

    n, dims, pair_dims = counter.trials, counter.dims, (*counter.dims, "class", "class_")
    # No number for all pairs at once where only the pairs' own laws are known.
    joint = 1.0 if counter.joint else np.nan
    off = np.where(np.eye(counter.pairs.shape[-1], dtype=bool), np.nan, 1.0)
    lower, upper = binomial_interval(counter.successes, n, confidence, interval)
    pair_lower, pair_upper = binomial_interval(counter.pairs, n, confidence, interval)
    data: dict[str, Any] = {
        "probability": (dims, counter.successes / n * joint),
        "lower": (dims, lower * joint),
        "upper": (dims, upper * joint),
        "successes": (dims, counter.successes if counter.joint else counter.successes * np.nan),
        "trials": ((), n),
        "pairwise": (pair_dims, counter.pairs / n * off),
        "pairwise_lower": (pair_dims, pair_lower * off),
        "pairwise_upper": (pair_dims, pair_upper * off),
    }
    if margin:
        mean, square = counter.moments / n
        data["margin_mean"] = (pair_dims, mean)
        data["margin_std"] = (pair_dims, np.sqrt(np.maximum(square - mean**2, 0.0)))
        if recorded:
            data["margin"] = ((*dims, "replicate", "class", "class_"), counter.margins)
    chosen = counter.direction if isinstance(counter.direction, str) else "given"
    about = {"criterion": criterion, "confidence": confidence, "interval": interval}
    return xr.Dataset(data, counter.coords, about | {"direction": chosen})


def _simulate(
    counter: Counter, model: Any, limit: int, missing: Any, progress: bool, options: dict[str, Any]
) -> None:
    """Simulate and count until the replicates asked for are reached, and those ``missing`` says, if given."""
    if "times" not in options:
        raise TypeError("times is required with a model: separation_probability(model, times=...).")
    times = check_times("times", options.pop("times"))
    wanted = check_integer("replicates", options.pop("replicates", 256), maximum=limit)
    if missing:
        wanted = min(-(-wanted // BLOCK) * BLOCK, limit)
    first = check_integer("first_replicate", options.pop("first_replicate", 0), minimum=0)
    if options.get("keep") == "statistics":
        refuse_what_needs_samples(counter.criterion, counter.direction)
    batch = _batch(model, times, options)
    with tqdm(total=wanted, unit="replicate", disable=not progress) as bar:
        while counter.trials < wanted:
            size = min(batch, wanted - counter.trials)
            start = first + counter.trials
            counter.add(simulate(model, times, replicates=size, first_replicate=start, **options))
            bar.update(size)
            if missing and counter.trials == wanted:
                bar.total = wanted = min(wanted + missing(), limit)


def _batch(model: Any, times: np.ndarray, options: dict[str, Any]) -> int:
    """Replicates per call, in whole blocks, so that a batch stays within ``BATCH_BYTES``."""
    if isinstance(model, LESDE):
        K, p = model.n_classes, model.n_features
        kept = options.get("keep") == "statistics"
        numbers = K * (p + p * p + 2 * K) if kept else int(np.sum(model.counts)) * p
        each = 4.0 * np.size(options.get("learning_rate", 1)) * len(times) * numbers
    else:  # a process says nothing of its sizes: a short run shows them
        short = simulate(model, times[:2], replicates=BLOCK, **options)
        each = short.nbytes / BLOCK * len(times) / 2
    return BLOCK * int(np.clip(BATCH_BYTES / each / BLOCK, 1, MOST_IN_BATCH // BLOCK))
