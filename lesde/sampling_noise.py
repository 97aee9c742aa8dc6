"""The sampling noise of SGD, and the SDE of second weak order: maps on class means.

The kick of one iteration is U_k = E_kL H_L X_J, with a class L and a sample J of it drawn at random. It
has mean b = M x, for the class means x, and covariance

    C_km = Σ_l w_l E_kl E_ml H_l S_l H_lᵀ − b_k b_mᵀ,   S_l = X̄^l X̄^lᵀ + W_l,

with W_l the empirical covariance within class l (divisor n_l). Three SDEs for the class means, with
Q = diag(σ_kσ_kᵀ/n_k):

* plain: drift M x, diffusion covariance Q;
* sampling: drift M x, covariance Q + h C;
* modified: drift (M − (h/2)(M² + Ṁ)) x, covariance h C + (1 − hM/2) Q̃ (1 − hM/2)ᵀ, where Q̃ is Q with
  σ − (h/2)σ̇ in place of σ.

The last is found by matching the moments of one iteration, E Δ = hMx and
E ΔΔᵀ = hQ + h²(C + bbᵀ), with those of an SDE over a time h up to order h²: an SDE with drift Mx + hβ and
covariance Q + hA has E Δ = hMx + h²(β + ½(M² + Ṁ)x) and
E ΔΔᵀ = hQ + h²(A + bbᵀ + ½(MQ + QMᵀ + Q̇)). So β = −½(M² + Ṁ)x and A = C − ½(MQ + QMᵀ + Q̇). The covariance above
differs from Q + hA at order h² only, and is never negative. Third moments agree to that order as well,
so the weak order is 2; that of the others is 1.

Nothing here needs matrices of all samples. The functions on class means take NumPy arrays and torch
tensors alike.

References
----------
Li, Tai, E, *Stochastic modified equations and adaptive stochastic gradient algorithms*, ICML 2017: the
idea of an SDE that matches the moments of a step to second order. The formulas are derived here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

__all__ = [
    "block_operator",
    "modified_drift",
    "modified_noise",
    "sampling_covariance",
    "sampling_increment",
]

Push = Callable[[Any], Any]
"""A linear map of class means."""


def modified_drift(push: Push, slope: Push, means: Any, rate: float) -> Any:
    """Drift of the modified equation, b − (h/2)(M b + Ṁ x), in the shape of ``means``.

    Parameters
    ----------
    push : callable
        x ↦ M x = Σ_l w_l E_kl(t) H_l X̄^l.
    slope : callable
        x ↦ Ṁ x, the same with the time derivative of the class matrix (see
        :func:`lesde.time_derivative.drift_derivative`).
    means : array or tensor
        x, in whatever layout the two maps take.
    rate : float
        The learning rate h; 0 gives the drift b of the plain SDE.
    """
    drift = push(means)
    return drift - 0.5 * rate * (push(drift) + slope(means))


def modified_noise(push: Push, noise: Any, rate: float) -> Any:
    """(1 − hM/2) applied to the noise of the class means, in the shape of ``noise``.

    What it adds to the mean of class k, −(h/2) Σ_l w_l E_kl H_l ν_l, is added to every sample of class k:
    the deviations of samples from their class mean have no other noise than in the plain SDE. Where σ
    depends on time, both are to be made with σ − (h/2)σ̇ (see
    :func:`lesde.time_derivative.noise_derivative`).

    Parameters
    ----------
    push : callable
        x ↦ M x.
    noise : array or tensor
        ν_k, the mean over class k of the samples' own noise.
    rate : float
        The learning rate h.
    """
    return noise - 0.5 * rate * push(noise)


def sampling_increment(
    kick: Push, means: Any, drift: Any, normals: Any, shared: Any, deviations: Any
) -> Any:
    """C^{1/2} applied to normals: one number a class and one vector a class.

    Σ_l √w_l [E_kl H_l (X̄^l z_l + d_l) − b_k z_l] has covariance C, for independent z_l ~ N(0, 1) and
    d_l ~ N(0, W_l). With one normal ξ_j a sample, z_l = n_l^{-1/2} Σ_j ξ_j and d_l = n_l^{-1/2} Σ_j Y_j ξ_j are such,
    Y_j being the deviations of the samples of class l from its mean. Every sample of class k gets the
    same increment: √(h dt) times this.

    Parameters
    ----------
    kick : callable
        x ↦ Σ_l √w_l E_kl(t) H_l x^l.
    means, drift : array or tensor
        X̄ and b = M X̄, in the layout of ``kick``.
    normals, shared : array or tensor
        z_l and Σ_l √w_l z_l, of shapes that broadcast against ``means``.
    deviations : array or tensor
        d, in the layout of ``kick``.
    """
    return kick(means * normals + deviations) - drift * shared


def block_operator(matrix: np.ndarray, transforms: np.ndarray) -> np.ndarray:
    """The matrix with blocks G_kl H_l, shape (K·p, K·p), of G (K, K) and H (K, p, p)."""
    K, p, _ = transforms.shape
    return np.einsum("kl,lij->kilj", matrix, transforms).reshape(K * p, K * p)


def sampling_covariance(
    kicks: np.ndarray,
    weights: np.ndarray,
    transforms: np.ndarray,
    mean: np.ndarray,
    second: np.ndarray,
) -> np.ndarray:
    """Covariance C of one kick for class means known to be ``mean``, plus Σ w_l E E ⊗ H_l T_l H_lᵀ.

    With T = W this is C itself. Where the class means are random, with mean ``mean`` and a covariance V,
    E C is this with T_l = V_ll + W_l, less M V Mᵀ. Products of the means are taken of their differences
    from b, so that nothing cancels.

    Parameters
    ----------
    kicks : ndarray (class, class)
        E_kl(t).
    weights : ndarray (class,)
        w_l.
    transforms : ndarray (class, feature, feature)
        H_l.
    mean : ndarray (class, feature)
    second : ndarray (class, feature, feature)
        T_l.

    Returns
    -------
    ndarray (K·p, K·p)
    """
    K, p = mean.shape
    pushed = np.einsum("lij,lj->li", transforms, mean)
    each = kicks[:, :, None] * pushed  # E_kl H_l X̄^l: (moved class, drawn class, feature)
    centred = each - (weights[:, None] * each).sum(1, keepdims=True)
    centred = (centred * np.sqrt(weights)[:, None]).transpose(0, 2, 1).reshape(K * p, K)
    spread = transforms @ second @ transforms.swapaxes(1, 2)
    pairs = kicks[:, None, :] * kicks[None, :, :] * weights  # (k, m, l)
    blocks = (pairs.reshape(K * K, K) @ spread.reshape(K, p * p)).reshape(K, K, p, p)
    return centred @ centred.T + blocks.transpose(0, 2, 1, 3).reshape(K * p, K * p)
