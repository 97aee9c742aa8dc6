"""The recorder in a loop of the user's own: when it records, what, and on which clock."""

from __future__ import annotations

import gc
import weakref

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import xarray as xr
from torch import nn

import lesde
from lesde.networks import digits, mlp, open_records, record_ensemble, saving_times
from lesde.networks.ensemble import child_seed
from lesde.networks.recorder import Clock
from lesde.networks.training import SampleOrder

from .own_loop import Loop

LAYERS = ("hidden1", "penultimate", "logits")


def test_records_are_those_of_looks_between_the_steps(data):
    loop = Loop(data)
    looks = [lesde.record(loop.model, LAYERS, data)]
    recorder = lesde.Recorder(loop.model, LAYERS, data, every=3, learning_rate=loop.optimiser)
    for step in range(1, 8):
        loop.train(1, recorder)
        if step % 3 == 0:
            looks.append(lesde.record(loop.model, LAYERS, data))
    recorder.record()
    recorder.record()  # this iteration is recorded already
    looks.append(lesde.record(loop.model, LAYERS, data))
    for layer, paths in recorder.records().items():
        np.testing.assert_array_equal(paths.iteration, [0, 3, 6, 7])
        np.testing.assert_array_equal(paths.time, [0, 0.3, 0.6, 0.7])
        np.testing.assert_array_equal(paths.step_size, 0.1)
        assert paths.learning_rate == 0.1
        wanted = xr.concat([one[layer].drop_vars(["time", "iteration"]) for one in looks], "time")
        for name in wanted.data_vars:
            np.testing.assert_array_equal(paths[name], wanted[name])
            assert paths[name].dims[:2] == ("replicate", "time")
    assert recorder.iteration == 7
    assert recorder.time == 0.7


def test_the_ensemble_records_the_same_training(data):
    """The package's own trainer, one network: the same features from two codes, to rounding."""
    times = [0.0, 0.4, 1.0, 2.0]
    (ensemble,) = record_ensemble(
        data,
        lambda: mlp(64, (12, 8), 4),
        0.1,
        1,
        times,
        layers=["hidden1"],
        sampling="epochs",
        dtype="float64",
    )
    # The same initial state and order of samples, from the seeds of the ensemble.
    with torch.random.fork_rng(devices=[]):
        state = child_seed(0, 0, 0).generate_state(1, np.uint64)
        torch.manual_seed(int(state[0] >> np.uint64(1)))
        model = mlp(64, (12, 8), 4).double()
    order = SampleOrder([child_seed(0, 0, 1)], len(data.train_x), 1, "epochs").take(20)[:, 0]
    optimiser = torch.optim.SGD(model.parameters(), 0.1)
    recorder = lesde.Recorder(
        model, "hidden1", data, times=times, learning_rate=0.1, dtype="float64"
    )
    x, y = torch.tensor(data.train_x).double(), torch.tensor(data.train_y)
    for rows in order:
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
        optimiser.step()
        recorder.step()
    found = recorder.paths("hidden1")
    np.testing.assert_allclose(
        found.features, ensemble["hidden1"].features[0], rtol=1e-9, atol=1e-12
    )
    np.testing.assert_allclose(found.loss, ensemble["hidden1"].loss[0], rtol=1e-9)
    np.testing.assert_array_equal(found.time, times)


def test_clock_follows_a_schedule_of_the_learning_rate(data):
    loop = Loop(data, rate=0.2)
    scheduler = torch.optim.lr_scheduler.StepLR(loop.optimiser, step_size=4, gamma=0.5)
    recorder = lesde.Recorder(loop.model, "logits", data, every=2, learning_rate=loop.optimiser)
    loop.train(10, recorder, scheduler)
    paths = recorder.paths("logits")
    np.testing.assert_array_equal(paths.time, [0, 0.4, 0.8, 1.0, 1.2, 1.3])
    np.testing.assert_array_equal(paths.step_size, [0.2, 0.2, 0.2, 0.1, 0.1, 0.05])
    assert "learning_rate" not in paths.coords
    # Later analyses read iterations from it: the rate has changed, so they are no line in time.
    nc = lesde.neural_collapse(paths)
    np.testing.assert_array_equal(nc.iteration, [0, 2, 4, 6, 8, 10])


