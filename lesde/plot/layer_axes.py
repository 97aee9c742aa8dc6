"""What figures of a network's layers share: their curves, names, keys and room for both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.lines import Line2D

from lesde.analysis.collapse import target_of
from lesde.checks import check_dataset, check_fraction, shown
from lesde.plot.canvas import legend_above, positive, tidy_log, title_of, widen_log
from lesde.plot.frames import select_rate
from lesde.plot.metrics import SHORT
from lesde.plot.rate_key import MOST_ENTRIES, refuse_other_dims
from lesde.plot.style import INK, LINES, SETTINGS
from lesde.plot.ticks import DIGIT

__all__ = ["LayerCurves", "key", "name_ticks", "read_layers", "set_scale", "short_names"]

SOURCE = "lesde.layer_collapse"
LONGEST = 22
"""Letters of a layer's name that are shown."""


@dataclass(frozen=True)
class LayerCurves:
    """One metric of all layers at one learning rate.

    Attributes
    ----------
    low, middle, high : ndarray, shape (layer, split, time)
        Median over replicates, and the ends of the band; NaN where there is nothing to draw.
    banded : bool
        Whether there are several replicates.
    layers, splits : list of str
        ``splits`` is empty where there are none; the axis then has length 1.
    times : ndarray, shape (time,), or None
        None for a single frame; the axis then has length 1.
    log : bool
        Whether the values belong on a logarithmic axis.
    data : xarray.Dataset
        Where they are from.
    note : str
        The learning rate, where there are others.
    """

    low: np.ndarray
    middle: np.ndarray
    high: np.ndarray
    banded: bool
    layers: list[str]
    splits: list[str]
    times: np.ndarray | None
    log: bool
    data: xr.Dataset
    note: str

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
    """Names of at most `LONGEST` letters where they can still be told apart, else whole.

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
        grow(ax, width * np.sin(np.radians(angle)) / 72)


def grow(ax: Axes, inches: float) -> None:
    """Make the figure of an axes higher."""
    figure: Any = ax.figure
    across, up = figure.get_size_inches()
    figure.set_size_inches(across, up + inches)


def key(
    ax: Axes, curves: LayerCurves, entries: Sequence[Artist], title: str | None, own: bool
) -> None:
    """Legend of the splits and of what the colours mean, above the axes.

    Where the colours mean many things, they are in a colour bar beside the axes.
    """
    splits = [
        Line2D([], [], color=INK, linestyle=curves.line(i), label=name.replace("_", " "))
        for i, name in enumerate(curves.splits)
    ]
    if len(entries) > MOST_ENTRIES:
        _bar(ax, entries, title)
        entries = []
    handles = [*splits, *entries]
    if splits and entries and title:
        # One title cannot serve both kinds of entry, so the first says what the colours are.
        entries[0].set_label(f"{title} {entries[0].get_label()}")
        title = None
    legend = legend_above(ax, handles, title if entries else None, 2.2 if splits else None)
    if legend is not None and own:
        box = legend.get_window_extent()
        grow(ax, max(0.0, box.height / ax.figure.dpi - 0.2))


def _bar(ax: Axes, entries: Sequence[Any], title: str | None) -> None:
    count = len(entries)
    mapped = ScalarMappable(
        BoundaryNorm(np.arange(count + 1) - 0.5, count),
        ListedColormap([entry.get_color() for entry in entries]),
    )
    bar = ax.figure.colorbar(mapped, ax=ax, aspect=30, fraction=0.05, pad=0.02)
    at = np.unique(np.linspace(0, count - 1, 5).round().astype(int))
    bar.set_ticks(list(at), labels=[str(entries[i].get_label()) for i in at])
    bar.ax.minorticks_off()
    bar.ax.tick_params(labelsize=7, width=0.6, length=2)
    if title:
        bar.set_label(title, size=8)
    bar.outline.set_linewidth(0.6)  # type: ignore[operator]
