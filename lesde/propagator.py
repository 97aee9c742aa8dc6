"""Propagators of the class means: transition matrices and noise covariances, in float64.

The class means obey the linear SDE dX̄ = M(t) X̄ dt + noise with M_kl = w_l E_kl(t) H_l, so between two
times they are Gaussian with mean Φ X̄ and covariance C = ∫ Φ(t₁,s) Q Φ(t₁,s)ᵀ ds, where Q is block
diagonal with σ_kσ_kᵀ/n_k. Both are computed once per model and interval, never per particle:

* constant M: Van Loan's block exponential on a short step, then doubling, which loses no digits;
* otherwise: Gauss-Legendre collocation, solved by Picard iteration to rounding, on sub-intervals
  short enough that the kernel's Legendre series has ended in each.

Structure is used. Where H is the identity, M = G ⊗ I and only K×K matrices are formed. Where the H_l
have low rank, M = W(t) V with a constant V of few rows, the flow is solved for V X̄ alone, and
Φ(t₁, s) = 1 + J(s) V follows by integrating W along it.

References
----------
Van Loan, *Computing integrals involving the matrix exponential*, IEEE TAC 23 (1978).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.linalg import expm

from lesde.derivation.coefficients import Coefficients
from lesde.errors import Diverged

__all__ = ["DENSE_LIMIT", "Transition", "transitions"]

DENSE_LIMIT = 2000
"""Largest K·p for which dense (Kp)×(Kp) matrices are formed (32 MB each)."""

NODES = 16
# A polynomial of degree 15 carries the flow of a sub-interval to rounding up to this norm.
LARGEST_NORM = 1.5
# The last Legendre coefficients of the kernel, relative to its largest, that count as zero.
RESOLVED = 3e-14
# A jump inside a sub-interval on which the generator moves so little cannot be seen in float64.
NEGLIGIBLE = 1e-15
# Sub-intervals of one interval; a decay that needs more ends in zeros long before.
MOST_STEPS = 20_000


@dataclass(frozen=True)
class Transition:
    """The Gaussian transition of the class means over one interval.

    Attributes
    ----------
    phi : ndarray, shape (n, n)
        Φ; n = K where the transform is the identity, else K·p.
    parts : tuple of (ndarray (n, n), ndarray (p, p) or None)
        The covariance is Σ part ⊗ factor factorᵀ over these; None stands for the plain matrix.
    n_classes, n_features : int
        K and p.
    """

    phi: np.ndarray
    parts: tuple[tuple[np.ndarray, np.ndarray | None], ...]
    n_classes: int
    n_features: int

    def _apply(self, matrix: np.ndarray, means: np.ndarray) -> np.ndarray:
        if self._is_small:
            return matrix @ means
        flat = means.reshape(*means.shape[:-2], -1)
        return (flat @ matrix.T).reshape(means.shape)

    @property
    def _is_small(self) -> bool:
        return self.parts[0][1] is not None

    def mean(self, means: np.ndarray) -> np.ndarray:
        """Conditional expectation of class means (..., class, feature)."""
        return self._apply(self.phi, means)

    def noise(self, normals: np.ndarray) -> np.ndarray:
        """Noise of the class means from standard normals of shape (part, ..., class, feature).

        :attr:`n_normals` says how many parts are needed; one where the noise has the same shape in
        every class.
        """
        total = np.zeros(normals.shape[1:])
        for root, (_, factor), z in zip(self.roots, self.parts, normals, strict=True):
            coloured = self._apply(root, z)
            total += coloured if factor is None else coloured @ factor.T
        return total

    @property
    def n_normals(self) -> int:
        """How many arrays of standard normals :meth:`noise` takes."""
        return len(self.parts)

    @cached_property
    def roots(self) -> list[np.ndarray]:
        """A square root of every part of the covariance."""
        return [_square_root(part) for part, _ in self.parts]

    def covariance(self) -> np.ndarray:
        """The covariance, shape (class, feature, class, feature)."""
        K, p = self.n_classes, self.n_features
        return expand(self.parts, K, p)

    def phi_full(self) -> np.ndarray:
        """Φ as (class, feature, class, feature)."""
        K, p = self.n_classes, self.n_features
        if self._is_small:
            return np.einsum("kl,ij->kilj", self.phi, np.eye(p))
        return self.phi.reshape(K, p, K, p)


def expand(
    parts: tuple[tuple[np.ndarray, np.ndarray | None], ...], n_classes: int, n_features: int
) -> np.ndarray:
    """A structured covariance as a dense array (class, feature, class, feature)."""
    K, p = n_classes, n_features
    total = np.zeros((K, p, K, p))
    for part, factor in parts:
        if factor is None:
            total += part.reshape(K, p, K, p)
        else:
            total += np.einsum("kl,ij->kilj", part, factor @ factor.T)
    return total


def _square_root(matrix: np.ndarray) -> np.ndarray:
    """R with R Rᵀ = matrix, for a positive semi-definite matrix of any rank."""
    values, vectors = np.linalg.eigh(matrix)
    return vectors * np.sqrt(np.clip(values, 0.0, None))


@dataclass(frozen=True)
class LinearSystem:
    """dX̄ = W(t) V X̄ dt + noise, in the smallest space that carries it.

    Attributes
    ----------
    coefficients : Coefficients
        Gives the class matrix w_l E_kl(t).
    left : ndarray (class, feature, rank), or None
        U_l of H_l = U_l V_lᵀ; None where the transform is the identity and the space has K dimensions.
    right : ndarray (class·rank, n)
        V; the identity where the space has K dimensions.
    sources : list of (ndarray (n, n), ndarray (p, p) or None)
        Noise intensities Q and their feature factors, as the parts of a :class:`Transition`.
    """

    coefficients: Coefficients
    left: np.ndarray | None
    right: np.ndarray
    sources: list[tuple[np.ndarray, np.ndarray | None]]

    def outer(self, class_matrix: np.ndarray) -> np.ndarray:
        """W for class matrices (time, class, class), shape (time, n, class·rank)."""
        if self.left is None:
            return class_matrix
        blocks = np.einsum("tkl,lir->tkilr", class_matrix, self.left)
        return blocks.reshape(len(class_matrix), self.right.shape[1], self.right.shape[0])


def linear_system(coefficients: Coefficients) -> LinearSystem:
    """Choose the representation of the class means' system."""
    counts = coefficients.counts
    K, p = len(counts), coefficients.noise_factor.shape[-1]
    if coefficients.transform.kind == "identity":
        return LinearSystem(coefficients, None, np.eye(K), _class_sources(coefficients))
    if K * p > DENSE_LIMIT:
        raise ValueError(
            f"the exact law of this model needs dense matrices of size n_classes·n_features = {K * p}, "
            f"more than {DENSE_LIMIT}; use engine='torchsde', or transform='identity', which needs "
            f"matrices of size n_classes only."
        )
    u, singular, vt = np.linalg.svd(coefficients.transform.array())
    rank = max(1, int((singular > singular.max(initial=0) * p * np.finfo(float).eps).sum(1).max()))
    left = u[:, :, :rank] * singular[:, None, :rank]
    right = np.zeros((K, rank, K, p))
    Q = np.zeros((K, p, K, p))
    covariance = coefficients.noise_covariance
    for k in range(K):
        right[k, :, k, :] = vt[k, :rank]
        Q[k, :, k, :] = covariance[k] / counts[k]
    sources: list[tuple[np.ndarray, np.ndarray | None]] = [(Q.reshape(K * p, K * p), None)]
    return LinearSystem(coefficients, left, right.reshape(K * rank, K * p), sources)


