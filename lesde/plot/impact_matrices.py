"""The K×K matrix of elasticities at a few times, as heat maps."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize, TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.textpath import TextPath

from lesde.checks import check_choice, check_dataset
from lesde.plot.canvas import check_panels, fix_ticks, number
from lesde.plot.frames import at_times, select_rate
from lesde.plot.rate_key import refuse_other_dims
from lesde.plot.style import COLUMN, style

__all__ = ["impact_matrix"]

BARS = {
    "E": "$\\hat{E}_{kl}$  (brackets: may be 0)",
    "relative": "relative change",
    "explained": "share explained",
}
LARGEST, SMALLEST = 7.0, 4.0
"""Sizes of text in a cell, in points; matrices whose cells leave less have none."""
DARK = 0.6
"""Share of the colour scale beyond which values are written in white."""


@style()
def impact_matrix(
    fit: xr.Dataset,
    times: Any = None,
    variable: str = "E",
    *,
    learning_rate: float | None = None,
    ax: Any = None,
) -> np.ndarray:
    """Ê(t) as a heat map at a few times: a row for each class moved, a column for each class drawn.

    Parameters
    ----------
    fit : xarray.Dataset
        As `lesde.fit_impact` returns, or `lesde.fit_elasticity` with ``kernel="matrix"``.
    times : float or sequence of float, optional
        The nearest saved ones are shown. Default: up to 4 classes the first, the last and two between, evenly
        spaced in their order; beyond 4 classes the first and the last.
    variable : {"E", "relative", "explained"}, default "E"
    learning_rate : float, optional
        Default: the first.
    ax : array of matplotlib Axes, one per time, optional
        Default: a new figure, one column wide.

    Returns
    -------
    ndarray of matplotlib Axes, one per time

    Raises
    ------
    TypeError, ValueError
        For a dataset without the matrix, or axes that are not as many as times.

    Notes
    -----
    Colours of E are symmetric about zero, red above and blue below, on one scale for all times. It reaches as far as entries
    whose interval leaves out zero; others are written in brackets and may lie beyond it, as those of features near zero do
    at the start of training. The colour bar shows the part of the scale that is used, and stands in the place that an odd
    number of panels in two columns leaves.

    Examples
    --------
    >>> axes = lesde.plot.impact_matrix(lesde.fit_impact(impact), times=[0, 1, 4])  # doctest: +SKIP
    """
    check_choice("variable", variable, BARS)
    check_dataset("fit", fit, [variable], "lesde.fit_impact")
    data, note = select_rate(fit, learning_rate, "fit")
    matrix = data[variable]
    over = next((d for d in ("time", "interval") if d in matrix.dims), None)
    refuse_other_dims(matrix, ("time", "interval", "class", "class_"), "fit")
    if over is None:
        data, matrix = data.expand_dims("time"), matrix.expand_dims("time")
        over, at = "time", [0]
        titles = [""]
    else:
        clock = data[over].values.astype(np.float64)
        at = _chosen(clock, times, data.sizes["class"])
        titles = [f"t = {number(clock[i])}" for i in at]
    order = (over, "class", "class_")
    values = matrix.transpose(*order).values[at].astype(np.float64)
    clear = _clear(data, variable, order)[at]
    check_panels(ax, len(at))
    axes, hole = _axes(ax, len(at), values.shape[-1])
    norm, end = _scale(values, clear, variable)
    cmap = "RdBu_r" if variable == "E" else "cividis"
    sizes = _text_sizes(axes[0], values, clear)
    for each, frame, sure, title in zip(axes, values, clear, titles, strict=True):
        each.imshow(frame, cmap=cmap, norm=norm, aspect="equal")
        _write(each, frame, sure, norm, variable, sizes)
        _dress(each, len(frame), title)
    _edge_labels(axes)
    _colour_bar(axes, hole, _used_part(norm, cmap, values), end, BARS[variable])
    if note and isinstance(axes[0].figure, Figure) and ax is None:
        axes[0].figure.suptitle(note, fontsize=8)
    return axes


def _chosen(clock: np.ndarray, times: Any, n_classes: int) -> list[int]:
    if times is not None:
        return at_times(clock, times, 1)
    count = min(len(clock), 4 if n_classes <= 4 else 2)
    return list(dict.fromkeys(np.linspace(0, len(clock) - 1, count).round().astype(int).tolist()))


def _clear(data: xr.Dataset, variable: str, order: tuple[str, ...]) -> np.ndarray:
    """Which entries' intervals leave out zero; all where there are no intervals."""
    ends = [f"{variable}_lower", f"{variable}_upper"]
    if variable != "E" or any(end not in data for end in ends):
        return np.ones(data[variable].transpose(*order).shape, bool)
    low, high = (data[end].transpose(*order).values for end in ends)
    # Where errors cannot be told nothing says that an entry may be 0.
    return (low > 0) | (high < 0) | ~np.isfinite(high - low)


def _scale(values: np.ndarray, clear: np.ndarray, variable: str) -> tuple[Normalize, Any]:
    """The colour scale, and at which ends values lie beyond it."""
    finite = np.isfinite(values)
    if variable != "E":
        top = float(values[finite].max(initial=0.0)) or 1.0
        return Normalize(0.0, top), "neither"
    sure = np.abs(values[finite & clear])
    every = np.abs(values[finite])
    top = float(sure.max(initial=0.0)) or float(every.max(initial=0.0)) or 1.0
    beyond = (values[finite] < -top).any(), (values[finite] > top).any()
    end = {
        (False, False): "neither",
        (True, False): "min",
        (False, True): "max",
        (True, True): "both",
    }
    return TwoSlopeNorm(0.0, -top, top), end[(bool(beyond[0]), bool(beyond[1]))]


