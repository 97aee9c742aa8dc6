"""Reaching saved times: by many steps, or at once from the law; samples, or their statistics."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import lesde
from benchmarks.peers import ours
from benchmarks.timing import Row, Section
from benchmarks.workloads import WORKLOADS, check_law, check_means

TITLE = "Reaching saved times"
ABOUT = """\
Milliseconds for 20 saved times of workload A. The exact engine draws from the law at the saved times: its
cost does not depend on any step size. With `keep="statistics"` class means, within-class covariances and
reaches are drawn directly, so that the cost does not depend on the number of samples."""
NOTES = {
    "torchsde as shipped": "`torchsde.sdeint`, its own Brownian motion, 1,000 Euler steps.",
    "ours torchsde": "`lesde.simulate(engine='torchsde')`, the same steps.",
    "ours exact": "`lesde.simulate(engine='exact')`: no steps.",
    "100 per class": "`lesde.simulate(engine='exact', keep='statistics')`.",
    "10,000,000 per class": "the same model with 10⁷ samples in every class.",
    "samples of 100 per class": "the samples themselves, `keep='features'`.",
}
SAVED = 20


def sections(quick: bool) -> list[Section]:
    from benchmarks.peers.shipped_torchsde import shipped

    w = WORKLOADS["A"].shorter(10) if quick else WORKLOADS["A"]

    def check(result: Any) -> Any:
        return check_law(result, w)

    reach = [
        Row("torchsde as shipped", lambda: shipped(w, saved=SAVED), 1, check, (1, 2)),
        Row(
            "ours torchsde",
            lambda: ours.simulate(w, SAVED, engine=lesde.TorchSDE(dt=w.dt)),
            1,
            check,
        ),
        Row("ours exact", lambda: ours.simulate(w, SAVED, engine="exact"), 1, check),
    ]

    def statistics(n: int, name: str) -> Row:
        v = replace(w, n_per_class=n)
        return Row(
            name,
            lambda: ours.simulate(v, SAVED, engine="exact", keep="statistics"),
            1,
            lambda result: check_means(result["mean"].values[:, -1], v),
        )

    kept = [
        statistics(100, "100 per class"),
        statistics(10**7, "10,000,000 per class"),
        Row("samples of 100 per class", lambda: ours.simulate(w, SAVED, engine="exact"), 1, check),
    ]
    return [
        Section(
            f"{SAVED} saved times, {w.steps:,} steps where there are steps",
            reach,
            "ms",
            {"torchsde as shipped": "× torchsde as shipped"},
            w.describe(),
        ),
        Section(
            f"Statistics without samples, {SAVED} saved times",
            kept,
            "ms",
            {"100 per class": "× 100 per class"},
            w.describe(),
        ),
    ]
