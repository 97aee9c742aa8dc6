"""Reading an impact dataset, and errors of ratios of sums over its drawn samples.

Estimates of impact are ratios of sums. Their errors are those of the jackknife: every sum is also taken
without each of the independent units in turn, which are replicates, or drawn samples within their class.
"""

from __future__ import annotations

import warnings
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from scipy.stats import t as student

from lesde.analysis.class_means import power_of_two
from lesde.checks import check_choice, check_dataset
from lesde.transforms import Transform, make_transform

__all__ = ["Clusters", "ImpactData", "read_impact"]

SOURCE = "lesde.measure_impact"
FEWEST_REPLICATES = 8
"""With fewer, a variance between replicates has too few degrees of freedom to be worth its robustness."""


@dataclass(frozen=True)
class ImpactData:
    """An impact dataset in arrays with the axes (group, replicate, time, ...).

    Attributes
    ----------
    dataset : xarray.Dataset
    groups : dict
        Names and sizes of the dimensions that are neither averaged over nor time.
    labels : int array (draw,)
        Classes of the drawn samples.
    shares : array (class,)
    steps : array (group,)
        Learning rates.
    has_time : bool
    """

    dataset: xr.Dataset
    groups: dict[Hashable, int]
    labels: np.ndarray
    shares: np.ndarray
    steps: np.ndarray
    has_time: bool

    def array(self, name: str, ends: tuple[str, ...]) -> np.ndarray:
        """A variable (group, replicate, time, *ends), float64."""
        variable = self.dataset[name]
        for dim in ("replicate", "time"):
            if dim not in variable.dims:
                variable = variable.expand_dims(dim)
        ordered = variable.transpose(*self.groups, "replicate", "time", *ends)
        shape = ordered.shape[len(self.groups) :]
        return ordered.values.astype(np.float64).reshape(-1, *shape)

    def transform(self, value: Any) -> Transform:
        """The transform asked for, for these classes and features."""
        return make_transform(value, len(self.shares), self.dataset.sizes["feature"])

    def drivers(self, transform: Transform) -> np.ndarray:
        """H_L X_J of the drawn samples, (group, replicate, time, draw, feature)."""
        x = self.array("drawn", ("draw", "feature"))
        if transform.kind == "identity":
            return x
        return np.einsum("dpq,grtdq->grtdp", transform.array()[self.labels], x)

    def scaled_drivers(self, transform: Transform) -> tuple[np.ndarray, np.ndarray]:
        """`drivers` in the power of two at the largest of each group and time, and that unit (group, 1, time, 1, 1)."""
        u = self.drivers(transform)
        unit = power_of_two(np.abs(u).max((1, 3, 4), keepdims=True, initial=0.0))
        return u / unit, unit

    def coords(self) -> dict[Hashable, Any]:
        """Coordinates that results keep."""
        kept: tuple[Hashable, ...] = (*self.groups, "time")
        return {
            name: coord
            for name, coord in self.dataset.coords.items()
            if name in ("class", "count", "share", "step") or (name in kept and coord.ndim)
            or (coord.ndim == 0 and name != "replicate")
        }  # fmt: skip


def read_impact(impact: Any) -> ImpactData:
    """Check an impact dataset.

    Raises
    ------
    TypeError, ValueError
        For what is no such dataset.
    """
    data = check_dataset("impact", impact, ["change", "square", "drawn", "drawn_label"], SOURCE)
    own = ("replicate", "time", "draw", "class", "feature")
    change = data["change"]
    if not {"draw", "class", "feature"} <= set(change.dims) or data["drawn_label"].dims != (
        "draw",
    ):
        raise ValueError(
            f"impact.change must have the dimensions draw, class, feature, and impact.drawn_label draw, as "
            f"{SOURCE} returns them; got {', '.join(map(str, change.dims))}."
        )
    groups: dict[Hashable, int] = {d: n for d, n in change.sizes.items() if d not in own}
    step = data["step"]
    if not set(step.dims) <= set(groups):
        raise ValueError(f"impact.step must be over {tuple(groups)} at most; got {step.dims}.")
    missing = {d: n for d, n in groups.items() if d not in step.dims}
    steps = step.expand_dims(missing).transpose(*groups).values.astype(np.float64).ravel()
    return ImpactData(
        dataset=data,
        groups=groups,
        labels=data["drawn_label"].values,
        shares=data["share"].values.astype(np.float64),
        steps=steps,
        has_time="time" in change.dims,
    )


