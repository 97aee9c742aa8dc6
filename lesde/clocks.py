"""Times on the grid of SGD's iterations, t = t0 + learning rate × iteration, and of integration steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any

import numpy as np

SLACK = 1e-6
"""Share of a step within which a time is on an iteration: it is a product or sum in floating point."""

MOST_ITERATIONS = 10**9
MOST_STEPS = 10**8


def iteration_counts(times: np.ndarray, rate: float) -> np.ndarray:
    """Iterations done at every saved time, (time,) of int: the nearest to (t − t₀)/h, each time another."""
    rounded = np.rint((times - times[0]) / rate)
    if not rounded[-1] <= MOST_ITERATIONS:
        raise ValueError(
            f"learning_rate={rate:g} needs {rounded[-1]:.3g} iterations to reach time {times[-1]:g}, "
            f"more than {MOST_ITERATIONS:.0e}; give a larger learning_rate, or engine='exact' or 'torchsde'."
        )
    counts = rounded.astype(np.int64)
    same = np.diff(counts) == 0
    if same.any():
        i = int(np.argmax(same))
        raise ValueError(
            f"learning_rate={rate:g} is coarser than the saved times: times {times[i]:g} and "
            f"{times[i + 1]:g} fall on the same iteration ({counts[i]}). Give times at least one learning rate apart."
        )
    return counts


class _Column:
    """A number of every step, worked out where it is asked for, as there may be 10⁸ of them."""

    def __init__(self, length: int, of: Callable[[Any], Any]):
        self._length, self._of = length, of

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, slice):
            key = np.arange(*key.indices(self._length))
        return self._of(key % self._length)


@dataclass(frozen=True)
class StepGrid:
    """The steps of a run: ``saved`` (time,) of them are done at each of the saved ``times``, evenly in between."""

    times: np.ndarray
    saved: np.ndarray

    @classmethod
    def regular(cls, times: np.ndarray, dt: float) -> StepGrid:
        """Steps of at most ``dt`` that divide every saved interval evenly."""
        # An interval that is a multiple of dt up to rounding gets just so many steps.
        needed = np.maximum(1, np.ceil(np.diff(times) / dt * (1 - 1e-12) - 1e-9))
        if needed.sum() > MOST_STEPS:
            raise ValueError(
                f"an integration step of {dt:g} needs {needed.sum():.3g} steps for these times, more "
                f"than {MOST_STEPS:.0e}; give a larger dt, or use engine='exact'."
            )
        return cls(times, np.concatenate([[0], np.cumsum(needed.astype(np.int64))]))

    @cached_property
    def interval_widths(self) -> np.ndarray:
        """Δ in every saved interval, shape (interval,)."""
        return np.diff(self.times) / np.diff(self.saved)

    def interval(self, steps: Any) -> Any:
        """The saved interval of a step, or of an array of them."""
        return np.searchsorted(self.saved, steps, side="right") - 1

    @property
    def starts(self) -> _Column:
        """Begin of every step; takes a number, a slice or an array of step numbers."""

        def begin(steps: Any) -> Any:
            i = self.interval(steps)
            return self.times[i] + (steps - self.saved[i]) * self.interval_widths[i]

        return _Column(int(self.saved[-1]), begin)

    @property
    def widths(self) -> _Column:
        """Duration of every step, likewise."""
        return _Column(
            int(self.saved[-1]), lambda steps: self.interval_widths[self.interval(steps)]
        )

    def stretches(self, length: int) -> Iterator[tuple[int, int, list[tuple[int, int]]]]:
        """Stretches of at most ``length`` steps: first, end, and (steps done, index) of the times saved in it."""
        total = int(self.saved[-1])
        for first in range(0, total, length):
            end = min(first + length, total)
            indices = range(*np.searchsorted(self.saved, [first, end], side="right"))
            yield first, end, [(int(self.saved[i]), i) for i in indices]


def seen_times(
    asked: np.ndarray, rates: Sequence[float], iterations: Sequence[np.ndarray]
) -> np.ndarray:
    """The times at which the states after these iterations are seen, one axis for all learning rates.

    ``iterations`` of each learning rate count from ``asked[0]``. Where such a time is the one asked for, up to
    rounding, it stays as it was given; where two learning rates see a state at different times, ValueError.
    """
    seen = []
    for rate, counts in zip(rates, iterations, strict=True):
        exact = asked[0] + rate * counts
        seen.append(np.where(np.abs(exact - asked) <= SLACK * rate, asked, exact))
        apart = np.abs(seen[-1] - seen[0]) > SLACK * min(rate, rates[0])
        if apart.any():
            i, step = int(np.argmax(apart)), common_step(rates)
            grid = "" if step is None else f" (multiples of {step:g} from times[0])"
            raise ValueError(
                f"times must fall on an iteration of every learning rate, or near the same ones, for one "
                f"axis of time to hold for all; near {asked[i]:g} learning rate {float(rates[0])!r} is seen "
                f"at {float(seen[0][i])!r} and learning rate {float(rate)!r} at {float(seen[-1][i])!r}. Give times that all share"
                f"{grid}, for example with lesde.networks.saving_times, or take one learning rate at a time."
            )
    return seen[0]


def common_step(rates: Sequence[float]) -> float | None:
    """The shortest time that is a whole number of steps at every learning rate; None where there is none."""
    largest, several = max(rates), 1
    for rate in rates:
        ratio = Fraction(largest / rate).limit_denominator(1000)
        if abs(float(ratio) * rate - largest) > 1e-9 * largest:
            return None
        several = math.lcm(several, ratio.denominator)
    return largest * several


def with_asked_times(coords: dict, asked: np.ndarray) -> dict:
    """Coordinates with ``asked_time`` beside ``time`` (name, values, ...) where they differ."""
    if np.array_equal(coords["time"][1], asked):
        return coords
    about = {"long_name": "time asked for", "description": "time is the nearest iteration's"}
    return {**coords, "asked_time": ("time", asked, about)}
