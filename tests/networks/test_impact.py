"""What one SGD step does to a network's features: against plain loops, closed forms and full batches."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import xarray as xr
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lesde
from lesde.networks import (
    collect,
    ensemble_impact,
    measure_impact,
    mlp,
    record_ensemble,
    with_label_noise,
)
from lesde.networks.ensemble import child_seed
from lesde.networks.training import SampleOrder

from .architectures import ARCHITECTURES, Residual, dense, ensemble_of

RATE, TIMES = 0.04, [0.0, 0.4, 2.0]


def trained_network(architecture, data, replicate, iterations, seed):
    """A network in float64 after so many plain steps, by torch.optim."""
    start = ensemble_of(architecture, data, [replicate], seed)
    network = architecture()
    values = {k: v[0] for k, v in (start.parameters | start.fixed).items()}
    with torch.no_grad():
        for key, parameter in network.named_parameters():
            parameter.copy_(values[key])
    order = SampleOrder([child_seed(seed, replicate, 1)], len(data.train_x), 1, "uniform")
    trained = [p for p in network.parameters() if p.requires_grad]
    optimiser = torch.optim.SGD(trained, lr=RATE)
    x, y = torch.as_tensor(data.train_x), torch.as_tensor(data.train_y)
    for drawn in order.take(iterations + 1)[:iterations, 0]:
        optimiser.zero_grad()
        nn.CrossEntropyLoss()(network(x[drawn]), y[drawn]).backward()
        optimiser.step()
    return network.double()


def plain_changes(network, x, y, watched, rate, features, loss="cross_entropy"):
    """Changes (draw, sample, feature) by a copy of the network for every step."""
    changes = []
    for j in range(len(x)):
        moved = copy.deepcopy(network)
        trained = [p for p in moved.parameters() if p.requires_grad]
        optimiser = torch.optim.SGD(trained, lr=rate)
        logits = moved(x[j : j + 1])
        if loss == "cross_entropy":
            value = nn.CrossEntropyLoss()(logits, y[j : j + 1])
        else:
            value = 0.5 * (logits - nn.functional.one_hot(y[j : j + 1], 4)).square().sum()
        value.backward()
        optimiser.step()
        with torch.no_grad():
            changes.append((features(moved, watched) - features(network, watched)).numpy())
    return np.array(changes)


def output(network, x):
    return network(x)


@pytest.mark.parametrize("name", ["dense", "convolutional", "residual", "tied weights"])
def test_same_as_a_plain_loop(data, name):
    """Exactly (in float64) where nothing was trained; after 50 steps in float32 to what those agree to."""
    architecture = ARCHITECTURES[name]
    (record,) = measure_impact(data, architecture, RATE, 3, TIMES, draws=2, seed=7)
    impact = record["impact"].isel(learning_rate=0)
    watched = torch.as_tensor(data.probe_x).double()
    for r, t, tolerance in ((0, 0, 1e-12), (2, 0, 1e-12), (2, 2, 1e-5)):
        network = trained_network(architecture, data, r, int(impact.iteration[t]), seed=7)
        at = impact.isel(replicate=r, time=t)
        rows = at.drawn_sample.values
        np.testing.assert_array_equal(data.train_y[rows], at.drawn_label)
        x, y = torch.as_tensor(data.train_x[rows]).double(), torch.as_tensor(data.train_y[rows])
        changes = plain_changes(network, x, y, watched, RATE, output)
        own = np.diagonal(plain_changes(network, x, y, x, RATE, output), axis1=0, axis2=1).T
        for k in range(4):
            mine = changes[:, data.probe_y == k]
            np.testing.assert_allclose(at.change[:, k], mine.mean(1), atol=tolerance)
            norms = np.linalg.norm(mine, axis=-1)
            np.testing.assert_allclose(at.square[:, k], (norms**2).mean(1), atol=tolerance)
            relative = norms.mean(1) / np.linalg.norm(own, axis=-1)
            np.testing.assert_allclose(at.relative[:, k], relative, rtol=1e4 * tolerance)
        with torch.no_grad():
            np.testing.assert_allclose(at.drawn, network(x), atol=10 * tolerance)
        assert np.abs(changes).max() > 1e-3  # there was something to get wrong


def test_a_hidden_layer_another_step_and_the_squared_error(data):
    (record,) = measure_impact(
        data, dense, RATE, 2, TIMES, draws=2, layer="activation1", step=0.1, loss="mse", seed=3
    )
    assert set(record) == {"logits", "activation1", "impact"}
    impact = record["impact"].isel(learning_rate=0, replicate=1, time=0)
    assert float(impact.step) == 0.1
    network = trained_network(dense, data, 1, 0, seed=3)
    rows = impact.drawn_sample.values
    changes = plain_changes(
        network,
        torch.as_tensor(data.train_x[rows]).double(),
        torch.as_tensor(data.train_y[rows]),
        torch.as_tensor(data.probe_x).double(),
        0.1,
        lambda n, x: n[:2](x),
        loss="mse",
    )
    for k in range(4):
        np.testing.assert_allclose(
            impact.change[:, k], changes[:, data.probe_y == k].mean(1), atol=1e-13
        )


@pytest.mark.parametrize("name", ["dense", "convolutional"])
def test_training_goes_on_as_if_nobody_had_measured(data, name):
    """Bit for bit, whatever is measured."""
    arguments = (data, ARCHITECTURES[name], (RATE, 0.05), 3, TIMES)
    plain = collect(record_ensemble(*arguments, layers=("logits",), seed=5))["logits"]
    measured = collect(measure_impact(*arguments, draws=3, by="r2", seed=5))
    np.testing.assert_array_equal(measured["logits"].features, plain.features)
    np.testing.assert_array_equal(measured["logits"].loss, plain.loss)
    assert measured["impact"].sizes["learning_rate"] == 2
    np.testing.assert_allclose(measured["impact"].step, [RATE, 0.05])


def test_a_replicate_does_not_depend_on_its_company_or_on_memory(data, monkeypatch):
    keys = ("change", "square", "relative", "drawn", "drawn_sample")
    (many,) = measure_impact(data, dense, RATE, 4, TIMES, draws=3, seed=2)
    (some,) = measure_impact(data, dense, RATE, [3, 1], TIMES, draws=3, seed=2)
    for key in keys:
        wanted = many["impact"][key].sel(replicate=[3, 1])
        np.testing.assert_allclose(some["impact"][key], wanted, rtol=1e-3, atol=1e-6)
    monkeypatch.setattr(ensemble_impact, "WORKING_BYTES", 1)  # one copy at a time
    (again,) = measure_impact(data, dense, RATE, 4, TIMES, draws=3, seed=2)
    for key in keys:
        np.testing.assert_allclose(again["impact"][key], many["impact"][key], rtol=1e-9, atol=1e-13)


def test_steps_at_all_samples_add_up_to_a_step_of_the_full_batch(data):
    """To first order in h: at h = 1e-6 the rest is below 1e-3 of the whole."""
    h = 1e-6
    (record,) = measure_impact(data, dense, RATE, 1, [0, 1], draws=30, step=h, seed=4)
    impact = record["impact"].isel(learning_rate=0, replicate=0, time=0)
    network = trained_network(dense, data, 0, 0, seed=4)
    watched = torch.as_tensor(data.probe_x).double()
    moved = copy.deepcopy(network)
    logits = moved(torch.as_tensor(data.train_x).double())
    nn.CrossEntropyLoss()(logits, torch.as_tensor(data.train_y)).backward()
    torch.optim.SGD(moved.parameters(), lr=h).step()
    with torch.no_grad():
        change = (moved(watched) - network(watched)).numpy()
    wanted = np.stack([change[data.probe_y == k].mean(0) for k in range(4)])
    error = np.abs(impact.change.mean("draw") - wanted).max()
    assert float(error) < 1e-3 * np.abs(wanted).max()


def linear_case():
    """A linear classifier with the squared error, whose changes are known in closed form."""
    generator = torch.Generator().manual_seed(0)
    network = nn.Linear(5, 3, bias=False).double()
    with torch.no_grad():
        network.weight.copy_(torch.randn(3, 5, generator=generator, dtype=torch.float64))
    x = torch.randn(24, 5, generator=generator, dtype=torch.float64)
    y = torch.arange(24) % 3
    return network, x, y


def test_closed_form_of_a_linear_network():
    """ΔX_i = −h ⟨x_i, x_J⟩ (X_J − e_L)."""
    network, x, y = linear_case()
    impact = lesde.measure_impact(network, "mse", (x[:12], y[:12]), (x, y), 0.03)
    drawn = TensorDataset(x[:12], y[:12])
    loader = DataLoader(TensorDataset(x, y), batch_size=7)
    xr.testing.assert_identical(lesde.measure_impact(network, "mse", drawn, loader, 0.03), impact)
    with torch.no_grad():
        X = network(x).numpy()
    changes = -0.03 * np.einsum("jd,id,jk->jik", x[:12], x, X[:12] - np.eye(3)[y[:12]])
    for k in range(3):
        np.testing.assert_allclose(impact.change[:, k], changes[:, y == k].mean(1), atol=1e-14)
    np.testing.assert_allclose(impact.drawn, X[:12])
    # |ΔX_i|/|ΔX_J| = |⟨x_i, x_J⟩|/‖x_J‖².
    ratio = ((x[:12] @ x.T).abs() / (x[:12] ** 2).sum(1, keepdim=True)).numpy()
    for k in range(3):
        np.testing.assert_allclose(impact.relative[:, k], ratio[:, y == k].mean(1))
    fit = lesde.fit_impact(impact)
    L = y[:12].numpy()
    for k, l in np.ndindex(3, 3):
        top = sum(changes[j, y == k].mean(0) @ X[j] for j in np.flatnonzero(l == L))
        bottom = 0.03 * sum(X[j] @ X[j] for j in np.flatnonzero(l == L))
        assert float(fit.E[k, l]) == pytest.approx(top / bottom)


class Fussy(nn.Module):
    """Batch normalisation, dropout, a frozen part, a layer named in the middle."""

    def __init__(self):
        super().__init__()
        self.enter = nn.Linear(64, 10)
        self.norm = nn.BatchNorm1d(10)
        self.drop = nn.Dropout(0.5)
        self.frozen = nn.Linear(10, 10)
        self.frozen.requires_grad_(False)
        self.logits = nn.Linear(10, 4)

    def forward(self, x):
        return self.logits(torch.relu(self.frozen(self.drop(self.norm(self.enter(x))))))


def test_the_module_is_left_as_it_was(data):
    torch.manual_seed(0)
    model = Fussy()
    model.drop.eval()
    model.enter.weight.grad = torch.ones_like(model.enter.weight)
    before = copy.deepcopy(model.state_dict())
    modes = [m.training for m in model.modules()]
    samples, probe = (data.train_x[::15], data.train_y[::15]), (data.probe_x, data.probe_y)
    impact = lesde.measure_impact(model, "cross_entropy", samples, probe, 0.05, "enter")
    assert [m.training for m in model.modules()] == modes
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert (model.enter.weight.grad == 1).all()
    assert model.logits.weight.grad is None
    assert not model.enter._forward_hooks
    # The same by a copy in evaluation mode.
    still = copy.deepcopy(model).eval()
    changes = plain_changes(
        still,
        torch.as_tensor(samples[0]),
        torch.as_tensor(samples[1]),
        torch.as_tensor(probe[0]),
        0.05,
        lambda n, x: n.enter(x),
    )
    for k in range(4):
        mine = changes[:, data.probe_y == k].mean(1)
        np.testing.assert_allclose(impact.change[:, k], mine, atol=2e-6)
    assert np.abs(changes).max() > 1e-3
    own_loss = lesde.measure_impact(
        model,
        lambda out, label: nn.functional.cross_entropy(out, label),
        samples,
        probe,
        0.05,
        "enter",
    )
    np.testing.assert_allclose(own_loss.change, impact.change, atol=1e-6)


def test_ensemble_and_module_agree(data):
    (record,) = measure_impact(data, Residual, RATE, 1, TIMES, draws=3, seed=6, by="r2", bins=5)
    at = record["impact"].isel(learning_rate=0, replicate=0, time=0)
    network = trained_network(Residual, data, 0, 0, seed=6)
    rows = at.drawn_sample.values
    one = lesde.measure_impact(
        network,
        "cross_entropy",
        (data.train_x[rows], data.train_y[rows]),
        (data.probe_x, data.probe_y),
        RATE,
        by="r2",
        bins=5,
        batch_size=7,
    )
    for name in (
        "change",
        "square",
        "relative",
        "drawn",
        "bin_change",
        "bin_count",
        "bin_distance",
        "bin_edges",
    ):
        np.testing.assert_allclose(one[name], at[name], atol=1e-11, err_msg=name)
    for transform in ("identity", "logits"):
        np.testing.assert_allclose(
            lesde.fit_impact(one, transform).E, lesde.fit_impact(at, transform).E, rtol=1e-6
        )


def test_label_noise_inputs_and_unbalanced_shares(data):
    noisy = with_label_noise(data, 0.4)
    (record,) = measure_impact(
        noisy,
        lambda: mlp(64, (8,), 4),
        RATE,
        2,
        [0, 1],
        draws=4,
        by="input_cosine",
        bins=[-1, 0.5, 1],
    )
    impact = record["impact"].isel(learning_rate=0)
    np.testing.assert_array_equal(
        noisy.train_y[impact.drawn_sample.values], np.tile(impact.drawn_label, (2, 1))
    )
    np.testing.assert_allclose(impact.share, np.bincount(noisy.train_y) / 120)
    strength = lesde.impact_by_distance(impact)
    assert dict(strength.strength.sizes) == {"time": 2, "pair": 2, "bin": 2}
    assert strength.attrs["by"] == "input_cosine"
    assert int(strength["count"].isel(time=0).sum()) == 2 * 16 * 24


def test_what_does_not_fit_is_refused(data):
    def start(**given):
        return measure_impact(data, dense, RATE, 2, TIMES, **given)

    for given, message in (
        ({"draws": 31}, "draws must be an integer of at least 1 and at most 30"),
        ({"by": "distance"}, "by must be one of"),
        ({"bins": 1, "by": "r2"}, "bins"),
        ({"step": 0.0}, "step"),
        ({"loss": "hinge"}, "loss must be one of"),
        ({"layer": "nothing"}, "layers must be one of"),
    ):
        with pytest.raises(ValueError, match=message):
            start(**given)
    with pytest.raises(TypeError, match="one layer"):
        start(layer=("logits",))
    with pytest.raises(TypeError, match="ImageData"):
        measure_impact(data.train_x, dense, RATE, 2, TIMES)
    with pytest.raises(TypeError, match="observe"):
        record_ensemble(data, dense, RATE, 2, TIMES, observe=3)
    network, x, y = linear_case()
    good = dict(model=network, loss="mse", samples=(x, y), probe=(x, y), learning_rate=0.1)
    frozen = copy.deepcopy(network).requires_grad_(False)
    for wrong, error, message in (
        ({"model": dense}, TypeError, "torch.nn.Module"),
        ({"model": frozen}, ValueError, "require a gradient"),
        ({"loss": "hinge"}, ValueError, "loss must be one of"),
        ({"loss": lambda out, label: out}, ValueError, "one number"),
        ({"samples": x}, TypeError, "pair"),
        ({"samples": (x, y[:5])}, ValueError, "one label for each input; got 5 labels for 24"),
        ({"probe": (x, y + 1)}, ValueError, "0 to K-1"),
        ({"layer": "hidden"}, ValueError, "layer must be"),
        ({"learning_rate": -1.0}, ValueError, "learning_rate"),
        ({"by": "input_r2"}, ValueError, "by must be one of"),
        ({"probe": (x, torch.arange(24) % 4)}, ValueError, "K of at least 4"),
    ):
        with pytest.raises(error, match=message):
            lesde.measure_impact(**{**good, **wrong})


def test_labels_and_inputs_of_samples_are_checked_as_those_of_the_probe():
    network, x, y = linear_case()
    wild = x.clone()
    wild[3, 0] = np.nan
    for loss in ("cross_entropy", lambda out, label: out[0, label[0].clamp(0, 2)]):
        good = dict(model=network, loss=loss, samples=(x, y), probe=(x, y), learning_rate=0.1)
        for wrong, message in (
            (
                {"samples": (x, y + 1)},
                r"samples labels must be 0 to 2, the classes of probe; got 1 to 3\.",
            ),
            ({"samples": (x, y - 2)}, r"samples labels must be 0 to 2, .* got -2 to 0\."),
            ({"probe": (wild, y)}, "probe must have finite inputs; remove or replace"),
            ({"samples": (wild, y)}, "samples must have finite inputs"),
        ):
            with pytest.raises(ValueError, match=message):
                lesde.measure_impact(**{**good, **wrong})


def test_each_way_to_measure_names_the_other(data):
    network, x, y = linear_case()
    with pytest.raises(
        TypeError, match=r"got Linear\. To measure one .* lesde\.measure_impact\(model"
    ):
        measure_impact(network, "cross_entropy", (x, y), (x, y), 0.01)
    with pytest.raises(TypeError, match=r"got ImageData.* lesde\.networks\.measure_impact\(data"):
        lesde.measure_impact(data, dense, RATE, 2, TIMES)
    assert "lesde.networks.measure_impact" in lesde.measure_impact.__doc__
    assert "`lesde.measure_impact`" in measure_impact.__doc__
    assert lesde.measure_impact.__name__ == measure_impact.__name__ == "measure_impact"


def test_within_exceeds_between_as_the_network_learns(data):
    """Null of no local elasticity, α = β, refused at 5 standard errors after training, from 12 networks."""
    (record,) = measure_impact(
        data, lambda: mlp(64, (32,), 4), RATE, 12, [0.0, 8.0], draws=4, seed=1
    )
    impact = record["impact"].isel(learning_rate=0)
    for transform in ("identity", "logits"):
        fit = lesde.fit_impact(impact, transform).isel(time=-1)
        assert fit.attrs["errors"] == "replicate"
        assert float(fit.alpha_minus_beta) > 5 * float(fit.alpha_minus_beta_se)
        assert float(fit.relative_within) > float(fit.relative_between)
    assert float(record["logits"].accuracy[0, :, -1].mean()) > 0.9
