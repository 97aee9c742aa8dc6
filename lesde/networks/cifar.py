"""CIFAR-10, read from a local copy."""

from __future__ import annotations

import io
import pickle
import tarfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lesde.checks import check_integer, check_path, check_seed, shown
from lesde.networks.data import ImageData, check_split, chosen_classes, take_images

__all__ = ["CIFAR10_CLASSES", "cifar10", "read_cifar10"]


CIFAR10_CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
PIXELS = 3 * 32 * 32
_BATCHES = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")
_WHERE = (
    "Download cifar-10-python.tar.gz or cifar-10-binary.tar.gz from the page of CIFAR-10 "
    "(Krizhevsky, 2009; www.cs.toronto.edu/~kriz/cifar.html), and give the path of the archive or of "
    "the folder it unpacks to."
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
    n_train_per_class : int, default 2000
        Of 5,000.
    n_probe_per_class : int, default 500
        Of the 1,000 test images where ``probe`` is "held_out".
    probe : {"held_out", "train"}
        Probe images that are test images, or the first of the training images.
    seed : int, default 0
        Which images are taken.

    Returns
    -------
    ImageData
        Images (3, 32, 32), in [0, 1].

    Raises
    ------
    FileNotFoundError
        Where the data are not there; the message says what to download.
    TypeError, ValueError
        If a file is incomplete or not in one of the published formats, or an argument is out of range.

    Examples
    --------
    >>> data = cifar10("cifar-10-python.tar.gz", classes=3)            # doctest: +SKIP
    """
    chosen = chosen_classes(classes, len(CIFAR10_CLASSES))
    n_train = check_integer("n_train_per_class", n_train_per_class)
    n_probe = check_integer("n_probe_per_class", n_probe_per_class)
    check_split(n_train, n_probe, probe)
    seed = check_seed(seed)
    train, test = read_cifar10(path)
    return take_images(
        train,
        test,
        chosen,
        n_train,
        n_probe,
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
    if place.is_dir():
        files = {file.name: file.read_bytes for file in place.rglob("*") if file.is_file()}
        return _read(place, files)
    try:
        if not tarfile.is_tarfile(place):
            raise ValueError("it is neither a folder nor a tar archive")
        with tarfile.open(place) as archive:
            members = {Path(m.name).name: m for m in archive.getmembers() if m.isfile()}

            def unpack(name: str) -> bytes:
                file = archive.extractfile(members[name])
                assert file is not None
                return file.read()

            return _read(place, {name: partial(unpack, name) for name in members})
    except Exception as error:
        # What the system refuses (no permission) has a number; what tar, gzip and xz cannot read has none.
        if isinstance(error, FileNotFoundError) or getattr(error, "errno", None) is not None:
            raise
        raise ValueError(
            f"path {str(place)!r} cannot be read to its end ({error}). Is the download complete? {_WHERE}"
        ) from None


def _read(place: Path, files: dict[str, Callable[[], bytes]]) -> tuple[Labelled, Labelled]:
    """The batches among some files, in the one or the other format."""
    for suffix, load in ((".bin", _binary), ("", _pickled)):
        names = [name + suffix for name in _BATCHES]
        missing = [name for name in names if name not in files]
        if len(missing) == len(names):
            continue
        if missing:
            raise FileNotFoundError(
                f"path {str(place)!r} holds no {', '.join(missing)}. Is the download complete? {_WHERE}"
            )
        parts = []
        for name in names:
            images, labels = load(f"path {str(place)!r}: {name}", files[name]())
            if labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() > 9:
                raise ValueError(
                    f"path {str(place)!r}: {name} must hold integer labels from 0 to 9; got "
                    f"{shown(np.unique(labels).tolist())}."
                )
            pixels = images.reshape(-1, 3, 32, 32).astype(np.float32) / 255
            parts.append((pixels, labels.astype(np.int64)))
        images, labels = map(np.concatenate, zip(*parts[:-1], strict=True))
        return (images, labels), parts[-1]
    raise FileNotFoundError(
        f"path {str(place)!r} holds none of data_batch_1, …, test_batch of CIFAR-10, with or without "
        f".bin. {_WHERE}"
    )


def _binary(name: str, content: bytes) -> Labelled:
    """One byte of the label and 3,072 of the image after each other, as in the binary version."""
    if len(content) == 0 or len(content) % (PIXELS + 1):
        raise ValueError(
            f"{name} must hold records of {PIXELS + 1} bytes; it has {len(content)} bytes. Is the "
            f"download complete? {_WHERE}"
        )
    rows = np.frombuffer(content, dtype=np.uint8).reshape(-1, PIXELS + 1)
    return rows[:, 1:], rows[:, 0]


def _pickled(name: str, content: bytes) -> Labelled:
    """A pickled dictionary with ``data`` and ``labels``, as in the Python version."""
    try:
        batch = _ArraysOnly(io.BytesIO(content), encoding="bytes").load()
        images, labels = np.asarray(batch[b"data"]), np.asarray(batch[b"labels"])
    except Exception as error:  # whatever bytes that are cut or wrong lead to
        raise ValueError(
            f"{name} is not a batch of CIFAR-10 in the Python version ({error}). Is the download "
            f"complete? {_WHERE}"
        ) from None
    if images.dtype != np.uint8 or images.shape != (len(labels), PIXELS):
        raise ValueError(
            f"{name} must hold uint8 images of {PIXELS} numbers, one for each label; got "
            f"{images.dtype} {images.shape} for {len(labels)} labels."
        )
    return images, labels


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
