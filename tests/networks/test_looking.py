"""What a recorder sees of a network: each sample by itself, no trace left, the classifier's own input."""

from __future__ import annotations

import functools
import random
import warnings
from collections import namedtuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, prune
from torch.utils.data import DataLoader, TensorDataset

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


class Gated(nn.Module):
    """Centred by the batch in a branch that begins at zero."""

    def __init__(self):
        super().__init__()
        self.gate = nn.Parameter(torch.zeros(()))

    def forward(self, x):
        return x + self.gate * (x - x.mean(0))


class Shifted(nn.Module):
    """Every sample takes a part of the one before it in the batch."""

    def forward(self, x):
        return x + 0.5 * x.roll(1, 0)


COUPLED = {
    "BatchNorm1d": lambda: nn.BatchNorm1d(8, track_running_stats=False),
    "Function": lambda: Function(lambda x: F.batch_norm(x, None, None, training=True)),
    "centred": lambda: Function(lambda x: x - x.mean(0)),
    "softmax": lambda: Function(lambda x: x * x.softmax(0)),
    "Gated": Gated,
    "Shifted": Shifted,
}


EXTREMES = {
    "largest of all": lambda x: x / x.abs().max(),
    "largest of each": lambda x: x / x.abs().amax(0),
    "sorted": lambda x: x.sort(0).values,
    "ranked": lambda x: x.argsort(0).argsort(0).to(x.dtype),
    "quantile": lambda x: x - x.double().quantile(0.8, 0).to(x.dtype),
}


@pytest.mark.parametrize("batch_size", [1, 7, 64])
@pytest.mark.parametrize("kind", EXTREMES)
def test_extremes_of_the_batch_are_found(probe, kind, batch_size):
    """A change by less than a twentieth of the spread is told, by more refused: found in both cases."""
    model = between(Function(EXTREMES[kind]))
    message = r"depend on the other samples of the batch: the module '1' \(Function\) mixes"
    with warnings.catch_warnings(action="error"), pytest.raises(Exception, match=message) as found:
        lesde.record(model, "penultimate", probe, batch_size=batch_size)
    assert found.type in (ValueError, UserWarning)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("batch_size", [1, 64])
def test_the_length_of_the_batch_is_found(probe, batch_size, dtype):
    """And other rounding of a shorter batch is not taken for it."""
    model = between(Function(lambda x: x / len(x) * 50)).to(dtype)
    message = r"depend on the length of the batch: the module '1' \(Function\) uses it"
    with pytest.raises(ValueError, match=message):
        lesde.record(model, "logits", probe, batch_size=batch_size)
    hidden = [m for _ in range(4) for m in (nn.ReLU(), nn.Linear(100, 100))]
    wide = nn.Sequential(nn.Linear(WIDTH, 100), *hidden).to(dtype)
    with warnings.catch_warnings(action="error"):
        lesde.record(wide, "logits", probe, batch_size=batch_size)


@pytest.mark.parametrize("size", [16, 20])
def test_a_model_of_one_batch_size_is_taken(probe, size):
    x, y = (torch.cat([part, part])[:80] for part in probe)
    model = nn.Sequential(Function(lambda x: x.reshape(size, WIDTH)), nn.Linear(WIDTH, K))
    with warnings.catch_warnings(action="error"):
        paths = lesde.record(model, "logits", (x, y), batch_size=size)
    assert paths.features.shape[2] == 80


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "batch_size", [1, pytest.param(7, marks=SLOW), pytest.param(39, marks=SLOW), 64]
)
@pytest.mark.parametrize("kind", COUPLED)
def test_layers_that_mix_samples_are_refused(probe, kind, batch_size):
    model = between(COUPLED[kind]())
    message = r"each sample by itself.*the features of 'penultimate'.*the module '1' \(\w+\) mixes"
    with pytest.raises(ValueError, match=message):
        lesde.record(model, "penultimate", probe, batch_size=batch_size)
    with pytest.raises(ValueError, match="each sample by itself"):
        lesde.Recorder(model, "logits", probe, every=1, batch_size=batch_size)
    if batch_size == 1 and kind in ("BatchNorm1d", "Function"):
        return  # torch itself takes no such batch
    # A layer before the one that mixes is recorded alone.
    paths = lesde.record(model, "0", probe, loss=None, batch_size=batch_size)
    order = torch.argsort(probe[1], stable=True)
    wanted = model[0](probe[0][order]).detach()
    np.testing.assert_allclose(paths.features[0, 0], wanted, rtol=1e-5, atol=1e-5)


