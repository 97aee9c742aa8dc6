"""Collapse of networks against the learning rate, beside what fitted models predict."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from lesde.checks import check_choice, check_dataset
from lesde.plot.canvas import axis_label, check_panels, legend_above, panels, positive, tidy_log
from lesde.plot.rate_key import refuse_other_dims
from lesde.plot.style import INK, SECOND_INK, palette, style

__all__ = ["learning_rate_range"]

SOURCE = "lesde.study.learning_rates.compare_learning_rates"
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
        As :func:`lesde.study.learning_rates.compare_learning_rates` returns.
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
    check_dataset("comparison", comparison, NEEDED, SOURCE)
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
            _draw(target, cell, colours, log=quantity == "value")
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
    """A model has one colour whichever others are shown."""
    names = [*ORDER, *(name for name in models if name not in ORDER)]
    colours = dict(zip(names, palette(len(names)), strict=True))
    return {name: colours[name] for name in models}


def _draw(ax: Axes, cell: xr.Dataset, colours: dict[str, str], log: bool) -> None:
    """One panel: shading, bands, lines and points."""
    h = cell["learning_rate"].values.astype(np.float64)
    ax.set_xscale("log")
    if log:
        ax.set_yscale("log")
    keep = positive if log else (lambda v: np.where(np.isfinite(v), v, np.nan))
    edges = _edges(h)
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


def _edges(h: np.ndarray) -> np.ndarray:
    """Half-way between learning rates, and as far beyond the first and last."""
    x = np.log(h)
    if len(x) == 1:
        return np.array([h[0] / 2, h[0] * 2])
    middle = (x[1:] + x[:-1]) / 2
    return np.exp(np.concatenate([[2 * x[0] - middle[0]], middle, [2 * x[-1] - middle[-1]]]))


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
