"""Figure 4 of the published experiments: what label noise does, and where it stops learning."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

from lesde import plot
from lesde.plot.canvas import number
from lesde.plot.style import INK, LEVELS, SECOND_INK, colours_of_rates
from lesde.study.reproduce_analysis import RANGES, mean_interval
from lesde.study.reproduce_figures import PAGE
from lesde.study.reproduce_transition import Crossing

__all__ = ["draw_phases"]


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
