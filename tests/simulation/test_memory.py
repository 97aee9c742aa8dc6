"""Memory as the system sees it, and that nothing is tabulated for all steps at once."""

import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from lesde.clocks import StepGrid

PROGRAM = """
import re
from pathlib import Path
import numpy as np
import lesde

model = lesde.LESDE(lesde.TwoLevel(0.5, -0.1), 3, 3, 1050, noise=0.1)
paths = lesde.simulate(
    model, np.linspace(0, 10, 11), np.eye(3), 32, keep="statistics", {settings}
)
assert np.isfinite(paths.within).all()
print(1024 * int(re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1]))
"""


# Not by resource.getrusage: its peak is handed down from the process that starts this one.
@pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="the peak of a process is read from /proc"
)
@pytest.mark.parametrize(
    "settings", ["engine='sgd', learning_rate=1e-3", "engine=lesde.TorchSDE(dt=1e-3)"]
)
def test_a_billion_particle_steps_in_less_than_a_gigabyte(settings):
    # 3 classes x 1,050 samples x 32 replicates x 10,000 steps; the whole process, torch included.
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.replace("{settings}", settings)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout) < 1e9


def test_steps_are_worked_out_where_they_are_asked_for():
    times = np.array([0.0, 0.5, 0.8, 3.0])
    tracemalloc.start()
    grid = StepGrid.regular(times, 1e-7)
    found = grid.starts[20_000_000:20_000_010], grid.widths[20_000_000]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1e6
    np.testing.assert_allclose(found[0], 2.0 + 1e-7 * np.arange(10), rtol=0, atol=1e-12)
    assert found[1] == pytest.approx(1e-7)


def test_steps_divide_every_interval():
    times = np.array([0.0, 0.5, 0.8, 3.0])
    grid = StepGrid.regular(times, 0.2)
    np.testing.assert_array_equal(grid.saved, [0, 3, 5, 16])
    expected = np.concatenate(
        [
            np.linspace(a, b, n, endpoint=False)
            for a, b, n in zip(times, times[1:], (3, 2, 11), strict=False)
        ]
    )
    np.testing.assert_allclose(grid.starts[:], expected, rtol=0, atol=1e-15)
    np.testing.assert_allclose(np.cumsum(grid.widths[:])[grid.saved[1:] - 1], times[1:])
    assert grid.starts[-1] == grid.starts[15] == grid.starts[np.array([15])][0]
    assert len(grid.widths) == 16
