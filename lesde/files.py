"""Datasets on disk: Zarr stores that are either whole or not there."""

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
from xarray.backends import BackendArray, BackendEntrypoint
from xarray.core import indexing
from zarr.codecs import ZstdCodec
from zarr.core.sync import sync

__all__ = [
    "REMEDY",
    "SEAL",
    "Target",
    "about_lock",
    "arrays_of",
    "check_chunks",
    "check_format",
    "damaged",
    "damaged_of_store",
    "difference",
    "lock",
    "make_parents",
    "never",
    "nodes_of",
    "open_store",
    "opened",
    "quiet_zarr",
    "read",
    "read_whole",
    "recover",
    "replace_file",
    "settled",
    "target",
    "telling",
    "why_foreign",
    "write",
    "write_store",
]


# --------------------------------------------------------------------------------------------------
# Files and folders put in place whole: checked first, written beside their place, moved there at once.

_PREFIX = ".lesde-"
_LOCK = "lesde.lock"
_UNBORN = 3600.0
"""Seconds after which a folder without a word about its process is one that was killed as it made it."""


@dataclass(frozen=True)
class Target:
    """What a command is to write, and where.

    Parameters
    ----------
    path : Path
    name : str
        What a message calls it, such as ``--out``.
    folder : bool
        Whether it is a folder, such as a Zarr store, and not a file.
    overwrite : bool
        Whether what stands there may be replaced.
    foreign : callable, optional
        Says of what stands there why it may not be replaced nevertheless, in words that follow the path; None where it
        may. Needed for a folder.
    inputs : sequence of Path
        What is read, which is never replaced or written into.
    """

    path: Path
    name: str = "path"
    folder: bool = False
    overwrite: bool = False
    foreign: Callable[[Path], str | None] | None = None
    inputs: Sequence[Path] = ()

    @property
    def place(self) -> Path:
        """Where it is, links followed: a link stays one."""
        return Path(os.path.realpath(self.path))

    def check(self) -> None:
        """Refuse what cannot be written, before anything is computed.

        Raises
        ------
        ValueError
        """
        place, parent, missing = self.place, self.place.parent, [self.place.name]
        try:
            self._check_inputs(place)
            while not parent.exists() and parent != parent.parent:
                missing.append(parent.name)
                parent = parent.parent
            if not parent.is_dir():
                raise self._refused(f"cannot be: {parent} is no folder")
            longest = os.pathconf(parent, "PC_NAME_MAX") if hasattr(os, "pathconf") else 255
            for part in missing:
                if len(os.fsencode(part)) > longest:
                    raise self._refused(f"has a name of more than {longest} bytes")
            recover(parent)
            if len(missing) == 1:
                self._check_old(place)
            # Asking for permission knows neither all file systems nor the administrator.
            os.rmdir(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
        except OSError as error:
            raise self._refused(f"cannot be written ({error.strerror or error})") from None

    def put(self, write: Callable[[Path], object]) -> None:
        """Have it written under another name by ``write``, and move it to its place.

        Raises
        ------
        ValueError
            As `check`; also where something came to stand there meanwhile.
        OSError
            Where it cannot be written, for instance on a full disk. Nothing of it stays.
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
        for given in self.inputs:
            for part in (place, *place.parents):
                with contextlib.suppress(OSError):
                    if os.path.samefile(part, given):
                        what = "is the input" if part == place else f"is inside the input {given}"
                        raise self._refused(what)
        for part in place.parents:
            if (part / "zarr.json").is_file():
                raise self._refused(f"is inside the Zarr store {part}")

    def _check_old(self, place: Path) -> None:
        """Refuse to replace what stands there, unless it may be."""
        if not os.path.lexists(place):
            return
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
                _move_where_nothing_is(new, place)
            except OSError:
                if not os.path.lexists(place):
                    raise
                raise self._refused(
                    "was written by somebody else meanwhile", "give another name"
                ) from None
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
    """Write a file by a function that is given a name, in place of what has its name."""
    Target(path, overwrite=True).put(write)


def lock(path: Path, about: dict[str, Any], wait: bool = False) -> IO[str] | None:
    """Lock a file until it is closed or the process ends, and write into it whose it is.

    Returns
    -------
    file or None
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


def about_lock(path: Path) -> dict[str, Any]:
    """Whose a locked file is; empty where that cannot be read."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def recover(parent: Path) -> None:
    """Remove what killed processes of this package left in a folder, and put back a store that one had set aside."""
    try:
        names = [name for name in os.listdir(parent) if re.fullmatch(r"\.lesde-[a-z0-9_]{8}", name)]
    except OSError:
        return
    for name in names:
        scratch = parent / name
        with contextlib.suppress(OSError):
            if not scratch.is_symlink() and scratch.is_dir():
                _remove_dead(scratch)


def _remove_dead(scratch: Path) -> None:
    """Remove a left-over if its process is dead."""
    about = about_lock(scratch / _LOCK)
    if not about:  # it is just being made, or the process was killed as it made it
        old = time.time() - scratch.stat().st_mtime > _UNBORN
        if old and set(os.listdir(scratch)) <= {_LOCK}:
            shutil.rmtree(scratch)
    elif about.get("host") == platform.node() and about.get("locks"):
        with open(scratch / _LOCK, "a+", encoding="utf-8") as file:
            dead = _take(file) is True
        if dead:
            _remove(scratch, scratch.parent / Path(str(about.get("name"))).name)


@contextlib.contextmanager
def _scratch(place: Path) -> Iterator[Path]:
    """A folder beside a place, on the same file system, that goes in the end."""
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
    """Remove a scratch folder, last what tells whose it is, so that the rest of it can be told after a kill.

    What was set aside is put back if nothing came in its place.
    """
    if (scratch / "old").exists() and not os.path.lexists(place):
        os.rename(scratch / "old", place)
    for part in ("new", "old"):
        shutil.rmtree(scratch / part, ignore_errors=True)
    shutil.rmtree(scratch, ignore_errors=True)


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


def make_parents(place: Path) -> list[Path]:
    """Make the folders that a path needs; those that were missing, the innermost first."""
    missing = [folder for folder in place.parents if not folder.exists()]
    place.parent.mkdir(parents=True, exist_ok=True)
    return missing


def _move_where_nothing_is(new: Path, place: Path) -> None:
    """Move a file or folder, and fail where something stands."""
    if new.is_dir() or os.name == "nt":
        os.rename(new, place)  # which fails there, other than for a file on Linux and macOS
        return
    try:
        os.link(new, place)
    except FileExistsError:
        raise
    except OSError:  # no links here
        if os.path.lexists(place):
            raise
        os.rename(new, place)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two names in one step, which some systems and file systems can; whether it was done."""
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
# Zarr stores of this package: written so that damage shows, and opened so that it is told.

_MARK = "lesde_store"
SEAL = "lesde_seal"
"""Attribute by which a store is known to be as it was written; not one of the dataset's own."""
_FORMAT = 1
REMEDY = "Restore the store from a copy, or remove it and make it again."


def write_store(dataset: xr.Dataset, path: Path) -> None:
    """Write a dataset so that damage shows: every chunk has a checksum, and a missing one is seen.

    Zarr leaves out chunks that hold nothing but the fill value, and reads a missing one as that. So the
    fill value is one that no data hold.
    """
    plain = dataset.assign_attrs({_MARK: _FORMAT})
    for name, variable in dataset.variables.items():
        if variable.dtype == bool:
            # As netCDF stores them: two values leave none for the fill value.
            attrs = variable.attrs | {"dtype": "bool"}
            plain[name] = xr.Variable(variable.dims, variable.values.astype("i1"), attrs)
    encoding = {
        name: {
            "compressors": (ZstdCodec(level=0, checksum=True),),
            "fill_value": never(variable.dtype),
        }
        for name, variable in plain.variables.items()
    }
    with quiet_zarr(), settled():
        plain.to_zarr(path, mode="w", consolidated=False, encoding=encoding)


def open_store(path: str | os.PathLike[str]) -> xr.Dataset:
    """The dataset of a Zarr store; values are read when they are used.

    Parameters
    ----------
    path : path
        A store that this package wrote, or any that xarray can open.

    Returns
    -------
    xarray.Dataset
        Where a part of it cannot be read, using it raises the error below.

    Raises
    ------
    ValueError
        If there is no store, a newer version of this package wrote it, or it is damaged; the message names
        the file inside it.
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
    for name in (_MARK, SEAL):
        dataset.attrs.pop(name, None)
    return dataset


def nodes_of(place: Path, inside: str = "") -> dict[str, dict[str, Any]]:
    """What ``zarr.json`` says of a part of a store and of all groups and arrays in it, by their paths.

    Raises
    ------
    ValueError
        If there is no store, or one of these files is damaged or missing.
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
    """The arrays in a part of a store, by their paths inside it.

    Raises
    ------
    ValueError
        As :func:`nodes_of`; also where Zarr does not understand what an array is said to be.
    """
    found = {}
    for name, node in nodes_of(place, inside).items():
        if node["node_type"] == "array":
            try:
                found[name] = zarr.open_array(str(place / name), mode="r")
            except Exception as error:
                raise damaged(place, place / name / "zarr.json", error) from error
    return found


def opened(place: Path, inside: str = "", drop: Iterable[str] = ()) -> xr.Dataset:
    """The dataset of one group of a store."""
    with telling(place, inside, always=True), quiet_zarr():
        return xr.open_dataset(
            place / inside, engine=_Told, place=place, inside=inside, drop_variables=list(drop)
        )


def check_chunks(
    place: Path,
    inside: str,
    arrays: Mapping[str, zarr.Array],
    rows: Mapping[str, tuple[int, int]] | None = None,
    *,
    nan: bool = False,
) -> None:
    """Find a chunk that is missing where one must be: where no data equal the fill value.

    ``arrays`` are named by their paths in the part ``inside``; ``rows`` says of an array along which axis
    only so many rows count; ``nan`` whether NaN is such a fill value, as it always is of a dimension's
    coordinates.
    """
    for name, array in arrays.items():
        names = getattr(array.metadata, "dimension_names", None)
        if not _is_never(array.fill_value, nan or names == (name,)):
            continue
        shape = list(array.shape)
        if rows is not None and name in rows:
            axis, most = rows[name]
            shape[axis] = min(shape[axis], most)
        for index in _chunks(array, shape):
            file = place / inside / name / array.metadata.encode_chunk_key(index)
            if not os.path.exists(file):
                raise damaged(place, file, "is missing")


def never(dtype: np.dtype) -> Any:
    """A value that no data of this type hold, for the fill value."""
    if dtype.kind == "f":
        return np.finfo(dtype).min
    if dtype.kind == "i":
        return np.iinfo(dtype).min
    return np.iinfo(dtype).max if dtype.kind == "u" else "\uffff"


def _is_never(fill: Any, nan: bool) -> bool:
    dtype = np.asarray(fill).dtype
    if dtype.kind == "f" and np.isnan(fill):
        return nan
    return dtype.kind in "fiuUT" and bool(fill == never(dtype))


def _chunks(array: zarr.Array, shape: Iterable[int]) -> Iterator[tuple[int, ...]]:
    """The chunks of an array, as far as ``shape`` reaches."""
    sizes = array.shards or array.chunks
    return itertools.product(*(range(-(-n // c)) for n, c in zip(shape, sizes, strict=True)))


def damaged(place: Path, file: Path, why: str | Exception) -> ValueError:
    """What to say of a file in a store that is not as it was written; to be raised."""
    where = file.relative_to(place).as_posix()
    if isinstance(why, PermissionError):
        return ValueError(
            f"store {str(place)!r} cannot be read: {where}: {why.strerror}. Change who may read it."
        )
    if isinstance(why, Exception):
        why = f"cannot be read ({why})"
    return ValueError(f"store {str(place)!r} is damaged: {where} {why}. {REMEDY}")


@contextmanager
def telling(place: Path, inside: str = "", *, always: bool = False) -> Iterator[None]:
    """Say of what fails here which file of the store is damaged.

    An error for which there is no such file is none of the store: it stays as it is, unless ``always``
    says that the store was only opened here.
    """
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        told = _found(place, inside, always)
        if told is None and not always:
            raise
        if told is None:
            reason = f"{str(error).rstrip('.')}"
            told = ValueError(f"store {str(place)!r} cannot be opened: {reason}. {REMEDY}")
        raise told from error


def _found(place: Path, inside: str, opening: bool) -> ValueError | None:
    """What is damaged in a part of a store; of large arrays metadata alone where it is only opened."""
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


class _Told(BackendEntrypoint):
    """Opens Zarr groups as xarray does, but so that reading a damaged part later says so, too."""

    open_dataset_parameters = ("filename_or_obj", "drop_variables", "place", "inside")

    def open_dataset(  # type: ignore[override]
        self, filename_or_obj: Any, *, drop_variables: Any, place: Path, inside: str
    ) -> xr.Dataset:
        found = xr.open_dataset(
            filename_or_obj,
            engine="zarr",
            consolidated=False,
            cache=False,
            chunks=None,
            drop_variables=drop_variables,
        )
        variables = {
            name: variable
            if name in found.indexes
            else xr.Variable(
                variable.dims,
                indexing.LazilyIndexedArray(_Part(variable, place, f"{inside}/{name}".lstrip("/"))),
                variable.attrs,
                variable.encoding,
            )
            for name, variable in found.variables.items()
        }
        dataset = xr.Dataset(variables, attrs=found.attrs).set_coords(list(found.coords))
        dataset.encoding = found.encoding
        return dataset


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


def check_format(place: Path, found: Any, newest: int) -> None:
    if not isinstance(found, int) or found > newest:
        raise ValueError(
            f"store {str(place)!r} has format {found}, which is of a newer version of lesde; this one "
            f"reads formats up to {newest}. Update lesde."
        )


@contextmanager
def settled() -> Iterator[None]:
    """Leave an error of Zarr's only when nothing is being written any more.

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
    """Without what Zarr says about its own format."""
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message=".*(data type|Zarr V3|Zarr format 3|onsolidated|not recognized as).*"
        )
        yield


# --------------------------------------------------------------------------------------------------


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
        raise damaged_of_store(path, str(error).removesuffix(f" {REMEDY}")) from None
    gaps = [n for n, v in dataset.items() if v.dtype.kind == "f" and bool(v.isnull().any())]
    if gaps:
        raise damaged_of_store(path)
    why = _why_other(dataset.attrs.get(_STUDY), study)
    if why is not None:
        raise ValueError(
            f"--out: {os.fspath(path)} {why}. Give another folder, or remove it and run the command again."
        )
    return dataset


def damaged_of_store(path: str | os.PathLike[str], found: str = "") -> ValueError:
    """What to say of a store that is not whole, and what was found; to be raised."""
    return ValueError(
        f"--out: {os.fspath(path)} is damaged. Remove it and run the command again: what it held is then trained anew."
        f"{' Found: ' if found else ''}{found}"
    )
