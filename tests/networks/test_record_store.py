"""Stores of the recorder: whole after any stop, resumed, joined, and never overwritten."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import xarray as xr
import zarr

import lesde
from lesde.networks import open_records, record_store

from .own_loop import Loop

LAYERS = ["hidden1", "penultimate"]


def recorded(loop, data, store=None, **options):
    options = {"every": 2, "learning_rate": loop.optimiser, "store": store} | options
    return lesde.Recorder(loop.model, LAYERS, data, **options)


@pytest.fixture(scope="module")
def in_memory(data):
    loop = Loop(data)
    recorder = recorded(loop, data)
    loop.train(20, recorder)
    return recorder.records()


def same(found, wanted):
    for layer in LAYERS:
        xr.testing.assert_identical(found[layer].load(), wanted[layer])


@pytest.mark.parametrize("chunk", [1, 3, 64])
def test_store_holds_what_memory_holds(data, in_memory, tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(record_store, "_LONGEST", chunk)
    loop = Loop(data)
    path = tmp_path / "made" / "features.zarr"
    with recorded(loop, data, path) as recorder:
        loop.train(9, recorder)
        same(recorder.records(), {k: v.isel(time=slice(5)) for k, v in in_memory.items()})
        loop.train(11, recorder)
    same(recorder.records(), in_memory)
    same({layer: open_records(path, layer) for layer in LAYERS}, in_memory)
    plain = xr.open_zarr(path / "probe" / "penultimate", consolidated=False)
    xr.testing.assert_equal(plain.load(), in_memory["penultimate"].drop_vars("learning_rate"))
    features = zarr.open_array(str(path / "probe" / "hidden1" / "features"), mode="r")
    assert features.chunks == (1, chunk, 24, 12)


def test_chunks_are_written_when_they_are_full(data, tmp_path, monkeypatch):
    monkeypatch.setattr(record_store, "_LONGEST", 3)
    loop = Loop(data)
    path = tmp_path / "features.zarr"
    recorder = recorded(loop, data, path, iterations=[2, 4, 6, 8, 10], every=None)
    with pytest.raises(ValueError, match="holds no record yet"):
        open_records(path, "hidden1")

    def held():
        return zarr.open_group(str(path), mode="r").attrs["records"]

    loop.train(7, recorder)
    assert held() == 3
    monkeypatch.setattr(record_store, "_PATIENCE", 0.0)
    loop.train(1, recorder)
    assert held() == 4
    monkeypatch.undo()
    loop.train(2, recorder)
    assert held() == 4
    # In the same program all is read.
    assert open_records(path, "hidden1").iteration.values.tolist() == [2, 4, 6, 8, 10]


def test_an_interrupt_leaves_what_was_recorded(data, in_memory, tmp_path):
    loop = Loop(data)
    path = tmp_path / "features.zarr"

    def train():
        with recorded(loop, data, path) as recorder:
            loop.train(11, recorder)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train()
    found = {layer: open_records(path, layer) for layer in LAYERS}
    same(found, {k: v.isel(time=slice(6)) for k, v in in_memory.items()})


def test_an_interrupt_in_the_middle_of_writing(data, in_memory, tmp_path, monkeypatch):
    loop = Loop(data)
    path = tmp_path / "features.zarr"
    put, calls = zarr.Array.__setitem__, []

    def interrupted(self, *arguments):
        calls.append(self.path)
        if len(calls) == 9:
            raise KeyboardInterrupt
        return put(self, *arguments)

    def train():
        with recorded(loop, data, path) as recorder:
            loop.train(20, recorder)
            monkeypatch.setattr(zarr.Array, "__setitem__", interrupted)
            recorder.flush()

    with pytest.raises(KeyboardInterrupt):
        train()
    assert len(calls) > 9
    same({layer: open_records(path, layer) for layer in LAYERS}, in_memory)


def test_a_dropped_recorder_writes_its_records(data, tmp_path):
    loop = Loop(data)
    path = tmp_path / "features.zarr"
    recorder = recorded(loop, data, path)
    loop.train(4, recorder)
    del recorder
    assert open_records(path, "hidden1").iteration.values.tolist() == [0, 2, 4]


ENDS = {
    "end": (0, 7),
    "interrupt": (-signal.SIGINT, 7),
    "fork": (0, 7),
    "kill": (-signal.SIGKILL, 4),
}
"""How a program ends, its exit status, and the records that are then in the store."""

PROGRAM = """
    import os, signal, sys
    import lesde
    from lesde.networks import record_store, digits
    from tests.networks.own_loop import Loop
    record_store._LONGEST = 4
    data = digits(classes=4, n_train_per_class=30, n_probe_per_class=6)
    Loop(data)  # the first optimiser imports much
    # Every way to end is tried by a child, so that all is imported once.
    for how in sys.argv[2:]:
        child = os.fork()
        if child == 0:
            break
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print(how, status, flush=True)
    else:
        sys.exit()
    loop = Loop(data)
    recorder = lesde.Recorder(loop.model, ["hidden1", "penultimate"], data, every=2,
                              learning_rate=loop.optimiser, store=f"{sys.argv[1]}/{how}.zarr")
    loop.train(12, recorder)
    if how == "fork":
        if os.fork() == 0:
            record_store._flush_all()  # what a forked worker of multiprocessing does at its end
            os._exit(0)
        os.wait()
    if how == "interrupt":
        signal.raise_signal(signal.SIGINT)
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_how_programs_end(in_memory, tmp_path):
    """None of them closes its recorder. A killed one loses what did not fill a chunk."""
    command = [sys.executable, "-c", textwrap.dedent(PROGRAM), str(tmp_path), *ENDS]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "Error" not in run.stderr
    assert run.stdout.split("\n")[:-1] == [f"{how} {int(code)}" for how, (code, _) in ENDS.items()]
    for how, (_, count) in ENDS.items():
        found = {layer: open_records(tmp_path / f"{how}.zarr", layer) for layer in LAYERS}
        same(found, {k: v.isel(time=slice(count)) for k, v in in_memory.items()})


