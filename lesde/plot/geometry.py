"""Axes to look at class means along, and the simplex they collapse to."""

from __future__ import annotations

import itertools

import numpy as np

__all__ = ["joins", "nearest_simplex", "principal_axes", "principal_names"]

MOST_EDGES_OF = 5
"""Above this many classes means are joined to their centre, not to each other."""


def principal_axes(means: np.ndarray, samples: np.ndarray, count: int) -> np.ndarray:
    """Orthonormal directions that show the class means best, shape (count, feature).

    First the principal axes of the centred class means, as many as have any extent. What is left to
    ``count`` are the principal axes of the deviations within classes, orthogonal to the former.
    Each sign is such that the largest coordinate of a class mean is positive.

    Parameters
    ----------
    means : ndarray, shape (class, feature)
    samples : ndarray, shape (sample, feature)
        Deviations from class means, used only where the means do not span enough directions.
    count : int
        At most the number of features.
    """
    centred = means - means.mean(axis=0)
    _, size, vt = np.linalg.svd(centred, full_matrices=False)
    # A direction along which means differ by rounding only is no direction.
    floor = 1e-12 * max(float(size[0]), float(np.abs(means).max()))
    axes = vt[:count][size[:count] > floor]
    if len(axes) < count:
        rest = samples - (samples @ axes.T) @ axes
        _, _, extra = np.linalg.svd(rest, full_matrices=False)
        # QR keeps the axes exactly orthogonal, and completes them if the samples span nothing more.
        p = means.shape[1]
        basis = np.linalg.qr(np.concatenate([axes, extra, np.eye(p)]).T)[0].T
        axes = np.concatenate([axes, basis[len(axes) : count]])
    along = centred @ axes.T
    peak = along[np.abs(along).argmax(axis=0), np.arange(len(axes))]
    return axes * np.where(peak < 0, -1.0, 1.0)[:, None]


def principal_names(n_classes: int, count: int) -> list[str]:
    """What the directions of `principal_axes` are called on an axis, for as many features as needed."""
    if n_classes == 2:
        return ["along the mean gap", *(f"within classes, PC {i + 1}" for i in range(count - 1))]
    if n_classes == 3:
        plane = ["simplex axis 1", "simplex axis 2"]
        return [*plane, *(f"within classes, PC {i + 1}" for i in range(count - 2))][:count]
    return [f"PC {i + 1} of class means" for i in range(count)]


def nearest_simplex(means: np.ndarray) -> np.ndarray | None:
    """The simplex equiangular tight frame nearest to class means, shape (class, feature).

    Over rotation, size and position: with C the centred means, s and an isometry Q that minimise
    ‖C − s (I − 11ᵀ/K) Q‖_F (the orthogonal Procrustes problem).

    Returns
    -------
    ndarray or None
        Around the centre of the means. None where there is none: with fewer than K−1 features, or
        means that coincide.
    """
    K, p = means.shape
    if p < K - 1:
        return None
    centre = means.mean(axis=0)
    frame = np.eye(K) - 1.0 / K
    u, size, vt = np.linalg.svd(frame @ (means - centre), full_matrices=False)
    if size[0] <= 1e-12 * np.abs(means).max():
        return None
    # The isometry acts on the K−1 contrasts; the last singular direction is that of 1 or empty.
    rotation = u[:, : K - 1] @ vt[: K - 1]
    scale = size[: K - 1].sum() / (K - 1)
    return centre + scale * frame @ rotation


def joins(points: np.ndarray) -> list[np.ndarray]:
    """Lines that join class means (class, d): every pair, or with many classes each to the centre."""
    if len(points) <= MOST_EDGES_OF:
        return [np.stack(pair) for pair in itertools.combinations(points, 2)]
    centre = points.mean(axis=0)
    return [np.stack([centre, point]) for point in points]
