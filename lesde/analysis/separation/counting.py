"""Counting separated replicates in a dataset of paths, one time after the other."""

from __future__ import annotations

import warnings
from fractions import Fraction
from functools import cache, partial
from typing import Any

import numpy as np
import xarray as xr

from lesde.analysis.class_means import class_averages
from lesde.analysis.separation.criteria import CRITERIA, Frame
from lesde.analysis.separation.directions import check_direction, in_common, pair_directions
from lesde.paths import check_paths, check_statistics, is_statistics, need_samples

__all__ = ["Counter"]


class _Replicates:
    """The replicates of a dataset, of features or of statistics, at each index of the other dimensions.

    ``expected`` (*lead, class, class, feature) are the unit vectors of the expected gaps that statistics
    may know, zero where there is no gap, so that the pair is not separated.
    """

    def __init__(self, paths: Any):
        self.reduced, self.expected = is_statistics(paths), None
        ends: tuple[str, ...] = ("sample", "feature")
        if self.reduced:
            ends, of_pairs = ("class", "feature"), ("class", "class_")
            own = {"mean": ends, "reach": of_pairs}
            expects = "reach_expected" in paths and "direction" in paths
            if expects:
                own["reach_expected"] = of_pairs
            self.counts = check_statistics("paths", paths, own)
            source = paths["mean"]
        else:
            source, self._labels = check_paths("paths", paths)
            self.counts = np.bincount(self._labels)
        lead = [str(d) for d in source.dims if d not in (*ends, "replicate")]
        self.dims = tuple(sorted(lead, key=lambda dim: dim == "time"))
        self._values = self._arranged(source, *ends)
        self.lead, self.n_replicates = self._values.shape[:-3], self._values.shape[-3]
        self.n_features = self._values.shape[-1]
        # By default, the reaches of a class toward several others are not taken to be joint.
        self.joint = not self.reduced or bool(paths.attrs.get("joint", 0))
        if self.reduced:
            self._reach = self._arranged(paths["reach"], *of_pairs)
            if expects:
                self._expected_reach = self._arranged(paths["reach_expected"], *of_pairs)
                self.expected = self._expected(paths["direction"])

    def _arranged(self, values: xr.DataArray, *ends: str) -> np.ndarray:
        """Values (*lead, replicate, *ends)."""
        if "replicate" not in values.dims:
            values = values.expand_dims("replicate")
        return values.transpose(*self.dims, "replicate", *ends).values

    def _expected(self, direction: xr.DataArray) -> np.ndarray:
        ends = {"class": len(self.counts), "class_": len(self.counts), "feature": self.n_features}
        sizes = dict(zip(self.dims, self.lead, strict=True))
        if not set(ends) <= set(direction.dims) or any(
            (sizes | ends).get(str(d)) != n for d, n in direction.sizes.items()
        ):
            raise ValueError(
                f"paths.direction must have the dimensions {', '.join(ends)} and otherwise those of the "
                f"statistics but replicate; got {dict(direction.sizes)}."
            )
        values = direction.variable.set_dims({**sizes, **ends}).transpose(*self.dims, *ends).values
        return np.nan_to_num(values.astype(np.float64), nan=0.0)

    def means(self, index: tuple[Any, ...]) -> np.ndarray:
        """Class means (..., replicate, class, feature) at an index of ``lead``."""
        values = self._values[index]
        return values.astype(np.float64) if self.reduced else class_averages(values, self._labels)

    def at_time(self, time: int, index: tuple[Any, ...] | None = None) -> tuple[Any, ...]:
        """An index of the leading dimensions, by default of all, at one time."""
        index = (slice(None),) * len(self.lead) if index is None else index
        return (*index[:-1], time) if "time" in self.dims else index

    def units(self, direction: str | np.ndarray) -> np.ndarray | None:
        """Unit vectors (*lead, class, class, feature), from class means averaged over replicates."""
        if self.reduced:
            return self.expected
        K, p = len(self.counts), self.n_features
        means = np.array([self.means(i).mean(axis=0) for i in np.ndindex(*self.lead)])
        times = self.lead[-1] if "time" in self.dims else 1
        units = [pair_directions(direction, one) for one in means.reshape(-1, times, K, p)]
        # a pair whose means coincide is not separated: projections on a zero vector are all equal
        return np.nan_to_num(np.array(units), nan=0.0).reshape(*self.lead, K, K, p)

    def frame(
        self, index: tuple[int, ...], direction: Any, units: np.ndarray | None, margin: bool
    ) -> Frame:
        """All replicates at an index of ``lead``."""
        unit = None if units is None else units[index]
        if self.reduced:
            reach = (self._reach if unit is None else self._expected_reach)[index]
            precision = float(np.finfo(reach.dtype).eps) if reach.dtype.kind == "f" else 0.0
            known = {"means": self.means(index), "reach": reach.astype(np.float64)}
            return Frame(unit, margin, precision=precision, **known)
        exact = None if unit is None else cache(partial(self._exact, index, direction, unit))
        features = self._values[index].astype(np.float64)
        return Frame(unit, margin, features=features, labels=self._labels, exact_direction=exact)

    def _exact(
        self, index: tuple[int, ...], direction: Any, unit: np.ndarray, k: int, l: int
    ) -> np.ndarray:
        """A vector along ``unit[k, l]`` in numbers without rounding."""
        if not isinstance(direction, str):
            vector = direction if direction.ndim == 1 else direction[k, l]
            exact = np.array([Fraction(float(x)) for x in vector], dtype=object)
            return exact if unit[k, l] @ vector > 0 else -exact
        values = self._values[self.at_time(0, index) if direction == "initial" else index]
        sums = []
        for c in (k, l):
            samples = values[:, self._labels == c].reshape(-1, self.n_features)
            sums.append(np.array([sum(map(Fraction, map(float, x))) for x in samples.T]))
        return int(self.counts[l]) * sums[0] - int(self.counts[k]) * sums[1]


