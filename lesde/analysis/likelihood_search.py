"""Newton's search for a maximum of a likelihood, and whether the data identify it."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from scipy.optimize import minimize

from lesde.errors import Diverged

if TYPE_CHECKING:
    from lesde.analysis.path_objective import Expansion, PathObjective

__all__ = ["CLOSE", "inverse", "maximise", "newton_distance", "refuse_unidentified"]

ITERATIONS = 200
POLISHING = 8
# An optimum is reached where a Newton step is below this part of a standard error.
CLOSE = 1e-3
# Eigenvalues of the information, scaled to a unit diagonal, below which a direction is not identified.
FLAT = 1e-9


def maximise(objective: PathObjective, first: np.ndarray) -> tuple[np.ndarray, Expansion, int]:
    """θ, the expansion of −log L there, and the steps taken.

    The search is in units of 1/√H_ii at the start, about standard errors.
    """
    at_start = objective.expand(first)  # errors at the start are the user's to see
    if objective.profile and objective.misfit(first) == 0.0:
        raise ValueError(
            "paths follow the model at start without any noise, so that the size of the noise cannot be "
            "estimated; use noise='model', or paths with noise."
        )
    if not np.isfinite(at_start[0]):
        raise ValueError(
            "start must have a finite likelihood: there the model is so far from the paths that it "
            "overflows. Start nearer to the paths."
        )
    curvature = np.abs(np.diag(at_start[2]))
    unit = 1 / np.sqrt(np.where(curvature > 0, curvature, 1.0))

    @lru_cache(maxsize=2)
    def expand(key: bytes) -> Expansion:
        try:
            value, gradient, hessian = objective.expand(first + unit * np.frombuffer(key))
        except (ValueError, Diverged):
            value = np.inf
        if not np.isfinite(value):  # no law there: the step is rejected, whatever the derivatives
            return np.inf, np.zeros(len(unit)), np.zeros((len(unit), len(unit)))
        return value, gradient * unit, hessian * np.outer(unit, unit)

    found = minimize(
        lambda z: expand(z.tobytes())[0],
        np.zeros(len(first)),
        jac=lambda z: expand(z.tobytes())[1],
        hess=lambda z: expand(z.tobytes())[2],
        method="trust-exact",
        options={
            "gtol": CLOSE,
            "maxiter": ITERATIONS,
            "initial_trust_radius": 100.0,
            "max_trust_radius": 1e6,
        },
    )
    theta, steps = first + unit * found.x, int(found.nit)
    at = objective.expand(theta)
    # Near the optimum values differ by less than their rounding, and gradients still tell.
    for _ in range(POLISHING):
        if not CLOSE * 1e-3 < newton_distance(at) < 1.0:
            break
        theta = theta - np.linalg.solve(at[2], at[1])
        at = objective.expand(theta)
        steps += 1
    return theta, at, steps


def newton_distance(at: Expansion) -> float:
    """Length of a Newton step in standard errors; infinite where the Hessian is not definite."""
    _, gradient, hessian = at
    unit = 1 / np.sqrt(np.abs(np.diag(hessian)) + 1e-300)
    scaled = hessian * np.outer(unit, unit)
    if not np.isfinite(scaled).all() or np.linalg.eigvalsh(scaled)[0] <= FLAT:
        return np.inf
    g = gradient * unit
    return float(np.sqrt(g @ np.linalg.solve(scaled, g)))


def inverse(information: np.ndarray) -> np.ndarray:
    """The inverse of an information matrix; NaN where it is not positive definite."""
    unit = 1 / np.sqrt(np.abs(np.diag(information)) + 1e-300)
    scaled = information * np.outer(unit, unit)  # parameters may differ by powers of ten
    if not np.isfinite(scaled).all() or np.linalg.eigvalsh(scaled)[0] <= 0:
        return np.full(information.shape, np.nan)
    return np.linalg.inv(scaled) * np.outer(unit, unit)


def refuse_unidentified(
    information: np.ndarray, theta: np.ndarray, labels: tuple[str, ...]
) -> None:
    """Raise where the likelihood does not change along some direction of the parameters."""
    diagonal = np.diag(information)
    for name, value, size in zip(labels, diagonal, np.maximum(np.abs(theta), 1.0), strict=True):
        if abs(value) * size**2 < 1e-10:
            raise ValueError(
                f"the paths say nothing about {name}: their likelihood does not change with it. Hold it "
                f"with model.substitute({name}=...), or use paths on which it acts."
            )
    unit = 1 / np.sqrt(np.abs(diagonal))
    values, vectors = np.linalg.eigh(information * np.outer(unit, unit))
    if abs(values[0]) < FLAT:
        weights = np.abs(vectors[:, 0])
        together = [
            name for name, w in zip(labels, weights, strict=True) if w > 0.1 * weights.max()
        ]
        hold = f"model.substitute({together[0]}=...)"
        if "noise_scale" in together:
            hold = 'noise="model", as the model has a name for the size of the noise,'
        raise ValueError(
            f"{' and '.join(together)} are not identified by the paths: the likelihood stays the same "
            f"when they change together. Hold one with {hold} or use paths that tell them apart."
        )
