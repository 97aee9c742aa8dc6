"""Elasticity measured by impact: within against between classes over time, and against distance."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from lesde.checks import check_choice, check_dataset, check_real, shown
from lesde.feature_kernel import FeatureKernel
from lesde.plot.canvas import axis_label, check_panels, legend_above, number, panels
from lesde.plot.frames import select_rate
from lesde.plot.limits import FAR, limit_to_bands
from lesde.plot.rate_key import (
    RateCell,
    band_patch,
    draw_band,
    rate_cells,
    rate_key,
    refuse_other_dims,
)
from lesde.plot.style import INK, LEVELS, SECOND_INK, style

__all__ = ["impact", "impact_by_distance"]

BETWEEN: Any = (0, (4, 2))
"""Line of what is between classes where colours are those of learning rates."""

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
    errors go together. The vertical axes show all curves and bands, but where a band is more than four times as wide as
    usual, as early in training, when features are near zero, they may be cut off.

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
        _limit(each, drawn)
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
            [],
            [],
            color=LEVELS[name] if single else SECOND_INK,
            linestyle="-" if single or name == "alpha" else BETWEEN,
            label=label,
        )
        for name, label in CURVES.items()
    ]
    level = 100 * float(fit.attrs.get("confidence", 0.95))
    return [*handles, band_patch(SECOND_INK, not single, f"{level:.3g}% band")]


Curve = tuple[np.ndarray, np.ndarray, np.ndarray]


def _curve(ax: Axes, cell: RateCell, name: str, single: bool) -> Curve:
    """Draw one estimate; its values and the ends of its band."""
    x = cell.data["time"].values
    values, low, high = (
        cell.data[f"{name}{end}"].values.astype(np.float64) for end in ("", "_lower", "_upper")
    )
    colour = LEVELS.get(name, INK) if single else cell.colour
    dashed = not single and name == "beta"
    # Few times, far apart early: marks say where something was measured.
    ax.plot(
        x,
        values,
        color=colour,
        linestyle=BETWEEN if dashed else "-",
        marker=".",
        markersize=3,
        zorder=3,
    )
    draw_band(ax, x, low, high, colour, not single)
    return values, low, high


def _limit(ax: Axes, drawn: list[Curve]) -> None:
    """Limits by the values that are known well enough; 0 is among them."""
    values, low, high = (np.concatenate(part) for part in zip(*drawn, strict=True))
    width = high - low
    usual = np.nanmedian(width) if np.isfinite(width).any() else np.inf
    known = ~(width > FAR * usual)
    # Of a wide bar the middle is shown all the same, unless it is far off too.
    better = np.append(values[known & np.isfinite(values)], 0)
    room = np.ptp(better)
    near = ~known & (values > better.min() - room) & (values < better.max() + room)
    low, high = np.where(near, values, low), np.where(near, values, high)
    known |= near
    limit_to_bands(
        ax, np.append(values[known], 0), np.append(low[known], 0), np.append(high[known], 0)
    )


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
    Bars are the confidence limits. A bin that a single drawn sample (or replicate) has pairs in has no error, and
    an empty mark. The vertical axis shows all bars but those more than four times as long as usual, as of bins of few
    pairs, which may be cut off. A kernel that is the same within classes and between them is one black line.

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
        for at_bin, face in ((sure, colour), (~sure, "white")):
            target.plot(
                x[at_bin],
                y[at_bin],
                color=colour,
                marker=marker,
                linestyle="none",
                markerfacecolor=face,
            )
        handles.append(Line2D([], [], color=colour, marker=marker, linestyle="none", label=label))
        drawn.append((y, low, high))
        if len(x):
            reach = [min(reach[0], float(x.min())), max(reach[1], float(x.max()))]
    if scale == "log":
        target.set_xscale("log")
    if kernel is not None and reach[1] >= reach[0]:
        lines = _kernel_lines(target, kernel, str(strength.attrs.get("by")), reach, scale, at)
        # A kernel has no bars, which those of the bins could be measured by.
        none = np.full(POINTS, np.nan)
        drawn += [(np.asarray(line.get_ydata()), none, none) for line in lines]
        handles += [
            Line2D([], [], color=line.get_color(), label=label)
            for line, label in zip(
                lines,
                ("kernel, same", "kernel, other") if len(lines) > 1 else ("kernel",),
                strict=True,
            )
        ]
    target.axhline(0, color=SECOND_INK, linewidth=0.6, zorder=0)
    _limit(target, drawn)
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
