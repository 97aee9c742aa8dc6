"""Sets that touch are not separated; others are, down to the rounding of their numbers."""

from __future__ import annotations

import warnings
from fractions import Fraction

import numpy as np
import pytest
import xarray as xr

import lesde


def paths_of(a, b):
    """Replicates (R, n, p) of two classes at one time."""
    labels = np.repeat([0, 1], [a.shape[1], b.shape[1]])
    x = np.concatenate([a, b], axis=1)[:, None]
    dims = ("replicate", "time", "sample", "feature")
    return xr.Dataset({"features": (dims, x)}, {"label": ("sample", labels), "time": [0.0]})


def exact(x):
    return np.array([[Fraction(float(v)) for v in row] for row in x], dtype=object)


def along(a, b, vector):
    return (a @ vector).min() > (b @ vector).max()


def own_gap(a, b):
    return a.sum(axis=0) / len(a) - b.sum(axis=0) / len(b)


def nearest(a, b):
    mean, other = a.sum(axis=0) / len(a), b.sum(axis=0) / len(b)
    far = [((x - other) ** 2).sum() - ((x - mean) ** 2).sum() for x in a]
    far += [((x - mean) ** 2).sum() - ((x - other) ** 2).sum() for x in b]
    return min(far) > 0


def linear(a, b):
    """In the plane: all differences of the two sets lie in an open half-plane."""
    d = [x - y for x in a for y in b]
    return any(
        all(e[0] * f[1] - e[1] * f[0] > 0 or (e[0] * f[1] == e[1] * f[0] and e @ f > 0) for f in d)
        for e in d
    )


def counted(paths, criterion="projection", **options):
    found = lesde.separation_probability(paths, criterion, margin=True, **options)
    return (found["margin"].values[0, :, 0, 1] > 0).tolist()


def sets(seed, size, n=4, R=60):
    """Integer sets in the plane, most of them near to touching."""
    rng = np.random.default_rng(seed)
    a, b = rng.integers(-size, size + 1, (2, R, n, 2)).astype(float)
    for r in range(R):  # move along the own gap's larger axis to where they touch, or one beside it
        axis = np.argmax(np.abs(a[r].mean(axis=0) - b[r].mean(axis=0)))
        a[r, :, axis] += b[r, :, axis].max() - a[r, :, axis].min() + rng.integers(-1, 2)
    return a, b


@pytest.mark.parametrize("size", [2, 9, 1000, 10**7])
@pytest.mark.parametrize("scale", [1.0, 0.25, 2.0**40])
def test_integer_sets_are_judged_exactly(size, scale):
    a, b = sets(1, size)
    paths = paths_of(scale * a, scale * b)
    pairs = [(exact(x), exact(y)) for x, y in zip(a, b, strict=True)]
    expected = [along(x, y, own_gap(x, y)) for x, y in pairs]
    assert counted(paths, direction="own") == expected
    assert 5 < sum(expected) < 55
    pooled = own_gap(np.concatenate([x for x, _ in pairs]), np.concatenate([y for _, y in pairs]))
    for direction in ("ensemble", "initial"):
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", UserWarning
            )  # these replicates have no direction in common
            found = counted(paths, direction=direction)
        assert found == [along(x, y, pooled) for x, y in pairs]
    vector = np.array([3.0, 1.0])
    assert counted(paths, direction=np.broadcast_to(vector, (2, 2, 2))) == [
        along(x, y, exact(vector[None])[0]) for x, y in pairs
    ]
    assert counted(paths, "nearest_center") == [nearest(x, y) for x, y in pairs]
    if size <= 1000:
        assert counted(paths, "linear") == [linear(x, y) for x, y in pairs]


def tied(seed, R=200):
    """Integer sets that touch exactly along the gap of their own means."""
    rng = np.random.default_rng(seed)
    found = []
    while len(found) < R:
        a, b = rng.integers(-6, 7, (2, 3, 2)).astype(float)
        gap = 3 * own_gap(exact(a), exact(b))
        if gap.any() and (exact(a) @ gap).min() == (exact(b) @ gap).max():
            found.append((a, b))
    return tuple(np.array(each) for each in zip(*found, strict=True))


def test_touching_sets_are_not_separated():
    a, b = tied(2)
    turned = np.linalg.qr(np.random.default_rng(3).standard_normal((2, 2)))[0]
    for change in (
        lambda x: x,
        lambda x: 0.1 * x,
        lambda x: x @ turned,
        lambda x: 1e200 * (x + 0.1),
    ):
        paths = paths_of(change(a), change(b))
        assert not any(counted(paths, direction="own"))
        reduced = lesde.statistics(paths) if np.abs(paths.features).max() < 1e100 else None
        if reduced is not None:
            assert not any(counted(reduced, direction="own"))
            assert not any(counted(lesde.statistics(paths.astype("float32")), direction="own"))


@pytest.mark.parametrize("p", [1, 2, 3, 5])
def test_sets_with_a_point_in_common_are_not_linearly_separable(p):
    rng = np.random.default_rng(4)
    a = rng.standard_normal((40, 9, p))
    a[..., 0] = np.abs(a[..., 0])
    b = -a[:, :, ::-1].copy()
    b[..., 0] = -np.abs(b[..., 0])
    a[:, 0], b[:, 0] = 0.0, 0.0
    turned = np.linalg.qr(rng.standard_normal((p, p)))[0]
    shift = rng.standard_normal(p)
    for scale in (1.0, 1e-140, 1e140):
        touching = paths_of(scale * (a @ turned + shift), scale * (b @ turned + shift))
        assert not any(counted(touching, "linear"))
        a2 = a.copy()
        a2[..., 0] += 1e-6
        apart = paths_of(scale * (a2 @ turned + shift), scale * (b @ turned + shift))
        assert all(counted(apart, "linear"))


def test_equal_sets_are_not_separated():
    x = np.random.default_rng(5).standard_normal((10, 6, 3))
    for criterion in ("projection", "nearest_center", "linear"):
        found = lesde.separation_probability(paths_of(x, x), criterion, direction="own")
        assert float(found.probability[0]) == 0.0
