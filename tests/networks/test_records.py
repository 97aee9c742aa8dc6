"""Recorded datasets: shapes, names, one learning rate at a time, and a store that survives a stop."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import xarray as xr

from lesde.networks import collect, digits, mlp, record_ensemble, train_ensemble

TIMES = [0.0, 0.5, 1.0, 2.0]


@pytest.fixture(scope="module")
def data():
    return digits(classes=4, n_train_per_class=20, n_probe_per_class=5)


def network():
    return mlp(64, (8, 6), 4)


@pytest.fixture(scope="module")
def records(data):
    return list(record_ensemble(data, network, [0.05, 0.1], 3, TIMES, seed=4))


def test_shapes_and_coordinates(records, data):
    assert [set(record) for record in records] == [{"logits", "penultimate"}] * 2
    logits, penultimate = records[1]["logits"], records[1]["penultimate"]
    dims = ("learning_rate", "replicate", "time", "sample", "feature")
    assert logits.features.dims == penultimate.features.dims == dims
    assert logits.features.shape == (1, 3, 4, 20, 4)
    assert penultimate.features.shape == (1, 3, 4, 20, 6)
    assert logits.features.dtype == np.float32
    np.testing.assert_array_equal(logits.time, TIMES)
    np.testing.assert_array_equal(logits.label, data.probe_y)
    assert logits.label.dims == ("sample",)
    np.testing.assert_array_equal(logits.learning_rate, [0.1])
    assert logits.iteration.dims == ("learning_rate", "time")
    np.testing.assert_array_equal(logits.iteration, [[0, 5, 10, 20]])
    for variable in ("loss", "accuracy"):
        assert logits[variable].dims == dims[:3]
    assert "weights" not in logits
    assert penultimate.weights.dims == (*dims[:3], "class", "feature_in")
    assert penultimate.weights.shape == (1, 3, 4, 4, 6)
    assert penultimate.bias.shape == (1, 3, 4, 4)
    attrs = penultimate.attrs
    assert attrs["layer"] == "penultimate"
    assert attrs["engine"] == "network"
    assert attrs["seed"] == 4
    assert "out_features=6" in attrs["architecture"]
    assert "digits" in attrs["data"]
    assert {"lesde_version", "torch_version", "numpy_version"} <= set(attrs)


def test_classifier_of_the_penultimate_layer_gives_the_logits(records):
    p = records[0]["penultimate"]
    again = xr.dot(p.features.rename(feature="feature_in"), p.weights, dim="feature_in") + p.bias
    wanted = records[0]["logits"].features.rename(feature="class")
    np.testing.assert_allclose(again.transpose(*wanted.dims), wanted, atol=1e-5)


def test_records_hold_what_training_gave(records, data):
    runs = train_ensemble(data, network, [0.05, 0.1], 3, TIMES, seed=4, layers=["penultimate"])
    for run, record in zip(runs, records, strict=True):
        features = record["penultimate"].features
        np.testing.assert_array_equal(features[0], run.features["penultimate"])
        np.testing.assert_array_equal(record["penultimate"].loss[0], run.loss)


def test_collect_joins_learning_rates(records):
    joined = collect(records)
    assert set(joined) == {"logits", "penultimate"}
    paths = joined["logits"]
    assert paths.features.shape == (2, 3, 4, 20, 4)
    np.testing.assert_array_equal(paths.iteration, [[0, 10, 20, 40], [0, 5, 10, 20]])
    assert paths.label.dims == ("sample",)
    assert paths.time.dims == ("time",)
    assert paths.attrs == records[0]["logits"].attrs
    for record in records:
        rate = float(record["logits"].learning_rate[0])
        xr.testing.assert_identical(paths.sel(learning_rate=[rate]), record["logits"])


def test_collect_refuses_what_does_not_join(records, data):
    with pytest.raises(ValueError, match=r"at least one dict of datasets by layer.*got \[\]"):
        collect([])
    with pytest.raises(ValueError, match="same layers"):
        collect([records[0], {"logits": records[1]["logits"]}])
    (shorter,) = record_ensemble(data, network, 0.2, 3, TIMES[:3])
    with pytest.raises(ValueError, match="join='exact'"):
        collect([records[0], shorter])


def test_single_layer_and_no_bias(data):
    (record,) = record_ensemble(
        data, lambda: mlp(64, (5,), 4, bias=False), 0.1, [2, 5], TIMES, layers="penultimate"
    )
    assert set(record) == {"penultimate"}
    np.testing.assert_array_equal(record["penultimate"].replicate, [2, 5])
    assert "bias" not in record["penultimate"]


def test_store_holds_what_was_done_when_interrupted(data, tmp_path):
    """Written one learning rate at a time, as a study does; the stop comes in the third of four."""
    stops = {"at": 40 + 20 + 10}

    def progress(done, total):
        if done >= stops["at"]:
            raise KeyboardInterrupt

    rates, path = [0.05, 0.1, 0.2, 0.25], tmp_path / "logits.zarr"
    kept = []

    def write_all():
        for record in record_ensemble(data, network, rates, 2, [0.0, 1.0, 2.0], progress=progress):
            kept.append(record["logits"])
            append = {"append_dim": "learning_rate"} if path.exists() else {}
            record["logits"].to_zarr(path, consolidated=False, **append)

    with pytest.raises(KeyboardInterrupt):
        write_all()
    stored = xr.open_zarr(path, consolidated=False).load()
    np.testing.assert_array_equal(stored.learning_rate, rates[:2])
    xr.testing.assert_equal(stored, collect([{"logits": one} for one in kept])["logits"])


def test_arguments_are_checked_at_the_call(data):
    with pytest.raises(ValueError, match=r"times\[0\] must be 0"):
        record_ensemble(data, network, 0.1, 2, [1.0, 2.0])


def test_importing_the_package_does_not_import_torch():
    code = "import sys, lesde.networks; print('torch' in sys.modules, 'sklearn' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