def _class_sources(coefficients: Coefficients) -> list[tuple[np.ndarray, np.ndarray | None]]:
    """Noise of the class means as few products of a class and a feature covariance as possible."""
    counts, factors, scale = (
        coefficients.counts,
        coefficients.noise_factor,
        coefficients.noise_scale(),
    )
    if scale is not None:
        return [(np.diag(scale**2 / counts), np.eye(factors.shape[-1]))]
    if (factors == factors[:1]).all():
        return [(np.diag(1.0 / counts), factors[0])]
    units = np.eye(len(counts))
    return [(np.diag(units[k] / counts[k]), factors[k]) for k in range(len(counts))]


def transitions(coefficients: Coefficients, times: np.ndarray) -> list[Transition]:
    """The transitions between successive times.

    Parameters
    ----------
    coefficients : Coefficients
        Of a derived model.
    times : ndarray, shape (time,)
        Strictly increasing.

    Returns
    -------
    list of Transition, one an interval
        To about 1e-13 relative.

    Raises
    ------
    ValueError
        When the kernel is not finite at some time, changes too abruptly to integrate, or needs
        dense matrices beyond :data:`DENSE_LIMIT`.
    Diverged
        When the growth over a time-dependent interval overflows.
    """
    system = linear_system(coefficients)
    K, p = len(coefficients.counts), coefficients.noise_factor.shape[-1]
    constant = coefficients.drift_table.is_constant
    cache: dict[float, _Step] = {}
    result = []
    same = 4 * np.finfo(float).eps * np.abs(times).max()
    for start, end in itertools.pairwise(times):
        if constant:
            # Steps equal up to the rounding of the times share one exponential.
            width = float(end - start)
            near = min(same, 1e-11 * width)
            key = next((w for w in cache if abs(w - width) <= near), None)
            if key is None:
                key = width
                outer = system.outer(coefficients.weights(np.array([start])))[0]
                generator = outer @ system.right
                with np.errstate(over="ignore", invalid="ignore"):
                    cache[key] = _constant(generator, [Q for Q, _ in system.sources], key)
            phi, covariances = cache[key]
        else:
            with np.errstate(over="ignore", invalid="ignore"):  # overflow is told as Diverged
                phi, covariances = _varying(system, float(start), float(end))
        parts = tuple(
            (C, factor) for C, (_, factor) in zip(covariances, system.sources, strict=True)
        )
        result.append(Transition(phi, parts, K, p))
    return result


