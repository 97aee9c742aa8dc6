"""Propagators of the class means: transition matrices and noise covariances, in float64.

The class means obey the linear SDE dX̄ = M(t) X̄ dt + noise with M_kl = w_l E_kl(t) H_l, so between two
times they are Gaussian with mean Φ X̄ and covariance C = ∫ Φ(t₁,s) Q Φ(t₁,s)ᵀ ds, where Q is block
diagonal with σ_kσ_kᵀ/n_k. Both are computed once per model and interval, never per particle:

* constant M: Van Loan's block exponential on a short step, then doubling, which loses no digits;
* otherwise, and where the noise depends on time: Gauss-Legendre collocation, solved by Picard
  iteration to rounding, on panels short enough that the Legendre series of the kernel and of the
  noise have ended in each. See :mod:`lesde.quadrature`.

Structure is used. Where H is the identity, M = G ⊗ I and only K×K matrices are formed. Where the H_l
have low rank, M = W(t) V with a constant V of few rows, the flow is solved for V X̄ alone, and
Φ(t₁, s) = 1 + J(s) V follows by integrating W along it.

References
----------
Van Loan, *Computing integrals involving the matrix exponential*, IEEE TAC 23 (1978).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from lesde.collocation import Step, constant_step, varying_steps
from lesde.derivation.coefficients import Coefficients
from lesde.errors import Diverged
from lesde.linear_system import linear_system

__all__ = ["Transition", "to_classes", "transitions"]


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
