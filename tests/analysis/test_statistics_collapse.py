"""Neural collapse from statistics, against the same from the samples."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

import lesde
from lesde.analysis.collapse import METRICS, metric
from tests.analysis.samples import COUNTS, make_paths

NAMES = ["nc1", "nc1_trace", "nc1_cdnv", "nc2_etf", "nc2_norm_cv", "nc2_angle_std", "nc3"]
NAMES.append("nc3_duality")


@pytest.mark.parametrize("counts", COUNTS.values(), ids=COUNTS)
def test_collapse(counts):
    paths = make_paths(counts)
    weights = np.random.default_rng(3).normal(size=(len(counts), 4))
    direct = lesde.neural_collapse(paths, NAMES, weights=weights)
    reduced = lesde.statistics(paths)
    found = lesde.neural_collapse(reduced, weights=weights)
    assert list(found.data_vars) == NAMES  # all but nc4
    for name in NAMES:
        assert found[name].dims == direct[name].dims
        assert found[name].attrs == direct[name].attrs
        # Distances to the ETF that vanish (K = 2) are rounding of numbers of size 1.
        np.testing.assert_allclose(found[name], direct[name], rtol=1e-12, atol=1e-14)
    assert set(lesde.neural_collapse(reduced).data_vars) == set(NAMES) - {"nc3", "nc3_duality"}
    xr.testing.assert_equal(found["count"].drop_vars("count"), direct["count"].drop_vars("count"))


def test_collapse_in_single_precision():
    """Statistics are rounded to 6e-8; that is multiplied by at most 10 here (spread over gap)."""
    paths = make_paths((6, 9, 5), "float32")
    direct = lesde.neural_collapse(paths)
    found = lesde.neural_collapse(lesde.statistics(paths))
    for name in found.data_vars:
        np.testing.assert_allclose(found[name], direct[name], rtol=3e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_collapse_where_paths_start_at_common_or_own_means(dtype):
    """No spread at the first time, equal means at the second: 0, inf and NaN as from the samples."""
    paths = make_paths((4, 4, 6), dtype, replicates=5, times=3, offset=1 / 3)
    labels = paths.label.values
    paths["features"][:, :, 0] = np.float64([[0.1, 7], [1 / 3, 2], [-3, 1]])[labels].repeat(2, 1)
    paths["features"][:, :, 1] = 1 / 3
    direct = lesde.neural_collapse(paths)
    found = lesde.neural_collapse(lesde.statistics(paths))
    for name in found.data_vars:
        np.testing.assert_allclose(
            found[name], direct[name], rtol=1e-11 if dtype == "float64" else 1e-5, atol=1e-6
        )
    assert (found["nc1"][:, :, 0] == 0).all()
    assert np.isnan(found["nc1"][:, :, 1]).all()


def test_collapse_reads_only_variances_for_nc2():
    """Variances tell the size of the features, and with it which class means coincide."""
    reduced = lesde.statistics(make_paths((4, 4), replicates=2))
    reduced["within"] = reduced["within"].where(np.eye(4) == 1)
    lesde.neural_collapse(reduced, ["nc2_etf", "nc2_norm_cv"])
    with pytest.raises(
        ValueError, match=r"paths.within must be finite; got nan at learning_rate=0.1"
    ):
        lesde.neural_collapse(reduced, "nc1")


def test_collapse_in_batches(monkeypatch):
    from lesde.analysis import class_means

    reduced = lesde.statistics(make_paths((4, 7, 3), replicates=5))
    whole = lesde.neural_collapse(reduced)
    monkeypatch.setattr(class_means, "BLOCK_VALUES", 100)
    xr.testing.assert_allclose(lesde.neural_collapse(reduced), whole, rtol=1e-13)


def test_metrics_that_need_samples():
    paths = make_paths((4, 5), replicates=2)
    reduced = lesde.statistics(paths)
    weights = np.eye(2, 4)
    with pytest.raises(ValueError, match=r"for the metric 'nc4'.*keep='features'"):
        lesde.neural_collapse(reduced, "nc4", weights=weights)

    @metric()
    def largest(frames):
        """Largest feature."""
        return np.max([block.values.max(axis=(1, 2)) for block in frames.blocks()], axis=0)

    try:
        np.testing.assert_array_equal(
            lesde.neural_collapse(paths, "largest").largest,
            paths.features.max(("sample", "feature")),
        )
        with pytest.raises(ValueError, match=r"for this metric.*keep='features'"):
            lesde.neural_collapse(reduced, "largest")
    finally:
        del METRICS["largest"]


def test_convergence_of_collapse():
    paths = make_paths((5, 5, 5))
    direct = lesde.convergence(lesde.neural_collapse(paths))
    found = lesde.convergence(lesde.neural_collapse(lesde.statistics(paths)))
    np.testing.assert_allclose(found.rate, direct.rate, rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(found.law, direct.law)
