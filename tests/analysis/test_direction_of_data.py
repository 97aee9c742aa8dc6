"""What the data tell, no attribute decides: hand-made paths count as simulated ones do."""

from __future__ import annotations

import warnings

import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr

import lesde

TIMES = [0.0, 0.5, 1.0, 1.5]
MODEL = lesde.LESDE(lesde.TwoLevel(4, -2), 3, 3, 6, noise=0.25)


def bare(data):
    """A copy without attributes, of the dataset or of anything in it."""
    data = data.copy()
    data.attrs = {}
    for variable in data.variables.values():
        variable.attrs = {}
    return data


def simulated(start, keep="features", **options):
    given = {"initial": np.eye(3)} if start == "given" else {}
    return lesde.simulate(MODEL, TIMES, replicates=32, seed=3, keep=keep, **given, **options)


def alike(left, right):
    for name in left.data_vars:
        np.testing.assert_array_equal(left[name], right[name], err_msg=name)


@pytest.mark.parametrize("start", ["given", "random"])
@pytest.mark.parametrize("keep", ["features", "statistics"])
def test_analyses_of_paths_without_attributes(start, keep):
    paths = simulated(start, keep, dtype="float64")
    naked = bare(paths)
    if keep == "statistics":
        naked.attrs["joint"] = paths.attrs["joint"]  # which the data do not tell
    for criterion in ("projection", "nearest_center") + ("linear",) * (keep == "features"):
        known = lesde.separation_probability(paths, criterion)
        found = lesde.separation_probability(naked, criterion)
        alike(known, found)
        assert known.attrs == found.attrs
    if keep == "features":
        alike(lesde.statistics(paths), lesde.statistics(naked))
    metrics = lesde.neural_collapse(paths), lesde.neural_collapse(naked)
    alike(*metrics)
    rates = [lesde.convergence(each) for each in metrics]
    alike(*rates)
    lesde.plot.probability(lesde.separation_probability(naked))
    lesde.plot.collapse(metrics[1])
    plt.close("all")


def test_convergence_knows_the_target_of_a_metric_by_its_name():
    paths = simulated("given")
    metrics = lesde.neural_collapse(paths, ["nc1", "nc4"], weights=np.eye(3) - 0.2)
    alike(lesde.convergence(metrics), lesde.convergence(bare(metrics)))


@pytest.mark.parametrize("common", [True, False])
def test_hand_made_paths(common):
    """Classes far apart along an axis of each replicate, or along one of all; noise is small."""
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 5)
    axes = np.linalg.qr(rng.standard_normal((16, 4, 4)))[0][:, 0]
    if common:
        axes[:] = axes[0]
    x = np.where(labels[:, None] == 0, 1.0, -1.0) * axes[:, None]
    x = x[:, None] + 0.02 * rng.standard_normal((16, 3, 10, 4))
    dims = ("replicate", "time", "sample", "feature")
    paths = xr.Dataset({"features": (dims, x)}, {"label": ("sample", labels), "time": [0, 1, 2]})
    for attrs in ({}, {"initial": "random"}, {"initial": "given"}):
        for data in (paths.assign_attrs(attrs), paths.astype("float32").assign_attrs(attrs)):
            found = lesde.separation_probability(data)
            assert found.attrs["direction"] == ("ensemble" if common else "own")
            np.testing.assert_array_equal(found.probability, 1.0)
            reduced = lesde.separation_probability(lesde.statistics(data))
            np.testing.assert_array_equal(reduced.probability, 1.0)
    if not common:
        with pytest.warns(UserWarning, match="no direction in common"):
            found = lesde.separation_probability(paths, direction="ensemble")
        assert float(found.probability[0]) < 1


def test_replicates_that_end_alike_have_their_direction_in_common():
    """As the outputs of networks from random starts do; a replicate that ends opposite is no success."""
    rng = np.random.default_rng(1)
    labels = np.repeat([0, 1], 5)
    x = 0.01 * rng.standard_normal((20, 2, 10, 3))
    x[:, 0] += 0.1 * rng.standard_normal((20, 1, 3)) * np.where(labels == 0, 1, -1)[:, None]
    sign = np.ones(20)
    sign[7] = -1
    x[:, 1, :, 0] += sign[:, None] * np.where(labels == 0, 1, -1)
    dims = ("replicate", "time", "sample", "feature")
    paths = xr.Dataset({"features": (dims, x)}, {"label": ("sample", labels), "time": [0, 1]})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = lesde.separation_probability(paths)
        lesde.separation_probability(paths, direction="ensemble")
    assert found.attrs["direction"] == "ensemble"
    assert float(found.probability[1]) == 0.95


@pytest.mark.parametrize("power", [-140, 0, 140])
@pytest.mark.parametrize("criterion", ["projection", "nearest_center", "linear"])
def test_probabilities_at_every_scale(power, criterion):
    model = lesde.LESDE(lesde.TwoLevel(0.5, -0.2), 3, 3, 6, noise=0.7)
    paths = lesde.simulate(model, TIMES, initial=np.eye(3), replicates=32, seed=3, dtype="float64")
    scaled = paths.assign(features=paths.features * 10.0**power)
    options = {"criterion": criterion, "margin": True}
    expected = lesde.separation_probability(paths, **options)
    found = lesde.separation_probability(scaled, **options)
    np.testing.assert_array_equal(found.successes, expected.successes)
    assert 0 < expected.pairwise.values[1:, 0, 1].min() < 1
    for name in ("margin_mean", "margin_std"):
        np.testing.assert_allclose(found[name] / 10.0**power, expected[name], rtol=1e-6, atol=1e-6)
