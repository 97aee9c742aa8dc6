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
    from .architectures import lenet, mlp
    from .callback import Recorder
    from .callback_records import open_records
    from .cifar import cifar10
    from .corruption import with_class_counts, with_label_noise
    from .datasets import ImageData, digits
    from .drawn import drawn_means
    from .geometric import geo_mnist
    from .impact import measure_impact
    from .lightning import LightningRecorder
    from .mnist import mnist_sample
    from .pace import training_time
    from .probes import probe_both, split_records
    from .recorder import collect, record_ensemble
    from .recording import record
    from .runs import EnsembleRun
    from .schedule import saving_times
    from .torch_data import from_dataset
    from .training import train_ensemble

__all__ = [
    "EnsembleRun",
    "ImageData",
    "LightningRecorder",
    "Recorder",
    "cifar10",
    "collect",
    "digits",
    "drawn_means",
    "from_dataset",
    "geo_mnist",
    "lenet",
    "measure_impact",
    "mlp",
    "mnist_sample",
    "open_records",
    "probe_both",
    "record",
    "record_ensemble",
    "saving_times",
    "split_records",
    "train_ensemble",
    "training_time",
    "with_class_counts",
    "with_label_noise",
]

_HOMES = {
    "EnsembleRun": "runs",
    "ImageData": "datasets",
    "LightningRecorder": "lightning",
    "Recorder": "callback",
    "cifar10": "cifar",
    "collect": "recorder",
    "digits": "datasets",
    "drawn_means": "drawn",
    "from_dataset": "torch_data",
    "geo_mnist": "geometric",
    "lenet": "architectures",
    "measure_impact": "impact",
    "mlp": "architectures",
    "mnist_sample": "mnist",
    "open_records": "callback_records",
    "probe_both": "probes",
    "record": "recording",
    "record_ensemble": "recorder",
    "saving_times": "schedule",
    "split_records": "probes",
    "train_ensemble": "training",
    "training_time": "pace",
    "with_class_counts": "corruption",
    "with_label_noise": "corruption",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
