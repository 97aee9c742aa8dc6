"""Stores of recorders, read back and joined over replicates."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import xarray as xr

from ..checks import check_choice, shown
from .callback_opening import tracks_of
from .callback_store import open_track

__all__ = ["open_records"]


def open_records(
    stores: str | Path | Sequence[str | Path],
    layer: str,
    probe: str | None = None,
    *,
    join: str = "exact",
) -> xr.Dataset:
    """One layer of the stores that :class:`lesde.Recorder` wrote, joined along ``replicate``.

    Parameters
    ----------
    stores : str or path, or sequence of them
        One store for each replicate; their numbers must differ (``replicate=`` of the recorder).
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
    FileNotFoundError, ValueError
        If a store is not there, was not written by a recorder, holds no such layer or probe set, or the
        stores do not fit together.

    Examples
    --------
    >>> paths = open_records(["run0.zarr", "run1.zarr"], "penultimate", "train")  # doctest: +SKIP
    """
    check_choice("join", join, ("exact", "inner"))
    given = [stores] if isinstance(stores, str | Path) else list(stores)
    if not given:
        raise ValueError("stores must name at least one store; got none.")
    found = [_one(path, layer, probe) for path in given]
    if len(found) == 1:
        return found[0]
    found.sort(key=lambda one: int(one["replicate"][0]))
    numbers = [int(one["replicate"][0]) for one in found]
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


def _one(path: str | Path, layer: str, probe: str | None) -> xr.Dataset:
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
