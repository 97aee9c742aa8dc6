"""Collapse against the learning rate: the process, the intervals, the range, and networks."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pytest
import xarray as xr
from scipy.stats import t as student

mpl.use("Agg")
import matplotlib.pyplot as plt

import lesde
from lesde.model.transforms import make_transform
from lesde.studies import compare_learning_rates, learning_rate_experiment
from lesde.studies.fitted_kernels import (
    Kernels,
    average_kernels,
    draw_kernels,
    frames_of_kernels,
)
from lesde.studies.learning_rates import (
    limits,
    longest_ranges,
    predict,
    quantities,
    whole_errors,
)

K, N_PER_CLASS = 4, 8
RATES = [0.01, 0.02, 0.04, 0.08]
TIMES = np.arange(9) * 0.4
ALPHA, BETA, SIGMA = 1.2, -0.8, 0.15


def truth_paths(seed: int, rates: list[float] = RATES, replicates: int = 32) -> xr.Dataset:
    """Paths of the discrete L-model with one kernel at every learning rate, from one start each.

    The classes have different scores in all replicates, so that the average class means tell both rates.
    """
    model = lesde.LESDE(
        lesde.TwoLevel(ALPHA, BETA), K, K, N_PER_CLASS, transform="logits", noise=SIGMA
    )
    rng = np.random.default_rng(seed)
    means = np.diag([2.5, 2.0, 1.5, 0.5]) + rng.normal(0, 0.2, (replicates, K, K))
    samples = np.repeat(means, N_PER_CLASS, axis=1)
    samples += rng.normal(0, 0.4, samples.shape)
    return lesde.simulate(
        model, TIMES, samples, replicates, learning_rate=rates, engine="sgd", seed=seed
    )


@pytest.fixture(scope="module")
def truth() -> xr.Dataset:
    return truth_paths(1)


@pytest.fixture(scope="module")
def compared(truth: xr.Dataset) -> xr.Dataset:
    return compare_learning_rates(truth, draws=12, transforms="logits", confidence=0.999)


def test_process_has_the_moments_of_the_discrete_process() -> None:
    """Null: means and covariances of class means are those of `lesde.moments` (exact), for two kernels at once.

    2,000 paths a kernel; the standard error of each entry from the paths, tolerance 5 of the largest.
    The spread within a class has the expectation (1 − 1/n) σ² t above that of the start.
    """
    rng = np.random.default_rng(3)
    h, iterations, R = 0.05, np.array([0, 7, 20]), 2000
    start = np.repeat(np.eye(K) + rng.normal(0, 0.2, (K, K)), N_PER_CLASS, axis=0)
    alphas, betas = np.array([[1.0, 0.5], [2.0, -0.3]]), np.array([[-0.5, 0.2], [0.3, -1.0]])
    S = np.linalg.cholesky(0.05 * np.eye(K) + 0.02)
    kernels = Kernels(alphas, betas, np.broadcast_to(S, (2, 2, K, K)))
    transform, counts = make_transform("logits", K, K), np.full(K, N_PER_CLASS)
    frames = frames_of_kernels(
        kernels, transform, np.broadcast_to(start, (R, *start.shape)), counts, iterations, h, rng
    )
    last = list(frames)[-1]
    edges = h * iterations
    for b in range(2):
        rates = [
            lambda t, v=v: np.where(np.asarray(t) < edges[1] - 1e-9, v[0], v[1])
            for v in (alphas[b], betas[b])
        ]
        model = lesde.LESDE(lesde.TwoLevel(*rates), K, K, N_PER_CLASS, transform="logits", noise=S)
        exact = lesde.moments(model, edges, start, h).isel(time=-1)
        means = last[b].reshape(R, K, N_PER_CLASS, K).mean(2).reshape(R, -1)
        expected = exact["mean"].transpose("class", "feature").values.ravel()
        error = means.std(0, ddof=1) / np.sqrt(R)
        assert (np.abs(means.mean(0) - expected) < 5 * error).all()
        away = (means - expected)[:, :, None] * (means - expected)[:, None, :]
        order = ("class", "feature", "class_", "feature_")
        covariance = exact["covariance"].transpose(*order).values.reshape(K * K, K * K)
        error = away.std(0, ddof=1) / np.sqrt(R)
        assert (np.abs(away.mean(0) - covariance) < 5 * error.max()).all()
        own = last[b].reshape(R, K, N_PER_CLASS, K)
        own = own - own.mean(2, keepdims=True)
        within = np.einsum("rkia,rkib->rab", own, own) / (K * (N_PER_CLASS - 1))
        error = within.std(0, ddof=1) / np.sqrt(R)
        assert (np.abs(within.mean(0) - S @ S.T * edges[-1]) < 5 * error).all()


def test_kernel_of_the_networks_and_of_their_resamples(truth: xr.Dataset) -> None:
    """Null: ∫(α − β) of the truth; 16 fitted replicates, tolerance 5 standard errors of the draws.

    The scatter of the draws is the jackknife's standard error of the integral within a factor of 1.5: 50 draws know it to
    10 %, and smoothing takes a little of it.
    """
    fitted = truth.isel(replicate=slice(16), learning_rate=2)
    counts = np.full(K, N_PER_CLASS)
    weights = np.random.default_rng(0).multinomial(16, np.full(16, 1 / 16), size=50) / 16
    kernels = draw_kernels(fitted, counts, "logits", weights, "covariance")
    width = np.diff(TIMES)
    total = (kernels.alpha - kernels.beta) @ width
    assert abs(total[0] - (ALPHA - BETA) * width.sum()) < 5 * total[1:].std()
    fit = lesde.fit_elasticity(
        fitted, transform="logits", estimator="averages", tail=False, smoothing=None
    )
    ratio = total[1:].std() / float(fit["A_minus_B_se"][-1])
    assert 1 / 1.5 < ratio < 1.5
    # 16 replicates × 28 degrees of freedom on a start of 0.4²: about 25 % of σ²t a variance, at 5 errors
    # of which nothing would be tested; over the 4 features 5 errors are 40 %.
    grown = np.einsum("jab,jab,j->", kernels.noise[0], kernels.noise[0], width) / K
    assert grown == pytest.approx(SIGMA**2 * width.sum(), rel=0.6)


def test_constant_spread_is_one_number(truth: xr.Dataset) -> None:
    weights, counts = np.full((4, 32), 1 / 32), np.full(K, N_PER_CLASS)
    kernels = draw_kernels(truth.isel(learning_rate=0), counts, "logits", weights, "constant")
    square = kernels.noise @ kernels.noise.swapaxes(-1, -2)
    assert np.allclose(square, square[0, 0, 0, 0] * np.eye(K))
    # 32 × 28 × 4 values of a growth of σ²t on a start of 0.4²: about 8 % at the end.
    assert square[0, 0, 0, 0] == pytest.approx(SIGMA**2, rel=0.4)


def test_mean_kernel_weighs_by_precision() -> None:
    def scattered(value: float, scatter: float) -> Kernels:
        draws = value + scatter * np.array([0.0, 1, -1, 1, -1])[:, None] * np.ones(3)
        eye = np.broadcast_to(np.eye(2), (5, 3, 2, 2))
        return Kernels(draws, np.zeros((5, 3)), eye)

    mean = average_kernels([scattered(1.0, 0.1), scattered(2.0, 0.2)])
    assert mean.alpha[0] == pytest.approx((4 * 1.0 + 1 * 2.0) / 5)
    assert np.allclose(mean.noise @ mean.noise.swapaxes(-1, -2), np.eye(2))


def test_range_is_everything_where_the_model_is_true(compared: xr.Dataset) -> None:
    """Null: each of 32 intervals of 99.9 % holds the networks; that one does not has a chance of 3 %."""
    assert compared.inside.all()
    assert (compared.range_lowest == RATES[0]).all()
    assert (compared.range_highest == RATES[-1]).all()


@pytest.mark.slow
def test_intervals_cover_at_their_level() -> None:
    """Null: the 95 % interval holds the networks' value in 95 % of experiments, where the model is true.

    20 experiments with their own paths, 2 learning rates, 2 metrics, values and rates: 160 intervals a kernel. Those of one experiment
    share chance, so the standard error is that of 20 independent ones at the least; tolerance 5 of it on the low side is no
    test, so 88 % is asked for. Wide intervals would cover too: distances in units of the model's scatter have standard
    deviation 1 in theory, known to 16 % from 20 experiments; resampling 16 networks makes the scatter too large by up to
    1.6 where the averages tell little.
    """
    covered, distances = [], []
    for seed in range(20):
        paths = truth_paths(100 + seed, [0.02, 0.08])
        found = compare_learning_rates(paths, draws=24, transforms="logits", seed=seed)
        covered.append(found.inside.mean(("model", "quantity", "metric", "learning_rate")))
        half = (found.predicted_upper - found.predicted) / student.ppf(0.975, 15)
        distances.append(((found.network - found.predicted) / half).sel(quantity="rate").values)
    assert (np.mean(covered, axis=0) > 0.88).all(), np.mean(covered, axis=0)
    scatter = np.sqrt((np.array(distances) ** 2).mean(axis=(0, 1, 3, 4)))
    assert (scatter > 0.4).all(), scatter
    assert (scatter < 1.5).all(), scatter


def test_range_ends_where_the_data_leave_the_model(truth: xr.Dataset) -> None:
    """Above h = 0.02 the deviations from the class means are pulled back, which no kernel does."""
    label = truth["label"]
    means = truth["features"].groupby(label).mean("sample").sel(label=label)
    means = means.drop_vars("label")
    pull = xr.where(truth["learning_rate"] > 0.02, np.exp(-0.8 * truth["time"]), 1.0)
    broken = truth.assign(features=means + (truth["features"] - means) * pull)
    broken["features"] = broken["features"].transpose(*truth["features"].dims)
    found = compare_learning_rates(broken, draws=12, transforms="logits", confidence=0.999)
    nc1 = found.sel(model="L-model", kernel="the same rate", metric="nc1")
    assert (nc1.range_lowest == RATES[0]).all()
    assert (nc1.range_highest == RATES[1]).all()
    nc2 = found.sel(model="L-model", kernel="the same rate", metric="nc2_etf")
    assert (nc2.range_highest == RATES[-1]).all()
    assert float((nc1.network / nc1.predicted).sel(quantity="value", learning_rate=0.08)) < 0.5


def test_numbers_are_those_of_the_paths(truth: xr.Dataset, compared: xr.Dataset) -> None:
    others = truth.isel(replicate=slice(16, None))
    nc = lesde.neural_collapse(others, ["nc1", "nc2_etf"])
    for metric in ("nc1", "nc2_etf"):
        logs = np.log(nc[metric].transpose("learning_rate", "replicate", "time").values)
        value = compared.network.sel(quantity="value", metric=metric)
        assert np.allclose(value, np.exp(logs[..., -1].mean(1)))
        slopes = -np.polyfit(TIMES[1:], logs[..., 1:].mean(1).T, 1)[0]
        rate = compared.network.sel(quantity="rate", metric=metric)
        assert np.allclose(rate, slopes)
    path = compared.predicted_path.sel(model="L-model")
    assert np.allclose(
        path.isel(time=-1), compared.predicted.sel(model="L-model", quantity="value")
    )
    # The model starts where the networks are.
    start = compared.network_path.isel(time=0)
    assert np.allclose(path.isel(time=0), start, rtol=1e-6)


def test_result_does_not_depend_on_the_order_of_samples_or_rates(truth: xr.Dataset) -> None:
    small = truth.isel(replicate=slice(8), learning_rate=slice(2), time=slice(5))
    rng = np.random.default_rng(0)
    mixed = small.isel(sample=rng.permutation(small.sizes["sample"]), learning_rate=[1, 0])
    a, b = (compare_learning_rates(p, draws=4, transforms="identity") for p in (small, mixed))
    xr.testing.assert_allclose(a[["network"]], b[["network"]])
    assert (a.learning_rate == b.learning_rate).all()


@pytest.mark.filterwarnings("error")
def test_samples_may_start_at_their_class_means() -> None:
    """NC1 is 0 there, which has no logarithm; rates are those of the later times."""
    model = lesde.LESDE(
        lesde.TwoLevel(ALPHA, BETA), K, K, N_PER_CLASS, transform="logits", noise=SIGMA
    )
    rng = np.random.default_rng(0)
    means = 1.5 * np.eye(K) + rng.normal(0, 0.3, (K, K))
    paths = lesde.simulate(model, TIMES, means, 8, learning_rate=[0.04, 0.08], engine="sgd")
    found = compare_learning_rates(paths, draws=6, transforms="logits")
    assert (found.network_path.sel(metric="nc1").isel(time=0) == 0).all()
    assert np.isfinite(found.predicted).all()
    assert np.isfinite(found.network).all()


def test_limits_are_those_of_student() -> None:
    values = xr.Dataset({"x": ("draw", [1.0, 2.0, 3.0])})
    mean, low, high = (float(each.x) for each in limits(values, "draw", 0.95, 2, True))
    assert mean == 2.0
    assert (low, high) == pytest.approx((2 - 4.302653 / np.sqrt(3), 2 + 4.302653 / np.sqrt(3)))
    next_one = float(limits(values, "draw", 0.95, 2, False)[2].x)
    assert next_one == pytest.approx(2 + 4.302653 * np.sqrt(4 / 3))
    assert all(
        np.isnan(each.x) for each in limits(values.where(values > 1), "draw", 0.95, 1, False)
    )


def test_the_range_is_the_longest_unbroken_run(compared: xr.Dataset) -> None:
    for inside, first, last in (
        ([True, False, True, True], RATES[2], RATES[3]),
        ([True, False, True, False], RATES[0], RATES[0]),
        ([False] * 4, np.nan, np.nan),
    ):
        broken = compared.copy(deep=True)
        broken["inside"][:] = inside
        found = longest_ranges(broken)
        np.testing.assert_array_equal(np.unique(found.range_lowest), [first])
        np.testing.assert_array_equal(np.unique(found.range_highest), [last])


def test_a_model_that_diverges_holds_nothing(truth: xr.Dataset) -> None:
    paths = truth.isel(learning_rate=0, replicate=slice(8))
    n = len(TIMES) - 1
    wild = Kernels(
        np.full((5, n), 1e60), np.zeros((5, n)), np.broadcast_to(np.eye(K), (5, n, K, K))
    )
    found = predict(paths, wild, "logits", np.full(K, N_PER_CLASS), np.random.SeedSequence(0))
    assert np.isfinite(found.path.isel(time=0)).all()
    assert np.isnan(found.path.isel(time=-1)).all()
    assert np.isnan(found.rate).all()
    wide = quantities("predicted", limits(found, "draw", 0.95, 7, False))
    assert np.isnan(wide.predicted_upper).all()


def test_errors_say_what_is_needed(truth: xr.Dataset) -> None:
    cases = [
        (dict(paths=truth.drop_vars("iteration")), "iteration"),
        (dict(paths=truth.isel(replicate=slice(6))), "'replicate': 8.* got .*'replicate': 6"),
        (
            dict(paths=truth.isel(learning_rate=[0])),
            "'learning_rate': 2.* got .*'learning_rate': 1",
        ),
        (dict(paths=truth, start=2.5), "at least .*'time': 4"),
        (dict(paths=truth, spread="wide"), "spread must be one of"),
        (dict(paths=truth, transforms=[]), "transforms must be of"),
        (
            dict(paths=truth.isel(feature=slice(3)), transforms="logits"),
            "with one feature per class",
        ),
        (dict(paths=truth.isel(learning_rate=0)), "dimensions"),
    ]
    for arguments, words in cases:
        with pytest.raises(ValueError, match=words):
            compare_learning_rates(**arguments)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def experiment():
    return learning_rate_experiment(
        (0.02, 0.04, 0.08),
        replicates=8,
        total_time=6.4,
        train_per_class=20,
        probe_per_class=8,
        widths=(8,),
        start=0.8,
        saved_times=10,
        draws=6,
    )


def test_networks_from_training_to_comparison(experiment) -> None:
    found = experiment.comparison
    assert dict(found.inside.sizes) == {
        "model": 2, "kernel": 2, "quantity": 2, "metric": 2, "learning_rate": 3,
    }  # fmt: skip
    assert experiment.penultimate.sizes["feature"] == 8
    assert found.attrs["fitted_replicates"] == found.attrs["predicted_replicates"] == 4
    assert np.isfinite(found.predicted).all()
    assert (found.predicted_lower <= found.predicted).all()
    assert (found.network_lower.sel(quantity="value") > 0).all()
    assert (found.network_path.isel(time=0) > found.network_path.isel(time=-1)).all()


def test_network_features_of_any_width_go_in(experiment) -> None:
    """The last hidden layer has no L-model; the result says so by having only the I-model."""
    found = compare_learning_rates(experiment.penultimate, start=0.8, draws=4)
    assert list(found.model.values) == ["I-model"]


@pytest.mark.filterwarnings("error")
def test_figure_shows_points_bands_and_range(compared: xr.Dataset) -> None:
    axes = lesde.plot.learning_rate_range(compared)
    assert axes.shape == (2, 2)
    for q in range(2):
        for m in range(2):
            points = axes[q, m].containers[0].lines[0].get_xydata()
            assert np.allclose(points[:, 1], compared.network[q, m])
            low, high = axes[q, m].get_ylim()
            assert low < points[:, 1].min()
            assert high > points[:, 1].max()
    axes[0, 0].figure.canvas.draw()
    plt.close(axes[0, 0].figure)


@pytest.mark.filterwarnings("error")
def test_figure_without_a_range_and_with_an_unknown_prediction(compared: xr.Dataset) -> None:
    none = compared.copy(deep=True)
    none["inside"][:] = False
    none["range_lowest"][:] = np.nan
    none["range_highest"][:] = np.nan
    for name in ("predicted", "predicted_lower", "predicted_upper"):
        none[name][..., -1] = np.nan
    axes = lesde.plot.learning_rate_range(none, kernel="the other rates")
    assert len(axes[0, 0].containers[0].lines[0].get_xydata()) == 0  # no filled point
    axes[0, 0].figure.canvas.draw()
    plt.close(axes[0, 0].figure)
    with pytest.raises(ValueError, match="kernel must be one of"):
        lesde.plot.learning_rate_range(compared, kernel="mine")
    with pytest.raises(ValueError, match="dimension 'seed'"):
        lesde.plot.learning_rate_range(compared.expand_dims(seed=2))


def test_the_preferred_model_predicts_the_held_out_networks_better(truth: xr.Dataset) -> None:
    """The paths are of the L-model. An I-model explains most of each step of them, and not where they go."""
    both = compare_learning_rates(truth.isel(learning_rate=[0, 2]), draws=4)
    error = both["log_error"].mean("learning_rate")
    assert both.attrs["preferred"] == "L-model"
    assert float(error.sel(model="L-model")) < 0.5 * float(error.sel(model="I-model"))
    one = both.isel(learning_rate=0).sel(model="I-model")
    apart = np.log(one["network_path"] / one["predicted_path"].sel(kernel="the same rate"))
    assert float(one["log_error"]) == pytest.approx(float(np.sqrt((apart.values**2).mean())))


def test_a_model_that_diverges_is_not_preferred() -> None:
    errors = xr.Dataset(
        {"log_error": (("model", "learning_rate"), [[0.9, 1.0], [0.1, np.nan]])},
        {"model": ["I-model", "L-model"], "learning_rate": [0.1, 0.2]},
    )
    found = whole_errors(errors)
    assert list(found.index) == ["I-model", "L-model"]
    assert found.diverges.tolist() == [0, 1]
    assert found.error.tolist() == [0.9, 0.1]
    neither = whole_errors(errors * np.nan)
    assert neither.diverges.tolist() == [2, 2]
    assert neither.error.isna().all()
