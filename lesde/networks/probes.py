"""Labelled inputs from anything that holds them, and probe sets: such inputs sorted by class."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lesde.checks import shown
from lesde.networks.data import ImageData
from lesde.networks.mixing import tensors_in
from lesde.networks.quiet import kept_randomness

__all__ = ["ProbeSet", "each", "read_labelled", "read_probes"]

_KINDS = (
    "a DataLoader or Dataset of (input, label), a pair (inputs, labels) of arrays or tensors, a "
    "lesde.networks.ImageData, or a dict that names several of them"
)
_READ = 256  # items of a Dataset put together at once
_HASHED = 2**24  # numbers hashed at once


@dataclass(frozen=True, eq=False)
class ProbeSet:
    """Labelled inputs sorted by class, labels 0..K-1; ``classes`` are the labels as they were given.

    Inputs are a tensor, first axis the sample, a tuple of them, passed to the model as arguments, or a dict, passed as
    keywords.
    """

    inputs: Any
    labels: np.ndarray
    classes: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def digest(self) -> str:
        """A fingerprint of inputs and labels, the same for equal probe sets."""
        found = hashlib.sha256(self.classes[self.labels].tobytes())
        for tensor in tensors_in(self.inputs):
            found.update(repr((tensor.dtype, tuple(tensor.shape))).encode())
            for part in tensor.cpu().contiguous().reshape(-1).split(_HASHED):
                found.update(part.view(torch.uint8).numpy().tobytes())
        return found.hexdigest()

    def to(self, device: torch.device, dtype: torch.dtype) -> ProbeSet:
        """The same on a device, floating inputs in the given dtype."""

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device, dtype if tensor.is_floating_point() else None)

        return replace(self, inputs=each(self.inputs, move))

    def take(self, rows: Any) -> Any:
        """The inputs of some samples."""
        return each(self.inputs, lambda tensor: tensor[torch.as_tensor(rows)])

    def batches(self, size: int) -> Iterator[tuple[Tensor, Any]]:
        """Rows and their inputs, batch by batch: batches are about equally long, with the same share of each class."""
        counts = np.bincount(self.labels)
        place = np.arange(len(self)) - (np.cumsum(counts) - counts)[self.labels]
        order = np.lexsort((self.labels, (place + 0.5) / counts[self.labels]))
        for rows in np.array_split(order, -(-len(self) // size)):
            yield torch.from_numpy(rows), self.take(rows)


def each(inputs: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Apply a function to every tensor of the inputs of a model."""
    if isinstance(inputs, Mapping):
        return {name: each(value, change) for name, value in inputs.items()}
    if isinstance(inputs, tuple | list):
        return tuple(each(value, change) for value in inputs)
    return change(inputs)


def read_probes(probe: Any) -> dict[str, ProbeSet]:
    """One probe set, by the name "probe", or several by their own names; all of the same classes."""
    if not isinstance(probe, Mapping):
        return {"probe": _sorted("probe", probe)}
    if not probe:
        raise ValueError("probe must hold at least one probe set; got an empty dict.")
    found: dict[str, ProbeSet] = {}
    for name, source in probe.items():
        if not isinstance(name, str) or not name or "/" in name or name.startswith((".", "__")):
            raise ValueError(
                f"probe must name its sets by words such as 'train' and 'held_out'; got {shown(name)}."
            )
        found[name] = _sorted(f"probe[{name!r}]", source)
    first = next(iter(found))
    for name, one in found.items():
        if not np.array_equal(one.classes, found[first].classes):
            raise ValueError(
                f"probe sets must hold the same classes; {first!r} has "
                f"{found[first].classes.tolist()} and {name!r} has {one.classes.tolist()}."
            )
    return found


def _sorted(name: str, source: Any) -> ProbeSet:
    inputs, given = read_labelled(name, source)
    if given.min() < 0:
        raise ValueError(f"{name} must have labels of at least 0; got {given.min()}.")
    classes, labels = np.unique(given, return_inverse=True)
    order = np.argsort(labels, kind="stable")
    unsorted = ProbeSet(inputs, labels[order], classes)
    return replace(unsorted, inputs=unsorted.take(order))


