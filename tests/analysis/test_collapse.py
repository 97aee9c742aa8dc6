"""Collapse metrics against textbook formulas, and what must not change them."""

from __future__ import annotations

import itertools
import time
import tracemalloc

import numpy as np
import pytest
import xarray as xr

from lesde import neural_collapse
from lesde.analysis import class_means
from lesde.analysis.collapse import (
    METRICS,
    metric,
    nc1,
    nc1_cdnv,
    nc1_trace,
    nc2_angle_std,
    nc2_etf,
    nc2_norm_cv,
    nc3,
    nc4,
)

PLAIN = [nc1, nc1_trace, nc1_cdnv, nc2_etf, nc2_norm_cv, nc2_angle_std]
PLAIN_NAMES = [function.__name__ for function in PLAIN]


def textbook(x, labels, weights=None, bias=None):
    """Every metric of one frame from its definition, with explicit p×p matrices and loops."""
    k_all = range(labels.max() + 1)
    n = len(x)
    mu = np.array([x[labels == k].mean(axis=0) for k in k_all])
    K = len(mu)
    centred = mu - mu.mean(axis=0)
    within = sum(np.outer(x[i] - mu[labels[i]], x[i] - mu[labels[i]]) for i in range(n)) / n
    between = sum(np.outer(c, c) for c in centred) / K
    var = [((x[labels == k] - mu[k]) ** 2).sum(axis=1).mean() for k in k_all]
    pairs = list(itertools.combinations(k_all, 2))
    norms = np.linalg.norm(centred, axis=1)
    frame = (np.eye(K) - np.ones((K, K)) / K) / np.sqrt(K - 1)
    gram = centred @ centred.T
    cosines = [gram[k, l] / norms[k] / norms[l] for k, l in pairs]
    result = {
        # The cut of the pseudo-inverse is far above rounding and far below any eigenvalue of
        # these data.
        "nc1": np.trace(within @ np.linalg.pinv(between, rcond=1e-9, hermitian=True)) / K,
        "nc1_trace": np.trace(within) / np.trace(between),
        "nc1_cdnv": np.mean(
            [(var[k] + var[l]) / (2 * np.sum((mu[k] - mu[l]) ** 2)) for k, l in pairs]
        ),
        "nc2_etf": np.linalg.norm(gram / np.linalg.norm(gram) - frame),
        "nc2_norm_cv": norms.std() / norms.mean(),
        "nc2_angle_std": np.std(cosines),
    }
    if weights is not None:
        product = (weights - weights.mean(axis=0)) @ centred.T
        decided = np.argmax(x @ weights.T + (0 if bias is None else bias), axis=1)
        nearest = [np.argmin(((mu - xi) ** 2).sum(axis=1)) for xi in x]
        result["nc3"] = np.linalg.norm(product / np.linalg.norm(product) - frame)
        result["nc4"] = np.mean(decided == nearest)
    return result


def make(seed, counts, p, leading=(), shuffle=True, spread=0.5):
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(counts)), counts)
    if shuffle:
        labels = rng.permutation(labels)
    means = rng.standard_normal((*leading, len(counts), p))
    return means[..., labels, :] + spread * rng.standard_normal((*leading, len(labels), p)), labels


def dataset(features, labels, dims=("replicate", "time"), **coords):
    return xr.Dataset(
        {"features": ((*dims, "sample", "feature"), features)},
        {"label": ("sample", labels), **coords},
    )


CASES = [
    pytest.param((30, 30, 30), 3, id="p equal to K"),
    pytest.param((10, 10, 10, 10, 10, 10), 3, id="p below K"),
    pytest.param((12, 12, 12, 12), 40, id="p above K"),
    pytest.param((50, 3, 17, 8), 7, id="unbalanced"),
    pytest.param((20, 1, 9), 5, id="class with one sample"),
    pytest.param((15, 4), 6, id="two classes"),
    pytest.param((15, 4, 6), 1, id="one feature"),
    pytest.param((1, 1, 1), 5, id="one sample each"),
]