def test_a_model_that_mixes_samples_itself_is_named(probe):
    class Centred(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(WIDTH, 8), nn.Linear(8, K)

        def forward(self, x):
            h = self.first(x)
            return self.last(h - h.mean(0))

    with pytest.raises(ValueError, match="the forward of Centred mixes"):
        lesde.record(Centred(), "logits", probe)
    nested = nn.Sequential(Centred())
    with pytest.raises(ValueError, match=r"the module '0' \(Centred\) mixes"):
        lesde.record(nested, "logits", probe)


def test_other_measurements_refuse_them_too(probe):
    x, y = probe
    model = between(COUPLED["centred"]())
    with pytest.raises(ValueError, match=r"each sample by itself.*the module '1'"):
        lesde.measure_impact(model, "cross_entropy", (x, y), (x, y), 0.1)
    data = ImageData(x.numpy(), y.numpy(), x.numpy(), y.numpy())
    for kind in ("centred", "Function"):
        with pytest.raises(ValueError, match=r"architecture must map each sample by itself"):
            next(record_ensemble(data, lambda kind=kind: between(COUPLED[kind]()), 0.1, 1, [0, 1]))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x):
        tokens = x.reshape(len(x), 2, 4)
        return self.attention(tokens, tokens, tokens)[0].reshape(len(x), 8)


