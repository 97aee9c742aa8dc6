"""Trajectories of samples and class means: a fan against time, beside a model, and in three features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.container import ErrorbarContainer
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from lesde.checks import (
    bare_array,
    check_finite_array,
    check_flag,
    check_integer,
    check_labels,
    check_real,
    check_sequence,
    shown,
)
from lesde.paths import check_dataset, check_paths, is_statistics
from lesde.plot.frames import (
    Frames,
    at_times,
    check_pair,
    class_average,
    draw_space,
    dress_space,
    principal_axes,
    read_frames,
    select_rate,
    spread_over,
)
from lesde.plot.style import (
    axis_label,
    check_panels,
    class_handles,
    class_line,
    class_marker,
    legend_above,
    palette,
    panels,
    style,
)

__all__ = ["class_means", "logit_paths", "separation_fan"]


@style()
def separation_fan(
    paths: xr.Dataset,
    replicate: int = 0,
    direction: Any = None,
    classes: Sequence[int] | None = None,
    *,
    pair: tuple[int, int] | None = None,
    learning_rate: float | None = None,
    max_lines: int = 300,
    ax: Axes | None = None,
) -> Axes:
    """Projections of the samples on one direction against time, coloured by class, class means bold.

    Parameters
    ----------
    paths : xarray.Dataset
        Variable ``features`` over time, sample, feature and possibly learning rate and replicate;
        coordinates ``time`` and ``label(sample)``.
    replicate : int, default 0
        Position of the replicate shown.
    direction : array (feature,), optional
        What to project on; its length does not matter. Default: the first principal axis of the
        class means at the last time, with its sign such that the farthest class is positive.
        Where class means form a regular simplex all axes of it are alike, and one of them is taken.
    classes : sequence of int, optional
        Classes shown. Default: all, or those of ``pair``.
    pair : (int, int), optional
        (k, l): project on the gap of these class means at the last time, from class l to class k.
        Not together with ``direction``.
    learning_rate : float, optional
        Which learning rate. Default: the first; the figure says which.
    max_lines : int, default 300
        Most samples drawn, in all classes together and evenly over them. Class means are those of
        all samples.
    ax : matplotlib Axes, optional
        Default: a new figure, one column wide.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    TypeError, ValueError
        For a dataset that is not paths, or arguments it does not fit.

    Examples
    --------
    >>> ax = lesde.plot.separation_fan(paths, pair=(0, 1))  # doctest: +SKIP
    >>> lesde.plot.save(ax, "fan")  # doctest: +SKIP
    """
    frames = read_frames(paths, replicate, learning_rate)
    check_integer("max_lines", max_lines)
    check_panels(ax, 1)
    if pair is not None and direction is not None:
        raise ValueError("direction and pair both set the projection; give one of them.")
    two = None if pair is None else list(check_pair(pair, frames.n_classes))
    if classes is not None:
        chosen = _classes("classes", classes, frames.n_classes)
    else:
        chosen = two if two is not None else list(range(frames.n_classes))
    axis, label = _direction(frames, direction, two, chosen)

    target: Axes = panels(ax, 1, 1, 2.5)[0, 0]
    colours = palette(frames.n_classes)
    zero = np.zeros(frames.n_features)
    average = frames.means @ axis
    # Markers every so often, so that classes differ in more than colour.
    every = max(1, len(frames.times) // 5)
    for k, samples in spread_over(frames.labels, chosen, max_lines).items():
        values = frames.project(axis[None], samples, zero)[..., 0]
        lines = np.stack([np.broadcast_to(frames.times[:, None], values.shape), values], axis=-1)
        target.add_collection(
            LineCollection(
                list(lines.swapaxes(0, 1)), colors=colours[k], linewidths=0.35, alpha=0.3, zorder=1
            )
        )
    for place, k in enumerate(chosen):
        target.plot(
            frames.times,
            average[:, k],
            color=colours[k],
            linestyle=class_line(k),
            marker=class_marker(k),
            markevery=(place * every // max(1, len(chosen)), every),
            markeredgecolor="white",
            markeredgewidth=0.4,
            markersize=4,
            linewidth=1.4,
            zorder=3,
            label=f"class {k}",
        )
    target.autoscale_view()
    target.margins(x=0.01)
    target.set_xlabel(frames.time_label)
    target.set_ylabel(label)
    title = f"class, {frames.note}" if frames.note else "class"
    legend_above(target, class_handles(chosen, frames.n_classes), title)
    return target


def _classes(name: str, value: Any, n_classes: int) -> list[int]:
    if (
        isinstance(value, str)
        or not isinstance(value, Sequence | np.ndarray)
        or np.size(value) == 0
    ):
        raise TypeError(f"{name} must be a sequence of classes; got {shown(value)}.")
    found = [
        check_integer(f"an entry of {name}", k, 0)
        for k in check_sequence(name, value, "a sequence of classes")
    ]
    if max(found) >= n_classes:
        raise ValueError(f"{name} must hold classes from 0 to {n_classes - 1}; got {shown(value)}.")
    return list(dict.fromkeys(found))


def _direction(
    frames: Frames, direction: Any, pair: list[int] | None, classes: list[int]
) -> tuple[np.ndarray, str]:
    """The unit vector to project on, and what the projection is called."""
    last = frames.means[-1]
    if direction is not None:
        vector = check_finite_array("direction", direction, [(frames.n_features,)])
        if not vector.any():
            raise ValueError("direction must not be zero; got only zeros.")
        label = "projection on the given direction"
    elif pair is not None:
        vector = last[pair[0]] - last[pair[1]]
        label = f"projection on the gap {pair[1]} → {pair[0]}"
    else:
        shown_means = last[classes]
        vector = principal_axes(shown_means, np.zeros((1, frames.n_features)), 1)[0]
        if np.ptp(shown_means @ vector) == 0:
            vector = np.zeros_like(vector)
        label = "projection on PC 1 of class means"
    length = float(np.linalg.norm(vector))
    if length == 0:
        raise ValueError(
            "direction is needed: the class means coincide at the last time, so they give none."
        )
    return vector / length, label


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
        The model: what ``lesde.law(model, times, initial=...)`` returns (its mean solves the LE-ODE), or
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
    >>> axes = lesde.plot.class_means(paths, lesde.law(fitted, paths.time, initial=means))  # doctest: +SKIP
    """
    if not is_statistics(observed):
        check_dataset(
            "observed", observed, ["features"], "lesde.simulate, lesde.from_arrays or a recorder"
        )
    if learning_rate is not None:
        check_real("learning_rate", learning_rate)
    seen, note = _average(observed, "observed", learning_rate)
    model, other = _average(law, "law", learning_rate)
    if seen.each.shape[2:] != model.each.shape[2:]:
        raise ValueError(
            f"observed and law must have the same classes and features; got {seen.each.shape[2:]} and "
            f"{model.each.shape[2:]}."
        )
    K, p = seen.each.shape[2:]
    axes_of, names = _coordinates(features, directions, seen.each[:, -1].mean(0), p)
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


