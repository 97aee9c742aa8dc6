"""Collapse through the layers of a network, on training and held-out data: `layer_collapse`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import xarray as xr

from lesde.analysis.collapse import METRICS, neural_collapse
from lesde.checks import check_choice, check_choices, check_names, shown

__all__ = ["layer_collapse"]

# What a recorder gives besides hidden layers.
NOT_HIDDEN = ("logits", "drawn")

Splits = dict[str | None, Mapping[str, xr.Dataset]]


def layer_collapse(
    records: Mapping[str, xr.Dataset] | Mapping[str, Mapping[str, xr.Dataset]],
    layers: Sequence[str] | None = None,
    metrics: str | Sequence[str] | None = None,
    *,
    centers: str | None = None,
) -> xr.Dataset:
    """Collapse metrics of every layer of a network, and of training and held-out data side by side.

    Parameters
    ----------
    records : mapping
        From the name of a layer to its paths, as `lesde.networks.collect` and `lesde.record`
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
        samples per class. Attribute ``centers`` is the split whose centres were used, or "own";
        ``classifier`` the layer whose weights were used.

    Raises
    ------
    TypeError, ValueError
        For records that are not a mapping of datasets, layers that are not in all of them or do not go
        together, unknown metrics, or paths that `lesde.neural_collapse` refuses.

    Notes
    -----
    The nearest-class-centre rule through the layers is that of Ben-Shaul, Dekel (2022, arXiv
    2201.08924), the class-distance normalised variance (CDNV) that of Galanti, György, Hutter (2022).
    For a held-out split CDNV, NC1, NC2 and NC3 take means and variances of the held-out features; the
    nearest class centre is that of the training features, since a rule must be judged on data that it was not
    fitted to. With its own centres the accuracy of a split is biased upward, the more so the fewer
    samples there are per class and the wider the layer.

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
    splits = _splits(records)
    names = _layers(splits, layers)
    weighted = [n for n in names if all("weights" in each[n] for each in splits.values())]
    reader = weighted[-1] if weighted else None
    named = [str(split) for split in splits if split is not None]
    if centers is None:
        centers = "train" if "train" in named else "own"
    check_choice("centers", centers, ["own", *named])

    wanted = list(METRICS) if metrics is None else check_choices("metrics", metrics, METRICS)
    classified = [name for name in wanted if METRICS[name].classifier]
    if reader is None and classified:
        if metrics is not None:
            raise ValueError(
                f"metrics: {classified[0]!r} needs the weights of a classifier; no layer of records has "
                f"the variable 'weights'. Record the layer 'penultimate', or leave the metric out."
            )
        classified = []
    plain = [name for name in wanted if not METRICS[name].classifier]

    found: dict[str | None, xr.Dataset] = {}
    for split, each in splits.items():
        by_layer, of_classifier = {}, xr.Dataset()
        for layer in names if plain or reader is None else [reader]:
            chosen = plain + (classified if layer == reader else [])
            others = centers not in ("own", split) and any(METRICS[n].centers for n in chosen)
            reference = splits[centers][layer] if others else None
            try:
                result = neural_collapse(each[layer], chosen, centers=reference)
            except (TypeError, ValueError) as error:
                kind = TypeError if isinstance(error, TypeError) else ValueError
                raise kind(f"records, layer {layer!r}: {error}") from error
            result.attrs.pop("layer", None)
            if layer == reader:
                of_classifier = result
            by_layer[layer] = result.drop_vars(classified, errors="ignore")
        if plain:
            widths = [
                each[n]["features" if "features" in each[n] else "mean"].sizes["feature"]
                for n in names
            ]
            joined = _join(by_layer, "layer").assign(
                {name: of_classifier[name] for name in classified}
            )
            width = ("layer", widths, {"long_name": "features of the layer"})
            found[split] = joined.assign_coords(width=width)
        else:
            found[split] = of_classifier
    result = found[None] if None in found else _join(found, "split")
    first = [dim for dim in ("layer", "split") if dim in result.dims]
    used = {"classifier": reader} if classified else {}
    return result.transpose(*first, ..., "class").assign_attrs(centers=centers, **used)


def _splits(records: Any) -> Splits:
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
        # one layer seen on several sets looks like several layers
        known = {paths.attrs.get("layer") for paths in records.values()}
        (layer,) = known if len(known) == 1 else (None,)
        if len(records) > 1 and layer is not None and layer not in records:
            raise ValueError(
                f"records must map the names of layers to datasets; its entries "
                f"{', '.join(map(repr, records))} are all of the layer {layer!r}. For one layer on several "
                f"sets of samples give {{{next(iter(records))!r}: {{{layer!r}: ...}}, ...}}."
            )
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


def _layers(splits: Splits, layers: Any) -> list[str]:
    """The layers asked for, or all hidden ones, in the order of the network; each is in every split."""
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
            "records must hold features of the same samples for every layer; their number per class "
            "differs."
        )
    return joined.assign_coords(count=counts[0])
