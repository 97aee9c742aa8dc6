"""Transitions of the class means as tensors: Φ and C of every interval, with gradients.

The numerics of :mod:`lesde.collocation`, batched over intervals: Van Loan's block exponential on a
short step with doubling for constant coefficients, otherwise Gauss-Legendre collocation on panels
chosen at the current values.

References
----------
Van Loan, *Computing integrals involving the matrix exponential*, IEEE TAC 23 (1978).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from scipy.linalg import expm

from lesde.derivation.coefficients import Coefficients
from lesde.errors import Diverged
from lesde.laws.system import LinearSystem, TensorSystem, linear_system
from lesde.model.noise import finite_variance
from lesde.model.quadrature import INTEGRATE, NODES, POINTS, WEIGHTS, Panels

__all__ = [
    "MeanTransitions",
    "Step",
    "System",
    "Transition",
    "constant_step",
    "flow_panels",
    "mean_transitions",
    "to_classes",
    "transitions",
    "varying_steps",
]


# --------------------------------------------------------------------------------------------------
# Transitions of a linear SDE over the intervals between times: Φ and noise covariance C, to rounding.

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


# --------------------------------------------------------------------------------------------------
# Propagators of the class means: transition matrices and noise covariances, in float64.


@dataclass(frozen=True)
class Transition:
    """The Gaussian transition of the class means over one interval.

    Matrices are in the coordinates of :func:`lesde.linear_system.contrast_basis` (grand mean and
    contrasts); :meth:`mean`, :meth:`noise`, :meth:`covariance` and :meth:`phi_full` speak of classes.

    Attributes
    ----------
    phi : ndarray, shape (n, n)
        Φ; n = K where the transform is the identity, else K·p. A part below that stands for the
        plain matrix is K·p in either case.
    parts : tuple of (ndarray (n, n), ndarray (p, p) or None)
        The covariance is Σ part ⊗ factor factorᵀ over these; None stands for the plain matrix.
    basis : ndarray, shape (K, K)
        The contrast basis.
    n_features : int
        p.
    """

    phi: np.ndarray
    parts: tuple[tuple[np.ndarray, np.ndarray | None], ...]
    basis: np.ndarray
    n_features: int

    def is_small(self, matrix: np.ndarray) -> bool:
        """Whether the matrix acts on classes alone; for one feature both ways are the same."""
        if self.n_features == 1:
            return self.parts[0][1] is not None
        return len(matrix) == len(self.basis)

    def apply(self, matrix: np.ndarray, coordinates: np.ndarray) -> np.ndarray:
        """A matrix of this transition times coordinates (..., contrast, feature)."""
        if self.is_small(matrix):
            return matrix @ coordinates
        flat = coordinates.reshape(*coordinates.shape[:-2], -1)
        return (flat @ matrix.T).reshape(coordinates.shape)

    def mean(self, means: np.ndarray) -> np.ndarray:
        """Conditional expectation of class means (..., class, feature)."""
        return self.basis @ self.apply(self.phi, self.basis.T @ means)

    def noise(self, normals: np.ndarray) -> np.ndarray:
        """Noise of the class means from standard normals of shape (part, ..., class, feature).

        :attr:`n_normals` says how many parts are needed; one where the noise has the same shape in
        every class.
        """
        total = np.zeros(normals.shape[1:])
        for root, (_, factor), z in zip(self.roots, self.parts, normals, strict=True):
            coloured = self.apply(root, z)
            total += coloured if factor is None else coloured @ factor.T
        return self.basis @ total

    @property
    def n_normals(self) -> int:
        """How many arrays of standard normals :meth:`noise` takes."""
        return len(self.parts)

    @cached_property
    def roots(self) -> list[np.ndarray]:
        """A square root of every part of the covariance."""
        return [_square_root(part) for part, _ in self.parts]

    def contrast_covariance(self) -> np.ndarray:
        """The covariance in contrast coordinates, shape (contrast, feature, contrast, feature)."""
        K, p = len(self.basis), self.n_features
        total = np.zeros((K, p, K, p))
        for part, factor in self.parts:
            if factor is None:
                total += part.reshape(K, p, K, p)
            else:
                total += np.einsum("ab,ij->aibj", part, factor @ factor.T)
        return total

    def covariance(self) -> np.ndarray:
        """The covariance of the class means, shape (class, feature, class, feature)."""
        return to_classes(self.contrast_covariance(), self.basis)

    def phi_full(self) -> np.ndarray:
        """Φ as (class, feature, class, feature)."""
        K, p = len(self.basis), self.n_features
        if self.is_small(self.phi):
            full = np.einsum("ab,ij->aibj", self.phi, np.eye(p))
        else:
            full = self.phi.reshape(K, p, K, p)
        return to_classes(full, self.basis)


def to_classes(matrix: np.ndarray, basis: np.ndarray) -> np.ndarray:
    """From (..., contrast, feature, contrast, feature) to (..., class, feature, class, feature)."""
    return np.einsum("ka,...aibj,lb->...kilj", basis, matrix, basis, optimize=True)


def _square_root(matrix: np.ndarray) -> np.ndarray:
    """R with R Rᵀ = matrix, for a positive semi-definite matrix of any rank."""
    values, vectors = np.linalg.eigh(matrix)
    return vectors * np.sqrt(np.clip(values, 0.0, None))


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
        When kernel or noise are not finite at some time, change too abruptly to integrate, or need
        dense matrices beyond :data:`lesde.linear_system.DENSE_LIMIT`.
    Diverged
        When the growth over a time-dependent interval, or the variance that noise adds, overflows.
    """
    system = linear_system(coefficients)
    p = coefficients.n_features

    def transition(step: Step) -> Transition:
        phi, covariances = step
        sources = zip(covariances, system.sources, strict=True)
        return Transition(phi, tuple((C, factor) for C, (_, factor) in sources), system.basis, p)

    if len(times) == 1:
        return []
    if not coefficients.drift_table.is_constant or not coefficients.noise.is_constant:
        with np.errstate(over="ignore", invalid="ignore"):  # overflow is told as Diverged
            try:
                return [transition(step) for step in varying_steps(system, times)]
            except (ValueError, Diverged) as error:
                # Asked for at the given times, kernel and noise can say which value is at fault.
                coefficients.weights(times)
                coefficients.noise.square(times)
                if isinstance(error, Diverged):
                    coefficients.noise.check_variance(times)
                raise
    coefficients.noise.check_variance(times)
    # Intervals equal up to the rounding of the times share one transition.
    generator = system.outer(coefficients.weights(times[:1]))[0] @ system.right
    rounding = 4 * np.finfo(float).eps * np.abs(times).max()
    known: dict[float, Transition] = {}
    result = []
    for width in np.diff(times).tolist():
        near = min(rounding, 1e-11 * width)
        key = next((w for w in known if abs(w - width) <= near), None)
        if key is None:
            key = width
            with np.errstate(over="ignore", invalid="ignore"):
                intensities = [Q for Q, _ in system.sources if Q is not None]
                step = constant_step(generator, intensities, width)
            known[key] = transition(step)
        result.append(known[key])
    return result