class Counting(nn.Module):
    """Its answer depends on how often it was called, in three kinds of memory."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.number = 0
        self.seen = []

    def forward(self, x):
        self.calls += 1
        self.number += 1
        self.seen.append(float(x[0, 0]))
        return x * (1 + 0.1 * (self.calls + self.number + len(self.seen)))


class OwnNoise(nn.Module):
    """Noise from a generator of its own."""

    def __init__(self):
        super().__init__()
        self.draws = torch.Generator()

    def forward(self, x):
        return x + torch.randn(x.shape, generator=self.draws)


UNCOUPLED = {
    "batch norm": lambda: nn.BatchNorm1d(8),
    "layer norm": lambda: nn.LayerNorm(8),
    "group norm": lambda: nn.GroupNorm(2, 8),
    "attention": Attention,
    "dropout": lambda: nn.Dropout(0.5),
    "random": lambda: Function(lambda x: F.dropout(x, 0.5, training=True)),
    "noise": lambda: Function(lambda x: x + torch.randn_like(x)),
    "own noise": OwnNoise,
    "counting": Counting,
    "double": lambda: nn.Identity(),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", UNCOUPLED)
def test_layers_that_do_not_are_taken(probe, kind):
    model = between(UNCOUPLED[kind]())
    found = [
        lesde.record(model, ["logits", "penultimate"], probe, batch_size=size) for size in (1, 7, N)
    ]
    if kind in ("random", "noise", "own noise"):
        return
    for other in found[1:]:
        for layer, paths in other.items():
            np.testing.assert_allclose(
                paths.features, found[0][layer].features, rtol=1e-4, atol=1e-5
            )


def test_a_little_mixing_is_told(probe):
    model = between(Function(lambda x: x + 1e-3 * x.mean(0)))
    with pytest.warns(UserWarning, match=r"the module '1' \(Function\) mixes"):
        lesde.record(model, "logits", probe)


@pytest.mark.parametrize("share", [2e-4, 3e-4, 5e-4, 7e-4, 1e-3, 3e-3])
@pytest.mark.parametrize("layer", ["penultimate", "logits"])
def test_a_little_mixing_in_the_forward_is_the_forward(probe, layer, share):
    """No layer that reads what is mixed already is blamed."""

    class Mixing(Headed):
        def forward(self, x):
            h = self.body(x)
            return self.head(h - share * h.mean(0))

    with pytest.warns(UserWarning, match="the forward of Mixing mixes them"):
        lesde.record(Mixing(nn.Linear(8, K)), layer, probe)


def test_no_batch_holds_one_class(probe):
    """Every class has its share of every batch, and no batch is left with a single sample."""
    seen = []

    class Watching(nn.Module):
        def forward(self, x):
            seen.append(x[:, 0].tolist())
            return x[:, 1:]

    labels = torch.repeat_interleave(torch.arange(3), torch.tensor([20, 10, 3]))
    x = torch.cat([labels[:, None].float(), torch.randn(33, 3)], 1)
    lesde.record(Watching(), "logits", (x, labels), batch_size=16)
    batches = [np.bincount(np.int64(one), minlength=3) for one in seen[-3:]]
    assert [b.sum() for b in batches] == [11, 11, 11]
    for batch in batches:
        np.testing.assert_array_less(np.abs(batch - np.array([20, 10, 3]) / 3), 1.0001)
    whole = seen[-1]
    assert whole != sorted(whole)


# No trace


def _nested():
    return nn.Sequential(nn.Linear(WIDTH, 8), nn.ReLU())


class Replaced(nn.Module):
    """A buffer that every pass replaces, one that it makes, and one that it resizes."""

    def __init__(self):
        super().__init__()
        self.register_buffer("total", torch.zeros(()))
        self.register_buffer("kept", torch.zeros(0))

    def forward(self, x):
        self.total = self.total + 1
        if not hasattr(self, "made"):
            self.register_buffer("made", torch.ones(()))
        self.made.data.mul_(1.01)
        self.kept.resize_(len(self.kept) + 1).fill_(float(self.total))
        return x * (1 + 0.01 * self.total) * self.made + 0.01 * self.kept.sum()


class OwnMode(nn.Module):
    """Batch normalisation that keeps to training mode."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(8)

    def forward(self, x):
        self.norm.eval()
        y = self.norm(x)
        self.norm.train()
        self.norm(x)
        return y


class Remembering(nn.Module):
    """Attributes of several kinds: arrays, containers in containers, generators."""

    def __init__(self):
        super().__init__()
        self.table = {"rows": [np.zeros(2)], "names": set()}
        self.draws = torch.Generator().manual_seed(0)
        self.numbers = np.random.default_rng(0)
        self.python = random.Random(0)

    def forward(self, x):
        self.table["rows"][0] += 1
        self.table["rows"].append(1)
        self.table["names"].add(len(self.table["rows"]))
        noise = torch.rand((), generator=self.draws) + self.numbers.random() + self.python.random()
        state = float(self.table["rows"][0][0]) + len(self.table["names"])
        return x * (1 + 0.01 * state + 0.1 * float(noise))


class Global(nn.Module):
    """Draws from all global generators, also in evaluation mode."""

    def forward(self, x):
        return x * (1 + 0.1 * (torch.rand(()) + np.random.random() + random.random()))  # noqa: NPY002


class Lookup(nn.Module):
    """A table whose rows are shortened in place where they are read."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(16, 8, max_norm=0.5)

    def forward(self, x):
        return x + self.table((x[:, 0] * 3).long().clamp(-8, 7) + 8)


class Lazy(nn.Module):
    """Makes its layer when it is first called in training."""

    def forward(self, x):
        if not hasattr(self, "layer"):
            self.layer = nn.Linear(x.shape[1], x.shape[1])
        return self.layer(x)


class Derivative(nn.Module):
    """Takes a derivative of its own in every pass, which leaves gradients behind."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(8))

    def forward(self, x):
        with torch.enable_grad():
            (self.scale * x.detach()).square().mean().backward()
        return x * self.scale


