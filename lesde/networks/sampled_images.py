"""Training and probe images taken at random from larger labelled sets."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..checks import check_choice, check_integer, check_seed
from .datasets import ImageData, class_generator

__all__ = ["check_split", "take_images"]


def check_split(n_train: int, n_probe: int, probe: str) -> None:
    """Refuse probe images that cannot be taken from the training images."""
    check_choice("probe", probe, ("train", "held_out"))
    if probe == "train" and n_probe > n_train:
        raise ValueError(
            f"n_probe_per_class must be at most n_train_per_class where the probe images are training "
            f'images; got {n_probe} for {n_train}. Lower it, or use probe="held_out".'
        )


def take_images(
    train: tuple[np.ndarray, np.ndarray],
    held_out: tuple[np.ndarray, np.ndarray] | None,
    classes: Sequence[int],
    n_train: int,
    n_probe: int,
    *,
    probe: str,
    seed: int,
    name: str,
    class_names: Sequence[str],
) -> ImageData:
    """Training and probe images of some classes, drawn at random.

    Parameters
    ----------
    train, held_out : (array (image, ...), int array (image,))
        Images and labels. Where there are none held out, the probe images are taken from ``train``.
    classes : sequence of int
        Labels to keep; class k of the result is the k-th of them.
    n_train, n_probe : int
        Images of each class.
    probe : {"train", "held_out"}
        Whether the probe images are the first of the training images, or images not trained on.
    seed : int
        The images of a class depend on the seed and the class alone, and a smaller training set is
        the beginning of a larger one.
    name : str
    class_names : sequence of str
        Of all classes.
    """
    n_train = check_integer("n_train_per_class", n_train)
    n_probe = check_integer("n_probe_per_class", n_probe)
    check_split(n_train, n_probe, probe)
    seed = check_seed(seed)
    apart = probe == "held_out" and held_out is None
    parts: dict[str, list[np.ndarray]] = {"train": [], "probe": []}
    for label in classes:
        rng = class_generator(seed, label)
        found = rng.permutation(np.flatnonzero(train[1] == label))
        needed = n_train + (n_probe if apart else 0)
        if needed > len(found):
            extra = f" and {n_probe} held-out probe images" if apart else ""
            raise ValueError(
                f"{n_train} training images{extra} of class {label} were asked for, but there are "
                f"{len(found)}; lower n_train_per_class or n_probe_per_class."
            )
        parts["train"].append(train[0][found[:n_train]])
        if probe == "train":
            parts["probe"].append(train[0][found[:n_probe]])
        elif held_out is None:
            # From the far end, so that more training images move none of them.
            parts["probe"].append(train[0][found[-n_probe:]])
        else:
            others = rng.permutation(np.flatnonzero(held_out[1] == label))
            if n_probe > len(others):
                raise ValueError(
                    f"{n_probe} held-out probe images of class {label} were asked for, but there are "
                    f"{len(others)}; lower n_probe_per_class."
                )
            parts["probe"].append(held_out[0][others[:n_probe]])
    labels = np.arange(len(classes))
    return ImageData(
        train_x=np.concatenate(parts["train"]),
        train_y=np.repeat(labels, n_train),
        probe_x=np.concatenate(parts["probe"]),
        probe_y=np.repeat(labels, n_probe),
        name=f"{name}, {probe.replace('_', '-')} probe, seed {seed}",
        class_names=tuple(class_names[label] for label in classes),
    )
