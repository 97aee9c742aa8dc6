"""Single steps of the microscopic rule of the model, written with NumPy alone."""

from __future__ import annotations

import numpy as np

H_STEP = 0.02


def samples(rng, counts, n_features, spread=0.7):
    """Features around class means, shape (sample, feature), and labels."""
    labels = np.repeat(np.arange(len(counts)), counts)
    means = rng.normal(size=(len(counts), n_features)) + 0.3
    return means[labels] + spread * rng.normal(size=(len(labels), n_features)), labels


def transform_matrices(kind, K, p, rng=None):
    """H_l (class, feature, feature): what the names stand for, or random ones."""
    if kind == "identity":
        return np.stack([np.eye(p)] * K)
    if kind == "logits":
        rows = []
        for l in range(K):
            d = -np.ones(K) / K
            d[l] += 1
            rows.append(np.outer(d, d) / (d @ d))
        return np.stack(rows)
    return rng.normal(size=(K, p, p))


def step_changes(rng, x, labels, drawn, strength, H, noise, h=H_STEP):
    """ΔX_i = h κ_iJ H_L X_J + √h σ ζ_i for each J in ``drawn``, (draw, sample, feature).

    ``strength`` takes J and gives κ_iJ of all samples i.
    """
    changes = []
    for j in drawn:
        u = H[labels[j]] @ x[j]
        kappa = strength(j)
        changes.append(h * kappa[:, None] * u + np.sqrt(h) * noise * rng.normal(size=x.shape))
    return np.array(changes)


def class_strength(E, labels):
    """κ of a kernel of classes: first the class moved, then the class drawn."""
    return lambda j: E[labels, labels[j]]


def draw(rng, labels, per_class):
    """Numbers of so many samples of every class, sorted by class."""
    return np.concatenate(
        [
            rng.choice(np.flatnonzero(labels == k), per_class, replace=False)
            for k in range(labels.max() + 1)
        ]
    )
