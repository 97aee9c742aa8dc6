"""Accuracy, coverage and edges of `fit_elasticity`, against simulators that share no code with it."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

import lesde
from lesde.analysis import fit_elasticity
from tests.analysis.test_elasticity_paths import (
    dataset,
    projections,
    sgd_means,
    simulate_means,
    two_level,
)

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

KERNELS = {
    "constant": (
        lambda t: 1.5 + 0 * t,
        lambda t: -0.5 + 0 * t,
        lambda t: 1.5 * t,
        lambda t: -0.5 * t,
    ),
    "decaying": (
        lambda t: 2 / (1 + t),
        lambda t: -0.5 / (1 + t) ** 2,
        lambda t: 2 * np.log1p(t),
        lambda t: -0.5 * t / (1 + t),
    ),
}
# Uniform label noise 0.3 with K = 4 on constant (1.5, −0.5): E Q′ by hand.
_WRONG = 0.3
_NOISY = (1.5 * (1 - _WRONG) - 0.5 * _WRONG, -0.5 * (1 - _WRONG / 3) + 1.5 * _WRONG / 3)
KERNELS["label noise"] = (
    lambda t: _NOISY[0] + 0 * t,
    lambda t: _NOISY[1] + 0 * t,
    lambda t: _NOISY[0] * t,
    lambda t: _NOISY[1] * t,
)


def make(kind, kernel, counts, replicates, datasets, seed, noise=1.0, times=None, spread=0.0):
    K = len(counts)
    alpha, beta, A, B = KERNELS[kernel]
    times = np.linspace(0, 3, 13) if times is None else times
    rng = np.random.default_rng(seed)
    initial = np.random.default_rng(5).standard_normal((K, K))
    means = simulate_means(
        two_level(K, alpha, beta), projections(kind, K, K), np.asarray(counts), initial, times, noise,
        (datasets, replicates), rng,
    )  # fmt: skip
    paths = dataset(
        means, times, np.asarray(counts), rng if spread else None, spread, ("dataset", "replicate")
    )
    return paths, times, A(times), B(times)


def coverage(fit, name, truth):
    inside = (fit[f"{name}_lower"] <= truth) & (truth <= fit[f"{name}_upper"])
    return inside.values


@pytest.mark.parametrize(
    ("kind", "kernel", "counts"),
    [
        ("identity", "constant", (20, 20, 20, 20)),
        ("identity", "decaying", (10, 30, 20)),
        ("logits", "decaying", (20, 20, 20, 20)),
        ("logits", "label noise", (12, 24, 12, 36)),
    ],
)
def test_coverage_of_integrals_and_rates(kind, kernel, counts):
    """Null: 95% intervals of A, B and raw α, β cover the truth with probability 0.95.

    200 datasets of 8 replicates. A and B at the last time: one trial a dataset, within 5σ of 0.95
    (σ = √(.95·.05/200) = 0.015). Raw rates: errors of intervals are uncorrelated, so 200·12 trials are
    allowed the same 5σ of half as many. Estimates are unbiased: mean error within 5 of its standard error.
    """
    paths, times, A, B = make(kind, kernel, counts, 8, 200, seed=11)
    fit = fit_elasticity(paths, kind, smoothing=None, tail=False)
    assert fit.attrs["errors"] == "replicate"
    for name, truth in (("A", A), ("B", B), ("A_minus_B", A - B)):
        last = fit[name].isel(time=-1).values - truth[-1]
        assert abs(last.mean()) < 5 * last.std() / np.sqrt(200), name
        found = coverage(fit, name, truth)[:, -1].mean()
        assert abs(found - 0.95) < 5 * 0.0154, (name, found)
    for name, integral in (("alpha_raw", A), ("beta_raw", B)):
        truth = np.diff(integral) / np.diff(times)
        found = coverage(fit, name, truth).mean()
        assert abs(found - 0.95) < 5 * np.sqrt(0.95 * 0.05 / 1200), (name, found)
        # The stated standard error is that of the estimates over datasets, to 15% (5σ of 200 is 25%).
        ratio = fit[name].std("dataset") / np.sqrt((fit[f"{name}_se"] ** 2).mean("dataset"))
        assert abs(float(ratio.mean()) - 1) < 0.1


def test_coverage_of_smoothed_rates_and_their_error():
    """Null: bands of smoothed α, β cover at least 0.95 of the curve on average, to 5σ.

    50 datasets, 8 replicates, 24 intervals; the curve of one dataset counts as 4 trials. They are also
    much closer to the truth than raw rates.
    """
    paths, times, A, _ = make(
        "logits", "decaying", (20,) * 4, 8, 50, seed=3, times=np.linspace(0, 4, 25)
    )
    fit = fit_elasticity(paths, "logits")
    truth = np.diff(A) / np.diff(times)
    found = coverage(fit, "alpha", truth).mean()
    assert found > 0.95 - 5 * np.sqrt(0.95 * 0.05 / (4 * 50)), found
    raw = np.sqrt(((fit.alpha_raw - truth) ** 2).mean())
    smooth = np.sqrt(((fit.alpha - truth) ** 2).mean())
    assert float(smooth) < 0.6 * float(raw)
    # A band is no use if it covers by being wide: it must be narrower than the raw one.
    assert float(fit.alpha_se.mean()) < 0.7 * float(fit.alpha_raw_se.mean())


def test_model_errors_cover_with_one_replicate():
    """Null: with errors="model" (what one replicate gets) A and B are covered with probability 0.95."""
    paths, _, A, B = make("identity", "constant", (20, 20, 20), 1, 200, seed=8)
    fit = fit_elasticity(paths, "identity", smoothing=None, tail=False)
    assert fit.attrs["errors"] == "model"
    assert np.isnan(fit.r_squared).all()
    for name, truth in (("A", A), ("A_minus_B", A - B)):
        found = coverage(fit, name, truth)[:, -1].mean()
        assert abs(found - 0.95) < 5 * np.sqrt(0.95 * 0.05 / 200), (name, found)


def test_replicate_errors_hold_for_noise_shared_by_classes_and_model_errors_do_not():
    """Sampling noise moves all classes together: U_k = E_kL X_J. Jackknife intervals must still cover.

    200 datasets of 10 replicates, noise the same vector for all classes; 5σ = 0.077. Errors "model" are
    meant to fail here, or the test would say nothing.
    """
    K, R, D, T = 3, 10, 200, 6
    rng = np.random.default_rng(4)
    E, times = two_level(K, lambda t: 1.5, lambda t: -0.5), np.linspace(0, 2, T)
    X = np.broadcast_to(rng.standard_normal((K, K)) + 1.0, (D, R, K, K))
    frames, sub = [X], 10
    for _ in range(T - 1):
        h = (times[1] - times[0]) / sub
        for _ in range(sub):
            G = E(0) / K
            X = X + h * G @ X + h**2 / 2 * G @ G @ X
            X = X + 0.3 * np.sqrt(h) * rng.standard_normal((D, R, 1, K))
        frames.append(X)
    paths = dataset(np.stack(frames, -3), times, leading=("dataset", "replicate"))
    truth = -0.5 * times
    found = {}
    for errors in ("replicate", "model"):
        fit = fit_elasticity(paths, errors=errors, smoothing=None, tail=False)
        found[errors] = coverage(fit, "B", truth)[:, -1].mean()
    assert abs(found["replicate"] - 0.95) < 5 * np.sqrt(0.95 * 0.05 / D)
    assert found["model"] < 0.85


@pytest.mark.parametrize("kind", ["identity", "logits"])
def test_matrix_recovers_full_kernel(kind):
    """Null: z-scores of all entries of ∫E at the last time have mean square 1 for Student errors.

    40 datasets, unsymmetric constant E, unbalanced classes, starts that differ between replicates. With
    R = 12, E t² = 11/9; the mean of 40·9 correlated squares is allowed 5 standard errors of 40 of them.
    """
    K, R, D = 3, 12, 40
    E = np.array([[1.5, -0.4, 0.2], [0.3, 1.0, -0.6], [-0.5, 0.1, 2.0]])
    times, counts = np.linspace(0, 1.5, 7), np.array([10, 20, 15])
    rng = np.random.default_rng(6)
    initial = rng.standard_normal((D, R, K, K))
    means = simulate_means(
        lambda t: E, projections(kind, K, K), counts, initial, times, 0.7, (D, R), rng
    )
    fit = fit_elasticity(
        dataset(means, times, counts, leading=("dataset", "replicate")),
        kind,
        "matrix",
        smoothing=None,
        tail=False,
    )
    last = fit.isel(time=-1)
    z = ((last.E_integral - 1.5 * E) / last.E_integral_se).values
    per_dataset = (z**2).mean((1, 2))
    assert abs(per_dataset.mean() - 11 / 9) < 5 * per_dataset.std() / np.sqrt(D) + 0.1
    assert (np.abs(z.mean(0)) < 5 * z.std(0) / np.sqrt(D)).all()
    np.testing.assert_allclose(last.E_integral.mean("dataset"), 1.5 * E, atol=0.15)
    assert float(fit.E_raw.mean(("dataset", "interval"))[0, 0]) == pytest.approx(1.5, abs=0.1)


def test_matrix_smoothing_improves_every_entry():
    K, times = 3, np.linspace(0, 2, 17)
    E = np.array([[1.5, -0.4, 0.2], [0.3, 1.0, -0.6], [-0.5, 0.1, 2.0]])
    rng = np.random.default_rng(2)
    means = simulate_means(
        lambda t: E, projections("identity", K, 5), np.array([20, 20, 20]),
        rng.standard_normal((12, K, 5)), times, 0.5, (12,), rng,
    )  # fmt: skip
    fit = fit_elasticity(dataset(means, times, np.full(K, 20)), kernel="matrix")
    raw = ((fit.E_raw - E) ** 2).mean("interval")
    smooth = ((fit.E - E) ** 2).mean("interval")
    assert (smooth < raw).all()
    assert float((np.abs(fit.E - E) < 4 * fit.E_se).mean()) > 0.95


def test_general_transform_equals_logits_given_as_array():
    """The reduced form of the logits and the general path are two routes to one estimate."""
    paths, *_ = make("logits", "decaying", (10, 20, 15), 9, 1, seed=1)
    named = fit_elasticity(paths, "logits")
    array = fit_elasticity(paths, projections("logits", 3, 3))
    for name in ("A", "B", "A_se", "alpha", "alpha_se", "r_squared", "residual_scale"):
        np.testing.assert_allclose(named[name], array[name], rtol=1e-6, atol=1e-9)


def test_full_rank_transform_that_differs_by_class():
    """No reduction at all: H_l of full rank, one a class. Without noise the fit is exact up to the drift."""
    K = p = 3
    rng = np.random.default_rng(9)
    H = rng.standard_normal((K, p, p)) * 0.5 + np.eye(p)
    times, counts = np.linspace(0, 1, 6), np.array([5, 10, 5])
    E = two_level(K, lambda t: 1.2, lambda t: -0.7)
    means = simulate_means(
        E, H, counts, rng.standard_normal((8, K, p)), times, 0.0, (8,), rng, substeps=400
    )
    for kernel, pick in (("two-level", "A"), ("matrix", "E_integral")):
        fit = fit_elasticity(dataset(means, times, counts), H, kernel)
        last = fit[pick].isel(time=-1).values
        expected = 1.2 if kernel == "two-level" else E(0)
        np.testing.assert_allclose(last, expected, atol=2e-5)


def test_large_growth_in_one_interval_needs_no_logarithm():
    """Growth by e^5 and decay by e^{-5} in one interval are recovered; Euler would be off by 30-fold."""
    K, times = 3, np.array([0.0, 1.0])
    rng = np.random.default_rng(0)
    initial = rng.standard_normal((8, K, 4))
    for alpha, beta in ((10.0, -5.0), (-10.0, 5.0)):
        grand = initial.mean(1, keepdims=True)
        means = grand * np.exp((alpha + 2 * beta) / K) + (initial - grand) * np.exp(
            (alpha - beta) / K
        )
        fit = fit_elasticity(dataset(np.stack([initial, means], 1), times))
        assert float(fit.A[-1]) == pytest.approx(alpha, abs=1e-8)
        assert float(fit.B[-1]) == pytest.approx(beta, abs=1e-8)


def test_discrete_scheme_removes_the_bias_of_exp():
    """With 8 large steps an interval, exp is biased by −½ h·rate² per unit time; the discrete scheme is not."""
    K, step, every, frames = 3, 0.125, 8, 4
    E = two_level(K, lambda t: 3.0, lambda t: -1.5)(0)
    rng = np.random.default_rng(3)
    means = sgd_means(E, rng.standard_normal((K, 4)), step, every, frames, 0.02, 16, rng)
    times = step * every * np.arange(frames + 1)
    paths = dataset(means, times)
    paths = paths.assign_coords(iteration=("time", every * np.arange(frames + 1)))
    exact, naive = fit_elasticity(paths), fit_elasticity(paths, scheme="exponential")
    assert exact.attrs["scheme"] == "discrete"
    truth = 4.5 * times[-1]
    error = float(exact.A_minus_B[-1]) - truth
    assert abs(error) < 5 * float(exact.A_minus_B_se[-1])
    rate = 4.5 / K
    predicted = K * (np.log1p(step * rate) / step - rate) * times[-1]
    assert float(naive.A_minus_B[-1]) - truth == pytest.approx(
        predicted, abs=5 * float(naive.A_minus_B_se[-1])
    )
    assert abs(predicted) > 20 * float(naive.A_minus_B_se[-1])


def test_steps_may_differ_between_intervals_and_learning_rates():
    """Iterations are read per learning rate; intervals of 3, 5 and 8 steps are each exact without noise."""
    K, E = 3, two_level(3, lambda t: 1.0, lambda t: -0.5)(0)
    initial = np.random.default_rng(0).standard_normal((8, K, 2))
    frames, counts = [], []
    for scale in (1, 2):
        X, rows = initial, [initial]
        for n in (3, 5, 8):
            for _ in range(scale * n):
                X = X + 0.1 / scale * E / K @ X
            rows.append(X)
        frames.append(np.stack(rows, 1))
        counts.append(scale * np.array([0, 3, 8, 16]))
    times = 0.1 * np.array([0, 3, 8, 16])
    paths = dataset(np.stack(frames), times, leading=("learning_rate", "replicate"))
    paths = paths.assign_coords(
        learning_rate=[0.1, 0.05], iteration=(("learning_rate", "time"), np.array(counts))
    )
    fit = fit_elasticity(paths)
    assert fit.A.dims == ("learning_rate", "time")
    np.testing.assert_allclose(fit.alpha_raw, 1.0, rtol=1e-9)
    np.testing.assert_allclose(fit.beta_raw, -0.5, rtol=1e-9)


def test_r_squared_is_predictive_and_the_common_share_ignores_noise():
    """Right model: common share 1 within 5 standard errors (over 40 datasets) at large noise, where r_squared
    is small. Wrong model (a nonlinear drift): the common share falls well below 1.
    """
    paths, *_ = make("logits", "decaying", (20,) * 4, 16, 40, seed=2, noise=1.5)
    fit = fit_elasticity(paths, "logits", smoothing=None, tail=False)
    share = fit.r_squared_common.values
    assert abs(share.mean() - 1) < 5 * share.std() / np.sqrt(40)
    found = coverage(fit, "r_squared_common", 1.0).mean()
    assert found > 0.95 - 5 * np.sqrt(0.95 * 0.05 / 40), found
    assert float(fit.r_squared.mean()) < 0.3
    assert (fit.r_squared < fit.r_squared_in_sample).all()
    assert float(fit.residual_scale.mean()) == pytest.approx(1.5, rel=0.03)

    rng = np.random.default_rng(1)
    times = np.linspace(0, 1, 6)
    X = np.broadcast_to(rng.standard_normal((3, 3)), (16, 3, 3))
    frames = [X]
    for _ in times[1:]:
        X = X + 0.2 * np.tanh(3 * X[..., ::-1]) * X**2 + 0.01 * rng.standard_normal(X.shape)
        frames.append(X)
    wrong = fit_elasticity(dataset(np.stack(frames, 1), times))
    assert float(wrong.r_squared_common) < 0.8
    assert float(wrong.r_squared_common_upper) < 0.9
    assert float(wrong.r_squared) < 0.8


def test_r_squared_equals_refits_without_each_replicate():
    """Independent route: drop each replicate, fit, predict it. For one interval of small growth, to 2%."""
    paths, *_ = make("identity", "constant", (20,) * 3, 6, 1, seed=4, times=np.array([0.0, 0.1]))
    paths = paths.isel(dataset=0)
    means = (
        paths.features.groupby("label")
        .mean("sample")
        .transpose("replicate", "time", "label", "feature")
        .values
    )
    left = moved = 0.0
    for r in range(6):
        fit = fit_elasticity(
            paths.isel(replicate=[i for i in range(6) if i != r]), smoothing=None, tail=False
        )
        a, b = float(fit.A[-1]), float(fit.B[-1])
        start, end = means[r]
        grand = start.mean(0)
        predicted = grand * np.exp((a + 2 * b) / 3) + (start - grand) * np.exp((a - b) / 3)
        left += ((end - predicted) ** 2).sum()
        moved += ((end - start) ** 2).sum()
    fit = fit_elasticity(paths, smoothing=None, tail=False)
    assert float(fit.r_squared) == pytest.approx(1 - left / moved, rel=0.02)


def test_zero_grand_mean_leaves_beta_unidentified_but_not_the_difference():
    rng = np.random.default_rng(0)
    initial = rng.standard_normal((3, 3))
    initial -= initial.mean(0)
    times = np.array([0.0, 0.5, 1.0])
    means = simulate_means(
        two_level(3, lambda t: 2.0, lambda t: -1.0), projections("identity", 3, 3), np.full(3, 10),
        initial, times, 0.0, (8,), rng, substeps=100,
    )  # fmt: skip
    with pytest.warns(UserWarning, match=r"do not determine α and β apart in 2 of 2 intervals"):
        fit = fit_elasticity(dataset(means, times, np.full(3, 10)))
    assert np.isinf(fit.B_se[1:]).all()
    assert np.isinf(fit.A_se[1:]).all()
    assert float(fit.A_minus_B[-1]) == pytest.approx(3.0, abs=1e-3)
    assert np.isfinite(fit.A_minus_B_se).all()
    assert fit.identified.sel(level="alpha_minus_beta").all()
    assert not fit.identified.sel(level="beta").any()


def test_nearly_zero_grand_mean_has_large_errors_that_cover():
    """Null: B is covered with 0.95 where only noise moves the grand mean (200 datasets, 5σ = 0.077)."""
    initial = np.random.default_rng(5).standard_normal((3, 3)) * 3
    initial -= initial.mean(0)
    times, counts, rng = np.linspace(0, 1, 5), np.full(3, 20), np.random.default_rng(7)
    means = simulate_means(
        two_level(3, lambda t: 2.0, lambda t: -1.0), projections("identity", 3, 3), counts,
        initial + 0.1 * rng.standard_normal((200, 12, 3, 3)), times, 0.5, (200, 12), rng,
    )  # fmt: skip
    fit = fit_elasticity(
        dataset(means, times, counts, leading=("dataset", "replicate")), smoothing=None
    )
    found = coverage(fit, "B", -times)[:, -1].mean()
    assert abs(found - 0.95) < 5 * np.sqrt(0.95 * 0.05 / 200), found
    assert float(fit.B_se[:, -1].median()) > 5 * float(fit.A_minus_B_se[:, -1].median())


def test_order_of_samples_dtype_and_spread_do_not_matter():
    paths, times, *_ = make("identity", "decaying", (10, 30, 20), 8, 1, seed=0, spread=0.3)
    single = dataset(
        paths.features.isel(dataset=0).groupby("label").mean("sample").transpose("replicate", "time", "label", "feature").values,
        times,
        np.array([10, 30, 20]),
    )  # fmt: skip
    one, two = fit_elasticity(paths.isel(dataset=0)), fit_elasticity(single)
    for name in ("A", "B", "alpha", "r_squared"):
        np.testing.assert_allclose(one[name], two[name], rtol=1e-6, atol=1e-8)
    rounded = fit_elasticity(paths.isel(dataset=0).astype("float32"))
    np.testing.assert_allclose(rounded.A, one.A, atol=1e-4)


def test_dimensions_and_coordinates_are_kept():
    paths, times, *_ = make("identity", "constant", (4, 4), 8, 3, seed=0)
    paths = paths.rename(dataset="learning_rate").assign_coords(learning_rate=[0.1, 0.2, 0.4])
    fit = fit_elasticity(paths)
    assert fit.A.dims == ("learning_rate", "time")
    assert fit.alpha.dims == ("learning_rate", "interval")
    assert fit.tail_index.dims == ("learning_rate", "level")
    np.testing.assert_array_equal(fit.learning_rate, [0.1, 0.2, 0.4])
    np.testing.assert_allclose(fit.interval, (times[1:] + times[:-1]) / 2)
    alone = fit_elasticity(paths.isel(learning_rate=1))
    assert alone.A.dims == ("time",)
    np.testing.assert_allclose(alone.A, fit.A.isel(learning_rate=1))
    np.testing.assert_allclose(np.cumsum(fit.alpha_raw * np.diff(times), axis=1), fit.A[:, 1:])
    no_replicate = fit_elasticity(paths.isel(learning_rate=1, replicate=0))
    assert no_replicate.attrs["replicates"] == 1


def test_confidence_widens_intervals():
    paths, *_ = make("identity", "constant", (4, 4), 8, 1, seed=0)
    narrow, wide = (fit_elasticity(paths, confidence=c) for c in (0.8, 0.99))
    assert ((wide.A_upper - wide.A_lower)[:, 1:] > (narrow.A_upper - narrow.A_lower)[:, 1:]).all()


def good():
    return make("identity", "constant", (4, 4), 8, 1, seed=0)[0].isel(dataset=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: fit_elasticity(d, kernel="two-levels"), "kernel must be one of.*Did you mean 'two-level'"),
        (lambda d: fit_elasticity(d, confidence=95), r"confidence must be a finite number in \(0, 1\); got 95"),
        (lambda d: fit_elasticity(d, smoothing="gcv"), "smoothing must be one of 'reml'"),
        (lambda d: fit_elasticity(d, scheme="discrete"), "needs the coordinate iteration"),
        (lambda d: fit_elasticity(d, tail=(1, 2, 3)), r"tail must have shape \(2\)"),
        (lambda d: fit_elasticity(d, tail=(2, 1)), r"tail\[1\] must be a finite number"),
        (lambda d: fit_elasticity(d.isel(feature=[0]), "logits"), "needs one feature per class"),
        (lambda d: fit_elasticity(d.isel(replicate=[0]), errors="replicate"), "at least 2 replicates"),
        (lambda d: fit_elasticity(d.isel(sample=d.label == 0)), "at least 2 classes"),
        (lambda d: fit_elasticity(d.isel(time=[0])), "paths.time must hold at least 2 times"),
        (lambda d: fit_elasticity(d.drop_vars("label")), "label missing"),
        (lambda d: fit_elasticity(d.where(d.time < 1)), r"paths\.features must be finite; got nan at replicate.0, time=1"),
        (lambda d: fit_elasticity(d.assign_coords(iteration=("time", [0] + [5] * 12))), "paths.iteration must increase"),
    ],
)  # fmt: skip
def test_errors_name_the_argument_and_the_remedy(change, message):
    with pytest.raises(ValueError, match=message):
        change(good())


def test_no_numpy_warning_escapes():
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        fit_elasticity(good())
        still = good()
        still["features"] = still.features * 0
        fit = fit_elasticity(still)
    assert np.isinf(fit.A_se[1:]).all()


def test_ten_classes_ten_features_take_seconds():
    """Recovers all 100 entries; a hang or a p²-sized matrix would show as minutes."""
    K, times = 10, np.linspace(0, 1, 21)
    rng = np.random.default_rng(0)
    E = rng.standard_normal((K, K)) + 2 * np.eye(K)
    means = simulate_means(
        lambda t: E, projections("identity", K, K), np.full(K, 50),
        rng.standard_normal((16, K, K)), times, 0.1, (16,), rng, substeps=4,
    )  # fmt: skip
    fit = fit_elasticity(dataset(means, times), kernel="matrix")
    z = ((fit.E_integral[-1] - E) / fit.E_integral_se[-1]).values
    assert np.sqrt((z**2).mean()) == pytest.approx(np.sqrt(15 / 13), rel=0.35)


def test_tail_as_an_array_of_one_number_is_refused_by_name():
    features = np.random.default_rng(0).normal(size=(2, 4, 6, 2))
    paths = lesde.from_arrays(features, [0, 0, 0, 1, 1, 1], [0, 1, 2, 3])
    with pytest.raises(TypeError, match="tail must be a real number"):
        fit_elasticity(paths, tail=np.array(3))


@pytest.mark.parametrize("seed", range(6))
def test_rates_of_paths_far_from_the_origin_are_found(seed):
    """An offset of 1000 leaves their contrasts as they are: what is identified does not hang on rounding."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(5, 5)) + rng.normal(size=(3, 4, 5, 5)) + 1000
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit = fit_elasticity(lesde.from_arrays(features, np.arange(5), [0, 1, 2, 3]))
    assert fit.identified.all()
