"""The estimator from averages over replicates: unbiased where the model holds, robust where not."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from lesde.analysis import fit_elasticity
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
    fit = fit_elasticity(paths, kind, estimator="averages", smoothing=None, tail=False)
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
    whole = fit_elasticity(
        paths.mean("replicate"), transform="logits", smoothing=None, errors="model"
    )
    spread = ((np.array(one_out) - whole.A.values) ** 2).sum(0)
    np.testing.assert_allclose(fit.A_se.values, np.sqrt(4 / 5 * spread), rtol=1e-6, atol=1e-12)
    # The estimate is that of the whole, less the bias of order 1/R that the jackknife sees.
    corrected = 5 * whole.A.values - 4 * np.mean(one_out, axis=0)
    np.testing.assert_allclose(fit.A.values, corrected, rtol=1e-10)
    assert abs(corrected - whole.A.values).max() > 1e-5


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
    with pytest.raises(
        ValueError, match=r"estimator='averages' .* needs at least 3 replicates; paths has 2"
    ):
        fit_elasticity(paths.isel(dataset=0), estimator="averages")
    with pytest.raises(ValueError, match="Did you mean 'averages'"):
        fit_elasticity(paths, estimator="average")
    many, *_ = make("identity", "constant", (4, 4), 4, 1, seed=1)
    with pytest.raises(ValueError, match="errors='model' goes with estimator='likelihood'"):
        fit_elasticity(many, estimator="averages", errors="model")


def noisy_frames(seed: int, noise: float, sets: int = 30, replicates: int = 20) -> xr.Dataset:
    """Class means that follow an LE-ODE, seen with noise of their own at every time, as means of few draws are."""
    times = np.linspace(0, 2, 11)
    start = np.eye(3) - 1 / 3 + 0.5  # rates of α = 1.5, β = −0.5
    grand, apart = start.mean(0), start - start.mean(0)
    path = np.stack([grand * np.exp(0.5 / 3 * t) + apart * np.exp(2 / 3 * t) for t in times])
    shape = (sets, replicates, *path.shape)
    x = path + noise * np.random.default_rng(seed).standard_normal(shape)
    return xr.Dataset(
        {"features": (("dataset", "replicate", "time", "sample", "feature"), x)},
        {"time": times, "label": ("sample", np.arange(3))},
    )


def test_noise_of_each_frame_does_not_bias_the_rates():
    """Null: A(2) = 3 and B(2) = −1 in expectation, within 5 standard errors of 30 data sets.

    The fit of the averages as they are does not pass: α − β is too small there, by more than 5 standard errors.
    """
    paths = noisy_frames(5, 1.0)
    options = {"smoothing": None, "tail": False}
    fit = fit_elasticity(paths, "identity", estimator="averages", **options)
    for name, truth in (("A", 3.0), ("B", -1.0), ("A_minus_B", 4.0)):
        last = fit[name].values[:, -1]
        assert abs(last.mean() - truth) <= 5 * last.std(ddof=1) / np.sqrt(30), name
    whole = fit_elasticity(paths.mean("replicate"), "identity", errors="model", **options)
    last = whole.A_minus_B.values[:, -1]
    assert last.mean() + 5 * last.std(ddof=1) / np.sqrt(30) < 4.0


@pytest.mark.filterwarnings("ignore:the paths do not determine")
def test_correction_stops_where_a_frame_is_mostly_noise():
    """No entry of the rates moves by more than half its standard error from the uncorrected fit."""
    paths = noisy_frames(6, 8.0, sets=4, replicates=12)
    fit = fit_elasticity(paths, "identity", estimator="averages", smoothing=None, tail=False)
    whole = fit_elasticity(
        paths.mean("replicate"), "identity", smoothing=None, errors="model", tail=False
    )
    for name in ("alpha", "beta", "alpha_minus_beta"):
        share = abs(fit[name] - whole[name]) / fit[f"{name}_se"]
        assert float(share.max()) <= 0.5 + 1e-9
    np.testing.assert_allclose(fit.alpha - fit.beta, fit.alpha_minus_beta, atol=1e-9)
    assert float(share.max()) > 0.4
