"""Samples, class means and the simplex they collapse to, in a plane."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from lesde.checks import check_integer
from lesde.plot.canvas import check_panels, class_handles, legend_above, number, panels
from lesde.plot.frames import Frames, at_times, read_frames, spread_over
from lesde.plot.geometry import joins, nearest_simplex, principal_axes, principal_names
from lesde.plot.style import INK, SECOND_INK, class_marker, palette, style
from lesde.plot.ticks import centre_ticks

__all__ = ["Scene", "draw_plane", "make_scene", "simplex", "target_handles"]


@dataclass(frozen=True)
class Scene:
    """Frames in a few coordinates, centred on the mean of the class means of each frame.

    Attributes
    ----------
    samples : dict of class to ndarray, shape (time, drawn samples, d)
    means : ndarray, shape (time, class, d)
    targets : list of ndarray (class, d), or None where a frame has no nearest simplex
    names : list of str
        Of the d coordinates.
    """

    samples: dict[int, np.ndarray]
    means: np.ndarray
    targets: list[np.ndarray | None]
    names: list[str]

    def reach(self, frame: int) -> float:
        """Largest distance from the centre along an axis, of anything in a frame."""
        parts = [self.means[frame], *(values[frame] for values in self.samples.values())]
        target = self.targets[frame]
        parts += [] if target is None else [target]
        reach = max(float(np.abs(part).max()) for part in parts)
        return reach if reach > 0 else 1.0


def make_scene(frames: Frames, count: int, max_points: int) -> Scene:
    """Frames in the ``count`` principal axes of the class means of their last time."""
    if frames.n_features < count:
        raise ValueError(
            f"paths must have at least {count} features for this view; got {frames.n_features}. Use "
            f"lesde.plot.{'simplex' if frames.n_features == 2 else 'separation_fan'}."
        )
    every = spread_over(frames.labels, range(frames.n_classes), max_points)
    last = frames.features[-1]
    deviations = np.concatenate([last[i] - frames.means[-1, k] for k, i in every.items()])
    axes = principal_axes(frames.means[-1], deviations, count)
    centre = frames.means.mean(axis=1)
    targets = [nearest_simplex(means) for means in frames.means]
    return Scene(
        {k: frames.project(axes, i, centre) for k, i in every.items()},
        (frames.means - centre[:, None]) @ axes.T,
        [None if s is None else (s - c) @ axes.T for s, c in zip(targets, centre, strict=True)],
        principal_names(frames.n_classes, count),
    )


def target_handles(with_target: bool) -> list[Line2D]:
    """Legend entry of the target."""
    if not with_target:
        return []
    return [
        Line2D([], [], color=INK, linestyle=(0, (3, 2)), linewidth=0.8, label="nearest simplex")
    ]


@style()
def simplex(
    paths: xr.Dataset,
    times: Any = None,
    replicate: int = 0,
    *,
    learning_rate: float | None = None,
    max_points: int = 600,
    ax: Any = None,
) -> np.ndarray:
    """Snapshots of samples and class means in the plane of the class means, with the target simplex.

    Parameters
    ----------
    paths : xarray.Dataset
        As for `lesde.plot.separation_fan`; at least two features.
    times : float or sequence of float, optional
        The saved times nearest to these are shown, one panel each. Default: first, middle, last.
    replicate : int, default 0
        Position of the replicate shown.
    learning_rate : float, optional
        Which learning rate. Default: the first; the figure says which.
    max_points : int, default 600
        Most samples drawn per panel, evenly over the classes.
    ax : matplotlib Axes or array of them, one per time, optional
        Default: a new figure, one column wide.

    Returns
    -------
    ndarray of matplotlib Axes, shape (time,)

    Raises
    ------
    TypeError, ValueError
        For a dataset that is not paths, or arguments it does not fit.

    Notes
    -----
    All panels show the same plane, through the principal axes of the class means at the last of the
    times: with three classes the plane of the simplex, with more the two principal axes, as the
    labels say; with two, the gap of the means and the main direction within classes. Each panel is
    centred on its mean of class means and has its own scale, equal in both directions.

    Class means are joined to each other, or to their centre with more than 5 classes. Dashed: the
    simplex equiangular tight frame nearest to the class means of that panel, in size and rotation
    (orthogonal Procrustes); none where there are fewer than K−1 features, or means that coincide.

    Examples
    --------
    >>> axes = lesde.plot.simplex(paths, times=[0, 1, 4])  # doctest: +SKIP
    """
    frames = read_frames(paths, replicate, learning_rate)
    check_integer("max_points", max_points)
    frames = frames.take(at_times(frames.times, times, 3))
    count = len(frames.times)
    check_panels(ax, count)
    scene = make_scene(frames, 2, max_points)
    if ax is None:
        columns = count if count <= 3 else 2 if count == 4 else 3
        rows = -(-count // columns)
        side = (3.05 - 0.35 * columns) / columns  # what ticks and labels leave of the width
        height = 0.62 + 0.12 * (frames.n_classes > 6) + rows * (side + 0.2)
        grid = panels(None, rows, columns, height).ravel()
        # Panels of equal scales have a fixed shape: "compressed" moves them together.
        grid[0].figure.set_layout_engine("compressed")
        for spare in grid[count:]:
            spare.remove()
        axes = grid[:count]
    else:
        axes = panels(ax, 1, count, 0.0)[0]
    for i, each in enumerate(axes):
        draw_plane(each, scene, i)
        frame_plane(each, scene.reach(i))
        each.set_title(f"$t$ = {number(frames.times[i])}")
        each.set_xlabel(scene.names[0])
        each.set_ylabel(scene.names[1])
    if ax is None and count > 1:
        _share_labels(axes[0].figure, axes, scene.names)
    with_target = any(s is not None for s in scene.targets)
    handles = class_handles(range(frames.n_classes), frames.n_classes, False)
    title = f"class, {frames.note}" if frames.note else "class"
    legend_above(axes, [*handles, *target_handles(with_target)], title)
    return axes


def _share_labels(figure: Figure, axes: np.ndarray, names: list[str]) -> None:
    """One label per direction for all panels: they are too narrow for one each."""
    for each in axes:
        each.xaxis.label.set_visible(False)
        each.yaxis.label.set_visible(False)
    figure.supxlabel(names[0], fontsize=8)
    figure.supylabel(names[1], fontsize=8)


def frame_plane(ax: Axes, reach: float) -> None:
    """Equal scales, the centre in the middle, few ticks."""
    ax.set_xlim(-1.12 * reach, 1.12 * reach)
    ax.set_ylim(-1.12 * reach, 1.12 * reach)
    ax.set_aspect("equal")
    centre_ticks(ax)


def draw_plane(ax: Axes, scene: Scene, frame: int, scale: float = 1.0) -> dict[str, Any]:
    """Draw one frame, divided by ``scale``; the artists, for an animation to move."""
    K = scene.means.shape[1]
    colours = palette(K)
    drawn: dict[str, Any] = {"samples": {}, "means": {}}
    for k, values in scene.samples.items():
        drawn["samples"][k] = ax.scatter(
            values[frame, :, 0] / scale,
            values[frame, :, 1] / scale,
            s=2.5,
            color=colours[k],
            alpha=0.4,
            linewidths=0,
            zorder=1,
        )
    drawn["joins"] = ax.add_collection(
        LineCollection(
            joins(scene.means[frame] / scale), colors=SECOND_INK, linewidths=0.7, zorder=2
        )
    )
    target = scene.targets[frame]
    drawn["target"] = ax.add_collection(
        LineCollection(
            [] if target is None else joins(target / scale),
            colors=INK,
            linewidths=0.8,
            linestyles=[(0, (3, 2))],
            zorder=3,
        )
    )
    for k in range(K):
        (drawn["means"][k],) = ax.plot(
            *(scene.means[frame, k : k + 1] / scale).T,
            color=colours[k],
            marker=class_marker(k),
            markersize=5,
            markeredgecolor="white",
            markeredgewidth=0.5,
            linestyle="none",
            zorder=4,
        )
    return drawn
