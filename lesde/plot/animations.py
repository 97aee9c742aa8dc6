"""The collapse as a film."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.animation import FuncAnimation, PillowWriter
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from lesde.checks import check_flag, check_integer, check_real, shown
from lesde.plot.canvas import class_handles, legend_above, number, panels
from lesde.plot.frames import at_times, read_frames
from lesde.plot.geometry import joins
from lesde.plot.simplices import Scene, draw_plane, make_scene, target_handles
from lesde.plot.style import style
from lesde.writing import Target

__all__ = ["animate"]


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
    that growth does not run out of the picture: what is seen is the spread within classes shrinking
    against the distance between them, and the means taking their places.

    Parameters
    ----------
    paths : xarray.Dataset
        As for `lesde.plot.separation_fan`; at least two features and two times.
    file : str or path, optional
        GIF to write; folders are made, and a file that is there is replaced, whole. Default: none is written.
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
    # The scale: how far class means are from their centre.
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
    K = trajectory.n_classes
    title = f"class, {trajectory.note}" if trajectory.note else "class"
    with_target = any(s is not None for s in scene.targets)
    legend_above(ax, [*class_handles(range(K), K, False), *target_handles(with_target)], title)
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
