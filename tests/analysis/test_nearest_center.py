"""The nearest class centre, at own and at given centres, against scikit-learn and plain loops."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import xarray as xr
from sklearn.neighbors import NearestCentroid

import lesde
from lesde import neural_collapse
from lesde.analysis import class_means
from lesde.analysis.collapse import METRICS, nc3, nc3_duality, nc4, ncc_accuracy


def make(seed, counts, p, leading=(), spread=1.0):
    """Samples in no order about random class means, which are the same for every ``seed``."""
    means = np.random.default_rng(99).standard_normal((*leading, len(counts), p))
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    return means[..., labels, :] + spread * rng.standard_normal((*leading, len(labels), p)), labels


def dataset(features, labels, dims=("replicate", "time"), **coords):
    return xr.Dataset(
        {"features": ((*dims, "sample", "feature"), features)},
        {"label": ("sample", labels), **coords},
    )


def plain(x, labels, weights, bias, centers):
    """NC3, self-duality, NC4 and the accuracy of one frame by loops over samples and classes."""
    K = labels.max() + 1
    mu = np.array([x[labels == k].mean(axis=0) for k in range(K)])
    centers = mu if centers is None else centers
    centred = [mu[k] - sum(mu) / K for k in range(K)]
    rows = [weights[k] - sum(weights) / K for k in range(K)]
    sizes = [np.sqrt(sum(v @ v for v in each)) for each in (rows, centred)]
    duality = sum(np.sum((rows[k] / sizes[0] - centred[k] / sizes[1]) ** 2) for k in range(K))
    product = np.array([[rows[k] @ centred[l] for l in range(K)] for k in range(K)])
    frame = (np.eye(K) - 1 / K) / np.sqrt(K - 1)
    correct = agreed = 0
    for sample, label in zip(x, labels, strict=True):
        nearest = min(range(K), key=lambda k: np.sum((sample - centers[k]) ** 2))
        decided = max(range(K), key=lambda k: weights[k] @ sample + bias[k])
        correct, agreed = correct + (nearest == label), agreed + (nearest == decided)
    return {
        "nc3": np.linalg.norm(product / np.sqrt((product**2).sum()) - frame),
        "nc3_duality": np.sqrt(duality),
        "nc4": agreed / len(x),
        "ncc_accuracy": correct / len(x),
    }


@pytest.mark.parametrize(
    ("counts", "p"),
    [((30, 30, 30), 3), ((9, 40, 21, 6), 12), ((12, 5), 60), ((15, 4, 6), 1)],
    ids=["balanced", "unbalanced", "p above n", "one feature"],
)
@pytest.mark.parametrize("values", [2**18, 200], ids=["one block", "several blocks"])
@pytest.mark.parametrize("held_out", [False, True])
def test_accuracy_is_that_of_scikit_learn(counts, p, values, held_out, monkeypatch):
    monkeypatch.setattr(class_means, "BLOCK_VALUES", values)
    x, labels = make(1, counts, p, (2, 3))
    train, train_labels = (
        make(2, tuple(2 * n for n in counts), p, (2, 3)) if held_out else (x, labels)
    )
    expected = np.empty((2, 3))
    centers = np.empty((2, 3, len(counts), p))
    for at in np.ndindex(2, 3):
        rule = NearestCentroid().fit(train[at], train_labels)
        expected[at], centers[at] = rule.score(x[at], labels), rule.centroids_
    found = ncc_accuracy(x, labels, centers=centers if held_out else None)
    np.testing.assert_allclose(found, expected, atol=1e-12)
    assert expected.mean() > 0.3
    assert expected.mean() < 1 or p > len(labels)  # wide features lie near their own centre


@pytest.mark.parametrize("held_out", [False, True])
def test_classifier_and_nearest_center_equal_loops(held_out):
    x, labels = make(3, (9, 14, 6, 11), 7, (2, 2))
    train, train_labels = make(4, (20, 20, 20, 20), 7, (2, 2))
    rng = np.random.default_rng(5)
    w, b = rng.standard_normal((2, 2, 4, 7)) + 1.0, 3 * rng.standard_normal((2, 2, 4))
    centers = np.stack([train[:, :, train_labels == k].mean(axis=2) for k in range(4)], axis=2)
    given = centers if held_out else None
    found = {
        "nc3": nc3(x, labels, w),
        "nc3_duality": nc3_duality(x, labels, w),
        "nc4": nc4(x, labels, w, b, centers=given),
        "ncc_accuracy": ncc_accuracy(x, labels, centers=given),
    }
    for at in np.ndindex(2, 2):
        expected = plain(x[at], labels, w[at], b[at], centers[at] if held_out else None)
        for name, value in expected.items():
            assert found[name][at] == pytest.approx(value, rel=1e-12), name
    # The bias and the centres make a difference here, so leaving one out would be seen.
    assert (nc4(x, labels, w, centers=given) != found["nc4"]).any()
    if held_out:
        assert (ncc_accuracy(x, labels) != found["ncc_accuracy"]).any()


def test_self_duality_is_apart_from_the_frame():
    """Means on no simplex frame with weights in line with them: dual, yet far from a shared frame."""
    rng = np.random.default_rng(6)
    means = rng.standard_normal((5, 8)) * np.arange(1.0, 6.0)[:, None]
    labels = np.repeat(np.arange(5), 3)
    x = means[labels]
    w = 0.3 * (means - means.mean(axis=0)) + rng.standard_normal(8)
    assert nc3_duality(x, labels, w) == pytest.approx(0, abs=1e-12)
    assert nc3(x, labels, w) > 0.3
    assert nc3_duality(x, labels, -w) == pytest.approx(2)
    assert np.isnan(nc3_duality(x, labels, np.ones((5, 8))))
    assert np.isnan(nc3_duality(np.full((15, 8), 0.1), labels, w))


def test_ties_count_what_a_draw_among_them_would():
    labels = np.array([0, 0, 1, 1, 2, 2])
    centers = np.array([[0.0, 0.0], [2.0, 0.0], [1.0, 5.0]])
    x = np.array([[1.0, 0.0], [0, 0], [1, -3], [2, 0], [1, 5], [1, 2.4]])
    # The last is 2.6 from centres 0 and 1, and from 2; the first and third are midway of two.
    np.testing.assert_allclose(
        ncc_accuracy(x, labels, centers=centers), (0.5 + 1 + 0.5 + 1 + 1 + 1 / 3) / 6
    )
    for order in ([1, 2, 0], [2, 1, 0]):
        renamed = np.array(order)[labels]
        moved = np.empty_like(centers)
        moved[order] = centers
        assert ncc_accuracy(x, renamed, centers=moved) == pytest.approx(
            ncc_accuracy(x, labels, centers=centers)
        )


@pytest.mark.parametrize("value", [0.0, 0.1, 1e6 / 3])
def test_features_that_coincide_have_the_accuracy_of_guessing(value):
    """A dead layer: class means that differ by the rounding of their sums tell nothing."""
    labels = np.repeat([0, 1, 2], [700, 7, 50])
    x = np.full((len(labels), 3), value)
    assert ncc_accuracy(x, labels) == pytest.approx(1 / 3)
    apart = x + np.eye(3)[labels] * (value + 1e-3)
    assert ncc_accuracy(apart, labels) == 1.0
    assert METRICS["ncc_accuracy"].target == 1.0


def test_rotation_translation_and_scale_change_nothing():
    x, labels = make(7, (30, 20, 25), 6)
    train, train_labels = make(8, (40, 40, 40), 6)
    centers = np.array([train[train_labels == k].mean(axis=0) for k in range(3)])
    rng = np.random.default_rng(9)
    turn, shift = np.linalg.qr(rng.standard_normal((6, 6)))[0], 1e4 * rng.standard_normal(6)
    for given in (None, centers):
        wanted = ncc_accuracy(x, labels, centers=given)
        for move in (lambda v: v @ turn, lambda v: v + shift, lambda v: 1e-8 * v):
            moved = None if given is None else move(given)
            assert ncc_accuracy(move(x), labels, centers=moved) == pytest.approx(wanted)


def test_own_centers_flatter_and_those_of_training_do_not():
    """Noise without classes, p = 200, 10 samples a class: nothing to be found.

    Null: with centres that do not know the samples the accuracy is 1/K: given the centres, samples are
    drawn alike in all classes, and classes are balanced. 40 frames of 50 samples, so the standard error
    is at most √(0.2·0.8/2000) = 0.009; tolerance 5 of them.
    """
    rng = np.random.default_rng(10)
    labels = np.repeat(np.arange(5), 10)
    x, train = rng.standard_normal((2, 40, 50, 200))
    centers = train.reshape(40, 5, 10, 200).mean(axis=2)
    assert abs(ncc_accuracy(x, labels, centers=centers).mean() - 0.2) < 5 * 0.009
    assert ncc_accuracy(x, labels).mean() > 0.95


def test_centers_as_paths_statistics_data_array_and_array_agree(monkeypatch):
    monkeypatch.setattr(class_means, "BLOCK_VALUES", 700)  # three frames a batch
    x, labels = make(11, (20, 18, 20), 4, (2, 5))
    train, train_labels = make(12, (9, 30, 25), 4, (2, 5))
    coords = {"time": np.arange(5.0), "replicate": [3, 4]}
    paths, training = dataset(x, labels, **coords), dataset(train, train_labels, **coords)
    means = xr.concat(
        [
            training.features.isel(sample=np.flatnonzero(train_labels == k)).mean("sample")
            for k in range(3)
        ],
        dim="class",
    )
    w, b = np.random.default_rng(13).standard_normal((2, 3, 4)), np.ones(3)
    ways = [
        training.transpose("feature", "time", "sample", "replicate"),
        lesde.statistics(training),
        means,
        means.transpose("replicate", "time", "class", "feature").values,
    ]
    found = [neural_collapse(paths, weights=w[0], bias=b, centers=way) for way in ways]
    assert list(found[0].data_vars)[-2:] == ["nc4", "ncc_accuracy"]
    for other in found[1:]:
        xr.testing.assert_allclose(found[0], other)
    for name in ("nc4", "ncc_accuracy"):
        own = neural_collapse(paths, name, weights=w[0], bias=b)[name]
        assert not np.array_equal(own, found[0][name])
    # All other metrics are of the held-out features alone.
    alone = neural_collapse(paths, weights=w[0], bias=b)
    xr.testing.assert_equal(alone.drop_vars("nc4"), found[0].drop_vars(["nc4", "ncc_accuracy"]))
    # Centres of one replicate serve all: the dimension may be left out.
    one = neural_collapse(paths, "ncc_accuracy", centers=training.isel(replicate=0, drop=True))
    same = neural_collapse(paths, "ncc_accuracy", centers=means.isel(replicate=0, drop=True))
    xr.testing.assert_allclose(one, same)


def test_accuracy_is_computed_where_it_is_asked_for():
    x, labels = make(14, (5, 6), 3, (2, 2))
    paths = dataset(x, labels)
    assert "ncc_accuracy" not in neural_collapse(paths)
    assert list(neural_collapse(paths, "ncc_accuracy").data_vars) == ["ncc_accuracy"]
    assert "ncc_accuracy" in neural_collapse(paths, centers=paths)
    np.testing.assert_array_equal(
        neural_collapse(paths, "ncc_accuracy").ncc_accuracy, ncc_accuracy(x, labels)
    )


def test_memory_stays_small_for_wide_layers():
    """p = 20,000, N = 600, K = 10: an N×K×p array would take 960 MB, a p×p one 3.2 GB."""
    K, n, p = 10, 60, 20_000
    rng = np.random.default_rng(15)
    labels = np.repeat(np.arange(K), n)
    x = rng.standard_normal((K * n, p), dtype=np.float32)
    centers = rng.standard_normal((K, p))
    tracemalloc.start()
    value = ncc_accuracy(x, labels, centers=centers)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 30e6
    assert 0 <= value <= 1


def test_errors_name_the_argument_and_the_remedy():
    x, labels = make(16, (5, 5, 5), 4, (2, 3))
    paths = dataset(x, labels, time=[0.0, 1.0, 2.0])
    with pytest.raises(
        ValueError, match=r"centers must fit the features, \(class: 3, feature: 4\).*\'class\': 2"
    ):
        neural_collapse(paths, centers=paths.isel(sample=labels < 2))
    with pytest.raises(ValueError, match=r"cannot align.*time"):
        neural_collapse(paths, centers=paths.assign_coords(time=[0.0, 1.0, 3.0]))
    with pytest.raises(
        ValueError,
        match=r"centers must fit the features.*\(replicate: 2, time: 3\); got .*'epoch'",
    ):
        neural_collapse(paths, centers=paths.expand_dims("epoch"))
    with pytest.raises(ValueError, match=r"cannot align.*time"):
        neural_collapse(paths, centers=paths.isel(time=slice(2)))
    with pytest.raises(
        ValueError, match=r"centers must fit the features, \(class: 3, feature: 4\)"
    ):
        neural_collapse(paths, centers=np.zeros((3, 5)))
    with pytest.raises(
        ValueError,
        match=r"centers must fit the features, \(class: 3, feature: 4\).*got shape \(4, 4\)",
    ):
        ncc_accuracy(x, labels, centers=np.zeros((4, 4)))
    with pytest.raises(ValueError, match="must hold the features of every sample for centers"):
        neural_collapse(lesde.statistics(paths), centers=paths)
    broken = paths.copy(deep=True)
    broken.features[1, 2, 7, 3] = np.nan
    with pytest.raises(
        ValueError, match=r"centers\.features must be finite; got nan at .*sample=7"
    ):
        neural_collapse(paths, centers=broken)
