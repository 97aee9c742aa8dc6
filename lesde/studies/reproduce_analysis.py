"""The numbers behind the figures of the published experiments, as tables."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import xarray as xr
from scipy.stats import t as student

import lesde
from lesde.analysis.elasticity.kernel import fitted_kernel
from lesde.analysis.elasticity.published import published_elasticity
from lesde.networks import drawn_means
from lesde.studies.reproduce_trainings import Protocol
from lesde.text import with_interval

__all__ = [
    "ESTIMATOR",
    "MODELS",
    "RANGES",
    "Crossing",
    "beside_the_paper",
    "contrast",
    "crossing",
    "determined",
    "drawn_paths",
    "dynamics_table",
    "elasticity_table",
    "first_known",
    "fit_models",
    "in_words",
    "level_table",
    "mean_interval",
    "measure_level",
    "ode_errors",
    "rate_table",
    "readable",
    "run_odes",
    "separation_table",
    "tail_table",
    "told",
]


# --------------------------------------------------------------------------------------------------
# What the figures of the published experiments show, from the trainings.

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
        law = lesde.law(model, times, initial=initial)[["mean"]]
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


# --------------------------------------------------------------------------------------------------
# Where a quantity measured in trials at several levels crosses a value, with an interval.


class Crossing(NamedTuple):
    """The level at which a mean over trials crosses a target.

    ``value`` is NaN where it does not cross between the levels. ``lower`` and ``upper`` are −inf and inf where the
    interval goes beyond the levels, and NaN where no level is in it.
    """

    value: float
    lower: float
    upper: float

    @property
    def bounded(self) -> bool:
        """Whether both ends of the interval lie between the levels."""
        return bool(np.isfinite([self.lower, self.upper]).all())


def crossing(
    levels: np.ndarray, values: np.ndarray, target: float = 0.0, confidence: float = 0.95
) -> Crossing:
    """The level at which the mean of a falling quantity is at the target.

    Parameters
    ----------
    levels : array (L,)
        Increasing.
    values : array (trial, L)
        One trial's values at all levels; trials are independent, the values of one need not be.
    target : float
    confidence : float
        Of the interval.

    Returns
    -------
    Crossing

    Notes
    -----
    Between levels, values are interpolated linearly, each trial's on its own. The estimate is where the means over trials
    fall through the target; of several such places, that nearest to where their isotonic regression does. The interval holds every level at which a t-test over trials of the interpolated
    values does not reject the target (Fieller's theorem, piece by piece), and what lies between such levels. For normal values
    that test is exact however few trials there are, but for the error of interpolating.

    Raises
    ------
    ValueError
        With fewer than two levels or trials, or shapes that do not fit.
    """
    x, y = np.asarray(levels, dtype=np.float64), np.asarray(values, dtype=np.float64) - target
    _check(x, y)
    quantile = float(student.ppf((1 + confidence) / 2, len(y) - 1))
    mean, covariance = y.mean(0), np.atleast_2d(np.cov(y.T)) * (quantile**2 / len(y))
    value = _where_zero(x, mean)
    kept = [
        (x[i] + share * (x[i + 1] - x[i]))
        for i in range(len(x) - 1)
        for share in _kept(mean[i : i + 2], covariance[i : i + 2, i : i + 2])
    ]
    if not kept:
        return Crossing(value, np.nan, np.nan)
    lower = -np.inf if min(kept) == x[0] else float(min(kept))
    upper = np.inf if max(kept) == x[-1] else float(max(kept))
    return Crossing(value, lower, upper)


def _check(levels: np.ndarray, values: np.ndarray) -> None:
    if levels.ndim != 1 or len(levels) < 2 or (np.diff(levels) <= 0).any():
        raise ValueError("levels must be at least two increasing numbers.")
    if values.ndim != 2 or values.shape[1] != len(levels) or len(values) < 2:
        raise ValueError(
            f"values must be of shape (trial, {len(levels)}) with at least two trials; got {values.shape}."
        )


def _kept(mean: np.ndarray, spread: np.ndarray) -> list[float]:
    """Ends of the shares of the way between two levels where the square of the mean is at most its spread."""
    # Both are quadratic in the share: the difference is positive where the target is rejected.
    step = np.array([-1.0, 1.0])
    a = mean[1] ** 2 + mean[0] ** 2 - 2 * mean[0] * mean[1] - step @ spread @ step
    b = 2 * (mean[0] * (mean[1] - mean[0]) - spread[0] @ step)
    c = mean[0] ** 2 - spread[0, 0]
    root = b * b - 4 * a * c
    # Without spread the parabola touches zero, and rounding must not lift it off.
    root = np.sqrt(root) if root > 0 else (0.0 if root > -1e-9 * b * b else np.nan)
    # The form that does not cancel: q/a and c/q.
    q = -(b + np.copysign(root, b)) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        roots = np.divide([q, c], [a, q])
    inside = [float(share) for share in roots if 0 <= share <= 1]
    ends = [share for share in (0.0, 1.0) if a * share**2 + b * share + c <= 0]
    return inside + ends


def _falling(values: np.ndarray) -> np.ndarray:
    """The nearest values that nowhere rise (pool adjacent violators, equal weights)."""
    pools: list[tuple[float, int]] = []
    for value in values:
        pools.append((float(value), 1))
        while len(pools) > 1 and pools[-2][0] < pools[-1][0]:
            (a, n), (b, m) = pools[-2:]
            pools[-2:] = [((a * n + b * m) / (n + m), n + m)]
    return np.concatenate([np.full(n, value) for value, n in pools])


def _where_zero(x: np.ndarray, values: np.ndarray) -> float:
    """Where the line through the values falls through zero; of several such places, that nearest to where
    the falling values do."""
    smooth = _falling(values)
    if not smooth[0] > 0 > smooth[-1]:
        return float("nan")
    place = _through_zero(x, smooth)
    down = np.flatnonzero((values[:-1] > 0) & (values[1:] <= 0))
    share = values[down] / (values[down] - values[down + 1])
    falls = x[down] + share * np.diff(x)[down]
    return float(falls[np.argmin(np.abs(falls - place))])


def _through_zero(x: np.ndarray, falling: np.ndarray) -> float:
    """The middle of where falling values are zero, or the place between that the line through them is."""
    zero = np.flatnonzero(falling == 0)
    if len(zero):
        return float((x[zero[0]] + x[zero[-1]]) / 2)
    after = int(np.searchsorted(-falling, 0.0))
    high, low = falling[after - 1], falling[after]
    return float(x[after - 1] + (x[after] - x[after - 1]) * high / (high - low))


# --------------------------------------------------------------------------------------------------

PRINTED = {"loss": 1.099815, "accuracy": 0.333333}
"""Of one trial at iteration 0, printed with the authors' code, github.com/zjiayao/le_sde."""

ROWS = 8
"""Times in a table."""


def readable(table: pd.DataFrame) -> tuple[list[str], list[list[Any]]]:
    """Header and rows, with the columns x, x_lower, x_upper put as one: 1.2 [1.1, 1.3]."""
    ends = ("_lower", "_upper")
    plain = {"lower", "upper"} <= set(table.columns)
    with_ends = [name for name in table.columns if f"{name}_lower" in table.columns]
    if plain:
        with_ends.append("margin")
    header = [
        name
        for name in table.columns
        if not (name.endswith(ends) and name.rsplit("_", 1)[0] in with_ends)
        and not (plain and name in ("lower", "upper"))
    ]
    rows = []
    for _, row in table.iterrows():
        cells: list[Any] = []
        for name in header:
            if name in with_ends:
                low, high = ("lower", "upper") if plain else (f"{name}_lower", f"{name}_upper")
                cells.append(with_interval(row[name], row[low], row[high]))
            elif name in ("theory", "published") and np.isfinite(row[name]):
                cells.append(f"{row[name]:.5g}")  # as many digits as what is beside it
            else:
                cells.append(row[name])
        rows.append(cells)
    return [name.replace("_", " ") for name in header], rows


def separation_table(paths: xr.Dataset, names: tuple[str, ...], confidence: float) -> pd.DataFrame:
    """Figure 1: own logit less the mean of the others, of each class, at the start, the middle, the end."""
    values = paths["features"].transpose("replicate", "time", "sample", "feature").values
    K = values.shape[-1]
    own = np.einsum("rtkk->rtk", values)
    margin = own - (values.sum(-1) - own) / (K - 1)
    last = values.shape[1] - 1
    rows = []
    for at in (0, last // 2, last):
        for k, name in enumerate([*names, "all"]):
            one = contrast(values[:, at]) if name == "all" else margin[:, at, k]
            mean, low, high = mean_interval(one, confidence)
            time = float(paths["time"].values[at])
            rows.append({"time": time, "class": name, "margin": mean, "lower": low, "upper": high})
    return pd.DataFrame(rows)


def elasticity_table(fits: dict[str, xr.Dataset], published: dict[str, xr.Dataset]) -> pd.DataFrame:
    """Figure 3: Â and B̂ of both models with their intervals, and those of the published inversion."""
    rows = []
    for model, fit in fits.items():
        old = published[model].sel(time=fit["time"].values)
        for i in np.unique(np.linspace(0, fit.sizes["time"] - 1, ROWS).round().astype(int)):
            row = {"model": model, "time": float(fit["time"].values[i])}
            for name in ("A", "B", "A_minus_B"):
                for end in ("", "_lower", "_upper"):
                    row[name + end] = float(fit[name + end].values[i])
                row[f"{name}_published"] = float((old[name][i] - old[name][0]).values)
            rows.append(row)
    return pd.DataFrame(rows)


def rate_table(fits: dict[str, xr.Dataset]) -> pd.DataFrame:
    """Figure 3: α̂ and β̂ of both models with their intervals."""
    rows = []
    for model, fit in fits.items():
        for i in np.unique(np.linspace(0, fit.sizes["interval"] - 1, ROWS).round().astype(int)):
            row = {"model": model, "time": float(fit["interval"].values[i])}
            for name in ("alpha", "beta", "alpha_minus_beta"):
                for end in ("", "_lower", "_upper"):
                    row[name + end] = float(fit[name + end].values[i])
            rows.append(row)
    return pd.DataFrame(rows)


def level_table(levels: xr.Dataset, confidence: float) -> pd.DataFrame:
    """Figure 4: validation at the end of training, means over trials with intervals, by noise level."""
    end = levels.isel(time=-1)
    quantities = {name: end[name] for name in ("loss", "accuracy", "contrast")}
    return _by_level(levels, quantities, confidence)


def tail_table(levels: xr.Dataset, confidence: float) -> pd.DataFrame:
    """Figure 4: Â − B̂ and tail indices by the published inversion of each trial, means with intervals, by noise level."""
    quantities = {}
    for model in levels["model"].values:
        short = str(model)[0]
        quantities[f"A_minus_B_{short}"] = levels["A_minus_B"].sel(model=model)
        for rate in levels["rate"].values:
            quantities[f"r_{rate}_{short}"] = levels["tail_index"].sel(model=model, rate=rate)
    return _by_level(levels, quantities, confidence)


def _by_level(
    levels: xr.Dataset, quantities: dict[str, xr.DataArray], confidence: float
) -> pd.DataFrame:
    rows = []
    for p in levels["noise_level"].values:
        row = {"noise_level": float(p)}
        for name, values in quantities.items():
            within = RANGES.get(name, (-np.inf, np.inf))
            found = mean_interval(values.sel(noise_level=p).values, confidence, within)
            for end, value in zip(("", "_lower", "_upper"), found, strict=True):
                row[name + end] = float(value)
        rows.append(row)
    return pd.DataFrame(rows)


def beside_the_paper(
    levels: xr.Dataset, crossings: dict[str, Crossing], protocol: Protocol
) -> pd.DataFrame:
    """What the paper, its data or its theory say in numbers, and what was measured."""
    start = levels.isel(time=0).sel(noise_level=0.0)
    rows = []
    names = {
        "loss": "validation loss before training",
        "accuracy": "validation accuracy before training",
    }
    for name, words in names.items():
        mean, low, high = mean_interval(start[name].values, protocol.confidence, RANGES[name])
        row = {
            "quantity": words,
            "theory": {"loss": np.log(protocol.classes)}.get(name, 1 / protocol.classes),
        }
        published = PRINTED[name] if protocol.data == "geomnist" else np.nan
        rows.append(
            row | {"published": published, "ours": mean, "ours_lower": low, "ours_upper": high}
        )
    for name, found in crossings.items():
        row = {
            "quantity": f"critical p by {name}",
            "theory": protocol.critical,
            "published": np.nan,
        }
        rows.append(
            row | {"ours": found.value, "ours_lower": found.lower, "ours_upper": found.upper}
        )
    return pd.DataFrame(rows)


def in_words(
    quantity: str,
    found: Crossing,
    critical: float,
    confidence: float,
    levels: np.ndarray | None = None,
) -> str:
    """The transition as a statement; with the noise levels, also where they are too far apart for one."""
    name, theory = f"Critical p by {quantity}", f"theory {critical:.3f}"
    below, above = found.lower == -np.inf, found.upper == np.inf
    if np.isnan(found.lower):
        return f"{name}: not found between the noise levels; {theory}."
    if below and above:
        return f"{name}: not determined by these trials; {theory}."
    inside = found.lower <= critical <= found.upper
    if quantity.startswith("tail index") and not (below or above):
        where = "lies in this range" if inside else "lies outside of this range"
        return (
            f"{quantity[0].upper()}{quantity[1:]}: not below 1 ({confidence:.0%}) for p in [{found.lower:.3f}, {found.upper:.3f}]; "
            f"{theory}, which {where}."
        )
    if below or above:
        bound = f"below {found.upper:.3f}" if below else f"above {found.lower:.3f}"
        side = "below" if below else "above"
        verdict = "which does not contradict" if inside else "which contradicts"
        return f"{name}: {bound}, not bounded from {side} ({confidence:.0%}), {verdict} {theory}."
    where = "lies in the interval" if inside else "lies outside of the interval"
    value = f"{found.value:.3f} " if np.isfinite(found.value) else "in "
    text = f"{name}: {value}[{found.lower:.3f}, {found.upper:.3f}] ({confidence:.0%}); {theory}, which {where}."
    # At a level there is nothing to interpolate.
    if inside or levels is None or np.isclose(levels, critical).any():
        return text
    # Between levels a straight line stands in for the curve.
    low, high = sorted((critical, found.lower if critical < found.lower else found.upper))
    between = (levels > low) & (levels < high)
    if between.any() or not (levels[0] <= low < high <= levels[-1]):
        return text
    below, above = levels[levels <= low].max(), levels[levels >= high].min()
    return (
        f"{text} But no noise level lies between them, and how values run from p = {below:.3g} to {above:.3g} is not known: "
        f"add levels there."
    )


def dynamics_table(
    paths: xr.Dataset,
    laws: dict[str, xr.Dataset],
    fits: dict[str, xr.Dataset],
    errors: dict[str, tuple[float, float, float]],
    confidence: float,
) -> pd.DataFrame:
    """Figure 5: how far the LE-ODE is from the networks' class means.

    ``to_time``: to where the rates are told, and the LE-ODE runs. ``error``: root of the mean square difference over classes,
    logits and times, relative to that of the class means, with its interval. ``inside``: share of the means that the LE-ODE is within the interval of. ``r_squared_common``: of the movement that the
    trials have in common, the share that the fitted rates explain, with its interval.
    """
    rows = []
    for model, law in laws.items():
        law = told(law)
        part = paths["features"].sel(time=law["time"].values)
        values = part.transpose("replicate", "time", "sample", "feature").values
        mean = values.mean(0)
        error = values.std(0, ddof=1) / np.sqrt(len(values))
        reach = student.ppf((1 + confidence) / 2, len(values) - 1) * error
        apart = law["mean"].values - mean
        fit = fits[model]
        times = law["time"].values
        row = {"model": model, "from_time": float(times[0]), "to_time": float(times[-1])}
        row |= dict(zip(("error", "error_lower", "error_upper"), errors[model], strict=True))
        # At its start the LE-ODE is at the networks' means.
        within = (np.abs(apart) <= reach)[1:]
        row["inside"] = float(within.mean()) if within.size else float("nan")
        for end in ("", "_lower", "_upper"):
            row[f"r_squared_common{end}"] = float(fit[f"r_squared_common{end}"])
        rows.append(row)
    return pd.DataFrame(rows)
