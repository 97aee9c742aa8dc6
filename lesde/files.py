"""Files and stores that are either complete or absent.

A command checks first that it can write a file (:meth:`Target.check`), writes it beside its final place and moves it
there in one step (:meth:`Target.put`), so that a kill at any moment leaves the old file or the new one. Datasets become
Zarr stores (:func:`write`) in which damage is detected: every chunk has a checksum, and missing ones are noticed.
Reading them (:func:`read`, :func:`open_store`) gives the right data or one error that names the store and the file in
it.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import hashlib
import itertools
import json
import os
import platform
import re
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import xarray as xr
import zarr
from xarray.backends import BackendArray
from xarray.core import indexing
from zarr.codecs import ZstdCodec
from zarr.core.sync import sync

__all__ = [
    "REMEDY",
    "STUDY",
    "Target",
    "about_lock",
    "arrays_of",
    "check_chunks",
    "check_format",
    "damaged",
    "difference",
    "lock",
    "make_parents",
    "never",
    "nodes_of",
    "open_store",
    "opened",
    "quiet_zarr",
    "read",
    "recover",
    "replace_file",
    "settled",
    "target",
    "telling",
    "why_foreign",
    "why_other",
    "write",
]


# --------------------------------------------------------------------------------------------------
# Files and folders put in place in one step.

_PREFIX = ".lesde-"
_LOCK = "lesde.lock"
_UNBORN = 3600.0
"""Seconds after which a folder that does not name its process counts as the leftover of a killed one."""


@dataclass(frozen=True)
class Target:
    """A file or folder that is to be written.

    ``name`` is its name in messages, such as ``--out``; ``folder`` is true for a folder, such as a Zarr store. With
    ``overwrite`` an existing file may be replaced, unless ``foreign`` returns a reason not to, in words that follow the
    path. ``inputs`` are never replaced or written into.
    """

    path: Path
    name: str = "path"
    folder: bool = False
    overwrite: bool = False
    foreign: Callable[[Path], str | None] | None = None
    inputs: Sequence[Path] = ()

    @property
    def place(self) -> Path:
        """Its real path, with links followed, so that a link stays one."""
        return Path(os.path.realpath(self.path))

    def check(self) -> None:
        """Refuse, by ValueError, what cannot be written, before anything is computed."""
        place = self.place
        try:
            self._check_inputs(place)
            parent = next(f for f in place.parents if f.exists() or f == f.parent)
            missing = place.parts[len(parent.parts) :]
            if not parent.is_dir():
                raise self._refused(f"cannot be: {parent} is no folder")
            longest = os.pathconf(parent, "PC_NAME_MAX") if hasattr(os, "pathconf") else 255
            if any(len(os.fsencode(part)) > longest for part in missing):
                raise self._refused(f"has a name of more than {longest} bytes")
            recover(parent)
            if len(missing) == 1 and os.path.lexists(place):
                self._check_old(place)
            # Asking for permission knows neither all file systems nor the administrator.
            os.rmdir(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
        except OSError as error:
            raise self._refused(f"cannot be written ({error.strerror or error})") from None

    def put(self, write: Callable[[Path], object]) -> None:
        """Let ``write`` write it under another name, and move it to its place.

        ValueError as from :meth:`check`, and where something was put there meanwhile; OSError where it cannot
        be written, for instance on a full disk. Nothing is left of it then.
        """
        self.check()
        place = self.place
        made = make_parents(place)
        try:
            with _scratch(place) as scratch:
                new = scratch / "new" / place.name  # which keeps its ending
                new.parent.mkdir()
                write(new)
                self._move(new, place, scratch / "old")
        except BaseException as error:
            for folder in made:
                with contextlib.suppress(OSError):
                    folder.rmdir()
            if isinstance(error, OSError):
                # In place of a name that nobody gave.
                why = error.strerror or str(error)
                raise OSError(error.errno, why, str(self.path)) from error
            raise

    def _check_inputs(self, place: Path) -> None:
        for given, part in itertools.product(self.inputs, (place, *place.parents)):
            with contextlib.suppress(OSError):
                if os.path.samefile(part, given):
                    what = "is the input" if part == place else f"is inside the input {given}"
                    raise self._refused(what)
        for part in place.parents:
            if (part / "zarr.json").is_file():
                raise self._refused(f"is inside the Zarr store {part}")

    def _check_old(self, place: Path) -> None:
        if place.is_dir() and not self.folder:
            raise self._refused("is a folder, and a file is to be written")
        if not place.is_dir() and self.folder:
            raise self._refused("is a file, and a folder is to be written")
        if not self.overwrite:
            raise self._refused("exists", "give another name, or --overwrite")
        if not self.folder and not place.is_file():
            raise self._refused("is no ordinary file")
        if not os.access(place, os.W_OK):
            raise self._refused("is read-only")
        why = self.foreign(place) if self.foreign is not None else None
        if why:
            raise self._refused(why)

    def _move(self, new: Path, place: Path, old: Path) -> None:
        if not self.overwrite or not os.path.lexists(place):
            try:
                if new.is_dir() or os.name == "nt":
                    os.rename(new, place)  # which fails where something stands
                else:
                    os.link(new, place)
            except OSError as error:
                if os.path.lexists(place):
                    raise self._refused(
                        "was written by somebody else meanwhile", "give another name"
                    ) from None
                if new.is_dir() or isinstance(error, FileExistsError):
                    raise
                os.rename(new, place)  # a file system without links
        elif not self.folder:
            os.replace(new, place)
        elif not _exchange(new, place):
            os.rename(place, old)  # put back by whoever removes the scratch folder
            os.rename(new, place)

    def _refused(self, why: str, what_to_do: str = "give another name") -> ValueError:
        shown = str(self.path)
        if len(shown) > 300:
            shown = f"{shown[:140]}…{shown[-140:]}"
        return ValueError(f"{self.name} = {shown} {why}; {what_to_do}.")


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Replace a file by the one that ``write`` writes under the name it is given."""
    Target(path, overwrite=True).put(write)


