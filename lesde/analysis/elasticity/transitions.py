"""Maximum likelihood of the rates in every interval between saved times.

With constant rates θ the class means move over an interval by ΔX̄ = L(θ) z + noise. z = V X̄ are the numbers
through which class means act, and L = G Ψ, where G = Σ_j θ_j O_j is the drift as a map of z, N = V G generates the
motion of z, and Ψ = ∫₀^Δ e^{sN} ds. Class means are weighted by √n_k from here on, so that their noise has one
size, and so are O and V.

`fit_transitions` treats every replicate as a path of the LE-SDE, which uses the data best if it is one. In a network
noise and drift are not independent: the non-linear dynamics pull back what noise has moved, and a fit to single
networks mistakes that for (negative) elasticity. `fit_averages` averages the class means over replicates first, which
leaves the movement that the networks have in common. Averages of R replicates still contain 1/R of the noise variance
of each. Noise in the first frame of an interval is gone in its last, so the fit mistakes it for a pull toward zero, of
order 1/R. The jackknife removes that.

References
----------
Zhang, Wang, Su, NeurIPS 2021 (arXiv 2110.05960), who estimate from class means over trials.
Quenouille, *Notes on bias in estimation*, Biometrika 43 (1956), for the jackknife's correction of bias.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch

from lesde.checks import power_of_two
from lesde.laws.rule import Transforms, drift
from lesde.model.transforms import Transform, make_transform

__all__ = ["Clock", "RateBasis", "TransitionFit", "fit_averages", "fit_transitions", "rate_basis"]

BASE_NORM = 0.5
"""Norm of the generator up to which the exponential series is summed; beyond, steps are doubled."""
PROBE = 2.0**-100
"""Imaginary part of a rate: derivatives by complex steps are exact to rounding."""
MAX_ITERATIONS = 60
LARGEST_STEP = 1.0
"""Largest change of a logarithm of growth in one iteration."""
RANK_TOLERANCE = 1e-11
"""Share of the information below which a direction is rounding."""
BLOCK_VALUES = 2**22
LARGEST_PRODUCT = 10**9
"""Products per interval above which the information of single replicates is not formed."""
LARGEST_CORRECTION = 0.5
"""Of a rate's bias, in its standard errors."""


# --------------------------------------------------------------------------------------------------
# The transition of the class means over one interval.


@dataclass(frozen=True)
class Clock:
    """Widths of intervals, and in discrete time the number of equal steps in each and their curvature.

    A step multiplies z by 1 + x + c x², x its width times the generator, with the curvature c = 0 for SGD and Euler.
    """

    width: np.ndarray
    counts: np.ndarray | None = None
    curvature: np.ndarray | None = None

    def __getitem__(self, at: Any) -> Clock:
        if self.counts is None or self.curvature is None:
            return Clock(self.width[at])
        return Clock(self.width[at], self.counts[at], self.curvature[at])

    def part(self, share: float) -> Clock:
        """About this share of each interval, at least one step."""
        if self.counts is None:
            return Clock(self.width * share)
        counts = np.maximum(np.rint(self.counts * share), 1).astype(int)
        return Clock(self.width * share, counts, self.curvature)


