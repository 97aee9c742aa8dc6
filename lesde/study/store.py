"""Datasets on disk: Zarr stores that are either whole or not there."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

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
    old store or the new one. Its attribute ``lesde_store`` is by what it can be told from other stores, and from one that
    was changed since.

    Raises
    ------
    ValueError
        Where something else stands there.
    """
    place = path if isinstance(path, Target) else target(path, overwrite=True, study=study)
    clean = dataset.assign_attrs({key: _plain(value) for key, value in dataset.attrs.items()})
    if study is not None:
        clean.attrs[_STUDY] = study
    clean.attrs.pop(_MARK, None)
    for name in clean.variables:
        clean[name].encoding.clear()

    def written(new: Path) -> None:
        with warnings.catch_warnings():
            # Text variables are outside version 3 of the format's core; xarray reads them back.
            warnings.filterwarnings("ignore", message=".*(data type|Zarr V3|Zarr format 3).*")
            clean.to_zarr(new, mode="w-", consolidated=False)
        root = json.loads((new / "zarr.json").read_text(encoding="utf-8"))
        root["attributes"][_MARK] = _seal(new)
        (new / "zarr.json").write_text(json.dumps(root, indent=2), encoding="utf-8")

    place.put(written)
    return place.path


_MARK, _STUDY = "lesde_store", "lesde_study"


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
    if held.get(_MARK) != _seal(path):
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
    """Read a store into memory."""
    with xr.open_zarr(path, consolidated=False) as dataset:
        held = dataset.load()
    held.attrs.pop(_MARK, None)
    return held


def read_whole(path: str | os.PathLike[str], study: str) -> xr.Dataset:
    """Read a store of what was trained in a study, none of whose numbers may be missing.

    Raises
    ------
    ValueError
        Where it cannot be read, has gaps, or was trained with other settings; the message says what to do.
    """
    try:
        dataset = read(path)
        gaps = [n for n, v in dataset.items() if v.dtype.kind == "f" and bool(v.isnull().any())]
    except (OSError, ValueError, KeyError):
        raise damaged(path) from None
    if gaps:
        raise damaged(path)
    why = _why_other(dataset.attrs.get(_STUDY), study)
    if why is not None:
        raise ValueError(
            f"--out: {os.fspath(path)} {why}. Give another folder, or remove it and run the command again."
        )
    return dataset


def damaged(path: str | os.PathLike[str]) -> ValueError:
    """What to say of a store that is not whole; to be raised."""
    return ValueError(
        f"--out: {os.fspath(path)} is damaged. Remove it and run the command again: what it held is then trained anew."
    )
