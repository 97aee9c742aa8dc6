"""Figure 4 of the published experiments: what label noise does, and where it stops learning."""

from __future__ import annotations

from typing import Any

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
from lesde.plot.ticks import number
from lesde.studies.reproduce_analysis import RANGES, Crossing, mean_interval, told

__all__ = ["draw_dynamics", "draw_elasticity", "draw_phases", "draw_separation"]


# --------------------------------------------------------------------------------------------------
# The four figures of the published experiments.

PAGE = 7.0  # inches: two columns of a journal


def draw_separation(
    paths: xr.Dataset, shots: list[xr.Dataset], edges: np.ndarray, names: tuple[str, ...]
) -> Figure:
    """Figure 1: logits in three dimensions at the start, the middle and the end; below, one projection.

    Parameters
    ----------
    paths : xarray.Dataset
        Class means over windows of training, of three logits.
    shots : list of three Datasets
        Drawn samples in windows at the start, the middle and the end: ``features (sample, feature)``, ``label``; attribute ``time``.
    edges : array (3,)
        Position along ``time`` of the windows.
    names : tuple of str
        Of the classes.
    """
    import matplotlib.pyplot as plt

    mean = paths["features"].mean("replicate").transpose("time", "sample", "feature").values
    gap = mean[-1, 0] - mean[-1, 1]
    direction = gap / np.linalg.norm(gap)
    with plot.style():
        figure = plt.figure(figsize=(PAGE, 4.5), layout="constrained")
        grid = figure.add_gridspec(2, 3, height_ratios=(1.3, 1))
        three = mean.shape[-1] >= 3
        for column, (shot, at) in enumerate(zip(shots, edges, strict=True)):
            ax: Any = figure.add_subplot(grid[0, column], projection="3d" if three else None)
            time = float(paths["time"].values[at])
            if three:
                plot.logit_paths(paths, time, shot, legend=False, ax=ax)
                for which in "xyz":
                    label = getattr(ax, f"get_{which}label")().replace("feature", "logit")
                    getattr(ax, f"set_{which}label")(label, labelpad=-7)
                ax.set_box_aspect((1, 1, 1), zoom=1.0)
            else:
                _plane(ax, shot, mean[: at + 1])
            ax.set_title(f"$t$ = {time:.3g}", y=0.97 if three else None)
        for column, at in enumerate((0, 2)):
            ax = figure.add_subplot(grid[1, column])
            _histogram(ax, shots[at], direction, names)
            ax.set_title(f"$t$ = {float(paths['time'].values[edges[at]]):.3g}")
        ax = figure.add_subplot(grid[1, 2])
        _projections(ax, paths, direction)
        handles = class_handles(range(len(names)), len(names), linestyle=False)
        for handle, name in zip(handles, names, strict=True):
            handle.set_label(name)
        figure.legend(handles=handles, loc="outside upper center", ncols=len(names))
    return figure


def _plane(ax: Any, shot: xr.Dataset, means: np.ndarray) -> None:
    """Two logits: drawn samples, and the way (time, class, logit) of the class means to where they are."""
    K = means.shape[-1]
    for k in range(K):
        colour, own = palette(K)[k], shot["features"].values[shot["label"].values == k]
        ax.scatter(own[:, 0], own[:, 1], s=4, color=colour, alpha=0.35, linewidths=0)
        ax.plot(means[:, k, 0], means[:, k, 1], color=colour, linewidth=1.0)
        ax.plot(
            *means[-1, k], color=colour, marker=class_marker(k), markeredgecolor="white", zorder=3
        )
    ax.set_xlabel("logit 0")
    ax.set_ylabel("logit 1")


def _histogram(ax: Any, shot: xr.Dataset, direction: np.ndarray, names: tuple[str, ...]) -> None:
    K = len(names)
    values = shot["features"].values @ direction
    low, high = float(values.min()), float(values.max())
    bins = np.linspace(low, high if high > low else low + 1.0, 31)
    for k in range(K):
        own = values[shot["label"].values == k]
        ax.hist(own, bins, color=palette(K)[k], alpha=0.55, linewidth=0)
    ax.set_xlabel(f"projection, {names[1]} → {names[0]}")
    ax.set_ylabel("drawn samples")