# --------------------------------------------------------------------------------------------------

# All are worked on at once; growth over more overflows, and decay ends in zeros.
MOST_PANELS = 5000


@dataclass(frozen=True, eq=False)
class MeanTransitions:
    """Gaussian transitions of the class means between successive times, in contrast coordinates.

    Attributes
    ----------
    phi, noise : tensor, shape (kind, n, n)
        Φ and C of the different intervals; n is K where ``feature`` is given, else K·p.
    kind : ndarray of int, shape (interval,)
        Which of them an interval has: those of equal width share one where nothing depends on time.
    within : tensor (interval, class, feature, feature)
        ∫ σ_kσ_kᵀ dt, what noise adds to the covariance of a sample about its class's process mean.
    feature : tensor (p, p), or None
        The full matrices are Φ ⊗ 1 and C ⊗ feature.
    basis : tensor (K, K)
        The contrast basis.
    """

    phi: torch.Tensor
    noise: torch.Tensor
    kind: np.ndarray
    within: torch.Tensor
    feature: torch.Tensor | None
    basis: torch.Tensor

    def apply(self, phi: torch.Tensor, coordinates: torch.Tensor) -> torch.Tensor:
        """Φ (..., n, n) times coordinates (..., contrast, feature)."""
        if self.feature is not None:
            return phi @ coordinates
        flat = coordinates.flatten(-2).unsqueeze(-1)
        return (phi @ flat).reshape(coordinates.shape)

    def full(self, matrix: torch.Tensor, feature: torch.Tensor | None) -> torch.Tensor:
        """A matrix (n, n) as (contrast, feature, contrast, feature); ``feature`` where n = K."""
        K, p = len(self.basis), self.within.shape[-1]
        if feature is None:
            return matrix.reshape(K, p, K, p)
        return torch.einsum("ab,ij->aibj", matrix, feature)


