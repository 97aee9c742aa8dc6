"""Counting separated replicates in a dataset of paths, one time after the other."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xarray as xr

from lesde.analysis.criteria import DIRECTED
from lesde.analysis.directions import check_direction, pair_directions
from lesde.analysis.reduced_criteria import check_reducible
from lesde.analysis.trials import ReducedTrials, SampleTrials, read_trials, share_directions

__all__ = ["Counter"]


@dataclass
class Counter:
    """Running counts of separated replicates; memory does not grow with the replicates.

    Parameters
    ----------
    criterion : str
        A name in ``CRITERIA``.
    direction : str or array
        As in ``separation_probability``. The ensemble directions are those of the first dataset
        counted, and are kept for the later ones.
    margin : bool
        Keep moments of the margins, and the margins of the last dataset.
    """

    criterion: str
    direction: Any = "auto"
    margin: bool = False
    trials: int = 0
    dims: tuple[str, ...] = ()
    coords: dict[str, Any] = field(default_factory=dict)
    successes: np.ndarray = field(default_factory=lambda: np.zeros(0))
    pairs: np.ndarray = field(default_factory=lambda: np.zeros(0))
    margins: np.ndarray | None = None
    sums: list[np.ndarray] = field(default_factory=list)
    exponent: int = 0  # `sums` are of margins in units of two to this power
    joint: bool = True
    _units: np.ndarray | None = None

    def add(self, paths: xr.Dataset) -> None:
        """Count the replicates of a dataset."""
        trials = read_trials(paths)
        lead, R, K = trials.lead, trials.n_replicates, len(trials.counts)
        if not self.trials:
            self._begin(paths, trials)
        self.joint = self.joint and (trials.joint or K == 2)
        if isinstance(trials, SampleTrials) and self._units is None and self._wants_units():
            self._units = self._directions(trials.average())
        margins = np.full((*lead, R, K, K), np.nan) if self.margin else None
        for index in np.ndindex(*lead):
            unit = None if self._units is None else self._units[index]
            scores = trials.scores(index, self.criterion, self.direction, unit, self.margin)
            if scores is None:
                where = ", ".join(
                    f"{d}={paths[d].values[i] if d in paths.coords else i}"
                    for d, i in zip(trials.dims, index, strict=True)
                )
                raise ValueError(
                    f"paths must be finite; got a NaN or infinity at {where or 'the only frame'}. "
                    f"Drop those replicates or times, for example with paths.isel(time=slice(0, j))."
                )
            apart = scores > 0
            apart[:, np.arange(K), np.arange(K)] = True
            self.pairs[index] += apart.sum(axis=0)
            self.successes[index] += apart.all(axis=(1, 2)).sum()
            if margins is not None:
                margins[index] = scores
        if margins is not None:
            self.margins = margins
            axis = len(lead)
            if not self.trials:
                self.exponent = int(np.frexp(np.nan_to_num(np.abs(margins)).max())[1])
            scaled = np.ldexp(margins, -self.exponent)
            self.sums[0] += scaled.sum(axis=axis)
            self.sums[1] += (scaled**2).sum(axis=axis)
        self.trials += R

    def _wants_units(self) -> bool:
        own = isinstance(self.direction, str) and self.direction == "own"
        return self.criterion in DIRECTED and not own

    def _begin(self, paths: xr.Dataset, trials: SampleTrials | ReducedTrials) -> None:
        lead, dims, K, p = trials.lead, trials.dims, len(trials.counts), trials.n_features
        if K < 2:
            raise ValueError("paths must hold at least 2 classes to separate; got label 0 only.")
        if isinstance(trials, ReducedTrials):
            check_reducible(self.criterion, self.direction)
            self.direction = self._choose_reduced(trials)
        else:
            self.direction = self._choose(trials)
        self.dims = dims
        self.coords = {
            str(name): coord.variable
            for name, coord in paths.coords.items()
            if set(coord.dims) <= set(dims)
        }
        self.successes = np.zeros(lead)
        self.pairs = np.zeros((*lead, K, K))
        self.sums = [np.zeros((*lead, K, K)) for _ in range(2)] if self.margin else []
        counts = np.sort(trials.counts)
        if self.criterion == "linear" and counts[0] + counts[1] <= p + 1:
            warnings.warn(
                f"two classes of {counts[0]} and {counts[1]} samples in {p} dimensions are linearly "
                f"separable whatever their labels, as are any n <= p + 1 points in general position; "
                f"criterion='linear' then says nothing about the classes. Use 'projection' or "
                f"'nearest_center', or more samples.",
                UserWarning,
                stacklevel=4,
            )

    def _choose(self, trials: SampleTrials) -> str | np.ndarray:
        """The direction, "auto" resolved by what the replicates have in common."""
        if isinstance(self.direction, str) and self.direction == "auto":
            return "ensemble" if share_directions(trials) else "own"
        chosen = check_direction(self.direction, len(trials.counts), trials.n_features)
        named = isinstance(chosen, str) and chosen != "own" and self.criterion in DIRECTED
        if named and not share_directions(trials):
            warnings.warn(
                f"the class means of the replicates have no direction in common, at the first time or "
                f"at the last, so that their average has none: direction={chosen!r} is noise. Use "
                f"direction='own', or start all replicates from the same means.",
                UserWarning,
                stacklevel=5,
            )
        return chosen

    def _choose_reduced(self, trials: ReducedTrials) -> str:
        """The direction for statistics: those of the replicates, or of the expected gaps."""
        known = trials.has_expected or self.criterion not in DIRECTED
        if isinstance(self.direction, str) and self.direction == "auto":
            common = known and (trials.expects_gaps or share_directions(trials))
            return "ensemble" if common else "own"
        chosen = check_direction(self.direction, len(trials.counts), trials.n_features)
        if isinstance(chosen, str) and chosen == "ensemble" and not known:
            raise ValueError(
                "direction='ensemble' needs the reach of the classes along it; paths, statistics of the "
                "classes, lack reach_expected. Use direction='own', give lesde.statistics the "
                "directions, or simulate with keep='features'."
            )
        return chosen if isinstance(chosen, str) else "given"

    def _directions(self, means: np.ndarray) -> np.ndarray:
        """Unit vectors (*lead, K, K, p) from class means averaged over replicates."""
        K = means.shape[-2]
        if "time" not in self.dims:
            means = means[..., None, :, :]
            axis = means.ndim - 3
        else:
            axis = self.dims.index("time")
        moved = np.moveaxis(means, axis, -3)
        flat = moved.reshape(-1, *moved.shape[-3:])
        units = np.stack([pair_directions(self.direction, one) for one in flat])
        # a pair whose means coincide is not separated: projections on a zero vector are all equal
        units = np.nan_to_num(units, nan=0.0)
        units = np.moveaxis(units.reshape(*moved.shape[:-2], K, K, means.shape[-1]), -4, axis)
        return units if "time" in self.dims else units[..., 0, :, :, :]
