"""Curves with bands, one colour per learning rate, the key to them, and limits that hold them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import xarray as xr
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from lesde.checks import check_choice, check_real
from lesde.plot.style import OKABE_ITO, colours_of_rates, legend_above
from lesde.plot.ticks import number

MOST_ENTRIES = 8
"""Learning rates or layers that a key names; of more, some."""


class RateCell(NamedTuple):
    """The curves drawn in one colour."""

    rate: float | None
    data: xr.Dataset
    colour: Any


Data = TypeVar("Data", xr.Dataset, xr.DataArray)


def select_rate(dataset: Data, learning_rate: float | None, name: str) -> tuple[Data, str]:
    """One learning rate of a dataset, and words for it; the first where None is asked for."""
    if learning_rate is not None:
        check_real("learning_rate", learning_rate)
    if "learning_rate" not in dataset.coords:
        if learning_rate is None and "learning_rate" not in dataset.dims:
            return dataset, ""
        raise ValueError(
            f"{name} has no coordinate 'learning_rate' to choose from; add it with "
            f"{name}.assign_coords(learning_rate=...), or leave learning_rate out."
        )
    rates = np.atleast_1d(dataset["learning_rate"].values.astype(np.float64))
    near = np.isclose(rates, rates[0] if learning_rate is None else learning_rate, atol=0.0)
    if not near.any():
        raise ValueError(
            f"learning_rate must be one of {', '.join(f'{r:g}' for r in rates)}; got {learning_rate:g}."
        )
    if "learning_rate" not in dataset.dims:
        return dataset, ""
    note = f"learning rate {number(rates[near][0])}" if len(rates) > 1 else ""
    return dataset.isel(learning_rate=int(near.argmax())), note


def rate_cells(
    dataset: xr.Dataset, name: str, learning_rate: float | None = None
) -> list[RateCell]:
    """The learning rates of a dataset in increasing order, or only the one asked for."""
    chosen, note = select_rate(dataset, learning_rate, name)
    if learning_rate is not None or "learning_rate" not in dataset.dims:
        # Named in the key only where the dataset has others.
        return [RateCell(float(chosen["learning_rate"]) if note else None, chosen, OKABE_ITO[0])]
    data = dataset.sortby("learning_rate")
    rates = data["learning_rate"].values.astype(np.float64)
    return [
        RateCell(float(rate), data.isel(learning_rate=i), colour)
        for i, (rate, colour) in enumerate(zip(rates, colours_of_rates(rates), strict=True))
    ]


def refuse_other_dims(variable: xr.DataArray, allowed: Sequence[str], name: str) -> None:
    """Raise where a variable has a dimension that the figure has no place for."""
    other = [str(d) for d in variable.dims if d not in allowed]
    if other:
        raise ValueError(
            f"{name} has the dimension {other[0]!r}, for which this figure has no place. Choose an "
            f"entry with {name}.isel({other[0]}=0)."
        )


def check_over_time(values: xr.DataArray, name: str, against: str = "time") -> None:
    """Raise unless a metric is over time, with the clock it is to be drawn against."""
    check_choice("against", against, ("time", "iteration"))
    if "time" not in values.dims:
        raise ValueError(
            f"{name} must hold {values.name} over the dimension 'time'; it is a single frame."
        )
    if against not in values.coords:
        raise ValueError(f"against={against!r} needs the coordinate {against} in {name}.")


def quantiles(values: xr.DataArray, dims: Sequence[str], spread: float) -> np.ndarray:
    """Lower end of the band, median and upper end over replicates, (3, *dims); NaN where not finite.

    Dimensions that ``values`` lack have length 1.
    """
    missing = [d for d in ("replicate", *dims) if d not in values.dims]
    array = values.expand_dims(missing).transpose("replicate", *dims).values.astype(np.float64)
    levels = [(1 - spread) / 2, 0.5, (1 + spread) / 2]
    with np.errstate(invalid="ignore"):  # between two infinities
        found = np.quantile(array, levels, axis=0)
    return np.where(np.isfinite(found), found, np.nan)


def evenly(count: int, most: int) -> list[int]:
    """At most ``most`` of ``count`` positions, evenly spaced from the first to the last."""
    return sorted(set(np.linspace(0, count - 1, min(most, count)).round().astype(int).tolist()))


def draw_band(ax: Axes, x: Any, low: Any, high: Any, colour: Any, several: bool) -> None:
    """A filled range; where there are ``several``, fainter and with an edge, so that they do not merge."""
    ax.fill_between(x, low, high, zorder=1, **_band_look(colour, several))


def band_patch(colour: Any, several: bool, label: str) -> Patch:
    """Legend entry of `draw_band`."""
    return Patch(**_band_look(colour, several), label=label)


def _band_look(colour: Any, several: bool) -> dict[str, Any]:
    if not several:
        return {"facecolor": to_rgba(colour, 0.22), "linewidth": 0}
    faint, edge = to_rgba(colour, 0.1), to_rgba(colour, 0.75)
    return {"facecolor": faint, "edgecolor": edge, "linewidth": 0.4}


def nested_lines(count: int) -> list[Any]:
    """Line styles of curves that may coincide, in the order they are drawn in.

    All have one period; of ``count`` curves on one path, each shows in an equal part of it. Solid
    where there are too many to distinguish. Short dashes need a thin line below them to be followed.
    """
    if count == 1 or count > MOST_ENTRIES:
        return ["-"] * count
    part = max(2.0, 8.0 / count)
    return ["-", *((0, (part * (count - i), part * i)) for i in range(1, count))]


def rate_key(
    axes: Any,
    cells: Sequence[RateCell],
    handles: Sequence[Artist] = (),
    lines: Sequence[Any] | None = None,
) -> None:
    """Legend of ``handles`` and learning rates above the axes; of many rates some, evenly by rank.

    ``lines`` are the line styles of the cells, solid by default.
    """
    looks = zip(cells, lines or ["-"] * len(cells), strict=True)
    entries = [
        Line2D([], [], color=cell.colour, linestyle=line, label=number(cell.rate))
        for cell, line in looks
        if cell.rate is not None
    ]
    entries = [entries[i] for i in evenly(len(entries), MOST_ENTRIES)]
    title = "learning rate" if entries else None
    if entries and handles:
        # One title cannot serve both kinds of entry, so the first rate says what the numbers are.
        title = f"learning rate {entries[0].get_label()}"
        if len(entries) > 1:
            entries[0].set_label(title)
            title = None
        else:
            entries = []
    # Dashes need room to be distinguished.
    legend_above(axes, [*handles, *entries], title, 3.0 if lines and len(lines) > 1 else None)


FAR = 4.0
"""How much farther than usual a band may reach and still be shown whole."""
Curve = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Values and the ends of their band, NaN where not known."""


