"""The same rates on a CUDA device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import lesde
from benchmarks.peers import ours
from benchmarks.timing import Row, Section, Skip
from benchmarks.workloads import WORKLOADS, Workload, check_discrete, check_law

TITLE = "On a GPU"
ABOUT = """\
Millions of state dimensions a second with `device="cuda"`, the device synchronised at the end of a call; results
come back to the host within it. Checked as on the CPU."""
NOTES = {
    "draw-only": "`torch.Tensor.normal_` on the card into one array of the state's size at every step.",
    "torch loop": "Euler's method on all samples, arrays preallocated on the card.",
    "torchsde euler": "torchsde as its documentation shows it, a tenth of the steps or fewer.",
    "ours euler": "`lesde.simulate(engine='torchsde')`.",
    "ours srk": "the same with `method='srk'`.",
    "ours sgd": "`lesde.simulate(engine='sgd')`.",
    "ours, sampling noise": "`lesde.TorchSDE(noise='sampling')`, which steps every sample.",
}


def _synchronised(call: Callable[[], Any]) -> Callable[[], Any]:
    import torch

    def run() -> Any:
        result = call()
        torch.cuda.synchronize()
        return result

    return run


def available() -> None:
    """Refuse where torch sees no CUDA device."""
    import torch

    if not torch.cuda.is_available():
        raise Skip("torch sees no CUDA device here")


def rows(workload: Workload) -> list[Row]:
    """All methods on one workload."""

    def row(name: str, make: Callable[[Workload], Any], w: Workload, check: Any = check_law) -> Row:
        def build() -> Callable[[], Any]:
            available()
            return _synchronised(make(w))

        checked = None if check is None else (lambda result: check(result, w))
        return Row(name, build, w.work, checked, (), {"steps": w.steps})

    def loop(w: Workload) -> Any:
        from benchmarks.peers.torch_loop import euler_loop

        return euler_loop(w, "cuda")

    def draw(w: Workload) -> Any:
        from benchmarks.peers.torch_loop import draw_only

        return draw_only(w, "cuda")

    def shipped(w: Workload) -> Any:
        from benchmarks.peers.shipped_torchsde import shipped

        return shipped(w, device="cuda")

    on: dict[str, Any] = {"engine": lesde.TorchSDE(dt=workload.dt), "device": "cuda"}
    h: dict[str, Any] = {"learning_rate": workload.dt, "device": "cuda"}
    return [
        row("draw-only", draw, workload, None),
        row("torch loop", loop, workload),
        row("torchsde euler", shipped, workload.shorter(10)),
        row("ours euler", lambda w: ours.simulate(w, **on), workload),
        row(
            "ours srk",
            lambda w: ours.simulate(
                w, **{**on, "engine": lesde.TorchSDE(method="srk", dt=workload.dt)}
            ),
            workload,
        ),
        row("ours sgd", lambda w: ours.simulate(w, engine="sgd", **h), workload, check_discrete),
        row(
            "ours, sampling noise",
            lambda w: ours.simulate(w, engine=lesde.TorchSDE(noise="sampling"), **h),
            workload.shorter(5),
            check_discrete,
        ),
    ]


def sections(quick: bool) -> list[Section]:
    chosen = dict(WORKLOADS)
    chosen["large"] = replace(WORKLOADS["A"], replicates=8192, steps=100)
    result = []
    for name, workload in chosen.items():
        w = workload.shorter(10) if quick else workload
        title = (
            f"Workload {name}: K = {w.n_classes}, n = {w.n_per_class}, p = {w.n_features}, "
            f"{w.replicates:,} replicates, {w.steps:,} steps"
        )
        result.append(
            Section(title, rows(w), "million/s", {"draw-only": "of draw-only"}, w.describe())
        )
    return result
