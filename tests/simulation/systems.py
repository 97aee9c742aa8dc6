"""Models for the tests, and their moments by formulas written out here.

Nothing in this file uses the package's derivation, so that engines are compared with an independent
route: the kernel is a NumPy function, and the moments follow one-step recursions.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from scipy.integrate import solve_ivp

from lesde import LESDE, ClassMatrix
from lesde.processes.integration import StepIncrements

CONSTANT = [["1.2", "-0.6", "0.3"], ["-0.4", "0.9", "-0.5"], ["0.2", "-0.8", "1.1"]]
VARYING = [
    ["1.5/(1+t)", "-0.6", "0.3*t"],
    ["-0.4", "0.9+0.5*t", "-exp(-t)"],
    ["0.2", "-0.8/(1+t)", "1.1"],
]


def constant(t: float) -> np.ndarray:
    return np.array(CONSTANT, float)


def varying(t: float) -> np.ndarray:
    return np.array(
        [
            [1.5 / (1 + t), -0.6, 0.3 * t],
            [-0.4, 0.9 + 0.5 * t, -np.exp(-t)],
            [0.2, -0.8 / (1 + t), 1.1],
        ]
    )


def logit_matrices(K: int) -> np.ndarray:
    d = np.eye(K) - 1 / K
    return np.einsum("li,lj->lij", d, d) / (1 - 1 / K)


_rng = np.random.default_rng(5)
MATRICES = np.eye(3) + 0.4 * _rng.standard_normal((3, 3, 3))
FACTORS = 0.3 * np.eye(3) + 0.15 * _rng.standard_normal((3, 3, 3))
MEANS = np.array([[1.0, 0.2, -0.3], [-0.5, 0.8, 0.1], [0.3, -0.6, 0.9]])

TRANSFORMS = {
    "identity": ("identity", np.broadcast_to(np.eye(3), (3, 3, 3))),
    "logits": ("logits", logit_matrices(3)),
    "matrix": (MATRICES, MATRICES),
    "shared": (MATRICES[0], np.broadcast_to(MATRICES[0], (3, 3, 3))),
}
SIZES = {"balanced": [4, 4, 4], "unbalanced": [2, 5, 3]}
KERNELS = {"constant": (CONSTANT, constant), "varying": (VARYING, varying)}
NOISES = {
    "scalar": (0.4, np.broadcast_to(0.16 * np.eye(3), (3, 3, 3))),
    "per class": (np.array([0.2, 0.5, 0.0]), np.eye(3) * np.array([0.04, 0.25, 0])[:, None, None]),
    "full": (FACTORS, FACTORS @ np.swapaxes(FACTORS, 1, 2)),
    "full, shared": (FACTORS[0], np.broadcast_to(FACTORS[0] @ FACTORS[0].T, (3, 3, 3))),
}


@dataclass(frozen=True)
class System:
    """A model together with its numbers: E(t), H (K,p,p), Σ (K,p,p), counts."""

    model: LESDE
    kernel: object
    H: np.ndarray
    Sigma: np.ndarray
    counts: np.ndarray

    def drift_matrix(self, t: float) -> np.ndarray:
        """M(t) with blocks w_l E_kl H_l, (Kp, Kp)."""
        w = self.counts / self.counts.sum()
        size = self.H.shape[0] * self.H.shape[1]
        return np.einsum("l,kl,lij->kilj", w, self.kernel(t), self.H).reshape(size, size)

    def mean_noise(self) -> np.ndarray:
        """Q, block diagonal with Σ_k/n_k."""
        K, p, _ = self.H.shape
        Q = np.zeros((K, p, K, p))
        for k in range(K):
            Q[k, :, k] = self.Sigma[k] / self.counts[k]
        return Q.reshape(K * p, K * p)

    def sde_moments(self, means: np.ndarray, T: float) -> tuple[np.ndarray, np.ndarray]:
        """Mean and covariance of the class means at T from t = 0, by an adaptive ODE solver."""
        size = means.size
        Q = self.mean_noise()

        def rhs(t, y):
            M, m, C = self.drift_matrix(t), y[:size], y[size:].reshape(size, size)
            return np.concatenate([M @ m, (M @ C + C @ M.T + Q).ravel()])

        start = np.concatenate([means.ravel(), np.zeros(size**2)])
        end = solve_ivp(rhs, (0, T), start, method="DOP853", rtol=1e-10, atol=1e-12).y[:, -1]
        return end[:size].reshape(means.shape), end[size:].reshape(size, size)

    def sgd_moments(
        self, means: np.ndarray, h: float, steps: int, offsets: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Mean and covariance of the class means after some iterations of the discrete process."""
        K, p, _ = self.H.shape
        w = self.counts / self.counts.sum()
        size = K * p
        fixed = np.zeros((K, p, p))
        if offsets is not None:
            labels = np.repeat(np.arange(K), self.counts)
            for k in range(K):
                rows = offsets[labels == k]
                fixed[k] = rows.T @ rows / self.counts[k]
        mean, P = means.ravel().copy(), np.outer(means, means)
        for m in range(steps):
            E, M = self.kernel(m * h), self.drift_matrix(m * h)
            grown = (1 - 1 / self.counts)[:, None, None] * self.Sigma * m * h
            blocks = np.einsum("lilj->lij", P.reshape(K, p, K, p))
            S = blocks + grown + fixed
            second = np.einsum("l,kl,ml,lia,lab,ljb->kimj", w, E, E, self.H, S, self.H)
            P = (
                P
                + h * (M @ P + P @ M.T)
                + h**2 * second.reshape(size, size)
                + h * self.mean_noise()
            )
            mean = mean + h * M @ mean
        return mean.reshape(means.shape), P - np.outer(mean, mean)


