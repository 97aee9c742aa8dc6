"""Making and dressing axes: panels, labels, legends."""

from __future__ import annotations

import itertools
import math
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
import numpy as np
import xarray as xr
from cycler import cycler
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.lines import Line2D
from matplotlib.ticker import (
    Formatter,
    FuncFormatter,
    Locator,
    LogLocator,
    MaxNLocator,
    NullFormatter,
)

from lesde.checks import shown

__all__ = [
    "COLUMN",
    "INK",
    "LEVELS",
    "SECOND_INK",
    "SETTINGS",
    "axis_label",
    "centre_ticks",
    "check_panels",
    "class_handles",
    "class_line",
    "class_marker",
    "colours_of_rates",
    "legend_above",
    "limit_to_bands",
    "number",
    "palette",
    "panels",
    "positive",
    "style",
    "tidy_log",
    "title_of",
    "widen_log",
]


# --------------------------------------------------------------------------------------------------
# Ticks of logarithmic and of centred axes: as many labels as there is room for, in one notation.

NARROW = 0.7
"""Decades below which ticks are evenly spaced round numbers."""
WIDE = 3.0
"""Decades above which labels are powers of ten."""
PLAIN = (1e-3, 1e4)
"""Numbers between these are written plainly, others as multiples of a power of ten."""
DIGIT = 0.64
"""Width of a digit of the font in font sizes."""


def number(value: float) -> str:
    """A number as a label shows it: at most three significant digits, with a true minus sign."""
    return f"{float(value):.3g}".replace("-", "−")


def tidy_log(ax: Axes, which: str, ticks: Sequence[float] | None = None) -> None:
    """Tick labels of a logarithmic axis that do not collide, chosen anew at every drawing.

    Call after the scale is set; limits and size may change afterwards. Numbers are plain where the
    axis spans few decades near 1, else powers of ten. ``ticks`` are used as they are, as many as fit.
    """
    axis: Any = ax.xaxis if which == "x" else ax.yaxis
    locator = LogTicks(ticks)
    axis.set_major_locator(locator)
    axis.set_major_formatter(LogLabels(locator))
    axis.set_minor_locator(MinorLogTicks())
    # Labels of minor ticks overprint each other where the axis is short.
    axis.set_minor_formatter(NullFormatter())


def widen_log(ax: Axes, factor: float = 2.0) -> None:
    """Let a logarithmic vertical axis span at least a factor, about the middle of what is drawn.

    The limits stay automatic, so that axes which share them, or draw more, still show everything.
    """
    low, high = ax.dataLim.minposy, ax.dataLim.y1
    if not (0 < low <= high < math.inf) or high >= factor * low:
        return
    middle = math.sqrt(low * high)
    x = ax.dataLim.x0
    ends = [(x, middle / math.sqrt(factor)), (x, middle * math.sqrt(factor))]
    ax.update_datalim(ends, updatex=False)
    ax.autoscale_view(scalex=False)


class LogTicks(Locator):
    """Major ticks: the finest of a few choices whose labels have room."""

    def __init__(self, ticks: Sequence[float] | None = None):
        self.given = None if ticks is None else sorted(float(value) for value in ticks)

    def __call__(self) -> Any:
        low, high = self.axis.get_view_interval()  # type: ignore[union-attr]
        return self.tick_values(low, high)

    def tick_values(self, vmin: float, vmax: float) -> Any:
        """Ticks between two limits, for the axis as long as it now is."""
        low, high = sorted((vmin, vmax))
        if not 0 < low < high < math.inf:
            return np.array([])
        if self.given is not None:
            inside = [v for v in self.given if low * (1 - 1e-9) <= v <= high * (1 + 1e-9)]
            return np.array(self._thin(inside, low, high))
        choices = list(_choices(low, high))
        for ticks in choices:
            if self._fit(ticks, low, high):
                return np.array(ticks)
        return np.array(self._thin(choices[-1], low, high))

    def labels(self, ticks: Sequence[float]) -> list[str]:
        """What stands at the ticks: all in one notation."""
        inside = [v for v in ticks if v > 0]
        if not inside:
            return ["" for _ in ticks]
        least = PLAIN[0] if self.given is None else PLAIN[0] / 10
        within = least * (1 - 1e-9) <= min(inside) and max(inside) <= PLAIN[1] * (1 + 1e-9)
        if within and (self.given is not None or max(inside) / min(inside) <= 10**WIDE * 1.001):
            return [number(v) for v in ticks]
        return [_scientific(v) for v in ticks]

    def _extents(self, ticks: list[float], low: float, high: float) -> list[tuple[float, float]]:
        """Where the labels begin and end along the axis, in points, with a gap between them."""
        length, size, across = _room(self.axis)
        found = []
        for value, text in zip(ticks, self.labels(ticks), strict=True):
            at = length * math.log(value / low) / math.log(high / low)
            half = size * ((_digits(text) * DIGIT + 0.7) / 2 if across else 0.7)
            found.append((at - half, at + half))
        return found

    def _fit(self, ticks: list[float], low: float, high: float) -> bool:
        ends = self._extents(ticks, low, high)
        return all(a[1] <= b[0] for a, b in itertools.pairwise(ends))

    def _thin(self, ticks: list[float], low: float, high: float) -> list[float]:
        """Ticks without those that are too near to the one before."""
        kept: list[float] = []
        last = -math.inf
        for value, (begin, end) in zip(ticks, self._extents(ticks, low, high), strict=True):
            if begin >= last:
                kept.append(value)
                last = end
        return kept


