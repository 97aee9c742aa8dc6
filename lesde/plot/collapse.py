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
from lesde.checks import check_choice, check_fraction, check_names
from lesde.paths import check_dataset
from lesde.plot.curves import (
    RateCell,
    cell_edges,
    draw_band,
    rate_cells,
    rate_key,
    refuse_other_dims,
)
from lesde.plot.style import (
    INK,
    SECOND_INK,
    axis_label,
    check_panels,
    class_marker,
    legend_above,
    palette,
    panels,
    positive,
    style,
    title_of,
)
from lesde.plot.ticks import number, tidy_log, widen_log

__all__ = ["collapse", "collapse_rate", "learning_rate_range"]


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
AWAY = {"nc4": "NC4  1 − agreement", "ncc_accuracy": "nearest-centre error"}
"""Distances to a target of 1."""


def metric_label(nc: xr.Dataset, metric: str) -> str:
    """Label of a metric's axis: its distance to the target where that is not 0."""
    label = SHORT.get(metric) or title_of(nc[metric], metric)
    target = target_of(nc[metric])
    if target == 0:
        return label
    return AWAY.get(metric) or f"|{label} − {target:g}|"


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
        Default: a new figure, one column wide.

    Returns
    -------
    ndarray of matplotlib Axes, shape (metric,)

    Raises
    ------
    TypeError, ValueError
        For a dataset without the metrics, or arguments it does not fit.

    Notes
    -----
    Drawn is the distance to the metric's attribute ``target`` (0 if it has none). Values that are 0,
    NaN or infinite have no place on a logarithmic axis and are left out: paths that start with all
    samples at their class mean have NC1 = 0 at first. A metric with no positive value gets a linear
    axis. A logarithmic axis spans at least a factor of 2, so that a metric that hardly changes looks
    nearly constant; all panels have the same horizontal limits.

    Examples
    --------
    >>> nc = lesde.neural_collapse(paths)  # doctest: +SKIP
    >>> axes = lesde.plot.collapse(nc, ["nc1", "nc2_norm_cv"])  # doctest: +SKIP
    """
    if metrics is None:
        metrics = _held(nc)
    names = check_names("metrics", metrics)
    if not names:
        raise ValueError("metrics must name at least one metric; got none.")
    check_dataset("nc", nc, names, "lesde.neural_collapse")
    check_choice("against", against, ("time", "iteration"))
    spread = check_fraction("spread", spread)
    for name in names:
        refuse_other_dims(nc[name], ("learning_rate", "replicate", "time"), "nc")
        if "time" not in nc[name].dims:
            raise ValueError(
                f"nc must hold {name} over the dimension 'time'; it is a single frame."
            )
    if against not in nc.coords:
        raise ValueError(
            f"against={against!r} needs the coordinate {against} in nc; it has "
            f"{', '.join(map(str, nc.coords)) or 'none'}."
        )
    check_panels(ax, len(names))
    cells = rate_cells(nc, "nc", learning_rate)
    # What has no logarithm is not drawn, but takes its room: panels can be compared side by side.
    clocks = np.concatenate([np.ravel(cell.data[against].values) for cell in cells])
    ends = (float(clocks.min()), float(clocks.max()))
    height = 0.75 + 1.35 * len(names)
    axes = panels(ax, len(names), 1, height, sharex=ax is None)[:, 0]
    for each, name in zip(axes, names, strict=True):
        shown = [_curve(each, cell, name, against, spread, len(cells) > 1) for cell in cells]
        each.update_datalim([(at, each.dataLim.y1) for at in ends], updatey=False)
        if any(shown):
            each.set_yscale("log")
            tidy_log(each, "y")
            widen_log(each)
        each.set_ylabel(metric_label(nc, name))
        each.margins(x=0.02)
        each.set_xlabel(axis_label(nc.coords[against], against))
        if ax is None and name != names[-1]:
            each.xaxis.label.set_visible(
                False
            )  # panels share the axis; its label is below the last
    rate_key(axes, cells)
    return axes


def _held(nc: Any) -> list[str]:
    """The usual metrics as far as a dataset has them, else all it has over time."""
    if not isinstance(nc, xr.Dataset):
        return list(USUAL)  # the check of the dataset says what is wrong
    usual = [name for name in USUAL if name in nc]
    over_time = [str(name) for name, v in nc.data_vars.items() if "time" in v.dims]
    return usual or over_time or list(USUAL)


def _curve(ax: Axes, cell: RateCell, name: str, against: str, spread: float, several: bool) -> bool:
    """Draw one metric at one learning rate; return True if any value is positive."""
    variable = cell.data[name]
    target = target_of(variable)
    if "replicate" not in variable.dims:
        variable = variable.expand_dims("replicate")
    values = np.abs(variable.transpose("replicate", "time").values.astype(np.float64) - target)
    levels = [(1 - spread) / 2, 0.5, (1 + spread) / 2]
    with np.errstate(invalid="ignore"):  # between two infinities; left out below
        low, middle, high = np.quantile(values, levels, axis=0)
    x = cell.data[against].values
    if not np.isfinite(positive(middle)).any():
        ax.plot(x, middle, color=cell.colour)
        return False
    middle = positive(middle)
    ax.plot(x, middle, color=cell.colour, zorder=3)
    if len(values) > 1:
        draw_band(ax, x, positive(low), positive(high), cell.colour, several)
    return True


SOURCE = "lesde.convergence"
UNITS = {"time": "per unit of time", "iteration": "per iteration"}


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
        Default: a new figure, one column wide.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    TypeError, ValueError
        For a dataset that holds no rates by learning rate, or no positive one.

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
    check_dataset("rates", rates, ["rate", "rate_lower", "rate_upper"], SOURCE)
    if "learning_rate" not in rates["rate"].dims or "learning_rate" not in rates.coords:
        raise ValueError(
            "rates must have the dimension 'learning_rate' with its values; simulate or record with "
            "several learning rates, learning_rate=[...]."
        )
    known = [str(m) for m in rates["metric"].values]
    names = list(dict.fromkeys([metric] if isinstance(metric, str) else metric))
    if not names:
        raise ValueError("metric must name at least one metric; got none.")
    for name in names:
        check_choice("metric", name, known)
    clocks = [str(c) for c in rates["clock"].values]
    clock = clocks[0] if clock is None else check_choice("clock", clock, clocks)
    refuse_other_dims(rates["rate"], ("metric", "learning_rate", "clock"), "rates")
    check_panels(ax, 1)
    data = rates.sel(clock=clock).sortby("learning_rate")
    if not (data["rate"].sel(metric=names) > 0).any():
        raise ValueError(
            f"rates must hold a positive rate of {', '.join(names)} for a logarithmic axis; none is. "
            f"Nothing was found to decay."
        )
    if not (data["learning_rate"] > 0).all():
        raise ValueError("rates must have positive learning rates for a logarithmic axis.")

    target: Axes = panels(ax, 1, 1, 2.4)[0, 0]
    target.set_xscale("log")
    target.set_yscale("log")
    h = data["learning_rate"].values.astype(np.float64)
    handles: list[Any] = []
    for i, name in enumerate(names):
        handles.append(_draw(target, data.sel(metric=name), h, name, i, len(names)))
    _fit_limits(target, data.sel(metric=names), h)
    target.set_xlabel(axis_label(data.coords["learning_rate"], "learning rate"))
    target.set_ylabel(f"collapse rate {UNITS.get(clock, f'({clock})')}")
    legend_above(target, handles)
    return target


def _draw(ax: Axes, data: xr.Dataset, h: np.ndarray, name: str, i: int, count: int) -> Any:
    """Points, bars and line of one metric; its legend entry."""
    rate, low, high = (
        data[n].values.astype(np.float64) for n in ("rate", "rate_lower", "rate_upper")
    )
    colour = palette(count)[i]
    good = np.isfinite(rate) & (rate > 0)
    middle = np.where(good, rate, np.nan)
    # A lower limit of 0 or less lies below every logarithmic axis.
    below = np.where(np.isfinite(low), middle - np.maximum(low, 1e-300), 0.0)
    above = np.where(np.isfinite(high), high - middle, 0.0)
    label = name.upper().replace("_", " ")
    if "learning_rate_exponent" in data:
        c, c_low, c_high = (
            float(data[f"learning_rate_exponent{end}"]) for end in ("", "_lower", "_upper")
        )
        if np.isfinite(c) and good.all():
            z = np.log(rate).mean() - c * np.log(h).mean()
            ax.plot(
                h, np.exp(z + c * np.log(h)), color=colour, linewidth=0.9, linestyle="--", zorder=2
            )
            label += f": slope {number(c)} [{number(c_low)}, {number(c_high)}]"
    return ax.errorbar(
        h[good],
        middle[good],
        np.stack([below, above])[:, good],
        color=colour,
        marker=class_marker(i),
        markersize=4,
        linestyle="none",
        elinewidth=0.9,
        zorder=3,
        label=label,
    )


def _fit_limits(ax: Axes, data: xr.Dataset, h: np.ndarray) -> None:
    """Limits around what can be shown; bars to zero must not set them."""
    rate = data["rate"].values
    shown = [v[np.isfinite(v) & (v > 0)] for v in (rate, data["rate_upper"].values)]
    lower = data["rate_lower"].values
    # A limit barely above 0 would take the axis down by orders of magnitude.
    near = lower[np.isfinite(lower) & (lower > 0.1 * shown[0].min())]
    values = np.concatenate([*shown, near])
    ax.set_ylim(values.min() / 1.3, values.max() * 1.3)
    pad = (h[-1] / h[0]) ** 0.06 if len(h) > 1 else 2.0
    ax.set_xlim(h[0] / pad, h[-1] * pad)
    tidy_log(ax, "x", list(h))
    tidy_log(ax, "y")


COMPARED = "lesde.studies.compare_learning_rates"
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
        Default: a new figure, one column wide, with a row per quantity and a column per metric.

    Returns
    -------
    ndarray of matplotlib Axes, shape (quantity, metric)

    Raises
    ------
    TypeError, ValueError
        For a dataset without what is needed, or another dimension than those named.

    Notes
    -----
    Points are the networks with the interval of their mean, filled where some model shown has them in its
    interval. A line is a model's prediction and a band the interval in which it puts the networks. The background has a
    model's colour over the unbroken range of learning rates in which the networks are in its interval, half-way to the
    next learning rate on the logarithmic axis on either side. Values are on a logarithmic axis and rates on a
    linear one, with a line at 0. Intervals wider than ten times what the networks and predictions span are cut off.

    Choose one model with ``comparison.sel(model=["L-model"])``.

    Examples
    --------
    >>> ax = lesde.plot.learning_rate_range(comparison)  # doctest: +SKIP
    """
    check_dataset("comparison", comparison, NEEDED, COMPARED)
    kernels = [str(k) for k in np.atleast_1d(comparison["kernel"].values)]
    kernel = kernels[0] if kernel is None else check_choice("kernel", kernel, kernels)
    data = comparison.sel(kernel=kernel) if "kernel" in comparison.dims else comparison
    for dim in ("model", "quantity", "metric", "learning_rate"):
        if dim not in data.dims:
            data = data.expand_dims(dim)
    refuse_other_dims(
        data["predicted"], ("model", "quantity", "metric", "learning_rate"), "comparison"
    )
    data = data.sortby("learning_rate")
    quantities, metrics = data["quantity"].values, data["metric"].values
    count = len(quantities) * len(metrics)
    check_panels(ax, count)
    axes = panels(
        ax, len(quantities), len(metrics), 0.75 + 1.35 * len(quantities), sharex=ax is None
    )
    colours = _colours([str(name) for name in np.atleast_1d(data["model"].values)])
    for row, quantity in enumerate(quantities):
        for column, metric in enumerate(metrics):
            cell = data.sel(quantity=quantity, metric=metric)
            target = axes[row, column]
            _draw_comparison(target, cell, colours, log=quantity == "value")
            _label(target, str(quantity), NAMES.get(str(metric), str(metric)), comparison)
            target.set_xlabel(axis_label(data.coords["learning_rate"], "learning rate"))
            if ax is None and row + 1 < len(quantities):
                target.xaxis.label.set_visible(False)
    outside = ~data["inside"].astype(bool).any("model")
    legend_above(
        axes, _key(colours, bool(outside.any())), "shaded: networks in the model's interval"
    )
    return axes


