"""Collapse metrics do not depend on the units of the features, nor on how they were stored."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
import xarray as xr

import lesde
from lesde.analysis.collapse import (
    nc1,
    nc1_cdnv,
    nc1_trace,
    nc2_angle_std,
    nc2_etf,
    nc2_norm_cv,
    nc3,
    nc4,
    ncc_accuracy,
)
from lesde.networks import digits

NAMES = ["nc1", "nc1_trace", "nc1_cdnv", "nc2_etf", "nc2_norm_cv", "nc2_angle_std"]
WITH_WEIGHTS = [*NAMES, "nc3", "nc3_duality", "nc4", "ncc_accuracy"]
POWERS = [-125, -100, -50, 50, 77, 100, 135]


def dataset(x, labels, dims=()):
    return xr.Dataset(
        {"features": ((*dims, "sample", "feature"), x)}, {"label": ("sample", labels)}
    )


def draw(seed, counts=(12, 9, 15), p=4, rank=None):
    """Integer features around integer class means; with ``rank``, class means in so many dimensions."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    means = rng.integers(-40, 40, (len(counts), p))
    if rank is not None:
        means[:, rank:] = 7
    noise = rng.integers(-9, 10, (len(labels), p))
    if rank is not None:  # exactly equal class means: deviations of a class cancel in pairs
        for k in range(len(counts)):
            at = np.flatnonzero(labels == k)
            noise[at[1::2]] = -noise[at[: 2 * (len(at) // 2) : 2]]
            noise[at[2 * (len(at) // 2) :]] = 0
    return (means[labels] + noise).astype(float), labels


def exact_nc1(x, labels):
    """tr(Σ_W Σ_B⁺)/K in rational numbers, for class means of full rank min(K−1, p)."""
    x = [[Fraction(float(v)) for v in row] for row in x]
    K, p, n = int(labels.max()) + 1, len(x[0]), len(x)
    counts = [int((labels == k).sum()) for k in range(K)]
    mu = [[sum(x[i][j] for i in range(n) if labels[i] == k) / counts[k] for j in range(p)]
          for k in range(K)]  # fmt: skip
    centre = [sum(m[j] for m in mu) / K for j in range(p)]
    rows = [[m[j] - centre[j] for j in range(p)] for m in mu[: min(K - 1, p)]]
    if p <= K - 1:  # invert Σ_B
        between = [[sum((m[a] - centre[a]) * (m[b] - centre[b]) for m in mu) for b in range(p)]
                   for a in range(p)]  # fmt: skip
        axes = [[Fraction(int(a == b)) for b in range(p)] for a in range(p)]
    else:  # C = B R with R the first K − 1 rows: Σ_B⁺ = Rᵀ (R Rᵀ)⁻¹ (K⁻¹ BᵀB)⁻¹ (R Rᵀ)⁻¹ R
        axes = rows
        # the last centred mean is minus the sum of the others: BᵀB = I + 11ᵀ
        size = len(rows)
        between = [[Fraction(int(a == b)) + 1 for b in range(size)] for a in range(size)]
        gram = [[sum(u * v for u, v in zip(a, b, strict=True)) for b in rows] for a in rows]
    total = Fraction(0)
    for i in range(n):
        away = [x[i][j] - mu[labels[i]][j] for j in range(p)]
        along = [sum(u * v for u, v in zip(a, away, strict=True)) for a in axes]
        if p > K - 1:
            along = solve(gram, along)
        total += sum(u * v for u, v in zip(along, solve(between, along), strict=True))
    return float(total / n)


def solve(matrix, right):
    """Gauss elimination in rational numbers."""
    m = [[*row, r] for row, r in zip(matrix, right, strict=True)]
    for c in range(len(m)):
        pivot = next(r for r in range(c, len(m)) if m[r][c] != 0)
        m[c], m[pivot] = m[pivot], m[c]
        m[c] = [v / m[c][c] for v in m[c]]
        for r in range(len(m)):
            if r != c:
                m[r] = [u - m[r][c] * v for u, v in zip(m[r], m[c], strict=True)]
    return [row[-1] for row in m]


@pytest.mark.parametrize(
    ("counts", "p"), [((12, 9, 15), 4), ((5, 6, 4, 7, 5), 2), ((1, 1, 8), 2), ((6, 5), 1)]
)
@pytest.mark.parametrize("power", [0, -125, 60, 135])
def test_nc1_against_rational_numbers(counts, p, power):
    x, labels = draw(1, counts, p)
    expected = exact_nc1(x, labels)
    assert float(nc1(x * 10.0**power, labels)) == pytest.approx(expected, rel=1e-11)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("counts", "p"), [((12, 9, 15), 4), ((5, 6, 4, 7, 5), 2), ((1, 1, 8), 6)])
def test_every_metric_at_every_scale(counts, p, dtype):
    x, labels = draw(2, counts, p)
    x += np.random.default_rng(3).random(x.shape)
    rng = np.random.default_rng(4)
    weights, bias = rng.standard_normal((len(counts), p)), 30 * rng.standard_normal(len(counts))
    powers = [k for k in POWERS if dtype == "float64" or abs(k) < 36]
    powers += [-30, 30] if dtype == "float32" else []
    rounding = 1e-11 if dtype == "float64" else 1e-4
    expected = lesde.neural_collapse(dataset(x, labels), WITH_WEIGHTS, weights=weights, bias=bias)
    for power in powers:
        scaled = dataset((x * 10.0**power).astype(dtype), labels)
        # Logits are those of the unscaled features where the bias is to scale as well.
        found = lesde.neural_collapse(
            scaled, WITH_WEIGHTS, weights=weights, bias=bias * 10.0**power
        )
        xr.testing.assert_allclose(found, expected, rtol=rounding, atol=rounding)
    for size in (1e-100, 1e100):
        heavy = lesde.neural_collapse(
            dataset(x, labels), WITH_WEIGHTS, weights=size * weights, bias=size * bias
        )
        xr.testing.assert_allclose(heavy, expected, rtol=1e-11, atol=1e-11)


def test_each_frame_has_its_own_unit():
    x, labels = draw(5)
    sizes = 10.0 ** np.array([-125, 0, 135, -30, 100])
    frames = sizes[:, None, None] * x
    found = lesde.neural_collapse(dataset(frames, labels, ("time",)))
    for name in NAMES:
        np.testing.assert_allclose(found[name], found[name][1], rtol=1e-11)


def test_a_simplex_of_class_means_is_one_at_every_scale():
    labels = np.repeat(np.arange(4), 3)
    for power in POWERS:
        assert float(nc2_etf(10.0**power * np.eye(4)[labels], labels)) == pytest.approx(
            0, abs=1e-12
        )
        assert float(nc3(10.0**power * np.eye(4)[labels], labels, np.eye(4))) < 1e-12


def test_simulated_growth_keeps_its_frame():
    """Class means of this model stay a simplex: μ_k − μ_l grows by the same factor for every pair."""
    model = lesde.LESDE(lesde.TwoLevel(2, -1), 3, 3, 4, noise=0.0)
    paths = lesde.simulate(model, [0, 90, 180], initial=np.eye(3), replicates=2, dtype="float64")
    assert float(abs(paths.features).max()) > 1e77
    metrics = lesde.neural_collapse(paths)
    np.testing.assert_allclose(metrics.nc2_etf, 0, atol=1e-6)
    np.testing.assert_allclose(metrics.nc1, 0, atol=1e-12)


def test_centres_are_at_the_scale_of_the_features():
    x, labels = draw(6)
    for power in POWERS:
        size = 10.0**power
        found = lesde.neural_collapse(
            dataset(size * x, labels), "ncc_accuracy", centers=dataset(size * x[::-1], labels[::-1])
        )
        assert float(found.ncc_accuracy) == float(ncc_accuracy(x, labels))
        given = [x[labels == k].mean(axis=0) for k in (1, 0, 2)]
        expected = float(ncc_accuracy(x, labels, centers=given))
        assert float(ncc_accuracy(size * x, labels, centers=size * np.array(given))) == expected
        assert expected < 0.5


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_statistics_at_every_scale(dtype):
    x, labels = draw(7)
    expected = lesde.neural_collapse(dataset(x, labels))
    rounding = 1e-5 if dtype == "float32" else 1e-11
    for power in (-100, -12, -6, 6, 12, 100):
        if dtype == "float32" and abs(power) > 12:
            continue
        scaled = dataset((x * 10.0**power).astype(dtype), labels)
        reduced = lesde.neural_collapse(lesde.statistics(scaled))
        xr.testing.assert_allclose(reduced, expected, rtol=rounding, atol=rounding)
    for power, what in (
        (30, "too large"),
        (-30, "too small"),
        (160, "too large"),
        (-160, "too small"),
    ):
        if dtype == "float32" and abs(power) > 36:
            continue
        if dtype == "float64" and abs(power) < 36:
            continue
        with pytest.raises(ValueError, match=rf"paths\.features are {what}.*Rescale"):
            lesde.statistics(dataset((x * 10.0**power).astype(dtype), labels))


@pytest.mark.parametrize("width", [10, 64, 512])
@pytest.mark.parametrize("collapsed", [False, True])
def test_a_linear_layer_of_two_features_keeps_nc1(width, collapsed):
    """An injective affine map leaves NC1 as it is; float32 adds only rounding to the other directions."""
    torch.manual_seed(0)
    rng = np.random.default_rng(8)
    labels = np.repeat(np.arange(10), 30)
    means = rng.standard_normal((10, 2)) * 4
    narrow = (means[labels] + 0.3 * rng.standard_normal((300, 2))).astype(np.float32)
    if collapsed:
        narrow = means[labels].astype(np.float32)
        narrow[1] += np.float32(0.125)
    expected = exact_nc1(narrow, labels)
    with torch.no_grad():
        wide = torch.nn.Linear(2, width)(torch.as_tensor(narrow)).numpy()
    assert wide.dtype == np.float32
    for features in (wide, wide.astype(np.float64), wide + np.float32(10)):
        assert float(nc1(features, labels)) == pytest.approx(expected, rel=1e-3)
    for given in (wide, wide.astype(np.float64)):
        reduced = lesde.statistics(dataset(given, labels))
        assert float(lesde.neural_collapse(reduced, "nc1").nc1) == pytest.approx(expected, rel=1e-3)
    double = reduced.astype(np.float64)
    assert float(lesde.neural_collapse(double, "nc1").nc1) == pytest.approx(expected, rel=1e-3)


def test_trained_layers_of_digits():
    torch.manual_seed(1)
    data = digits(classes=10, n_train_per_class=60)
    x = torch.as_tensor(np.asarray(data.train_x), dtype=torch.float32).flatten(1)
    y = torch.as_tensor(np.asarray(data.train_y)).long()
    first, second = torch.nn.Linear(64, 2), torch.nn.Linear(2, 10)
    step = torch.optim.Adam([*first.parameters(), *second.parameters()], 0.05)
    for _ in range(60):
        step.zero_grad()
        torch.nn.functional.cross_entropy(second(first(x)), y).backward()
        step.step()
    with torch.no_grad():
        narrow, wide = first(x).numpy(), second(first(x)).numpy()
    expected = exact_nc1(narrow, y.numpy())
    assert float(nc1(wide, y.numpy())) == pytest.approx(expected, rel=1e-3)
    as_half = nc1(wide.astype(np.float16), y.numpy())
    assert float(as_half) == pytest.approx(expected, rel=0.05)


def test_features_in_other_units_are_not_cut():
    """float32 rounds each feature by itself: a feature in units 1e8 times as large hides no other."""
    x, labels = draw(9, (12, 9, 15, 8), 2)
    units = np.array([1e8, 1.0])
    expected = exact_nc1(x, labels)
    assert float(nc1((x * units).astype(np.float32), labels)) == pytest.approx(expected, rel=1e-4)


def test_rank_deficient_class_means_drop_what_they_do_not_span():
    x, labels = draw(10, (12, 10, 14, 8), 4, rank=2)
    expected = exact_nc1(x[:, :2], labels)
    rotation = np.linalg.qr(np.random.default_rng(11).standard_normal((4, 4)))[0]
    for dtype, rounding in (("float64", 1e-10), ("float32", 1e-4)):
        for features in (x, x @ rotation, x @ rotation + 100):
            for power in (0, -20, 20):
                given = (features * 10.0**power).astype(dtype)
                assert float(nc1(given, labels)) == pytest.approx(expected, rel=rounding)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("counts", [(9, 9, 9), (7, 12, 5)])
def test_class_means_that_coincide_near_zero(counts, dtype):
    rng = np.random.default_rng(12)
    labels = np.repeat(np.arange(3), counts)
    x = rng.standard_normal((len(labels), 4)).astype(dtype)
    for k in range(3):
        x[labels == k] -= x[labels == k].mean(axis=0)
    weights = rng.standard_normal((3, 4))
    for power in (0, -20, 20):
        for offset in (0.0, 10.0):
            paths = dataset(((x + offset) * 10.0**power).astype(dtype), labels)
            found = lesde.neural_collapse(paths, WITH_WEIGHTS, weights=weights)
            cases = [found]
            if power == 0:
                cases.append(lesde.neural_collapse(lesde.statistics(paths), weights=weights))
            for each in cases:
                for name in ("nc1", "nc1_trace", "nc1_cdnv"):
                    assert np.isinf(each[name]), name
                for name in ("nc2_etf", "nc2_norm_cv", "nc2_angle_std", "nc3", "nc3_duality"):
                    assert np.isnan(each[name]), name
            assert float(found.ncc_accuracy) == pytest.approx(1 / 3)


def test_two_of_three_class_means_coincide():
    rng = np.random.default_rng(13)
    labels = np.repeat(np.arange(3), 8)
    x = rng.standard_normal((24, 5))
    for k in range(3):
        x[labels == k] -= x[labels == k].mean(axis=0)
    x[labels == 2, 0] += 3
    assert nc1_cdnv(x, labels) == np.inf
    assert np.isfinite(nc1_trace(x, labels))
    # Σ_B has one direction: means at −1, −1 and 2 along it.
    expected = np.mean((x[:, 0] - 3 * (labels == 2)) ** 2) / (1 + 1 + 4)
    assert float(nc1(x, labels)) == pytest.approx(expected, rel=1e-10)


def test_collapsed_classes_at_every_scale():
    """No spread: 0; no spread and one point: NaN; equal rows of the weights: NaN."""
    labels = np.repeat(np.arange(3), [500, 3, 40])
    for power in (-125, -100, 0, 100, 135):
        apart = 10.0**power * np.array([[0.1, 0.7], [0.3, 0.2], [-0.9, 0.3]])[labels]
        one = np.full_like(apart, 0.1 * 10.0**power)
        for function in (nc1, nc1_trace, nc1_cdnv):
            assert function(apart, labels) == 0
            assert np.isnan(function(one, labels))
        for function in (nc2_etf, nc2_norm_cv, nc2_angle_std):
            assert np.isnan(function(one, labels))
        assert np.isnan(nc3(apart, labels, np.full((3, 2), 0.1)))
        assert float(nc4(apart, labels, apart[[0, 500, 503]])) >= 0


def test_layers_at_every_scale():
    x, labels = draw(14)
    expected = lesde.neural_collapse(dataset(x, labels), NAMES)
    records = {f"layer{k}": dataset(10.0**k * x, labels) for k in (-120, 0, 120)}
    found = lesde.layer_collapse(records, metrics=NAMES)
    for name in NAMES:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-11)


def test_simulated_statistics_whose_spread_underflows_are_refused():
    model = lesde.LESDE(
        lesde.TwoLevel(2, -1), n_classes=2, n_features=2, n_per_class=9, noise=1e-17
    )
    start = np.array([[1e-16, 0.0], [0.0, 1e-16]])
    for engine in ("exact", "torchsde"):
        with pytest.raises(ValueError, match=r"underflows torch.float32 .* use dtype='float64'"):
            lesde.simulate(model, [0, 1], start, replicates=4, engine=engine, keep="statistics")
    small = {"replicates": 4, "seed": 3, "dtype": "float64"}
    kept = lesde.simulate(model, [0, 1], start, keep="statistics", **small)
    large = lesde.simulate(
        model.replace(noise=1.0), [0, 1], start * 1e17, keep="statistics", **small
    )
    found, expected = (lesde.neural_collapse(one).nc1_trace[:, 1] for one in (kept, large))
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_many_rounded_features_leave_no_direction_of_their_own():
    """Class means on a line in 20,000 dimensions: rounding to float32 spreads them off it, √p times as far as each.

    With deviations of a class that cancel, all that the means have off the line is rounding.
    """
    p = 20_000
    rng = np.random.default_rng(0)
    means = np.outer([-1.0, 0.3, 1.2], rng.normal(size=p))
    away = 0.1 * rng.normal(size=(3, p))
    x = np.concatenate([means + away, means - away])
    labels = np.tile(np.arange(3), 2)
    centred = means - means.mean(0)
    _, s, vt = np.linalg.svd(centred, full_matrices=False)
    expected = 2 * ((away @ vt[0]) ** 2).sum() / s[0] ** 2 / len(x)
    np.testing.assert_allclose(nc1(x.astype(np.float32), labels), expected, rtol=1e-4)


@pytest.mark.parametrize("power", [-160, 160])
def test_features_whose_squares_leave_the_range_of_floats_are_refused(power):
    x, labels = draw(15)
    with pytest.raises(ValueError, match=r"features of sizes from 1e-130 to 1e\+140.*Rescale"):
        nc1(x * 10.0**power, labels)
