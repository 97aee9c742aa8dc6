"""Separation from statistics, against the same from the samples."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import xarray as xr

import lesde
from lesde.analysis.separation import CRITERIA, criterion, probability
from lesde.paths import gap_directions
from tests.analysis.samples import COUNTS, make_paths


@pytest.mark.parametrize("counts", COUNTS.values(), ids=COUNTS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("criterion", ["projection", "nearest_center"])
def test_separation(counts, dtype, criterion):
    paths = make_paths(counts, dtype)
    reduced = lesde.statistics(paths)
    options = {"criterion": criterion, "direction": "own", "margin": True}
    direct = lesde.separation_probability(paths, **options)
    found = lesde.separation_probability(reduced, **options)
    assert set(found.data_vars) == set(direct.data_vars)
    assert found.attrs == direct.attrs
    rounding = 1e-13 if dtype == "float64" else 3e-6
    for name in direct.data_vars:
        if "margin" in name:
            np.testing.assert_allclose(found[name], direct[name], atol=rounding)
        else:
            xr.testing.assert_equal(found[name].drop_vars("count", errors="ignore"), direct[name])
    assert 0 < int(direct["successes"].sum()) < direct["successes"].size * 60
    auto = lesde.separation_probability(reduced, criterion=criterion)
    xr.testing.assert_equal(auto["successes"], found["successes"])


def test_separation_along_given_directions():
    """The directions are known before the paths: the same counts as with them given as an array."""
    counts = (5, 8, 6)
    paths = make_paths(counts)
    vectors = 2.0 * gap_directions(np.eye(3, 4))
    reduced = lesde.statistics(paths, directions=np.broadcast_to(vectors, (7, *vectors.shape)))
    assert reduced["direction"].dims == ("time", "class", "class_", "feature")
    direct = lesde.separation_probability(paths, direction=np.nan_to_num(vectors), margin=True)
    for direction in ("auto", "ensemble"):
        found = lesde.separation_probability(reduced, direction=direction, margin=True)
        np.testing.assert_array_equal(found["successes"], direct["successes"])
        np.testing.assert_array_equal(found["pairwise"], direct["pairwise"])
        np.testing.assert_allclose(found["margin"], direct["margin"], atol=1e-13)
        assert found.attrs["direction"] == "ensemble"
    own = lesde.separation_probability(reduced, direction="own")
    expected = lesde.separation_probability(paths, direction="own")
    np.testing.assert_array_equal(own["successes"], expected["successes"])
    assert (own["successes"] != found["successes"]).any()
    # Without the time, and for each learning rate by itself.
    fixed = lesde.statistics(
        paths, directions=xr.DataArray(vectors, dims=("class", "class_", "feature"))
    )
    xr.testing.assert_equal(fixed["reach_expected"], reduced["reach_expected"])
    each = xr.DataArray(
        np.stack([vectors, vectors[..., ::-1]]),
        dims=("learning_rate", "class", "class_", "feature"),
    )
    swapped = lesde.separation_probability(lesde.statistics(paths, each))
    np.testing.assert_array_equal(swapped["successes"][0], found["successes"][0])
    assert (swapped["successes"][1] != found["successes"][1]).any()


def test_expected_gap_has_no_upward_bias():
    """8 replicates of 2 classes of 10 samples in 50 dimensions, against the exact law.

    Null: the mean over 200 such ensembles of the estimate is the law's probability P = 0.12 (1600
    trials, standard error 0.008, tolerance 5 of them). Along the ensemble's own average gap it is not.
    """
    means = np.zeros((2, 50))
    means[:, 0] = 0.55, -0.55
    model = lesde.LESDE(lesde.TwoLevel(0.0, 0.0), 2, 50, 10, noise=0.45)
    times = [0.0, 1.0]
    law = lesde.law(model, times, initial=means)
    truth = float(lesde.predict_separation(model, times, initial=means).probability[-1])
    paths = lesde.simulate(model, times, initial=means, replicates=1600, dtype="float64", seed=4)
    reduced = lesde.statistics(paths, directions=law)
    groups = [slice(a, a + 8) for a in range(0, 1600, 8)]
    found, biased = (
        np.mean([
            float(lesde.separation_probability(data.isel(replicate=g)).probability[-1]) for g in groups
        ])
        for data in (reduced, paths)
    )  # fmt: skip
    error = np.sqrt(truth * (1 - truth) / 1600)
    assert 0.05 < truth < 0.3
    assert abs(found - truth) < 5 * error
    assert biased - truth > 5 * error


def test_law_without_a_gap_separates_nothing():
    model = lesde.LESDE(lesde.TwoLevel(1.0, -1.0), 2, 3, 4, noise=0.3)
    means = np.ones((2, 3))
    paths = lesde.simulate(model, [0, 1], initial=means, replicates=32)
    reduced = lesde.statistics(paths, directions=lesde.law(model, [0, 1], initial=means))
    assert not lesde.separation_probability(reduced).successes.any()
    assert np.isfinite(reduced["reach_expected"].values[..., [0, 1], [1, 0]]).all()


def test_pairs_without_a_joint_law():
    paths = make_paths((6, 6, 6))
    reduced = lesde.statistics(paths)
    direct = lesde.separation_probability(reduced)
    for attrs in ({"joint": 0}, {}):
        unknown = reduced.copy()
        unknown.attrs = attrs
        with pytest.warns(UserWarning, match=r"law of each pair.*pairwise"):
            found = lesde.separation_probability(unknown)
        for name in ("probability", "lower", "upper", "successes"):
            assert np.isnan(found[name]).all()
        for name in ("pairwise", "pairwise_lower", "pairwise_upper"):
            xr.testing.assert_equal(found[name], direct[name])
    one = found.isel(learning_rate=0)
    assert lesde.plot.probability(one, pair=(0, 1)).lines
    with pytest.raises(ValueError, match=r"pair=\(k, l\)"):
        lesde.plot.probability(one)
    with pytest.raises(ValueError, match="holds no number"):
        lesde.plot.phase_diagram(found)
    two = lesde.statistics(make_paths((6, 6))).assign_attrs(joint=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.isfinite(lesde.separation_probability(two).probability).all()


def test_separation_errors():
    paths = make_paths((5, 5), replicates=4)
    reduced = lesde.statistics(paths)
    for options, what in (
        ({"criterion": "linear"}, r"criterion='linear'"),
        ({"direction": "initial"}, r"direction='initial'"),
        ({"direction": [1.0, 0, 0, 0]}, r"direction given as an array"),
        ({"direction": "ensemble"}, r"lack reach_expected"),
    ):
        with pytest.raises(ValueError, match=what + r".*keep='features'"):
            lesde.separation_probability(reduced, **options)
    with pytest.raises(ValueError, match="Did you mean 'own'"):
        lesde.separation_probability(reduced, direction="owm")
    with pytest.raises(ValueError, match=r"reach missing"):
        lesde.separation_probability(reduced.drop_vars("reach"))
    with pytest.raises(ValueError, match="count missing"):
        lesde.separation_probability(reduced.drop_vars("count"))
    with pytest.raises(ValueError, match=r"must hold at least 2 classes"):
        lesde.separation_probability(reduced.isel({"class": [0], "class_": [0]}))
    broken = reduced.copy(deep=True)
    broken["reach"][0, 0, 3] = np.nan
    with pytest.raises(ValueError, match=r"finite.*learning_rate=0.1, time=1.0"):
        lesde.separation_probability(broken)


def test_a_criterion_of_samples_refuses_statistics():
    @criterion("spread", samples=True)
    def declared(frame):
        raise AssertionError("refused before")

    @criterion("nearest sample")
    def undeclared(frame):
        return np.full((1, 1), len(frame.classes))

    reduced = lesde.statistics(make_paths((5, 5), replicates=4))
    try:
        with pytest.raises(ValueError, match=r"for criterion='spread'.*keep='features'"):
            lesde.separation_probability(reduced, "spread")
        with pytest.raises(ValueError, match=r"for this criterion.*keep='features'"):
            lesde.separation_probability(reduced, "nearest sample")
    finally:
        del CRITERIA["spread"], CRITERIA["nearest sample"]


def test_model_in_place_of_paths():
    """keep goes through to the simulation.

    Null: both ways of keeping have the same probability. 512 replicates each, tolerance 5 standard
    errors of the difference at P = 1/2, 0.16.
    """
    model = lesde.LESDE(lesde.TwoLevel(2.0, -1.0), 3, 2, 20, noise=0.4)
    options = {"times": [0.0, 0.5, 1.0], "learning_rate": 0.05, "engine": "sgd", "replicates": 512}
    options["initial"] = np.array([[0.5, 0.0], [-0.5, 0.0], [0.0, 0.7]])
    direct = lesde.separation_probability(model, direction="own", **options)
    found = lesde.separation_probability(model, direction="own", keep="statistics", **options)
    assert int(found.trials) == 512
    assert 0.2 < float(found.probability[-1]) < 0.95
    assert abs(found.probability - direct.probability).max() < 5 * np.sqrt(0.5 / 512)
    with pytest.raises(ValueError, match=r"criterion='linear'.*keep='features'"):
        lesde.separation_probability(model, "linear", keep="statistics", **options)


@pytest.mark.parametrize(("keep", "batch"), [("features", 32), ("statistics", 4096)])
def test_batches_of_statistics_do_not_shrink_with_the_samples(keep, batch, monkeypatch):
    """A million samples per class: what is asked of the simulation at once."""
    calls = []

    def simulate(model, times, replicates, **options):
        calls.append(replicates)
        one = lesde.statistics(make_paths((5, 5, 5), replicates=1).isel(learning_rate=0))
        return one.isel(replicate=np.zeros(replicates, dtype=int))

    monkeypatch.setattr(probability, "simulate", simulate)
    model = lesde.LESDE(lesde.TwoLevel(2.0, -1.0), 3, 3, 10**6, noise=0.3)
    times = np.linspace(0, 1, 50)
    lesde.separation_probability(model, times=times, replicates=2 * batch, keep=keep)
    assert calls == [batch, batch]
