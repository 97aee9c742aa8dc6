"""Features of any layers of any model: right numbers, and no trace left behind."""

from __future__ import annotations

import random
import types

import numpy as np
import pytest
import torch
import xarray as xr
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lesde
from lesde.networks import ImageData, mlp, open_records

K, N = 3, 24


def convolutional():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.Dropout(0.5),
        nn.Flatten(),
        nn.Linear(4 * 36, 5),
        nn.ReLU(inplace=True),
        nn.Linear(5, K),
    )


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(3)
    x = torch.rand(N, 1, 8, 8, generator=generator)
    y = torch.randperm(N, generator=generator) % K
    return x, y


@pytest.fixture
def model():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return convolutional()


def by_hand(model, x, y):
    """Outputs of every module in evaluation mode, of the samples sorted by class."""
    order = torch.argsort(y, stable=True)
    seen = [x[order]]
    modes = [m.training for m in model.modules()]
    model.eval()
    with torch.no_grad():
        for module in model:
            seen.append(module(seen[-1].clone()).clone())
    for module, mode in zip(model.modules(), modes, strict=True):
        module.training = mode
    return [one.flatten(1).numpy() for one in seen[1:]], y[order].numpy()


def test_features_are_the_outputs_of_the_modules(model, images):
    wanted, labels = by_hand(model, *images)
    found = lesde.record(model, ["0", "1", "5", "logits", "penultimate"], images, batch_size=7)
    assert list(found) == ["0", "1", "5", "logits", "penultimate"]
    for layer, place in (("0", 0), ("1", 1), ("5", 5), ("logits", 7), ("penultimate", 6)):
        paths = found[layer]
        assert paths.features.dims == ("replicate", "time", "sample", "feature")
        # Batches of 7: sums are taken in another order than in one batch.
        np.testing.assert_allclose(paths.features[0, 0], wanted[place], rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(paths.label, labels)
    assert "weights" not in found["logits"]
    weights = found["penultimate"].weights
    assert weights.dims == ("replicate", "time", "class", "feature_in")
    np.testing.assert_array_equal(weights[0, 0], model[7].weight.detach())
    np.testing.assert_array_equal(found["penultimate"].bias[0, 0], model[7].bias.detach())
    logits = torch.from_numpy(wanted[7]).double()
    loss = nn.functional.cross_entropy(logits, torch.from_numpy(labels))
    assert found["0"].loss.item() == pytest.approx(float(loss), rel=1e-6)
    assert found["0"].accuracy.item() == (wanted[7].argmax(1) == labels).mean()


def test_nothing_is_left_behind(model, images):
    model.train()
    model[1].eval()  # a user who freezes the statistics of the batch normalisation
    modes = [m.training for m in model.modules()]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model[7].weight.grad = torch.ones_like(model[7].weight)
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    lesde.record(model, ["0", "penultimate"], images)
    assert [m.training for m in model.modules()] == modes
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    assert torch.equal(model[7].weight.grad, torch.ones_like(model[7].weight))
    assert all(p.grad is None for p in model[0].parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert torch.equal(torch.get_rng_state(), states[0])
    np.testing.assert_array_equal(np.random.get_state()[1], states[1])  # noqa: NPY002
    assert random.getstate() == states[2]


def test_nothing_is_left_behind_by_an_error(model, images):
    class Broken(nn.Module):
        def forward(self, x):
            random.random()
            raise RuntimeError("no such thing")

    broken = nn.Sequential(*model, Broken()).train()
    python = random.getstate()
    with pytest.raises(ValueError, match=r"batch of shape \(2, 1, 8, 8\).*no such thing"):
        lesde.record(broken, ["0", "logits"], images)
    assert all(m.training for m in broken.modules())
    assert not any(m._forward_hooks for m in broken.modules())
    assert random.getstate() == python
    assert torch.is_grad_enabled()


def test_training_is_the_same_with_and_without_records(images):
    """Dropout draws from the generator that the records must not touch."""

    def train(record):
        torch.manual_seed(5)
        model = convolutional()
        optimiser = torch.optim.SGD(model.parameters(), 0.1)
        for _ in range(4):
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(images[0]), images[1]).backward()
            optimiser.step()
            if record:
                loader = DataLoader(TensorDataset(*images), batch_size=5, shuffle=True)
                lesde.record(model, "penultimate", loader)
        return model.state_dict()

    with torch.random.fork_rng(devices=[]):
        with_records, without = train(True), train(False)
    assert all(torch.equal(value, without[name]) for name, value in with_records.items())


def test_kinds_of_probe_sets_agree(model, images):
    x, y = images
    data = ImageData(x.numpy(), y.numpy(), x.numpy(), y.numpy())
    own = torch.Generator().manual_seed(1)
    state = own.get_state()
    same = [
        TensorDataset(x, y),
        DataLoader(TensorDataset(x, y), batch_size=7),
        (x.double().numpy(), y.tolist()),
        data,
    ]
    wanted = lesde.record(model, "5", images)
    for probe in same:
        xr.testing.assert_identical(lesde.record(model, "5", probe), wanted)
    loader = DataLoader(TensorDataset(x, y), batch_size=7, shuffle=True, generator=own)
    shuffled = [lesde.record(model, "5", loader) for _ in range(2)]
    xr.testing.assert_identical(*shuffled)
    assert torch.equal(own.get_state(), state)
    for k in range(K):
        rows = [
            np.sort(one.features.values[0, 0, one.label == k], 0) for one in (wanted, *shuffled)
        ]
        np.testing.assert_allclose(rows[0], rows[1], rtol=1e-5, atol=1e-6)


def test_several_probe_sets(model, images):
    x, y = images
    found = lesde.record(
        model, ["5", "penultimate"], {"train": (x[:15], y[:15]), "held_out": (x[15:], y[15:])}
    )
    assert {name: list(one) for name, one in found.items()} == {
        "train": ["5", "penultimate"],
        "held_out": ["5", "penultimate"],
    }
    assert found["train"]["5"].sizes["sample"] == 15
    xr.testing.assert_identical(
        found["held_out"]["5"].drop_attrs(),
        lesde.record(model, "5", (x[15:], y[15:])).drop_attrs(),
    )
    depth = lesde.layer_collapse(found)
    assert dict(depth.ncc_accuracy.sizes) == {"layer": 2, "split": 2, "replicate": 1, "time": 1}
    one = lesde.record(model, "5", {"train": images})
    assert isinstance(one["train"], xr.Dataset)
    with pytest.raises(ValueError, match=r"same classes; 'a' has \[0, 1, 2\] and 'b' has \[0, 1\]"):
        lesde.record(model, "5", {"a": images, "b": (x[y < 2], y[y < 2])})


def test_labels_of_some_of_the_outputs(model, images):
    """Classes 0 and 2 of three: labels 0 and 1, and the classifier's rows of the two."""
    x, y = images
    kept = y != 1
    paths = lesde.record(model, "penultimate", (x[kept], y[kept]))
    np.testing.assert_array_equal(np.unique(paths.label), [0, 1])
    assert paths.attrs["classes"] == [0, 2]
    np.testing.assert_array_equal(paths.weights[0, 0], model[7].weight.detach()[[0, 2]])
    whole = lesde.record(model, "logits", images)
    some = lesde.record(model, "logits", (x[kept], y[kept]))
    rows = whole.label.values != 1
    np.testing.assert_allclose(
        some.features[0, 0], whole.features[0, 0].values[rows], rtol=1e-5, atol=1e-6
    )
    logits = torch.from_numpy(some.features.values[0, 0]).double()
    loss = nn.functional.cross_entropy(logits, torch.tensor([0, 2])[some.label.values])
    assert some.loss.item() == pytest.approx(float(loss), rel=1e-6)


def test_pooling(model, images):
    whole = lesde.record(model, "0", images).features[0, 0].values
    pooled = lesde.record(model, "0", images, pooling="mean").features[0, 0]
    np.testing.assert_allclose(pooled, whole.reshape(N, 4, 36).mean(-1), rtol=1e-5)
    peak = lesde.record(model, "0", images, pooling=lambda z: z.amax((2, 3))).features[0, 0]
    np.testing.assert_allclose(peak, whole.reshape(N, 4, 36).max(-1), rtol=1e-6)
    with pytest.raises(
        ValueError, match=r"layer '0' must have the samples along its first axis, 8"
    ):
        lesde.record(model, "0", images, pooling=lambda z: z.mean(0))


def test_precision_of_what_is_kept(model, images):
    full, half = (
        lesde.record(model, "penultimate", images, dtype=d) for d in ("float32", "float16")
    )
    assert half.features.dtype == half.weights.dtype == np.float16
    np.testing.assert_allclose(half.features, full.features, rtol=1e-3, atol=1e-6)
    assert half.loss.dtype == np.float64
    with torch.no_grad():
        model[5].bias += 1e6
    with pytest.raises(lesde.Diverged, match=r"layer 'penultimate'.*dtype='float32'"):
        lesde.record(model, "penultimate", images, dtype="float16")
    with torch.no_grad():
        model[5].bias.fill_(np.nan)
    with pytest.raises(lesde.Diverged, match="at time 2;") as caught:
        lesde.record(model, "penultimate", images, time=2.0)
    assert caught.value.time == 2


class Attentive(nn.Module):
    """Two inputs, one in numbers of words; a layer that returns a tuple; logits in an object."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(10, 6)
        self.recurrent = nn.GRU(6, 4, batch_first=True)
        self.head = nn.Linear(4, K)

    def forward(self, words, scale):
        states, _ = self.recurrent(self.words(words) * scale[:, None, None])
        return types.SimpleNamespace(logits=self.head(states[:, -1]))


def test_models_of_other_shapes():
    words, scale = torch.arange(N * 5).reshape(N, 5) % 10, torch.linspace(0.5, 1, N)
    y = torch.arange(N) % K
    model = Attentive()
    layers = ["recurrent", "penultimate", "logits"]
    found = lesde.record(model, layers, ((words, scale), y))
    assert found["recurrent"].sizes["feature"] == 20
    np.testing.assert_array_equal(
        found["recurrent"].features[..., -4:], found["penultimate"].features
    )
    again = lesde.record(model, layers, ({"scale": scale, "words": words}, y))
    loader = DataLoader(TensorDataset(words, scale, y), batch_size=9)
    for other in (again, lesde.record(model, layers, loader)):
        for layer in layers:
            xr.testing.assert_identical(other[layer], found[layer])
    model.spare = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"name submodules that run; 'spare' never does"):
        lesde.record(model, "spare", ((words, scale), y))


def test_encoder_with_a_fast_path():
    """In evaluation mode PyTorch fuses this layer; the hooks inside it must be seen all the same."""
    encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.Sequential(encoder, nn.Flatten(), nn.Linear(24, K))
    x, y = torch.rand(N, 3, 8), torch.arange(N) % K
    found = lesde.record(model, ["0", "0.linear1", "penultimate"], (x, y))
    assert found["0.linear1"].sizes["feature"] == 48
    np.testing.assert_array_equal(found["0"].features, found["penultimate"].features)


def test_loss_of_ones_own(model, images):
    x, y = images
    paths = lesde.record(model, "5", images, loss=lambda z, label: (z[:, 0] * label).mean())
    logits = lesde.record(model, "logits", images)
    wanted = (logits.features.values[0, 0, :, 0].astype(float) * logits.label.values).mean()
    assert paths.loss.item() == pytest.approx(wanted, rel=1e-5)
    squared = lesde.record(model, "logits", images, loss="mse")
    target = np.eye(K)[squared.label]
    wanted = 0.5 * ((squared.features.values[0, 0] - target) ** 2).sum(-1).mean()
    assert squared.loss.item() == pytest.approx(wanted, rel=1e-5)
    assert not {"loss", "accuracy"} & set(lesde.record(model, "5", images, loss=None))
    with pytest.raises(ValueError, match=r"3 columns, the largest label is 7.*loss=None"):
        lesde.record(model, "5", (x, y + 5))
    with pytest.raises(ValueError, match=r"no \(sample, class\).*loss=None"):
        lesde.record(model[:3], "0", images)
    features = lesde.record(model[:3], "logits", images, loss=None)
    assert features.sizes["feature"] == 144


def test_classifier_is_left_out_where_it_is_none(model, images):
    """Weights are recorded only where they map the features to the logits."""
    bent = nn.Sequential(*model, nn.Tanh())
    with pytest.warns(UserWarning, match="'penultimate' is recorded without weights.*'7' reads"):
        paths = lesde.record(bent, "penultimate", images)
    assert paths.sizes["feature"] == 5
    assert "weights" not in paths


def test_compiled_models_are_seen_through(model, images):
    compiled = torch.compile(model, backend="eager")
    xr.testing.assert_identical(
        lesde.record(compiled, "5", images), lesde.record(model, "5", images)
    )


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"model": 3}, TypeError, r"model must be a torch\.nn\.Module; got 3"),
        ({"layers": "fc"}, ValueError, r"layers must be one of 'logits', 'penultimate', '0'"),
        ({"layers": []}, ValueError, "at least one of logits, penultimate, 0"),
        ({"layers": 3}, TypeError, "layers must be a name or a sequence of names; got 3"),
        ({"layers": ["0", 3]}, TypeError, r"sequence of names; got \['0', 3\]"),
        ({"layers": [["0"]]}, TypeError, r"sequence of names; got \[\['0'\]\]"),
        ({"probe": 3}, TypeError, r"probe must be a DataLoader or Dataset"),
        ({"probe": {}}, ValueError, "at least one probe set"),
        ({"probe": {"a/b": 3}}, ValueError, "must name its sets by words"),
        ({"probe": (torch.rand(4, 1, 8, 8), [0, 1, 2])}, ValueError, "3 labels for 4 inputs"),
        ({"probe": (torch.rand(2, 1, 8, 8), [0.5, 1])}, TypeError, "must have integer labels"),
        ({"probe": (torch.rand(2, 1, 8, 8), [-1, 1])}, ValueError, "labels of at least 0"),
        ({"probe": (torch.full((2, 1, 8, 8), np.nan), [0, 1])}, ValueError, "finite inputs"),
        ({"probe": (torch.rand(2, 3, 8, 8), [0, 1])}, ValueError, r"shape \(2, 3, 8, 8\)"),
        ({"probe": (torch.rand(0, 1, 8, 8), torch.arange(0))}, ValueError, "probe .* it is empty"),
        ({"probe": ([], [])}, ValueError, "at least one labelled input; it is empty"),
        ({"probe": {"a": ([], [])}}, ValueError, r"probe\['a'\] .* it is empty"),
        (
            {"probe": DataLoader(TensorDataset(torch.rand(3, 2)))},
            TypeError,
            r"give \(input, label\); got \[tensor",
        ),
        (
            {"probe": DataLoader([torch.rand(2)] * 3, batch_size=3)},
            TypeError,
            r"give \(input, label\); got tensor",
        ),
        (
            {"probe": DataLoader([{"image": 1.0, "label": 0}])},
            TypeError,
            r"got {'image': tensor",
        ),
        ({"pooling": "max"}, ValueError, "pooling must be one of 'flatten', 'mean'"),
        ({"loss": "hinge"}, ValueError, "loss must be one of"),
        ({"dtype": "int8"}, ValueError, "dtype must be one of"),
        ({"batch_size": 0}, ValueError, "batch_size must be"),
        ({"replicate": -1}, ValueError, "replicate must be"),
    ],
)
def test_refusals(model, images, change, error, message):
    arguments = {"model": model, "layers": "0", "probe": images} | change
    with pytest.raises(error, match=message):
        lesde.record(**arguments)


def test_layers_may_come_from_an_iterator(model, images):
    assert list(lesde.record(model, iter(["0", "logits"]), images)) == ["0", "logits"]
    recorder = lesde.Recorder(model, (name for name in ["0", "logits"]), images, every=1)
    assert recorder.layers == ("0", "logits")


@pytest.mark.filterwarnings("error")
def test_looks_are_joined(model, images):
    """Over time and over replicates, as the documentation says."""
    first = lesde.record(model, "penultimate", images)
    with torch.no_grad():
        model[0].weight += 0.1
    second = lesde.record(model, "penultimate", images, time=0.5, iteration=5)
    over_time = xr.concat(
        [first, second],
        "time",
        data_vars="minimal",
        coords="minimal",
        compat="equals",
        join="exact",
    )
    np.testing.assert_array_equal(over_time.iteration, [0, 5])
    assert over_time.label.dims == ("sample",)
    for n, one in enumerate((first, second)):
        xr.testing.assert_identical(over_time.isel(time=[n]), one)
    other = lesde.record(model, "penultimate", images, replicate=1)
    runs = open_records([other, first], "penultimate")
    np.testing.assert_array_equal(runs.replicate, [0, 1])
    xr.testing.assert_identical(runs.sel(replicate=[1]), other)


def test_penultimate_needs_a_linear_layer(images):
    network = nn.Sequential(nn.Conv2d(1, K, 8), nn.Flatten())
    with pytest.raises(ValueError, match=r"'penultimate' only where a torch\.nn\.Linear runs"):
        lesde.record(network, "penultimate", images)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device here")
def test_model_on_a_device(images):
    model = mlp(64, (8,), K)
    x, y = images
    wanted = lesde.record(model, "penultimate", (x.flatten(1), y))
    model.cuda()
    state = torch.cuda.get_rng_state()
    found = lesde.record(model, "penultimate", (x.flatten(1), y))
    assert next(model.parameters()).is_cuda
    assert torch.equal(torch.cuda.get_rng_state(), state)
    np.testing.assert_allclose(found.features, wanted.features, rtol=1e-4, atol=1e-5)
