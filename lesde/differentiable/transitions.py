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
from dataclasses import dataclass

import numpy as np
import torch

from lesde.collocation import LARGEST_NORM, flow_panels
from lesde.differentiable.system import TensorSystem
from lesde.errors import Diverged
from lesde.noise import finite_variance
from lesde.quadrature import INTEGRATE, WEIGHTS, Panels

__all__ = ["MeanTransitions", "mean_transitions"]

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