@pytest.mark.parametrize(("counts", "p"), CASES)
@pytest.mark.parametrize("values", [2**18, 200])
def test_metrics_equal_the_textbook(counts, p, values, monkeypatch):
    monkeypatch.setattr(class_means, "BLOCK_VALUES", values)  # 200: several blocks per frame
    x, labels = make(1, counts, p, (2, 3))
    rng = np.random.default_rng(2)
    w, b = rng.standard_normal((2, 3, len(counts), p)), rng.standard_normal((2, 3, len(counts)))
    expected = [textbook(x[i, j], labels, w[i, j], b[i, j]) for i in range(2) for j in range(3)]
    found = {f.__name__: f(x, labels) for f in PLAIN}
    found |= {"nc3": nc3(x, labels, w), "nc4": nc4(x, labels, w, b)}
    for name, value in found.items():
        wanted = np.reshape([frame[name] for frame in expected], (2, 3))
        np.testing.assert_allclose(value, wanted, rtol=1e-10, atol=1e-13, err_msg=name)
        assert value.dtype == np.float64
        assert (value >= 0).all()


def test_float32_features_are_reduced_in_float64():
    x, labels = make(3, (40, 40, 40), 12, (5,))
    x = (x + 50).astype(np.float32)
    for function in PLAIN:
        np.testing.assert_allclose(
            function(x, labels), function(x.astype(np.float64), labels), rtol=1e-12
        )


@pytest.mark.parametrize("function", PLAIN, ids=PLAIN_NAMES)
def test_rotation_translation_scale_and_names_of_classes_change_nothing(function):
    x, labels = make(4, (9, 14, 6, 11), 8)
    rng = np.random.default_rng(5)
    rotation = np.linalg.qr(rng.standard_normal((8, 8)))[0]
    reference = function(x, labels)
    renamed = np.array([2, 0, 3, 1])[labels]
    for changed in (x @ rotation, x + 10 * rng.standard_normal(8), 1e-7 * x, 1e7 * x):
        np.testing.assert_allclose(function(changed, labels), reference, rtol=1e-10)
    np.testing.assert_allclose(function(x, renamed), reference, rtol=1e-12)


@pytest.mark.parametrize("K", [2, 3, 5, 10])
def test_collapsed_features_on_a_simplex_frame_score_zero(K):
    rng = np.random.default_rng(6)
    frame = np.linalg.qr(rng.standard_normal((K + 3, K)))[0] @ (np.eye(K) - 1 / K)
    labels = np.repeat(np.arange(K), 4)
    x = 5 + 3 * frame.T[labels]
    w = 0.7 * frame.T + 1.0  # aligned once centred
    for function in PLAIN:
        assert function(x, labels) == pytest.approx(0, abs=1e-13)
    assert nc3(x, labels, w) == pytest.approx(0, abs=1e-13)
    # w·x + b is ⟨w̃_k, x⟩ up to what classes share: with b = −⟨w̃_k, centre⟩ it decides as the
    # class means do.
    assert nc4(x, labels, w, -w @ np.full(K + 3, 5.0)) == 1.0
    assert METRICS["nc4"].target == 1.0


def test_classifier_that_swaps_two_classes_agrees_on_the_others():
    x, labels = make(7, (10, 20, 30), 3, spread=1e-3)
    means = np.array([x[labels == k].mean(axis=0) for k in range(3)])
    w, b = means[[1, 0, 2]], -0.5 * (means[[1, 0, 2]] ** 2).sum(axis=1)
    assert nc4(x, labels, w, b) == pytest.approx(0.5)
    assert nc3(x, labels, w) > 0.5


def test_centre_is_the_mean_of_class_means_so_repeating_a_class_leaves_nc2_alone():
    x, labels = make(8, (5, 5, 5), 4)
    twice = np.concatenate([x, x[labels == 1], x[labels == 1]])
    more = np.concatenate([labels, np.ones(10, dtype=int)])
    for function in (nc2_etf, nc2_norm_cv, nc2_angle_std, nc1_cdnv):
        assert function(twice, more) == pytest.approx(function(x, labels), rel=1e-12)
    assert nc1(twice, more) != pytest.approx(nc1(x, labels), rel=1e-3)


