"""True α, β and their integrals, from a kernel, a model or a dataset."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from lesde.checks import shown
from lesde.kernels import Kernel
from lesde.model import LESDE

__all__ = ["true_elasticity"]

Curves = dict[str, tuple[np.ndarray, np.ndarray]]

POINTS = 200
"""Fewest points a smooth curve is drawn with."""
NODES, WEIGHTS = np.polynomial.legendre.leggauss(5)


def true_elasticity(truth: Any, fit: xr.Dataset) -> Curves:
    """Curves of A, B, alpha, beta as far as known: for each its abscissas and values.

    Parameters
    ----------
    truth : Kernel, LESDE or Dataset
        Of a kernel all entries with k = l must be equal, and all with k ≠ l.
    fit : xarray.Dataset
        With ``time``, from whose first value A and B are integrals; ``count`` gives the number of classes.
    """
    if isinstance(truth, xr.Dataset):
        return _from_dataset(truth)
    K = int(fit.sizes.get("class", 2))
    if isinstance(truth, LESDE):
        truth, K = truth.kernel, truth.n_classes
    if not isinstance(truth, Kernel):
        raise TypeError(
            f"truth must be a kernel such as lesde.TwoLevel(alpha=2, beta=-1), a lesde.LESDE or a "
            f"Dataset with A, B, alpha or beta; got {shown(truth)}."
        )
    table = truth.entries(K)
    same = np.eye(K, dtype=bool)
    if len(np.unique(table.index[same])) > 1 or len(np.unique(table.index[~same])) > 1:
        raise ValueError(
            f"truth must have one strength within classes and one between them, as the fit has; got "
            f"{shown(truth)}."
        )
    times = fit["time"].values.astype(np.float64)
    fine = np.unique(np.concatenate([times, np.linspace(times[0], times[-1], POINTS)]))

    def levels(at: np.ndarray) -> np.ndarray:
        values = table(at.ravel())
        return np.stack([values[:, 0, 0], values[:, 0, 1]]).reshape(2, *at.shape)

    # Five Gauss points in every gap of the fine grid: exact to rounding for smooth rates, and jumps
    # at saved times, which kernels made of a fit have, stand between gaps.
    middle, half = (fine[1:] + fine[:-1]) / 2, np.diff(fine) / 2
    nodes = middle[:, None] + half[:, None] * NODES
    steps = (levels(nodes) * WEIGHTS).sum(-1) * half
    integrals = np.concatenate([np.zeros((2, 1)), np.cumsum(steps, axis=1)], axis=1)
    # Rates are shown in the middle of gaps: at a saved time they may jump, or not exist.
    rates = levels(middle)
    return {
        "A": (fine, integrals[0]),
        "B": (fine, integrals[1]),
        "alpha": (middle, rates[0]),
        "beta": (middle, rates[1]),
    }


def _from_dataset(truth: xr.Dataset) -> Curves:
    found: Curves = {}
    for name in ("A", "B", "alpha", "beta"):
        if name not in truth:
            continue
        variable = truth[name]
        if len(variable.dims) != 1 or variable.dims[0] not in ("time", "interval"):
            raise ValueError(
                f"truth.{name} must be over 'time' or 'interval' alone; got "
                f"{', '.join(map(str, variable.dims)) or 'a number'}. Choose entries with truth.isel(...)."
            )
        found[name] = (truth[variable.dims[0]].values, variable.values.astype(np.float64))
    if not found:
        raise ValueError(
            "truth must hold A, B, alpha or beta; it holds "
            f"{', '.join(map(str, truth.data_vars)) or 'nothing'}."
        )
    return found
