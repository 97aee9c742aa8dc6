"""Gaussian transitions of the class means over intervals: Φ and noise covariance, to rounding, with gradients.

Every interval is cut into panels on which kernel and noise are resolved
(:meth:`lesde.laws.system.MeanSystem.panels`); the flow over a panel is found by Gauss-Legendre collocation,
and panels are composed. Where nothing depends on time a panel is doubled instead, and intervals of equal
width share one transition.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from lesde.derivation.coefficients import Coefficients, FeatureCoefficients
from lesde.errors import Diverged
from lesde.laws.system import LARGEST_NORM, MeanSystem
from lesde.model.quadrature import INTEGRATE, NODES, POINTS, WEIGHTS

__all__ = ["MeanTransitions", "Transition", "left", "mean_transitions", "transitions"]

EPS = np.finfo(float).eps


@dataclass(frozen=True, eq=False)
class MeanTransitions:
    """Transitions of the class means between successive times, in contrast coordinates.

    Attributes
    ----------
    phi : tensor (kind, n, n)
        Φ of the different intervals; n = K where the transform is the identity, else K·p.
    noise : tensor (kind, part, m, m)
        The covariance that noise adds is Σ_part noise_part ⊗ features_part, m = K; where ``features`` is
        None it is the one part, m = K·p.
    features : tensor (part, p, p), or None
    kind : ndarray of int (interval,)
        Which of them an interval has: those of equal width share one where nothing depends on time.
    basis : tensor (K, K)
    n_features : int
    times : ndarray (interval + 1,)
    """

    phi: torch.Tensor
    noise: torch.Tensor
    features: torch.Tensor | None
    kind: np.ndarray
    basis: torch.Tensor
    n_features: int
    times: np.ndarray

    def check_finite(self) -> None:
        """Raise Diverged at the end of the first interval over which the growth overflows."""
        finite = torch.isfinite(self.phi).flatten(1).all(1) & torch.isfinite(self.noise).flatten(
            1
        ).all(1)
        bad = ~finite.numpy()[self.kind]
        if bad.any():
            raise Diverged(
                self.times[1 + int(np.argmax(bad))],
                "the growth of the class means",
                "end `times` earlier or weaken the kernel",
            )

    def apply(self, phi: torch.Tensor, coordinates: torch.Tensor) -> torch.Tensor:
        """Φ (…, n, n) times coordinates (…, contrast, feature)."""
        if phi.shape[-1] == len(self.basis):
            return phi @ coordinates
        return (phi @ coordinates.flatten(-2).unsqueeze(-1)).view_as(coordinates)

    def full_phi(self) -> torch.Tensor:
        """Φ of every kind as (kind, contrast, feature, contrast, feature)."""
        K, p = len(self.basis), self.n_features
        whole = left(self.phi, torch.eye(K * p, dtype=torch.float64))
        return whole.reshape(-1, K, p, K, p)

    def full_noise(self) -> torch.Tensor:
        """The covariance of every kind as (kind, contrast, feature, contrast, feature)."""
        K, p = len(self.basis), self.n_features
        if self.features is None:
            return self.noise.reshape(-1, K, p, K, p)
        return torch.einsum("tsab,sij->taibj", self.noise, self.features)

    def variances(self) -> torch.Tensor:
        """The variances that noise adds to every contrast and feature, shape (kind, K, p)."""
        own = self.noise.diagonal(dim1=-2, dim2=-1)
        if self.features is None:
            return own.reshape(-1, len(self.basis), self.n_features)
        return torch.einsum("tsa,si->tai", own, self.features.diagonal(dim1=-2, dim2=-1))


def left(matrix: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
    """A matrix (…, m, r) times rows (…, r, c); one that acts on classes alone meets rows of class and feature."""
    rows = matrix.shape[-1]
    if rows == whole.shape[-2]:
        return matrix @ whole
    moved = matrix @ whole.unflatten(-2, (rows, -1)).flatten(-2)
    return moved.reshape(*moved.shape[:-2], -1, whole.shape[-1])


def mean_transitions(system: MeanSystem, times: np.ndarray) -> MeanTransitions:
    """The transitions between successive times; see :meth:`MeanTransitions.check_finite` for overflow."""
    if len(times) == 1:
        n, (parts, m) = system.right.shape[1], system.noise_shape
        phi, noise = system.basis.new_zeros(0, n, n), system.basis.new_zeros(0, parts, m, m)
        kind = np.zeros(0, dtype=int)
    elif system.is_constant:
        widths, kind = distinct(np.diff(times), np.abs(times).max())
        phi, noise = _constant(system, times[0], widths)
    else:
        kind = np.arange(len(times) - 1)
        try:
            phi, noise = _varying(system, times)
        except (ValueError, Diverged) as error:
            # Evaluated at the given times, kernel and noise raise errors that name the value at fault.
            system.check(times)
            if isinstance(error, Diverged):
                with torch.no_grad():
                    system.noise.integrated(times)
            raise
    return MeanTransitions(
        phi, noise, system.features, kind, system.basis, system.n_features, times
    )


def distinct(widths: np.ndarray, largest_time: float) -> tuple[np.ndarray, np.ndarray]:
    """Widths that differ by more than the rounding of the times, and which of them each one is."""
    order = np.argsort(widths, kind="stable")
    known: list[float] = []
    kind = np.empty(len(widths), dtype=int)
    for i in order:
        if not known or widths[i] - known[-1] > min(4 * EPS * largest_time, 1e-11 * widths[i]):
            known.append(widths[i])
        kind[i] = len(known) - 1
    return np.array(known), kind


def _constant(
    system: MeanSystem, start: float, widths: np.ndarray
) -> tuple[torch.Tensor, torch.Tensor]:
    """Φ and C for each width: one short panel, doubled as often as the width needs."""
    at = np.array([start])
    with torch.no_grad():
        generator = system.outer(at)[0] @ system.right
        norm = float(generator.abs().sum(0).max())
    # Growth over more doublings than the last number stands for overflows, and decay ends in zeros.
    ratio = np.clip(np.nan_to_num(norm * widths, nan=np.inf) / LARGEST_NORM, 1.0, 1e300)
    doublings = np.ceil(np.log2(ratio)).astype(int)
    short = widths / 2.0**doublings
    found = []
    for first in range(0, len(short), system.panels_at_once):
        part = short[first : first + system.panels_at_once]
        phi, J = _flows(system, np.full(len(part), start), part)
        found.append((phi, _covariances(system, np.full(len(part), start), part, J)))
    phi, noise = (torch.cat(parts) for parts in zip(*found, strict=True))
    for done in range(doublings.max(initial=0)):
        grow = torch.from_numpy(np.flatnonzero(doublings > done))
        each, added = phi[grow], noise[grow]
        noise = noise.index_copy(0, grow, added + _sandwich(each, added))
        phi = phi.index_copy(0, grow, each @ each)
    return phi, noise


def _varying(system: MeanSystem, times: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Φ and C of every interval, where kernel or noise depend on time."""
    panels, short = system.panels(times)
    largest, at_once = float(np.abs(times).max()), system.panels_at_once
    phis, noises, last = [], [], None
    for first in range(0, len(panels.starts), at_once):
        part = slice(first, first + at_once)
        starts, widths = panels.starts[part], panels.widths[part]
        if system.drift.is_constant:  # then flows depend on the width alone
            known, kind = distinct(widths, largest)
            phi, J = (each[kind] for each in _flows(system, np.full(len(known), starts[0]), known))
        else:
            phi, J = _flows(system, starts, widths)
        noise, owner = _covariances(system, starts, widths, J), panels.owner[part]
        if last is not None:  # an interval that is not over yet
            phi, noise = torch.cat([last[0], phi]), torch.cat([last[1], noise])
            owner = np.append(last[2], owner)
        phi, noise, owner = _composed(phi, noise, owner)
        phis.append(phi[:-1])
        noises.append(noise[:-1])
        last = phi[-1:], noise[-1:], owner[-1:]
    assert last is not None
    phi, noise = torch.cat([*phis, last[0]]), torch.cat([*noises, last[1]])
    if short:
        reached = panels.starts[-1]
        kind = np.arange(len(phi))
        MeanTransitions(
            phi, noise, None, kind, system.basis, system.n_features, times
        ).check_finite()
        with torch.no_grad():
            strongest = int(system.drift.distinct(np.array([reached]))[0].abs().argmax())
        raise ValueError(
            f"{system.coefficients.entry(strongest)} is too strong to integrate from t = {times[0]:g} to "
            f"{times[-1]:g}: {len(panels.starts)} steps reached t = {reached:g} only. End `times` earlier, or weaken the "
            f"kernel."
        )
    return phi, noise


