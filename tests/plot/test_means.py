"""Observed class means against those of a model."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr

from lesde import plot
from tests.plot.conftest import class_mean, drawn_inside, legend_texts, make_paths


def make_law(paths, times=21):
    t = np.linspace(0, 2, times)
    K, p = int(paths.label.max()) + 1, paths.sizes["feature"]
    mean = np.arange(1.0, K * p + 1).reshape(K, p) * np.exp(t)[:, None, None]
    return xr.Dataset({"mean": (("time", "class", "feature"), mean)}, {"time": t})


def model_line(ax, k):
    return [line for line in ax.get_lines() if line.get_marker() in ("None", None, "")][k]


@pytest.mark.parametrize("n_classes", [2, 3, 10])
def test_lines_are_the_law_and_markers_the_average_with_its_error(n_classes):
    paths = make_paths(n_classes, 3, replicates=5)
    law = make_law(paths)
    axes = plot.class_means(paths, law)
    assert [ax.get_ylabel() for ax in axes] == [f"mean of feature {i}" for i in range(3)]
    for i, ax in enumerate(axes):
        assert len(ax.containers) == n_classes
        for k in range(n_classes):
            np.testing.assert_allclose(model_line(ax, k).get_xdata(), law.time)
            np.testing.assert_allclose(model_line(ax, k).get_ydata(), law["mean"][:, k, i])
            each = np.stack([class_mean(paths, k, replicate=r)[:, i] for r in range(5)])
            marker, _, (bars,) = ax.containers[k].lines
            np.testing.assert_allclose(marker.get_ydata(), each.mean(axis=0), atol=1e-12)
            ends = np.array([segment[:, 1] for segment in bars.get_segments()])
            error = np.sqrt(((each - each.mean(axis=0)) ** 2).sum(axis=0) / 4 / 5)
            np.testing.assert_allclose((ends[:, 1] - ends[:, 0]) / 2, error, atol=1e-12)
    assert legend_texts(axes[0]) == ["LE-ODE", "observed", *map(str, range(n_classes))]
    assert drawn_inside(axes[0].figure)


def test_model_paths_are_averaged_and_a_single_replicate_has_no_bars():
    paths, other = make_paths(replicates=1), make_paths(seed=4, times=5)
    axes = plot.class_means(paths.isel(replicate=0), other, features=1)
    assert len(axes) == 1
    average = np.mean([class_mean(other, 2, replicate=r)[:, 1] for r in range(3)], axis=0)
    np.testing.assert_allclose(model_line(axes[0], 2).get_ydata(), average, atol=1e-12)
    assert not axes[0].containers[0].has_yerr
    assert legend_texts(axes[0])[0] == "model"


def test_many_features_are_projected():
    paths = make_paths(3, 6)
    law = make_law(paths)
    axes = plot.class_means(paths, law)
    assert [a.get_ylabel() for a in axes] == ["PC 1 of class means", "PC 2 of class means"]
    final = np.array([[c.lines[0].get_ydata()[-1] for c in a.containers] for a in axes]).T
    true = np.mean(
        [[class_mean(paths, k, replicate=r)[-1] for k in range(3)] for r in range(3)], axis=0
    )
    assert np.linalg.norm(final[0] - final[1]) == pytest.approx(np.linalg.norm(true[0] - true[1]))


def test_learning_rate_is_chosen_from_whichever_has_several():
    paths = make_paths(rates=[0.1, 0.2])
    (ax,) = plot.class_means(paths, make_law(paths), features=[0], learning_rate=0.2)
    average = np.mean(
        [class_mean(paths, 0, replicate=r, learning_rate=1)[:, 0] for r in range(3)], axis=0
    )
    np.testing.assert_allclose(ax.containers[0].lines[0].get_ydata(), average, atol=1e-12)
    assert "learning rate 0.2" in ax.figure.legends[0].get_title().get_text()


def test_at_most_sixteen_markers_from_first_to_last_time():
    paths = make_paths(times=100)
    (ax,) = plot.class_means(paths, make_law(paths), features=0)
    drawn = ax.containers[0].lines[0].get_xdata()
    assert len(drawn) == 16
    assert drawn[[0, -1]].tolist() == [0, 2]


def test_refusals():
    paths = make_paths()
    law = make_law(paths)
    with pytest.raises(ValueError, match=r"same classes and features; got \(3, 3\) and \(3, 2\)"):
        plot.class_means(paths, law.isel(feature=[0, 1]))
    with pytest.raises(ValueError, match=r"law must hold .*mean.*as lesde\.law"):
        plot.class_means(paths, law.rename(mean="average"))
    with pytest.raises(ValueError, match="features must hold integers from 0 to 2"):
        plot.class_means(paths, law, features=[3])
    with pytest.raises(ValueError, match=r"observed\.features must be finite"):
        plot.class_means(paths.where(paths.time < 1).assign_coords(label=paths.label), law)
    with pytest.raises(ValueError, match="ax must be 3 matplotlib Axes"):
        plot.class_means(paths, law, ax=plt.figure().subplots(1, 2))