def observed():
    observer = torch.ao.quantization.MovingAverageMinMaxObserver
    return torch.ao.quantization.FakeQuantize(observer, quant_min=0, quant_max=255)


def counting_hook():
    """A hook with a list and a number of its closure, which changes what the module gives."""
    module, seen, number = nn.Identity(), [], 0

    def hook(module, inputs, output):
        nonlocal number
        number += 1
        seen.append(number)
        return output * (1 + 0.01 * (number + len(seen)))

    module.register_forward_hook(hook)
    return module


class Counter:
    def __init__(self):
        self.number = 0

    def hook(self, module, inputs, output):
        self.number += 1
        return output * (1 + 0.01 * self.number)

    __call__ = hook


COUNT = 0


def global_hook(module, inputs):
    global COUNT
    COUNT += 1
    return (inputs[0] * (1 + 0.01 * COUNT),)


def hooked(kind):
    module = nn.Identity()
    if kind == "method":
        module.register_forward_hook(Counter().hook)
    elif kind == "object":
        module.register_forward_hook(Counter())
    elif kind == "partial":
        module.register_forward_hook(functools.partial(lambda kept, *_: kept.append(1), []))
    else:
        module.register_forward_pre_hook(global_hook)
    return module


TRACES = {
    "counter": Counting,
    "replaced": Replaced,
    "own mode": OwnMode,
    "remembering": Remembering,
    "global": Global,
    "lookup": Lookup,
    "lazy": Lazy,
    "derivative": Derivative,
    "observer": observed,
    "dropout": lambda: nn.Dropout(0.3),
    "hook with a closure": counting_hook,
    "hook of an object": lambda: hooked("method"),
    "object as a hook": lambda: hooked("object"),
    "partial as a hook": lambda: hooked("partial"),
    "hook with a global": lambda: hooked("global"),
    "spectral norm": lambda: parametrizations.spectral_norm(nn.Linear(8, 8)),
    "old spectral norm": lambda: nn.utils.spectral_norm(nn.Linear(8, 8)),
    "pruned": lambda: prune.random_unstructured(nn.Linear(8, 8), "weight", 0.5),
    "scripted": lambda: torch.jit.script(nn.BatchNorm1d(8)),
    "instance norm": lambda: nn.Unflatten(1, (2, 4)),
}


# Of every kind of memory one is tried each time.
OFTEN = {"counter", "replaced", "own mode", "remembering", "global", "derivative", "dropout"}
OFTEN |= {"hook with a closure", "spectral norm", "scripted"}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=() if kind in OFTEN else SLOW) for kind in TRACES]
)
def test_training_is_the_same_to_the_last_bit(probe, kind):
    x, y = probe

    def train(record):
        global COUNT
        COUNT = 0
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
                if step == 3 and kind not in ("global", "own mode", "derivative"):
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


def test_attributes_and_hooks_are_as_before(probe):
    model = between(Remembering())
    model.append(Counting())
    handle = model[2].register_forward_hook(lambda *_: handle.remove())
    table = model[1].table
    lesde.record(model, ["1", "penultimate"], probe)
    assert model[1].table is table
    assert len(table["rows"]) == 1
    np.testing.assert_array_equal(table["rows"][0], 0)
    assert table["names"] == set()
    assert (model[4].number, model[4].seen, float(model[4].calls)) == (0, [], 0.0)
    assert len(model[2]._forward_hooks) == 1
    assert model[1].draws.get_state().equal(torch.Generator().manual_seed(0).get_state())


def test_nothing_is_left_by_a_pass_that_fails(probe):
    class Failing(Counting):
        def forward(self, x):
            super().forward(x)
            raise RuntimeError("no such thing")

    model = between(Failing())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match="no such thing"):
        lesde.record(model, "logits", probe)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert (model[1].number, model[1].seen) == (0, [])


