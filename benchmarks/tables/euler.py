"""Euler's method, step by step: the random numbers are the floor that all methods share."""

from __future__ import annotations

from typing import Any

import lesde
from benchmarks.peers import ours
from benchmarks.timing import Row, Section
from benchmarks.workloads import WORKLOADS, Workload, check_discrete, check_law

TITLE = "Integrating step by step"
ABOUT = """\
Millions of state dimensions stepped per second: replicates × samples × features × steps / seconds. Only the
state at the end is kept. Rows that would take minutes run fewer steps; the rate counts the steps they run.
The final class means of every row, their variance over replicates and the spread within classes agree with
the exact law within 5 standard errors, or the row fails.

Our rows integrate the *class means* with `torchsde.sdeint` and draw the samples' deviations from them at the
saved times: drift and noise let the two be split, a solver's step keeps the split, and the law is that of
stepping every sample with the same step. So they draw K·p normals a step where all others draw one for
every state dimension, and may exceed the draw-only rate, which bounds only methods that do the latter with
torch's generator."""
NOTES = {
    "torchsde euler": "torchsde as its documentation shows it, `sdeint` with diagonal noise and its own "
    "Brownian motion.",
    "torchsde srk": "the same with `method='srk'`.",
    "diffrax euler, unsafe path": "diffrax, compiled, Euler with `UnsafeBrownianPath` and `DirectAdjoint`.",
    "diffrax euler, virtual tree": "the same with `VirtualBrownianTree`, whose tolerance is half a step.",
    "numba loop": "one compiled loop, replicates split over threads, a NumPy generator (SFC64) for each.",
    "numba loop, vectorised normals": "the same with normals written for the vector unit from a hashed "
    "32-bit counter: the fastest loop we could write, with random numbers too weak for research.",
    "torch loop": "a plain loop over preallocated arrays, in place, with a generator.",
    "draw-only": "`torch.Tensor.normal_` into one array of the state's size at every step; nothing else.",
    "draw-only, in threads": "the same, the array split over one Python thread per core.",
    "ours euler": "`lesde.simulate(engine=lesde.TorchSDE(dt=...))`, the labelled dataset included.",
    "ours srk": "the same with `method='srk'`.",
    "ours, sampling noise": "`lesde.TorchSDE(noise='sampling')`: the SDE with the noise of SGD's drawing of samples, for which "
    "deviations of all samples are drawn at every step. Checked against the expectation and the spread within classes.",
}
REFERENCES = {
    "draw-only": "of draw-only",
    "torchsde euler": "× torchsde euler",
    "torchsde srk": "× torchsde srk",
    "diffrax euler, unsafe path": "× diffrax euler",
}

# Slower methods run this fraction of the steps, so that a round stays short.
SLOWER = {
    "A": {"srk": 4, "tree": 20, "shipped": 1},
    "B": {"srk": 4, "tree": 20, "shipped": 1},
    "C": {"srk": 40, "tree": 200, "shipped": 10},
}


def _diffrax(workload: Workload, tree: bool) -> Any:
    from benchmarks.peers.diffrax_loop import diffrax_euler

    return diffrax_euler(workload, tree)


def _numba(workload: Workload, vectorised: bool) -> Any:
    from benchmarks.peers.numba_loop import numba_euler

    return numba_euler(workload, vectorised)


def rows(workload: Workload, slower: dict[str, int]) -> list[Row]:
    """All methods on one workload."""
    from benchmarks.peers import shipped_torchsde, torch_loop

    both = (1, 2)

    def row(
        name: str, make: Any, w: Workload, threads: tuple[int, ...] = (), law: bool = True
    ) -> Row:
        return Row(
            name,
            lambda: make(w),
            w.work,
            (lambda result: check_law(result, w)) if law else None,
            threads,
            {"steps": w.steps},
        )

    def sampling(w: Workload) -> Any:
        return ours.simulate(w, engine=lesde.TorchSDE(noise="sampling"), learning_rate=w.dt)

    shipped, srk, tree = (workload.shorter(slower[k]) for k in ("shipped", "srk", "tree"))
    engine: dict[str, Any] = {"engine": lesde.TorchSDE(dt=workload.dt)}
    return [
        row("torchsde euler", shipped_torchsde.shipped, shipped, both),
        row("torchsde srk", lambda w: shipped_torchsde.shipped(w, "srk"), srk, both),
        row("diffrax euler, unsafe path", lambda w: _diffrax(w, False), shipped),
        row("diffrax euler, virtual tree", lambda w: _diffrax(w, True), tree),
        row("numba loop", lambda w: _numba(w, False), workload, both),
        row("numba loop, vectorised normals", lambda w: _numba(w, True), workload, both),
        row("torch loop", torch_loop.euler_loop, workload, both),
        row("draw-only", torch_loop.draw_only, workload, both, law=False),
        row("draw-only, in threads", torch_loop.draw_in_threads, workload, (1,), law=False),
        row("ours euler", lambda w: ours.simulate(w, **engine), workload),
        row(
            "ours srk",
            lambda w: ours.simulate(w, engine=lesde.TorchSDE(method="srk", dt=workload.dt)),
            workload,
        ),
        Row(
            "ours, sampling noise",
            lambda: sampling(shipped),
            shipped.work,
            lambda result: check_discrete(result, shipped),
            extra={"steps": shipped.steps},
        ),
    ]


def sections(quick: bool) -> list[Section]:
    result = []
    for name, workload in WORKLOADS.items():
        w = workload.shorter(20) if quick else workload
        sizes = f"K = {w.n_classes}, n = {w.n_per_class}, p = {w.n_features}"
        title = f"Workload {name}: {sizes}, {w.replicates} replicates, {w.steps:,} steps, float32"
        slower = {"srk": 10, "tree": 50, "shipped": 5} if quick else SLOWER[name]
        result.append(
            Section(title, rows(w, slower), "million/s", REFERENCES, workload=w.describe())
        )
    return result
