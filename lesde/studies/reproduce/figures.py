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
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

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
from lesde.studies.reproduce.analysis import RANGES, class_means, mean_interval, reached
from lesde.studies.reproduce.crossing import Crossing

__all__ = ["draw_dynamics", "draw_elasticity", "draw_phases", "draw_separation"]

PAGE = 7.0  # inches: two columns of a journal
DASHED: dict[str, Any] = {"color": INK, "linestyle": (0, (4, 2))}
DOTTED: dict[str, Any] = {"color": SECOND_INK, "linewidth": 0.6, "linestyle": ":"}


def draw_separation(
    paths: xr.Dataset, shots: Sequence[xr.Dataset], edges: np.ndarray, names: Sequence[str]
) -> Figure:
    """Figure 1: logits in three dimensions at the start, the middle and the end; below, one projection.

    ``paths`` are class means over windows of training; ``shots`` drawn samples in the three windows at ``edges``.
    """
    mean = class_means(paths).mean(0)
    gap = mean[-1, 0] - mean[-1, 1]
    direction, K, three = gap / np.linalg.norm(gap), len(names), mean.shape[-1] >= 3
    times = [f"$t$ = {float(paths['time'].values[at]):.3g}" for at in edges]
    with plot.style():
        figure = plt.figure(figsize=(PAGE, 4.5), layout="constrained")
        grid = figure.add_gridspec(2, 3, height_ratios=(1.3, 1))
        for column, (shot, at) in enumerate(zip(shots, edges, strict=True)):
            ax: Any = figure.add_subplot(grid[0, column], projection="3d" if three else None)
            if three:
                plot.logit_paths(paths, float(paths["time"].values[at]), shot, legend=False, ax=ax)
                for which in "xyz":
                    label = getattr(ax, f"get_{which}label")().replace("feature", "logit")
                    getattr(ax, f"set_{which}label")(label, labelpad=-7)
                ax.set_box_aspect((1, 1, 1), zoom=1.0)
            else:
                _plane(ax, shot, mean[: at + 1])
            ax.set_title(times[column], y=0.97 if three else None)
        for column, at in enumerate((0, 2)):
            ax = figure.add_subplot(grid[1, column])
            values, label = shots[at]["features"].values @ direction, shots[at]["label"].values
            low, high = float(values.min()), float(values.max())
            bins = np.linspace(low, high if high > low else low + 1.0, 31)
            for k in range(K):
                ax.hist(values[label == k], bins, color=palette(K)[k], alpha=0.55, linewidth=0)
            ax.set_xlabel(f"projection, {names[1]} → {names[0]}")
            ax.set_ylabel("drawn samples")
            ax.set_title(times[at])
        _projections(figure.add_subplot(grid[1, 2]), paths, direction)
        handles = _named(names)
        figure.legend(handles=handles, loc="outside upper center", ncols=K)
    return figure


def _plane(ax: Any, shot: xr.Dataset, means: np.ndarray) -> None:
    """Two logits: drawn samples, and the path (time, class, logit) of the class means to where they are."""
    K = means.shape[-1]
    for k in range(K):
        colour, own = palette(K)[k], shot["features"].values[shot["label"].values == k]
        ax.scatter(own[:, 0], own[:, 1], s=4, color=colour, alpha=0.35, linewidths=0)
        ax.plot(means[:, k, 0], means[:, k, 1], color=colour, linewidth=1.0)
        look: dict[str, Any] = {"marker": class_marker(k), "markeredgecolor": "white"}
        ax.plot(*means[-1, k], color=colour, zorder=3, **look)
    ax.set_xlabel("logit 0")
    ax.set_ylabel("logit 1")


