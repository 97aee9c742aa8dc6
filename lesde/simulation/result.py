"""The dataset made of simulated arrays, and the memory there is for them."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from lesde.iterations import with_asked_times

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
    variables: dict[str, tuple[tuple[str, ...], np.ndarray]],
    coords: dict[str, Any],
    times: np.ndarray,
    first_replicate: int,
    rates: np.ndarray | None,
    batched: bool,
    about: dict[str, Any],
    settings: dict[str, Any],
    *,
    fixed: dict[str, tuple[tuple[str, ...], np.ndarray]] | None = None,
    asked: np.ndarray | None = None,
    iterations: np.ndarray | None = None,
) -> xr.Dataset:
    """Paths with their coordinates and attributes.

    Parameters
    ----------
    variables : dict
        Name to the dimensions after (learning_rate, replicate, time), and the array (cell, replicate,
        time, ...).
    coords : dict
        Coordinates of the variables' own dimensions.
    rates : ndarray (cell,), or None
        Learning rates.
    batched : bool
        Whether the cells are a dimension ``learning_rate``.
    about, settings : dict
        The attribute ``model``, and further attributes.
    fixed : dict, optional
        Name to dimensions and values of variables that are the same for all cells and replicates.
    asked : ndarray (time,), optional
        The times asked for, where the state was seen at others.
    iterations : ndarray of int (cell, time), optional
    """
    lead = ("learning_rate",) if batched else ()
    replicates = next(iter(variables.values()))[1].shape[1]
    replicate = np.arange(first_replicate, first_replicate + replicates)
    coords = {
        "replicate": ("replicate", replicate, {"long_name": "replicate"}),
        "time": ("time", times, {"long_name": "time"}),
        **coords,
    }
    if asked is not None:
        coords = with_asked_times(coords, asked)
    if rates is not None:
        coords["learning_rate"] = (
            lead,
            rates if batched else rates[0],
            {"long_name": "learning rate"},
        )
    if iterations is not None:
        values = iterations if batched else iterations[0]
        coords["iteration"] = ((*lead, "time"), values, {"long_name": "iteration"})
    data: dict[str, Any] = {}
    for name, (dims, array) in variables.items():
        full = (*lead, "replicate", "time", *dims)
        data[name] = (full, array if batched else array[0], TEXTS.get(name, {}))
    data |= {name: (dims, values, TEXTS[name]) for name, (dims, values) in (fixed or {}).items()}
    attrs = {"model": json.dumps(about), **settings, "versions": _versions()}
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