def mean_transitions(system: TensorSystem, times: np.ndarray) -> MeanTransitions:
    """Transitions between successive times.

    Raises
    ------
    ValueError
        Where a coefficient is not finite, or changes too abruptly to integrate.
    Diverged
        Where the growth overflows.
    """
    if system.is_constant:
        widths = torch.from_numpy(np.diff(times))[:, None, None, None]
        within = widths * system.noise.covariance(times[:1])
        finite_variance(within.detach().numpy(), times)
        phi, noise, kind = _constant(system, times)
    else:
        panels = _choose_panels(system, times)
        phi, noise, within = _varying(system, panels, len(times) - 1)
        finite_variance(within.detach().numpy(), times)
        kind = np.arange(len(times) - 1)
    finite = (torch.isfinite(phi) & torch.isfinite(noise)).flatten(1).all(1).numpy()[kind]
    if not finite.all():
        raise Diverged(
            times[1 + int(np.argmin(finite))],
            "the growth of the class means",
            "end `times` earlier or weaken the kernel",
        )
    return MeanTransitions(phi, noise, kind, within, system.feature, system.basis)


def _choose_panels(system: TensorSystem, times: np.ndarray) -> Panels:
    """Panels at the current values; the choice is not part of the graph.

    The result of the collocation does not depend on it but by rounding.
    """
    try:
        panels, short = flow_panels(system, times, MOST_PANELS)
    except Diverged:
        system.explain(times)  # at one of the given times
        raise
    except ValueError:
        system.weights(times)  # asked for at the given times, a value at fault is named
        system.noise.square(times)
        raise
    if short or len(panels.starts) > MOST_PANELS:
        system.explain(times)
        raise ValueError(
            f"kernel or noise change too often, or are too strong, to integrate from t = {times[0]:g} to "
            f"{times[-1]:g} with gradients: they need more than {MOST_PANELS} sub-intervals. End `times` "
            f"earlier, or weaken the kernel."
        )
    return panels


def _constant(
    system: TensorSystem, times: np.ndarray
) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    widths, kind = _distinct_widths(times)
    start = times[:1]
    generator = (system.outer(system.weights(start)[None]) @ system.right)[0, 0]
    Q = system.intensity(system.noise.square(start)[None])[0, 0]
    with torch.no_grad():
        norm = float(generator.abs().sum(0).max()) * float(widths.max(initial=0.0))
    if not math.isfinite(norm):
        raise Diverged(times[-1], "the kernel", "weaken the kernel")
    doublings = max(0, math.ceil(math.log2(max(norm, 1e-300) / LARGEST_NORM)))
    if doublings > 1100:  # the growth would overflow, or the decay end in zeros, long before
        raise Diverged(times[-1], "the growth of the class means", "end `times` earlier")
    step = torch.from_numpy(widths / 2**doublings)[:, None, None]
    phi = torch.linalg.matrix_exp(generator * step)
    # A Q much larger than the generator would cost the exponential its digits.
    unit = 2.0 ** math.floor(math.log2(max(float(Q.detach().abs().max() * step.max()), 1e-300)))
    Q = Q / unit
    block = torch.cat(
        [torch.cat([-generator, Q], 1), torch.cat([torch.zeros_like(Q), generator.mT], 1)]
    )
    n = len(Q)
    noise = phi @ torch.linalg.matrix_exp(block * step)[:, :n, n:] * unit
    noise = (noise + noise.mT) / 2
    for _ in range(doublings):
        noise = noise + phi @ noise @ phi.mT
        phi = phi @ phi
    return phi, noise, kind


