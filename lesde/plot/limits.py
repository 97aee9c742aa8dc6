"""Limits of an axis that shows curves with their bands."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes

__all__ = ["limit_to_bands"]

FAR = 4.0
"""How much farther than usual a band may reach and still be shown whole."""


def limit_to_bands(ax: Axes, values: np.ndarray, low: np.ndarray, high: np.ndarray) -> None:
    """Limits that hold curves and bands, but for the parts of a band that are far wider than usual."""
    known = np.isfinite(values)
    if not known.any():
        return
    values, low, high = values[known], low[known], high[known]
    reach = np.maximum(high - values, values - low)
    usual = float(np.median(reach[reach > 0])) if (reach > 0).any() else 0.0
    most = FAR * max(float(np.ptp(values)), usual)
    shown = reach <= most if most > 0 else np.ones(len(reach), bool)
    bottom = float(min(values.min(), low[shown].min(initial=np.inf)))
    top = float(max(values.max(), high[shown].max(initial=-np.inf)))
    least = 0.5 * max(abs(bottom), abs(top)) or 1.0
    middle, half = (bottom + top) / 2, 0.5 * max(1.1 * (top - bottom), least)
    ax.set_ylim(middle - half, middle + half)
