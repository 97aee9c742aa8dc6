"""Class means' ways through the space of three features, with samples, as they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.ticker import FixedFormatter, FixedLocator, MaxNLocator

from lesde.checks import (
    check_dataset,
    check_finite_array,
    check_flag,
    check_integer,
    check_labels,
    check_paths,
    check_real,
    check_sequence,
)
from lesde.plot.canvas import check_panels, class_handles, legend_above, number, panels
from lesde.plot.frames import at_times, class_average
from lesde.plot.geometry import joins
from lesde.plot.style import SECOND_INK, class_line, class_marker, palette, style

__all__ = ["logit_paths"]

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
    """The class means' ways in three features, averaged over replicates, with joins at some times.

    Unlike `lesde.plot.simplex3d`, which turns and centres, it shows the features themselves, such as three logits, and
    all replicates together: figure 1 of Zhang, Wang and Su, NeurIPS 2021 (arXiv 2110.05960).

    Parameters
    ----------
    paths : xarray.Dataset
        ``features (replicate, time, sample, feature)``, the replicates optional, with ``time`` and ``label(sample)``.
    time : float, optional
        The ways are drawn up to the saved time nearest to it. Default: the last.
    samples : xarray.Dataset, optional
        Points to show: ``features (sample, feature)`` and ``label(sample)``.
    features : three ints, default (0, 1, 2)
        Which features.
    snapshots : int, default 4
        How many times the means are joined at, the last shown among them.
    reach : float, optional
        Axes go from −reach to reach. Default: what holds everything shown.
    elevation, azimuth : float, default 24, 45
        Where it is seen from, in degrees.
    legend : bool, default True
        Whether to name the classes above.
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
    colours = palette(K)
    for k in range(K):
        own = points[labels == k]
        target.scatter(*own.T, s=4, color=colours[k], alpha=0.35, linewidths=0, depthshade=False)
    at = np.unique(np.linspace(0, last, min(snapshots, last + 1)).round().astype(int))
    for i in at:
        for line in joins(means[i]):
            target.plot(*line.T, color=SECOND_INK, linewidth=0.7 if i == last else 0.4)
    for k in range(K):
        way = means[:, k]
        target.plot(*way.T, color=colours[k], linestyle=class_line(k), linewidth=1.2)
        target.plot(
            *way[-1:].T,
            color=colours[k],
            marker=class_marker(k),
            markersize=5,
            markeredgecolor="white",
            markeredgewidth=0.5,
            linestyle="none",
        )
    if reach is None:
        reach = 1.05 * max(np.abs(means).max(), np.abs(points).max(initial=0.0)) or 1.0
    _dress(target, chosen, float(reach))
    target.view_init(elev=elevation, azim=azimuth)
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


def _dress(target: Any, chosen: list[int], reach: float) -> None:
    """Limits, few ticks away from the corners where labels of two axes meet, and names."""
    step = next(v for v in MaxNLocator(2, steps=[1, 2, 5, 10]).tick_values(0.0, reach) if v > 0)
    step = step if step <= 0.8 * reach else step / 2
    ticks = [-step, 0.0, step]
    for which, feature in zip("xyz", chosen, strict=True):
        axis = getattr(target, f"{which}axis")
        getattr(target, f"set_{which}lim")(-reach, reach)
        axis.set_major_locator(FixedLocator(ticks))
        axis.set_major_formatter(FixedFormatter([number(value) for value in ticks]))
        axis.set_pane_color((1.0, 1.0, 1.0, 0.0))
        axis._axinfo["grid"].update(color=(0.85, 0.85, 0.85), linewidth=0.4)
        target.tick_params(axis=which, labelsize=7, pad=-3)
        getattr(target, f"set_{which}label")(f"feature {feature}", labelpad=-7)
    target.set_box_aspect((1, 1, 1), zoom=0.82)