def _colours(models: list[str]) -> dict[str, str]:
    """Colour of a model, whichever others are shown."""
    names = [*ORDER, *(name for name in models if name not in ORDER)]
    colours = dict(zip(names, palette(len(names)), strict=True))
    return {name: colours[name] for name in models}


def _draw_comparison(ax: Axes, cell: xr.Dataset, colours: dict[str, str], log: bool) -> None:
    """One panel: shading, bands, lines and points."""
    h = cell["learning_rate"].values.astype(np.float64)
    ax.set_xscale("log")
    if log:
        ax.set_yscale("log")
    keep = positive if log else (lambda v: np.where(np.isfinite(v), v, np.nan))
    edges = cell_edges(h, log=True)
    seen = np.zeros(len(h), dtype=bool)
    for name, colour in colours.items():
        one = cell.sel(model=name)
        seen |= one["inside"].values.astype(bool)
        low, high = float(one["range_lowest"]), float(one["range_highest"])
        if np.isfinite(low):
            first, last = np.searchsorted(h, [low, high])
            ax.axvspan(
                edges[first], edges[last + 1], color=colour, alpha=0.12, linewidth=0, zorder=0
            )
        lower, middle, upper = (
            keep(one[f"predicted{end}"].values) for end in ("_lower", "", "_upper")
        )
        ax.fill_between(h, lower, upper, color=colour, alpha=0.22, linewidth=0, zorder=1)
        ax.plot(h, middle, color=colour, zorder=2)
    value = keep(cell["network"].values)
    reach = np.stack(
        [value - keep(cell["network_lower"].values), keep(cell["network_upper"].values) - value]
    )
    for chosen, face in ((seen, INK), (~seen, "white")):
        ax.errorbar(
            h[chosen], value[chosen], reach[:, chosen], color=INK, marker="o", markersize=3.2,
            markerfacecolor=face, markeredgewidth=0.8, linestyle="none", elinewidth=0.8, zorder=3,
        )  # fmt: skip
    _limits(ax, cell, log)
    ax.set_xlim(edges[0], edges[-1])
    tidy_log(ax, "x")
    if log:
        tidy_log(ax, "y")
    elif ax.get_ylim()[0] < 0 < ax.get_ylim()[1]:
        ax.axhline(0, color=SECOND_INK, linewidth=0.5, linestyle=":", zorder=1)