def torn(path):
    """As a program leaves a store that was killed while it wrote: one variable longer than time."""
    for layer, name in (("hidden1", "features"), ("penultimate", "loss")):
        array = zarr.open_array(str(path / "probe" / layer / name), mode="r+")
        array.resize((1, array.shape[1] + 3, *array.shape[2:]))


def test_a_store_killed_in_the_middle_of_writing(data, in_memory, tmp_path):
    loop = Loop(data)
    path = tmp_path / "features.zarr"
    with recorded(loop, data, path) as recorder:
        loop.train(8, recorder)
    torn(path)
    found = {layer: open_records(path, layer) for layer in LAYERS}
    same(found, {k: v.isel(time=slice(5)) for k, v in in_memory.items()})
    with recorded(loop, data, path, resume=True) as recorder:
        loop.train(12, recorder)
    same(recorder.records(), in_memory)


def dying(monkeypatch, when):
    """Writes to the store fail from the first one on of which ``when`` says so, as if the program were killed."""
    dead, real = [], zarr.storage.LocalStore.set

    async def call(self, key, *arguments, **options):
        if dead or when(key):
            dead.append(key)
            raise OSError("killed")
        return await real(self, key, *arguments, **options)

    monkeypatch.setattr(zarr.storage.LocalStore, "set", call)
    return dead


