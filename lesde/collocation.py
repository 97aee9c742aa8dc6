"""One interval of a linear SDE: propagator Φ and noise covariance C, to rounding."""

from __future__ import annotations

import numpy as np
from scipy.linalg import expm

from lesde.errors import Diverged
from lesde.linear_system import LinearSystem

__all__ = ["Step", "constant_step", "varying_step"]

NODES = 16
# A polynomial of degree 15 carries the flow of a sub-interval to rounding up to this norm.
LARGEST_NORM = 1.5
# The last Legendre coefficients of the kernel, relative to its largest, that count as zero.
RESOLVED = 3e-14
# A jump inside a sub-interval on which the generator moves so little cannot be seen in float64.
NEGLIGIBLE = 1e-15
# Sub-intervals of one interval; a decay that needs more ends in zeros long before.
MOST_STEPS = 20_000


def constant_step(
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
Step = tuple[np.ndarray, list[np.ndarray]]


def _collocate(system: LinearSystem, start: float, width: float) -> Step | None:
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


def _compose(first: Step, second: Step) -> Step:
    """The transition over two successive intervals."""
    phi = second[0] @ first[0]
    return phi, [b + second[0] @ a @ second[0].T for a, b in zip(first[1], second[1], strict=True)]


def varying_step(system: LinearSystem, start: float, end: float) -> Step:
    """Φ and C for a time-dependent generator, halving until each sub-interval is resolved."""
    total: Step | None = None
    pending = [(start, end - start)]
    steps = 0
    while pending:
        at, width = pending.pop()
        step = _collocate(system, at, width)
        if step is None and at + width / 2 in (at, at + width):
            raise ValueError(
                f"{_largest(system, at)} changes too abruptly to integrate near t = {at:g}; check the "
                f"formula there, or choose times that avoid the point."
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
                    f"{_largest(system, at)} is too strong, or changes too often, to integrate from t = {start:g} to "
                    f"{end:g}: {MOST_STEPS} steps reached t = {at + width:g} only. End `times` earlier, "
                    f"choose times that avoid the point, or weaken the kernel."
                )
    assert total is not None
    return total


def _largest(system: LinearSystem, time: float) -> str:
    """The kernel's largest value at a time, by the user's name for it."""
    entries = system.coefficients.entries
    values = np.abs(entries(np.array([time]))[0])  # one that is not finite names itself
    k, l = np.unravel_index(int(values.argmax()), values.shape)
    position = int(entries.index[k, l])
    name = entries.names[position] if entries.names else "the kernel"
    return f"{name} = {entries.values[position]}"
