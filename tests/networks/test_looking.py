"""What a recorder sees of a network: each sample by itself, no trace left, the classifier's own input."""

from __future__ import annotations

import random
import warnings
from collections import namedtuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, prune
from torch.utils.data import DataLoader

import lesde
from lesde.networks import ImageData, from_dataset, mlp, record_ensemble, record_store

K, WIDTH, N = 3, 6, 40


@pytest.fixture
def probe():
    """Three clouds of points, in no order."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randperm(N, generator=generator) % K
    centres = 3 * torch.randn(K, WIDTH, generator=generator)
    return centres[labels] + torch.randn(N, WIDTH, generator=generator), labels


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        yield


class Function(nn.Module):
    """A module of any function."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def between(middle):
    return nn.Sequential(nn.Linear(WIDTH, 8), middle, nn.ReLU(), nn.Linear(8, K))


class Shifted(nn.Module):
    """Every sample takes a part of the one before it in the batch."""

    def forward(self, x):
        return x + 0.5 * x.roll(1, 0)


SLOW = pytest.mark.slow

COUPLED = {
    "batch norm": lambda: nn.BatchNorm1d(8, track_running_stats=False),
    "functional": lambda: Function(lambda x: F.batch_norm(x, None, None, training=True)),
    "centred": lambda: Function(lambda x: x - x.mean(0)),
    "softmax": lambda: Function(lambda x: x * x.softmax(0)),
    "largest": lambda: Function(lambda x: x / x.abs().max()),
    "sorted": lambda: Function(lambda x: x.sort(0).values),
    "ranked": lambda: Function(lambda x: x.argsort(0).argsort(0).to(x.dtype)),
    "length": lambda: Function(lambda x: x / len(x) * 50),
    "noise": lambda: Function(lambda x: x + torch.randn_like(x)),
    "shifted": Shifted,
}


@pytest.mark.parametrize("kind", COUPLED)
def test_layers_that_mix_samples_or_draw_are_refused(probe, kind):
    model = between(COUPLED[kind]())
    with pytest.raises(ValueError, match=r"model must give the same .* whatever else"):
        lesde.record(model, "penultimate", probe)
    with pytest.raises(ValueError, match=r"model must give the same .* whatever else"):
        lesde.Recorder(model, "logits", probe, every=1)
    with pytest.raises(ValueError, match=r"model must give the same logits .* whatever else"):
        lesde.measure_impact(model, "cross_entropy", probe, probe, 0.1)
    # A layer before the one that mixes is recorded alone.
    paths = lesde.record(model, "0", probe, loss=None)
    order = torch.argsort(probe[1], stable=True)
    wanted = model[0](probe[0][order]).detach()
    np.testing.assert_allclose(paths.features[0, 0], wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["centred", "functional"])
def test_ensembles_refuse_them_too(probe, kind):
    x, y = (one.numpy() for one in probe)
    with pytest.raises(ValueError, match=r"architecture must give the same logits"):
        next(
            record_ensemble(ImageData(x, y, x, y), lambda: between(COUPLED[kind]()), 0.1, 1, [0, 1])
        )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_rounding_of_a_shorter_batch_is_not_taken_for_it(probe, dtype):
    hidden = [m for _ in range(4) for m in (nn.ReLU(), nn.Linear(100, 100))]
    wide = nn.Sequential(nn.Linear(WIDTH, 100), *hidden).to(dtype)
    with warnings.catch_warnings(action="error"):
        lesde.record(wide, "logits", probe)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x):
        tokens = x.reshape(len(x), 2, 4)
        return self.attention(tokens, tokens, tokens)[0].reshape(len(x), 8)