def make_parents(place: Path) -> list[Path]:
    """Make the folders that a path needs; those that were missing, the innermost first."""
    missing = [folder for folder in place.parents if not folder.exists()]
    place.parent.mkdir(parents=True, exist_ok=True)
    return missing


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two names in one step, if the system and file system can; return True if it was done."""
    try:
        library = ctypes.CDLL(None, use_errno=True)
        names = os.fsencode(one), os.fsencode(other)
        if sys.platform == "linux":
            here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
            return bool(library.renameat2(here, names[0], here, names[1], exchange) == 0)
        if sys.platform == "darwin":
            return bool(library.renamex_np(*names, 2) == 0)  # RENAME_SWAP
    except (OSError, AttributeError, TypeError):
        pass
    return False


# --------------------------------------------------------------------------------------------------
# Locks, and what killed processes leave behind.


def lock(path: Path, about: dict[str, Any], wait: bool = False) -> IO[str] | None:
    """Lock a file until it is closed or the process ends, and write the owner into it.

    None where another process has it. On a file system without locks nobody is kept out.
    """
    file = open(path, "a+", encoding="utf-8")  # noqa: SIM115
    taken = _take(file, wait)
    if taken is False:
        file.close()
        return None
    mine = {"host": platform.node(), "process": os.getpid(), "locks": taken is True, **about}
    try:
        file.seek(0)
        file.truncate()
        file.write(json.dumps(mine))
        file.flush()
    except OSError:  # a full disk
        with contextlib.suppress(OSError):
            file.close()
        path.unlink()
        raise
    return file


def _take(file: IO[str], wait: bool = False) -> bool | None:
    """Lock an open file; False where another has it, None where the file system has no locks."""
    try:
        if sys.platform == "win32":
            import msvcrt

            file.seek(1 << 30)  # beyond what is written, as nobody could read a locked part
            msvcrt.locking(file.fileno(), msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        held = (errno.EACCES, errno.EAGAIN, errno.EDEADLK)
        return False if error.errno in held else None
    return True


def about_lock(path: Path) -> dict[str, Any]:
    """The owner of a locked file; empty where that cannot be read."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def recover(parent: Path) -> None:
    """Remove leftovers of killed processes of this package from a folder; put back a store that one had set aside."""
    try:
        names = [name for name in os.listdir(parent) if re.fullmatch(r"\.lesde-[a-z0-9_]{8}", name)]
    except OSError:
        return
    for scratch in (parent / name for name in names):
        if scratch.is_symlink() or not scratch.is_dir():
            continue
        with contextlib.suppress(OSError):
            about = about_lock(scratch / _LOCK)
            if not about:  # it is just being made, or the process was killed as it made it
                old = time.time() - scratch.stat().st_mtime > _UNBORN
                if old and set(os.listdir(scratch)) <= {_LOCK}:
                    shutil.rmtree(scratch)
            elif about.get("host") == platform.node() and about.get("locks"):
                with open(scratch / _LOCK, "a+", encoding="utf-8") as file:
                    dead = _take(file) is True
                if dead:
                    _remove(scratch, parent / Path(str(about.get("name"))).name)


