"""Datasets on disk: Zarr stores that are either whole or not there."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from lesde.stores import REMEDY, SEAL, open_store, write_store
from lesde.writing import Target

__all__ = ["damaged", "difference", "read", "read_whole", "target", "why_foreign", "write"]


def _plain(value: Any) -> Any:
    """An attribute that Zarr can hold: JSON as it is, anything else as text."""
    if isinstance(value, np.generic):
        value = value.item()
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return str(value)
    return value


def target(
    path: str | os.PathLike[str],
    name: str = "path",
    overwrite: bool = False,
    inputs: Sequence[Path] = (),
    study: str | None = None,
) -> Target:
    """A store to be written. Only a store that `write` wrote can be replaced, of this ``study`` where one is given."""

    def foreign(place: Path) -> str | None:
        return why_foreign(place, study)

    return Target(Path(path), name, True, overwrite, foreign, inputs)


def write(
    dataset: xr.Dataset, path: str | os.PathLike[str] | Target, study: str | None = None
) -> Path:
    """Write a dataset to a Zarr store, replacing an older store that was written in this way.

    The store is written beside its place and moved there, so that an interrupt leaves either the
    old store or the new one. Each chunk has a checksum, and a missing one is seen when it is read. The
    attribute ``lesde_seal`` tells the store from others, and from one that was changed since.

    Raises
    ------
    ValueError
        Where something else stands there.
    """
    place = path if isinstance(path, Target) else target(path, overwrite=True, study=study)
    clean = dataset.assign_attrs({key: _plain(value) for key, value in dataset.attrs.items()})
    if study is not None:
        clean.attrs[_STUDY] = study
    clean.attrs.pop(SEAL, None)
    for name in clean.variables:
        clean[name].encoding.clear()

    def written(new: Path) -> None:
        write_store(clean, new)
        root = json.loads((new / "zarr.json").read_text(encoding="utf-8"))
        root["attributes"][SEAL] = _seal(new)
        (new / "zarr.json").write_text(json.dumps(root, indent=2), encoding="utf-8")

    place.put(written)
    return place.path


_STUDY = "lesde_study"


def _seal(path: Path) -> str:
    """A digest of all names in a store, and of the sizes of its files but the root's ``zarr.json``, which holds it.

    Compressed, other numbers have other sizes, but for chance.
    """
    found = sorted(
        (one.relative_to(path).as_posix(), 0 if one.is_dir() else one.lstat().st_size)
        for one in path.rglob("*")
        if one != path / "zarr.json"
    )
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()


def _attributes(path: Path) -> dict[str, Any]:
    """The attributes of a store, empty where they cannot be read."""
    try:
        found = json.loads((path / "zarr.json").read_text(encoding="utf-8"))["attributes"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return found if isinstance(found, dict) else {}


def why_foreign(path: Path, study: str | None = None) -> str | None:
    """Why a folder may not be replaced by a store, in words that follow its name; None where it may."""
    if study is not None and not any(path.iterdir()):
        return None  # what was in it was removed, to be made anew
    held = _attributes(path)
    if held.get(SEAL) != _seal(path):
        return "is no store that this package wrote, or was changed since; it is not replaced"
    return None if study is None else _why_other(held.get(_STUDY), study)


def difference(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """In what settings of a study differ from those asked for; empty where they do not."""
    names = [*here, *(name for name in there if name not in here)]
    return ", ".join(
        f"{n} = {there.get(n)}, not {here.get(n)}" for n in names if there.get(n) != here.get(n)
    )


def _why_other(held: Any, study: str) -> str | None:
    """Why a store is not of a study with these settings; None where it is."""
    try:
        different = difference(json.loads(held), json.loads(study))
    except (TypeError, ValueError, AttributeError):
        return "does not say with which settings it was made"
    return f"was made with other settings ({different})" if different else None


def read(path: str | os.PathLike[str]) -> xr.Dataset:
    """Read a store into memory.

    Raises
    ------
    ValueError
        If there is no store, or it is damaged; the message names the file inside it.
    """
    return open_store(path).load()


def read_whole(path: str | os.PathLike[str], study: str) -> xr.Dataset:
    """Read a store of what was trained in a study, none of whose numbers may be missing.

    Raises
    ------
    ValueError
        Where it cannot be read, has gaps, or was trained with other settings; the message says what to do.
    """
    try:
        dataset = read(path)
    except ValueError as error:
        raise damaged(path, str(error).removesuffix(f" {REMEDY}")) from None
    gaps = [n for n, v in dataset.items() if v.dtype.kind == "f" and bool(v.isnull().any())]
    if gaps:
        raise damaged(path)
    why = _why_other(dataset.attrs.get(_STUDY), study)
    if why is not None:
        raise ValueError(
            f"--out: {os.fspath(path)} {why}. Give another folder, or remove it and run the command again."
        )
    return dataset


def damaged(path: str | os.PathLike[str], found: str = "") -> ValueError:
    """What to say of a store that is not whole, and what was found; to be raised."""
    return ValueError(
        f"--out: {os.fspath(path)} is damaged. Remove it and run the command again: what it held is then trained anew."
        f"{' Found: ' if found else ''}{found}"
    )