def _flows(
    system: MeanSystem, starts: np.ndarray, widths: np.ndarray
) -> tuple[torch.Tensor, torch.Tensor]:
    """Φ (panel, n, n) and J (panel, node, n, r) with Φ(t₁, s) = 1 + J(s) V at the nodes s, by collocation."""
    V = system.right
    r, n = V.shape
    nodes = starts[:, None] + widths[:, None] * POINTS
    if system.drift.is_constant:
        W = system.outer(starts[:1])[:, None].expand(len(starts), NODES, -1, -1)
    else:
        W = system.outer(nodes.ravel()).unflatten(0, nodes.shape)
    R = V @ W
    wide = torch.from_numpy(widths)[:, None, None]
    along_nodes, weights = torch.from_numpy(INTEGRATE), torch.from_numpy(WEIGHTS)
    one = torch.eye(r, dtype=torch.float64)
    # flow_i = 1 + width Σ_j A_ij R_j flow_j at the nodes i, by Picard iteration, whose gradients settle a step later.
    flow, settled = one.expand(R.shape), False
    for _ in range(60):
        moved = (R @ flow).flatten(2)
        updated = one + (wide * (along_nodes @ moved)).view(R.shape)
        change = float((updated - flow).detach().abs().max())
        flow = updated
        if settled:
            break
        settled = change < 1e-15
    along = (W @ flow).flatten(2)
    partial = (wide * (along_nodes @ along)).view(W.shape)
    total = (wide[..., 0] * (weights @ along)).view(-1, 1, n, r)
    # The flow is well conditioned, as the norm is small.
    J = (total - partial) @ torch.linalg.inv(flow)
    return torch.eye(n, dtype=torch.float64) + total[:, 0] @ V, J


