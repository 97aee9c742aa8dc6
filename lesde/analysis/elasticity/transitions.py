"""Rates from class means averaged over replicates, with jackknife errors.

The averages of replicates of a linear model obey the same LE-ODE, with noise smaller by the number of
replicates. Under the LE-SDE the likelihood of all replicates uses the data better. But in a network
noise and drift are not independent: what noise moved is pulled back by the non-linear dynamics, and a
fit to single networks takes that for (negative) elasticity. Averaging first leaves the movement that
the networks have in common.

Averages of R replicates still hold 1/R of what is noise in each, above all where class means are
themselves averages of a few draws. Noise in the first frame of an interval is gone in its last, so
the fit takes it for a pull toward zero, by an amount of order 1/R. The jackknife takes that off.

References
----------
Zhang, Wang, Su, NeurIPS 2021 (arXiv 2110.05960), who estimate from class means over trials.
Quenouille, *Notes on bias in estimation*, Biometrika 43 (1956), for the jackknife's correction of bias.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from lesde.analysis.class_means import power_of_two
from lesde.model.transforms import Transform, logit_directions

__all__ = [
    "Grams",
    "RateBasis",
    "Steps",
    "TransitionFit",
    "drift_map",
    "drift_maps",
    "drivers_and_rows",
    "eigen_coordinates",
    "fit_averages",
    "fit_transitions",
    "flow",
    "gauss_newton",
    "in_common",
    "information_of",
    "losses",
    "rate_basis",
    "scores",
]


# --------------------------------------------------------------------------------------------------
# The transition of the class means over one interval, and its derivatives, for constant rates.

# The Taylor series of a base step is summed to rounding for generators of at most this norm.
BASE_NORM = 0.5


@dataclass(frozen=True)
class Steps:
    """The steps in which a process moves within each interval.

    Attributes
    ----------
    counts : ndarray of int, shape (..., interval)
        How many, of equal width.
    curvature : ndarray, shape (..., interval)
        c of 1 + x + c x², by which a step multiplies z: 0 for SGD and for Euler's scheme.
    """

    counts: np.ndarray
    curvature: np.ndarray

    def __getitem__(self, at: Any) -> Steps:
        return Steps(self.counts[at], self.curvature[at])

    def ravel(self) -> Steps:
        """All intervals in one dimension."""
        return Steps(self.counts.ravel(), self.curvature.ravel())

    def with_repeats(self, number: int) -> Steps:
        """These, and then every row ``number`` times."""
        counts, curvature = (
            np.concatenate([x, np.repeat(x, number, axis=0)]) for x in (self.counts, self.curvature)
        )
        return Steps(counts, curvature)

    def part(self, share: float) -> Steps:
        """The steps of about this share of each interval, at least one."""
        return Steps(np.maximum(np.rint(self.counts * share), 1).astype(int), self.curvature)


@dataclass(frozen=True)
class RateBasis:
    """The drift of the class means as a linear function of the rates.

    Attributes
    ----------
    output : ndarray, shape (rate, out, m)
        O_j: the drift per unit of rate j, as a map from z to the class means.
    readout : ndarray, shape (m, out)
        V: z from the class means.
    row_class : ndarray of int, shape (out,)
        The class that each row of the class means belongs to.
    generator : ndarray, shape (rate, m, m)
        V O_j.
    """

    output: np.ndarray
    readout: np.ndarray
    row_class: np.ndarray
    generator: np.ndarray

    def rows(self, means: np.ndarray) -> np.ndarray:
        """Class means (..., class, feature) as (..., out, column)."""
        if len(self.row_class) == means.shape[-2]:
            return means
        return means.reshape(*means.shape[:-2], -1, 1)

    def drivers(self, means: np.ndarray) -> np.ndarray:
        """z of class means (..., class, feature), shape (..., m, column)."""
        return self.readout @ self.rows(means)


def rate_basis(transform: Transform, weights: np.ndarray, kernel: str) -> RateBasis:
    """The basis of a two-level kernel (rates α, β) or of a matrix (rates E_kl, row by row).

    Parameters
    ----------
    transform : Transform
        The matrices H_l.
    weights : ndarray, shape (class,)
        w_l = n_l/N.
    kernel : {"two-level", "matrix"}
    """
    K, p = transform.n_classes, transform.n_features
    if transform.kind == "identity":
        left, right, size = [np.ones((1, 1))] * K, [np.ones((1, 1))] * K, 1
    elif transform.kind == "logits":
        unit = logit_directions(K) / math.sqrt(1.0 - 1.0 / K)
        left = right = [d[:, None] for d in unit]
        size = p
    else:
        left, right, size = [], [], p
        for H in transform.array():
            u, s, vt = np.linalg.svd(H)
            rank = int((s > s[0] * p * np.finfo(float).eps).sum()) if s[0] > 0 else 0
            left.append(u[:, :rank] * s[:rank])
            right.append(vt[:rank].T)
    ends = np.cumsum([0] + [v.shape[1] for v in right])
    m, out = int(ends[-1]), K * size
    readout, drift = np.zeros((m, out)), np.zeros((out, m))
    for l in range(K):
        columns = slice(ends[l], ends[l + 1])
        readout[columns, l * size : (l + 1) * size] = right[l].T
        drift[:, columns] = np.tile(weights[l] * left[l], (K, 1))
    moved = np.repeat(np.arange(K), size)
    drawn = np.repeat(np.arange(K), np.diff(ends))
    if kernel == "two-level":
        same = moved[:, None] == drawn
        output = np.stack([drift * same, drift * ~same])
    else:
        entry = moved[:, None] * K + drawn
        output = drift * (entry == np.arange(K * K)[:, None, None])
    return RateBasis(output, readout, moved, readout @ output)


def flow(
    generator: np.ndarray,
    directions: np.ndarray,
    width: np.ndarray,
    steps: Steps | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Ψ and its derivatives along the directions.

    Parameters
    ----------
    generator : ndarray, shape (b, m, m)
        N = V G(θ) of each interval.
    directions : ndarray, shape (rate, m, m)
        Derivatives of N; of length 0 where only Ψ is wanted.
    width : ndarray, shape (b,)
        Δ of each interval.
    steps : Steps of shape (b,), or None
        Those of the interval (each of size Δ/counts); None for continuous time.

    Returns
    -------
    psi : ndarray, shape (b, m, m)
    derivative : ndarray, shape (b, rate, m, m)
    """
    b, m = generator.shape[:2]
    if steps is None:
        norm = float((np.abs(generator).sum(1).max(1, initial=0.0) * width).max(initial=0.0))
        doublings = max(0, math.ceil(math.log2(max(norm, 1e-300) / BASE_NORM)))
        counts = np.full(b, 2**doublings)
        degree = _degree(norm / 2**doublings)
    else:
        counts, degree = steps.counts, 1
    h = (width / counts)[:, None, None]
    x, dx = generator * h, directions * h[:, None]

    # Base step: E = Σ x^i/i!, Ψ = h Σ x^i/(i+1)!; cut after E = 1 + x, Ψ = h for a step of SGD.
    E, dE = np.eye(m) + x, dx
    psi, dpsi = np.broadcast_to(h * np.eye(m), x.shape), np.zeros_like(dx)
    power, dpower = x, dx
    for i in range(2, degree + 1):
        psi = psi + h * power / math.factorial(i)
        dpsi = dpsi + h[:, None] * dpower / math.factorial(i)
        dpower = dx @ power[:, None] + x[:, None] @ dpower
        power = x @ power
        E = E + power / math.factorial(i)
        dE = dE + dpower / math.factorial(i)
    if steps is not None and steps.curvature.any():
        c = steps.curvature[:, None, None]
        psi, dpsi = psi + h * c * x, dpsi + (h * c)[:, None] * dx
        E, dE = E + c * (x @ x), dE + c[:, None] * (dx @ x[:, None] + x[:, None] @ dx)
    return _repeat((E, psi, dE, dpsi), counts)


