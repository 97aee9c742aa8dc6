# ruff: noqa: F401
"""Networks trained on images, with their features recorded as training goes.

The names below are found on first use, so importing this package does not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lesde.networks.architectures import lenet, mlp
    from lesde.networks.cifar import cifar10
    from lesde.networks.data import (
        ImageData,
        digits,
        mnist_sample,
        with_class_counts,
        with_label_noise,
    )
    from lesde.networks.drawn import drawn_means
    from lesde.networks.ensemble_impact import measure_impact
    from lesde.networks.geometric import geo_mnist
    from lesde.networks.lightning import LightningRecorder
    from lesde.networks.record_store import open_records
    from lesde.networks.recorder import Recorder
    from lesde.networks.recording import record
    from lesde.networks.records import collect, record_ensemble
    from lesde.networks.split import probe_both, split_records
    from lesde.networks.torch_data import from_dataset
    from lesde.networks.training import EnsembleRun, saving_times, train_ensemble, training_time

_MODULES = {
    "architectures": "lenet mlp",
    "cifar": "cifar10",
    "data": "ImageData digits mnist_sample with_class_counts with_label_noise",
    "drawn": "drawn_means",
    "ensemble_impact": "measure_impact",
    "geometric": "geo_mnist",
    "lightning": "LightningRecorder",
    "record_store": "open_records",
    "recorder": "Recorder",
    "recording": "record",
    "records": "collect record_ensemble",
    "split": "probe_both split_records",
    "torch_data": "from_dataset",
    "training": "EnsembleRun saving_times train_ensemble training_time",
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names.split()}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
