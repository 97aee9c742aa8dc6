"""Maximum likelihood of the rates in every interval between saved times.

With constant rates θ the class means move over an interval by ΔX̄ = L(θ) z + noise. z = V X̄ are the numbers
through which class means act, and L = G Ψ, where G = Σ_j θ_j O_j is the drift as a map of z, N = V G generates the
motion of z, and Ψ = ∫₀^Δ e^{sN} ds. Class means are weighted by √n_k from here on, so that their noise has one
size, and so are O and V.

`fit_transitions` treats every replicate as a path of the LE-SDE. In a network noise and drift are not independent: the
non-linear dynamics pull back what noise has moved, and a fit to single networks mistakes that for (negative) elasticity.
`fit_averages` averages the class means over replicates first, which leaves the movement that the networks have in common.
Noise of averages in the first frame of an interval is gone in its last, which the fit mistakes for a pull toward zero, of
order 1/R for R replicates. The jackknife removes that.

References
----------
Zhang, Wang, Su, NeurIPS 2021 (arXiv 2110.05960), who estimate from class means over trials.
Quenouille, *Notes on bias in estimation*, Biometrika 43 (1956), for the jackknife's correction of bias.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.special import exprel

from lesde.laws.rule import Transforms, drift
from lesde.model.transforms import Transform, make_transform

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
        parts = (self.width, self.counts, self.curvature)
        return Clock(*(None if part is None else part[at] for part in parts))  # type: ignore[arg-type]


@dataclass(frozen=True)
class RateBasis:
    """The drift of the weighted class means as a linear function of the rates."""

    output: np.ndarray  # O, (rate, out, m)
    readout: np.ndarray  # V, (m, out)
    generator: np.ndarray  # V O, (rate, m, m)
    roots: np.ndarray  # √n_k of each row, (out, 1)

    def pairs(self, before: np.ndarray, after: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """z and the increments of the rows (..., out, column) of class means (..., class, feature)."""
        shape = (*before.shape[:-2], len(self.roots), -1)
        start, end = before.reshape(shape) * self.roots, after.reshape(shape) * self.roots
        return self.readout @ start, end - start


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
        norm = (np.abs(generator).sum(1).max(1) * clock.width).max(initial=1e-300)
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


def pseudo_inverse(information: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The inverse (b, q, q) of the information where it is not rounding, and the projection on directions where it is."""
    diagonal = np.einsum("bii->bi", information)
    scale = 1.0 / np.sqrt(np.where(diagonal > 0, diagonal, 1.0))
    units = scale[:, :, None] * scale[:, None, :]
    inverse = np.linalg.pinv(information * units, RANK_TOLERANCE, hermitian=True)
    lost = np.eye(len(scale.T)) - inverse @ (information * units)
    return inverse * units, scale[:, :, None] * lost / scale[:, None, :]


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
        own, sums = clock[todo], (zz[todo], yz[todo], yy[todo])
        L, dL = drift_maps(basis, theta[todo], own)
        score = np.einsum("bqom,bom->bq", dL, sums[1] - L @ sums[0])
        step = np.einsum("bqk,bk->bq", pseudo_inverse(information_of(dL, sums[0]))[0], score)
        growth = np.abs(np.tensordot(step, basis.generator, 1)).sum(1).max(1) * own.width
        # Done when the step is rounding, or would change the loss by less than rounding.
        converged[todo] = (growth < 1e-12) | ((step * score).sum(1) <= 1e-15 * loss[todo])
        step *= np.minimum(1.0, LARGEST_STEP / np.maximum(growth, 1e-300))[:, None]
        # Far from the origin the sums of products are large, and a rise of the loss below their rounding means nothing.
        sizes = losses(-np.abs(L), np.abs(sums[0]), np.abs(sums[1]), sums[2])
        most = loss[todo] + 1e-13 * sums[2] + 1e-15 * sizes
        open_ = np.ones(len(todo), dtype=bool)
        for _ in range(12):
            trial = theta[todo] + step
            with np.errstate(over="ignore", invalid="ignore"):
                new = losses(drift_map(basis, trial, own), *sums)
            take = open_ & (new <= most)
            theta[todo[take]], loss[todo[take]] = trial[take], new[take]
            open_ &= ~take
            if not open_.any():
                break
            step = step / 2
    return theta, converged


# --------------------------------------------------------------------------------------------------
# Estimates of every interval and what a replicate adds to them.