UNCOUPLED = {
    "batch norm": lambda: nn.BatchNorm1d(8),
    "layer norm": lambda: nn.LayerNorm(8),
    "group norm": lambda: nn.GroupNorm(2, 8),
    "attention": Attention,
    "dropout": lambda: nn.Dropout(0.5),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", UNCOUPLED)
def test_layers_that_do_not_are_taken(probe, kind):
    model = between(UNCOUPLED[kind]())
    found = [
        lesde.record(model, ["logits", "penultimate"], probe, batch_size=size) for size in (1, 7, N)
    ]
    for other in found[1:]:
        for layer, paths in other.items():
            np.testing.assert_allclose(
                paths.features, found[0][layer].features, rtol=1e-4, atol=1e-5
            )


# No trace


def _nested():
    return nn.Sequential(nn.Linear(WIDTH, 8), nn.ReLU())


class Global(nn.Module):
    """Draws from all global generators, also in evaluation mode."""

    def forward(self, x):
        return x * (1 + 0.1 * (torch.rand(()) + np.random.random() + random.random()))  # noqa: NPY002


def observed():
    observer = torch.ao.quantization.MovingAverageMinMaxObserver
    return torch.ao.quantization.FakeQuantize(observer, quant_min=0, quant_max=255)


# Of every kind of memory one is tried each time.


class Counting(nn.Module):
    """A buffer that every pass changes."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return x


TRACES = {
    "buffer": Counting,
    "global": Global,
    "dropout": lambda: nn.Dropout(0.3),
    "spectral norm": lambda: parametrizations.spectral_norm(nn.Linear(8, 8)),
    "old spectral norm": lambda: nn.utils.spectral_norm(nn.Linear(8, 8)),
    "pruned": lambda: prune.random_unstructured(nn.Linear(8, 8), "weight", 0.5),
    "scripted": lambda: torch.jit.script(nn.BatchNorm1d(8)),
    "instance norm": lambda: nn.Unflatten(1, (2, 4)),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", TRACES)
def test_training_is_the_same_to_the_last_bit(probe, kind):
    x, y = probe

    def train(record):
        torch.manual_seed(3)
        np.random.seed(3)  # noqa: NPY002
        random.seed(3)
        model = nn.Sequential(_nested(), TRACES[kind](), nn.Flatten(), nn.Linear(8, K))
        optimiser = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
        recorder = None
        for step in range(4):
            if record and step == 1:
                layers = ["0", "penultimate", "logits"]
                recorder = lesde.Recorder(model, layers, probe, every=1, batch_size=16)
            if step:
                optimiser.zero_grad()
            rows = torch.randint(N, (8,))
            F.cross_entropy(model(x[rows]), y[rows]).backward()
            if recorder is not None and step % 2:
                lesde.record(model, "logits", probe)  # between the gradient and its step
                if step == 3:
                    lesde.measure_impact(model, "mse", (x[:3], torch.arange(3)), probe, 0.1)
            optimiser.step()
            if recorder is not None:
                recorder.step()
        return model

    with_records, without = train(True), train(False)
    found, wanted = with_records.state_dict(), without.state_dict()
    assert list(found) == list(wanted)
    for name, value in wanted.items():
        assert torch.equal(found[name], value), name
    assert [m.training for m in with_records.modules()] == [m.training for m in without.modules()]
    for name, parameter in without.named_parameters():
        assert torch.equal(with_records.get_parameter(name).grad, parameter.grad)


def test_nothing_is_left_by_a_pass_that_fails(probe):
    class Failing(Counting):
        def forward(self, x):
            super().forward(x)
            raise RuntimeError("no such thing")

    model = between(Failing())
    with pytest.raises(ValueError, match="no such thing"):
        lesde.record(model, "logits", probe)
    assert float(model[1].calls) == 0


# The classifier and what it reads


class Headed(nn.Module):
    """A body and any head."""

    def __init__(self, head, after=None, wide=8):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(WIDTH, wide), nn.ReLU())
        self.head = head
        self.after = after

    def forward(self, x):
        h = self.body(x)
        return self.head(h) if self.after is None else self.after(self, h)

    def read(self):
        return self.head.weight, self.head.bias


class Projected(Headed):
    """A second head runs after the classifier."""

    def __init__(self, deep):
        super().__init__(nn.Linear(8, K))
        self.projection = nn.Linear(8, 4)
        if deep:
            self.projection = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))

    def forward(self, x):
        h = self.body(x)
        logits = self.head(h)
        return logits, self.projection(h)


class Tied(nn.Module):
    """Its last layer has the weight of its first."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh())
        self.head = nn.Linear(WIDTH, WIDTH)
        self.head.weight = self.body[0].weight

    def forward(self, x):
        return self.head(self.body(x))

    def read(self):
        return self.head.weight, self.head.bias


def spectral():
    model = Headed(parametrizations.spectral_norm(nn.Linear(8, K)))

    def read():
        model.head.eval()
        return model.head.weight, model.head.bias

    model.read = read
    return model


def inner(*after):
    model = Headed(nn.Sequential(nn.Linear(8, K), *after))
    model.read = lambda: (model.head[0].weight, model.head[0].bias)
    return model


HEADS = {
    "plain": lambda: Headed(nn.Linear(8, K)),
    "without bias": lambda: Headed(nn.Linear(8, K, bias=False)),
    "projection": lambda: Projected(False),
    "deep projection": lambda: Projected(True),
    "tied": Tied,
    "weight norm": lambda: Headed(parametrizations.weight_norm(nn.Linear(8, K))),
    "old weight norm": lambda: Headed(nn.utils.weight_norm(nn.Linear(8, K))),
    "spectral norm": spectral,
    "pruned": lambda: Headed(prune.random_unstructured(nn.Linear(8, K), "weight", 0.5)),
    "identity": lambda: inner(nn.Identity(), nn.Dropout(0.5)),
    "dropout before": lambda: Headed(nn.Linear(8, K), lambda m, h: m.head(F.dropout(h, 0.5, m.training))),
    "frozen": lambda: Headed(nn.Linear(8, K)).requires_grad_(False),
}  # fmt: skip


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("dtype", [pytest.param("float32", marks=SLOW), "float64"])
@pytest.mark.parametrize("kind", HEADS)
def test_features_weights_and_bias_give_the_logits(probe, kind, dtype):
    x, y = probe
    with warnings.catch_warnings(action="ignore", category=FutureWarning):
        model = HEADS[kind]().to(getattr(torch, dtype))
    optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True), *model.parameters()], 0.05)
    recorder = lesde.Recorder(
        model, ["body", "penultimate", "logits"], probe, every=1, dtype=dtype, batch_size=16
    )
    for _ in range(2):
        optimiser.zero_grad()
        out = model(x.to(next(model.parameters()).dtype))
        F.cross_entropy(out[0] if isinstance(out, tuple) else out, y)
        if kind != "frozen":
            F.cross_entropy(out[0] if isinstance(out, tuple) else out, y).backward()
        optimiser.step()
        recorder.step()
    paths, logits = recorder.paths("penultimate"), recorder.paths("logits").features.values
    with torch.no_grad():
        model.eval()(
            x.to(getattr(torch, dtype))
        )  # hooks of old kinds make the weight of the head in it
        body = model.body(x[torch.argsort(y, stable=True)].to(getattr(torch, dtype)))
        weight, bias = model.read()
    tolerance = 1e-5 if dtype == "float32" else 1e-12
    np.testing.assert_allclose(paths.features[0, -1], body, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(paths.weights[0, -1], weight.detach()[:K], rtol=1e-4, atol=tolerance)
    classes = np.unique(y)
    product = paths.features.values @ paths.weights.values.swapaxes(-1, -2)
    if bias is not None:
        np.testing.assert_allclose(paths.bias[0, -1], bias.detach()[:K], rtol=1e-4, atol=tolerance)
        product = product + paths.bias.values[..., None, :]
    else:
        assert "bias" not in paths
    np.testing.assert_allclose(product, logits[..., classes], rtol=1e-4, atol=10 * tolerance)
    assert {"nc3", "nc4"} <= set(lesde.neural_collapse(paths))
    # The same features by the name of the layer have the same classifier.
    for name in ("features", "weights"):
        np.testing.assert_array_equal(recorder.paths("body")[name], paths[name])
    assert {"nc3", "nc4"} <= set(lesde.neural_collapse(recorder.paths("body")))


BENT = {
    "tanh": lambda h: torch.tanh(h),
    "cosine": lambda h: F.normalize(h),
    "log softmax": lambda h: h.log_softmax(-1),
}


@pytest.mark.parametrize("kind", BENT)
def test_what_is_no_affine_map_has_no_weights(probe, kind):
    model = Headed(nn.Linear(8, K), lambda m, h: BENT[kind](m.head(h)))
    with pytest.warns(UserWarning, match="'penultimate' is recorded without weights.*'head' reads"):
        paths = lesde.record(model, "penultimate", probe)
    assert "weights" not in paths
    assert paths.attrs["classifier"] == "reads other features"
    assert not {"nc3", "nc4"} & set(lesde.neural_collapse(paths))


def test_logits_from_no_linear_layer(probe):
    """A table gives the logits: no linear layer is taken for the classifier, and none has its weights."""

    class Table(Headed):
        def __init__(self):
            super().__init__(nn.Identity())
            self.table = nn.Parameter(torch.randn(K, 8))

        def forward(self, x):
            return self.body(x) @ self.table.T

    with pytest.warns(
        UserWarning, match="'penultimate' is recorded without weights.*'body.0' reads"
    ):
        found = lesde.record(Table(), ["body", "penultimate"], probe)
    for paths in found.values():
        assert "weights" not in paths
        assert paths.attrs["classifier"] == "reads other features"


def test_layers_by_name_and_their_classifier(probe):
    """Hidden layers have the weights of the classifier where it reads them, and only there."""
    model = nn.Sequential(
        nn.Linear(WIDTH, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(inplace=True), nn.Linear(8, K)
    )
    names = ["0", "1", "2", "3", "penultimate", "logits"]
    found = lesde.record(model, names, probe)
    assert [name for name in names if "weights" in found[name]] == ["3", "penultimate"]
    np.testing.assert_array_equal(found["3"].weights[0, 0], model[4].weight.detach())
    assert found["3"].attrs["classifier"] == "4"
    assert found["2"].attrs["classifier"] == "reads other features"
    alone = lesde.record(model, "3", probe)
    np.testing.assert_array_equal(alone.weights, found["3"].weights)
    np.testing.assert_array_equal(alone.bias, found["3"].bias)


def test_maps_pooled_as_the_model_pools_them():
    """Feature maps whose means are what the classifier reads."""
    model = nn.Sequential(
        nn.Conv2d(1, 5, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, K)
    )
    probe = torch.rand(N, 1, 6, 6), torch.arange(N) % K
    pooled = lesde.record(model, "1", probe, pooling="mean")
    np.testing.assert_array_equal(pooled.weights[0, 0], model[4].weight.detach())
    assert "weights" not in lesde.record(model, "1", probe)
    scaled = lesde.record(model, "penultimate", probe, pooling=lambda z: F.normalize(z))
    assert "weights" not in scaled


def test_a_classifier_that_changes_on_the_way_is_told(probe, tmp_path, monkeypatch):
    """A map that is affine at first and then no longer, in a store with a chunk for each record."""
    monkeypatch.setattr(record_store, "_LONGEST", 1)

    class Turning(Headed):
        bent = False

        def forward(self, x):
            logits = super().forward(x)
            return logits**3 if self.bent else logits

    model = Turning(nn.Linear(8, K))
    store = tmp_path / "bent.zarr"
    recorder = lesde.Recorder(model, "penultimate", probe, every=1, store=store)
    model.bent = True
    for _ in range(2):
        with pytest.warns(UserWarning, match=r"no longer the output of 'head'"):
            recorder.step()
    weights = recorder.paths("penultimate").weights
    assert np.isfinite(weights[0, 0]).all()
    assert np.isnan(weights[0, 1:]).all()


# What is taken for logits and labels


class Several(nn.Module):
    """Returns what is made of features and logits."""

    def __init__(self, pack, wide=8):
        super().__init__()
        self.body, self.head = nn.Sequential(nn.Linear(WIDTH, wide), nn.ReLU()), nn.Linear(wide, K)
        self.pack = pack

    def forward(self, x):
        h = self.body(x)
        return self.pack(h, self.head(h))


def test_features_are_not_taken_for_logits(probe):
    model = Several(lambda h, z: (h, z))
    with pytest.raises(
        ValueError, match=r"logits first.*first entry has 8 columns and a later one has 3"
    ):
        lesde.record(model, "body", probe)
    assert "accuracy" not in lesde.record(model, "body", probe, loss=None)
    with pytest.raises(ValueError, match=r"something with logits, by that name; got dict"):
        lesde.record(Several(lambda h, z: {"a": h, "b": z}), "body", probe)


LOGITS_FIRST = {
    "features": lambda m, z: (m.head(z), z),
    "a second head": lambda m, z: (m.head(z), m.aux(z)),
    "probabilities": lambda m, z: ((logits := m.head(z)), logits.softmax(-1)),
    "named": lambda m, z: Output(z, m.head(z)),
    "nothing else": lambda m, z: (m.head(z), None, 0.5, ()),
}
Output = namedtuple("Output", "features logits")


class Packed(nn.Module):
    """Returns what is made of features and heads."""

    def __init__(self, wide, pack):
        super().__init__()
        self.body, self.head = nn.Linear(WIDTH, wide), nn.Linear(wide, K)
        self.aux, self.third, self.deep = (nn.Linear(wide, n) for n in (K, K, wide))
        self.scale = nn.Parameter(torch.ones(K))
        self.register_buffer("table", torch.randn(wide, K))
        self.pack = pack

    def forward(self, x):
        return self.pack(self, self.body(x))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("wide", [K, 16])
@pytest.mark.parametrize("kind", LOGITS_FIRST)
def test_logits_first_are_taken(probe, kind, wide):
    model = Packed(wide, LOGITS_FIRST[kind])
    x, y = probe
    paths = lesde.record(model, "logits", probe)
    out = model(x)
    logits = out.logits if isinstance(out, Output) else out[0]
    wanted = logits.detach()[torch.argsort(y, stable=True)]
    np.testing.assert_allclose(paths.features[0, 0], wanted, rtol=1e-5, atol=1e-5)
    assert float(paths.accuracy[0, 0]) == float((logits.argmax(1) == y).double().mean())


@pytest.mark.filterwarnings("error")
def test_logits_are_found_where_they_are_named_or_first(probe):
    torch.manual_seed(5)
    model = Several(lambda h, z: z)
    wanted = lesde.record(model, "logits", probe)
    packs = (
        lambda h, z: (z, h),
        lambda h, z: {"hidden": h, "logits": z},
        lambda h, z: (z.log_softmax(-1), z),
    )
    for pack in packs[:2]:
        model.pack = pack
        found = lesde.record(model, "logits", probe)
        np.testing.assert_array_equal(found.features, wanted.features)
        assert float(found.accuracy[0, 0]) == float(wanted.accuracy[0, 0])
    model.pack = packs[2]
    found = lesde.record(model, "logits", probe)
    np.testing.assert_allclose(found.loss, wanted.loss, rtol=1e-5)  # the same up to a constant
    assert float(found.accuracy[0, 0]) == float(wanted.accuracy[0, 0])


def test_labels_that_are_names_or_missing(probe):
    x, y = probe
    names = ["abc"[k] for k in y.tolist()]
    for source in ((x, names), DataLoader(list(zip(x, names, strict=True)), batch_size=7)):
        message = r"must have integer labels.*numpy\.unique"
        with pytest.raises(TypeError, match=f"^probe {message}"):
            lesde.record(mlp(WIDTH, (8,), K), "logits", source)
        with pytest.raises(TypeError, match=rf"^probe\['held_out'\] {message}"):
            lesde.record(mlp(WIDTH, (8,), K), "logits", {"held_out": source})
        with pytest.raises(TypeError, match=f"^train {message}"):
            from_dataset(source, n_probe_per_class=2)
    with pytest.raises(TypeError, match="must contain tensors"):
        lesde.record(mlp(WIDTH, (8,), K), "logits", DataLoader([(one, None) for one in x]))


def test_labels_as_columns(probe):
    x, y = probe
    with pytest.raises(TypeError, match=r"shape \(40, 3\).*argmax"):
        lesde.record(mlp(WIDTH, (8,), K), "logits", (x, F.one_hot(y)))


def test_rates_that_part_later_are_told(probe):
    model = mlp(WIDTH, (8,), K)
    optimiser = torch.optim.SGD(
        [{"params": model[0].parameters()}, {"params": model[2].parameters()}], 0.1
    )
    recorder = lesde.Recorder(model, "logits", probe, every=1, learning_rate=optimiser)
    recorder.step()
    optimiser.param_groups[1]["lr"] = 0.05
    with pytest.raises(
        ValueError, match=r"groups of the optimiser have 0\.05, 0\.1; give a number or"
    ):
        recorder.step()
    np.testing.assert_allclose(recorder.paths("logits").time, [0, 0.1])
