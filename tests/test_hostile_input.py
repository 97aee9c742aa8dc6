"""Input that cannot be meant: refused at once, by an error that names the argument."""

from __future__ import annotations

import json
import pickle
import re
from functools import cache

import numpy as np
import pytest
import torch
import xarray as xr
from typer.testing import CliRunner

import lesde
from lesde import analysis, networks
from lesde.cli.commands import app
from lesde.plot import animate, class_means, probability, save, simplex

K = 3
MODEL = lesde.LESDE(lesde.TwoLevel(1.0, -0.5), K, K, 6, noise=0.2)
FREE = lesde.LESDE(lesde.TwoLevel("a", "b", {"a": None, "b": None}), K, K, 6, noise=0.2)
TIMES, START = np.linspace(0, 1, 5), np.eye(K)


def nested(depth):
    value = 1.0
    for _ in range(depth):
        value = [value]
    return value


HOSTILE = {
    "complex": np.array([1j, 2.0]),
    "masked": np.ma.array([0.0, 1.0, 2.0], mask=[False, True, False]),
    "nan": float("nan"),
    "inf": float("inf"),
    "truth values": np.array([False, True]),
    "text": "no",
    "texts": np.array(["0", "1"]),
    "objects": np.array(["0", 1], dtype=object),
    "bytes": b"x",
    "ragged": ((0.1, 0.2), (0.3,)),
    "deep": nested(2000),
    "dates": np.array(["2020-01-01", "2021-01-01"], dtype="M8[D]"),
    "beyond all floats": 10**400,
    "negative": -1,
    "a set": {1, 2},
    "an object": object(),
}


@cache
def paths():
    return lesde.simulate(MODEL, TIMES, START, 8, 0.05)


@cache
def data():
    return networks.digits(classes=K, n_train_per_class=10, n_probe_per_class=4)


def net():
    return networks.mlp(64, (5,), K)


def network_call(function):
    return lambda **given: next(iter(function(data(), net, **{**TRAIN, **given})))


