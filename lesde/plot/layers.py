"""Collapse through the layers of a network: against depth, and against time."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from lesde.checks import check_choice
from lesde.plot.canvas import axis_label, check_panels, number, panels
from lesde.plot.frames import at_times
from lesde.plot.layer_axes import (
    LayerCurves,
    key,
    name_ticks,
    read_layers,
    set_scale,
    short_names,
)
from lesde.plot.rate_key import draw_band
from lesde.plot.style import OKABE_ITO, colours_of_rates, style

__all__ = ["layers", "layers_over_time"]

USUAL_TIMES = 4
"""Times shown where none are asked for."""


@style()
def layers(
    result: xr.Dataset,
    metric: str = "ncc_accuracy",
    *,
    times: Any = None,
    learning_rate: float | None = None,
    spread: float = 0.8,
    ax: Axes | None = None,
) -> Axes:
    """A collapse metric against depth at several times of training, dark to light as time goes.

    Parameters
    ----------
    result : xarray.Dataset
        As `lesde.layer_collapse` returns: metrics over layer and possibly split, learning rate,
        replicate, time. The first split is solid, the second dashed.
    metric : str, default "ncc_accuracy"
    times : float or sequence of float, optional
        The nearest saved ones are shown. Default: four of the saved times from the first to the last,
        evenly spaced in their order.
    learning_rate : float, optional
        Default: the first.
    spread : float, default 0.8
        The line is the median over replicates, the band holds this share of the replicates in its
        middle. It shows how replicates differ, not how well their median is known. No band for a
        single replicate.
    ax : matplotlib Axes, optional
        Default: a new figure, one column wide, higher for long names.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    TypeError, ValueError
        For a dataset without the metric over layers, or arguments it does not fit.

    Notes
    -----
    A metric that is 0 under perfect collapse has a logarithmic axis, on which values that are 0, NaN or
    infinite are left out; one with another target, such as an accuracy, a linear axis. Names of more
    than 22 letters are cut in the middle; where there are too many, only some are written.

    Examples
    --------
    >>> result = lesde.layer_collapse(records)  # doctest: +SKIP
    >>> ax = lesde.plot.layers(result, "nc1_cdnv", times=[0, 1, 10])  # doctest: +SKIP
    """
    check_panels(ax, 1)
    curves = read_layers(result, metric, learning_rate, spread)
    if curves.times is None:
        chosen, labels = [0], []
    elif times is None:
        last = len(curves.times) - 1
        chosen = sorted({int(i) for i in np.linspace(0, last, USUAL_TIMES).round()})
    else:
        chosen = sorted(at_times(curves.times, times, USUAL_TIMES))
    if curves.times is None and times is not None:
        raise ValueError("times chooses among several; result is a single frame. Leave it out.")
    colours = _colours(len(chosen))
    target: Axes = panels(ax, 1, 1, 2.2)[0, 0]
    for i, colour in zip(chosen, colours, strict=True):
        _against_depth(target, curves, i, colour, len(chosen) * max(1, len(curves.splits)) > 1)
    set_scale(target, curves, metric)
    target.set_xlim(-0.3, len(curves.layers) - 0.7)
    target.set_xlabel("layer")
    if curves.times is not None:
        labels = [number(curves.times[i]) for i in chosen]
    entries: list[Artist] = [
        Line2D([], [], color=colour, label=label)
        for colour, label in zip(colours, labels, strict=False)
    ]
    key(target, curves, entries, axis_label(curves.data.coords.get("time"), "time"), ax is None)
    name_ticks(target, curves.layers, ax is None)
    return target


@style()
def layers_over_time(
    result: xr.Dataset,
    metric: str = "ncc_accuracy",
    *,
    against: str = "time",
    learning_rate: float | None = None,
    spread: float = 0.8,
    ax: Axes | None = None,
) -> Axes:
    """A collapse metric against time, a line for every layer, dark to light as depth grows.

    Parameters
    ----------
    result, metric, learning_rate, spread, ax
        As for `layers`.
    against : {"time", "iteration"}, default "time"
        Horizontal axis; ``"iteration"`` needs the coordinate of that name.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    TypeError, ValueError
        For a dataset without the metric over layers and time, or arguments it does not fit.

    Examples
    --------
    >>> result = lesde.layer_collapse(records)  # doctest: +SKIP
    >>> ax = lesde.plot.layers_over_time(result, "nc1_cdnv")  # doctest: +SKIP
    """
    check_panels(ax, 1)
    check_choice("against", against, ("time", "iteration"))
    curves = read_layers(result, metric, learning_rate, spread)
    if curves.times is None:
        raise ValueError(
            f"result must hold {metric} over the dimension 'time'; it is a single frame. Draw it with "
            f"lesde.plot.layers."
        )
    if against not in curves.data.coords:
        raise ValueError(
            f"against={against!r} needs the coordinate {against} in result; it has "
            f"{', '.join(map(str, curves.data.coords)) or 'none'}."
        )
    clock = curves.data[against]
    x = clock.values.astype(np.float64)
    colours = _colours(len(curves.layers))
    target: Axes = panels(ax, 1, 1, 2.2)[0, 0]
    several = curves.middle[..., 0].size > 1
    for i, colour in enumerate(colours):
        for s in range(curves.middle.shape[1]):
            style_of = curves.line(s)
            target.plot(x, curves.middle[i, s], color=colour, linestyle=style_of, zorder=3)
            if curves.banded:
                draw_band(target, x, curves.low[i, s], curves.high[i, s], colour, several)
    set_scale(target, curves, metric)
    target.margins(x=0.02)
    target.set_xlabel(axis_label(clock, against))
    entries: list[Artist] = [
        Line2D([], [], color=colour, label=name)
        for colour, name in zip(colours, short_names(curves.layers), strict=True)
    ]
    key(target, curves, entries if len(entries) > 1 else [], None, ax is None)
    return target


def _colours(count: int) -> list[Any]:
    return [OKABE_ITO[0]] if count == 1 else colours_of_rates(range(count))


def _against_depth(ax: Axes, curves: LayerCurves, t: int, colour: Any, several: bool) -> None:
    """All layers at one time, a line for every split; markers of the later splits are hollow."""
    x = np.arange(len(curves.layers))
    for s in range(curves.middle.shape[1]):
        ax.plot(
            x,
            curves.middle[:, s, t],
            color=colour,
            linestyle=curves.line(s),
            marker="o",
            markerfacecolor=colour if s == 0 else "white",
            zorder=3,
        )
        if not curves.banded:
            continue
        low, high = curves.low[:, s, t], curves.high[:, s, t]
        if len(x) == 1:  # a band of no width would not show
            ax.vlines(x, low, high, color=colour, linestyle=curves.line(s), linewidth=0.8)
        else:
            draw_band(ax, x, low, high, colour, several)
