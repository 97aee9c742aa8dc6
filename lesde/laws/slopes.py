"""Derivatives in time of kernels and noise: exact for formulas, finite differences for callables."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import sympy as sp
from sympy.core.function import AppliedUndef

from lesde.derivation.coefficients import Coefficients
from lesde.laws.values import noise_table
from lesde.model.formula import TIME, EntryTable

__all__ = ["difference", "drift_derivative", "noise_derivative"]

NODES = 7
STEP = 5e-3
ROUGH = 1e-2
"""Two estimates may differ by this share of the callable's size, per spacing of the nodes."""


def drift_derivative(coefficients: Coefficients, start: float, end: float) -> EntryTable:
    """d/dt of w_l E_kl(t): a function from times (time,) to (time, class, class).

    Callables in the kernel are asked for values between ``start`` and ``end`` only.
    """
    return _slopes(coefficients.drift_table, start, end)


def noise_derivative(
    coefficients: Coefficients, start: float, end: float
) -> Callable[[np.ndarray], np.ndarray]:
    """d/dt of σ_k(t): a function from times (time,) to (time, class, feature, feature)."""
    noise = coefficients.noise
    K, p = noise.n_classes, noise.n_features
    if noise.is_constant:
        return lambda times: np.zeros((len(times), K, p, p))
    table = _slopes(noise_table(noise), start, end)

    def derivative(times: np.ndarray) -> np.ndarray:
        values = table(times)
        if noise.given.ndim < 2:
            values = values[:, :, None, None] * np.eye(p)
        return np.broadcast_to(values.reshape(len(times), -1, p, p), (len(times), K, p, p))

    return derivative


def _slopes(table: EntryTable, start: float, end: float) -> EntryTable:
    """The derivatives of a table's values, with differences for the callables in them."""
    functions = dict(table.functions)
    slopes = []
    for value in table.values:
        replaced: dict[sp.Expr, sp.Expr] = {}
        for atom in value.atoms(AppliedUndef):
            name = atom.func.__name__
            if name in table.functions:
                functions[f"{name}_slope"] = difference(table.functions[name], name, start, end)
                replaced[sp.Derivative(atom, TIME)] = sp.Function(f"{name}_slope", real=True)(TIME)
        slopes.append(sp.diff(value, TIME).xreplace(replaced))
    names = tuple(f"time derivative of {sp.sstr(value)}" for value in table.values)
    return EntryTable(tuple(slopes), table.index, functions, names)


def difference(
    function: Callable[..., Any], name: str, start: float, end: float
) -> Callable[[Any], np.ndarray]:
    """The derivative of a vectorised callable by differences of sixth order, never outside the times.

    Nodes are 1/200 apart, or 1/100 of the times' length where that is less; near an end they all lie on
    the inner side. A second estimate from nodes half as far apart must agree: a jump has no derivative.

    Raises
    ------
    ValueError
        When called near a jump, or where the callable changes much within 1/200.
    """
    length = end - start
    spacing = max(min(STEP, length / 100), 1e-7 * max(abs(start), abs(end)))
    spacing = min(spacing, length / (NODES - 1))
    unit = _slope_weights(np.arange(NODES))

    def estimate(t: np.ndarray, width: float) -> tuple[np.ndarray, np.ndarray]:
        left = np.clip(t - width * (NODES // 2), start, max(start, end - width * (NODES - 1)))
        nodes = np.clip(left[..., None] + width * np.arange(NODES), start, end)
        values = np.broadcast_to(np.asarray(function(nodes), dtype=np.float64), nodes.shape)
        return (unit((t - left) / width) * values).sum(-1) / width, np.abs(values).max(-1)

    def slope(times: Any) -> np.ndarray:
        t = np.asarray(times, dtype=np.float64)
        coarse, size = estimate(t, spacing)
        fine, _ = estimate(t, spacing / 2)
        rough = np.abs(coarse - fine) * spacing > ROUGH * size
        if rough.any():
            raise ValueError(
                f"the function {name} has no usable derivative at t = {float(t[rough].flat[0]):g}, "
                f"which the modified equation needs: it jumps there, or changes much within "
                f"{spacing:g}. Give a smooth function or a formula, or use process='sampling'."
            )
        return fine

    return slope


def _slope_weights(nodes: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Weights (..., node) of the interpolating polynomial's derivative at points in units of nodes."""
    # Lagrange polynomials as power series, differentiated; seven nodes leave them well conditioned.
    centre = nodes.mean()
    series = np.linalg.inv(np.vander(nodes - centre, increasing=True))  # (power, node)
    powers = np.arange(1, len(nodes))

    def weights(x: np.ndarray) -> np.ndarray:
        return ((x[..., None] - centre) ** (powers - 1) * powers) @ series[1:]

    return weights
