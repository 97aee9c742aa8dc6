"""Records on disk: Zarr arrays that grow along time, a few records at once."""

from __future__ import annotations

import atexit
import concurrent.futures.thread  # registers its exit handler, which has to come before ours
import contextlib
import os
import threading
import time
import warnings
import weakref
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import xarray as xr
import zarr
from zarr.core.sync import SyncError

from ..checks import shown
from .recording import ABOUT, CLOCK, Entries, packed, with_rate

__all__ = ["MemoryTrack", "Store", "StoreTrack", "open_track"]

_CHUNK = 8_000_000  # bytes of the features of one chunk, about
_LONGEST = 64  # records in one chunk at most
_CLOCK_CHUNK = 1024
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

    Written to disk in this order: all other variables, then ``time``. It grows before it is written, and
    holds NaN in between, so that the records before its first NaN are whole.
    """

    def __init__(self, group: zarr.Group) -> None:
        self.group = group
        self._waiting: list[Entries] = []
        self._arrays = dict(group.arrays())
        self.written = _whole(group)

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
        group.create_array("label", data=labels, dimension_names=["sample"])
        group.create_array("replicate", data=np.array([replicate]), dimension_names=["replicate"])
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
    def full(self) -> bool:
        """Whether what waits fills a chunk."""
        return bool(self._waiting) and len(self._waiting) >= _records_a_chunk(self._waiting[0])

    def flush(self) -> None:
        """Write what waits. An interrupt in the middle of it loses nothing: the next flush begins again."""
        if not self._waiting:
            return
        first, end = self.written, self.written + len(self._waiting)
        names = sorted(self._waiting[0], key=lambda name: name == "time")
        for name in names:
            dims, example = self._waiting[0][name]
            values = np.stack([entries[name][1] for entries in self._waiting])
            clock = name in CLOCK
            if name not in self._arrays:
                self._arrays[name] = self._new(name, dims, example)
            array = self._arrays[name]
            array.resize((end,) if clock else (1, end, *example.shape))
            array[(slice(first, end),) if clock else (0, slice(first, end))] = values
        self.written, self._waiting = end, []

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
            self._arrays["time"][records:] = np.nan
        for name, array in self._arrays.items():
            if name in CLOCK:
                array.resize((records,))
            elif name not in ("label", "replicate"):
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
            compressors=None,  # compressing features takes longer than computing them
            fill_value=np.nan if kind.kind == "f" else 0,
            dimension_names=["time"] if clock else ["replicate", "time", *dims],
            attributes=dict(ABOUT.get(name, {})),
        )


Track = MemoryTrack | StoreTrack


class Store:
    """A Zarr store of several tracks, flushed when chunks are full, at the latest after some seconds, and
    at the end of the program."""

    def __init__(self, tracks: Iterable[StoreTrack]) -> None:
        self._tracks = list(tracks)
        self.process = os.getpid()
        self._flushed = time.monotonic()
        _open_stores.add(self)

    def appended(self) -> None:
        """To be called after every record."""
        if time.monotonic() - self._flushed > _PATIENCE:
            self.flush()
        for track in self._tracks:
            if track.full:
                track.flush()

    def flush(self) -> None:
        for track in self._tracks:
            track.flush()
        self._flushed = time.monotonic()

    def close(self) -> None:
        self.flush()
        _open_stores.discard(self)

    def dropped(self) -> None:
        """Close when nothing refers to the recorder any more."""
        try:
            self.close()
        except SyncError:
            # Python noticed it in the thread that Zarr writes from, which cannot wait for itself.
            _left_for_the_end.append(self)

    def reopen(self) -> None:
        """Write at the end of the program again."""
        _open_stores.add(self)


_open_stores: weakref.WeakSet[Store] = weakref.WeakSet()
_left_for_the_end: list[Store] = []
"""Open stores that nothing else keeps alive."""


def _flush_all() -> None:
    for store in list(_open_stores):
        if store.process != os.getpid():
            continue  # a copy in a forked process, such as a worker of a DataLoader
        with contextlib.suppress(
            Exception
        ):  # the program ends, and the other stores are to be written
            store.flush()


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
    with quiet_zarr():
        try:
            dataset = _opened(group)
        except ValueError:
            # The program was killed in the middle of a flush: variables are of several lengths.
            names = [name for name, _ in group.arrays()]
            parts = []
            for name in names:
                part = _opened(group, drop_variables=[n for n in names if n != name])
                parts.append(part.isel(time=slice(count)) if "time" in part.dims else part)
            dataset = xr.merge(parts, join="exact", combine_attrs="override")
    return with_rate(dataset.isel(time=slice(count)))


def _whole(group: zarr.Group) -> int:
    """Records before the first whose time was not written."""
    if "time" not in group:
        return 0
    missing = ~np.isfinite(np.asarray(dict(group.arrays())["time"][:]))
    return int(np.argmax(missing)) if missing.any() else len(missing)


def _opened(group: zarr.Group, **options: Any) -> xr.Dataset:
    return xr.open_zarr(group.store, group=group.path, consolidated=False, chunks=None, **options)


@contextlib.contextmanager
def quiet_zarr() -> Iterator[None]:
    """Without what Zarr says about its own format."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*(Zarr V3|Zarr format 3|onsolidated).*")
        yield


def _records_a_chunk(entries: Entries) -> int:
    size = max(1, np.asarray(entries["features"][1]).nbytes)
    return int(np.clip(_CHUNK // size, 1, _LONGEST))