@pytest.mark.parametrize("count", [1, 5, 12, 20])
def test_a_store_killed_at_any_write(data, in_memory, tmp_path, monkeypatch, count):
    loop, writes = Loop(data), []
    path, left = tmp_path / "features.zarr", tmp_path / "left.zarr"
    recorder = recorded(loop, data, path)
    loop.train(6, recorder)
    recorder.flush()
    loop.train(6, recorder)
    with monkeypatch.context() as patch:
        dead = dying(patch, lambda key: writes.append(key) or len(writes) > count)
        with pytest.raises(OSError, match="killed"):
            recorder.flush()
        shutil.copytree(
            path, left, ignore=shutil.ignore_patterns("*.partial")
        )  # before anything can be written again
        assert dead
    for name in LAYERS:
        same_part = in_memory[name].isel(time=slice(4))
        xr.testing.assert_identical(open_records(left, name).load(), same_part)
    again = Loop(data)
    again.train(6, lesde.Recorder(again.model, "logits", data, every=100))
    with recorded(again, data, left, resume=True) as recorder:
        assert (recorder.iteration, recorder.time) == (6, 0.6)
        again.train(14, recorder)
    same(recorder.records(), in_memory)
    same({layer: open_records(left, layer) for layer in LAYERS}, in_memory)


@pytest.mark.parametrize("last", [False, True])
def test_records_that_were_cut_do_not_come_back(data, in_memory, tmp_path, monkeypatch, last):
    """Whatever numbers the files still hold."""
    loop = Loop(data)
    path, left = tmp_path / "features.zarr", tmp_path / "left.zarr"
    with recorded(loop, data, path) as recorder:
        loop.train(12, recorder)
    again = Loop(data)
    again.train(4, lesde.Recorder(again.model, "logits", data, every=100))
    recorder = recorded(again, data, path, resume=True, state={"iteration": 4, "time": 0.4})
    same(
        {layer: open_records(path, layer) for layer in LAYERS},
        {k: v.isel(time=slice(3)) for k, v in in_memory.items()},
    )
    again.train(6, recorder)
    with monkeypatch.context() as patch:
        # Killed as the count of records is to be written, or at the first of the chunks.
        dying(patch, lambda key: key == "zarr.json" if last else "/c/" in key)
        with pytest.raises(OSError, match="killed"):
            recorder.flush()
        shutil.copytree(path, left, ignore=shutil.ignore_patterns("*.partial"))
    for name in LAYERS:
        found = open_records(left, name).load()
        xr.testing.assert_identical(found, in_memory[name].isel(time=slice(3)))


def test_existing_stores_are_not_overwritten(data, tmp_path):
    loop = Loop(data)
    path = tmp_path / "features.zarr"
    recorded(loop, data, path).close()
    for place in (path, tmp_path):
        with pytest.raises(FileExistsError, match=r"exists\. Give resume=True"):
            recorded(loop, data, place)
    assert open_records(path, "hidden1").sizes["time"] == 1


def test_resuming_at_the_last_record(data, in_memory, tmp_path):
    loop = Loop(data)
    path = tmp_path / "features.zarr"
    for steps in (6, 4, 10):
        with recorded(loop, data, path, resume=True) as recorder:
            loop.train(steps, recorder)
    same({layer: open_records(path, layer) for layer in LAYERS}, in_memory)


def test_resuming_from_a_checkpoint(data, in_memory, tmp_path):
    """Saved at 7, between two records; stopped at 13: the records at 8, 10, 12 are made again."""
    loop, again = Loop(data), Loop(data)
    path = tmp_path / "features.zarr"
    with recorded(loop, data, path) as recorder:
        loop.train(7, recorder)
        state = recorder.state_dict()
        loop.train(6, recorder)
    assert state == {"iteration": 7, "time": 0.7}
    again.train(7, lesde.Recorder(again.model, "logits", data, every=100))  # the checkpoint
    with recorded(again, data, path, resume=True, state=state) as recorder:
        assert recorder.iteration == 7
        assert recorder.paths("hidden1").iteration.values.tolist() == [0, 2, 4, 6]
        again.train(13, recorder)
    same({layer: open_records(path, layer) for layer in LAYERS}, in_memory)


def test_checkpoint_without_a_store(data, in_memory):
    loop = Loop(data)
    loop.train(7, lesde.Recorder(loop.model, "logits", data, every=100))
    recorder = recorded(loop, data, state={"iteration": 7, "time": 0.7})
    loop.train(13, recorder)
    same(recorder.records(), {k: v.isel(time=slice(4, None)) for k, v in in_memory.items()})


