"""Collapse rates against learning rates: points, bars, and the fitted power law."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import xarray as xr

from lesde import plot
from tests.plot.conftest import drawn_inside, legend_texts

H = np.array([0.01, 0.02, 0.05, 0.1])


def make_rates(h=H, exponent=True):
    """rate = 3 h^0.9 by iteration, 2 by time; nc2 has a rate that is not positive."""
    rate = np.stack([np.stack([0 * h + 2, 3 * h**0.9], -1), np.stack([0 * h - 1, h], -1)])
    dims = ("metric", "learning_rate", "clock")
    data = {
        "rate": (dims, rate),
        "rate_lower": (dims, 0.8 * rate),
        "rate_upper": (dims, 1.3 * rate),
    }
    if exponent:
        c = np.array([[0.0, 0.9], [np.nan, 1.0]])
        for end, shift in (("", 0), ("_lower", -0.1), ("_upper", 0.1)):
            data[f"learning_rate_exponent{end}"] = (("metric", "clock"), c + shift)
    coords = {"metric": ["nc1", "nc2_etf"], "learning_rate": h, "clock": ["time", "iteration"]}
    return xr.Dataset(data, coords)


def test_points_bars_and_line():
    ax = plot.collapse_rate(make_rates().isel(learning_rate=[2, 0, 3, 1]), clock="iteration")
    points, _, (bars,) = ax.containers[0].lines
    np.testing.assert_allclose(points.get_xdata(), H)
    np.testing.assert_allclose(points.get_ydata(), 3 * H**0.9)
    ends = np.array([segment[:, 1] for segment in bars.get_segments()])
    np.testing.assert_allclose(ends, np.outer(3 * H**0.9, [0.8, 1.3]))
    fitted = next(line for line in ax.get_lines() if line.get_linestyle() == "--")
    np.testing.assert_allclose(fitted.get_ydata(), 3 * H**0.9)
    assert legend_texts(ax) == ["NC1: slope 0.9 [0.8, 1]"]
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    assert ax.get_ylabel() == "collapse rate per iteration"
    assert ax.get_xlabel() == "learning rate"
    ax.figure.canvas.draw()
    assert [t.get_text() for t in ax.get_xticklabels()] == ["0.01", "0.02", "0.05", "0.1"]
    assert drawn_inside(ax.figure)


def test_clock_by_default_is_the_first_and_nearly_equal_rates_get_readable_ticks():
    ax = plot.collapse_rate(make_rates())
    np.testing.assert_allclose(ax.containers[0].lines[0].get_ydata(), 2)
    assert ax.get_ylabel() == "collapse rate per unit of time"
    ax.figure.canvas.draw()
    bottom, top = ax.get_ylim()
    assert sum(bottom <= v <= top for v in ax.get_yticks()) >= 2


def test_several_metrics_and_rates_without_logarithm():
    ax = plot.collapse_rate(make_rates(), ["nc1", "nc2_etf"], clock="iteration")
    assert len(ax.containers) == 2
    mixed = make_rates()
    mixed["rate"][0, 1, 1] = -0.5
    ax = plot.collapse_rate(mixed, clock="iteration")
    np.testing.assert_allclose(ax.containers[0].lines[0].get_xdata(), np.delete(H, 1))


def test_a_lower_limit_below_zero_reaches_the_bottom_but_does_not_set_it():
    rates = make_rates()
    rates["rate_lower"][0, 0, 1] = -1.0
    ax = plot.collapse_rate(rates, clock="iteration")
    segment = ax.containers[0].lines[2][0].get_segments()[0]
    assert 0 < segment[0, 1] < 1e-100 or segment[0, 1] < ax.get_ylim()[0]
    assert ax.get_ylim()[0] > 0.01
    ax.figure.canvas.draw()


def test_no_line_without_an_exponent():
    ax = plot.collapse_rate(make_rates(H[:2], exponent=False), clock="iteration")
    assert not [line for line in ax.get_lines() if line.get_linestyle() == "--"]
    assert legend_texts(ax) == ["NC1"]


def test_labels_of_many_learning_rates_do_not_collide():
    h = np.geomspace(0.01, 0.2, 40)
    ax = plot.collapse_rate(make_rates(h), clock="iteration")
    ax.figure.canvas.draw()
    boxes = [t.get_window_extent() for t in ax.get_xticklabels() if t.get_text()]
    assert len(boxes) >= 4
    assert all(a.x1 < b.x0 for a, b in itertools.pairwise(boxes))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metric": "nc2"}, "metric must be one of 'nc1', 'nc2_etf'; got 'nc2'. Did you mean"),
        ({"metric": []}, "metric must name at least one"),
        ({"clock": "epoch"}, "clock must be one of 'time', 'iteration'"),
        ({"metric": "nc2_etf"}, "positive rate of nc2_etf"),
    ],
)
def test_refusals(change, message):
    with pytest.raises(ValueError, match=message):
        plot.collapse_rate(make_rates(), **change)


def test_refusals_of_datasets():
    with pytest.raises(ValueError, match=r"rates must hold .* lesde\.convergence"):
        plot.collapse_rate(make_rates().drop_vars("rate"))
    with pytest.raises(ValueError, match="of several learning rates"):
        plot.collapse_rate(make_rates().isel(learning_rate=0, drop=True))
