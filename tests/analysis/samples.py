"""Paths of samples in no order, and their statistics by definition."""

from __future__ import annotations

import numpy as np
import xarray as xr

COUNTS = {
    "two": (8, 8),
    "two unbalanced": (3, 17),
    "three": (9, 9, 9),
    "four unbalanced": (4, 12, 7, 5),
    "single sample": (1, 6, 6),
}


def make_paths(counts, dtype="float64", p=4, replicates=60, times=7, offset=0.0, seed=0):
    """Samples in no order, two learning rates, classes that move apart until they are separated."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    t = np.linspace(0.0, 2.0, times)
    means = np.eye(len(counts), p)[labels] + 0.3 * rng.normal(size=(len(counts), p))[labels]
    shape = (2, replicates, times, len(labels), p)
    x = rng.normal(size=shape) * (0.05 + 0.6 * np.sqrt(t))[:, None, None]
    x += (0.3 + 1.5 * t)[:, None, None] * means + offset
    return xr.Dataset(
        {
            "features": (
                ("learning_rate", "replicate", "time", "sample", "feature"),
                x.astype(dtype),
            ),
            "loss": (("learning_rate", "replicate", "time"), np.ones(shape[:3])),
        },
        {"time": t, "label": ("sample", labels), "learning_rate": [0.1, 0.2]},
        {"engine": "test"},
    )


def plain(paths):
    """Statistics by definition, one class of one frame at a time: dict of float64 arrays."""
    labels, x = paths.label.values, paths.features.values.astype(np.float64)
    K, p = labels.max() + 1, x.shape[-1]
    lead = x.shape[:-2]
    out = {
        "mean": np.empty((*lead, K, p)),
        "within": np.empty((*lead, K, p, p)),
        "reach": np.full((*lead, K, K), np.nan),
    }
    for at in np.ndindex(*lead):
        for k in range(K):
            out["mean"][(*at, k)] = x[at][labels == k].mean(0)
            out["within"][(*at, k)] = np.cov(x[at][labels == k].T, bias=True)
        for k in range(K):
            for l in set(range(K)) - {k}:
                gap = out["mean"][(*at, k)] - out["mean"][(*at, l)]
                unit = gap / np.linalg.norm(gap)
                away = out["mean"][(*at, k)] - x[at][labels == k]
                out["reach"][(*at, k, l)] = (away @ unit).max()
    return out
