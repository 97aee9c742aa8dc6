"""From a fit back to a kernel, which can be simulated and compared with the data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from lesde.checks import check_flag
from lesde.model.kernels import ClassMatrix, Kernel, TwoLevel
from lesde.paths import check_dataset


@dataclass(frozen=True)
class StepFunction:
    """A piecewise constant function of time, right-continuous, with a value from the first edge to the last."""

    name: str
    edges: tuple[float, ...]
    values: tuple[float, ...]

    def __call__(self, t: Any) -> np.ndarray:
        edges, t = np.array(self.edges), np.asarray(t, dtype=np.float64)
        # Times that a solver adds up may miss an edge by rounding.
        slack = 1e-9 * max(abs(edges[0]), abs(edges[-1]))
        outside = (t < edges[0] - slack) | (t > edges[-1] + slack)
        if outside.any():
            raise ValueError(
                f"{self.name} was fitted from t = {edges[0]:g} to {edges[-1]:g}; it has no value at "
                f"t = {float(t[outside].flat[0]):g}. Stay within, or fit longer paths."
            )
        index = np.searchsorted(edges, t, side="right") - 1
        return np.array(self.values)[np.clip(index, 0, len(self.values) - 1)]

    def __str__(self) -> str:
        pieces = zip(self.edges[:-1], self.values, strict=True)
        steps = ", ".join(f"{value:.4g} from t = {start:g}" for start, value in pieces)
        return f"{steps} to {self.edges[-1]:g}"


def fitted_kernel(fit: xr.Dataset, *, smooth: bool = False) -> Kernel:
    """The fitted kernel, piecewise constant in time.

    Parameters
    ----------
    fit : xarray.Dataset
        As `lesde.fit_elasticity` or `lesde.fit_impact` (at several times) return, at one learning rate: select it with
        ``fit.sel(learning_rate=...)``.
    smooth : bool, default False
        Take the smoothed rates in place of the raw ones. The raw kernel integrates to Â (or the fitted
        ``E_integral``) exactly at every saved time; the smoothed one only within the errors.

    Returns
    -------
    TwoLevel or ClassMatrix
        Its strengths are step functions of t, right-continuous at saved times, that print and compare by their edges and
        values. They are defined from the first saved time to the last and raise ValueError elsewhere.

    Notes
    -----
    The jumps are at saved times. Laws and the exact engine step from saved time to saved time and never see them,
    if simulated at the times of the fit or a refinement of them; other grids cost more work.

    Examples
    --------
    >>> kernel = fitted_kernel(fit.sel(learning_rate=0.1))  # doctest: +SKIP
    >>> model = lesde.LESDE(kernel, n_classes=3, n_features=3)  # doctest: +SKIP
    """
    check_dataset("fit", fit, [], "lesde.fit_elasticity")
    kind = fit.attrs.get("kernel")
    if kind not in ("two-level", "matrix") or "interval" not in fit.dims:
        raise ValueError("fit must be a dataset from lesde.fit_elasticity.")
    end = "" if check_flag("smooth", smooth) else "_raw"
    names = ["alpha", "beta"] if kind == "two-level" else ["E"]
    check_dataset("fit", fit, [n + end for n in names] + ["start", "end"], "lesde.fit_elasticity")
    extra = [str(d) for d in fit[names[0] + end].dims if d not in ("interval", "class", "class_")]
    if extra:
        raise ValueError(
            f"fit must hold one kernel; it has the dimension(s) {', '.join(extra)}. Select one with "
            f"fit.isel({extra[0]}=0)."
        )
    edges = (*fit["start"].values.tolist(), float(fit["end"][-1]))

    def steps(label: str, values: np.ndarray) -> StepFunction:
        return StepFunction(label, edges, tuple(values.tolist()))

    if kind == "two-level":
        alpha, beta = (steps(name, fit[name + end].values) for name in names)
        return TwoLevel(alpha, beta)
    E = fit["E" + end].transpose("class", "class_", "interval").values
    return ClassMatrix(
        [[steps(f"E[{k}, {l}]", values) for l, values in enumerate(row)] for k, row in enumerate(E)]
    )
