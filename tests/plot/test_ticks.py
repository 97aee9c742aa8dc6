"""Ticks of logarithmic and centred axes: labels have room, and one notation, at any limits and size."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest

from lesde import plot
from lesde.plot.ticks import centred, tidy_log, widen_log
from tests.plot.conftest import apart, tick_label_boxes


def log_axes(low, high, size, which):
    with plot.style():
        ax = plt.figure(figsize=size).subplots()
    getattr(ax, f"set_{which}scale")("log")
    getattr(ax, f"set_{which}lim")(low, high)
    tidy_log(ax, which)
    return ax


def texts(ax, which):
    ax.figure.canvas.draw()
    axis = ax.xaxis if which == "x" else ax.yaxis
    low, high = sorted(axis.get_view_interval())
    return [t.label1.get_text() for t in axis.get_major_ticks() if low <= t.get_loc() <= high]


@pytest.mark.parametrize("which", ["x", "y"])
@pytest.mark.parametrize("size", [(1.4, 1.0), (2.0, 2.0), (3.4, 2.4), (7.0, 5.0)])
@pytest.mark.parametrize(
    ("low", "high"),
    [
        (2, 50), (1.8, 55), (0.25, 0.5), (0.29999, 0.30011), (1, 10), (3, 9), (0.9, 1.1), (11, 14),
        (1e-3, 1), (2e-6, 9e-6), (5e-5, 1.5e-3), (1e-16, 1), (1e-300, 1e-2), (0.4, 3e7), (12, 480),
    ],
)  # fmt: skip
def test_labels_do_not_touch_and_there_are_some(low, high, size, which):
    ax = log_axes(low, high, size, which)
    boxes = tick_label_boxes(ax, which)
    assert apart(boxes, which)
    assert len(boxes) >= (2 if size[0] >= 2 else 1)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (1.8, 55, ["2", "5", "10", "20", "50"]),
        (0.012, 1.1, ["0.02", "0.05", "0.1", "0.2", "0.5", "1"]),
        (0.25, 0.51, ["0.3", "0.4", "0.5"]),
        (4e-5, 1.5e-3, ["$10^{-4}$", "$10^{-3}$"]),
        (
            2e-6,
            2.2e-5,
            ["$2\\times10^{-6}$", "$5\\times10^{-6}$", "$10^{-5}$", "$2\\times10^{-5}$"],
        ),
    ],
)
def test_notation(low, high, expected):
    assert texts(log_axes(low, high, (3.4, 2.4), "y"), "y") == expected


def test_ticks_follow_limits_that_change_later():
    ax = log_axes(1, 1e9, (3.4, 2.4), "x")
    assert texts(ax, "x")[0] == "$10^{0}$"
    ax.set_xlim(1.8, 55)
    assert texts(ax, "x") == ["2", "5", "10", "20", "50"]


def test_a_nearly_constant_curve_gets_a_factor_of_two_and_others_keep_their_limits():
    ax = plt.figure().subplots()
    ax.plot([0, 1], [0.3, 0.3001])
    ax.set_yscale("log")
    widen_log(ax)
    low, high = ax.get_ylim()
    assert high / low >= 2
    assert np.sqrt(low * high) == pytest.approx(0.30005, rel=1e-6)
    ax.plot([0, 1], [0.01, 5.0])  # limits stay automatic
    assert ax.get_ylim()[0] < 0.01
    assert ax.get_ylim()[1] > 5
    before = ax.get_ylim()
    widen_log(ax)
    assert ax.get_ylim() == before


@pytest.mark.parametrize("width", [0.6, 1.0, 3.0])
@pytest.mark.parametrize("reach", [0.45, 1.7, 0.16, 3.6, 1.3e-4, 2.4e-7, 470.0, 8.2e5, 1e3, 1.99])
def test_centred_labels_do_not_touch(reach, width):
    with plot.style():
        figure = plt.figure(figsize=(width + 1, width + 1), layout="none")
        ax = figure.add_axes((0.5 / (width + 1), 0.3, width / (width + 1), 0.6))
    ax.set(xlim=(-reach, reach), ylim=(-reach, reach))
    ticks, labels = centred(reach / 1.12)
    assert 0.66 * reach / 1.12 < ticks[-1] <= reach
    ax.set_xticks(ticks, labels)
    ax.set_yticks(ticks, labels)
    for which in ("x", "y"):
        boxes = tick_label_boxes(ax, which)
        assert len(boxes) >= 1
        assert apart(boxes, which)
