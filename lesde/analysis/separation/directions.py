"""The directions along which pairs of classes are compared."""

from __future__ import annotations

from typing import Any

import numpy as np

from lesde.checks import bare_array, check_choice, check_finite_array
from lesde.paths import gap_directions


def check_direction(direction: Any, n_classes: int, n_features: int) -> str | np.ndarray:
    """One of the words, or vectors (feature,) or (class, class, feature) of length above zero."""
    if isinstance(direction, str):
        return check_choice("direction", direction, ("ensemble", "own", "initial"))
    K, p = n_classes, n_features
    array = check_finite_array("direction", direction, [(p,), (K, K, p)])
    unit_pairs("direction", np.broadcast_to(array, (K, K, p)))
    return array


def unit_pairs(name: str, value: Any) -> np.ndarray:
    """Unit vectors (..., K, K, p), antisymmetric in the classes, from those of the pairs k < l.

    Entries on and below the diagonal are not looked at.
    """
    array = bare_array(name, value)
    K, p = array.shape[-2:]
    k, l = np.triu_indices(K, 1)
    upper = check_finite_array(f"{name} (of pairs k < l)", array[..., k, l, :])
    if not upper.any(axis=-1).all():
        raise ValueError(
            f"{name} must hold vectors other than zero for every pair of classes k < l; got a zero "
            f"vector. Give the vector that points from class l to class k."
        )
    units = np.zeros((*array.shape[:-3], K, K, p))
    units[..., k, l, :] = _unit(upper)
    return units - units.swapaxes(-3, -2)


def _unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors of length 1; zero stays zero. Scaled first, so that no square leaves the range of floats."""
    size = np.abs(vectors).max(axis=-1, keepdims=True)
    vectors = vectors / np.where(size > 0, size, 1.0)
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.where(length > 0, length, 1.0)


def in_common(means: np.ndarray) -> bool:
    """True where replicates share their directions, from class means (C, R, K, p) of C sets of replicates.

    The cosine between the centred class means of two replicates, each of which counts alike whatever its
    size, is above 1/2 on average; by chance, those of a few random replicates can be that close. Replicates
    whose class means do not differ do not count.
    """
    centred = means - means.mean(axis=-2, keepdims=True)
    units = _unit(centred.reshape(*means.shape[:2], -1))
    count = units.any(axis=-1).sum(axis=1)
    pairs = (count * (count - 1)).sum()
    total = (units.sum(axis=1) ** 2).sum() - count.sum()
    return bool(pairs == 0 or total / pairs > (0.5 if means.shape[1] >= 8 else 0.99))


def pair_directions(direction: str | np.ndarray, means: np.ndarray) -> np.ndarray:
    """Unit vectors ν[t, k, l] that point from class l to class k, antisymmetric in (k, l).

    "ensemble": along the gap of ``means`` (T, K, p), the expected class means or their averages over
    replicates, at each time; "initial": along that of the first time. A vector (feature,) serves all
    pairs; its sign for each pair and time follows the gap of ``means``. Vectors (class, class,
    feature): entry [k, l], k < l, points from l to k.
    """
    T, K, p = means.shape
    if isinstance(direction, str):
        unit = gap_directions(means)
        return unit if direction == "ensemble" else np.broadcast_to(unit[:1], unit.shape)
    if direction.ndim == 3:
        return np.broadcast_to(unit_pairs("direction", direction), (T, K, K, p))
    unit = _unit(direction)
    sign = np.sign((means[:, :, None] - means[:, None]) @ unit)
    # a gap of exactly zero along it still needs antisymmetric signs
    order = np.sign(np.arange(K)[None, :] - np.arange(K)[:, None])
    return np.where(sign == 0, order, sign)[..., None] * unit
