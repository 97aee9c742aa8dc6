"""The model: what it holds, that it cannot change, and what it refuses."""

from __future__ import annotations

import json

import numpy as np
import pytest

import lesde
from lesde import LESDE, ClassMatrix, TwoLevel

KERNEL = TwoLevel("2/(1+t)", -0.5)


def test_sizes_weights_labels():
    model = LESDE(KERNEL, 3, 2, n_per_class=[1, 4, 5])
    assert (model.n_samples, model.is_balanced) == (10, False)
    np.testing.assert_allclose(model.weights, [0.1, 0.4, 0.5], rtol=1e-15)
    assert model.labels.tolist() == [0] + [1] * 4 + [2] * 5
    assert LESDE(KERNEL, np.int64(3), 2, np.array([7, 7, 7])).is_balanced


@pytest.mark.parametrize(
    ("noise", "covariance"),
    [
        (0.3, [0.09 * np.eye(2)] * 3),
        (0, [np.zeros((2, 2))] * 3),
        ([0.1, 0.2, 0.0], [0.01 * np.eye(2), 0.04 * np.eye(2), np.zeros((2, 2))]),
        ([[1, 0], [2, 1]], [[[1, 2], [2, 5]]] * 3),
        (np.arange(12.0).reshape(3, 2, 2), [m @ m.T for m in np.arange(12.0).reshape(3, 2, 2)]),
    ],
    ids=["scalar", "zero", "per class", "factor", "factors"],
)
def test_noise_covariance(noise, covariance):
    factor = LESDE(KERNEL, 3, 2, noise=noise).noise_factor()
    np.testing.assert_allclose(factor @ factor.swapaxes(-1, -2), covariance)


def test_another_number_of_classes():
    for counts in (5, [5, 5]):
        assert LESDE(KERNEL, 2, 2, counts).replace(n_classes=3).counts.tolist() == [5, 5, 5]


def test_immutable():
    noise, counts = np.ones(3), np.array([1, 2, 3])
    model = LESDE(KERNEL, 3, 2, counts, noise=noise)
    noise[0], counts[0] = 9, 9
    assert model.noise[0] == 1
    assert model.counts[0] == 1
    with pytest.raises(AttributeError, match=r"immutable.*replace\(n_classes="):
        model.n_classes = 4
    for array in (model.noise, model.counts):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 5
    assert lesde.derive(model) is lesde.derive(model)


def test_replace():
    model = LESDE(KERNEL, 3, 3, 20, "logits", 0.2)
    other = model.replace(n_classes=5, n_features=5)
    assert (other.counts.tolist(), other.transform.kind) == ([20] * 5, "logits")
    assert (float(other.noise), other.kernel) == (0.2, KERNEL)
    assert model.n_classes == 3
    matrix = LESDE(KERNEL, 3, 2, [1, 2, 3], np.diag([1.0, 2.0]), [0.1, 0.2, 0.3])
    copy = matrix.replace()
    np.testing.assert_array_equal(copy.transform_array(), matrix.transform_array())
    np.testing.assert_array_equal(copy.noise, matrix.noise)
    assert copy.counts.tolist() == [1, 2, 3]
    with pytest.raises(TypeError, match=r"replace knows kernel, n_classes.*got classes"):
        model.replace(classes=3)


def test_described_as_json():
    for model in (
        LESDE(KERNEL, 3, 3, [1, 2, 3], "logits"),
        LESDE(ClassMatrix(np.eye(2)), 2, 2, transform=np.eye(2), noise=np.eye(2)),
    ):
        text = json.loads(json.dumps(model.describe()))
        assert text["n_classes"] == model.n_classes
        assert text["n_per_class"] == model.counts.tolist()
    assert repr(LESDE(KERNEL, 3, 2)) == (
        "LESDE(TwoLevel(alpha=2/(t + 1), beta=-1/2), n_classes=3, n_features=2, n_per_class=100, "
        "transform='identity', noise=0.1)"
    )


def test_one_class():
    model = LESDE(TwoLevel(-1, 5), 1, 2, 10, noise=0.5)
    law = lesde.law(model, [0, 2.0], [[1.0, 2.0]])
    np.testing.assert_allclose(law["mean"].values[1], np.exp(-2) * np.array([[1, 2]]), rtol=1e-13)
    assert lesde.derive(model).critical_constant is None


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"kernel": 2.0}, TypeError, r"kernel must be one such as .*; got 2\.0"),
        ({"n_classes": 0}, ValueError, "n_classes must be an integer of at least 1; got 0"),
        ({"n_classes": 3.0}, TypeError, r"n_classes must be an integer of at least 1; got 3\.0"),
        ({"n_classes": True}, TypeError, "n_classes must be an integer.*got True"),
        ({"n_features": -2}, ValueError, "n_features must be .* got -2"),
        ({"n_features": "2"}, TypeError, "n_features must be .* got '2'"),
        ({"n_per_class": 0}, ValueError, "n_per_class must be .* got 0"),
        ({"n_per_class": 1.5}, TypeError, r"n_per_class must be .* got 1\.5"),
        (
            {"n_per_class": [1, 2]},
            ValueError,
            "n_per_class must be one integer or 3 of them.*got 2 values",
        ),
        ({"n_per_class": [1, 2, -3]}, ValueError, r"n_per_class\[2\] must be .* got -3"),
        ({"n_per_class": np.ones(3)}, TypeError, r"n_per_class\[0\] must be an integer"),
        ({"noise": -0.1}, ValueError, r"noise must not be negative .* -0\.1"),
        ({"noise": float("nan")}, ValueError, "noise must be .*got nan"),
        ({"noise": None}, TypeError, "noise must be a number, a string or SymPy .*; got None"),
        (
            {"noise": [0.1, -0.2, 0.1]},
            ValueError,
            r"noise must not be negative .* -0\.2 for class 1",
        ),
        (
            {"noise": np.ones((3, 3))},
            ValueError,
            r"noise must have shape \(3\) or \(2, 2\) or \(3, 2, 2\)",
        ),
        (
            {"noise": [0.1, np.inf, 0.1]},
            ValueError,
            r"noise must be finite; got inf at index \(1,\)",
        ),
        (
            {"transform": "logits"},
            ValueError,
            "one feature per class; got n_classes=3 and n_features=2",
        ),
        ({"kernel": ClassMatrix(np.eye(2))}, ValueError, "n_classes must be 2, the size.*got 3"),
    ],
)
def test_bad_arguments(change, error, message):
    with pytest.raises(error, match=message):
        LESDE(**{"kernel": KERNEL, "n_classes": 3, "n_features": 2, **change})
