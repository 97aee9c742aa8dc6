"""lesde as its users call it: one call of ``simulate``, the labelled dataset included."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import xarray as xr

import lesde
from benchmarks.workloads import Workload

__all__ = ["simulate"]


def simulate(
    workload: Workload, saved: int | Sequence[float] = 1, **arguments: Any
) -> Callable[[], xr.Dataset]:
    """``lesde.simulate`` with other noise at every call; ``saved`` times after the start."""
    times = np.linspace(0, workload.span, saved + 1) if isinstance(saved, int) else saved
    model, means = workload.model, workload.means
    seeds = iter(range(1_000_000))

    def run() -> xr.Dataset:
        return lesde.simulate(
            model,
            times,
            initial=means,
            replicates=workload.replicates,
            seed=next(seeds),
            **arguments,
        )

    return run
