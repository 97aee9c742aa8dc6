"""Figures of a page's width, with many panels and one legend."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from lesde import plot
from lesde.plot.ticks import tidy_log

PAGE = 7.0  # inches: two columns of a journal


def panels(
    rows: Sequence[Any],
    columns: Sequence[Any],
    draw: Callable[[Any, Any, Any], None],
    height: float,
    **shared: Any,
) -> np.ndarray:
    """Axes (row, column), each drawn by ``draw(ax, row, column)``, with logarithmic horizontal axes and one legend."""
    with plot.style():
        figure, axes = plt.subplots(
            len(rows), len(columns), figsize=(PAGE, height), layout="constrained", squeeze=False, **shared
        )  # fmt: skip
        for (row, column), ax in np.ndenumerate(axes):
            draw(ax, rows[row], columns[column])
            if ax.get_xscale() != "log":
                ax.set_xscale("log")
                tidy_log(ax, "x")
            ax.label_outer()
        one_legend(figure)
    return axes


def one_legend(figure: Figure, handles: Sequence[Any] | None = None, ncols: int = 6) -> None:
    """Put one legend above a figure in place of those of its panels: of the handles, or the longest of theirs."""
    legends: list[Any] = [ax.get_legend() for ax in figure.axes if ax.get_legend()] + figure.legends
    for legend in legends:
        legend.remove()
    title = None
    if handles is None:
        longest = max(legends, key=lambda legend: len(legend.legend_handles))
        handles, title = longest.legend_handles, longest.get_title().get_text()
        for handle, text in zip(handles, longest.get_texts(), strict=True):
            handle.set_label(text.get_text())
    ncols = min(ncols, len(handles))
    figure.legend(handles=handles, title=title or None, loc="outside upper center", ncols=ncols)
