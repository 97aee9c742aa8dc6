"""Collapse through layers: every number against one layer of one split at a time."""

from __future__ import annotations

import doctest
import importlib

import numpy as np
import pytest
import xarray as xr

import lesde
from lesde.analysis import class_means
from lesde.analysis.collapse import METRICS

WIDTHS = {"penultimate": 6, "conv": 40, "middle": 11, "logits": 4}
COUNTS = {"train": (12, 20, 9, 15), "held_out": (7, 5, 8, 6)}
TIMES = np.array([0.0, 0.5, 2.0])


def make_records(split, seed=0, replicates=2, rates=(0.1, 0.3)):
    """Layers of different widths in the order of `WIDTHS`, classifier's weights on the penultimate."""
    rng = np.random.default_rng([seed, len(split)])
    labels = rng.permutation(np.repeat(np.arange(4), COUNTS[split]))
    records = {}
    for layer, p in WIDTHS.items():
        means = np.random.default_rng(p).standard_normal((4, p))  # the same in all splits
        shape = (len(rates), replicates, len(TIMES), len(labels), p)
        growth = (0.2 + TIMES)[:, None, None]
        x = growth * means[labels] + rng.standard_normal(shape)
        dims = ("learning_rate", "replicate", "time")
        coords = {
            "learning_rate": list(rates),
            "replicate": np.arange(replicates),
            "time": ("time", TIMES, {"long_name": "time"}),
            "label": ("sample", labels),
            "iteration": (("learning_rate", "time"), np.rint(TIMES / np.array(rates)[:, None])),
        }
        paths = xr.Dataset(
            {"features": ((*dims, "sample", "feature"), x.astype(np.float32))},
            coords,
            {"layer": layer, "engine": "test"},
        )
        if layer == "penultimate":
            same = np.random.default_rng(77)
            paths["weights"] = (
                (*dims, "class", "feature_in"),
                same.standard_normal((*shape[:3], 4, p)),
            )
            paths["bias"] = ((*dims, "class"), same.standard_normal((*shape[:3], 4)))
        records[layer] = paths
    return records


@pytest.fixture
def both():
    return {split: make_records(split) for split in COUNTS}


def cdnv(x, labels):
    """From the definition, by loops."""
    total, pairs = 0.0, 0
    K = labels.max() + 1
    mean = [x[labels == k].mean(axis=0) for k in range(K)]
    var = [np.mean([np.sum((v - mean[k]) ** 2) for v in x[labels == k]]) for k in range(K)]
    for k in range(K):
        for l in range(k):
            total += (var[k] + var[l]) / (2 * np.sum((mean[k] - mean[l]) ** 2))
            pairs += 1
    return total / pairs


def accuracy(x, labels, train, train_labels):
    centers = [train[train_labels == k].mean(axis=0) for k in range(train_labels.max() + 1)]
    nearest = [np.argmin([np.sum((v - c) ** 2) for c in centers]) for v in x]
    return np.mean(np.array(nearest) == labels)


def test_every_number_against_loops(both):
    result = lesde.layer_collapse(both)
    dims = ("layer", "split", "learning_rate", "replicate", "time")
    assert result.ncc_accuracy.dims == result.nc1_cdnv.dims == dims
    assert result.layer.values.tolist() == ["conv", "middle", "penultimate"]
    assert result.split.values.tolist() == ["train", "held_out"]
    assert result.width.values.tolist() == [40, 11, 6]
    assert result["count"].dims == ("split", "class")
    assert result["count"].values.tolist() == [list(counts) for counts in COUNTS.values()]
    for layer in result.layer.values:
        train = both["train"][layer]
        for split, records in both.items():
            one = result.sel(layer=layer, split=split)
            x, labels = records[layer].features.values.astype(float), records[layer].label.values
            base, base_labels = train.features.values.astype(float), train.label.values
            for at in np.ndindex(x.shape[:3]):
                assert one.nc1_cdnv.values[at] == pytest.approx(cdnv(x[at], labels), rel=1e-10)
                expected = accuracy(x[at], labels, base[at], base_labels)
                assert one.ncc_accuracy.values[at] == pytest.approx(expected, abs=1e-12)
    assert result.attrs["centers"] == "train"
    assert result.attrs["classifier"] == "penultimate"
    assert result.attrs["engine"] == "test"
    assert "layer" not in result.attrs