def _degree(norm: float) -> int:
    """Terms of the exponential series that matter at this norm."""
    degree, bound = 2, norm**3 / 6
    while bound > 1e-16 and degree < 20:
        degree += 1
        bound *= norm / (degree + 1)
    return degree + 1


_Step = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def _repeat(base: _Step, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The base step taken ``counts`` times: Ψ and its derivatives, by doubling."""
    E, psi, dE, dpsi = base
    rest = (np.zeros_like(E) + np.eye(E.shape[-1]), 0.0 * psi, 0.0 * dE, 0.0 * dpsi)
    bits = int(counts.max()).bit_length()
    total = _where(counts >> (bits - 1) & 1 == 1, base, rest)
    for bit in reversed(range(bits - 1)):
        total = _join(total, total)
        more = counts >> bit & 1 == 1
        if more.any():
            total = _where(more, _join(total, base), total)
    return total[1], total[3]


def _where(condition: np.ndarray, yes: _Step, no: _Step) -> _Step:
    if condition.all():
        return yes
    matrix, stack = condition[:, None, None], condition[:, None, None, None]
    return (
        np.where(matrix, yes[0], no[0]),
        np.where(matrix, yes[1], no[1]),
        np.where(stack, yes[2], no[2]),
        np.where(stack, yes[3], no[3]),
    )


def _join(one: _Step, two: _Step) -> _Step:
    """Step one, then step two."""
    E1, psi1, dE1, dpsi1 = one
    E2, psi2, dE2, dpsi2 = two
    # The end of step one is where step two starts: Ψ = Ψ₁ + Ψ₂ E₁.
    dpsi = dpsi1 + dpsi2 @ E1[:, None] + psi2[:, None] @ dE1
    return E2 @ E1, psi1 + psi2 @ E1, dE2 @ E1[:, None] + E2[:, None] @ dE1, dpsi


# --------------------------------------------------------------------------------------------------
# Weighted least squares for the rates of one interval, by Gauss-Newton for all intervals at once.

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


# --------------------------------------------------------------------------------------------------
# Maximum likelihood of the rates, one interval at a time, with standard errors.

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


# --------------------------------------------------------------------------------------------------

LARGEST_CORRECTION = 0.5
"""Of the bias, in standard errors of a rate."""


def fit_averages(
    basis: RateBasis,
    functionals: np.ndarray,
    means: np.ndarray,
    widths: np.ndarray,
    steps: Steps | None,
    counts: np.ndarray,
) -> TransitionFit:
    """Fit the rates to class means averaged over replicates.

    Parameters and result as for :func:`lesde.analysis.transition_fit.fit_transitions`; ``deleted`` are
    differences to fits of the averages without one replicate, made anew for each. ``rates`` are corrected for
    their bias by the jackknife; all else is that of the fit before.
    """
    G, R, T = means.shape[:3]
    q = basis.output.shape[0]
    whole = means.mean(1, keepdims=True)
    without = (R * whole - means) / (R - 1)
    # All averages are groups of one replicate: first the whole ones, then those without one.
    groups = np.concatenate([whole, without.reshape(G * R, 1, *means.shape[2:])])
    every = None if steps is None else steps.with_repeats(R)
    fit = fit_transitions(basis, functionals, groups, widths, every, counts)
    of_whole = {f.name: getattr(fit, f.name)[:G] for f in dataclasses.fields(fit)}
    left = np.moveaxis(fit.rates[G:].reshape(G, R, T - 1, -1), 1, 2)
    deleted = of_whole["rates"][:, :, None] - left

    weight = counts[basis.row_class].astype(float)
    shape = (G, T - 1)
    residual, predicted, moved = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    common_moved, common_residual = np.zeros((*shape, R)), np.zeros((*shape, R))
    for g in range(G):
        frames = means[g].swapaxes(0, 1)
        z, y = drivers_and_rows(basis, frames[:-1], frames[1:], of_whole["unit"][g])
        n = None if steps is None else steps[g]
        e = y - drift_map(basis, of_whole["rates"][g, :, :q], widths, n)[:, None] @ z
        for r in range(R):
            L = drift_map(basis, left[g, :, r, :q], widths, n)
            predicted[g] += _square(y[:, r] - L @ z[:, r], weight)
        own_y, own_e = _square(y, weight), _square(e, weight)
        moved[g], residual[g] = own_y.sum(1), own_e.sum(1)
        # The average's fit absorbs the noise of q directions, for all replicates together.
        size = y.shape[-2] * y.shape[-1]
        absorbed = own_e.sum(1) / (R * size) * q
        common_moved[g] = in_common(y, own_y, weight)
        common_residual[g] = in_common(e, own_e, weight) + absorbed[:, None]
    unit_variance = of_whole["unit_variance"] / R
    known = np.isfinite(unit_variance)
    of_whole |= {
        # The noise of an average, for one replicate.
        "noise": of_whole["noise"] * np.sqrt(R),
        "precision": of_whole["precision"] * R,
        "unit_variance": unit_variance,
        "deleted": deleted,
        "shares": np.repeat(np.where(known, unit_variance, 0.0)[:, :, None] / R, R, axis=2),
        "moved": moved,
        "residual": residual,
        "predicted_residual": predicted,
        "common_moved": common_moved,
        "common_residual": common_residual,
    }
    of_whole["rates"] = of_whole["rates"] + _correction(deleted, known)
    return TransitionFit(**of_whole)


def _correction(deleted: np.ndarray, known: np.ndarray) -> np.ndarray:
    """What the jackknife adds to the rates (g, t, f) against a bias of order 1/R.

    Where it is large against the standard error the bias is not of that order (the first frame is mostly
    noise), and it would add more noise than it removes; so it goes no further than ``LARGEST_CORRECTION``.
    All functionals of an interval are scaled alike, to keep α − β the difference of α and β.
    """
    R = deleted.shape[2]
    change = (R - 1) * deleted.mean(2)
    error = np.sqrt((R - 1) / R * (deleted**2).sum(2))
    known = known & np.isfinite(change) & (error > 0)
    size = np.where(known, np.abs(change) / np.where(known, error, 1.0), 0.0).max(-1, keepdims=True)
    scale = LARGEST_CORRECTION / np.maximum(size, LARGEST_CORRECTION)
    return np.where(known.all(-1, keepdims=True), change * scale, 0.0)


def _square(values: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Σ n_k|·|² over rows and columns."""
    return np.einsum("...oc,...oc,o->...", values, values, weight)
