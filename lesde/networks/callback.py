"""Recording in the user's own training loop."""

from __future__ import annotations

import numbers
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np
import xarray as xr
from torch import nn

from lesde.checks import (
    check_finite_array,
    check_flag,
    check_integer,
    check_path,
    check_real,
    check_sequence,
    shown,
)
from lesde.networks.callback_store import (
    Key,
    MemoryTrack,
    Store,
    StoreTrack,
    Track,
    found_tracks,
    new_tracks,
    write_dropped,
)
from lesde.networks.looking import Looker, Loss, Pooling
from lesde.networks.probes import read_probes
from lesde.networks.records import entries_of, track_attrs

__all__ = ["Clock", "Recorder", "Schedule", "rate_of", "rate_reader", "schedule"]


# --------------------------------------------------------------------------------------------------
# The clock of a training loop, and when a record is due.


class Clock:
    """Time as the sum of the learning rates of all steps, without the rounding of a long sum."""

    def __init__(self, iteration: int = 0, time: float = 0.0, rate: float | None = None) -> None:
        self.iteration = iteration
        self.rate = rate
        self._start = (iteration, time)

    def step(self, rate: float) -> None:
        """One step at the given learning rate."""
        if rate != self.rate:
            self._start, self.rate = (self.iteration, self.time), rate
        self.iteration += 1

    @property
    def time(self) -> float:
        """Now; to 12 digits, so that 3 steps of 0.1 end at 0.3."""
        first, begun = self._start
        passed = begun + (self.iteration - first) * (self.rate or 0.0)
        return float(f"{passed:.12g}")


class Schedule(Protocol):
    """When a record is due."""

    def due(self, clock: Clock) -> bool:
        """Whether to record now; asked after every step."""


class Every:
    """Every so many iterations, from 0 on."""

    def __init__(self, steps: int) -> None:
        self._steps = steps

    def due(self, clock: Clock) -> bool:
        return clock.iteration % self._steps == 0


class AtIterations:
    """At iterations that are listed."""

    def __init__(self, iterations: Sequence[int]) -> None:
        self._iterations = frozenset(iterations)

    def due(self, clock: Clock) -> bool:
        return clock.iteration in self._iterations


class AtTimes:
    """At the iteration nearest to each time that is listed; one record for times less than a step apart."""

    def __init__(self, times: np.ndarray) -> None:
        self._times = times
        self._next: int | None = None

    def due(self, clock: Clock) -> bool:
        # Half a step ahead, to the iteration nearest; a little more, for the rounding of the sum.
        half = 0.5 * (clock.rate or 0.0) * (1 - 1e-9)
        reached = clock.time + half
        if self._next is None:
            # Where a training goes on: what was due before now is past, not due now.
            self._next = int(np.searchsorted(self._times, clock.time - half))
        before = self._next
        while self._next < len(self._times) and self._times[self._next] <= reached:
            self._next += 1
        return self._next > before


def schedule(every: int | None, iterations: Any, times: Any, counts: bool = False) -> Schedule:
    """The one schedule that is given; ``counts`` says that time counts iterations."""
    given = {"every": every, "iterations": iterations, "times": times}
    named = [name for name, value in given.items() if value is not None]
    if len(named) != 1:
        raise ValueError(
            f"one of every, iterations and times must say when to record; got "
            f"{' and '.join(named) or 'none'}."
        )
    if every is not None:
        return Every(check_integer("every", every))
    if iterations is not None:
        listed = check_sequence("iterations", iterations, "a sequence of integers")
        if not listed:
            raise ValueError("iterations must hold at least one iteration; got none.")
        return AtIterations([check_integer(f"iterations[{n}]", i, 0) for n, i in enumerate(listed)])
    found = check_finite_array("times", times, [("T",)])
    if len(found) == 0 or (np.diff(found) <= 0).any() or found[0] < 0:
        raise ValueError(
            f"times must be strictly increasing and at least 0; got {shown(found.tolist())}."
        )
    if counts and (found != np.rint(found)).any():
        raise ValueError(
            f"times must be whole numbers where no learning_rate is given, for time counts iterations "
            f"then; got {shown(found.tolist())}. Give learning_rate= if these are sums of learning rates."
        )
    return AtTimes(found)


def rate_reader(learning_rate: Any) -> Callable[[], float]:
    """A function that tells the learning rate of the step just taken."""
    if learning_rate is None:
        return lambda: 1.0
    if hasattr(learning_rate, "param_groups"):
        return lambda: rate_of(learning_rate)
    if callable(learning_rate):
        return lambda: _returned(learning_rate)
    if isinstance(learning_rate, bool) or not isinstance(learning_rate, numbers.Real):
        remedy = ""
        if hasattr(learning_rate, "get_last_lr"):
            remedy = " In place of a scheduler give its optimiser, which the scheduler sets."
        raise TypeError(
            f"learning_rate must be a real number, a torch.optim.Optimizer, or a function that takes "
            f"nothing and returns a number; got {_named(learning_rate)}.{remedy}"
        )
    rate = check_real("learning_rate", learning_rate, 0.0, open_minimum=True)
    return lambda: rate


