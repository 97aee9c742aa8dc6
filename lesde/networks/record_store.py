"""The records of a recorder, in memory or in a Zarr store, and stores read back and joined over replicates.

A store has one group for each layer of each probe set, whose arrays grow along time. Arrays are written first, and then
the number of complete records, in one attribute of the store. Readers ignore anything beyond that number, left by a
kill or a full disk, and the next writer overwrites it. So a write can be interrupted anywhere, and tried again.
"""

from __future__ import annotations

import atexit
import concurrent.futures.thread  # noqa: F401  (its exit handler is to run after ours)
import contextlib
import itertools
import json
import math
import os
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr
from zarr.codecs import Crc32cCodec

from lesde.checks import check_choice, check_instance, shown
from lesde.files import Damaged, check_size, opening, quiet_zarr
from lesde.networks.looking import Entries
from lesde.networks.recording import packed, with_rate

Key = tuple[str, str]
"""A probe set and a layer."""

_MARK = "lesde_recording"
_CHUNK = 8_000_000  # bytes of the features of one chunk, about
_LONGEST = 64  # records in one chunk at most
_SCALARS = 1024  # records in one chunk of what is one number a record
_PATIENCE = 30.0  # seconds after which records are written though a chunk is not full


class Records:
    """The records of one recorder: in memory or, with a path, in a Zarr store.

    ``contents`` are the labels and attributes of everything that is recorded. Records for a store wait in memory until a
    chunk is full, some seconds have passed, or the program ends.
    """

    def __init__(
        self,
        contents: Mapping[Key, tuple[np.ndarray, Mapping[str, Any]]],
        replicate: int,
        path: Path | None,
        about: Mapping[str, Any],
        resume: bool,
    ) -> None:
        self.path, self.process, self.written = path, os.getpid(), 0
        self._contents, self._replicate = contents, replicate
        self._waiting: dict[Key, list[Entries]] = {key: [] for key in contents}
        self._arrays: dict[Key, dict[str, Any]] = {key: {} for key in contents}
        self._flushed = time.monotonic()
        for other in list(_unwritten):  # whose recorder may have been dropped
            with contextlib.suppress(Exception):  # reported where it is used, or at the end
                other.flush()
        if path is None:
            return
        if path.exists() and not resume:
            raise FileExistsError(
                f"store {str(path)!r} exists. Give resume=True to continue it, name another store, or "
                f"remove it."
            )
        if path.exists():
            self._resume(path, about)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            attributes = {**about, _MARK: 1, "records": 0, "variables": {}}
            self._root = zarr.open_group(str(path), mode="w-", attributes=attributes)

    def _resume(self, path: Path, about: Mapping[str, Any]) -> None:
        known = _about(path)
        for name, value in about.items():
            if known.get(name) != value:
                raise ValueError(
                    f"store {str(path)!r} was recorded with other {name}: {shown(known.get(name))} there, "
                    f"{shown(value)} here (of probes, digests of their samples in order). Resume with the same "
                    f"arguments, or name another store."
                )
        self._root, self.written = zarr.open_group(str(path), mode="r+"), known["records"]
        for key in self._contents if self.written else ():
            arrays = self._arrays[key] = _whole_arrays(path, _inside(key), known, "r+")
            with opening(path):
                for array in arrays.values():  # whose last chunk the next write extends
                    array[(0, self.written - 1) if array.ndim > 1 else slice(None)]

    def __len__(self) -> int:
        return self.written + len(next(iter(self._waiting.values())))

    def add(self, looks: Mapping[Key, Entries]) -> None:
        """One more record of everything."""
        for key, entries in looks.items():
            self._waiting[key].append(entries)
        if self.path is not None:
            if self not in _unwritten:
                _unwritten.append(self)
            full = min(_records_a_chunk(entries["features"][1]) for entries in looks.values())
            late = time.monotonic() - self._flushed > _PATIENCE
            if late or len(self) - self.written >= full:
                self.flush()

    def dataset(self, key: Key) -> xr.Dataset:
        """All records of one probe set and layer; from a store values are read when they are used."""
        return self._packed(key) if self.path is None else _opened(self.path, _inside(key))

    def clock(self) -> tuple[np.ndarray, np.ndarray]:
        """Times and iterations of the records that were there at the beginning."""
        return (np.empty(0), np.empty(0, int)) if self.path is None else clock_of(self.path)

    def cut(self, records: int) -> None:
        """Keep the first of the records that were there at the beginning."""
        if records < self.written:
            self._root.attrs["records"] = self.written = records

    def flush(self) -> None:
        """Write all records."""
        if self in _unwritten:
            end = len(self)
            try:
                with quiet_zarr():
                    for key in self._contents:
                        self._write(key, end)
                    held = {_inside(key): sorted(arrays) for key, arrays in self._arrays.items()}
                    self._root.attrs.update({"records": end, "variables": held})
            except OSError as error:
                raise OSError(
                    error.errno,
                    f"store {str(self.path)!r} cannot be written ({error.strerror or error}), for which its last "
                    f"{end - self.written} records wait; mend the cause, then call flush() or close().",
                ) from error
            self.written, self._waiting = end, {key: [] for key in self._contents}
            _unwritten.remove(self)
        self._flushed = time.monotonic()

    def _packed(self, key: Key) -> xr.Dataset:
        labels, attrs = self._contents[key]
        return packed(self._waiting[key], labels, self._replicate, attrs)

    def _write(self, key: Key, end: int) -> None:
        """Write what waits in one group, from the last complete record on."""
        dataset = self._packed(key).drop_vars("learning_rate", errors="ignore")
        arrays, several = self._arrays[key], _records_a_chunk(dataset["features"].values[0, 0])
        if not self.written:
            arrays.clear()
            attrs = {**dataset.attrs, "coordinates": "label iteration"}
            group = self._root.create_group(_inside(key), attributes=attrs, overwrite=True)
        for name, variable in dataset.variables.items():
            sizes = {str(d): end if d == "time" else n for d, n in variable.sizes.items()}
            shape = tuple(sizes.values())
            if not self.written:
                rows = several if len(sizes) > 2 else _SCALARS
                arrays[str(name)] = group.create_array(
                    str(name),
                    shape=shape,
                    chunks=tuple(rows if d == "time" else n for d, n in sizes.items()),
                    dtype=variable.dtype,
                    # Compressing features takes longer than computing them, a checksum does not.
                    compressors=Crc32cCodec(),
                    dimension_names=list(sizes),
                    attributes=dict(variable.attrs),
                    config={"write_empty_chunks": True},  # one that is missing is damage
                )
            elif "time" not in sizes:
                continue
            array, new = arrays[str(name)], slice(self.written, end)
            if array.shape[2:] != shape[2:]:
                raise ValueError(
                    f"store {str(self.path)!r} holds {name} of shape {array.shape[2:]} for layer {key[1]!r}; the "
                    f"model now gives {shape[2:]}. Resume with the model that the store was begun with."
                )
            array.resize(shape)
            array[tuple(new if d == "time" else slice(None) for d in sizes)] = variable.values