class Counter:
    """Running counts of separated replicates; memory does not grow with the replicates.

    Directions are those of the first dataset counted, and are kept for the later ones; ``margins`` are
    those of the last dataset, ``moments`` the sums of them and of their squares, in units of two to the
    power ``exponent``.
    """

    def __init__(self, criterion: str, direction: Any, margin: bool):
        self.criterion, self.direction, self.margin = criterion, direction, margin
        self.trials, self.exponent, self.joint = 0, 0, True
        self._directed = CRITERIA[criterion].directed
        self._units: np.ndarray | None = None

    def add(self, paths: xr.Dataset) -> None:
        """Count the replicates of a dataset."""
        data = _Replicates(paths)
        lead, R, K = data.lead, data.n_replicates, len(data.counts)
        if self.trials == 0:
            self._begin(paths, data)
        self.joint = self.joint and (data.joint or K == 2)
        self.margins = np.empty((*lead, R, K, K)) if self.margin else np.empty(0)
        for index in np.ndindex(*lead):
            frame = data.frame(index, self.direction, self._units, self.margin)
            if not frame.finite:
                where = ", ".join(
                    f"{d}={paths[d].values[i] if d in paths.coords else i}"
                    for d, i in zip(data.dims, index, strict=True)
                )
                raise ValueError(
                    f"paths must be finite; got a NaN or infinity at {where or 'the only frame'}. "
                    f"Drop those replicates or times, for example with paths.isel(time=slice(0, j))."
                )
            scores = CRITERIA[self.criterion].scores(frame)
            apart = (scores > 0) | np.eye(K, dtype=bool)
            self.pairs[index] += apart.sum(axis=0)
            self.successes[index] += apart.all(axis=(1, 2)).sum()
            if self.margin:
                self.margins[index] = scores
        if self.margin:
            if self.trials == 0:
                self.exponent = int(np.frexp(np.nan_to_num(np.abs(self.margins)).max())[1])
            scaled = np.ldexp(self.margins, -self.exponent)
            self.moments[0] += scaled.sum(axis=len(lead))
            self.moments[1] += (scaled**2).sum(axis=len(lead))
        self.trials += R

    def refuse_what_needs_samples(self) -> None:
        """Raise where statistics do not determine whether classes are separated."""
        if CRITERIA[self.criterion].samples:
            raise need_samples("paths", f"criterion={self.criterion!r}")
        given = not isinstance(self.direction, str)
        if self._directed and (given or self.direction == "initial"):
            what = "a direction given as an array" if given else "direction='initial'"
            raise need_samples("paths", f"{what} (statistics know 'own' and 'ensemble')")

    def _begin(self, paths: xr.Dataset, data: _Replicates) -> None:
        lead, K, p = data.lead, len(data.counts), data.n_features
        if K < 2:
            raise ValueError("paths must hold at least 2 classes to separate; got label 0 only.")
        if data.reduced:
            self.refuse_what_needs_samples()
        self._choose_direction(data)
        self.dims = data.dims
        self.coords = {
            name: coord.variable
            for name, coord in paths.coords.items()
            if set(coord.dims) <= set(data.dims)
        }
        self.successes, self.pairs = np.zeros(lead), np.zeros((*lead, K, K))
        self.moments = np.zeros((2, *lead, K, K))
        counts = np.sort(data.counts)
        if self.criterion == "linear" and counts[0] + counts[1] <= p + 1:
            warnings.warn(
                f"two classes of {counts[0]} and {counts[1]} samples in {p} dimensions are linearly "
                f"separable whatever their labels, as are any n <= p + 1 points in general position; "
                f"criterion='linear' then says nothing about the classes. Use 'projection' or "
                f"'nearest_center', or more samples.",
                UserWarning,
                stacklevel=4,
            )

    def _choose_direction(self, data: _Replicates) -> None:
        """Set the direction: "auto" is resolved by what the replicates have in common."""

        def common() -> bool:
            ends = (data.means(data.at_time(t)) for t in (0, -1))
            return in_common(*(means.reshape(-1, *means.shape[-3:]) for means in ends))

        known = not data.reduced or data.expected is not None or not self._directed
        asked = not (isinstance(self.direction, str) and self.direction == "auto")
        if not asked:
            expected = data.expected is not None and data.expected.any()
            self.direction = "ensemble" if known and (expected or common()) else "own"
        else:
            self.direction = check_direction(self.direction, len(data.counts), data.n_features)
        named = isinstance(self.direction, str) and self.direction != "own" and self._directed
        if named and not known:
            raise ValueError(
                "direction='ensemble' needs the reach of the classes along it; paths, statistics of the "
                "classes, lack reach_expected. Use direction='own', give lesde.statistics the "
                "directions, or simulate with keep='features'."
            )
        if named and asked and not data.reduced and not common():
            warnings.warn(
                f"the class means of the replicates have no direction in common, at the first time or "
                f"at the last, so that their average has none: direction={self.direction!r} is noise. "
                f"Use direction='own', or start all replicates from the same means.",
                UserWarning,
                stacklevel=5,
            )
        own = isinstance(self.direction, str) and self.direction == "own"
        self._units = data.units(self.direction) if self._directed and not own else None
