"""Elasticity panels: estimates, bands, and truths from kernels, models and datasets."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr
from matplotlib.colors import to_hex

import lesde
from lesde import plot
from lesde.plot.elasticities import true_elasticity
from tests.plot.conftest import band_edges, drawn_inside, legend_texts

TIMES = np.linspace(0.5, 4.5, 9)
MIDDLE = (TIMES[1:] + TIMES[:-1]) / 2
NAMES = ("A", "B", "alpha", "beta")


def make_fit(rates=None, n_classes=3):
    h = np.ones(1) if rates is None else np.asarray(rates)
    data = {}
    for i, (name, dim, x) in enumerate(
        (
            ("A", "time", TIMES),
            ("B", "time", TIMES),
            ("alpha", "interval", MIDDLE),
            ("beta", "interval", MIDDLE),
        )
    ):
        values = h[:, None] * (i + 1) * np.sin(x)
        for end, shift in (("", 0.0), ("_lower", -0.1 * x), ("_upper", 0.2 * x)):
            data[name + end] = (("learning_rate", dim), values + shift)
        data[f"{name}_se"] = (("learning_rate", dim), 0.05 * x + 0 * values)
    fit = xr.Dataset(
        data,
        {
            "time": ("time", TIMES, {"long_name": "time"}),
            "interval": MIDDLE,
            "count": ("class", np.full(n_classes, 10)),
        },
        {"confidence": 0.9},
    )
    return fit.isel(learning_rate=0) if rates is None else fit.assign_coords(learning_rate=h)


def test_panels_show_estimates_and_bands():
    fit = make_fit()
    axes = plot.elasticity(fit)
    assert axes.shape == (2, 2)
    for ax, name in zip(axes.ravel(), NAMES, strict=True):
        x = fit[fit[name].dims[0]]
        (line,) = ax.get_lines()
        np.testing.assert_allclose(line.get_xdata(), x)
        np.testing.assert_allclose(line.get_ydata(), fit[name])
        low, high = band_edges(ax.collections[0], x.values)
        np.testing.assert_allclose(low, fit[f"{name}_lower"])
        np.testing.assert_allclose(high, fit[f"{name}_upper"])
        assert ax.get_ylabel()
        assert ax.get_xlabel() == "time"
    assert legend_texts(axes[0, 0]) == ["within class", "between classes", "90% band"]
    colours = [ax.get_lines()[0].get_color() for ax in axes.ravel()]
    assert colours[0] == colours[2] != colours[1] == colours[3]
    assert drawn_inside(axes[0, 0].figure)


def test_learning_rates_are_coloured_and_can_be_chosen():
    fit = make_fit([0.1, 0.2, 0.4])
    axes = plot.elasticity(fit)
    for ax, name in zip(axes.ravel(), NAMES, strict=True):
        for line, h in zip(ax.get_lines(), (0.1, 0.2, 0.4), strict=True):
            np.testing.assert_allclose(line.get_ydata(), fit[name].sel(learning_rate=h))
    assert legend_texts(axes[0, 0])[-3:] == ["learning rate 0.1", "0.2", "0.4"]
    one = plot.elasticity(fit, learning_rate=0.2)
    np.testing.assert_allclose(
        one[1, 1].get_lines()[0].get_ydata(), fit.beta.sel(learning_rate=0.2)
    )
    assert one[0, 0].figure.legends[0].get_title().get_text() == "learning rate 0.2"


def test_what_is_not_identified_is_not_drawn_and_wide_bands_are_cut():
    fit = make_fit()
    fit["alpha_lower"][3], fit["alpha_upper"][3] = -np.inf, np.inf
    fit["beta_upper"][0] = 1e6
    axes = plot.elasticity(fit)
    drawn = axes[1, 0].get_lines()[0].get_ydata()
    assert np.isnan(drawn[3])
    assert np.isfinite(np.delete(drawn, 3)).all()
    bottom, top = axes[1, 1].get_ylim()
    size = float(fit.beta.max() - fit.beta.min())
    assert top <= float(fit.beta.max()) + size + 1e-9
    assert bottom < float(fit.beta.min())
    axes[0, 0].figure.canvas.draw()


def unknown(fit, name, at):
    for end, value in (("lower", -np.inf), ("upper", np.inf), ("se", np.inf)):
        fit[f"{name}_{end}"][at] = value


def notes(ax):
    return [text.get_text() for text in ax.texts]


def test_panels_say_what_is_not_identified():
    fit = make_fit()
    unknown(fit, "A", slice(1, None))
    unknown(fit, "B", slice(4, None))
    unknown(fit, "beta", [2, 5])
    axes = plot.elasticity(fit).ravel()
    wanted = [
        ["not identified"],
        ["not identified\nat some times"],
        [],
        ["not identified\nat some times"],
    ]
    assert [notes(ax) for ax in axes] == wanted
    assert all(text.get_fontsize() < 8 for ax in axes for text in ax.texts)
    both = make_fit([0.1, 0.2, 0.4])
    unknown(both, "A", (1, slice(4, None)))
    unknown(both, "B", (slice(None), slice(1, None)))
    for end in ("lower", "upper", "se"):
        both[f"alpha_{end}"][:2] = np.inf
    axes = plot.elasticity(both).ravel()
    assert notes(axes[0]) == ["not identified\n(1 of 3 learning rates)"]
    assert notes(axes[1]) == ["not identified\n(3 of 3 learning rates)"]
    assert notes(axes[2]) == ["not identified\n(2 of 3 learning rates)"]
    axes[0].figure.canvas.draw()
    for ax in axes:
        for text in ax.texts:
            assert text.get_window_extent().x0 > ax.bbox.x0


def test_a_wild_point_does_not_flatten_the_rest():
    fit = make_fit()
    before = [ax.get_ylim() for ax in plot.elasticity(fit).ravel()]
    for name in ("B", "alpha"):
        fit[name][3], fit[f"{name}_lower"][3], fit[f"{name}_upper"][3] = 500.0, -2e3, 3e3
    after = [ax.get_ylim() for ax in plot.elasticity(fit).ravel()]
    for (low, high), (bottom, top) in zip(before, after, strict=True):
        assert top - bottom < 1.2 * (high - low)
        assert bottom < low + 0.2 * (high - low)
        assert top > high - 0.2 * (high - low)
    # One that is far off but well known is shown.
    fit["alpha_lower"][3], fit["alpha_upper"][3] = 499.0, 501.0
    assert plot.elasticity(fit)[1, 0].get_ylim()[1] > 500


def test_a_flat_estimate_does_not_hide_how_uncertain_it_is():
    fit = make_fit()
    fit["alpha"] = 1.0 + 1e-3 * fit.alpha
    fit["alpha_lower"], fit["alpha_upper"] = fit.alpha - 0.5, fit.alpha + 0.5
    bottom, top = plot.elasticity(fit)[1, 0].get_ylim()
    assert bottom < float(fit.alpha_lower.min())
    assert top > float(fit.alpha_upper.max())


@pytest.mark.parametrize("rates", [None, [0.1, 0.2, 0.4]])
def test_limits_hold_the_bands(rates):
    fit = make_fit(rates)
    for ax, name in zip(plot.elasticity(fit).ravel(), NAMES, strict=True):
        bottom, top = ax.get_ylim()
        assert bottom < float(fit[f"{name}_lower"].min())
        assert top > float(fit[f"{name}_upper"].max())


def test_a_constant_looks_like_one():
    fit = make_fit()
    fit["beta"] = -0.4 + 1e-3 * fit.beta
    fit["beta_lower"], fit["beta_upper"] = fit.beta - 0.001, fit.beta + 0.001
    fit["alpha"], fit["alpha_lower"], fit["alpha_upper"] = (0 * fit.alpha for _ in range(3))
    axes = plot.elasticity(fit)
    bottom, top = axes[1, 1].get_ylim()
    assert top - bottom >= 0.2
    assert bottom < -0.45 < -0.35 < top
    assert axes[1, 0].get_ylim() == (-0.5, 0.5)


def test_bands_of_several_rates_have_edges_of_their_colours():
    ax = plot.elasticity(make_fit([0.1, 0.2, 0.4]))[0, 0]
    for band, line in zip(ax.collections, ax.get_lines(), strict=True):
        assert to_hex(band.get_edgecolor()[0]) == to_hex(line.get_color())
        assert band.get_facecolor()[0, 3] < 0.15 < 0.5 < band.get_edgecolor()[0, 3]
        assert band.get_linewidth()[0] > 0


def test_truth_of_a_kernel_is_its_values_and_integrals_from_the_first_time():
    kernel = lesde.TwoLevel(alpha="2/(1+t)", beta="-t**2")
    model = lesde.LESDE(kernel, n_classes=4, n_features=4)
    for truth in (kernel, model):
        axes = plot.elasticity(make_fit(), truth)
        lines = [ax.get_lines()[-1] for ax in axes.ravel()]
        closed = (
            lambda t: 2 * np.log((1 + t) / 1.5),
            lambda t: -(t**3 - 0.125) / 3,
            lambda t: 2 / (1 + t),
            lambda t: -(t**2),
        )
        for line, f in zip(lines, closed, strict=True):
            np.testing.assert_allclose(
                line.get_ydata(), f(line.get_xdata()), rtol=1e-11, atol=1e-12
            )
        assert lines[0].get_xdata()[[0, -1]].tolist() == [0.5, 4.5]
        assert "truth" in legend_texts(axes[0, 0])


def test_truth_with_label_noise_is_the_effective_one():
    noisy = lesde.LabelNoise(lesde.TwoLevel(alpha=2, beta=-1), 0.3)
    curves = true_elasticity(noisy, make_fit(n_classes=3))
    # E' = E Qᵀ: α' = (1−p) α + p β, β' = (1−p) β + p/(K−1) (α + (K−2) β).
    assert curves["alpha"][1] == pytest.approx(0.7 * 2 + 0.3 * -1)
    assert curves["beta"][1] == pytest.approx(0.7 * -1 + 0.15 * (2 - 1))


def test_truth_of_a_fitted_kernel_gives_the_fitted_integrals_back():
    rates = 1.0 + MIDDLE
    kernel = lesde.TwoLevel(
        lambda t: rates[np.clip(np.searchsorted(TIMES, t, "right") - 1, 0, 7)], 0
    )
    x, y = true_elasticity(kernel, make_fit())["A"]
    expected = np.concatenate([[0], np.cumsum(rates * np.diff(TIMES))])
    np.testing.assert_allclose(np.interp(TIMES, x, y), expected, rtol=1e-12)


def test_truth_from_a_dataset_is_drawn_as_far_as_it_goes():
    other = make_fit()[["B", "alpha"]] * 1.5
    axes = plot.elasticity(make_fit(), other)
    assert [len(ax.get_lines()) for ax in axes.ravel()] == [1, 2, 2, 1]
    np.testing.assert_allclose(axes[1, 0].get_lines()[1].get_ydata(), other.alpha)


@pytest.mark.parametrize(
    ("truth", "message"),
    [
        (2.0, "truth must be a kernel such as lesde.TwoLevel"),
        (lesde.Hierarchical([0, 0, 1], 2, 1, -1), "one strength within classes and one between"),
        (xr.Dataset({"a": 1}), r"truth must hold A, B, alpha or beta; it holds \[.a.\]"),
        (make_fit([0.1, 0.2]), r"truth\.A must be over 'time' or 'interval' alone"),
    ],
)
def test_refusals_of_truth(truth, message):
    with pytest.raises((TypeError, ValueError), match=message):
        plot.elasticity(make_fit(), truth)


def test_refusals():
    with pytest.raises(
        ValueError, match=r'fit must hold .* lesde\.fit_elasticity with kernel="two-level"'
    ):
        plot.elasticity(make_fit().drop_vars("beta"))
    with pytest.raises(
        ValueError, match="ax must be 4 matplotlib Axes, one for every panel; got 2"
    ):
        plot.elasticity(make_fit(), ax=plt.figure().subplots(1, 2))
    with pytest.raises(ValueError, match=r"fit\.isel\(layer=0\)"):
        plot.elasticity(make_fit().expand_dims(layer=2))
