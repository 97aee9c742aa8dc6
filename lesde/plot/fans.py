"""Separation fan: projections of all samples against time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection

from lesde.checks import check_finite_array, check_integer, check_sequence, shown
from lesde.plot.canvas import check_panels, class_handles, legend_above, panels
from lesde.plot.frames import Frames, read_frames, spread_over
from lesde.plot.geometry import principal_axes
from lesde.plot.style import class_line, class_marker, palette, style

__all__ = ["separation_fan"]


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
        raise ValueError("direction and pair both say what to project on; give one of them.")
    two = None if pair is None else _classes("pair", pair, frames.n_classes)
    if two is not None and len(two) != 2:
        raise ValueError(f"pair must name two different classes; got {shown(pair)}.")
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
