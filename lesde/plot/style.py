"""The look of all figures: sizes, fonts and colours, set for one figure at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
import numpy as np
from cycler import cycler

__all__ = [
    "COLUMN",
    "INK",
    "LEVELS",
    "SECOND_INK",
    "SETTINGS",
    "class_line",
    "class_marker",
    "colours_of_rates",
    "palette",
    "style",
]

COLUMN = 3.4
"""Width of a figure in inches: one column of a two-column page."""

# Okabe and Ito, Color Universal Design (2008). Yellow is last: it is weak on white paper.
OKABE_ITO = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442",
)  # fmt: skip
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h", "*")
LINES: tuple[Any, ...] = ("-", "--", ":", "-.")

INK = "#000000"
"""Theory, targets, truth."""
SECOND_INK = "#666666"
"""Help lines."""
LEVELS = {"alpha": OKABE_ITO[0], "beta": OKABE_ITO[1]}
"""Colours of within-class (α, A) and between-class (β, B) elasticity."""

SETTINGS: dict[str, Any] = {
    "figure.figsize": (COLUMN, 2.4),
    "figure.dpi": 150,
    "figure.constrained_layout.use": True,
    "savefig.dpi": 300,
    "savefig.bbox": None,
    # TrueType in vector files: text stays text, and journals accept it.
    "pdf.fonttype": 42,
    "ps.fonttype": 42,
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 8,
    "mathtext.fontset": "dejavusans",
    "text.usetex": False,
    "axes.labelsize": 8,
    "axes.titlesize": 8,
    "axes.titlepad": 3,
    "axes.labelpad": 2.5,
    "axes.linewidth": 0.6,
    "axes.facecolor": "white",
    "axes.edgecolor": "black",
    "axes.labelcolor": "black",
    "axes.grid": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.formatter.limits": (-3, 4),
    "axes.formatter.use_mathtext": True,
    "axes.unicode_minus": True,
    "axes.prop_cycle": cycler(color=OKABE_ITO[:7]),
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "text.color": "black",
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "xtick.color": "black",
    "ytick.color": "black",
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.minor.width": 0.4,
    "ytick.minor.width": 0.4,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "xtick.minor.size": 1.5,
    "ytick.minor.size": 1.5,
    "legend.fontsize": 7,
    "legend.title_fontsize": 7,
    "legend.frameon": False,
    "legend.handlelength": 1.4,
    "legend.handletextpad": 0.4,
    "legend.columnspacing": 1.0,
    "legend.labelspacing": 0.25,
    "legend.borderpad": 0.1,
    "legend.borderaxespad": 0.2,
    "lines.linewidth": 1.1,
    "lines.markersize": 3,
    "errorbar.capsize": 1.5,
    "patch.linewidth": 0.6,
    "image.cmap": "viridis",
}


@contextmanager
def style() -> Iterator[None]:
    """The publication style, inside a ``with`` block or as a decorator; nothing outside it changes.

    Every figure function uses it for figures it makes. Axes you make yourself keep their own fonts
    and ticks unless you make them inside this block.

    Examples
    --------
    >>> import matplotlib.pyplot as plt
    >>> import lesde
    >>> with lesde.plot.style():
    ...     figure, axes = plt.subplots(1, 2, figsize=(6.8, 2.4))
    >>> plt.close(figure)
    """
    settings: Any = SETTINGS  # a dictionary of settings by name; matplotlib types every name
    with mpl.rc_context(settings):
        yield


def palette(n_classes: int) -> list[str]:
    """Colours of K classes: Okabe and Ito's eight, again from the start beyond eight.

    Classes that share a colour differ in `class_marker` and `class_line`.
    """
    return [OKABE_ITO[k % len(OKABE_ITO)] for k in range(n_classes)]


def class_marker(k: int) -> str:
    """Marker of class k."""
    return MARKERS[k % len(MARKERS)]


def class_line(k: int) -> Any:
    """Line style of class k; it changes where the colours start again."""
    return LINES[(k // len(OKABE_ITO)) % len(LINES)]


def colours_of_rates(rates: Sequence[float] | np.ndarray) -> list[Any]:
    """Colours of learning rates, dark to light as they grow, evenly spaced by rank.

    The light end of the map is left out: it is too faint for a line on white paper.
    """
    ranks = np.argsort(np.argsort(np.asarray(rates)))
    at = ranks / max(1, len(ranks) - 1)
    return [tuple(colour) for colour in mpl.colormaps["viridis"](0.85 * at)]