def _constant(
    generator: np.ndarray, sources: list[np.ndarray], width: float
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Φ and C for a constant generator: Van Loan on a short step, then doubling."""
    n = len(generator)
    norm = np.abs(generator).sum(0).max() * width
    doublings = max(0, int(np.ceil(np.log2(max(norm, 1e-300) / LARGEST_NORM))))
    step = width / 2**doublings
    covariances = []
    phi = expm(generator * step)
    for Q in sources:
        block = np.zeros((2 * n, 2 * n))
        block[:n, :n] = -generator
        block[:n, n:] = Q
        block[n:, n:] = generator.T
        upper = expm(block * step)[:n, n:]
        C = phi @ upper
        covariances.append((C + C.T) / 2)
    for _ in range(doublings):  # overflow is reported by the caller, with the time
        covariances = [C + phi @ C @ phi.T for C in covariances]
        phi = phi @ phi
    return phi, covariances


def _gauss_legendre() -> tuple[np.ndarray, ...]:
    """Nodes and weights on [0, 1]; the matrices to Legendre coefficients and to integrals from 0."""
    x, w = np.polynomial.legendre.leggauss(NODES)
    # Integrate the Legendre interpolant exactly: ∫_{-1}^{x} P_j = (P_{j+1} − P_{j−1})/(2j+1).
    P = np.polynomial.legendre.legvander(x, NODES)
    degrees = np.arange(NODES)
    integrals = np.empty((NODES, NODES))
    integrals[:, 0] = x + 1
    for j in range(1, NODES):
        integrals[:, j] = (P[:, j + 1] - P[:, j - 1]) / (2 * j + 1)
    to_coefficients = (P[:, :NODES] * w[:, None]).T * (2 * degrees[:, None] + 1) / 2
    return (x + 1) / 2, w / 2, to_coefficients, integrals @ to_coefficients / 2


_NODES, _WEIGHTS, _LEGENDRE, _INTEGRATE = _gauss_legendre()
_Step = tuple[np.ndarray, list[np.ndarray]]


def _collocate(system: LinearSystem, start: float, width: float) -> _Step | None:
    """Φ and C on one sub-interval by collocation; None where it must be halved first."""
    class_matrix = system.coefficients.weights(start + width * _NODES)
    size = np.abs(class_matrix).max()
    tail = np.abs(np.tensordot(_LEGENDRE[-2:], class_matrix, 1)).max()
    W = system.outer(class_matrix)
    R = system.right @ W
    norm = np.abs(R).sum(-1).max() * width
    if norm > LARGEST_NORM or (tail > RESOLVED * size and size * width > NEGLIGIBLE):
        return None
    r, n = system.right.shape
    identity = np.eye(r)
    flow = np.broadcast_to(identity, R.shape)
    for _ in range(60):
        moved = (R @ flow).reshape(NODES, -1)
        updated = identity + width * (_INTEGRATE @ moved).reshape(R.shape)
        change = np.abs(updated - flow).max()
        flow = updated
        if change < 1e-16:
            break
    along = (W @ flow).reshape(NODES, -1)
    partial = width * (_INTEGRATE @ along).reshape(NODES, n, r)
    total = width * (_WEIGHTS @ along).reshape(n, r)
    phi = np.eye(n) + total @ system.right
    # Φ(t₁, s) = 1 + J(s) V at the nodes; the flow is well conditioned as the norm is small.
    J = (total - partial) @ np.linalg.inv(flow)
    J_mean = np.tensordot(_WEIGHTS, J, 1)
    stacked = np.moveaxis(J, 0, 1).reshape(n, NODES * r)
    covariances = []
    for Q, _ in system.sources:
        inner = system.right @ Q @ system.right.T
        weighted = np.moveaxis(_WEIGHTS[:, None, None] * (J @ inner), 0, 1).reshape(n, NODES * r)
        cross = J_mean @ (system.right @ Q)
        covariances.append(width * (Q + cross + cross.T + weighted @ stacked.T))
    return phi, covariances


def _compose(first: _Step, second: _Step) -> _Step:
    """The transition over two successive intervals."""
    phi = second[0] @ first[0]
    return phi, [b + second[0] @ a @ second[0].T for a, b in zip(first[1], second[1], strict=True)]


def _varying(system: LinearSystem, start: float, end: float) -> _Step:
    """Φ and C for a time-dependent generator, halving until each sub-interval is resolved."""
    total: _Step | None = None
    pending = [(start, end - start)]
    steps = 0
    while pending:
        at, width = pending.pop()
        step = _collocate(system, at, width)
        if step is None and at + width / 2 in (at, at + width):
            raise ValueError(
                f"the kernel changes too abruptly to integrate near t = {at:g}; check the formula "
                f"there, or choose times that avoid the point."
            )
        if step is None:
            pending += [(at + width / 2, width / 2), (at, width / 2)]
        else:
            total = step if total is None else _compose(total, step)
            steps += 1
            if not np.isfinite(total[0]).all():
                raise Diverged(
                    at + width,
                    "the growth of the class means",
                    "end `times` earlier or weaken the kernel",
                )
            if steps == MOST_STEPS:
                raise ValueError(
                    f"the kernel is too strong, or changes too often, to integrate from t = {start:g} to "
                    f"{end:g}: {MOST_STEPS} steps reached t = {at + width:g} only. End `times` earlier or "
                    f"weaken the kernel."
                )
    assert total is not None
    return total
