"""The dataset made of simulated arrays, and the memory there is for them."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import warnings
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from lesde.iterations import with_asked_times

if TYPE_CHECKING:
    from lesde.model import LESDE
    from lesde.simulation.keeping import Keeper

__all__ = ["as_dataset", "available_memory", "warn_of_lost_digits"]

TEXTS = {
    "features": {"long_name": "feature", "units": "1"},
    "mean": {"long_name": "class mean", "units": "1"},
    "within": {"long_name": "within-class covariance, divisor n_k", "units": "1"},
    "reach": {"long_name": "reach of a class toward another's mean, from its own", "units": "1"},
    "reach_expected": {"long_name": "reach along the expected gap", "units": "1"},
    "direction": {"long_name": "unit vector of the expected gap"},
}


def available_memory() -> float:
    """Bytes that can still be allocated: what the system says is available, within its limits."""
    found = [_physical_memory()]
    try:
        available = re.search(rb"MemAvailable:\s*(\d+)", _first_bytes("/proc/meminfo"))
        if available is not None:
            found.append(1024.0 * int(available[1]))
        limit = _control_group_limit()
        if limit is not None:
            found.append(limit - float(_first_bytes("/sys/fs/cgroup/memory.current")))
    except (OSError, ValueError):
        pass  # not every system has these files
    return max(0.0, min(found))


def _first_bytes(path: str) -> bytes:
    """The start of one of the system's files, without the cost of opening it as a text."""
    file = os.open(path, os.O_RDONLY)
    try:
        return os.read(file, 512)
    finally:
        os.close(file)


@cache
def _physical_memory() -> float:
    return float(os.sysconf("SC_PAGE_SIZE")) * os.sysconf("SC_PHYS_PAGES")


@cache
def _control_group_limit() -> float | None:
    """The limit of the control group; None where there is none."""
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
    except OSError:
        return None
    return None if limit == "max" else float(limit)


def as_dataset(
    model: LESDE,
    keeper: Keeper,
    batched: bool,
    asked: np.ndarray,
    iterations: np.ndarray | None,
    first_replicate: int,
    settings: dict[str, Any],
) -> xr.Dataset:
    """Paths with their coordinates and attributes.

    Parameters
    ----------
    batched : bool
        Whether the cells are a dimension ``learning_rate``.
    asked : ndarray (time,)
        The times asked for.
    iterations : ndarray of int (cell, time), or None
    """
    plan = keeper.plan
    lead = ("learning_rate",) if batched else ()
    replicate = np.arange(first_replicate, first_replicate + plan.replicates)
    coords: dict[str, Any] = {
        "replicate": ("replicate", replicate, {"long_name": "replicate"}),
        "time": ("time", plan.times, {"long_name": "time"}),
        **keeper.coords(),
    }
    coords = with_asked_times(coords, asked)
    if plan.rates is not None:
        about = {"long_name": "learning rate"}
        rates = plan.rates if batched else plan.rates[0]
        coords["learning_rate"] = (lead, rates, about)
    if iterations is not None:
        values = iterations if batched else iterations[0]
        coords["iteration"] = ((*lead, "time"), values, {"long_name": "iteration"})
    data: dict[str, Any] = {}
    for name, dims in keeper.variables().items():
        array = keeper.arrays[name]
        full = (*lead, "replicate", "time", *dims)
        data[name] = (full, array if batched else array[0], TEXTS[name])
    data |= {name: (dims, values, TEXTS[name]) for name, (dims, values) in keeper.fixed().items()}
    attrs = {"model": json.dumps(model.describe()), **settings, "versions": _versions()}
    return xr.Dataset(data, coords, attrs)


@cache
def _versions() -> str:
    names = ("lesde", "torch", "torchsde", "numpy")
    return json.dumps({name: importlib.metadata.version(name) for name in names})


def warn_of_lost_digits(means: np.ndarray, dtype: str) -> None:
    """Say so where a grand mean leaves the differences between classes no digits.

    ``means`` (..., class, feature) are those of the last time.
    """
    size = np.abs(means).max(axis=(-2, -1))
    spread = np.abs(means - means.mean(axis=-2, keepdims=True)).max(axis=(-2, -1))
    few = 1e3 * np.finfo(dtype).eps
    if means.shape[-2] > 1 and (spread < few * size).mean() > 0.5:
        remedy = "use dtype='float64'" if dtype == "float32" else "end `times` earlier"
        warnings.warn(
            f"at the last time the class means differ by less than {few:.0e} of their size, so {dtype} "
            f"leaves their differences few digits: separation and collapse of these paths are not "
            f"to be trusted there; {remedy}, or ask model.law, which keeps them apart.",
            UserWarning,
            stacklevel=3,
        )