def test_a_step_of_size_0_makes_no_record(data):
    loop = Loop(data)
    rates = iter([0.0, 0.0, 0.0, 0.5, 0.5])
    recorder = lesde.Recorder(
        loop.model, "logits", data, every=1, learning_rate=lambda: next(rates)
    )
    loop.train(4, recorder)
    np.testing.assert_array_equal(recorder.paths("logits").iteration, [0, 3, 4])
    np.testing.assert_array_equal(recorder.paths("logits").time, [0, 0.5, 1.0])


def test_clock_of_a_run_with_momentum(data):
    """The callable that the documentation gives, read once and then at every step."""
    loop, calls = Loop(data), []

    def effective():
        calls.append(1)
        return loop.optimiser.param_groups[0]["lr"] / (1 - 0.9)

    recorder = lesde.Recorder(loop.model, "logits", data, every=2, learning_rate=effective)
    loop.train(4, recorder)
    np.testing.assert_allclose(recorder.paths("logits").time, [0, 2, 4])
    assert len(calls) == 5


def test_what_a_recorder_shows(data, tmp_path):
    for options in ({}, {"store": tmp_path / "features.zarr"}):
        loop = Loop(data)
        recorder = lesde.Recorder(
            loop.model, LAYERS[:2], {"train": data, "again": data},
            every=2, learning_rate=loop.optimiser, **options,
        )  # fmt: skip
        loop.train(5, recorder)
        assert repr(recorder) == "<Recorder at iteration 5, time 0.5: 3 record(s)>"
        assert (recorder.layers, recorder.probes) == (LAYERS[:2], ("train", "again"))


def test_times_before_the_start_are_not_due(data):
    recorder = lesde.Recorder(
        Loop(data).model, "logits", data,
        times=[0.0, 0.5, 1.0], learning_rate=0.1, state={"iteration": 7, "time": 0.7},
    )  # fmt: skip
    with pytest.raises(ValueError, match="no record yet"):
        recorder.paths("logits")
    for _ in range(4):
        recorder.step()
    np.testing.assert_array_equal(recorder.paths("logits").iteration, [10])


@pytest.mark.filterwarnings("error")
def test_recorders_in_memory_are_joined(data):
    recorders = []
    for r in (2, 0):
        loop = Loop(data, seed=r)
        recorder = lesde.Recorder(
            loop.model, LAYERS, data, every=2, learning_rate=loop.optimiser, replicate=r
        )
        loop.train(4, recorder)
        recorders.append(recorder)
    joined = open_records(recorders, "penultimate")
    np.testing.assert_array_equal(joined.replicate, [0, 2])
    for recorder in recorders:
        one = recorder.paths("penultimate")
        xr.testing.assert_equal(joined.sel(replicate=one.replicate), one)
    datasets = [recorder.paths("penultimate") for recorder in recorders]
    xr.testing.assert_identical(open_records(datasets, "penultimate"), joined)
    xr.testing.assert_identical(open_records(recorders[0], "penultimate"), datasets[0])
    xr.testing.assert_identical(open_records(datasets[0], "penultimate", "probe"), datasets[0])
    assert joined.learning_rate == 0.1
    with pytest.raises(ValueError, match="layer must be one of 'penultimate'"):
        open_records(datasets, "logits")
    with pytest.raises(ValueError, match="probe must be one of 'probe'"):
        open_records(datasets, "penultimate", "train")
    with pytest.raises(ValueError, match="layer and probe must be among"):
        open_records(recorders, "conv1")
    xr.testing.assert_identical(open_records((one for one in datasets), "penultimate"), joined)
    for wrong in (3, [recorders[0], 3]):
        with pytest.raises(TypeError, match=r"stores must be paths of stores, recorders.*got 3"):
            open_records(wrong, "logits")
    with pytest.raises(ValueError, match=r"datasets as lesde\.record"):
        open_records([datasets[0], xr.Dataset({"features": 1})], "penultimate")
    with pytest.raises(ValueError, match="the dimension replicate"):
        open_records(datasets[0].isel(replicate=0), "penultimate")
    with pytest.raises(ValueError, match=r"different replicates; got the numbers \[0, 2, 2\]"):
        open_records([joined, datasets[0]], "penultimate")
    with pytest.raises(ValueError, match=r"different replicates; got the numbers \[2, 2\]"):
        open_records([recorders[0]] * 2, "logits")


