"""Transitions of a linear SDE over the intervals between times: Φ and noise covariance C, to rounding."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
from scipy.linalg import expm

from lesde.errors import Diverged
from lesde.linear_system import LinearSystem
from lesde.quadrature import INTEGRATE, NODES, POINTS, WEIGHTS, Panels

__all__ = ["Step", "System", "constant_step", "flow_panels", "varying_steps"]

# A polynomial of degree 15 carries the flow of a panel to rounding up to this norm.
LARGEST_NORM = 1.5
# Panels of one interval; a decay that needs more ends in zeros long before.
MOST_STEPS = 20_000
# Numbers in kept flows, 8 bytes each.
KEPT = 2**25
# Numbers in arrays of class matrices and flows at once, 8 bytes each.
VALUES_AT_ONCE = 2**17


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
        # A Q much larger than the generator would cost the exponential its digits, or overflow.
        unit = 2.0 ** np.floor(np.log2(max(np.abs(Q).max() * step, 1e-300)))
        block = np.zeros((2 * n, 2 * n))
        block[:n, :n] = -generator
        block[:n, n:] = Q / unit
        block[n:, n:] = generator.T
        upper = expm(block * step)[:n, n:] * unit
        C = phi @ upper
        covariances.append((C + C.T) / 2)
    for _ in range(doublings):  # overflow is reported by the caller, with the time
        covariances = [C + phi @ C @ phi.T for C in covariances]
        phi = phi @ phi
    return phi, covariances


Step = tuple[np.ndarray, list[np.ndarray]]


class System(Protocol):
    """What :func:`flow_panels` asks of a system, with or without gradients."""

    @property
    def kernel_is_constant(self) -> bool:
        """Whether the kernel does not depend on time."""

    @property
    def noise_is_constant(self) -> bool:
        """Whether the noise does not depend on time."""

    def kernel_panels(self, times: np.ndarray) -> Panels:
        """Panels between successive times on which the kernel is resolved."""

    def noise_panels(self, windows: np.ndarray, kept: np.ndarray) -> Panels:
        """Panels on which the noise is resolved, as of :func:`lesde.quadrature.resolve`."""

    def matrices(self, times: np.ndarray) -> np.ndarray:
        """The class matrix w_l E_kl, shape (time, class, class)."""

    def size(self) -> np.ndarray:
        """Spectral norms of the transforms H_l, shape (class,)."""

    def loss(self, class_matrix: np.ndarray) -> float:
        """The largest rate at which a combination of class means shrinks; 0 where none does."""


def flow_panels(system: System, times: np.ndarray, most: int) -> tuple[Panels, bool]:
    """Panels on which kernel and noise are resolved and the flow is near the identity.

    The owner of each is the interval between successive times. At most ``most`` where the kernel is
    strong; the second result says whether they end there, short of the last time.

    Raises
    ------
    ValueError
        Where a coefficient changes too abruptly, or too often, to integrate; names it.
    """
    panels = Panels(times[:-1], np.diff(times), np.arange(len(times) - 1))
    if not system.kernel_is_constant:
        panels = system.kernel_panels(times)
    norms = _norms(system, panels)
    short = False
    while (wide := norms * panels.widths > LARGEST_NORM).any():
        half = panels.widths[wide] / 2
        starts = np.stack([panels.starts[wide], panels.starts[wide] + half], 1).ravel()
        new = Panels(starts, np.repeat(half, 2), np.repeat(panels.owner[wide], 2))
        rows = zip(vars(panels).values(), vars(new).values(), strict=True)
        starts, widths, owner = (np.concatenate([old[~wide], its]) for old, its in rows)
        order = np.argsort(starts, kind="stable")[:most]
        short |= len(starts) > most
        panels = Panels(starts[order], widths[order], owner[order])
        norms = np.concatenate([norms[~wide], _norms(system, new)])[order]
    if system.noise_is_constant:
        return panels, short
    kept = np.exp(-2 * panels.widths * _losses(system, panels))
    windows = np.append(panels.starts, panels.starts[-1] + panels.widths[-1])
    if not short:
        windows[-1] = times[-1]
    finer = system.noise_panels(windows, kept)
    return Panels(finer.starts, finer.widths, panels.owner[finer.owner]), short


def _norms(system: System, panels: Panels) -> np.ndarray:
    """The largest norm of the generator in each panel.

    The spectral norm of C with H_l in its columns is at most √(row sum · column sum).
    """
    return np.concatenate(
        [
            np.sqrt(absolute.sum(-1).max(-1) * absolute.sum(-2).max(-1)).max(-1)
            for absolute in (np.abs(each * system.size()) for each in _matrices(system, panels))
        ]
    )


def _losses(system: System, panels: Panels) -> np.ndarray:
    """The largest rate at which class means shrink in each panel."""
    means = (np.tensordot(WEIGHTS, each, (0, 1)) for each in _matrices(system, panels))
    return np.array([system.loss(mean) for each in means for mean in each])


def _matrices(system: System, panels: Panels) -> Iterator[np.ndarray]:
    """Class matrices (panel, node, class, class), some panels at a time."""
    K = len(system.size())
    at_once = max(1, VALUES_AT_ONCE // (NODES * K**2))
    for i in range(0, len(panels.starts), at_once):
        nodes = panels.nodes[i : i + at_once]
        yield system.matrices(nodes.ravel()).reshape(*nodes.shape, K, K)


class Flows:
    """Flows over panels: Φ, and J with Φ(t₁, s) = 1 + J(s) V at the nodes s.

    Where the kernel is constant they depend on the width alone, and are kept.
    """

    def __init__(self, system: LinearSystem, largest_time: float):
        self.system = system
        self.rounding = 4 * np.finfo(float).eps * largest_time
        self.known: list[tuple[float, tuple[np.ndarray, np.ndarray]]] = []

    def __call__(self, starts: np.ndarray, widths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Φ (panel, n, n) and J (panel, node, n, class·rank)."""
        if not self.system.kernel_is_constant:
            return _flows(self.system, starts, widths)
        pairs = [self._constant(starts[i], widths[i]) for i in range(len(starts))]
        phi, J = zip(*pairs, strict=True)
        return np.stack(phi), np.stack(J)

    def _constant(self, start: float, width: float) -> tuple[np.ndarray, np.ndarray]:
        near = min(self.rounding, 1e-11 * width)
        for known_width, flow in self.known:
            if abs(known_width - width) <= near:
                return flow
        phi, J = _flows(self.system, np.array([start]), np.array([width]))
        self.known = [(width, (phi[0], J[0])), *self.known][: max(min(8, KEPT // J.size), 1)]
        return phi[0], J[0]


def _flows(
    system: LinearSystem, starts: np.ndarray, widths: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The flows on panels by collocation, solved by Picard iteration."""
    nodes = starts[:, None] + widths[:, None] * POINTS
    r, n = system.right.shape
    W = system.outer(system.coefficients.weights(nodes.ravel())).reshape(-1, NODES, n, r)
    R = system.right @ W
    wide = widths[:, None, None]
    identity = np.eye(r)
    flow = np.broadcast_to(identity, R.shape)
    for _ in range(60):
        moved = (R @ flow).reshape(-1, NODES, r * r)
        updated = identity + (wide * (INTEGRATE @ moved)).reshape(R.shape)
        change = np.abs(updated - flow).max()
        flow = updated
        if change < 1e-15:  # the next is smaller by norm/22
            break
    along = (W @ flow).reshape(-1, NODES, n * r)
    partial = (wide * (INTEGRATE @ along)).reshape(W.shape)
    total = (wide * (WEIGHTS @ along)[:, None]).reshape(-1, 1, n, r)
    # The flow is well conditioned as the norm is small.
    J = (total - partial) @ np.linalg.inv(flow)
    return np.eye(n) + total[:, 0] @ system.right, J


def _covariances(
    system: LinearSystem, starts: np.ndarray, widths: np.ndarray, J: np.ndarray
) -> list[np.ndarray]:
    """∫ Φ Q Φᵀ ds over every panel, for every source of noise: (panel, n, n) each."""
    if not system.noise_is_constant:
        return [_varying_covariance(system, starts, widths, J)]
    count, _, n, r = J.shape
    J_mean = np.tensordot(WEIGHTS, J, (0, 1))
    stacked = np.moveaxis(J, 1, 2).reshape(count, n, NODES * r)
    covariances = []
    for Q, _ in system.sources:
        assert Q is not None
        inner = system.right @ Q @ system.right.T
        weighted = np.moveaxis(WEIGHTS[:, None, None] * (J @ inner), 1, 2).reshape(stacked.shape)
        cross = J_mean @ (system.right @ Q)
        added = Q + cross + cross.swapaxes(1, 2) + weighted @ stacked.swapaxes(1, 2)
        covariances.append(widths[:, None, None] * added)
    return covariances


def _varying_covariance(
    system: LinearSystem, starts: np.ndarray, widths: np.ndarray, J: np.ndarray
) -> np.ndarray:
    nodes = starts[:, None] + widths[:, None] * POINTS
    square = system.coefficients.noise.square(nodes.ravel())
    square = square.reshape(*nodes.shape, *square.shape[1:])
    total: Any = 0.0
    V = system.right
    r, n = V.shape
    for i, weight in enumerate(WEIGHTS):
        Q = system.intensity(square[:, i])
        if 2 * r <= n:  # then cheaper without the full matrix
            VQ = V @ Q
            cross = J[:, i] @ VQ
            moved = J[:, i] @ (VQ @ V.T) @ J[:, i].swapaxes(1, 2)
            moved += Q + cross + cross.swapaxes(1, 2)
        else:
            moved = _sandwich(np.eye(n) + J[:, i] @ V, Q)
        total = total + weight * moved
    return widths[:, None, None] * (total + total.swapaxes(1, 2)) / 2


def _sandwich(phi: np.ndarray, C: np.ndarray) -> np.ndarray:
    """Φ C Φᵀ; a Φ that is smaller than C acts on classes alone."""
    if phi.shape[-1] == C.shape[-1]:
        return phi @ C @ phi.swapaxes(-1, -2)
    small = (*C.shape[:-2], phi.shape[-1], -1)
    half = (phi @ C.reshape(small)).reshape(C.shape)
    return (phi @ half.swapaxes(-1, -2).reshape(small)).reshape(C.shape)


def _compose(first: Step, second: Step) -> Step:
    """The transition over two successive intervals."""
    phi = second[0] @ first[0]
    return phi, [b + _sandwich(second[0], a) for a, b in zip(first[1], second[1], strict=True)]


def varying_steps(system: LinearSystem, times: np.ndarray) -> Iterator[Step]:
    """Φ and C between successive times, where the generator or the noise depend on time."""
    panels, short = flow_panels(system, times, MOST_STEPS)
    flows = Flows(system, float(np.abs(times).max()))
    r, n = system.right.shape
    at_once = max(1, VALUES_AT_ONCE // (NODES * max(n * r, len(system.basis) ** 2)))
    total: Step | None = None
    for first in range(0, len(panels.starts), at_once):
        starts, widths = (x[first : first + at_once] for x in (panels.starts, panels.widths))
        phi, J = flows(starts, widths)
        parts = _covariances(system, starts, widths, J)
        for i in range(len(starts)):
            owner = panels.owner[first + i]
            if total is not None and owner != panels.owner[first + i - 1]:
                yield total
                total = None
            step = phi[i], [part[i] for part in parts]
            total = step if total is None else _compose(total, step)
            if not np.isfinite(total[0]).all():
                raise Diverged(
                    starts[i] + widths[i],
                    "the growth of the class means",
                    "end `times` earlier or weaken the kernel",
                )
    if short:
        last = panels.starts[-1]
        values = np.abs(system.coefficients.distinct_weights(np.array([last]))[0])
        raise ValueError(
            f"{system.coefficients.entry(int(values.argmax()))} is too strong to integrate from "
            f"t = {times[0]:g} to {times[-1]:g}: {len(panels.starts)} steps reached t = {last:g} only. "
            f"End `times` earlier, or weaken the kernel."
        )
    assert total is not None
    yield total
