"""Counting separated replicates in a dataset of paths, one time after the other."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np
import xarray as xr
from scipy.special import betaincinv, ndtri

from lesde.analysis.separation.criteria import (
    CRITERIA,
    DIRECTED,
    REDUCED,
    Frame,
    ReducedFrame,
    check_reducible,
)
from lesde.analysis.separation.directions import check_direction, in_common, pair_directions
from lesde.checks import check_choice, check_finite_array, check_fraction, check_integer
from lesde.paths import check_paths, check_statistics, is_statistics

__all__ = [
    "Counter",
    "ReducedTrials",
    "SampleTrials",
    "binomial_interval",
    "read_trials",
    "replicates_to_add",
    "share_directions",
]


# --------------------------------------------------------------------------------------------------
# Confidence intervals for a probability that was counted.

METHODS = ("wilson", "clopper-pearson")


def binomial_interval(
    successes: Any, trials: int, confidence: float = 0.95, method: str = "wilson"
) -> tuple[np.ndarray, np.ndarray]:
    """Two-sided interval for the success probability behind ``successes`` out of ``trials``.

    Parameters
    ----------
    successes : array_like
        Counts from 0 to ``trials``, any shape.
    trials : int
    confidence : float
        Between 0 and 1.
    method : "wilson" or "clopper-pearson"
        Wilson (1927): inverts the score test; its coverage is near ``confidence`` on average and
        can fall a little below. Clopper and Pearson (1934): inverts the exact binomial tests; never
        covers less than ``confidence``, and is wider.

    Returns
    -------
    lower, upper : ndarray
        Of the shape of ``successes``, within [0, 1].

    Examples
    --------
    >>> low, high = binomial_interval(0, 100)
    >>> f"{low:.4f} {high:.4f}"
    '0.0000 0.0370'
    """
    x = check_finite_array("successes", successes)
    n = check_integer("trials", trials)
    confidence = check_fraction("confidence", confidence)
    method = check_choice("interval", method, METHODS)
    if (x < 0).any() or (x > n).any():
        raise ValueError(
            f"successes must lie between 0 and trials={n}; got {x.min()} to {x.max()}."
        )
    if method == "wilson":
        z = -ndtri((1.0 - confidence) / 2.0)
        centre = (x + z * z / 2.0) / (n + z * z)
        half = z / (n + z * z) * np.sqrt(x * (n - x) / n + z * z / 4.0)
        lower, upper = centre - half, centre + half
    else:
        alpha = (1.0 - confidence) / 2.0
        lower = betaincinv(np.maximum(x, 0.5), n - x + 1.0, alpha)
        upper = betaincinv(x + 1.0, np.maximum(n - x, 0.5), 1.0 - alpha)
    # at the ends the exact limits are 0 and 1; rounding would leave 1e-17
    lower = np.where(x == 0, 0.0, np.clip(lower, 0.0, 1.0))
    upper = np.where(x == n, 1.0, np.clip(upper, 0.0, 1.0))
    return lower, upper


def replicates_to_add(trials: int, half_width: float, precision: float, block: int = 32) -> int:
    """How many more replicates should bring ``half_width`` down to ``precision``.

    The width falls as one over the root of the trials. Whole blocks, and at least one.
    """
    wanted = trials * (half_width / precision) ** 2 * 1.02
    return block * max(1, int(np.ceil((wanted - trials) / block)))


# --------------------------------------------------------------------------------------------------
# The replicates of a dataset as trials to be scored: from samples, or from statistics.


def read_trials(paths: Any) -> SampleTrials | ReducedTrials:
    """Trials of a dataset of features or of statistics."""
    return ReducedTrials(paths) if is_statistics(paths) else SampleTrials(paths)


class SampleTrials:
    """Replicates of which every sample is known.

    Attributes
    ----------
    dims, lead : tuple
        Names and sizes of the dimensions other than replicate, sample and feature.
    n_replicates, n_features : int
    counts : ndarray of int, shape (class,)
    joint : bool
        Whether the scores of all pairs belong together.
    """

    joint = True

    def __init__(self, paths: Any):
        features, self._labels = check_paths("paths", paths)
        ends = ("sample", "feature")
        self.dims, self._values = _arranged(features, ends)
        self.lead, self.n_replicates = self._values.shape[:-3], self._values.shape[-3]
        self.counts, self.n_features = np.bincount(self._labels), self._values.shape[-1]

    def means(self, index: tuple[Any, ...]) -> np.ndarray:
        """Class means (..., replicate, K, p) at an index of ``lead``, float64."""
        values = self._values[index]
        each = [
            values[..., self._labels == k, :].mean(axis=-2, dtype=np.float64)
            for k in range(len(self.counts))
        ]
        return np.stack(each, axis=-2)

    def average(self) -> np.ndarray:
        """Class means averaged over replicates, (*lead, K, p), float64."""
        return np.stack(
            [
                self._values[..., self._labels == k, :].mean(axis=(-3, -2), dtype=np.float64)
                for k in range(len(self.counts))
            ],
            axis=-2,
        )

    def scores(
        self, index: tuple[int, ...], criterion: str, direction: Any, unit: Any, margin: bool
    ) -> np.ndarray | None:
        """Scores (replicate, class, class) at an index of ``lead``; None for values not finite."""
        features = self._values[index].astype(np.float64)
        if not np.isfinite(features).all():
            return None
        exact = None if unit is None else partial(self._exact, index, direction, unit)
        return CRITERIA[criterion](Frame(features, self._labels, unit, margin, exact))

    def _exact(
        self, index: tuple[int, ...], direction: Any, unit: np.ndarray, k: int, l: int
    ) -> np.ndarray:
        """A vector along ``unit[k, l]`` in numbers without rounding."""
        if not isinstance(direction, str):
            vector = direction if direction.ndim == 1 else direction[k, l]
            exact = np.array([Fraction(float(x)) for x in vector], dtype=object)
            return exact if unit[k, l] @ vector > 0 else -exact
        if direction == "initial" and "time" in self.dims:
            at = self.dims.index("time")
            index = (*index[:at], 0, *index[at + 1 :])
        values = self._values[index].reshape(self.n_replicates, -1, self.n_features)
        sums = []
        for c in (k, l):
            samples = values[:, self._labels == c].reshape(-1, self.n_features)
            sums.append(np.array([sum(map(Fraction, map(float, x))) for x in samples.T]))
        return int(self.counts[l]) * sums[0] - int(self.counts[k]) * sums[1]


class ReducedTrials:
    """Replicates of which class means and reaches are known; attributes as for `SampleTrials`.

    Attributes
    ----------
    has_expected : bool
        Whether the reaches along the expected gaps are known.
    """

    def __init__(self, paths: xr.Dataset):
        own = {"mean": ("class", "feature"), "reach": ("class", "class_")}
        self.has_expected = "reach_expected" in paths and "direction" in paths
        if self.has_expected:
            own["reach_expected"] = ("class", "class_")
        self.counts = check_statistics("paths", paths, own)
        self.dims, self._mean = _arranged(paths["mean"], own["mean"])
        self._reach = {
            name: _arranged(paths[name], ends, self.dims)[1]
            for name, ends in own.items()
            if name != "mean"
        }
        self._precision = max(
            (float(np.finfo(v.dtype).eps) for v in self._reach.values() if v.dtype.kind == "f"),
            default=0.0,
        )
        self.lead, self.n_replicates = self._mean.shape[:-3], self._mean.shape[-3]
        self.n_features = self._mean.shape[-1]
        # Without a word on it, the reaches of a class toward several others are not taken together.
        self.joint = bool(paths.attrs.get("joint", 0))
        self._direction = self._units(paths["direction"]) if self.has_expected else None

    @property
    def expects_gaps(self) -> bool:
        """Whether any of the expected gaps is known and not zero."""
        return self._direction is not None and bool(np.nan_to_num(self._direction).any())

    def means(self, index: tuple[Any, ...]) -> np.ndarray:
        """Class means (..., replicate, K, p) at an index of ``lead``, float64."""
        return self._mean[index].astype(np.float64)

    def _units(self, direction: xr.DataArray) -> np.ndarray:
        """The expected directions over all of ``lead``."""
        ends = ("class", "class_", "feature")
        K, p = len(self.counts), self.n_features
        sizes = dict(zip(self.dims, self.lead, strict=True))
        allowed = sizes | {"class": K, "class_": K, "feature": p}
        if not set(ends) <= set(direction.dims) or any(
            allowed.get(str(d)) != n for d, n in direction.sizes.items()
        ):
            raise ValueError(
                f"paths.direction must have the dimensions {', '.join(ends)} and otherwise those of the "
                f"statistics but replicate; got {dict(direction.sizes)}."
            )
        missing = {d: n for d, n in sizes.items() if d not in direction.dims}
        return direction.expand_dims(missing).transpose(*self.dims, *ends).values

    def scores(
        self, index: tuple[int, ...], criterion: str, direction: Any, unit: Any, margin: bool
    ) -> np.ndarray | None:
        """Scores (replicate, class, class) at an index of ``lead``; None for values not finite."""
        mean = self._mean[index].astype(np.float64)
        along = direction == "ensemble" and criterion in DIRECTED
        reach = self._reach["reach_expected" if along else "reach"][index].astype(np.float64)
        expected = None
        if along and self._direction is not None:
            # A pair whose expected means coincide has no direction, and is not separated.
            expected = np.nan_to_num(self._direction[index].astype(np.float64), nan=0.0)
        frame = ReducedFrame(mean, reach, expected)
        # Where means coincide a pair has no direction of its own, and its reach is NaN.
        known = np.isfinite(reach) | (frame.gaps == 0) | np.eye(len(self.counts), dtype=bool)
        if not np.isfinite(mean).all() or not known.all():
            return None
        scores = REDUCED[criterion](frame)
        # A gap within the rounding of what is stored is none: classes that touch are not separated.
        stored = max(self._precision, 4 * self.n_features * np.finfo(np.float64).eps)
        scale = np.abs(mean).max(axis=(1, 2))[:, None, None] + np.abs(np.nan_to_num(reach))
        return np.where(np.abs(scores) <= stored * (scale + scale.swapaxes(1, 2)), 0.0, scores)


def share_directions(trials: SampleTrials | ReducedTrials) -> bool:
    """True where the replicates share their directions: see `in_common`."""
    at = [slice(None)] * len(trials.lead)
    ends = []
    for time in (0, -1):
        if "time" in trials.dims:
            at[trials.dims.index("time")] = time  # type: ignore[call-overload]
        means = trials.means(tuple(at))
        ends.append(means.reshape(-1, *means.shape[-3:]))
    return in_common(*ends)


def _arranged(
    variable: xr.DataArray, ends: tuple[str, ...], dims: tuple[str, ...] | None = None
) -> tuple[tuple[str, ...], np.ndarray]:
    """Names of the leading dimensions, in the order given, and values (*lead, replicate, *ends)."""
    if "replicate" not in variable.dims:
        variable = variable.expand_dims("replicate")
    if dims is None:
        dims = tuple(str(d) for d in variable.dims if d not in (*ends, "replicate"))
    return dims, variable.transpose(*dims, "replicate", *ends).values


# --------------------------------------------------------------------------------------------------


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