def _projections(ax: Any, paths: xr.Dataset, direction: np.ndarray) -> None:
    """Projected class means of each trial, and on top their mean."""
    values, time = class_means(paths) @ direction, paths["time"].values
    K = values.shape[-1]
    for k in range(K):
        colour = palette(K)[k]
        # Many trials merge into a shade, on which the mean remains visible.
        faint = min(0.35, 8 / len(values))
        ax.plot(time, values[..., k].T, color=colour, linewidth=0.4, alpha=faint)
        ax.plot(
            time,
            values[..., k].mean(0),
            color=colour,
            linewidth=1.4,
            path_effects=[Stroke(linewidth=2.6, foreground="white"), Normal()],
            marker=class_marker(k),
            markevery=max(1, len(time) // 5),
            markeredgecolor="white",
            markeredgewidth=0.4,
        )
    ax.set_xlabel("time $t$")
    ax.set_ylabel("projection, class means")


def draw_elasticity(fits: dict[str, xr.Dataset], published: dict[str, xr.Dataset]) -> Figure:
    """Figure 3: Â, B̂, α̂, β̂, a row for each model, with A and B as the published inversion gives them."""
    with plot.style():
        figure, axes = plt.subplots(
            len(fits), 4, figsize=(PAGE, 1.75 * len(fits)), layout="constrained", squeeze=False
        )
        for row, (name, fit) in zip(axes, fits.items(), strict=True):
            plot.elasticity(fit, ax=row)
            _remove_legends(figure, row)
            row[0].set_ylabel(f"{name}\n{row[0].get_ylabel()}")
            for ax, variable in zip(row[:2], ("A", "B"), strict=True):
                old = published[name][variable].sel(time=fit["time"].values)
                old = old - old.isel(time=0)
                ax.plot(old["time"], old, linewidth=0.9, **DASHED)
                known = old.values[np.isfinite(old.values)]
                if len(known):
                    low, high = ax.get_ylim()
                    room = 0.05 * (high - low)
                    ax.set_ylim(min(low, known.min() - room), max(high, known.max() + room))
        for ax in axes[:-1].ravel():
            ax.set_xlabel("")
        level = next(iter(fits.values())).attrs["confidence"]
        handles = [
            Line2D([], [], color=LEVELS["alpha"], label="within class"),
            Line2D([], [], color=LEVELS["beta"], label="between classes"),
            Patch(facecolor=SECOND_INK, alpha=0.22, label=f"{100 * level:.3g}% band"),
            Line2D([], [], linewidth=0.9, label="published inversion", **DASHED),
        ]
        figure.legend(handles=handles, loc="outside upper center", ncols=len(handles))
    return figure


def draw_dynamics(paths: xr.Dataset, laws: dict[str, xr.Dataset], names: Sequence[str]) -> Figure:
    """Figure 5: the LE-ODE of each model (lines, to where it is NaN) against class means over trials (markers)."""
    K = paths.sizes["feature"]
    with plot.style():
        figure, axes = plt.subplots(
            len(laws), K, figsize=(PAGE, 1.9 * len(laws)), layout="constrained", sharex=True,
            sharey=True, squeeze=False,
        )  # fmt: skip
        for i, (model, law) in enumerate(laws.items()):
            row = axes[i]
            part = paths.sel(time=law["time"].values)
            plot.class_means(part, reached(law), features=list(range(K)), ax=row)
            _remove_legends(figure, row)
            mean = part["features"].mean("replicate").values
            middle, reach = (mean.max() + mean.min()) / 2, 1.5 * float(np.ptp(mean))
            for k, ax in enumerate(row):
                ax.set_ylabel(model if k == 0 else "")
                ax.set_title(f"logit {k}" if i == 0 else "")
                ax.set_xlabel("" if i + 1 < len(laws) else ax.get_xlabel())
                # At most three times the class means' limits, should an LE-ODE run away.
                low, high = ax.get_ylim()
                ax.set_ylim(max(low, middle - reach), min(high, middle + reach))
        kinds = [
            Line2D([], [], color=INK, label="LE-ODE"),
            Line2D([], [], color=INK, marker="o", linestyle="none", label="networks, ±1 s.e."),
        ]
        figure.legend(handles=[*kinds, *_named(names)], loc="outside upper center", ncols=5)
    return figure


def _remove_legends(figure: Figure, axes: Sequence[Any]) -> None:
    for legend in [ax.get_legend() for ax in axes if ax.get_legend()] + figure.legends:
        legend.remove()


def _named(names: Sequence[str]) -> list[Line2D]:
    """A handle for each class by its name."""
    handles = class_handles(range(len(names)), len(names), linestyle=False)
    for handle, name in zip(handles, names, strict=True):
        handle.set_label(name)
    return handles


def draw_phases(
    levels: xr.Dataset, crossings: dict[str, Crossing], critical: float, confidence: float
) -> Figure:
    """Figure 4: loss and accuracy over training by noise level; at the end against the level; tail indices.

    ``levels`` holds ``loss``, ``accuracy``, ``contrast (noise_level, replicate, time)`` and ``tail_index``, ``A_minus_B``.
    """
    p = levels["noise_level"].values
    colours, chance = colours_of_rates(p), 1.0 - critical
    with plot.style():
        figure, axes = plt.subplots(2, 4, figsize=(PAGE, 3.9), layout="constrained")
        nothing = {"loss": -np.log(chance), "accuracy": chance, "contrast": 0.0}
        for ax, name in zip(axes[0], ("loss", "accuracy"), strict=False):
            for i, colour in enumerate(colours):
                mean = levels[name].isel(noise_level=i).mean("replicate")
                ax.plot(levels["time"], mean, color=colour)
            ax.axhline(nothing[name], **DOTTED)
            ax.set_xlabel("time $t$")
            ax.set_ylabel(f"validation {name}")
        for ax, name in ((axes[0, 2], "loss"), (axes[1, 0], "accuracy"), (axes[1, 1], "contrast")):
            _against_level(ax, p, levels[name].isel(time=-1).values, confidence, RANGES.get(name))
            ax.axhline(nothing[name], **DOTTED)
            _mark(ax, crossings.get(name), critical)
            ax.set_ylabel(f"{name} at the end")
        _through_zero(axes[1, 1], levels["contrast"].isel(time=-1).values, confidence)
        marks = dict(zip(levels["model"].values, ("o", "s"), strict=False))
        differences = levels["A_minus_B"]
        _by_model(axes[1, 2], differences, marks, 0.003, 0.0, confidence)
        _mark(axes[1, 2], None, critical)
        axes[1, 2].set_ylabel("published $\\hat{A}-\\hat{B}$")
        index = levels["tail_index"].sel(rate="alpha")
        _by_model(axes[1, 3], index, marks, 0.006, 1.0, confidence)
        for model in marks:
            _mark(axes[1, 3], crossings.get(f"tail index, {model}"), critical)
        axes[1, 3].set_ylabel(r"published tail index of $\hat{\alpha}$")
        _keys(axes[0, 3], p, colours, marks)
    return figure


def _against_level(
    ax: Any,
    p: np.ndarray,
    values: np.ndarray,
    confidence: float,
    within: tuple[float, float] | None = None,
    **look: Any,
) -> None:
    """Means over trials, with bars, of values (level, replicate)."""
    mean, low, high = mean_interval(values.T, confidence, within or (-np.inf, np.inf))
    keywords = {"marker": "o", "linestyle": "-", "linewidth": 0.7, "markersize": 3} | look
    ax.errorbar(p, mean, [mean - low, high - mean], color=INK, elinewidth=0.7, **keywords)
    ax.set_xlabel("wrong labels $p$")
    # Fixed, so that a shade that goes beyond does not stretch it.
    room = 0.05 * (p[-1] - p[0])
    ax.set_xlim(p[0] - room, p[-1] + room)


def _by_model(
    ax: Any,
    values: xr.DataArray,
    marks: dict[str, str],
    aside: float,
    level: float,
    confidence: float,
) -> None:
    """Values of both models, side by side, against the noise level; ``level`` is theirs where nothing separates."""
    p = values["noise_level"].values
    for i, (model, marker) in enumerate(marks.items()):
        look: dict[str, Any] = {"marker": marker, "markerfacecolor": INK if i else "white"}
        own = values.sel(model=model).transpose("noise_level", "replicate").values
        _against_level(ax, p + (2 * i - 1) * aside, own, confidence, linestyle="none", **look)
    ax.axhline(level, **DOTTED)
    # Limits by the means: the bars of undetermined values would flatten the rest.
    means = values.mean("replicate").values
    seen = np.append(means[np.isfinite(means)], level)
    room = 0.25 * max(float(np.ptp(seen)), 0.1)
    ax.set_ylim(seen.min() - room, seen.max() + room)


def _mark(ax: Any, found: Crossing | None, critical: float) -> None:
    """The critical line of the theory, and the measured interval."""
    ax.axvline(critical, linewidth=0.8, zorder=1, **DASHED)
    low, high = ax.get_xlim()
    # A shade over most of the panel would be of no use.
    if found is not None and found.bounded and found.upper - found.lower < 0.5 * (high - low):
        ax.axvspan(found.lower, found.upper, color=LEVELS["beta"], alpha=0.3, linewidth=0, zorder=0)


def _through_zero(ax: Any, values: np.ndarray, confidence: float) -> None:
    """An axis linear about zero and logarithmic beyond, where values are of many sizes and both signs."""
    _, low, high = mean_interval(values.T, confidence)
    far = np.maximum(np.abs(low), np.abs(high))
    largest = float(far.max())
    near = 10.0 ** np.floor(np.log10(max(float(far.min()), 1e-4 * largest)))
    if largest < 30 * near:
        return
    ax.set_yscale("symlog", linthresh=near, linscale=0.6)
    first, top = int(np.log10(near)), int(np.ceil(np.log10(largest)))
    powers = [10.0**k for k in range(first, top + 1, 1 + (top - first > 4))]
    bottom = -float(np.nanmin([*low, 0.0]))
    shown = [-v for v in powers if v <= 3 * bottom] + [0.0, *powers]
    ax.yaxis.set_major_locator(FixedLocator(shown))
    ax.yaxis.set_major_formatter(FixedFormatter([f"{v:.3g}".replace("-", "−") for v in shown]))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.set_ylim(-2 * bottom if bottom > 0 else None, 3 * largest)


def _keys(ax: Any, p: np.ndarray, colours: Sequence[Any], marks: dict[str, str]) -> None:
    """The keys, in the place of a panel."""
    ax.axis("off")
    handles = [
        Line2D([], [], color=colour, label=f"{level:.3g}")
        for level, colour in zip(p, colours, strict=True)
    ]
    levels = ax.legend(
        handles=handles,
        loc="upper center",
        ncols=1 + (len(p) > 5),
        title="share $p$ of wrong labels",
        bbox_to_anchor=(0.5, 1.03),
    )
    ax.add_artist(levels)
    marked: list[Any] = [
        Line2D([], [], linewidth=0.8, label="theory, $(K-1)/K$", **DASHED),
        Patch(facecolor=LEVELS["beta"], alpha=0.3, label="critical $p$, measured"),
        Line2D([], [], label="nothing learnt", **DOTTED),
    ]
    for i, (model, marker) in enumerate(marks.items()):
        look: dict[str, Any] = {"marker": marker, "markerfacecolor": INK if i else "white"}
        marked.append(Line2D([], [], color=INK, linestyle="none", label=model, **look))
    ax.legend(handles=marked, loc="lower center", bbox_to_anchor=(0.5, -0.2))
