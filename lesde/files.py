"""Files and stores that are either complete or absent.

A command checks first that it can write a file (:meth:`Target.check`), writes it in a folder beside its final place
and moves it there (:meth:`Target.put`), so that a kill at any moment leaves the old file or the new one. Datasets
become Zarr stores (:func:`write`) whose root lists the size and checksum of every file in them. Reading them
(:func:`read`, :func:`open_store`) gives the right data or one error that names the store and the file in it.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from zarr.codecs import ZstdCodec
from zarr.storage import LocalStore

REMEDY = "Restore the store from a copy, or remove it and make it again."


# --------------------------------------------------------------------------------------------------
# Files and folders put in place whole.


@dataclass(frozen=True)
class Target:
    """A file, or the folder of a Zarr store, that is to be written.

    ``name`` is its name in messages, such as ``--out``. With ``overwrite`` an existing file may be replaced, and a
    folder if it is a store that :func:`write` wrote. ``inputs`` are never replaced or written into.
    """

    path: Path
    name: str = "path"
    folder: bool = False
    overwrite: bool = False
    inputs: Sequence[Path] = ()

    def check(self) -> None:
        """Refuse, by ValueError, what cannot be written, before anything is computed."""
        try:
            obstacle = self._obstacle()
        except OSError as error:
            obstacle = f"cannot be written ({error.strerror or error})"
        if obstacle:
            raise ValueError(f"{self.name} = {self.path} {obstacle}; give another name.")

    def put(self, write: Callable[[Path], object]) -> None:
        """Let ``write`` write it under another name, and move it to its place.

        ValueError as from :meth:`check`; OSError where it cannot be written, for instance on a full disk.
        """
        self.check()
        place = self._place()
        scratch = _scratch(place)
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            _clear(place)
            scratch.mkdir()
            new = scratch / place.name  # which keeps its ending
            write(new)
            if self.folder and place.exists():
                (scratch / "old").mkdir()
                os.rename(place, scratch / "old" / place.name)
            os.replace(new, place)
        except OSError as error:
            # In place of a name that nobody gave.
            raise OSError(error.errno, error.strerror or str(error), str(self.path)) from error
        finally:
            _clear(place)

    def _place(self) -> Path:
        """Its real path, with links followed, so that a link stays one."""
        return Path(os.path.realpath(self.path))

    def _obstacle(self) -> str:
        """What prevents it from being written, in words that follow its name; empty if nothing does."""
        place = self._place()
        if place in [Path(os.path.realpath(given)) for given in self.inputs]:
            return "is the input"
        for part in place.parents:
            if (part / "zarr.json").is_file():
                return f"is inside the Zarr store {part}"
        parent = next(part for part in place.parents if os.path.lexists(part))
        if not parent.is_dir():
            return f"cannot be: {parent} is no folder"
        # Asking for permission knows neither all file systems nor the administrator.
        os.rmdir(tempfile.mkdtemp(prefix=".lesde-", dir=parent))
        try:
            os.lstat(place)
        except FileNotFoundError:
            return ""
        if not (place.is_dir() if self.folder else place.is_file()):
            return f"is no {'folder' if self.folder else 'ordinary file'}"
        if not self.overwrite:
            return "exists, and is replaced only with --overwrite"
        if self.folder and not _is_ours(place):
            return "is no store that this package wrote, or was changed since; it is not replaced"
        return ""


def _scratch(place: Path) -> Path:
    """The folder beside a place in which it is written."""
    return place.with_name(f".lesde-{zlib.crc32(os.fsencode(place.name)):08x}")


def recover(folder: Path) -> None:
    """Put old stores back that were set aside, where the program ended before the new one came in their place."""
    for old in folder.glob(".lesde-*/old/*"):
        if not os.path.lexists(folder / old.name):
            os.rename(old, folder / old.name)


def _clear(place: Path) -> None:
    recover(place.parent)
    shutil.rmtree(_scratch(place), ignore_errors=True)


def target(path: Path, name: str, overwrite: bool, inputs: Sequence[Path] = ()) -> Target:
    """A Zarr store that is to be written."""
    return Target(path, name, True, overwrite, inputs)


# --------------------------------------------------------------------------------------------------
# Zarr stores with a manifest.


def write(dataset: xr.Dataset, path: str | os.PathLike[str] | Target) -> Path:
    """Write a dataset to a Zarr store, replacing an older store that was written in this way.

    ValueError where something else stands there.
    """
    place = path if isinstance(path, Target) else target(Path(path), "path", True)
    # Attributes that are no JSON become text.
    plain = json.loads(json.dumps(dataset.attrs, default=_plain))
    clean = dataset.drop_encoding().assign_attrs(plain)
    compressed = {"compressors": (ZstdCodec(level=0, checksum=True),)}

    def written(new: Path) -> None:
        with quiet_zarr():
            clean.to_zarr(new, mode="w", encoding={name: compressed for name in clean.variables})
        sizes = _sizes(new).items()
        files = {name: [size, zlib.crc32((new / name).read_bytes())] for name, size in sizes}
        root = json.loads((new / "zarr.json").read_text(encoding="utf-8"))
        # A block that other readers use if they can, and rewrite, without this entry, if they change the store.
        root["consolidated_metadata"]["lesde_files"] = files
        (new / "zarr.json").write_text(json.dumps(root), encoding="utf-8")

    place.put(written)
    return place.path


def read(path: str | os.PathLike[str]) -> xr.Dataset:
    """Read a store into memory; ValueError as from :func:`open_store`."""
    return open_store(path).load()


def open_store(path: str | os.PathLike[str]) -> xr.Dataset:
    """The dataset of a Zarr store, of this package or any that xarray can open; values are read when used.

    ValueError if there is no store, or it is damaged: then the message names the file inside it. Files that are
    missing or cut short are found at once, other damage when their values are used.
    """
    place = Path(path).expanduser()
    recover(place.parent)
    if not any((place / name).exists() for name in ("zarr.json", ".zgroup")):
        what = "is no Zarr store: zarr.json is missing" if place.exists() else "does not exist"
        raise ValueError(f"store {str(place)!r} {what}. {REMEDY}")
    store = _CheckedStore(place, read_only=True)
    with opening(place):
        dataset = xr.open_dataset(store, engine="zarr", consolidated=bool(store.files))  # type: ignore[arg-type]
    if "lesde_recording" in dataset.attrs:
        raise ValueError(
            f"store {str(place)!r} holds what a lesde.Recorder recorded of one or more layers; open a layer "
            f"with lesde.networks.open_records, or give the folder PROBE/LAYER inside the store."
        )
    return dataset


class _CheckedStore(LocalStore):
    """A Zarr store whose files are compared with its manifest, where it has one."""

    def __init__(self, root: Path | str, *, read_only: bool = False) -> None:
        super().__init__(root, read_only=read_only)
        self.files = _manifest(self.root)
        for name, (size, _) in self.files.items():
            check_size(self.root, name, size)

    async def get(self, key: str, prototype: Any = None, byte_range: Any = None) -> Any:
        """The bytes of a file, None where there is none."""
        found = await super().get(key, prototype, byte_range)
        known = self.files.get(key) if byte_range is None else None
        if known and (found is None or zlib.crc32(found.to_bytes()) != known[1]):
            raise Damaged(self.root, key, "is not what was written")
        return found


class Damaged(ValueError):
    """A file in a store is not as it was written."""

    def __init__(self, place: Path, name: str, why: str) -> None:
        super().__init__(f"store {str(place)!r} is damaged: {name} {why}. {REMEDY}")


def check_size(place: Path, name: str, size: int) -> None:
    """Refuse a store in which a file is missing or has another size than was written."""
    file = place / name
    if not file.is_file():
        raise Damaged(place, name, "is missing")
    if file.stat().st_size != size:
        raise Damaged(place, name, f"has {file.stat().st_size} bytes, not {size}")


@contextlib.contextmanager
def opening(place: Path) -> Iterator[None]:
    """Name the store in errors of opening it."""
    try:
        with quiet_zarr():
            yield
    except (Damaged, MemoryError):
        raise
    except Exception as error:
        why = str(error).rstrip(".")
        raise ValueError(f"store {str(place)!r} cannot be opened: {why}. {REMEDY}") from error


@contextlib.contextmanager
def quiet_zarr() -> Iterator[None]:
    """Without Zarr's warnings about its own format."""
    with warnings.catch_warnings():
        about = ".*(data type|Zarr V3|Zarr format 3|onsolidated|not recognized as).*"
        warnings.filterwarnings("ignore", message=about)
        yield


def _sizes(place: Path) -> dict[str, int]:
    """The size of every file in a store but its root's metadata, by its name there."""
    files = [file for file in place.rglob("*") if file.is_file() and file != place / "zarr.json"]
    return {file.relative_to(place).as_posix(): file.stat().st_size for file in files}


def _manifest(place: Path) -> dict[str, list[int]]:
    """Size and checksum of every file that :func:`write` wrote into a store; empty for stores of others."""
    try:
        root = json.loads((place / "zarr.json").read_text(encoding="utf-8"))
        return dict((root.get("consolidated_metadata") or {}).get("lesde_files", {}))
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError, AttributeError):
        raise Damaged(place, "zarr.json", "is not what was written") from None


def _is_ours(place: Path) -> bool:
    """True for a store of :func:`write` that holds the files that were written, by name and size, and no others."""
    files = _manifest(place)
    return bool(files) and _sizes(place) == {name: size for name, (size, _) in files.items()}


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else str(value)
