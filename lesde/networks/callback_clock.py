"""The clock of a training loop, and when a record is due."""

from __future__ import annotations

import numbers
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from ..checks import check_finite_array, check_integer, check_real, check_sequence, shown

__all__ = ["Clock", "Schedule", "rate_of", "rate_reader", "schedule"]


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
