"""Counting separated replicates in a dataset of paths, one time after the other."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import xarray as xr

from lesde.analysis.class_means import class_averages
from lesde.analysis.separation.criteria import CRITERIA, Frame
from lesde.analysis.separation.directions import check_direction, in_common, pair_directions
from lesde.paths import check_paths, check_statistics, is_statistics, need_samples


def refuse_what_needs_samples(criterion: str, direction: Any) -> None:
    """Raise where statistics do not determine whether classes are separated."""
    if CRITERIA[criterion].samples:
        raise need_samples("paths", f"criterion={criterion!r}")
    given = not isinstance(direction, str)
    if CRITERIA[criterion].directed and (given or direction == "initial"):
        what = "a direction given as an array" if given else "direction='initial'"
        raise need_samples("paths", f"{what} (statistics know 'own' and 'ensemble')")


class _Replicates:
    """The replicates of a dataset, of features or of statistics, at each index of the other dimensions.

    ``expected`` (*lead, class, class, feature) are the unit vectors of the expected gaps that statistics
    may know, zero where there is no gap, so that the pair is not separated.
    """

    def __init__(self, paths: Any):
        self.reduced, self.expected = is_statistics(paths), None
        ends: dict[str, tuple[str, ...]] = {"features": ("sample", "feature")}
        if self.reduced:
            ends = {"mean": ("class", "feature"), "reach": ("class", "class_")}
            if "reach_expected" in paths and "direction" in paths:
                ends["reach_expected"] = ("class", "class_")
            self.counts = check_statistics("paths", paths, ends)
        else:
            _, self._labels = check_paths("paths", paths, minimum_classes=2)
            self.counts = np.bincount(self._labels)
        source, last = next(iter(ends.items()))
        lead = [str(d) for d in paths[source].dims if d not in (*last, "replicate")]
        self.dims = tuple(sorted(lead, key=lambda dim: dim == "time"))
        self.lead = tuple(paths.sizes[d] for d in self.dims)
        self._arrays = {}
        for name, last in ends.items():
            values = paths[name]
            if "replicate" not in values.dims:
                values = values.expand_dims("replicate")
            self._arrays[name] = values.transpose(*self.dims, "replicate", *last).values
        self._main = self._arrays[source]
        self.shape = (self._main.shape[-3], len(self.counts), self._main.shape[-1])
        # By default, the reaches of a class toward several others are not taken to be joint.
        self.joint = not self.reduced or bool(paths.attrs.get("joint", 0)) or len(self.counts) == 2
        if "reach_expected" in ends:
            _, K, p = self.shape
            names = (*self.dims, "class", "class_", "feature")
            whole = dict(zip(names, (*self.lead, K, K, p), strict=True))
            direction = paths["direction"].variable.set_dims(whole).transpose(*whole).values
            self.expected = np.nan_to_num(direction.astype(np.float64), nan=0.0)

    def means(self, index: tuple[Any, ...]) -> np.ndarray:
        """Class means (..., replicate, class, feature) at an index of ``lead``."""
        values = self._main[index]
        return values.astype(np.float64) if self.reduced else class_averages(values, self._labels)

    def common(self) -> bool:
        """True where the replicates share their directions, at the first time or at the last."""
        timed = "time" in self.dims
        ends = (self.means((..., time, *[slice(None)] * 3) if timed else ()) for time in (0, -1))
        return any(in_common(means.reshape(-1, *self.shape)) for means in ends)

    def units(self, direction: str | np.ndarray) -> np.ndarray:
        """Unit vectors (*lead, class, class, feature), from class means averaged over replicates."""
        if self.expected is not None:
            return self.expected
        _, K, p = self.shape
        means = np.array([self.means(i).mean(axis=0) for i in np.ndindex(*self.lead)])
        times = self.lead[-1] if "time" in self.dims else 1
        units = [pair_directions(direction, one) for one in means.reshape(-1, times, K, p)]
        # a pair whose means coincide is not separated: projections on a zero vector are all equal
        return np.nan_to_num(np.array(units), nan=0.0).reshape(*self.lead, K, K, p)

    def frame(self, index: tuple[int, ...], unit: np.ndarray | None, margin: bool) -> Frame:
        """All replicates at an index of ``lead``, compared along common units or along their own."""
        means = self.means(index)
        if self.reduced:
            reach = self._arrays["reach" if unit is None else "reach_expected"][index]
            return Frame(means, self.counts, unit, margin, reach=reach)
        samples = self._main[index].astype(np.float64)
        classes = [samples[:, self._labels == k] for k in range(len(self.counts))]
        return Frame(means, self.counts, unit, margin, classes=classes)


class Counter:
    """Running counts of separated replicates; memory does not grow with the replicates.

    Directions are those of the first dataset counted, and are kept for the later ones; ``margins`` are
    those of the last dataset, ``moments`` the sums of them and of their squares.
    """

    def __init__(self, criterion: str, direction: Any, margin: bool):
        self.criterion, self.direction, self.margin = criterion, direction, margin
        self.trials, self.joint = 0, True
        self._units: np.ndarray | None = None

    def add(self, paths: xr.Dataset) -> None:
        """Count the replicates of a dataset."""
        data = _Replicates(paths)
        lead, (R, K, p) = data.lead, data.shape
        if self.trials == 0:
            if data.reduced:
                refuse_what_needs_samples(self.criterion, self.direction)
            self._choose_direction(data)
            self.dims = data.dims
            coords = paths.coords.items()
            self.coords = {n: c.variable for n, c in coords if set(c.dims) <= set(data.dims)}
            self.successes, self.pairs = np.zeros(lead, np.int64), np.zeros((*lead, K, K))
            self.moments = np.zeros((2, *lead, K, K))
            if self.criterion == "linear" and np.sort(data.counts)[:2].sum() <= p + 1:
                warnings.warn(
                    f"the samples of two classes are linearly separable whatever their labels, as are any "
                    f"n <= p + 1 = {p + 1} points in general position; criterion='linear' then says "
                    f"nothing about the classes. Use another, or more samples.",
                    UserWarning,
                    stacklevel=3,
                )
        self.joint = self.joint and data.joint
        self.margins = np.empty((*lead, R, K, K) if self.margin else 0)
        for index in np.ndindex(*lead):
            unit = None if self._units is None else self._units[index]
            frame = data.frame(index, unit, self.margin)
            if not frame.finite:
                where = (f"{d}={paths[d].values[i]}" for d, i in zip(data.dims, index, strict=True))
                raise ValueError(
                    f"paths must be finite; got a NaN or infinity at {', '.join(where) or 'the frame'}. "
                    f"Drop those replicates or times, for example with paths.isel(time=slice(0, j))."
                )
            scores = CRITERIA[self.criterion].scores(frame)
            apart = (scores > 0) | np.eye(K, dtype=bool)
            self.pairs[index] += apart.sum(axis=0)
            self.successes[index] += apart.all(axis=(1, 2)).sum()
            if self.margin:
                self.margins[index] = scores
                self.moments[(slice(None), *index)] += scores.sum(axis=0), (scores**2).sum(axis=0)
        self.trials += R

    def _choose_direction(self, data: _Replicates) -> None:
        """Set the direction: "auto" is resolved by what the replicates have in common."""
        directed = CRITERIA[self.criterion].directed
        known = not data.reduced or data.expected is not None or not directed
        if isinstance(self.direction, str) and self.direction == "auto":
            expected = data.expected is not None and data.expected.any()
            self.direction = "ensemble" if known and (expected or data.common()) else "own"
        else:
            self.direction = check_direction(self.direction, *data.shape[1:])
            named = directed and isinstance(self.direction, str) and self.direction != "own"
            if named and not known:
                raise ValueError(
                    "direction='ensemble' needs the reach of the classes along it; paths, statistics of "
                    "the classes, lack reach_expected. Use direction='own', give lesde.statistics the "
                    "directions, or simulate with keep='features'."
                )
            if named and not data.reduced and not data.common():
                warnings.warn(
                    f"the class means of the replicates have no direction in common, at the first time or "
                    f"at the last: direction={self.direction!r} is noise. Use direction='own', or start "
                    f"all replicates from the same means.",
                    UserWarning,
                    stacklevel=4,
                )
        if directed and not (isinstance(self.direction, str) and self.direction == "own"):
            self._units = data.units(self.direction)
