"""LE-ODE against observed class means."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer
from matplotlib.lines import Line2D

from lesde.checks import (
    bare_array,
    check_dataset,
    check_finite_array,
    check_integer,
    check_labels,
    check_real,
    is_statistics,
)
from lesde.plot.canvas import axis_label, check_panels, class_handles, legend_above, panels
from lesde.plot.frames import class_average, select_rate
from lesde.plot.geometry import principal_axes
from lesde.plot.style import class_line, class_marker, palette, style

__all__ = ["class_means"]

MOST_FEATURES = 3
MOST_MARKERS = 16


@style()
def class_means(
    observed: xr.Dataset,
    law: xr.Dataset,
    *,
    features: Any = None,
    directions: Any = None,
    learning_rate: float | None = None,
    ax: Any = None,
) -> np.ndarray:
    """Class means of a model (lines) against observed ones (markers), a panel per coordinate.

    Parameters
    ----------
    observed : xarray.Dataset
        Paths, recorded or simulated, or their statistics. Markers are class means averaged over replicates, with bars of
        one standard error of that average; no bars for a single replicate.
    law : xarray.Dataset
        The model: what ``model.law(times, initial=...)`` returns (its mean solves the LE-ODE), or
        paths or statistics, whose class means are averaged over replicates.
    features : int or sequence of int, optional
        Features shown. Default: all where there are at most 3, else see ``directions``.
    directions : array (feature,) or (d, feature), optional
        Directions to project on in place of features; made unit vectors. Default with more than 3
        features: the first two principal axes of the observed class means at the last time.
    learning_rate : float, optional
        Which learning rate, of either dataset that has several. Default: the first; the figure says
        which.
    ax : matplotlib Axes or array of them, one per coordinate, optional
        Default: a new figure, one column wide.

    Returns
    -------
    ndarray of matplotlib Axes, shape (coordinate,)

    Raises
    ------
    TypeError, ValueError
        For datasets without class means, or that differ in classes or features.

    Notes
    -----
    Each dataset is shown at its own times; of the observed ones at most 16, evenly spaced, get a
    marker. Replicates must share their initial means for the average to say much: with initial means
    drawn for every replicate it is about zero.

    Examples
    --------
    >>> fitted = lesde.LESDE(lesde.fitted_kernel(lesde.fit_elasticity(paths)), 3, 3)  # doctest: +SKIP
    >>> axes = lesde.plot.class_means(paths, fitted.law(paths.time, initial=means))  # doctest: +SKIP
    """
    if not is_statistics(observed):
        check_dataset(
            "observed", observed, ["features"], "lesde.simulate, lesde.from_arrays or a recorder"
        )
    if learning_rate is not None:
        check_real("learning_rate", learning_rate)
    seen, note = _average(observed, "observed", learning_rate)
    model, other = _average(law, "law", learning_rate)
    if seen.mean.shape[1:] != model.mean.shape[1:]:
        raise ValueError(
            f"observed and law must have the same classes and features; got {seen.mean.shape[1:]} and "
            f"{model.mean.shape[1:]}."
        )
    K, p = seen.mean.shape[1:]
    axes_of, names = _coordinates(features, directions, seen.mean[-1], p)
    check_panels(ax, len(names))
    axes = panels(ax, len(names), 1, 0.8 + 1.35 * len(names), sharex=ax is None)[:, 0]
    for each, direction, name in zip(axes, axes_of, names, strict=True):
        for k in range(K):
            _draw(each, seen, model, direction, k, palette(K)[k])
        each.set_ylabel(name)
        each.set_xlabel(seen.time_label)
        if ax is None and each is not axes[-1]:
            each.xaxis.label.set_visible(False)
        each.margins(x=0.02)
    kind = "LE-ODE" if "mean" in law and not is_statistics(law) else "model"
    kinds = [
        Line2D([], [], color="black", linestyle="-", label=kind),
        Line2D([], [], color="black", marker="o", linestyle="none", label="observed"),
    ]
    note = note or other
    handles = class_handles(range(K), K, linestyle=K > 8)
    legend_above(axes, [*kinds, *handles], f"class, {note}" if note else "class")
    return axes


class _Means:
    """Class means (time, class, feature), averaged over replicates, and those of each replicate."""

    def __init__(self, each: np.ndarray, times: np.ndarray, time_label: str):
        self.each, self.times, self.time_label = each, times, time_label
        self.mean = each.mean(axis=0)

    def along(self, direction: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Average over replicates along a direction, and its standard error."""
        values = self.each[:, :, k] @ direction
        if len(values) < 2:
            return values[0], None
        return values.mean(axis=0), values.std(axis=0, ddof=1) / np.sqrt(len(values))


