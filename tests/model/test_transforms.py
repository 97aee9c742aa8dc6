"""Feature transforms: the structured product against the matrices."""

from __future__ import annotations

import numpy as np
import pytest

import lesde
from lesde.model.transforms import logit_directions

RNG = np.random.default_rng(3)


def make_transform(value, K, p):
    """The transform of a model with K classes and p features."""
    return lesde.LESDE(lesde.TwoLevel(1, 0), K, p, transform=value).transform


def test_logit_matrices_are_projections_on_the_directions():
    K = 5
    H = make_transform("logits", K, K).array()
    for l in range(K):
        d = -np.ones(K) / K
        d[l] += 1
        np.testing.assert_allclose(H[l], np.outer(d, d) / (d @ d), atol=1e-15)
        np.testing.assert_allclose(H[l] @ H[l], H[l], atol=1e-15)
    np.testing.assert_allclose(logit_directions(K).sum(0), 0, atol=1e-15)


@pytest.mark.parametrize(
    ("value", "K", "p"),
    [
        ("identity", 3, 4),
        ("logits", 2, 2),
        ("logits", 6, 6),
        (RNG.normal(size=(4, 4)), 3, 4),
        (RNG.normal(size=(3, 4, 4)), 3, 4),
    ],
    ids=["identity", "logits2", "logits6", "shared", "classes"],
)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_product_equals_the_matrices(value, K, p, dtype):
    transform = make_transform(value, K, p)
    means = np.random.default_rng(0).normal(size=(2, 5, K, p)).astype(dtype)
    expected = np.einsum("lij,...lj->...li", transform.array(), means.astype(float))
    tolerance = {"float32": 2e-6, "float64": 1e-14}[dtype]
    got = transform(means)
    assert got.dtype == np.dtype(dtype)
    np.testing.assert_allclose(got, expected, atol=tolerance)


def test_shared_is_recognised():
    matrix = RNG.normal(size=(2, 2))
    assert make_transform("identity", 3, 2).is_shared
    assert make_transform(matrix, 3, 2).is_shared
    assert not make_transform("logits", 3, 3).is_shared
    assert not make_transform(RNG.normal(size=(3, 2, 2)), 3, 2).is_shared


def test_matrices_are_copied_and_frozen():
    given = np.eye(2)
    transform = make_transform(given, 3, 2)
    given[0, 0] = 7
    assert transform.array()[0, 0, 0] == 1
    with pytest.raises(ValueError, match="read-only"):
        transform.array()[0, 0, 0] = 2


@pytest.mark.parametrize(
    ("value", "K", "p", "error", "message"),
    [
        ("logit", 3, 3, ValueError, "transform must be one of .*Did you mean 'logits'"),
        ("logits", 3, 4, ValueError, "n_classes=3 and n_features=4"),
        ("logits", 1, 1, ValueError, "at least 2 classes; got n_classes=1"),
        (np.ones((2, 3)), 3, 3, ValueError, r"transform must have shape .*got .*\(2, 3\)"),
        (
            np.ones((2, 3, 3)),
            3,
            3,
            ValueError,
            r"transform must have shape \(3, 3\) or \(3, 3, 3\)",
        ),
        (np.full((3, 3), np.nan), 3, 3, ValueError, r"transform must be finite; got nan at index"),
        (1j * np.eye(3), 3, 3, TypeError, "transform must be an array of real numbers"),
        (None, 3, 3, TypeError, "transform must be an array of real numbers; got None"),
    ],
)
def test_bad_transforms(value, K, p, error, message):
    with pytest.raises(error, match=message):
        make_transform(value, K, p)