def _projections(ax: Any, paths: xr.Dataset, direction: np.ndarray) -> None:
    values = (
        paths["features"].transpose("replicate", "time", "sample", "feature").values @ direction
    )
    time, K = paths["time"].values, values.shape[-1]
    for k in range(K):
        colour = palette(K)[k]
        # Many trials are a shade, on which the mean still shows.
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
    """Figure 3: Â, B̂, α̂, β̂, a row for each model, with what the published inversion gives of A and B."""
    import matplotlib.pyplot as plt

    with plot.style():
        figure, axes = plt.subplots(
            len(fits), 4, figsize=(PAGE, 1.75 * len(fits)), layout="constrained", squeeze=False
        )
        for i, (name, fit) in enumerate(fits.items()):
            row = axes[i]
            plot.elasticity(fit, ax=row)
            for legend in [ax.get_legend() for ax in row if ax.get_legend()] + figure.legends:
                legend.remove()
            row[0].set_ylabel(f"{name}\n{row[0].get_ylabel()}")
            for ax, variable in zip(row[:2], ("A", "B"), strict=True):
                old = published[name]
                values = old[variable].sel(time=fit["time"].values)
                values = values - values.isel(time=0)
                ax.plot(values["time"], values, color=INK, linestyle=(0, (4, 2)), linewidth=0.9)
                _hold(ax, values.values)
            for ax in row if i + 1 < len(fits) else ():
                ax.set_xlabel("")
        level = next(iter(fits.values())).attrs["confidence"]
        handles = [
            Line2D([], [], color=LEVELS["alpha"], label="within class"),
            Line2D([], [], color=LEVELS["beta"], label="between classes"),
            Patch(facecolor=SECOND_INK, alpha=0.22, label=f"{100 * level:.3g}% band"),
            Line2D(
                [], [], color=INK, linestyle=(0, (4, 2)), linewidth=0.9, label="published inversion"
            ),
        ]
        figure.legend(handles=handles, loc="outside upper center", ncols=len(handles))
    return figure


def _hold_to(ax: Any, paths: xr.Dataset) -> None:
    """Limits at most three times those of the networks' class means, should an LE-ODE run away."""
    values = paths["features"].mean("replicate").values
    middle, reach = (values.max() + values.min()) / 2, 1.5 * float(np.ptp(values))
    low, high = ax.get_ylim()
    ax.set_ylim(max(low, middle - reach), min(high, middle + reach))


def _hold(ax: Any, values: np.ndarray) -> None:
    """Widen the vertical limits so that they hold further values."""
    known = values[np.isfinite(values)]
    if len(known):
        low, high = ax.get_ylim()
        room = 0.05 * (high - low)
        ax.set_ylim(min(low, known.min() - room), max(high, known.max() + room))


def draw_dynamics(paths: xr.Dataset, laws: dict[str, xr.Dataset], names: tuple[str, ...]) -> Figure:
    """Figure 5: the LE-ODE of each model (lines, to where it is NaN) against class means over trials (markers)."""
    import matplotlib.pyplot as plt

    K = paths.sizes["feature"]
    with plot.style():
        figure, axes = plt.subplots(
            len(laws), K, figsize=(PAGE, 1.9 * len(laws)), layout="constrained", sharex=True,
            sharey=True, squeeze=False,
        )  # fmt: skip
        for i, (model, law) in enumerate(laws.items()):
            row = axes[i]
            part = paths.sel(time=law["time"].values)
            plot.class_means(part, told(law), features=list(range(K)), ax=row)
            for legend in [ax.get_legend() for ax in row if ax.get_legend()] + figure.legends:
                legend.remove()
            for k, ax in enumerate(row):
                ax.set_ylabel(model if k == 0 else "")
                ax.set_title(f"logit {k}" if i == 0 else "")
                if i + 1 < len(laws):
                    ax.set_xlabel("")
                _hold_to(ax, part)
        handles = class_handles(range(K), K, linestyle=False)
        for handle, name in zip(handles, names, strict=True):
            handle.set_label(name)
        kinds = [
            Line2D([], [], color=INK, label="LE-ODE"),
            Line2D([], [], color=INK, marker="o", linestyle="none", label="networks, ±1 s.e."),
        ]
        figure.legend(handles=[*kinds, *handles], loc="outside upper center", ncols=5)
    return figure


# --------------------------------------------------------------------------------------------------


