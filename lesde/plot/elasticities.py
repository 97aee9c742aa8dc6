"""Estimated elasticities: integrals and rates with their bands."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from lesde.checks import shown
from lesde.model.kernels import Kernel
from lesde.model.lesde import LESDE
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
from lesde.plot.style import INK, LEVELS, SECOND_INK, axis_label, check_panels, panels, style

PANELS = ("A", "B", "alpha", "beta")
TRUTH: Any = {"color": INK, "linestyle": (0, (4, 2)), "linewidth": 1.0}
POINTS = 200
"""Fewest points a smooth curve is drawn with."""
NODES, WEIGHTS = np.polynomial.legendre.leggauss(5)


def true_elasticity(truth: Any, fit: xr.Dataset) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Curves of A, B, alpha, beta as far as known: for each its abscissas and values.

    Of a kernel, whose entries with k = l must be equal, and those with k ≠ l; A and B are integrals from
    the first time of the fit.
    """
    if isinstance(truth, xr.Dataset):
        return _from_dataset(truth)
    K = int(fit.sizes.get("class", 2))
    if isinstance(truth, LESDE):
        truth, K = truth.kernel, truth.n_classes
    if not isinstance(truth, Kernel):
        raise TypeError(
            f"truth must be a kernel such as lesde.TwoLevel(alpha=2, beta=-1), a lesde.LESDE or a "
            f"Dataset with A, B, alpha or beta; got {shown(truth)}."
        )
    table = truth.entries(K)
    same = np.eye(K, dtype=bool)
    if len(np.unique(table.index[same])) > 1 or len(np.unique(table.index[~same])) > 1:
        raise ValueError(
            f"truth must have one strength within classes and one between them, as the fit has; got "
            f"{shown(truth)}."
        )
    times = fit["time"].values.astype(np.float64)
    fine = np.unique(np.concatenate([times, np.linspace(times[0], times[-1], POINTS)]))

    def levels(at: np.ndarray) -> np.ndarray:
        values = table(at.ravel())
        return np.stack([values[:, 0, 0], values[:, 0, 1]]).reshape(2, *at.shape)

    # Five Gauss points in every gap of the fine grid: exact to rounding for smooth rates, and jumps
    # at saved times, such as those of a fitted kernel, fall between gaps.
    middle, half = (fine[1:] + fine[:-1]) / 2, np.diff(fine) / 2
    nodes = middle[:, None] + half[:, None] * NODES
    steps = (levels(nodes) * WEIGHTS).sum(-1) * half
    integrals = np.concatenate([np.zeros((2, 1)), np.cumsum(steps, axis=1)], axis=1)
    # Rates are shown in the middle of gaps: at a saved time they may jump, or not exist.
    rates = levels(middle)
    return {
        "A": (fine, integrals[0]),
        "B": (fine, integrals[1]),
        "alpha": (middle, rates[0]),
        "beta": (middle, rates[1]),
    }


def _from_dataset(truth: xr.Dataset) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    found = {}
    for name in (name for name in PANELS if name in truth):
        dims = truth[name].dims
        if dims not in (("time",), ("interval",)):
            raise ValueError(
                f"truth.{name} must be over 'time' or 'interval' alone; got {dims}. Choose entries with truth.isel(...)."
            )
        found[name] = (truth[dims[0]].values, truth[name].values.astype(np.float64))
    if not found:
        raise ValueError(f"truth must hold A, B, alpha or beta; it holds {shown([*truth])}.")
    return found


SOURCE = 'lesde.fit_elasticity with kernel="two-level"'
LABELS = {
    "A": "$\\hat{A}$",
    "B": "$\\hat{B}$",
    "alpha": "$\\hat{\\alpha}$",
    "beta": "$\\hat{\\beta}$",
}


