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
from lesde.networks.quiet import kept_randomness, tensors_in

_READ = 256  # items of a Dataset put together at once


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
            found.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
        return found.hexdigest()

    def take(self, rows: Any) -> Any:
        """The inputs of some samples."""
        return each(self.inputs, lambda tensor: tensor[torch.as_tensor(rows)])

    def batches(self, size: int) -> Iterator[tuple[Tensor, Any]]:
        """Rows and their inputs, batch by batch."""
        for rows in torch.arange(len(self)).split(size):
            yield rows, self.take(rows)


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
    """Inputs, on the CPU, and labels of anything that holds them, in the order they come in.

    What shuffles or draws at random gives the same at every call, and leaves the random numbers as they were.
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
        raise TypeError(
            f"{name} must be a DataLoader or Dataset of (input, label), a pair (inputs, labels) of arrays "
            f"or tensors, a lesde.networks.ImageData, or a dict that names several of them; got "
            f"{shown(source)}."
        )

    def convert(value: Any) -> Tensor:
        try:
            return torch.as_tensor(value).detach().cpu()
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(f"{name} must have inputs that are numbers: {error}") from None

    # A list that torch or numpy can read is an array, not the arguments of a model.
    inputs = convert(inputs) if isinstance(inputs, list) else each(inputs, convert)
    labels = np.asarray(given.detach().cpu() if isinstance(given, Tensor) else given)
    tensors = tensors_in(inputs)
    lengths = {len(tensor) if tensor.ndim else 0 for tensor in tensors}
    if labels.size == 0:
        raise ValueError(f"{name} must hold at least one labelled input; it is empty.")
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise TypeError(
            f"{name} must have integer labels, one for each input; got {labels.dtype} of shape "
            f"{labels.shape}. Number names, for example with numpy.unique(labels, return_inverse=True), "
            f"and of one column for each class take labels.argmax(1)."
        )
    if lengths != {len(labels)}:
        raise ValueError(
            f"{name} must hold one label for each input; got {len(labels)} labels for "
            f"{' and '.join(map(str, sorted(lengths)))} inputs."
        )
    for tensor in tensors:
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ValueError(f"{name} must have finite inputs; remove or replace its NaN and inf.")
    return inputs, labels.astype(np.int64)


def _collect(name: str, loader: DataLoader) -> tuple[Any, np.ndarray]:
    """All batches of a loader, one after another."""
    own = loader.generator or torch.Generator()
    before = own.get_state()
    inputs: list[Any] = []
    labels: list[np.ndarray] = []
    try:
        with kept_randomness(seed=0):
            own.manual_seed(0)
            for batch in loader:
                if not isinstance(batch, tuple | list) or len(batch) < 2:
                    raise TypeError(f"{name} must give (input, label); got {shown(batch)}.")
                *parts, label = batch
                inputs.append(parts[0] if len(parts) == 1 else tuple(parts))
                labels.append(np.asarray(label))
    finally:
        own.set_state(before)
    if not labels:
        raise ValueError(f"{name} must hold at least one labelled input; it is empty.")
    return _joined(name, inputs), np.concatenate(labels)


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