def draw_phases(
    levels: xr.Dataset, crossings: dict[str, Crossing], critical: float, confidence: float
) -> Figure:
    """Loss and accuracy over training by noise level; at the end against the level; tail indices.

    Parameters
    ----------
    levels : xarray.Dataset
        ``loss``, ``accuracy``, ``contrast (noise_level, replicate, time)``, ``tail_index (noise_level, replicate, model, rate)``.
    crossings : dict of Crossing
        By quantity, those of ``accuracy`` and ``contrast`` among them.
    critical : float
        (K−1)/K.
    confidence : float
        Of the bars.
    """
    import matplotlib.pyplot as plt

    p = levels["noise_level"].values
    colours = colours_of_rates(p)
    chance = 1.0 - critical
    with plot.style():
        figure, axes = plt.subplots(2, 4, figsize=(PAGE, 3.9), layout="constrained")
        curves = (
            ("loss", "validation loss", -np.log(chance)),
            ("accuracy", "validation accuracy", chance),
        )
        for ax, (name, label, level) in zip(axes[0], curves, strict=False):
            for i, colour in enumerate(colours):
                mean = levels[name].isel(noise_level=i).mean("replicate")
                ax.plot(levels["time"], mean, color=colour)
            ax.axhline(level, color=SECOND_INK, linewidth=0.6, linestyle=":")
            ax.set_xlabel("time $t$")
            ax.set_ylabel(label)
        ends = (
            (axes[0, 2], "loss", "loss at the end", -np.log(chance)),
            (axes[1, 0], "accuracy", "accuracy at the end", chance),
            (axes[1, 1], "contrast", "contrast at the end", 0.0),
        )
        for ax, name, label, level in ends:
            within = RANGES.get(name, (-np.inf, np.inf))
            values = levels[name].isel(time=-1).values
            _against_level(ax, p, values, INK, confidence, within)
            ax.axhline(level, color=SECOND_INK, linewidth=0.6, linestyle=":")
            _mark(ax, crossings.get(name), critical)
            ax.set_ylabel(label)
        _through_zero(axes[1, 1], levels["contrast"].isel(time=-1).values, confidence)
        marks = dict(zip(levels["model"].values, ("o", "s"), strict=False))
        _differences(axes[1, 2], levels, marks, critical, confidence)
        _tails(axes[1, 3], levels, crossings, marks, critical, confidence)
        _keys(axes[0, 3], p, colours, marks)
    return figure


def _keys(ax: Any, p: np.ndarray, colours: list[Any], marks: dict[str, str]) -> None:
    """The keys, in the place of a panel."""
    ax.axis("off")
    handles = [
        Line2D([], [], color=colour, label=f"{level:.3g}")
        for level, colour in zip(p, colours, strict=True)
    ]
    ax.add_artist(
        ax.legend(
            handles=handles,
            loc="upper center",
            ncols=1 + (len(p) > 5),
            title="share $p$ of wrong labels",
            bbox_to_anchor=(0.5, 1.03),
        )
    )
    marked: list[Any] = [
        Line2D([], [], color=INK, linewidth=0.8, linestyle=(0, (4, 2)), label="theory, $(K-1)/K$"),
        Patch(facecolor=LEVELS["beta"], alpha=0.3, label="critical $p$, measured"),
        Line2D([], [], color=SECOND_INK, linewidth=0.6, linestyle=":", label="nothing learnt"),
    ]
    for i, (model, marker) in enumerate(marks.items()):
        face = INK if i else "white"
        marked.append(
            Line2D(
                [],
                [],
                color=INK,
                marker=marker,
                linestyle="none",
                markerfacecolor=face,
                label=model,
            )
        )
    ax.legend(handles=marked, loc="lower center", bbox_to_anchor=(0.5, -0.2))


