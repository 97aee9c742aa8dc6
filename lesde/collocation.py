"""One interval of a linear SDE: propagator Φ and noise covariance C, to rounding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.linalg import expm

from lesde.errors import Diverged
from lesde.linear_system import LinearSystem
from lesde.quadrature import (
    BOUNDED,
    INTEGRATE,
    LEGENDRE,
    NODES,
    POINTS,
    RESOLVED,
    WEIGHTS,
    error_and_size,
    rounding_floor,
    with_checks,
)

__all__ = ["Flow", "Flows", "Step", "constant_step", "varying_step"]

# A polynomial of degree 15 carries the flow of a sub-interval to rounding up to this norm.
LARGEST_NORM = 1.5
# A jump inside a sub-interval on which the generator moves so little cannot be seen in float64.
NEGLIGIBLE = 1e-15
# Sub-intervals of one interval; a decay that needs more ends in zeros long before.
MOST_STEPS = 20_000
# Numbers in kept flows, 8 bytes each.
KEPT = 2**25


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


Step = tuple[np.ndarray, list[np.ndarray]]


@dataclass(frozen=True)
class Flow:
    """The flow over one sub-interval.

    Attributes
    ----------
    width : float
    phi : ndarray (n, n)
        Φ from its start to its end.
    J : ndarray (node, n, class·rank)
        Φ(t₁, s) = 1 + J(s) V at the nodes.
    """

    width: float
    phi: np.ndarray
    J: np.ndarray


class Flows:
    """Flows of sub-intervals; where the kernel is constant they depend on the width alone, and are kept."""

    def __init__(self, system: LinearSystem, largest_time: float):
        self.system = system
        self.rounding = 4 * np.finfo(float).eps * largest_time
        # None stands for a width that must be halved.
        self.known: list[tuple[float, Flow | None]] | None = None
        if system.coefficients.drift_table.is_constant:
            self.known = []

    def __call__(self, start: float, width: float) -> Flow | None:
        """The flow from ``start``; None where the sub-interval must be halved first."""
        if self.known is None:
            return _flow(self.system, start, width)
        near = min(self.rounding, 1e-11 * width)
        for known_width, flow in self.known:
            if abs(known_width - width) <= near:
                return flow
        flow = _flow(self.system, start, width)
        room = 8 if flow is None else min(8, KEPT // flow.J.size)
        self.known = [(width, flow), *self.known][: max(room, 1)]
        return flow


def _flow(system: LinearSystem, start: float, width: float) -> Flow | None:
    """The flow on one sub-interval by collocation; None where it must be halved first."""
    class_matrix = system.coefficients.weights(start + width * POINTS)
    size = np.abs(class_matrix).max()
    tail = np.abs(np.tensordot(LEGENDRE[-2:], class_matrix, 1)).max()
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
        updated = identity + width * (INTEGRATE @ moved).reshape(R.shape)
        change = np.abs(updated - flow).max()
        flow = updated
        if change < 1e-16:
            break
    along = (W @ flow).reshape(NODES, -1)
    partial = width * (INTEGRATE @ along).reshape(NODES, n, r)
    total = width * (WEIGHTS @ along).reshape(n, r)
    # The flow is well conditioned as the norm is small.
    J = (total - partial) @ np.linalg.inv(flow)
    return Flow(width, np.eye(n) + total @ system.right, J)


@dataclass(frozen=True)
class _Scale:
    """What the noise of each class adds over the first sub-interval that resolves the kernel around here.

    Noise beside it weighs as much in the covariance, so what is negligible against it stays so.
    """

    amount: np.ndarray
    width: float


def _noise_at_nodes(
    system: LinearSystem, start: float, width: float, end: float, scale: _Scale | None
) -> tuple[np.ndarray | None, _Scale]:
    """σσᵀ at the nodes; None where the sub-interval must be halved first. And the scale."""
    noise = system.coefficients.noise
    times = with_checks(start, width, end)
    square = noise.square(times)
    values = square.reshape(1, len(times), square.shape[1], -1)
    error, size = (each[0] for each in error_and_size(values))
    if scale is None:
        amount = width * np.abs(np.tensordot(WEIGHTS, values[:, :NODES], (0, 1))).max((0, 2))
        scale = _Scale(amount, width)
    resolved = (error <= RESOLVED * size) | (size * width <= NEGLIGIBLE * scale.amount)
    if not resolved.all():
        resolved |= error <= rounding_floor(noise.square, times[None], values)[0]
    if _is_atom(start, width):
        resolved |= size * scale.width <= BOUNDED * scale.amount
    return (square[:NODES] if resolved.all() else None), scale


def _is_atom(start: float, width: float) -> bool:
    """Whether no floating-point number lies between the ends."""
    return start + width / 2 in (start, start + width)


def _constant_covariances(system: LinearSystem, flow: Flow) -> list[np.ndarray]:
    """∫ Φ Q Φᵀ ds for every constant source of noise."""
    J, (r, n) = flow.J, system.right.shape
    J_mean = np.tensordot(WEIGHTS, J, 1)
    stacked = np.moveaxis(J, 0, 1).reshape(n, NODES * r)
    covariances = []
    for Q, _ in system.sources:
        assert Q is not None
        inner = system.right @ Q @ system.right.T
        weighted = np.moveaxis(WEIGHTS[:, None, None] * (J @ inner), 0, 1).reshape(n, NODES * r)
        cross = J_mean @ (system.right @ Q)
        covariances.append(flow.width * (Q + cross + cross.T + weighted @ stacked.T))
    return covariances


def _covariance(system: LinearSystem, flow: Flow, square: np.ndarray) -> np.ndarray:
    """∫ Φ Q Φᵀ ds for a noise that depends on time, from σσᵀ at the nodes."""
    total: Any = 0.0
    r, n = system.right.shape
    for weight, J, square_i in zip(WEIGHTS, flow.J, square, strict=True):
        Q = system.intensity(square_i)
        if 2 * r <= n:  # then cheaper without the full matrix
            VQ = system.right @ Q
            cross = J @ VQ
            moved = Q + cross + cross.T + J @ (VQ @ system.right.T) @ J.T
        else:
            moved = _sandwich(np.eye(n) + J @ system.right, Q)
        total = total + flow.width * weight * moved
    return (total + total.T) / 2


def _sandwich(phi: np.ndarray, C: np.ndarray) -> np.ndarray:
    """Φ C Φᵀ; a Φ that is smaller than C acts on classes alone."""
    if len(phi) == len(C):
        return phi @ C @ phi.T
    n = len(C)
    half = (phi @ C.reshape(len(phi), -1)).reshape(n, n)
    return (phi @ half.T.reshape(len(phi), -1)).reshape(n, n)


def _compose(first: Step, second: Step) -> Step:
    """The transition over two successive intervals."""
    phi = second[0] @ first[0]
    return phi, [b + _sandwich(second[0], a) for a, b in zip(first[1], second[1], strict=True)]


def varying_step(flows: Flows, start: float, end: float) -> Step:
    """Φ and C for a time-dependent generator or noise, halving until each sub-interval is resolved."""
    system = flows.system
    total: Step | None = None
    steps, by_noise, noise_varies = 0, 0, not system.coefficients.noise.is_constant
    pending: list[tuple[float, float, _Scale | None]] = [(start, end - start, None)]
    while pending:
        at, width, scale = pending.pop()
        flow, square = flows(at, width), None
        if flow is not None and noise_varies:
            square, scale = _noise_at_nodes(system, at, width, end, scale)
        if flow is None or (noise_varies and square is None):
            by_noise += flow is not None
            if _is_atom(at, width):
                raise ValueError(
                    f"{'noise' if flow is not None else _largest(system, at)} changes too abruptly to "
                    f"integrate near t = {at:g}; check the formula there, or choose times that avoid "
                    f"the point."
                )
            pending += [(at + width / 2, width / 2, scale), (at, width / 2, scale)]
            continue
        if square is None:
            step = flow.phi, _constant_covariances(system, flow)
        else:
            step = flow.phi, [_covariance(system, flow, square)]
        total = step if total is None else _compose(total, step)
        steps += 1
        if not np.isfinite(total[0]).all():
            raise Diverged(
                at + width,
                "the growth of the class means",
                "end `times` earlier or weaken the kernel",
            )
        if steps == MOST_STEPS:
            mostly_noise = by_noise > MOST_STEPS // 2
            raise ValueError(
                f"{'noise' if mostly_noise else _largest(system, at)} is too strong, or changes too often, to "
                f"integrate from t = {start:g} to {end:g}: {MOST_STEPS} steps reached t = "
                f"{at + width:g} only. End `times` earlier, choose times that avoid the point, or "
                f"weaken the kernel."
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
