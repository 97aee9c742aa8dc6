"""The estimator from averages over replicates: unbiased where the model holds, robust where not."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from lesde.analysis.elasticity import fit_elasticity
from tests.analysis.test_elasticity import coverage, make

pytestmark = pytest.mark.filterwarnings("ignore:no (tail|log_slope)_index")


@pytest.mark.parametrize(
    ("kind", "kernel", "counts"),
    [("identity", "decaying", (10, 30, 20)), ("logits", "decaying", (20, 20, 20, 20))],
)
def test_coverage_and_accuracy(kind, kernel, counts):
    """Null: 95% intervals of A and B at the last time cover with probability 0.95.

    150 datasets of 12 replicates, one trial each; 5σ = 5·√(.95·.05/150) = 0.089 below 0.95. The
    estimates are unbiased: their mean is within 5 standard errors of the truth.
    """
    paths, _, A, B = make(kind, kernel, counts, 12, 150, seed=11)
    fit = fit_elasticity(paths, transform=kind, estimator="averages")
    for name, truth in (("A", A), ("B", B)):
        assert coverage(fit, name, truth)[:, -1].mean() >= 0.95 - 0.089
        last = fit[name].values[:, -1]
        assert abs(last.mean() - truth[-1]) <= 5 * last.std() / np.sqrt(150)
        # Stated errors are the scatter of the estimates: 5 standard errors of a ratio of 150 values.
        assert fit[f"{name}_se"].values[:, -1].mean() == pytest.approx(
            last.std(), rel=5 / np.sqrt(300)
        )


def test_jackknife_is_the_fit_without_each_replicate():
    paths, *_ = make("logits", "constant", (10, 10, 10, 10), 5, 1, seed=2)
    paths = paths.isel(dataset=0)
    fit = fit_elasticity(paths, transform="logits", estimator="averages", smoothing=None)
    one_out = [
        fit_elasticity(
            paths.isel(replicate=[s for s in range(5) if s != r]).mean("replicate"),
            transform="logits",
            smoothing=None,
            errors="model",
        ).A.values
        for r in range(5)
    ]
    spread = ((np.array(one_out) - fit.A.values) ** 2).sum(0)
    np.testing.assert_allclose(fit.A_se.values, np.sqrt(4 / 5 * spread), rtol=1e-6, atol=1e-12)
    whole = fit_elasticity(
        paths.mean("replicate"), transform="logits", smoothing=None, errors="model"
    )
    np.testing.assert_allclose(fit.A.values, whole.A.values, rtol=1e-10)


def restoring(replicates: int, seed: int) -> tuple[xr.Dataset, float]:
    """Means that follow an LE-ODE in common, while each replicate's noise is pulled back to it."""
    K, times = 3, np.linspace(0, 2, 21)
    rng = np.random.default_rng(seed)
    start = np.eye(K) - 1 / K + 0.5
    gap, common = 2.0 / K, 0.5 / K  # rates of α = 1.5, β = −0.5: (α−β)/K and (α+2β)/K
    mean = start.mean(0)
    path = np.stack([mean * np.exp(common * t) + (start - mean) * np.exp(gap * t) for t in times])
    noise = np.zeros((replicates, K, K))
    values = []
    for i in range(len(times)):
        values.append(path[i] + noise)
        noise = 0.5 * noise + 0.3 * rng.standard_normal(noise.shape)
    x = np.stack(values, axis=1)
    paths = xr.Dataset(
        {"features": (("replicate", "time", "sample", "feature"), x)},
        {"time": times, "label": ("sample", np.arange(K))},
    )
    return paths, 2.0 * times[-1]


def test_noise_that_is_pulled_back_is_not_taken_for_elasticity():
    """α − β integrates to 4 in what replicates have in common; single replicates say far less."""
    paths, truth = restoring(200, seed=3)
    single = fit_elasticity(paths, smoothing=None)
    averaged = fit_elasticity(paths, smoothing=None, estimator="averages")
    assert float(single.A_minus_B[-1]) < 0.5 * truth
    assert abs(float(averaged.A_minus_B[-1]) - truth) <= 5 * float(averaged.A_minus_B_se[-1])
    assert float(averaged.r_squared_common) > 0.9


def test_a_right_model_explains_what_is_common():
    """Null: the share of common movement explained is 1; 5 of its standard errors."""
    paths, *_ = make("logits", "constant", (20, 20, 20, 20), 16, 1, seed=5)
    fit = fit_elasticity(paths.isel(dataset=0), transform="logits", estimator="averages")
    assert abs(float(fit.r_squared_common) - 1) <= 5 * max(float(fit.r_squared_common_se), 0.01)


def test_refusals():
    paths, *_ = make("identity", "constant", (4, 4), 2, 1, seed=1)
    with pytest.raises(ValueError, match="estimator='averages' needs at least 3 replicates"):
        fit_elasticity(paths.isel(dataset=0), estimator="averages")
    with pytest.raises(ValueError, match="Did you mean 'averages'"):
        fit_elasticity(paths, estimator="average")
    many, *_ = make("identity", "constant", (4, 4), 4, 1, seed=1)
    with pytest.raises(ValueError, match="errors='model' goes with estimator='likelihood'"):
        fit_elasticity(many, estimator="averages", errors="model")