def test_clock_sums_without_drift():
    clock = Clock()
    for _ in range(1000):
        clock.step(0.1)
    assert clock.time == 100.0
    for _ in range(7):
        clock.step(0.003)
    assert clock.time == 100.021


@pytest.mark.parametrize(
    ("schedule", "wanted"),
    [
        ({"every": 4}, [0, 4, 8]),
        ({"iterations": [1, 2, 5]}, [1, 2, 5]),
        ({"iterations": np.unique(np.geomspace(1, 10, 4).astype(int))}, [1, 2, 4, 10]),
        ({"times": saving_times(1.0, 0.1, count=4)}, [0, 1, 2, 6, 10]),
        ({"times": [0.24, 0.26, 0.31, 0.74]}, [2, 3, 7]),  # 0.26 and 0.31 lie nearest to one step
        ({"times": [0.0, 99.0]}, [0]),
        ({"times": [0.04, 0.5]}, [0, 5]),
        ({"times": [0, 4, 10], "learning_rate": None}, [0, 4, 10]),
    ],
)
def test_schedules(data, schedule, wanted):
    loop = Loop(data)
    recorder = lesde.Recorder(loop.model, "logits", data, **{"learning_rate": 0.1} | schedule)
    loop.train(10, recorder)
    np.testing.assert_array_equal(recorder.paths("logits").iteration, wanted)


def test_time_counts_iterations_without_a_learning_rate(data):
    loop = Loop(data)
    recorder = lesde.Recorder(loop.model, "logits", data, every=5)
    loop.train(5, recorder)
    np.testing.assert_array_equal(recorder.paths("logits").time, [0, 5])


def test_training_and_held_out_data_side_by_side():
    data = digits(4, n_train_per_class=20, n_probe_per_class=8, probe="held_out")
    loop = Loop(data)
    recorder = lesde.Recorder(
        loop.model,
        ["hidden1", "penultimate"],
        {"train": (data.train_x, data.train_y), "held_out": data},
        every=10,
        learning_rate=loop.optimiser,
    )
    loop.train(30, recorder)
    depth = lesde.layer_collapse(recorder.records())
    assert dict(depth.nc1.sizes) == {"layer": 2, "split": 2, "replicate": 1, "time": 4}
    assert recorder.paths("hidden1", "held_out").sizes["sample"] == 32
    with pytest.raises(ValueError, match="'train', 'held_out'; got 'hidden1' and None"):
        recorder.paths("hidden1")
    with pytest.raises(ValueError, match="got 'logits' and 'train'"):
        recorder.paths("logits", "train")


def test_records_go_straight_into_analyses_and_figures(data, tmp_path):
    """Eight runs, from their stores: five analyses, and the figures of each."""
    stores = [tmp_path / f"run{r}.zarr" for r in range(8)]
    times = saving_times(6.0, 0.05, count=14)
    for r, store in enumerate(stores):
        loop = Loop(data, rate=0.05, seed=r)
        with lesde.Recorder(
            loop.model, ["logits", "penultimate"], data,
            store=store, times=times, learning_rate=loop.optimiser, replicate=r,
        ) as recorder:  # fmt: skip
            loop.train(120, recorder)
    logits, hidden = (open_records(stores, layer) for layer in ("logits", "penultimate"))
    assert logits.features.shape == (8, len(times), 24, 4)
    np.testing.assert_array_equal(logits.replicate, range(8))
    np.testing.assert_array_equal(logits.time, times)

    nc = lesde.neural_collapse(hidden)
    assert {"nc1", "nc2_etf", "nc3", "nc4"} <= set(nc.data_vars)
    probability = lesde.separation_probability(logits, criterion="nearest_center")
    assert probability.probability[-1] >= probability.probability[0]
    assert lesde.statistics(hidden)["mean"].sizes["class"] == 4
    fit = lesde.fit_elasticity(logits, estimator="averages", tail=False)
    assert np.isfinite(fit.alpha).all()
    # The loss falls, so samples move towards their own class more than towards others.
    assert float(fit.A_minus_B[-1]) > 0
    rates = lesde.convergence(nc.isel(time=slice(1, None)), "nc1")
    assert rates.sizes

    axes = [
        lesde.plot.collapse(nc, ["nc1", "nc3"]),
        lesde.plot.probability(probability),
        lesde.plot.elasticity(fit),
        lesde.plot.separation_fan(logits, pair=(0, 1)),
        lesde.plot.simplex(logits),
    ]
    for one in axes:
        figure = np.ravel(one)[0].figure
        figure.canvas.draw()
        plt.close(figure)