def _through_zero(ax: Any, values: np.ndarray, confidence: float) -> None:
    """An axis linear about zero and logarithmic beyond, where values are of many sizes and both signs."""
    _, low, high = mean_interval(values.T, confidence)
    far = np.maximum(np.abs(low), np.abs(high))
    near = 10.0 ** np.floor(np.log10(max(float(far.min()), 1e-4 * float(far.max()))))
    if float(far.max()) < 30 * near:
        return
    ax.set_yscale("symlog", linthresh=near, linscale=0.6)
    top = int(np.ceil(np.log10(float(far.max()))))
    powers = [10.0**k for k in range(int(np.log10(near)), top + 1)][
        :: 1 + (top - np.log10(near) > 4)
    ]
    bottom = -float(np.nanmin([*low, 0.0]))
    shown = [-v for v in powers if v <= 3 * bottom] + [0.0, *powers]
    ax.yaxis.set_major_locator(FixedLocator(shown))
    ax.yaxis.set_major_formatter(FixedFormatter([number(v) for v in shown]))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.set_ylim(-2 * bottom if bottom > 0 else None, 3 * float(far.max()))


def _differences(
    ax: Any,
    levels: xr.Dataset,
    marks: dict[str, str],
    critical: float,
    confidence: float,
) -> None:
    """The published Â − B̂ of both models against the level."""
    p = levels["noise_level"].values
    for i, (model, marker) in enumerate(marks.items()):
        values = levels["A_minus_B"].sel(model=model).values
        look: dict[str, Any] = {
            "marker": marker,
            "markerfacecolor": INK if i else "white",
            "linestyle": "none",
        }
        _against_level(ax, p + 0.006 * (i - 0.5), values, INK, confidence, **look)
    _mark(ax, None, critical)
    ax.axhline(0.0, color=SECOND_INK, linewidth=0.6, linestyle=":")
    ax.set_ylabel("published $\\hat{A}-\\hat{B}$")
    _limit(ax, [np.nanmean(levels["A_minus_B"].values, axis=1)], 0.0)


def _limit(ax: Any, means: list[np.ndarray], level: float) -> None:
    """Limits by the means: bars of what nothing determines would flatten the rest."""
    seen = np.concatenate([np.ravel(m) for m in means])
    seen = np.append(seen[np.isfinite(seen)], level)
    room = 0.25 * max(float(np.ptp(seen)), 0.1)
    ax.set_ylim(seen.min() - room, seen.max() + room)


def _against_level(
    ax: Any,
    p: np.ndarray,
    values: np.ndarray,
    colour: Any,
    confidence: float,
    within: tuple[float, float] = (-np.inf, np.inf),
    **look: Any,
) -> None:
    """Means over trials, with bars, of values (level, replicate)."""
    mean, low, high = mean_interval(values.T, confidence, within)
    keywords = {"marker": "o", "linestyle": "-", "linewidth": 0.7, "markersize": 3} | look
    ax.errorbar(p, mean, [mean - low, high - mean], color=colour, elinewidth=0.7, **keywords)
    ax.set_xlabel("wrong labels $p$")
    # Fixed, so that a shade that goes beyond does not stretch it.
    room = 0.05 * (p[-1] - p[0])
    ax.set_xlim(p[0] - room, p[-1] + room)


def _mark(ax: Any, found: Crossing | None, critical: float) -> None:
    """The critical line of the theory, and the measured interval."""
    ax.axvline(critical, color=INK, linewidth=0.8, linestyle=(0, (4, 2)), zorder=1)
    low, high = ax.get_xlim()
    # A shade over most of the panel would say nothing.
    if found is not None and found.bounded and found.upper - found.lower < 0.5 * (high - low):
        ax.axvspan(found.lower, found.upper, color=LEVELS["beta"], alpha=0.3, linewidth=0, zorder=0)


def _tails(
    ax: Any,
    levels: xr.Dataset,
    crossings: dict[str, Crossing],
    marks: dict[str, str],
    critical: float,
    confidence: float,
) -> None:
    """Published tail indices of both models' α̂ against the level."""
    p, means = levels["noise_level"].values, []
    for i, (model, marker) in enumerate(marks.items()):
        values = levels["tail_index"].sel(model=model, rate="alpha").values
        means.append(np.nanmean(values, axis=1))
        look: dict[str, Any] = {"marker": marker, "linestyle": "none"}
        look["markerfacecolor"] = INK if i else "white"
        _against_level(ax, p + 0.012 * (i - 0.5), values, INK, confidence, **look)
        _mark(ax, crossings.get(f"tail index, {model}"), critical)
    ax.axhline(1.0, color=SECOND_INK, linewidth=0.6, linestyle=":")
    ax.set_ylabel(r"published tail index of $\hat{\alpha}$")
    _limit(ax, means, 1.0)
