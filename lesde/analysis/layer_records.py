"""Features of several layers of the same networks, on one or several sets of samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import xarray as xr

from lesde.checks import check_choice, check_names, shown

__all__ = ["LayerRecords", "Records", "read_records"]

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
