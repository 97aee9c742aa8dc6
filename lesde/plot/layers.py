"""Collapse through the layers of a network: against depth, and against time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from lesde.analysis.collapse import target_of
from lesde.checks import check_fraction, check_instance
from lesde.paths import check_dataset
from lesde.plot.collapse import SHORT
from lesde.plot.curves import (
    MOST_ENTRIES,
    check_over_time,
    draw_band,
    evenly,
    quantiles,
    refuse_other_dims,
    select_rate,
)
from lesde.plot.frames import at_times
from lesde.plot.style import (
    COLUMN,
    INK,
    LINES,
    axis_label,
    colours_of_rates,
    legend_above,
    panels,
    positive,
    style,
    title_of,
)
from lesde.plot.ticks import DIGIT, number, tidy_log, widen_log

LONGEST = 22
"""Letters of a layer's name that are shown."""
TICK = 7 / 72
"""Size of the names in inches."""


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
    spread : float, default 0.8
        Share of the replicates in the band, as for `collapse`.
    ax : matplotlib Axes, optional
        A new figure is higher where names are long.

    Notes
    -----
    A metric that is 0 under perfect collapse has a logarithmic axis, on which values that are 0, NaN or
    infinite are left out; one with another target, such as an accuracy, a linear axis. Of names of
    more than 22 letters the end is shown; where there are too many, only some are written.

    Examples
    --------
    >>> result = lesde.layer_collapse(records)  # doctest: +SKIP
    >>> ax = lesde.plot.layers(result, "nc1_cdnv", times=[0, 1, 10])  # doctest: +SKIP
    """
    values, found, note = _read(result, metric, learning_rate, spread)
    chosen, labels, title = [0], [], ""
    if "time" in values.dims:
        clock = values["time"].values.astype(np.float64)
        chosen = evenly(len(clock), 4)
        if times is not None:
            chosen = sorted(at_times(clock, times, 4))
        labels = [number(clock[i]) for i in chosen]
        title = axis_label(values.coords.get("time"), "time")
    elif times is not None:
        raise ValueError("times chooses among several; result is a single frame. Leave it out.")
    names = short_names(values["layer"].values)
    longest = max(map(len, names))
    room = (COLUMN - 0.6) / TICK / len(names) / DIGIT  # in letters, of one name
    level = longest + 1.5 <= room
    target: Axes = panels(ax, 1, 1, 2.2 if level else 2.1 + DIGIT * TICK * longest)[0, 0]
    x, colours = np.arange(len(names)), colours_of_rates(range(len(chosen)))
    for i, colour in zip(chosen, colours, strict=True):
        several = len(chosen) * found.shape[1] > 1
        _lines(target, x, found[..., i], colour, several, values.sizes, "o")
    _dress(target, values, found, note)
    target.set_xlim(-0.3, len(names) - 0.7)
    target.set_xlabel("layer")
    _key(target, values, labels, colours, title)
    if level:
        target.set_xticks(x, names)
    else:
        # Slanted lines of text are apart by what is between them across their slant.
        at = x[:: int(np.ceil(2 / (room * DIGIT)))]
        slant: Any = {"rotation": 60, "ha": "right", "rotation_mode": "anchor"}
        target.set_xticks(at, [names[i] for i in at], **slant)
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
    """
    values, found, note = _read(result, metric, learning_rate, spread)
    check_over_time(values, "result", against)
    names = short_names(values["layer"].values)
    x, colours = values[against].values.astype(np.float64), colours_of_rates(range(len(names)))
    target: Axes = panels(ax, 1, 1, 2.2)[0, 0]
    for i, colour in enumerate(colours):
        _lines(target, x, found[:, :, i], colour, found[0, ..., 0].size > 1, values.sizes)
    _dress(target, values, found, note)
    target.margins(x=0.02)
    target.set_xlabel(axis_label(values[against], against))
    legend = _key(target, values, names if len(names) > 1 else [], colours)
    if legend is not None and ax is None:
        figure: Any = target.figure
        figure.set_figheight(2.0 + legend.get_window_extent().height / figure.dpi)
    return target


def _read(
    result: Any, metric: Any, learning_rate: float | None, spread: float
) -> tuple[xr.DataArray, np.ndarray, str]:
    """One metric at one learning rate, and its band and median (3, split, layer, time)."""
    check_instance("metric", metric, str, "the name of one metric")
    check_dataset("result", result, [metric], "lesde.layer_collapse")
    values, note = select_rate(result[metric], learning_rate, "result")
    if "layer" not in values.dims or "layer" not in values.coords:
        raise ValueError(
            f"result.{metric} must have the dimension 'layer' with the names of the layers; metrics of "
            f"the classifier belong to one layer: draw them with lesde.plot.collapse."
        )
    refuse_other_dims(values, ("layer", "split", "replicate", "time"), "result")
    found = quantiles(values, ("split", "layer", "time"), check_fraction("spread", spread))
    if target_of(values) == 0 and (found > 0).any():
        found = positive(found)
    return values, found, note


def _lines(
    ax: Axes, x: Any, found: np.ndarray, colour: Any, several: bool, sizes: Any, marker: str = ""
) -> None:
    """A line and its band (3, split, x) for every split; markers of the later splits are hollow."""
    for s, (low, middle, high) in enumerate(found.swapaxes(0, 1)):
        ax.plot(
            x, middle, color=colour, linestyle=LINES[s % len(LINES)], marker=marker,
            markerfacecolor="white" if s else colour, zorder=3,
        )  # fmt: skip
        if sizes.get("replicate", 1) > 1:
            draw_band(ax, x, low, high, colour, several)


def _dress(ax: Axes, values: xr.DataArray, found: np.ndarray, note: str) -> None:
    if target_of(values) == 0 and (found > 0).any():
        ax.set_yscale("log")
        tidy_log(ax, "y")
        widen_log(ax)
    name = str(values.name)
    ax.set_ylabel(SHORT.get(name) or title_of(values, name))
    ax.set_title(note)


def _key(
    ax: Axes, values: xr.DataArray, labels: Sequence[str], colours: Sequence[Any], title: str = ""
) -> Any:
    """Legend of the splits and the colours, above the axes; of many colours some."""
    names = values["split"].values.tolist() if "split" in values.dims else []
    splits = [
        Line2D([], [], color=INK, linestyle=look, label=str(name).replace("_", " "))
        for look, name in zip(LINES, names, strict=False)
    ]
    shown = evenly(len(labels), MOST_ENTRIES)
    labels, colours = [labels[i] for i in shown], [colours[i] for i in shown]
    if splits and labels and title:
        # One title cannot serve both kinds of entry, so the first says what the colours are.
        labels, title = [f"{title} {labels[0]}", *labels[1:]], ""
    lines = [Line2D([], [], color=c, label=each) for c, each in zip(colours, labels, strict=False)]
    return legend_above(ax, [*splits, *lines], title if labels else None, 2.2 if splits else None)


def short_names(names: Iterable[Any]) -> list[str]:
    """The ends of names, at most `LONGEST` letters, where these still differ; else whole names."""
    whole = [str(name) for name in names]
    short = [name if len(name) <= LONGEST else f"…{name[1 - LONGEST :]}" for name in whole]
    return short if len(set(short)) == len(set(whole)) else whole