def test_a_closed_recorder(data):
    loop = Loop(data)
    with lesde.Recorder(loop.model, "logits", data, every=1) as recorder:
        loop.train(2, recorder)
    assert recorder.paths("logits").sizes["time"] == 3
    with pytest.raises(ValueError, match="recorder is closed"):
        recorder.step()
    with pytest.raises(ValueError, match="recorder is closed"):
        recorder.record()


def test_recorder_keeps_nothing_alive(data):
    loop = Loop(data)
    recorder = lesde.Recorder(loop.model, "logits", data, every=1)
    seen = weakref.ref(recorder)
    del recorder
    gc.collect()
    assert seen() is None


def test_what_diverges_is_told_with_its_time(data):
    loop = Loop(data)
    recorder = lesde.Recorder(loop.model, "penultimate", data, every=2, learning_rate=0.1)
    loop.train(3, recorder)
    with torch.no_grad():
        loop.model[0].weight.fill_(np.inf)
    with pytest.raises(lesde.Diverged, match=r"at time 0\.4; use a smaller learning rate"):
        loop.train(1, recorder)
    assert recorder.paths("penultimate").sizes["time"] == 2


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"every": None}, ValueError, "one of every, iterations and times.*got every=None"),
        ({"times": [0.0, 1.0]}, ValueError, "got every=1, iterations=None and times="),
        ({"every": 0}, ValueError, "every must be"),
        ({"every": None, "iterations": [1.5]}, TypeError, r"iterations\[0\] must be an integer"),
        ({"every": None, "iterations": 3}, TypeError, "iterations must be a sequence"),
        ({"every": None, "times": [1.0, 0.5]}, ValueError, "times must be strictly increasing"),
        ({"learning_rate": 0.0}, ValueError, "learning_rate must be"),
        ({"learning_rate": "fast"}, TypeError, "learning_rate must be"),
        (
            {"learning_rate": nn.Linear(1, 1).parameters},
            TypeError,
            "real number, not 'generator'",
        ),
        (
            {"every": None, "times": [0, 0.5, 1.0]},
            ValueError,
            r"times must be whole numbers where no learning_rate .* got \[0\.0, 0\.5, 1\.0\]",
        ),
        ({"state": {"iteration": 3}}, ValueError, "state must hold 'iteration' and 'time'"),
        ({"learning_rate": lambda: -1.0}, ValueError, "learning_rate must be"),
        ({"layers": "fc"}, ValueError, "layers must be one of"),
        ({"state": {"iteration": -1, "time": 0.0}}, ValueError, "iteration"),
    ],
)
def test_refusals(data, change, error, message):
    arguments = {"model": mlp(64, (5,), 4), "layers": "logits", "probe": data, "every": 1} | change
    with pytest.raises(error, match=message):
        lesde.Recorder(**arguments)


def test_a_scheduler_is_no_learning_rate(data):
    loop = Loop(data)
    scheduler = torch.optim.lr_scheduler.StepLR(loop.optimiser, 5)
    message = "learning_rate must not be a scheduler; give its optimiser"
    with pytest.raises(TypeError, match=message):
        lesde.Recorder(loop.model, "logits", data, every=1, learning_rate=scheduler)


def test_groups_of_an_optimiser_must_share_their_rate(data):
    model = mlp(64, (5,), 4)
    groups = [{"params": model[0].parameters(), "lr": 0.1}, {"params": model[2].parameters()}]
    optimiser = torch.optim.SGD(groups, lr=0.2)
    with pytest.raises(ValueError, match=r"groups of the optimiser have 0\.1, 0\.2; give"):
        lesde.Recorder(model, "logits", data, every=1, learning_rate=optimiser)


def test_nothing_recorded_yet(data):
    loop = Loop(data)
    recorder = lesde.Recorder(loop.model, "logits", data, iterations=[5])
    with pytest.raises(ValueError, match="no record yet"):
        recorder.paths("logits")
