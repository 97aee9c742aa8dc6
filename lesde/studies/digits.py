"""Networks on digits at several learning rates: training that a second run continues."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import xarray as xr
from tqdm import tqdm

from lesde.files import damaged_of_store as damaged
from lesde.files import read_whole, write
from lesde.studies.runner import DigitNetworks, StudyFolder, settings_of

__all__ = ["LAYERS", "bar", "digit_records", "digits_folder", "train", "trained"]


LAYERS = ("logits", "penultimate")
Progress = Callable[[int, int], None]


@contextmanager
def bar(title: str) -> Iterator[Progress]:
    """A progress bar driven by (done, total)."""
    form = "{l_bar}{bar:24}| {elapsed}<{remaining}"
    # None: only on a terminal.
    with tqdm(desc=f"{title:<28}", bar_format=form, disable=None) as progress:

        def update(done: int, total: int) -> None:
            progress.total = total
            progress.n = done
            progress.refresh()

        yield update


def digit_records(
    learning_rates: Sequence[float],
    replicates: int,
    total_time: float,
    saved_times: int,
    *,
    classes: int | Sequence[int],
    train_per_class: int,
    probe_per_class: int,
    widths: Sequence[int],
    seed: int,
    progress: bool | Progress = False,
    skip: int = 0,
) -> Iterator[dict[str, xr.Dataset]]:
    """Train networks on digits, a learning rate at a time, and record their features.

    ``skip`` leaves out the first learning rates, which an earlier run has done.
    """
    from lesde.networks import digits, mlp, record_ensemble, saving_times

    data = digits(classes, train_per_class, probe_per_class, scaling="standard", seed=seed)
    K = len(np.unique(data.probe_y))
    return record_ensemble(
        data,
        lambda: mlp(data.train_x.shape[1], tuple(widths), K),
        learning_rates[skip:],
        replicates,
        saving_times(total_time, learning_rates, saved_times),
        seed=seed,
        progress=progress,
    )


def train(
    config: DigitNetworks, progress: bool | Progress = False, skip: int = 0
) -> Iterator[dict[str, xr.Dataset]]:
    """The networks of a study, as :func:`digit_records`."""
    return digit_records(
        config.learning_rates,
        config.replicates,
        config.total_time,
        config.saved_times,
        classes=config.classes,
        train_per_class=config.train_per_class,
        probe_per_class=config.probe_per_class,
        widths=config.widths,
        seed=config.seed,
        progress=progress,
        skip=skip,
    )


@contextmanager
def digits_folder(out: str | Path, kind: str, config: DigitNetworks) -> Iterator[StudyFolder]:
    """Have a folder for a study with these settings; see `StudyFolder`."""
    figures = (f"figures/*.{ending}" for ending in ("png", "pdf", "gif"))
    writes = ("report.md", "data/*.zarr", "data/*.csv", *figures)
    folder = StudyFolder(Path(out), kind, "config.json", settings_of(config), writes)
    with folder.taken():
        yield folder


def trained(config: DigitNetworks, folder: Path) -> tuple[xr.Dataset, xr.Dataset]:
    """The recorded features of both layers; training resumes after the learning rates already on disk."""
    study = settings_of(config)

    def stores(index: int) -> dict[str, Path]:
        # All digits of the learning rate: rates that differ in the seventh have stores of their own.
        rate = float(config.learning_rates[index])
        return {layer: folder / f"network_{layer}_h{rate!r}.zarr" for layer in LAYERS}

    done = 0
    while done < len(config.learning_rates) and all(
        (p / "zarr.json").exists() for p in stores(done).values()
    ):
        done += 1
    if done < len(config.learning_rates):
        with bar("training the networks") as progress:
            for index, record in enumerate(train(config, progress, done), start=done):
                for layer, path in stores(index).items():
                    write(record[layer], path, study)
    joined = [
        xr.concat(
            [_whole(stores(i)[layer], study, rate) for i, rate in enumerate(config.learning_rates)],
            "learning_rate",
            combine_attrs="drop_conflicts",
        )
        for layer in LAYERS
    ]
    return joined[0], joined[1]


def _whole(path: Path, study: str, rate: float) -> xr.Dataset:
    """A store, checked to be of this learning rate."""
    dataset = read_whole(path, study)
    if dataset["learning_rate"].values.tolist() != [rate]:
        raise damaged(path)
    return dataset
