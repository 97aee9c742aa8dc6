"""Collapse through the layers of a network, on training and held-out data: `layer_collapse`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import xarray as xr

from lesde.analysis.collapse import METRICS, neural_collapse
from lesde.checks import check_choice, check_choices, check_names, shown

# What a recorder gives besides hidden layers.
NOT_HIDDEN = ("logits", "drawn")


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
        return; layers may differ in width, and in nothing else. Or a mapping from the name of a split to
        such a mapping, ``{"train": ..., "held_out": ...}``: the same networks seen on several sets of
        samples.
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
        features. Those of a classifier (``nc3``, ``nc3_duality``, ``nc4``) are of the last of the layers that
        has the variable ``weights`` and lack the dimension ``layer``; there are none where no layer
        has weights. Coordinates: those of the features; ``width(layer)``, the number of features;
        ``count([split,] class)``, samples per class. Attribute ``centers`` is the split whose centres were
        used, or "own"; ``classifier`` the layer whose weights were used.

    Notes
    -----
    The nearest-class-centre rule through the layers is that of Ben-Shaul, Dekel (2022, arXiv
    2201.08924), the class-distance normalised variance (CDNV) that of Galanti, György, Hutter (2022).
    A rule must be judged on data that it was not fitted to: with its own centres the accuracy of a split is
    biased upward, the more so the fewer samples there are per class and the wider the layer. All other
    metrics take means and variances of the split itself.

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
    if layers is None:
        first = next(iter(splits.values()))
        layers = [name for name in first if name not in (*NOT_HIDDEN, "penultimate")]
        layers += ["penultimate"] if "penultimate" in first else []
    names = check_names("layers", layers)
    if not names:
        raise ValueError("layers must name at least one hidden layer of records; got none.")
    for each in splits.values():
        for name in names:
            check_choice("layers", name, each)
    if centers is None:
        centers = "train" if "train" in splits else "own"
    check_choice("centers", centers, ["own", *(split for split in splits if split is not None)])
    wanted = list(METRICS) if metrics is None else check_choices("metrics", metrics, METRICS)
    plain = [name for name in wanted if not METRICS[name].classifier]
    weighted = [n for n in names if all("weights" in each[n] for each in splits.values())]
    reader = (weighted or names)[-1]
    classified = [n for n in wanted if METRICS[n].classifier and (weighted or metrics is not None)]

    found: dict[str | None, xr.Dataset] = {}
    for split, each in splits.items():
        by_layer = {}
        for layer in names if plain else [reader]:
            chosen = plain + (classified if layer == reader else [])
            others = centers not in ("own", split) and any(METRICS[n].centers for n in chosen)
            reference = splits[centers][layer] if others else None
            try:
                by_layer[layer] = neural_collapse(each[layer], chosen, centers=reference)
            except (TypeError, ValueError) as error:
                error.add_note(f"This was layer {layer!r} of the records.")
                raise
        result = by_layer[reader]
        if plain:
            of_classifier = {n: result[n] for n in classified}
            parts = {n: one.drop_vars(classified, errors="ignore") for n, one in by_layer.items()}
            result = _join(parts, "layer").assign(of_classifier)
            width = [each[n].sizes["feature"] for n in names]
            about = {"long_name": "features of the layer"}
            result = result.assign_coords(width=("layer", width, about))
        if split is not None:  # samples are counted by split
            result = result.assign_coords(count=result["count"].expand_dims("split"))
        result.attrs.pop("layer", None)
        found[split] = result
    result = found[None] if None in found else _join(found, "split")
    leading = [dim for dim in ("layer", "split") if dim in result.dims]
    used = {"classifier": reader} if classified else {}
    return result.transpose(*leading, ..., "class").assign_attrs(centers=centers, **used)


def _splits(records: Any) -> dict[str | None, Mapping[str, xr.Dataset]]:
    """Records by split; None stands for the one of records without splits."""
    splits = records
    if isinstance(records, Mapping) and all(isinstance(v, xr.Dataset) for v in records.values()):
        splits = {None: records}
    if not isinstance(splits, Mapping) or not all(
        isinstance(each, Mapping) and each and all(isinstance(v, xr.Dataset) for v in each.values())
        for each in splits.values()
    ):
        raise TypeError(
            f"records must map the names of layers to datasets, as lesde.networks.collect returns, or "
            f"the names of splits to such mappings; got {shown(records)}."
        )
    return dict(splits)


def _join(parts: Mapping[Any, xr.Dataset], dim: str) -> xr.Dataset:
    """Datasets along a new dimension, which must agree in all others."""
    return xr.concat(
        list(parts.values()),
        dim=xr.IndexVariable(dim, list(parts)),
        data_vars="all",
        coords="minimal",
        compat="equals",
        join="exact",
        combine_attrs="drop_conflicts",
    )
