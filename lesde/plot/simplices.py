"""Samples, class means and the simplex they collapse to: in a plane, in space, and as a film."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from matplotlib.animation import FuncAnimation, PillowWriter
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.lines import Line2D

from lesde.checks import check_flag, check_integer, check_path, check_real, shown
from lesde.files import Target
from lesde.plot.curves import evenly
from lesde.plot.frames import (
    Frames,
    at_times,
    draw_space,
    dress_space,
    joins,
    last_time,
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
    class_handles,
    class_title,
    legend_above,
    palette,
    panels,
    style,
)
from lesde.plot.ticks import centred, number

DASHES = (0, (3, 2))
"""Line of the nearest simplex."""
MOST_POINTS = 600
"""Samples drawn, evenly over the classes."""


class Scene(NamedTuple):
    """Frames in d coordinates, centred on the mean of the class means of each frame."""

    samples: list[np.ndarray]  # by class, (time, drawn samples, d)
    means: np.ndarray  # (time, class, d)
    targets: list[np.ndarray | None]  # (class, d), None where a frame has no nearest simplex
    names: list[str]  # of the coordinates

    def reach(self, frame: int) -> float:
        """Largest distance from the centre along an axis, of anything in a frame; 1 if all is there."""
        target = self.targets[frame]
        parts = [self.means[frame], *(values[frame] for values in self.samples)]
        parts += [] if target is None else [target]
        return max(float(np.abs(part).max()) for part in parts) or 1.0


def _scene(frames: Frames, count: int, scale: Any = 1.0) -> Scene:
    """Frames in the principal axes of the last class means, divided by a scale (time,)."""
    K, p = frames.means.shape[1:]
    if p < count:
        raise ValueError(
            f"paths must have at least {count} features for this view; got {p}. Use "
            f"lesde.plot.{'simplex' if p == 2 else 'separation_fan'}."
        )
    drawn = spread_over(frames.labels, range(K), MOST_POINTS)
    last = frames.features[-1]
    deviations = np.concatenate([last[i] - frames.means[-1, k] for k, i in drawn.items()])
    axes = principal_axes(frames.means[-1], deviations, count)
    centre = frames.means.mean(axis=1)
    shift, size = (centre @ axes.T)[:, None], np.reshape(scale, (-1, 1, 1))
    sizes = np.broadcast_to(scale, len(centre))
    found = zip(map(nearest_simplex, frames.means), shift, sizes, strict=True)
    return Scene(
        [(frames.features[:, i] @ axes.T - shift) / size for i in drawn.values()],
        (frames.means @ axes.T - shift) / size,
        [None if simplex is None else (simplex @ axes.T - at) / by for simplex, at, by in found],
        principal_names(K, count),
    )


def _key(axes: Any, scene: Scene, note: str, lines: bool = False) -> None:
    """Legend of the classes, and of the target where a frame has one."""
    K = scene.means.shape[1]
    handles = class_handles(range(K), K, lines)
    if any(target is not None for target in (scene.targets[-1:] if lines else scene.targets)):
        look: Any = {"color": INK, "linestyle": DASHES, "linewidth": 0.8}
        handles.append(Line2D([], [], **look, label="nearest simplex"))
    legend_above(axes, handles, class_title(note))


@style()
def simplex(
    paths: xr.Dataset,
    times: Any = None,
    replicate: int = 0,
    *,
    learning_rate: float | None = None,
    ax: Any = None,
) -> np.ndarray:
    """Snapshots of samples and class means in the plane of the class means, with the target simplex.

    Parameters
    ----------
    paths : xarray.Dataset
        As for `separation_fan`; at least two features.
    times : float or sequence of float, optional
        The saved times nearest to these are shown, one panel each. Default: first, middle, last.
    replicate : int, default 0
    learning_rate : float, optional
    ax : matplotlib Axes or array of them, one per time, optional

    Notes
    -----
    All panels show the plane of the two principal axes of the class means at the last of the times; with
    two classes, that of their gap and the main direction within classes. Each panel is centred on its
    mean of class means and has its own scale, equal in both directions. At most 600 samples are drawn.

    Class means are joined to each other, or to their centre with more than 5 classes. Dashed: the
    simplex equiangular tight frame nearest to the class means of that panel, in size and rotation
    (orthogonal Procrustes); none where there are fewer than K−1 features, or means that coincide.
    """
    frames = read_frames(paths, replicate, learning_rate)
    frames = frames.take(at_times(frames.times, times, 3))
    scene = _scene(frames, 2)
    count = len(frames.times)
    if ax is None:
        columns = count if count <= 3 else 2 if count == 4 else 3
        rows = -(-count // columns)
        side = (3.05 - 0.35 * columns) / columns  # what ticks and labels leave of the width
        height = 0.62 + 0.12 * (len(scene.samples) > 6) + rows * (side + 0.2)
        grid = panels(None, rows, columns, height).ravel()
        axes, figure = grid[:count], grid[0].figure
        # Panels of equal scales have a fixed shape: "compressed" moves them together.
        figure.set_layout_engine("compressed")
        for spare in grid[count:]:
            spare.remove()
    else:
        axes = panels(ax, 1, count, 0.0)[0]
    for i, each in enumerate(axes):
        draw_plane(each, scene, i)
        _frame(each, 1.12 * scene.reach(i), scene.names)
        each.set_title(f"$t$ = {number(frames.times[i])}")
    if ax is None and count > 1:
        # Panels are too narrow for a label each.
        for each in axes:
            each.xaxis.label.set_visible(False)
            each.yaxis.label.set_visible(False)
        figure.supxlabel(scene.names[0], fontsize=8)
        figure.supylabel(scene.names[1], fontsize=8)
    _key(axes, scene, frames.note)
    return axes


def _frame(ax: Axes, reach: float, names: list[str]) -> None:
    """Equal scales, the centre in the middle, few ticks."""
    ticks, labels = centred(reach / 1.12)
    ax.set_xticks(ticks, labels)
    ax.set_yticks(ticks, labels)
    ax.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")
    ax.set(xlabel=names[0], ylabel=names[1])


def draw_plane(ax: Axes, scene: Scene, frame: int) -> list[Any]:
    """Draw one frame; its artists."""
    K = scene.means.shape[1]
    colours = palette(K)
    look: Any = {"s": 2.5, "alpha": 0.4, "linewidths": 0, "zorder": 1}
    drawn: list[Any] = [
        ax.scatter(*scene.samples[k][frame].T, color=colours[k], **look) for k in range(K)
    ]
    gaps, target = joins(scene.means[frame]), joins(scene.targets[frame])
    drawn += [
        ax.add_collection(LineCollection(gaps, colors=SECOND_INK, linewidths=0.7, zorder=2)),
        ax.add_collection(
            LineCollection(target, colors=INK, linewidths=0.8, linestyles=[DASHES], zorder=3)
        ),
    ]
    return drawn + [mark_mean(ax, scene.means[frame, k], k, K) for k in range(K)]


@style()
def simplex3d(
    paths: xr.Dataset,
    time: float | None = None,
    replicate: int = 0,
    *,
    learning_rate: float | None = None,
    ax: Any = None,
) -> Axes:
    """Samples, class means with their trajectories, and the target simplex, in three dimensions.

    Parameters
    ----------
    paths : xarray.Dataset
        As for `separation_fan`; at least three features.
    time : float, optional
        The saved time nearest to it is shown, and the trajectories of the class means up to it. Default: the last.
    replicate : int, default 0
    learning_rate : float, optional
    ax : Axes with ``projection="3d"``, optional
        Those returned are seen from elsewhere after ``ax.view_init(elev=..., azim=...)``.

    Notes
    -----
    Coordinates are the three principal axes of the class means at the time shown, followed by those
    within classes where the means span fewer than three. Every frame is centred on its mean of class
    means, so the trajectories are those of the contrasts. Joins and target are those of `simplex`.
    """
    frames = read_frames(paths, replicate, learning_rate)
    last = last_time(frames.times, time)
    frames = frames.take(range(last + 1))
    scene = _scene(frames, 3)
    target: Any = panels(ax, 1, 1, 3.3, projection="3d")[0, 0]
    draw_space(target, scene.means, [values[-1] for values in scene.samples], 6, [last])
    for line in joins(scene.targets[-1]):
        target.plot(*line.T, color=INK, linewidth=0.8, linestyle=DASHES)
    reach = 1.02 * max(scene.reach(-1), float(np.abs(scene.means).max()))
    dress_space(target, reach, scene.names, (22, -60))
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
        As for `separation_fan`; at least two features and two times.
    file : str or path, optional
        GIF to write. Folders are made, and an existing file is replaced as a whole. Default: none is written.
    replicate : int, default 0
    learning_rate : float, optional
    frames : int, default 60
        Most frames: saved times evenly spaced, all if there are fewer. Times at which all class means
        coincide have no size to divide by and are left out.
    fps : float, default 12
        Frames per second.
    dpi : float, default 150
        Dots per inch of the GIF; it is one column (3.4 in) wide.
    progress : bool, default False
        Show a progress bar while the file is written.

    Returns
    -------
    matplotlib.animation.FuncAnimation
        Keep it while it is shown. In a notebook show ``IPython.display.HTML(animation.to_jshtml())``.

    Notes
    -----
    The plane, the joins and the dashed target are those of `simplex` at the last time.
    """
    path = read_frames(paths, replicate, learning_rate)
    check_integer("frames", frames, 2)
    check_flag("progress", progress)
    check_real("fps", fps, 0.0, open_minimum=True)
    check_real("dpi", dpi, 0.0, open_minimum=True)
    place = None if file is None else Target(check_path("file", file), "file", overwrite=True)
    if place is not None:
        if place.path.suffix.lower() != ".gif":
            raise ValueError(f"file must end in .gif; got {shown(str(file))}.")
        place.check()
    # The scale: the distance of class means from their centre.
    away = path.means - path.means.mean(axis=1, keepdims=True)
    size = np.sqrt((away**2).sum(-1).mean(-1))
    known = np.flatnonzero(size > 1e-12 * np.abs(path.means).max(axis=(1, 2)))
    if len(known) < 2:
        raise ValueError(
            f"paths must hold at least 2 times with class means that differ; got {len(known)}."
        )
    times = known[evenly(len(known), frames)]
    path = path.take(times)
    scene = _scene(path, 2, size[times])

    ax: Axes = panels(None, 1, 1, 3.6)[0, 0]
    figure: Any = ax.figure
    # Everything at the last time, nearly all of it at most times: early frames, in which samples spread
    # far wider than the means are apart, must not make the collapsed simplex a dot.
    last = scene.reach(-1)
    usual = np.quantile(np.abs(np.concatenate(scene.samples, axis=1)).max(axis=-1), 0.99)
    names = [f"{name} / RMS distance of means" for name in scene.names]
    _frame(ax, 1.1 * max(last, min(usual, 3 * last)), names)
    clock = ax.text(0.02, 0.98, "", transform=ax.transAxes, va="top")
    _key(ax, scene, path.note)
    # The layout is found once: found again for every frame it would make the picture tremble.
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    drawn: list[Any] = []

    def show(frame: int) -> list[Any]:
        for artist in drawn:
            artist.remove()
        drawn[:] = draw_plane(ax, scene, frame)
        clock.set_text(f"$t$ = {number(path.times[frame])}")
        return [clock]

    film = FuncAnimation(figure, show, frames=len(times), interval=1000.0 / fps, repeat=False)
    if place is not None:
        from tqdm import tqdm

        writer: Any = PillowWriter(fps=fps)  # type: ignore[arg-type]
        with tqdm(total=len(times), disable=not progress, desc="animate", unit="frame") as bar:
            place.put(
                lambda new: film.save(
                    str(new), writer, dpi=dpi, progress_callback=lambda i, n: bar.update()
                )
            )
    return film
