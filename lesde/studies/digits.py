"""Networks on handwritten digits at several learning rates: their settings, and a cell for each rate."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Annotated

import numpy as np
import xarray as xr
from pydantic import Field, field_validator, model_validator

from lesde import networks
from lesde.studies.runner import Cell, Progress
from lesde.studies.settings import Confidence, Images, Seed, StudySettings

__all__ = ["DigitNetworks", "network_cells", "recorded", "trained_networks"]

LAYERS = {"network": "logits", "penultimate": "penultimate"}
"""Layers by the name of the dataset of all learning rates."""


class DigitNetworks(StudySettings):
    """Networks on handwritten digits at several learning rates, all for the same time."""

    # Digits to distinguish, training images and recorded training images per class, hidden layers.
    classes: Annotated[tuple[int, ...], Field(min_length=4, max_length=10)] = (0, 1, 2, 3)
    train_per_class: Images = 100
    probe_per_class: Images = 40
    widths: Annotated[tuple[int, ...], Field(min_length=1)] = (32, 32)
    # Plain SGD with batch size 1; networks per learning rate; learning rate times iterations.
    learning_rates: Annotated[tuple[float, ...], Field(min_length=1)] = (0.005, 0.01, 0.02, 0.04)
    replicates: Annotated[int, Field(ge=2, le=10**4)] = 16
    total_time: Annotated[float, Field(gt=0)] = 50.0
    # Recordings, the initial state included; time from which the kernel is fitted and the model runs.
    saved_times: Annotated[int, Field(ge=8, le=10**4)] = 50
    model_start: Annotated[float, Field(ge=0)] = 2.0
    confidence: Confidence = 0.95
    seed: Seed = 0

    @field_validator("classes")
    @classmethod
    def _digits(cls, classes: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(classes)) < len(classes) or not set(classes) <= set(range(10)):
            raise ValueError("must be different digits from 0 to 9")
        return classes

    @field_validator("learning_rates")
    @classmethod
    def _rates(cls, rates: tuple[float, ...]) -> tuple[float, ...]:
        if len(set(rates)) < len(rates) or not all(0 < rate < float("inf") for rate in rates):
            raise ValueError("must be different positive numbers")
        return rates

    @model_validator(mode="after")
    def _long_enough(self) -> DigitNetworks:
        if self.model_start >= self.total_time:
            raise ValueError("model_start must be before total_time")
        if self.total_time - self.model_start < 8 * max(self.learning_rates):
            raise ValueError(
                "total_time must leave at least 8 iterations of the largest learning rate after "
                "model_start"
            )
        return self


def recorded(
    data: networks.ImageData,
    learning_rates: Sequence[float],
    times: np.ndarray,
    replicates: int,
    widths: Sequence[int],
    seed: int,
    progress: bool | Callable[[int, int], None],
) -> Iterator[dict[str, xr.Dataset]]:
    """Train networks, one learning rate after the other, and record their features."""
    inputs, K = data.train_x.shape[1], len(np.unique(data.probe_y))
    return networks.record_ensemble(
        data,
        lambda: networks.mlp(inputs, tuple(widths), K),
        learning_rates,
        replicates,
        times,
        seed=seed,
        progress=progress,
    )


def network_cells(config: DigitNetworks) -> list[Cell]:
    """A cell for each learning rate, and of all together the logits, "network", and the last hidden layer, "penultimate"."""

    def train(progress: Progress, rate: float) -> dict[str, xr.Dataset]:
        times = networks.saving_times(config.total_time, config.learning_rates, config.saved_times)
        images = (config.classes, config.train_per_class, config.probe_per_class)
        data = networks.digits(*images, scaling="standard", seed=config.seed)
        (record,) = recorded(
            data, [rate], times, config.replicates, config.widths, config.seed, progress
        )
        return {name_of(layer, rate): record[layer] for layer in LAYERS.values()}

    def check(dataset: xr.Dataset, rate: float) -> str:
        found = dataset["learning_rate"].values.tolist()
        return "" if found == [rate] else f"learning rate {found}, not {rate!r}"

    cells = [
        Cell(
            tuple(name_of(layer, rate) for layer in LAYERS.values()),
            partial(train, rate=rate),
            title="training the networks",
            cost=1 / rate,
            trained=True,
            check=partial(check, rate=rate),
        )
        for rate in config.learning_rates
    ]
    for name, layer in LAYERS.items():
        stores = tuple(name_of(layer, rate) for rate in config.learning_rates)
        cells.append(Cell(name, _joined, stores, kept=False))
    return cells


def name_of(layer: str, rate: float) -> str:
    """The store of a layer at a learning rate, which has all digits: rates may differ in the seventh alone."""
    return f"network_{layer}_h{rate!r}"


def _joined(progress: Progress, *records: xr.Dataset) -> xr.Dataset:
    return xr.concat(records, "learning_rate", combine_attrs="drop_conflicts")


def trained_networks(config: DigitNetworks) -> str:
    """The networks in words."""
    widths = "-".join(map(str, (64, *config.widths, len(config.classes))))
    rates = ", ".join(f"{h:g}" for h in config.learning_rates)
    return (
        f"{config.replicates} networks ({widths}, ReLU) at each of the learning rates {rates}, trained by plain SGD "
        f"with batch size 1 and cross-entropy on {config.train_per_class} images of each of the digits "
        f"{', '.join(map(str, config.classes))} from scikit-learn"
    )