def make_system(transform: str, sizes: str, kernel: str, noise: str) -> System:
    given, H = TRANSFORMS[transform]
    table, function = KERNELS[kernel]
    sigma, Sigma = NOISES[noise]
    counts = np.array(SIZES[sizes])
    model = LESDE(ClassMatrix(table), 3, 3, SIZES[sizes], transform=given, noise=sigma)
    return System(model, function, H, Sigma, counts)


ALL = list(itertools.product(TRANSFORMS, SIZES, KERNELS, NOISES))
# Every pair of values of two factors occurs in one of these.
PAIRS = [
    ("identity", "balanced", "constant", "scalar"),
    ("identity", "unbalanced", "varying", "per class"),
    ("identity", "balanced", "varying", "full"),
    ("identity", "unbalanced", "constant", "full, shared"),
    ("logits", "unbalanced", "varying", "scalar"),
    ("logits", "balanced", "constant", "per class"),
    ("logits", "unbalanced", "constant", "full"),
    ("logits", "balanced", "varying", "full, shared"),
    ("matrix", "unbalanced", "constant", "scalar"),
    ("matrix", "balanced", "varying", "per class"),
    ("matrix", "unbalanced", "varying", "full"),
    ("matrix", "balanced", "constant", "full, shared"),
    ("shared", "balanced", "varying", "scalar"),
    ("shared", "unbalanced", "constant", "per class"),
    ("shared", "balanced", "constant", "full"),
    ("shared", "unbalanced", "varying", "full, shared"),
]
# Every value of every factor, where a run takes longer.
FEW = [PAIRS[i] for i in (1, 2, 4, 7, 8, 11, 13, 14)]


@cache
def sde_reference(case: tuple[str, str, str, str], T: float) -> tuple[np.ndarray, np.ndarray]:
    """Moments of the SDE started at MEANS, solved once a case."""
    return make_system(*case).sde_moments(MEANS, T)


def moments_by_class(features: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Class means (replicate, class, feature) and deviations from them, float64, of one time."""
    features = features.astype(float)
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    means = np.add.reduceat(features, starts, axis=1) / counts[:, None]
    return means, features - np.repeat(means, counts, axis=1)


def worst_mean(sample: np.ndarray, expected: np.ndarray, floor: float = 1e-6) -> float:
    """Largest distance of a sample mean over axis 0 from its expectation, in standard errors.

    ``floor`` is the rounding of float32 paths, which counts where a component has no variance.
    """
    error = sample.std(0, ddof=1) / np.sqrt(len(sample)) + floor
    return float((np.abs(sample.mean(0) - expected) / error).max())


def worst_covariance(sample: np.ndarray, mean: np.ndarray, expected: np.ndarray) -> float:
    """The same for the second central moments of rows (replicate, component)."""
    centred = sample - mean.ravel()
    products = centred[:, :, None] * centred[:, None, :]
    return worst_mean(products, expected)


class GivenIncrements(StepIncrements):
    """Increments given beforehand, for runs that share one Brownian path.

    W, U (step, replicate, channel) are increments and space-time integrals, U in units of the step.
    """

    def __init__(self, W: torch.Tensor, U: torch.Tensor):
        self.shape, self.dtype, self.device = W.shape[1:], W.dtype, W.device
        self._W, self._U = W, U

    def __call__(self, ta, tb=None, return_U=False, return_A=False):
        step = round(float(ta))
        return (self._W[step], self._U[step]) if return_U else self._W[step]

    def coarsen(self, factor: int) -> GivenIncrements:
        """The same path seen with steps ``factor`` times as long."""
        steps, *rest = self._W.shape
        if steps % factor:
            raise ValueError(f"factor must divide the {steps} steps; got {factor}.")
        W = self._W.reshape(steps // factor, factor, *rest)
        U = self._U.reshape(steps // factor, factor, *rest)
        before = W.cumsum(1) - W  # the path at the start of every fine step
        return GivenIncrements(W.sum(1), (before + U).sum(1) / factor)
