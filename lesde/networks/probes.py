"""Labelled inputs from anything that holds them: probe sets, and images to train on from any data set of torch."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lesde.checks import bare_array, check_choice, check_integer, check_names, check_sequence, shown
from lesde.networks.data import ImageData, take_images
from lesde.networks.mixing import tensors_in
from lesde.networks.quiet import kept_randomness

__all__ = ["ProbeSet", "from_dataset", "probe_both", "read_probes", "split_records"]

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
        """A fingerprint of inputs and labels, by which two probe sets are known to be the same."""
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
        """Rows, and the inputs in them: about as many in every batch, and of every class its share."""
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
    inputs, given = _read_labelled(name, source)
    if given.min() < 0:
        raise ValueError(f"{name} must have labels of at least 0; got {given.min()}.")
    classes, labels = np.unique(given, return_inverse=True)
    order = np.argsort(labels, kind="stable")
    unsorted = ProbeSet(inputs, labels[order], classes)
    return replace(unsorted, inputs=unsorted.take(order))


def _read_labelled(name: str, source: Any) -> tuple[Any, np.ndarray]:
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
    """What a batch is made of, for an error."""

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


def probe_both(
    data: ImageData, n_per_class: int | None = None, names: Sequence[str] = ("train", "held_out")
) -> tuple[ImageData, np.ndarray]:
    """Data whose probe holds training images and then the held-out images of the probe there was.

    Training does not depend on the probe, so one training serves both; `split_records` takes the
    records apart.

    Parameters
    ----------
    data : ImageData
        With a probe of held-out images, as ``digits(..., probe="held_out")`` gives.
    n_per_class : int, optional
        Training images of each class in the probe, the first ones, with the labels they are trained
        with (wrong ones included). Default: as many of each class as
        the probe holds of it, or all there are.
    names : sequence of two str
        What the two parts are called.

    Returns
    -------
    data : ImageData
        The same training set; the probe has the training images first, sorted by class.
    split : ndarray of str, shape (sample,)
        The part each image of the probe belongs to.

    Raises
    ------
    TypeError, ValueError
        For a number that is not positive or more than there are of a class, a probe that holds training
        images already, or names that are not two different ones.

    Examples
    --------
    >>> from lesde.networks import digits, probe_both
    >>> data = digits(classes=4, n_train_per_class=60, n_probe_per_class=20, probe="held_out")
    >>> both, split = probe_both(data)
    >>> both.probe_x.shape, int((split == "train").sum())
    ((160, 64), 80)
    """
    if not isinstance(data, ImageData):
        raise TypeError(f"data must be an ImageData; got {shown(type(data).__name__)}.")
    if len(check_names("names", names)) != 2 or len(names) != 2:
        raise ValueError(f"names must be two different names; got {shown(names)}.")
    rows = {image.tobytes() for image in data.train_x}
    shared = sum(image.tobytes() in rows for image in data.probe_x)
    if shared == len(data.probe_x):
        raise ValueError(
            "data must have a probe of held-out images; all of its probe images are training images. "
            'Make it with probe="held_out".'
        )
    there = np.bincount(data.train_y)
    if n_per_class is None:
        wanted = np.minimum(np.bincount(data.probe_y), there)
    else:
        number = check_integer("n_per_class", n_per_class)
        if number > there.min():
            raise ValueError(
                f"n_per_class must be at most the training images of every class, {there.tolist()}; "
                f"got {number}."
            )
        wanted = np.full(len(there), number)
    chosen = np.concatenate(
        [np.flatnonzero(data.train_y == k)[:n] for k, n in enumerate(wanted.tolist())]
    )
    split = np.repeat(np.asarray(names, dtype=str), [len(chosen), len(data.probe_y)])
    both = replace(
        data,
        probe_x=np.concatenate([data.train_x[chosen], data.probe_x]),
        probe_y=np.concatenate([data.train_y[chosen], data.probe_y]),
        name=f"{data.name}, with training images in the probe",
    )
    return both, split


def split_records(
    records: Mapping[str, xr.Dataset], split: Any
) -> dict[str, dict[str, xr.Dataset]]:
    """Records of one probe taken apart into records of its parts.

    Parameters
    ----------
    records : mapping
        From layer to paths, as `collect` returns or `record_ensemble` yields.
    split : array of str, shape (sample,)
        The part each sample belongs to, as `probe_both` returns.

    Returns
    -------
    dict of str to dict of str to xarray.Dataset
        By part, in order of appearance, and layer, for `lesde.layer_collapse`. Everything without the
        dimension ``sample`` is in every part, except for ``loss`` and ``accuracy``, which are of the whole
        probe. Where the layer ``"logits"`` was recorded it gets the ``accuracy`` of the part. Datasets
        without samples, such as ``"drawn"``, are left out. What was opened lazily stays so, apart
        from the logits.

    Raises
    ------
    TypeError, ValueError
        If ``split`` does not name a part for every sample of every dataset.

    Examples
    --------
    >>> parts = split_records(collect(records), split)  # doctest: +SKIP
    >>> depth = lesde.layer_collapse(parts)  # doctest: +SKIP
    """
    names = bare_array("split", split)
    if names.ndim != 1 or names.dtype.kind not in "US":
        raise TypeError(
            f"split must be a one-dimensional array of names, one a sample; got {shown(split)}."
        )
    if not isinstance(records, Mapping) or not all(
        isinstance(paths, xr.Dataset) for paths in records.values()
    ):
        raise TypeError(
            f"records must map the names of layers to datasets; got {shown(type(records).__name__)}."
        )
    for layer, paths in records.items():
        if paths.sizes.get("sample", len(names)) != len(names):
            raise ValueError(
                f"split must have one name for each of the {paths.sizes['sample']} samples of the layer "
                f"{layer!r}; got {len(names)}."
            )
    parts: dict[str, dict[str, xr.Dataset]] = {}
    for part in dict.fromkeys(names.tolist()):
        at = np.flatnonzero(names == part)
        # A slice is read faster than a list of samples.
        run = at[-1] - at[0] + 1 == len(at)
        where: Any = slice(int(at[0]), int(at[-1]) + 1) if run else at
        parts[part] = {}
        for layer, paths in records.items():
            if "sample" not in paths.dims:
                continue
            found = paths.isel(sample=where).drop_vars(["loss", "accuracy"], errors="ignore")
            if layer == "logits":
                right = found["features"].argmax("feature") == found["label"]
                about = f"accuracy on the samples {part!r}"
                found["accuracy"] = right.mean("sample").assign_attrs(long_name=about)
            parts[part][layer] = found.assign_attrs(split=part)
    return parts


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
        :func:`with_label_noise` and :func:`with_class_counts` make wrong labels and uneven classes of it.

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
    counts = n_train_per_class
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
        counts,
        n_probe,
        probe=probe,
        seed=seed,
        name=type(train).__name__ if name is None else name,
        class_names=names,
    )


def _images(name: str, source: Any) -> tuple[np.ndarray, np.ndarray]:
    inputs, labels = _read_labelled(name, source)
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
