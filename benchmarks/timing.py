"""Timing rows of a table side by side.

Every row is built, run once (compilation, caches), checked, and run once more at each thread setting
it offers; it keeps the faster one. Then come the rounds: in each, every row is timed once, so that a
machine that slows down slows all rows alike, and a ratio is taken within a round.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Row", "Section", "Skip", "cores", "measure"]

SHORTEST = 0.1
"""Seconds a timed sample lasts at least: fast calls are repeated within a round."""
PAGE = 4096
PEERS = ("numba", "jax", "diffrax", "equinox", "lineax")
"""Packages without which a row is left out."""


class Skip(Exception):
    """A row that cannot run here; the message says why."""


@dataclass
class Row:
    """One method.

    Attributes
    ----------
    name : str
    build : callable
        Sets up and returns the call that is timed.
    work : float
        What one call does, in the unit of the section.
    check : callable, optional
        Takes the result of the call, raises AssertionError where it is wrong, and returns numbers
        worth keeping.
    threads : tuple of int
        Thread counts to try; empty where the method decides itself.
    extra : dict
        Goes into the results as it is.
    """

    name: str
    build: Callable[[], Callable[[], Any]]
    work: float = 1.0
    check: Callable[[Any], Any] | None = None
    threads: tuple[int, ...] = ()
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass
class Section:
    """Rows that are compared with each other.

    Attributes
    ----------
    title : str
    rows : sequence of Row
    unit : str
        What ``work / seconds`` is called, or "ms" where milliseconds a call are to be shown.
    references : dict
        Name of a row to the heading of the column of ratios to it.
    """

    title: str
    rows: Sequence[Row]
    unit: str = "million/s"
    references: dict[str, str] = field(default_factory=dict)
    workload: dict[str, Any] = field(default_factory=dict)


def cores() -> int:
    """Cores this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on every system
        return os.cpu_count() or 1


def set_threads(count: int) -> None:
    """Threads of torch, and of numba where it is in use."""
    import torch

    torch.set_num_threads(count)
    if "numba" in sys.modules:
        import numba

        numba.set_num_threads(min(count, numba.config.NUMBA_NUM_THREADS))


def measure(
    section: Section,
    rounds: int,
    say: Callable[[str], object] = print,
    shortest: float = SHORTEST,
    memory: bool = False,
) -> dict[str, Any]:
    """Time a section; JSON-able.

    A row that raises is kept with its reason. ``seconds`` holds one number a round, for one call.
    With ``memory`` the peak of the process' memory above its start is kept for every row, in MB.
    """
    ready = [_prepare(row, say, memory) for row in section.rows]
    running = [entry for entry in ready if entry["status"] == "ok"]
    for turn in range(rounds):
        shift = turn % max(1, len(running))
        for entry in running[shift:] + running[:shift]:
            set_threads(entry["threads"] or cores())
            repeats = max(1, round(shortest / entry["_estimate"]))
            entry["seconds"].append(float(f"{_time(entry['_call'], repeats):.4g}"))
    set_threads(cores())
    rows = [{k: v for k, v in entry.items() if not k.startswith("_")} for entry in ready]
    return {
        "title": section.title,
        "unit": section.unit,
        "references": section.references,
        "workload": section.workload,
        "rows": rows,
    }


def _time(call: Callable[[], Any], repeats: int = 1) -> float:
    gc.collect()
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


def _prepare(row: Row, say: Callable[[str], object], memory: bool) -> dict[str, Any]:
    entry: dict[str, Any] = {"name": row.name, "work": row.work, "threads": None, **row.extra}
    try:
        set_threads(row.threads[0] if row.threads else cores())
        call = row.build()
        result = call()
        checked = None if row.check is None else row.check(result)
        del result
        best = None
        for count in row.threads or (None,):
            set_threads(count or cores())
            if memory:
                with PeakMemory() as peak:
                    seconds = _time(call)
                entry["peak_mb"] = peak.megabytes
            else:
                seconds = _time(call)
                if len(row.threads) > 1 and seconds < 0.5:
                    seconds = min(seconds, _time(call))
            if best is None or seconds < best[0]:
                best = (seconds, count)
        assert best is not None
    except Exception as error:  # any failure of a method is a result of the benchmark
        absent = error.name if isinstance(error, ModuleNotFoundError) else None
        if absent in PEERS or isinstance(error, Skip):
            reason = f"{absent} is not installed" if absent else str(error)
            say(f"  {row.name}: not run: {reason}")
            return entry | {"status": "skipped", "reason": reason}
        text = (str(error).splitlines() or [""])[0][:200]
        reason = f"{type(error).__name__}: {text}"
        say(f"  {row.name}: failed: {reason}")
        return entry | {"status": "failed", "reason": reason}
    entry |= {"status": "ok", "threads": best[1], "check": checked, "seconds": []}
    say(f"  {row.name}: {best[0] * 1e3:.3g} ms")
    return entry | {"_call": call, "_estimate": best[0]}


def _return_freed_memory() -> None:
    """Have the C library give back what was freed, or a later peak would fit into it unseen."""
    with contextlib.suppress(AttributeError, OSError, TypeError):  # only glibc has it
        ctypes.CDLL(None).malloc_trim(0)


class PeakMemory:
    """How far the process' resident memory rises inside the block, sampled every millisecond.

    ``megabytes`` is None where the system does not tell.
    """

    megabytes: float | None = None

    def __enter__(self) -> PeakMemory:
        gc.collect()
        _return_freed_memory()
        self._start = self._top = self._now()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()
        if self._start is not None and self._top is not None:
            self.megabytes = round((self._top - self._start) / 1e6, 1)

    @staticmethod
    def _now() -> int | None:
        try:
            with open("/proc/self/statm") as file:
                return int(file.read().split()[1]) * PAGE
        except OSError:
            return None

    def _watch(self) -> None:
        while not self._stop.wait(1e-3):
            now = self._now()
            if now is None or self._top is None:
                return
            self._top = max(self._top, now)
