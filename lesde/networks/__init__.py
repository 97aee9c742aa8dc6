"""Networks trained on images, with their features recorded as training goes.

The names below are found on first use, so importing this package does not import torch::

    from lesde.networks import collect, digits, mlp, record_ensemble, saving_times

    data = digits(classes=4)
    rates = (0.02, 0.05, 0.1)
    records = record_ensemble(
        data, lambda: mlp(64, (32, 32), 4), rates, replicates=8, times=saving_times(40.0, rates)
    )
    paths = collect(records)["logits"]     # learning_rate, replicate, time, sample, feature
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .architectures import mlp
    from .datasets import ImageData, digits
    from .recorder import collect, record_ensemble
    from .runs import EnsembleRun
    from .schedule import saving_times
    from .training import train_ensemble

__all__ = [
    "EnsembleRun",
    "ImageData",
    "collect",
    "digits",
    "mlp",
    "record_ensemble",
    "saving_times",
    "train_ensemble",
]

_HOMES = {
    "EnsembleRun": "runs",
    "ImageData": "datasets",
    "collect": "recorder",
    "digits": "datasets",
    "mlp": "architectures",
    "record_ensemble": "recorder",
    "saving_times": "schedule",
    "train_ensemble": "training",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
