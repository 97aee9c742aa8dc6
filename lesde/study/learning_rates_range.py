"""Where a network lies within a model's interval: limits, ranges of learning rates, and words."""

from __future__ import annotations

import numpy as np
import xarray as xr
from scipy.stats import t as student

__all__ = ["interval", "longest_run", "range_words", "state_ranges"]

NAMES = {"nc1": "NC1", "nc2_etf": "NC2"}


def interval(
    values: np.ndarray, axis: int, confidence: float, free: int, of_mean: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean of the values over an axis and limits by Student's t.

    ``of_mean``: for the mean, known from so many values. Otherwise for one more value like these.
    NaN wherever a value is not finite.
    """
    n = values.shape[axis]
    with np.errstate(invalid="ignore"):
        mean, scatter = values.mean(axis), values.std(axis, ddof=1)
    reach = student.ppf((1 + confidence) / 2, free) * scatter
    reach = reach * np.sqrt(1 / n if of_mean else 1 + 1 / n)
    return mean, mean - reach, mean + reach


def longest_run(inside: np.ndarray) -> tuple[int, int] | None:
    """First and last index of the longest unbroken run of True, the first of several; None for none."""
    best: tuple[int, int] | None = None
    start = None
    for i, yes in enumerate([*inside, False]):
        if yes and start is None:
            start = i
        elif not yes and start is not None:
            if best is None or i - start > best[1] - best[0] + 1:
                best = (start, i - 1)
            start = None
    return best


def state_ranges(result: xr.Dataset) -> xr.Dataset:
    """Add ``range_lowest``, ``range_highest`` and ``statement`` to a comparison.

    Parameters
    ----------
    result : xarray.Dataset
        With ``inside``, ``network``, ``predicted`` and the limits of the latter over ``learning_rate``, increasing, and the other
        dimensions of ``inside``.
    """
    dims = tuple(d for d in ("model", "kernel", "quantity", "metric") if d in result["inside"].dims)
    part = result.transpose(*dims, "learning_rate", ...)
    inside = part["inside"].values
    ends = np.full((2, *inside.shape[:-1]), np.nan)
    words = np.empty(inside.shape[:-1], dtype=object)
    h = part["learning_rate"].values
    for at in np.ndindex(*inside.shape[:-1]):
        run = longest_run(inside[at])
        if run is not None:
            ends[0][at], ends[1][at] = h[run[0]], h[run[1]]
        words[at] = range_words(part.isel(dict(zip(dims, at, strict=True))))
    result = result.assign(
        range_lowest=(dims, ends[0], {"long_name": "lowest learning rate of the range"}),
        range_highest=(dims, ends[1], {"long_name": "highest learning rate of the range"}),
        statement=(dims, words.astype(str)),
    )
    return result.assign_attrs(statement="\n".join(words.ravel()))


def range_words(cell: xr.Dataset) -> str:
    """What is to be said of one model, kernel, quantity and metric."""
    h = cell["learning_rate"].values
    inside = cell["inside"].values.astype(bool)
    metric = str(cell["metric"].values)
    name = NAMES.get(metric, metric)
    what = name if _is_value(cell) else f"rate of {name}"
    lead = f"{cell['model'].values}, kernel of {cell['kernel'].values}, {what}: "
    run = longest_run(inside)
    if run is None:
        return f"{lead}inside the interval at none of {len(h)} learning rates. {_misses(cell)}"
    low, high = h[run[0]], h[run[1]]
    stretch = f"at h = {low:g}" if run[0] == run[1] else f"from h = {low:g} to {high:g}"
    others = [f"{v:g}" for i, v in enumerate(h) if inside[i] and not run[0] <= i <= run[1]]
    also = f", and at {', '.join(others)}" if others else ""
    text = f"{lead}inside the interval {stretch}{also} ({_width(cell)})."
    return text if inside.all() else f"{text} {_misses(cell)}"


def _is_value(cell: xr.Dataset) -> bool:
    return str(cell["quantity"].values) == "value"


def _width(cell: xr.Dataset) -> str:
    """How much the widest interval allows that the network is in: one that allows anything says nothing."""
    part = cell.isel(learning_rate=np.flatnonzero(cell["inside"].values))
    if _is_value(cell):
        factor = float((part["predicted_upper"] / part["predicted"]).max())
        return f"within a factor of {factor:.2f} of the prediction"
    reach = float((part["predicted_upper"] - part["predicted"]).max())
    return f"within {reach:.2g} of the prediction"


def _misses(cell: xr.Dataset) -> str:
    """By how much the model misses where it does."""
    parts = []
    for i in np.flatnonzero(~cell["inside"].values.astype(bool)):
        one = cell.isel(learning_rate=int(i))
        network, model = one["network"].values, one["predicted"].values
        at = f"at {float(one['learning_rate']):g} "
        if not np.isfinite(model):
            parts.append(at + "the model diverges")
        elif _is_value(cell):
            parts.append(at + f"network/model = {np.divide(network, model):.2f}")
        else:
            parts.append(at + f"{network:.3g} against {model:.3g}")
    return "Outside: " + ", ".join(parts) + "."
