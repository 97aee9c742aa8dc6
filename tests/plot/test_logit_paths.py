"""Class means' ways through three features."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from lesde import plot
from tests.plot.conftest import make_paths


def ways(ax):
    """Lines with more points than a join or a mark has: the ways of the class means."""
    found = [np.array(line.get_data_3d()) for line in ax.lines]
    return [line for line in found if line.shape[1] > 2]


def points(**changes):
    content = {"features": [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [0.0, 0.0, 9.0]], "label": [0, 1, 2]}
    content |= changes
    return xr.Dataset(
        {"features": (("sample", "feature"), content["features"])},
        coords={"label": ("sample", content["label"])},
    )


def test_ways_are_class_means_over_replicates_in_the_features_themselves():
    paths = make_paths(3, 4)
    ax = plot.logit_paths(paths, features=(2, 0, 1))
    for k, way in enumerate(ways(ax)):
        own = paths.features.values[:, :, paths.label.values == k]
        np.testing.assert_allclose(way, own.mean((0, 2))[:, [2, 0, 1]].T, atol=1e-12)
    assert len(ways(ax)) == 3
    assert [ax.get_xlabel(), ax.get_ylabel(), ax.get_zlabel()] == [
        "feature 2",
        "feature 0",
        "feature 1",
    ]


def test_time_cuts_the_ways():
    paths = make_paths(3, 3)
    (way, *_) = ways(plot.logit_paths(paths, time=1.0))
    assert way.shape[1] == 1 + int(np.flatnonzero(paths.time.values == 1.0)[0])


def test_samples_are_shown_in_their_class_and_inside_the_axes():
    ax = plot.logit_paths(make_paths(3, 3), samples=points())
    shown = [np.array(c._offsets3d).T for c in ax.collections]
    np.testing.assert_array_equal(shown[1], [[4.0, 5.0, 6.0]])
    low, high = ax.get_zlim()
    assert low < -9.0
    assert high > 9.0


def test_ticks_lie_away_from_the_corners():
    ax = plot.logit_paths(make_paths(3, 3))
    ticks = ax.get_xticks()
    assert len(ticks) == 3
    assert np.abs(ticks).max() <= 0.8 * ax.get_xlim()[1]


def test_everything_at_the_origin_still_draws():
    paths = make_paths(3, 3)
    ax = plot.logit_paths(paths.assign(features=paths.features * 0.0))
    assert np.diff(ax.get_xlim())[0] > 0
    ax.figure.canvas.draw()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: plot.logit_paths(make_paths(3, 2)), "features must be three"),
        (lambda: plot.logit_paths(make_paths(3, 3), features=(0, 1)), "features must be three"),
        (lambda: plot.logit_paths(make_paths(2, 3), samples=points()), "classes of paths"),
    ],
)
def test_refusals(make, message):
    with pytest.raises(ValueError, match=message):
        make()
