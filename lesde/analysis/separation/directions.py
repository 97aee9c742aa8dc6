"""The directions along which pairs of classes are compared."""

from __future__ import annotations

from typing import Any

import numpy as np

from lesde.checks import bare_array, check_choice, check_finite_array
from lesde.paths import gap_directions

__all__ = [
    "agreement",
    "check_direction",
    "check_pairs",
    "gap_directions",
    "in_common",
    "pair_directions",
]


NAMES = ("ensemble", "own", "initial")


def check_direction(direction: Any, n_classes: int, n_features: int) -> str | np.ndarray:
    """One of the words, or vectors (feature,) or (class, class, feature) of length above zero."""
    if isinstance(direction, str):
        return check_choice("direction", direction, NAMES)
    K, p = n_classes, n_features
    array = check_finite_array("direction", direction, [(p,), (K, K, p)])
    upper = array[np.triu_indices(K, 1)] if array.ndim == 3 else array
    if (np.linalg.norm(upper, axis=-1) == 0).any():
        raise ValueError(
            "direction must hold vectors other than zero for every pair of classes k < l; got a "
            "zero vector. Give the vector that points from class l to class k."
        )
    return array


def agreement(means: np.ndarray) -> float:
    """Mean cosine between the centred class means of two replicates, from means (C, R, K, p).

    Each replicate counts alike, whatever its size; C sets of replicates are averaged. 1 where no
    replicate has class means that differ: they are all alike.
    """
    centred = means - means.mean(axis=-2, keepdims=True)
    flat = centred.reshape(*means.shape[:2], -1)
    # scaled first, so that neither tiny nor huge means lose their squares
    size = np.abs(flat).max(axis=-1, keepdims=True)
    flat = flat / np.where(size > 0, size, 1.0)
    norm = np.linalg.norm(flat, axis=-1, keepdims=True)
    units = flat / np.where(norm > 0, norm, 1.0)
    count = (size > 0).sum(axis=(1, 2))
    pairs = (count * (count - 1)).sum()
    if pairs == 0:
        return 1.0
    return float(((units.sum(axis=1) ** 2).sum() - count.sum()) / pairs)


def in_common(first: np.ndarray, last: np.ndarray) -> bool:
    """Whether replicates have their directions in common, from class means (C, R, K, p) at two times.

    They do where they start alike, or end alike as the outputs of trained networks do, which random
    starts leave to chance. Chance puts the means of a few replicates within 60° of each other.
    """
    enough = 0.5 if first.shape[1] >= 8 else 0.99
    return agreement(first) > enough or agreement(last) > enough


def check_pairs(name: str, value: Any) -> np.ndarray:
    """Unit vectors (..., K, K, p), antisymmetric in the classes, from those of the pairs k < l.

    Entries on and below the diagonal are not looked at.
    """
    array = bare_array(name, value)
    K, p = array.shape[-2:]
    k, l = np.triu_indices(K, 1)
    upper = check_finite_array(f"{name} (of pairs k < l)", array[..., k, l, :])
    # scaled first, so that neither tiny nor huge vectors lose their squares
    size = np.abs(upper).max(axis=-1, keepdims=True)
    if (size == 0).any():
        raise ValueError(
            f"{name} must hold vectors other than zero for every pair of classes k < l; got a zero "
            f"vector. Give the vector that points from class l to class k."
        )
    upper = upper / size
    upper /= np.linalg.norm(upper, axis=-1, keepdims=True)
    units = np.zeros((*array.shape[:-3], K, K, p))
    units[..., k, l, :], units[..., l, k, :] = upper, -upper
    return units


def pair_directions(direction: Any, means: np.ndarray) -> np.ndarray:
    """Unit vectors ν[t, k, l] that point from class l to class k, antisymmetric in (k, l).

    Parameters
    ----------
    direction : str or array
        "ensemble": along the gap of ``means`` at each time. "initial": along that of the first
        time. A vector (feature,) serves all pairs; its sign for each pair and time follows the gap
        of ``means``. Vectors (class, class, feature): entry [k, l], k < l, points from l to k.
    means : ndarray (T, K, p)
        Expected class means, or their averages over replicates.
    """
    T, K, p = means.shape
    checked = check_direction(direction, K, p)
    if isinstance(checked, str):
        if checked == "own":
            raise ValueError(
                "direction='own' is that of each replicate, which a law does not have; use "
                "'ensemble', 'initial' or an array."
            )
        unit = gap_directions(means)
        return unit if checked == "ensemble" else np.broadcast_to(unit[:1], unit.shape)
    unit = (
        checked / np.linalg.norm(checked, axis=-1, keepdims=True) if checked.ndim == 1 else checked
    )
    if checked.ndim == 1:
        gap = means[:, :, None, :] - means[:, None, :, :]
        sign = np.sign(gap @ unit)
        # a gap of exactly zero along it still needs antisymmetric signs
        order = np.sign(np.arange(K)[None, :] - np.arange(K)[:, None])
        return np.where(sign == 0, order, sign)[..., None] * unit
    upper = np.triu(np.ones((K, K), dtype=bool), 1)[..., None]
    signed = np.where(upper, checked, 0.0)
    signed = signed - signed.transpose(1, 0, 2)
    length = np.linalg.norm(signed, axis=-1, keepdims=True)
    return np.broadcast_to(signed / np.where(length > 0, length, 1.0), (T, K, K, p))
