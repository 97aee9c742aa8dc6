"""Trainings of the published protocol, in batches of trials that are stored as they finish.

A trial depends on the seed, its number and its noise level, not on the batch that it trained in. So trials can be added
to a folder, and an interrupted run loses at most the current batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from lesde import networks
from lesde.studies.runner import Cell, Progress
from lesde.studies.settings import Protocol


class Trainings:
    """The trainings of a protocol in a folder of stores.

    ``cifar`` is the local copy of CIFAR-10, and ``device`` where networks train: it changes rounding, which training
    amplifies.
    """

    def __init__(self, protocol: Protocol, data: Path, cifar: Path | None, device: str | None):
        self.protocol, self.data, self.cifar = protocol, data, cifar
        self.options: dict[str, Any] = {"layers": ("logits",), "drawn": True, "device": device}
        steps = np.linspace(0, protocol.iterations, protocol.recordings + 1)
        self.times = np.unique(np.rint(steps)) * protocol.learning_rate

    def cells(self, level: float) -> list[Cell]:
        """A cell for every batch of trials at a noise level, those that are stored first."""
        name, batches = f"train_p{level!r}_", []
        for file in sorted(self.data.glob(f"{name}*.zarr/zarr.json")):
            first, last = file.parent.stem.removeprefix(name).split("-")
            batches.append(range(int(first), int(last) + 1))
        there = {trial for trials in batches for trial in trials}
        wanted = np.arange(self.protocol.trials)
        for part in np.split(wanted, wanted[self.protocol.batch :: self.protocol.batch]):
            new = [int(trial) for trial in part if trial not in there]
            if new:
                batches.append(range(new[0], new[-1] + 1))
        return [
            Cell(
                f"{name}{trials[0]}-{trials[-1]}",
                partial(self.train, level=level, trials=list(trials)),
                title="training",
                cost=len(trials),
                trained=True,
            )
            for trials in batches
        ]

    def seconds(self, trials: int) -> float:
        """Expected seconds to train so many trials together, from a few steps."""
        steps, saved = self.protocol.iterations, len(self.times)
        return networks.training_time(
            self.images, self.network, trials, steps, saved=saved, **self.options
        )

    def train(self, progress: Progress, level: float, trials: Sequence[int]) -> xr.Dataset:
        """Drawn logits, and loss, accuracy and class means of the validation images over time."""
        labels = None
        if level > 0:
            # Which labels are wrong is drawn anew for every trial.
            seeds = [np.random.SeedSequence(self.protocol.seed, spawn_key=(t,)) for t in trials]
            numbers = [int(seed.generate_state(1)[0]) for seed in seeds]
            noisy = [networks.with_label_noise(self.images, level, seed=n) for n in numbers]
            labels = np.stack([images.train_y for images in noisy])
        (record,) = networks.record_ensemble(
            self.images,
            self.network,
            self.protocol.learning_rate,
            trials,
            self.times,
            seed=self.protocol.seed,
            labels=labels,
            progress=progress,
            **self.options,
        )
        drawn, valid = (
            record[part].squeeze("learning_rate", drop=True) for part in ("drawn", "logits")
        )
        means = valid["features"].groupby("label").mean("sample").rename(label="class")
        return xr.Dataset(
            {
                "drawn_logits": drawn["features"].variable,
                "drawn_label": drawn["label"].variable.astype(np.int8),
                **valid[["loss", "accuracy"]],
                "validation_mean": means.transpose(
                    "replicate", "time", "class", "feature"
                ).variable,
            },
            {"draw_time": drawn["time"].variable, "draw_iteration": drawn["iteration"].variable},
            record["drawn"].attrs | {"noise_level": level},
        )

    def network(self) -> Any:
        """A new network."""
        channels = 1 if self.protocol.data == "geomnist" else 3
        return networks.lenet(self.protocol.classes, channels=channels)

    @cached_property
    def images(self) -> networks.ImageData:
        """The images, without label noise."""
        protocol = self.protocol
        each = (protocol.train_per_class, protocol.validation_per_class)
        if protocol.data == "geomnist":
            return networks.geo_mnist(*each, n_drawn=max(1000, sum(each)), seed=protocol.seed)
        if self.cifar is None:
            raise ValueError(
                "--cifar must say where CIFAR-10 is with --data cifar10: cifar-10-python.tar.gz or cifar-10-binary.tar.gz of "
                "www.cs.toronto.edu/~kriz/cifar.html, or the folder that it unpacks to."
            )
        try:
            return networks.cifar10(self.cifar, protocol.classes, *each, seed=protocol.seed)
        except OSError as error:
            raise ValueError(f"--cifar: {error}") from None
