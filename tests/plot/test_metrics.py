"""NC panels: medians, bands, clocks, and what has no logarithm."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr
from matplotlib.colors import to_rgba

from lesde import plot
from lesde.plot.style import colours_of_rates
from tests.plot.conftest import band_edges, drawn_inside, legend_texts

TIMES = np.linspace(0, 4, 9)


def make_nc(rates=(0.1, 0.2), replicates=11, target=0.0):
    """nc1 = c_r e^{-t}, with c_r = 1, …, R times the learning rate: its quantiles are known."""
    c = np.arange(1.0, replicates + 1)
    h = np.ones(1) if rates is None else np.asarray(rates)
    values = h[:, None, None] * c[:, None] * np.exp(-TIMES)
    dims = ("learning_rate", "replicate", "time")
    nc = xr.Dataset(
        {
            "nc1": (dims, values, {"target": 0.0, "long_name": "first"}),
            "nc4": (dims, 1 - values / 1e3, {"target": 1.0}),
            "own": (dims, values**2, {"long_name": "A metric of one's own, in many words."}),
        },
        {"time": ("time", TIMES, {"long_name": "time"})},
    )
    if rates is None:
        return nc.isel(learning_rate=0)
    steps = np.rint(TIMES / h[:, None]).astype(int)
    return nc.assign_coords(
        learning_rate=h, iteration=(("learning_rate", "time"), steps, {"long_name": "iteration"})
    )


def test_lines_are_medians_and_bands_are_quantiles():
    (ax,) = plot.collapse(make_nc(), "nc1", spread=0.6)
    for line, band, h in zip(ax.get_lines(), ax.collections, (0.1, 0.2), strict=True):
        np.testing.assert_allclose(line.get_ydata(), h * 6 * np.exp(-TIMES))
        low, high = band_edges(band, TIMES)
        np.testing.assert_allclose(low, h * 3 * np.exp(-TIMES))
        np.testing.assert_allclose(high, h * 9 * np.exp(-TIMES))
    assert ax.get_yscale() == "log"
    assert legend_texts(ax) == ["0.1", "0.2"]
    assert ax.figure.legends[0].get_title().get_text() == "learning rate"
    assert [line.get_color() for line in ax.get_lines()] == colours_of_rates([0.1, 0.2])


def test_order_of_learning_rates_does_not_change_colours():
    straight = plot.collapse(make_nc((0.1, 0.2, 0.4)), "nc1")[0].get_lines()
    shuffled = plot.collapse(make_nc((0.4, 0.1, 0.2)), "nc1")[0].get_lines()
    for a, b in zip(straight, shuffled, strict=True):
        assert a.get_color() == b.get_color()
        np.testing.assert_allclose(a.get_ydata(), b.get_ydata())


def test_panels_against_iterations_and_distance_to_the_target():
    axes = plot.collapse(make_nc(), ["nc1", "nc4", "own"], against="iteration")
    np.testing.assert_allclose(axes[0].get_lines()[1].get_xdata(), np.rint(TIMES / 0.2))
    np.testing.assert_allclose(axes[1].get_lines()[0].get_ydata(), 6e-4 * np.exp(-TIMES))
    assert axes[1].get_ylabel() == "|NC4  agreement − 1|"
    assert axes[2].get_ylabel() == "A metric of one's own, in\nmany words"
    assert {ax.get_xlabel() for ax in axes} == {"iteration"}
    assert drawn_inside(axes[0].figure)


def test_without_learning_rate_or_replicate():
    nc = make_nc(rates=None, replicates=5)
    (ax,) = plot.collapse(nc, "nc1")
    np.testing.assert_allclose(ax.get_lines()[0].get_ydata(), 3 * np.exp(-TIMES))
    assert legend_texts(ax) == []
    (single,) = plot.collapse(nc.isel(replicate=1), "nc1")
    np.testing.assert_allclose(single.get_lines()[0].get_ydata(), 2 * np.exp(-TIMES))
    assert len(single.collections) == 0


def test_values_without_logarithm_are_left_out_and_the_axis_is_not_spoilt():
    nc = make_nc(rates=None)
    nc["nc1"] = nc.nc1.where(nc.time > 0, 0.0).where(nc.time != 1.0, np.inf)
    (ax,) = plot.collapse(nc, "nc1")
    drawn = ax.get_lines()[0].get_ydata()
    assert np.isnan(drawn[[0, 2]]).all()
    np.testing.assert_allclose(drawn[3:], 6 * np.exp(-TIMES[3:]))
    assert ax.get_ylim()[0] > 1e-3
    ax.figure.canvas.draw()


def test_a_metric_that_is_zero_throughout_gets_a_linear_axis():
    nc = make_nc()
    nc["nc1"] = 0 * nc.nc1
    (ax,) = plot.collapse(nc, "nc1")
    assert ax.get_yscale() == "linear"
    np.testing.assert_array_equal(ax.get_lines()[0].get_ydata(), 0)


def test_one_learning_rate_is_chosen_and_named():
    (ax,) = plot.collapse(make_nc(), "nc1", learning_rate=0.2)
    assert len(ax.get_lines()) == 1
    np.testing.assert_allclose(ax.get_lines()[0].get_ydata(), 1.2 * np.exp(-TIMES))
    assert legend_texts(ax) == ["0.2"]


def test_of_many_learning_rates_the_key_names_some_from_first_to_last():
    rates = np.geomspace(0.01, 1, 12)
    (ax,) = plot.collapse(make_nc(rates), "nc1")
    entries = legend_texts(ax)
    assert (entries[0], entries[-1], len(entries)) == ("0.01", "1", 8)
    drawn = {to_rgba(line.get_color()) for line in ax.get_lines()}
    keys = [to_rgba(line.get_color()) for line in ax.figure.legends[0].get_lines()]
    assert len(drawn) == 12
    assert len(set(keys)) == 8
    assert set(keys) <= drawn
    assert drawn_inside(ax.figure)


def test_default_is_what_the_dataset_holds():
    nc = make_nc()
    (only,) = plot.collapse(nc)  # has nc1 and no nc2_etf
    assert only.get_ylabel().startswith("NC1")
    both = plot.collapse(nc.assign(nc2_etf=nc.nc1))
    assert [ax.get_ylabel()[:3] for ax in both] == ["NC1", "NC2"]
    assert len(plot.collapse(nc.drop_vars("nc1"))) == 2
    with pytest.raises(ValueError, match=r"nc must hold .*nc1"):
        plot.collapse(nc.drop_vars(["nc1", "nc4", "own"]))


def test_a_metric_that_hardly_changes_spans_a_factor_of_two():
    nc = make_nc(rates=None)
    nc["nc1"] = 0.3 + 1e-4 * nc.nc1
    (ax,) = plot.collapse(nc)
    low, high = ax.get_ylim()
    assert high / low >= 2
    assert low < 0.3 < high


def test_panels_have_the_same_time_limits_whatever_they_leave_out():
    nc = make_nc()
    nc["own"] = nc.own.where(nc.time > 2, 0.0)
    for own in (None, plt.figure().subplots(1, 2)):
        axes = plot.collapse(nc, ["nc1", "own"], ax=own)
        assert axes[0].get_xlim() == axes[1].get_xlim()
        assert axes[0].get_xlim()[0] <= 0 < 4 <= axes[0].get_xlim()[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metrics": "nc9"}, r"nc must hold the variable\(s\) nc9, as lesde\.neural_collapse"),
        ({"metrics": []}, "metrics must name at least one"),
        ({"against": "epoch"}, "against must be one of 'time', 'iteration'"),
        ({"spread": 1.0}, r"spread must be a finite number in \(0, 1\)"),
        ({"learning_rate": 0.7}, r"learning_rate must be one of 0\.1, 0\.2"),
        ({"metrics": ["nc1", "own"], "ax": "left"}, "ax must be 2 matplotlib Axes"),
    ],
)
def test_refusals(change, message):
    with pytest.raises((TypeError, ValueError), match=message):
        plot.collapse(make_nc(), **{"metrics": "nc1", **change})


def test_refusals_of_datasets():
    with pytest.raises(ValueError, match="needs the coordinate iteration in nc"):
        plot.collapse(make_nc(rates=None), "nc1", against="iteration")
    with pytest.raises(ValueError, match="single frame"):
        plot.collapse(make_nc().isel(time=0), "nc1")
    with pytest.raises(ValueError, match=r"nc\.isel\(layer=0\)"):
        plot.collapse(make_nc().expand_dims(layer=2), "nc1")