def limit_to_bands(ax: Axes, curves: Sequence[Curve], *, zero: bool = False) -> None:
    """Limits that hold curves and bands, but for what is known far worse than usual.

    A band is far too wide where it reaches beyond its curve by more than `FAR` times the usual reach
    (the median) and `FAR` times the range of what is known better: then it is cut off, and its value
    with it unless that is near the others. The axis spans at least half of the largest value shown, so
    that a constant looks like one. ``zero`` is shown if asked for.
    """
    values, low, high = (np.concatenate(part) for part in zip(*curves, strict=True))
    known = np.isfinite(values)
    values, low, high = values[known], low[known], high[known]
    zeros = np.zeros(int(zero))
    bare = ~np.isfinite(low + high)
    reach = np.where(bare, np.inf, np.maximum(high - values, values - low))
    usual = float(np.median(reach[(reach > 0) & ~bare])) if ((reach > 0) & ~bare).any() else 0.0
    better = np.concatenate([values[(reach <= FAR * usual) | bare.all()], zeros])
    room = float(np.ptp(better)) if len(better) else 0.0
    sure = reach <= FAR * max(usual, room)
    near = sure
    if len(better):
        near = sure | ((values >= better.min() - room) & (values <= better.max() + room))
    shown = np.concatenate([values[near], low[sure], high[sure], zeros])
    if len(shown):
        bottom, top = float(shown.min()), float(shown.max())
        least = 0.5 * max(abs(bottom), abs(top)) or 1.0
        middle, half = (bottom + top) / 2, 0.5 * max(1.1 * (top - bottom), least)
        ax.set_ylim(middle - half, middle + half)


def cell_edges(values: np.ndarray, log: bool) -> np.ndarray:
    """Bounds of cells around increasing values, midway between them on the axis they are shown on."""
    if len(values) == 1:  # a cell from half of it to twice it
        return values[0] * np.array([0.5, 2.0])
    v = np.log(values) if log else np.asarray(values, dtype=np.float64)
    middle = (v[1:] + v[:-1]) / 2
    edges = np.concatenate([[2 * v[0] - middle[0]], middle, [2 * v[-1] - middle[-1]]])
    return np.exp(edges) if log else edges
