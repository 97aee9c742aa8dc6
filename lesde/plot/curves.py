"""Curves with bands, one colour per learning rate, the key to them, and limits that hold them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from lesde.plot.frames import select_rate
from lesde.plot.style import OKABE_ITO, colours_of_rates, legend_above, stepped_bar
from lesde.plot.ticks import number

MOST_ENTRIES = 8
"""Above this many learning rates the key is a colour bar."""


class RateCell(NamedTuple):
    """The curves drawn in one colour."""

    rate: float | None
    data: xr.Dataset
    colour: Any


def rate_cells(
    dataset: xr.Dataset, name: str, learning_rate: float | None = None
) -> list[RateCell]:
    """The learning rates of a dataset in increasing order, or only the one asked for."""
    if learning_rate is not None or "learning_rate" not in dataset.dims:
        chosen, note = select_rate(dataset, learning_rate, name)
        # Named in the key only where the dataset has others.
        rate = float(chosen["learning_rate"]) if note else None
        return [RateCell(rate, chosen, OKABE_ITO[0])]
    select_rate(dataset, None, name)  # checks that the coordinate is there
    rates = dataset["learning_rate"].values.astype(np.float64)
    colours = [OKABE_ITO[0]] if len(rates) == 1 else colours_of_rates(rates)
    return [
        RateCell(float(rates[i]), dataset.isel(learning_rate=int(i)), colours[i])
        for i in np.argsort(rates)
    ]


def refuse_other_dims(variable: xr.DataArray, allowed: Sequence[str], name: str) -> None:
    """Raise where a variable has a dimension that the figure has no place for."""
    other = [str(d) for d in variable.dims if d not in allowed]
    if other:
        raise ValueError(
            f"{name} has the dimension {other[0]!r}, for which this figure has no place. Choose an "
            f"entry with {name}.isel({other[0]}=0)."
        )


def draw_band(ax: Axes, x: Any, low: Any, high: Any, colour: Any, several: bool) -> None:
    """A filled range; where there are ``several``, fainter and with an edge, so that they do not merge."""
    ax.fill_between(x, low, high, zorder=1, **_band_look(colour, several))


def band_patch(colour: Any, several: bool, label: str) -> Patch:
    """Legend entry of `draw_band`."""
    return Patch(**_band_look(colour, several), label=label)


def _band_look(colour: Any, several: bool) -> dict[str, Any]:
    if not several:
        return {"facecolor": to_rgba(colour, 0.22), "linewidth": 0}
    return {
        "facecolor": to_rgba(colour, 0.1),
        "edgecolor": to_rgba(colour, 0.75),
        "linewidth": 0.4,
    }


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
    """Legend of ``handles`` and learning rates above the axes; a colour bar for many rates.

    ``lines`` are the line styles of the cells, solid by default.
    """
    styles: list[Any] = ["-"] * len(cells) if lines is None else list(lines)
    rates = [cell.rate for cell in cells if cell.rate is not None]
    if len(rates) > MOST_ENTRIES:
        colours = [cell.colour for cell in cells]
        stepped_bar(axes, colours, [number(rate) for rate in rates], "learning rate")
        legend_above(axes, list(handles))
        return
    if len(rates) == 1 and handles:
        legend_above(axes, list(handles), f"learning rate {number(rates[0])}")
        return
    entries = [
        Line2D([], [], color=cell.colour, linestyle=line, label=number(cell.rate))
        for cell, line in zip(cells, styles, strict=True)
        if cell.rate is not None
    ]
    # Dashes need room to be distinguished.
    length = 3.0 if any(line != "-" for line in styles) else None
    if entries and handles:
        # One title cannot serve both kinds of entry, so the first rate says what the numbers are.
        entries[0].set_label(f"learning rate {entries[0].get_label()}")
        legend_above(axes, [*handles, *entries], handlelength=length)
    else:
        legend_above(axes, [*handles, *entries], "learning rate" if entries else None, length)


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
    reach = np.nan_to_num(np.maximum(high - values, values - low), nan=np.inf)
    bare = ~np.isfinite(low + high)
    usual = np.median(reach[(reach > 0) & ~bare]) if ((reach > 0) & ~bare).any() else 0.0
    better = np.concatenate([values[(reach <= FAR * usual) | (bare.all())], zeros])
    room = float(np.ptp(better)) if len(better) else 0.0
    most = FAR * max(float(usual), room)
    sure = (reach <= most) & ~bare
    near = sure.copy()
    if len(better):
        near |= (values >= better.min() - room) & (values <= better.max() + room)
    shown = np.concatenate([values[near], low[sure], high[sure], zeros])
    if not len(shown):
        return
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
