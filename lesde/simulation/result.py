"""The array that holds simulated paths, and the dataset made of it."""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from lesde.initial import class_average

if TYPE_CHECKING:
    from lesde.model import LESDE

__all__ = ["allocate", "as_dataset", "available_memory", "warn_of_lost_digits"]

SHARE = 0.8
"""Share of the available memory that a result may take."""


def available_memory() -> float:
    """Bytes that can still be allocated: what the system says is available, within its limits."""
    found = [float(os.sysconf("SC_PAGE_SIZE")) * os.sysconf("SC_PHYS_PAGES")]
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                found.append(1024.0 * int(line.split()[1]))
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        used = float(Path("/sys/fs/cgroup/memory.current").read_text())
        if limit != "max":
            found.append(float(limit) - used)
    except (OSError, ValueError):
        pass  # not every system has these files
    return max(0.0, min(found))


def allocate(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """An empty array (learning_rate, replicate, time, sample, feature) that fits in memory."""
    size = float(np.prod([float(n) for n in shape])) * np.dtype(dtype).itemsize
    room = SHARE * available_memory()
    if size > room:
        cells, replicates, times, samples, features = shape
        rates = f"{cells} learning rates × " if cells > 1 else ""
        raise ValueError(
            f"replicates={replicates} and {len_text(times)} need {size / 1e9:.1f} GB ({rates}{replicates} × "
            f"{times} × {samples} samples × {features} features, {dtype}), more than the "
            f"{room / 1e9:.1f} GB that may be used here. Ask for fewer replicates or times, and run the "
            f"rest with first_replicate."
        )
    return np.empty(shape, dtype)


def len_text(times: int) -> str:
    """How the number of saved times reads in a message."""
    return f"times of length {times}"


def as_dataset(
    model: LESDE,
    times: np.ndarray,
    features: np.ndarray,
    rates: np.ndarray | None,
    batched: bool,
    iterations: np.ndarray | None,
    first_replicate: int,
    settings: dict[str, Any],
) -> xr.Dataset:
    """Paths with their coordinates and attributes.

    Parameters
    ----------
    features : ndarray (cell, replicate, time, sample, feature)
    rates : ndarray (cell,) or None
    batched : bool
        Whether the cells are a dimension ``learning_rate``.
    iterations : ndarray of int (cell, time), or None
    """
    lead = ("learning_rate",) if batched else ()
    values = features if batched else features[0]
    dims = (*lead, "replicate", "time", "sample", "feature")
    replicate = np.arange(first_replicate, first_replicate + features.shape[1])
    coords: dict[str, Any] = {
        "replicate": ("replicate", replicate, {"long_name": "replicate"}),
        "time": ("time", times, {"long_name": "time"}),
        "label": ("sample", model.labels, {"long_name": "class"}),
    }
    if rates is not None:
        about = {"long_name": "learning rate"}
        coords["learning_rate"] = (lead, rates if batched else rates[0], about)
    if iterations is not None:
        about = {"long_name": "iteration"}
        coords["iteration"] = (
            (*lead, "time"),
            iterations if batched else iterations[0],
            about,
        )
    about = {"long_name": "feature", "units": "1"}
    return xr.Dataset(
        {"features": (dims, values, about)},
        coords,
        {"model": json.dumps(model.describe()), **settings, "versions": json.dumps(_versions())},
    )


def _versions() -> dict[str, str]:
    import importlib.metadata

    return {
        name: importlib.metadata.version(name) for name in ("lesde", "torch", "torchsde", "numpy")
    }


def warn_of_lost_digits(last: np.ndarray, model: LESDE, dtype: str) -> None:
    """Say so where a grand mean leaves the differences between classes no digits."""
    means = class_average(last.astype(np.float64), model.counts)
    size = np.abs(means).max(axis=(-2, -1))
    spread = np.abs(means - means.mean(axis=-2, keepdims=True)).max(axis=(-2, -1))
    few = 1e3 * np.finfo(dtype).eps
    if model.n_classes > 1 and (spread < few * size).mean() > 0.5:
        remedy = "use dtype='float64'" if dtype == "float32" else "end `times` earlier"
        warnings.warn(
            f"at the last time the class means differ by less than {few:.0e} of their size, so {dtype} "
            f"leaves their differences few digits: separation and collapse of these paths are not "
            f"to be trusted there; {remedy}, or ask model.law, which keeps them apart.",
            UserWarning,
            stacklevel=3,
        )