def _records_a_chunk(features: np.ndarray) -> int:
    return int(np.clip(_CHUNK // max(1, features.nbytes), 1, _LONGEST))


def _inside(key: Key) -> str:
    """The group of a probe set and a layer in a store."""
    probe, layer = key
    return f"{probe}/{layer.replace('/', '%2F')}"


_unwritten: list[Records] = []
"""Those with records that are not in their stores."""


def _flush_all() -> None:
    """Write all that is not written, at the end of the program; where that fails, report what is lost."""
    for records in list(_unwritten):
        if records.process == os.getpid():  # no copy in a worker of a DataLoader
            try:
                records.flush()
            except Exception as error:
                print(f"lesde: error: records are lost: {error}", file=sys.stderr)


# Zarr writes from a pool of threads, which takes no more work when ordinary exit handlers run.
getattr(threading, "_register_atexit", atexit.register)(_flush_all)


def clock_of(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Times and iterations of the whole records of a store."""
    place = Path(path).expanduser()
    about = _about(place)
    if not about["records"]:
        return np.empty(0), np.empty(0, dtype=int)
    first = _opened(place, next(iter(about["variables"])))
    return first["time"].values, first["iteration"].values


def _about(place: Path) -> dict[str, Any]:
    """The attributes of a store, after all records of this program are written to it."""
    for records in list(_unwritten):
        if os.path.realpath(str(records.path)) == os.path.realpath(place):
            records.flush()
    if not place.exists():
        raise FileNotFoundError(f"store {str(place)!r} does not exist.")
    try:
        about = json.loads((place / "zarr.json").read_text(encoding="utf-8"))["attributes"]
        about[_MARK]
    except (OSError, ValueError, KeyError, TypeError):
        raise ValueError(
            f"store {str(place)!r} is no store of a lesde.Recorder, or is damaged: zarr.json is missing or says "
            f"otherwise. Open other Zarr stores with xarray.open_zarr; restore this one from a copy."
        ) from None
    return about


def _whole_arrays(
    place: Path, inside: str, about: Mapping[str, Any], mode: Any = "r"
) -> dict[str, Any]:
    """The arrays of one group; no file of whole records may be missing or cut short."""
    root, found = zarr.open_group(str(place), mode=mode), {}
    for name in about["variables"][inside]:
        part = f"{inside}/{name}"
        try:
            array: Any = root[part]
        except Exception:
            raise Damaged(place, f"{part}/zarr.json", "is missing or cannot be read") from None
        found[name] = array
        rows = _sizes(array) | {"time": about["records"]}
        sizes = zip(_sizes(array), array.chunks, strict=True)
        for index in itertools.product(*(range(-(-rows[dim] // chunk)) for dim, chunk in sizes)):
            # The checksum takes four bytes.
            size = array.dtype.itemsize * math.prod(array.chunks) + 4
            check_size(place, f"{part}/{array.metadata.encode_chunk_key(index)}", size)
    return found


def _sizes(array: Any) -> dict[str, int]:
    return dict(zip(array.metadata.dimension_names, array.shape, strict=True))


def _opened(place: Path, inside: str) -> xr.Dataset:
    """The whole records of one group, read from disk when they are used."""
    about = _about(place)
    count = about["records"]
    if not count:
        raise ValueError(f"store {str(place)!r} holds no record yet; train on, or call record().")
    arrays = _whole_arrays(place, inside, about)
    lengths = {name: _sizes(array).get("time", count) for name, array in arrays.items()}
    parts = []
    # There are several lengths where the program was killed in the middle of a write.
    for length in set(lengths.values()):
        others = [name for name, other in lengths.items() if other != length]
        with opening(place):
            part = xr.open_dataset(
                place / inside, engine="zarr", consolidated=False, drop_variables=others
            )
        parts.append(part.isel(time=slice(count)) if "time" in part.dims else part)
    return with_rate(xr.merge(parts, join="exact", compat="equals", combine_attrs="override"))


def open_records(
    stores: Any, layer: str, probe: str | None = None, *, join: str = "exact"
) -> xr.Dataset:
    """One layer of what several :class:`lesde.Recorder` recorded, joined along ``replicate``.

    Parameters
    ----------
    stores : path of a store, Recorder or xarray.Dataset, or sequence of these
        One for each replicate; their numbers must differ (``replicate=`` of the recorder). A dataset is one
        that :func:`lesde.record` or :meth:`lesde.Recorder.paths` returned, of this layer and probe set.
    layer : str
        As the recorder was given it.
    probe : str, optional
        Name of the probe set; needed where there are several.
    join : {"exact", "inner"}, default "exact"
        All replicates must have the same times, or those that all have are kept (where one run was
        stopped early).

    Returns
    -------
    xarray.Dataset
        As :meth:`lesde.Recorder.paths` gives, over all replicates in the order of their numbers. From one
        store values are read when they are used; several are read at once.

    Raises
    ------
    FileNotFoundError
        If a store is not there.
    ValueError
        If a store was not written by a recorder or is damaged, or the stores do not fit together. Damage that
        keeps the size of a file shows when its values are used.

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
    check_instance("layer", layer, str, "a name")
    check_instance("probe", probe, str | None, "a name")  # type: ignore[arg-type]
    # A recorder is known by what it can do: LightningRecorder would import Lightning.
    one = isinstance(stores, str | Path | xr.Dataset) or not hasattr(stores, "__iter__")
    given = [stores] if one else list(stores)
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
    loaded = [one.load() for one in found]
    try:
        joined = xr.concat(  # type: ignore[call-overload]
            loaded,
            dim="replicate",
            data_vars=[v for v in loaded[0].data_vars if "replicate" in loaded[0][v].dims],
            coords="minimal",
            compat="equals",
            join=join,
            combine_attrs="drop_conflicts",
        )
    except ValueError as error:
        raise ValueError(
            f"stores must hold the same probe set at the same times ({error}). join='inner' keeps the times that "
            f"all have."
        ) from error
    if joined.sizes["time"] == 0:
        raise ValueError("stores have no recorded time in common.")
    return joined


def _one(source: Any, layer: str, probe: str | None) -> xr.Dataset:
    """The dataset of one store, recorder or dataset."""
    if isinstance(source, str | Path):
        place = Path(source).expanduser()
        about = _about(place)
        if probe is None and len(about["probes"]) == 1:
            (probe,) = about["probes"]
        probe = check_choice("probe", probe, about["probes"])
        return _opened(place, _inside((probe, check_choice("layer", layer, about["layers"]))))
    if hasattr(source, "paths"):
        return source.paths(layer, probe)
    check_instance(
        "stores",
        source,
        xr.Dataset,
        "paths of stores, recorders, datasets that these gave, or a sequence of them",
    )
    if not {"layer", "probe"} <= set(source.attrs) or "replicate" not in source["features"].dims:
        raise ValueError(
            "stores must hold datasets as lesde.record and Recorder.paths return them, with the "
            "attributes layer and probe and the dimension replicate."
        )
    check_choice("layer", layer, [source.attrs["layer"]])
    if probe is not None:
        check_choice("probe", probe, [source.attrs["probe"]])
    return source