def test_two_classes_that_coincide_drop_their_direction_as_the_pseudo_inverse_does():
    rng = np.random.default_rng(9)
    labels = np.repeat([0, 1, 2], 6)
    noise = rng.standard_normal((18, 5))
    noise -= np.array([noise[labels == k].mean(axis=0) for k in range(3)])[labels]
    means = rng.standard_normal((3, 5))
    means[2] = means[1]
    x = 0.1 + means[labels] + noise
    along = means[0] - means[1]
    gap = along @ along
    # Means at 2/3 and −1/3 (twice) of the gap: Σ_B = (2/9) along alongᵀ.
    expected = np.mean((noise @ along) ** 2) / gap / (2 / 9 * gap) / 3
    assert nc1(x, labels) == pytest.approx(expected, rel=1e-10)
    assert nc1_cdnv(x, labels) == np.inf
    assert np.isfinite(nc1_trace(x, labels))


def test_all_class_means_at_one_point():
    labels = np.repeat([0, 1, 2], 2)
    spread = np.array([[1.0, 0], [-1, 0], [0, 2], [0, -2], [3, 1], [-3, -1]]) + 0.1
    point = np.full((6, 2), 0.1)
    for function in (nc1, nc1_trace, nc1_cdnv):
        assert function(spread, labels) == np.inf
        assert np.isnan(function(point, labels))
    for function in (nc2_etf, nc2_norm_cv, nc2_angle_std):
        assert np.isnan(function(spread, labels))
    # The sums of many equal numbers differ by rounding; that is not between-class variability.
    many = np.repeat([0, 1, 2], [1000, 7, 5000])
    apart = np.array([[0.1, 0.7], [0.3, 0.2], [-0.9, 0.3]])[many]
    for function in (nc1, nc1_trace, nc1_cdnv):
        assert function(apart, many) == 0
    assert np.isnan(nc1(np.full((len(many), 2), 0.1), many))
    # Beside an ordinary frame the ordinary one is unharmed.
    ordinary, _ = make(10, (2, 2, 2), 2, shuffle=False)
    both = np.stack([ordinary, spread])
    np.testing.assert_allclose(nc1(both, labels), [textbook(ordinary, labels)["nc1"], np.inf])


def test_nearly_collapsed_features_keep_their_digits():
    """Spread 1e-7 of the means: squares of it must not come from a difference of large numbers."""
    x, labels = make(11, (20, 20, 20), 6, spread=0.0)
    noise = np.random.default_rng(12).standard_normal(x.shape)
    rough, fine = (s * noise + x for s in (2.0**-10, 2.0**-23))
    for function in (nc1, nc1_trace, nc1_cdnv):
        ratio = function(fine, labels) / function(rough, labels)
        assert ratio == pytest.approx(2.0**-26, rel=2e-2)
        assert function(fine, labels) > 0


@pytest.mark.parametrize(
    "dims",
    [
        (),
        ("time",),
        ("replicate", "time"),
        ("learning_rate", "replicate", "time"),
        ("epoch", "layer"),
    ],
)
def test_leading_dimensions_and_coordinates_are_kept(dims, monkeypatch):
    monkeypatch.setattr(
        class_means, "BLOCK_VALUES", 700
    )  # three frames a batch: boxes that do not divide
    sizes = tuple([2, 3, 5][: len(dims)])
    x, labels = make(13, (20, 18, 20), 4, sizes)
    coords = {d: (d, 0.5 + np.arange(n)) for d, n in zip(dims, sizes, strict=True)}
    if "learning_rate" in dims:
        coords["iteration"] = (("learning_rate", "time"), np.arange(10).reshape(2, 5))
    paths = dataset(x, labels, dims, **coords)
    shuffled = paths.transpose("feature", *dims[::-1], "sample")
    nc = neural_collapse(paths)
    assert list(nc.data_vars) == PLAIN_NAMES
    assert nc.nc1.dims == dims
    assert set(coords) | {"count"} == set(nc.coords)
    assert nc["count"].values.tolist() == [20, 18, 20]
    for index in np.ndindex(*sizes):
        for name, value in textbook(x[index], labels).items():
            assert float(nc[name].values[index]) == pytest.approx(value, rel=1e-10)
    xr.testing.assert_allclose(
        neural_collapse(shuffled).transpose(..., "class"), nc.transpose(*dims[::-1], "class")
    )


