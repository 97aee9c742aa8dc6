"""Metrics against depth and against time: medians, bands, splits, names, and what has no logarithm."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr

from lesde import plot
from lesde.plot.layers import short_names
from lesde.plot.style import colours_of_rates
from tests.plot.conftest import apart, band_edges, drawn_inside, legend_texts, tick_label_boxes

TIMES = np.array([0.0, 0.5, 2.0, 4.0, 9.0, 20.0])
LONG = [f"features.stage{i}.block{i}.activation_function" for i in range(1, 8)] + ["penultimate"]


def make(
    names=("activation1", "penultimate"), replicates=11, splits=("train", "held_out"), rates=None
):
    """cdnv = c (1 + s) / (1 + l) e^{-t/10} with c = 1, …, R: medians and quantiles are known."""
    L, S = len(names), max(1, len(splits))
    l = np.arange(L)[:, None, None, None]
    s = np.arange(S)[:, None, None]
    c = np.arange(1.0, replicates + 1)[:, None]
    values = c * (1 + s) / (1 + l) * np.exp(-TIMES / 10)
    dims = ("layer", "split", "replicate", "time")
    result = xr.Dataset(
        {
            "nc1_cdnv": (dims, values, {"target": 0.0}),
            "ncc_accuracy": (dims, 1 - values / 50, {"target": 1.0}),
            "nc4": (dims[1:], np.ones(values.shape[1:])),
        },
        {
            "layer": list(names),
            "split": list(splits) or ["all"],
            "time": ("time", TIMES, {"long_name": "time"}),
        },
    )
    if rates is not None:
        result = xr.concat(
            [result * h for h in rates], xr.IndexVariable("learning_rate", list(rates))
        )
        steps = np.rint(TIMES / np.array(rates)[:, None]).astype(int)
        result = result.assign_coords(iteration=(("learning_rate", "time"), steps))
        result["nc1_cdnv"].attrs["target"] = 0.0
    return result if splits else result.isel(split=0, drop=True)


def test_lines_are_medians_and_bands_quantiles_over_depth():
    ax = plot.layers(make(list("abcd")), "nc1_cdnv", times=[0, 20], spread=0.6)
    lines, bands = ax.get_lines(), ax.collections
    assert len(lines) == len(bands) == 4
    at = [(t, s) for t in (0.0, 20.0) for s in (1, 2)]
    for line, band, (t, s) in zip(lines, bands, at, strict=True):
        unit = s / np.arange(1, 5) * np.exp(-t / 10)
        np.testing.assert_allclose(line.get_ydata(), 6 * unit)
        low, high = band_edges(band, np.arange(4))
        np.testing.assert_allclose(low, 3 * unit)
        np.testing.assert_allclose(high, 9 * unit)
        assert line.get_linestyle() == ("-" if s == 1 else "--")
    assert [lines[0].get_color(), lines[2].get_color()] == colours_of_rates([0, 1])
    assert lines[0].get_color() == lines[1].get_color()
    assert ax.get_yscale() == "log"
    assert legend_texts(ax) == ["train", "held out", "time 0", "20"]
    assert [t.get_text() for t in ax.get_xticklabels()] == list("abcd")
    assert drawn_inside(ax.figure)


def test_an_accuracy_has_a_linear_axis():
    ax = plot.layers(make())
    assert ax.get_yscale() == "linear"
    assert ax.get_ylabel() == "nearest-centre accuracy"
    assert len(ax.get_lines()) == 8  # four times, two splits
    assert legend_texts(ax)[2:] == ["time 0", "2", "4", "20"]
    np.testing.assert_allclose(ax.get_lines()[0].get_ydata(), 1 - np.array([6, 3]) / 50)


def test_lines_over_time_for_every_layer():
    ax = plot.layers_over_time(make(list("abc")), "nc1_cdnv")
    lines = ax.get_lines()
    at = [(l, s) for l in range(3) for s in (1, 2)]
    for line, (l, s) in zip(lines, at, strict=True):
        np.testing.assert_allclose(line.get_xdata(), TIMES)
        np.testing.assert_allclose(line.get_ydata(), 6 * s / (1 + l) * np.exp(-TIMES / 10))
    assert [line.get_color() for line in lines[::2]] == colours_of_rates([0, 1, 2])
    assert legend_texts(ax) == ["train", "held out", "a", "b", "c"]
    assert len(ax.collections) == 6
    assert drawn_inside(ax.figure)


def test_one_replicate_has_no_band_and_one_layer_is_drawn():
    single = make(replicates=1)
    assert len(plot.layers(single).collections) == 0
    assert len(plot.layers_over_time(single).collections) == 0
    for ax in (plot.layers(make(["only"]), "nc1_cdnv"), plot.layers(make(["only"], 1), "nc1_cdnv")):
        assert len(ax.get_lines()) == 8
        assert drawn_inside(ax.figure)
    ax = plot.layers_over_time(make(["only"]), "nc1_cdnv")
    assert legend_texts(ax) == ["train", "held out"]


def test_without_splits_replicates_or_times():
    bare = make(splits=())
    assert legend_texts(plot.layers(bare, times=[0, 4])) == ["0", "4"]
    one = bare.isel(replicate=2, time=-1, drop=True)
    ax = plot.layers(one, "nc1_cdnv")
    np.testing.assert_allclose(ax.get_lines()[0].get_ydata(), 3 / np.array([1, 2]) * np.exp(-2))
    assert legend_texts(ax) == []


def test_values_without_logarithm_are_left_out():
    result = make(list("abc"))
    result["nc1_cdnv"] = result.nc1_cdnv.where(result.layer != "b", 0.0).where(
        result.layer != "c", np.inf
    )
    result.nc1_cdnv.attrs["target"] = 0.0
    ax = plot.layers(result, "nc1_cdnv")
    assert np.isnan(ax.get_lines()[0].get_ydata()[1:]).all()
    assert ax.get_ylim()[0] > 0.1
    ax.figure.canvas.draw()
    zeros = result.assign(nc1_cdnv=0 * make(list("abc")).nc1_cdnv)
    for figure in (plot.layers, plot.layers_over_time):
        ax = figure(zeros, "nc1_cdnv")
        assert ax.get_yscale() == "linear"
        ax.figure.canvas.draw()


@pytest.mark.parametrize("names", [LONG, LONG[:2], [f"layer{i:02d}" for i in range(40)]])
@pytest.mark.parametrize("replicates", [1, 5])
def test_names_have_room(names, replicates):
    ax = plot.layers(make(names, replicates), "nc1_cdnv")
    assert drawn_inside(ax.figure)
    ticks = [t for t in ax.get_xticklabels() if t.get_text()]
    angle = np.radians(ticks[0].get_rotation())
    gap = np.diff(ax.transData.transform([[x, 1] for x in ax.get_xticks()])[:, 0])
    height = ticks[0].get_fontsize() * ax.figure.dpi / 72
    if angle:  # slanted lines of text are apart by what is between them across their slant
        assert (gap * np.sin(angle) > height).all()
    else:
        assert apart(tick_label_boxes(ax, "x"), "x")
    assert ax.get_window_extent().height > 0.8 * ax.figure.dpi
    over = plot.layers_over_time(make(names, replicates), "nc1_cdnv")
    assert drawn_inside(over.figure)
    assert over.get_window_extent().height > 0.8 * over.figure.dpi
    assert legend_texts(over)[:2] == ["train", "held out"]
    assert len(legend_texts(over)) == 2 + min(len(names), 8)


def test_short_names_can_be_told_apart():
    assert short_names(["a", "activation1"]) == ["a", "activation1"]
    found = short_names(LONG)
    assert found[0] == "…1.activation_function"
    assert found[-1] == "penultimate"
    assert len(set(found)) == len(LONG)
    (cut,) = short_names(["encoder.layer.11.output.LayerNorm"])
    assert len(cut) == 22
    assert cut == "…r.11.output.LayerNorm"
    alike = ["x" * 30 + str(i) + "y" * 30 for i in range(3)]
    assert short_names(alike) == alike


def test_learning_rate_and_iterations():
    result = make(rates=(0.1, 0.5))
    ax = plot.layers(result, "nc1_cdnv", learning_rate=0.5, times=0)
    np.testing.assert_allclose(ax.get_lines()[0].get_ydata(), [3, 1.5])
    assert ax.get_title() == "learning rate 0.5"
    over = plot.layers_over_time(result, "nc1_cdnv", against="iteration", learning_rate=0.5)
    np.testing.assert_allclose(over.get_lines()[0].get_xdata(), np.rint(TIMES / 0.5))
    assert over.get_xlabel() == "iteration"
    assert plot.layers(result, "nc1_cdnv").get_title() == "learning rate 0.1"


def test_given_axes_are_used_and_keep_their_size():
    with plot.style():
        figure, axes = plt.subplots(1, 2, figsize=(6.8, 2.6))
    before = figure.get_size_inches().tolist()
    assert plot.layers(make(LONG), ax=axes[0]) is axes[0]
    assert plot.layers_over_time(make(LONG[:3]), ax=axes[1]) is axes[1]
    assert figure.get_size_inches().tolist() == before
    figure.canvas.draw()


def test_metrics_of_the_classifier_go_to_the_other_figure():
    with pytest.raises(
        ValueError, match=r"nc4 must have the dimension 'layer'.*lesde\.plot\.collapse"
    ):
        plot.layers(make(), "nc4")
    nc = make(splits=(), replicates=3)
    (ax,) = plot.collapse(nc.isel(layer=0), "ncc_accuracy")
    assert ax.get_ylabel() == "|nearest-centre accuracy − 1|"
    np.testing.assert_allclose(ax.get_lines()[0].get_ydata(), 2 / 50 * np.exp(-TIMES / 10))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metric": "nc9"}, r"result must hold the variable\(s\) nc9, as lesde\.layer_collapse"),
        ({"times": 50.0}, "times must lie within those of the paths, 0 to 20"),
        ({"spread": 0.0}, r"spread must be a finite number in \(0, 1\)"),
        ({"learning_rate": 0.7}, "has no coordinate 'learning_rate'"),
        ({"ax": "left"}, "ax must be one matplotlib Axes"),
    ],
)
def test_refusals(change, message):
    with pytest.raises((TypeError, ValueError), match=message):
        plot.layers(make(), **change)


def test_refusals_of_datasets():
    with pytest.raises(ValueError, match="against must be one of 'time', 'iteration'"):
        plot.layers_over_time(make(), against="epoch")
    with pytest.raises(ValueError, match="needs the coordinate iteration in result"):
        plot.layers_over_time(make(), against="iteration")
    frame = make().isel(time=0)
    with pytest.raises(ValueError, match="single frame"):
        plot.layers_over_time(frame)
    with pytest.raises(ValueError, match="times chooses among several"):
        plot.layers(frame, times=0)
    with pytest.raises(ValueError, match=r"result\.isel\(epoch=0\)"):
        plot.layers(make().expand_dims(epoch=2))
