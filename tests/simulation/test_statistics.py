"""Statistics kept in place of samples: the same law, at a cost that does not depend on n."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import chi2, ks_2samp, kstest

import lesde
from lesde import LESDE, TwoLevel, moments, simulate
from lesde.paths import reduce_frame
from tests.simulation.systems import MEANS, make_system

TIMES = [0, 0.3, 1.1]
ENGINES = {
    "exact": {"engine": "exact"},
    "euler": {"engine": lesde.TorchSDE(dt=0.05)},
    "srk": {"engine": lesde.TorchSDE(method="srk", dt=0.05)},
    "sgd": {"engine": "sgd", "learning_rate": 0.02},
    "sampling": {"engine": lesde.TorchSDE(noise="sampling"), "learning_rate": 0.1},
}
CASES = [
    ("identity", "balanced", "constant", "scalar"),
    ("logits", "unbalanced", "varying", "full"),
]


def reduced(paths, model):
    """Statistics of the samples of a dataset, by the reduction that recorded features go through."""
    shape = paths.features.shape
    flat = paths.features.values.reshape(-1, *shape[-2:])
    mean, within, reach = reduce_frame(flat, model.counts)
    return (part.reshape(*shape[:-2], *part.shape[1:]) for part in (mean, within, reach))


@pytest.mark.parametrize("run", ["exact", "euler", "srk", "sgd"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case[0])
def test_class_means_are_those_of_the_samples(run, case):
    # Class means have a stream of their own, so one seed gives the same ones either way.
    model = make_system(*case).model
    settings = {**ENGINES[run], "dtype": "float64", "seed": 4}
    samples = simulate(model, TIMES, MEANS, 40, **settings)
    kept = simulate(model, TIMES, MEANS, 40, keep="statistics", **settings)
    mean, within, reach = reduced(samples, model)
    np.testing.assert_allclose(kept["mean"], mean, rtol=0, atol=1e-13)
    if run == "sgd":  # samples are simulated and reduced
        np.testing.assert_allclose(kept["within"], within, rtol=0, atol=1e-13)
        np.testing.assert_allclose(kept["reach"], reach, rtol=0, atol=1e-13)


@pytest.mark.parametrize("run", ["exact", "euler", "sampling"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case[0])
def test_statistics_have_the_law_of_samples(run, case):
    # Two-sample Kolmogorov-Smirnov at 1e-4 of entries, traces and sums, R = 2,000 each, 3 classes at
    # the last time (21 tests); and the covariance of the traces at two times at 5 standard errors.
    model, R = make_system(*case).model, 2000
    settings = {**ENGINES[run], "dtype": "float64"}
    samples = simulate(model, TIMES, MEANS, R, seed=1, **settings)
    kept = simulate(model, TIMES, MEANS, R, seed=2, keep="statistics", **settings)
    mean, within, reach = reduced(samples, model)
    traces = [np.trace(w, axis1=-2, axis2=-1) for w in (within, kept["within"].values)]
    off = [w[..., 0, 1] for w in (within, kept["within"].values)]
    for k in range(3):
        pairs = [
            (mean[:, -1, k, 0], kept["mean"].values[:, -1, k, 0]),
            (traces[0][:, -1, k], traces[1][:, -1, k]),
            (off[0][:, -1, k], off[1][:, -1, k]),
        ]
        for l in range(3):
            if l != k:
                pairs.append((reach[:, -1, k, l], kept["reach"].values[:, -1, k, l]))
        others = [l for l in range(3) if l != k]
        jointly = [r[:, -1, k][:, others] for r in (reach, kept["reach"].values)]
        pairs += [tuple(r.max(1) for r in jointly), tuple(r[:, 0] - r[:, 1] for r in jointly)]
        for ours, other in pairs:
            assert ks_2samp(ours, other).pvalue > 1e-4
        products = [
            (t[:, 1, k] - t[:, 1, k].mean()) * (t[:, 2, k] - t[:, 2, k].mean()) for t in traces
        ]
        error = np.hypot(products[0].std(), products[1].std()) / np.sqrt(R)
        assert abs(products[0].mean() - products[1].mean()) < 5 * error
        own = products[1].std() / np.sqrt(R)
        assert products[1].mean() > 5 * own  # a process, not independent draws


@pytest.mark.parametrize("n", [2, 3, 7, 10**7])
def test_scatter_is_wishart(n):
    # From class means, n within/(σ²t) is Wishart: its trace is χ² with p(n−1) degrees of freedom, its
    # first entry χ² with n−1. R = 3,000; Kolmogorov-Smirnov at 1e-4.
    model = LESDE(TwoLevel(1.0, -0.5), 2, 4, n, noise=0.7)
    paths = simulate(
        model, [0, 0.2, 1.0], np.eye(4)[:2], 3000, keep="statistics", dtype="float64", seed=5
    )
    scaled = paths.within.values[:, -1] * n / 0.49
    for k in range(2):
        trace = np.trace(scaled[:, k], axis1=-2, axis2=-1)
        assert kstest(trace, chi2(4 * (n - 1)).cdf).pvalue > 1e-4
        assert kstest(scaled[:, k, 2, 2], chi2(n - 1).cdf).pvalue > 1e-4
    rank = np.linalg.matrix_rank(paths.within.values[0, -1, 0], hermitian=True)
    assert rank == min(4, n - 1)


def test_memory_does_not_depend_on_the_number_of_samples():
    # 60 million samples: one frame of one replicate would take 720 MB.
    model = LESDE(TwoLevel(2, -1), 3, 3, 20_000_000, noise=0.3)
    for settings in ({"engine": "exact"}, {"engine": lesde.TorchSDE(dt=0.01)}):
        paths = simulate(
            model, [0, 0.5], MEANS, 32, keep="statistics", memory_limit="30 MB", **settings
        )
        expected = 0.09 * 0.5
        spread = paths.within.values[:, 1, :, 0, 0]
        assert abs(spread.mean() - expected) < 5 * expected * np.sqrt(2 / 2e7 / 96) + 1e-7


def test_statistics_of_given_samples_are_streamed():
    system = make_system("identity", "unbalanced", "constant", "scalar")
    start = np.random.default_rng(0).standard_normal((system.model.n_samples, 3))
    for settings in (ENGINES["exact"], ENGINES["sampling"]):
        options = {**settings, "dtype": "float64", "seed": 3}
        samples = simulate(system.model, TIMES, start, 33, **options)
        kept = simulate(system.model, TIMES, start, 33, keep="statistics", **options)
        for name, values in zip(
            ("mean", "within", "reach"), reduced(samples, system.model), strict=True
        ):
            np.testing.assert_allclose(kept[name], values, rtol=0, atol=1e-12)


def test_expected_directions_are_those_of_the_law():
    system = make_system("logits", "unbalanced", "varying", "scalar")
    paths = simulate(system.model, TIMES, MEANS, 4, keep="statistics")
    law = lesde.law(system.model, TIMES, MEANS)["mean"].values
    gap = law[:, 0] - law[:, 2]
    np.testing.assert_allclose(
        paths.direction.values[:, 0, 2],
        gap / np.linalg.norm(gap, axis=-1, keepdims=True),
        atol=1e-12,
    )
    assert "reach_expected" not in simulate(system.model, TIMES, None, 4, keep="statistics")


def test_reach_along_the_expected_gap_is_that_of_the_samples():
    model, R = make_system(*CASES[1]).model, 4000
    kept = simulate(model, TIMES, MEANS, R, keep="statistics", seed=8, dtype="float64")
    samples = simulate(model, TIMES, MEANS, R, seed=9, dtype="float64")
    *_, reach = reduce_frame(
        samples.features.values[:, -1], model.counts, kept.direction.values[-1]
    )
    for k, l in ((0, 1), (1, 0), (2, 1), (0, 2)):
        assert ks_2samp(reach[:, k, l], kept.reach_expected.values[:, -1, k, l]).pvalue > 1e-4


@pytest.mark.parametrize("sde", ["sampling", "modified"])
@pytest.mark.parametrize("keep", ["features", "statistics"])
@pytest.mark.parametrize("noise", ["number", "formula"])
def test_sampling_noise_has_the_moments_of_its_equations(sde, keep, noise):
    # Against the moment equations of the same Euler scheme: means and covariances of the class means,
    # and the expected within-class covariance, at 5 standard errors, R = 4,000 (960 with all samples).
    # At h = 0.1 the covariance is over 1.2 times that of the plain SDE, so leaving the noise out fails.
    h, R = 0.1, 960 if keep == "features" else 4000
    given = 0.3 if noise == "number" else ["0.3*(1+t)", 0.4, "0.2+t/5"]
    model = LESDE(TwoLevel("2/(1+t)", -0.8), 3, 3, [3, 6, 20], "logits", given)
    dt = h if sde == "sampling" else 0.05
    paths = simulate(
        model,
        [0, 0.5, 1.0],
        MEANS,
        R,
        h,
        lesde.TorchSDE(dt=dt, noise=sde),
        keep,
        3,
        dtype="float64",
    )
    expected = moments(model, [0, 0.5, 1.0], MEANS, h, sde, dt)
    if keep == "features":
        mean, within, _ = reduced(paths, model)
    else:
        mean, within = paths["mean"].values, paths["within"].values
    means, target = mean[:, -1].reshape(R, -1), expected["mean"].values[-1].ravel()
    V = expected["covariance"].values[-1].reshape(9, 9)
    assert (np.abs(means.mean(0) - target) < 5 * np.sqrt(np.diag(V) / R)).all()
    centred = means - target
    products = centred[:, :, None] * centred[:, None, :]
    assert (np.abs(products.mean(0) - V) < 5 * products.std(0) / np.sqrt(R)).all()
    spread = within[:, -1]
    error = spread.std(0) / np.sqrt(R)
    assert (np.abs(spread.mean(0) - expected["within"].values[-1]) < 5 * error + 1e-12).all()
    plain = moments(model, [0, 0.5, 1.0], MEANS, h, "plain")["covariance"].values[-1]
    assert np.trace(V) > 1.2 * np.trace(plain.reshape(9, 9))
