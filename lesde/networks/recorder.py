"""Recording in the user's own training loop: a clock, a schedule, and records in memory or in a store."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from torch import nn

from lesde.checks import (
    check_flag,
    check_integer,
    check_path,
    check_real,
    check_sequence,
    check_times,
    shown,
)
from lesde.networks.looking import Looker, Loss, Pooling
from lesde.networks.probes import read_probes
from lesde.networks.record_store import Records
from lesde.networks.recording import track_attrs


class Clock:
    """Time as the sum of the learning rates of all steps, without the rounding of a long sum."""

    def __init__(self, iteration: int = 0, time: float = 0.0, rate: float = 0.0) -> None:
        self.iteration, self.rate, self._start = iteration, rate, (iteration, time)

    def step(self, rate: float) -> None:
        """One step at the given learning rate."""
        if rate != self.rate:
            self._start, self.rate = (self.iteration, self.time), rate
        self.iteration += 1

    @property
    def time(self) -> float:
        """Now; to 12 digits, so that 3 steps of 0.1 end at 0.3."""
        first, begun = self._start
        return float(f"{begun + (self.iteration - first) * self.rate:.12g}")


def _schedule(
    every: int | None, iterations: Any, times: Any, counts: bool
) -> Callable[[Clock], bool]:
    """A function that returns, after every step, if a record is due; ``counts``: time counts iterations."""
    if sum(value is not None for value in (every, iterations, times)) != 1:
        raise ValueError(
            f"one of every, iterations and times must say when to record; got every={every}, "
            f"iterations={shown(iterations)} and times={shown(times)}."
        )
    if every is not None:
        steps = check_integer("every", every)
        return lambda clock: clock.iteration % steps == 0
    if iterations is not None:
        listed = check_sequence("iterations", iterations, "a sequence of integers")
        wanted = {check_integer(f"iterations[{n}]", i, 0) for n, i in enumerate(listed)}
        return lambda clock: clock.iteration in wanted
    found = check_times("times", times, 1)
    check_real("times[0]", found[0], 0.0)
    if counts and (found != np.rint(found)).any():
        raise ValueError(
            f"times must be whole numbers where no learning_rate is given, for time counts iterations "
            f"then; got {shown(found.tolist())}."
        )
    reached: int | None = None

    def due(clock: Clock) -> bool:
        nonlocal reached
        # Half a step ahead, to the iteration nearest; a little more, for the rounding of the sum.
        half = 0.5 * clock.rate * (1 - 1e-9)
        if reached is None:
            # Where a training goes on: what was due before now is past, not due now.
            reached = int(np.searchsorted(found, clock.time - half))
        before, reached = reached, int(np.searchsorted(found, clock.time + half, side="right"))
        return reached > before

    return due


def _rate_reader(learning_rate: Any) -> Callable[[], float]:
    """A function that returns the learning rate of the step just taken."""
    if hasattr(learning_rate, "param_groups"):
        return lambda: rate_of(learning_rate)
    if callable(learning_rate):
        return lambda: check_real("learning_rate", float(learning_rate()), 0.0)
    if hasattr(learning_rate, "get_last_lr"):
        raise TypeError("learning_rate must not be a scheduler; give its optimiser, which it sets.")
    rate = 1 if learning_rate is None else learning_rate
    rate = check_real("learning_rate", rate, 0.0, open_minimum=True)
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


class Recorder:
    """Features of any layers of a model, recorded while the user's own loop trains it.

    Call :meth:`step` after every step of the optimiser; it costs next to nothing where no record is due.
    A record takes the features as :func:`lesde.record` does and, like it, leaves parameters, buffers, modes
    and random numbers as they were. The state at the start (iteration 0) is recorded at once where the
    schedule holds it.

    With ``store`` records go to a Zarr store, several at once: when a chunk of about 8 MB is full, at the
    latest after 30 seconds, and when the recorder is closed, the ``with`` block is left (also by an
    error) or the program ends (also by Ctrl-C). A program that is killed loses what it recorded since the
    last write; all else stays readable. If records cannot be written (on a full disk, say), an error names
    the store, and they wait in memory for a later :meth:`flush` or :meth:`close`; at the end of the program
    a line on stderr says that they are lost.

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
        The iterations to record at.
    times : sequence of float, optional
        Times on the clock, as :func:`lesde.networks.saving_times` makes them; each is recorded at the
        nearest iteration.
    learning_rate : float, torch.optim.Optimizer or callable, optional
        What a step adds to the clock. The rate of an optimiser is read at every step, so call :meth:`step`
        before the step of a learning-rate scheduler. A callable takes no arguments and returns the rate of
        the step just taken; it is called once when the recorder is made and at every :meth:`step`. Default:
        1, time counts iterations.
    replicate : int, default 0
        Number of this run among repeated ones; :func:`lesde.networks.open_records` joins recorders, or
        their stores, over it.
    resume : bool, default False
        Continue an existing store at its last record; the model must be in the state it had there.
    state : dict, optional
        What :meth:`state_dict` returned when the model was saved, to continue from there. Later records
        are dropped from the store, since training will make them again.

    Raises
    ------
    FileExistsError
        If the store exists and ``resume`` is False.
    Diverged
        From :meth:`step`, if a recorded feature is not finite.

    Notes
    -----
    R records of n samples cost less than a tenth of a training on more than about 4 R n samples in all. A record
    at which the clock has not moved since the last (a learning rate of 0) is left out.

    With momentum μ (without dampening) a gradient moves the parameters by lr/(1-μ) times itself in total: to
    compare runs of different momentum let a callable return that::

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
        self._due = _schedule(every, iterations, times, counts=learning_rate is None)
        self._read_rate = _rate_reader(learning_rate)
        rate = self._read_rate()
        replicate, resume = check_integer("replicate", replicate, 0), check_flag("resume", resume)
        self._probes = read_probes(probe)
        self.probes = tuple(self._probes)
        """Names of the probe sets."""
        self._several, self._closed = isinstance(probe, Mapping), False
        first = next(iter(self._probes.values()))
        self._looker = Looker(
            model, layers, first, loss=loss, pooling=pooling, dtype=dtype, batch_size=batch_size
        )
        self.layers = self._looker.layers
        """The recorded layers."""
        contents = {
            (name, layer): (one.labels, track_attrs(self._looker, one, name, layer, loss))
            for name, one in self._probes.items()
            for layer in self.layers
        }
        about: dict[str, Any] = {}
        path = None if store is None else check_path("store", store).expanduser()
        if path is not None:
            about = {
                "layers": list(self.layers),
                "replicate": replicate,
                "dtype": dtype,
                "pooling": pooling if isinstance(pooling, str) else str(pooling.__name__),
                "loss": next(iter(contents.values()))[1]["loss"],
                "probes": {name: one.digest() for name, one in self._probes.items()},
            }
        self._records = Records(contents, replicate, path, about, resume)
        self._last: float | None = None  # time of the last record
        self._clock = self._begun(state, rate)
        if self._due(self._clock):
            self.record()

    @property
    def iteration(self) -> int:
        """Steps taken so far."""
        return self._clock.iteration

    @property
    def time(self) -> float:
        """Sum of their learning rates."""
        return self._clock.time

    def step(self) -> None:
        """Count one step of the optimiser, and record where a record is due."""
        self._check_open()
        self._clock.step(self._read_rate())
        if self._due(self._clock):
            self.record()

    def record(self) -> None:
        """Record now, whatever the schedule, unless this iteration has been recorded."""
        self._check_open()
        now = self._clock.time
        if self._last is not None and now <= self._last:
            return
        looks = {
            (name, layer): entries
            for name, one in self._probes.items()
            for layer, entries in self._looker.look(
                one, now, self.iteration, self._clock.rate
            ).items()
        }
        self._last = now
        self._records.add(looks)

    def paths(self, layer: str, probe: str | None = None) -> xr.Dataset:
        """The records so far of one layer, and one probe set where there are several.

        As :func:`lesde.record` returns them, with all records along ``time``; also ``step_size (time)``, the
        learning rate of the step before each, and the coordinate ``learning_rate`` where it never changed. From a
        store values are read when they are used.
        """
        if probe is None and len(self._probes) == 1:
            (probe,) = self._probes
        if probe not in self.probes or layer not in self.layers:
            raise ValueError(
                f"layer and probe must be among {', '.join(map(repr, self.layers))} and "
                f"{', '.join(map(repr, self.probes))}; got {shown(layer)} and {shown(probe)}."
            )
        if self._last is None:
            raise ValueError("the recorder holds no record yet; train on, or call record().")
        return self._records.dataset((probe, layer))

    def records(self) -> dict[str, Any]:
        """The records so far of all layers, as :func:`lesde.record` returns them and :func:`lesde.layer_collapse` takes.

        A dict by layer; where ``probe`` named several sets, by the name of the set first.
        """
        found = {
            name: {layer: self.paths(layer, name) for layer in self.layers} for name in self._probes
        }
        return found if self._several else found["probe"]

    def flush(self) -> None:
        """Write all records to the store now."""
        self._records.flush()

    def close(self) -> None:
        """Write all records; no more can be added, but :meth:`paths` still works."""
        self.flush()
        self._closed = True

    def __repr__(self) -> str:
        return f"<Recorder at iteration {self.iteration}, time {self.time:g}: {len(self._records)} record(s)>"

    def state_dict(self) -> dict[str, float]:
        """The clock, to be saved with the model; see ``state``. Records so far are written."""
        self.flush()
        return {"iteration": self.iteration, "time": self.time}

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError("the recorder is closed; make another with resume=True to continue.")

    def _begun(self, state: Mapping[str, float] | None, rate: float) -> Clock:
        """The clock where recording begins or goes on; records after it are dropped."""
        times, iterations = self._records.clock()
        iteration, time = (int(iterations[-1]), float(times[-1])) if len(times) else (0, 0.0)
        if state is not None:
            if not isinstance(state, Mapping) or not {"iteration", "time"} <= set(state):
                raise ValueError(
                    f"state must hold 'iteration' and 'time', as state_dict() gives them; got "
                    f"{shown(state)}."
                )
            iteration = check_integer("state['iteration']", state["iteration"], 0)
            time = check_real("state['time']", state["time"], 0.0)
            times = times[: np.searchsorted(iterations, iteration, side="right")]
            self._records.cut(len(times))
        if len(times):
            self._last = float(times[-1])
        return Clock(iteration, time, rate)
