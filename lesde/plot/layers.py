"""Collapse through the layers of a network: against depth, and against time."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
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
    quantiles,
    refuse_other_dims,
    select_rate,
)
from lesde.plot.frames import at_times, evenly
from lesde.plot.style import (
    COLUMN,
    INK,
    LINES,
    OKABE_ITO,
    axis_label,
    colours_of_rates,
    legend_above,
    panels,
    positive,
    stepped_bar,
    style,
    title_of,
)
from lesde.plot.ticks import DIGIT, number, tidy_log, widen_log

__all__ = ["layers", "layers_over_time", "short_names"]

LONGEST = 22
"""Letters of a layer's name that are shown."""
USUAL_TIMES = 4
"""Times shown by default."""
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

    Returns
    -------
    matplotlib.axes.Axes

    Notes
    -----
    A metric that is 0 under perfect collapse has a logarithmic axis, on which values that are 0, NaN or
    infinite are left out; one with another target, such as an accuracy, a linear axis. Names of more
    than 22 letters are shortened; where there are too many, only some are written.

    Examples
    --------
    >>> result = lesde.layer_collapse(records)  # doctest: +SKIP
    >>> ax = lesde.plot.layers(result, "nc1_cdnv", times=[0, 1, 10])  # doctest: +SKIP
    """
    data, note = _read(result, metric, learning_rate)
    low, middle, high, log = _quantiles(data[metric], spread)
    chosen, labels, title = [0], [], ""
    if "time" in data[metric].dims:
        clock = data["time"].values.astype(np.float64)
        chosen = evenly(len(clock), USUAL_TIMES)
        if times is not None:
            chosen = sorted(at_times(clock, times, USUAL_TIMES))
        labels = [number(clock[i]) for i in chosen]
        title = axis_label(data.coords.get("time"), "time")
    elif times is not None:
        raise ValueError("times chooses among several; result is a single frame. Leave it out.")
    names = short_names([str(name) for name in data["layer"].values])
    room = (COLUMN - 0.6) / TICK / len(names) / DIGIT  # in letters, of one name
    longest = max(map(len, names))
    level = longest + 1.5 <= room
    target: Axes = panels(ax, 1, 1, 2.2 if level else 2.1 + DIGIT * TICK * longest)[0, 0]
    colours = _colours(len(chosen))
    x = np.arange(len(names))
    for i, colour in zip(chosen, colours, strict=True):
        for s in range(middle.shape[1]):
            target.plot(
                x, middle[:, s, i], color=colour, linestyle=LINES[s % len(LINES)], marker="o",
                markerfacecolor="white" if s else colour, zorder=3,
            )  # fmt: skip
            if data[metric].sizes.get("replicate", 1) > 1:
                several = len(chosen) * middle.shape[1] > 1
                draw_band(target, x, low[:, s, i], high[:, s, i], colour, several)
    _dress(target, data[metric], metric, log, note)
    target.set_xlim(-0.3, len(names) - 0.7)
    target.set_xlabel("layer")
    _key(target, data, labels, colours, title)
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

    Returns
    -------
    matplotlib.axes.Axes

    Examples
    --------
    >>> result = lesde.layer_collapse(records)  # doctest: +SKIP
    >>> ax = lesde.plot.layers_over_time(result, "nc1_cdnv")  # doctest: +SKIP
    """
    data, note = _read(result, metric, learning_rate)
    check_over_time(data, metric, "result", against)
    low, middle, high, log = _quantiles(data[metric], spread)
    names = short_names([str(name) for name in data["layer"].values])
    colours = _colours(len(names))
    x = data[against].values.astype(np.float64)
    target: Axes = panels(ax, 1, 1, 2.2)[0, 0]
    for i, colour in enumerate(colours):
        for s in range(middle.shape[1]):
            look = LINES[s % len(LINES)]
            target.plot(x, middle[i, s], color=colour, linestyle=look, zorder=3)
            if data[metric].sizes.get("replicate", 1) > 1:
                several = middle[..., 0].size > 1
                draw_band(target, x, low[i, s], high[i, s], colour, several)
    _dress(target, data[metric], metric, log, note)
    target.margins(x=0.02)
    target.set_xlabel(axis_label(data[against], against))
    legend = _key(target, data, names if len(names) > 1 else [], colours, "")
    if legend is not None and ax is None:
        figure: Any = target.figure
        figure.set_figheight(2.0 + legend.get_window_extent().height / figure.dpi)
    return target