def test_times_go_on_where_they_were(data, tmp_path):
    path = tmp_path / "features.zarr"
    loop = Loop(data)
    times = [0.0, 0.3, 0.6, 0.9, 1.2]
    for steps in (6, 8):
        with recorded(loop, data, path, every=None, times=times, resume=True) as recorder:
            loop.train(steps, recorder)
    np.testing.assert_array_equal(recorder.paths("hidden1").time, times)


def test_what_does_not_fit_is_not_resumed(data, tmp_path):
    loop = Loop(data)
    path = tmp_path / "features.zarr"
    recorded(loop, data, path).close()
    other = (data.probe_x[::-1].copy(), data.probe_y[::-1].copy())
    for change, message in (
        ({"replicate": 1}, "other replicate: 0 there, 1 here"),
        ({"dtype": "float16"}, "other dtype: 'float32' there, 'float16' here"),
        ({"pooling": "mean"}, "other pooling"),
        ({"loss": "mse"}, "other loss: 'cross_entropy' there, 'mse' here"),
    ):
        with pytest.raises(ValueError, match=message):
            recorded(loop, data, path, resume=True, **change)
    with pytest.raises(ValueError, match=r"other probes: .* digests of their samples in order"):
        recorded(loop, other, path, resume=True)
    with pytest.raises(ValueError, match="other layers"):
        lesde.Recorder(loop.model, "logits", data, every=2, store=path, resume=True)
    wider = type(loop)(data)
    wider.model[0], wider.model[2] = type(wider.model[0])(64, 13), type(wider.model[2])(13, 8)
    recorder = recorded(wider, data, path, resume=True, learning_rate=0.1)
    wider.train(2, recorder)
    with pytest.raises(ValueError, match=r"features of shape \(24, 12\) for layer 'hidden1'"):
        recorder.flush()
    (tmp_path / "other").mkdir()
    with pytest.raises(ValueError, match=r"is no store of a lesde\.Recorder"):
        recorded(loop, data, tmp_path / "other", resume=True)


def test_replicates_are_joined(data, tmp_path):
    runs = {}
    for r in (3, 1):
        loop = Loop(data, seed=r)
        with recorded(loop, data, tmp_path / f"{r}.zarr", replicate=r) as recorder:
            loop.train(6 if r == 3 else 4, recorder)
        runs[r] = recorder.paths("penultimate").load()
    stores = [tmp_path / "3.zarr", tmp_path / "1.zarr"]
    with pytest.raises(ValueError, match=r"at the same times .*join='inner' keeps"):
        open_records(stores, "penultimate")
    joined = open_records(stores, "penultimate", join="inner")
    np.testing.assert_array_equal(joined.replicate, [1, 3])
    assert joined.learning_rate == 0.1
    assert joined.iteration.dims == ("time",)
    for r, run in runs.items():
        xr.testing.assert_equal(joined.sel(replicate=[r]), run.isel(time=slice(3)))
    with pytest.raises(ValueError, match=r"different replicates; got the numbers \[1, 1\]"):
        open_records([stores[1]] * 2, "penultimate")


def test_refusals_of_open_records(data, tmp_path):
    path = tmp_path / "features.zarr"
    with pytest.raises(FileNotFoundError, match="does not exist"):
        open_records(path, "hidden1")
    recorded(Loop(data), {"train": data, "again": data}, path).close()
    with pytest.raises(ValueError, match=r"probe must be one of 'train', 'again'.*got None"):
        open_records(path, "hidden1")
    with pytest.raises(ValueError, match="layer must be one of 'hidden1', 'penultimate'"):
        open_records(path, "hidden2", "train")
    with pytest.raises(ValueError, match="at least one store"):
        open_records([], "hidden1")
    assert open_records(str(path), "hidden1", "train").sizes["time"] == 1
