"""Collapse through the layers of a network: against depth, and against time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from lesde.analysis.collapse import target_of
from lesde.checks import check_choice, check_fraction, shown
from lesde.paths import check_dataset
from lesde.plot.collapse import SHORT
from lesde.plot.curves import MOST_ENTRIES, draw_band, refuse_other_dims
from lesde.plot.frames import at_times, select_rate
from lesde.plot.style import (
    INK,
    LINES,
    OKABE_ITO,
    SETTINGS,
    axis_label,
    check_panels,
    colours_of_rates,
    legend_above,
    panels,
    positive,
    stepped_bar,
    style,
    title_of,
)
from lesde.plot.ticks import DIGIT, number, tidy_log, widen_log

__all__ = [
    "LayerCurves",
    "key",
    "layers",
    "layers_over_time",
    "name_ticks",
    "read_layers",
    "set_scale",
    "short_names",
]


SOURCE = "lesde.layer_collapse"
LONGEST = 22
"""Letters of a layer's name that are shown."""


@dataclass(frozen=True)
class LayerCurves:
    """One metric of all layers at one learning rate."""

    low: np.ndarray  # (layer, split, time): the median over replicates and the ends of the band
    middle: np.ndarray
    high: np.ndarray
    banded: bool  # with several replicates
    layers: list[str]
    splits: list[str]  # empty where there are none; the axis then has length 1
    times: np.ndarray | None  # None for a single frame; the axis then has length 1
    log: bool
    data: xr.Dataset
    note: str  # the learning rate, where there are others

    def line(self, split: int) -> Any:
        """Line style of a split: the first is solid."""
        return LINES[split % len(LINES)]


def read_layers(
    result: Any, metric: str, learning_rate: float | None, spread: float
) -> LayerCurves:
    """Check a dataset and take one metric of it, at one learning rate."""
    if not isinstance(metric, str):
        raise TypeError(f"metric must be the name of one metric; got {shown(metric)}.")
    check_dataset("result", result, [metric], SOURCE)
    spread = check_fraction("spread", spread)
    data, note = select_rate(result, learning_rate, "result")
    values = data[metric]
    if "layer" not in values.dims or "layer" not in values.coords:
        raise ValueError(
            f"result.{metric} must have the dimension 'layer' with the names of the layers; it has "
            f"{', '.join(map(repr, values.dims)) or 'none'}. Metrics of the classifier belong to one "
            f"layer: draw them with lesde.plot.collapse."
        )
    if values.sizes["layer"] == 0:
        raise ValueError("result must hold at least one layer; got none.")
    refuse_other_dims(values, ("layer", "split", "replicate", "time"), "result")
    missing = [d for d in ("split", "replicate", "time") if d not in values.dims]
    full = values.expand_dims(missing).transpose("layer", "split", "replicate", "time")
    array = full.values.astype(np.float64)
    log = target_of(values) == 0 and bool(np.isfinite(positive(array)).any())
    with np.errstate(invalid="ignore"):  # between two infinities; left out below
        ends = np.quantile(array, [(1 - spread) / 2, 0.5, (1 + spread) / 2], axis=2)
    low, middle, high = positive(ends) if log else np.where(np.isfinite(ends), ends, np.nan)
    return LayerCurves(
        low,
        middle,
        high,
        array.shape[2] > 1,
        [str(name) for name in values["layer"].values],
        [str(name) for name in values["split"].values] if "split" in values.dims else [],
        data["time"].values.astype(np.float64) if "time" in values.dims else None,
        log,
        data,
        note,
    )


def set_scale(ax: Axes, curves: LayerCurves, metric: str) -> None:
    """Vertical scale and label: logarithmic where perfect collapse is 0, linear for a share."""
    if curves.log:
        ax.set_yscale("log")
        tidy_log(ax, "y")
        widen_log(ax)
    ax.set_ylabel(SHORT.get(metric) or title_of(curves.data[metric], metric))
    if curves.note:
        ax.set_title(curves.note)


def short_names(names: Sequence[str]) -> list[str]:
    """Names of at most `LONGEST` letters where these still differ, else whole.

    Cut in the middle; where that makes two alike, without the parts between dots that all long names
    begin or end with.
    """
    for way in (_middle, _between):
        short = way(list(names))
        if len(set(short)) == len(set(names)):
            return short
    return list(names)


def _middle(names: list[str]) -> list[str]:
    tail = 2 * LONGEST // 3
    head = LONGEST - tail - 1
    return [n if len(n) <= LONGEST else f"{n[:head]}…{n[-tail:]}" for n in names]


def _between(names: list[str]) -> list[str]:
    parts = {n: n.split(".") for n in names if len(n) > LONGEST}
    most = min(len(p) for p in parts.values()) - 1
    shared = list(zip(*(p[:most] for p in parts.values()), strict=True))
    first = next((i for i, each in enumerate(shared) if len(set(each)) > 1), most)
    ends = list(zip(*(p[:first:-1] for p in parts.values()), strict=False))
    last = next((i for i, each in enumerate(ends) if len(set(each)) > 1), len(ends))
    short = {
        n: ("…" if first else "") + ".".join(p[first : len(p) - last]) + ("…" if last else "")
        for n, p in parts.items()
    }
    return _middle([short.get(n, n) for n in names])


def name_ticks(ax: Axes, names: Sequence[str], own: bool) -> None:
    """Names of layers below a horizontal axis at 0, 1, …: level, slanted, or every so many.

    ``own`` says that the figure may be made higher to hold them.
    """
    size = float(SETTINGS["xtick.labelsize"])
    shown = short_names(names)
    dpi = ax.figure.dpi
    room = ax.bbox.width * 72 / dpi / max(1, len(shown))
    width = max(len(name) for name in shown) * DIGIT * size
    ax.xaxis.minorticks_off()
    if width + 0.8 * size <= room:
        ax.set_xticks(range(len(shown)), shown)
        return
    angle = 40 if width <= 9 * size else 60
    every = int(np.ceil(1.3 * size / (room * np.sin(np.radians(angle)))))
    at = range(0, len(shown), every)
    ax.set_xticks(at, [shown[i] for i in at], rotation=angle, ha="right", rotation_mode="anchor")
    if own:
        _grow(ax, width * np.sin(np.radians(angle)) / 72)


def _grow(ax: Axes, inches: float) -> None:
    """Make the figure of an axes higher."""
    figure: Any = ax.figure
    across, up = figure.get_size_inches()
    figure.set_size_inches(across, up + inches)


def key(
    ax: Axes, curves: LayerCurves, entries: Sequence[Artist], title: str | None, own: bool
) -> None:
    """Legend of the splits and the colours, above the axes.

    With many colours, a colour bar beside the axes explains them.
    """
    splits = [
        Line2D([], [], color=INK, linestyle=curves.line(i), label=name.replace("_", " "))
        for i, name in enumerate(curves.splits)
    ]
    if len(entries) > MOST_ENTRIES:
        named: list[Any] = list(entries)
        stepped_bar(ax, [e.get_color() for e in named], [str(e.get_label()) for e in named], title)
        entries = []
    handles = [*splits, *entries]
    if splits and entries and title:
        # One title cannot serve both kinds of entry, so the first says what the colours are.
        entries[0].set_label(f"{title} {entries[0].get_label()}")
        title = None
    legend = legend_above(ax, handles, title if entries else None, 2.2 if splits else None)
    if legend is not None and own:
        box = legend.get_window_extent()
        _grow(ax, max(0.0, box.height / ax.figure.dpi - 0.2))


USUAL_TIMES = 4
"""Times shown by default."""


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