def test_layers_without_a_shape_are_refused(probe):
    with pytest.raises(ValueError, match="pass a batch through it first"):
        lesde.record(nn.Sequential(nn.LazyLinear(8), nn.LazyLinear(K)), "logits", probe)


# The classifier and what it reads


class Adapted(nn.Module):
    """A head with an adapter, whose second factor begins at zero."""

    def __init__(self, inside=True):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(WIDTH, 8), nn.ReLU())
        self.base, self.a, self.b = nn.Linear(8, K), nn.Linear(8, 2, False), nn.Linear(2, K, False)
        nn.init.zeros_(self.b.weight)

    def forward(self, x):
        h = self.body(x)
        return self.base(h) + self.b(self.a(h))

    def read(self):
        return self.base.weight + self.b.weight @ self.a.weight, self.base.bias


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


class Scaled(Headed):
    """Logits divided by a temperature that is trained and begins at 1."""

    def __init__(self):
        super().__init__(nn.Linear(8, K))
        self.temperature = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return self.head(self.body(x)) / self.temperature

    def read(self):
        return self.head.weight / self.temperature, self.head.bias / self.temperature


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
    "adapter": Adapted,
    "temperature": Scaled,
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


@pytest.mark.filterwarnings("error")
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
    with pytest.warns(UserWarning, match=r"time 1 are no affine map of the features"):
        recorder.step()
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


@pytest.mark.parametrize("wide", [8, K])
def test_features_are_not_taken_for_logits(probe, wide):
    for pack in (lambda h, z: (h, z), lambda h, z: [h, z, h]):
        model = Several(pack, wide)
        message = rf"logits first.*{wide} columns, entry 1 has 3"
        with pytest.raises(ValueError, match=message):
            lesde.record(model, "body", probe)
        with pytest.raises(ValueError, match=message):
            lesde.Recorder(model, "logits", probe, every=1)
        features = lesde.record(model, "body", probe, loss=None)
        assert "accuracy" not in features
    with pytest.raises(ValueError, match=r"logits, by that name; got a dict of \['a', 'b'\]"):
        lesde.record(Several(lambda h, z: {"a": h, "b": z}, wide), "body", probe)


