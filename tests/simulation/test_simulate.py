"""The call simulate: arguments, the dataset it returns, and what reaches the engines."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch

import lesde
from lesde import LESDE, ClassMatrix, Diverged, TwoLevel, simulate
from lesde import paths as result
from lesde.processes.samples import _shifted, spread
from tests.simulation.systems import MEANS, make_system, moments_by_class

MODEL = LESDE(TwoLevel(alpha=2, beta=-1), n_classes=3, n_features=2, n_per_class=[4, 2, 3])
X0 = np.array([[1.0, 0], [0, 1], [-1, 0.5]])
ENGINES = {
    "exact": {"engine": "exact"},
    "euler": {"engine": lesde.TorchSDE(dt=0.01)},
    "milstein": {"engine": lesde.TorchSDE(method="milstein", dt=0.01)},
    "srk": {"engine": lesde.TorchSDE(method="srk", dt=0.01)},
    "sgd": {"engine": "sgd", "learning_rate": 0.01},
}
each_engine = pytest.mark.parametrize("engine", ENGINES)


@each_engine
def test_dataset(engine):
    paths = simulate(MODEL, [1, 1.5, 2.5], X0, 5, seed=3, **ENGINES[engine])
    assert paths.features.dims == ("replicate", "time", "sample", "feature")
    assert paths.features.shape == (5, 3, 9, 2)
    assert paths.features.dtype == np.float32
    assert paths.time.values.tolist() == [1, 1.5, 2.5]
    assert paths.label.values.tolist() == [0] * 4 + [1] * 2 + [2] * 3
    assert paths.replicate.values.tolist() == [0, 1, 2, 3, 4]
    expected = np.repeat(X0, [4, 2, 3], axis=0).astype(np.float32)
    np.testing.assert_array_equal(paths.features.values[:, 0], np.broadcast_to(expected, (5, 9, 2)))
    name = "torchsde" if engine in ("euler", "milstein", "srk") else engine
    assert paths.attrs["engine"] == name
    assert paths.attrs["seed"] == 3
    assert paths.attrs["dtype"] == "float32"
    assert json.loads(paths.attrs["model"]) == MODEL.describe()
    assert set(json.loads(paths.attrs["versions"])) == {"lesde", "torch", "torchsde", "numpy"}
    if name == "torchsde":
        assert paths.attrs["method"] == engine
        assert paths.attrs["dt"] == 0.01
    assert ("iteration" in paths.coords) == (engine == "sgd")
    assert paths.features.attrs["long_name"] == "feature"
    assert paths.time.attrs["long_name"] == "time"


def test_dataset_survives_a_file(tmp_path):
    import xarray as xr

    paths = simulate(MODEL, [0, 1], X0, 3, learning_rate=[0.1, 0.2])
    paths.to_zarr(tmp_path / "paths.zarr")
    xr.testing.assert_identical(xr.open_zarr(tmp_path / "paths.zarr").load(), paths)


@each_engine
def test_initial_samples_and_replicates(engine):
    rng = np.random.default_rng(0)
    samples, own = rng.standard_normal((9, 2)), rng.standard_normal((40, 9, 2))
    settings = {**ENGINES[engine], "dtype": "float64"}
    quiet = MODEL.replace(noise=0.0)
    times = [0, 0.5]
    paths = simulate(quiet, times, samples, 40, **settings).features.values
    np.testing.assert_allclose(paths[:, 0], np.broadcast_to(samples, (40, 9, 2)), atol=1e-14)
    # Without noise the deviations stay what they were.
    _, deviations = moments_by_class(paths[:, 1], MODEL.counts)
    _, first = moments_by_class(samples[None], MODEL.counts)
    np.testing.assert_allclose(deviations, np.broadcast_to(first, deviations.shape), atol=1e-12)
    per_replicate = simulate(quiet, times, own, 40, **settings).features.values
    np.testing.assert_allclose(per_replicate[:, 0], own, atol=1e-14)
    again = simulate(quiet, times, own[35], 40, **settings).features.values
    if engine == "srk" or engine == "exact":
        mean = lesde.law(quiet, times, own[35])["mean"].values[-1]
        got, _ = moments_by_class(per_replicate[35:36, 1], MODEL.counts)
        np.testing.assert_allclose(got[0], mean, atol=3e-5)
    np.testing.assert_allclose(again[35], per_replicate[35], atol=1e-12)
    means = np.broadcast_to(X0, (40, 3, 2)) * np.arange(40)[:, None, None]
    paths = simulate(quiet, times, means, 40, **settings).features.values
    np.testing.assert_allclose(paths[:, 0, 0], means[:, 0], atol=1e-14)


@each_engine
def test_a_kernel_entry_arrives(engine):
    # Only E_01 is not zero: class 0 is moved by class 1 and nothing else moves.
    times = np.array([0, 0.5, 1.0])
    x = np.array([[1.0, 0.0], [0.5, -2.0]])
    got = {}
    for strength in (0.0, 1.5):
        model = LESDE(ClassMatrix([[0, strength], [0, 0]]), 2, 2, [3, 6], noise=0.0)
        paths = simulate(model, times, x, 64, dtype="float64", **ENGINES[engine])
        got[strength], _ = moments_by_class(paths.features.isel(time=-1).values, model.counts)
    np.testing.assert_allclose(got[0.0], np.broadcast_to(x, (64, 2, 2)), atol=1e-13)
    np.testing.assert_allclose(got[1.5][:, 1], np.broadcast_to(x[1], (64, 2)), atol=1e-13)
    moved = got[1.5][:, 0] - x[0]
    if engine == "sgd":
        # Every draw of class 1 (probability 2/3, 100 iterations) moves it by h E x.
        draws = moved / (0.01 * 1.5 * x[1])
        np.testing.assert_allclose(draws, np.rint(draws), atol=1e-9)
        error = np.sqrt(100 * (2 / 9) / 64)
        assert abs(draws[:, 0].mean() - 200 / 3) < 5 * error
    else:
        np.testing.assert_allclose(moved, np.broadcast_to(2 / 3 * 1.5 * x[1], (64, 2)), rtol=1e-12)


@each_engine
def test_a_time_dependence_arrives(engine):
    # E_01 = 2t: the displacement is w_1 ∫ 2t x = w_1 x, by Euler steps w_1 x (1 − h).
    model = LESDE(ClassMatrix([[0, "2*t"], [0, 0]]), 2, 1, 3, noise=0.0)
    paths = simulate(model, [0, 1], [[0.0], [1.0]], 256, dtype="float64", **ENGINES[engine])
    got = paths.features.isel(time=-1, sample=0).values[:, 0]
    if engine in ("exact", "srk"):
        np.testing.assert_allclose(got, 0.5, rtol=1e-12)
    elif engine == "sgd":
        error = np.sqrt(sum((0.01 * 2 * m * 0.01) ** 2 / 4 for m in range(100)) / 256)
        assert abs(got.mean() - 0.495) < 5 * error
        assert got.std() > 0
    else:
        np.testing.assert_allclose(got, 0.495, rtol=1e-12)


@each_engine
def test_smallest_model(engine):
    model = LESDE(TwoLevel(-1.0, 0), 1, 1, 1)
    paths = simulate(model, [0, 1], [[1.0]], 2048, **ENGINES[engine])
    assert paths.features.shape == (2048, 2, 1, 1)
    end = paths.features.values[:, 1, 0, 0].astype(float)
    # dX = −X dt + 0.1 dW: mean exp(−1), variance 0.01 (1 − exp(−2))/2; the step 0.01 changes them by
    # less than 1 %, which is added to 5 standard errors.
    variance = 0.01 * (1 - np.exp(-2)) / 2
    assert abs(end.mean() - np.exp(-1)) < 5 * np.sqrt(variance / 2048) + 0.01 * np.exp(-1)
    assert abs(end.var() / variance - 1) < 5 * np.sqrt(2 / 2048) + 0.01


def test_auto():
    def engine(model=MODEL, **settings):
        return simulate(model, [0, 0.1], None, 1, **settings).attrs["engine"]

    assert engine() == "exact"
    assert engine(learning_rate=0.1) == "sgd"
    assert engine(engine=lesde.TorchSDE(dt=0.1)) == "torchsde"
    assert engine(engine=lesde.TorchSDE(method="srk")) == "torchsde"
    assert engine(learning_rate=0.1, engine=lesde.TorchSDE(dt=0.05)) == "torchsde"
    large = LESDE(TwoLevel(0.1, 0), 50, 50, 1, transform="logits")
    assert engine(large) == "torchsde"
    with pytest.raises(ValueError, match=r"n_classes·n_features = 2500.*use engine='torchsde'"):
        engine(large, engine="exact")


def test_default_step_is_accurate_to_about_one_percent():
    model = LESDE(TwoLevel("3/(1+t)", -1), 3, 3, 2, noise=0.0)
    x = np.eye(3)
    times = [0, 2.0]
    mean = lesde.law(model, times, x)["mean"].values[-1]
    for method in ("euler", "srk"):
        paths = simulate(model, times, x, 1, engine=lesde.TorchSDE(method=method), dtype="float64")
        got, _ = moments_by_class(paths.features.isel(time=-1).values, model.counts)
        assert np.abs(got - mean).max() < 0.01 * np.abs(mean).max()
    assert paths.attrs["dt"] <= 0.02
    still = LESDE(TwoLevel(0, 0), 3, 3, 2)
    assert simulate(still, times, x, 1, engine="torchsde").attrs["dt"] == pytest.approx(0.02)


def test_learning_rates_set_the_integration_step():
    paths = simulate(MODEL, [0, 1], X0, 2, learning_rate=[0.1, 0.25], engine="torchsde")
    assert paths.attrs["dt"] == [0.1, 0.25]
    quiet = MODEL.replace(noise=0.0)
    got = simulate(
        quiet, [0, 1], X0, 1, learning_rate=[0.25, 0.5], engine="torchsde", dtype="float64"
    )
    w = MODEL.counts / 9
    M = w * (3 * np.eye(3) - 1)
    for index, h in enumerate((0.25, 0.5)):
        expected = np.linalg.matrix_power(np.eye(3) + h * M, round(1 / h)) @ X0
        means, _ = moments_by_class(got.features.values[index, :, -1], MODEL.counts)
        np.testing.assert_allclose(means[0], expected, rtol=1e-12)


@each_engine
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_overflow_is_reported_with_its_time(engine, dtype):
    # Growth exp(100 t): 1e38 is passed at t = 0.9, 1e308 at 7.1; by steps of 0.02, which triple the
    # state instead of multiplying it by 7.4, later, and latest by the random steps of sgd.
    model = LESDE(TwoLevel(200, 0), 2, 2, 2)
    times = np.arange(0.0, 24.0, 0.5)
    settings = {k: 0.02 if k in ("dt", "learning_rate") else v for k, v in ENGINES[engine].items()}
    with pytest.raises(Diverged, match="stopped being finite at time") as caught:
        simulate(model, times, np.eye(2), 2, dtype=dtype, **settings)
    low, high = (0.5, 3.5) if dtype == "float32" else (7.0, 22.0)
    assert low <= caught.value.time <= high
    assert caught.value.time in times


BAD = {
    "times not increasing": (
        {"times": [0, 1, 1]},
        "times must be strictly increasing; got 1 followed by 1",
    ),
    "one time": ({"times": [0]}, "times must hold at least 2 times"),
    "nan time": ({"times": [0, np.nan]}, "times must be finite; got nan at index"),
    "shape": (
        {"initial": np.zeros((4, 2))},
        r"initial must have shape \(3, 2\) or \(9, 2\).*\(4, 2\)",
    ),
    "replicate shape": (
        {"initial": np.zeros((5, 3, 2))},
        r"or \(4, 3, 2\) or \(4, 9, 2\); got.*\(5, 3, 2\)",
    ),
    "nan initial": ({"initial": X0 * np.nan}, "initial must be finite; got nan at index"),
    "replicates": ({"replicates": 0}, "replicates must be an integer of at least 1; got 0"),
    "engine": ({"engine": "exakt"}, "engine must be one of .*; got 'exakt'. Did you mean 'exact'"),
    "method": (
        lambda: {"engine": lesde.TorchSDE(method="heun")},
        "method must be one of 'euler', 'milstein', 'srk'; got 'heun'",
    ),
    "dtype": ({"dtype": "float16"}, "dtype must be one of 'float32', 'float64'; got 'float16'"),
    "seed": ({"seed": -1}, "seed must be an integer of at least 0; got -1"),
    "dt": (lambda: {"engine": lesde.TorchSDE(dt=0.0)}, "dt must be a finite number"),
    "rate": ({"learning_rate": -0.1}, "learning_rate must be a finite number"),
    "rates": (
        {"learning_rate": [0.1, -0.2]},
        r"learning_rate must hold distinct positive values.*-0\.2",
    ),
    "no rates": ({"learning_rate": []}, "learning_rate must hold distinct positive values"),
    "same rates": ({"learning_rate": [0.1, 0.1]}, "must hold distinct positive values"),
    "nan rates": ({"learning_rate": [0.1, np.nan]}, "learning_rate must be finite; got nan"),
    "sgd without rate": (
        {"engine": "sgd"},
        "learning_rate is the step of engine='sgd'; got learning_rate=None",
    ),
    "first": ({"first_replicate": 16}, "first_replicate must be a multiple of 32.*got 16"),
    "device": (
        {"device": "gpu0"},
        "device must be a torch device such as 'cpu' or 'cuda'; got 'gpu0'",
    ),
    "tiny dt": (
        {"engine": lesde.TorchSDE(dt=1e-12)},
        r"step of 1e-12 needs 1e\+12 steps.*give a larger dt",
    ),
    "tiny rate": (
        {"learning_rate": 1e-20},
        r"learning_rate=1e-20 needs 1e\+20 iterations.*give a larger learning_rate",
    ),
    "dot": ({"memory_limit": "."}, "memory_limit must be a number of bytes or a text"),
    "minus": ({"memory_limit": "-3 MB"}, "memory_limit must be a number of bytes or a text"),
    "meta": ({"device": "meta"}, "such as 'cpu' or 'cuda'; got 'meta'"),
    "no cuda": (
        {"device": "cuda:99"},
        r"device='cuda:99' was asked for, but torch sees \d+ CUDA devices",
    ),
}


def call(changes):
    changes = changes() if callable(changes) else changes
    return simulate(MODEL, **{"times": [0, 1], "initial": X0, "replicates": 4, **changes})


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments(name):
    changes, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        call(changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"replicates": 2.0}, "replicates must be an integer of at least 1; got 2.0"),
        ({"seed": "x"}, "seed must be an integer"),
        (lambda: {"engine": lesde.TorchSDE(dt="small")}, "dt must be a real number; got 'small'"),
        ({"learning_rate": "0.1"}, "learning_rate must be a real number; got '0.1'"),
        ({"times": "now"}, "times must be"),
        ({"engine": 3}, "engine must be one of .* or lesde.Exact"),
        ({"progress": "yes"}, "progress must be True or False; got 'yes'"),
        ({"initial": "zero"}, "initial must be an array of real numbers"),
    ],
)
def test_wrong_types(changes, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call(changes)


@each_engine
def test_an_unevaluated_kernel_cannot_run(engine):
    with pytest.raises(ValueError, match="alpha"):
        simulate(LESDE(TwoLevel(), 2, 2, 2), [0, 1], np.eye(2), 2, **ENGINES[engine])


def test_a_result_beyond_memory_is_refused(monkeypatch):
    with pytest.raises(
        ValueError, match=r"needs 144 GB \(replicates=1000000000 × times of length 2 × 9 samples"
    ):
        simulate(MODEL, [0, 1], X0, 10**9, engine=lesde.TorchSDE(dt=0.5))
    monkeypatch.setattr(result, "available_memory", lambda: 1000.0)
    text = r"2 learning rates × replicates=4 × times of length 2 × 9 samples × 2 features, float32"
    with pytest.raises(ValueError, match=text):
        simulate(MODEL, [0, 1], X0, 4, learning_rate=[0.1, 0.2])
    monkeypatch.undo()
    assert 1e8 < result.available_memory() < 1e14


def test_progress_and_interrupt(capsys, monkeypatch):
    simulate(MODEL, [0, 1, 2], X0, 40, progress=True)
    assert "6/6" in capsys.readouterr().err
    simulate(MODEL, [0, 1, 2], X0, 40)
    assert capsys.readouterr().err == ""

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "isfinite", stop)
    monkeypatch.setattr(torch.Tensor, "sum", stop)
    with pytest.raises(KeyboardInterrupt):
        simulate(MODEL, [0, 1], X0, 4)


def test_torch_is_loaded_only_when_simulating():
    code = "import lesde, sys; assert 'torch' not in sys.modules, 'torch was imported'"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_paths_on_cuda_are_on_the_host():
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    system = make_system("matrix", "unbalanced", "varying", "full")
    for settings in ENGINES.values():
        paths = simulate(system.model, [0, 0.5], MEANS, 40, device="cuda", **settings)
        assert isinstance(paths.features.values, np.ndarray)
        assert np.isfinite(paths.features.values).all()


def test_differences_lost_in_a_grand_mean_are_told():
    """α > β > 0: at t = 25 the grand mean is 11 powers of ten above the gap, beyond float32."""
    model = lesde.LESDE(lesde.TwoLevel(2, 1), 2, 1, 4)
    initial = [[1.3], [0.7]]
    with pytest.warns(UserWarning, match="float32 leaves their differences few digits.*float64"):
        lesde.simulate(model, [0, 25], initial=initial, replicates=4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lesde.simulate(model, [0, 25], initial=initial, replicates=4, dtype="float64")


def test_an_endless_default_step_is_refused():
    model = lesde.LESDE(lesde.TwoLevel(1e5, 0), 3, 3)
    with pytest.raises(
        ValueError, match=r"an integration step of .* needs .* steps.*engine='exact'"
    ):
        lesde.simulate(model, [0, 1], initial=np.eye(3), replicates=1, engine="torchsde")


def test_a_model_is_asked_for():
    with pytest.raises(
        TypeError, match=r"process must be a lesde\.LESDE, or a process with .*; got \{\}"
    ):
        lesde.simulate({}, [0, 1])


@pytest.mark.parametrize(("n", "p"), [(1, 1), (7, 3), (15, 3), (33, 1), (100, 40), (101, 3)])
def test_classes_are_shifted_to_the_bit_like_single_samples(n, p):
    """Whatever number of samples is shifted in one go, also where it does not divide the class."""
    values, shift = torch.randn(2, 4, 3 * n, p), torch.randn(2, 4, 3, p)
    found = _shifted(values, shift, torch.empty_like(values))
    assert torch.equal(found, values + spread(shift, np.full(3, n)))
