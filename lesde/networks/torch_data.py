"""Any labelled data set of torch as images to train on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from lesde.checks import check_instance, check_integer
from lesde.networks.data import ImageData, chosen_classes, take_images
from lesde.networks.probes import read_labelled


def from_dataset(
    train: Any,
    test: Any = None,
    classes: int | Sequence[int] | None = None,
    n_train_per_class: int | None = None,
    n_probe_per_class: int = 40,
    *,
    probe: str = "held_out",
    seed: int = 0,
) -> ImageData:
    """Training and probe images of any labelled data set of torch.

    The set is read into memory, once.

    Parameters
    ----------
    train : Dataset, DataLoader or (inputs, labels)
        Inputs of one shape, and integer labels.
    test : the same, optional
        Where held-out probe images are taken from. Default: from ``train``, images not trained on.
    classes : int or sequence of int, optional
        A number K for the K smallest labels, or the labels themselves; class k of the result is the
        k-th of them. Default: all.
    n_train_per_class : int, optional
        Drawn at random. Default: all there are, of every class its own number.
    n_probe_per_class, probe, seed
        As for :func:`digits`.

    Returns
    -------
    ImageData
        Named after the type of ``train``, with the class names of ``train.classes``, as torchvision has it.

    Examples
    --------
    >>> from torch.utils.data import TensorDataset
    >>> images, labels = torch.rand(60, 1, 8, 8), torch.arange(60) % 3
    >>> data = from_dataset(TensorDataset(images, labels), n_probe_per_class=5)
    >>> data.train_x.shape, data.probe_x.shape
    ((45, 1, 8, 8), (15, 1, 8, 8))
    """
    n_probe = check_integer("n_probe_per_class", n_probe_per_class)
    x, y = _images("train", train)
    values, labels = np.unique(y, return_inverse=True)
    held_out = None
    if test is not None:
        test_x, test_y = _images("test", test)
        kept = np.isin(test_y, values)
        held_out = test_x[kept], np.searchsorted(values, test_y[kept])
    every = values.tolist()
    chosen = chosen_classes(every if classes is None else classes, every, "labels")
    places = np.searchsorted(values, chosen).tolist()
    named = getattr(train, "classes", ())
    known = values.min() >= 0 and values.max() < len(named)
    class_names = [str(named[value] if known else value) for value in values]
    counts = None
    if n_train_per_class is None:
        apart = n_probe if probe == "held_out" and held_out is None else 0
        counts = (np.bincount(labels)[places] - apart).tolist()
        if min(counts) < 1:
            few = class_names[places[int(np.argmin(counts))]]
            raise ValueError(
                f"n_probe_per_class must leave images to train on; class {few} has "
                f"{min(counts) + apart}, and {n_probe} are held out."
            )
    return take_images(
        (x, labels),
        held_out,
        places,
        1 if n_train_per_class is None else n_train_per_class,
        n_probe,
        counts=counts,
        probe=probe,
        seed=seed,
        name=type(train).__name__,
        class_names=class_names,
    )


def _images(name: str, source: Any) -> tuple[np.ndarray, np.ndarray]:
    inputs, labels = read_labelled(name, source)
    check_instance(f"inputs of {name}", inputs, torch.Tensor, "one tensor for each input")
    return inputs.float().numpy(), labels