def test_metrics_of_the_classifier_are_of_the_last_hidden_layer(both):
    result = lesde.layer_collapse(both)
    last, train = both["held_out"]["penultimate"], both["train"]["penultimate"]
    alone = lesde.neural_collapse(last, centers=train)
    for name in ("nc3", "nc3_duality", "nc4"):
        assert result[name].dims == ("split", "learning_rate", "replicate", "time")
        np.testing.assert_array_equal(result[name].sel(split="held_out"), alone[name])
        assert result[name].attrs == alone[name].attrs
    for name in ("nc1", "nc2_etf", "nc2_norm_cv", "nc2_angle_std"):
        np.testing.assert_array_equal(
            result[name].sel(split="held_out", layer="penultimate"), alone[name]
        )
    assert set(result.data_vars) == set(METRICS)


def test_one_split_is_its_own_reference(both):
    alone = lesde.layer_collapse(both["held_out"])
    own = lesde.layer_collapse(both, centers="own").sel(split="held_out", drop=True)
    xr.testing.assert_equal(alone, own)
    assert alone.attrs["centers"] == "own"
    assert alone.ncc_accuracy.dims == ("layer", "learning_rate", "replicate", "time")
    with_train = lesde.layer_collapse(both).sel(split="held_out")
    # Centres made of the samples themselves lie nearer to them.
    assert float((alone.ncc_accuracy - with_train.ncc_accuracy).mean()) > 0.02
    reverse = lesde.layer_collapse(both, centers="held_out")
    assert reverse.attrs["centers"] == "held_out"
    np.testing.assert_array_equal(reverse.ncc_accuracy.sel(split="held_out"), alone.ncc_accuracy)


def test_layers_and_metrics_that_are_named(both):
    chosen = lesde.layer_collapse(both, ["middle", "logits"], ["nc1_cdnv", "ncc_accuracy"])
    whole = lesde.layer_collapse(both)
    assert chosen.layer.values.tolist() == ["middle", "logits"]
    assert set(chosen.data_vars) == {"nc1_cdnv", "ncc_accuracy"}
    np.testing.assert_array_equal(
        chosen.ncc_accuracy.sel(layer="middle"), whole.ncc_accuracy.sel(layer="middle")
    )
    assert "classifier" not in chosen.attrs
    last = lesde.layer_collapse(both, metrics="nc3_duality")
    assert set(last.data_vars) == {"nc3_duality"}
    assert "layer" not in last.dims
    np.testing.assert_array_equal(last.nc3_duality, whole.nc3_duality)
    without = lesde.layer_collapse(both, ["conv", "middle"])
    assert "nc3" not in without
    np.testing.assert_array_equal(without.nc1, whole.nc1.sel(layer=["conv", "middle"]))


def test_frames_without_replicates_or_learning_rates(both):
    single = {
        split: {k: v.isel(learning_rate=0, replicate=0, drop=True) for k, v in each.items()}
        for split, each in both.items()
    }
    result = lesde.layer_collapse(single)
    assert result.ncc_accuracy.dims == ("layer", "split", "time")
    np.testing.assert_array_equal(
        result.nc1, lesde.layer_collapse(both).nc1.isel(learning_rate=0, replicate=0)
    )


