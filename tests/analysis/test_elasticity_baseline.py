"""`fit_elasticity` against the inversion of ratios of logarithms, on the same paths."""

from __future__ import annotations

import numpy as np
import pytest

from lesde.analysis import fit_elasticity, log_ratio_elasticity
from tests.analysis.test_elasticity_paths import dataset, projections, simulate_means, two_level

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def noisy_paths(kind, noise, seed, replicates=8, n=20):
    """Samples about their class means with the spread σ√t that the LE-SDE gives them."""
    K, times = 4, np.linspace(0, 2, 9)
    rng = np.random.default_rng(seed)
    initial = np.random.default_rng(3).standard_normal((K, K))
    counts = np.full(K, n)
    means = simulate_means(
        two_level(K, lambda t: 2 / (1 + t), lambda t: -0.5 / (1 + t)), projections(kind, K, K),
        counts, initial, times, noise, (replicates,), rng,
    )  # fmt: skip
    paths = dataset(means, times, counts)
    step = noise * np.sqrt(np.diff(times, prepend=0.0))[:, None, None]
    deviation = np.cumsum(step * rng.standard_normal(paths.features.shape), axis=1)
    for k in range(K):
        own = paths.label.values == k
        deviation[:, :, own] -= deviation[:, :, own].mean(2, keepdims=True)
    paths["features"] = paths.features + deviation
    return paths, 2 * np.log1p(times), -0.5 * np.log1p(times)


@pytest.mark.parametrize("kind", ["identity", "logits"])
@pytest.mark.parametrize("noise", [0.1, 0.3, 1.0])
def test_fit_has_lower_error_than_log_ratios(kind, noise):
    """Root mean square errors over 10 datasets and 8 times; for A and B each the fit must win clearly."""
    error = {"fit A": [], "fit B": [], "log A": [], "log B": []}
    dropped = []
    for seed in range(10):
        paths, A, B = noisy_paths(kind, noise, seed)
        fit = fit_elasticity(paths, kind, smoothing=None)
        log = log_ratio_elasticity(paths, kind)
        for name, found in (("fit", fit), ("log", log)):
            error[f"{name} A"].append(np.mean((found.A - A)[1:] ** 2))
            error[f"{name} B"].append(np.mean((found.B - B)[1:] ** 2))
        dropped.append(float(log.dropped[-1]))
    rmse = {name: np.sqrt(np.mean(values)) for name, values in error.items()}
    for name in "AB":
        assert rmse[f"fit {name}"] < 0.7 * rmse[f"log {name}"], rmse
    if noise == 1.0:
        assert np.mean(dropped) > 0.01


@pytest.mark.parametrize("kind", ["identity", "logits"])
def test_log_ratios_are_exact_without_noise(kind):
    """It is a fair baseline: right where it should be right, with nothing dropped."""
    paths, A, B = noisy_paths(kind, 0.0, 0)
    log = log_ratio_elasticity(paths, kind)
    np.testing.assert_allclose(log.A, A, atol=1e-3)
    np.testing.assert_allclose(log.B, B, atol=1e-3)
    assert float(log.dropped.max()) == 0
    assert (log.used > 0).all()


def test_dropped_ratios_are_counted():
    features = np.array([[[[1.0], [3.0]], [[-1.0], [5.0]]]])  # replicate, time, sample, feature
    paths = dataset(features, np.array([0.0, 1.0]))
    log = log_ratio_elasticity(paths)
    # Grand mean 2 → 2; contrasts −1 → −3 and 1 → 3: all ratios are positive.
    assert int(log.used[1]) == 3
    assert float(log.dropped[1]) == 0
    assert float(log.A[1] - log.B[1]) == pytest.approx(2 * np.log(3))
    flipped = dataset(np.array([[[[1.0], [3.0]], [[5.0], [-1.0]]]]), np.array([0.0, 1.0]))
    log = log_ratio_elasticity(flipped)
    assert int(log.used[1]) == 1
    assert float(log.dropped[1]) == pytest.approx(2 / 3)
    assert np.isnan(log.A[1])


def test_refuses_unbalanced_classes():
    means = np.random.default_rng(0).standard_normal((2, 3, 2, 2))
    paths = dataset(means, np.arange(3.0), np.array([2, 3]))
    with pytest.raises(ValueError, match=r"classes of equal size.*\[2, 3\].*fit_elasticity"):
        log_ratio_elasticity(paths)