def read_labelled(name: str, source: Any) -> tuple[Any, np.ndarray]:
    """Inputs and labels of anything that holds them, in the order they come in.

    A loader that shuffles, or a data set that draws at random, gives the same samples at every call,
    and the global random numbers are left as they were.
    """
    if isinstance(source, ImageData):
        source = (source.probe_x, source.probe_y)
    if isinstance(source, Dataset):
        source = DataLoader(source, batch_size=_READ)
    if isinstance(source, DataLoader):
        inputs, given = _collect(name, source)
    elif isinstance(source, tuple | list) and len(source) == 2:
        inputs, given = source
    else:
        raise TypeError(f"{name} must be {_KINDS}; got {shown(source)}.")

    def convert(value: Any) -> Tensor:
        try:
            return torch.as_tensor(value).detach().cpu()
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(f"{name} must have inputs that are numbers: {error}") from None

    # A list that torch or numpy can read is an array, not the arguments of a model.
    inputs = convert(inputs) if isinstance(inputs, list) else each(inputs, convert)
    labels = _labels(name, given)
    tensors = tensors_in(inputs)
    lengths = {len(tensor) if tensor.ndim else 0 for tensor in tensors}
    if lengths != {len(labels)}:
        raise ValueError(
            f"{name} must hold one label for each input; got {len(labels)} labels for "
            f"{' and '.join(map(str, sorted(lengths)))} inputs."
        )
    for tensor in tensors:
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ValueError(f"{name} must have finite inputs; remove or replace its NaN and inf.")
    return inputs, labels.astype(np.int64)


def _labels(name: str, given: Any) -> np.ndarray:
    """Labels as an array of integers."""
    try:
        labels = np.asarray(given.detach().cpu() if isinstance(given, Tensor) else given)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(
            f"{name} must have integer labels, one for each input; got {shown(given)}."
        ) from None
    if labels.size == 0:
        raise ValueError(f"{name} must hold at least one labelled input; it is empty.")
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        remedy = ""
        if labels.dtype.kind in "USO":
            remedy = (
                f", such as {shown(labels.flat[0])}. Number them, for example with "
                f"numpy.unique(labels, return_inverse=True)"
            )
        elif labels.ndim == 2:
            remedy = ". Of one column for each class take labels.argmax(1)"
        raise TypeError(
            f"{name} must have integer labels, one for each input; got {labels.dtype} of shape "
            f"{labels.shape}{remedy}."
        )
    return labels


def _collect(name: str, loader: DataLoader) -> tuple[Any, np.ndarray]:
    """All batches of a loader, one after another."""
    own = loader.generator
    before = None if own is None else own.get_state()
    inputs: list[Any] = []
    labels: list[np.ndarray] = []
    try:
        with kept_randomness(seed=0):
            if own is not None:
                own.manual_seed(0)
            for batch in loader:
                if not isinstance(batch, tuple | list) or len(batch) < 2:
                    raise TypeError(f"{name} must give (input, label); got {_contents(batch)}.")
                *parts, label = batch
                inputs.append(parts[0] if len(parts) == 1 else tuple(parts))
                labels.append(_labels(name, label))
    except TypeError as error:
        if "collate" not in str(error):
            raise
        raise TypeError(
            f"{name} must give (input, label) made of tensors, arrays or numbers, but an item holds "
            f"something else: {str(error).rsplit('; ', 1)[-1]}. Leave out what has no label, and turn images "
            f"into tensors."
        ) from None
    finally:
        if own is not None and before is not None:
            own.set_state(before)
    if not labels:
        raise ValueError(f"{name} must hold at least one batch; got none.")
    joined, found = _joined(name, inputs), np.concatenate(labels)
    _check_no_index(name, joined, found)
    return joined, found


def _check_no_index(name: str, inputs: Any, labels: np.ndarray) -> None:
    """Raise where the last of several entries numbers the samples, and another one may be the label."""
    distinct = len(np.unique(labels))
    if not isinstance(inputs, tuple) or distinct <= max(1, len(labels) / 2):
        return
    for n, entry in enumerate(inputs):
        if isinstance(entry, Tensor) and entry.ndim == 1 and not entry.is_floating_point():
            values = len(torch.unique(entry))
            if values <= distinct:
                raise ValueError(
                    f"{name} must give (input, label), or several inputs and then the label; its last entry "
                    f"has {distinct} values for {len(labels)} samples, as a number of the sample has, and "
                    f"entry {n} has {values}, as a label has. Give pairs, for example "
                    f"(inputs, labels)."
                )


def _contents(batch: Any) -> str:
    """The contents of a batch, for an error."""

    def kind(value: Any) -> str:
        shape = f" of shape {tuple(value.shape)}" if hasattr(value, "shape") else ""
        return f"{type(value).__name__}{shape}"

    if isinstance(batch, tuple | list):
        count = f"{len(batch)} element{'s' if len(batch) != 1 else ''}"
        return f"{count}, {', '.join(map(kind, batch))}" if batch else count
    if isinstance(batch, Mapping):
        return f"a {type(batch).__name__} of {shown(list(batch))}"
    return f"one {kind(batch)} without a label"


def _joined(name: str, parts: list[Any]) -> Any:
    first = parts[0]
    if isinstance(first, Mapping):
        return {key: _joined(name, [one[key] for one in parts]) for key in first}
    if isinstance(first, tuple | list):
        return tuple(_joined(name, list(column)) for column in zip(*parts, strict=True))
    try:
        return torch.cat([torch.as_tensor(one) for one in parts])
    except (TypeError, RuntimeError) as error:
        raise ValueError(f"{name} must hold inputs of one shape: {error}") from None