@contextmanager
def _scratch(place: Path) -> Iterator[Path]:
    """A folder beside a place, on the same file system, that is removed in the end."""
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=place.parent))
    file = None
    try:
        file = lock(folder / _LOCK, {"name": place.name}, wait=True)
        yield folder
    finally:
        if file is not None:
            with contextlib.suppress(OSError):  # a full disk
                file.close()
        _remove(folder, place)


def _remove(scratch: Path, place: Path) -> None:
    """Remove a scratch folder, last the file that says whose it is: a kill leaves it recognisable.

    What was set aside is put back if nothing came in its place.
    """
    if (scratch / "old").exists() and not os.path.lexists(place):
        os.rename(scratch / "old", place)
    for part in ("new", "old"):
        shutil.rmtree(scratch / part, ignore_errors=True)
    shutil.rmtree(scratch, ignore_errors=True)


# --------------------------------------------------------------------------------------------------
# Zarr stores in which damage shows.

_MARK = "lesde_store"
_SEAL = "lesde_seal"
STUDY = "lesde_study"
_FORMAT = 1
REMEDY = "Restore the store from a copy, or remove it and make it again."


def target(
    path: str | os.PathLike[str],
    name: str = "path",
    overwrite: bool = False,
    inputs: Sequence[Path] = (),
    study: str | None = None,
) -> Target:
    """A store to be written. Only a store that :func:`write` wrote can be replaced, of this ``study`` if given."""
    return Target(
        Path(path), name, True, overwrite, lambda place: why_foreign(place, study), inputs
    )


def write(
    dataset: xr.Dataset, path: str | os.PathLike[str] | Target, study: str | None = None
) -> Path:
    """Write a dataset to a Zarr store, replacing an older store that was written in this way.

    Every chunk has a checksum. Zarr leaves out chunks that hold nothing but the fill value, and reads a missing
    one as that, so the fill value is one that no data hold. The attribute ``lesde_seal`` distinguishes the store
    from others, and from one that was changed since. ValueError where something else stands there.
    """
    place = path if isinstance(path, Target) else target(path, overwrite=True, study=study)
    attrs = {key: _plain(value) for key, value in dataset.attrs.items() if key != _SEAL}
    attrs |= {_MARK: _FORMAT} if study is None else {_MARK: _FORMAT, STUDY: study}
    clean = dataset.assign_attrs(attrs)
    clean.attrs.pop(_SEAL, None)
    encoding = {}
    for name, variable in dataset.variables.items():
        clean[name].encoding.clear()
        if variable.dtype == bool:
            # As netCDF stores them: two values leave none for the fill value.
            about = variable.attrs | {"dtype": "bool"}
            clean[name] = xr.Variable(variable.dims, variable.values.astype("i1"), about)
        fill = never(clean[name].dtype)
        compressors = (ZstdCodec(level=0, checksum=True),)
        encoding[name] = {"compressors": compressors, "fill_value": fill}

    def written(new: Path) -> None:
        with quiet_zarr(), settled():
            clean.to_zarr(new, mode="w", consolidated=False, encoding=encoding)
        root = json.loads((new / "zarr.json").read_text(encoding="utf-8"))
        root["attributes"][_SEAL] = _seal(new)
        (new / "zarr.json").write_text(json.dumps(root, indent=2), encoding="utf-8")

    place.put(written)
    return place.path