class CentredTicks(Locator):
    """Ticks at −r, 0, r with r of one digit; fewer where there is no room."""

    def __call__(self) -> Any:
        low, high = self.axis.get_view_interval()  # type: ignore[union-attr]
        return self.tick_values(low, high)

    def tick_values(self, vmin: float, vmax: float) -> Any:
        """Ticks between two limits that are one the negative of the other."""
        reach = min(abs(vmin), abs(vmax))
        if not 0 < reach < math.inf:
            return np.array([0.0])
        power = math.floor(math.log10(0.85 * reach))
        digit = max(m for m in (1, 2, 3, 4, 5, 6, 8) if m <= 0.85 * reach / 10.0**power + 1e-9)
        r = float(f"{digit}e{power}")
        length, size, across = _room(self.axis)
        room = length * r / (2 * reach)  # from 0 to r
        width = len(_short(-r)) * DIGIT * size if across else size
        for ticks, need in (([-r, 0.0, r], (width + DIGIT * size) / 2), ([-r, r], width / 2)):
            if need + 0.3 * size <= room:
                return np.array(ticks)
        return np.array([r])


def centre_ticks(ax: Axes) -> None:
    """Few ticks about 0 in both directions, with short labels that do not collide."""
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(CentredTicks())
        axis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))


def _room(axis: Any) -> tuple[float, float, bool]:
    """Length of an axis and its font size in points; whether it is horizontal."""
    box = axis.axes.bbox
    across = axis.axis_name == "x"
    length = (box.width if across else box.height) * 72 / axis.get_figure(root=True).dpi
    ticks = axis.majorTicks
    return length, ticks[0].label1.get_size() if ticks else 8.0, across


class LogLabels(Formatter):
    """Labels of `LogTicks`."""

    def __init__(self, locator: LogTicks):
        self.source = locator

    def format_ticks(self, values: Any) -> list[str]:
        """Labels of all ticks together."""
        return self.source.labels(list(values))

    def __call__(self, x: float, pos: int | None = None) -> str:
        return self.source.labels([float(x)])[0]


class MinorLogTicks(LogLocator):
    """Marks at 2, 3, …, 9 times the powers of ten; none where ticks are evenly spaced."""

    def __init__(self) -> None:
        super().__init__(subs=list(range(2, 10)))

    def tick_values(self, vmin: float, vmax: float) -> Any:
        """Minor ticks between two limits."""
        low, high = sorted((vmin, vmax))
        if not 0 < low < high < math.inf or high / low < 10**NARROW:
            return np.array([])
        return super().tick_values(vmin, vmax)


