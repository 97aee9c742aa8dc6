"""Trainings of the published protocol, in batches of trials that are stored as they finish."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from tqdm import tqdm

from lesde.files import damaged_of_store as damaged
from lesde.files import read_whole, write
from lesde.networks import (
    ImageData,
    cifar10,
    geo_mnist,
    lenet,
    record_ensemble,
    training_time,
    with_label_noise,
)
from lesde.studies.runner import claim, read_settings, settings_of, validated

__all__ = [
    "FREE",
    "PRESETS",
    "SETTINGS",
    "Batch",
    "Protocol",
    "Trainings",
    "duration",
    "levels_for",
    "load_data",
    "load_protocol",
]


# --------------------------------------------------------------------------------------------------
# The protocol of the published experiments, and how much of it a preset runs.

LEVELS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 2 / 3, 0.7, 0.8)
"""Published, for three classes."""


class Protocol(BaseModel):
    """What ``lesde reproduce`` trains and analyses; the defaults are the published protocol.

    Source: the experiments of Zhang, Wang and Su, NeurIPS 2021 (arXiv 2110.05960). Numbers of
    recordings and of windows are of this package.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    data: str = Field("geomnist", description="geomnist or cifar10")
    classes: int = Field(
        3, ge=2, le=10, description="of CIFAR-10, the first so many; GeoMNIST has 3"
    )
    train_per_class: int = Field(500, ge=2, le=10**5, description="training images a class")
    validation_per_class: int = Field(500, ge=2, le=10**5, description="validation images a class")
    learning_rate: float = Field(0.005, gt=0, lt=float("inf"), description="of plain SGD, batch 1")
    iterations: int = Field(10_000, ge=100, le=10**8, description="steps of SGD")
    noise_levels: tuple[float, ...] = Field(
        LEVELS,
        min_length=1,
        description="shares of wrong training labels; 0 among them, and some on both sides of (K−1)/K for figure 4",
    )
    trials: int = Field(100, ge=3, le=10**5, description="independent networks at each noise level")
    clean_trials: int | None = Field(
        None,
        ge=3,
        le=10**5,
        description="networks at noise level 0, behind figures 1, 3 and 5; else trials",
    )
    batch: int = Field(
        10, ge=1, le=10**4, description="networks trained together and stored together"
    )
    recordings: int = Field(
        10, ge=4, le=10**4, description="validations after the first, over training"
    )
    windows: int = Field(
        50, ge=8, le=10**5, description="windows of training that class means are over"
    )
    confidence: float = Field(0.95, gt=0, lt=1, description="level of all intervals")
    seed: int = Field(0, ge=0, description="of all randomness")

    @field_validator("data")
    @classmethod
    def _known(cls, data: str) -> str:
        if data not in ("geomnist", "cifar10"):
            raise ValueError("must be geomnist or cifar10")
        return data

    @field_validator("noise_levels")
    @classmethod
    def _levels(cls, levels: tuple[float, ...]) -> tuple[float, ...]:
        if 0.0 not in levels or list(levels) != sorted(set(levels)) or not 0 <= levels[-1] < 1:
            raise ValueError("must be increasing shares from 0, itself among them, to below 1")
        if any(b - a < 0.001 for a, b in pairwise(levels)):
            raise ValueError("must differ by at least 0.001")
        return levels

    @model_validator(mode="after")
    def _fitting(self) -> Protocol:
        if self.data == "geomnist" and self.classes != 3:
            raise ValueError("classes must be 3 for geomnist")
        if self.recordings > self.iterations or self.windows > self.iterations:
            raise ValueError("iterations must be at least as many as recordings and windows")
        most = self._most_windows()
        if self.windows > most:
            if most < 8:
                raise ValueError(
                    f"iterations must be at least {8 * self._draws_in(8)} with {self.classes} classes and so many trials: in "
                    f"8 windows, the fewest there may be, some trial would draw no sample of some class"
                )
            raise ValueError(
                f"windows must be at most {most} with {self.iterations} iterations, {self.classes} classes and so many "
                f"trials: in more, some trial would draw no sample of some class"
            )
        if self.clean_trials is not None and self.clean_trials < self.trials:
            raise ValueError(
                "clean_trials must be at least trials: levels are compared trial by trial"
            )
        return self

    def _draws_in(self, windows: int) -> int:
        """Draws a window must have so that a class that nobody drew is expected less than once in a hundred such studies."""
        every = windows * self.classes * sum(self.trials_at(p) for p in self.noise_levels)
        return math.ceil(math.log(0.01 / every) / math.log1p(-1 / self.classes))

    def _most_windows(self) -> int:
        """The most windows with that many draws each."""
        most = self.iterations
        while most > 1 and self.iterations // most < self._draws_in(most):
            most -= 1
        return most

    def trials_at(self, level: float) -> int:
        """Trials at a noise level."""
        return self.clean_trials or self.trials if level == 0 else self.trials

    @property
    def trial_steps(self) -> int:
        """Steps of SGD over all trials and noise levels."""
        return self.iterations * sum(self.trials_at(level) for level in self.noise_levels)

    @property
    def critical(self) -> float:
        """(K−1)/K, the share of wrong labels at which labels say nothing."""
        return (self.classes - 1) / self.classes


PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    "quick": {"trials": 12, "batch": 12, "windows": 40},
}
"""What differs from the published protocol. ``quick`` has fewer trials, and nothing else of it; the windows
that class means are over are no part of it."""

CIFAR = {"train_per_class": 2000, "learning_rate": 0.001, "iterations": 30_000}
"""The protocol on CIFAR-10."""


def levels_for(classes: Any) -> tuple[float, ...]:
    """Noise levels that lie about the critical one of so many classes as the published ones do for three."""
    if not isinstance(classes, int) or classes < 2 or classes == 3:
        return LEVELS
    critical = (classes - 1) / classes
    return tuple(
        p * 1.5 * critical if p <= 2 / 3 else critical + (p - 2 / 3) * 3 * (1 - critical)
        for p in LEVELS
    )


def load_protocol(
    preset: str = "quick", given: Mapping[str, Any] | None = None, config: Path | None = None
) -> Protocol:
    """A preset with some of its settings changed.

    Parameters
    ----------
    preset : {"quick", "paper"}
    given : mapping, optional
        Settings in place of the preset's; those that are None are left out.
    config : path, optional
        A JSON file with settings in place of the preset's; ``given`` goes before it.

    Raises
    ------
    ValueError
        Naming the setting, what was given and what is allowed.
    """
    if preset not in PRESETS:
        raise ValueError(f"--preset must be one of {', '.join(PRESETS)}; got {preset!r}.")
    changes = read_settings(config, given)
    if "classes" in changes and "noise_levels" not in changes:
        changes["noise_levels"] = levels_for(changes["classes"])
    base = CIFAR if changes.get("data") == "cifar10" else {}
    settings = base | PRESETS[preset]
    if "trials" in changes:
        # What is asked for all trials is meant for those without label noise too.
        settings = settings | {"clean_trials": None}
    return validated(Protocol, settings | changes)


# --------------------------------------------------------------------------------------------------

SETTINGS = "protocol.json"
# What may differ between two runs in one folder: more trials are added, the rest is analysis.
FREE = ("trials", "clean_trials", "batch", "windows", "confidence", "noise_levels")


class Batch(NamedTuple):
    """Trials of one noise level that train together."""

    level: float
    trials: tuple[int, ...]


def load_data(protocol: Protocol, cifar: Path | None) -> ImageData:
    """The images, without label noise."""
    if protocol.data == "geomnist":
        wanted = protocol.train_per_class + protocol.validation_per_class
        return geo_mnist(
            protocol.train_per_class,
            protocol.validation_per_class,
            n_drawn=max(1000, wanted),
            seed=protocol.seed,
        )
    if cifar is None:
        raise ValueError(
            "--cifar must say where CIFAR-10 is with --data cifar10. Download cifar-10-python.tar.gz or "
            "cifar-10-binary.tar.gz from www.cs.toronto.edu/~kriz/cifar.html, and give the path of the "
            "archive, or of the folder that it unpacks to."
        )
    try:
        return cifar10(
            cifar,
            protocol.classes,
            protocol.train_per_class,
            protocol.validation_per_class,
            seed=protocol.seed,
        )
    except OSError as error:
        raise ValueError(f"--cifar: {error}") from None


