"""Planes, targets and the drawing of snapshots, in two and three dimensions."""

from __future__ import annotations

import itertools

import matplotlib.pyplot as plt
import numpy as np
import pytest

from lesde import plot
from lesde.plot.frames import nearest_simplex, principal_axes
from tests.plot.conftest import (
    apart,
    class_mean,
    drawn_inside,
    legend_texts,
    make_paths,
    simplex_means,
    tick_label_boxes,
)


def lengths(points):
    return [np.linalg.norm(a - b) for a, b in itertools.combinations(points, 2)]


@pytest.mark.parametrize(("n_classes", "n_features"), [(2, 1), (3, 2), (4, 3), (4, 7), (10, 12)])
def test_nearest_simplex_of_a_simplex_is_itself_wherever_it_lies(n_classes, n_features):
    rng = np.random.default_rng(1)
    rotation = np.linalg.qr(rng.normal(size=(n_features, n_features)))[0]
    means = 3.0 * simplex_means(n_classes, n_features) @ rotation + rng.normal(size=n_features)
    np.testing.assert_allclose(nearest_simplex(means), means, atol=1e-12)


@pytest.mark.parametrize(("n_classes", "n_features"), [(3, 2), (4, 6)])
def test_nearest_simplex_is_regular_and_no_other_is_nearer(n_classes, n_features):
    rng = np.random.default_rng(2)
    means = rng.normal(size=(n_classes, n_features))
    found = nearest_simplex(means)
    edges = lengths(found)
    assert max(edges) == pytest.approx(min(edges))
    best = np.linalg.norm(found - means)
    base = simplex_means(n_classes, n_features)
    for _ in range(300):
        turned = base @ np.linalg.qr(rng.normal(size=(n_features, n_features)))[0]
        # Size and position that are best for this rotation.
        centred = means - means.mean(axis=0)
        scale = (turned * centred).sum() / (turned**2).sum()
        assert np.linalg.norm(scale * turned - centred) >= best - 1e-12


def test_no_target_without_room_or_extent():
    assert nearest_simplex(np.random.default_rng(0).normal(size=(4, 2))) is None
    assert nearest_simplex(np.ones((3, 5))) is None


def test_axes_span_the_means_first_and_samples_then():
    rng = np.random.default_rng(3)
    means = simplex_means(3, 6) @ np.diag([5, 5, 5, 0, 0, 0])
    samples = rng.normal(size=(50, 6)) * np.array([0.1, 0.1, 0.1, 0.1, 7.0, 0.1])
    axes = principal_axes(means, samples, 3)
    np.testing.assert_allclose(axes @ axes.T, np.eye(3), atol=1e-12)
    centred = means - means.mean(axis=0)
    np.testing.assert_allclose(centred @ axes[:2].T @ axes[:2], centred, atol=1e-12)
    assert abs(axes[2, 4]) > 0.95
    assert (np.abs(centred @ axes[:2].T).max(axis=0) == (centred @ axes[:2].T).max(axis=0)).all()


def test_panels_show_the_plane_of_the_means_to_scale():
    paths = make_paths(3, 5)
    axes = plot.simplex(paths, times=[0.5, 2.0], replicate=2)
    for ax, time in zip(axes, (2, 8), strict=True):
        true = np.stack([class_mean(paths, k, replicate=2)[time] for k in range(3)])
        points = np.array([line.get_xydata()[0] for line in ax.get_lines()])
        if time == 8:  # the plane is that of the last means: distances are the true ones
            np.testing.assert_allclose(lengths(points), lengths(true), rtol=1e-9)
        np.testing.assert_allclose(points.mean(axis=0), 0, atol=1e-12)
        assert ax.get_title() == f"$t$ = {paths.time.values[time]:g}"
        assert ax.get_aspect() == 1
        assert (ax.get_xlabel(), ax.get_ylabel()) == ("simplex axis 1", "simplex axis 2")
        assert sum(len(c.get_offsets()) for c in ax.collections[:3]) == 18
    assert drawn_inside(axes[0].figure)


@pytest.mark.parametrize("scale", [1e-4, 0.1, 0.37, 1.0, 150.0])
@pytest.mark.parametrize("times", [None, [0, 0.25, 0.5, 1, 1.5, 2]])
def test_tick_labels_of_small_panels_do_not_collide(scale, times):
    paths = make_paths(3, 3)
    paths["features"] = scale * paths.features
    for ax in plot.simplex(paths, times=times):
        for which in ("x", "y"):
            boxes = tick_label_boxes(ax, which)
            assert len(boxes) >= 1
            assert apart(boxes, which)


def test_samples_keep_their_place_about_their_means():
    paths = make_paths(3, 2)
    (ax,) = plot.simplex(paths, times=2.0)
    for k in range(3):
        true = paths.features.isel(replicate=0, time=8, sample=paths.label.values == k).values
        mean = ax.get_lines()[k].get_xydata()[0]
        drawn = np.asarray(ax.collections[k].get_offsets()) - mean
        np.testing.assert_allclose(
            np.sort(np.linalg.norm(drawn, axis=1)),
            np.sort(np.linalg.norm(true - true.mean(axis=0), axis=1)),
        )


