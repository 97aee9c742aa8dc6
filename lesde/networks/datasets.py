"""Images to train on, and the fixed probe set whose features are recorded."""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..checks import (
    check_choice,
    check_integer,
    check_labels,
    check_seed,
    check_sequence,
    real_array,
    shown,
)

__all__ = ["ImageData", "chosen_classes", "class_generator", "digits"]


@dataclass(frozen=True, eq=False)
class ImageData:
    """A training set and a probe set of labelled inputs.

    Any pair of labelled arrays will do; :func:`digits` makes one.

    Parameters
    ----------
    train_x : array (n_train, ...)
        Inputs, one a row, in the shape the network takes; stored as float32.
    train_y : int array (n_train,)
        Labels 0..K-1, each present.
    probe_x : array (n_probe, ...)
        The inputs whose features are recorded, in the order they are recorded in.
    probe_y : int array (n_probe,)
        Their labels 0..K-1, each present.
    name : str
        What the data are, for the attributes of what is recorded.
    class_names : tuple of str, optional
        Names of the classes 0..K-1; by default their numbers.

    Raises
    ------
    TypeError, ValueError
        If inputs and labels disagree in length or shape, are not finite, or miss a class.
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
            with np.errstate(over="ignore"):  # what float32 cannot hold is told below
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
        if self.train_x.shape[1:] != self.probe_x.shape[1:]:
            raise ValueError(
                f"train_x and probe_x must hold inputs of one shape; got {self.train_x.shape[1:]} "
                f"and {self.probe_x.shape[1:]}."
            )
        if self.train_y.max() != self.probe_y.max():
            raise ValueError(
                f"train_y and probe_y must hold the same classes; got {self.train_y.max() + 1} and "
                f"{self.probe_y.max() + 1} classes."
            )
        if not isinstance(self.name, str):
            raise TypeError(f"name must be a text; got {shown(self.name)}.")
        listed = check_sequence("class_names", self.class_names, "a sequence of names")
        if not all(isinstance(one, str) for one in listed):
            raise TypeError(f"class_names must be texts; got {shown(self.class_names)}.")
        names = tuple(listed) or tuple(map(str, range(self.n_classes)))
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
    class_counts: Sequence[int] | None = None,
    probe: str = "train",
    scaling: str = "unit",
    seed: int = 0,
) -> ImageData:
    """Real handwritten digits, 8 by 8 pixels, from those that ship with scikit-learn.

    There are 1,797 images, 174 to 183 of each digit; nothing is downloaded. They are the test part
    of the UCI set "Optical Recognition of Handwritten Digits".

    Parameters
    ----------
    classes : int or sequence of int
        The digits to tell apart: a number K for the digits 0..K-1, or the digits themselves. Class
        k is the k-th of them. Use at least 4: with 3 classes every contrast of class means in the
        logit model is an equiangular frame already, so NC2 says nothing.
    n_train_per_class : int
        Training images of each class.
    n_probe_per_class : int
        Probe images of each class, sorted by class.
    class_counts : sequence of int, optional
        Training images of each class one by one, in place of ``n_train_per_class``, for an
        imbalanced training set.
    probe : {"train", "held_out"}
        Whether the probe images are the first of the training images (what the theory speaks of)
        or images not trained on.
    scaling : {"unit", "standard"}
        ``"unit"`` puts pixels in [0, 1] (divides by 16). ``"standard"`` then subtracts the mean and
        divides by the standard deviation of all pixels of the training images, two numbers.
    seed : int
        Which images are drawn. The images of a digit depend on ``seed`` and the digit only, not on
        the other classes, and a smaller training set is the beginning of a larger one.

    Returns
    -------
    ImageData
        ``train_x`` (sum of counts, 64) and ``probe_x`` (K * n_probe_per_class, 64), float32, rows of
        pixels. A convolutional network may start with ``torch.nn.Unflatten(1, (1, 8, 8))``.

    Raises
    ------
    TypeError, ValueError
        If an argument is out of range, or more images are asked for than there are.

    Examples
    --------
    >>> data = digits(classes=(1, 3, 5, 8), n_train_per_class=100, n_probe_per_class=25)
    >>> data.train_x.shape, data.probe_x.shape
    ((400, 64), (100, 64))
    """
    chosen = chosen_classes(classes, 10, "digits")
    n_probe = check_integer("n_probe_per_class", n_probe_per_class, 2)
    check_choice("probe", probe, ("train", "held_out"))
    check_choice("scaling", scaling, ("unit", "standard"))
    seed = check_seed(seed)
    if class_counts is None:
        counts = [check_integer("n_train_per_class", n_train_per_class)] * len(chosen)
    else:
        counts = [
            check_integer(f"class_counts[{k}]", n)
            for k, n in enumerate(
                check_sequence("class_counts", class_counts, "a sequence of integers")
            )
        ]
        if len(counts) != len(chosen):
            raise ValueError(
                f"class_counts must hold one number for each of the {len(chosen)} classes; got "
                f"{len(counts)}."
            )

    from sklearn.datasets import load_digits  # slow to import, and needed here only

    images, targets = load_digits(return_X_y=True)
    train, test = [], []
    for digit, count in zip(chosen, counts, strict=True):
        found = np.flatnonzero(targets == digit)
        held_out = n_probe if probe == "held_out" else 0
        if count + held_out > len(found):
            extra = f" and {held_out} held-out probe images" if held_out else ""
            raise ValueError(
                f"{count} training images{extra} of the digit {digit} were asked for, but there are "
                f"{len(found)}; lower n_train_per_class, class_counts or n_probe_per_class."
            )
        if probe == "train" and n_probe > count:
            raise ValueError(
                f"n_probe_per_class must be at most the number of training images of each class, "
                f"since the probe images are training images; got {n_probe} for {count} images of "
                f'the digit {digit}. Lower it, or use probe="held_out".'
            )
        found = class_generator(seed, digit).permutation(found)
        train.append(found[:count])
        # Held-out images are taken from the far end, so that more training images move none of them.
        test.append(found[-n_probe:] if held_out else found[:n_probe])

    pixels = images / 16.0
    rows = np.concatenate(train)
    if scaling == "standard":
        pixels = (pixels - pixels[rows].mean()) / pixels[rows].std()
    return ImageData(
        train_x=pixels[rows],
        train_y=np.repeat(np.arange(len(chosen)), counts),
        probe_x=pixels[np.concatenate(test)],
        probe_y=np.repeat(np.arange(len(chosen)), n_probe),
        name=f"scikit-learn digits, {scaling} scaling, {probe.replace('_', '-')} probe, seed {seed}",
        class_names=tuple(map(str, chosen)),
    )


def chosen_classes(
    classes: int | Sequence[int], available: int, what: str = "classes"
) -> list[int]:
    """The classes that are asked for: the first so many, or those named; ``what`` they are called.

    Raises
    ------
    TypeError, ValueError
        Where there are fewer than two, one twice, or one that does not exist.
    """
    if isinstance(classes, numbers.Integral):
        number = check_integer("classes", classes, 2)
        chosen = list(range(number)) if number <= available else []
    else:
        listed = check_sequence("classes", classes, f"a number of classes or a sequence of {what}")
        chosen = [check_integer(f"classes[{i}]", one, 0) for i, one in enumerate(listed)]
    if len(chosen) < 2 or len(set(chosen)) < len(chosen) or max(chosen) >= available:
        raise ValueError(
            f"classes must be a number from 2 to {available} or at least two different {what} from 0 to "
            f"{available - 1}; got {shown(classes)}."
        )
    return chosen


def class_generator(seed: int, label: int) -> np.random.Generator:
    """Random numbers for one class, which do not depend on what other classes there are."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(label,)))