FEATURES_FIRST = {
    "of a linear layer": lambda m, z: (z, m.head(F.relu(z))),
    "of a linear layer, scaled": lambda m, z: (z, m.head(F.relu(z)) / 2),
    "normalised": lambda m, z: (F.normalize(z), m.head(z)),
    "a list": lambda m, z: [F.normalize(z), m.head(z)],
    "cut": lambda m, z: (z[:, :K], m.head(z)),
    "detached": lambda m, z: (F.normalize(z.detach()), m.head(z)),
    "nested": lambda m, z: ((F.normalize(z), m.head(z)),),
    "by a table": lambda m, z: (F.normalize(z), z @ m.head.weight.T),
}
LOGITS_FIRST = {
    "features": lambda m, z: (m.head(z), z),
    "normalised features": lambda m, z: (m.head(z), F.normalize(z)),
    "cut": lambda m, z: (m.head(z), z[:, :K]),
    "a second head": lambda m, z: (m.head(z), m.aux(z)),
    "a second head before": lambda m, z: (m.aux(z), m.head(z))[::-1],
    "a deep second head": lambda m, z: (m.head(z), m.aux(m.deep(z))),
    "an adapter": lambda m, z: (m.head(z) + m.aux(m.deep(z)), m.third(z)),
    "a fixed table": lambda m, z: (z @ m.table, m.aux(z)),
    "probabilities": lambda m, z: ((logits := m.head(z)), logits.softmax(-1)),
    "a temperature": lambda m, z: ((logits := m.head(z)), logits * m.scale),
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


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("wide", [K, 16])
@pytest.mark.parametrize("kind", FEATURES_FIRST)
def test_features_of_any_kind_are_not_taken_for_logits(probe, kind, wide, frozen):
    model = Packed(wide, FEATURES_FIRST[kind])
    model.body.requires_grad_(not frozen)
    with pytest.raises(ValueError, match=r"logits first.*entry 1 is made with all weights"):
        lesde.record(model, "body", probe)
    with warnings.catch_warnings(action="error"):
        features = lesde.record(model, "body", probe, loss=None)
    assert not {"accuracy", "weights", "bias"} & set(features)


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


def test_a_first_entry_of_another_width_is_told(probe):
    model = Several(lambda h, z: (h[:, :4] ** 2, z, h))
    model.head = nn.Linear(8, 5)
    with pytest.warns(UserWarning, match=r"4 columns, entry 1 has 5.*first is taken"):
        lesde.record(model, "body", probe)


class Numbered(torch.utils.data.Dataset):
    """Inputs, labels and the number of the sample."""

    def __init__(self, x, y):
        self.x, self.y = x, y

    def __len__(self):
        return len(self.y)

    def __getitem__(self, i):
        if i >= len(self):
            raise IndexError
        return self.x[i], int(self.y[i]), i


class Unlabelled(Numbered):
    def __getitem__(self, i):
        return super().__getitem__(i)[0], None


def test_numbers_of_samples_are_no_labels(probe):
    model = mlp(WIDTH, (8,), N)
    for source in (
        Numbered(*probe),
        DataLoader(Numbered(*probe), batch_size=7, shuffle=True),
        TensorDataset(*probe, torch.randperm(N)),
    ):
        message = r"last entry has 40 values for 40 samples.* entry 1 has 3"
        with pytest.raises(ValueError, match=message):
            lesde.record(model, "logits", source)
        with pytest.raises(ValueError, match=message):
            from_dataset(source, n_probe_per_class=2)

    # Integers as inputs and a label that repeats are what they were.
    class Sum(nn.Module):
        def forward(self, a, b):
            return F.one_hot((a + b) % K, K).float()

    numbers, classes = torch.arange(N), torch.arange(N) % K
    paths = lesde.record(Sum(), "logits", TensorDataset(numbers, 0 * numbers, classes))
    assert float(paths.accuracy[0, 0]) == 1


@pytest.mark.parametrize("kind", ["pairs", "data set", "loader"])
def test_labels_that_are_names(probe, kind):
    x, y = probe
    names = ["abc"[k] for k in y.tolist()]
    pairs = list(zip(x, names, strict=True))
    source = {"pairs": (x, names), "data set": None, "loader": DataLoader(pairs, batch_size=7)}[
        kind
    ]
    if source is None:

        class Named(Numbered):
            def __getitem__(self, i):
                x, y, _ = super().__getitem__(i)
                return x, "abc"[y]

        source = Named(x, y)
    message = r"must have integer labels.*such as .*Number them.*numpy\.unique"
    with pytest.raises(TypeError, match=f"^probe {message}"):
        lesde.record(mlp(WIDTH, (8,), K), "logits", source)
    with pytest.raises(TypeError, match=rf"^probe\['held_out'\] {message}"):
        lesde.record(mlp(WIDTH, (8,), K), "logits", {"held_out": source})
    with pytest.raises(TypeError, match=f"^train {message}"):
        from_dataset(source, n_probe_per_class=2)
    with pytest.raises(TypeError, match=f"^samples {message}"):
        lesde.measure_impact(mlp(WIDTH, (8,), K), "mse", (x, names), probe, 0.1)


def test_no_label_at_all(probe):
    x, _ = probe
    items = [(one, None) for one in x]
    for source in (DataLoader(items, batch_size=7), Unlabelled(x, torch.arange(N))):
        with pytest.raises(TypeError, match=r"^probe must give \(input, label\).*NoneType"):
            lesde.record(mlp(WIDTH, (8,), K), "logits", source)
        with pytest.raises(TypeError, match=r"^train must give \(input, label\).*NoneType"):
            from_dataset(source, n_probe_per_class=2)


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
