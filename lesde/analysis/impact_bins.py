"""Pairs of a drawn and a moved sample sorted by the distance between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lesde.checks import check_finite_array, check_integer, shown

__all__ = ["Bins", "bin_changes", "check_bins", "make_bins", "pair_distances"]


@dataclass(frozen=True)
class Bins:
    """Ranges of distance, each with its lower edge; the last with both.

    Attributes
    ----------
    edges : float64 array (bin + 1,)
        Not decreasing; equal edges bound an empty bin.
    """

    edges: np.ndarray

    def __len__(self) -> int:
        return len(self.edges) - 1

    def find(self, distances: np.ndarray) -> np.ndarray:
        """Number of the bin of each distance, −1 outside of all."""
        found = np.searchsorted(self.edges, distances, side="right") - 1
        found = np.where(distances == self.edges[-1], len(self) - 1, found)
        return np.where(found < len(self), found, -1)


def check_bins(bins: Any) -> int | np.ndarray:
    """The argument ``bins``: how many, or their edges."""
    if not isinstance(bins, Sequence | np.ndarray) or isinstance(bins, str):
        return check_integer("bins", bins, 2, 10**6)
    edges = check_finite_array("bins", bins, [("edges",)])
    if len(edges) < 2 or (np.diff(edges) <= 0).any():
        raise ValueError(
            f"bins must be a number of bins, or at least 2 increasing edges; got {shown(bins)}."
        )
    return edges


def make_bins(bins: Any, distances: np.ndarray) -> Bins:
    """Bins with the edges given, or so many that hold equal numbers of the distances."""
    checked = check_bins(bins)
    if isinstance(checked, int):
        return Bins(np.quantile(distances, np.linspace(0, 1, checked + 1)))
    return Bins(checked)


def pair_distances(drawn: np.ndarray, features: np.ndarray, by: str) -> np.ndarray:
    """Squared distances or cosines (..., draw, sample) of (..., draw, feature) to (..., sample, feature).

    ``by`` ends in "r2" or "cosine"; the cosine is 0 where a norm is 0, as in a `lesde.FeatureKernel`.
    """
    drawn, features = np.asarray(drawn, np.float64), np.asarray(features, np.float64)
    if by.endswith("r2"):
        # Around a common origin the products below lose the fewest digits.
        origin = features.mean(-2, keepdims=True)
        drawn, features = drawn - origin, features - origin
    inner = drawn @ features.swapaxes(-1, -2)
    one, other = (np.einsum("...p,...p->...", x, x) for x in (drawn, features))
    if by.endswith("r2"):
        return np.maximum(one[..., :, None] + other[..., None, :] - 2 * inner, 0.0)
    norms = np.sqrt(one[..., :, None] * other[..., None, :])
    return np.clip(inner / np.where(norms > 0, norms, 1.0), -1.0, 1.0)


def bin_changes(
    bins: Bins, changes: np.ndarray, distances: np.ndarray, same: np.ndarray
) -> dict[str, np.ndarray]:
    """Sums over the samples of every bin, of the drawn sample's class and of others apart.

    Parameters
    ----------
    bins : Bins
    changes : array (draw, sample, feature)
    distances, same : arrays (draw, sample)
        Distance to the drawn sample, and whether both are of one class.

    Returns
    -------
    dict
        ``bin_change`` (draw, pair, bin, feature), ``bin_count`` and ``bin_distance`` (draw, pair, bin).
    """
    draws, p = len(changes), changes.shape[-1]
    found = bins.find(distances)
    cell = (np.arange(draws)[:, None] * 2 + ~same) * len(bins) + found
    inside = found >= 0
    at, size = cell[inside], draws * 2 * len(bins)
    rows = changes[inside]
    sums = np.stack([np.bincount(at, rows[:, j], size) for j in range(p)], axis=-1)
    shape = (draws, 2, len(bins))
    return {
        "bin_change": sums.reshape(*shape, p),
        "bin_count": np.bincount(at, minlength=size).astype(np.float64).reshape(shape),
        "bin_distance": np.bincount(at, distances[inside], size).reshape(shape),
    }
