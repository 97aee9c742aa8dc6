"""Separation probability: against time, and as a phase diagram over a parameter and time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib import patheffects as effects
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from lesde.checks import check_flag, check_real
from lesde.paths import check_dataset
from lesde.plot.curves import (
    RateCell,
    band_patch,
    cell_edges,
    draw_band,
    nested_lines,
    rate_cells,
    rate_key,
    refuse_other_dims,
)
from lesde.plot.frames import check_pair
from lesde.plot.style import (
    DASHED,
    INK,
    SECOND_INK,
    axis_label,
    colour_bar,
    legend_above,
    panels,
    positive,
    style,
)
from lesde.plot.ticks import tidy_log

THIN, WIDE = 0.7, 1.6
"""Line widths of the prediction, and of a counted curve, which may lie below one."""


@style()
def probability(
    prob: xr.Dataset,
    prediction: xr.Dataset | None = None,
    pair: tuple[int, int] | None = None,
    *,
    failure: bool = False,
    learning_rate: float | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Separation probability against time with its confidence band, and the analytic line.

    Parameters
    ----------
    prob : xarray.Dataset
        As `lesde.separation_probability` returns.
    prediction : xarray.Dataset, optional
        As `lesde.predict_separation` returns: drawn as a dashed line where it is exact (two classes,
        or ``pair``), as a hatched range between the bounds where only those are known.
    pair : (int, int), optional
        Probability that these two classes separate. Default: all pairs at once.
    failure : bool, default False
        Draw 1 − probability, on a logarithmic axis that ends a little below 1/trials, the smallest frequency
        that could be counted, or the smallest prediction, but not below 1e-6. The prediction is taken from its
        logarithm, so it stays right where the probability is 1 within rounding.
    learning_rate : float, optional
        Show only this one. Default: all, a colour each.
    ax : matplotlib Axes, optional

    Notes
    -----
    On the logarithmic axis a count of no failures at all has a band, but no point. Several learning
    rates differ in their dashes as well: where their curves coincide, each shows in its part of a period.

    Examples
    --------
    >>> prob = lesde.separation_probability(paths)  # doctest: +SKIP
    >>> pred = lesde.predict_separation(model, paths.time, initial=means)  # doctest: +SKIP
    >>> ax = lesde.plot.probability(prob, pred, failure=True)  # doctest: +SKIP
    """
    names = ["probability", "lower", "upper"]
    if pair is not None:
        names = ["pairwise", "pairwise_lower", "pairwise_upper"]
    check_flag("failure", failure)
    prob = _pick(prob, names, pair, "prob", "lesde.separation_probability")
    if np.isnan(prob[names[0]].values).all():
        raise ValueError(
            f"prob.{names[0]} holds no number, as where statistics determine it for pairs of classes one "
            f"by one only. Choose {'two classes with pair=(k, l)' if pair is None else 'another pair'}."
        )
    cells = rate_cells(prob, "prob", learning_rate)
    predicted = [] if prediction is None else _predicted(prediction, pair, failure)
    target: Axes = panels(ax, 1, 1, 2.4)[0, 0]
    lines, several = nested_lines(len(cells)), len(cells) > 1
    for cell, line in zip(cells, lines, strict=True):
        _counted(target, cell, names, failure, line, several)
    level = prob.attrs.get("confidence")
    band = "interval" if level is None else f"{100 * float(level):.3g}% interval"
    colour = SECOND_INK if several else cells[0].colour
    handles: list[Artist] = [
        Line2D([], [], color=colour, marker="" if several else ".", label="counted"),
        band_patch(colour, several, band),
    ]
    if prediction is not None:
        handles.append(_draw_prediction(target, prediction["time"].values, predicted))
    event = "separated" if pair is None else f"{pair[0]}, {pair[1]} separated"
    target.set_ylabel(f"1 − P({event})" if failure else f"P({event})")
    if failure:
        target.set_yscale("log")
        tidy_log(target, "y")
        floor = 0.3 / float(prob["trials"].max()) if "trials" in prob else 1e-3
        lowest = min(np.nanmin(positive(c), initial=2 * floor) for c in (*predicted, [1.0]))
        target.set_ylim(max(lowest / 2, 1e-6), 1.5)
    else:
        target.set_ylim(-0.03, 1.03)
    target.set_xlabel(axis_label(prob.coords.get("time"), "time"))
    target.margins(x=0.02)
    rate_key(target, cells, handles, lines)
    return target