def _plain(value: Any) -> Any:
    """An attribute that Zarr can hold: JSON as it is, anything else as text."""
    if isinstance(value, np.generic):
        value = value.item()
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return str(value)
    return value


def never(dtype: np.dtype) -> Any:
    """A value that no data of this type hold, for the fill value."""
    if dtype.kind == "f":
        return np.finfo(dtype).min
    if dtype.kind == "i":
        return np.iinfo(dtype).min
    return np.iinfo(dtype).max if dtype.kind == "u" else "\uffff"


@contextmanager
def settled() -> Iterator[None]:
    """Raise an error of Zarr's only when nothing is being written any more.

    Of the chunks of an array, which Zarr writes at the same time, the first that fails is the error; the others
    would still be written behind it, into what is being removed or written again.
    """

    async def rest() -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        if others:
            await asyncio.wait(others)

    try:
        yield
    except BaseException:
        sync(rest())
        raise


@contextmanager
def quiet_zarr() -> Iterator[None]:
    """Without Zarr's warnings about its own format."""
    with warnings.catch_warnings():
        about = ".*(data type|Zarr V3|Zarr format 3|onsolidated|not recognized as).*"
        warnings.filterwarnings("ignore", message=about)
        yield


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


def why_foreign(path: Path, study: str | None = None) -> str | None:
    """The reason that a folder may not be replaced by a store, in words that follow its name; None where it may."""
    if study is not None and not any(path.iterdir()):
        return None  # what was in it was removed, to be made anew
    try:
        held = json.loads((path / "zarr.json").read_text(encoding="utf-8"))["attributes"]
        sealed = held.get(_SEAL) == _seal(path)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        sealed = False
    if not sealed:
        return "is no store that this package wrote, or was changed since; it is not replaced"
    return None if study is None else why_other(held.get(STUDY), study)


# Stores of studies, which belong to one set of settings.


