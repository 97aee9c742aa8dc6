"""The discrete process of many fitted kernels side by side.

`lesde.simulate` runs one kernel a call. The interval of a prediction needs a few paths of each of some
dozens of kernels, at learning rates that take tens of thousands of steps; stepping all of their
paths together is what makes that take seconds. The rule is that of ``engine="sgd"``, with rates and
noise constant between saved times.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from lesde.transforms import Transform

__all__ = ["Kernels", "frames_of_kernels"]


class Kernels(NamedTuple):
    """Several kernels of two levels and their noise, constant within each interval.

    Attributes
    ----------
    alpha, beta : ndarray, shape (draw, interval)
    noise : ndarray, shape (draw, interval, feature, feature)
        S with S Sᵀ the covariance per unit of time of a sample's own noise.
    """

    alpha: np.ndarray
    beta: np.ndarray
    noise: np.ndarray


def frames_of_kernels(
    kernels: Kernels,
    transform: Transform,
    starts: np.ndarray,
    counts: np.ndarray,
    iterations: np.ndarray,
    learning_rate: float,
    rng: np.random.Generator,
) -> Iterator[np.ndarray]:
    """Features at the saved times, one frame after the other.

    Parameters
    ----------
    kernels : Kernels
    transform : Transform
    starts : ndarray, shape (replicate, sample, feature)
        Samples sorted by class. Every kernel runs from every one of them.
    counts : ndarray of int, shape (class,)
    iterations : ndarray of int, shape (interval + 1,)
        Iterations done at the saved times.
    learning_rate : float
    rng : numpy Generator

    Yields
    ------
    ndarray, shape (draw, replicate, sample, feature)
        Of the first saved time, then of each other. A path that overflows goes on as inf or NaN.

    Notes
    -----
    One iteration draws a class L with probability n_L/N and a sample J in it, and moves all samples of
    class k by h E_kL H_L X_J + √h S ζ with their own ζ. The first part is common to a class; of the second only
    that of the drawn sample is needed before the next saved time, so it is brought up to date when it is drawn.
    """
    B, R, (N, p), K = len(kernels.alpha), len(starts), starts.shape[1:], len(counts)
    paths = np.arange(B * R)
    own = np.broadcast_to(starts, (B, R, N, p)).reshape(B * R, N, p).copy()
    shift = np.zeros((B * R, K, p))
    label = np.repeat(np.arange(K), counts)
    matrices = None if transform.kind == "identity" else transform.array()
    yield own.reshape(B, R, N, p).copy()
    for j, steps in enumerate(np.diff(iterations)):
        E = learning_rate * _entries(kernels.alpha[:, j], kernels.beta[:, j], K).repeat(R, axis=0)
        S = np.sqrt(learning_rate) * kernels.noise[:, j].repeat(R, axis=0)
        seen = np.zeros((B * R, N))
        with np.errstate(over="ignore", invalid="ignore"):
            for m in range(int(steps)):
                drawn = rng.integers(N, size=B * R)
                k = label[drawn]
                _catch_up(own, seen, paths, drawn, m, S, rng)
                x = shift[paths, k] + own[paths, drawn]
                if matrices is not None:
                    x = np.einsum("bij,bj->bi", matrices[k], x)
                shift += E[paths, :, k][:, :, None] * x[:, None]
            left = np.sqrt(steps - seen)[..., None] * rng.standard_normal((B * R, N, p))
            own += left @ S.swapaxes(1, 2)
            yield (own + shift[:, label]).reshape(B, R, N, p)


def _catch_up(
    own: np.ndarray,
    seen: np.ndarray,
    paths: np.ndarray,
    drawn: np.ndarray,
    m: int,
    S: np.ndarray,
    rng: np.random.Generator,
) -> None:
    """Give the drawn samples the noise of the iterations since they were last drawn."""
    z = rng.standard_normal((len(paths), own.shape[-1]))
    z *= np.sqrt(m - seen[paths, drawn])[:, None]
    own[paths, drawn] += np.einsum("bij,bj->bi", S, z)
    seen[paths, drawn] = m


def _entries(alpha: np.ndarray, beta: np.ndarray, K: int) -> np.ndarray:
    """E of two levels, (draw, class, class)."""
    return beta[:, None, None] + (alpha - beta)[:, None, None] * np.eye(K)
