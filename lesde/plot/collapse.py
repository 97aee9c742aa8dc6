"""Collapse metrics against time, and values and rates of them against the learning rate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from lesde.analysis.collapse import target_of
from lesde.checks import check_choice, check_choices, check_fraction, check_names
from lesde.paths import check_dataset
from lesde.plot.curves import (
    cell_edges,
    check_over_time,
    draw_band,
    quantiles,
    rate_cells,
    rate_key,
    refuse_other_dims,
)
from lesde.plot.style import (
    INK,
    SECOND_INK,
    axis_label,
    class_marker,
    legend_above,
    only_below,
    palette,
    panels,
    positive,
    style,
    title_of,
)
from lesde.plot.ticks import number, tidy_log, widen_log

USUAL = ("nc1", "nc2_etf")
SHORT = {
    "nc1": "NC1  $\\mathrm{tr}(\\Sigma_W\\Sigma_B^{+})/K$",
    "nc1_trace": "NC1  $\\mathrm{tr}\\,\\Sigma_W/\\mathrm{tr}\\,\\Sigma_B$",
    "nc1_cdnv": "NC1  CDNV",
    "nc2_etf": "NC2  distance to ETF",
    "nc2_norm_cv": "NC2  CV of norms",
    "nc2_angle_std": "NC2  SD of cosines",
    "nc3": "NC3  distance to duality",
    "nc3_duality": "NC3  self-duality error",
    "nc4": "NC4  agreement",
    "ncc_accuracy": "nearest-centre accuracy",
}
"""The package's own metrics in few words; their long names do not fit beside a panel."""


@style()
def collapse(
    nc: xr.Dataset,
    metrics: str | Sequence[str] | None = None,
    *,
    against: str = "time",
    learning_rate: float | None = None,
    spread: float = 0.8,
    ax: Any = None,
) -> np.ndarray:
    """Collapse metrics against time on a logarithmic axis, a panel each, coloured by learning rate.

    Parameters
    ----------
    nc : xarray.Dataset
        As `lesde.neural_collapse` returns: metrics over time and possibly learning rate, replicate.
    metrics : str or sequence of str, optional
        One panel each, one below the other. Default: ``nc1`` and ``nc2_etf``, as far as ``nc`` holds
        them; if it holds neither, all its metrics over time.
    against : {"time", "iteration"}, default "time"
        Horizontal axis; ``"iteration"`` needs the coordinate of that name.
    learning_rate : float, optional
        Show only this one. Default: all.
    spread : float, default 0.8
        The line is the median over replicates, the band holds this share of the replicates in its
        middle: 0.8 is from the 10 % to the 90 % quantile. It shows how replicates differ, not how
        well their median is known. No band for a single replicate.
    ax : matplotlib Axes or array of them, one per metric, optional

    Notes
    -----
    Drawn is the distance to the metric's attribute ``target`` (0 if it has none). Values that are 0,
    NaN or infinite have no place on a logarithmic axis and are left out: paths that start with all
    samples at their class mean have NC1 = 0 at first. A metric with no positive value gets a linear
    axis. A logarithmic axis spans at least a factor of 2, so that a metric that hardly changes looks
    nearly constant; all panels have the same horizontal limits.
    """
    check_dataset("nc", nc, [], "lesde.neural_collapse")
    if metrics is None:
        held = [str(name) for name, variable in nc.data_vars.items() if "time" in variable.dims]
        metrics = [name for name in USUAL if name in held] or held or USUAL
    names = check_names("metrics", metrics)
    if not names:
        raise ValueError("metrics must name at least one metric; got none.")
    check_dataset("nc", nc, names, "lesde.neural_collapse")
    spread = check_fraction("spread", spread)
    for name in names:
        refuse_other_dims(nc[name], ("learning_rate", "replicate", "time"), "nc")
        check_over_time(nc[name], "nc", against)
    cells = rate_cells(nc, "nc", learning_rate)
    # What has no logarithm is not drawn, but takes its room: panels can be compared side by side.
    clocks = np.concatenate([np.ravel(cell.data[against].values) for cell in cells])
    ends = (float(clocks.min()), float(clocks.max()))
    axes = panels(ax, len(names), 1, 0.75 + 1.35 * len(names), sharex=ax is None)[:, 0]
    for each, name in zip(axes, names, strict=True):
        target = target_of(nc[name])
        log = bool(np.isfinite(positive(abs(nc[name] - target))).any())
        for cell in cells:
            away = abs(cell.data[name].astype(float) - target)
            found = quantiles(away, ("time",), spread)
            low, middle, high = positive(found) if log else found
            x = cell.data[against].values
            each.plot(x, middle, color=cell.colour, zorder=3)
            if away.sizes.get("replicate", 1) > 1:
                draw_band(each, x, low, high, cell.colour, len(cells) > 1)
        each.update_datalim([(at, each.dataLim.y1) for at in ends], updatey=False)
        if log:
            each.set_yscale("log")
            tidy_log(each, "y")
            widen_log(each)
        label = SHORT.get(name) or title_of(nc[name], name)
        each.set_ylabel(label if target == 0 else f"|{label} − {target:g}|")
        each.margins(x=0.02)
        each.set_xlabel(axis_label(nc.coords[against], against))
    if ax is None:
        only_below(axes)
    rate_key(axes, cells)
    return axes