class Trainings:
    """The trainings of a protocol in a folder: what is there, what is missing, and training it.

    A trial depends on the seed, its number and its noise level, not on the batch that it trained in, so
    that trials can be added to a folder, and an interrupted run loses the batch it was in at most.

    Parameters
    ----------
    protocol : Protocol
    folder : path
        Stores ``train_p0.667_0-9.zarr`` and so on.
    cifar : path, optional
        The local copy of CIFAR-10.
    device : str, optional
        Where networks train; the CPU by default. It changes rounding, which training amplifies.

    Raises
    ------
    ValueError
        When the folder holds trainings with other settings.
    """

    def __init__(
        self,
        protocol: Protocol,
        folder: Path,
        cifar: Path | None = None,
        device: str | None = None,
    ):
        self.protocol, self.folder, self._cifar, self._device = protocol, folder, cifar, device
        self._images: ImageData | None = None
        self._study = settings_of(protocol, without=FREE)
        self._claim()

    def _claim(self) -> None:
        """Take the folder for these settings, or say whose it is."""
        file = self.folder / SETTINGS
        if not file.exists() and any(self.folder.glob("train_p*.zarr")):
            raise ValueError(
                f"--out: {self.folder} holds trainings without {file.name}, so that their settings are not known; "
                f"give another folder or remove it."
            )
        claim(file, self._study)

    @property
    def times(self) -> np.ndarray:
        """Times of validation: evenly over the iterations, the first 0."""
        steps = np.linspace(0, self.protocol.iterations, self.protocol.recordings + 1)
        return np.unique(np.rint(steps)) * self.protocol.learning_rate

    def stores(self, level: float) -> dict[Path, tuple[int, ...]]:
        """Whole stores of a noise level, and the numbers of the trials in each."""
        found = {}
        for path in sorted(self.folder.glob(f"train_p{level:.3f}_*.zarr")):
            match = re.fullmatch(r"(\d+)-(\d+)", path.stem.rsplit("_", 1)[1])
            held = _level(path)
            if match is None or held is None:
                continue
            if abs(held - level) > 1e-9:
                raise ValueError(
                    f"--out: {path} holds trials with p = {held:g}, not {level:g}; give another folder, or the same "
                    f"noise_levels."
                )
            found[path] = tuple(range(int(match[1]), int(match[2]) + 1))
        return found

    def missing(self, levels: Sequence[float]) -> list[Batch]:
        """What is still to be trained; a batch of every noise level before a second of any."""
        batches: list[tuple[int, Batch]] = []
        for level in levels:
            there = {trial for trials in self.stores(level).values() for trial in trials}
            wanted = [t for t in range(self.protocol.trials_at(level)) if t not in there]
            for turn, trials in enumerate(_runs(wanted, self.protocol.batch)):
                batches.append((turn, Batch(level, trials)))
        return [batch for _, batch in sorted(batches, key=lambda each: each[0])]

    def estimate(self, levels: Sequence[float]) -> tuple[float, float]:
        """Seconds that all trainings of these levels take, and those that are missing, from a few steps."""
        missing = self.missing(levels)
        size = max((len(batch.trials) for batch in missing), default=self.protocol.batch)
        seconds = training_time(
            self._clean,
            self._network,
            size,
            self.protocol.iterations,
            saved=len(self.times),
            layers=("logits",),
            drawn=True,
            device=self._device,
        )
        each = seconds / size
        every = sum(self.protocol.trials_at(level) for level in levels)
        return each * every, each * sum(len(batch.trials) for batch in missing)

    def run(self, levels: Sequence[float]) -> int:
        """Train what is missing; the number of trials trained.

        A terminal shows a progress bar; a log has a line for every batch that is stored.
        """
        missing = self.missing(levels)
        wanted = sum(len(batch.trials) for batch in missing)
        if not wanted:
            return 0
        began, done = time.monotonic(), 0
        with _steps_bar(self.protocol.iterations * wanted) as (advance, shown):
            for batch in missing:
                dataset = self._train(batch, advance)
                first, last = batch.trials[0], batch.trials[-1]
                name = f"train_p{batch.level:.3f}_{first}-{last}.zarr"
                write(dataset, self.folder / name, self._study)
                done += len(batch.trials)
                if not shown:
                    left = (time.monotonic() - began) * (wanted / done - 1)
                    print(
                        f"stored trials {first} to {last} with p = {batch.level:.3g}: {done} of {wanted}, "
                        f"about {duration(left)} left",
                        flush=True,
                    )
        return wanted

    def load(self, level: float) -> xr.Dataset:
        """All stored trials of a noise level, up to the number asked for."""
        parts = [_whole(path, self._study, trials) for path, trials in self.stores(level).items()]
        joined = xr.concat(
            parts,
            "replicate",
            data_vars="minimal",
            coords="minimal",
            compat="override",
            combine_attrs="drop_conflicts",
        )
        wanted = np.arange(self.protocol.trials_at(level))
        return joined.sel(replicate=wanted)

    def _network(self) -> Any:
        channels = 1 if self.protocol.data == "geomnist" else 3
        return lenet(self.protocol.classes, channels=channels)

    @property
    def _clean(self) -> ImageData:
        if self._images is None:
            self._images = load_data(self.protocol, self._cifar)
        return self._images

    def _labels(self, batch: Batch) -> np.ndarray | None:
        """Training labels (trial, sample): which are wrong is drawn anew for every trial."""
        if batch.level == 0:
            return None
        seeds = [
            int(np.random.SeedSequence(self.protocol.seed, spawn_key=(trial,)).generate_state(1)[0])
            for trial in batch.trials
        ]
        noisy = [with_label_noise(self._clean, batch.level, seed=seed) for seed in seeds]
        return np.stack([images.train_y for images in noisy])

    def _train(self, batch: Batch, advance: Callable[[int], None]) -> xr.Dataset:
        size, before = len(batch.trials), 0

        def progress(done: int, total: int) -> None:
            nonlocal before
            advance((done - before) * size)
            before = done

        records = record_ensemble(
            self._clean,
            self._network,
            self.protocol.learning_rate,
            batch.trials,
            self.times,
            layers=("logits",),
            seed=self.protocol.seed,
            labels=self._labels(batch),
            drawn=True,
            device=self._device,
            progress=progress,
        )
        return _kept(next(iter(records)), batch)