def _multiples(low: float, high: float, subs: Iterable[int], every: int = 1) -> list[float]:
    """Multiples of powers of ten, of every so many, within limits."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    powers = [k for k in range(first, last + 1) if k % every == 0]
    # From text, so that 1e-3 is the nearest number to it.
    values = [float(f"{m}e{k}") for k in powers for m in subs]
    return [v for v in values if low * (1 - 1e-9) <= v <= high * (1 + 1e-9)]


def _choices(low: float, high: float) -> Iterable[list[float]]:
    """Sets of ticks from fine to coarse."""
    decades = math.log10(high / low)
    if decades < NARROW:
        for count in (5, 4, 3, 2):
            even = MaxNLocator(count, steps=[1, 2, 5, 10]).tick_values(low, high)
            inside = [float(v) for v in even if low <= v <= high and v > 0]
            if len(inside) >= 2:
                yield inside
        yield _multiples(low, high, range(1, 10))
        return
    whole = _multiples(low, high, (1,))
    plain = PLAIN[0] <= low * 1.001 and high <= PLAIN[1]
    if len(whole) < 2 or (plain and decades <= 2):
        yield _multiples(low, high, (1, 2, 5))
        yield _multiples(low, high, (1, 3))
    for every in range(1, max(2, len(whole))):
        ticks = _multiples(low, high, (1,), every)
        if len(ticks) >= 2:
            yield ticks
    yield _multiples(low, high, (1, 2, 5)) if len(whole) < 2 else whole


def _short(value: float) -> str:
    """A number of one digit in few letters: 1e−4 for 0.0001."""
    if value == 0 or PLAIN[0] <= abs(value) <= PLAIN[1]:
        return number(value)
    mantissa, exponent = f"{value:.0e}".split("e")
    return f"{mantissa}e{int(exponent)}".replace("-", "−")


def _digits(label: str) -> float:
    """Length of a label in digits; exponents are smaller."""
    if not label.startswith("$"):
        return len(label)
    mantissa, exponent = label.strip("$").split("10^{")
    # "× " takes about two digits.
    return (len(mantissa.split("\\")[0]) + 2 if mantissa else 0) + 2 + 0.7 * (len(exponent) - 1)


def _scientific(value: float) -> str:
    mantissa, exponent = f"{value:.2e}".split("e")
    short = f"{float(mantissa):g}"
    power = f"10^{{{int(exponent)}}}"
    return f"${power}$" if short == "1" else f"${short}\\times{power}$"


# --------------------------------------------------------------------------------------------------
# The look of all figures: sizes, fonts and colours, set for one figure at a time.

COLUMN = 3.4
"""Width of a figure in inches: one column of a two-column page."""

# Okabe and Ito, Color Universal Design (2008). Yellow is last: it is weak on white paper.
OKABE_ITO = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442",
)  # fmt: skip
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h", "*")
LINES: tuple[Any, ...] = ("-", "--", ":", "-.")

INK = "#000000"
"""Theory, targets, truth."""
SECOND_INK = "#666666"
"""Help lines."""
LEVELS = {"alpha": OKABE_ITO[0], "beta": OKABE_ITO[1]}
"""Colours of within-class (α, A) and between-class (β, B) elasticity."""

SETTINGS: dict[str, Any] = {
    "figure.figsize": (COLUMN, 2.4),
    "figure.dpi": 150,
    "figure.constrained_layout.use": True,
    "savefig.dpi": 300,
    "savefig.bbox": None,
    # TrueType in vector files: text stays text, and journals accept it.
    "pdf.fonttype": 42,
    "ps.fonttype": 42,
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 8,
    "mathtext.fontset": "dejavusans",
    "text.usetex": False,
    "axes.labelsize": 8,
    "axes.titlesize": 8,
    "axes.titlepad": 3,
    "axes.labelpad": 2.5,
    "axes.linewidth": 0.6,
    "axes.facecolor": "white",
    "axes.edgecolor": "black",
    "axes.labelcolor": "black",
    "axes.grid": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.formatter.limits": (-3, 4),
    "axes.formatter.use_mathtext": True,
    "axes.unicode_minus": True,
    "axes.prop_cycle": cycler(color=OKABE_ITO[:7]),
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "text.color": "black",
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "xtick.color": "black",
    "ytick.color": "black",
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.minor.width": 0.4,
    "ytick.minor.width": 0.4,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "xtick.minor.size": 1.5,
    "ytick.minor.size": 1.5,
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
    "image.cmap": "viridis",
}


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
    settings: Any = SETTINGS  # a dictionary of settings by name; matplotlib types every name
    with mpl.rc_context(settings):
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
    """Colours of learning rates, dark to light as they grow, evenly spaced by rank.

    The light end of the map is left out: it is too faint for a line on white paper.
    """
    ranks = np.argsort(np.argsort(np.asarray(rates)))
    at = ranks / max(1, len(ranks) - 1)
    return [tuple(colour) for colour in mpl.colormaps["viridis"](0.85 * at)]


# --------------------------------------------------------------------------------------------------
# Limits of an axis that shows curves with their bands.

FAR = 4.0
"""How much farther than usual a band may reach and still be shown whole."""


def limit_to_bands(ax: Axes, values: np.ndarray, low: np.ndarray, high: np.ndarray) -> None:
    """Limits that hold curves and bands, but for the parts of a band that are far wider than usual."""
    known = np.isfinite(values)
    if not known.any():
        return
    values, low, high = values[known], low[known], high[known]
    reach = np.maximum(high - values, values - low)
    usual = float(np.median(reach[reach > 0])) if (reach > 0).any() else 0.0
    most = FAR * max(float(np.ptp(values)), usual)
    shown = reach <= most if most > 0 else np.ones(len(reach), bool)
    bottom = float(min(values.min(), low[shown].min(initial=np.inf)))
    top = float(max(values.max(), high[shown].max(initial=-np.inf)))
    least = 0.5 * max(abs(bottom), abs(top)) or 1.0
    middle, half = (bottom + top) / 2, 0.5 * max(1.1 * (top - bottom), least)
    ax.set_ylim(middle - half, middle + half)


# --------------------------------------------------------------------------------------------------


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
