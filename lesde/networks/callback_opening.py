"""Stores of the recorder: begun, found again, and looked into."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import zarr

from ..checks import shown
from ..stores import REMEDY, check_format, nodes_of, quiet_zarr, telling
from .callback_store import StoreTrack, write_dropped

__all__ = ["Key", "clock_of", "found_tracks", "new_tracks", "tracks_of"]

Key = tuple[str, str]
"""A probe set and a layer."""

_MARK = "lesde_recording"
_FORMAT = 1


def new_tracks(
    path: Path,
    about: Mapping[str, Any],
    contents: Mapping[Key, tuple[np.ndarray, Mapping[str, Any]]],
) -> dict[Key, StoreTrack]:
    """A new store; ``contents`` are labels and attributes of every track."""
    path.parent.mkdir(parents=True, exist_ok=True)
    root = zarr.open_group(str(path), mode="w-", attributes={**about, _MARK: _FORMAT})
    return {
        (name, layer): StoreTrack.create(
            root, _path_of(name, layer), labels, about["replicate"], attrs
        )
        for (name, layer), (labels, attrs) in contents.items()
    }


def found_tracks(
    path: Path, about: Mapping[str, Any], keys: Sequence[Key]
) -> dict[Key, StoreTrack]:
    """The tracks of an existing store, recorded as ``about`` says.

    Raises
    ------
    ValueError
        If the store was recorded in another way, or is damaged.
    """
    groups = tracks_of(path, "r+")
    known = nodes_of(path)[""]["attributes"]
    for name, value in about.items():
        if known.get(name) != value:
            told = f": {shown(known.get(name))} there, {shown(value)} here"
            raise ValueError(
                f"store {str(path)!r} was recorded with other {name}"
                f"{told if name != 'probes' else ' or their samples in another order'}. Resume with "
                f"the same arguments, or name another store."
            )
    found = {(name, layer): StoreTrack(groups[name][layer]) for name, layer in keys}
    # What Zarr writes takes its name when it is whole; a kill leaves it under another, for ever.
    for left in path.rglob("*.partial"):
        left.unlink()
    return found


def clock_of(path: str | Path) -> dict[str, np.ndarray]:
    """``time`` and ``iteration`` of the records that are whole in all tracks of a store."""
    tracks = [StoreTrack(group) for layers in tracks_of(path).values() for group in layers.values()]
    if not tracks:
        return {"time": np.empty(0), "iteration": np.empty(0, dtype=int)}
    return tracks[0].clock(min(track.written for track in tracks))


def tracks_of(path: str | Path, mode: Literal["r", "r+"] = "r") -> dict[str, dict[str, zarr.Group]]:
    """The groups of a store by probe set and layer.

    Raises
    ------
    FileNotFoundError
        If there is nothing at ``path``.
    ValueError
        If what is there was not written by a recorder, or is damaged.
    """
    write_dropped()
    place = Path(path).expanduser()
    if not place.exists():
        raise FileNotFoundError(f"store {str(place)!r} does not exist.")
    empty = place.is_dir() and not any(place.iterdir())
    about: dict[str, Any] = {} if empty else nodes_of(place)[""].get("attributes", {})
    if _MARK not in about:
        raise ValueError(
            f"store {str(place)!r} is no store of a lesde.Recorder. Open other Zarr stores with "
            f"xarray.open_zarr."
        )
    check_format(place, about[_MARK], _FORMAT)
    with telling(place, always=True), quiet_zarr():
        root = zarr.open_group(str(place), mode=mode)
        found = {
            (str(group.attrs["probe"]), str(group.attrs["layer"])): group
            for _, probe in root.groups()
            for _, group in probe.groups()
        }
    for name, layer in itertools.product(about["probes"], about["layers"]):
        if (name, layer) not in found:
            raise ValueError(
                f"store {str(place)!r} lacks {_path_of(name, layer)}, which was lost, or never made where the "
                f"program was killed as it began. {REMEDY}"
            )
    return {
        name: {layer: found[name, layer] for layer in about["layers"]} for name in about["probes"]
    }


def _path_of(probe: str, layer: str) -> str:
    """The group of a track in its store."""
    return f"{probe}/{layer.replace('/', '%2F')}"
