"""Figures of what the package's own calls return, from a model to files."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

import lesde
from lesde import plot
from tests.plot.conftest import band_edges, drawn_inside, line_named

TIMES = np.linspace(0, 2, 9)
START = 0.4 * np.array([[1.0, 0.2, 0.0], [0.0, 1.0, -0.3], [0.1, 0.0, 1.0]])


@pytest.fixture(scope="module")
def model():
    kernel = lesde.TwoLevel(alpha="3/(1+t)", beta="-1/(1+t)")
    return lesde.LESDE(
        kernel, n_classes=3, n_features=3, n_per_class=6, transform="logits", noise=0.2
    )


@pytest.fixture(scope="module")
def paths(model):
    return lesde.simulate(model, TIMES, START, replicates=10, seed=1)


@pytest.fixture(scope="module")
def swept(model):
    return lesde.simulate(
        model, TIMES, START, replicates=10, learning_rate=[0.025, 0.05, 0.125], seed=3
    )


def test_paths(paths, swept, tmp_path):
    assert len(plot.save(plot.separation_fan(paths), tmp_path / "fan", dpi=50)) == 2
    for axes in (plot.separation_fan(swept), plot.simplex(swept), plot.simplex3d(swept)):
        assert drawn_inside(np.ravel(axes)[0].figure)


def test_collapse_and_its_rate(swept):
    nc = lesde.neural_collapse(swept)
    metrics = [name for name in nc.data_vars if name.startswith("nc")]
    axes = plot.collapse(nc, metrics, against="iteration")
    np.testing.assert_allclose(
        axes[0].get_lines()[0].get_ydata()[1:],
        nc[metrics[0]].median("replicate").isel(learning_rate=0)[1:],
    )
    assert drawn_inside(axes[0].figure)
    rates = lesde.convergence(nc, start=0.5)
    for clock in ("time", "iteration"):
        ax = plot.collapse_rate(rates, "nc1", clock=clock)
        np.testing.assert_allclose(
            ax.containers[0].lines[0].get_ydata(), rates.rate.sel(metric="nc1", clock=clock)
        )


def test_probability_and_prediction(model, paths, swept):
    prediction = lesde.predict_separation(model, TIMES, START)
    prob = lesde.separation_probability(paths)
    ax = plot.probability(prob, prediction)
    low, high = band_edges(ax.collections[1], TIMES)
    np.testing.assert_allclose(low, prediction.lower, atol=1e-12)
    np.testing.assert_allclose(high, prediction.upper, atol=1e-12)
    plot.probability(prob, prediction, failure=True).figure.canvas.draw()
    several = lesde.separation_probability(swept)
    ax = plot.probability(several, prediction, pair=(0, 1))
    np.testing.assert_allclose(
        line_named(ax, "exact law").get_ydata(), prediction.pairwise[:, 0, 1], atol=1e-12
    )


def test_phase_diagram_of_predictions():
    times = np.geomspace(1, 100, 7)
    runs, values = [], [0.3, 1.0, 2.0]
    for c in values:
        kernel = lesde.TwoLevel(alpha=f"{c}/t", beta=0)
        model = lesde.LESDE(kernel, n_classes=2, n_features=1, n_per_class=10, noise=0.3)
        runs.append(lesde.predict_separation(model, times, np.array([[0.4], [-0.4]])))
    data = xr.concat(runs, xr.IndexVariable("c", values)).assign_attrs(n_classes=2)
    ax = plot.phase_diagram(data)
    assert line_named(ax, "critical").get_xdata()[0] == 1.0
    assert ax.get_yscale() == "log"
    assert drawn_inside(ax.figure)


def test_fit_truth_and_means(model, paths, swept):
    with pytest.warns(UserWarning, match="no tail_index"):  # of beta, from so few paths
        fit = lesde.fit_elasticity(swept, transform="logits")
    axes = plot.elasticity(fit, model)
    np.testing.assert_allclose(axes[0, 0].get_lines()[0].get_ydata(), fit.A.isel(learning_rate=0))
    # A = ∫ 3/(1+t) from 0.
    truth = axes[0, 0].get_lines()[-1]
    np.testing.assert_allclose(truth.get_ydata(), 3 * np.log1p(truth.get_xdata()), atol=1e-12)
    kernel = lesde.fitted_kernel(fit.sel(learning_rate=0.05))
    again = plot.elasticity(fit, kernel, learning_rate=0.05)
    drawn = again[0, 0].get_lines()[-1]
    np.testing.assert_allclose(
        np.interp(TIMES, drawn.get_xdata(), drawn.get_ydata()),
        fit.A.sel(learning_rate=0.05),
        rtol=1e-9,
        atol=1e-9,
    )
    law = lesde.law(model, TIMES, initial=START)
    axes = plot.class_means(paths, law)
    np.testing.assert_allclose(axes[0].get_lines()[0].get_ydata(), law["mean"][:, 0, 0])
    assert drawn_inside(axes[0].figure)
