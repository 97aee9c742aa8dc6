"""The transition of the class means over one interval, and its derivatives, for constant rates.

The drift is linear in the rates θ: dX̄ = Σ_j θ_j B_j X̄ dt. What drives it is small: z_l = V_lᵀ X̄^l
with H_l = U_l V_lᵀ. In the L-model z_l is one number a class; in the I-model V = I and everything acts
on the class index alone. With G(θ) = Σ_j θ_j O_j the map from z to the drift of all class means,

    dz = V G z dt,        X̄(t+Δ) − X̄(t) = G Ψ z(t) + noise,      Ψ = ∫_0^Δ e^{s V G} ds,

and for n steps of SGD of size h, Ψ = h Σ_{j<n} (1 + h V G)^j. A step of other schemes multiplies z by
1 + x + c x² with x = h V G, and has Ψ = h (1 + c x). All come from one recursion (a base step, then
repeated doubling), differentiated along every θ_j as it goes; no logarithm is taken.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from lesde.transforms import Transform, logit_directions

__all__ = ["RateBasis", "Steps", "flow", "rate_basis"]

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
