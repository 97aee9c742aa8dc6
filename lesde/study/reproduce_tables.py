"""The numbers behind the figures of the published experiments, as tables."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from scipy.stats import t as student

from lesde.study.reproduce_analysis import RANGES, contrast, mean_interval, told
from lesde.study.reproduce_protocol import Protocol
from lesde.study.reproduce_transition import Crossing
from lesde.study.tables import with_interval

__all__ = [
    "beside_the_paper",
    "dynamics_table",
    "elasticity_table",
    "in_words",
    "level_table",
    "rate_table",
    "readable",
    "separation_table",
    "tail_table",
]

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
