"""How far each class reaches toward the others, at a cost that does not depend on its size.

The deviations of n samples from their own mean are Y_i = A (Z_i − Z̄), Z_i standard normal. What
separation needs of them is how far they reach against the unit vectors u_d to the other classes,
max_i (−u_d·Y_i). With a_d = −Aᵀu_d = |a_d| b_d that is |a_d| times the largest of b_d·(Z_i − Z̄).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lesde.simulation.centred_maxima import largest_of_centred, points_needed
from lesde.simulation.noise import BlockNoise

__all__ = ["draw_reach", "is_joint"]

NUMBERS = 200_000
"""Random numbers that the joint law of one class of one replicate may take (about 2 ms)."""


def is_joint(count: int, n_classes: int, n_features: int) -> bool:
    """Whether a class of ``count`` samples gets the joint law of its reaches, else each alone."""
    D = n_classes - 1
    return points_needed(int(count), D) * _rank(D, n_features) <= NUMBERS


def draw_reach(
    noise: BlockNoise, factor: Any, counts: np.ndarray, directions: np.ndarray
) -> tuple[np.ndarray, bool]:
    """One draw, for every replicate, of how far each class reaches toward each other one.

    Exact in law up to what ``lesde.simulation.centred_maxima`` states (below 1e-6 in the distribution
    function of each), jointly over the other classes. Different classes, and different replicates,
    are independent. So are two calls: the joint law of one class at two times is not that of a path.

    Parameters
    ----------
    noise : BlockNoise
        Of the block that the replicates make up. All numbers are drawn in float64.
    factor : number, array (K,) or array (K, p, p)
        A, of the deviations A (Z_i − Z̄): a multiple of I, the same for all classes or one for
        each, or a matrix for each.
    counts : ndarray of int (K,)
        Samples of each class.
    directions : ndarray (R, K, K, p)
        ``directions[r, k, l]`` is the unit vector from class l to class k. Where it is NaN, so is
        the reach. The diagonal is not read. A vector of another length scales the reach, so that
        many times go into one call, as further replicates, with ``u @ A`` for u and 1 for A.

    Returns
    -------
    reach : ndarray (R, K, K), float64
        ``reach[r, k, l]``, the largest of −u_kl·Y_i over the samples of class k. NaN for k = l.
    joint : bool
        False where K is so large that the joint law of some class would take more than ``NUMBERS``
        random numbers. The reaches of such a class are then independent, each with its own law.
    """
    counts = np.asarray(counts, dtype=np.int64)
    R, K, _, p = directions.shape
    reach = np.full((R, K, K), np.nan)
    if K == 1:
        return reach, True
    other = np.array([[l for l in range(K) if l != k] for k in range(K)])
    own = np.arange(K)[:, None]
    rows = _rows(factor, directions[:, own, other])
    length = np.linalg.norm(rows, axis=-1)
    rows = _unit_rows(rows, length)
    peaks = np.empty((R, K, K - 1))
    joint = np.array([is_joint(count, K, p) for count in counts])
    if joint.any():
        part = rows[:, joint]
        sizes = np.broadcast_to(counts[joint], part.shape[:2])
        if p > 2 * (K - 1):
            # Only inner products of the rows matter: K−1 coordinates do.
            triangle = np.asarray(np.linalg.qr(part.swapaxes(-1, -2), mode="r"))
            part = triangle.swapaxes(-1, -2)
        flat = part.reshape(-1, K - 1, part.shape[-1])
        peaks[:, joint] = largest_of_centred(noise, flat, sizes.ravel()).reshape(part.shape[:-1])
    if not joint.all():
        sizes = np.broadcast_to(counts[~joint, None], peaks[:, ~joint].shape)
        alone = largest_of_centred(noise, np.ones((sizes.size, 1, 1)), sizes.ravel())
        peaks[:, ~joint] = alone.reshape(sizes.shape)
    with np.errstate(invalid="ignore"):
        reach[:, own, other] = np.where(length == 0, 0.0, length * peaks)
    return reach, bool(joint.all())


def _rank(D: int, p: int) -> int:
    return p if p <= 2 * D else D


def _rows(factor: Any, directions: np.ndarray) -> np.ndarray:
    """−Aᵀu for the unit vectors (replicate, class, other, feature)."""
    factor = np.asarray(factor, dtype=np.float64)
    K, p = directions.shape[1], directions.shape[3]
    if factor.shape in ((), (K,)):
        return -directions * factor.reshape(-1, 1, 1)
    if factor.shape != (K, p, p):
        raise ValueError(
            f"factor must be a number or have shape ({K},) or ({K}, {p}, {p}); got shape "
            f"{factor.shape}."
        )
    return -(directions @ factor)


def _unit_rows(rows: np.ndarray, length: np.ndarray) -> np.ndarray:
    """Rows of length one; where there is none, a copy of another one, whose result is not used."""
    usable = np.isfinite(length) & (length > 0)
    if usable.all():
        return rows / length[..., None]
    unit = rows / np.where(usable, length, 1.0)[..., None]
    first = usable.argmax(-1)[..., None, None]
    spare = np.take_along_axis(unit, first, axis=-2)
    spare = np.where(usable.any(-1)[..., None, None], spare, np.eye(rows.shape[-1])[0])
    return np.where(usable[..., None], unit, spare)