def _covariances(
    system: MeanSystem, starts: np.ndarray, widths: np.ndarray, J: torch.Tensor
) -> torch.Tensor:
    """∫ Φ Q Φᵀ ds over every panel, (panel, part, m, m)."""
    nodes = starts[:, None] + widths[:, None] * POINTS
    if system.noise.is_constant:
        Q = system.intensity(starts[:1])[:, None].expand(len(starts), NODES, -1, -1, -1)
    else:
        Q = system.intensity(nodes.ravel()).unflatten(0, nodes.shape)
    V = system.right
    weights = torch.from_numpy(WEIGHTS)
    # With Φ = 1 + J V the integrand is Q + G + Gᵀ, G = J (V Q + V Q Vᵀ Jᵀ/2): one product over all nodes of a panel.
    VQ = left(V, Q)
    inner = left(V, VQ.mT)
    B = VQ + left(J[:, :, None], inner).mT / 2
    weighted = (weights[:, None, None] * J).movedim(1, 2).flatten(2)
    G = left(weighted[:, None], B.movedim(1, 2).flatten(2, 3))
    mean = torch.einsum("j,sjpab->spab", weights, Q)
    return torch.from_numpy(widths)[:, None, None, None] * (mean + G + G.mT)


def _sandwich(phi: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Φ C Φᵀ for Φ (item, n, n) and C (item, part, m, m)."""
    phi = phi[:, None]
    return left(phi, left(phi, noise).mT)


def _composed(
    phi: torch.Tensor, noise: torch.Tensor, owner: np.ndarray
) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    """Successive transitions of one owner as one, by joining neighbours in pairs until each stands alone."""
    while (same := owner[1:] == owner[:-1]).any():
        position = np.arange(len(owner))
        begin = np.maximum.accumulate(np.where(np.append(True, ~same), position, 0))
        head = (position - begin) % 2 == 0
        joined = np.flatnonzero(head & np.append(same, False))
        place = torch.from_numpy((head.cumsum() - 1)[joined])
        first, second = torch.from_numpy(joined), torch.from_numpy(joined + 1)
        kept = torch.from_numpy(np.flatnonzero(head))
        later = phi[second]
        noise = noise[kept].index_copy(0, place, noise[second] + _sandwich(later, noise[first]))
        phi = phi[kept].index_copy(0, place, later @ phi[first])
        owner = owner[head]
    return phi, noise, owner


# --------------------------------------------------------------------------------------------------
# The transitions as NumPy arrays, as the engines take them.


@dataclass(frozen=True)
class Transition:
    """The Gaussian transition of the class means over one interval, as NumPy arrays.

    Matrices are in the coordinates of :func:`lesde.laws.system.contrast_basis` (grand mean and contrasts);
    :meth:`mean`, :meth:`noise`, :meth:`covariance` and :meth:`phi_full` speak of classes.

    Attributes
    ----------
    phi : ndarray, shape (n, n)
        Φ; n = K where the transform is the identity, else K·p.
    parts : tuple of (ndarray (m, m), ndarray (p, p) or None)
        The covariance is Σ part ⊗ factor factorᵀ over these, m = K; without a factor it is the part itself,
        m = K·p.
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
        """True for a matrix that acts on classes alone; for one feature both are the same."""
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
        """The conditional expectation of class means (..., class, feature)."""
        return self.basis @ self.apply(self.phi, self.basis.T @ means)

    def noise(self, normals: np.ndarray) -> np.ndarray:
        """The noise of the class means from standard normals of shape (part, ..., class, feature)."""
        total = np.zeros(normals.shape[1:])
        for root, (_, factor), z in zip(self.roots, self.parts, normals, strict=True):
            coloured = self.apply(root, z)
            total += coloured if factor is None else coloured @ factor.T
        return self.basis @ total

    @property
    def n_normals(self) -> int:
        """The number of arrays of standard normals that :meth:`noise` takes."""
        return len(self.parts)

    @cached_property
    def roots(self) -> list[np.ndarray]:
        """A square root of every part of the covariance."""
        return [_square_root(part) for part, _ in self.parts]

    def covariance(self) -> np.ndarray:
        """The covariance of the class means, shape (class, feature, class, feature)."""
        K, p = len(self.basis), self.n_features
        total = np.zeros((K, p, K, p))
        for part, factor in self.parts:
            if factor is None:
                total += part.reshape(K, p, K, p)
            else:
                total += np.einsum("ab,ij->aibj", part, factor @ factor.T)
        return self._in_classes(total)

    def phi_full(self) -> np.ndarray:
        """Φ as (class, feature, class, feature)."""
        K, p = len(self.basis), self.n_features
        if self.is_small(self.phi):
            return self._in_classes(np.einsum("ab,ij->aibj", self.phi, np.eye(p)))
        return self._in_classes(self.phi.reshape(K, p, K, p))

    def _in_classes(self, matrix: np.ndarray) -> np.ndarray:
        return np.einsum("ka,aibj,lb->kilj", self.basis, matrix, self.basis, optimize=True)


def _square_root(matrix: np.ndarray) -> np.ndarray:
    """R with R Rᵀ = matrix, for a positive semi-definite matrix of any rank."""
    if (matrix == np.diag(np.diag(matrix))).all():
        return np.sqrt(matrix)
    values, vectors = np.linalg.eigh(matrix)
    return vectors * np.sqrt(np.clip(values, 0.0, None))


def transitions(
    coefficients: Coefficients | FeatureCoefficients, times: np.ndarray
) -> list[Transition]:
    """The transitions between successive times, without gradients; those of the latest times are kept.

    Intervals that are equal up to the rounding of the times share one object where nothing depends on time.
    Where the growth overflows, the matrices are not finite.

    Parameters
    ----------
    coefficients : Coefficients
        ``lesde.derive(model).coefficients()``.
    times : ndarray, shape (time,)
        Strictly increasing.

    Returns
    -------
    list of Transition, one per interval
        To about 1e-13 relative.

    Raises
    ------
    ValueError
        Where the drift is not linear, kernel or noise are not finite at some time, change too abruptly to
        integrate, or need dense matrices beyond :data:`lesde.laws.system.DENSE_LIMIT`.
    Diverged
        Where the variance that noise adds overflows.
    """
    times = np.asarray(times, dtype=np.float64)
    kept = vars(coefficients).setdefault("_latest_transitions", {})
    if times.tobytes() not in kept:
        with torch.no_grad():
            system = MeanSystem(coefficients)
            if system.noise.is_constant:
                coefficients.noise.check_variance(times)
            steps = mean_transitions(system, times)
        factors: list[np.ndarray | None] = [None]
        if steps.features is not None:
            factors = [_square_root(each) for each in steps.features.numpy()]
        basis, p = steps.basis.numpy(), steps.n_features
        kinds = [
            Transition(phi, tuple(zip(noise, factors, strict=True)), basis, p)
            for phi, noise in zip(steps.phi.numpy(), steps.noise.numpy(), strict=True)
        ]
        kept.clear()
        kept[times.tobytes()] = [kinds[j] for j in steps.kind]
    return kept[times.tobytes()]
