"""Stores of recorders, read back and joined over replicates."""

from __future__ import annotations

import atexit
import concurrent.futures.thread
import contextlib
import itertools
import multiprocessing
import os
import sys
import threading
import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

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
from lesde.networks.records import ABOUT, CLOCK, Entries, packed, with_rate

__all__ = [
    "Key",
    "MemoryTrack",
    "Store",
    "StoreTrack",
    "clock_of",
    "found_tracks",
    "new_tracks",
    "open_records",
    "open_track",
    "tracks_of",
    "write_dropped",
]


# --------------------------------------------------------------------------------------------------
# Records on disk: Zarr arrays that grow along time, a few records at once.

_CHUNK = 8_000_000  # bytes of the features of one chunk, about
_LONGEST = 64  # records in one chunk at most
_CLOCK_CHUNK = 1024
FIXED = ("label", "replicate")
"""Variables that do not grow."""
_HELD = "lesde_arrays"
"""Attribute of a group: the arrays that its whole records have, so that one that was lost is missed."""
_PATIENCE = 30.0  # seconds after which records are written though a chunk is not full


class MemoryTrack:
    """The records of one layer on one probe set, kept in memory."""

    def __init__(self, labels: np.ndarray, replicate: int, attrs: Mapping[str, Any]) -> None:
        self._labels, self._replicate, self._attrs = labels, replicate, attrs
        self._kept: list[Entries] = []

    def append(self, entries: Entries) -> None:
        self._kept.append(entries)

    def __len__(self) -> int:
        return len(self._kept)

    def dataset(self) -> xr.Dataset:
        return packed(self._kept, self._labels, self._replicate, self._attrs)


