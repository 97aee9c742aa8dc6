"""Reducing samples to statistics of their classes."""

from __future__ import annotations

import importlib

import numpy as np
import pytest
import xarray as xr

import lesde
from lesde.paths import gap_directions
from tests.analysis.samples import COUNTS, make_paths, plain


@pytest.mark.parametrize("counts", COUNTS.values(), ids=COUNTS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_definition(counts, dtype):
    paths = make_paths(counts, dtype, replicates=3)
    found = lesde.statistics(paths)
    tolerance = 1e-12 if dtype == "float64" else 3e-7
    for name, values in plain(paths).items():
        assert found[name].dtype == dtype
        np.testing.assert_allclose(found[name], values, rtol=tolerance, atol=tolerance)
    lead = ("learning_rate", "replicate", "time")
    assert found["mean"].dims == (*lead, "class", "feature")
    assert found["within"].dims == (*lead, "class", "feature", "feature_")
    assert found["reach"].dims == (*lead, "class", "class_")
    np.testing.assert_array_equal(found["count"], counts)
    assert found.attrs == {"engine": "test", "keep": "statistics", "joint": 1, "reach_paths": 1}
    assert set(found.data_vars) == {"mean", "within", "reach", "loss"}
    assert "label" not in found.variables
    np.testing.assert_array_equal(found["time"], paths["time"])


def test_dimensions_may_be_missing_or_in_any_order():
    paths = make_paths((5, 5, 5))
    whole = lesde.statistics(paths)
    turned = lesde.statistics(paths.transpose("feature", "time", "sample", ...))
    xr.testing.assert_allclose(turned.transpose(*whole.dims), whole.transpose(*whole.dims))
    frame = lesde.statistics(paths.isel(learning_rate=1, replicate=2, time=3))
    xr.testing.assert_allclose(frame, whole.isel(learning_rate=1, replicate=2, time=3))
    assert frame["mean"].dims == ("class", "feature")


@pytest.mark.parametrize("counts", [(6, 6, 6), (3, 11, 4)])
@pytest.mark.parametrize("block", [60, 2**17])
def test_one_replicate_does_not_depend_on_the_others(counts, block, monkeypatch):
    """Bit for bit, also where samples are worked on in parts."""
    from lesde import paths as reduction

    monkeypatch.setattr(reduction, "BLOCK_VALUES", block)
    samples = np.random.default_rng(0).normal(size=(9, sum(counts), 5)).astype(np.float32)
    units = gap_directions(np.random.default_rng(1).normal(size=(len(counts), 5)))
    together = reduction.reduce_frame(samples, counts, units)
    for r in range(9):
        for a, b in zip(
            together, reduction.reduce_frame(samples[r : r + 1], counts, units), strict=True
        ):
            np.testing.assert_array_equal(a[r : r + 1], b)
    monkeypatch.undo()
    for a, b in zip(together, reduction.reduce_frame(samples, counts, units), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-13, atol=1e-13)


def test_frame_takes_tensors():
    import torch

    from lesde.paths import reduce_frame

    samples = torch.randn(3, 8, 2, generator=torch.Generator().manual_seed(0))
    before = samples.clone()
    found = reduce_frame(samples, np.array([5, 3]))
    assert len(found) == 3
    for a, b in zip(found, reduce_frame(samples.numpy(), [5, 3]), strict=True):
        np.testing.assert_array_equal(a, b)
    assert torch.equal(samples, before)


def test_digits_are_kept_far_from_the_origin():
    """A spread of 1e-3 about means of 2⁴⁰: samples on a grid of 2⁻¹² are exact in float64."""
    rng = np.random.default_rng(2)
    steps = rng.integers(-40, 40, size=(1, 2, 30, 3))
    exact = steps / 2.0**12
    from lesde.paths import reduce_frame

    far = exact + 2.0**40 + np.array([0.0, 3.0])[:, None, None]
    _, within, reach = reduce_frame(far.reshape(1, 60, 3), [30, 30])
    for k in range(2):
        np.testing.assert_allclose(within[0, k], np.cov(exact[0, k].T, bias=True), rtol=1e-13)
    # The direction comes from means rounded to 2⁻¹² of a gap of 5.
    unit = gap_directions(exact.mean(2)[0] + [[0.0], [3.0]])[0, 1]
    expected = ((exact[0, 0].mean(0) - exact[0, 0]) @ unit).max()
    assert reach[0, 0, 1] == pytest.approx(expected, rel=1e-3)
    assert within.min(axis=(0, 1)).diagonal().min() > 0


def test_samples_that_coincide_have_no_spread():
    from lesde.paths import reduce_frame

    value = np.array([0.1, -1e8, 3e-9])
    samples = np.tile(value, (2, 9, 1))
    samples[:, 4:] *= 1.7
    mean, within, reach = reduce_frame(samples, [4, 5])
    assert not within.any()
    np.testing.assert_array_equal(mean[0, 0], value)
    np.testing.assert_array_equal(reach[0], [[np.nan, 0.0], [0.0, np.nan]])
    _, _, apart = reduce_frame(np.tile(value, (1, 9, 1)), [4, 5])
    assert np.isnan(apart).all()


def test_reduction_errors():
    paths = make_paths((4, 6), replicates=2)
    with pytest.raises(TypeError, match=r"xarray.Dataset"):
        lesde.statistics(np.zeros((3, 4)))
    with pytest.raises(ValueError, match=r"it holds statistics of the classes"):
        lesde.statistics(lesde.statistics(paths))
    broken = paths.copy(deep=True)
    broken["features"][1, 0, 4, 3, 2] = np.nan
    with pytest.raises(
        ValueError, match=r"learning_rate=0.2, replicate=0, time=1.33.*sample=3, feature=2"
    ):
        lesde.statistics(broken)
    with pytest.raises(ValueError, match=r"too large.*range of float32.*astype\(float\)"):
        lesde.statistics((paths * 1e25).astype("float32"))
    with pytest.raises(TypeError, match="real numbers"):
        lesde.statistics(paths.astype(complex))
    assert lesde.statistics(paths.astype("int16"))["mean"].dtype == "float32"
    assert lesde.statistics(paths.astype("int64"))["mean"].dtype == "float64"


def test_direction_errors():
    paths = make_paths((4, 6), replicates=2)
    for directions, what in (
        (np.zeros((2, 2, 4)), "zero vector"),
        (np.full((2, 2, 4), np.nan), "must be finite"),
        (np.ones((2, 4)), r"must be over class, class_, feature"),
        (np.ones((3, 2, 2, 4)), r"time: 7"),
        (xr.DataArray(np.ones((2, 2, 2, 4)), dims=("replicate", "class", "class_", "feature")),
         "but replicate"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=what):
            lesde.statistics(paths, directions)
    model = lesde.LESDE(lesde.TwoLevel(1, 0), 2, 4, 5)
    with pytest.raises(ValueError, match="at their times"):
        lesde.statistics(paths, lesde.law(model, np.linspace(0, 1, 7), initial=np.eye(2, 4)))
    with pytest.raises(ValueError, match="must be over class, class_, feature"):
        lesde.statistics(paths, lesde.law(model, [0, 1], initial=np.eye(2, 4)))


def test_memory_of_the_result_is_checked_first(monkeypatch):
    # The function of the same name hides the module from an import statement.
    module = importlib.import_module("lesde.analysis.statistics")
    monkeypatch.setattr(module, "available_memory", lambda: 1e3)
    with pytest.raises(ValueError, match=r"statistics need .*, more than the 1 kB at hand"):
        lesde.statistics(make_paths((4, 6), replicates=2))
