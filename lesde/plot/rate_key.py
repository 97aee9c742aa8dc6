"""Curves by learning rate: one cell of a dataset and one colour each, and the key to them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from matplotlib.artist import Artist
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from lesde.plot.canvas import legend_above, number
from lesde.plot.frames import select_rate
from lesde.plot.style import OKABE_ITO, colours_of_rates

__all__ = ["RateCell", "rate_cells", "rate_key", "refuse_other_dims"]

MOST_ENTRIES = 8
"""Above this many learning rates the key is a colour bar."""


class RateCell(NamedTuple):
    """What is drawn in one colour."""

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


def rate_key(axes: Any, cells: Sequence[RateCell], handles: Sequence[Artist] = ()) -> None:
    """Legend of ``handles`` and learning rates above the axes; a colour bar for many rates."""
    rates = [cell.rate for cell in cells if cell.rate is not None]
    if len(rates) > MOST_ENTRIES:
        flat = list(np.asarray(axes, dtype=object).ravel())
        figure: Figure = flat[0].figure
        norm = BoundaryNorm(np.arange(len(rates) + 1) - 0.5, len(rates))
        colours = ListedColormap([cell.colour for cell in cells])
        bar = figure.colorbar(
            ScalarMappable(norm, colours), ax=flat, aspect=30, fraction=0.05, pad=0.02
        )
        at = np.unique(np.linspace(0, len(rates) - 1, 6).round().astype(int))
        bar.set_ticks(list(at), labels=[number(rates[i]) for i in at])
        bar.ax.minorticks_off()
        bar.ax.tick_params(labelsize=7, width=0.6, length=2)
        bar.set_label("learning rate", size=8)
        bar.outline.set_linewidth(0.6)  # type: ignore[operator]
        legend_above(axes, list(handles))
        return
    if len(rates) == 1 and handles:
        legend_above(axes, list(handles), f"learning rate {number(rates[0])}")
        return
    lines = [
        Line2D([], [], color=cell.colour, label=number(cell.rate))
        for cell in cells
        if cell.rate is not None
    ]
    if lines and handles:
        # One title cannot serve both kinds of entry, so the first rate says what the numbers are.
        lines[0].set_label(f"learning rate {lines[0].get_label()}")
        legend_above(axes, [*handles, *lines])
    else:
        legend_above(axes, [*handles, *lines], "learning rate" if lines else None)