def _limits(ax: Axes, cell: xr.Dataset, log: bool) -> None:
    """Vertical limits: everything shown, but of a very wide interval only a part."""
    scale = np.log if log else np.asarray

    def known(*names: str) -> np.ndarray:
        values = np.concatenate([np.ravel(cell[name].values) for name in names])
        return scale(values[np.isfinite(values) & ((values > 0) | (not log))])

    core = known("network", "network_lower", "network_upper", "predicted")
    if not len(core):
        return
    low, high = core.min(), core.max()
    room = max(high - low, 0.2 if log else 0.1 * max(abs(low), abs(high)))
    far = np.concatenate([core, known("predicted_lower", "predicted_upper")])
    bottom, top = max(far.min(), low - 10 * room), min(far.max(), high + 10 * room)
    pad = 0.06 * max(top - bottom, room)
    ends = np.array([bottom - pad, top + pad])
    ax.set_ylim(*(np.exp(ends) if log else ends))


def _label(ax: Axes, quantity: str, name: str, comparison: xr.Dataset) -> None:
    if quantity == "value":
        at = comparison.attrs.get("at")
        ax.set_ylabel(name if at is None else f"{name} at t = {at:g}")
    else:
        ax.set_ylabel(f"rate of {name} (1/time)" if quantity == "rate" else quantity)


def _key(colours: dict[str, str], some_outside: bool) -> list[Any]:
    """Legend entries; open points have one where there are any."""
    points = [("networks", INK), ("networks in no interval", "white")]
    networks = [
        Line2D(
            [], [], color=INK, marker="o", markersize=3.2, markerfacecolor=face,
            markeredgewidth=0.8, linestyle="none", label=label,
        )
        for label, face in points[: 1 + some_outside]
    ]  # fmt: skip
    models = [
        Patch(facecolor=colour, alpha=0.45, linewidth=0, label=str(name))
        for name, colour in colours.items()
    ]
    return [*networks, *models]
