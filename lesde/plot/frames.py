"""One trajectory from a dataset of paths, axes to project it on, and the simplex it collapses to."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedFormatter, FixedLocator

from lesde.checks import check_finite_array, check_integer, check_real, shown
from lesde.paths import check_dataset, check_paths, is_statistics, need_samples
from lesde.plot.style import SECOND_INK, axis_label, class_line, class_marker, palette
from lesde.plot.ticks import number

__all__ = [
    "Frames",
    "at_times",
    "class_average",
    "joins",
    "nearest_simplex",
    "principal_axes",
    "principal_names",
    "read_frames",
    "select_rate",
    "spread_over",
]


SOURCE = "lesde.simulate, lesde.from_arrays or a recorder"


@dataclass(frozen=True)
class Frames:
    """Features of one replicate at one learning rate."""

    features: np.ndarray  # (time, sample, feature), in the dtype of the paths
    labels: np.ndarray  # (sample,)
    times: np.ndarray
    means: np.ndarray  # (time, class, feature), float64
    time_label: str
    note: str  # the learning rate shown, where the paths have several

    @property
    def n_classes(self) -> int:
        """K."""
        return self.means.shape[1]

    @property
    def n_features(self) -> int:
        """p."""
        return self.means.shape[2]

    def take(self, indices: Sequence[int] | np.ndarray) -> Frames:
        """The same at some of the times."""
        i = np.asarray(indices)
        return Frames(
            self.features[i], self.labels, self.times[i], self.means[i], self.time_label, self.note
        )

    def project(self, axes: np.ndarray, samples: np.ndarray, origin: np.ndarray) -> np.ndarray:
        """Coordinates along ``axes`` (d, feature) of some samples, (time, sample, d), float64.

        ``origin`` (time, feature) or (feature,) is subtracted.
        """
        # Origins come off after projecting: d numbers per sample rather than p.
        shift = np.broadcast_to(origin, (len(self.times), self.n_features)) @ axes.T
        return np.stack(
            [frame[samples] @ axes.T - s for frame, s in zip(self.features, shift, strict=True)]
        )


def select_rate(
    dataset: xr.Dataset, learning_rate: float | None, name: str
) -> tuple[xr.Dataset, str]:
    """One learning rate of a dataset, and words for it; the first where None is asked for."""
    if "learning_rate" not in dataset.dims:
        if learning_rate is not None:
            known, wanted = (
                dataset.coords.get("learning_rate"),
                check_real("learning_rate", learning_rate),
            )
            if known is None or not np.isclose(float(known), wanted, rtol=1e-6):
                raise ValueError(
                    f"learning_rate={shown(learning_rate)} was asked for, but {name} has no dimension "
                    f"'learning_rate'. Leave learning_rate out."
                )
        return dataset, ""
    if "learning_rate" not in dataset.coords:
        raise ValueError(
            f"{name} must hold the coordinate learning_rate along its dimension of that name; add it "
            f"with {name}.assign_coords(learning_rate=[...])."
        )
    rates = dataset["learning_rate"].values.astype(np.float64)
    index = 0
    if learning_rate is not None:
        wanted = check_real("learning_rate", learning_rate)
        index = int(np.argmin(np.abs(rates - wanted)))
        if not np.isclose(rates[index], wanted, rtol=1e-6, atol=0.0):
            raise ValueError(
                f"learning_rate must be one of {', '.join(f'{r:g}' for r in rates)}; got {wanted:g}."
            )
    note = f"learning rate {number(rates[index])}" if len(rates) > 1 else ""
    return dataset.isel(learning_rate=index), note


def check_pair(pair: Any, n_classes: int) -> tuple[int, int]:
    """Two different classes."""
    if isinstance(pair, str) or not isinstance(pair, Sequence | np.ndarray) or len(pair) != 2:
        raise TypeError(f"pair must be two classes (k, l); got {shown(pair)}.")
    k, l = (check_integer("an entry of pair", c, 0) for c in pair)
    if max(k, l) >= n_classes or k == l:
        raise ValueError(
            f"pair must be two different classes from 0 to {n_classes - 1}; got {shown(pair)}."
        )
    return k, l


def read_frames(
    paths: Any, replicate: int, learning_rate: float | None, name: str = "paths"
) -> Frames:
    """Check paths and take one replicate (by position) at one learning rate."""
    check_integer("replicate", replicate, 0)
    if is_statistics(paths):
        raise need_samples(name, "this figure")
    check_dataset(name, paths, ["features"], SOURCE)
    paths, note = select_rate(paths, learning_rate, name)
    features, labels = check_paths(name, paths, ("time", "sample", "feature"), minimum_classes=2)
    if "replicate" in features.dims:
        count = features.sizes["replicate"]
        if replicate >= count:
            raise ValueError(
                f"replicate must be a position from 0 to {count - 1}, {name} has {count} replicates; "
                f"got {replicate}."
            )
        features = features.isel(replicate=replicate)
    other = [d for d in features.dims if d not in ("time", "sample", "feature")]
    if other:
        raise ValueError(
            f"{name} must be one set of trajectories; it also has the dimension {str(other[0])!r}. "
            f"Choose an entry with {name}.isel({other[0]}=0)."
        )
    values = features.transpose("time", "sample", "feature").values
    means = class_average(values, labels)
    if not np.isfinite(means).all():
        t = int(np.argmin(np.isfinite(means).all(axis=(1, 2))))
        raise ValueError(
            f"{name}.features must be finite; they are not at time index {t}. Leave those times out "
            f"with {name}.isel(time=slice(0, {t}))."
        )
    return Frames(
        values,
        labels,
        features["time"].values.astype(np.float64),
        means,
        axis_label(paths.coords.get("time"), "time"),
        note,
    )


def class_average(values: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Class means (..., class, feature), float64, of samples (..., sample, feature) in any order."""
    counts = np.bincount(labels)
    share = (labels == np.arange(len(counts))[:, None]) / counts[:, None]
    out = np.empty((*values.shape[:-2], len(counts), values.shape[-1]))
    with np.errstate(invalid="ignore", over="ignore"):
        for at in np.ndindex(*values.shape[:-2]):  # a frame at a time: no float64 copy of all paths
            out[at] = share @ values[at]
    return out


