"""Simulated paths beside the moments of processes: which process they are, and their estimates."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import xarray as xr

from lesde.checks import check_choice, check_dataset, shown
from lesde.plot.frames import class_average

__all__ = ["coarse_steps", "estimates", "process_of", "read_simulated", "scheme"]

SCHEMES = {"euler": "Euler", "milstein": "Euler", "srk": "SRK"}
"""Noise is additive, so Milstein's scheme is Euler's."""


def process_of(paths: xr.Dataset) -> str | None:
    """The process that paths of `lesde.simulate` follow, from their attributes; None without these."""
    engine = paths.attrs.get("engine")
    if engine == "sgd":
        return "sgd"
    if engine in ("exact", "torchsde"):
        return str(paths.attrs.get("sde", "plain"))
    return None


def read_simulated(simulated: Any, processes: Iterable[str]) -> dict[str, xr.Dataset]:
    """Paths by process, checked."""
    if isinstance(simulated, xr.Dataset):
        given: Any = {process_of(simulated) or "sgd": simulated}
    else:
        given = simulated
    if not isinstance(given, Mapping):
        raise TypeError(
            f"simulated must be a dataset from lesde.simulate, or a mapping from process to such; got "
            f"{shown(simulated)}."
        )
    for name, paths in given.items():
        check_choice("a key of simulated", name, processes)
        known = paths if isinstance(paths, xr.Dataset) and "mean" in paths else None
        variable = "features" if known is None else "mean"
        check_dataset("simulated", paths, [variable], "lesde.simulate")
        own = process_of(paths)
        if own not in (None, name):
            raise ValueError(
                f"simulated[{name!r}] must be paths of that process; its attributes say {own!r}. Give it "
                f"as simulated={{{own!r}: paths}}."
            )
        if paths[variable].sizes.get("replicate", 1) < 3:
            raise ValueError(
                "simulated must have the dimension 'replicate', with at least 3 of them."
            )
        if "learning_rate" not in paths.coords:
            raise ValueError(
                "simulated must hold the coordinate learning_rate; simulate with learning_rate=[...]."
            )
    return dict(given)


def _steps(paths: xr.Dataset, h: np.ndarray) -> np.ndarray | None:
    """Integration steps by learning rate; None for paths that are not integrated in steps."""
    if paths.attrs.get("engine") != "torchsde" or "dt" not in paths.attrs:
        return None
    steps = np.atleast_1d(np.asarray(paths.attrs["dt"], dtype=np.float64))
    # Learning rates chosen from a dataset leave its attribute as it was: the largest step is then
    # the safe one to speak of.
    return steps if len(steps) == len(h) else np.full(len(h), steps.max())


def coarse_steps(paths: xr.Dataset, h: np.ndarray, known: Any = None) -> np.ndarray:
    """Which points are of steps longer than half the learning rate, (learning_rate,) of bool.

    ``known`` is the step that the moments beside them are of, if any: points of it are not off.
    """
    steps = _steps(paths, h)
    if steps is None:
        return np.zeros(len(h), bool)
    coarse = steps > 0.5 * h
    return coarse if known is None else coarse & (np.abs(steps / float(known) - 1) > 0.1)


def scheme(paths: xr.Dataset, h: np.ndarray) -> str:
    """Words for the scheme and its coarse steps; empty for paths without any."""
    steps = _steps(paths, h)
    if steps is None:
        return ""
    name = SCHEMES.get(str(paths.attrs.get("method", "euler")), str(paths.attrs.get("method")))
    ratio = (steps / h)[steps > 0.5 * h]
    return f"{name} step {'h' if (np.abs(ratio - 1) < 0.1).all() else '> h/2'}"


def estimates(
    paths: xr.Dataset, quantity: str, pair: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Learning rates, and the gap or its standard deviation with standard error, at one time."""
    if "learning_rate" not in paths.dims:
        paths = paths.expand_dims("learning_rate")
    if "mean" in paths:
        means = paths["mean"].transpose("learning_rate", "replicate", "class", "feature").values
    else:
        order = ("learning_rate", "replicate", "sample", "feature")
        means = class_average(paths["features"].transpose(*order).values, paths["label"].values)
    gaps = means.astype(np.float64)[:, :, pair[0]] - means[:, :, pair[1]]
    count = gaps.shape[1]
    centre = gaps.mean(1)
    offsets = gaps - centre[:, None]
    if quantity == "gap":
        values = np.linalg.norm(centre, axis=-1)
        along = np.einsum("hri,hi->hr", offsets, centre) / values[:, None]
        error = along.std(1, ddof=1) / np.sqrt(count)
    else:
        squares = (offsets**2).sum(-1)
        values = np.sqrt(squares.sum(1) / (count - 1))
        # The error of a root is that of its square over twice the root.
        error = squares.std(1, ddof=1) / np.sqrt(count) / (2 * values)
    return paths["learning_rate"].values.astype(np.float64), values, error