def _kept(record: dict[str, xr.Dataset], batch: Batch) -> xr.Dataset:
    """What the analyses need: drawn logits, validation, and class means of the validation images."""
    drawn = record["drawn"].isel(learning_rate=0)
    valid = record["logits"].isel(learning_rate=0)
    labels = valid["label"].values
    means = [valid["features"].values[:, :, labels == k].mean(2) for k in range(labels.max() + 1)]
    each = ("replicate", "time")
    return xr.Dataset(
        {
            "drawn_logits": (("replicate", "draw", "feature"), drawn["features"].values),
            "drawn_label": (("replicate", "draw"), drawn["label"].values.astype(np.int8)),
            "loss": (each, valid["loss"].values),
            "accuracy": (each, valid["accuracy"].values),
            "validation_mean": ((*each, "class", "feature"), np.stack(means, axis=2)),
        },
        coords={
            "replicate": drawn["replicate"].values,
            "time": valid["time"].values,
            "iteration": ("time", valid["iteration"].values),
            "draw_time": ("draw", drawn["time"].values),
            "draw_iteration": ("draw", drawn["iteration"].values),
        },
        attrs={**record["drawn"].attrs, "noise_level": batch.level},
    )


def _level(path: Path) -> float | None:
    """The noise level that a store says it holds; None where there is no store."""
    file = path / "zarr.json"
    if not file.exists():
        return None
    try:
        return float(json.loads(file.read_text())["attributes"]["noise_level"])
    except (OSError, ValueError, KeyError, TypeError):
        raise damaged(path, "zarr.json does not tell its noise level.") from None


def _whole(path: Path, study: str, trials: tuple[int, ...]) -> xr.Dataset:
    """A store, checked to hold these trials and no gaps."""
    dataset = read_whole(path, study)
    if dataset["replicate"].values.tolist() != list(trials):
        raise damaged(path, "it holds other trials than its name says.")
    return dataset


def _runs(numbers: list[int], most: int) -> list[tuple[int, ...]]:
    """Numbers in runs without gaps, of at most so many."""
    runs: list[tuple[int, ...]] = []
    for number in numbers:
        if runs and len(runs[-1]) < most and runs[-1][-1] == number - 1:
            runs[-1] = (*runs[-1], number)
        else:
            runs.append((number,))
    return runs


@contextmanager
def _steps_bar(total: int) -> Iterator[tuple[Callable[[int], None], bool]]:
    """A progress bar of steps over all trials: what advances it, and whether it is shown."""
    form = "{l_bar}{bar:24}| {elapsed}<{remaining}, {rate_fmt}"
    # None: only on a terminal.
    with tqdm(
        total=total,
        desc="training",
        unit=" trial-steps",
        unit_scale=True,
        bar_format=form,
        disable=None,
    ) as progress:
        yield lambda steps: progress.update(steps) and None, not progress.disable


def duration(seconds: float) -> str:
    """A time in the unit that fits."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
