"""Trajectories of samples and class means: a fan against time, beside a model, and in three features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.lines import Line2D

from lesde.analysis.class_means import read_averages
from lesde.checks import (
    bare_array,
    check_finite_array,
    check_flag,
    check_integer,
    check_sequence,
)
from lesde.paths import check_dataset, check_paths, is_statistics
from lesde.plot.curves import evenly, refuse_other_dims, select_rate
from lesde.plot.frames import (
    check_pair,
    draw_space,
    dress_space,
    last_time,
    principal_axes,
    read_frames,
    spread_over,
)
from lesde.plot.style import (
    axis_label,
    class_handles,
    class_line,
    class_marker,
    class_title,
    legend_above,
    only_below,
    palette,
    panels,
    style,
)

MOST_LINES, MOST_MARKERS = 300, 16
MOST_FEATURES = 3
"""Features with a panel each; of more, class means are shown along two principal axes."""


@style()
def separation_fan(
    paths: xr.Dataset,
    replicate: int = 0,
    direction: Any = None,
    *,
    pair: tuple[int, int] | None = None,
    learning_rate: float | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Projections of the samples on one direction against time, coloured by class, class means bold.

    Parameters
    ----------
    paths : xarray.Dataset
        Variable ``features`` over time, sample, feature and possibly learning rate and replicate;
        coordinates ``time`` and ``label(sample)``.
    replicate : int, default 0
    direction : array (feature,), optional
        What to project on; its length does not matter. Default: the first principal axis of the
        class means at the last time, with its sign such that the farthest class is positive.
        Where class means form a regular simplex all axes of it are alike, and one of them is taken.
    pair : (int, int), optional
        (k, l): show these classes, projected on the gap of their means at the last time, from class l
        to class k. Not together with ``direction``.
    learning_rate : float, optional
    ax : matplotlib Axes, optional

    Notes
    -----
    At most 300 samples are drawn, evenly over the classes. Class means are those of all samples.
    """
    frames = read_frames(paths, replicate, learning_rate)
    K = frames.means.shape[1]
    if pair is not None and direction is not None:
        raise ValueError("direction and pair both set the projection; give one of them.")
    classes = range(K) if pair is None else check_pair(pair, K)
    last = frames.means[-1]
    if direction is not None:
        vector = check_finite_array("direction", direction, [(last.shape[1],)])
        label = "projection on the given direction"
    elif pair is not None:
        vector = last[classes[0]] - last[classes[1]]
        label = f"projection on the gap {classes[1]} → {classes[0]}"
    else:
        vector = principal_axes(last, 0 * last, 1)[0] * (np.ptp(last, axis=0) > 0).any()
        label = "projection on PC 1 of class means"
    if not vector.any():
        raise ValueError(
            "direction must not be zero, as it is where the class means coincide at the last time."
        )
    axis = vector / np.linalg.norm(vector)
    target: Axes = panels(ax, 1, 1, 2.5)[0, 0]
    colours, average = palette(K), frames.means @ axis
    drawn = spread_over(frames.labels, classes, MOST_LINES)
    # Markers every so often, so that classes differ in more than colour.
    every = max(1, len(frames.times) // 5)
    for place, k in enumerate(classes):
        values = frames.features[:, drawn[k]] @ axis
        lines = np.stack(np.broadcast_arrays(frames.times[:, None], values), axis=-1)
        thin: Any = {"colors": colours[k], "linewidths": 0.35, "alpha": 0.3, "zorder": 1}
        target.add_collection(LineCollection(list(lines.swapaxes(0, 1)), **thin))
        target.plot(
            frames.times, average[:, k], color=colours[k], linestyle=class_line(k), linewidth=1.4,
            marker=class_marker(k), markevery=(place * every // len(classes), every), markersize=4,
            markeredgecolor="white", markeredgewidth=0.4, zorder=3, label=f"class {k}",
        )  # fmt: skip
    target.autoscale_view()
    target.margins(x=0.01)
    target.set_xlabel(frames.time_label)
    target.set_ylabel(label)
    legend_above(target, class_handles(classes, K), class_title(frames.note))
    return target


@style()
def class_means(
    observed: xr.Dataset,
    law: xr.Dataset,
    *,
    features: Any = None,
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
        The model: what ``lesde.law(model, times, initial=...)`` returns (its mean solves the LE-ODE), or
        paths or statistics, whose class means are averaged over replicates.
    features : int or sequence of int, optional
        Features shown. Default: all where there are at most 3, else projections on the first two
        principal axes of the observed class means at the last time.
    learning_rate : float, optional
        Of either dataset that has several.
    ax : matplotlib Axes or array of them, one per coordinate, optional

    Notes
    -----
    Each dataset is shown at its own times; of the observed ones at most 16, evenly spaced, get a
    marker. Replicates must share their initial means for the average to say much: with initial means
    drawn for every replicate it is about zero.

    Examples
    --------
    >>> fitted = lesde.LESDE(lesde.fitted_kernel(lesde.fit_elasticity(paths)), 3, 3)  # doctest: +SKIP
    >>> axes = lesde.plot.class_means(paths, lesde.law(fitted, paths.time, initial=means))  # doctest: +SKIP
    """
    seen, times, note = _averages(observed, "observed", learning_rate)
    model, fine, other = _averages(law, "law", learning_rate)
    K, p = seen.shape[2:]
    if model.shape[2:] != (K, p):
        raise ValueError(
            f"observed and law must have the same classes and features; got {(K, p)} and "
            f"{model.shape[2:]}."
        )
    axes_of, names = _coordinates(features, seen[:, -1].mean(0))
    axes = panels(ax, len(names), 1, 0.8 + 1.35 * len(names), sharex=ax is None)[:, 0]
    at, count = evenly(len(times), MOST_MARKERS), len(seen)
    for each, direction, name in zip(axes, axes_of, names, strict=True):
        for k, colour in enumerate(palette(K)):
            line = (model[:, :, k] @ direction).mean(0)
            each.plot(fine, line, color=colour, linestyle=class_line(k), zorder=2)
            values = seen[:, at, k] @ direction
            each.errorbar(
                times[at], values.mean(0),
                values.std(0, ddof=1) / np.sqrt(count) if count > 1 else None,
                color=colour, marker=class_marker(k), markersize=3, markeredgecolor="white",
                markeredgewidth=0.3, linestyle="none", elinewidth=0.7, zorder=3,
            )  # fmt: skip
        each.set_ylabel(name)
        each.set_xlabel(axis_label(times, "time"))
        each.margins(x=0.02)
    if ax is None:
        only_below(axes)
    kind = "LE-ODE" if "mean" in law and not is_statistics(law) else "model"
    kinds = [
        Line2D([], [], color="black", linestyle="-", label=kind),
        Line2D([], [], color="black", marker="o", linestyle="none", label="observed"),
    ]
    handles = class_handles(range(K), K, linestyle=K > 8)
    legend_above(axes, [*kinds, *handles], class_title(note or other))
    return axes


def _averages(
    dataset: xr.Dataset, name: str, learning_rate: float | None
) -> tuple[np.ndarray, xr.DataArray, str]:
    """Class means of a law, of statistics or of paths (replicate, time, class, feature), times, and a note."""
    if isinstance(dataset, xr.Dataset) and "features" in dataset:
        source, labels = check_paths(name, dataset, ("time", "sample", "feature"))
    else:
        check_dataset(name, dataset, ["mean"], "lesde.law, or paths with features,")
        source, labels = dataset["mean"], None
    rate = learning_rate if "learning_rate" in source.coords else None
    source, note = select_rate(source, rate, name)
    dims = ("replicate", "time", "class" if labels is None else "sample", "feature")
    refuse_other_dims(source, dims, name)
    if "replicate" not in source.dims:
        source = source.expand_dims("replicate")
    source = source.transpose(*dims)
    means = source if labels is None else read_averages(f"{name}.features", source, labels)
    if not np.isfinite(means.values).all():
        raise ValueError(f"{name} must be finite; some of its class means are not.")
    return means.values, source["time"], note


def _coordinates(features: Any, last: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Unit vectors (d, feature) and the names of the coordinates along them."""
    p = last.shape[1]
    if features is None and p > MOST_FEATURES:
        return principal_axes(last, 0 * last, 2), ["PC 1 of class means", "PC 2 of class means"]
    wanted = range(p) if features is None else np.atleast_1d(bare_array("features", features))
    chosen = [check_integer("an entry of features", i, 0) for i in wanted]
    if not chosen or max(chosen) >= p:
        raise ValueError(f"features must hold integers from 0 to {p - 1}; got {chosen}.")
    return np.eye(p)[chosen], [f"mean of feature {i}" for i in chosen]


@style()
def logit_paths(
    paths: xr.Dataset,
    time: float | None = None,
    samples: xr.Dataset | None = None,
    *,
    features: Sequence[int] = (0, 1, 2),
    legend: bool = True,
    ax: Any = None,
) -> Axes:
    """Trajectories of the class means in three features, averaged over replicates, with joins at four times.

    Unlike `simplex3d`, which turns and centres, it shows the features themselves, such as three logits, and
    all replicates together: figure 1 of Zhang, Wang and Su, NeurIPS 2021 (arXiv 2110.05960).

    Parameters
    ----------
    paths : xarray.Dataset
        ``features (replicate, time, sample, feature)``, the replicates optional, with ``time`` and ``label(sample)``.
    time : float, optional
        The trajectories are drawn up to the saved time nearest to it. Default: the last.
    samples : xarray.Dataset, optional
        Points to show: ``features (sample, feature)`` and ``label(sample)``.
    features : three ints, default (0, 1, 2)
        Which features.
    legend : bool, default True
        Name the classes above.
    ax : Axes with ``projection="3d"``, optional
        Those returned are seen from elsewhere after ``ax.view_init(elev=..., azim=...)``.
    """
    wanted = check_sequence("features", features, "a sequence of integers")
    chosen = [check_integer("an entry of features", i, 0) for i in wanted]
    check_flag("legend", legend)
    each, times, note = _averages(paths, "paths", None)
    K, p = each.shape[2:]
    if len(chosen) != 3 or max(chosen) >= p:
        raise ValueError(f"features must be three from 0 to {p - 1}, those of paths; got {chosen}.")
    points, labels = np.empty((0, 3)), np.empty(0)
    if samples is not None:
        shown, labels = check_paths("samples", samples)
        points = shown.transpose("sample", "feature").values[:, chosen]
        if labels.max() >= K:
            raise ValueError(f"samples.label must hold classes of paths, 0 to {K - 1}.")
    last = last_time(times.values, time)
    means = each[:, : last + 1, :, chosen].mean(0)
    target: Any = panels(ax, 1, 1, 3.3, projection="3d")[0, 0]
    draw_space(target, means, [points[labels == k] for k in range(K)], 5, evenly(last + 1, 4))
    reach = 1.05 * max(np.abs(means).max(), np.abs(points).max(initial=0.0)) or 1.0
    dress_space(target, float(reach), [f"feature {feature}" for feature in chosen], (24, 45))
    if legend:
        legend_above(target, class_handles(range(K), K), class_title(note))
    return target
