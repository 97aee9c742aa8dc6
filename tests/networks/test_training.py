"""Training: the same networks as plain PyTorch trains, whoever trains beside them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from lesde import Diverged
from lesde.networks import (
    ImageData,
    collect,
    mlp,
    record_ensemble,
    train_ensemble,
    with_label_noise,
)
from lesde.networks.ensemble import child_seed, make_step, mapped_step
from lesde.networks.training import SampleOrder

from .architectures import ARCHITECTURES, Residual, convolutional, dense, ensemble_of


def plain_training(architecture, data, rate, replicate, iterations, loss, batch_size, seed):
    """Logits at the given iterations by an ordinary loop with torch.optim.SGD."""
    start = ensemble_of(architecture, data, [replicate], seed)
    network = architecture()
    values = {k: v[0] for k, v in (start.parameters | start.fixed).items()}
    with torch.no_grad():
        for key, parameter in network.named_parameters():
            parameter.copy_(values[key])
    order = SampleOrder([child_seed(seed, replicate, 1)], len(data.train_x), batch_size, "uniform")
    trained = [p for p in network.parameters() if p.requires_grad]
    optimiser = torch.optim.SGD(trained, lr=rate)
    x, y = torch.as_tensor(data.train_x), torch.as_tensor(data.train_y)
    seen = []
    for m, drawn in enumerate(order.take(iterations[-1] + 1)[:, 0]):
        if m in iterations:
            with torch.no_grad():
                seen.append(network(torch.as_tensor(data.probe_x)).numpy().copy())
        logits, labels = network(x[drawn]), y[drawn]
        if loss == "cross_entropy":
            value = nn.CrossEntropyLoss()(logits, labels)
        else:
            value = (logits - nn.functional.one_hot(labels, 4)).pow(2).sum() / (2 * batch_size)
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
    return np.stack(seen)


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize(("loss", "batch_size"), [("cross_entropy", 1), ("mse", 3)])
def test_same_as_a_plain_loop(data, name, loss, batch_size):
    architecture = ARCHITECTURES[name]
    times, rate = [0.0, 0.4, 2.0], 0.04
    (run,) = train_ensemble(
        data, architecture, rate, 3, times, loss=loss, batch_size=batch_size, seed=7
    )
    np.testing.assert_array_equal(run.iterations, [0, 10, 50])
    for r in (0, 2):
        wanted = plain_training(architecture, data, rate, r, [0, 10, 50], loss, batch_size, seed=7)
        np.testing.assert_allclose(run.features["logits"][r], wanted, atol=1e-5)
        assert np.abs(wanted[2] - wanted[0]).max() > 0.05  # there was something to get wrong


@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
@pytest.mark.parametrize("name", ["dense", "tanh", "sigmoid", "linear chain"])
def test_written_out_and_mapped_steps_agree(data, name, loss):
    """In float64 over 200 steps: the two ways differ by rounding only."""
    ends = []
    for way in (make_step, mapped_step):
        ensemble = ensemble_of(ARCHITECTURES[name], data, dtype=torch.float64)
        step = way(ensemble, loss, 0.05)
        assert ensemble.chain() is not None
        order = SampleOrder([child_seed(0, r, 1) for r in range(3)], len(data.train_x), 2, "epochs")
        x, y = torch.as_tensor(data.train_x).double(), torch.as_tensor(data.train_y)
        y = nn.functional.one_hot(y).double()
        for drawn in torch.from_numpy(order.take(200)):
            step(x[drawn], y[drawn])
        ends.append(ensemble.parameters)
    for key, value in ends[0].items():
        np.testing.assert_allclose(value, ends[1][key], rtol=0, atol=1e-12)


def test_which_architectures_take_the_written_out_step(data):

    def is_chain(architecture):
        return ensemble_of(architecture, data).chain() is not None

    taken = {name: is_chain(architecture) for name, architecture in ARCHITECTURES.items()}
    assert taken == {
        "dense": True,
        "tanh": True,
        "sigmoid": True,
        "nested": False,  # a Sequential within a Sequential
        "linear chain": True,
        "convolutional": False,
        "residual": False,
        "shared layer": False,
        "shared activation": True,
        "tied weights": False,
        "tied bias": False,
    }
    assert is_chain(lambda: nn.Sequential(nn.ReLU(), nn.Linear(64, 4)))


@pytest.mark.parametrize("name", ["dense", "convolutional"])
def test_a_replicate_does_not_depend_on_its_company(data, name):
    arguments = (data, ARCHITECTURES[name], 0.05)
    (together,) = train_ensemble(*arguments, 8, [0, 1.0, 3.0], seed=3)
    (alone,) = train_ensemble(*arguments, [3], [0, 1.0, 3.0], seed=3)
    np.testing.assert_array_equal(alone.replicates, [3])
    np.testing.assert_allclose(
        alone.features["logits"][0], together.features["logits"][3], atol=1e-5
    )
    assert np.abs(together.features["logits"][3] - together.features["logits"][2]).max() > 0.05


def test_result_does_not_depend_on_what_is_saved_or_gathered(data, monkeypatch):
    (sparse,) = train_ensemble(data, dense, 0.05, 2, [0, 4.0])
    monkeypatch.setattr("lesde.networks.training._GATHER", 1000)
    (often,) = train_ensemble(data, dense, 0.05, 2, [0, 0.3, 0.35, 2.0, 4.0])
    np.testing.assert_array_equal(sparse.features["logits"][:, -1], often.features["logits"][:, -1])


def test_same_seed_same_numbers_and_the_global_generator_is_left_alone(data):
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    np.random.seed(1)  # noqa: NPY002  (must not matter)
    (first,) = train_ensemble(data, dense, 0.05, 2, [0, 1.0], seed=1)
    np.testing.assert_array_equal(torch.rand(3), expected)
    (second,) = train_ensemble(data, dense, 0.05, 2, [0, 1.0], seed=1)
    (other,) = train_ensemble(data, dense, 0.05, 2, [0, 1.0], seed=2)
    np.testing.assert_array_equal(first.features["logits"], second.features["logits"])
    assert (first.features["logits"][:, 0] != other.features["logits"][:, 0]).all()


def test_learning_rates_start_from_the_same_networks_and_run_for_the_same_time(data):
    slow, fast = train_ensemble(data, dense, [0.02, 0.1], 2, [0, 1.0, 2.0])
    np.testing.assert_array_equal(slow.features["logits"][:, 0], fast.features["logits"][:, 0])
    np.testing.assert_array_equal(slow.iterations, [0, 50, 100])
    np.testing.assert_array_equal(fast.iterations, [0, 10, 20])


def test_mean_of_a_linear_classifier_follows_its_exact_recursion(data):
    """Null: for a linear network with squared error and independent draws, E[logits] is exactly that
    of full-batch gradient descent, at any learning rate.

    400 replicates, 24 x 4 probe logits after 120 steps; each mean within 5 of its standard errors.
    """
    rate, steps, n = 0.03, 120, 400
    (run,) = train_ensemble(
        data,
        lambda: mlp(64, (), 4),
        rate,
        n,
        [0, rate * steps],
        loss="mse",
        layers=("penultimate",),
    )
    x = np.c_[data.train_x, np.ones(len(data.train_x))].astype(float)
    y = np.eye(4)[data.train_y]
    theta = np.concatenate([run.weights[:, 0], run.bias[:, 0, :, None]], -1).mean(0).astype(float)
    for _ in range(steps):
        theta -= rate * (x @ theta.T - y).T @ x / len(x)
    probe = np.c_[data.probe_x, np.ones(len(data.probe_x))]
    weights = np.concatenate([run.weights[:, 1], run.bias[:, 1, :, None]], -1)
    logits = probe @ weights.astype(float).swapaxes(1, 2)
    error = logits.mean(0) - probe @ theta.T
    assert (np.abs(error) < 5 * logits.std(0, ddof=1) / np.sqrt(n)).all()


def test_training_learns_the_digits(data):
    (run,) = train_ensemble(data, dense, 0.02, 8, [0, 30.0])
    assert run.accuracy[:, 0].mean() < 0.6  # four classes, untrained
    assert (run.accuracy[:, 1] > 0.9).all()
    assert (run.loss[:, 1] < 0.3 * run.loss[:, 0]).all()


def test_loss_and_accuracy_are_those_of_the_recorded_logits(data):
    from scipy.special import log_softmax

    (run,) = train_ensemble(data, dense, 0.05, 2, [0, 3.0])
    log_p = log_softmax(run.features["logits"].astype(float), axis=-1)
    own = np.take_along_axis(log_p, data.probe_y[None, None, :, None], -1)[..., 0]
    np.testing.assert_allclose(run.loss, -own.mean(-1), rtol=1e-10)
    np.testing.assert_array_equal(run.accuracy, (log_p.argmax(-1) == data.probe_y).mean(-1))


def test_layers_are_what_the_modules_give(data):
    layers = ("logits", "penultimate", "2", "3")
    (run,) = train_ensemble(data, convolutional, 0.05, 2, [0, 1.0], layers=layers)
    start = ensemble_of(convolutional, data, [1])
    network = convolutional()
    network.load_state_dict({k: v[0] for k, v in start.parameters.items()})
    with torch.no_grad():
        x = torch.as_tensor(data.probe_x)
        wanted = {"logits": network(x), "penultimate": network[:5](x), "3": network[:4](x)}
        wanted["2"] = network[:3](x)  # the activation after it works in place
    for layer, features in wanted.items():
        np.testing.assert_allclose(
            run.features[layer][1, 0], features.flatten(1).numpy(), atol=1e-6
        )
    again = np.einsum("rtsf,rtkf->rtsk", run.features["penultimate"], run.weights)
    again += run.bias[:, :, None]
    np.testing.assert_allclose(again, run.features["logits"], atol=1e-5)


def test_an_evaluation_is_not_changed_by_later_steps(data):
    """Of a network whose last weight is tied to an earlier one, which goes by the earlier name."""

    def tied():
        network = nn.Sequential(nn.Linear(64, 4), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
        network[3].weight = network[1].weight
        return network

    ensemble = ensemble_of(tied, data, layers=("penultimate",))
    x = torch.as_tensor(data.probe_x)
    seen = ensemble.evaluate(x) | ensemble.classifier()
    before = {name: tensor.clone() for name, tensor in seen.items()}
    step = make_step(ensemble, "mse", 0.1)
    step(x[:6].reshape(3, 2, 64), torch.eye(4)[data.probe_y[:6]].reshape(3, 2, 4))
    for name, old in before.items():
        np.testing.assert_array_equal(old, seen[name])
    assert (ensemble.classifier()["weights"] != before["weights"]).any()
    again = seen["penultimate"] @ before["weights"].transpose(1, 2) + before["bias"][:, None]
    np.testing.assert_allclose(again, before["logits"], atol=1e-5)


def test_frozen_parameters_stay(data):
    (run,) = train_ensemble(data, Residual, 0.05, 2, [0, 1.0], layers=("logits", "penultimate"))
    np.testing.assert_array_equal(run.weights[:, 0], run.weights[:, 1])
    assert run.bias is None
    assert (run.features["logits"][:, 0] != run.features["logits"][:, 1]).any()


def test_float64_is_kept(data):
    (run,) = train_ensemble(data, dense, 0.05, 1, [0, 0.5], dtype="float64")
    assert run.features["logits"].dtype == np.float64


def test_divergence_names_rate_and_time_and_keeps_what_is_done(data):
    runs = train_ensemble(
        data, lambda: mlp(64, (), 4), [0.1, 10.0], 2, [0, 50.0, 500.0], loss="mse"
    )
    kept = next(runs)
    assert kept.learning_rate == 0.1
    message = r"the loss of 2 of 2 networks \(the first is replicate 0\) at learning rate 10 "
    with pytest.raises(Diverged, match=message + r".* time 500; use a smaller") as caught:
        next(runs)
    assert caught.value.time == 500


def test_interrupt_keeps_what_was_yielded(data):
    def interrupt(steps, total):
        calls.append((steps, total))
        if steps > 40:
            raise KeyboardInterrupt

    calls, done = [], []

    def keep_all():
        done.extend(
            train_ensemble(data, dense, [0.05, 0.1, 0.2], 2, [0, 1.0, 2.0], progress=interrupt)
        )

    with pytest.raises(KeyboardInterrupt):
        keep_all()
    assert [run.learning_rate for run in done] == [0.05]
    assert calls == [(0, 70), (20, 70), (40, 70), (40, 70), (50, 70)]


def test_small_networks_train_on_one_thread_and_the_setting_comes_back(data, monkeypatch):
    def note(steps, total):
        threads.append(torch.get_num_threads())
        if steps == total:
            raise KeyboardInterrupt

    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        for enough, wanted in ((2**23, [1, 1]), (1, [3, 3])):
            threads = []
            monkeypatch.setattr("lesde.networks.training._WORTH_THREADS", enough)
            runs = train_ensemble(data, dense, 0.1, 2, [0, 1.0], progress=note)
            with pytest.raises(KeyboardInterrupt):
                next(runs)
            assert threads == wanted
            assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_progress_bar_reaches_its_end(data, capsys):
    list(train_ensemble(data, dense, [0.05, 0.1], 2, [0, 1.0], progress=True))
    assert "30/30" in capsys.readouterr().err


def test_shared_data_need_not_be_digits():
    """Images of any shape, and samples that are not sorted by class."""
    rng = np.random.default_rng(0)
    y = np.array([1, 0, 1, 0])
    images = ImageData(rng.normal(size=(4, 1, 5, 5)), y, rng.normal(size=(4, 1, 5, 5)), y)
    (run,) = train_ensemble(
        images, lambda: nn.Sequential(nn.Flatten(), nn.Linear(25, 2)), 0.1, 2, [0, 1.0]
    )
    assert run.features["logits"].shape == (2, 2, 4, 2)


@pytest.mark.parametrize(("name", "batch_size"), [("dense", 1), ("convolutional", 2)])
def test_logits_of_drawn_samples_are_those_before_the_step(data, name, batch_size):
    """Saving at every iteration shows the network before each step."""
    noisy = with_label_noise(data, 0.4)
    rate, last = 0.1, 12
    everything = dataclasses.replace(noisy, probe_x=noisy.train_x, probe_y=noisy.train_y)
    (run,) = train_ensemble(
        everything,
        ARCHITECTURES[name],
        rate,
        2,
        rate * np.arange(last + 1),
        batch_size=batch_size,
        seed=5,
        drawn=True,
    )
    for r in range(2):
        order = SampleOrder([child_seed(5, r, 1)], len(noisy.train_x), batch_size, "uniform").take(
            last
        )[:, 0]
        np.testing.assert_array_equal(run.drawn_labels[r], noisy.train_y[order].ravel())
        wanted = [run.features["logits"][r, m, rows] for m, rows in enumerate(order)]
        np.testing.assert_allclose(run.drawn_logits[r], np.concatenate(wanted), atol=1e-5)
    (sparse,) = train_ensemble(
        everything,
        ARCHITECTURES[name],
        rate,
        2,
        [0, rate * last],
        batch_size=batch_size,
        seed=5,
        drawn=True,
    )
    np.testing.assert_array_equal(sparse.drawn_logits, run.drawn_logits)


@pytest.mark.parametrize("name", ["dense", "residual"])
def test_labels_of_a_replicate_are_its_own(data, name):
    """Each trains as it would alone on data with its labels, wherever it stands in the stack."""
    noisy = [with_label_noise(data, 0.5, seed=seed) for seed in range(3)]
    labels = np.stack([one.train_y for one in noisy])
    assert (labels[0] != labels[1]).any()
    (run,) = train_ensemble(
        data, ARCHITECTURES[name], 0.1, 3, [0, 1.0], labels=labels, seed=2, drawn=True
    )
    for r, alone in enumerate(noisy):
        (other,) = train_ensemble(
            alone, ARCHITECTURES[name], 0.1, [r], [0, 1.0], seed=2, drawn=True
        )
        np.testing.assert_array_equal(run.drawn_labels[r], other.drawn_labels[0])
        np.testing.assert_allclose(run.drawn_logits[r], other.drawn_logits[0], atol=1e-5)


def test_drawn_samples_as_a_dataset(data):
    (record,) = record_ensemble(
        data, ARCHITECTURES["dense"], 0.1, 3, [0, 0.5, 1.0], batch_size=2, drawn=True
    )
    drawn = record["drawn"]
    assert dict(drawn.features.sizes) == {
        "learning_rate": 1,
        "replicate": 3,
        "draw": 20,
        "feature": 4,
    }
    np.testing.assert_array_equal(drawn.iteration, np.arange(10).repeat(2))
    np.testing.assert_allclose(drawn.time[0], 0.1 * np.arange(10).repeat(2))
    assert drawn.label.dims == ("learning_rate", "replicate", "draw")
    assert collect([record])["drawn"].identical(drawn)
    with pytest.raises(ValueError, match="not the drawn samples"):
        collect([record, record])
