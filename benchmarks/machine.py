"""What the figures were measured on: processor, cores, versions, date. No names, no paths."""

from __future__ import annotations

import datetime
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from benchmarks.timing import cores

__all__ = ["machine", "sentence"]

PACKAGES = ("lesde", "torch", "torchsde", "numpy", "numba", "jax", "diffrax")


def processor() -> str:
    """The processor's model name."""
    try:
        with open("/proc/cpuinfo") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.machine()


def gpu() -> str | None:
    """The name of the CUDA device, where torch sees one."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def machine() -> dict[str, Any]:
    """A description that goes with every table."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "processor": processor(),
        "cores": cores(),
        "gpu": gpu(),
        "load_before": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
        "versions": versions,
        "date": datetime.date.today().isoformat(),
    }


def sentence(found: dict[str, Any]) -> str:
    """The description in one line."""
    versions = ", ".join(f"{name} {number}" for name, number in found["versions"].items())
    card = f", {found['gpu']}" if found["gpu"] else ""
    load = "" if found["load_before"] is None else f", load before the run {found['load_before']}"
    return (
        f"{found['processor']}, {found['cores']} cores{card}; Python {found['python']}, {versions}; "
        f"{found['date']}{load}."
    )
