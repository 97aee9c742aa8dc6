"""CIFAR-10, read from a local copy."""

from __future__ import annotations

import io
import pickle
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lesde.checks import check_path
from lesde.networks.data import ImageData, chosen_classes, take_images

CIFAR10_CLASSES = tuple(
    ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
)
PIXELS = 3 * 32 * 32
_BATCHES = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")
_WHERE = (
    "Download cifar-10-python.tar.gz or cifar-10-binary.tar.gz from www.cs.toronto.edu/~kriz/cifar.html "
    "(Krizhevsky, 2009), and give the path of the archive or of the folder it unpacks to."
)

Labelled = tuple[np.ndarray, np.ndarray]


def cifar10(
    path: str | Path,
    classes: int | Sequence[int] = 3,
    n_train_per_class: int = 2000,
    n_probe_per_class: int = 500,
    *,
    probe: str = "held_out",
    seed: int = 0,
) -> ImageData:
    """Colour photographs of some classes of CIFAR-10, 32 by 32 pixels, from a local copy.

    Parameters
    ----------
    path : str or path
        The archive ``cifar-10-python.tar.gz`` or ``cifar-10-binary.tar.gz``, or the folder that
        either unpacks to. Nothing is downloaded.
    classes : int or sequence of int
        A number K for the classes 0..K-1, or the classes themselves: 0 airplane, 1 automobile, 2
        bird, 3 cat, 4 deer, 5 dog, 6 frog, 7 horse, 8 ship, 9 truck.
    n_train_per_class, n_probe_per_class, probe, seed
        As for :func:`digits`, of 5,000 training images and 1,000 test images per class; held-out probe images
        are test images.

    Returns
    -------
    ImageData
        Images (3, 32, 32), in [0, 1].

    Examples
    --------
    >>> data = cifar10("cifar-10-python.tar.gz", classes=3)            # doctest: +SKIP
    """
    chosen = chosen_classes(classes, range(10))
    train, test = read_cifar10(path)
    return take_images(
        train,
        test,
        chosen,
        n_train_per_class,
        n_probe_per_class,
        probe=probe,
        seed=seed,
        name="CIFAR-10",
        class_names=CIFAR10_CLASSES,
    )


def read_cifar10(path: str | Path) -> tuple[Labelled, Labelled]:
    """Training and test images of a local copy: float32 (image, 3, 32, 32) in [0, 1], and int64 labels."""
    place = check_path("path", path).expanduser()
    if not place.exists():
        raise FileNotFoundError(f"path {str(place)!r} does not exist. {_WHERE}")
    try:
        if place.is_dir():
            files = {f.name: f.read_bytes() for f in place.rglob("*") if f.stem in _BATCHES}
        else:
            with tarfile.open(place) as archive:
                members = {Path(m.name).name: m for m in archive.getmembers() if m.isfile()}
                files = {
                    name: archive.extractfile(member).read()  # type: ignore[union-attr]
                    for name, member in members.items()
                    if Path(name).stem in _BATCHES
                }
        binary = "test_batch.bin" in files
        names = [name + ".bin" if binary else name for name in _BATCHES]
        batches = [(_binary if binary else _pickled)(files[name]) for name in names]
    except Exception as error:
        # What the system refuses (no permission) has a number; what tar, gzip and xz cannot read has none.
        if getattr(error, "errno", None) is not None:
            raise
        raise ValueError(
            f"path {str(place)!r} must be a complete copy of CIFAR-10; reading it failed with {error!r}. {_WHERE}"
        ) from None
    images, labels = map(np.concatenate, zip(*batches[:-1], strict=True))
    return (images, labels), batches[-1]


def _images(pixels: np.ndarray, labels: Any) -> Labelled:
    """Images and labels of a batch."""
    given = np.asarray(labels)
    if given.dtype.kind not in "iu" or given.min() < 0 or given.max() > 9:
        raise ValueError("labels must be integers from 0 to 9")
    images = np.asarray(pixels).reshape(len(given), 3, 32, 32).astype(np.float32) / 255
    return images, given.astype(np.int64)


def _binary(content: bytes) -> Labelled:
    """One byte of the label and 3,072 of the image after each other, as in the binary version."""
    rows = np.frombuffer(content, dtype=np.uint8).reshape(-1, PIXELS + 1)
    return _images(rows[:, 1:], rows[:, 0])


def _pickled(content: bytes) -> Labelled:
    """A pickled dictionary with ``data`` and ``labels``, as in the Python version."""
    batch = _ArraysOnly(io.BytesIO(content), encoding="bytes").load()
    return _images(batch[b"data"], batch[b"labels"])


class _ArraysOnly(pickle.Unpickler):
    """Reads arrays of numbers and nothing that could run a program."""

    _allowed = frozenset(
        [("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")]
        + [(f"numpy.{core}.multiarray", "_reconstruct") for core in ("core", "_core")]
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._allowed:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which is not an array")
        return super().find_class(module, name)
