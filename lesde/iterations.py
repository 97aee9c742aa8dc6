"""Times on the grid of SGD's iterations: t = t0 + learning rate x iteration."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

__all__ = ["common_step", "seen_times", "with_asked_times"]

SLACK = 1e-6
"""Share of a step within which a time is on an iteration: it is a product or sum in floating point."""


def seen_times(
    asked: np.ndarray, rates: Sequence[float], iterations: Sequence[np.ndarray]
) -> np.ndarray:
    """The times at which the states after these iterations are seen, one axis for all learning rates.

    Where that is the time asked for, up to rounding, it stays as it was given.

    Parameters
    ----------
    asked : ndarray (time,)
    rates : sequence of float
    iterations : sequence of ndarray of int (time,)
        Of every learning rate, counted from ``asked[0]``.

    Raises
    ------
    ValueError
        Where two learning rates see a state at different times.
    """
    seen = []
    for rate, counts in zip(rates, iterations, strict=True):
        exact = asked[0] + rate * counts
        seen.append(np.where(np.abs(exact - asked) <= SLACK * rate, asked, exact))
        apart = np.abs(seen[-1] - seen[0]) > SLACK * min(rate, rates[0])
        if apart.any():
            i = int(np.argmax(apart))
            step = common_step(rates)
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
