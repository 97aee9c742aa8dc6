"""Elasticity measured by the impact of single steps: over time, against distance, and as a matrix."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from matplotlib import colormaps
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize, TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.textpath import TextPath

from lesde.checks import check_choice, check_real, shown
from lesde.model.kernels import FeatureKernel
from lesde.paths import check_dataset
from lesde.plot.curves import (
    Curve,
    RateCell,
    band_patch,
    draw_band,
    limit_to_bands,
    rate_cells,
    rate_key,
    refuse_other_dims,
)
from lesde.plot.frames import at_times, select_rate
from lesde.plot.style import (
    COLUMN,
    INK,
    LEVELS,
    SECOND_INK,
    axis_label,
    check_panels,
    colour_bar,
    fix_ticks,
    legend_above,
    panels,
    style,
)
from lesde.plot.ticks import number

__all__ = ["impact", "impact_by_distance", "impact_matrix"]


BETWEEN: Any = (0, (4, 2))
"""Line style of values between classes where colours are those of learning rates."""

CURVES = {"alpha": "$\\hat{\\alpha}$, within class", "beta": "$\\hat{\\beta}$, between classes"}
POINTS = 200


@style()
def impact(fit: xr.Dataset, *, learning_rate: float | None = None, ax: Any = None) -> np.ndarray:
    """α̂ and β̂ measured by impact against time with their bands, and α̂ − β̂ below.

    Parameters
    ----------
    fit : xarray.Dataset
        As `lesde.fit_impact` returns, over time.
    learning_rate : float, optional
        Show only this one. Default: all, a colour each, β̂ dashed; with one there is a colour for α̂ and one for β̂.
    ax : array of two matplotlib Axes, optional
        Default: a new figure, one column wide.

    Returns
    -------
    ndarray of matplotlib Axes, shape (2,)

    Raises
    ------
    TypeError, ValueError
        For a dataset that is no such fit, or not over time.

    Notes
    -----
    Local elasticity has emerged where the band of α̂ − β̂ is above zero; those of α̂ and β̂ may overlap even then, as their
    errors are correlated. Where a band is more than four times as wide as usual, for instance early in training, when
    features are near zero, the vertical axes may cut it off.

    Examples
    --------
    >>> fit = lesde.fit_impact(impact, transform="logits")  # doctest: +SKIP
    >>> axes = lesde.plot.impact(fit)  # doctest: +SKIP
    """
    names = ("alpha", "beta", "alpha_minus_beta")
    check_dataset("fit", fit, list(names), "lesde.fit_impact")
    for name in names:
        refuse_other_dims(fit[name], ("learning_rate", "time"), "fit")
        if "time" not in fit[name].dims:
            raise ValueError(
                f"fit must hold {name} over time; it is of one moment. Join several with "
                f'xarray.concat(impacts, xr.IndexVariable("time", times)) before the fit.'
            )
    check_panels(ax, 2)
    cells = rate_cells(fit, "fit", learning_rate)
    single = len(cells) == 1
    axes = panels(ax, 2, 1, 3.2, sharex=ax is None)[:, 0]
    for each, wanted in zip(axes, (names[:2], names[2:]), strict=True):
        drawn = [_curve(each, cell, name, single) for cell in cells for name in wanted]
        each.axhline(0, color=SECOND_INK, linewidth=0.6, zorder=0)
        limit_to_bands(each, drawn, zero=True)
        each.margins(x=0.02)
        each.set_xlabel(axis_label(fit.coords.get("time"), "time"))
    axes[0].set_ylabel("$\\hat{\\alpha}$,  $\\hat{\\beta}$")
    axes[1].set_ylabel("$\\hat{\\alpha} - \\hat{\\beta}$")
    if ax is None:
        axes[0].xaxis.label.set_visible(False)
    rate_key(axes, cells, _handles(fit, single))
    return axes


def _handles(fit: xr.Dataset, single: bool) -> list[Artist]:
    handles: list[Artist] = [
        Line2D(
            [], [], color=LEVELS[name] if single else SECOND_INK, label=label,
            linestyle="-" if single or name == "alpha" else BETWEEN,
        )
        for name, label in CURVES.items()
    ]  # fmt: skip
    level = 100 * float(fit.attrs.get("confidence", 0.95))
    return [*handles, band_patch(SECOND_INK, not single, f"{level:.3g}% band")]


def _curve(ax: Axes, cell: RateCell, name: str, single: bool) -> Curve:
    """Draw one estimate; its values and the ends of its band."""
    x = cell.data["time"].values
    values, low, high = (
        cell.data[f"{name}{end}"].values.astype(np.float64) for end in ("", "_lower", "_upper")
    )
    colour = LEVELS.get(name, INK) if single else cell.colour
    line = BETWEEN if not single and name == "beta" else "-"
    # Few times, far apart early: marks say where something was measured.
    ax.plot(x, values, color=colour, linestyle=line, marker=".", markersize=3, zorder=3)
    draw_band(ax, x, low, high, colour, not single)
    return values, low, high


@style()
def impact_by_distance(
    strength: xr.Dataset,
    kernel: FeatureKernel | None = None,
    *,
    time: float | None = None,
    learning_rate: float | None = None,
    scale: str = "linear",
    ax: Axes | None = None,
) -> Axes:
    """The strength with which a step at a sample moves another, against the distance between the two.

    Parameters
    ----------
    strength : xarray.Dataset
        As `lesde.impact_by_distance` returns.
    kernel : lesde.FeatureKernel, optional
        Drawn as lines: of r2 for ``by="r2"``, of c for ``by="cosine"``, at t = ``time``.
    time : float, optional
        The nearest saved one is shown. Default: the last.
    learning_rate : float, optional
        Default: the first.
    scale : {"linear", "log"}, default "linear"
        Of the distance; a drawn sample's distance to itself, 0, has no place on "log".
    ax : matplotlib Axes, optional
        Default: a new figure, one column wide.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    TypeError, ValueError
        For a dataset that is no such result, or a kernel that needs more than the distance shown.

    Notes
    -----
    Bars are the confidence limits. A bin with pairs of a single drawn sample (or replicate) has no error, and an empty
    mark. The vertical axis may cut off bars more than four times as long as usual, such as those of bins of few pairs.
    A kernel that is the same within classes and between them is one black line.

    Examples
    --------
    >>> ax = lesde.plot.impact_by_distance(lesde.impact_by_distance(impact))  # doctest: +SKIP
    """
    check_dataset("strength", strength, ["strength", "distance"], "lesde.impact_by_distance")
    check_choice("scale", scale, ("linear", "log"))
    refuse_other_dims(strength["strength"], ("learning_rate", "time", "pair", "bin"), "strength")
    check_panels(ax, 1)
    data, note = select_rate(strength, learning_rate, "strength")
    notes = [note] if note else []
    at = 0.0
    if "time" in data["strength"].dims:
        times = data["time"].values.astype(np.float64)
        index = -1 if time is None else int(np.abs(times - check_real("time", time)).argmin())
        data, at = data.isel(time=index), float(times[index])
        notes.append(f"t = {number(at)}")
    target: Axes = panels(ax, 1, 1, 2.4)[0, 0]
    handles: list[Artist] = []
    reach = [np.inf, -np.inf]
    looks = (
        ("same", LEVELS["alpha"], "o", "same class"),
        ("other", LEVELS["beta"], "s", "other classes"),
    )
    drawn: list[Curve] = []
    for pair, colour, marker, label in looks:
        one = data.sel(pair=pair)
        x, y = one["distance"].values, one["strength"].values
        low, high = one["strength_lower"].values, one["strength_upper"].values
        show = np.isfinite(y) & ((x > 0) | (scale == "linear"))
        x, y, low, high = x[show], y[show], low[show], high[show]
        bars = np.nan_to_num(np.stack([y - low, high - y]))
        target.errorbar(x, y, bars, color=colour, linestyle="none", elinewidth=0.8)
        sure = np.isfinite(high - low)
        points: Any = {"color": colour, "marker": marker, "linestyle": "none"}
        for at_bin, face in ((sure, colour), (~sure, "white")):
            target.plot(x[at_bin], y[at_bin], markerfacecolor=face, **points)
        handles.append(Line2D([], [], label=label, **points))
        drawn.append((y, low, high))
        if len(x):
            reach = [min(reach[0], float(x.min())), max(reach[1], float(x.max()))]
    if scale == "log":
        target.set_xscale("log")
    if kernel is not None and reach[1] >= reach[0]:
        lines = _kernel_lines(target, kernel, str(strength.attrs.get("by")), reach, scale, at)
        # A kernel has no bars with which to compare those of the bins.
        none = np.full(POINTS, np.nan)
        drawn += [(np.asarray(line.get_ydata()), none, none) for line in lines]
        labels = ("kernel, same", "kernel, other") if len(lines) > 1 else ("kernel",)
        handles += [
            Line2D([], [], color=line.get_color(), label=label)
            for line, label in zip(lines, labels, strict=True)
        ]
    target.axhline(0, color=SECOND_INK, linewidth=0.6, zorder=0)
    limit_to_bands(target, drawn, zero=True)
    target.set_xlabel(axis_label(data["distance"], "distance"))
    target.set_ylabel("strength $\\hat{\\kappa}$")
    legend_above(target, handles, ", ".join(notes) or None)
    return target


def _kernel_lines(
    ax: Axes, kernel: Any, by: str, reach: list[float], scale: str, time: float
) -> list[Line2D]:
    """Draw a kernel within classes and between them, or as one line where these are the same."""
    if not isinstance(kernel, FeatureKernel):
        raise TypeError(f"kernel must be a lesde.FeatureKernel; got {shown(kernel)}.")
    variable = {"r2": "r2", "cosine": "c"}.get(by)
    other = sorted(kernel.formula.uses - {variable})
    if variable is None or other:
        raise ValueError(
            f"kernel must depend on the distance shown alone, r2 for by='r2' and c for by='cosine'; got "
            f"{kernel.formula.expression} for by={by!r}."
        )
    space = np.geomspace if scale == "log" else np.linspace
    x = space(reach[0], reach[1], POINTS)
    r2, c = (x, 0.0) if variable == "r2" else (0.0, x)
    within, between = (
        np.broadcast_to(kernel.formula(r2, 0.0, c, s, time), x.shape) for s in (1.0, 0.0)
    )
    if np.array_equal(within, between):
        return ax.plot(x, within, color=INK, linewidth=0.9, zorder=2)
    return [
        ax.plot(x, y, color=LEVELS[level], linewidth=0.9, zorder=2)[0]
        for y, level in ((within, "alpha"), (between, "beta"))
    ]


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
    Colours of E are symmetric about zero, red above and blue below, on one scale for all times. The scale
    covers the entries whose interval excludes zero. Others are written in brackets and may lie beyond it, for instance
    at the start of training, when features are near zero. The colour bar shows the part of the scale that is used; with
    an odd number of panels in two columns it takes the free place.

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
    """Mask of the entries whose intervals exclude zero; all where there are no intervals."""
    ends = [f"{variable}_lower", f"{variable}_upper"]
    if variable != "E" or any(end not in data for end in ends):
        return np.ones(data[variable].transpose(*order).shape, bool)
    low, high = (data[end].transpose(*order).values for end in ends)
    # Without known errors no entry counts as possibly 0.
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
    end = "both" if all(beyond) else "min" if beyond[0] else "max" if beyond[1] else "neither"
    return TwoSlopeNorm(0.0, -top, top), end


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
    if hole is None:
        colour_bar(colours, label, ax=list(axes), aspect=25, pad=0.02, extend=end, shrink=0.9)
        return
    hole.set_axis_off()
    place = hole.inset_axes((0.08, 0.5, 0.84, 0.06))
    # Beside the bar a bracket has room; under it not.
    label = label.replace("  (", "\n(")
    colour_bar(colours, label, cax=place, orientation="horizontal", extend=end)


def _axes(ax: Any, count: int, n_classes: int) -> tuple[np.ndarray, Axes | None]:
    """One axes per time, side by side for few classes, one below the other for many; and a free one, if any."""
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
    lowest = {}
    for i, spec in enumerate(grid):
        lowest[i if spec is None else (id(spec.get_gridspec()), spec.colspan.start)] = i
    for i, (each, spec) in enumerate(zip(axes, grid, strict=True)):
        if i in lowest.values():
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
    for k, l in np.ndindex(*values.shape):
        text, size, colour = "–", sizes[0], "black"
        if np.isfinite(values[k, l]):
            text = _short(float(values[k, l]))
            share = float(norm(values[k, l]))
            # Dark are both ends of the diverging scale, and the low end of the other.
            dark = abs(share - 0.5) > DARK / 2 + 0.05 if variable == "E" else share < 1 - DARK
            colour = "white" if dark else "black"
            if not clear[k, l]:
                text, size = f"({text})", sizes[1]
        ax.text(l, k, text, ha="center", va="center", fontsize=size, color=colour)


def _short(value: float) -> str:
    """Two digits, with the sign of a text and no 0 before the point, which would not fit the cell."""
    if abs(value) >= 9.95:
        text = f"{value:.0f}"
    elif abs(value) >= 0.95:
        text = f"{value:.1f}"
    else:
        text = f"{value:.2f}".replace("0.", ".")
    return text.replace("-", "−").replace("−.00", ".00")
