"""The look of all figures, and the making of axes: panels, labels, legends, colour bars."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
import matplotlib.style
import numpy as np
import xarray as xr
from cycler import cycler
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.lines import Line2D

from lesde.checks import shown

COLUMN = 3.4
"""Width of a figure in inches: one column of a two-column page."""

# Okabe and Ito, Color Universal Design (2008). Yellow is last: it is weak on white paper.
OKABE_ITO = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442",
)  # fmt: skip
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h", "*")
LINES: tuple[Any, ...] = ("-", "--", ":", "-.")
DASHED: Any = (0, (4, 2))
"""Line of what is known in theory, beside what was estimated."""

INK = "#000000"
"""Theory, targets, truth."""
SECOND_INK = "#666666"
"""Help lines."""
LEVELS = {"alpha": OKABE_ITO[0], "beta": OKABE_ITO[1]}
"""Colours of within-class (α, A) and between-class (β, B) elasticity."""

TICKS: dict[str, Any] = {
    "major": {"size": 2.5, "width": 0.6},
    "minor": {"size": 1.5, "width": 0.4},
}
SETTINGS: dict[str, Any] = {
    "figure.figsize": (COLUMN, 2.4),
    "figure.dpi": 150,
    "figure.constrained_layout.use": True,
    # TrueType in vector files: text stays text, and journals accept it.
    "pdf.fonttype": 42,
    "ps.fonttype": 42,
    "svg.fonttype": "none",
    "font.size": 8,
    "axes.labelsize": 8,
    "axes.titlesize": 8,
    "axes.titlepad": 3,
    "axes.labelpad": 2.5,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.formatter.limits": (-3, 4),
    "axes.formatter.use_mathtext": True,
    "axes.prop_cycle": cycler(color=OKABE_ITO[:7]),
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.title_fontsize": 7,
    "legend.frameon": False,
    "legend.handlelength": 1.4,
    "legend.handletextpad": 0.4,
    "legend.columnspacing": 1.0,
    "legend.labelspacing": 0.25,
    "legend.borderpad": 0.1,
    "legend.borderaxespad": 0.2,
    "lines.linewidth": 1.1,
    "lines.markersize": 3,
    "errorbar.capsize": 1.5,
    "patch.linewidth": 0.6,
}
for _which, _look in TICKS.items():
    SETTINGS |= {f"{x}tick.{_which}.{name}": _look[name] for name in _look for x in "xy"}


@contextmanager
def style() -> Iterator[None]:
    """The publication style, inside a ``with`` block or as a decorator; nothing outside it changes.

    Every figure function uses it for figures it makes. Axes you make yourself keep their own fonts
    and ticks unless you make them inside this block.

    Examples
    --------
    >>> import matplotlib.pyplot as plt
    >>> import lesde
    >>> with lesde.plot.style():
    ...     figure, axes = plt.subplots(1, 2, figsize=(6.8, 2.4))
    >>> plt.close(figure)
    """
    with mpl.style.context(["default", SETTINGS]):
        yield


def palette(n_classes: int) -> list[str]:
    """Colours of K classes: Okabe and Ito's eight, again from the start beyond eight.

    Classes that share a colour differ in `class_marker` and `class_line`.
    """
    return [OKABE_ITO[k % len(OKABE_ITO)] for k in range(n_classes)]


def class_marker(k: int) -> str:
    """Marker of class k."""
    return MARKERS[k % len(MARKERS)]


def class_line(k: int) -> Any:
    """Line style of class k; it changes where the colours start again."""
    return LINES[(k // len(OKABE_ITO)) % len(LINES)]


def colours_of_rates(rates: Sequence[float] | np.ndarray) -> list[Any]:
    """Colours of learning rates, dark to light as they grow, evenly spaced by rank."""
    if len(rates) == 1:
        return [OKABE_ITO[0]]
    # The light end of the map is left out: it is too faint for a line on white paper.
    at = 0.85 * np.argsort(np.argsort(rates)) / (len(rates) - 1)
    return [tuple(colour) for colour in mpl.colormaps["viridis"](at)]


def check_panels(ax: Any, count: int, three_d: bool = False) -> None:
    """Raise unless ``ax`` is None, or as many axes of the right kind as there are panels."""
    if ax is None:
        return
    given = np.ravel(np.asarray(ax, dtype=object))
    wanted = "one matplotlib Axes" if count == 1 else f"{count} matplotlib Axes"
    wanted += ' with projection="3d"' if three_d else ""
    if not all(isinstance(a, Axes) and (a.name == "3d" or not three_d) for a in given):
        raise TypeError(f"ax must be {wanted}, or None for a new figure; got {shown(ax)}.")
    if len(given) != count:
        raise ValueError(f"ax must be {wanted}, one for every panel; got {len(given)}.")


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
    check_panels(ax, rows * columns, projection is not None)
    if ax is not None:
        return np.asarray(ax, dtype=object).reshape(rows, columns)
    import matplotlib.pyplot as plt

    figure = plt.figure(figsize=(COLUMN, height))
    kind = {"projection": projection}
    axes = figure.subplots(rows, columns, squeeze=False, sharex=sharex, subplot_kw=kind)
    for each in axes.ravel():
        fix_ticks(each)
    return axes


def fix_ticks(ax: Axes) -> None:
    """Write the tick style into the axes: ticks are made at drawing time, when the style is over."""
    for which, look in TICKS.items():
        ax.tick_params(
            which=which, length=look["size"], width=look["width"], labelsize=7,
            color=INK, labelcolor=INK, direction="out",
        )  # fmt: skip


def only_below(axes: np.ndarray) -> None:
    """Leave the label of a shared horizontal axis below the last of a column of panels."""
    for each in axes[:-1]:
        each.xaxis.label.set_visible(False)


def axis_label(variable: xr.DataArray | None, default: str) -> str:
    """Long name and units of a variable, or ``default`` for a name it does not have."""
    attrs = {} if variable is None else variable.attrs
    name, units = str(attrs.get("long_name") or default), str(attrs.get("units") or "")
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
            [], [], color=colours[k], marker=class_marker(k), label=str(k),
            linestyle=class_line(k) if linestyle else "none",
        )
        for k in classes
    ]  # fmt: skip


def class_title(note: str) -> str:
    """Title of a legend of classes."""
    return f"class, {note}" if note else "class"


def legend_above(
    axes: Any,
    handles: Sequence[Artist],
    title: str | None = None,
    handlelength: float | None = None,
) -> Legend | None:
    """A legend above the axes, where it covers nothing, in as few rows as fit.

    Over all panels of a figure where there are several, else over the one.
    """
    several = np.ravel(np.asarray(axes, dtype=object))
    owner: Any = several[0].figure
    place: dict[str, Any] = {"loc": "outside upper center"}
    if not isinstance(owner, Figure) or set(several) != set(owner.axes):
        owner = several[0]
        height = 1.12 if any(a.get_title() for a in several) else 1.01
        place = {"loc": "lower center", "bbox_to_anchor": (0.5, height)}
    for rows in range(1, len(handles) + 1):
        legend: Legend = owner.legend(
            handles=list(handles), ncols=-(-len(handles) // rows), title=title,
            handlelength=handlelength, **place,
        )  # fmt: skip
        # The room is that of the axes: ticks and labels are beside them.
        if rows == len(handles) or legend.get_window_extent().width <= owner.bbox.width:
            return legend
        legend.remove()
    return None


def colour_bar(mappable: ScalarMappable, label: str | None, **place: Any) -> Any:
    """A slim colour bar with the labels of its axis small; ``place`` as for ``Figure.colorbar``."""
    where: Any = place.get("ax", place.get("cax"))
    bar = np.ravel(np.asarray(where, dtype=object))[0].figure.colorbar(mappable, **place)
    bar.ax.minorticks_off()
    bar.ax.tick_params(labelsize=7, width=0.6, length=2)
    bar.outline.set_linewidth(0.6)
    bar.set_label(label or "", size=8)
    return bar
