"""Maximum likelihood of the rates, one interval at a time, with standard errors.

The class means are observed exactly, so they form a Gaussian autoregression: given X̄(t_i), the next
means are N(X̄ + G Ψ z, C). With C proportional to 1/n_k the likelihood is a weighted least-squares
problem per interval, solved for all intervals and learning rates at once.

Errors of different intervals are martingale differences given the past, and replicates are
independent; the delete-one jackknife over replicates (cluster-robust, CV3) uses only the latter, so
it also holds for noise that is correlated over classes, as the sampling noise of SGD is.

References
----------
MacKinnon, Nielsen, Webb, *Cluster-robust inference: A guide to empirical practice*, Journal of
Econometrics 232 (2023), for the estimator CV3.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from lesde.analysis.class_means import power_of_two
from lesde.analysis.transition_flow import RateBasis, Steps
from lesde.analysis.transition_solver import (
    Grams,
    drift_map,
    drift_maps,
    eigen_coordinates,
    gauss_newton,
    information_of,
    losses,
    scores,
)

__all__ = ["TransitionFit", "drivers_and_rows", "fit_transitions", "in_common"]

BLOCK_VALUES = 2**22
# Above this many products an interval, the information of single replicates is not formed.
LARGEST_PRODUCT = 10**9


@dataclass
class TransitionFit:
    """Estimates per interval; leading dimensions (group, interval).

    Attributes
    ----------
    unit : ndarray
        The size of the class means in the interval, a power of two: what is in units of the features is
        given in it, so that no square leaves the range of floats.
    rates : ndarray, shape (..., f)
        The functionals Cθ asked for.
    precision : ndarray, shape (..., q, q)
        Inverse covariance of θ where σ = 1; empty for q > 2, where nobody asks for it and it is large.
    unit_variance : ndarray, shape (..., f)
        Variance of the functionals where σ = 1, inf where not identified.
    noise : ndarray
        σ̂: of a sample, per square root of time; NaN without residual degrees of freedom.
    freedom : ndarray of int
        Residual degrees of freedom behind σ̂.
    deleted : ndarray, shape (..., replicate, f)
        Cθ̂ less its value with one replicate left out.
    shares : ndarray, shape (..., replicate, f)
        What each replicate contributes to ``unit_variance``; 0 where not identified.
    moved, residual, predicted_residual : ndarray
        Σ n_k|·|² of the increments, of the residuals, and of the residuals of each replicate under
        the rates fitted to the others (NaN for one replicate).
    common_moved, common_residual : ndarray, shape (..., replicate)
        The same of what replicates have in common: inner products Σ n_k⟨x_r, x_s⟩ of their increments, or residuals,
        summed over the other replicates s. Noise drops out, being independent.
    converged : ndarray of bool
    """

    unit: np.ndarray
    rates: np.ndarray
    precision: np.ndarray
    unit_variance: np.ndarray
    noise: np.ndarray
    freedom: np.ndarray
    deleted: np.ndarray
    shares: np.ndarray
    moved: np.ndarray
    residual: np.ndarray
    predicted_residual: np.ndarray
    common_moved: np.ndarray
    common_residual: np.ndarray
    converged: np.ndarray


def fit_transitions(
    basis: RateBasis,
    functionals: np.ndarray,
    means: np.ndarray,
    widths: np.ndarray,
    steps: Steps | None,
    counts: np.ndarray,
) -> TransitionFit:
    """Fit the rates of every interval.

    Parameters
    ----------
    basis : RateBasis
    functionals : ndarray, shape (f, q)
        What to report of the rates.
    means : ndarray, shape (group, replicate, time, class, feature)
    widths : ndarray, shape (interval,)
    steps : Steps of shape (group, interval), or None
        For the discrete scheme.
    counts : ndarray, shape (class,)
    """
    G, R, T = means.shape[:3]
    q, out, m = basis.output.shape
    weight = counts[basis.row_class].astype(float)
    cell = max(R * out * m, q * max(out, m) * m * 4)
    block = max(1, BLOCK_VALUES // cell)
    frames = means.swapaxes(1, 2)
    before, after = (f.reshape(-1, *frames.shape[2:]) for f in (frames[:, :-1], frames[:, 1:]))
    width = np.tile(widths, G)
    parts = []
    for first in range(0, len(before), block):
        part = slice(first, first + block)
        sizes = np.maximum(np.abs(before[part]), np.abs(after[part])).max((1, 2, 3))
        unit = power_of_two(sizes)
        z, y = drivers_and_rows(basis, before[part], after[part], unit)
        zt = z.swapaxes(-1, -2)
        yy = np.einsum("broc,broc,o->br", y, y, weight)
        size = y.shape[-2] * y.shape[-1]
        grams = Grams(z @ zt, y @ zt, yy, weight, size, y, z)
        n = None if steps is None else steps.ravel()[part]
        parts.append(_fit_block(basis, functionals, grams, width[part], n, unit))
    joined = {
        f.name: np.concatenate([getattr(part, f.name) for part in parts])
        for f in fields(TransitionFit)
    }
    joined = {name: value.reshape(G, T - 1, *value.shape[1:]) for name, value in joined.items()}
    return TransitionFit(**joined)


def drivers_and_rows(
    basis: RateBasis, before: np.ndarray, after: np.ndarray, unit: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """z before and the increments, (b, ..., row, column), in units (b,)."""
    scale = unit.reshape(-1, *[1] * (before.ndim - 1))
    return basis.drivers(before / scale), basis.rows(after / scale - before / scale)


def _fit_block(
    basis: RateBasis,
    functionals: np.ndarray,
    grams: Grams,
    width: np.ndarray,
    steps: Steps | None,
    unit: np.ndarray,
) -> TransitionFit:
    theta, converged = gauss_newton(basis, grams, width, steps)
    L, dL = drift_maps(basis, theta, width, steps)
    R, q = grams.yy.shape[1], dL.shape[1]
    residual = grams.yz - L[:, None] @ grams.zz
    score = scores(dL, residual, grams.weight)
    information = information_of(dL, grams.zz.sum(1), grams.weight)
    coordinates, values, kept, lost = eigen_coordinates(information)
    own_loss = losses(L, grams)
    total = own_loss.sum(1)
    freedom = R * grams.size - kept.sum(1)
    variance = np.where(freedom > 0, total / np.maximum(freedom, 1), np.nan)
    # The residuals' variance where σ = 1.
    spread = width * _growth(basis, theta, width, steps, grams.weight)

    few = slice(q if q <= 2 else 0)
    precision = information[:, few, few] / spread[:, None, None]

    known = _identified(functionals, lost) & converged[:, None]
    C = functionals @ coordinates  # (b, f, q)
    unit_variance = spread[:, None] * (C**2 / values[:, None]).sum(-1)
    influence = np.where(known[..., None], C / values[:, None], 0.0)
    delta, rise, shares = _delete_one(dL, grams, score, coordinates, values, kept, influence)
    # What replicates have in common is also what the fit takes from their noise.
    zsum = grams.z.sum(1)
    sums = coordinates.swapaxes(1, 2) @ information_of(dL, zsum @ zsum.swapaxes(1, 2), grams.weight)
    overlap = np.einsum("bkq,bqk,bk->b", sums, coordinates, 1 / values) - kept.sum(1)
    absorbed = (variance * overlap / R)[:, None]
    return TransitionFit(
        unit=unit,
        rates=theta @ functionals.T,
        precision=precision,
        unit_variance=np.where(known, unit_variance, np.inf),
        noise=np.sqrt(variance / spread),
        freedom=freedom,
        deleted=delta @ functionals.T,
        shares=shares * spread[:, None, None],
        moved=grams.yy.sum(1),
        residual=total,
        predicted_residual=(own_loss + rise).sum(1),
        common_moved=in_common(grams.y, grams.yy, grams.weight),
        common_residual=in_common(grams.y - L[:, None] @ grams.z, own_loss, grams.weight)
        + absorbed,
        converged=converged,
    )


def _growth(
    basis: RateBasis,
    theta: np.ndarray,
    width: np.ndarray,
    steps: Steps | None,
    weight: np.ndarray,
) -> np.ndarray:
    """By how much growth within an interval enlarges the noise, on average over directions, (b,)."""
    nodes, shares = np.polynomial.legendre.leggauss(3)
    total = np.zeros(len(width))
    for x, share in zip((1 + nodes) / 2, shares / 2, strict=True):
        part = None if steps is None else steps.part(x)
        L = drift_map(basis, theta, width * x, part)
        phi = np.eye(len(weight)) + L @ basis.readout
        total += share * np.einsum("boc,o,c->b", phi**2, weight, 1 / weight) / len(weight)
    return total


def in_common(values: np.ndarray, squares: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Σ n_k⟨x_r, x_s⟩ over the other replicates s, for every r, (b, r)."""
    whole = (values * values.sum(1, keepdims=True)).sum(-1) @ weight
    return whole - squares


