"""One training seen on training and held-out images equals two trainings seen on one each."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

import lesde
from lesde.networks import (
    collect,
    digits,
    mlp,
    probe_both,
    record_ensemble,
    split_records,
    with_class_counts,
)

LAYERS = ("logits", "activation1", "penultimate")
SETTINGS = {"classes": 4, "n_train_per_class": 30, "n_probe_per_class": 8, "seed": 3}


def record(data):
    return record_ensemble(
        data, lambda: mlp(64, (9, 6), 4), [0.05, 0.1], 2, [0.0, 1.0, 3.0], layers=LAYERS, seed=5
    )


@pytest.fixture(scope="module")
def parts():
    data, split = probe_both(digits(**SETTINGS, probe="held_out"))
    return split_records(collect(record(data)), split)


def test_parts_equal_trainings_with_one_probe_each(parts):
    assert list(parts) == ["train", "held_out"]
    for probe in ("train", "held_out"):
        alone = collect(record(digits(**SETTINGS, probe=probe)))
        for layer in LAYERS:
            found, wanted = parts[probe][layer], alone[layer]
            np.testing.assert_array_equal(found.label, wanted.label)
            # Another number of inputs in one product may round differently in float32.
            np.testing.assert_allclose(found.features, wanted.features, rtol=1e-5, atol=1e-5)
            assert found.attrs["split"] == probe
            assert "loss" not in found
        xr.testing.assert_allclose(
            parts[probe]["penultimate"].weights, alone["penultimate"].weights
        )
        np.testing.assert_allclose(parts[probe]["logits"].accuracy, alone["logits"].accuracy)
    assert not np.allclose(parts["train"]["logits"].accuracy, parts["held_out"]["logits"].accuracy)


def test_parts_go_into_layer_collapse(parts):
    result = lesde.layer_collapse(parts)
    assert result.layer.values.tolist() == ["activation1", "penultimate"]
    assert result.split.values.tolist() == ["train", "held_out"]
    assert result["count"].values.tolist() == [[8] * 4] * 2
    assert result.nc3.dims == ("split", "learning_rate", "replicate", "time")


def test_the_probe_is_the_first_training_images_and_then_the_held_out_ones():
    data = digits(**SETTINGS, probe="held_out")
    both, split = probe_both(data)
    assert split.tolist() == ["train"] * 32 + ["held_out"] * 32
    for k in range(4):
        np.testing.assert_array_equal(
            both.probe_x[split == "train"][8 * k : 8 * k + 8], data.train_x[data.train_y == k][:8]
        )
    np.testing.assert_array_equal(both.probe_x[split == "held_out"], data.probe_x)
    np.testing.assert_array_equal(both.probe_y[split == "held_out"], data.probe_y)
    np.testing.assert_array_equal(both.train_x, data.train_x)
    assert both.class_names == data.class_names
    # A small class gives what it has.
    few = with_class_counts(digits(classes=2, n_probe_per_class=6, probe="held_out"), [30, 3])
    assert np.bincount(probe_both(few)[0].probe_y).tolist() == [12, 9]


def test_samples_in_any_order_and_datasets_without_samples():
    data, split = probe_both(digits(**SETTINGS, probe="held_out"))
    (whole,) = record_ensemble(
        data, lambda: mlp(64, (5,), 4), 0.1, 1, [0, 1], layers=("logits",), drawn=True
    )
    assert "drawn" in whole
    order = np.random.default_rng(0).permutation(len(split))
    mixed = split_records({"logits": whole["logits"].isel(sample=order)}, split[order])
    found = split_records(whole, split)
    assert set(found["train"]) == {"logits"}
    at = np.flatnonzero(split[order] == "held_out")
    np.testing.assert_array_equal(
        mixed["held_out"]["logits"].features, whole["logits"].features.isel(sample=order[at])
    )


def test_stored_records_stay_on_disk(parts, tmp_path):
    data, split = probe_both(digits(**SETTINGS, probe="held_out"))
    whole = collect(record(data))["activation1"]
    whole.to_zarr(tmp_path / "a.zarr", consolidated=False)
    stored = xr.open_zarr(tmp_path / "a.zarr", chunks=None, consolidated=False)
    found = split_records({"activation1": stored}, split)
    assert not found["train"]["activation1"].features.variable._in_memory
    xr.testing.assert_allclose(
        found["held_out"]["activation1"].features, parts["held_out"]["activation1"].features
    )


def test_refusals():
    with pytest.raises(ValueError, match="must have a probe of held-out images"):
        probe_both(digits(**SETTINGS, probe="train"))
    with pytest.raises(TypeError, match="data must be an ImageData"):
        probe_both([1, 2])
    records = {"logits": xr.Dataset({"features": (("sample", "feature"), np.zeros((4, 2)))})}
    with pytest.raises(
        ValueError, match="one name for each of the 4 samples of the layer 'logits'; got 3"
    ):
        split_records(records, ["a", "b", "b"])
    with pytest.raises(TypeError, match="split must be a one-dimensional array of names"):
        split_records(records, [0, 1, 1, 0])
