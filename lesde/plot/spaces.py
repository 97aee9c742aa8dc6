"""Samples, class means and the simplex they collapse to, in space."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, MaxNLocator

from lesde.checks import check_integer, check_real
from lesde.plot.canvas import check_panels, class_handles, legend_above, number, panels
from lesde.plot.frames import at_times, read_frames
from lesde.plot.geometry import joins
from lesde.plot.simplices import make_scene, target_handles
from lesde.plot.style import INK, SECOND_INK, class_line, class_marker, palette, style

__all__ = ["simplex3d"]


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
    """Samples, class means with their way there, and the target simplex, in three dimensions.

    Parameters
    ----------
    paths : xarray.Dataset
        As for `lesde.plot.separation_fan`; at least three features.
    time : float, optional
        The saved time nearest to it is shown, and the ways of the class means up to it. Default: the last.
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
    means, so the ways are those of the contrasts. Joins and target are those of `lesde.plot.simplex`.
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
    K = frames.n_classes
    colours = palette(K)
    for k, values in scene.samples.items():
        target.scatter(
            *values[-1].T, s=3, color=colours[k], alpha=0.35, linewidths=0, depthshade=False
        )
    for line in joins(scene.means[-1]):
        target.plot(*line.T, color=SECOND_INK, linewidth=0.7)
    simplex_means = scene.targets[-1]
    for line in [] if simplex_means is None else joins(simplex_means):
        target.plot(*line.T, color=INK, linewidth=0.8, linestyle=(0, (3, 2)))
    for k in range(K):
        way = scene.means[:, k]
        target.plot(*way.T, color=colours[k], linestyle=class_line(k), linewidth=1.1)
        target.plot(
            *way[-1:].T,
            color=colours[k],
            marker=class_marker(k),
            markersize=6,
            markeredgecolor="white",
            markeredgewidth=0.5,
            linestyle="none",
        )
    reach = 1.02 * max(scene.reach(-1), float(np.abs(scene.means).max()))
    # None near the corners, where the labels of two axes meet.
    round_numbers = MaxNLocator(5, symmetric=True).tick_values(-0.8 * reach, 0.8 * reach)
    ticks = [value for value in round_numbers if abs(value) <= 0.8 * reach]
    for which, name in zip("xyz", scene.names, strict=True):
        axis = getattr(target, f"{which}axis")
        getattr(target, f"set_{which}lim")(-reach, reach)
        axis.set_major_locator(FixedLocator(ticks))
        axis.set_pane_color((1.0, 1.0, 1.0, 0.0))
        axis._axinfo["grid"].update(color=(0.85, 0.85, 0.85), linewidth=0.4)
        target.tick_params(axis=which, labelsize=7, pad=-2)
        getattr(target, f"set_{which}label")(name, labelpad=-5)
    target.set_box_aspect((1, 1, 1), zoom=0.88)
    target.view_init(elev=elevation, azim=azimuth)
    title = f"class, $t$ = {number(frames.times[-1])}"
    title += f", {frames.note}" if frames.note else ""
    handles = class_handles(range(K), K)
    legend_above(target, [*handles, *target_handles(simplex_means is not None)], title)
    return target