def _used_part(norm: Normalize, cmap: str, values: np.ndarray) -> ScalarMappable:
    """The colours from the least to the greatest value, 0 included."""
    low, high = float(norm.vmin or 0.0), float(norm.vmax or 0.0)
    finite = values[np.isfinite(values)]
    if low < 0 < high and len(finite):
        low, high = max(low, min(finite.min(), 0.0)), min(high, max(finite.max(), 0.0))
    shades = colormaps[cmap](norm(np.linspace(low, high, 256)))
    return ScalarMappable(Normalize(low, high), ListedColormap(shades))


def _colour_bar(
    axes: np.ndarray, hole: Axes | None, colours: ScalarMappable, end: Any, label: str
) -> None:
    figure = axes[0].figure
    if hole is None:
        bar = figure.colorbar(colours, ax=list(axes), aspect=25, pad=0.02, extend=end, shrink=0.9)
    else:
        hole.set_axis_off()
        place = hole.inset_axes((0.08, 0.5, 0.84, 0.06))
        bar = figure.colorbar(colours, cax=place, orientation="horizontal", extend=end)
        # Beside the bar a bracket has room; under it not.
        label = label.replace("  (", "\n(")
    bar.ax.tick_params(labelsize=7, width=0.6, length=2)
    bar.set_label(label, size=8)
    bar.outline.set_linewidth(0.6)  # type: ignore[operator]


def _axes(ax: Any, count: int, n_classes: int) -> tuple[np.ndarray, Axes | None]:
    """One axes per time, side by side for few classes, one below the other for many; and one that is left."""
    if ax is not None:
        return np.asarray(ax, dtype=object).ravel(), None
    import matplotlib.pyplot as plt

    columns = min(count, 2 if n_classes <= 4 else 1)
    rows = -(-count // columns)
    left = rows * columns > count
    side = (COLUMN - (0.5 if left else 0.85)) / columns  # labels and colour bar beside
    figure = plt.figure(figsize=(COLUMN, rows * (side + 0.3) + 0.3))
    every = figure.subplots(rows, columns, squeeze=False).ravel()
    for each in every:
        fix_ticks(each)
    return every[:count], every[count] if left else None


def _dress(ax: Axes, n_classes: int, title: str) -> None:
    """Class numbers on both axes, every so many where there are many."""
    ticks = np.arange(0, n_classes, -(-n_classes // 12))
    ax.set_xticks(ticks, [str(k) for k in ticks])
    ax.set_yticks(ticks, [str(k) for k in ticks])
    ax.tick_params(length=0, pad=2)
    for spine in ax.spines.values():
        spine.set_visible(False)
    ax.set_title(title)


def _edge_labels(axes: np.ndarray) -> None:
    """Names of the axes, at the left and lowest panels only."""
    grid = [each.get_subplotspec() for each in axes]
    for i, (each, spec) in enumerate(zip(axes, grid, strict=True)):
        below = None
        if spec is not None:
            below = next(
                (
                    s
                    for s in grid[i + 1 :]
                    if s is not None
                    and s.colspan.start == spec.colspan.start
                    and s.get_gridspec() is spec.get_gridspec()
                ),
                None,
            )
        if spec is None or below is None:
            each.set_xlabel("class drawn $l$")
        if spec is None or spec.is_first_col():
            each.set_ylabel("class moved $k$")


def _text_sizes(ax: Axes, values: np.ndarray, clear: np.ndarray) -> tuple[float, float]:
    """Sizes of what is written plainly and in brackets, in all panels, so that the longest fits its cell."""
    K = values.shape[-1]
    # The panel is square, and its frame may not be yet.
    box = ax.get_position()
    width, height = ax.figure.bbox.width * box.width, ax.figure.bbox.height * box.height
    cell = 0.9 * min(width, height) * 72 / ax.figure.dpi / K
    largest = min(LARGEST, 62.0 / K)
    sizes = []
    for which, form in ((clear, "{}"), (~clear, "({})")):
        texts = {form.format(_short(float(v))) for v in values[which & np.isfinite(values)]}
        widths = [TextPath((0, 0), text, size=100).get_extents().width / 100 for text in texts]
        sizes.append(min([largest, *(cell / w for w in widths)]))
    return sizes[0], sizes[1]


def _write(
    ax: Axes,
    values: np.ndarray,
    clear: np.ndarray,
    norm: Normalize,
    variable: str,
    sizes: tuple[float, float],
) -> None:
    """Values in the cells, as far as they can be read there."""
    if 62.0 / len(values) < SMALLEST:
        return
    size = sizes[0]
    for k, l in np.ndindex(*values.shape):
        if not np.isfinite(values[k, l]):
            ax.text(l, k, "–", ha="center", va="center", fontsize=size)
            continue
        share = float(norm(values[k, l]))
        # Dark are both ends of the diverging scale, and the low end of the other.
        dark = abs(share - 0.5) > DARK / 2 + 0.05 if variable == "E" else share < 1 - DARK
        text = _short(float(values[k, l]))
        ax.text(
            l,
            k,
            text if clear[k, l] else f"({text})",
            ha="center",
            va="center",
            fontsize=sizes[0 if clear[k, l] else 1],
            color="white" if dark else "black",
        )


def _short(value: float) -> str:
    """Two digits, with the sign of a text and no 0 before the point, which would not fit the cell."""
    if abs(value) >= 9.95:
        text = f"{value:.0f}"
    elif abs(value) >= 0.95:
        text = f"{value:.1f}"
    else:
        text = f"{value:.2f}".replace("0.", ".")
    return text.replace("-", "−").replace("−.00", ".00")
