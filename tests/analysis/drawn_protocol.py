"""Draws of the published protocol, simulated with known rates at the noise of real networks.

The noise is that of 16 LeNets trained on GeoMNIST (``lesde.networks.geo_mnist()``, ``lenet(3)``, batch size 1,
learning rate 0.005, seed 0, ``drawn=True``) at t = 14.5 of 15, over windows of one unit of time. With the size
of the class means about their grand mean, 3.42 (root mean square over classes and coordinates), as unit:

- a draw lies 0.52 from the mean of its class and network in the window (1.77);
- networks differ by 0.57 in class means about the grand mean (1.94);
- the grand mean has size 0.30 (1.04), and networks differ in it by 0.21 (0.73).

This is when classes stand apart best, so least noise: at t = 5.5 the first two numbers are 2.1 and 2.5, and
at t = 0.5 they are 19 and 2.3.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import xarray as xr

from lesde.model.transforms import logit_directions

STEP = 0.005
PER_CLASS = 500


@dataclass(frozen=True)
class Noise:
    """Sizes relative to the class means about the grand mean."""

    draw: float
    networks: float
    grand: float
    grand_networks: float


LATE = Noise(0.52, 0.57, 0.30, 0.21)
EARLY = Noise(2.1, 2.5, 0.70, 1.2)
"""At t = 5.5, when classes begin to stand apart."""


@dataclass(frozen=True)
class Rates:
    """α = a max(t, 1)^−r and β = b max(t, 1)^−q."""

    a: float = 0.8
    b: float = -0.2
    r: float = 0.6
    q: float = 0.6

    def integrals(self, iterations: int) -> tuple[np.ndarray, np.ndarray]:
        """Σ h α and Σ h β before every iteration, (iterations + 1,)."""
        t = STEP * np.arange(iterations)
        sums = [
            np.cumsum(STEP * c * np.maximum(t, 1) ** -e)
            for c, e in ((self.a, self.r), (self.b, self.q))
        ]
        return tuple(np.concatenate([[0.0], s]) for s in sums)


def truth(rates: Rates, iterations: int, moments: np.ndarray) -> np.ndarray:
    """A and B at times, (2, time)."""
    t = STEP * np.arange(iterations + 1)
    return np.stack([np.interp(moments, t, x) for x in rates.integrals(iterations)])


def initial_means(kind: str, seed: int, K: int = 3, noise: Noise = LATE) -> np.ndarray:
    """Class means (class, coordinate) at the start, all networks' mean."""
    x = np.random.default_rng(seed).standard_normal((K, K))
    if kind == "logits":  # sums of zero, for which the published formulas are exact
        x -= x.mean(1, keepdims=True)
    g = x.mean(0)
    apart = x - g
    return apart / np.sqrt(np.mean(apart**2)) + noise.grand * g / np.sqrt(np.mean(g**2))


def simulate_draws(
    kind: str,
    seed: int,
    *,
    rates: Rates = Rates(),
    noise: Noise = LATE,
    replicates: int = 100,
    iterations: int = 10_000,
    K: int = 3,
    scale: float = 1.0,
) -> xr.Dataset:
    """Every iteration's drawn sample before its step; ``scale`` 0 leaves out all noise.

    The initial class means come from the seed too. Networks start about them, move by the discrete LE-SDE with noise σ/√n
    per class, and a draw deviates from its class mean with variance s₀² + σ²t: s₀ is ``noise.draw``, and σ keeps that ratio at the end.
    """
    rng = np.random.default_rng(seed)
    mu = initial_means(kind, seed, K, noise)
    A, B = rates.integrals(iterations)
    alpha, beta = np.diff(A) / STEP, np.diff(B) / STEP
    grown = np.exp((A[-1] - B[-1]) / K)
    spread = scale * noise.draw
    sigma = spread * np.sqrt((grown**2 - 1) / (STEP * iterations))
    common = scale * noise.grand_networks * rng.standard_normal((replicates, 1, K))
    own = rng.standard_normal((replicates, K, K))
    own -= own.mean(1, keepdims=True)
    start = mu + common + scale * noise.networks * own / np.sqrt(1 - 1 / K)
    shape = (iterations - 1, replicates, K, K)
    kicks = sigma * np.sqrt(STEP / PER_CLASS) * rng.standard_normal(shape) if scale else 0.0
    move = _identity if kind == "identity" else _logits
    means = move(start, kicks, alpha[:-1], beta[:-1])
    label = rng.integers(K, size=(replicates, iterations))
    drawn = means[np.arange(iterations), np.arange(replicates)[:, None], label]
    now = np.sqrt(spread**2 + sigma**2 * STEP * np.arange(iterations))
    drawn = drawn + now[:, None] * rng.standard_normal(drawn.shape)
    return xr.Dataset(
        {"features": (("replicate", "draw", "feature"), drawn)},
        coords={
            "label": (("replicate", "draw"), label),
            "iteration": ("draw", np.arange(iterations)),
            "time": ("draw", STEP * np.arange(iterations)),
        },
    )


def _grow(start: np.ndarray, kicks: np.ndarray | float, rate: np.ndarray) -> np.ndarray:
    """x ← (1 + h·rate) x + kick at every step, from (...) to (step, ...)."""
    growth = np.concatenate([[1.0], np.cumprod(1 + STEP * rate)])
    growth = growth.reshape(-1, *[1] * start.ndim)
    total = start + np.zeros((len(growth), *start.shape))
    if not np.isscalar(kicks):
        total[1:] += np.cumsum(kicks / growth[1:], axis=0)
    return growth * total


def _identity(start, kicks, alpha, beta):
    K = start.shape[-2]
    parts = []
    for x in (start, kicks):
        mean = x if np.isscalar(x) else x.mean(-2, keepdims=True)
        parts.append((mean, x - mean))
    grand = _grow(parts[0][0], parts[1][0], (alpha + (K - 1) * beta) / K)
    return grand + _grow(parts[0][1], parts[1][1], (alpha - beta) / K)


def _logits(start, kicks, alpha, beta):
    K = start.shape[-1]
    unit = logit_directions(K) / np.sqrt(1 - 1 / K)
    read = [x if np.isscalar(x) else np.einsum("...kp,kp->...k", x, unit) for x in (start, kicks)]
    means = [x if np.isscalar(x) else x.mean(-1, keepdims=True) for x in read]
    s = _grow(means[0], means[1], (alpha - beta) / K)
    s = s + _grow(read[0] - means[0], read[1] - means[1], (alpha + beta / (K - 1)) / K)
    each = s[:-1, ..., None] * unit  # what draws of each class do to all, times E
    alpha, beta = (x[:, None, None, None] for x in (alpha, beta))
    moves = STEP / K * ((alpha - beta) * each + beta * each.sum(-2, keepdims=True)) + kicks
    return start + np.concatenate([np.zeros((1, *start.shape)), np.cumsum(moves, axis=0)])