@style()
def elasticity(
    fit: xr.Dataset,
    truth: Any = None,
    *,
    learning_rate: float | None = None,
    ax: Any = None,
) -> np.ndarray:
    """Estimates of A and B, and of α and β, with their confidence bands, in four panels.

    Parameters
    ----------
    fit : xarray.Dataset
        As `lesde.fit_elasticity` returns for the two-level kernel.
    truth : kernel, model, Dataset or sequence of these, optional
        What to compare with, dashed: a two-level kernel or a model with one, whose integrals are
        taken from the first time of the fit; or a dataset with any of ``A``, ``B`` over time,
        ``alpha``, ``beta`` over time or interval, such as another fit.
    learning_rate : float, optional
        Show only this one. Default: all, a colour each; with one there is a colour for α and one for β.
    ax : array of four matplotlib Axes, optional
        For Â, B̂, α̂, β̂. Default: a new figure, one column wide.

    Returns
    -------
    ndarray of matplotlib Axes, shape (2, 2)
        Â, B̂ above, α̂, β̂ below.

    Notes
    -----
    Where a rate is not identified (infinite standard error) there is neither line nor band, and the panel says so. A band
    that reaches more than four times as far as usual is cut off, perhaps with its curve, so that it does not flatten the
    rest. The axis spans at least half of the largest value shown, so that a constant looks flat.

    Examples
    --------
    >>> fit = lesde.fit_elasticity(paths)  # doctest: +SKIP
    >>> axes = lesde.plot.elasticity(fit, truth=model.kernel)  # doctest: +SKIP
    """
    check_dataset("fit", fit, list(PANELS), SOURCE)
    for name in PANELS:
        refuse_other_dims(fit[name], ("learning_rate", "time", "interval"), "fit")
    check_panels(ax, 4)
    cells = rate_cells(fit, "fit", learning_rate)
    single = len(cells) == 1
    true_curves = {} if truth is None else true_elasticity(truth, fit)
    axes = panels(ax, 2, 2, 3.4, sharex=ax is None)
    for each, name in zip(axes.ravel(), PANELS, strict=True):
        curves = [_draw(each, cell, name, single) for cell in cells]
        unknown = [int(np.isnan(values).sum()) for values, _, _ in curves]
        if any(unknown):
            words = "not identified"
            if single:  # integrals start at 0
                words += "" if unknown[0] >= len(curves[0][0]) - 1 else "\nat some times"
            else:
                words += f"\n({np.count_nonzero(unknown)} of {len(cells)} learning rates)"
            place: Any = {"transform": each.transAxes, "ha": "right", "va": "top"}
            each.text(0.97, 0.96, words, fontsize=6.5, color=SECOND_INK, zorder=5, **place)
        if name in true_curves:
            x, y = true_curves[name]
            each.plot(x, y, zorder=4, **TRUTH)
            curves.append((y, y, y))
        limit_to_bands(each, curves)
        each.set_ylabel(LABELS[name])
        each.set_xlabel(axis_label(fit.coords.get("time"), "time"))
        if ax is None and name in ("A", "B"):
            each.xaxis.label.set_visible(False)
        each.margins(x=0.02)
    handles: list[Artist] = []
    if single:
        handles.append(Line2D([], [], color=LEVELS["alpha"], label="within class"))
        handles.append(Line2D([], [], color=LEVELS["beta"], label="between classes"))
    level = 100 * float(fit.attrs.get("confidence", 0.95))
    handles.append(band_patch(SECOND_INK, not single, f"{level:.3g}% band"))
    if true_curves:
        handles.append(Line2D([], [], label="truth", **TRUTH))
    rate_key(axes, cells, handles)
    return axes


def _draw(ax: Axes, cell: RateCell, name: str, single: bool) -> Curve:
    """Draw one estimate; its values and the ends of its band, NaN where not identified."""
    x = cell.data[cell.data[name].dims[0]].values
    curve = np.stack([cell.data[name + end].values for end in ("", "_lower", "_upper")])
    curve = np.where(np.isfinite(curve).all(0), curve, np.nan)
    level = LEVELS["alpha" if name in ("A", "alpha") else "beta"]
    colour = level if single else cell.colour
    ax.plot(x, curve[0], color=colour, zorder=3)
    draw_band(ax, x, curve[1], curve[2], colour, not single)
    return curve[0], curve[1], curve[2]
