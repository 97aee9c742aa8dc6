"""One trajectory from a dataset of paths, axes to project it on, and the simplex it collapses to."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from lesde.analysis.class_means import read_averages
from lesde.checks import check_finite_array, check_integer, check_sequence, shown
from lesde.paths import check_paths
from lesde.plot.curves import evenly, refuse_other_dims, select_rate
from lesde.plot.style import SECOND_INK, axis_label, class_line, class_marker, palette
from lesde.plot.ticks import centred


class Frames(NamedTuple):
    """Features of one replicate at one learning rate."""

    features: np.ndarray  # (time, sample, feature), in the dtype of the paths
    labels: np.ndarray  # (sample,)
    times: np.ndarray
    means: np.ndarray  # (time, class, feature), float64
    time_label: str
    note: str  # the learning rate shown, where the paths have several

    def take(self, times: Sequence[int] | np.ndarray) -> Frames:
        """The same at some of the times."""
        i = np.asarray(times)
        return self._replace(features=self.features[i], times=self.times[i], means=self.means[i])


def read_frames(paths: Any, replicate: int, learning_rate: float | None) -> Frames:
    """Check paths and take one replicate (by position) at one learning rate."""
    check_integer("replicate", replicate, 0)
    dims = ("time", "sample", "feature")
    features, labels = check_paths("paths", paths, dims, minimum_classes=2)
    features, note = select_rate(features, learning_rate, "paths")
    if "replicate" in features.dims:
        count = features.sizes["replicate"]
        if replicate >= count:
            raise ValueError(
                f"replicate must be a position from 0 to {count - 1}, paths has {count} replicates; "
                f"got {replicate}."
            )
        features = features.isel(replicate=replicate)
    refuse_other_dims(features, dims, "paths")
    features = features.transpose(*dims)
    means = read_averages("paths.features", features, labels).values
    times = features["time"].values.astype(np.float64)
    label = axis_label(features.coords.get("time"), "time")
    return Frames(features.values, labels, times, means, label, note)


def check_pair(pair: Any, n_classes: int) -> tuple[int, int]:
    """Two different classes."""
    given = check_sequence("pair", pair, "two classes (k, l)")
    classes = [check_integer("an entry of pair", c, 0) for c in given]
    if len(classes) != 2 or max(classes) >= n_classes or classes[0] == classes[1]:
        raise ValueError(
            f"pair must be two different classes from 0 to {n_classes - 1}; got {shown(pair)}."
        )
    return classes[0], classes[1]


def at_times(times: np.ndarray, wanted: Any, default: int, name: str = "times") -> list[int]:
    """Indices of the saved times nearest to those wanted; by default ``default`` evenly spaced ones."""
    low, high = times[0], times[-1]
    if wanted is None:
        wanted = np.linspace(low, high, default)
    asked = np.atleast_1d(check_finite_array(name, wanted, [(), ("n",)]))
    slack = 1e-9 * max(abs(low), abs(high))
    if len(asked) == 0 or asked.min() < low - slack or asked.max() > high + slack:
        raise ValueError(
            f"{name} must lie within those of the paths, {low:g} to {high:g}; got {shown(wanted)}."
        )
    nearest = np.abs(times - asked[:, None]).argmin(axis=1)
    return list(dict.fromkeys(nearest.tolist()))


def last_time(times: np.ndarray, wanted: float | None) -> int:
    """Position of the saved time nearest to the one wanted; by default the last."""
    return len(times) - 1 if wanted is None else at_times(times, wanted, 1, "time")[0]


def spread_over(labels: np.ndarray, classes: Sequence[int], most: int) -> dict[int, np.ndarray]:
    """At most ``most`` samples in all, as evenly over and within the classes as they come, per class."""
    members = {k: np.flatnonzero(labels == k) for k in classes}
    quota = max(1, most // max(1, len(classes)))
    return {k: every[evenly(len(every), quota)] for k, every in members.items()}


MOST_EDGES_OF = 5
"""Above this many classes means are joined to their centre, not to each other."""


def principal_axes(means: np.ndarray, samples: np.ndarray, count: int) -> np.ndarray:
    """Orthonormal directions that show the class means best, shape (count, feature).

    First the principal axes of the centred class means (class, feature), as many as have any extent, then those
    of the deviations within classes, ``samples`` (sample, feature), orthogonal to the former. The largest coordinate
    of a class mean is positive.
    """
    centre = means - means.mean(axis=0)
    _, size, vt = np.linalg.svd(centre, full_matrices=False)
    # A direction along which means differ only by rounding does not count.
    floor = 1e-12 * max(float(size[0]), float(np.abs(means).max()))
    axes = vt[:count][size[:count] > floor]
    if len(axes) < count:
        rest = samples - (samples @ axes.T) @ axes
        extra = np.linalg.svd(rest, full_matrices=False)[2]
        # QR keeps the axes exactly orthogonal, and completes them if the samples span nothing more.
        everything = np.concatenate([axes, extra, np.eye(means.shape[1])])
        axes = np.concatenate([axes, np.linalg.qr(everything.T)[0].T[len(axes) : count]])
    along = centre @ axes.T
    peak = along[np.abs(along).argmax(axis=0), np.arange(len(axes))]
    return axes * np.where(peak < 0, -1.0, 1.0)[:, None]


def principal_names(n_classes: int, count: int) -> list[str]:
    """Names of the directions of `principal_axes` on an axis, for as many features as needed."""
    first = {2: ["along the mean gap"], 3: ["simplex axis 1", "simplex axis 2"]}
    names = first.get(n_classes, [f"PC {i + 1} of class means" for i in range(count)])
    return [*names, *(f"within classes, PC {i + 1}" for i in range(count))][:count]


def nearest_simplex(means: np.ndarray) -> np.ndarray | None:
    """The simplex equiangular tight frame nearest to class means, shape (class, feature).

    Over rotation, size and position: with C the centred means, s and an isometry Q that minimise
    ‖C − s (I − 11ᵀ/K) Q‖_F (the orthogonal Procrustes problem). None with fewer than K−1 features, or
    means that coincide.
    """
    K, p = means.shape
    if p < K - 1:
        return None
    centre = means.mean(axis=0)
    frame = np.eye(K) - 1.0 / K
    u, size, vt = np.linalg.svd(frame @ (means - centre), full_matrices=False)
    if size[0] <= 1e-12 * np.abs(means).max():
        return None
    # The isometry acts on the K−1 contrasts; the last singular direction is that of 1 or empty.
    scale = size[: K - 1].sum() / (K - 1)
    return centre + scale * frame @ u[:, : K - 1] @ vt[: K - 1]


def joins(points: np.ndarray | None) -> list[np.ndarray]:
    """Lines that join class means (class, d): every pair, or with many classes each to the centre."""
    if points is None:
        return []
    if len(points) <= MOST_EDGES_OF:
        return [np.stack(pair) for pair in itertools.combinations(points, 2)]
    return [np.stack([points.mean(axis=0), point]) for point in points]


def mark_mean(ax: Any, point: np.ndarray, k: int, n_classes: int, size: float = 5) -> Any:
    """Mark the mean (d,) of class k."""
    return ax.plot(
        *np.reshape(point, (-1, 1)), color=palette(n_classes)[k], marker=class_marker(k),
        markersize=size, markeredgecolor="white", markeredgewidth=0.5, linestyle="none", zorder=4,
    )[0]  # fmt: skip


def draw_space(
    ax: Any, means: np.ndarray, samples: Sequence[np.ndarray], size: float, joined: Sequence[int]
) -> None:
    """Trajectories of class means (time, class, 3), samples per class, and joins at some of the times."""
    count, K = means.shape[:2]
    colours = palette(K)
    for colour, points in zip(colours, samples, strict=False):
        ax.scatter(*points.T, s=4, color=colour, alpha=0.35, linewidths=0, depthshade=False)
    for i in joined:
        for line in joins(means[i]):
            ax.plot(*line.T, color=SECOND_INK, linewidth=0.7 if i == count - 1 else 0.4)
    for k in range(K):
        ax.plot(*means[:, k].T, color=colours[k], linestyle=class_line(k), linewidth=1.1)
        mark_mean(ax, means[-1, k], k, K, size)


def dress_space(ax: Any, reach: float, names: Sequence[str], view: tuple[float, float]) -> None:
    """Cube from −reach to reach with white panes, few ticks and names, seen from an elevation and azimuth."""
    # No tick near the corners, where the labels of two axes meet.
    ticks, labels = centred(0.8 * reach)
    for which, name in zip("xyz", names, strict=True):
        axis = getattr(ax, f"{which}axis")
        ax.set(**{f"{which}lim": (-reach, reach)})
        axis.set_ticks(ticks, labels)
        axis.set_pane_color((1.0, 1.0, 1.0, 0.0))
        axis._axinfo["grid"].update(color=(0.85, 0.85, 0.85), linewidth=0.4)
        ax.tick_params(axis=which, labelsize=7, pad=-3)
        getattr(ax, f"set_{which}label")(name, labelpad=-6)
    ax.set_box_aspect((1, 1, 1), zoom=0.85)
    ax.view_init(elev=view[0], azim=view[1])
