"""The replicates of a dataset as trials to be scored: from samples, or from statistics."""

from __future__ import annotations

from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np
import xarray as xr

from lesde.analysis.criteria import CRITERIA, DIRECTED, Frame
from lesde.analysis.directions import in_common
from lesde.analysis.reduced_criteria import REDUCED, ReducedFrame
from lesde.checks import check_paths, check_statistics, is_statistics

__all__ = ["ReducedTrials", "SampleTrials", "read_trials", "share_directions"]


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
