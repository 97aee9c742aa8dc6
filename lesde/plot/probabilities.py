"""Separation probability against time: counted over replicates, and predicted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from lesde.checks import check_dataset, check_flag, check_integer, check_real, shown
from lesde.plot.canvas import axis_label, check_panels, panels, positive, tidy_log
from lesde.plot.rate_key import (
    RateCell,
    band_patch,
    draw_band,
    nested_lines,
    rate_cells,
    rate_key,
    refuse_other_dims,
)
from lesde.plot.style import INK, SECOND_INK, style

__all__ = ["probability"]

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
            f"prob.{names[0]} holds no number, as where statistics tell the pairs of classes one by one "
            f"only. {'Choose two classes with pair=(k, l).' if pair is None else 'Choose another pair.'}"
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
        K = dataset.sizes["class"]
        if isinstance(pair, str) or not isinstance(pair, Sequence) or len(pair) != 2:
            raise TypeError(f"pair must be two classes (k, l); got {shown(pair)}.")
        k, l = (check_integer("an entry of pair", c, 0) for c in pair)
        if max(k, l) >= K or k == l:
            raise ValueError(
                f"pair must be two different classes from 0 to {K - 1}; got {shown(pair)}."
            )
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
    """What line and band are, in words."""
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
    """Where the logarithmic axis of failures ends."""
    seen = [positive(1 - prob[n].values) for n in names]
    if "trials" in prob:
        seen = [np.array([0.6 / float(prob["trials"].max())])]
    if predicted is not None:
        seen += [positive(curve) for curve in predicted[1:] if curve is not None]
    finite = np.concatenate([values[np.isfinite(values)].ravel() for values in seen])
    return max(float(finite.min()) / 2, 1e-6) if len(finite) else 1e-3
