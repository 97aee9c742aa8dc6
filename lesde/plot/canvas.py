"""Making and dressing axes: panels, labels, legends."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.lines import Line2D

from lesde.checks import shown
from lesde.plot.style import COLUMN, SETTINGS, class_line, class_marker, palette
from lesde.plot.ticks import number, tidy_log, widen_log

__all__ = [
    "axis_label",
    "check_panels",
    "class_handles",
    "legend_above",
    "number",
    "panels",
    "positive",
    "tidy_log",
    "title_of",
    "widen_log",
]


def check_panels(ax: Any, count: int, three_d: bool = False) -> None:
    """Raise unless ``ax`` is None, or as many axes of the right kind as there are panels."""
    if ax is None:
        return
    given = _flat(ax)
    wanted = "one matplotlib Axes" if count == 1 else f"{count} matplotlib Axes"
    if three_d:
        wanted += ' with projection="3d"'
    if not all(isinstance(a, Axes) for a in given):
        raise TypeError(f"ax must be {wanted}, or None for a new figure; got {shown(ax)}.")
    if len(given) != count:
        raise ValueError(f"ax must be {wanted}, one for every panel; got {len(given)}.")
    if three_d and any(a.name != "3d" for a in given):
        raise ValueError(f"ax must be {wanted}; got axes with projection {given[0].name!r}.")


def _flat(ax: Any) -> np.ndarray:
    """Axes, or whatever it is, one after another."""
    return np.asarray(
        ax if isinstance(ax, list | tuple | np.ndarray) else [ax], dtype=object
    ).ravel()


def panels(
    ax: Any,
    rows: int,
    columns: int,
    height: float,
    *,
    projection: str | None = None,
    sharex: Any = False,
) -> np.ndarray:
    """Axes of shape (rows, columns): those given, or those of a new figure ``height`` inches high."""
    if ax is not None:
        return np.asarray(ax, dtype=object).reshape(rows, columns)
    import matplotlib.pyplot as plt

    figure = plt.figure(figsize=(COLUMN, height))
    keywords = {} if projection is None else {"projection": projection}
    axes = figure.subplots(rows, columns, squeeze=False, sharex=sharex, subplot_kw=keywords)
    for each in axes.ravel():
        fix_ticks(each)
    return axes


def fix_ticks(ax: Axes) -> None:
    """Write the tick style into the axes: ticks are made at drawing time, when the style is over."""
    set_ticks: Any = ax.tick_params
    for axis in ("x", "y"):
        for which in ("major", "minor"):
            set_ticks(
                axis=axis,
                which=which,
                labelsize=SETTINGS[f"{axis}tick.labelsize"],
                width=SETTINGS[f"{axis}tick.{which}.width"],
                length=SETTINGS[f"{axis}tick.{which}.size"],
                color=SETTINGS[f"{axis}tick.color"],
                labelcolor=SETTINGS[f"{axis}tick.color"],
                direction="out",
            )


def axis_label(variable: xr.DataArray | None, default: str) -> str:
    """Long name and units of a variable, or ``default`` for a name it does not have."""
    attrs = {} if variable is None else variable.attrs
    name = str(attrs.get("long_name") or default)
    units = str(attrs.get("units") or "")
    return name if units in ("", "1") else f"{name} ({units})"


def title_of(variable: xr.DataArray, name: str, width: int = 26) -> str:
    """The long name of a variable in lines of at most ``width`` characters, or its name."""
    return "\n".join(textwrap.wrap(axis_label(variable, name).rstrip("."), width))


def positive(values: Any) -> np.ndarray:
    """Values for a logarithmic axis: NaN in place of what has no logarithm."""
    array = np.asarray(values, dtype=np.float64)
    return np.where(np.isfinite(array) & (array > 0), array, np.nan)


def class_handles(classes: Sequence[int], n_classes: int, linestyle: bool = True) -> list[Line2D]:
    """Legend entries of classes: colour, marker and line."""
    colours = palette(n_classes)
    return [
        Line2D(
            [],
            [],
            color=colours[k],
            marker=class_marker(k),
            linestyle=class_line(k) if linestyle else "none",
            label=str(k),
        )
        for k in classes
    ]


def legend_above(
    axes: Any,
    handles: Sequence[Artist],
    title: str | None = None,
    handlelength: float | None = None,
) -> Legend | None:
    """A legend above the axes, where it covers nothing, in as few rows as fit.

    Over all panels of a figure where there are several, else over the one.
    """
    if not handles:
        return None
    several = np.asarray(axes, dtype=object).ravel()
    first: Axes = several[0]
    figure: Any = first.figure
    whole = set(several) == set(figure.axes)
    if whole and isinstance(figure, Figure):
        room = figure.bbox.width
        owner: Any = figure
        place: dict[str, Any] = {"loc": "outside upper center"}
    else:
        room, owner = first.bbox.width, first
        place = {"loc": "lower center", "bbox_to_anchor": (0.5, 1.01)}
        if any(a.get_title() for a in several):
            place["bbox_to_anchor"] = (0.5, 1.12)
    for columns in range(len(handles), 0, -1):
        # Equal rows: 10 entries that do not fit in one row are better 5 + 5 than 9 + 1.
        rows = -(-len(handles) // columns)
        if columns > 1 and -(-len(handles) // rows) != columns:
            continue
        legend = owner.legend(
            handles=list(handles), ncols=columns, title=title, handlelength=handlelength, **place
        )
        # The room is that of the axes: ticks and labels are beside them.
        if columns == 1 or legend.get_window_extent().width <= room:
            return legend
        legend.remove()
    return None
