"""CIFAR-10, read from a local copy."""

from __future__ import annotations

import io
import lzma
import pickle
import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lesde.checks import check_integer, check_path, check_seed
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
_TRAIN = tuple(f"data_batch_{i}" for i in range(1, 6))
_TEST = ("test_batch",)
_WHERE = (
    "Download cifar-10-python.tar.gz or cifar-10-binary.tar.gz from the page of CIFAR-10 "
    "(Krizhevsky, 2009; www.cs.toronto.edu/~kriz/cifar.html), and give the path of the archive or of "
    "the folder it unpacks to."
)
_NO_BATCH = (
    pickle.UnpicklingError,
    EOFError,
    LookupError,
    TypeError,
    ValueError,
    AttributeError,
    ImportError,
    OverflowError,
    MemoryError,
)
"""What reading a pickle raises where its bytes are cut or wrong."""
_BROKEN = (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError)


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
        Whether the probe images are test images, or the first of the training images.
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


Labelled = tuple[np.ndarray, np.ndarray]


def read_cifar10(path: str | Path) -> tuple[Labelled, Labelled]:
    """Training and test images of a local copy.

    Returns
    -------
    train, test : (float32 array (image, 3, 32, 32), int64 array (image,))
        In [0, 1].
    """
    place = check_path("path", path).expanduser()
    if not place.exists():
        raise FileNotFoundError(f"path {str(place)!r} does not exist. {_WHERE}")
    if place.is_dir():
        files = {file.name: file for file in sorted(place.rglob("*")) if file.is_file()}
        return _read(place, {name: file.open for name, file in files.items()})
    try:
        if not tarfile.is_tarfile(place):
            raise ValueError(
                f"path {str(place)!r} is neither a folder nor a tar archive. Is the download complete? "
                f"{_WHERE}"
            )
        with tarfile.open(place) as archive:
            members = {Path(m.name).name: m for m in archive.getmembers() if m.isfile()}
            return _read(
                place, {name: lambda _, m=m: archive.extractfile(m) for name, m in members.items()}
            )
    except (*_BROKEN, OSError) as error:
        # What the system refuses (no permission) has a number, what gzip cannot read has none.
        if isinstance(error, OSError) and (
            error.errno is not None or isinstance(error, FileNotFoundError)
        ):
            raise
        raise ValueError(
            f"path {str(place)!r} cannot be read to its end ({error}). Is the download complete? "
            f"{_WHERE}"
        ) from None


def _read(place: Path, files: dict[str, Any]) -> tuple[Labelled, Labelled]:
    for suffix, load in ((".bin", _binary), ("", _pickled)):
        names = [name + suffix for name in (*_TRAIN, *_TEST)]
        if any(name in files for name in names):
            missing = [name for name in names if name not in files]
            if missing:
                raise FileNotFoundError(
                    f"path {str(place)!r} holds no {', '.join(missing)}. {_WHERE}"
                )
            parts = []
            for name in names:
                with files[name]("rb") as file:
                    # First all bytes: an error of the archive is not one of the file's format.
                    parts.append(load(f"path {str(place)!r}: {name}", file.read()))
            return _joined(parts[: len(_TRAIN)]), _joined(parts[len(_TRAIN) :])
    raise FileNotFoundError(
        f"path {str(place)!r} holds none of data_batch_1, …, test_batch of CIFAR-10, with or without "
        f".bin. {_WHERE}"
    )


def _joined(parts: list[Labelled]) -> Labelled:
    images = np.concatenate([images for images, _ in parts]).reshape(-1, 3, 32, 32)
    return images.astype(np.float32) / 255, np.concatenate([labels for _, labels in parts])


def _binary(name: str, content: bytes) -> Labelled:
    """One byte of the label and 3,072 of the image after each other, as in the binary version."""
    values = np.frombuffer(content, dtype=np.uint8)
    if len(values) == 0 or len(values) % (PIXELS + 1):
        raise ValueError(
            f"{name} must hold records of {PIXELS + 1} bytes; it has {len(values)} bytes. Is the "
            f"download complete? {_WHERE}"
        )
    rows = values.reshape(-1, PIXELS + 1)
    return rows[:, 1:], _checked(name, rows[:, 0].astype(np.int64))


def _pickled(name: str, content: bytes) -> Labelled:
    """A pickled dictionary with ``data`` and ``labels``, as in the Python version."""
    try:
        batch = _ArraysOnly(io.BytesIO(content), encoding="bytes").load()
        images, labels = np.asarray(batch[b"data"]), np.asarray(batch[b"labels"])
    except _NO_BATCH as error:
        raise ValueError(
            f"{name} is not a batch of CIFAR-10 in the Python version ({error}). Is the download "
            f"complete? {_WHERE}"
        ) from None
    if images.dtype != np.uint8 or images.ndim != 2 or images.shape != (len(labels), PIXELS):
        raise ValueError(
            f"{name} must hold uint8 images of {PIXELS} numbers, one for each label; got "
            f"{images.dtype} {images.shape} for {len(labels)} labels."
        )
    if labels.dtype.kind not in "iu":
        raise ValueError(f"{name} must hold integer labels from 0 to 9; got {labels.dtype}.")
    return images, _checked(name, labels.astype(np.int64))


class _ArraysOnly(pickle.Unpickler):
    """Reads arrays of numbers and nothing that could run a program."""

    _allowed = frozenset(
        (f"numpy{core}", name)
        for core, name in (
            (".core.multiarray", "_reconstruct"),
            ("._core.multiarray", "_reconstruct"),
            ("", "ndarray"),
            ("", "dtype"),
        )
    ) | {("_codecs", "encode")}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._allowed:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which is not an array")
        return super().find_class(module, name)


def _checked(name: str, labels: np.ndarray) -> np.ndarray:
    if labels.min() < 0 or labels.max() >= len(CIFAR10_CLASSES):
        raise ValueError(
            f"{name} must hold labels from 0 to 9; got {labels.min()} to {labels.max()}."
        )
    return labels
