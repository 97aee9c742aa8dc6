"""The key of the figure of learning rates: every kind of point that is shown, and no other."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from matplotlib.colors import to_hex

from lesde import plot
from tests.plot.conftest import drawn_inside

RATES = np.array([0.01, 0.02, 0.04])


def comparison(inside):
    """The variables of `compare_learning_rates` that the figure needs, of one model, quantity and metric."""
    over = ("model", "quantity", "metric", "learning_rate")
    one = np.ones((1, 1, 1, 3))
    data = {"inside": (over, np.reshape(inside, one.shape))}
    for name, dims in (("network", over[1:]), ("predicted", over)):
        values = one[0] if name == "network" else one
        for end, factor in (("", 1.0), ("_lower", 0.8), ("_upper", 1.3)):
            data[name + end] = (dims, factor * values)
    for end in ("lowest", "highest"):
        data[f"range_{end}"] = (over[:-1], np.full((1, 1, 1), np.nan))
    return xr.Dataset(
        data,
        {
            "model": ["L-model"],
            "quantity": ["value"],
            "metric": ["nc1"],
            "learning_rate": RATES,
            "kernel": "fitted",
        },
    )


@pytest.mark.parametrize(
    ("inside", "wanted"),
    [
        ([True, True, True], {"networks": False}),
        ([True, False, True], {"networks": False, "networks in no interval": True}),
    ],
)
def test_open_points_are_in_the_key(inside, wanted):
    axes = plot.learning_rate_range(comparison(inside))
    key = axes[0, 0].figure.legends[0]
    entries = {
        text.get_text(): to_hex(handle.get_markerfacecolor()) == "#ffffff"
        for text, handle in zip(key.get_texts(), key.legend_handles, strict=True)
        if hasattr(handle, "get_markerfacecolor")
    }
    assert entries == wanted
    points = [c.lines[0] for c in axes[0, 0].containers]
    shown = {to_hex(p.get_markerfacecolor()) == "#ffffff" for p in points if len(p.get_xdata())}
    assert shown == set(wanted.values())
    assert drawn_inside(axes[0, 0].figure)