@style()
def collapse_rate(
    rates: xr.Dataset,
    metric: str | Sequence[str] = "nc1",
    *,
    clock: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Collapse rate against learning rate, with confidence limits and the fitted power law.

    Parameters
    ----------
    rates : xarray.Dataset
        As `lesde.convergence` returns, with the dimension ``learning_rate``.
    metric : str or sequence of str, default "nc1"
        Metrics shown, a colour each.
    clock : str, optional
        ``"time"`` or ``"iteration"``. Default: the first in ``rates``.
    ax : matplotlib Axes, optional

    Notes
    -----
    Both axes are logarithmic. A rate that is not positive has no place there; where only its lower
    limit is not, the bar reaches the bottom of the axis. The line is rate ~ learning_rate^c with c the
    dataset's ``learning_rate_exponent``, through the mean of the logarithms, and the legend gives c
    with its interval; there is none with fewer than three learning rates or a rate that is not positive.

    Examples
    --------
    >>> rates = lesde.convergence(nc, against="iteration")  # doctest: +SKIP
    >>> ax = lesde.plot.collapse_rate(rates, ["nc1", "nc2_etf"])  # doctest: +SKIP
    """
    needed = ["rate", "rate_lower", "rate_upper", "learning_rate"]
    check_dataset("rates", rates, needed, "lesde.convergence of several learning rates")
    if "learning_rate" not in rates.dims:
        rates = rates.expand_dims("learning_rate")
    names = check_choices("metric", metric, [str(m) for m in rates["metric"].values])
    clocks = [str(c) for c in rates["clock"].values]
    clock = clocks[0] if clock is None else check_choice("clock", clock, clocks)
    refuse_other_dims(rates["rate"], ("metric", "learning_rate", "clock"), "rates")
    data = rates.sel(clock=clock, metric=names).sortby("learning_rate")
    shown = [positive(data[name].values) for name in ("rate", "rate_upper")]
    if not np.isfinite(shown[0]).any() or not (data["learning_rate"] > 0).all():
        raise ValueError(
            f"rates must hold a positive rate of {', '.join(names)} and positive learning rates for "
            f"logarithmic axes. Where no rate is positive, nothing was found to decay."
        )
    target: Axes = panels(ax, 1, 1, 2.4)[0, 0]
    target.set(xscale="log", yscale="log")
    handles = [_rates(target, data.sel(metric=name), i) for i, name in enumerate(names)]
    # A lower limit barely above 0 would take the axis down by orders of magnitude.
    lower = data["rate_lower"].values
    shown.append(np.where(lower > 0.1 * np.nanmin(shown[0]), lower, np.nan))
    target.set_ylim(np.nanmin(shown) / 1.3, np.nanmax(shown) * 1.3)
    tidy_log(target, "x")
    tidy_log(target, "y")
    target.set_xlabel(axis_label(data.coords["learning_rate"], "learning rate"))
    target.set_ylabel(f"collapse rate per {'unit of time' if clock == 'time' else clock}")
    legend_above(target, handles)
    return target


def _rates(ax: Axes, data: xr.Dataset, i: int) -> Any:
    """Points, bars and line of the i-th metric; its legend entry."""
    h = data["learning_rate"].values.astype(np.float64)
    rate = positive(data["rate"])
    # A lower limit of 0 or less lies below every logarithmic axis.
    below = np.nan_to_num(rate - np.maximum(data["rate_lower"].values, 1e-300))
    above = np.nan_to_num(data["rate_upper"].values - rate, posinf=0.0)
    colour = palette(i + 1)[i]
    label = str(data["metric"].values).upper().replace("_", " ")
    if "learning_rate_exponent" in data and np.isfinite(rate).all():
        c, low, high = (
            float(data[f"learning_rate_exponent{end}"]) for end in ("", "_lower", "_upper")
        )
        if np.isfinite(c):
            line = np.exp(np.log(rate).mean() + c * (np.log(h) - np.log(h).mean()))
            ax.plot(h, line, color=colour, linewidth=0.9, linestyle="--", zorder=2)
            label += f": slope {number(c)} [{number(low)}, {number(high)}]"
    good = np.isfinite(rate)
    return ax.errorbar(
        h[good], rate[good], np.stack([below, above])[:, good], color=colour, label=label,
        marker=class_marker(i), markersize=4, linestyle="none", elinewidth=0.9, zorder=3,
    )  # fmt: skip


NEEDED = ["network", "predicted", "inside", "range_lowest", "range_highest"]
ORDER = ("I-model", "L-model")
NAMES = {"nc1": "NC1", "nc2_etf": "NC2"}


@style()
def learning_rate_range(
    comparison: xr.Dataset, kernel: str | None = None, *, ax: Any = None
) -> Any:
    """Values and rates of NC1 and NC2 against the learning rate: networks, models, and where they agree.

    Parameters
    ----------
    comparison : xarray.Dataset
        As :func:`lesde.studies.compare_learning_rates` returns.
    kernel : str, optional
        Entry of the dimension ``kernel``. Default: the first, fitted at the same rate.
    ax : array of matplotlib Axes, one per quantity and metric, optional
        A new figure has a row per quantity and a column per metric.

    Notes
    -----
    Points are the networks with the interval of their mean, filled where some model shown has them in its
    interval. A line is a model's prediction and a band the interval in which it puts the networks. The background has a
    model's colour over the unbroken range of learning rates in which the networks are in its interval, half-way to the
    next learning rate on the logarithmic axis on either side. Values are on a logarithmic axis and rates on a
    linear one, with a line at 0. Intervals wider than ten times what the networks and predictions span are cut off.
    """
    check_dataset("comparison", comparison, NEEDED, "lesde.studies.compare_learning_rates")
    kernels = [str(k) for k in np.atleast_1d(comparison["kernel"].values)]
    kernel = kernels[0] if kernel is None else check_choice("kernel", kernel, kernels)
    data = comparison.sel(kernel=kernel) if "kernel" in comparison.dims else comparison
    dims = ("model", "quantity", "metric", "learning_rate")
    data = data.expand_dims([d for d in dims if d not in data.dims]).sortby("learning_rate")
    refuse_other_dims(data["predicted"], dims, "comparison")
    models = [str(name) for name in data["model"].values]
    # A model has its colour whichever others are shown.
    order = list(dict.fromkeys([*ORDER, *models]))
    colours = {name: palette(len(order))[order.index(name)] for name in models}
    quantities, metrics = data["quantity"].values, data["metric"].values
    height = 0.75 + 1.35 * len(quantities)
    axes = panels(ax, len(quantities), len(metrics), height, sharex=ax is None)
    for (row, column), target in np.ndenumerate(axes):
        quantity, name = str(quantities[row]), str(metrics[column])
        cell = data.sel(quantity=quantity, metric=name)
        _compare(target, cell, colours, log=quantity == "value")
        name = NAMES.get(name, name)
        at = f" at t = {comparison.attrs['at']:g}" if "at" in comparison.attrs else ""
        labels = {"value": f"{name}{at}", "rate": f"rate of {name} (1/time)"}
        target.set_ylabel(labels.get(quantity, quantity))
        target.set_xlabel(axis_label(data.coords["learning_rate"], "learning rate"))
    if ax is None:
        for column in axes.T:
            only_below(column)
    points: Any = {"color": INK, "marker": "o", "markersize": 3.2, "linestyle": "none"}
    handles: list[Any] = [Line2D([], [], **points, label="networks")]
    if not data["inside"].astype(bool).any("model").all():
        points |= {"markerfacecolor": "white", "label": "networks in no interval"}
        handles.append(Line2D([], [], **points))
    handles += [Patch(facecolor=c, alpha=0.45, linewidth=0, label=m) for m, c in colours.items()]
    legend_above(axes, handles, "shaded: networks in the model's interval")
    return axes


def _compare(ax: Axes, cell: xr.Dataset, colours: dict[str, str], log: bool) -> None:
    """One panel: shading, bands, lines and points."""
    h = cell["learning_rate"].values.astype(np.float64)
    ax.set(xscale="log", yscale="log" if log else "linear")
    values = {
        name: positive(variable) if log else np.where(np.isfinite(variable), variable, np.nan)
        for name, variable in cell.transpose("model", ...).data_vars.items()
        if str(name).startswith(("network", "predicted"))
    }
    edges = cell_edges(h, log=True)
    for i, colour in enumerate(colours.values()):
        lower, middle, upper = (values[f"predicted{end}"][i] for end in ("_lower", "", "_upper"))
        ax.fill_between(h, lower, upper, color=colour, alpha=0.22, linewidth=0, zorder=1)
        ax.plot(h, middle, color=colour, zorder=2)
        ends = [float(cell[f"range_{end}"][i]) for end in ("lowest", "highest")]
        if np.isfinite(ends).all():
            first, last = np.searchsorted(h, ends)
            ax.axvspan(edges[first], edges[last + 1], color=colour, alpha=0.12, linewidth=0)
    seen = cell["inside"].astype(bool).any("model").values
    value = values["network"]
    reach = np.stack([value - values["network_lower"], values["network_upper"] - value])
    for chosen, face in ((seen, INK), (~seen, "white")):
        ax.errorbar(
            h[chosen], value[chosen], reach[:, chosen], color=INK, marker="o", markersize=3.2,
            markerfacecolor=face, markeredgewidth=0.8, linestyle="none", elinewidth=0.8, zorder=3,
        )  # fmt: skip
    core = ("network", "network_lower", "network_upper", "predicted")
    _cut(ax, np.concatenate([np.ravel(values[name]) for name in core]), log)
    ax.set_xlim(edges[0], edges[-1])
    tidy_log(ax, "x")
    if log:
        tidy_log(ax, "y")
    elif ax.get_ylim()[0] < 0 < ax.get_ylim()[1]:
        ax.axhline(0, color=SECOND_INK, linewidth=0.5, linestyle=":", zorder=1)


def _cut(ax: Axes, core: np.ndarray, log: bool) -> None:
    """Limits of all that is drawn, but no farther than ten times the range of ``core`` beyond it."""
    scale, back = (np.log, np.exp) if log else (np.asarray, np.asarray)
    known = scale(core[np.isfinite(core)])
    if len(known):
        low, high = known.min(), known.max()
        room = 10 * max(high - low, 0.2 if log else 0.1 * max(abs(low), abs(high)))
        bottom, top = scale(ax.get_ylim())
        ax.set_ylim(*back([max(bottom, low - room), min(top, high + room)]))
