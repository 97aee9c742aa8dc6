"""Collapse rate against learning rate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from lesde.checks import check_choice, check_dataset
from lesde.plot.canvas import axis_label, check_panels, legend_above, number, panels, tidy_log
from lesde.plot.rate_key import refuse_other_dims
from lesde.plot.style import class_marker, palette, style

__all__ = ["collapse_rate"]

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
