"""The discrete process: one sample drawn at every iteration, all samples moved."""

from __future__ import annotations

from typing import Any

from benchmarks.peers import ours
from benchmarks.timing import Row, Section
from benchmarks.workloads import WORKLOADS, Workload, check_discrete

TITLE = "The discrete process"
ABOUT = """\
Millions of state dimensions moved per second: replicates × samples × features × iterations / seconds, with the
state kept at the end only. Every row is checked: class means over replicates against (1 + h M)^m X̄(0), and
the spread within classes, both within 5 standard errors. Our engine draws the noise of a sample when it is
drawn or saved, p normals an iteration instead of one for every state dimension; the law is the same."""
NOTES = {
    "torch loop": "a plain loop: draw one sample, move all, add noise; preallocated arrays.",
    "numba loop": "one compiled loop, replicates split over threads, a NumPy generator (SFC64) for each.",
    "numba loop, vectorised normals": "the same with normals written for the vector unit.",
    "draw-only": "`torch.Tensor.normal_` into one array of the state's size at every iteration.",
    "ours": "`lesde.simulate(engine='sgd', learning_rate=0.001)`.",
    "ours, 4 learning rates": "the same with h = 0.001, 0.002, 0.004 and 0.005 in one call.",
}
RATES = (1e-3, 2e-3, 4e-3, 5e-3)


def _numba(workload: Workload, vectorised: bool) -> Any:
    from benchmarks.peers.numba_loop import numba_discrete

    return numba_discrete(workload, vectorised)


def rows(w: Workload) -> list[Row]:
    """All methods on one workload."""
    from benchmarks.peers import torch_loop

    def check(result: Any) -> Any:
        return check_discrete(result, w)

    def check_first(result: Any) -> Any:
        return check_discrete(result.isel(learning_rate=0), w)

    iterations = sum(round(w.span / rate) for rate in RATES)
    both = (1, 2)
    return [
        Row("torch loop", lambda: torch_loop.discrete_loop(w), w.work, check, both),
        Row("numba loop", lambda: _numba(w, False), w.work, check, both),
        Row("numba loop, vectorised normals", lambda: _numba(w, True), w.work, check, both),
        Row("draw-only", lambda: torch_loop.draw_only(w), w.work, None, both),
        Row(
            "ours",
            lambda: ours.simulate(w, engine="sgd", learning_rate=w.dt),
            w.work,
            check,
        ),
        Row(
            "ours, 4 learning rates",
            lambda: ours.simulate(w, engine="sgd", learning_rate=list(RATES)),
            w.work * iterations / w.steps,
            check_first,
        ),
    ]


def sections(quick: bool) -> list[Section]:
    w = WORKLOADS["A"].shorter(10) if quick else WORKLOADS["A"]
    title = f"Workload A at h = {w.dt:g}, {w.steps:,} iterations"
    references = {"draw-only": "of draw-only", "torch loop": "× torch loop"}
    return [Section(title, rows(w), "million/s", references, w.describe())]
