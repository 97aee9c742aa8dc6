"""Stores of recorders, read back and joined over replicates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import xarray as xr

from ..checks import check_choice, shown
from .callback_opening import tracks_of
from .callback_store import open_track

__all__ = ["open_records"]


def open_records(
    stores: Any,
    layer: str,
    probe: str | None = None,
    *,
    join: str = "exact",
) -> xr.Dataset:
    """One layer of what several :class:`lesde.Recorder` recorded, joined along ``replicate``.

    Parameters
    ----------
    stores : str, path, Recorder or xarray.Dataset, or sequence of these
        One for each replicate; their numbers must differ (``replicate=`` of the recorder). A path is that
        of a store. A recorder gives what it holds, in memory or in a store. A dataset is one that
        :func:`lesde.record` or :meth:`lesde.Recorder.paths` returned, of this layer and probe set.
    layer : str
        As the recorder was given it.
    probe : str, optional
        Name of the probe set; needed where there are several.
    join : {"exact", "inner"}, default "exact"
        Whether all replicates must have the same times, or those that all have are kept (where one run
        was stopped early).

    Returns
    -------
    xarray.Dataset
        As :meth:`lesde.Recorder.paths` gives, over all replicates in the order of their numbers. From one
        store values are read when they are used; several are read at once.

    Raises
    ------
    FileNotFoundError, TypeError, ValueError
        If a store is not there, was not written by a recorder, is damaged, holds no such layer or probe
        set, or the stores do not fit together. Where numbers are read when they are used, damage to them
        is told then, by a ValueError that names the store and the file in it.

    Examples
    --------
    >>> paths = open_records(["run0.zarr", "run1.zarr"], "penultimate", "train")  # doctest: +SKIP

    Recorders in memory:

    >>> import lesde
    >>> from lesde.networks import digits, mlp
    >>> data, recorders = digits(classes=3), []
    >>> for run in range(2):
    ...     recorder = lesde.Recorder(mlp(64, (8,), 3), "logits", data, every=1, replicate=run)
    ...     recorders.append(recorder)
    >>> open_records(recorders, "logits").sizes["replicate"]
    2
    """
    check_choice("join", join, ("exact", "inner"))
    given = _listed(stores)
    if not given:
        raise ValueError("stores must name at least one store; got none.")
    found = [_one(source, layer, probe) for source in given]
    if len(found) == 1:
        return found[0]
    found.sort(key=lambda one: int(one["replicate"][0]))
    numbers = [int(number) for one in found for number in one["replicate"]]
    if len(set(numbers)) < len(numbers):
        raise ValueError(
            f"stores must hold different replicates; got the numbers {numbers}. Give every recorder its "
            f"own replicate=."
        )
    for one in found[1:]:
        if not found[0]["label"].equals(one["label"]):
            raise ValueError("stores must hold the same probe set; their labels differ.")
        if not found[0]["time"].equals(one["time"]) and join == "exact":
            raise ValueError(
                f"stores must hold the same times; replicate {numbers[0]} has "
                f"{found[0].sizes['time']} up to {float(found[0].time[-1]):g}, replicate "
                f"{int(one['replicate'][0])} has {one.sizes['time']} up to {float(one.time[-1]):g}. "
                f"join='inner' keeps the times that all have."
            )
    joined = xr.concat(
        found,
        dim="replicate",
        data_vars=[v for v in found[0].data_vars if "replicate" in found[0][v].dims],
        coords="minimal",
        compat="equals",
        join="inner",
        combine_attrs="drop_conflicts",
    )
    if joined.sizes["time"] == 0:
        raise ValueError("stores have no recorded time in common.")
    return joined


def _one(source: Any, layer: str, probe: str | None) -> xr.Dataset:
    for name, value in (("layer", layer), ("probe", probe)):
        if not isinstance(value, str | None):
            raise TypeError(f"{name} must be a name; got {shown(value)}.")
    if isinstance(source, xr.Dataset):
        return _checked(source, layer, probe)
    if isinstance(source, str | Path):
        return _from_store(source, layer, probe)
    if not _records(source):
        raise _no_source(source)
    return source.paths(layer, probe)


def _listed(stores: Any) -> list[Any]:
    if isinstance(stores, str | Path | xr.Dataset) or _records(stores):
        return [stores]
    try:
        return list(stores)
    except TypeError:
        raise _no_source(stores) from None


def _records(source: Any) -> bool:
    """Whether it is a recorder, known by what it can do: LightningRecorder would import Lightning."""
    return callable(getattr(source, "paths", None))


def _no_source(source: Any) -> TypeError:
    return TypeError(
        f"stores must be paths of stores, recorders, datasets that these gave, or a sequence of them; "
        f"got {shown(source)}."
    )


def _checked(paths: xr.Dataset, layer: str, probe: str | None) -> xr.Dataset:
    for name, wanted in (("layer", layer), ("probe", probe)):
        known = paths.attrs.get(name)
        if known is None or "replicate" not in paths["features"].dims:
            raise ValueError(
                "stores must hold datasets as lesde.record and Recorder.paths return them, with the "
                "attributes layer and probe and the dimension replicate."
            )
        if wanted is not None and wanted != known:
            raise ValueError(
                f"{name} must be {known!r}, which a dataset among stores holds; got {shown(wanted)}."
            )
    return paths


def _from_store(path: str | Path, layer: str, probe: str | None) -> xr.Dataset:
    tracks = tracks_of(path)
    if probe is None and len(tracks) == 1:
        (probe,) = tracks
    if probe not in tracks:
        raise ValueError(
            f"probe must be one of {', '.join(map(repr, tracks))}, as store {str(path)!r} holds them; got "
            f"{shown(probe)}."
        )
    if layer not in tracks[probe]:
        raise ValueError(
            f"layer must be one of {', '.join(map(repr, tracks[probe]))}, as store {str(path)!r} holds "
            f"them; got {shown(layer)}."
        )
    return open_track(tracks[probe][layer])