def _pick(
    dataset: Any, names: Sequence[str], pair: tuple[int, int] | None, name: str, source: str
) -> xr.Dataset:
    """The variables of one pair, or of all at once, checked to be over time and learning rate."""
    check_dataset(name, dataset, names, source)
    if pair is not None:
        k, l = check_pair(pair, dataset.sizes["class"])
        dataset = dataset.isel({"class": k, "class_": l})
    for variable in names:
        refuse_other_dims(dataset[variable], ("learning_rate", "time"), name)
        if "time" not in dataset[variable].dims:
            raise ValueError(f"{name} must hold {variable} over the dimension 'time'.")
    return dataset


def _counted(
    ax: Axes, cell: RateCell, names: Sequence[str], failure: bool, line: Any, several: bool
) -> None:
    """Draw the counted curve of one learning rate and its band."""
    estimate, lower, upper = (cell.data[n].values.astype(np.float64) for n in names)
    times = cell.data["time"].values
    if failure:
        estimate, lower, upper = positive(1 - estimate), 1 - upper, 1 - lower
        lower = np.maximum(lower, 1e-300)  # a band to the bottom of the axis
    draw_band(ax, times, lower, upper, cell.colour, several)
    # A thin line, so that dashes can be followed, with marks, so that single values show.
    ax.plot(times, estimate, color=cell.colour, linewidth=THIN, marker=".", markersize=4, zorder=2)
    wide: Any = {"linewidth": WIDE, "linestyle": line, "dash_capstyle": "butt"}
    ax.plot(times, estimate, color=cell.colour, zorder=3, **wide)


def _predicted(
    prediction: xr.Dataset, pair: tuple[int, int] | None, failure: bool
) -> list[np.ndarray]:
    """The exact line, or the lower and the upper bound."""
    names = ["log_failure"] if failure else ["pairwise"]
    if pair is None:
        names = ["log_failure_lower", "log_failure_upper"] if failure else ["lower", "upper"]
        names.append("probability")
    found = _pick(prediction, names, pair, "prediction", "lesde.predict_separation")
    if pair is None:
        known = names.pop()
        if np.isfinite(found[known].values).any():
            # With two classes both bounds on the failure are the failure.
            names = names[:1] if failure else [known]
    for name in names:
        refuse_other_dims(found[name], ("time",), "prediction")
    values = [found[name].values.astype(np.float64) for name in names]
    return [np.exp(curve) for curve in values] if failure else values


def _draw_prediction(ax: Axes, times: np.ndarray, curves: list[np.ndarray]) -> Artist:
    """Draw a line, or two bounds with hatching between; the legend entry."""
    # Thin: where the bounds are close they lie on the counted curve, which must show at their sides.
    look: Any = {"linestyle": DASHED, "linewidth": THIN}
    for curve in curves:
        (line,) = ax.plot(times, curve, color=INK, zorder=4, **look)
    if len(curves) == 1:
        line.set_label("exact law")
        return line
    hatched: Any = {"facecolor": "none", "hatch": "/////"}
    low, high = curves
    ax.fill_between(times, low, high, **hatched, edgecolor=SECOND_INK, linewidth=0, zorder=2)
    return Patch(**hatched, **look, edgecolor=INK, label="bounds of exact law")


SPREAD = 30.0
"""A coordinate spread over more than this factor is shown on a logarithmic axis."""