def _read(result: Any, metric: Any, learning_rate: float | None) -> tuple[xr.Dataset, str]:
    """Check a dataset and take one learning rate of it."""
    check_instance("metric", metric, str, "the name of one metric")
    check_dataset("result", result, [metric], "lesde.layer_collapse")
    data, note = select_rate(result, learning_rate, "result")
    if "layer" not in data[metric].dims or "layer" not in data.coords:
        raise ValueError(
            f"result.{metric} must have the dimension 'layer' with the names of the layers; metrics of "
            f"the classifier belong to one layer: draw them with lesde.plot.collapse."
        )
    refuse_other_dims(data[metric], ("layer", "split", "replicate", "time"), "result")
    return data, note


def _quantiles(values: xr.DataArray, spread: float) -> tuple[Any, Any, Any, bool]:
    """Band and median (layer, split, time), and if their axis is logarithmic."""
    log = target_of(values) == 0 and bool(np.isfinite(positive(values)).any())
    found = quantiles(values, ("layer", "split", "time"), check_fraction("spread", spread), log)
    return found[0], found[1], found[2], log


def _dress(ax: Axes, values: xr.DataArray, metric: str, log: bool, note: str) -> None:
    if log:
        ax.set_yscale("log")
        tidy_log(ax, "y")
        widen_log(ax)
    ax.set_ylabel(SHORT.get(metric) or title_of(values, metric))
    ax.set_title(note)


def _colours(count: int) -> list[Any]:
    return [OKABE_ITO[0]] if count == 1 else colours_of_rates(range(count))


def _key(
    ax: Axes, data: xr.Dataset, labels: Sequence[str], colours: Sequence[Any], title: str
) -> Any:
    """Legend of the splits and the colours, above the axes; for many colours a bar beside them."""
    splits = [
        Line2D(
            [], [], color=INK, linestyle=LINES[i % len(LINES)], label=str(name).replace("_", " ")
        )
        for i, name in enumerate(data["split"].values if "split" in data.dims else [])
    ]
    if len(labels) > MOST_ENTRIES:
        stepped_bar(ax, colours, labels, title)
        labels = []
    if splits and labels and title:
        # One title cannot serve both kinds of entry, so the first says what the colours are.
        labels, title = [f"{title} {labels[0]}", *labels[1:]], ""
    lines = [Line2D([], [], color=c, label=each) for c, each in zip(colours, labels, strict=False)]
    return legend_above(ax, [*splits, *lines], title if labels else None, 2.2 if splits else None)


def short_names(names: Sequence[str]) -> list[str]:
    """Names of at most `LONGEST` letters where these still differ, else whole.

    Long ones lose the parts between dots that they all begin or end with, then their middle.
    """
    long = [name.split(".") for name in names if len(name) > LONGEST]
    first = last = 0
    if len(long) > 1:
        first = _alike(long)
        last = _alike([parts[:first:-1] for parts in long])
    tail = 2 * LONGEST // 3
    short = []
    for name in names:
        if len(name) > LONGEST:
            parts = name.split(".")
            core = ".".join(parts[first : len(parts) - last])
            name = "…" * bool(first) + core + "…" * bool(last)
        short.append(
            name if len(name) <= LONGEST else f"{name[: LONGEST - tail - 1]}…{name[-tail:]}"
        )
    return short if len(set(short)) == len(set(names)) else list(names)


def _alike(names: list[list[str]]) -> int:
    """Number of the first parts that are the same in all names."""
    together = zip(*names, strict=False)
    return len(list(itertools.takewhile(lambda parts: len(set(parts)) == 1, together)))
