"""How the time of a call grows with each size, one at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import lesde
from benchmarks.peers import ours
from benchmarks.timing import Row, Section
from benchmarks.workloads import Workload

TITLE = "How cost grows"
ABOUT = """\
Milliseconds a call of `lesde.simulate` as one size grows and the others stay at K = 3, n = 100, p = 3, 200 steps
(a feature kernel: 5) and 32 replicates, with one saved time after the start. The exact engine and the statistics have
no steps."""
NOTES: dict[str, str] = {}
BASE = Workload(3, 100, 3, 32, 200, 1e-3)
LINES = ("exact", "statistics", "torchsde", "sgd", "feature")
AXES: dict[str, tuple[str, tuple[int, ...]]] = {
    "K": ("n_classes", (2, 4, 8, 16, 32, 64)),
    "n": ("n_per_class", (10, 100, 1000, 10_000, 100_000, 1_000_000)),
    "p": ("n_features", (2, 8, 32, 128, 512)),
    "steps": ("steps", (10, 100, 1000, 10_000)),
    "replicates": ("replicates", (32, 128, 512, 2048)),
}
# Every pair of samples takes part in a step of a feature kernel: smaller sizes.
FEATURE_AXES = {"n": (10, 30, 100, 300), "steps": (5, 20, 80)}
SMALLEST = 1e-2
# Sizes (state dimensions, pairs of samples, or entries of covariances) up to which a line is drawn, so that no point takes minutes.
LARGEST = {"exact": 2e7, "statistics": 1e7, "torchsde": 2e7, "sgd": 6e6, "feature": 5e8}


def _call(line: str, w: Workload) -> Callable[[], Any]:
    if line == "exact":
        return ours.simulate(w, engine="exact")
    if line == "statistics":
        return ours.simulate(w, engine="exact", keep="statistics")
    if line == "torchsde":
        return ours.simulate(w, engine=lesde.TorchSDE(dt=w.dt))
    if line == "sgd":
        return ours.simulate(w, engine="sgd", learning_rate=w.dt)
    strength = f"({w.alpha - w.beta}*s + ({w.beta}))*exp(-r2/2)"
    model = lesde.LESDE(
        lesde.FeatureKernel(strength),
        n_classes=w.n_classes,
        n_features=w.n_features,
        n_per_class=w.n_per_class,
        noise=w.noise,
    )
    return lambda: lesde.simulate(
        model,
        [0.0, w.span],
        initial=w.means,
        replicates=w.replicates,
        engine=lesde.TorchSDE(dt=w.dt),
    )


def _size(line: str, w: Workload) -> float:
    if line == "feature":
        return float(w.replicates * w.n_samples**2 * w.steps)
    if line == "statistics":
        return float(w.replicates * w.n_classes * w.n_features**2)
    return float(w.size)


def sections(quick: bool) -> list[Section]:
    result = []
    for axis, (field, sizes) in AXES.items():
        rows = []
        for line in LINES:
            base = replace(BASE, steps=5) if line == "feature" else BASE
            chosen = FEATURE_AXES.get(axis, sizes) if line == "feature" else sizes
            for x in chosen[:3] if quick else chosen:
                w = replace(base, **{field: x})
                if _size(line, w) <= LARGEST[line]:
                    extra = {"line": line, "x": x}
                    rows.append(Row(f"{line}, {axis} = {x}", _maker(line, w), 1, extra=extra))
        result.append(Section(axis, rows, "ms", {}, BASE.describe()))
    return result


def _maker(line: str, w: Workload) -> Callable[[], Callable[[], Any]]:
    return lambda: _call(line, w)
