"""The records of a recorder, in memory or in a Zarr store, and stores read back and joined over replicates.

A store has one group for each layer of each probe set, whose arrays grow along time. Arrays are written first, and then
the number of complete records, in one attribute of the store. Readers ignore anything beyond that number, left by a
kill or a full disk, and the next writer overwrites it. So a write can be interrupted anywhere, and tried again.
"""

from __future__ import annotations

import atexit
import concurrent.futures.thread
import contextlib
import multiprocessing
import os
import sys
import threading
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import xarray as xr
import zarr
from zarr.codecs import Crc32cCodec

from lesde.checks import check_choice, shown
from lesde.files import (
    REMEDY,
    arrays_of,
    check_chunks,
    check_format,
    damaged,
    never,
    nodes_of,
    opened,
    quiet_zarr,
    settled,
    telling,
)
from lesde.networks.looking import Entries
from lesde.networks.recording import packed, with_rate

__all__ = ["Key", "Records", "StoredRecords", "clock_of", "open_records", "write_dropped"]

Key = tuple[str, str]
"""A probe set and a layer."""
Contents = Mapping[Key, tuple[np.ndarray, Mapping[str, Any]]]
"""The labels and attributes of everything that is recorded."""

_MARK = "lesde_recording"
_FORMAT = 2
_CHUNK = 8_000_000  # bytes of the features of one chunk, about
_LONGEST = 64  # records in one chunk at most
_SCALARS = 1024  # records in one chunk of what is one number a record
_PATIENCE = 30.0  # seconds after which records are written though a chunk is not full


class Records:
    """The records of one recorder, kept in memory."""

    def __init__(self, contents: Contents, replicate: int) -> None:
        self._contents, self._replicate = contents, replicate
        self._kept: dict[Key, list[Entries]] = {key: [] for key in contents}

    def __len__(self) -> int:
        return len(next(iter(self._kept.values())))

    def add(self, looks: Mapping[Key, Entries]) -> None:
        """One more record of everything."""
        for key, entries in looks.items():
            self._kept[key].append(entries)

    def dataset(self, key: Key) -> xr.Dataset:
        return self._pack(key)

    def clock(self) -> tuple[np.ndarray, np.ndarray]:
        """Times and iterations of the records that were there at the beginning."""
        return np.empty(0), np.empty(0, dtype=int)

    def cut(self, records: int) -> None:
        """Keep the first of the records that were there at the beginning."""

    def flush(self) -> None:
        """Write all records."""

    def close(self) -> None:
        """Write all records, and expect no more."""

    def reopen(self) -> None:
        """Expect more records."""

    def _pack(self, key: Key) -> xr.Dataset:
        labels, attrs = self._contents[key]
        return packed(self._kept[key], labels, self._replicate, attrs)


