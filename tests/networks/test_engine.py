"""Threads, parts and devices: none of them changes what a network learns."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from lesde.networks import geo_mnist, lenet, mlp, record_ensemble, train_ensemble
from lesde.networks.ensemble import one_after_another, parts_of, threads
from lesde.networks.training import Job, stepping

from .architectures import convolutional, ensemble_of


@pytest.fixture(scope="module")
def shapes():
    return geo_mnist(20, 4, n_drawn=40)


@pytest.fixture
def small_parts(monkeypatch):
    """As if every network were large enough for a part of its own."""
    monkeypatch.setattr("lesde.networks.ensemble._LEAST", 1)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def train(data, architecture, replicates, **options):
    (run,) = train_ensemble(
        data,
        architecture,
        0.05,
        replicates,
        [0, 0.5, 1.5],
        layers=("logits", "penultimate"),
        drawn=True,
        seed=2,
        **options,
    )
    return run


def assert_same_bits(one, other, rows=slice(None)):
    pairs = [(one.features[layer], other.features[layer]) for layer in one.features]
    for name in ("loss", "accuracy", "weights", "bias", "drawn_logits", "drawn_labels"):
        pairs.append((getattr(one, name), getattr(other, name)))
    for mine, theirs in pairs:
        np.testing.assert_array_equal(mine, theirs[rows])


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("network", ["lenet", "mlp"])
def test_same_bits_in_any_company_and_any_threads(
    data, shapes, small_parts, monkeypatch, network, batch_size
):
    """Of everything that a run records, and however often the threads meet."""
    images, architecture = (
        (shapes, lambda: lenet(3)) if network == "lenet" else (data, lambda: mlp(64, (32, 32), 4))
    )
    torch.set_num_threads(1)
    together = train(images, architecture, 7, batch_size=batch_size)
    assert np.abs(np.diff(together.features["logits"][:, [0, -1]], axis=1)).max() > 0.05
    for count in (2, 3):
        torch.set_num_threads(count)
        assert_same_bits(train(images, architecture, 7, batch_size=batch_size), together)
    few = train(images, architecture, [5, 0], batch_size=batch_size)
    assert_same_bits(few, together, [5, 0])
    monkeypatch.setattr("lesde.networks.training.STEPS", 7)
    assert_same_bits(train(images, architecture, [4], batch_size=batch_size), together, [4])


def test_an_error_in_a_thread_comes_out(data, small_parts, monkeypatch):
    def fail(*_):
        raise RuntimeError("in a thread")

    monkeypatch.setattr("lesde.networks.layers.Linear.backward", fail)
    torch.set_num_threads(2)
    with pytest.raises(RuntimeError, match="in a thread"):
        train(data, lambda: mlp(64, (), 4), 4)
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("layers", [("logits", "penultimate"), ("pool1", "relu4", "hidden1")])
@pytest.mark.parametrize("at_once", [1, 2**21])
def test_evaluation_written_out_agrees_with_the_modules(shapes, monkeypatch, layers, at_once):
    monkeypatch.setattr("lesde.networks.ensemble._AT_ONCE", at_once)
    stack = ensemble_of(
        lambda: lenet(3), shapes, range(4), dtype=torch.float64, layers=(*layers, "logits")[:3]
    )
    x = torch.as_tensor(shapes.probe_x, dtype=torch.float64)
    with threads(2, 1) as share:
        seen = stack.evaluate(x, share=share)
    own = stack.evaluate(x.expand(4, *x.shape), own=True)
    stack.chain = lambda: None
    wanted = stack.evaluate(x)
    for layer, features in wanted.items():
        np.testing.assert_allclose(seen[layer], features, rtol=0, atol=1e-13)
        np.testing.assert_allclose(own[layer], features, rtol=0, atol=1e-13)


def test_layers_before_pooling_are_recorded(shapes):
    (run,) = train_ensemble(
        shapes, lambda: lenet(3), 0.05, 2, [0, 0.1], layers=("conv1", "relu1", "pool1")
    )
    conv = run.features["conv1"].reshape(2, 2, 12, 6, 28, 28)
    relu = run.features["relu1"].reshape(conv.shape)
    np.testing.assert_array_equal(relu, conv.clip(0))
    best = relu.reshape(2, 2, 12, 6, 14, 2, 14, 2).max((5, 7))
    np.testing.assert_array_equal(run.features["pool1"], best.reshape(2, 2, 12, -1))


def test_what_comes_before_any_weights_is_given_for_every_network(data):
    """The penultimate layer of a linear classifier is the input itself."""
    run = train(data, lambda: mlp(64, (), 4), 3)
    wanted = np.broadcast_to(data.probe_x, (3, 3, *data.probe_x.shape))
    np.testing.assert_array_equal(run.features["penultimate"], wanted)


@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize("numbers", [100, 2**16, 2**19, 2**25])
@pytest.mark.parametrize("replicates", [1, 2, 7, 100])
def test_parts_hold_every_replicate_once(replicates, numbers, workers):
    parts = parts_of(replicates, numbers, workers)
    held = [len(range(*part.indices(replicates))) for part in parts]
    everyone = [r for part in parts for r in range(*part.indices(replicates))]
    assert everyone == list(range(replicates))
    assert max(held) - min(held) <= 1
    assert max(held) * numbers <= max(2**21, numbers)
    enough = replicates * numbers >= 2**18 * 2 * workers and replicates >= workers
    assert len(parts) >= workers or not enough


def test_sharing_keeps_the_order_and_the_setting():
    before = torch.get_num_threads()
    for workers in (1, 3):
        with threads(workers, 1) as share:
            assert share(lambda i: (i, torch.get_num_threads()), range(5)) == [
                (i, 1) for i in range(5)
            ]
        assert torch.get_num_threads() == before
    assert one_after_another(str, [1, 2]) == ["1", "2"]


def test_a_device_that_is_not_there_is_refused(data):
    with pytest.raises(ValueError, match=r"torch sees \d+ CUDA devices"):
        train_ensemble(data, lambda: mlp(64, (), 4), 0.1, 2, [0, 1.0], device="cuda:99")
    with pytest.raises(ValueError, match="device must be a torch device"):
        record_ensemble(data, lambda: mlp(64, (), 4), 0.1, 2, [0, 1.0], device="gpu0")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device here")
@pytest.mark.parametrize("network", ["lenet", "mlp", "mapped"])
def test_same_networks_on_a_gpu(data, shapes, network):
    images, architecture = {
        "lenet": (shapes, lambda: lenet(3)),
        "mlp": (data, lambda: mlp(64, (32, 32), 4)),
        "mapped": (data, convolutional),
    }[network]
    here, there = (train(images, architecture, 3, device=device) for device in ("cpu", "cuda"))
    for layer, features in here.features.items():
        np.testing.assert_allclose(there.features[layer], features, atol=1e-4)
    np.testing.assert_allclose(there.drawn_logits, here.drawn_logits, atol=1e-4)
    np.testing.assert_array_equal(there.drawn_labels, here.drawn_labels)
    np.testing.assert_allclose(there.weights, here.weights, atol=1e-4)


def test_a_frozen_first_layer_takes_the_other_way_on_every_device(data):
    """A chain whose weights are not all trained is mapped; its fixed parameters go along."""

    def half_frozen():
        network = nn.Sequential(nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 4))
        network[0].weight.requires_grad_(False)
        return network

    stack = ensemble_of(half_frozen, data)
    assert stack.chain() is None
    assert stack.part(slice(1, 2)).fixed["0.weight"].shape == (1, 8, 64)


@pytest.mark.parametrize("network", ["lenet", "mlp", "mapped"])
def test_all_tensors_of_a_run_are_on_its_device(data, shapes, network):
    """On torch's device without memory, which refuses to work with tensors of another."""
    images, architecture = {
        "lenet": (shapes, lambda: lenet(3)),
        "mlp": (data, lambda: mlp(64, (32, 32), 4)),
        "mapped": (data, convolutional),
    }[network]
    job = Job(
        data=images,
        architecture=architecture,
        replicates=[0, 1, 2],
        asked=np.array([0.0, 1.0]),
        times=np.array([0.0, 1.0]),
        layers=("logits", "penultimate"),
        loss="cross_entropy",
        batch_size=2,
        sampling="uniform",
        seed=0,
        dtype=torch.float32,
        device=torch.device("meta"),
        labels=np.tile(images.train_y, (3, 1)),
    )
    ensemble = job.ensemble(job.replicates)
    logits, labels = stepping(job, 0.1, ensemble, job.labels)(3)
    seen = ensemble.evaluate(torch.as_tensor(images.probe_x, device="meta"))
    assert logits.shape == (3, 6, images.n_classes)
    assert labels.shape == (3, 6)
    for tensor in (logits, *seen.values(), *ensemble.classifier().values()):
        assert tensor.device.type == "meta"