def _distinct_widths(times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Interval widths that differ by more than the rounding of the times, and each interval's."""
    rounding = 4 * np.finfo(float).eps * np.abs(times).max()
    widths: list[float] = []
    kind = []
    for width in np.diff(times).tolist():
        near = min(rounding, 1e-11 * width)
        same = next((j for j, known in enumerate(widths) if abs(known - width) <= near), None)
        if same is None:
            same = len(widths)
            widths.append(width)
        kind.append(same)
    return np.array(widths), np.array(kind, dtype=int)


def _varying(
    system: TensorSystem, panels: Panels, intervals: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    nodes = panels.nodes
    flat = nodes.ravel()
    class_matrix = system.weights(flat).unflatten(0, nodes.shape)
    square = system.noise.square(flat).unflatten(0, nodes.shape)
    widths = torch.from_numpy(panels.widths)[:, None, None]
    phis, noises = _collocate(system, class_matrix, system.intensity(square), widths)
    phi: list[torch.Tensor] = []
    noise: list[torch.Tensor] = []
    for j, owner in enumerate(panels.owner):
        if owner == len(phi):
            phi.append(phis[j])
            noise.append(noises[j])
        else:
            noise[-1] = noises[j] + phis[j] @ noise[-1] @ phis[j].mT
            phi[-1] = phis[j] @ phi[-1]
    covariance = system.noise.covariance(flat).unflatten(0, nodes.shape)
    parts = widths[:, 0, 0, None, None, None] * torch.einsum(
        "j,sjkab->skab", torch.from_numpy(WEIGHTS), covariance
    )
    empty = parts.new_zeros(intervals, *parts.shape[1:])
    within = empty.index_add(0, torch.from_numpy(panels.owner), parts)
    return torch.stack(phi), torch.stack(noise), within


def _collocate(
    system: TensorSystem, class_matrix: torch.Tensor, Q: torch.Tensor, widths: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Φ and C (panel, n, n) of all panels at once."""
    V = system.right
    r, n = V.shape
    W = system.outer(class_matrix)
    R = V @ W
    along_nodes, weights = torch.from_numpy(INTEGRATE), torch.from_numpy(WEIGHTS)
    identity = torch.eye(r, dtype=torch.float64)
    wide = widths[:, None]
    # flow_i = 1 + width Σ_j A_ij R_j flow_j at the nodes i, as one linear system a panel: Picard's
    # iteration would leave a graph several times as large.
    panels, nodes = R.shape[:2]
    coupling = torch.einsum("ij,sjab->siajb", along_nodes, wide * R)
    matrix = torch.eye(nodes * r, dtype=torch.float64) - coupling.reshape(panels, nodes * r, -1)
    flow = torch.linalg.solve(matrix, identity.repeat(nodes, 1)).reshape(R.shape)
    along = W @ flow
    partial = wide * torch.einsum("ij,sjab->siab", along_nodes, along)
    total = widths * torch.einsum("j,sjab->sab", weights, along)
    phi = torch.eye(n, dtype=torch.float64) + total @ V
    # Φ(t₁, s) = 1 + J(s) V at the nodes; the flow is well conditioned as the norm is small.
    J = (total[:, None] - partial) @ torch.linalg.inv(flow)
    propagated = torch.eye(n, dtype=torch.float64) + J @ V
    noise = widths * torch.einsum("j,sjab->sab", weights, propagated @ Q @ propagated.mT)
    return phi, noise