def rate_of(optimizer: Any) -> float:
    """The learning rate that all groups of an optimiser have now."""
    rates = {float(group["lr"]) for group in optimizer.param_groups}
    if len(rates) > 1:
        raise ValueError(
            f"learning_rate must be one number, but the groups of the optimiser have "
            f"{', '.join(f'{rate:.8g}' for rate in sorted(rates))}; give a number or a function."
        )
    return rates.pop()


def _returned(function: Callable[[], Any]) -> float:
    value = function()
    try:
        return float(value)
    except (TypeError, ValueError):
        raise TypeError(
            f"learning_rate must return a real number where it is a function; it returned "
            f"{_named(value)}."
        ) from None


def _named(value: Any) -> str:
    """A plain value as it is; of anything larger its kind, for what it prints says little."""
    plain = isinstance(value, str | bool | int | float | list | tuple | dict)
    return shown(value) if plain else type(value).__name__


# --------------------------------------------------------------------------------------------------


class Recorder:
    """Features of any layers of a model, recorded while the user's own loop trains it.

    Call :meth:`step` after every step of the optimiser; it costs next to nothing where no record is due.
    A record takes the features as :func:`lesde.record` does and leaves no trace in the model. The state
    at the start (iteration 0) is recorded at once where the schedule holds it.

    With ``store`` records go to a Zarr store, several at once: when a chunk of about 8 MB is full, at the
    latest after 30 seconds, and when the recorder is closed, the ``with`` block is left (also by an
    error) or the program ends (also by Ctrl-C). Those of a recorder that is dropped without being closed
    are written at the next step of another recorder, when a store is opened, or when the program ends. A
    program that is killed loses what it recorded since the last write; all else stays readable. Chunks
    are not compressed, for speed, but have a checksum.

    Records that cannot be written (on a full disk, say) are an error that names the store, and wait in
    memory to be written by a later :meth:`flush` or :meth:`close`. Where they cannot be written when the
    program ends either, that is said on stderr, and the exit status is 120.

    Parameters
    ----------
    model, layers, probe, loss, pooling, dtype, batch_size
        As for :func:`lesde.record`. The probe set is read once and kept in memory.
    store : str or path, optional
        Where to write. Default: in memory.
    every : int, optional
        Record every so many iterations, from 0 on. One of ``every``, ``iterations`` and ``times`` is
        needed.
    iterations : sequence of int, optional
        The iterations to record at, for example ``numpy.unique(numpy.geomspace(1, 10_000, 50).astype(int))``.
    times : sequence of float, optional
        Times on the clock; each is recorded at the nearest iteration. Whole numbers where no
        ``learning_rate`` is given. :func:`lesde.networks.saving_times` makes them.
    learning_rate : float, torch.optim.Optimizer or callable, optional
        What a step adds to the clock. Of an optimiser the rate is read at every step (an error where its
        groups have several, also later on), so call
        :meth:`step` before that of a scheduler of the learning rate; a callable takes nothing, is
        called once when the recorder is made and at every :meth:`step`, and returns the rate of the step
        just taken. Default: 1, time counts iterations.
    replicate : int, default 0
        Number of this run among repeated ones; :func:`lesde.networks.open_records` joins recorders, or
        their stores, over it.
    resume : bool, default False
        Go on with an existing store, at its last record; the model is to be as it was there. Without it
        an existing store is an error.
    state : dict, optional
        What :meth:`state_dict` gave when the model was saved, to go on from there. Records after it
        are dropped from the store, for the training to come makes them again.

    Raises
    ------
    TypeError, ValueError
        If an argument is out of range, the model does not take the probe set, or a store does not fit or
        is damaged.
    FileExistsError
        If the store exists and ``resume`` is False.
    OSError
        If the store cannot be written.
    Diverged
        From :meth:`step`, if a recorded feature is not finite.

    Notes
    -----
    A record costs one forward pass over the probe set. Training costs about three a sample, so R records
    of n probe samples cost less than a tenth of it where it sees more than about 4 R n samples in all. A
    record at which the clock has not moved since the last (a learning rate of 0) is left out.

    The clock adds the learning rate as the optimiser holds it. With momentum μ (without dampening) a
    gradient goes on to act in later steps, and in all moves the parameters by lr/(1-μ) of it: at the same
    time on this clock a run with μ = 0.9 is about ten times as far as one without momentum. To compare
    runs of different momentum let a callable return lr/(1-μ)::

        learning_rate=lambda: optimiser.param_groups[0]["lr"] / (1 - 0.9)

    Examples
    --------
    >>> import torch, lesde
    >>> from lesde.networks import digits, mlp
    >>> data, model = digits(classes=4), mlp(64, (32,), 4)
    >>> x, y = torch.tensor(data.train_x), torch.tensor(data.train_y)
    >>> optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> with lesde.Recorder(
    ...     model, "penultimate", data, every=10, learning_rate=optimiser
    ... ) as recorder:
    ...     for _ in range(50):
    ...         optimiser.zero_grad()
    ...         torch.nn.functional.cross_entropy(model(x), y).backward()
    ...         optimiser.step()
    ...         recorder.step()
    >>> recorder.paths("penultimate").time.values
    array([0., 1., 2., 3., 4., 5.])
    """

    def __init__(
        self,
        model: nn.Module,
        layers: str | Sequence[str],
        probe: Any,
        *,
        store: str | Path | None = None,
        every: int | None = None,
        iterations: Sequence[int] | np.ndarray | None = None,
        times: Sequence[float] | np.ndarray | None = None,
        learning_rate: Any = None,
        loss: Loss = "cross_entropy",
        pooling: Pooling = "flatten",
        dtype: str = "float32",
        batch_size: int = 256,
        replicate: int = 0,
        resume: bool = False,
        state: Mapping[str, float] | None = None,
    ) -> None:
        self._schedule = schedule(every, iterations, times, counts=learning_rate is None)
        self._read_rate = rate_reader(learning_rate)
        self._rate = self._checked_rate()
        self._replicate = check_integer("replicate", replicate, 0)
        self._probes = read_probes(probe)
        first = next(iter(self._probes.values()))
        self._looker = Looker(
            model,
            layers,
            first,
            loss=loss,
            pooling=pooling,
            dtype=dtype,
            batch_size=batch_size,
        )
        self._loss, self._closed = loss, False
        self._several = isinstance(probe, Mapping)
        about = {
            "layers": list(self._looker.layers),
            "replicate": self._replicate,
            "dtype": dtype,
            "pooling": pooling if isinstance(pooling, str) else pooling.__name__,
            "probes": {name: one.digest() for name, one in self._probes.items()},
        }
        self._tracks: dict[Key, Track] = {}
        self._store = None
        resume = check_flag("resume", resume)
        if store is not None:
            self._store = self._opened(check_path("store", store), about, resume)
        else:
            for name, one in self._probes.items():
                for layer in self.layers:
                    attrs = self._attrs(name, layer)
                    self._tracks[name, layer] = MemoryTrack(one.labels, self._replicate, attrs)
        self._clock, self._last = self._begin(state)
        if self._schedule.due(self._clock):
            self.record()

    @property
    def iteration(self) -> int:
        """Steps taken so far."""
        return self._clock.iteration

    @property
    def time(self) -> float:
        """Sum of their learning rates."""
        return self._clock.time

    @property
    def layers(self) -> tuple[str, ...]:
        """The recorded layers."""
        return self._looker.layers

    @property
    def probes(self) -> tuple[str, ...]:
        """Names of the probe sets."""
        return tuple(self._probes)

    def step(self) -> None:
        """Count one step of the optimiser, and record where a record is due."""
        self._check_open()
        write_dropped()
        self._advance([self._checked_rate()])

    def record(self) -> None:
        """Record now, whatever the schedule says; nothing where this iteration has been recorded."""
        self._check_open()
        now = self._clock.time
        if self._last is not None and now <= self._last:
            return
        # All looks first, so that tracks stay equally long where one of them fails.
        looks = {name: self._looker.look(one, now) for name, one in self._probes.items()}
        for (name, layer), track in self._tracks.items():
            look, iteration = looks[name], self._clock.iteration
            track.append(entries_of(self._looker, look, layer, now, iteration, self._rate))
        self._last = now
        if self._store is not None:
            self._store.appended()

    def paths(self, layer: str, probe: str | None = None) -> xr.Dataset:
        """The records so far of one layer.

        Parameters
        ----------
        layer : str
        probe : str, optional
            Name of the probe set; needed where there are several.

        Returns
        -------
        xarray.Dataset
            As :func:`lesde.record` returns, with all records along ``time``; also ``step_size (time)``,
            the learning rate of the step before each, and the coordinate ``learning_rate`` where it
            never changed. From a store values are read when they are used.
        """
        probe = self.probes[0] if probe is None and len(self._probes) == 1 else probe
        if (probe, layer) not in self._tracks:
            raise ValueError(
                f"layer and probe must be among {', '.join(map(repr, self.layers))} and "
                f"{', '.join(map(repr, self.probes))}; got {shown(layer)} and {shown(probe)}."
            )
        if self._last is None:
            raise ValueError("the recorder holds no record yet; train on, or call record().")
        return self._tracks[probe, layer].dataset()  # type: ignore[index]

    def records(self) -> dict[str, Any]:
        """The records so far of all layers, as :func:`lesde.record` returns them for several.

        Returns
        -------
        dict of str to xarray.Dataset, or dict of str to such a dict
            By layer; where ``probe`` named several sets, by the name of the set first. That is what
            :func:`lesde.layer_collapse` takes.
        """
        found = {
            name: {layer: self.paths(layer, name) for layer in self.layers} for name in self._probes
        }
        return found if self._several else found["probe"]

    def flush(self) -> None:
        """Write all records to the store now."""
        if self._store is not None:
            self._store.flush()

    def close(self) -> None:
        """Write all records; no more can be added, but :meth:`paths` still works."""
        if self._store is not None:
            self._store.close()
        self._closed = True

    def __repr__(self) -> str:
        records = len(next(iter(self._tracks.values())))
        return (
            f"<Recorder at iteration {self.iteration}, time {self.time:g}: "
            f"layers {_listed(self.layers)}; probes {_listed(self.probes)}; "
            f"{records} record{'s' if records != 1 else ''}>"
        )

    def state_dict(self) -> dict[str, float]:
        """The clock, to be saved with the model; see ``state``. Records so far are written."""
        self.flush()
        return {"iteration": self.iteration, "time": self.time}

    def __enter__(self) -> Recorder:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _advance(self, rates: Sequence[float]) -> None:
        """Count steps at these rates; one record after them all where one is due after any of them."""
        due = False
        for rate in rates:
            self._rate = rate
            self._clock.step(rate)
            due = self._schedule.due(self._clock) or due
        if due:
            self.record()

    def _reopen(self) -> None:
        """Undo :meth:`close`."""
        self._closed = False
        if self._store is not None:
            self._store.reopen()

    def _checked_rate(self) -> float:
        return check_real("learning_rate", self._read_rate(), 0.0)

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError("the recorder is closed; make another one with resume=True to go on.")

    def _begin(self, state: Mapping[str, float] | None) -> tuple[Clock, float | None]:
        """Clock, and time of the last record that stays."""
        if state is not None:
            if not isinstance(state, Mapping) or not {"iteration", "time"} <= set(state):
                raise ValueError(
                    f"state must hold 'iteration' and 'time', as state_dict() gives them; got "
                    f"{shown(state)}."
                )
            iteration = check_integer("state['iteration']", state["iteration"], 0)
            clock = Clock(iteration, check_real("state['time']", state["time"], 0.0), self._rate)
        else:
            clock = Clock(rate=self._rate)
        stored = [t for t in self._tracks.values() if isinstance(t, StoreTrack)]
        if not stored:
            return clock, None
        whole = min(track.written for track in stored)
        seen = stored[0].clock(whole)
        if state is not None:
            whole = int(np.searchsorted(seen["iteration"], clock.iteration, side="right"))
        for track in stored:
            track.cut(whole)
        if whole == 0:
            return clock, None
        last = float(seen["time"][whole - 1])
        if state is None:
            clock = Clock(int(seen["iteration"][whole - 1]), last, self._rate)
        return clock, last

    def _opened(self, path: Path, about: dict[str, Any], resume: bool) -> Store:
        write_dropped()
        path = path.expanduser()
        if path.exists() and not resume:
            raise FileExistsError(
                f"store {str(path)!r} exists. Give resume=True to go on with it, name another store, or "
                f"remove it."
            )
        if path.exists():
            keys = [(name, layer) for name in self._probes for layer in self.layers]
            tracks = found_tracks(path, about, keys)
        else:
            contents = {
                (name, layer): (one.labels, self._attrs(name, layer))
                for name, one in self._probes.items()
                for layer in self.layers
            }
            tracks = new_tracks(path, about, contents)
        self._tracks.update(tracks)
        store = Store(path, tracks.values())
        # A recorder that is dropped without being closed leaves its records to be written.
        weakref.finalize(self, store.dropped).atexit = False
        return store

    def _attrs(self, probe: str, layer: str) -> dict[str, Any]:
        return track_attrs(self._looker, self._probes[probe], probe, layer, self._loss)


def _listed(names: Sequence[str], most: int = 6) -> str:
    """The first of many names, and how many they are."""
    more = f", … ({len(names)})" if len(names) > most else ""
    return ", ".join(names[:most]) + more