def test_weights_as_variable_data_array_and_array_agree():
    x, labels = make(14, (7, 9, 8), 5, (2, 3))
    rng = np.random.default_rng(15)
    w, b = rng.standard_normal((3, 3, 5)), rng.standard_normal((3, 3))
    paths = dataset(x, labels)
    inside = paths.assign(weights=(("time", "class", "feature_in"), w), bias=(("time", "class"), b))
    named = neural_collapse(
        paths,
        weights=xr.DataArray(w, dims=("time", "class", "feature")).transpose(
            "feature", "time", "class"
        ),
        bias=xr.DataArray(b, dims=("time", "class")),
    )
    plain = neural_collapse(paths, ["nc3", "nc4"], weights=w, bias=b)
    assert list(plain.data_vars) == ["nc3", "nc4"]
    xr.testing.assert_identical(neural_collapse(inside), named)
    xr.testing.assert_identical(named[["nc3", "nc4"]], plain.drop_vars("count"))
    for i, j in np.ndindex(2, 3):
        expected = textbook(x[i, j], labels, w[j], b[j])
        assert float(named.nc3[i, j]) == pytest.approx(expected["nc3"], rel=1e-10)
        assert float(named.nc4[i, j]) == expected["nc4"]


def test_only_what_a_metric_needs_is_computed(monkeypatch):
    """One pass over features larger than a block for class means and variances, one more for NC1."""
    monkeypatch.setattr(class_means, "BLOCK_VALUES", 20)
    x, labels = make(16, (5, 5, 5), 4, (3,))
    paths, read, take = dataset(x, labels, ("time",)), [0], xr.Variable.__getitem__

    def watched(self, index):
        found = take(self, index)
        read[0] += found.size if self.dims == ("time", "sample", "feature") else 0
        return found

    monkeypatch.setattr(xr.Variable, "__getitem__", watched)
    for names, passes in (
        (["nc2_etf", "nc2_norm_cv", "nc2_angle_std"], 1),
        (["nc1_trace", "nc1_cdnv"], 1),
        ("nc1", 2),
    ):
        read[0] = 0
        neural_collapse(paths, names)
        assert read[0] == passes * x.size


def test_a_new_metric_is_one_decorated_function():
    @metric(target=2.0)
    def samples(frames):
        """Number of samples."""
        return np.full(frames.n_frames, float(frames.n_samples))

    try:
        x, labels = make(17, (5, 6), 4, (3,))
        nc = neural_collapse(dataset(x, labels, ("time",)))
        assert nc.samples.values.tolist() == [11.0] * 3
        assert nc.samples.attrs == {"long_name": "Number of samples.", "target": 2.0}
        assert samples(x[0], labels) == 11.0
    finally:
        del METRICS["samples"]


def test_lazily_stored_features_are_read_in_batches(tmp_path, monkeypatch):
    x, labels = make(18, (30, 30), 10, (4, 5))
    paths = dataset(x, labels)
    paths.to_zarr(tmp_path / "paths.zarr", consolidated=False)
    monkeypatch.setattr(class_means, "BLOCK_VALUES", 2000)
    stored = xr.open_zarr(tmp_path / "paths.zarr", chunks=None, consolidated=False)
    xr.testing.assert_allclose(neural_collapse(stored), neural_collapse(paths))
    assert not stored.features.variable._in_memory


def test_memory_stays_small_at_twenty_thousand_features():
    """p = 20,000: one p×p matrix would take 3.2 GB, a float64 copy of these features 480 MB."""
    K, n, p, frames = 10, 50, 20_000, 6
    rng = np.random.default_rng(19)
    labels = np.repeat(np.arange(K), n)
    x = np.empty((frames, K * n, p), dtype=np.float32)
    for frame in x:
        rng.standard_normal(out=frame, dtype=np.float32)
        frame += rng.standard_normal((K, p), dtype=np.float32)[labels]
    w = rng.standard_normal((K, p))
    tracemalloc.start()
    nc = neural_collapse(dataset(x, labels, ("time",)), weights=w)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 150e6
    # tr Σ_W = p(1 − 1/n) and tr Σ_B = p(1 − 1/K)(1 + 1/n) in expectation, relative errors about
    # √(2/(pK)) ≈ 0.003.
    expected = (1 - 1 / n) / ((1 - 1 / K) * (1 + 1 / n))
    np.testing.assert_allclose(nc.nc1_trace, expected, rtol=0.02)