def test_lazily_stored_features_are_read_in_batches(both, tmp_path, monkeypatch):
    monkeypatch.setattr(class_means, "BLOCK_VALUES", 1500)
    whole = lesde.layer_collapse(both)
    stored, largest = {}, [0]
    for split, records in both.items():
        stored[split] = {}
        for layer, paths in records.items():
            where = tmp_path / f"{split}-{layer}.zarr"
            paths.to_zarr(where, consolidated=False)
            stored[split][layer] = xr.open_zarr(where, chunks=None, consolidated=False)
    take = xr.Variable.__getitem__

    def watched(self, index):
        found = take(self, index)
        if "sample" in self.dims and "feature" in self.dims and not self._in_memory:
            largest[0] = max(largest[0], found.size)
        return found

    monkeypatch.setattr(xr.Variable, "__getitem__", watched)
    result = lesde.layer_collapse(stored)
    xr.testing.assert_allclose(result, whole)
    # A batch of the held-out features: of the training ones as many frames, which may have more samples.
    assert 0 < largest[0] <= max(1500, 56 * 40)
    for records in stored.values():
        assert not any(paths.features.variable._in_memory for paths in records.values())


def test_statistics_serve_where_samples_are_not_needed(both):
    reduced = {layer: lesde.statistics(paths) for layer, paths in both["train"].items()}
    result = lesde.layer_collapse(reduced, metrics=["nc1", "nc1_cdnv", "nc3_duality"])
    whole = lesde.layer_collapse(both["train"])
    np.testing.assert_allclose(result.nc1_cdnv, whole.nc1_cdnv, rtol=1e-4)
    np.testing.assert_allclose(result.nc3_duality, whole.nc3_duality, rtol=1e-4)
    assert result.width.values.tolist() == [40, 11, 6]
    with pytest.raises(ValueError, match=r"features of every sample"):
        lesde.layer_collapse(reduced)


def test_refusals(both):
    train = both["train"]
    for records, kind, message in (
        (train["conv"], TypeError, "records must map the names of layers"),
        ({}, TypeError, "records must map the names of layers"),
        ({"logits": train["logits"]}, ValueError, "layers must name at least one hidden"),
        ({"conv": train["conv"], "x": 1}, TypeError, "records must map the names of layers"),
        ({"train": {"conv": 3}}, TypeError, "records must map the names of layers"),
    ):
        with pytest.raises(kind, match=message):
            lesde.layer_collapse(records)
    with pytest.raises(ValueError, match=r"layers must be one of .*'convv'.*Did you"):
        lesde.layer_collapse(both, ["convv"])
    with pytest.raises(ValueError, match="layers must name at least one"):
        lesde.layer_collapse(both, [])
    with pytest.raises(ValueError, match=r"metrics must be one of .*Did you mean 'ncc_accuracy'"):
        lesde.layer_collapse(both, metrics="ncc_acuracy")
    with pytest.raises(ValueError, match="'nc3' needs the weights of a classifier"):
        lesde.layer_collapse(both, ["conv"], metrics=["nc1", "nc3"])
    with pytest.raises(ValueError, match="centers must be one of 'own', 'train', 'held_out'"):
        lesde.layer_collapse(both, centers="test")
    with pytest.raises(ValueError, match=r"cannot align.*time"):
        lesde.layer_collapse(train | {"middle": train["middle"].isel(time=slice(2))})
    with pytest.raises(ValueError, match="count"):
        lesde.layer_collapse(train | {"middle": train["middle"].isel(sample=slice(1, None))})
    other = {k: v.isel(time=slice(2)) for k, v in both["held_out"].items()}
    with pytest.raises(ValueError, match=r"cannot align.*time"):
        lesde.layer_collapse({"train": train, "held_out": other})
    with pytest.raises(ValueError, match=r"cannot align.*time"):
        lesde.layer_collapse({"train": train, "held_out": other}, centers="own")


def test_example_of_the_docstring():
    found = doctest.testmod(importlib.import_module("lesde.analysis.layers"))
    assert found.attempted > 0
    assert found.failed == 0
