"""Zarr stores of this package: written so that damage shows, and opened so that it is told."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

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
    "arrays_of",
    "check_chunks",
    "check_format",
    "damaged",
    "never",
    "nodes_of",
    "open_store",
    "opened",
    "quiet_zarr",
    "settled",
    "telling",
    "write_store",
]

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