class Clusters:
    """The independent units of a measurement.

    Parameters
    ----------
    data : ImpactData
    errors : {"auto", "replicate", "draw"}
    confidence : float

    Attributes
    ----------
    kind : {"replicate", "draw"}
    count : int
        How many units.
    """

    def __init__(self, data: ImpactData, errors: str, confidence: float) -> None:
        check_choice("errors", errors, ("auto", "replicate", "draw"))
        self._R = int(data.dataset["change"].sizes.get("replicate", 1))
        self._labels, self._K = data.labels, len(data.shares)
        if errors == "replicate" and self._R < 2:
            raise ValueError(
                f"errors='replicate' needs at least 2 replicates; impact has {self._R}. Use errors='draw'."
            )
        if errors == "auto":
            errors = "replicate" if self._R >= FEWEST_REPLICATES else "draw"
        self.kind, self._confidence = errors, confidence
        D = len(data.labels)
        self._one_hot = (data.labels[:, None] == np.arange(self._K)).astype(np.float64)
        self.count = self._R if errors == "replicate" else self._R * D
        of = np.zeros(self._R, int) if errors == "replicate" else np.tile(data.labels, self._R)
        self._strata = of
        self.n_strata = len(np.unique(of))
        self.known = bool((np.bincount(of)[np.unique(of)] > 1).all())
        if not self.known:
            warnings.warn(
                "impact has a class with a single drawn sample: nothing tells how drawn samples differ, so "
                "errors are NaN. Draw at least 2 samples of every class.",
                UserWarning,
                stacklevel=4,
            )

    def sums(self, values: np.ndarray) -> np.ndarray:
        """Sums by class of the drawn sample, of everything and without each unit.

        Parameters
        ----------
        values : array (replicate, draw, ...)

        Returns
        -------
        array (1 + unit, drawn class, ...)
        """
        spread = values[:, :, None] * self._one_hot.reshape(
            1, *self._one_hot.shape, *[1] * (values.ndim - 2)
        )
        each = spread.sum(1) if self.kind == "replicate" else spread.reshape(-1, *spread.shape[2:])
        total = each.sum(0, keepdims=True)
        return np.concatenate([total, total - each])

    def error(self, values: np.ndarray) -> np.ndarray:
        """Standard errors of estimates (1 + unit, ...)."""
        return np.sqrt(np.einsum("c...,c...->...", *[self.deviations(values)] * 2))

    def deviations(self, values: np.ndarray) -> np.ndarray:
        """What each unit adds to the estimates, scaled so that squares sum to the variance: (unit, ...)."""
        without = values[1:]
        if not self.known:
            return np.full_like(without, np.nan)
        result = np.empty_like(without)
        for k in np.unique(self._strata):
            at = self._strata == k
            n = int(at.sum())
            result[at] = np.sqrt((n - 1) / n) * (without[at] - without[at].mean(0))
        return result

    def quantile(self, weights: np.ndarray | None = None) -> np.ndarray:
        """Of Student's t; units that carry unequal ``weights`` (unit, ...) count for fewer.

        Units of one class have (Σ w)²/Σ w² less one degrees of freedom ν_k. Where units are draws of several classes,
        those of the sum are Satterthwaite's for parts of the variance as large as the classes' weights W_k,
        (Σ_k W_k)²/Σ_k (W_k²/ν_k): for equal weights as many as units less classes.
        """
        if weights is None:
            freedom = np.asarray(float(self.count - self.n_strata))
        else:
            parts = np.zeros(weights.shape[1:])
            for k in np.unique(self._strata):
                own = weights[self._strata == k]
                total, square = own.sum(0), (own**2).sum(0)
                number = total**2 / np.where(square > 0, square, 1.0)
                # Two units tell a variance with one degree of freedom, however unequal they are.
                parts = parts + total**2 / np.maximum(number - 1, 1.0)
            freedom = weights.sum(0) ** 2 / np.where(parts > 0, parts, np.inf)
        return np.asarray(student.ppf((1 + self._confidence) / 2, np.maximum(freedom, 1.0)))
