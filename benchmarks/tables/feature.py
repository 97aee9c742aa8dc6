"""Kernels of the features themselves: every sample acts on every other."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np

import lesde
from benchmarks.timing import Row, Section, Skip

TITLE = "Kernels that see the features"
ABOUT = """\
Million pairs of samples a second, replicates × N² / seconds, for one evaluation of the drift
(1/N) Σ_j κ_ij x_j with κ = (1 within a class, −0.5 between) · exp(−r²/2), p = 10, 4 classes, float32. *Peak* is how
far the process' memory rose meanwhile, with the result. All rows agree with float64 sums, taken at 40 samples, to
1e-4 of the largest entry, or the row fails."""
NOTES = {
    "naive torch": "differences of all pairs, (N, N, p), then a sum.",
    "torch, matrix products": "r² from inner products, (N, N) matrices, then a matrix product.",
    "numba loop": "one compiled double loop, parallel over samples.",
    "ours, drift": "the drift of a `lesde.FeatureKernel` model, in tiles.",
    "ours, simulate": "steps of `lesde.simulate(engine='torchsde')` with that model, 32 replicates, dataset "
    "included; not at N = 20,000, where a block of 32 replicates takes minutes.",
}
SAME, OTHER = 1.0, -0.5
STRENGTH = f"({SAME - OTHER}*s + ({OTHER}))*exp(-r2/2)"
K, P = 4, 10
REPLICATES, DT = 32, 0.01
LARGEST = 8e9
"""Bytes the naive rows may take, where the machine has twice as much."""


def _allowed() -> float:
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not on every system
        return LARGEST
    return min(LARGEST, memory / 2)


def _features(R: int, N: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    labels = np.repeat(np.arange(K), N // K)
    centres = 0.5 * rng.normal(size=(K, P))
    return (centres[labels] + 0.3 * rng.normal(size=(R, N, P))).astype("f4"), labels


def reference(x: np.ndarray, labels: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The drift of some samples of each replicate, by float64 sums."""
    x = x.astype(np.float64)
    result = np.empty((len(x), len(rows), x.shape[-1]))
    for r, i in np.ndindex(result.shape[:2]):
        r2 = ((x[r, rows[i]] - x[r]) ** 2).sum(-1)
        level = np.where(labels == labels[rows[i]], SAME, OTHER)
        result[r, i] = (level * np.exp(-r2 / 2)) @ x[r] / x.shape[1]
    return result


def naive(x: np.ndarray, labels: np.ndarray, products: bool) -> Callable[[], Any]:
    """The drift with all pairs at once, one replicate after the other."""
    import torch

    N, p = x.shape[1:]
    need = 4.0 * N * N * (5 if products else 2 * p + 3)
    if need > _allowed():
        raise Skip(f"needs about {need / 1e9:.0f} GB for all pairs at once")
    X, label = torch.from_numpy(x), torch.from_numpy(labels)
    level = torch.where(label[:, None] == label, SAME, OTHER)

    def squares(rows: Any) -> Any:
        if not products:
            return ((rows[:, None] - rows) ** 2).sum(-1)
        norms = (rows**2).sum(-1)
        return norms[:, None] + norms - 2 * rows @ rows.T

    def run() -> Any:
        return torch.stack([(level * torch.exp(-squares(rows) / 2)) @ rows / N for rows in X])

    return run


def _numba(x: np.ndarray, labels: np.ndarray) -> Callable[[], Any]:
    from benchmarks.peers.numba_loop import numba_feature_drift

    return numba_feature_drift(x, labels, SAME, OTHER)


def model(N: int) -> lesde.LESDE:
    """The system with a kernel of features."""
    kernel = lesde.FeatureKernel(STRENGTH)
    return lesde.LESDE(kernel, n_classes=K, n_features=P, n_per_class=N // K, noise=0.1)


def drift(x: np.ndarray, device: str = "cpu") -> Callable[[], Any]:
    """The package's own drift of samples (replicate, sample, feature)."""
    import torch

    from lesde.processes.pairs import PairInteraction

    chosen = torch.device(device)
    coefficients = lesde.derive(model(x.shape[1])).coefficients()
    interaction = PairInteraction(coefficients, torch.float32, chosen)
    X = torch.from_numpy(x).to(chosen)
    return lambda: interaction.drift(X, 0.0)


def simulate(N: int, steps: int, device: str = "cpu") -> Callable[[], Any]:
    """Some steps of the engine."""
    x, _ = _features(1, N)
    system = model(N)
    return lambda: lesde.simulate(
        system,
        [0.0, steps * DT],
        initial=x[0],
        replicates=REPLICATES,
        engine=lesde.TorchSDE(dt=DT),
        device=device,
    )


def rows(R: int, N: int) -> list[Row]:
    """All methods at one size."""
    x, labels = _features(R, N)
    some = np.linspace(0, N - 1, 40).astype(int)

    def check(result: Any) -> dict[str, float]:
        wanted = reference(x[:1], labels, some)
        found = np.asarray(result, dtype=np.float64)[:1, some]
        error = float(np.abs(found - wanted).max() / np.abs(wanted).max())
        assert error < 1e-4, f"off by {error:.1e} of the largest entry"
        return {"error": float(f"{error:.1e}")}

    pairs = R * N * N / 1e6
    both = (1, 2)
    result = [
        Row("naive torch", lambda: naive(x, labels, False), pairs, check, both),
        Row("torch, matrix products", lambda: naive(x, labels, True), pairs, check, both),
        Row("numba loop", lambda: _numba(x, labels), pairs, check, both),
        Row("ours, drift", lambda: drift(x), pairs, check, both),
    ]
    if N <= 2000:
        steps = 5 if N < 1000 else 1
        work = steps * REPLICATES * N * N / 1e6
        result.append(Row("ours, simulate", lambda: simulate(N, steps), work))
    return result


def sections(quick: bool) -> list[Section]:
    result = []
    for N, R in [(300, 32), (2000, 4), (20_000, 1)]:
        if quick and N > 2000:
            continue
        title = f"N = {N:,}, {R} replicate{'s' if R > 1 else ''}"
        references = {"naive torch": "× naive torch", "torch, matrix products": "× matrix products"}
        work = {"n_samples": N, "n_features": P, "replicates": R}
        result.append(Section(title, rows(R, N), "million pairs/s", references, work))
    return result


MEMORY = True
