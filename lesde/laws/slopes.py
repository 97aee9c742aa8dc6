"""Derivatives in time of kernels and noise, for the modified equation."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import sympy as sp
from sympy.core.function import AppliedUndef

from lesde.derivation.coefficients import Coefficients
from lesde.model.formula import TIME, EntryTable


def drift_derivative(coefficients: Coefficients) -> EntryTable:
    """d/dt of w_l E_kl(t): a function from times (time,) to (time, class, class)."""
    return _slopes(coefficients.drift_table)


def noise_derivative(coefficients: Coefficients) -> Callable[[np.ndarray], np.ndarray]:
    """d/dt of σ_k(t): a function from times (time,) to (time, class, feature, feature)."""
    noise = coefficients.noise
    K, p = noise.n_classes, noise.n_features
    if noise.is_constant:
        return lambda times: np.zeros((len(times), K, p, p))
    table = _slopes(noise.table)

    def derivative(times: np.ndarray) -> np.ndarray:
        values = table(times)
        if noise.given.ndim < 2:
            values = values[:, :, None, None] * np.eye(p)
        return np.broadcast_to(values.reshape(len(times), -1, p, p), (len(times), K, p, p))

    return derivative


def _slopes(table: EntryTable) -> EntryTable:
    """The derivatives of a table's formulas."""
    for value in table.values:
        opaque = [str(atom) for atom in value.atoms(AppliedUndef)]
        if opaque:
            raise ValueError(
                f"the modified equation needs the derivative in time of {', '.join(opaque)}, which a Python "
                f"callable does not have; give a formula, or take the process 'sampling'."
            )
    slopes = tuple(sp.diff(value, TIME) for value in table.values)
    names = tuple(f"time derivative of {sp.sstr(value)}" for value in table.values)
    return EntryTable(slopes, table.index, {}, names)