@dataclass(frozen=True)
class RateBasis:
    """The drift of the weighted class means as a linear function of the rates."""

    output: np.ndarray  # O, (rate, out, m)
    readout: np.ndarray  # V, (m, out)
    generator: np.ndarray  # V O, (rate, m, m)
    roots: np.ndarray  # √n_k of each row, (out, 1)

    def rows(self, means: np.ndarray) -> np.ndarray:
        """Weighted class means (..., out, column) of class means (..., class, feature)."""
        if len(self.roots) == means.shape[-2]:
            return means * self.roots
        return means.reshape(*means.shape[:-2], -1, 1) * self.roots

    def pairs(self, before: np.ndarray, after: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """z and the increments of the rows over an interval."""
        return self.readout @ self.rows(before), self.rows(after - before)


def rate_basis(transform: Transform, counts: np.ndarray, kernel: str) -> RateBasis:
    """The basis of a "two-level" kernel (rates α, β) or of a "matrix" (rates E_kl, row by row)."""
    K = len(counts)
    if transform.kind == "identity":  # features move alike: each is a column
        transform = make_transform("identity", K, 1)
    maps = Transforms(transform)
    _, right = (part.numpy() for part in maps.factors())
    rank, p = right.shape[1:]
    readout, unit = np.zeros((K, rank, K, p)), np.zeros((K, rank, K, p))
    for l in range(K):
        readout[l, :, l] = right[l]
        unit[l, :, l] = np.linalg.pinv(right[l]).T  # class means of which one entry of z is 1
    if kernel == "two-level":
        patterns = np.stack([np.eye(K), 1 - np.eye(K)])
    else:
        patterns = np.eye(K * K).reshape(-1, K, K)
    weights = torch.from_numpy(patterns * (counts / counts.sum()))
    moved = drift(maps, weights[:, None], torch.from_numpy(unit).reshape(-1, K, p))
    roots = np.repeat(np.sqrt(counts), p)[:, None]
    output = roots * moved.numpy().reshape(len(patterns), K * rank, K * p).swapaxes(1, 2)
    flat = readout.reshape(K * rank, K * p) / roots.T
    return RateBasis(output, flat, flat @ output, roots)


def flow(generator: np.ndarray, clock: Clock) -> np.ndarray:
    """Ψ for generators N (b, m, m), real or complex: of continuous time, or summed over steps.

    Over any number of steps e^{ΔN}, or its like, is 1 + N Ψ, so Ψ is all that is kept.
    """
    b, m = generator.shape[:2]
    one, counts = np.eye(m), clock.counts
    if counts is None or clock.curvature is None:
        norms = np.abs(generator).sum(1).max(1, initial=0.0) * clock.width
        norm = float(norms.max(initial=1e-300))
        counts = np.full(b, 2 ** max(0, math.ceil(math.log2(norm / BASE_NORM))))
        h = (clock.width / counts)[:, None, None]
        base = term = h * (one + 0 * generator)
        bound, i = norm / counts.max(initial=1), 2
        while bound > 1e-17:
            term = h * generator @ term / i
            base = base + term
            i, bound = i + 1, bound * norm / counts.max(initial=1) / (i + 1)
    else:
        h = (clock.width / counts)[:, None, None]
        base = h * (one + clock.curvature[:, None, None] * h * generator)
    bits = int(counts.max(initial=1)).bit_length()
    total = np.where((counts >> (bits - 1) & 1 == 1)[:, None, None], base, 0)
    for bit in reversed(range(bits - 1)):
        total = total + total @ (one + generator @ total)
        odd = counts >> bit & 1 == 1
        if odd.any():
            more = total + base @ (one + generator @ total)
            total = np.where(odd[:, None, None], more, total)
    return total


def drift_map(basis: RateBasis, theta: np.ndarray, clock: Clock) -> np.ndarray:
    """L for rates (b, q), shape (b, out, m)."""
    G = np.tensordot(theta, basis.output, 1)
    return G @ flow(np.tensordot(theta, basis.generator, 1), clock)


def drift_maps(basis: RateBasis, theta: np.ndarray, clock: Clock) -> tuple[np.ndarray, np.ndarray]:
    """L, and its derivatives (b, q, out, m) by complex steps."""
    b, q = theta.shape
    each = np.repeat(np.arange(b), q)
    probes = theta[each] + 1j * PROBE * np.tile(np.eye(q), (b, 1))
    L = drift_map(basis, probes, clock[each])
    L = L.reshape(b, q, *L.shape[1:])
    return L[:, 0].real, L.imag / PROBE


# --------------------------------------------------------------------------------------------------
# Weighted least squares for the rates, by Gauss-Newton for all intervals at once.


def losses(L: np.ndarray, zz: np.ndarray, yz: np.ndarray, yy: np.ndarray) -> np.ndarray:
    """Σ |y − L z|² of each interval and replicate, from sums of products over columns."""
    cross = np.einsum("bom,b...om->b...", L, yz)
    inner = np.einsum("bmk,b...mk->b...", L.swapaxes(1, 2) @ L, zz)
    return np.maximum(yy - 2 * cross + inner, 0.0)


def information_of(dL: np.ndarray, zz: np.ndarray) -> np.ndarray:
    """JᵀJ of every interval, (b, q, q)."""
    b, q = dL.shape[:2]
    A = (dL @ zz[:, None]).reshape(b, q, -1) @ dL.reshape(b, q, -1).swapaxes(1, 2)
    return (A + A.swapaxes(1, 2)) / 2


def eigen_coordinates(information: np.ndarray) -> tuple[np.ndarray, ...]:
    """Coordinates in which the information is diagonal, after scaling every rate to unit information.

    The map (b, q, q) from coordinates to rates with unidentified ones zeroed, the diagonal (1 there), which are
    identified, and the unidentified directions.
    """
    diagonal = np.einsum("bii->bi", information)
    scale = 1.0 / np.sqrt(np.where(diagonal > 0, diagonal, 1.0))
    values, vectors = np.linalg.eigh(information * scale[:, :, None] * scale[:, None, :])
    kept = values > RANK_TOLERANCE * information.shape[-1]
    directions = scale[:, :, None] * vectors
    lost = np.where(kept[:, None], 0.0, directions)
    return np.where(kept[:, None], directions, 0.0), np.where(kept, values, 1.0), kept, lost


def gauss_newton(
    basis: RateBasis, zz: np.ndarray, yz: np.ndarray, yy: np.ndarray, clock: Clock
) -> tuple[np.ndarray, np.ndarray]:
    """Rates (b, q) that minimise the loss, and which intervals converged.

    Starts at rest, where the first step is the linear regression of the increments on the drift; steps are cut to a
    bounded change of growth and halved while the loss would rise.
    """
    b, q = len(yy), len(basis.output)
    theta, converged, loss = np.zeros((b, q)), np.zeros(b, dtype=bool), yy.copy()
    for _ in range(MAX_ITERATIONS):
        todo = np.flatnonzero(~converged)
        if len(todo) == 0:
            break
        own = clock[todo]
        L, dL = drift_maps(basis, theta[todo], own)
        score = np.einsum("bqom,bom->bq", dL, yz[todo] - L @ zz[todo])
        coordinates, values, _, _ = eigen_coordinates(information_of(dL, zz[todo]))
        along = np.einsum("bqk,bq->bk", coordinates, score) / values
        step = np.einsum("bqk,bk->bq", coordinates, along)
        growth = np.abs(np.tensordot(step, basis.generator, 1)).sum(1).max(1) * own.width
        step *= np.minimum(1.0, LARGEST_STEP / np.maximum(growth, 1e-300))[:, None]
        # Done when the step is rounding, or would change the loss by less than rounding.
        done = (growth < 1e-12) | ((along**2 * values).sum(1) <= 1e-15 * loss[todo])
        accepted = np.zeros(len(todo), dtype=bool)
        # Far from the origin the sums of products are large, and a rise of the loss below their rounding means nothing.
        sizes = losses(-np.abs(L), np.abs(zz[todo]), np.abs(yz[todo]), yy[todo])
        slack = 1e-13 * yy[todo] + 1e-15 * sizes
        for _ in range(12):
            trial = theta[todo] + step
            with np.errstate(over="ignore", invalid="ignore"):
                L = drift_map(basis, trial, own)
                new = losses(L, zz[todo], yz[todo], yy[todo])
            better = np.isfinite(new) & (new <= loss[todo] + slack)
            take = better & ~accepted
            theta[todo[take]], loss[todo[take]] = trial[take], new[take]
            accepted |= take
            if accepted.all():
                break
            step = np.where(accepted[:, None], 0.0, step / 2)
        converged[todo[done]] = True
    return theta, converged


# --------------------------------------------------------------------------------------------------
# Estimates of every interval and what a replicate adds to them.


@dataclass
class TransitionFit:
    """Estimates of f functionals Cθ of the q rates per interval, all with the leading dimensions (group, interval).

    ``unit`` is the size of the class means, a power of two, in which all is given that has their unit, so that no square
    leaves the range of floats.
    """

    unit: np.ndarray
    rates: np.ndarray  # Cθ, (..., f)
    precision: (
        np.ndarray
    )  # inverse covariance of θ where σ = 1, (..., q, q); empty for q > 2, where it is not needed
    unit_variance: np.ndarray  # of the functionals where σ = 1, inf where not identified, (..., f)
    noise: np.ndarray  # σ̂ of a sample, per square root of time; NaN without degrees of freedom
    freedom: np.ndarray  # residual degrees of freedom behind σ̂
    deleted: np.ndarray  # Cθ̂ less its value with one replicate left out, (..., replicate, f)
    shares: (
        np.ndarray
    )  # a replicate's part in ``unit_variance``, (..., replicate, f); 0 where not identified
    moved: np.ndarray  # Σ n_k|·|² of the increments
    residual: np.ndarray  # of the residuals
    predicted_residual: (
        np.ndarray
    )  # of each replicate under the rates of the others; NaN for one replicate
    common_moved: (
        np.ndarray
    )  # Σ n_k⟨x_r, x_s⟩ of increments, over the other replicates s, (..., replicate)
    common_residual: np.ndarray  # of residuals: noise drops out
    converged: np.ndarray


def fit_transitions(
    basis: RateBasis,
    functionals: np.ndarray,
    means: np.ndarray,
    clock: Clock,
) -> TransitionFit:
    """Fit the rates of every interval to class means (group, replicate, time, class, feature), clock (group, interval)."""
    G, R, T = means.shape[:3]
    q, out, m = basis.output.shape
    block = max(1, BLOCK_VALUES // max(R * out * m, q * max(out, m) * m * 4))
    frames = means.swapaxes(1, 2)
    before, after = (f.reshape(-1, *frames.shape[2:]) for f in (frames[:, :-1], frames[:, 1:]))
    clock = clock[np.divmod(np.arange(G * (T - 1)), T - 1)]
    parts = []
    for first in range(0, len(before), block):
        at = slice(first, first + block)
        parts.append(_fit_block(basis, functionals, before[at], after[at], clock[at]))
    joined = {
        f.name: np.concatenate([getattr(part, f.name) for part in parts])
        for f in fields(TransitionFit)
    }
    return TransitionFit(**{n: v.reshape(G, T - 1, *v.shape[1:]) for n, v in joined.items()})


def _fit_block(
    basis: RateBasis,
    functionals: np.ndarray,
    before: np.ndarray,
    after: np.ndarray,
    clock: Clock,
) -> TransitionFit:
    """The fit of intervals (b,) from class means (b, replicate, class, feature)."""
    unit = power_of_two(np.maximum(np.abs(before), np.abs(after)).max((1, 2, 3)))
    scale = unit[:, None, None, None]
    z, y = basis.pairs(before / scale, after / scale)  # (b, r, row, column)
    zz, yz, yy = z @ z.swapaxes(-1, -2), y @ z.swapaxes(-1, -2), _square(y)
    theta, converged = gauss_newton(basis, zz.sum(1), yz.sum(1), yy.sum(1), clock)
    L, dL = drift_maps(basis, theta, clock)
    b, R = yy.shape
    q = dL.shape[1]
    residual = (yz - L[:, None] @ zz).reshape(b, R, -1)
    score = residual @ dL.reshape(b, q, -1).swapaxes(1, 2)
    information = information_of(dL, zz.sum(1))
    coordinates, values, kept, lost = eigen_coordinates(information)
    own_loss = losses(L, zz, yz, yy)
    freedom = R * y.shape[-2] * y.shape[-1] - kept.sum(1)
    variance = np.where(freedom > 0, own_loss.sum(1) / np.maximum(freedom, 1), np.nan)
    # The residuals' variance where σ = 1.
    spread = clock.width * _growth(basis, theta, clock)

    # A functional is identified where it has no part in the directions that are not.
    part, size = np.abs(functionals @ lost), np.abs(functionals) @ np.abs(lost)
    known = (part <= 1e-6 * size).all(-1) & converged[:, None]
    C = functionals @ coordinates  # (b, f, q)
    unit_variance = spread[:, None] * (C**2 / values[:, None]).sum(-1)
    influence = np.where(known[..., None], C / values[:, None], 0.0)
    delta, rise, shares = _delete_one(dL, zz, score, coordinates, values, kept, influence)
    # What replicates have in common is also what the fit takes from their noise.
    zsum = z.sum(1)
    sums = coordinates.swapaxes(1, 2) @ information_of(dL, zsum @ zsum.swapaxes(1, 2))
    overlap = np.einsum("bkq,bqk,bk->b", sums, coordinates, 1 / values) - kept.sum(1)
    absorbed = (variance * overlap / R)[:, None]
    few = slice(q if q <= 2 else 0)
    return TransitionFit(
        unit=unit,
        rates=theta @ functionals.T,
        precision=information[:, few, few] / spread[:, None, None],
        unit_variance=np.where(known, unit_variance, np.inf),
        noise=np.sqrt(variance / spread),
        freedom=freedom,
        deleted=delta @ functionals.T,
        shares=shares * spread[:, None, None],
        moved=yy.sum(1),
        residual=own_loss.sum(1),
        predicted_residual=(own_loss + rise).sum(1),
        common_moved=_in_common(y, yy),
        common_residual=_in_common(y - L[:, None] @ z, own_loss) + absorbed,
        converged=converged,
    )


def _square(values: np.ndarray) -> np.ndarray:
    """Σ |·|² over rows and columns."""
    return np.einsum("...oc,...oc->...", values, values)


def _in_common(values: np.ndarray, squares: np.ndarray) -> np.ndarray:
    """Σ ⟨x_r, x_s⟩ over the other replicates s, for every r, (b, r)."""
    return (values * values.sum(1, keepdims=True)).sum((-2, -1)) - squares


def _growth(basis: RateBasis, theta: np.ndarray, clock: Clock) -> np.ndarray:
    """Factor by which growth within an interval enlarges the noise, on average over directions, (b,)."""
    nodes, shares = np.polynomial.legendre.leggauss(3)
    n, total = len(basis.roots), np.zeros(len(theta))
    for x, share in zip((1 + nodes) / 2, shares / 2, strict=True):
        L = drift_map(basis, theta, clock.part(x))
        total += share * _square(np.eye(n) + L @ basis.readout) / n
    return total


def _delete_one(
    dL: np.ndarray,
    zz: np.ndarray,
    score: np.ndarray,
    coordinates: np.ndarray,
    values: np.ndarray,
    kept: np.ndarray,
    influence: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Change of the estimates when one replicate is left out, to first order (one Gauss-Newton step).

    θ̂ less θ̂ without the replicate (b, r, q); the rise of Σ|e|² of the replicate when it is predicted with the
    rates of the others (b, r); its part in the variance of functionals with this ``influence`` (b, r, f).
    """
    b, R = zz.shape[:2]
    q, out, m = dL.shape[1:]
    delta, rise = np.zeros((b, R, q)), np.full((b, R), np.nan)
    shares = np.zeros((b, R, influence.shape[1]))
    if R == 1:
        return delta, rise, shares
    for i in range(b):
        # In the coordinates of `eigen_coordinates`, where the information of all replicates is diagonal.
        along = score[i] @ coordinates[i]
        if R * q * q * out * m > LARGEST_PRODUCT:  # equal shares: many replicates make them so
            own = np.broadcast_to(np.diag(np.where(kept[i], values[i], 0.0) / R), (R, q, q))
        else:
            maps = coordinates[i].T @ dL[i].reshape(q, -1)
            left = maps.reshape(q, out, m) @ zz[i][:, None]
            own = (left.reshape(R * q, out * m) @ maps.T).reshape(R, q, q)
        others = np.diag(values[i] + 1e-13) - own
        d = np.linalg.solve(others, along[..., None])[..., 0]
        delta[i] = d @ coordinates[i].T
        rise[i] = 2 * (along * d).sum(-1) + ((own @ d[..., None])[..., 0] * d).sum(-1)
        shares[i] = ((influence[i] @ own) * influence[i]).sum(-1)
    return delta, rise, shares


def fit_averages(
    basis: RateBasis,
    functionals: np.ndarray,
    means: np.ndarray,
    clock: Clock,
) -> TransitionFit:
    """Fit the rates to class means averaged over replicates, with jackknife errors.

    As `fit_transitions`; ``deleted`` are differences to fits of the averages without one replicate, made anew for
    each. ``rates`` are corrected for their bias by the jackknife; all else is that of the fit before.
    """
    G, R, T = means.shape[:3]
    q = len(basis.output)
    whole = means.mean(1, keepdims=True)
    without = ((R * whole - means) / (R - 1)).reshape(G * R, 1, *means.shape[2:])
    # All averages are groups of one replicate: first the whole ones, then those without one.
    at = np.append(np.arange(G), np.repeat(np.arange(G), R))
    groups = np.concatenate([whole, without])
    fit = fit_transitions(basis, functionals, groups, clock[at])
    left = np.moveaxis(fit.rates[G:].reshape(G, R, T - 1, -1), 1, 2)
    result = TransitionFit(**{f.name: getattr(fit, f.name)[:G] for f in fields(fit)})
    result.deleted = result.rates[:, :, None] - left

    result.predicted_residual = np.zeros((G, T - 1))
    result.common_moved, result.common_residual = np.zeros((2, G, T - 1, R))
    for g in range(G):
        frames = means[g].swapaxes(0, 1)
        unit = result.unit[g][:, None, None, None]
        z, y = basis.pairs(frames[:-1] / unit, frames[1:] / unit)
        e = y - drift_map(basis, result.rates[g, :, :q], clock[g])[:, None] @ z
        for r in range(R):
            L = drift_map(basis, left[g, :, r, :q], clock[g])
            result.predicted_residual[g] += _square(y[:, r] - L @ z[:, r])
        own_y, own_e = _square(y), _square(e)
        result.moved[g], result.residual[g] = own_y.sum(1), own_e.sum(1)
        # The average's fit absorbs the noise of q directions, for all replicates together.
        absorbed = own_e.sum(1) / (R * y.shape[-2] * y.shape[-1]) * q
        result.common_moved[g] = _in_common(y, own_y)
        result.common_residual[g] = _in_common(e, own_e) + absorbed[:, None]
    result.unit_variance = result.unit_variance / R
    result.noise = result.noise * np.sqrt(R)  # from that of an average to that of one replicate
    result.precision = result.precision * R
    known = np.isfinite(result.unit_variance)
    equal = np.where(known, result.unit_variance, 0.0)[:, :, None] / R
    result.shares = np.repeat(equal, R, axis=2)
    result.rates = result.rates + _correction(result.deleted, known)
    return result


def _correction(deleted: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Correction that the jackknife adds to the rates (g, t, f) against a bias of order 1/R.

    Where it is large against the standard error the bias is not of that order (the first frame is mostly noise), and it
    would add more noise than it removes; so it goes no further than ``LARGEST_CORRECTION``. All functionals of an
    interval are scaled alike, to keep α − β the difference of α and β.
    """
    R = deleted.shape[2]
    change = (R - 1) * deleted.mean(2)
    error = np.sqrt((R - 1) / R * (deleted**2).sum(2))
    known = known & np.isfinite(change) & (error > 0)
    size = np.where(known, np.abs(change) / np.where(known, error, 1.0), 0.0).max(-1, keepdims=True)
    scale = LARGEST_CORRECTION / np.maximum(size, LARGEST_CORRECTION)
    return np.where(known.all(-1, keepdims=True), change * scale, 0.0)
