"""Fits, stores, commands and figures from statistics, against the same from the samples."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import lesde
from lesde.files import write
from tests.analysis.samples import COUNTS, make_paths
from tests.plot.conftest import legend_texts


@pytest.mark.parametrize("counts", COUNTS.values(), ids=COUNTS)
@pytest.mark.parametrize("kernel", ["two-level", "matrix"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_elasticity(counts, kernel):
    paths = make_paths(counts, replicates=10)
    direct = lesde.fit_elasticity(paths, kernel=kernel)
    found = lesde.fit_elasticity(lesde.statistics(paths), kernel=kernel)
    assert found.attrs == direct.attrs
    for name, values in direct.data_vars.items():
        if values.dtype.kind == "f":
            scale = np.abs(values.values[np.isfinite(values)]).max(initial=0.0)
            # A tail index is the end of a search, which stops 1e-8 from it.
            close = 1e-6 if name.startswith("tail_index") else 1e-10
            np.testing.assert_allclose(found[name], values, rtol=close, atol=close * scale)
        else:
            np.testing.assert_array_equal(found[name], values)


def test_elasticity_of_single_means_and_iterations():
    paths = make_paths((5, 6), replicates=10).isel(learning_rate=0)
    paths = paths.assign_coords(iteration=("time", np.arange(7) * 10))
    reduced = lesde.statistics(paths)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        direct = lesde.fit_elasticity(paths)
        found = lesde.fit_elasticity(reduced[["mean"]])
    assert found.attrs["scheme"] == direct.attrs["scheme"] == "discrete"
    np.testing.assert_allclose(found.A, direct.A, rtol=1e-10, atol=1e-10)
    broken = reduced.copy(deep=True)
    broken["mean"][3, 2] = np.inf
    with pytest.raises(
        ValueError, match=r"paths.mean must be finite; got inf at replicate=3, time=0.66"
    ):
        lesde.fit_elasticity(broken)
    with pytest.raises(ValueError, match=r"paths.mean must have the dimensions 'time'"):
        lesde.fit_elasticity(reduced.isel(time=0))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_stored_statistics(tmp_path: Path):
    """A store read lazily gives the same as statistics in memory, on the command line too."""
    from typer.testing import CliRunner

    from lesde.cli.commands import app

    paths = make_paths((5, 7, 4), "float32", replicates=12)
    write(paths, tmp_path / "paths.zarr")
    lazy_paths = xr.open_zarr(tmp_path / "paths.zarr", consolidated=False, chunks=None)
    reduced = lesde.statistics(paths)
    xr.testing.assert_equal(lesde.statistics(lazy_paths), reduced)
    store = tmp_path / "reduced.zarr"
    write(reduced.isel(learning_rate=0), store)
    lazy = xr.open_zarr(store, consolidated=False, chunks=None)
    first = reduced.isel(learning_rate=0)
    xr.testing.assert_equal(lesde.neural_collapse(lazy), lesde.neural_collapse(first))
    xr.testing.assert_equal(lesde.separation_probability(lazy), lesde.separation_probability(first))
    xr.testing.assert_equal(lesde.fit_elasticity(lazy), lesde.fit_elasticity(first))
    run = CliRunner().invoke
    for arguments in (
        ["separation", str(store)],
        ["separation", str(store), "--criterion", "nearest_center"],
        ["collapse", str(store)],
        ["fit", str(store)],
        *(
            ["plot", name, str(store), "--out", str(tmp_path / f"{name}.png")]
            for name in ("collapse", "probability", "elasticity")
        ),
    ):
        result = run(app, arguments)
        assert result.exit_code == 0, result.output
    for arguments in (
        ["separation", str(store), "--criterion", "linear"],
        *(
            ["plot", name, str(store), "--out", str(tmp_path / f"{name}.png")]
            for name in ("fan", "simplex", "simplex3d")
        ),
        ["plot", "animation", str(store), "--out", str(tmp_path / "a.gif")],
    ):
        result = run(app, arguments)
        assert result.exit_code == 2
        assert "--keep features" in result.output
        assert result.output.count("\n") == 1


def test_figure_of_class_means():
    paths = make_paths((5, 7, 4), replicates=12)
    reduced = lesde.statistics(paths)
    for observed, law in ((reduced, paths), (paths, reduced), (reduced, reduced)):
        axes = lesde.plot.class_means(observed, law)
        assert legend_texts(axes[0])[:2] == ["model", "observed"]
        drawn = axes[0].containers[0].lines[0].get_ydata()
        mean = reduced["mean"].isel({"learning_rate": 0, "class": 0}).mean("replicate")
        assert len(axes) == 2
        assert len(drawn) == len(mean.time)
    direct = lesde.plot.class_means(paths, paths)[1].containers[1].lines[0].get_ydata()
    found = axes[1].containers[1].lines[0].get_ydata()
    np.testing.assert_allclose(found, direct, rtol=1e-12)


def test_a_law_is_no_statistics():
    """A law has means and covariances of processes, not of samples."""
    law = lesde.law(lesde.LESDE(lesde.TwoLevel(1, 0), 2, 4, 5), [0.0, 1.0], initial=np.eye(2, 4))
    for analysis in (lesde.neural_collapse, lesde.separation_probability, lesde.fit_elasticity):
        with pytest.raises(ValueError, match="features missing"):
            analysis(law)
