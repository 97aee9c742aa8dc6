"""Separation fans draw the projections of the samples they say."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.collections import LineCollection

from lesde import plot
from tests.plot.conftest import class_mean, drawn_inside, legend_texts, line_named, make_paths


def fan_lines(ax):
    return [c for c in ax.collections if isinstance(c, LineCollection)]


@pytest.mark.parametrize(("n_classes", "n_features"), [(2, 1), (2, 5), (3, 3), (4, 4), (10, 12)])
def test_means_and_samples_are_the_projections_of_the_data(n_classes, n_features):
    paths = make_paths(n_classes, n_features)
    direction = np.arange(1.0, n_features + 1)
    ax = plot.separation_fan(paths, replicate=1, direction=direction)
    unit = direction / np.linalg.norm(direction)
    for k in range(n_classes):
        line = line_named(ax, f"class {k}")
        np.testing.assert_allclose(line.get_xdata(), paths.time)
        np.testing.assert_allclose(
            line.get_ydata(), class_mean(paths, k, replicate=1) @ unit, atol=1e-12
        )
        samples = paths.features.isel(replicate=1, sample=paths.label.values == k).values @ unit
        drawn = np.stack([s[:, 1] for s in fan_lines(ax)[k].get_segments()], axis=1)
        np.testing.assert_allclose(np.sort(drawn, axis=1), np.sort(samples, axis=1), atol=1e-12)
    assert ax.get_xlabel() == "time (learning rate × iterations)"
    assert ax.get_ylabel() == "projection on the given direction"
    assert legend_texts(ax) == [str(k) for k in range(n_classes)]
    assert drawn_inside(ax.figure)


def test_pair_is_projected_on_its_final_gap_from_the_second_to_the_first():
    paths = make_paths(4, 5)
    ax = plot.separation_fan(paths, pair=(2, 0))
    gap = (class_mean(paths, 2, replicate=0) - class_mean(paths, 0, replicate=0))[-1]
    length = np.linalg.norm(gap)
    ends = [line_named(ax, f"class {k}").get_ydata()[-1] for k in (2, 0)]
    assert ends[0] - ends[1] == pytest.approx(length)
    assert legend_texts(ax) == ["2", "0"]
    assert ax.get_ylabel() == "projection on the gap 0 → 2"


def test_default_direction_is_the_leading_axis_of_the_final_means():
    paths = make_paths(3, 4)
    # Stretch along one feature: the leading axis is then known.
    paths["features"] = paths.features * np.array([1.0, 50.0, 1.0, 1.0])
    ax = plot.separation_fan(paths)
    final = np.stack([class_mean(paths, k, replicate=0)[-1] for k in range(3)])
    centred = final - final.mean(axis=0)
    _values, vectors = np.linalg.eigh(centred.T @ centred)
    drawn = np.array([line_named(ax, f"class {k}").get_ydata()[-1] for k in range(3)])
    expected = final @ vectors[:, -1]
    sign = np.sign(expected @ drawn)
    np.testing.assert_allclose(drawn, sign * expected, rtol=1e-9)
    away = drawn - drawn.mean()
    assert away[np.abs(away).argmax()] > 0


def test_samples_are_thinned_evenly_and_means_are_not():
    paths = make_paths(3, 3, n=200)
    ax = plot.separation_fan(paths, direction=[1.0, 0.0, 0.0])
    assert [len(c.get_segments()) for c in fan_lines(ax)] == [100, 100, 100]
    np.testing.assert_allclose(
        line_named(ax, "class 1").get_ydata(), class_mean(paths, 1, replicate=0)[:, 0]
    )


def test_learning_rate_is_chosen_and_named():
    paths = make_paths(3, 3, rates=[0.1, 0.2])
    first = plot.separation_fan(paths, direction=[1, 0, 0])
    second = plot.separation_fan(paths, direction=[1, 0, 0], learning_rate=0.2)
    for ax, index, rate in ((first, 0, "0.1"), (second, 1, "0.2")):
        np.testing.assert_allclose(
            line_named(ax, "class 0").get_ydata(),
            class_mean(paths, 0, replicate=0, learning_rate=index)[:, 0],
        )
        assert f"learning rate {rate}" in ax.figure.legends[0].get_title().get_text()


def test_without_replicate_and_as_float32():
    paths = make_paths(3, 3).isel(replicate=0).astype({"features": "float32"})
    ax = plot.separation_fan(paths, direction=[0, 1, 0])
    np.testing.assert_allclose(
        line_named(ax, "class 2").get_ydata(), class_mean(paths, 2)[:, 1], rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"replicate": 3}, "replicate must be a position from 0 to 2"),
        ({"replicate": 1.0}, "replicate must be an integer"),
        ({"direction": [0.0, 0.0, 0.0]}, "direction must not be zero"),
        ({"direction": [1.0]}, r"direction must have shape \(3\)"),
        ({"direction": [1, 0, 0], "pair": (0, 1)}, "direction and pair both set the projection"),
        ({"pair": (1, 1)}, "pair must be two different classes"),
        ({"pair": (0, 3)}, "pair must be two different classes from 0 to 2"),
        ({"learning_rate": 0.1}, "paths has no coordinate 'learning_rate'"),
        ({"ax": 3}, "ax must be one matplotlib Axes"),
    ],
)
def test_refusals_name_the_argument(change, message):
    with pytest.raises((TypeError, ValueError), match=message):
        plot.separation_fan(make_paths(), **change)


def test_refusals_of_datasets_name_the_remedy():
    paths = make_paths(rates=[0.1, 0.2])
    with pytest.raises(ValueError, match=r"learning_rate must be one of 0\.1, 0\.2; got 0\.3"):
        plot.separation_fan(paths, learning_rate=0.3)
    with pytest.raises(
        ValueError, match=r"as lesde.simulate, lesde.from_arrays or a recorder returns"
    ):
        plot.separation_fan(paths.rename(features="activations"))
    with pytest.raises(TypeError, match=r"paths must be an xarray\.Dataset"):
        plot.separation_fan(paths.features)
    with pytest.raises(ValueError, match=r"label missing"):
        plot.separation_fan(paths.drop_vars("label"))
    with pytest.raises(ValueError, match=r"paths\.isel\(layer=0\)"):
        plot.separation_fan(paths.expand_dims(layer=2))
    bad = make_paths()
    bad["features"] = bad.features.where(bad.time < 1.9)
    with pytest.raises(ValueError, match=r"must be finite; got nan at time=2\.0"):
        plot.separation_fan(bad)
    flat = make_paths()
    flat["features"] = 0 * flat.features
    with pytest.raises(ValueError, match="class means coincide at the last time"):
        plot.separation_fan(flat)
