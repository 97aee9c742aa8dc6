"""Any labelled data set of torch as images to train on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from lesde.checks import bare_array, check_choice, check_integer, check_sequence, shown
from lesde.networks.data import ImageData, take_images
from lesde.networks.probes import read_labelled

__all__ = ["from_dataset"]


def from_dataset(
    train: Any,
    test: Any = None,
    classes: int | Sequence[int] | None = None,
    n_train_per_class: int | None = None,
    n_probe_per_class: int = 40,
    *,
    probe: str = "held_out",
    seed: int = 0,
    name: str | None = None,
    class_names: Sequence[str] | None = None,
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
    n_probe_per_class : int, default 40
    probe : {"held_out", "train"}
        Probe images that are not trained on, or the first of the training images.
    seed : int, default 0
        Which images are taken. Those of a class depend on the seed and on the place of its label among
        all labels only, and a smaller training set is the beginning of a larger one.
    name : str, optional
        What the data are. Default: the name of the data set's type.
    class_names : sequence of str, optional
        Of all labels of ``train``, smallest first. Default: ``train.classes`` where there is one, as in
        torchvision, else the labels.

    Returns
    -------
    ImageData
        :func:`with_label_noise` and :func:`with_class_counts` give it wrong labels and uneven classes.

    Raises
    ------
    TypeError, ValueError
        If an argument is out of range, there are too few images, or something is no set of labelled
        inputs.

    Examples
    --------
    >>> from torch.utils.data import TensorDataset
    >>> images, labels = torch.rand(60, 1, 8, 8), torch.arange(60) % 3
    >>> data = from_dataset(TensorDataset(images, labels), n_probe_per_class=5)
    >>> data.train_x.shape, data.probe_x.shape
    ((45, 1, 8, 8), (15, 1, 8, 8))
    """
    check_choice("probe", probe, ("train", "held_out"))
    n_probe = check_integer("n_probe_per_class", n_probe_per_class)
    x, y = _images("train", train)
    values = np.unique(y)
    held_out = None if test is None else _images("test", test)
    if held_out is not None:
        kept = np.isin(held_out[1], values)
        held_out = (held_out[0][kept], np.searchsorted(values, held_out[1][kept]))
    places = _places(classes, values)
    if name is not None and not isinstance(name, str):
        raise TypeError(f"name must be a text; got {shown(name)}.")
    names = _names(train, values, class_names)
    labels = np.searchsorted(values, y)
    counts = None
    if n_train_per_class is None:
        apart = n_probe if probe == "held_out" and held_out is None else 0
        counts = [int((labels == place).sum()) - apart for place in places]
        for place, count in zip(places, counts, strict=True):
            if count < 1:
                raise ValueError(
                    f"n_probe_per_class must leave images to train on; class {names[place]} has "
                    f"{count + apart}, and {n_probe} are held out."
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
        name=type(train).__name__ if name is None else name,
        class_names=names,
    )


def _images(name: str, source: Any) -> tuple[np.ndarray, np.ndarray]:
    inputs, labels = read_labelled(name, source)
    if not isinstance(inputs, torch.Tensor):
        raise TypeError(f"{name} must give one tensor for each input; got several.")
    return inputs.float().numpy(), labels


def _places(classes: int | Sequence[int] | None, values: np.ndarray) -> list[int]:
    """Positions among all labels of the classes that are asked for."""
    if classes is None:
        chosen = values.tolist()
    elif np.ndim(bare_array("classes", classes)) == 0:
        chosen = values[: check_integer("classes", classes, 2)].tolist()
        if len(chosen) < int(classes):  # type: ignore[arg-type]
            raise ValueError(f"classes must be at most the {len(values)} there are; got {classes}.")
    else:
        chosen = [check_integer("classes", one, -(2**62)) for one in classes]  # type: ignore[union-attr]
    if len(chosen) < 2 or len(set(chosen)) < len(chosen) or not np.isin(chosen, values).all():
        raise ValueError(
            f"classes must be at least two different labels of {shown(values.tolist())}; got "
            f"{shown(chosen)}."
        )
    return np.searchsorted(values, chosen).tolist()


def _names(train: Any, values: np.ndarray, given: Sequence[str] | None) -> list[str]:
    own = getattr(train, "classes", None)
    names = [str(value) for value in values]
    if given is not None:
        if not isinstance(given, str):
            given = check_sequence("class_names", given, "a sequence of names")
        if len(given) != len(values):
            raise ValueError(
                f"class_names must name all {len(values)} labels of train; got {len(given)} names."
            )
        names = list(map(str, given))
    elif isinstance(own, list | tuple) and values.min() >= 0 and values.max() < len(own):
        names = [str(own[value]) for value in values]
    return names