@style()
def phase_diagram(
    dataset: xr.Dataset,
    *,
    y: str = "time",
    critical: float | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Separation probability as a heat map over a parameter and time, with P = ½ and the critical line.

    Parameters
    ----------
    dataset : xarray.Dataset
        Variable ``probability`` over ``y`` and one other numeric dimension, such as ``c`` of
        α − β = c/t, as returned by `lesde.separation_probability` or `lesde.predict_separation` for
        each parameter. Optional variable ``transition``, over either dimension: where the probability
        passes ½ in theory, drawn as a dashed line.
    y : str, default "time"
        Dimension on the vertical axis; the other is on the horizontal one.
    critical : float, optional
        Position of the critical line on the horizontal axis. Default: K/2 for a dimension ``c`` with
        attribute ``n_classes``, ½ for a dimension ``c_over_K``, else none. (With α − β = c/t the classes
        of the I-model separate in the limit iff c > K/2.)
    ax : matplotlib Axes, optional

    Notes
    -----
    A coordinate that is positive and spans a factor of more than 30 is on a logarithmic axis; a first
    value of 0 (the time of the initial state) is left out if the rest is positive. Cells are bounded
    midway between neighbours, in the scale of the axis.

    Examples
    --------
    >>> runs = [lesde.predict_separation(model(c), times, means) for c in cs]  # doctest: +SKIP
    >>> data = xr.concat(runs, xr.IndexVariable("c", cs)).assign_attrs(n_classes=3)  # doctest: +SKIP
    >>> ax = lesde.plot.phase_diagram(data)  # doctest: +SKIP
    """
    source = "lesde.separation_probability for each parameter, joined with xarray.concat,"
    check_dataset("dataset", dataset, ["probability"], source)
    variable = dataset["probability"]
    if np.isnan(variable.values).all():
        raise ValueError(
            "dataset.probability holds no number, as where only bounds, or only pairs of classes one by "
            "one, are known. Put those in its place with dataset.assign(probability=...)."
        )
    if y not in variable.dims or variable.ndim != 2:
        raise ValueError(
            f"dataset.probability must have two dimensions, y={y!r} and one other; got "
            f"{', '.join(map(repr, variable.dims))}. Choose entries of others with dataset.isel(...)."
        )
    (x,) = (str(d) for d in variable.dims if d != y)
    for dim in (x, y):
        numeric = dim in variable.coords and variable[dim].dtype.kind in "iuf"
        if not numeric or len(np.unique(variable[dim])) < max(2, variable.sizes[dim]):
            raise ValueError(
                f"dataset must have at least 2 different numbers along {dim!r}; set them with "
                f"dataset.assign_coords({dim}=[...])."
            )
    known = {"c": dataset.attrs.get("n_classes", np.nan) / 2, "c_over_K": 0.5}
    line = known.get(x, np.nan) if critical is None else check_real("critical", critical)
    data = dataset.sortby([x, y])
    logs = {}
    for dim in (x, y):
        values = data[dim].values.astype(np.float64)
        later = values[values > 0]
        logs[dim] = bool(values[0] >= 0 and len(later) > 2 and later[-1] > SPREAD * later[0])
        if logs[dim]:
            data = data.sel({dim: data[dim] > 0})

    target: Axes = panels(ax, 1, 1, 2.6)[0, 0]
    across, up = (data[d].values.astype(np.float64) for d in (x, y))
    values = data["probability"].transpose(y, x).values.astype(np.float64)
    columns, rows = cell_edges(across, logs[x]), cell_edges(up, logs[y])
    mesh = target.pcolormesh(
        columns, rows, values, vmin=0.0, vmax=1.0, cmap="cividis", rasterized=True
    )
    for which, dim in (("x", x), ("y", y)):
        if logs[dim]:
            target.set(**{f"{which}scale": "log"})
            tidy_log(target, which)
    handles: list[Artist] = []
    if np.nanmin(values) < 0.5 < np.nanmax(values):
        target.contour(across, up, values, levels=[0.5], colors="white", linewidths=1.2)
        # White on the white page would not show in the legend, so there the line has an edge.
        edge = [effects.Stroke(linewidth=2.6, foreground="0.45"), effects.Normal()]
        look: Any = {"color": "white", "linewidth": 1.2, "path_effects": edge}
        handles.append(Line2D([], [], **look, label="P = ½"))
    if "transition" in data:
        along = data["transition"].dims
        if along not in ((x,), (y,)):
            raise ValueError(f"dataset.transition must be over {x!r} or {y!r}; got {along}.")
        points = [data[along[0]].values, data["transition"].values]
        handles += target.plot(
            *(points if along == (x,) else points[::-1]), color=INK, linestyle=DASHED, linewidth=1.2,
            label="P = ½, theory",
        )  # fmt: skip
    if np.isfinite(line):
        look = {"color": "#D55E00", "linestyle": (0, (1, 1)), "linewidth": 1.6}
        handles.append(target.axvline(line, **look, label="critical"))
    # Neither the critical line nor the transition may widen the map.
    target.set(xlim=columns[[0, -1]], ylim=rows[[0, -1]])
    target.set_xlabel(axis_label(data.coords[x], "c / K" if x == "c_over_K" else x))
    target.set_ylabel(axis_label(data.coords[y], y))
    colour_bar(mesh, "P(separated)", ax=target, aspect=25, pad=0.02)
    legend_above(target, handles)
    return target
