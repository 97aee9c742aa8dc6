"""Paths for the tests of elasticity fits, made without the package, and checks of the making.

Class means only: one "sample" a class is its mean, unless `with_samples` spreads samples about it.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import xarray as xr


def two_level(n_classes: int, alpha: Callable, beta: Callable) -> Callable:
    """E(t), shape (K, K)."""
    eye = np.eye(n_classes)
    return lambda t: beta(t) + (alpha(t) - beta(t)) * eye


def projections(kind: str, n_classes: int, n_features: int) -> np.ndarray:
    """H_l, shape (K, p, p), written from their definition."""
    if kind == "identity":
        return np.stack([np.eye(n_features)] * n_classes)
    d = np.eye(n_classes) - 1.0 / n_classes
    return np.stack([np.outer(v, v) / (v @ v) for v in d])


def simulate_means(
    E: Callable,
    H: np.ndarray,
    counts: np.ndarray,
    initial: np.ndarray,
    times: np.ndarray,
    noise: float,
    shape: tuple[int, ...],
    rng: np.random.Generator,
    substeps: int = 8,
) -> np.ndarray:
    """Class means (*shape, time, K, p) of the LE-SDE by a stochastic Heun scheme, of weak order 2."""
    K, p = initial.shape[-2:]
    w = counts / counts.sum()
    flat_H = H.transpose(0, 2, 1)
    X = np.broadcast_to(initial, (*shape, K, p)).astype(float)
    frames = [X]

    def drift(t: float, X: np.ndarray) -> np.ndarray:
        moved = (X[..., None, :] @ flat_H)[..., 0, :]
        return (E(t) * w) @ moved

    for start, end in pairwise(times):
        h = (end - start) / substeps
        for i in range(substeps):
            t = start + i * h
            kick = noise * np.sqrt(h / counts)[:, None] * rng.standard_normal(X.shape)
            one = drift(t, X)
            two = drift(t + h, X + h * one + kick)
            X = X + h / 2 * (one + two) + kick
        frames.append(X)
    return np.stack(frames, axis=-3)


def sgd_means(
    E: np.ndarray, initial: np.ndarray, step: float, every: int, frames: int, noise: float,
    replicates: int, rng: np.random.Generator,
) -> np.ndarray:  # fmt: skip
    """Class means of SGD with H = I and constant E, in expectation over samples, plus noise."""
    K, p = initial.shape
    X = np.broadcast_to(initial, (replicates, K, p)).astype(float)
    kept = [X]
    for i in range(every * frames):
        X = X + step * E / K @ X + noise * np.sqrt(step) * rng.standard_normal(X.shape)
        if (i + 1) % every == 0:
            kept.append(X)
    return np.stack(kept, axis=1)


def dataset(
    means: np.ndarray,
    times: np.ndarray,
    counts: np.ndarray | None = None,
    rng: np.random.Generator | None = None,
    spread: float = 0.0,
    leading: tuple[str, ...] = ("replicate",),
) -> xr.Dataset:
    """Paths with the given class means: n_k samples a class, shuffled, whose mean is exact.

    Without ``counts``, one sample a class.
    """
    K = means.shape[-2]
    counts = np.ones(K, dtype=int) if counts is None else counts
    labels = np.repeat(np.arange(K), counts)
    features = means[..., labels, :].copy()
    if rng is not None:
        deviation = spread * rng.standard_normal(features.shape)
        for k in range(K):
            own = labels == k
            deviation[..., own, :] -= deviation[..., own, :].mean(-2, keepdims=True)
        features += deviation
        order = rng.permutation(len(labels))
        labels, features = labels[order], features[..., order, :]
    dims = (*leading, "time", "sample", "feature")
    return xr.Dataset(
        {"features": (dims, features)}, coords={"time": times, "label": ("sample", labels)}
    )


def test_simulator_agrees_with_closed_form_of_i_model():
    """Null: mean and variance of the simulator are those of the two modes of the balanced I-model.

    Mean of 4,000 paths within 5 standard errors, variance within 5 of its own, √(2/(R p K)).
    """
    K, p, n, noise, R = 3, 2, 10, 0.5, 4000
    initial = np.arange(6.0).reshape(3, 2) - 1
    E = two_level(K, lambda t: 2 / (1 + t), lambda t: -0.5)
    times = np.array([0.0, 0.5, 1.0])
    counts = np.full(K, n)
    X = simulate_means(
        E,
        projections("identity", K, p),
        counts,
        initial,
        times,
        noise,
        (R,),
        np.random.default_rng(1),
    )[:, -1]
    A, B = 2 * np.log(2), -0.5
    grand = initial.mean(0)
    expected = grand * np.exp((A + 2 * B) / K) + (initial - grand) * np.exp((A - B) / K)
    error = X.std(0) / np.sqrt(R)
    assert (np.abs(X.mean(0) - expected) < 5 * error).all()
    s = (np.arange(2000) + 0.5) / 2000
    left = 2 * np.log(2 / (1 + s))
    for mode, rate, number in (
        ("grand", left - 0.5 * 2 * (1 - s), 1),
        ("contrast", left + 0.5 * (1 - s), K - 1),
    ):
        variance = noise**2 / n * np.exp(2 * rate / K).mean()
        deviation = X - expected
        centre = deviation.mean(1, keepdims=True)
        part = centre * np.sqrt(K) if mode == "grand" else deviation - centre
        found = (part**2).sum() / (R * number * p)
        assert abs(found / variance - 1) < 5 * np.sqrt(2 / (R * number * p))


def test_simulator_agrees_with_closed_form_of_l_model():
    """Null: without noise, s_l grows as the two modes of the balanced L-model say, to 1e-5."""
    K = 4
    E = two_level(K, lambda t: 1.0, lambda t: -2.0)
    H = projections("logits", K, K)
    initial = np.random.default_rng(0).standard_normal((K, K))
    X = simulate_means(
        E, H, np.full(K, 5), initial, np.array([0.0, 1.0]), 0.0, (), np.random.default_rng(0), 400
    )
    d = np.eye(K) - 1 / K
    s = np.einsum("tlp,lp->tl", X, d) / np.sqrt(1 - 1 / K)
    equal, contrast = np.exp(3.0 / K), np.exp((1 - 2 / 3) / K)
    expected = s[0].mean() * equal + (s[0] - s[0].mean()) * contrast
    np.testing.assert_allclose(s[1], expected, atol=1e-5)