def difference(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """The settings of a study that differ from those asked for, as text; empty if none does."""
    names = [*here, *(name for name in there if name not in here)]
    return ", ".join(
        f"{n} = {there.get(n)}, not {here.get(n)}" for n in names if there.get(n) != here.get(n)
    )


def why_other(held: Any, study: str) -> str | None:
    """The reason that a store is not of a study with these settings; None where it is."""
    try:
        different = difference(json.loads(held), json.loads(study))
    except (TypeError, ValueError, AttributeError):
        return "does not say with which settings it was made"
    return f"was made with other settings ({different})" if different else None


# --------------------------------------------------------------------------------------------------
# Reading, with an error that names the damaged file.


def read(path: str | os.PathLike[str]) -> xr.Dataset:
    """Read a store into memory; ValueError as from :func:`open_store`."""
    return open_store(path).load()


def open_store(path: str | os.PathLike[str]) -> xr.Dataset:
    """The dataset of a Zarr store, of this package or any that xarray can open; values are read when used.

    ValueError if there is no store, a newer version of this package wrote it, or it is damaged: then the message
    names the file inside it. Damage of numbers shows when they are used.
    """
    place = Path(path).expanduser()
    about = nodes_of(place)[""].get("attributes", {})
    if "lesde_recording" in about:
        raise ValueError(
            f"store {str(place)!r} holds what a lesde.Recorder recorded of one or more layers; open a layer "
            f"with lesde.networks.open_records, or give the folder PROBE/LAYER inside the store."
        )
    check_format(place, about.get(_MARK, _FORMAT), _FORMAT)
    check_chunks(place, "", arrays_of(place))
    dataset = opened(place)
    for name in (_MARK, _SEAL):
        dataset.attrs.pop(name, None)
    return dataset


def check_format(place: Path, found: Any, newest: int) -> None:
    """Refuse a store of a newer version."""
    if not isinstance(found, int) or found > newest:
        raise ValueError(
            f"store {str(place)!r} has format {found}, which is of a newer version of lesde; this one "
            f"reads formats up to {newest}. Update lesde."
        )


def nodes_of(place: Path, inside: str = "") -> dict[str, dict[str, Any]]:
    """The ``zarr.json`` of a part of a store and of all groups and arrays in it, by their paths.

    ValueError if there is no store, or one of these files is damaged or missing.
    """
    if not place.exists():
        raise ValueError(f"store {str(place)!r} does not exist.")
    if not place.is_dir():
        raise ValueError(f"store {str(place)!r} is a file; a Zarr store is a folder.")
    if (place / ".zgroup").exists():
        # Version 2 of the format, which this package does not write.
        return {"": {"node_type": "group"}}
    if not (place / "zarr.json").exists():
        empty = not any(place.iterdir())
        raise ValueError(
            f"store {str(place)!r} is no Zarr store: {'it is empty' if empty else 'zarr.json is missing'}. "
            f"Name a store; if this was one, {REMEDY[0].lower()}{REMEDY[1:]}"
        )
    return dict(_nodes(place, place / inside))


def _nodes(place: Path, folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    file = folder / "zarr.json"
    if not file.exists():
        # Foreign folders are let be, and what a kill left before it was written holds nothing.
        if (folder / "c").exists() or next(folder.rglob("zarr.json"), None) is not None:
            raise damaged(place, file, "is missing")
        return
    try:
        node = json.loads(file.read_bytes())
        kind = node["node_type"]
        node.get("attributes", {}).get("")
    except OSError as error:
        raise damaged(place, file, error) from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise damaged(place, file, "is not what Zarr wrote") from None
    yield "" if folder == place else folder.relative_to(place).as_posix(), node
    if kind != "array":
        for inner in sorted(folder.iterdir()):
            if inner.is_dir():
                yield from _nodes(place, inner)


def arrays_of(place: Path, inside: str = "") -> dict[str, zarr.Array]:
    """The arrays in a part of a store, by their paths inside the store."""
    found = {}
    for name, node in nodes_of(place, inside).items():
        if node["node_type"] == "array":
            try:
                found[name] = zarr.open_array(str(place / name), mode="r")
            except Exception as error:
                raise damaged(place, place / name / "zarr.json", error) from error
    return found


def check_chunks(
    place: Path,
    inside: str,
    arrays: Mapping[str, zarr.Array],
    rows: Mapping[str, tuple[int, int]] | None = None,
) -> None:
    """Find a chunk that is missing where one must be: where no data equal the fill value.

    ``arrays`` are named by their paths in the part ``inside``; ``rows`` says of an array along which axis
    only so many rows count. Of a dimension's coordinates NaN is such a fill value too.
    """
    for name, array in arrays.items():
        fill = np.asarray(array.fill_value)
        own = getattr(array.metadata, "dimension_names", None) == (name,)
        if fill.dtype.kind == "f" and np.isnan(fill):
            must = own
        else:
            must = fill.dtype.kind in "fiuUT" and bool(fill == never(fill.dtype))
        if not must:
            continue
        shape = list(array.shape)
        if rows is not None and name in rows:
            axis, most = rows[name]
            shape[axis] = min(shape[axis], most)
        for index in _chunks(array, shape):
            file = place / inside / name / array.metadata.encode_chunk_key(index)
            if not os.path.exists(file):
                raise damaged(place, file, "is missing")


def _chunks(array: zarr.Array, shape: Iterable[int]) -> Iterator[tuple[int, ...]]:
    """The chunks of an array, as far as ``shape`` reaches."""
    sizes = array.shards or array.chunks
    return itertools.product(*(range(-(-n // c)) for n, c in zip(shape, sizes, strict=True)))


def damaged(place: Path, file: Path, why: str | Exception) -> ValueError:
    """The error for a file in a store that is not as it was written."""
    where = file.relative_to(place).as_posix()
    if isinstance(why, PermissionError):
        return ValueError(
            f"store {str(place)!r} cannot be read: {where}: {why.strerror}. Change who may read it."
        )
    if isinstance(why, Exception):
        why = f"cannot be read ({why})"
    return ValueError(f"store {str(place)!r} is damaged: {where} {why}. {REMEDY}")


def opened(place: Path, inside: str = "", drop: Iterable[str] = ()) -> xr.Dataset:
    """The dataset of one group of a store, whose variables say so when they are found damaged later."""
    with telling(place, inside, always=True), quiet_zarr():
        found = xr.open_dataset(
            place / inside,
            engine="zarr",
            consolidated=False,
            cache=False,
            chunks=None,
            drop_variables=list(drop),
        )
        variables = {}
        for name, variable in found.variables.items():
            if name not in found.indexes:
                data: Any = _Part(variable, place, f"{inside}/{name}".lstrip("/"))
                # As xarray wraps what it opens: read when used, kept then, and never written back.
                for wrap in (
                    indexing.LazilyIndexedArray,
                    indexing.CopyOnWriteArray,
                    indexing.MemoryCachedArray,
                ):
                    data = wrap(data)
                variable = xr.Variable(variable.dims, data, variable.attrs, variable.encoding)
            variables[name] = variable
        return xr.Dataset(variables, attrs=found.attrs).set_coords(list(found.coords))


class _Part(BackendArray):
    """A variable of a store, not read yet."""

    def __init__(self, variable: xr.Variable, place: Path, inside: str) -> None:
        self.shape, self.dtype = variable.shape, variable.dtype
        self._variable, self._place, self._inside = variable, place, inside

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        outer = indexing.IndexingSupport.OUTER
        return indexing.explicit_indexing_adapter(key, self.shape, outer, self._read)

    def _read(self, key: tuple[Any, ...]) -> np.ndarray:
        with telling(self._place, self._inside):
            return self._variable[key].to_numpy()


@contextmanager
def telling(place: Path, inside: str = "", *, always: bool = False) -> Iterator[None]:
    """Turn an error inside the block into one that names the damaged file of the store.

    Where no file is damaged, the store is not at fault: the error stays as it is, unless ``always`` says that
    the store was only opened here.
    """
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        found = _damage(place, inside, always)
        if found is None and not always:
            raise
        if found is None:
            reason = str(error).rstrip(".")
            found = ValueError(f"store {str(place)!r} cannot be opened: {reason}. {REMEDY}")
        raise found from error


def _damage(place: Path, inside: str, opening: bool) -> ValueError | None:
    """The damage in a part of a store; of large arrays metadata alone where it is only opened."""
    try:
        arrays = arrays_of(place, inside)
    except ValueError as error:
        return error
    for name, array in arrays.items():
        if opening and array.ndim > 1:
            continue
        for index in _chunks(array, array.shape):
            try:
                array.get_block_selection(index)
            except Exception as error:
                return damaged(place, place / name / array.metadata.encode_chunk_key(index), error)
    return None
