"""Weighted least squares for the rates of one interval, by Gauss-Newton for all intervals at once.

Everything is computed from the Gram matrices Σ z zᵀ and Σ ΔX̄ zᵀ of each replicate: the numbers of features
and replicates drop out of the iteration.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from lesde.analysis.transition_flow import RateBasis, Steps, flow

__all__ = [
    "Grams",
    "drift_map",
    "drift_maps",
    "eigen_coordinates",
    "gauss_newton",
    "information_of",
    "losses",
    "scores",
]

MAX_ITERATIONS = 60
# Largest change of a logarithm of growth in one iteration.
LARGEST_STEP = 1.0
# Directions whose share of the information is below this are rounding.
RANK_TOLERANCE = 1e-11


@dataclass
class Grams:
    """Per interval b and replicate r, summed over columns; rows weighted by n_k."""

    zz: np.ndarray  # (b, r, m, m)
    yz: np.ndarray  # (b, r, out, m)
    yy: np.ndarray  # (b, r)
    weight: np.ndarray  # (out,)
    size: int  # values of one replicate's increments
    y: np.ndarray  # increments, (b, r, out, column)
    z: np.ndarray  # drivers, (b, r, m, column)


def drift_maps(
    basis: RateBasis,
    theta: np.ndarray,
    width: np.ndarray,
    steps: Steps | None,
) -> tuple[np.ndarray, np.ndarray]:
    """L = G Ψ, shape (b, out, m), and its derivatives (b, q, out, m)."""
    G = np.einsum("bq,qom->bom", theta, basis.output)
    N = np.einsum("bq,qkm->bkm", theta, basis.generator)
    psi, dpsi = flow(N, basis.generator, width, steps)
    return G @ psi, basis.output[None] @ psi[:, None] + G[:, None] @ dpsi


def drift_map(
    basis: RateBasis, theta: np.ndarray, width: np.ndarray, steps: Steps | None
) -> np.ndarray:
    """L alone."""
    G = np.einsum("bq,qom->bom", theta, basis.output)
    N = np.einsum("bq,qkm->bkm", theta, basis.generator)
    return G @ flow(N, basis.generator[:0], width, steps)[0]


def losses(L: np.ndarray, grams: Grams) -> np.ndarray:
    """Σ n_k|ΔX̄ − L z|² of each interval and replicate, (b, r)."""
    WL = L * grams.weight[:, None]
    cross = np.einsum("bom,brom->br", WL, grams.yz)
    inner = np.einsum("bmk,brmk->br", L.swapaxes(1, 2) @ WL, grams.zz)
    return np.maximum(grams.yy - 2 * cross + inner, 0.0)


def scores(dL: np.ndarray, residual: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """JᵀW e of every replicate, (b, r, q)."""
    b, q = dL.shape[:2]
    weighted = (residual * weight[:, None]).reshape(b, residual.shape[1], -1)
    return weighted @ dL.reshape(b, q, -1).swapaxes(1, 2)


def information_of(dL: np.ndarray, zz: np.ndarray, weight: np.ndarray) -> np.ndarray:
    b, q = dL.shape[:2]
    left = ((dL * weight[:, None]) @ zz[:, None]).reshape(b, q, -1)
    A = left @ dL.reshape(b, q, -1).swapaxes(1, 2)
    return (A + A.swapaxes(1, 2)) / 2


def eigen_coordinates(information: np.ndarray) -> tuple[np.ndarray, ...]:
    """Coordinates in which the information is diagonal, after scaling every rate to unit information.

    Returns the map (b, q, q) from coordinates to rates with unidentified ones zeroed, the diagonal
    (1 there), which are identified, and the unidentified directions.
    """
    diagonal = np.einsum("bii->bi", information)
    scale = 1.0 / np.sqrt(np.where(diagonal > 0, diagonal, 1.0))
    values, vectors = np.linalg.eigh(information * scale[:, :, None] * scale[:, None, :])
    kept = values > RANK_TOLERANCE * information.shape[-1]
    directions = scale[:, :, None] * vectors
    lost = np.where(kept[:, None], 0.0, directions)
    return np.where(kept[:, None], directions, 0.0), np.where(kept, values, 1.0), kept, lost


def gauss_newton(
    basis: RateBasis, grams: Grams, width: np.ndarray, steps: Steps | None
) -> tuple[np.ndarray, np.ndarray]:
    """Rates that minimise the loss, (b, q), and which intervals converged.

    Starts at rest, where the first step is the linear regression of the increments on the drift;
    steps are cut to a bounded change of growth and halved while the loss would rise.
    """
    b, q = len(width), len(basis.output)
    zz, yz = grams.zz.sum(1), grams.yz.sum(1)
    total = replace(grams, zz=zz[:, None], yz=yz[:, None], yy=grams.yy.sum(1)[:, None])
    theta, converged = np.zeros((b, q)), np.zeros(b, dtype=bool)
    loss = total.yy[:, 0].copy()
    for _ in range(MAX_ITERATIONS):
        todo = np.flatnonzero(~converged)
        if len(todo) == 0:
            break
        n = None if steps is None else steps[todo]
        L, dL = drift_maps(basis, theta[todo], width[todo], n)
        score = scores(dL, (yz[todo] - L @ zz[todo])[:, None], grams.weight)[:, 0]
        information = information_of(dL, zz[todo], grams.weight)
        coordinates, values, _, _ = eigen_coordinates(information)
        along = np.einsum("bqk,bq->bk", coordinates, score) / values
        step = np.einsum("bqk,bk->bq", coordinates, along)
        generator = np.einsum("bq,qkm->bkm", step, basis.generator)
        growth = np.abs(generator).sum(1).max(1) * width[todo]
        step *= np.minimum(1.0, LARGEST_STEP / np.maximum(growth, 1e-300))[:, None]
        gain = np.einsum("bq,bq->b", along * values, along)
        # Done when the step is rounding, or would change the loss by less than rounding.
        done = (growth < 1e-12) | (gain <= 1e-15 * loss[todo])
        accepted = np.zeros(len(todo), dtype=bool)
        for _ in range(12):
            trial = theta[todo] + step
            with np.errstate(over="ignore", invalid="ignore"):
                L = drift_map(basis, trial, width[todo], n)
                sub = replace(total, zz=total.zz[todo], yz=total.yz[todo], yy=total.yy[todo])
                new = losses(L, sub)[:, 0]
            better = np.isfinite(new) & (new <= loss[todo] + 1e-13 * total.yy[todo, 0])
            take = better & ~accepted
            theta[todo[take]] = trial[take]
            loss[todo[take]] = new[take]
            accepted |= take
            if accepted.all():
                break
            step = np.where(accepted[:, None], 0.0, step / 2)
        converged[todo[done]] = True
    return theta, converged
