"""Errors of ratios of sums over the independent units of an impact dataset."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
import xarray as xr
from scipy.stats import t as student

from lesde.analysis.elasticity.fit import FEWEST_REPLICATES
from lesde.checks import check_choice
from lesde.laws.rule import Transforms, kick
from lesde.model.transforms import Transform
from lesde.paths import check_dataset

SOURCE = "lesde.measure_impact"


def read_impact(impact: Any) -> xr.Dataset:
    """Check an impact dataset; it gets a dimension of replicates, and keeps the coordinates that results have."""
    data = check_dataset("impact", impact, ["change", "square", "drawn", "drawn_label"], SOURCE)
    dims = data["change"].dims
    if not {"draw", "class", "feature"} <= set(dims):
        raise ValueError(
            f"impact.change must have the dimensions draw, class, feature, as {SOURCE} returns them; got "
            f"{', '.join(map(str, dims))}."
        )
    kept = {*dims, "pair", "bin", "count", "share", "step", "drawn_label"} - {"replicate", "draw"}
    other = [n for n, c in data.coords.items() if n not in kept and (c.ndim or n == "replicate")]
    data = data.drop_vars(other).reset_coords("drawn_label")
    if "time" in dims:
        data = data.assign_coords(time=data["time"].astype(np.float64))
    if "replicate" in dims:
        return data
    measured = [name for name in data.data_vars if name not in ("drawn_label", "bin_edges")]
    return data.assign(data[measured].expand_dims("replicate"))


def drivers(data: xr.Dataset, transform: Transform) -> xr.DataArray:
    """u_J, the kick of a sample drawn at strength 1 (..., draw, feature)."""
    drawn = data["drawn"].transpose(..., "draw", "feature").astype(np.float64)
    x = torch.from_numpy(drawn.values)
    classes = torch.from_numpy(data["drawn_label"].values.astype(np.int64)).expand(x.shape[:-1])
    return drawn.copy(
        data=kick(Transforms(transform), x.new_ones(1), x, classes)[..., 0, :].numpy()
    )


class Clusters:
    """The independent units of a measurement: replicates, or drawn samples within their class.

    Estimates have the dimension ``unit``: first that of everything, then those without each unit. Warns the caller of
    the public function where there is nothing to estimate errors from.
    """

    def __init__(self, data: xr.Dataset, errors: str, confidence: float) -> None:
        check_choice("errors", errors, ("auto", "replicate", "draw"))
        labels, R = data["drawn_label"].values.astype(np.int64), data.sizes["replicate"]
        if errors == "replicate" and R < 2:
            raise ValueError(
                f"errors='replicate' needs at least 2 replicates; impact has {R}. Use errors='draw'."
            )
        if errors == "auto":
            errors = "replicate" if R >= FEWEST_REPLICATES else "draw"
        self.kind, self._confidence = errors, confidence
        one_hot = np.eye(data.sizes["class"])[labels]
        self._one_hot = xr.DataArray(one_hot, dims=("draw", "class_"))
        units = np.zeros(R, int) if errors == "replicate" else np.tile(labels, R)
        self._strata = [np.flatnonzero(units == k) for k in np.unique(units)]
        self.freedom = len(units) - len(self._strata)
        self._known = all(len(own) > 1 for own in self._strata)
        if not self._known:
            warnings.warn(
                "impact has a class with a single drawn sample, so the spread of drawn samples is unknown and "
                "errors are NaN. Draw at least 2 samples of every class.",
                UserWarning,
                stacklevel=3,
            )

    def totals(self, values: xr.DataArray) -> xr.DataArray:
        """Sums of values (replicate, draw, ...), (unit, ...)."""
        if self.kind == "replicate":
            each = values.sum("draw", skipna=False).rename(replicate="unit")
        else:
            each = values.stack(unit=("replicate", "draw"), create_index=False)
        total = each.sum("unit", skipna=False)
        return xr.concat([total.expand_dims("unit"), total - each], "unit")

    def sums(self, values: xr.DataArray) -> xr.DataArray:
        """The same by class of the drawn sample, (unit, class_, ...)."""
        if self.kind == "draw":
            return self.totals(values * self._one_hot)
        by_class = xr.dot(
            values, self._one_hot, dim="draw"
        )  # without an array of all draws by class
        return self.totals(by_class.expand_dims("draw"))

    def error(self, values: xr.DataArray) -> xr.DataArray:
        """Standard errors of estimates (unit, ...)."""
        return (self.deviations(values) ** 2).sum("unit", skipna=False) ** 0.5

    def deviations(self, values: xr.DataArray) -> xr.DataArray:
        """Contribution of each unit to the estimates, scaled so that squares sum to the variance."""
        without = values.transpose("unit", ...).isel(unit=slice(1, None))
        result = np.full(without.shape, np.nan)
        for own in self._strata if self._known else []:
            part, n = without.values[own], len(own)
            result[own] = np.sqrt((n - 1) / n) * (part - part.mean(0))
        return without.copy(data=result)

    def quantile(self, weights: xr.DataArray | None = None) -> xr.DataArray:
        """Of Student's t; units that carry unequal ``weights`` (unit, ...) count for fewer.

        Units of one class have (Σ w)²/Σ w² less one degrees of freedom ν_k. Where units are draws of several classes,
        those of the sum are Satterthwaite's for parts of the variance as large as the classes' weights W_k,
        (Σ_k W_k)²/Σ_k (W_k²/ν_k): for equal weights as many as units less classes.
        """
        freedom = xr.DataArray(float(self.freedom))
        if weights is not None:
            parts: Any = 0.0
            for own in self._strata:
                mine = weights.isel(unit=own)
                total, square = mine.sum("unit"), (mine**2).sum("unit")
                number = total**2 / square.where(square > 0, 1.0)
                # Two units determine a variance with one degree of freedom, however unequal they are.
                parts = parts + total**2 / (number - 1).clip(1.0)
            freedom = weights.sum("unit") ** 2 / parts.where(parts > 0, np.inf)
        return freedom.copy(data=student.ppf((1 + self._confidence) / 2, np.fmax(freedom, 1.0)))