@pytest.mark.parametrize(
    ("frames", "K", "n", "p", "factor"), [(500, 3, 100, 3, 20), (2, 10, 1000, 512, 5)]
)
@pytest.mark.slow
def test_speed_against_a_pseudo_inverse_per_frame(frames, K, n, p, factor):
    x, labels = make(20, (n,) * K, p, (frames,), shuffle=False)

    def loop():
        result = []
        for frame in x:
            mu = np.stack([frame[labels == k].mean(axis=0) for k in range(K)])
            away, centred = frame - mu[labels], mu - mu.mean(axis=0)
            within, between = away.T @ away / len(frame), centred.T @ centred / K
            result.append(np.trace(within @ np.linalg.pinv(between, 1e-9, hermitian=True)) / K)
        return np.array(result)

    spent = np.empty((10, 2))  # in turns, so that another load on the machine slows both
    for row in spent:
        begin = time.perf_counter()
        expected = loop()
        middle = time.perf_counter()
        value = nc1(x, labels)
        row[:] = middle - begin, time.perf_counter() - middle
    slow, fast = spent.min(axis=0)
    np.testing.assert_allclose(value, expected, rtol=1e-10)
    assert slow > factor * fast


def test_errors_name_the_argument_and_the_remedy():
    x, labels = make(21, (5, 5, 5), 4, (2, 3))
    paths = dataset(x, labels, time=[0.0, 0.5, 1.5])
    with pytest.raises(ValueError, match="paths must hold the variable"):
        neural_collapse(paths.rename(features="x"))
    with pytest.raises(TypeError, match=r"paths must be an xarray\.Dataset"):
        neural_collapse(x)
    with pytest.raises(ValueError, match="dimensions 'sample', 'feature'"):
        neural_collapse(paths.rename(feature="neuron"))
    with pytest.raises(ValueError, match="label missing"):
        neural_collapse(paths.drop_vars("label"))
    with pytest.raises(ValueError, match="at least 2 classes"):
        neural_collapse(paths.assign_coords(label=("sample", np.zeros(15, dtype=int))))
    with pytest.raises(ValueError, match=r"paths\.label must be the integers 0 to K-1"):
        neural_collapse(paths.assign_coords(label=("sample", labels + 1)))
    with pytest.raises(ValueError, match=r"metrics must be one of .*'nc1_trase'.*Did you mean"):
        neural_collapse(paths, ["nc1", "nc1_trase"])
    with pytest.raises(ValueError, match="metrics must name at least one"):
        neural_collapse(paths, [])
    with pytest.raises(ValueError, match="'nc3' needs the weights"):
        neural_collapse(paths, "nc3")
    with pytest.raises(ValueError, match="bias is only used with weights"):
        neural_collapse(paths, bias=np.zeros(3))
    with pytest.raises(
        ValueError, match=r"weights must fit the features, \(class: 3, feature: 4\)"
    ):
        neural_collapse(paths, weights=np.zeros((4, 3)))
    with pytest.raises(ValueError, match=r"weights must fit the features, .*epoch"):
        neural_collapse(
            paths, weights=xr.DataArray(np.zeros((2, 3, 4)), dims=("epoch", "class", "feature"))
        )
    with pytest.raises(
        ValueError, match=r"features must have shape .* with a sample for each of the 14 labels"
    ):
        nc1(x, labels[:-1])
    with pytest.raises(ValueError, match=r"features must have shape \(\.\.\., sample, feature\)"):
        nc1(x[0, 0, 0], labels)
    with pytest.raises(TypeError, match="features must hold real numbers"):
        nc1(x.astype(complex), labels)
    with pytest.raises(
        ValueError,
        match=r"weights must fit the features, \(class: 3, feature: 4\) after leading .*axis0: 2",
    ):
        nc3(x, labels, np.zeros((7, 3, 4)))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_feature_that_is_not_finite_is_named_with_its_place(bad):
    x, labels = make(22, (5, 5, 5), 4, (2, 3))
    x[1, 2, 7, 3] = bad
    paths = dataset(x, labels, time=[0.0, 0.5, 1.5])
    with pytest.raises(
        ValueError, match=rf"got {bad} at replicate=1, time=1\.5, sample=7, feature=3"
    ):
        neural_collapse(paths)
    with pytest.raises(ValueError, match=rf"got {bad} at axis0=1, axis1=2, sample=7, feature=3"):
        nc2_etf(x, labels)
