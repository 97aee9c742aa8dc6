"""Probability curves: counts with bands, predictions and their bounds, failures on a log axis."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr
from matplotlib.colors import to_rgb

from lesde import plot
from tests.plot.conftest import band_edges, drawn_inside, legend_texts, line_named

TIMES = np.linspace(0, 3, 7)


def make_prob(n_classes=2, rates=None):
    h = np.ones(1) if rates is None else np.asarray(rates)
    p = 1 - np.exp(-h[:, None] * TIMES)
    p[:, -1] = 1.0
    pairs = np.sqrt(p)[..., None, None] * np.where(np.eye(n_classes), np.nan, 1.0)
    one, two = ("learning_rate", "time"), ("learning_rate", "time", "class", "class_")
    data = xr.Dataset(
        {
            "probability": (one, p),
            "lower": (one, 0.9 * p),
            "upper": (one, 1 - 0.8 * (1 - p)),
            "pairwise": (two, pairs),
            "pairwise_lower": (two, 0.9 * pairs),
            "pairwise_upper": (two, 1 - 0.8 * (1 - pairs)),
            "trials": ((), 50),
        },
        {"time": ("time", TIMES, {"long_name": "time"})},
        {"confidence": 0.9},
    )
    return data.isel(learning_rate=0) if rates is None else data.assign_coords(learning_rate=h)


def make_prediction(n_classes=2):
    log_failure = -5.0 * TIMES - 0.1
    pairs = log_failure[:, None, None] * np.where(np.eye(n_classes), np.nan, 1.0)
    number = n_classes * (n_classes - 1) / 2
    exact = -np.expm1(log_failure) if n_classes == 2 else np.full(len(TIMES), np.nan)
    total = np.minimum(log_failure + np.log(number), 0)
    return xr.Dataset(
        {
            "pairwise": (("time", "class", "class_"), -np.expm1(pairs)),
            "log_failure": (("time", "class", "class_"), pairs),
            "probability": ("time", exact),
            "lower": ("time", -np.expm1(total)),
            "upper": ("time", -np.expm1(log_failure)),
            "log_failure_lower": ("time", log_failure),
            "log_failure_upper": ("time", total),
        },
        {"time": TIMES},
    )


def counted(ax):
    return [line for line in ax.get_lines() if line.get_marker() == "."]


def test_curve_and_band_are_those_of_the_dataset():
    prob = make_prob()
    ax = plot.probability(prob, make_prediction())
    np.testing.assert_allclose(counted(ax)[0].get_ydata(), prob.probability)
    low, high = band_edges(ax.collections[0], TIMES)
    np.testing.assert_allclose(low, prob.lower)
    np.testing.assert_allclose(high, prob.upper)
    np.testing.assert_allclose(
        line_named(ax, "exact law").get_ydata(), make_prediction().probability
    )
    assert legend_texts(ax) == ["counted", "90% interval", "exact law"]
    assert ax.get_ylabel() == "P(separated)"
    assert ax.get_xlabel() == "time"
    assert drawn_inside(ax.figure)


def test_learning_rates_have_a_curve_each():
    prob = make_prob(rates=[0.5, 1.0, 2.0])
    ax = plot.probability(prob, make_prediction())
    for line, h in zip(counted(ax), (0.5, 1.0, 2.0), strict=True):
        np.testing.assert_allclose(line.get_ydata(), prob.probability.sel(learning_rate=h))
    assert legend_texts(ax)[-3:] == ["learning rate 0.5", "1", "2"]
    one = plot.probability(prob, learning_rate=2.0)
    np.testing.assert_allclose(counted(one)[0].get_ydata(), prob.probability.sel(learning_rate=2.0))


def test_more_classes_have_bounds_and_a_pair_has_a_line():
    prob, prediction = make_prob(4), make_prediction(4)
    ax = plot.probability(prob, prediction)
    low, high = band_edges(ax.collections[1], TIMES)
    np.testing.assert_allclose(low, prediction.lower, atol=1e-12)
    np.testing.assert_allclose(high, prediction.upper)
    assert "bounds of exact law" in legend_texts(ax)
    # The key has the edges of the bounds, and these leave a counted curve below them in sight.
    key = next(p for p in ax.figure.legends[0].get_patches() if p.get_hatch())
    bounds = [line for line in ax.get_lines() if line.get_color() == "#000000"]
    assert len(bounds) == 2
    assert all(key.get_linewidth() == line.get_linewidth() > 0 for line in bounds)
    colour = counted(ax)[0].get_color()
    widest = max(line.get_linewidth() for line in ax.get_lines() if line.get_color() == colour)
    assert all(widest > 2 * line.get_linewidth() for line in bounds)
    pair = plot.probability(prob, prediction, pair=(0, 3))
    np.testing.assert_allclose(counted(pair)[0].get_ydata(), prob.pairwise[:, 0, 3])
    low, high = band_edges(pair.collections[0], TIMES)
    np.testing.assert_allclose(low, prob.pairwise_lower[:, 0, 3])
    np.testing.assert_allclose(
        line_named(pair, "exact law").get_ydata(), prediction.pairwise[:, 0, 3]
    )
    assert pair.get_ylabel() == "P(0, 3 separated)"


def test_failures_come_from_the_logarithm_and_turn_the_band_round():
    prob, prediction = make_prob(), make_prediction()
    prediction["log_failure_lower"] = prediction.log_failure_lower * 4
    prediction["log_failure_upper"] = prediction.log_failure_upper * 4
    ax = plot.probability(prob, prediction, failure=True)
    drawn = counted(ax)[0].get_ydata()
    np.testing.assert_allclose(drawn[:-1], 1 - prob.probability[:-1])
    assert np.isnan(drawn[-1])  # none failed: no point on a logarithmic axis
    low, high = band_edges(ax.collections[0], TIMES)
    np.testing.assert_allclose(high, 1 - prob.lower)
    np.testing.assert_allclose(low[:-1], 1 - prob.upper[:-1])
    assert 0 < low[-1] < 1e-200
    # 1 − probability is 0 in floating point at the end; its logarithm is not lost.
    line = line_named(ax, "exact law").get_ydata()
    np.testing.assert_allclose(np.log(line), -20 * TIMES - 0.4)
    assert line[-1] < 1e-26
    assert ax.get_yscale() == "log"
    assert ax.get_ylim()[0] == pytest.approx(1e-6)
    ax.figure.canvas.draw()


def test_failure_axis_ends_where_counts_or_predictions_do():
    counts = plot.probability(make_prob(), failure=True)
    assert counts.get_ylim()[0] == pytest.approx(0.3 / 50)
    both = plot.probability(make_prob(), make_prediction(), failure=True)
    assert both.get_ylim()[0] == pytest.approx(1e-6)


def test_failure_bounds_of_more_classes():
    prediction = make_prediction(4)
    ax = plot.probability(make_prob(4), prediction, failure=True)
    low, high = band_edges(ax.collections[1], TIMES)
    np.testing.assert_allclose(low, np.exp(prediction.log_failure_lower))
    np.testing.assert_allclose(high, np.exp(prediction.log_failure_upper))
    pair = plot.probability(make_prob(4), prediction, pair=(1, 2), failure=True)
    np.testing.assert_allclose(
        line_named(pair, "exact law").get_ydata(), np.exp(prediction.log_failure[:, 1, 2])
    )


def test_every_one_of_coinciding_curves_is_seen():
    prob = make_prob(rates=[0.5, 1.0, 2.0, 4.0])
    prob["probability"][:] = prob.probability.isel(learning_rate=1).values
    ax = plot.probability(prob)
    ax.figure.canvas.draw()
    shown = np.asarray(ax.figure.canvas.buffer_rgba())[..., :3].astype(int)
    box = ax.get_window_extent()
    height = shown.shape[0]
    inside = shown[height - int(box.y1) : height - int(box.y0), int(box.x0) : int(box.x1)]
    for line in counted(ax):
        colour = np.round(255 * np.array(to_rgb(line.get_color())))
        assert (np.abs(inside - colour).sum(-1) < 24).sum() > 20


def test_values_between_what_has_no_logarithm_keep_their_markers():
    prob = make_prob(rates=[0.5, 1.0])
    prob["probability"][0] = [1.0, 0.5, 1.0, 0.4, 0.3, 1.0, 0.2]
    lines = counted(plot.probability(prob, failure=True))
    drawn = np.isfinite(lines[0].get_ydata())
    assert drawn.tolist() == [False, True, False, True, True, False, True]
    assert all(line.get_markevery() is None for line in lines)


def test_own_axes():
    ax = plt.figure().subplots()
    assert plot.probability(make_prob(), ax=ax) is ax


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pair": (0, 2)}, "pair must be two different classes from 0 to 1"),
        ({"pair": (1, 1)}, "pair must be two different classes"),
        ({"pair": 1}, r"pair must be two classes \(k, l\)"),
        (
            {"prediction": make_prob().drop_vars("lower")},
            r"prediction .* lesde\.predict_separation",
        ),
        ({"prediction": make_prob(), "failure": True}, "log_failure_lower"),
    ],
)
def test_refusals(change, message):
    with pytest.raises((TypeError, ValueError), match=message):
        plot.probability(make_prob(), **change)


def test_refusals_of_datasets():
    with pytest.raises(ValueError, match=r"prob must hold .* lesde\.separation_probability"):
        plot.probability(make_prob().drop_vars("upper"))
    with pytest.raises(ValueError, match=r"prob\.isel\(criterion=0\)"):
        plot.probability(make_prob().expand_dims(criterion=2))