def _average(dataset: xr.Dataset, name: str, learning_rate: float | None) -> tuple[_Means, str]:
    """Class means of a law or of paths."""
    wanted = learning_rate
    if isinstance(dataset, xr.Dataset) and "learning_rate" not in dataset.coords:
        wanted = None
    if not isinstance(dataset, xr.Dataset) or not {"mean", "features"} & set(dataset.data_vars):
        check_dataset(name, dataset, ["mean"], "model.law, or paths with features,")
    check_dataset(name, dataset, ["mean" if "mean" in dataset else "features"], "model.law")
    dataset, note = select_rate(dataset, wanted, name)
    variable = dataset["mean" if "mean" in dataset else "features"]
    last = ("class", "feature") if variable.name == "mean" else ("sample", "feature")
    if "replicate" not in variable.dims:
        variable = variable.expand_dims("replicate")
    if set(variable.dims) != {"replicate", "time", *last}:
        raise ValueError(
            f"{name}.{variable.name} must be over time, {last[0]} and feature, and possibly "
            f"learning_rate and replicate; got {', '.join(map(str, variable.dims))}."
        )
    values = variable.transpose("replicate", "time", *last).values
    if variable.name == "features":
        if "label" not in dataset.variables:
            raise ValueError(
                f"{name} must hold the coordinate label(sample), the class of each sample."
            )
        values = class_average(values, check_labels(f"{name}.label", dataset["label"].values))
    if not np.isfinite(values).all():
        raise ValueError(f"{name} must be finite; some of its class means are not.")
    times = variable["time"].values.astype(np.float64)
    return _Means(values, times, axis_label(dataset.coords.get("time"), "time")), note


def _coordinates(
    features: Any, directions: Any, last: np.ndarray, p: int
) -> tuple[np.ndarray, list[str]]:
    """Unit vectors (d, feature) and what the coordinates along them are called."""
    if features is not None and directions is not None:
        raise ValueError("features and directions both say what to show; give one of them.")
    if directions is not None:
        given = np.atleast_2d(check_finite_array("directions", directions, [(p,), ("d", p)]))
        length = np.linalg.norm(given, axis=1, keepdims=True)
        if len(given) == 0 or (length == 0).any():
            raise ValueError("directions must hold vectors other than zero.")
        return given / length, [f"direction {i + 1}" for i in range(len(given))]
    if features is None and p > MOST_FEATURES:
        return principal_axes(last, last[:1] * 0, 2), ["PC 1 of class means", "PC 2 of class means"]
    wanted = range(p) if features is None else np.atleast_1d(bare_array("features", features))
    chosen = [check_integer("an entry of features", i, 0) for i in wanted]
    if not chosen or max(chosen) >= p:
        raise ValueError(f"features must hold integers from 0 to {p - 1}; got {chosen}.")
    return np.eye(p)[chosen], [f"mean of feature {i}" for i in chosen]


def _draw(
    ax: Axes, seen: _Means, model: _Means, direction: np.ndarray, k: int, colour: str
) -> ErrorbarContainer:
    line, _ = model.along(direction, k)
    ax.plot(model.times, line, color=colour, linestyle=class_line(k), zorder=2)
    average, error = seen.along(direction, k)
    at = np.unique(
        np.linspace(0, len(seen.times) - 1, min(MOST_MARKERS, len(seen.times))).round().astype(int)
    )
    return ax.errorbar(
        seen.times[at],
        average[at],
        None if error is None else error[at],
        color=colour,
        marker=class_marker(k),
        markersize=3,
        markeredgecolor="white",
        markeredgewidth=0.3,
        linestyle="none",
        elinewidth=0.7,
        zorder=3,
    )