class TransitionFit(NamedTuple):
    """Estimates of f functionals Cθ of the q rates per interval, all with the leading dimensions (group, interval)."""

    rates: np.ndarray  # Cθ, (..., f)
    precision: np.ndarray  # inverse covariance of θ where σ = 1, (..., q, q); empty for q > 2
    unit_variance: np.ndarray  # of the functionals where σ = 1, inf where not identified, (..., f)
    noise: np.ndarray  # σ̂ of a sample, per square root of time; NaN without degrees of freedom
    freedom: np.ndarray  # residual degrees of freedom behind σ̂
    deleted: np.ndarray  # Cθ̂ less its value with one replicate left out, (..., replicate, f)
    shares: np.ndarray  # a replicate's part in ``unit_variance``, or 0, (..., replicate, f)
    moved: np.ndarray  # Σ n_k|·|² of the increments
    residual: np.ndarray  # of the residuals
    predicted_residual: np.ndarray  # of each replicate by the rates of the others; NaN for one
    # Σ n_k⟨x_r, x_s⟩ over the other replicates s, in which noise drops out, (..., replicate)
    common_moved: np.ndarray  # of increments
    common_residual: np.ndarray  # of residuals
    converged: np.ndarray


def fit_transitions(
    basis: RateBasis, functionals: np.ndarray, means: np.ndarray, clock: Clock
) -> TransitionFit:
    """Fit the rates of every interval to class means (group, replicate, time, class, feature), clock (group, interval)."""
    G, R, T = means.shape[:3]
    q, out, m = basis.output.shape
    largest = max(R * out * m, q * max(out, m) * m * 4, q * q * R)
    block = max(1, BLOCK_VALUES // largest)
    frames = means.swapaxes(1, 2)
    before, after = (f.reshape(-1, *frames.shape[2:]) for f in (frames[:, :-1], frames[:, 1:]))
    clock = clock[np.divmod(np.arange(G * (T - 1)), T - 1)]
    parts = []
    for first in range(0, len(before), block):
        at = slice(first, first + block)
        parts.append(_fit_block(basis, functionals, before[at], after[at], clock[at]))
    joined = (np.concatenate(part) for part in zip(*parts, strict=True))
    return TransitionFit(*(part.reshape(G, T - 1, *part.shape[1:]) for part in joined))


def _fit_block(
    basis: RateBasis, functionals: np.ndarray, before: np.ndarray, after: np.ndarray, clock: Clock
) -> TransitionFit:
    """The fit of intervals (b,) from class means (b, replicate, class, feature)."""
    z, y = basis.pairs(before, after)  # (b, r, row, column)
    zz, yz, yy = z @ z.swapaxes(-1, -2), y @ z.swapaxes(-1, -2), _square(y)
    theta, converged = gauss_newton(basis, zz.sum(1), yz.sum(1), yy.sum(1), clock)
    L, dL = drift_maps(basis, theta, clock)
    R, q, n = yy.shape[1], dL.shape[1], len(basis.roots)
    information = information_of(dL, zz.sum(1))
    inverse, lost = pseudo_inverse(information)
    rank = q - np.rint(np.einsum("bii->b", lost))
    e = y - L[:, None] @ z
    freedom = R * y.shape[-2] * y.shape[-1] - rank
    variance = np.where(freedom > 0, _square(e).sum(1) / np.maximum(freedom, 1), np.nan)
    # The residuals' variance where σ = 1: growth that is even over the interval enlarges the noise to its mean.
    spread = clock.width * exprel(np.log(_square(np.eye(n) + L @ basis.readout) / n))

    # A functional is identified where it has no part in the directions that are not.
    known = np.abs(functionals @ lost).max(-1) <= 1e-6 * np.abs(functionals).max(-1)
    known &= converged[:, None]
    influence = functionals @ inverse
    unit_variance = spread[:, None] * (influence * functionals).sum(-1)
    own = _information_of_each(dL, zz, information)
    shares = ((influence[:, None] @ own) * influence[:, None]).sum(-1)
    # θ̂ less θ̂ without each replicate, to first order (one Gauss-Newton step).
    delta = np.full((*yy.shape, q), np.nan)
    if R > 1:
        score = (e @ z.swapaxes(-1, -2)).reshape(*yy.shape, -1) @ _rows(dL).swapaxes(1, 2)
        others = (1 + 1e-13) * np.eye(q) - inverse[:, None] @ own
        delta = np.linalg.solve(others, (score @ inverse)[..., None])[..., 0]
    zsum = z.sum(1)
    common = information_of(dL, zsum @ zsum.swapaxes(1, 2))
    # What replicates have in common is also what the fit takes from their noise.
    absorbed = variance / R * ((inverse * common).sum((1, 2)) - rank)
    few = slice(q if q <= 2 else 0)
    return TransitionFit(
        rates=theta @ functionals.T,
        precision=information[:, few, few] / spread[:, None, None],
        unit_variance=np.where(known, unit_variance, np.inf),
        noise=np.sqrt(variance / spread),
        freedom=freedom,
        deleted=delta @ functionals.T,
        shares=np.where(known[:, None], shares, 0.0) * spread[:, None, None],
        converged=converged,
        **_explained(z, y, e, dL, delta, absorbed),
    )


def _rows(dL: np.ndarray) -> np.ndarray:
    return dL.reshape(*dL.shape[:2], -1)


def _information_of_each(dL: np.ndarray, zz: np.ndarray, information: np.ndarray) -> np.ndarray:
    """The parts (b, r, q, q) of the replicates in the information."""
    (b, R), (q, out, m) = zz.shape[:2], dL.shape[1:]
    if R * q * q * out * m > LARGEST_PRODUCT:  # equal shares: many replicates make them so
        return np.broadcast_to(information[:, None] / R, (b, R, q, q))
    own = np.empty((b, R, q, q))
    for i, maps in enumerate(dL):
        left = maps @ zz[i][:, None]
        own[i] = (left.reshape(R * q, -1) @ maps.reshape(q, -1).T).reshape(R, q, q)
    return own


def _square(values: np.ndarray) -> np.ndarray:
    """Σ |·|² over rows and columns."""
    return np.einsum("...oc,...oc->...", values, values)


def _in_common(values: np.ndarray) -> np.ndarray:
    """Σ ⟨x_r, x_s⟩ over the other replicates s, for every r, (b, r)."""
    return np.einsum("broc,boc->br", values, values.sum(1)) - _square(values)


def _explained(
    z: np.ndarray,
    y: np.ndarray,
    e: np.ndarray,
    dL: np.ndarray,
    delta: np.ndarray,
    absorbed: np.ndarray,
) -> dict[str, np.ndarray]:
    """What increments y and their residuals e (b, r, row, column) add up to.

    A replicate is predicted by the rates without it, θ − ``delta``, to first order. What the fit has ``absorbed`` of the
    noise (b,) is missing in the residuals that replicates have in common.
    """
    change = (delta @ _rows(dL)).reshape(*delta.shape[:2], *dL.shape[2:])
    return {
        "moved": _square(y).sum(1),
        "residual": _square(e).sum(1),
        "predicted_residual": _square(e + change @ z).sum(1),
        "common_moved": _in_common(y),
        "common_residual": _in_common(e) + absorbed[:, None],
    }


def fit_averages(
    basis: RateBasis, functionals: np.ndarray, means: np.ndarray, clock: Clock
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
    every = fit_transitions(basis, functionals, np.concatenate([whole, without]), clock[at])
    left = np.moveaxis(every.rates[G:].reshape(G, R, T - 1, -1), 1, 2)
    fit = TransitionFit(*(part[:G] for part in every))
    deleted = fit.rates[:, :, None] - left
    explained = []
    for g in range(G):
        frames = means[g].swapaxes(0, 1)
        z, y = basis.pairs(frames[:-1], frames[1:])
        L, dL = drift_maps(basis, fit.rates[g, :, :q], clock[g])
        e = y - L[:, None] @ z
        # The average's fit absorbs the noise of q directions, for all replicates together.
        absorbed = _square(e).mean(1) / y[0, 0].size * q
        explained.append(_explained(z, y, e, dL, deleted[g, ..., :q], absorbed))
    unit_variance = fit.unit_variance / R
    known = np.isfinite(unit_variance)
    equal = np.where(known, unit_variance, 0.0)[:, :, None] / R
    return fit._replace(
        rates=fit.rates + _correction(deleted, known),
        precision=fit.precision * R,
        unit_variance=unit_variance,
        noise=fit.noise * np.sqrt(R),  # from that of an average to that of one replicate
        deleted=deleted,
        shares=np.repeat(equal, R, axis=2),
        **{name: np.stack([part[name] for part in explained]) for name in explained[0]},
    )


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