TRAIN = {"learning_rates": 0.1, "replicates": 1, "times": [0, 0.5]}
CALLS = {
    "LESDE": (
        lambda **given: lesde.LESDE(**{**{"kernel": lesde.TwoLevel(1.0, 0.5), "n_classes": K, "n_features": K}, **given}),
        {"kernel", "n_classes", "n_features", "n_per_class", "transform", "noise", "parameters"},
    ),
    "TwoLevel": (lambda **given: lesde.TwoLevel(1, 0, **given), {"parameters"}),
    "law": (lambda **given: lesde.law(MODEL, **{"times": TIMES, **given}), {"times", "initial", "differentiable", "parameters"}),
    "simulate": (
        lambda **given: lesde.simulate(MODEL, **{"times": TIMES, "replicates": 4, **given}),
        {"times", "initial", "replicates", "learning_rate", "engine", "seed", "dtype", "device",
         "progress", "keep", "memory_limit", "first_replicate"},
    ),
    "TorchSDE": (lambda **given: lesde.TorchSDE(**given), {"method", "dt", "noise"}),
    "tensor_paths": (
        lambda **given: lesde.tensor_paths(MODEL, **{"times": TIMES, "replicates": 4, **given}),
        {"times", "initial", "replicates", "learning_rate", "engine", "seed", "dtype", "device",
         "first_replicate", "parameters"},
    ),
    "moments": (
        lambda **given: lesde.moments(MODEL, **{"times": TIMES, "learning_rate": 0.05, **given}),
        {"times", "initial", "process", "dt"},
    ),
    "separation_probability": (
        lambda **given: lesde.separation_probability(paths(), **given),
        {"criterion", "confidence", "interval", "direction", "precision", "max_replicates", "margin", "progress"},
    ),
    "predict_separation": (
        lambda **given: lesde.predict_separation(**{"model": MODEL, "times": TIMES, "initial": START, **given}),
        {"model", "times", "initial", "direction"},
    ),
    "neural_collapse": (
        lambda **given: lesde.neural_collapse(paths(), **{"weights": np.eye(K), **given}),
        {"metrics", "weights", "bias", "centers"},
    ),
    "convergence": (
        lambda **given: lesde.convergence(lesde.neural_collapse(paths()), **given),
        {"metrics", "against", "window", "confidence"},
    ),
    "fit_elasticity": (
        lambda **given: lesde.fit_elasticity(paths(), **given),
        {"transform", "kernel", "confidence", "tail", "scheme", "errors", "estimator"},
    ),
    "statistics": (lambda **given: lesde.statistics(paths(), **given), {"directions"}),
    "separation_function": (
        lambda **given: analysis.separation_function(**{"gap": 1.0, "n1": 3, "n2": 3, **given}),
        {"n1", "n2"},
    ),
    "record": (
        lambda **given: lesde.record(net(), **{"layers": "logits", "probe": data(), **given}),
        {"layers", "loss", "pooling", "dtype", "batch_size", "iteration", "replicate"},
    ),
    "Recorder": (
        lambda **given: lesde.Recorder(net(), "logits", data(), **{"every": 3, **given}),
        {"every", "learning_rate", "resume", "state", "replicate"},
    ),
    "digits": (networks.digits, {"classes", "n_train_per_class", "n_probe_per_class", "probe", "seed"}),
    "geo_mnist": (networks.geo_mnist, {"n_train_per_class", "n_drawn", "seed"}),
    "ImageData": (
        lambda **given: networks.ImageData(**{**{n: getattr(data(), n) for n in ("train_x", "train_y", "probe_x", "probe_y")}, **given}),
        {"train_x", "train_y", "probe_x", "class_names"},
    ),
    "mlp": (
        lambda **given: networks.mlp(**{"n_inputs": 4, "widths": (3,), "n_classes": K, **given}),
        {"n_inputs", "widths", "n_classes", "activation", "bias"},
    ),
    "record_ensemble": (
        network_call(networks.record_ensemble),
        {"learning_rates", "replicates", "times", "layers", "loss", "batch_size", "sampling", "seed", "dtype", "labels", "drawn"},
    ),
    "saving_times": (
        lambda **given: networks.saving_times(**{"total": 10.0, "learning_rates": 0.1, **given}),
        {"total", "learning_rates", "count", "power"},
    ),
    "with_class_counts": (
        lambda **given: networks.with_class_counts(**{"data": data(), "counts": [5, 5, 5], **given}),
        {"data", "counts", "seed"},
    ),
    "with_label_noise": (
        lambda **given: networks.with_label_noise(**{"data": data(), "share": 0.1, **given}),
        {"data", "share", "seed"},
    ),
    "cifar10": (lambda **given: networks.cifar10(**{"path": "there", **given}), {"path", "classes"}),
    "animate": (lambda **given: animate(paths(), **given), {"replicate", "frames", "fps", "progress"}),
    "simplex": (lambda **given: simplex(paths(), **given), {"times", "learning_rate", "ax"}),
    "class_means": (lambda **given: class_means(paths(), lesde.law(MODEL, TIMES, START), **given), {"features", "learning_rate", "ax"}),
    "probability": (lambda **given: probability(lesde.separation_probability(paths()), **given), {"pair", "failure"}),
    "save": (lambda **given: save(**{"figure": None, "path": "f", **given}), {"figure"}),
}  # fmt: skip
# Values that an argument may well be given.
ALLOWED = {
    ("*", "seed"): {"beyond all floats"},
    ("cifar10", "path"): {"text"},
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("call", "argument"),
    [(call, name) for call, (_, names) in CALLS.items() for name in sorted(names)],
)
def test_errors_name_the_argument(call, argument):
    function, _ = CALLS[call]
    skipped = ALLOWED.get((call, argument), ALLOWED.get(("*", argument), set()))
    for kind, value in HOSTILE.items():
        if kind in skipped:
            continue
        with pytest.raises((TypeError, ValueError)) as caught:
            function(**{argument: value})
        assert caught.type in (TypeError, ValueError), (kind, caught.value)
        assert re.search(rf"\b{argument}\b", str(caught.value)), (kind, str(caught.value))
        assert len(str(caught.value)) < 1000


def test_tensors_with_gradients_are_taken_for_their_numbers():
    weights = torch.nn.Parameter(torch.eye(K))
    with_gradient = lesde.neural_collapse(
        paths(), weights=weights, bias=torch.zeros(K, requires_grad=True)
    )
    plain = lesde.neural_collapse(paths(), weights=np.eye(K), bias=np.zeros(K))
    xr.testing.assert_identical(with_gradient, plain)
    times = torch.tensor(TIMES, requires_grad=True)
    half = torch.eye(K, dtype=torch.bfloat16, requires_grad=True)
    xr.testing.assert_identical(lesde.law(MODEL, times, half), lesde.law(MODEL, TIMES, START))