def _identified(functionals: np.ndarray, lost: np.ndarray) -> np.ndarray:
    """Whether the data say anything about each functional, (b, f)."""
    part = np.abs(functionals @ lost)
    size = np.abs(functionals) @ np.abs(lost)
    return (part <= 1e-6 * size).all(-1)


def _delete_one(
    dL: np.ndarray,
    grams: Grams,
    score: np.ndarray,
    coordinates: np.ndarray,
    values: np.ndarray,
    kept: np.ndarray,
    influence: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What changes when one replicate is left out, to first order (one Gauss-Newton step).

    Returns
    -------
    delta : ndarray, shape (b, r, q)
        θ̂ less θ̂ without the replicate.
    rise : ndarray, shape (b, r)
        By how much Σ n_k|e|² of the replicate rises when it is predicted with the rates of the others.
    shares : ndarray, shape (b, r, f)
        The replicate's part in the variance of the functionals whose ``influence`` (b, f, q) is given.
    """
    b, R = grams.yy.shape
    q, out, m = dL.shape[1:]
    delta, rise = np.zeros((b, R, q)), np.full((b, R), np.nan)
    shares = np.zeros((b, R, influence.shape[1]))
    if R == 1:
        return delta, rise, shares
    equal = R * q * q * out * m > LARGEST_PRODUCT
    root = np.sqrt(grams.weight)[:, None]
    for i in range(b):
        # In the coordinates of `eigen_coordinates`, where the information of all replicates is diagonal.
        maps = coordinates[i].T @ (dL[i] * root).reshape(q, -1)
        along = score[i] @ coordinates[i]
        diagonal = np.where(kept[i], values[i], 0.0)
        if equal:  # Shares of the information as if equal; many replicates make them so.
            own = np.broadcast_to(np.diag(diagonal / R), (R, q, q))
        else:
            left = maps.reshape(q, out, m) @ grams.zz[i][:, None]
            own = (left.reshape(R * q, out * m) @ maps.T).reshape(R, q, q)
        others = np.diag(values[i] + 1e-13) - own
        d = np.linalg.solve(others, along[..., None])[..., 0]
        delta[i] = d @ coordinates[i].T
        quadratic = ((own @ d[..., None])[..., 0] * d).sum(-1)
        rise[i] = 2 * (along * d).sum(-1) + quadratic
        # `influence` is in the same coordinates.
        shares[i] = ((influence[i] @ own) * influence[i]).sum(-1)
    return delta, rise, shares