def at_times(times: np.ndarray, wanted: Any, default: int, name: str = "times") -> list[int]:
    """Indices of the saved times nearest to those wanted; by default ``default`` evenly spaced ones."""
    if wanted is None:
        wanted = np.linspace(times[0], times[-1], default)
    asked = np.atleast_1d(check_finite_array(name, wanted))
    if asked.ndim != 1 or len(asked) == 0:
        raise ValueError(f"{name} must be one finite time or several; got {shown(wanted)}.")
    low, high = times[0], times[-1]
    slack = 1e-9 * max(abs(low), abs(high))
    if (asked < low - slack).any() or (asked > high + slack).any():
        raise ValueError(
            f"{name} must lie within those of the paths, {low:g} to {high:g}; got {shown(wanted)}."
        )
    nearest = np.abs(times - asked[:, None]).argmin(axis=1)
    return list(dict.fromkeys(int(i) for i in nearest))


def spread_over(labels: np.ndarray, classes: Sequence[int], most: int) -> dict[int, np.ndarray]:
    """At most ``most`` samples in all, as evenly over and within the classes as they come, per class."""
    quota = max(1, most // max(1, len(classes)))
    chosen = {}
    for k in classes:
        members = np.flatnonzero(labels == k)
        at = np.linspace(0, len(members) - 1, min(quota, len(members)))
        chosen[k] = members[np.unique(at.round().astype(int))]
    return chosen


MOST_EDGES_OF = 5
"""Above this many classes means are joined to their centre, not to each other."""


def principal_axes(means: np.ndarray, samples: np.ndarray, count: int) -> np.ndarray:
    """Orthonormal directions that show the class means best, shape (count, feature).

    First the principal axes of the centred class means, as many as have any extent. The others, up to
    ``count``, are the principal axes of the deviations within classes, orthogonal to the former.
    Each sign is such that the largest coordinate of a class mean is positive. ``means`` are (class,
    feature), ``samples`` (sample, feature) the deviations from them.
    """
    centred = means - means.mean(axis=0)
    _, size, vt = np.linalg.svd(centred, full_matrices=False)
    # A direction along which means differ only by rounding does not count.
    floor = 1e-12 * max(float(size[0]), float(np.abs(means).max()))
    axes = vt[:count][size[:count] > floor]
    if len(axes) < count:
        rest = samples - (samples @ axes.T) @ axes
        _, _, extra = np.linalg.svd(rest, full_matrices=False)
        # QR keeps the axes exactly orthogonal, and completes them if the samples span nothing more.
        p = means.shape[1]
        basis = np.linalg.qr(np.concatenate([axes, extra, np.eye(p)]).T)[0].T
        axes = np.concatenate([axes, basis[len(axes) : count]])
    along = centred @ axes.T
    peak = along[np.abs(along).argmax(axis=0), np.arange(len(axes))]
    return axes * np.where(peak < 0, -1.0, 1.0)[:, None]


def principal_names(n_classes: int, count: int) -> list[str]:
    """Names of the directions of `principal_axes` on an axis, for as many features as needed."""
    if n_classes == 2:
        return ["along the mean gap", *(f"within classes, PC {i + 1}" for i in range(count - 1))]
    if n_classes == 3:
        plane = ["simplex axis 1", "simplex axis 2"]
        return [*plane, *(f"within classes, PC {i + 1}" for i in range(count - 2))][:count]
    return [f"PC {i + 1} of class means" for i in range(count)]


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
    rotation = u[:, : K - 1] @ vt[: K - 1]
    scale = size[: K - 1].sum() / (K - 1)
    return centre + scale * frame @ rotation


def joins(points: np.ndarray) -> list[np.ndarray]:
    """Lines that join class means (class, d): every pair, or with many classes each to the centre."""
    if len(points) <= MOST_EDGES_OF:
        return [np.stack(pair) for pair in itertools.combinations(points, 2)]
    centre = points.mean(axis=0)
    return [np.stack([centre, point]) for point in points]


def mark_mean(ax: Any, point: np.ndarray, k: int, n_classes: int, size: float = 5) -> Line2D:
    """Mark the mean (d,) of class k."""
    return ax.plot(
        *np.reshape(point, (-1, 1)), color=palette(n_classes)[k], marker=class_marker(k),
        markersize=size, markeredgecolor="white", markeredgewidth=0.5, linestyle="none", zorder=4,
    )[0]  # fmt: skip


def draw_space(
    ax: Any, means: np.ndarray, samples: dict[int, np.ndarray], size: float, joined: Sequence[int]
) -> None:
    """Trajectories of class means (time, class, 3), samples per class, and joins at some of the times."""
    count, K = means.shape[:2]
    colours = palette(K)
    for k, points in samples.items():
        ax.scatter(*points.T, s=4, color=colours[k], alpha=0.35, linewidths=0, depthshade=False)
    for i in joined:
        for line in joins(means[i]):
            ax.plot(*line.T, color=SECOND_INK, linewidth=0.7 if i == count - 1 else 0.4)
    for k in range(K):
        ax.plot(*means[:, k].T, color=colours[k], linestyle=class_line(k), linewidth=1.1)
        mark_mean(ax, means[-1, k], k, K, size)


def dress_space(
    ax: Any, reach: float, ticks: Sequence[float], names: Sequence[str], view: tuple[float, float]
) -> None:
    """Cube from −reach to reach with white panes, few ticks and names, seen from an elevation and azimuth."""
    for which, name in zip("xyz", names, strict=True):
        axis = getattr(ax, f"{which}axis")
        getattr(ax, f"set_{which}lim")(-reach, reach)
        axis.set_major_locator(FixedLocator(list(ticks)))
        axis.set_major_formatter(FixedFormatter([number(value) for value in ticks]))
        axis.set_pane_color((1.0, 1.0, 1.0, 0.0))
        axis._axinfo["grid"].update(color=(0.85, 0.85, 0.85), linewidth=0.4)
        ax.tick_params(axis=which, labelsize=7, pad=-3)
        getattr(ax, f"set_{which}label")(name, labelpad=-6)
    ax.set_box_aspect((1, 1, 1), zoom=0.85)
    ax.view_init(elev=view[0], azim=view[1])