def test_nothing_masked_is_as_good_as_plain():
    times = np.ma.array(TIMES, mask=np.zeros(5, bool))
    xr.testing.assert_identical(lesde.law(MODEL, times, START), lesde.law(MODEL, TIMES, START))
    with pytest.raises(ValueError, match="initial must not be masked"):
        lesde.law(MODEL, TIMES, [np.ma.array([1.0, 2, 3], mask=[1, 0, 0]), np.ones(3), np.ones(3)])


CONSUMERS = {
    "separation_probability": lesde.separation_probability,
    "neural_collapse": lesde.neural_collapse,
    "fit_elasticity": lesde.fit_elasticity,
    "statistics": lesde.statistics,
    "calibrate": lambda found: lesde.calibrate(found, FREE, {"a": 1.0, "b": -0.5}),
    "published_elasticity": analysis.published_elasticity,
    "simplex": simplex,
}


@pytest.mark.parametrize("consumer", CONSUMERS)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p.assign(features=p.features * (1 + 1j)), r"paths\.features must hold real"),
        (lambda p: p.assign(features=p.features.astype(str)), r"paths\.features must hold real"),
        (lambda p: p.assign(features=p.features > 0), r"paths\.features must hold real"),
        (lambda p: p.isel(time=[]), r"paths\.features must hold at least one time"),
        (lambda p: p.isel(replicate=[]), r"paths\.features must hold at least one replicate"),
        (lambda p: p.isel(feature=[]), r"paths\.features must hold at least one feature"),
        (lambda p: p.assign_coords(time=p.time.values * 1j), r"paths\.time must hold real"),
        (lambda p: p.assign_coords(time=p.time.values.astype("M8[s]")), r"paths\.time must hold"),
        (lambda p: p.assign_coords(time=p.time * np.nan), r"paths\.time must be finite"),
        (
            lambda p: p.assign_coords(iteration=("time", p.iteration.values.astype(str))),
            r"paths\.iteration must hold real",
        ),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_datasets_of_other_than_numbers(consumer, change, message):
    with pytest.raises((TypeError, ValueError), match=message):
        CONSUMERS[consumer](change(paths()))


@pytest.mark.parametrize("labels", [[0, 1.5], ["0", "1"]])
def test_labels_of_cifar_that_are_no_integers(tmp_path, labels):
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        content = {b"data": np.zeros((2, 3072), np.uint8), b"labels": labels}
        (tmp_path / name).write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError, match="labels must be integers from 0 to 9"):
        networks.cifar10(tmp_path, 2, 1, 1)


def run(*arguments):
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def test_options_that_are_zero_or_negative(tmp_path):
    model = ["--alpha", "1", "--beta", "0"]
    assert (
        "--features must be an integer of at least 1"
        in run("derive", *model, "--features", 0).output
    )
    found = run("simulate", tmp_path / "p.zarr", *model, "--seed", -1)
    assert "--seed must be an integer of at least 0; got -1" in found.output


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 10**5 + "]" * 10**5, "--config must be a JSON file with settings"),
        (json.dumps({"draws": 10**9}), "draws: Input should be less than or equal to"),
        (json.dumps({"saved_times": 10**9}), "saved_times: Input should be less than"),
        (json.dumps({"learning_rates": [[0.1, 0.2], [0.3]]}), r"learning_rates\.0"),
        (json.dumps({"seed": -1}), "seed: Input should be greater than or equal to 0"),
    ],
    ids=["deep", "draws", "times", "learning rates", "seed"],
)
def test_settings_of_studies(tmp_path, text, message):
    file = tmp_path / "settings.json"
    file.write_text(text)
    found = run("rates", "--config", file, "--show-config")
    assert found.exit_code == 2
    assert re.search(message, " ".join(found.output.split())), found.output


def test_a_dataset_or_ragged_tensors_for_numbers_are_refused_by_name():
    model = lesde.LESDE(lesde.TwoLevel(2, -1), 2, 2, 3)
    with pytest.raises(TypeError, match="learning_rate must be"):
        lesde.simulate(model, [0, 1], replicates=2, learning_rate=xr.Dataset())
    with pytest.raises(TypeError, match="learning_rate must be"):
        lesde.moments(model, [0, 1], learning_rate=xr.Dataset())
    for noise in (xr.Dataset(), (torch.zeros(12, 4), torch.zeros(12))):
        with pytest.raises(TypeError, match="noise must be"):
            lesde.LESDE(lesde.TwoLevel(2, -1), 2, 2, 3, noise=noise)
