"""Samples, class means and the simplex they collapse to: in a plane, in space, and as a film."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.animation import FuncAnimation, PillowWriter
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from lesde.checks import check_flag, check_integer, check_real, shown
from lesde.files import Target
from lesde.plot.frames import (
    Frames,
    at_times,
    draw_space,
    dress_space,
    joins,
    mark_mean,
    nearest_simplex,
    principal_axes,
    principal_names,
    read_frames,
    spread_over,
)
from lesde.plot.style import (
    INK,
    SECOND_INK,
    check_panels,
    class_handles,
    legend_above,
    palette,
    panels,
    style,
)
from lesde.plot.ticks import centre_ticks, number

__all__ = ["animate", "simplex", "simplex3d"]

DASHES = (0, (3, 2))
"""Line of the nearest simplex."""


@dataclass(frozen=True)
class Scene:
    """Frames in d coordinates, centred on the mean of the class means of each frame."""

    samples: dict[int, np.ndarray]  # by class, (time, drawn samples, d)
    means: np.ndarray  # (time, class, d)
    targets: list[np.ndarray | None]  # (class, d), None where a frame has no nearest simplex
    names: list[str]  # of the coordinates

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


def _key(axes: Any, scene: Scene, note: str, lines: bool = False) -> None:
    """Legend of the classes, and of the target where a frame has one."""
    K = scene.means.shape[1]
    handles = class_handles(range(K), K, lines)
    if any(target is not None for target in (scene.targets[-1:] if lines else scene.targets)):
        look: Any = {"color": INK, "linestyle": DASHES, "linewidth": 0.8}
        handles.append(Line2D([], [], **look, label="nearest simplex"))
    legend_above(axes, handles, f"class, {note}" if note else "class")


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
    _key(axes, scene, frames.note)
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
            linestyles=[DASHES],
            zorder=3,
        )
    )
    for k in range(K):
        drawn["means"][k] = mark_mean(ax, scene.means[frame, k] / scale, k, K)
    return drawn


@style()
def simplex3d(
    paths: xr.Dataset,
    time: float | None = None,
    replicate: int = 0,
    *,
    learning_rate: float | None = None,
    max_points: int = 600,
    elevation: float = 22.0,
    azimuth: float = -60.0,
    ax: Any = None,
) -> Axes:
    """Samples, class means with their trajectories, and the target simplex, in three dimensions.

    Parameters
    ----------
    paths : xarray.Dataset
        As for `lesde.plot.separation_fan`; at least three features.
    time : float, optional
        The saved time nearest to it is shown, and the trajectories of the class means up to it. Default: the last.
    replicate : int, default 0
        Position of the replicate shown.
    learning_rate : float, optional
        Which learning rate. Default: the first; the figure says which.
    max_points : int, default 600
        Most samples drawn, evenly over the classes.
    elevation, azimuth : float, default 22, −60
        Where it is seen from, in degrees.
    ax : Axes with ``projection="3d"``, optional
        Default: a new figure, one column wide.

    Returns
    -------
    mpl_toolkits.mplot3d.Axes3D

    Raises
    ------
    TypeError, ValueError
        For a dataset that is not paths, or arguments it does not fit.

    Notes
    -----
    Coordinates are the three principal axes of the class means at the time shown, followed by those
    within classes where the means span fewer than three. Every frame is centred on its mean of class
    means, so the trajectories are those of the contrasts. Joins and target are those of `lesde.plot.simplex`.
    """
    frames = read_frames(paths, replicate, learning_rate)
    check_integer("max_points", max_points)
    check_real("elevation", elevation)
    check_real("azimuth", azimuth)
    (last,) = at_times(frames.times, frames.times[-1] if time is None else time, 1, "time")[:1]
    check_panels(ax, 1, three_d=True)
    frames = frames.take(range(last + 1))
    scene = make_scene(frames, 3, max_points)
    target: Any = panels(ax, 1, 1, 3.3, projection="3d")[0, 0]
    last_samples = {k: values[-1] for k, values in scene.samples.items()}
    draw_space(target, scene.means, last_samples, 6, [last])
    simplex_means = scene.targets[-1]
    for line in [] if simplex_means is None else joins(simplex_means):
        target.plot(*line.T, color=INK, linewidth=0.8, linestyle=DASHES)
    reach = 1.02 * max(scene.reach(-1), float(np.abs(scene.means).max()))
    # None near the corners, where the labels of two axes meet.
    round_numbers = MaxNLocator(5, symmetric=True).tick_values(-0.8 * reach, 0.8 * reach)
    ticks = [value for value in round_numbers if abs(value) <= 0.8 * reach]
    dress_space(target, reach, ticks, scene.names, (elevation, azimuth))
    note = f"$t$ = {number(frames.times[-1])}" + (f", {frames.note}" if frames.note else "")
    _key(target, scene, note, lines=True)
    return target


@style()
def animate(
    paths: xr.Dataset,
    file: str | Path | None = None,
    replicate: int = 0,
    *,
    learning_rate: float | None = None,
    frames: int = 60,
    fps: float = 12.0,
    max_points: int = 600,
    dpi: float = 150.0,
    progress: bool = False,
) -> FuncAnimation:
    """Samples moving in the plane of the class means, in units of the size of the simplex.

    Coordinates are divided by the root mean square distance of the class means from their centre, so
    that growth does not leave the picture: it shows the spread within classes shrink relative to
    the distance between them, and the means take their places.

    Parameters
    ----------
    paths : xarray.Dataset
        As for `lesde.plot.separation_fan`; at least two features and two times.
    file : str or path, optional
        GIF to write. Folders are made, and an existing file is replaced as a whole. Default: none is written.
    replicate : int, default 0
        Position of the replicate shown.
    learning_rate : float, optional
        Which learning rate. Default: the first; the figure says which.
    frames : int, default 60
        Most frames: saved times evenly spaced, all if there are fewer. Times at which all class means
        coincide have no size to divide by and are left out.
    fps : float, default 12
        Frames per second.
    max_points : int, default 600
        Most samples drawn, evenly over the classes.
    dpi : float, default 150
        Dots per inch of the GIF; it is one column (3.4 in) wide.
    progress : bool, default False
        Show a progress bar while the file is written.

    Returns
    -------
    matplotlib.animation.FuncAnimation
        Keep it while it is shown. In a notebook show ``IPython.display.HTML(animation.to_jshtml())``.

    Raises
    ------
    TypeError, ValueError
        For a dataset that is not paths, arguments it does not fit, or a file that is no GIF.

    Notes
    -----
    The plane, the joins and the dashed target are those of `lesde.plot.simplex` at the last time.

    Examples
    --------
    >>> animation = lesde.plot.animate(paths, "collapse.gif")  # doctest: +SKIP
    """
    trajectory = read_frames(paths, replicate, learning_rate)
    check_integer("frames", frames, 2)
    check_integer("max_points", max_points)
    check_flag("progress", progress)
    check_real("fps", fps, 0.0, open_minimum=True)
    check_real("dpi", dpi, 0.0, open_minimum=True)
    if file is not None and Path(file).suffix.lower() != ".gif":
        raise ValueError(f"file must end in .gif; got {shown(str(file))}.")
    place = None if file is None else Target(Path(file), "file", overwrite=True)
    if place is not None:
        place.check()
    times = trajectory.times
    indices = np.arange(len(times))
    if len(times) > frames:
        indices = np.array(at_times(times, None, frames))
    # The scale: the distance of class means from their centre.
    centred = trajectory.means - trajectory.means.mean(axis=1, keepdims=True)
    size = np.sqrt((centred**2).sum(-1).mean(-1))
    floor = 1e-12 * np.abs(trajectory.means).max(axis=(1, 2))
    indices = indices[size[indices] > floor[indices]]
    if len(indices) < 2:
        raise ValueError(
            f"paths must hold at least 2 times with class means that differ; got {len(indices)}."
        )
    trajectory, size = trajectory.take(indices), size[indices]
    scene = make_scene(trajectory, 2, max_points)

    ax: Axes = panels(None, 1, 1, 3.6)[0, 0]
    figure: Any = ax.figure
    drawn = draw_plane(ax, scene, 0, float(size[0]))
    reach = _reach(scene, size)
    ax.set_xlim(-reach, reach)
    ax.set_ylim(-reach, reach)
    ax.set_aspect("equal")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(5, symmetric=True))
        # Plain text: the default formatter's mathematical text is parsed again for every frame.
        axis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
    ax.set_xlabel(f"{scene.names[0]} / RMS distance of means")
    ax.set_ylabel(f"{scene.names[1]} / RMS distance of means")
    clock = ax.text(0.02, 0.98, "", transform=ax.transAxes, va="top")
    _key(ax, scene, trajectory.note)
    # The layout is found once: found again for every frame it would make the picture tremble.
    figure.draw_without_rendering()
    figure.set_layout_engine("none")

    def show(frame: int) -> list[Any]:
        scale = float(size[frame])
        for k, points in drawn["samples"].items():
            points.set_offsets(scene.samples[k][frame] / scale)
        for k, point in drawn["means"].items():
            point.set_data(*(scene.means[frame, k : k + 1] / scale).T)
        drawn["joins"].set_segments(joins(scene.means[frame] / scale))
        target = scene.targets[frame]
        drawn["target"].set_segments([] if target is None else joins(target / scale))
        clock.set_text(f"$t$ = {number(trajectory.times[frame])}")
        return [clock]

    film = FuncAnimation(figure, show, frames=len(indices), interval=1000.0 / fps, repeat=False)
    if place is not None:
        place.put(lambda new: _write(film, new, fps, dpi, len(indices), progress))
    return film


def _reach(scene: Scene, size: np.ndarray) -> float:
    """Half the width of the picture: everything at the last time, nearly all of it at most times.

    Early frames, in which samples spread far wider than the means are apart, must not make the
    collapsed simplex a dot.
    """
    scaled = [np.abs(v).max(axis=-1) / size[:, None] for v in scene.samples.values()]
    far = np.quantile(np.concatenate(scaled, axis=1), 0.99)
    last = scene.reach(len(size) - 1) / size[-1]
    return 1.1 * float(max(last, min(far, 3.0 * last)))


def _write(
    film: FuncAnimation, file: Path, fps: float, dpi: float, total: int, progress: bool
) -> None:
    from tqdm import tqdm

    with tqdm(total=total, disable=not progress, desc="animate", unit="frame") as bar:
        film.save(
            str(file),
            writer=PillowWriter(fps=fps),  # type: ignore[arg-type]
            dpi=dpi,
            progress_callback=lambda i, n: bar.update(),
        )
