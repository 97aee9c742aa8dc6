"""The impact dataset as arrays, and errors of ratios of sums over its independent units."""

from __future__ import annotations

import warnings
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr
from scipy.stats import t as student

from lesde.checks import check_choice
from lesde.laws.rule import Transforms, kick
from lesde.model.transforms import Transform
from lesde.paths import check_dataset

__all__ = ["Clusters", "ImpactData", "read_impact"]

SOURCE = "lesde.measure_impact"
FEWEST_REPLICATES = 8
"""With fewer, a variance between replicates has too few degrees of freedom to be worth its robustness."""


@dataclass(frozen=True)
class ImpactData:
    """An impact dataset in arrays with the axes (group, replicate, time, ...)."""

    dataset: xr.Dataset
    groups: dict[Hashable, int]  # the dimensions that are neither averaged over nor time
    labels: np.ndarray  # classes of the drawn samples
    shares: np.ndarray  # w_k
    steps: np.ndarray  # learning rates (group,)

    @property
    def over(self) -> tuple[str, ...]:
        """The dimension of time, if there is one."""
        return ("time",) if "time" in self.dataset["change"].dims else ()

    def array(self, name: str, *ends: str) -> np.ndarray:
        """A variable (group, replicate, time, *ends), float64."""
        variable = self.dataset[name]
        lead = [d for d in ("replicate", "time") if d not in variable.dims]
        ordered = variable.expand_dims(lead).transpose(*self.groups, "replicate", "time", *ends)
        return ordered.values.astype(np.float64).reshape(-1, *ordered.shape[len(self.groups) :])

    def drivers(self, transform: Transform) -> np.ndarray:
        """u_J, the kick of a sample drawn at strength 1 (group, replicate, time, draw, feature)."""
        x = torch.from_numpy(self.array("drawn", "draw", "feature"))
        classes = torch.from_numpy(self.labels).expand(x.shape[:-1])
        return kick(Transforms(transform), x.new_ones(1), x, classes)[..., 0, :].numpy()

    def shaped(self, values: np.ndarray) -> np.ndarray:
        """An array (group, time, ...) with the groups' own dimensions, and time where there is one."""
        return values.reshape((*self.groups.values(), *values.shape[2 - len(self.over) :]))

    def coords(self) -> dict[Hashable, Any]:
        """Coordinates that results keep."""
        kept: set[Hashable] = {*self.groups, "time", "class", "count", "share", "step"}
        coords = self.dataset.coords.items()
        return {n: c for n, c in coords if n in kept or (c.ndim == 0 and n != "replicate")}


def read_impact(impact: Any) -> ImpactData:
    """Check an impact dataset and read it."""
    data = check_dataset("impact", impact, ["change", "square", "drawn", "drawn_label"], SOURCE)
    change = data["change"]
    if not {"draw", "class", "feature"} <= set(change.dims):
        raise ValueError(
            f"impact.change must have the dimensions draw, class, feature, as {SOURCE} returns them; got "
            f"{', '.join(map(str, change.dims))}."
        )
    own = ("replicate", "time", "draw", "class", "feature")
    groups: dict[Hashable, int] = {d: n for d, n in change.sizes.items() if d not in own}
    step = data["step"]
    missing = {d: n for d, n in groups.items() if d not in step.dims}
    steps = step.expand_dims(missing).transpose(*groups).values.astype(np.float64).ravel()
    labels = data["drawn_label"].values.astype(np.int64)
    return ImpactData(data, groups, labels, data["share"].values.astype(np.float64), steps)


class Clusters:
    """The independent units of a measurement: replicates, or drawn samples within their class.

    Warns the caller of the public function where there is nothing to estimate errors from.
    """

    def __init__(self, data: ImpactData, errors: str, confidence: float) -> None:
        check_choice("errors", errors, ("auto", "replicate", "draw"))
        R = int(data.dataset["change"].sizes.get("replicate", 1))
        if errors == "replicate" and R < 2:
            raise ValueError(
                f"errors='replicate' needs at least 2 replicates; impact has {R}. Use errors='draw'."
            )
        if errors == "auto":
            errors = "replicate" if R >= FEWEST_REPLICATES else "draw"
        self.kind, self._confidence = errors, confidence
        self._one_hot = np.eye(len(data.shares))[data.labels]  # (draw, class)
        units = np.zeros(R, int) if errors == "replicate" else np.tile(data.labels, R)
        self._strata = [units == k for k in np.unique(units)]
        self.freedom = len(units) - len(self._strata)
        self._known = all(own.sum() > 1 for own in self._strata)
        if not self._known:
            warnings.warn(
                "impact has a class with a single drawn sample, so the spread of drawn samples is unknown and "
                "errors are NaN. Draw at least 2 samples of every class.",
                UserWarning,
                stacklevel=3,
            )

    def totals(self, values: np.ndarray) -> np.ndarray:
        """Sums of values (replicate, draw, ...): of everything, then those without each unit, (1 + unit, ...)."""
        each = values.sum(1) if self.kind == "replicate" else values.reshape(-1, *values.shape[2:])
        total = each.sum(0, keepdims=True)
        return np.concatenate([total, total - each])

    def sums(self, values: np.ndarray) -> np.ndarray:
        """The same by class of the drawn sample, (1 + unit, drawn class, ...)."""
        one_hot = self._one_hot.reshape(*self._one_hot.shape, *[1] * (values.ndim - 2))
        return self.totals(values[:, :, None] * one_hot)

    def error(self, values: np.ndarray) -> np.ndarray:
        """Standard errors of estimates (1 + unit, ...)."""
        return np.sqrt((self.deviations(values) ** 2).sum(0))

    def deviations(self, values: np.ndarray) -> np.ndarray:
        """Contribution of each unit to the estimates, scaled so that squares sum to the variance: (unit, ...)."""
        result = np.full_like(values[1:], np.nan)
        if self._known:
            for own in self._strata:
                n, without = own.sum(), values[1:][own]
                result[own] = np.sqrt((n - 1) / n) * (without - without.mean(0))
        return result

    def quantile(self, weights: np.ndarray | None = None) -> np.ndarray:
        """Of Student's t; units that carry unequal ``weights`` (unit, ...) count for fewer.

        Units of one class have (Σ w)²/Σ w² less one degrees of freedom ν_k. Where units are draws of several classes,
        those of the sum are Satterthwaite's for parts of the variance as large as the classes' weights W_k,
        (Σ_k W_k)²/Σ_k (W_k²/ν_k): for equal weights as many as units less classes.
        """
        freedom = np.asarray(float(self.freedom))
        if weights is not None:
            parts = np.zeros(weights.shape[1:])
            for own in self._strata:
                total, square = weights[own].sum(0), (weights[own] ** 2).sum(0)
                number = total**2 / np.where(square > 0, square, 1.0)
                # Two units determine a variance with one degree of freedom, however unequal they are.
                parts = parts + total**2 / np.maximum(number - 1, 1.0)
            freedom = weights.sum(0) ** 2 / np.where(parts > 0, parts, np.inf)
        return np.asarray(student.ppf((1 + self._confidence) / 2, np.maximum(freedom, 1.0)))
