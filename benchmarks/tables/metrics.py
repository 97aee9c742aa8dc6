"""Neural-collapse metrics of many frames, against a loop with pseudo-inverses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import xarray as xr

import lesde
from benchmarks.timing import Row, Section

TITLE = "Neural-collapse metrics"
ABOUT = """\
Milliseconds for all frames. The loop takes one frame at a time, forms Σ_W and Σ_B (both p×p) and
`numpy.linalg.pinv(Σ_B)`, as the papers write NC1; the other metrics it takes from their definitions with numpy. Both give
the same numbers to a relative 1e-8, or the row fails."""
NOTES = {
    "loop, nc1": "per frame, tr(Σ_W Σ_B⁺)/K by the pseudo-inverse.",
    "loop, all": "per frame, all six metrics that need no classifier.",
    "ours, nc1": '`lesde.neural_collapse(paths, metrics=["nc1"])`.',
    "ours, all": "`lesde.neural_collapse(paths)`.",
}
TOLERANCE = 1e-8
# Below this share of the largest eigenvalue an eigenvalue of Σ_B is rounding: its rank is K−1.
CUT = 1e-10


def frames(K: int, n: int, p: int, count: int) -> xr.Dataset:
    """Random class means with noise about them, in float32 as simulations and recorders keep them."""
    rng = np.random.default_rng(0)
    means = rng.normal(size=(count, K, 1, p))
    values = means + 0.3 * rng.normal(size=(count, K, n, p))
    return xr.Dataset(
        {"features": (("time", "sample", "feature"), values.reshape(count, K * n, p).astype("f4"))},
        coords={"label": ("sample", np.repeat(np.arange(K), n)), "time": np.arange(count)},
    )


def _moments(x: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Class means, centred means, deviations from the class means."""
    K = labels.max() + 1
    means = np.stack([x[labels == k].mean(0) for k in range(K)])
    return means, means - means.mean(0), x - means[labels]


def _nc1(centred: np.ndarray, away: np.ndarray) -> float:
    K = len(centred)
    within = away.T @ away / len(away)
    between = centred.T @ centred / K
    return float(np.trace(within @ np.linalg.pinv(between, rcond=CUT)) / K)


def loop_nc1(values: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """NC1 of each frame (frame, sample, feature)."""
    result = []
    for x in values.astype(np.float64):
        _, centred, away = _moments(x, labels)
        result.append(_nc1(centred, away))
    return {"nc1": np.array(result)}


def loop_all(values: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """All metrics of each frame, by their definitions."""
    K = labels.max() + 1
    target = (np.eye(K) - 1 / K) / np.sqrt(K - 1)
    k, l = np.triu_indices(K, 1)
    table: dict[str, list[float]] = {}
    for x in values.astype(np.float64):
        means, centred, away = _moments(x, labels)
        variance = np.array([(away[labels == c] ** 2).sum(1).mean() for c in range(K)])
        gram = centred @ centred.T
        norms = np.linalg.norm(centred, axis=1)
        gaps = ((means[k] - means[l]) ** 2).sum(1)
        found = {
            "nc1": _nc1(centred, away),
            "nc1_trace": (away**2).sum() / len(x) / ((centred**2).sum() / K),
            "nc1_cdnv": ((variance[k] + variance[l]) / (2 * gaps)).mean(),
            "nc2_etf": np.linalg.norm(gram / np.linalg.norm(gram) - target),
            "nc2_norm_cv": norms.std() / norms.mean(),
            "nc2_angle_std": (gram[k, l] / (norms[k] * norms[l])).std(),
        }
        for name, value in found.items():
            table.setdefault(name, []).append(float(value))
    return {name: np.array(column) for name, column in table.items()}


def rows(paths: xr.Dataset) -> list[Row]:
    """The loop and ours on one dataset."""
    values, labels = paths.features.values, paths.label.values

    def agree(names: list[str], loop: Callable[..., dict[str, np.ndarray]]) -> Callable[[Any], Any]:
        def check(result: Any) -> dict[str, float]:
            wanted = loop(values, labels)
            worst = {n: np.abs(np.asarray(result[n]) / wanted[n] - 1).max() for n in names}
            assert max(worst.values()) < TOLERANCE, f"off by {worst}"
            return {n: float(f"{w:.1e}") for n, w in worst.items()}

        return check

    everything = ["nc1", "nc1_trace", "nc1_cdnv", "nc2_etf", "nc2_norm_cv", "nc2_angle_std"]
    both = (1, 2)
    return [
        Row("loop, nc1", lambda: lambda: loop_nc1(values, labels), 1, None, both),
        Row("loop, all", lambda: lambda: loop_all(values, labels), 1, None, both),
        Row(
            "ours, nc1",
            lambda: lambda: lesde.neural_collapse(paths, metrics=["nc1"]),
            1,
            agree(["nc1"], loop_nc1),
        ),
        Row(
            "ours, all",
            lambda: lambda: lesde.neural_collapse(paths),
            1,
            agree(everything, loop_all),
        ),
    ]


def sections(quick: bool) -> list[Section]:
    references = {"loop, nc1": "× loop, nc1", "loop, all": "× loop, all"}
    result = []
    for K, n, p, count in [(3, 100, 3, 500), (10, 1000, 512, 3)]:
        if quick:
            count, n = max(2, count // 10), min(n, 200)
        title = f"K = {K}, n = {n:,}, p = {p}, {count} frames"
        work = {"n_classes": K, "n_per_class": n, "n_features": p, "frames": count}
        result.append(Section(title, rows(frames(K, n, p, count)), "ms", references, work))
    return result
