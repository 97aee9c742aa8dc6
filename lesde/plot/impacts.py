"""Elasticity measured by the impact of single steps: over time, against distance, and as a matrix."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D

from lesde.checks import check_choice, check_instance, check_real
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
    legend_above,
    panels,
    style,
)
from lesde.plot.ticks import number

BETWEEN: Any = (0, (4, 2))
"""Line style of values between classes where colours are those of learning rates."""
CURVES = {"alpha": "$\\hat{\\alpha}$, within class", "beta": "$\\hat{\\beta}$, between classes"}
POINTS = 200
PAIRS = {"same": ("alpha", "o", "same class"), "other": ("beta", "s", "other classes")}
BARS = {
    "E": "$\\hat{E}_{kl}$  (brackets: may be 0)",
    "relative": "relative change",
    "explained": "share explained",
}
SMALLEST = 4.0
"""Size of text in points below which nobody reads it."""


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

    Notes
    -----
    Local elasticity has emerged where the band of α̂ − β̂ is above zero; those of α̂ and β̂ may overlap even then, as their
    errors are correlated. The vertical axes may cut off a band more than four times as wide as usual.

    Examples
    --------
    >>> fit = lesde.fit_impact(impact, transform="logits")  # doctest: +SKIP
    >>> axes = lesde.plot.impact(fit)  # doctest: +SKIP
    """
    names = ("alpha", "beta", "alpha_minus_beta")
    check_dataset("fit", fit, list(names), "lesde.fit_impact")
    refuse_other_dims(fit["alpha"], ("learning_rate", "time"), "fit")
    if "time" not in fit["alpha"].dims:
        raise ValueError(
            "fit must hold estimates over time; it is of one moment. Join several with "
            'xarray.concat(impacts, xr.IndexVariable("time", times)) before the fit.'
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
    handles: list[Artist] = [
        Line2D([], [], label=label, **_look(name, SECOND_INK, single))
        for name, label in CURVES.items()
    ]
    level = 100 * float(fit.attrs.get("confidence", 0.95))
    rate_key(axes, cells, [*handles, band_patch(SECOND_INK, not single, f"{level:.3g}% band")])
    return axes


def _look(name: str, colour: Any, single: bool) -> dict[str, Any]:
    """Colour and line of an estimate: its own colour, or that of the learning rate."""
    if single:
        return {"color": LEVELS.get(name, INK)}
    return {"color": colour, "linestyle": BETWEEN if name == "beta" else "-"}


def _curve(ax: Axes, cell: RateCell, name: str, single: bool) -> Curve:
    """Draw one estimate; its values and the ends of its band."""
    x = cell.data["time"].values
    values, low, high = (
        cell.data[f"{name}{end}"].values.astype(np.float64) for end in ("", "_lower", "_upper")
    )
    look = _look(name, cell.colour, single)
    # Few times, far apart early: marks say where something was measured.
    ax.plot(x, values, marker=".", markersize=3, zorder=3, **look)
    draw_band(ax, x, low, high, look["color"], not single)
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

    Notes
    -----
    Bars are the confidence limits. A bin with pairs of a single drawn sample (or replicate) has no error, and an empty
    mark. The vertical axis may cut off bars more than four times as long as usual, such as those of bins of few pairs.

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
    drawn: list[Curve] = []
    shown = []
    for pair, (level, marker, label) in PAIRS.items():
        one = data.sel(pair=pair)
        x, y = one["distance"].values, one["strength"].values
        low, high = one["strength_lower"].values, one["strength_upper"].values
        show = np.isfinite(y) & ((x > 0) | (scale == "linear"))
        x, y, low, high = x[show], y[show], low[show], high[show]
        bars = np.nan_to_num(np.stack([y - low, high - y]))
        look: Any = {"color": LEVELS[level], "linestyle": "none"}
        target.errorbar(x, y, bars, elinewidth=0.8, **look)
        sure = np.isfinite(high - low)
        for at_bin, face in ((sure, LEVELS[level]), (~sure, "white")):
            target.plot(x[at_bin], y[at_bin], marker=marker, markerfacecolor=face, **look)
        handles.append(Line2D([], [], marker=marker, label=label, **look))
        drawn.append((y, low, high))
        shown.append(x)
    target.set_xscale(scale)
    if kernel is not None:
        space = np.geomspace if scale == "log" else np.linspace
        x = np.concatenate(shown)
        x = space(x.min(), x.max(), POINTS)
        for y, colour, label in _kernel_curves(kernel, str(strength.attrs.get("by")), x, at):
            handles += target.plot(x, y, color=colour, linewidth=0.9, zorder=2, label=label)
            # A kernel has no bars with which to compare those of the bins.
            drawn.append((y, np.full(POINTS, np.nan), np.full(POINTS, np.nan)))
    target.axhline(0, color=SECOND_INK, linewidth=0.6, zorder=0)
    limit_to_bands(target, drawn, zero=True)
    target.set_xlabel(axis_label(data["distance"], "distance"))
    target.set_ylabel("strength $\\hat{\\kappa}$")
    legend_above(target, handles, ", ".join(notes) or None)
    return target


def _kernel_curves(
    kernel: Any, by: str, x: np.ndarray, time: float
) -> list[tuple[np.ndarray, Any, str]]:
    """A kernel within classes and between them: values, colour and label."""
    check_instance("kernel", kernel, FeatureKernel, "a lesde.FeatureKernel")
    variable = {"r2": "r2", "cosine": "c"}.get(by)
    if variable is None or kernel.formula.uses - {variable}:
        raise ValueError(
            f"kernel must depend on the distance shown alone, r2 for by='r2' and c for by='cosine'; got "
            f"{kernel.formula.expression} for by={by!r}."
        )
    r2, c = (x, 0.0) if variable == "r2" else (0.0, x)
    within, between = (
        np.broadcast_to(kernel.formula(r2, 0.0, c, s, time), x.shape) for s in (1.0, 0.0)
    )
    return [
        (within, LEVELS["alpha"], "kernel, same"),
        (between, LEVELS["beta"], "kernel, other"),
    ]


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

    Notes
    -----
    Colours of E are symmetric about zero, red above and blue below, on one scale for all times. The scale
    covers the entries whose interval excludes zero. Others are written in brackets and may lie beyond it, for instance
    at the start of training, when features are near zero.

    Examples
    --------
    >>> axes = lesde.plot.impact_matrix(lesde.fit_impact(impact), times=[0, 1, 4])  # doctest: +SKIP
    """
    check_choice("variable", variable, BARS)
    check_dataset("fit", fit, [variable], "lesde.fit_impact")
    data, note = select_rate(fit, learning_rate, "fit")
    refuse_other_dims(data[variable], ("time", "interval", "class", "class_"), "fit")
    over = next((d for d in ("time", "interval") if d in data[variable].dims), "time")
    if over not in data[variable].dims:
        data = data.drop_vars(over, errors="ignore").expand_dims(over)
    K, at, titles = data.sizes["class"], [0], [""]
    if over in data.coords:
        clock = data[over].values.astype(np.float64)
        count = min(len(clock), 4 if K <= 4 else 2)
        at = sorted({round(i) for i in np.linspace(0, len(clock) - 1, count)})
        if times is not None:
            at = at_times(clock, times, 1)
        titles = [f"t = {number(clock[i])}" for i in at]

    def frames(name: str) -> np.ndarray:
        return data[name].transpose(over, "class", "class_").values[at].astype(np.float64)

    values, sure = frames(variable), np.ones((len(at), K, K), bool)
    if variable == "E" and "E_lower" in data:
        low, high = frames("E_lower"), frames("E_upper")
        # Without known errors no entry counts as possibly 0.
        sure = (low > 0) | (high < 0) | ~np.isfinite(high - low)
    sizes = np.nan_to_num(np.abs(values))
    top = float((sizes * sure).max()) or float(sizes.max()) or 1.0
    norm = Normalize(-top if variable == "E" else 0.0, top)
    check_panels(ax, len(at))
    columns = min(len(at), 2 if K <= 4 else 1)
    rows = -(-len(at) // columns)
    side = (COLUMN - 0.85) / columns  # labels and colour bar beside
    axes = panels(ax, *((rows, columns) if ax is None else (len(at), 1)), rows * (side + 0.3) + 0.3)
    for free in axes.ravel()[len(at) :]:
        free.remove()
    axes = axes.ravel()[: len(at)]
    for each, frame, clear, title in zip(axes, values, sure, titles, strict=True):
        image = each.imshow(frame, cmap="RdBu_r" if variable == "E" else "cividis", norm=norm)
        _write(each, frame, clear, image, min(7.0, 18.5 * side / K))
        ticks = np.arange(0, K, -(-K // 12))
        each.set(xticks=ticks, yticks=ticks, title=title)
        each.set(xlabel="class drawn $l$", ylabel="class moved $k$")
        each.tick_params(length=0, pad=2)
        each.spines[:].set_visible(False)
        each.label_outer()
    end = "both" if (sizes > top).any() else "neither"
    colour_bar(image, BARS[variable], ax=list(axes), aspect=25, pad=0.02, extend=end, shrink=0.9)
    if note and ax is None:
        axes[0].figure.suptitle(note, fontsize=8)
    return axes


def _write(ax: Axes, values: np.ndarray, sure: np.ndarray, image: AxesImage, size: float) -> None:
    """Values in the cells, where they can be read: two digits, without a 0 before the point."""
    if size < SMALLEST:
        return
    for k, l in np.ndindex(*values.shape):
        value = float(values[k, l])
        digits = 0 if abs(value) >= 9.95 else 1 if abs(value) >= 0.95 else 2
        text = f"{round(value, digits) + 0.0:.{digits}f}".replace("0.", ".").replace("-", "−")
        if np.isnan(value):
            text = "–"
        elif not sure[k, l]:
            text = f"({text})"
        dark = np.dot(image.to_rgba(np.array([value]))[0, :3], (0.299, 0.587, 0.114)) < 0.5
        colour = "white" if dark and np.isfinite(value) else "black"
        ax.text(l, k, text, ha="center", va="center", fontsize=size, color=colour)
