"""Networks on handwritten digits at several learning rates: a cell for each rate, and the networks in words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import xarray as xr

from lesde import networks
from lesde.studies.runner import Cell, Progress
from lesde.studies.settings import DigitNetworks

LAYERS = {"network": "logits", "penultimate": "penultimate"}
"""Layers by the name of the dataset of all learning rates."""


def recorded(
    data: networks.ImageData,
    rates: Sequence[float],
    times: Any,
    replicates: int,
    widths: Any,
    **options: Any,
) -> Iterator[dict[str, xr.Dataset]]:
    """Train networks, one learning rate after the other, and record their features."""
    inputs, K = data.train_x.shape[1], len(np.unique(data.probe_y))
    network = partial(networks.mlp, inputs, tuple(widths), K)
    return networks.record_ensemble(data, network, rates, replicates, times, **options)


def network_cells(config: DigitNetworks) -> list[Cell]:
    """A cell for each learning rate, and of all together the logits, "network", and the last hidden layer, "penultimate"."""

    def name_of(layer: str, rate: float) -> str:
        # With all digits: rates may differ in the seventh alone.
        return f"network_{layer}_h{rate!r}"

    def train(progress: Progress, rate: float) -> dict[str, xr.Dataset]:
        times = networks.saving_times(config.total_time, config.learning_rates, config.saved_times)
        images = (config.classes, config.train_per_class, config.probe_per_class)
        data = networks.digits(*images, scaling="standard", seed=config.seed)
        options: dict[str, Any] = {"seed": config.seed, "progress": progress}
        (record,) = recorded(data, [rate], times, config.replicates, config.widths, **options)
        return {name_of(layer, rate): record[layer] for layer in LAYERS.values()}

    def joined(progress: Progress, *records: xr.Dataset) -> xr.Dataset:
        return xr.concat(records, "learning_rate", combine_attrs="drop_conflicts")

    cells = []
    for rate in config.learning_rates:
        names, compute = (
            tuple(name_of(layer, rate) for layer in LAYERS.values()),
            partial(train, rate=rate),
        )
        cells.append(
            Cell(names, compute, title="training the networks", cost=1 / rate, trained=True)
        )
    for name, layer in LAYERS.items():
        stores = tuple(name_of(layer, rate) for rate in config.learning_rates)
        cells.append(Cell(name, joined, stores, kept=False))
    return cells


def trained_networks(config: DigitNetworks) -> str:
    """The networks in words."""
    widths = "-".join(map(str, (64, *config.widths, len(config.classes))))
    rates = ", ".join(f"{h:g}" for h in config.learning_rates)
    return (
        f"{config.replicates} networks ({widths}, ReLU) at each of the learning rates {rates}, trained by plain SGD "
        f"with batch size 1 and cross-entropy on {config.train_per_class} images of each of the digits "
        f"{', '.join(map(str, config.classes))} from scikit-learn"
    )
