"""Figures of elasticity measured by impact: curves, matrices, distances."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr
from matplotlib.colors import to_hex

import lesde
from lesde import plot
from lesde.analysis import impact_from_changes
from tests.plot.conftest import band_edges, drawn_inside, legend_texts

TIMES = np.array([0.0, 0.5, 1.0, 2.0, 4.0])


def make_fit(K=3, rates=None, times=TIMES, seed=0):
    """Estimates with the names, dimensions and attributes of `lesde.fit_impact`."""
    rng = np.random.default_rng(seed)
    h = np.ones(1) if rates is None else np.asarray(rates)
    alpha = h[:, None] * (1 + times)
    parts = {"alpha": alpha, "beta": 0.3 * alpha, "alpha_minus_beta": 0.7 * alpha}
    data = {}
    for name, values in parts.items():
        for end, shift in (("", 0.0), ("_lower", -0.2), ("_upper", 0.3)):
            data[name + end] = (("learning_rate", "time"), values + shift)
    E = rng.normal(size=(len(h), len(times), K, K)) + 2 * np.eye(K)
    over = ("learning_rate", "time", "class", "class_")
    data |= {"E": (over, E), "E_lower": (over, E - 0.5), "E_upper": (over, E + 0.5)}
    data |= {"relative": (over, np.abs(E)), "explained": (over, E**2 / (1 + E**2))}
    fit = xr.Dataset(
        data,
        {
            "time": ("time", times, {"long_name": "time"}),
            "class": np.arange(K),
            "class_": np.arange(K),
        },
        {"confidence": 0.95},
    )
    return fit.isel(learning_rate=0) if rates is None else fit.assign_coords(learning_rate=h)


def test_curves_and_bands():
    fit = make_fit()
    axes = plot.impact(fit)
    assert axes.shape == (2,)
    curves = [line for line in axes[0].get_lines() if len(line.get_xdata()) == 5]
    for line, name in zip(curves, ("alpha", "beta"), strict=True):
        np.testing.assert_allclose(line.get_xdata(), TIMES)
        np.testing.assert_allclose(line.get_ydata(), fit[name])
    assert to_hex(curves[0].get_color()) != to_hex(curves[1].get_color())
    (difference,) = (line for line in axes[1].get_lines() if len(line.get_xdata()) == 5)
    np.testing.assert_allclose(difference.get_ydata(), fit.alpha_minus_beta)
    for band, name in zip(
        (*axes[0].collections, *axes[1].collections),
        ("alpha", "beta", "alpha_minus_beta"),
        strict=True,
    ):
        low, high = band_edges(band, TIMES)
        np.testing.assert_allclose(low, fit[f"{name}_lower"])
        np.testing.assert_allclose(high, fit[f"{name}_upper"])
    for ax in axes:
        low, high = ax.get_ylim()
        assert low < 0 < high
    assert len(legend_texts(axes[0])) == 3
    assert drawn_inside(axes[0].figure)


def test_a_wild_start_does_not_flatten_the_rest():
    fit = make_fit()
    for name in ("alpha", "beta", "alpha_minus_beta"):
        fit[name][0] = 300.0
        fit[f"{name}_lower"][0], fit[f"{name}_upper"][0] = -900.0, 900.0
    axes = plot.impact(fit)
    assert axes[0].get_ylim()[1] < 10
    assert axes[1].get_ylim()[1] < 10


def test_learning_rates():
    fit = make_fit(rates=[0.1, 0.2])
    axes = plot.impact(fit)
    curves = [line for line in axes[0].get_lines() if len(line.get_xdata()) == 5]
    assert len(curves) == 4
    assert curves[0].get_color() == curves[1].get_color() != curves[2].get_color()
    assert curves[0].get_linestyle() == "-" != curves[1].get_linestyle()
    one = plot.impact(fit, learning_rate=0.2)
    np.testing.assert_allclose(one[0].get_lines()[0].get_ydata(), fit.alpha.sel(learning_rate=0.2))
    assert drawn_inside(axes[0].figure)
    assert (
        plot.impact_matrix(fit, learning_rate=0.2)[0].figure.get_suptitle() == "learning rate 0.2"
    )


@pytest.mark.parametrize("K", [2, 4, 10])
def test_matrices_show_every_entry(K):
    fit = make_fit(K)
    axes = plot.impact_matrix(fit)
    axes[0].figure.canvas.draw()  # panels have their sizes from here on
    shown = [0, 1, 3, 4] if K <= 4 else [0, 4]
    assert len(axes) == len(shown)
    for ax, t in zip(axes, shown, strict=True):
        image = ax.get_images()[0]
        np.testing.assert_allclose(image.get_array(), fit.E[t])
        assert image.norm.vmin == -image.norm.vmax
        assert image.norm(0.0) == pytest.approx(0.5)
        assert ax.get_title() == f"t = {TIMES[t]:g}"
        texts = {t.get_position(): t.get_text() for t in ax.texts}
        assert len(texts) == K * K
        for k, l in np.ndindex(K, K):
            text = texts[(l, k)]
            value = float(fit.E[t, k, l])
            assert text.startswith("(") == (abs(value) <= 0.5), (text, value)
            assert float(text.strip("()").replace("−", "-")) == pytest.approx(value, abs=0.06)
            assert drawn_in_cell(ax, k, l)
    assert drawn_inside(axes[0].figure)
    labels = [ax.get_xlabel() for ax in axes]
    assert labels[-1] == "class drawn $l$"
    assert labels[0] == ""
    assert axes[0].get_ylabel() == "class moved $k$"


def drawn_in_cell(ax, k, l):
    """Whether the text of an entry is within its cell."""
    figure = ax.figure
    text = next(t for t in ax.texts if t.get_position() == (l, k))
    box = text.get_window_extent(figure.canvas.get_renderer())
    left, right = ax.transData.transform([(l - 0.5, k), (l + 0.5, k)])[:, 0]
    return box.width <= right - left


def test_the_scale_is_of_entries_that_are_told_from_zero():
    fit = make_fit(3)
    fit["E"][0, 0, 0], fit["E_lower"][0, 0, 0], fit["E_upper"][0, 0, 0] = 80.0, -50.0, 210.0
    axes = plot.impact_matrix(fit)
    assert axes[0].get_images()[0].norm.vmax < 6
    assert axes[0].texts[0].get_text() == "(80)"
    fit["E"][1, 1, 1] = np.nan
    assert any(t.get_text() == "–" for t in plot.impact_matrix(fit)[1].texts)


def test_three_panels_fit_in_two_columns():
    axes = plot.impact_matrix(make_fit(4), times=[0, 1, 4])
    assert len(axes) == 3
    figure = axes[0].figure
    figure.canvas.draw()
    for ax in axes:
        assert all(drawn_in_cell(ax, k, l) for k, l in np.ndindex(4, 4))
    assert drawn_inside(figure)


def test_other_matrices_times_and_axes():
    fit = make_fit(3)
    (one,) = plot.impact_matrix(fit, 0.9, "relative")
    np.testing.assert_allclose(one.get_images()[0].get_array(), fit.relative.sel(time=1.0))
    assert one.get_images()[0].norm.vmin == 0
    (still,) = plot.impact_matrix(fit.isel(time=2).drop_vars("time"), variable="explained")
    assert still.get_title() == ""
    with plot.style():
        figure, own = plt.subplots(1, 2)
    given = plot.impact_matrix(fit, [0, 4], ax=own)
    assert given[0].figure is figure
    with pytest.raises(ValueError, match="2 matplotlib Axes"):
        plot.impact_matrix(fit, [0, 4], ax=own[0])
    many = plot.impact_matrix(make_fit(20), [4.0])
    assert not many[0].texts  # nobody could read them
    assert drawn_inside(many[0].figure)


def make_strength(by="r2", times=None):
    x = np.array([[0.1, 1.0, 2.0, np.nan], [0.5, 1.1, 2.2, 4.0]])
    y = np.array([[2.0, 1.5, 1.0, np.nan], [-0.5, -0.3, -0.2, 0.0]])
    low, high = y - 0.2, y + 0.3
    low[1, 3] = high[1, 3] = np.nan  # an error that nobody can tell
    data = {"strength": y, "strength_lower": low, "strength_upper": high, "distance": x}
    if by != "r2":
        data["distance"] = x / 4
    result = xr.Dataset(
        {name: (("pair", "bin"), values) for name, values in data.items()},
        {"pair": ["same", "other"]},
        {"by": by},
    )
    result.distance.attrs["long_name"] = "squared distance of features"
    if times is not None:
        result = xr.concat([result * (1 + t) for t in times], xr.IndexVariable("time", times))
        result["distance"] = result.distance.isel(time=0)
        result.attrs["by"] = by
    return result


def test_strength_against_distance():
    strength = make_strength()
    kernel = lesde.FeatureKernel("s*2*exp(-r2/3) - (1-s)*exp(-r2/3)/2")
    ax = plot.impact_by_distance(strength, kernel)
    marked = [line for line in ax.get_lines() if line.get_marker() in ("o", "s")]
    filled = [line for line in marked if line.get_markerfacecolor() != "white"]
    np.testing.assert_allclose(filled[0].get_ydata(), [2.0, 1.5, 1.0])
    np.testing.assert_allclose(filled[1].get_xdata(), [0.5, 1.1, 2.2])
    (empty,) = (m for m in marked if m not in filled and len(m.get_xdata()))
    np.testing.assert_allclose(empty.get_ydata(), [0.0])
    lines = [line for line in ax.get_lines() if len(line.get_xdata()) == 200]
    x = lines[0].get_xdata()
    np.testing.assert_allclose(lines[0].get_ydata(), 2 * np.exp(-x / 3))
    np.testing.assert_allclose(lines[1].get_ydata(), -np.exp(-x / 3) / 2)
    bars = ax.collections[0].get_segments()
    np.testing.assert_allclose(bars[0], [[0.1, 1.8], [0.1, 2.3]])
    key = ax.figure.legends[0]
    assert legend_texts(ax) == ["same class", "other classes", "kernel, same", "kernel, other"]
    shown = [handle.get_color() for handle in key.legend_handles[2:]]
    assert shown == [line.get_color() for line in lines]
    assert ax.get_xlabel() == "squared distance of features"
    assert drawn_inside(ax.figure)


def test_a_bin_of_few_pairs_does_not_flatten_the_rest():
    strength = make_strength()
    low, high = plot.impact_by_distance(strength).get_ylim()
    strength["strength_lower"][1, 2], strength["strength_upper"][1, 2] = -30.0, 35.0
    assert plot.impact_by_distance(strength).get_ylim() == pytest.approx((low, high), abs=0.3)
    strength["strength"][1, 2] = 20.0
    assert plot.impact_by_distance(strength).get_ylim()[1] < 4
    kernel = lesde.FeatureKernel("2*exp(-r2/3)")
    ax = plot.impact_by_distance(strength, kernel)
    assert ax.get_ylim()[1] < 4


def test_times_and_scales_of_distance():
    strength = make_strength(times=[0.0, 1.0, 3.0])
    last = plot.impact_by_distance(strength)
    np.testing.assert_allclose(last.get_lines()[0].get_ydata(), [8.0, 6.0, 4.0])
    ax = plot.impact_by_distance(strength, time=0.9, scale="log")
    np.testing.assert_allclose(ax.get_lines()[0].get_ydata(), [4.0, 3.0, 2.0])
    assert ax.get_xscale() == "log"
    strength["distance"][0, 0] = 0.0
    assert len(plot.impact_by_distance(strength, scale="log").get_lines()[0].get_xdata()) == 2
    cosine = plot.impact_by_distance(make_strength("cosine"), lesde.FeatureKernel("1 + c"))
    line = next(line for line in cosine.get_lines() if len(line.get_xdata()) == 200)
    np.testing.assert_allclose(line.get_ydata(), 1 + line.get_xdata())


def test_what_the_calls_of_the_package_return():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 6)
    x = rng.normal(size=(2, 12, 2)) + labels[:, None]
    changes = 0.01 * (rng.normal(size=(2, 12, 12, 2)) + x[:, :, None])
    impact = impact_from_changes(
        changes, labels, x, labels, 0.01, features=x, by="r2", bins=3
    ).assign_coords(time=[0.0, 1.0])
    fit = lesde.fit_impact(impact)
    plot.impact(fit)
    plot.impact_matrix(fit)
    np.testing.assert_allclose(plot.elasticity(fit)[0, 0].get_lines()[0].get_ydata(), fit.A)
    strength = lesde.impact_by_distance(impact)
    ax = plot.impact_by_distance(strength)
    np.testing.assert_allclose(ax.get_lines()[0].get_ydata(), strength.strength[1, 0])
    assert drawn_inside(ax.figure)


def test_what_does_not_fit_is_refused():
    fit = make_fit()
    with pytest.raises(ValueError, match="over time"):
        plot.impact(fit.isel(time=0))
    with pytest.raises(ValueError, match="place"):
        plot.impact(fit.expand_dims("seed"))
    with pytest.raises(ValueError, match="variable must be one of"):
        plot.impact_matrix(fit, variable="A")
    with pytest.raises(ValueError, match="must lie within"):
        plot.impact_matrix(fit, 9.0)
    strength = make_strength()
    with pytest.raises(ValueError, match="depend on the distance shown alone"):
        plot.impact_by_distance(strength, lesde.FeatureKernel("g"))
    with pytest.raises(TypeError, match="FeatureKernel"):
        plot.impact_by_distance(strength, lesde.TwoLevel(1, 0))
    with pytest.raises(ValueError, match="scale must be one of"):
        plot.impact_by_distance(strength, scale="wide")