class StoredRecords(Records):
    """The records of one recorder in a Zarr store.

    Those that are not written yet wait in memory, until a chunk is full, some seconds have passed, or the program ends.
    """

    def __init__(
        self,
        contents: Contents,
        replicate: int,
        path: Path,
        about: Mapping[str, Any],
        resume: bool,
    ) -> None:
        super().__init__(contents, replicate)
        write_dropped()
        self.path, self.process = path, os.getpid()
        self._arrays: dict[Key, dict[str, zarr.Array]] = {key: {} for key in contents}
        self.written = 0
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            attributes = {**about, _MARK: _FORMAT, "records": 0, "variables": {}}
            self._root = zarr.open_group(str(path), mode="w-", attributes=attributes)
        elif resume:
            self._resume(about)
        else:
            raise FileExistsError(
                f"store {str(path)!r} exists. Give resume=True to continue it, name another store, or "
                f"remove it."
            )
        self._flushed = time.monotonic()
        self.reopen()

    def _resume(self, about: Mapping[str, Any]) -> None:
        known = _about(self.path)
        for name, value in about.items():
            if known.get(name) != value:
                why = f": {shown(known.get(name))} there, {shown(value)} here"
                raise ValueError(
                    f"store {str(self.path)!r} was recorded with other {name}"
                    f"{why if name != 'probes' else ' or their samples in another order'}. Resume with "
                    f"the same arguments, or name another store."
                )
        self.written = known["records"]
        with telling(self.path, always=True), quiet_zarr():
            self._root = zarr.open_group(str(self.path), mode="r+")
        for key in self._contents if self.written else ():
            inside = _inside(key)
            arrays = {
                name: cast(zarr.Array, self._root[f"{inside}/{name}"])
                for name in _whole_arrays(self.path, inside, known)
            }
            # Read what the next write will extend, and what is small, so that damage is reported beforehand.
            with quiet_zarr(), telling(self.path, inside):
                for array in arrays.values():
                    array[(0, self.written - 1) if array.ndim > 1 else slice(None)]
            self._arrays[key] = arrays
        # Zarr renames a file when it is complete; after a kill it keeps its temporary name for ever.
        for left in self.path.rglob("*.partial"):
            left.unlink()

    def __len__(self) -> int:
        return self.written + super().__len__()

    @property
    def waiting(self) -> str:
        """Number of records that are not on disk, in words."""
        number = super().__len__()
        return f"{number} record{' is' if number == 1 else 's are'}"

    def add(self, looks: Mapping[Key, Entries]) -> None:
        for key, entries in looks.items():
            for name, (dims, value) in entries.items():
                known = self._arrays[key].get(name)
                if dims and known is not None and known.shape[2:] != value.shape:
                    raise ValueError(
                        f"store holds {name} of shape {known.shape[2:]} for layer {key[1]!r}; the model now "
                        f"gives {value.shape}. Resume with the model that the store was begun with."
                    )
        super().add(looks)
        full = min(_records_a_chunk(entries["features"][1]) for entries in looks.values())
        if super().__len__() >= full or time.monotonic() - self._flushed > _PATIENCE:
            self.flush()

    def dataset(self, key: Key) -> xr.Dataset:
        self.flush()
        return _opened(self.path, key)

    def clock(self) -> tuple[np.ndarray, np.ndarray]:
        return clock_of(self.path)

    def cut(self, records: int) -> None:
        if records < self.written:
            self._root.attrs["records"] = self.written = records

    def flush(self) -> None:
        if super().__len__():
            end = self.written + super().__len__()
            try:
                with settled(), quiet_zarr():
                    for key in self._contents:
                        self._write(key, end)
                    held = {_inside(key): sorted(arrays) for key, arrays in self._arrays.items()}
                    self._root.attrs.update({"records": end, "variables": held})
            except OSError as error:
                why = (
                    f"store {str(self.path)!r} cannot be written ({error.strerror or error}); its last "
                    f"{self.waiting} in memory. Mend the cause, then call flush() or close()."
                )
                raise OSError(error.errno, why) if error.errno else OSError(why) from error
            self.written, self._kept = end, {key: [] for key in self._contents}
        self._flushed = time.monotonic()

    def close(self) -> None:
        self.flush()
        if self in _open:
            _open.remove(self)

    def reopen(self) -> None:
        if self not in _open:
            _open.append(self)

    def dropped(self) -> None:
        """To be called when nothing refers to the recorder any more.

        Python may notice that anywhere, also inside Zarr and with its locks held. So nothing is written
        here.
        """
        _dropped.append(self)

    def _write(self, key: Key, end: int) -> None:
        """Write what waits in one group, from the last complete record on."""
        dataset = self._pack(key).drop_vars("learning_rate", errors="ignore")
        arrays, several = self._arrays[key], _records_a_chunk(dataset["features"].values[0, 0])
        if not self.written:
            arrays.clear()
            attrs = {**dataset.attrs, "coordinates": "label iteration"}
            group = self._root.create_group(_inside(key), attributes=attrs, overwrite=True)
        for name, variable in dataset.variables.items():
            sizes = {str(d): end if d == "time" else n for d, n in variable.sizes.items()}
            if not self.written:
                rows = several if len(sizes) > 2 else _SCALARS
                arrays[str(name)] = group.create_array(
                    str(name),
                    shape=tuple(sizes.values()),
                    chunks=tuple(rows if d == "time" else n for d, n in sizes.items()),
                    dtype=variable.dtype,
                    # Compressing features takes longer than computing them, a checksum does not.
                    compressors=Crc32cCodec(),
                    fill_value=never(variable.dtype),
                    dimension_names=list(sizes),
                    attributes=dict(variable.attrs),
                )
            elif "time" not in sizes:
                continue
            array, new = arrays[str(name)], slice(self.written, end)
            array.resize(tuple(sizes.values()))
            array[tuple(new if d == "time" else slice(None) for d in sizes)] = variable.values


