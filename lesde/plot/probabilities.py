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

from lesde.checks import check_flag, check_real, shown
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
    INK,
    SECOND_INK,
    axis_label,
    check_panels,
    colour_bar,
    legend_above,
    panels,
    positive,
    style,
)
from lesde.plot.ticks import tidy_log

__all__ = ["phase_diagram", "probability"]


COUNTED = "lesde.separation_probability"
PREDICTED = "lesde.predict_separation"
THIN, WIDE = 0.7, 1.8
"""Line widths of the prediction, and of a counted curve below one."""


@style()
def probability(
    prob: xr.Dataset,
    prediction: xr.Dataset | None = None,
    pair: tuple[int, int] | None = None,
    *,
    failure: bool = False,
    lowest: float | None = None,
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
        Draw 1 − probability, on a logarithmic axis; the prediction from its logarithm, so it stays
        right where the probability is 1 within rounding.
    lowest : float, optional
        Where the axis of failures ends. Default: a little below 1/trials, the smallest frequency
        that could be counted, or at the smallest prediction if that is lower, but not below 1e-6.
    learning_rate : float, optional
        Show only this one. Default: all, a colour each.
    ax : matplotlib Axes, optional
        Default: a new figure, one column wide.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    TypeError, ValueError
        For datasets without the variables needed, or a pair that is none.

    Notes
    -----
    On the logarithmic axis a count of no failures at all has no point; the band, which reaches up to
    the upper limit of the failure probability, has.

    Several learning rates differ in their dashes as well, on a thin line: where their curves
    coincide, each shows in its part of a period.

    Examples
    --------
    >>> prob = lesde.separation_probability(paths)  # doctest: +SKIP
    >>> pred = lesde.predict_separation(model, paths.time, initial=means)  # doctest: +SKIP
    >>> ax = lesde.plot.probability(prob, pred, failure=True)  # doctest: +SKIP
    """
    names = ["pairwise", "pairwise_lower", "pairwise_upper"]
    names = ["probability", "lower", "upper"] if pair is None else names
    check_dataset("prob", prob, names, COUNTED)
    check_flag("failure", failure)
    prob = _pick(prob, names, pair, "prob")
    if np.isnan(prob[names[0]].values).all():
        raise ValueError(
            f"prob.{names[0]} holds no number, as where statistics determine it for pairs of "
            f"classes one by one only. {'Choose two classes with pair=(k, l).' if pair is None else 'Choose another pair.'}"
        )
    check_panels(ax, 1)
    if lowest is not None:
        check_real("lowest", lowest, 0.0, 1.0, open_minimum=True, open_maximum=True)
    cells = rate_cells(prob, "prob", learning_rate)
    predicted = None
    if prediction is not None:
        predicted = _predicted(prediction, pair, failure)
    target: Axes = panels(ax, 1, 1, 2.4)[0, 0]
    lines = nested_lines(len(cells))
    width = 1.1 if predicted is None else WIDE
    for cell, line in zip(cells, lines, strict=True):
        _counted(target, cell, names, failure, line, width, len(cells) > 1)
    handles = _explain(prob, cells)
    if predicted is not None:
        handles += _draw_prediction(target, *predicted)
    event = "separated" if pair is None else f"{pair[0]}, {pair[1]} separated"
    target.set_ylabel(f"1 − P({event})" if failure else f"P({event})")
    if failure:
        target.set_yscale("log")
        tidy_log(target, "y")
        target.set_ylim(_floor(prob, names, predicted) if lowest is None else lowest, 1.5)
    else:
        target.set_ylim(-0.03, 1.03)
    target.set_xlabel(axis_label(prob.coords.get("time"), "time"))
    target.margins(x=0.02)
    rate_key(target, cells, handles, lines)
    return target


def _pick(
    dataset: xr.Dataset, names: Sequence[str], pair: tuple[int, int] | None, name: str
) -> xr.Dataset:
    """The variables of one pair, or of all at once, checked to be over time and learning rate."""
    if pair is not None:
        k, l = check_pair(pair, dataset.sizes["class"])
        dataset = dataset.isel({"class": k, "class_": l})
    for variable in names:
        refuse_other_dims(dataset[variable], ("learning_rate", "time"), name)
        if "time" not in dataset[variable].dims:
            raise ValueError(f"{name} must hold {variable} over the dimension 'time'.")
    return dataset


def _counted(
    ax: Axes,
    cell: RateCell,
    names: Sequence[str],
    failure: bool,
    line: Any,
    width: float,
    several: bool,
) -> None:
    """Draw the counted curve of one learning rate and its band."""
    estimate, lower, upper = (cell.data[n].values.astype(np.float64) for n in names)
    times = cell.data["time"].values
    if failure:
        estimate, lower, upper = positive(1 - estimate), 1 - upper, 1 - lower
        lower = np.maximum(lower, 1e-300)  # a band to the bottom of the axis
    draw_band(ax, times, lower, upper, cell.colour, several)
    every = None
    if several:
        # Markers would hide the dashes, but a value between two that are not shown has no line.
        known = np.concatenate([[False], np.isfinite(estimate), [False]])
        every = list(np.flatnonzero(known[1:-1] & ~known[:-2] & ~known[2:]))
        ax.plot(times, estimate, color=cell.colour, linewidth=THIN, zorder=3)
        width = WIDE
    ax.plot(
        times, estimate, color=cell.colour, linestyle=line, linewidth=width, marker=".",
        markersize=3 if width < WIDE else 4.5, markevery=every, dash_capstyle="butt", zorder=3,
    )  # fmt: skip


def _explain(prob: xr.Dataset, cells: list[RateCell]) -> list[Artist]:
    """Legend entries that explain line and band."""
    level = prob.attrs.get("confidence")
    band = "interval" if level is None else f"{100 * float(level):.3g}% interval"
    several = len(cells) > 1
    colour = SECOND_INK if several else cells[0].colour
    return [
        Line2D([], [], color=colour, marker="" if several else ".", markersize=3, label="counted"),
        band_patch(colour, several, band),
    ]


Curves = tuple[np.ndarray, np.ndarray | None, np.ndarray | None, np.ndarray | None]


def _predicted(prediction: xr.Dataset, pair: tuple[int, int] | None, failure: bool) -> Curves:
    """Times, the exact line or None, lower and upper bound or None."""
    if pair is not None:
        name = "log_failure" if failure else "pairwise"
        check_dataset("prediction", prediction, [name], PREDICTED)
        line = _pick(prediction, [name], pair, "prediction")[name]
        return prediction["time"].values, _value(line, failure), None, None
    check_dataset("prediction", prediction, ["probability", "lower", "upper"], PREDICTED)
    exact = bool(np.isfinite(prediction["probability"].values).any())
    if failure:
        names = ["log_failure_lower", "log_failure_upper"]
        check_dataset("prediction", prediction, names, PREDICTED)
    else:
        names = ["probability"] if exact else ["lower", "upper"]
    _pick(prediction, names, None, "prediction")
    values = [_value(prediction[n], failure) for n in names]
    times = prediction["time"].values
    if exact:  # two classes: both bounds on the failure are the failure
        return times, values[0], None, None
    return times, None, values[0], values[1]


def _value(variable: xr.DataArray, failure: bool) -> np.ndarray:
    if "learning_rate" in variable.dims:
        refuse_other_dims(variable, ("time",), "prediction")
    values = variable.values.astype(np.float64)
    return np.exp(values) if failure else values


def _draw_prediction(
    ax: Axes,
    times: np.ndarray,
    line: np.ndarray | None,
    lower: np.ndarray | None,
    upper: np.ndarray | None,
) -> list[Artist]:
    if line is not None:
        (drawn,) = ax.plot(
            times,
            line,
            color=INK,
            linestyle=(0, (4, 2)),
            linewidth=THIN,
            zorder=4,
            label="exact law",
        )
        return [drawn]
    assert lower is not None
    assert upper is not None
    ax.fill_between(
        times, lower, upper, facecolor="none", edgecolor=SECOND_INK, hatch="/////", linewidth=0,
        zorder=2,
    )  # fmt: skip
    for bound in (lower, upper):
        # Thin: where the bounds are close they lie on the counted curve, which must show at their sides.
        ax.plot(times, bound, color=INK, linestyle=(0, (4, 2)), linewidth=THIN, zorder=4)
    return [
        Patch(
            facecolor="none",
            edgecolor=INK,
            hatch="/////",
            linestyle=(0, (4, 2)),
            linewidth=THIN,
            label="bounds of exact law",
        )
    ]


def _floor(prob: xr.Dataset, names: Sequence[str], predicted: Curves | None) -> float:
    """Lower end of the logarithmic axis of failures."""
    seen = [positive(1 - prob[n].values) for n in names]
    if "trials" in prob:
        seen = [np.array([0.6 / float(prob["trials"].max())])]
    if predicted is not None:
        seen += [positive(curve) for curve in predicted[1:] if curve is not None]
    finite = np.concatenate([values[np.isfinite(values)].ravel() for values in seen])
    return max(float(finite.min()) / 2, 1e-6) if len(finite) else 1e-3


SPREAD = 30.0
"""A coordinate spread over more than this factor is shown on a logarithmic axis."""


@style()
def phase_diagram(
    dataset: xr.Dataset,
    x: str | None = None,
    y: str = "time",
    *,
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
    x : str, optional
        Dimension on the horizontal axis. Default: the one that is not ``y``.
    y : str, default "time"
        Dimension on the vertical axis.
    critical : float, optional
        Position of the critical line on the horizontal axis. Default: the dataset's variable,
        coordinate or attribute ``critical``; else K/2 for a dimension ``c`` with attribute
        ``n_classes``, and ½ for a dimension ``c_over_K``; else none. (With α − β = c/t the classes of
        the I-model separate in the limit iff c > K/2.)
    ax : matplotlib Axes, optional
        Default: a new figure, one column wide.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    TypeError, ValueError
        For a dataset without ``probability`` over two numeric dimensions.

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
    for argument, dim in (("x", x), ("y", y)):
        if not isinstance(dim, str) and not (argument == "x" and dim is None):
            raise TypeError(f"{argument} must be the name of a dimension; got {shown(dim)}.")
    if np.isnan(dataset["probability"].values).all():
        raise ValueError(
            "dataset.probability holds no number, as where only bounds, or only pairs of classes one by "
            "one, are known. Put those in its place with dataset.assign(probability=...)."
        )
    x = _horizontal(dataset["probability"], x, y)
    check_panels(ax, 1)
    critical = _critical(dataset, x) if critical is None else check_real("critical", critical)
    data = dataset.sortby([x, y])
    logs = {}
    for dim in (x, y):
        values = data[dim].values.astype(np.float64)
        later = values[values > 0]
        logs[dim] = len(later) > 2 and later[-1] > SPREAD * later[0] and (values[0] >= 0)
        if logs[dim] and values[0] == 0:
            data = data.isel({dim: slice(1, None)})
        if (values == 0).sum() > 1 or len(np.unique(values)) < len(values):
            raise ValueError(f"dataset must have distinct values of {dim}; some are repeated.")

    target: Axes = panels(ax, 1, 1, 2.6)[0, 0]
    across, up = (data[d].values.astype(np.float64) for d in (x, y))
    values = data["probability"].transpose(y, x).values.astype(np.float64)
    mesh = target.pcolormesh(
        cell_edges(across, logs[x]), cell_edges(up, logs[y]), values,
        vmin=0.0, vmax=1.0, cmap="cividis", rasterized=True,
    )  # fmt: skip
    for which, dim in (("x", x), ("y", y)):
        if logs[dim]:
            target.set(**{f"{which}scale": "log"})
            tidy_log(target, which)
    handles: list[Artist] = []
    if min(values.shape) > 1 and np.nanmin(values) < 0.5 < np.nanmax(values):
        target.contour(across, up, values, levels=[0.5], colors="white", linewidths=1.2)
        handles.append(Line2D([], [], color="0.6", linewidth=1.2, label="P = ½"))
    if "transition" in data:
        handles.append(_transition(target, data, x, y))
    if critical is not None:
        line = target.axvline(
            critical, color="#D55E00", linestyle=(0, (1, 1)), linewidth=1.6, label="critical"
        )
        handles.append(line)
    # Neither the critical line nor the transition may widen the map.
    target.set_xlim(*cell_edges(across, logs[x])[[0, -1]])
    target.set_ylim(*cell_edges(up, logs[y])[[0, -1]])
    target.set_xlabel(axis_label(data.coords[x], "c / K" if x == "c_over_K" else x))
    target.set_ylabel(axis_label(data.coords[y], y))
    colour_bar(mesh, "P(separated)", ax=target, aspect=25, pad=0.02)
    legend = legend_above(target, handles)
    # White on the white page would not show in the legend, so there the line has an edge.
    for drawn in legend.get_lines() if legend else []:
        if drawn.get_label() == "P = ½":
            drawn.set_color("white")
            edge = effects.Stroke(linewidth=2.6, foreground="0.45")
            drawn.set_path_effects([edge, effects.Normal()])
    return target


def _horizontal(variable: xr.DataArray, x: str | None, y: str) -> str:
    dims = [str(d) for d in variable.dims]
    if y not in dims:
        raise ValueError(f"y must be a dimension of dataset.probability, {dims}; got {y!r}.")
    others = [d for d in dims if d != y]
    if len(others) != 1 or (x is not None and x not in others):
        raise ValueError(
            f"dataset.probability must have two dimensions, {y!r} and "
            f"{'one other' if x is None else repr(x)}; got {', '.join(map(repr, dims))}. Choose entries "
            f"of others with dataset.isel(...)."
        )
    for dim in (*others, y):
        if dim not in variable.coords or variable[dim].dtype.kind not in "iuf":
            raise ValueError(
                f"dataset must have numbers along {dim!r}; add them with "
                f"dataset.assign_coords({dim}=[...])."
            )
        if variable.sizes[dim] < 2:
            raise ValueError(f"dataset must have at least 2 values of {dim}; got 1.")
    return others[0]


def _critical(dataset: xr.Dataset, x: str) -> float | None:
    if "critical" in dataset.variables and dataset["critical"].ndim == 0:
        return float(dataset["critical"])
    if "critical" in dataset.attrs:
        return float(dataset.attrs["critical"])
    if x == "c" and "n_classes" in dataset.attrs:
        return float(dataset.attrs["n_classes"]) / 2
    return 0.5 if x == "c_over_K" else None


def _transition(ax: Axes, data: xr.Dataset, x: str, y: str) -> Artist:
    variable = data["transition"]
    if variable.dims not in ((x,), (y,)):
        raise ValueError(
            f"dataset.transition must be over {x!r} or {y!r}; got {', '.join(map(str, variable.dims))}."
        )
    line = variable.values.astype(np.float64)
    along = data[variable.dims[0]].values
    points = (along, line) if variable.dims == (x,) else (line, along)
    (drawn,) = ax.plot(
        *points, color=INK, linestyle=(0, (4, 2)), linewidth=1.2, label="P = ½, theory"
    )
    return drawn
