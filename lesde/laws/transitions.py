"""Gaussian transitions of the class means over intervals: Φ and noise covariance, to rounding, with gradients.

Every interval is cut into panels on which kernel and noise are resolved
(:meth:`lesde.laws.system.MeanSystem.panels`); the flow over a panel is found by Gauss-Legendre collocation,
and panels are composed. Where nothing depends on time a panel is doubled instead, and intervals of equal
width share one transition.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from lesde.derivation.coefficients import Coefficients, FeatureCoefficients
from lesde.errors import Diverged
from lesde.laws.system import LARGEST_NORM, MeanSystem
from lesde.model.quadrature import INTEGRATE, NODES, POINTS, WEIGHTS

EPS = np.finfo(float).eps


@dataclass(frozen=True, eq=False)
class MeanTransitions:
    """Transitions of the class means between successive times, in contrast coordinates.

    Attributes
    ----------
    phi : tensor (kind, n, n)
        Φ of the different intervals; n = K where every feature obeys the same system, else K·p.
    noise : tensor (kind, part, n, n)
    features : tensor (part, p, p), or None
        The covariance that noise adds is Σ_part noise_part ⊗ features_part; where ``features`` is None, n = K·p,
        it is the one part.
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
        parts = (torch.isfinite(each).flatten(1).all(1) for each in (self.phi, self.noise))
        bad = ~torch.stack([*parts]).all(0).numpy()[self.kind]
        if bad.any():
            raise Diverged(
                self.times[1 + int(np.argmax(bad))],
                "the growth of the class means",
                "end `times` earlier or weaken the kernel",
            )

    def apply(self, phi: torch.Tensor, coordinates: torch.Tensor) -> torch.Tensor:
        """Φ (…, n, n) times coordinates (…, contrast, feature)."""
        if self.features is not None:
            return phi @ coordinates
        return (phi @ coordinates.flatten(-2).unsqueeze(-1)).view_as(coordinates)

    def full_phi(self) -> torch.Tensor:
        """Φ of every kind as (kind, contrast, feature, contrast, feature)."""
        K, p = len(self.basis), self.n_features
        if self.features is None:
            return self.phi.reshape(-1, K, p, K, p)
        return torch.einsum("tab,ij->taibj", self.phi, torch.eye(p, dtype=torch.float64))

    def full_noise(self) -> torch.Tensor:
        """The covariance of every kind as (kind, contrast, feature, contrast, feature)."""
        K, p = len(self.basis), self.n_features
        if self.features is None:
            return self.noise.reshape(-1, K, p, K, p)
        return torch.einsum("tsab,sij->taibj", self.noise, self.features)

    def in_classes(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Φ and the covariance of every interval, each (class, feature, class, feature)."""
        B = self.basis
        phi, noise = (
            torch.einsum("ka,...aibj,lb->...kilj", B, matrix, B)
            for matrix in (self.full_phi(), self.full_noise())
        )
        return [(phi[j], noise[j]) for j in self.kind]

    def variances(self) -> torch.Tensor:
        """The variances that noise adds to every contrast and feature, shape (kind, K, p)."""
        own = self.noise.diagonal(dim1=-2, dim2=-1)
        if self.features is None:
            return own.reshape(-1, len(self.basis), self.n_features)
        return torch.einsum("tsa,si->tai", own, self.features.diagonal(dim1=-2, dim2=-1))


def mean_transitions(system: MeanSystem, times: np.ndarray) -> MeanTransitions:
    """The transitions between successive times; see :meth:`MeanTransitions.check_finite` for overflow."""
    if len(times) == 1:
        n, kind = system.right.shape[1], np.zeros(0, dtype=int)
        phi, noise = system.basis.new_zeros(0, n, n), system.basis.new_zeros(0, system.parts, n, n)
    elif system.is_constant:
        widths, kind = distinct(np.diff(times), np.abs(times).max())
        phi, noise = _constant(system, times[0], widths)
    else:
        kind = np.arange(len(times) - 1)
        try:
            phi, noise = _varying(system, times)
        except (ValueError, Diverged):
            system.check(times)  # names a value that is at fault at one of the times
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
    panels = system.panels(times)
    at_once = system.panels_at_once
    phis: list[torch.Tensor] = []
    noises: list[torch.Tensor] = []
    owners = np.zeros(0, dtype=int)
    for first in range(0, len(panels.starts), at_once):
        part = slice(first, first + at_once)
        starts, widths = panels.starts[part], panels.widths[part]
        phi, J = _flows(system, starts, widths)
        noise = _covariances(system, starts, widths, J)
        # The interval that ended the last part may go on in this one.
        phi, noise, owner = _composed(
            torch.cat([*phis[-1:], phi]),
            torch.cat([*noises[-1:], noise]),
            np.append(owners, panels.owner[part]),
        )
        phis[-1:], noises[-1:], owners = [phi[:-1], phi[-1:]], [noise[:-1], noise[-1:]], owner[-1:]
    return torch.cat(phis), torch.cat(noises)


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
    """∫ Φ Q Φᵀ ds over every panel, (panel, part, n, n)."""
    nodes = starts[:, None] + widths[:, None] * POINTS
    if system.noise.is_constant:
        Q = system.intensity(starts[:1])[:, None].expand(len(starts), NODES, -1, -1, -1)
    else:
        Q = system.intensity(nodes.ravel()).unflatten(0, nodes.shape)
    V = system.right
    weights = torch.from_numpy(WEIGHTS)
    # With Φ = 1 + J V the integrand is Q + G + Gᵀ, G = J (V Q + V Q Vᵀ Jᵀ/2): one product over all nodes of a panel.
    VQ = V @ Q
    B = VQ + (J[:, :, None] @ (V @ VQ.mT)).mT / 2
    weighted = (weights[:, None, None] * J).movedim(1, 2).flatten(2)
    G = weighted[:, None] @ B.movedim(1, 2).flatten(2, 3)
    mean = torch.einsum("j,sjpab->spab", weights, Q)
    return torch.from_numpy(widths)[:, None, None, None] * (mean + G + G.mT)


def _sandwich(phi: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Φ C Φᵀ for Φ (item, n, n) and C (item, part, n, n)."""
    return phi[:, None] @ noise @ phi[:, None].mT


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


def transitions(
    coefficients: Coefficients | FeatureCoefficients, times: np.ndarray
) -> MeanTransitions:
    """The transitions of the class means between successive times, without gradients, to about 1e-13 relative.

    ``coefficients`` are ``lesde.derive(model).coefficients()``. The transitions of the latest times are kept. Where
    the growth overflows, the matrices are not finite; where the variance that noise adds does, Diverged is raised.
    ValueError where the drift is not linear, kernel or noise are not finite at some time, change too abruptly to
    integrate, or need dense matrices beyond :data:`lesde.laws.system.DENSE_LIMIT`.
    """
    times = np.asarray(times, dtype=np.float64)
    kept = vars(coefficients).setdefault("_latest_transitions", {})
    if times.tobytes() not in kept:
        with torch.no_grad():
            system = MeanSystem(coefficients)
            system.noise.integrated(times)  # raises Diverged where it overflows
            found = mean_transitions(system, times)
        kept.clear()
        kept[times.tobytes()] = found
    return kept[times.tobytes()]