def _records_a_chunk(features: np.ndarray) -> int:
    return int(np.clip(_CHUNK // max(1, features.nbytes), 1, _LONGEST))


def _inside(key: Key) -> str:
    """The group of a probe set and a layer in a store."""
    probe, layer = key
    return f"{probe}/{layer.replace('/', '%2F')}"


_open: list[StoredRecords] = []
_dropped: list[StoredRecords] = []
"""Those whose recorders are gone, still to be written."""


def write_dropped() -> None:
    """Write the records of recorders that were dropped without being closed."""
    while _dropped:
        try:
            records = _dropped.pop()
        except IndexError:  # another thread took it
            return
        if records.process != os.getpid():
            continue
        try:
            records.close()
        except Exception as error:
            message = f"{error} They are tried again at the end of the program."
            warnings.warn(message, RuntimeWarning, stacklevel=3)


def _flush_all() -> None:
    """Write all that is not written, at the end of the program; where that fails, report what is lost.

    Nothing that runs at the end of a program can set its exit status, and leaving at once (``os._exit``) would take
    the end from everybody else: other exit handlers, notebooks, pytest. But Python itself ends with status
    120 where a standard stream cannot write what it holds, which is what happened here.
    """
    failed = False
    for records in list(_open):
        if records.process != os.getpid():
            continue  # a copy in a forked process, such as a worker of a DataLoader
        try:
            records.flush()
        except BaseException as error:  # also an interrupt: the others are to be written
            failed = True
            reason = error.__cause__ if isinstance(error.__cause__, OSError) else error
            with contextlib.suppress(Exception):
                print(
                    f"lesde: error: the last {records.waiting} not written to store "
                    f"{str(records.path)!r} and lost: {reason or type(error).__name__}",
                    file=sys.stderr,
                    flush=True,
                )
    if failed and multiprocessing.parent_process() is not None:
        # Such a child leaves by os._exit, with status 1 after an error.
        raise OSError("records were not written")
    if failed:
        sys.stderr = _Unwritten(sys.stderr)


class _Unwritten:
    """A stream that cannot be flushed when Python ends, and otherwise is the one that it stands for."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def flush(self) -> None:
        if self._stream is not None:
            self._stream.flush()
        if sys.is_finalizing():
            raise OSError("records were not written")


# Zarr writes from a pool of threads, which takes no more work when ordinary exit handlers run.
assert concurrent.futures.thread is not None
getattr(threading, "_register_atexit", atexit.register)(_flush_all)


def clock_of(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Times and iterations of the whole records of a store."""
    place = Path(path).expanduser()
    about = _about(place)
    if not about["records"]:
        return np.empty(0), np.empty(0, dtype=int)
    inside = next(iter(about["variables"]))
    arrays = _whole_arrays(place, inside, about)
    with telling(place, inside):
        times, iterations = (
            np.asarray(arrays[name][: about["records"]]) for name in ("time", "iteration")
        )
    return times, iterations


def _about(place: Path) -> dict[str, Any]:
    """The attributes of a store, all of whose metadata are checked."""
    write_dropped()
    if not place.exists():
        raise FileNotFoundError(f"store {str(place)!r} does not exist.")
    empty = place.is_dir() and not any(place.iterdir())
    nodes: dict[str, Any] = {"": {}} if empty else nodes_of(place)
    about = nodes[""].get("attributes", {})
    if _MARK not in about:
        raise ValueError(
            f"store {str(place)!r} is no store of a lesde.Recorder. Open other Zarr stores with "
            f"xarray.open_zarr."
        )
    check_format(place, about[_MARK], _FORMAT)
    for inside, names in about["variables"].items():
        if inside not in nodes:
            raise ValueError(f"store {str(place)!r} lacks {inside}, which was lost. {REMEDY}")
        for name in names:
            if f"{inside}/{name}" not in nodes:
                raise damaged(place, place / inside / name / "zarr.json", "is missing")
    return about


def _whole_arrays(place: Path, inside: str, about: Mapping[str, Any]) -> dict[str, zarr.Array]:
    """The arrays of one group, none of whose chunks of whole records is missing."""
    found = arrays_of(place, inside)
    held = {name: found[f"{inside}/{name}"] for name in about["variables"][inside]}
    rows = {name: (axis, about["records"]) for name, axis in _time_axes(held).items()}
    check_chunks(place, inside, held, rows)
    return held


def _time_axes(arrays: Mapping[str, zarr.Array]) -> dict[str, int]:
    """The axis of time of every array that has one."""
    dims = {name: list(array.metadata.dimension_names or ()) for name, array in arrays.items()}  # type: ignore[union-attr]
    return {name: own.index("time") for name, own in dims.items() if "time" in own}


def _opened(place: Path, key: Key) -> xr.Dataset:
    """The whole records of one group, read from disk when they are used."""
    about, inside = _about(place), _inside(key)
    count = about["records"]
    if not count:
        raise ValueError(
            f"store group {shown(inside)} holds no record yet; train on, or call record()."
        )
    arrays = _whole_arrays(place, inside, about)
    lengths = {arrays[name].shape[axis] for name, axis in _time_axes(arrays).items()}
    if len(lengths) == 1:
        dataset = opened(place, inside)
    else:
        # The program was killed in the middle of a write, or is in the middle of one now.
        parts = []
        for name in arrays:
            part = opened(place, inside, [other for other in arrays if other != name])
            parts.append(part.isel(time=slice(count)) if "time" in part.dims else part)
        dataset = xr.merge(parts, join="exact", combine_attrs="override")
    return with_rate(dataset.isel(time=slice(count)))


def open_records(
    stores: Any,
    layer: str,
    probe: str | None = None,
    *,
    join: str = "exact",
) -> xr.Dataset:
    """One layer of what several :class:`lesde.Recorder` recorded, joined along ``replicate``.

    Parameters
    ----------
    stores : str, path, Recorder or xarray.Dataset, or sequence of these
        One for each replicate; their numbers must differ (``replicate=`` of the recorder). A path is that
        of a store. A recorder gives what it holds, in memory or in a store. A dataset is one that
        :func:`lesde.record` or :meth:`lesde.Recorder.paths` returned, of this layer and probe set.
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
    FileNotFoundError, TypeError, ValueError
        If a store is not there, was not written by a recorder, is damaged, holds no such layer or probe
        set, or the stores do not fit together. Where numbers are read when they are used, damage to them
        is said then, by a ValueError that names the store and the file in it.

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
    for name, value in (("layer", layer), ("probe", probe)):
        if not isinstance(value, str | None):
            raise TypeError(f"{name} must be a name; got {shown(value)}.")
    # A recorder is known by what it can do: LightningRecorder would import Lightning.
    if isinstance(stores, str | Path | xr.Dataset) or hasattr(stores, "paths"):
        stores = [stores]
    try:
        given = list(stores)
    except TypeError:
        given = [stores]
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


def _one(source: Any, layer: str, probe: str | None) -> xr.Dataset:
    if isinstance(source, str | Path):
        return _from_store(Path(source).expanduser(), layer, probe)
    if not isinstance(source, xr.Dataset):
        if callable(getattr(source, "paths", None)):
            return source.paths(layer, probe)
        raise TypeError(
            f"stores must be paths of stores, recorders, datasets that these gave, or a sequence of them; "
            f"got {shown(source)}."
        )
    for name, wanted in (("layer", layer), ("probe", probe)):
        known = source.attrs.get(name)
        if known is None or "replicate" not in source["features"].dims:
            raise ValueError(
                "stores must hold datasets as lesde.record and Recorder.paths return them, with the "
                "attributes layer and probe and the dimension replicate."
            )
        if wanted is not None and wanted != known:
            raise ValueError(
                f"{name} must be {known!r}, which a dataset among stores holds; got {shown(wanted)}."
            )
    return source


def _from_store(place: Path, layer: str, probe: str | None) -> xr.Dataset:
    about = _about(place)
    probes = list(about["probes"])
    if probe is None and len(probes) == 1:
        (probe,) = probes
    for name, value, known in (("probe", probe, probes), ("layer", layer, about["layers"])):
        if value not in known:
            raise ValueError(
                f"{name} must be one of {', '.join(map(repr, known))}, as store {str(place)!r} holds "
                f"them; got {shown(value)}."
            )
    assert probe is not None
    return _opened(place, (probe, layer))
