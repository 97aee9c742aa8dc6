"""Trainings of the published protocol, in batches of trials that are stored as they finish.

A trial depends on the seed, its number and its noise level, not on the batch that it trained in. So trials can be added
to a folder, and an interrupted run loses at most the current batch.
"""

from __future__ import annotations

import json
import re
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from lesde import networks
from lesde.networks import ImageData, with_label_noise
from lesde.studies.folder import damaged_result
from lesde.studies.reproduce.protocol import Protocol
from lesde.studies.runner import Cell, Progress

__all__ = ["Trainings", "joined"]


class Trainings:
    """The trainings of a protocol in a folder of stores.

    ``cifar`` is the local copy of CIFAR-10, and ``device`` where networks train: it changes rounding, which training
    amplifies.
    """

    def __init__(self, protocol: Protocol, data: Path, cifar: Path | None, device: str | None):
        self.protocol, self.data, self._cifar = protocol, data, cifar
        self._options: dict[str, Any] = {"layers": ("logits",), "drawn": True, "device": device}
        self.images = cache(self._images)
        steps = np.linspace(0, protocol.iterations, protocol.recordings + 1)
        self.times = np.unique(np.rint(steps)) * protocol.learning_rate

    def cells(self, levels: tuple[float, ...]) -> dict[float, list[Cell]]:
        """A cell for every batch of trials, those that are stored first, by noise level."""
        found: dict[float, list[Cell]] = {}
        for level in levels:
            batches = self._stored(level)
            there = {trial for trials in batches for trial in trials}
            wanted = [t for t in range(self.protocol.trials_at(level)) if t not in there]
            for trial in wanted:
                last = batches[-1] if batches and batches[-1][0] in wanted else ()
                if last and last[-1] == trial - 1 and len(last) < self.protocol.batch:
                    batches[-1] = (*last, trial)
                else:
                    batches.append((trial,))
            found[level] = [self._cell(level, trials) for trials in batches]
        return found

    def seconds(self, trials: int) -> float:
        """Expected seconds to train so many trials together, from a few steps."""
        return networks.training_time(
            self.images(),
            self._network,
            trials,
            self.protocol.iterations,
            saved=len(self.times),
            **self._options,
        )

    def _stored(self, level: float) -> list[tuple[int, ...]]:
        """The numbers of the trials in each store of a noise level."""
        found = []
        for path in sorted(self.data.glob(f"train_p{level:.3f}_*.zarr")):
            match, file = re.fullmatch(r".*_(\d+)-(\d+)", path.stem), path / "zarr.json"
            if match is None or not file.exists():
                continue
            try:
                held = float(json.loads(file.read_text())["attributes"]["noise_level"])
            except (OSError, ValueError, KeyError, TypeError):
                raise damaged_result(path, "zarr.json has no noise level.") from None
            if abs(held - level) > 1e-9:
                raise ValueError(
                    f"--out: {path} holds trials with p = {held:g}, not {level:g}; give another folder, or the same "
                    f"noise_levels."
                )
            found.append(tuple(range(int(match[1]), int(match[2]) + 1)))
        return found

    def _cell(self, level: float, trials: tuple[int, ...]) -> Cell:
        def check(dataset: xr.Dataset) -> str:
            same = dataset["replicate"].values.tolist() == list(trials)
            return "" if same else "it holds other trials than its name says."

        return Cell(
            (f"train_p{level:.3f}_{trials[0]}-{trials[-1]}",),
            partial(self._train, level=level, trials=trials),
            title="training",
            cost=len(trials),
            words=f"trials {trials[0]} to {trials[-1]} with p = {level:.3g}",
            trained=True,
            check=check,
        )

    def _train(self, progress: Progress, level: float, trials: tuple[int, ...]) -> xr.Dataset:
        labels = None
        if level > 0:
            # Which labels are wrong is drawn anew for every trial.
            seeds = [np.random.SeedSequence(self.protocol.seed, spawn_key=(t,)) for t in trials]
            numbers = [int(seed.generate_state(1)[0]) for seed in seeds]
            noisy = [with_label_noise(self.images(), level, seed=number) for number in numbers]
            labels = np.stack([images.train_y for images in noisy])
        (record,) = networks.record_ensemble(
            self.images(),
            self._network,
            self.protocol.learning_rate,
            trials,
            self.times,
            seed=self.protocol.seed,
            labels=labels,
            progress=progress,
            **self._options,
        )
        drawn = record["drawn"].isel(learning_rate=0)
        valid = record["logits"].isel(learning_rate=0)
        means = valid["features"].groupby("label").mean("sample")
        # The data for the analyses: drawn logits, validation, and class means of the validation images.
        return xr.Dataset(
            {
                "drawn_logits": (("replicate", "draw", "feature"), drawn["features"].values),
                "drawn_label": (("replicate", "draw"), drawn["label"].values.astype(np.int8)),
                "loss": (("replicate", "time"), valid["loss"].values),
                "accuracy": (("replicate", "time"), valid["accuracy"].values),
                "validation_mean": (
                    ("replicate", "time", "class", "feature"),
                    means.transpose("replicate", "time", "label", "feature").values,
                ),
            },
            coords={
                "replicate": drawn["replicate"].values,
                "time": valid["time"].values,
                "iteration": ("time", valid["iteration"].values),
                "draw_time": ("draw", drawn["time"].values),
                "draw_iteration": ("draw", drawn["iteration"].values),
            },
            attrs={**record["drawn"].attrs, "noise_level": level},
        )

    def _network(self) -> Any:
        channels = 1 if self.protocol.data == "geomnist" else 3
        return networks.lenet(self.protocol.classes, channels=channels)

    def _images(self) -> ImageData:
        """The images, without label noise."""
        protocol = self.protocol
        each = (protocol.train_per_class, protocol.validation_per_class)
        if protocol.data == "geomnist":
            return networks.geo_mnist(*each, n_drawn=max(1000, sum(each)), seed=protocol.seed)
        if self._cifar is None:
            raise ValueError(
                "--cifar must say where CIFAR-10 is with --data cifar10. Download cifar-10-python.tar.gz or "
                "cifar-10-binary.tar.gz from www.cs.toronto.edu/~kriz/cifar.html, and give the path of the "
                "archive, or of the folder that it unpacks to."
            )
        try:
            return networks.cifar10(self._cifar, protocol.classes, *each, seed=protocol.seed)
        except OSError as error:
            raise ValueError(f"--cifar: {error}") from None


def joined(protocol: Protocol, level: float, *batches: xr.Dataset) -> xr.Dataset:
    """All stored trials of a noise level, up to the number asked for."""
    whole = xr.concat(
        batches,
        "replicate",
        data_vars="minimal",
        coords="minimal",
        compat="override",
        combine_attrs="drop_conflicts",
    )
    return whole.sel(replicate=np.arange(protocol.trials_at(level)))
