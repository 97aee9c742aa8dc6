"""Collapse through the layers of a network, on training and held-out data: `layer_collapse`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import xarray as xr

from lesde.analysis.collapse import METRICS, neural_collapse
from lesde.checks import check_choice, check_names, shown

__all__ = ["LayerRecords", "Records", "layer_collapse", "read_records"]


# --------------------------------------------------------------------------------------------------
# Features of several layers of the same networks, on one or several sets of samples.

NOT_HIDDEN = ("logits", "drawn")
"""What a recorder gives besides hidden layers."""

Records = Mapping[str, xr.Dataset]


@dataclass(frozen=True)
class LayerRecords:
    """Records that go together.

    Attributes
    ----------
    splits : dict of str to mapping
        From the name of a split to its records by layer; the key is None where there are no splits.
    layers : list of str
        In the order of the network; each is in every split.
    reader : str or None
        The last layer that has the weights of a classifier in every split.
    centers : str or None
        The split whose class means are the centres of all; None for those of each split itself.
    """

    splits: dict[str | None, Records]
    layers: list[str]
    reader: str | None
    centers: str | None

    def reference(self, split: str | None, layer: str) -> xr.Dataset | None:
        """Paths whose class means are the centres for a split; None for its own."""
        return None if self.centers in (None, split) else self.splits[self.centers][layer]

    def width(self, layer: str) -> int:
        """Number of features of a layer."""
        first = next(iter(self.splits.values()))[layer]
        return first["features" if "features" in first else "mean"].sizes["feature"]


def read_records(records: Any, layers: Any = None, centers: Any = None) -> LayerRecords:
    """Check records, and the layers and split of centres asked for, as `lesde.layer_collapse` says."""
    splits = _splits(records)
    names = _layers(splits, layers)
    weighted = [n for n in names if all("weights" in each[n] for each in splits.values())]
    named = [split for split in splits if split is not None]
    if centers is None:
        source = "train" if "train" in named else None
    else:
        source = check_choice("centers", centers, ["own", *named])
        source = None if source == "own" else source
    return LayerRecords(splits, names, weighted[-1] if weighted else None, source)


def _splits(records: Any) -> dict[str | None, Records]:
    """Records by split; None stands for the one of records without splits."""
    if isinstance(records, xr.Dataset) or not isinstance(records, Mapping):
        hint = ' Give {"layer": dataset}.' if isinstance(records, xr.Dataset) else ""
        raise TypeError(
            f"records must map the names of layers to datasets, as lesde.networks.collect returns, or "
            f"the names of splits to such mappings; got {shown(type(records).__name__)}.{hint}"
        )
    if not records:
        raise ValueError("records must hold at least one layer; got none.")
    if all(isinstance(value, xr.Dataset) for value in records.values()):
        _refuse_one_layer(records)
        return {None: records}
    for split, each in records.items():
        if isinstance(each, xr.Dataset) or not isinstance(each, Mapping):
            raise TypeError(
                f"records must hold either datasets by layer or mappings by split; its entry {split!r} "
                f"is a {type(each).__name__}."
            )
        for layer, value in each.items():
            if not isinstance(value, xr.Dataset):
                raise TypeError(
                    f"records[{split!r}] must map the names of layers to datasets; its entry {layer!r} is "
                    f"a {type(value).__name__}."
                )
    return dict(records)


def _refuse_one_layer(records: Records) -> None:
    """Refuse one layer seen on several sets, which looks like several layers."""
    known = {paths.attrs.get("layer") for paths in records.values()}
    (layer,) = known if len(known) == 1 else (None,)
    if len(records) > 1 and layer is not None and layer not in records:
        first = next(iter(records))
        raise ValueError(
            f"records must map the names of layers to datasets; its entries "
            f"{', '.join(map(repr, records))} are all of the layer {layer!r}. For one layer on several "
            f"sets of samples give {{{first!r}: {{{layer!r}: ...}}, ...}}."
        )


def _layers(splits: Mapping[str | None, Records], layers: Any) -> list[str]:
    first = next(iter(splits.values()))
    if layers is None:
        names = [name for name in first if name not in NOT_HIDDEN]
        names.sort(key=lambda name: name == "penultimate")
        if not names:
            raise ValueError(
                f"records must hold a hidden layer; got {', '.join(map(repr, first)) or 'none'}. Record "
                f"some, record_ensemble(..., layers=[...]), or name what is to be taken with layers=."
            )
    else:
        names = check_names("layers", layers)
        if not names:
            raise ValueError("layers must name at least one layer; got none. Leave it out for all.")
    for split, each in splits.items():
        for name in names:
            where = "layers" if split is None else f"layers, of the split {split!r},"
            check_choice(where, name, each)
    return names


# --------------------------------------------------------------------------------------------------


def layer_collapse(
    records: Records | Mapping[str, Records],
    layers: Sequence[str] | None = None,
    metrics: str | Sequence[str] | None = None,
    *,
    centers: str | None = None,
) -> xr.Dataset:
    """Collapse metrics of every layer of a network, and of training and held-out data side by side.

    Parameters
    ----------
    records : mapping
        From the name of a layer to its paths, as `lesde.networks.collect` and `lesde.networks.record`
        return: variable ``features`` over ``sample``, ``feature`` and any others, the same others for
        all layers; coordinate ``label(sample)``. Layers may differ in width. Or a mapping from the name of a split to such a
        mapping, ``{"train": ..., "held_out": ...}``: the same networks seen on several sets of
        samples. Features that are read lazily from disk are read a batch at a time.
    layers : sequence of str, optional
        Which layers, in the order of the network. Default: all, in the order of the mapping, but
        ``"logits"``, the output, and ``"drawn"``; ``"penultimate"``, what the last linear layer reads,
        is put last.
    metrics : str or sequence of str, optional
        Names of registered metrics. Default: all of them.
    centers : str, optional
        The split whose class means are the centres of *every* split for ``ncc_accuracy`` and ``nc4``;
        ``"own"`` for those of each split itself. Default: ``"train"`` where there is a split of that
        name, else ``"own"``.

    Returns
    -------
    xarray.Dataset
        Metrics over ``layer``, ``split`` (where there are splits) and the other dimensions of the
        features: ``nc1`` and its variants, ``nc1_cdnv`` among them, the three of NC2, ``ncc_accuracy``.
        Those of a classifier (``nc3``, ``nc3_duality``, ``nc4``) are of the last of the layers that
        has the variable ``weights`` and lack the dimension ``layer``; there are none where no layer
        has weights. All have the attributes `lesde.neural_collapse` gives them. Coordinates:
        those of the features; ``width(layer)``, the number of features; ``count([split,] class)``,
        samples per class. Attribute ``centers`` is the split they are of, or "own"; ``classifier`` the
        layer whose weights were used.

    Raises
    ------
    TypeError, ValueError
        For records that are no mapping of datasets, layers that are not in all of them or do not go
        together, unknown metrics, or paths that `lesde.neural_collapse` refuses.

    Notes
    -----
    The nearest-class-centre rule through the layers is that of Ben-Shaul, Dekel (2022, arXiv
    2201.08924), the class-distance normalised variance (CDNV) that of Galanti, György, Hutter (2022).
    For a held-out split CDNV, NC1, NC2 and NC3 take means and variances of the held-out features; the
    nearest class centre is that of the training features, since a rule is judged on data it was not
    made from. With centres of its own the accuracy of a split is biased upward, the more so the fewer
    samples a class has and the wider the layer.

    Examples
    --------
    >>> import lesde
    >>> from lesde.networks import collect, digits, mlp, record_ensemble
    >>> data = digits(classes=4, n_train_per_class=20, n_probe_per_class=10)
    >>> layers = ("activation1", "penultimate")
    >>> records = record_ensemble(data, lambda: mlp(64, (16, 8), 4), 0.05, 2, [0, 1], layers=layers)
    >>> depth = lesde.layer_collapse(collect(records))
    >>> dict(depth.ncc_accuracy.sizes)
    {'layer': 2, 'learning_rate': 1, 'replicate': 2, 'time': 2}
    """
    given = read_records(records, layers, centers)
    plain, classified = _metrics(metrics, given)
    frames = {split: _one_split(given, split, plain, classified) for split in given.splits}
    result = frames[None] if None in frames else _join(frames, "split")
    if plain:
        widths = [given.width(layer) for layer in given.layers]
        result = result.assign_coords(
            width=("layer", widths, {"long_name": "features of the layer"})
        )
    first = [dim for dim in ("layer", "split") if dim in result.dims]
    result = result.transpose(*first, ..., "class")
    used = {"classifier": given.reader} if classified else {}
    return result.assign_attrs({"centers": given.centers or "own", **used})


def _metrics(
    metrics: str | Sequence[str] | None, given: LayerRecords
) -> tuple[list[str], list[str]]:
    """Metrics of features alone, and those of a classifier."""
    names = list(METRICS) if metrics is None else check_names("metrics", metrics)
    if not names:
        raise ValueError("metrics must name at least one metric; got none. Leave it out for all.")
    for name in names:
        check_choice("metrics", name, METRICS)
    plain = [name for name in names if not METRICS[name].classifier]
    classified = [name for name in names if METRICS[name].classifier]
    if given.reader is None:
        if metrics is not None and classified:
            raise ValueError(
                f"metrics: {classified[0]!r} needs the weights of a classifier; no layer of records has "
                f"the variable 'weights'. Record the layer 'penultimate', or leave the metric out."
            )
        classified = []
    return plain, classified


def _one_split(
    given: LayerRecords, split: str | None, plain: list[str], classified: list[str]
) -> xr.Dataset:
    """Metrics of all layers on one set of samples."""
    found: dict[str, xr.Dataset] = {}
    for layer in given.layers:
        wanted = plain + (classified if layer == given.reader else [])
        if not wanted:
            continue
        compares = any(METRICS[name].centers for name in wanted)
        reference = given.reference(split, layer) if compares else None
        try:
            found[layer] = neural_collapse(given.splits[split][layer], wanted, centers=reference)
        except (TypeError, ValueError) as error:
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(f"records, layer {layer!r}: {error}") from error
        found[layer].attrs.pop("layer", None)
    if given.reader is None or not classified:
        return _join(found, "layer")
    last = found[given.reader]
    if not plain:
        return last
    alone = {layer: each.drop_vars(classified, errors="ignore") for layer, each in found.items()}
    return _join(alone, "layer").assign(last[classified].data_vars)


def _join(parts: Mapping[Any, xr.Dataset], dim: str) -> xr.Dataset:
    """Datasets along a new dimension; samples are counted by split, and are the same in all layers."""
    names = list(parts)
    try:
        joined = xr.concat(
            [part.drop_vars("count") for part in parts.values()],
            dim=xr.IndexVariable(dim, names),
            coords="minimal",
            compat="equals",
            join="exact",
            combine_attrs="drop_conflicts",
        )
        counts = xr.concat([part["count"] for part in parts.values()], dim=dim, join="exact")
    except ValueError as error:
        raise ValueError(
            f"records must have the same learning rates, replicates, times and classes for every {dim} "
            f"({', '.join(map(repr, names))}); they differ: {error}"
        ) from error
    if dim == "split":
        return joined.assign_coords(count=counts)
    if not (counts == counts[0]).all():
        raise ValueError(
            "records must hold features of the same samples for every layer; their number in each "
            "class differs."
        )
    return joined.assign_coords(count=counts[0])
