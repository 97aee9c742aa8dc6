"""Collapse metrics against time, by learning rate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from lesde.analysis.collapse import target_of
from lesde.checks import check_choice, check_dataset, check_fraction, check_names
from lesde.plot.canvas import (
    axis_label,
    check_panels,
    panels,
    positive,
    tidy_log,
    title_of,
    widen_log,
)
from lesde.plot.rate_key import RateCell, draw_band, rate_cells, rate_key, refuse_other_dims
from lesde.plot.style import style

__all__ = ["collapse", "metric_label"]

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
    """What an axis says of a metric: its distance to the target where that is not 0."""
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
        One panel each, one below the other. Default: ``nc1`` and ``nc2_etf``, or that of them which
        ``nc`` holds; where it holds neither, all metrics it has over time.
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
    like one; all panels have the same horizontal limits.

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
    """Draw one metric at one learning rate; whether anything of it is positive."""
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
