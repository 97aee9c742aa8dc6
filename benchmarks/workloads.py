"""The systems that every method simulates, and the test that it simulated just that."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

import lesde

__all__ = ["WORKLOADS", "Workload", "WrongResult", "check_discrete", "check_law", "check_means"]

LIMIT = 5.0
"""Standard errors a result may be off."""


class WrongResult(AssertionError):
    """A method computed something else than it was asked for."""


@dataclass(frozen=True)
class Workload:
    """An I-model with two levels of elasticity, simulated from given class means.

    Attributes
    ----------
    n_classes, n_per_class, n_features, replicates, steps : int
    dt : float
        Step of the integrators and learning rate of the discrete process.
    alpha, beta, noise : float
        Elasticity within and between classes, and σ. They are small enough for the error of Euler's
        method to stay well below the statistical error, so that one test serves all methods.
    """

    n_classes: int
    n_per_class: int
    n_features: int
    replicates: int
    steps: int
    dt: float
    alpha: float = 1.0
    beta: float = -0.5
    noise: float = 0.1

    @cached_property
    def model(self) -> lesde.LESDE:
        return lesde.LESDE(
            lesde.TwoLevel(alpha=self.alpha, beta=self.beta),
            n_classes=self.n_classes,
            n_features=self.n_features,
            n_per_class=self.n_per_class,
            noise=self.noise,
        )

    @cached_property
    def means(self) -> np.ndarray:
        """Initial class means (class, feature)."""
        shape = (self.n_classes, self.n_features)
        return np.random.default_rng(1).normal(0, 1 / math.sqrt(self.n_features), shape)

    @property
    def elasticity(self) -> np.ndarray:
        """E (class, class)."""
        K = self.n_classes
        return np.full((K, K), self.beta) + (self.alpha - self.beta) * np.eye(K)

    @property
    def weights(self) -> np.ndarray:
        """Matrix of the class means' drift (class, class): E over the number of classes."""
        return self.elasticity / self.n_classes

    @property
    def span(self) -> float:
        return self.steps * self.dt

    @property
    def n_samples(self) -> int:
        return self.n_classes * self.n_per_class

    @property
    def size(self) -> int:
        """State dimensions of all replicates."""
        return self.replicates * self.n_samples * self.n_features

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(replicate, class, sample of the class, feature)."""
        return self.replicates, self.n_classes, self.n_per_class, self.n_features

    @property
    def work(self) -> float:
        """Millions of state dimensions stepped."""
        return self.size * self.steps / 1e6

    def shorter(self, divisor: int) -> Workload:
        """The same with fewer steps, for methods that would take minutes."""
        return replace(self, steps=max(1, self.steps // divisor))

    def describe(self) -> dict[str, Any]:
        names = ("n_classes", "n_per_class", "n_features", "replicates", "steps", "dt")
        return {name: getattr(self, name) for name in names}


WORKLOADS = {
    "A": Workload(3, 100, 3, 32, 1000, 1e-3),
    "B": Workload(10, 100, 10, 32, 200, 5e-3),
    "C": Workload(3, 100, 3, 256, 1000, 1e-3),
}


def _samples(final: Any, workload: Workload) -> np.ndarray:
    """The final state as float64 (replicate, class, sample of the class, feature)."""
    if hasattr(final, "features"):
        final = final.features.values[..., -1, :, :]
    array = np.asarray(final.cpu() if hasattr(final, "cpu") else final, dtype=np.float64)
    if array.size != workload.size:
        raise WrongResult(f"expected {workload.size} numbers; got shape {array.shape}")
    return array.reshape(workload.shape)


def _within(z: dict[str, float]) -> dict[str, float]:
    """The standard errors by which a result is off, refused where they are too many."""
    bad = {name: value for name, value in z.items() if not abs(value) < LIMIT}
    if bad:
        listed = ", ".join(f"{name} by {value:.1f}" for name, value in bad.items())
        raise WrongResult(f"off in {listed} standard errors (at most {LIMIT:g} allowed)")
    return {name: round(float(value), 2) for name, value in z.items()}


def _law_of_means(means: np.ndarray, workload: Workload) -> dict[str, float]:
    """Class means (replicate, class, feature) against the exact law at the end."""
    R, size = len(means), workload.n_classes * workload.n_features
    law = lesde.law(workload.model, [0.0, workload.span], initial=workload.means)
    covariance = law["covariance"].values[-1].reshape(size, size)
    away = means.reshape(R, size) - law["mean"].values[-1].reshape(size)
    error = np.sqrt(np.diag(covariance) / R)
    squares = (away * np.linalg.solve(covariance, away.T).T).sum() / away.size
    return {
        "means": float(np.abs(away.mean(0) / error).max()),
        "variance of the means": float((squares - 1) * math.sqrt(away.size / 2)),
    }


def _spread(samples: np.ndarray, workload: Workload) -> float:
    """The samples' scatter about their class means against σ²t, in standard errors."""
    R, K, n, p = workload.shape
    freedom = R * K * (n - 1) * p
    scatter = ((samples - samples.mean(2, keepdims=True)) ** 2).sum()
    expected = freedom * workload.noise**2 * workload.span
    return float((scatter / expected - 1) * math.sqrt(freedom / 2))


def check_law(final: Any, workload: Workload) -> dict[str, float]:
    """Final samples against the exact law of the LE-SDE: how many standard errors they are off."""
    samples = _samples(final, workload)
    z = _law_of_means(samples.mean(2), workload)
    return _within(z | {"spread": _spread(samples, workload)})


def check_means(final: Any, workload: Workload) -> dict[str, float]:
    """Final class means (replicate, class, feature) against the exact law of the LE-SDE."""
    return _within(_law_of_means(np.asarray(final, dtype=np.float64), workload))


def check_discrete(final: Any, workload: Workload) -> dict[str, float]:
    """Final samples of the discrete process against its expectation and its spread.

    The expectation after m iterations is (1 + h M)^m X̄(0); the standard error of the mean over
    replicates is taken from the replicates themselves.
    """
    samples = _samples(final, workload)
    means = samples.mean(2)
    growth = np.eye(workload.n_classes) + workload.dt * workload.weights
    expected = np.linalg.matrix_power(growth, workload.steps) @ workload.means
    error = means.std(0, ddof=1) / math.sqrt(len(means))
    z = np.abs((means.mean(0) - expected) / error).max()
    return _within({"means": float(z), "spread": _spread(samples, workload)})
