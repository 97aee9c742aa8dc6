"""Datasets on disk: Zarr stores that are either whole or not there."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from lesde.stores import REMEDY, open_store, write_store

__all__ = ["damaged", "read", "read_whole", "write", "write_text"]


def _plain(value: Any) -> Any:
    """An attribute that Zarr can hold: JSON as it is, anything else as text."""
    if isinstance(value, np.generic):
        value = value.item()
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return str(value)
    return value


def write(dataset: xr.Dataset, path: str | os.PathLike[str]) -> Path:
    """Write a dataset to a Zarr store, replacing what stood there.

    The store is written beside its place and moved there, so that an interrupt leaves either the
    old store or the new one. Each chunk has a checksum, and a missing one is seen when it is read.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    clean = dataset.assign_attrs({key: _plain(value) for key, value in dataset.attrs.items()})
    for name in clean.variables:
        clean[name].encoding.clear()
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        write_store(clean, scratch / "new")
        if target.exists():
            target.rename(scratch / "old")
        try:
            (scratch / "new").rename(target)
        except BaseException:
            if (scratch / "old").exists() and not target.exists():
                (scratch / "old").rename(target)
            raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return target


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file that is either the old one or the new one, never a part."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=target.parent, suffix=target.suffix)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
    os.chmod(name, 0o644)
    os.replace(name, target)


def read(path: str | os.PathLike[str]) -> xr.Dataset:
    """Read a store into memory.

    Raises
    ------
    ValueError
        If there is no store, or it is damaged; the message names the file inside it.
    """
    return open_store(path).load()


def read_whole(path: str | os.PathLike[str]) -> xr.Dataset:
    """Read a store of what was trained, none of whose numbers may be missing.

    Raises
    ------
    ValueError
        Where it cannot be read, or has gaps; the message says what to do.
    """
    try:
        dataset = read(path)
    except ValueError as error:
        raise damaged(path, str(error).removesuffix(f" {REMEDY}")) from None
    gaps = [n for n, v in dataset.items() if v.dtype.kind == "f" and bool(v.isnull().any())]
    if gaps:
        raise damaged(path)
    return dataset


def damaged(path: str | os.PathLike[str], found: str = "") -> ValueError:
    """What to say of a store that is not whole, and what was found; to be raised."""
    return ValueError(
        f"--out: {os.fspath(path)} is damaged. Remove it and run the command again: what it held is then trained anew."
        f"{' Found: ' if found else ''}{found}"
    )