@pytest.mark.parametrize(
    ("n_classes", "n_features", "names"),
    [
        (2, 2, ("along the mean gap", "within classes, PC 1")),
        (4, 4, ("PC 1 of class means", "PC 2 of class means")),
        (10, 12, ("PC 1 of class means", "PC 2 of class means")),
        (10, 2, ("PC 1 of class means", "PC 2 of class means")),
    ],
)
def test_labels_say_what_the_plane_is(n_classes, n_features, names):
    axes = plot.simplex(make_paths(n_classes, n_features))
    assert len(axes) == 3
    assert {(ax.get_xlabel(), ax.get_ylabel()) for ax in axes} == {names}
    figure = axes[0].figure
    assert (figure.get_supxlabel(), figure.get_supylabel()) == names
    has_target = n_features >= n_classes - 1
    assert ("nearest simplex" in legend_texts(axes[0])) == has_target
    assert drawn_inside(figure)


def test_joins_are_edges_for_few_classes_and_spokes_for_many():
    (few,) = plot.simplex(make_paths(4, 4), times=2.0)
    assert len(few.collections[4].get_segments()) == 6
    (many,) = plot.simplex(make_paths(10, 10), times=2.0)
    assert len(many.collections[10].get_segments()) == 10
    np.testing.assert_allclose([s[0] for s in many.collections[10].get_segments()], 0, atol=1e-12)


def test_starts_with_coinciding_means_are_drawn_without_target():
    paths = make_paths(3, 3)
    paths["features"] = paths.features * (paths.time > 0)
    axes = plot.simplex(paths)
    assert len(axes[0].collections[4].get_segments()) == 0
    assert len(axes[2].collections[4].get_segments()) == 3
    axes[0].figure.canvas.draw()


def test_own_axes_are_used():
    figure, own = plt.subplots(1, 2)
    axes = plot.simplex(make_paths(), times=[0, 2], ax=own)
    assert list(axes) == list(own)
    assert plt.get_fignums() == [figure.number]
    with pytest.raises(
        ValueError, match="ax must be 2 matplotlib Axes, one for every panel; got 1"
    ):
        plot.simplex(make_paths(), times=[0, 2], ax=own[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"times": [0, 3]}, r"times must lie within those of the paths, 0 to 2; got \[0, 3\]"),
        ({"times": []}, r"times must lie within those of the paths, 0 to 2; got \[\]"),
    ],
)
def test_refusals(change, message):
    with pytest.raises(ValueError, match=message):
        plot.simplex(make_paths(), **change)


def test_too_few_features_names_another_figure():
    with pytest.raises(ValueError, match=r"at least 2 features.*separation_fan"):
        plot.simplex(make_paths(2, 1))
    with pytest.raises(ValueError, match=r"at least 3 features.*lesde\.plot\.simplex\."):
        plot.simplex3d(make_paths(3, 2))


@pytest.mark.parametrize(("n_classes", "n_features"), [(2, 3), (3, 3), (4, 3), (10, 12)])
def test_three_dimensions_keep_lengths_and_show_the_way(n_classes, n_features):
    paths = make_paths(n_classes, n_features)
    ax = plot.simplex3d(paths, replicate=1)
    curves = [np.array(line.get_data_3d()) for line in ax.get_lines()]
    ways = [c for c in curves if c.shape[1] == 9]
    assert len(ways) == n_classes
    for k, way in enumerate(ways):
        centre = np.mean([class_mean(paths, j, replicate=1) for j in range(n_classes)], axis=0)
        true = class_mean(paths, k, replicate=1) - centre
        if n_classes <= 4:  # three axes then hold the final means whole
            assert np.linalg.norm(way[:, -1]) == pytest.approx(np.linalg.norm(true[-1]))
        assert (np.linalg.norm(way, axis=0) <= np.linalg.norm(true, axis=1) + 1e-9).all()
    assert all((ax.get_xlabel(), ax.get_ylabel(), ax.get_zlabel()))
    assert drawn_inside(ax.figure)


def test_three_dimensions_at_a_time_end_there_and_need_3d_axes():
    paths = make_paths(4, 4)
    ax = plot.simplex3d(paths, time=1.0)
    assert "$t$ = 1" in ax.figure.legends[0].get_title().get_text()
    assert max(np.array(line.get_data_3d()).shape[1] for line in ax.get_lines()) == 5
    flat = plt.figure().subplots()
    with pytest.raises(TypeError, match='one matplotlib Axes with projection="3d"'):
        plot.simplex3d(paths, ax=flat)
    own = plt.figure().add_subplot(projection="3d")
    assert plot.simplex3d(paths, ax=own) is own
