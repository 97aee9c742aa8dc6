"""Wrong labels and uneven classes, for any data set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ..checks import check_integer, check_real, check_seed, check_sequence
from .datasets import ImageData, class_generator

__all__ = ["with_class_counts", "with_label_noise"]


def with_label_noise(data: ImageData, share: float, *, seed: int = 0) -> ImageData:
    """The same images with a share of each class's training labels changed.

    Of the n_k training images of class k, round(share n_k) drawn at random get another label, each
    other class the same number of times (give or take one). The probe labels stay as they are. It is
    the corruption of Zhang, Wang and Su, NeurIPS 2021 (arXiv 2110.05960); :class:`lesde.LabelNoise` is
    its counterpart in the model.

    Parameters
    ----------
    data : ImageData
    share : float
        Of the training labels, from 0 to 1. At (K-1)/K labels say nothing.
    seed : int, default 0
        Which labels are changed, and to what. Those changed at a smaller share are among those
        changed at a larger one.

    Returns
    -------
    ImageData

    Raises
    ------
    TypeError, ValueError
        If an argument is out of range.

    Examples
    --------
    >>> data = digits(classes=4)
    >>> noisy = with_label_noise(data, 0.3)
    >>> float((noisy.train_y != data.train_y).mean())
    0.3
    """
    _check_data(data)
    share = check_real("share", share, 0.0)
    if share > 1.0:
        raise ValueError(f"share must be from 0 to 1; got {share:g}.")
    seed = check_seed(seed)
    labels, K = data.train_y.copy(), data.n_classes
    for k in range(K):
        own = np.flatnonzero(data.train_y == k)
        rng = class_generator(seed, k)
        changed = rng.permutation(own)[: round(share * len(own))]
        others = rng.permutation(np.delete(np.arange(K), k))
        labels[changed] = others[np.arange(len(changed)) % (K - 1)]
    if len(np.unique(labels)) < K:
        raise ValueError(
            f"share {share:g} leaves a class without any training label; lower it, or take more "
            f"training images."
        )
    return replace(data, train_y=labels, name=f"{data.name}, label noise {share:g} (seed {seed})")


def _check_data(data: ImageData) -> None:
    if not isinstance(data, ImageData):
        raise TypeError(f"data must be a lesde.networks.ImageData; got {type(data).__name__}.")


def with_class_counts(data: ImageData, counts: Sequence[int], *, seed: int = 0) -> ImageData:
    """The same data with fewer training images in some classes.

    Parameters
    ----------
    data : ImageData
    counts : sequence of int
        Training images that are left in class 0, 1, …; drawn at random. The probe set stays.
    seed : int, default 0
        Which are left; those of a smaller count are among those of a larger one.

    Returns
    -------
    ImageData

    Raises
    ------
    TypeError, ValueError
        If there is not one count for each class, or a class has fewer images.

    Examples
    --------
    >>> data = with_class_counts(digits(classes=3), (100, 20, 5))
    >>> np.bincount(data.train_y).tolist()
    [100, 20, 5]
    """
    _check_data(data)
    given = [
        check_integer(f"counts[{k}]", n)
        for k, n in enumerate(check_sequence("counts", counts, "a sequence of integers"))
    ]
    present = np.bincount(data.train_y, minlength=data.n_classes)
    seed = check_seed(seed)
    if len(given) != data.n_classes:
        raise ValueError(
            f"counts must hold one number for each of the {data.n_classes} classes; got {len(given)}."
        )
    for k, (wanted, there) in enumerate(zip(given, present, strict=True)):
        if wanted > there:
            raise ValueError(
                f"counts[{k}] must be at most the {there} training images of class {k}; got {wanted}."
            )
    kept = []
    for k, wanted in enumerate(given):
        own = np.flatnonzero(data.train_y == k)
        kept.append(class_generator(seed, k).permutation(own)[:wanted])
    rows = np.sort(np.concatenate(kept))
    return replace(
        data,
        train_x=data.train_x[rows],
        train_y=data.train_y[rows],
        name=f"{data.name}, training images per class {given}",
    )
