"""How programs end that recorded: nothing hangs, nothing is lost in silence, and kills lose nothing written."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import signal
import subprocess
import sys
import textwrap
import time

import pytest
import xarray as xr

import lesde
from lesde.networks import open_records

from .own_loop import Loop

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
LAYERS = ["hidden1", "penultimate"]


def recorded(loop, data, store=None, **options):
    options = {"every": 2, "learning_rate": loop.optimiser, "store": store} | options
    return lesde.Recorder(loop.model, LAYERS, data, **options)


@contextlib.contextmanager
def full_disk():
    """No file can be written, as root either; the error is another one than that of a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


PROGRAM = """
    import multiprocessing, os, resource, signal, sys
    import lesde
    from lesde.networks import digits
    from tests.networks.own_loop import Loop
    data = digits(classes=4, n_train_per_class=30, n_probe_per_class=6)
    Loop(data)

    def recorder(name):
        return lesde.Recorder(loop.model, ["hidden1", "penultimate"], data, every=2,
                              learning_rate=loop.optimiser, store=f"{sys.argv[1]}/{name}.zarr")

    def full():
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))

    # Every program is a child, so that all is imported once.
    for how in sys.argv[2:]:
        child = os.fork()
        if child == 0:
            break
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print(how, status, flush=True)
    else:
        sys.exit()
    signal.alarm(60)
    loop = Loop(data)
    if how == "dropped":
        loop.train(4, recorder(how))  # which nothing refers to any more
    if how in ("full", "error", "exit"):
        kept = recorder(how)
        loop.train(12, kept)
        full()
        if how == "error":
            raise KeyError("of the user")
        if how == "exit":
            sys.exit(0)
    if how == "worker":
        def work():
            kept = recorder(how)
            loop.train(12, kept)
            full()

        for method in ("fork",):
            worker = multiprocessing.get_context(method).Process(target=work)
            worker.start()
            worker.join()
        sys.exit(worker.exitcode)
    if how == "one of two":
        first, second = recorder("lost"), recorder("whole")
        loop.train(12, first)
        second.record()
        os.rename(f"{sys.argv[1]}/lost.zarr", f"{sys.argv[1]}/moved.zarr")
        open(f"{sys.argv[1]}/lost.zarr", "w").close()
"""

ENDS = {"dropped": 0, "full": 0, "error": 1, "exit": 0, "worker": 0, "one of two": 0}
"""How a program goes, and its exit status."""


@pytest.mark.parametrize(
    "ends", [["full"], pytest.param(list(ENDS), marks=pytest.mark.slow)], ids=["one", "all"]
)
def test_what_cannot_be_written_at_the_end_is_said(ends, tmp_path):
    command = [sys.executable, "-c", textwrap.dedent(PROGRAM), str(tmp_path), *ends]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    assert run.stdout.split("\n")[:-1] == [f"{how} {ENDS[how]}" for how in ends]
    said = [line for line in run.stderr.split("\n") if line.startswith("lesde: error: ")]
    failed = ["lost" if how == "one of two" else how for how in ends if how != "dropped"]
    for name in failed:
        (line,) = [one for one in said if f"/{name}.zarr'" in one]
        assert "records are lost" in line
        # The first record of the lost one was written when the second recorder was made.
        assert f"its last {6 if name == 'lost' else 7} records" in line
        assert "File too large" in line or name == "lost"
    assert len(said) == len(failed)
    if len(ends) < len(ENDS):
        return  # Zarr may add lines of its own, of other chunks that it was writing
    assert "KeyError: 'of the user'" in run.stderr  # said as ever
    assert len(open_records(tmp_path / "dropped.zarr", "hidden1").time) == 3
    assert len(open_records(tmp_path / "whole.zarr", "hidden1").time) == 1


def test_a_full_disk_is_an_error_that_names_the_store_and_loses_nothing(data, tmp_path):
    loop, plain = Loop(data), Loop(data)
    memory = recorded(plain, data)
    plain.train(8, memory)
    recorder = recorded(loop, data, tmp_path / "features.zarr")
    loop.train(8, recorder)
    with (
        full_disk(),
        pytest.raises(
            OSError, match=r"features\.zarr' cannot be written .*its last 5 records wait"
        ),
    ):
        recorder.close()
    recorder.close()
    for layer in LAYERS:
        stored = open_records(tmp_path / "features.zarr", layer).load()
        xr.testing.assert_identical(stored, memory.paths(layer))


def test_what_kills_leave_is_ignored(data, tmp_path):
    loop = Loop(data)
    path = tmp_path / "features.zarr"
    with recorded(loop, data, path) as recorder:
        loop.train(4, recorder)
    features = path / "probe" / "hidden1" / "features" / "c" / "0" / "0" / "0"
    parts = [features / f"0.{'0' * 32}.partial", path / "probe" / f"zarr.{'a' * 32}.partial"]
    for part in parts:
        part.write_bytes(b"half a chunk")
    (path / "probe" / "hidden1" / "weights").mkdir()  # its zarr.json was to be the next
    assert len(open_records(path, "hidden1").time) == 3
    with recorded(loop, data, path, resume=True) as recorder:
        assert recorder.iteration == 4


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_kills_at_any_time_change_no_bit(data, tmp_path):
    """Training is done again up to the last record, and goes on from there with the store."""
    path, steps = tmp_path / "features.zarr", 60
    plain = Loop(data)
    memory = recorded(plain, data)
    plain.train(steps, memory)
    chance, kills = random.Random(0), 0
    while True:
        child = os.fork()
        if child == 0:
            with contextlib.suppress(BaseException):
                loop = Loop(data)
                recorder = recorded(loop, data, path, resume=True)
                begun = recorder.iteration
                loop.train(begun, recorded(loop, data, every=1000))
                for _ in range(begun, steps):
                    loop.train(1, recorder)
                    recorder.flush()
                os._exit(0)
            os._exit(1)
        time.sleep(chance.uniform(0.02, 0.5))
        os.kill(child, signal.SIGKILL) if kills < 12 else None
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status == 0:
            break
        assert status == -signal.SIGKILL
        kills += 1
        # Killed before its groups were made, a store says so, and is begun again.
        if not all((path / "probe" / layer / "replicate").exists() for layer in LAYERS):
            subprocess.run(["rm", "-r", str(path)], check=False)
    for layer in LAYERS:
        xr.testing.assert_identical(open_records(path, layer).load(), memory.paths(layer))
