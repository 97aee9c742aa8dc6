"""Clocks a metric can be followed on: continuous time, and the number of SGD iterations."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
import xarray as xr

from lesde.checks import check_choice, check_names, check_times

__all__ = ["CLOCKS", "Clock", "Clocks", "read_clocks"]

CLOCKS = ("time", "iteration")


class Clock(NamedTuple):
    """Abscissas of one curve, (T,): ``x`` of an exponential, ``u = x + shift`` of a power law."""

    x: np.ndarray
    shift: float

    @property
    def u(self) -> np.ndarray:
        return self.x + self.shift


class Clocks(NamedTuple):
    """One clock for all curves: ``x`` (*groups, T) and ``shift`` (*groups)."""

    name: str
    x: np.ndarray
    shift: np.ndarray

    def at(self, group: tuple[int, ...]) -> Clock:
        return Clock(self.x[group], float(self.shift[group]))

    def take(self, frames: np.ndarray) -> Clocks:
        return self._replace(x=self.x[..., frames])


def read_clocks(
    nc: xr.Dataset, against: str | Sequence[str] | None, groups: list[Hashable], offset: float
) -> list[Clocks]:
    """The clocks asked for, over the dimensions ``groups`` of the curves and time.

    The instant u = 0 of a power law is time = −offset on every clock. An iteration count that is
    a straight line in time (up to rounding) is continued to that instant; one that is not (a
    learning-rate schedule) has u = iteration.
    """
    times = check_times("nc.time", nc["time"].values)
    sizes = tuple(nc.sizes[d] for d in groups)
    iteration = _iteration(nc, times, groups, sizes)
    if against is None:
        names = ["time"] if iteration is None else list(CLOCKS)
    else:
        asked = check_names("against", against)
        names = list(dict.fromkeys(check_choice("against", name, CLOCKS) for name in asked))
        if not names:
            raise ValueError("against must name a clock, 'time' or 'iteration'; got none.")
    result = []
    for name in names:
        if name == "time":
            x = np.broadcast_to(times, (*sizes, len(times)))
            result.append(Clocks(name, x, np.full(sizes, offset)))
            continue
        if iteration is None:
            raise ValueError(
                "against='iteration' needs a coordinate iteration(time) or a positive coordinate "
                "learning_rate; nc has neither. Add one with "
                "nc.assign_coords(iteration=('time', steps))."
            )
        shift = np.empty(sizes)
        for g in np.ndindex(*sizes):
            shift[g] = _shift(times, iteration[g], offset)
        result.append(Clocks(name, iteration, shift))
    return result


def _iteration(
    nc: xr.Dataset, times: np.ndarray, groups: list[Hashable], sizes: tuple[int, ...]
) -> np.ndarray | None:
    """Iteration of each frame, (*groups, T) float64, or None where the dataset cannot tell."""
    if "iteration" in nc.coords:
        coord = nc.coords["iteration"]
        if not set(coord.dims) <= {*groups, "time"} or "time" not in coord.dims:
            raise ValueError(
                f"nc.iteration must be a coordinate over time, and over no dimension but "
                f"{', '.join(map(repr, [*groups, 'time']))}; "
                f"got {', '.join(map(repr, coord.dims)) or 'none'}."
            )
        missing = {d: n for d, n in zip(groups, sizes, strict=True) if d not in coord.dims}
        values = (
            coord.drop_vars(coord.coords).expand_dims(missing).transpose(*groups, "time").values
        )
        values = values.astype(np.float64)
        if not np.isfinite(values).all() or (np.diff(values, axis=-1) < 0).any():
            raise ValueError("nc.iteration must be finite and must not decrease in time.")
        if (values[..., 0] == values[..., -1]).any():
            raise ValueError("nc.iteration must increase in time; it is constant for some curve.")
        return values
    if "learning_rate" not in nc.coords or nc.coords["learning_rate"].ndim > 1:
        return None
    rate = nc.coords["learning_rate"]
    values = rate.values.astype(np.float64)
    if not (values > 0).all() or not set(rate.dims) <= set(groups):
        return None
    shape = [nc.sizes[d] if d in rate.dims else 1 for d in groups]
    return np.broadcast_to((times - times[0]) / values.reshape(*shape, 1), (*sizes, len(times)))


def _shift(times: np.ndarray, iteration: np.ndarray, offset: float) -> float:
    """Iterations from the instant −offset to iteration 0."""
    slope, intercept = np.polyfit(times, iteration, 1)
    if np.abs(iteration - slope * times - intercept).max() > 1 + 1e-6 * np.abs(iteration).max():
        return 0.0
    # Rounded counts would put the line's own intercept a fraction of a step off, and a frame at
    # u = 0 into the logarithm; anchored at the first frame both clocks share it exactly.
    slope = (iteration[-1] - iteration[0]) / (times[-1] - times[0])
    return float(slope * (times[0] + offset) - iteration[0])