class _Means(NamedTuple):
    """Class means of each replicate (replicate, time, class, feature)."""

    each: np.ndarray
    times: np.ndarray
    time_label: str

    def along(self, direction: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Average over replicates along a direction, and its standard error."""
        values = self.each[:, :, k] @ direction
        error = values.std(axis=0, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else None
        return values.mean(axis=0), error


def _average(dataset: xr.Dataset, name: str, learning_rate: float | None) -> tuple[_Means, str]:
    """Class means of a law or of paths."""
    wanted = learning_rate
    if isinstance(dataset, xr.Dataset) and "learning_rate" not in dataset.coords:
        wanted = None
    if not isinstance(dataset, xr.Dataset) or not {"mean", "features"} & set(dataset.data_vars):
        check_dataset(name, dataset, ["mean"], "lesde.law, or paths with features,")
    check_dataset(name, dataset, ["mean" if "mean" in dataset else "features"], "lesde.law")
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
    """Unit vectors (d, feature) and the names of the coordinates along them."""
    if features is not None and directions is not None:
        raise ValueError("features and directions both set what is shown; give one of them.")
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


SOURCE = "lesde.simulate, a recorder or lesde.networks.drawn_means"


@style()
def logit_paths(
    paths: xr.Dataset,
    time: float | None = None,
    samples: xr.Dataset | None = None,
    *,
    features: Sequence[int] = (0, 1, 2),
    snapshots: int = 4,
    reach: float | None = None,
    elevation: float = 24.0,
    azimuth: float = 45.0,
    legend: bool = True,
    ax: Any = None,
) -> Axes:
    """Trajectories of the class means in three features, averaged over replicates, with joins at some times.

    Unlike `lesde.plot.simplex3d`, which turns and centres, it shows the features themselves, such as three logits, and
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
    snapshots : int, default 4
        Number of times at which the means are joined, including the last one shown.
    reach : float, optional
        Axes go from −reach to reach. Default: large enough for everything shown.
    elevation, azimuth : float, default 24, 45
        Where it is seen from, in degrees.
    legend : bool, default True
        Name the classes above.
    ax : Axes with ``projection="3d"``, optional
        Default: a new figure, one column wide.

    Returns
    -------
    mpl_toolkits.mplot3d.Axes3D

    Raises
    ------
    TypeError, ValueError
        For datasets that are not as above, or features that they do not have.

    Examples
    --------
    >>> lesde.plot.logit_paths(drawn_means(record["drawn"]))  # doctest: +SKIP
    """
    chosen = [
        check_integer("an entry of features", i, 0)
        for i in check_sequence("features", features, "a sequence of integers")
    ]
    check_integer("snapshots", snapshots)
    check_flag("legend", legend)
    check_real("elevation", elevation)
    check_real("azimuth", azimuth)
    if reach is not None:
        check_real("reach", reach, 0.0, open_minimum=True)
    times, means = _class_means(paths, chosen)
    points, labels = _points(samples, chosen, means.shape[1])
    check_panels(ax, 1, three_d=True)
    (last,) = at_times(times, times[-1] if time is None else time, 1, "time")[:1]
    means = means[: last + 1]
    target: Any = panels(ax, 1, 1, 3.3, projection="3d")[0, 0]
    K = means.shape[1]
    joined = np.unique(np.linspace(0, last, min(snapshots, last + 1)).round().astype(int))
    draw_space(target, means, {k: points[labels == k] for k in range(K)}, 5, joined.tolist())
    if reach is None:
        reach = 1.05 * max(np.abs(means).max(), np.abs(points).max(initial=0.0)) or 1.0
    # Few ticks, away from the corners, where labels of two axes meet.
    step = next(v for v in MaxNLocator(2, steps=[1, 2, 5, 10]).tick_values(0.0, reach) if v > 0)
    step = step if step <= 0.8 * reach else step / 2
    names = [f"feature {feature}" for feature in chosen]
    dress_space(target, float(reach), [-step, 0.0, step], names, (elevation, azimuth))
    if legend:
        legend_above(target, class_handles(range(K), K), "class")
    return target


def _class_means(paths: Any, chosen: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Times, and class means (time, class, 3) averaged over replicates."""
    check_dataset("paths", paths, ["features"], SOURCE)
    if "learning_rate" in paths.dims:
        raise ValueError(
            "paths must hold one learning rate; choose one with paths.isel(learning_rate=0)."
        )
    variable, labels = check_paths("paths", paths, ("time", "sample", "feature"), minimum_classes=2)
    averaged = variable.mean("replicate") if "replicate" in variable.dims else variable
    if set(averaged.dims) != {"time", "sample", "feature"}:
        raise ValueError(
            f"paths.features must be over replicate, time, sample and feature; got {variable.dims}."
        )
    values = averaged.transpose("time", "sample", "feature").values
    if len(chosen) != 3 or max(chosen) >= values.shape[-1]:
        raise ValueError(
            f"features must be three from 0 to {values.shape[-1] - 1}, those of paths; got {chosen}."
        )
    means = class_average(values[..., chosen], labels)
    check_finite_array("paths.features", means.reshape(-1), [("n",)])
    return variable["time"].values.astype(np.float64), means


def _points(samples: Any, chosen: list[int], K: int) -> tuple[np.ndarray, np.ndarray]:
    if samples is None:
        return np.empty((0, 3)), np.empty(0, dtype=np.int64)
    check_dataset("samples", samples, ["features", "label"], "the samples to show")
    if set(samples["features"].dims) != {"sample", "feature"}:
        raise ValueError(
            f"samples.features must be over sample and feature; got {samples['features'].dims}."
        )
    values = samples["features"].transpose("sample", "feature").values[:, chosen]
    labels = check_labels("samples.label", samples["label"].values)
    if labels.max() >= K:
        raise ValueError(
            f"samples.label must hold classes of paths, 0 to {K - 1}; got {labels.max()}."
        )
    return values.astype(np.float64), labels
