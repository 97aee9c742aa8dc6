"""The four figures of the published experiments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import Normal, Stroke

from lesde import plot
from lesde.plot.style import (
    INK,
    LEVELS,
    SECOND_INK,
    class_handles,
    class_marker,
    colours_of_rates,
    palette,
)
from lesde.studies.panels import PAGE, one_legend
from lesde.studies.reproduce.analysis import class_means, reached
from lesde.studies.reproduce.crossing import Crossing

DASHED: dict[str, Any] = {"color": INK, "linestyle": (0, (4, 2))}
DOTTED: dict[str, Any] = {"color": SECOND_INK, "linewidth": 0.6, "linestyle": ":"}


@plot.style()
def draw_separation(
    paths: xr.Dataset, shots: Sequence[xr.Dataset], edges: np.ndarray, names: Sequence[str]
) -> Figure:
    """Figure 1: logits in three dimensions at the start, the middle and the end; below, one projection.

    ``paths`` are class means over windows of training; ``shots`` drawn samples in the three windows at ``edges``.
    """
    means, time = class_means(paths), paths["time"].values
    gap = means[:, -1, 0].mean(0) - means[:, -1, 1].mean(0)
    direction, K = gap / np.linalg.norm(gap), len(names)
    figure = plt.figure(figsize=(PAGE, 4.5), layout="constrained")
    grid = figure.add_gridspec(2, 3, height_ratios=(1.3, 1))
    for column, (shot, at) in enumerate(zip(shots, edges, strict=True)):
        ax: Any = figure.add_subplot(grid[0, column], projection="3d")
        plot.logit_paths(paths, float(time[at]), shot, legend=False, ax=ax)
        for axis in (ax.xaxis, ax.yaxis, ax.zaxis):
            axis.set_label_text(axis.get_label_text().replace("feature", "logit"))
            axis.labelpad = -7
        ax.set_box_aspect((1, 1, 1), zoom=1.0)
        ax.set_title(f"$t$ = {time[at]:.3g}", y=0.97)
    for column, at in enumerate((0, 2)):
        ax = figure.add_subplot(grid[1, column])
        values, label = shots[at]["features"].values @ direction, shots[at]["label"].values
        bins = np.linspace(values.min(), values.max(), 31)
        for k in range(K):
            ax.hist(values[label == k], bins, color=palette(K)[k], alpha=0.55, linewidth=0)
        ax.set(xlabel=f"projection, {names[1]} → {names[0]}", ylabel="drawn samples")
        ax.set_title(f"$t$ = {time[edges[at]]:.3g}")
    ax = figure.add_subplot(grid[1, 2])
    for k in range(K):
        each, colour = (means[:, :, k] @ direction).T, palette(K)[k]
        # Many trials merge into a shade, on which the mean remains visible.
        ax.plot(time, each, color=colour, linewidth=0.4, alpha=min(0.35, 8 / len(means)))
        outline = [Stroke(linewidth=2.6, foreground="white"), Normal()]
        marks: dict[str, Any] = {"marker": class_marker(k), "markevery": max(1, len(time) // 5)}
        ax.plot(time, each.mean(1), color=colour, linewidth=1.4, path_effects=outline, **marks)
    ax.set(xlabel="time $t$", ylabel="projection, class means")
    one_legend(figure, _named(names))
    return figure


@plot.style()
def draw_elasticity(fits: xr.Dataset) -> Figure:
    """Figure 3: Â, B̂, α̂, β̂, a row for each model, with A and B as the published inversion gives them."""
    models = fits["model"].values
    figure, axes = plt.subplots(
        len(models), 4, figsize=(PAGE, 1.75 * len(models)), layout="constrained", squeeze=False
    )
    for row, model in zip(axes, models, strict=True):
        fit = fits.sel(model=model, drop=True)
        old = xr.Dataset({name: fit[f"{name}_published"] for name in ("A", "B")})
        plot.elasticity(fit, old, ax=row)
        row[0].set_ylabel(f"{model}\n{row[0].get_ylabel()}")
    for ax in axes[:-1].ravel():
        ax.set_xlabel("")
    band = 100 * fits.attrs["confidence"]
    handles = [
        Line2D([], [], color=LEVELS["alpha"], label="within class"),
        Line2D([], [], color=LEVELS["beta"], label="between classes"),
        Patch(facecolor=SECOND_INK, alpha=0.22, label=f"{band:.3g}% band"),
        Line2D([], [], label="published inversion", **DASHED),
    ]
    one_legend(figure, handles)
    return figure


@plot.style()
def draw_dynamics(paths: xr.Dataset, laws: xr.Dataset, names: Sequence[str]) -> Figure:
    """Figure 5: the LE-ODE of each model (lines, to where it is NaN) against class means over trials (markers)."""
    K, models = paths.sizes["feature"], laws["model"].values
    figure, axes = plt.subplots(
        len(models), K, figsize=(PAGE, 1.9 * len(models)), layout="constrained", sharex=True,
        sharey=True, squeeze=False,
    )  # fmt: skip
    part = paths.sel(time=laws["time"].values)
    for row, model in zip(axes, models, strict=True):
        law = reached(laws.sel(model=model, drop=True))
        plot.class_means(part, law, features=list(range(K)), ax=row)
        for k, ax in enumerate(row):
            ax.set(ylabel=model, title=f"logit {k}" if ax in axes[0] else "")
            ax.label_outer()
    kinds = [
        Line2D([], [], color=INK, label="LE-ODE"),
        Line2D([], [], color=INK, marker="o", linestyle="none", label="networks, ±1 s.e."),
    ]
    one_legend(figure, [*kinds, *_named(names)])
    return figure


def _named(names: Sequence[str]) -> list[Line2D]:
    """A handle for each class by its name."""
    handles = class_handles(range(len(names)), len(names), linestyle=False)
    for handle, name in zip(handles, names, strict=True):
        handle.set_label(name)
    return handles


@plot.style()
def draw_phases(
    levels: xr.Dataset, end: xr.Dataset, crossings: dict[str, Crossing], critical: float
) -> Figure:
    """Figure 4: loss and accuracy over training by noise level; at the end against the level; tail indices.

    ``levels`` holds ``loss``, ``accuracy (noise_level, replicate, time)``; ``end`` averages over trials with their limits: of
    these, ``contrast`` and ``tail_index``, ``A_minus_B``.
    """
    p, models = levels["noise_level"].values, [str(model) for model in levels["model"].values]
    nothing = {"loss": -np.log(1 - critical), "accuracy": 1 - critical, "contrast": 0.0}
    colours = colours_of_rates(p)
    figure, axes = plt.subplots(2, 4, figsize=(PAGE, 3.9), layout="constrained")
    for ax, name in zip(axes[0, :2], ("loss", "accuracy"), strict=True):
        for colour, mean in zip(colours, levels[name].mean("replicate"), strict=True):
            ax.plot(levels["time"], mean, color=colour)
        ax.axhline(nothing[name], **DOTTED)
        ax.set(xlabel="time $t$", ylabel=f"validation {name}")
    for ax, name in ((axes[0, 2], "loss"), (axes[1, 0], "accuracy"), (axes[1, 1], "contrast")):
        _against_level(ax, p, end, name, linestyle="-", linewidth=0.7)
        ax.axhline(nothing[name], **DOTTED)
        _mark(ax, critical, crossings.get(name))
        ax.set_ylabel(f"{name} at the end")
    # Of many sizes and both signs.
    largest = 10.0 ** np.ceil(np.log10(float(abs(end["contrast"]).max())))
    axes[1, 1].set_yscale("symlog", linthresh=largest / 1e3, linscale=0.5)
    looks: list[dict[str, Any]] = [{"marker": "o", "markerfacecolor": "white"}, {"marker": "s"}]
    indices = end.sel(rate="alpha")
    by_model = ((axes[1, 2], "A_minus_B", 0.0), (axes[1, 3], "tail_index", 1.0))
    for ax, name, level in by_model:
        for i, (model, look) in enumerate(zip(models, looks, strict=False)):
            one = indices.sel(model=model)
            _against_level(ax, p + (2 * i - 1) * 0.004, one, name, linestyle="none", **look)
            _mark(ax, critical, crossings.get(f"tail index, {model}") if level else None)
        ax.axhline(level, **DOTTED)
        # Limits by the means: the bars of undetermined values would flatten the rest.
        seen = np.append(indices[name].values, level)
        room = 0.25 * max(float(np.nanmax(seen) - np.nanmin(seen)), 0.1)
        ax.set_ylim(np.nanmin(seen) - room, np.nanmax(seen) + room)
    axes[1, 2].set_ylabel("published $\\hat{A}-\\hat{B}$")
    axes[1, 3].set_ylabel(r"published tail index of $\hat{\alpha}$")

    axes[0, 3].axis("off")
    of_levels = [Line2D([], [], color=c, label=f"{q:.3g}") for q, c in zip(p, colours, strict=True)]
    title = "share $p$ of wrong labels"
    marked: list[Any] = [
        Line2D([], [], linewidth=0.8, label="theory, $(K-1)/K$", **DASHED),
        Patch(facecolor=LEVELS["beta"], alpha=0.3, label="critical $p$, measured"),
        Line2D([], [], label="nothing learnt", **DOTTED),
    ]
    for model, look in zip(models, looks, strict=False):
        marked.append(Line2D([], [], color=INK, linestyle="none", label=model, **look))
    one_legend(figure, marked)
    axes[0, 3].legend(handles=of_levels, loc="center", ncols=1 + (len(p) > 5), title=title)
    return figure


def _against_level(ax: Any, p: np.ndarray, end: xr.Dataset, name: str, **look: Any) -> None:
    """Means over trials with their limits, against the noise level."""
    mean, low, high = (end[name + limit].values for limit in ("", "_lower", "_upper"))
    look = {"marker": "o", "markersize": 3} | look
    ax.errorbar(p, mean, [mean - low, high - mean], color=INK, elinewidth=0.7, **look)
    ax.set_xlabel("wrong labels $p$")


def _mark(ax: Any, critical: float, found: Crossing | None) -> None:
    """The critical line of the theory, and the measured interval."""
    ax.axvline(critical, linewidth=0.8, zorder=1, **DASHED)
    low, high = ax.get_xlim()
    # A shade over most of the panel would be of no use.
    if found is not None and found.upper - found.lower < 0.5 * (high - low):
        ax.axvspan(found.lower, found.upper, color=LEVELS["beta"], alpha=0.3, linewidth=0, zorder=0)