class StoreTrack:
    """The records of one layer on one probe set, in one group of a Zarr store.

    Written to disk in this order: all other variables, the names of the arrays where there are new ones,
    then ``time``. It grows before it is written, and holds NaN in between, so that the records before its first NaN are whole. Where a chunk of it begins,
    it is written first of all, as infinity in place of NaN, which Zarr would not write: so a chunk of
    ``time`` that is missing where other variables have records was lost, not left unwritten by a kill.
    """

    def __init__(self, group: zarr.Group) -> None:
        self.group = group
        self._waiting: list[Entries] = []
        self.written = _whole(group)
        with quiet_zarr(), telling(_place(group), group.path):
            self._arrays = dict(group.arrays())
            for name, array in self._arrays.items():
                rows = array.chunks[min(1, array.ndim - 1)]
                if name in FIXED:
                    array[:]  # small, and damage to it is better told before more is recorded
                elif self.written % rows:
                    # The next flush reads the last chunk, to write what it holds and more.
                    array[(self.written - 1,) if name in CLOCK else (0, self.written - 1)]

    @classmethod
    def create(
        cls,
        root: zarr.Group,
        path: str,
        labels: np.ndarray,
        replicate: int,
        attrs: Mapping[str, Any],
    ) -> StoreTrack:
        """A new group, without records."""
        group = root.create_group(path, attributes={**attrs, "coordinates": "label iteration"})
        for name, values, dim in (
            ("label", labels, "sample"),
            ("replicate", np.array([replicate]), "replicate"),
        ):
            array = group.create_array(
                name,
                shape=values.shape,
                dtype=values.dtype,
                compressors=Crc32cCodec(),
                fill_value=never(values.dtype),
                dimension_names=[dim],
            )
            array[:] = values
        return cls(group)

    def append(self, entries: Entries) -> None:
        for name, (_, value) in entries.items():
            known = self._arrays.get(name)
            if known is not None and name not in CLOCK and known.shape[2:] != value.shape:
                raise ValueError(
                    f"store holds {name} of shape {known.shape[2:]} for layer "
                    f"{self.group.attrs['layer']!r}; the model now gives {value.shape}. Resume with the "
                    f"model that the store was begun with."
                )
        self._waiting.append(entries)

    def __len__(self) -> int:
        return self.written + len(self._waiting)

    @property
    def waiting(self) -> int:
        """Records that are not on disk."""
        return len(self._waiting)

    @property
    def full(self) -> bool:
        """Whether what waits fills a chunk."""
        return bool(self._waiting) and len(self._waiting) >= _records_a_chunk(self._waiting[0])

    def flush(self) -> None:
        """Write what waits. An interrupt in the middle of it loses nothing: the next flush begins again."""
        if not self._waiting:
            return
        first, end = self.written, self.written + len(self._waiting)
        begun = -(-first // _CLOCK_CHUNK) * _CLOCK_CHUNK
        if begun < end:
            self._grown("time", end)[begun:end] = np.inf
        for name in sorted(self._waiting[0], key=lambda name: name == "time"):
            if name == "time" and self.group.attrs.get(_HELD) != sorted(self._arrays):
                self.group.attrs[_HELD] = sorted(self._arrays)
            values = np.stack([entries[name][1] for entries in self._waiting])
            array = self._grown(name, end)
            array[(slice(first, end),) if name in CLOCK else (0, slice(first, end))] = values
        self.written, self._waiting = end, []

    def _grown(self, name: str, end: int) -> zarr.Array:
        """An array of so many records, made where it is new."""
        dims, example = self._waiting[0][name]
        if name not in self._arrays:
            self._arrays[name] = self._new(name, dims, example)
        self._arrays[name].resize((end,) if name in CLOCK else (1, end, *example.shape))
        return self._arrays[name]

    def clock(self, records: int) -> dict[str, np.ndarray]:
        """Times and iterations of the first records."""
        if records == 0:
            return {"time": np.empty(0), "iteration": np.empty(0, dtype=int)}
        return {name: np.asarray(self._arrays[name][:records]) for name in ("time", "iteration")}

    def cut(self, records: int) -> None:
        """Keep the first records only."""
        self._waiting = []
        if "time" in self._arrays and self._arrays["time"].shape[0] > records:
            # First of all: what is cut must not be taken for whole if the program is killed here, nor
            # when the array, whose last chunk keeps its numbers, grows again.
            self._arrays["time"][records:] = np.inf
        for name, array in sorted(self._arrays.items(), key=lambda item: item[0] == "time"):
            if name in CLOCK:
                array.resize((records,))
            elif name not in FIXED:
                array.resize((1, records, *array.shape[2:]))
        self.written = records

    def dataset(self) -> xr.Dataset:
        self.flush()
        return open_track(self.group)

    def _new(self, name: str, dims: tuple[str, ...], example: np.ndarray) -> zarr.Array:
        """A new array of length 0 along time."""
        clock = name in CLOCK
        rows = _CLOCK_CHUNK if example.ndim == 0 else _records_a_chunk(self._waiting[0])
        kind = np.asarray(example).dtype
        return self.group.create_array(
            name,
            shape=(0,) if clock else (1, 0, *example.shape),
            chunks=(rows,) if clock else (1, rows, *example.shape),
            dtype=kind,
            # Compressing features takes longer than computing them, a checksum does not.
            compressors=Crc32cCodec(),
            fill_value=np.nan if kind.kind == "f" else never(kind),
            dimension_names=["time"] if clock else ["replicate", "time", *dims],
            attributes=dict(ABOUT.get(name, {})),
        )


Track = MemoryTrack | StoreTrack


class Store:
    """A Zarr store of several tracks, flushed when chunks are full, at the latest after some seconds, and
    at the end of the program."""

    def __init__(self, path: Path, tracks: Iterable[StoreTrack]) -> None:
        self.path = path
        self._tracks = list(tracks)
        self.process = os.getpid()
        self._flushed = time.monotonic()
        _open_stores.append(self)

    @property
    def waiting(self) -> int:
        """Records that are not on disk."""
        return max(track.waiting for track in self._tracks)

    def appended(self) -> None:
        """To be called after every record."""
        if time.monotonic() - self._flushed > _PATIENCE:
            self.flush()
        self._write([track for track in self._tracks if track.full])

    def flush(self) -> None:
        self._write(self._tracks)
        self._flushed = time.monotonic()

    def close(self) -> None:
        self.flush()
        if self in _open_stores:
            _open_stores.remove(self)

    def dropped(self) -> None:
        """To be called when nothing refers to the recorder any more.

        Python may notice that anywhere, also inside Zarr and with its locks held. So nothing is written
        here.
        """
        _dropped.append(self)

    def reopen(self) -> None:
        """Write at the end of the program again."""
        if self not in _open_stores:
            _open_stores.append(self)

    def _write(self, tracks: Iterable[StoreTrack]) -> None:
        try:
            with settled():
                for track in tracks:
                    track.flush()
        except OSError as error:
            told = (
                f"store {str(self.path)!r} cannot be written ({error.strerror or error}); its last "
                f"{_records(self.waiting)} in memory. Mend the cause, then call flush() or close()."
            )
            raise OSError(error.errno, told) if error.errno else OSError(told) from error


_open_stores: list[Store] = []
_dropped: list[Store] = []
"""Stores whose recorders are gone, still to be written."""


def write_dropped() -> None:
    """Write the stores of recorders that were dropped without being closed."""
    while _dropped:
        try:
            store = _dropped.pop()
        except IndexError:  # another thread took it
            return
        if store.process != os.getpid():
            continue
        try:
            store.close()
        except Exception as error:
            message = f"{error} They are tried again at the end of the program."
            warnings.warn(message, RuntimeWarning, stacklevel=3)


def _flush_all() -> None:
    """Write all that is not written, at the end of the program; where that fails, say what is lost."""
    failed = False
    for store in list(_open_stores):
        if store.process != os.getpid():
            continue  # a copy in a forked process, such as a worker of a DataLoader
        try:
            store.flush()
        except BaseException as error:  # also an interrupt: the other stores are to be written
            failed = True
            reason = error.__cause__ if isinstance(error.__cause__, OSError) else error
            _say(
                f"lesde: error: the last {_records(store.waiting)} not written to store "
                f"{str(store.path)!r} and lost: {reason or type(error).__name__}"
            )
    if failed:
        _fail()


def _records(number: int) -> str:
    return f"{number} record{' is' if number == 1 else 's are'}"


def _say(message: str) -> None:
    with contextlib.suppress(Exception):
        print(message, file=sys.stderr, flush=True)


def _fail() -> None:
    """Have the program end with a status that is not 0.

    Nothing that runs at the end of a program can set it, and leaving at once (``os._exit``) would take
    the end from everybody else: other exit handlers, notebooks, pytest. But Python itself ends with status
    120 where a standard stream cannot write what it holds, which is what happened here.
    """
    if multiprocessing.parent_process() is not None:
        # Such a child leaves by os._exit, with status 1 after an error.
        raise OSError("records were not written")
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


def open_track(group: zarr.Group) -> xr.Dataset:
    """The whole records of one group, read from disk when they are used."""
    count = _whole(group)
    if count == 0:
        raise ValueError(
            f"store group {shown(group.path)} holds no record yet; train on, or call record()."
        )
    place, names = _place(group), [name for name, _ in group.arrays()]
    lengths = {
        array.shape[name not in CLOCK] for name, array in group.arrays() if name not in FIXED
    }
    if len(lengths) == 1:
        dataset = opened(place, group.path)
    else:
        # The program was killed in the middle of a flush, or is in the middle of one now.
        parts = []
        for name in names:
            part = opened(place, group.path, [n for n in names if n != name])
            parts.append(part.isel(time=slice(count)) if "time" in part.dims else part)
        dataset = xr.merge(parts, join="exact", combine_attrs="override")
    dataset.attrs.pop(_HELD, None)
    return with_rate(dataset.isel(time=slice(count)))


def _whole(group: zarr.Group) -> int:
    """Records before the first whose time was not written.

    Raises
    ------
    ValueError
        If an array or a file of a record is missing, or the metadata or the clock are damaged.
    """
    place, held = _place(group), cast("list[str]", group.attrs.get(_HELD, []))
    arrays = _arrays(group)
    grow = {name: int(name not in CLOCK) for name in arrays if name not in (*FIXED, "time")}
    longest = max((arrays[name].shape[axis] for name, axis in grow.items()), default=0)
    for name in (*FIXED, *held, *(("time",) if longest else ())):
        if name not in arrays:
            raise damaged(place, place / group.path / name / "zarr.json", "is missing")
    with telling(place, f"{group.path}/time"):
        clock = np.asarray(arrays["time"][:]) if "time" in arrays else np.empty(0)
    missing = ~np.isfinite(clock)
    count = int(np.argmax(missing)) if missing.any() else len(missing)
    rows = {name: (axis, count) for name, axis in grow.items()} | {"time": (0, longest)}
    check_chunks(place, group.path, arrays, rows, nan=True)
    return count


def _arrays(group: zarr.Group) -> dict[str, zarr.Array]:
    """The arrays in a group as they are on disk."""
    found = arrays_of(_place(group), group.path)
    return {name.removeprefix(f"{group.path}/"): array for name, array in found.items()}


def _place(group: zarr.Group) -> Path:
    """The folder of the store that a group is in."""
    return Path(getattr(group.store, "root", ""))


def _records_a_chunk(entries: Entries) -> int:
    size = max(1, np.asarray(entries["features"][1]).nbytes)
    return int(np.clip(_CHUNK // size, 1, _LONGEST))


# --------------------------------------------------------------------------------------------------
# Stores of the recorder: begun, found again, and looked into.

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


# --------------------------------------------------------------------------------------------------


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
        Whether all replicates must have the same times, or those that all have are kept (where one run
        was stopped early).

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
        is told then, by a ValueError that names the store and the file in it.

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
    given = _listed(stores)
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
    for name, value in (("layer", layer), ("probe", probe)):
        if not isinstance(value, str | None):
            raise TypeError(f"{name} must be a name; got {shown(value)}.")
    if isinstance(source, xr.Dataset):
        return _checked(source, layer, probe)
    if isinstance(source, str | Path):
        return _from_store(source, layer, probe)
    if not _records_of_callback_records(source):
        raise _no_source(source)
    return source.paths(layer, probe)


def _listed(stores: Any) -> list[Any]:
    if isinstance(stores, str | Path | xr.Dataset) or _records_of_callback_records(stores):
        return [stores]
    try:
        return list(stores)
    except TypeError:
        raise _no_source(stores) from None


def _records_of_callback_records(source: Any) -> bool:
    """Whether it is a recorder, known by what it can do: LightningRecorder would import Lightning."""
    return callable(getattr(source, "paths", None))


def _no_source(source: Any) -> TypeError:
    return TypeError(
        f"stores must be paths of stores, recorders, datasets that these gave, or a sequence of them; "
        f"got {shown(source)}."
    )


def _checked(paths: xr.Dataset, layer: str, probe: str | None) -> xr.Dataset:
    for name, wanted in (("layer", layer), ("probe", probe)):
        known = paths.attrs.get(name)
        if known is None or "replicate" not in paths["features"].dims:
            raise ValueError(
                "stores must hold datasets as lesde.record and Recorder.paths return them, with the "
                "attributes layer and probe and the dimension replicate."
            )
        if wanted is not None and wanted != known:
            raise ValueError(
                f"{name} must be {known!r}, which a dataset among stores holds; got {shown(wanted)}."
            )
    return paths


def _from_store(path: str | Path, layer: str, probe: str | None) -> xr.Dataset:
    tracks = tracks_of(path)
    if probe is None and len(tracks) == 1:
        (probe,) = tracks
    if probe not in tracks:
        raise ValueError(
            f"probe must be one of {', '.join(map(repr, tracks))}, as store {str(path)!r} holds them; got "
            f"{shown(probe)}."
        )
    if layer not in tracks[probe]:
        raise ValueError(
            f"layer must be one of {', '.join(map(repr, tracks[probe]))}, as store {str(path)!r} holds "
            f"them; got {shown(layer)}."
        )
    return open_track(tracks[probe][layer])
