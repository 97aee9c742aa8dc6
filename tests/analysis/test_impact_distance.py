"""Elasticity by distance: the strength of a feature kernel, recovered from single steps."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

import lesde
from lesde.analysis import impact_from_changes
from lesde.analysis.impact.moments import bin_changes, make_bins, pair_distances

from .impact_systems import H_STEP, draw, samples, step_changes, transform_matrices

TRUTH = {"a": 2.0, "b": 6.0, "d": -0.8}
FORMULA = "s*a*exp(-r2/b) + (1-s)*d*exp(-r2/b)"
FIVE_SIGMA = 1 - 5.7e-7


def kappa(r2, same):
    return np.where(same, TRUTH["a"], TRUTH["d"]) * np.exp(-r2 / TRUTH["b"])


def system(seed, *, noise=0.1, kind="identity", per_class=12, by="r2", bins=10, times=None):
    """The impact of steps under κ, with what it takes to bin them again."""
    rng = np.random.default_rng(seed)
    H = transform_matrices(kind, 3, 3)
    states = []
    for _ in range(times or 1):
        x, labels = samples(rng, (20, 16, 24), 3)
        drawn = draw(rng, labels, per_class)
        r2 = ((x[:, None] - x) ** 2).sum(-1)
        same = labels[:, None] == labels
        strength = kappa(r2, same)
        changes = step_changes(rng, x, labels, drawn, lambda j, κ=strength: κ[:, j], H, noise)
        states.append((changes, x[drawn], x))
    changes, drawn_x, every = (np.stack(part) for part in zip(*states, strict=True))
    if times is None:
        changes, drawn_x, every = changes[0], drawn_x[0], every[0]
    impact = impact_from_changes(
        changes, labels, drawn_x, labels[drawn], H_STEP, features=every, by=by, bins=bins
    )
    return impact, x, labels, drawn, r2, H


@pytest.mark.parametrize("kind", ["identity", "logits"])
@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_strength_is_the_mean_over_pairs_of_the_bin(kind, noise):
    """Null: κ averaged over the pairs of the bin with weight ‖u_J‖², found pair by pair.

    Exact without noise; with it, within intervals of the confidence of 5σ.
    """
    impact, x, labels, drawn, r2, H = system(1, noise=noise, kind=kind)
    found = lesde.impact_by_distance(impact, kind, FIVE_SIGMA)
    edges = found.bin_edges.values
    for p, same in enumerate((True, False)):
        for b in range(10):
            top, bottom, distance, count = 0.0, 0.0, 0.0, 0
            for j in drawn:
                weight = np.sum((H[labels[j]] @ x[j]) ** 2)
                for i in range(len(x)):
                    inside = edges[b] <= r2[i, j] < edges[b + 1] or (
                        b == 9 and r2[i, j] >= edges[9]
                    )
                    if inside and (labels[i] == labels[j]) == same:
                        top += weight * kappa(r2[i, j], same)
                        distance += weight * r2[i, j]
                        bottom += weight
                        count += 1
            at = found.isel(pair=p, bin=b)
            assert int(at["count"]) == count
            if not count:
                assert np.isnan(float(at.strength))
                continue
            assert float(at.distance) == pytest.approx(distance / bottom)
            if noise == 0:
                assert float(at.strength) == pytest.approx(top / bottom, abs=1e-12)
            elif float(at.strength_se) > 0:
                assert float(at.strength_lower) < top / bottom < float(at.strength_upper)
    assert found["count"].sum() == len(drawn) * len(x)


def test_the_parameters_of_the_kernel_come_back():
    """Null: a, b, d of κ. 36 steps; within 5 standard errors, which are at most 8 % of a and b."""
    impact, *_ = system(3, bins=14)
    strength = lesde.impact_by_distance(impact)
    fit = lesde.fit_feature_kernel(strength, FORMULA, {"a": 1.0, "b": 3.0, "d": -0.2})
    assert list(fit.parameter.values) == ["a", "b", "d"]
    truth = np.array(list(TRUTH.values()))
    assert (np.abs(fit.value - truth) < 5 * fit.value_se).all()
    assert (fit.value_se[:2] < 0.08 * truth[:2]).all()
    assert float(fit.chi_square) < 4 * float(fit.freedom)
    kernel = lesde.FeatureKernel(
        fit.attrs["formula"], dict(zip(fit.parameter.values, fit.value.values, strict=True))
    )
    assert kernel.formula(0.0, 0, 0, 1, 0) == pytest.approx(float(fit.value[0]))
    wrong = lesde.fit_feature_kernel(strength, "a + d*(1-s) + 0*r2", {"a": 1.0, "d": -1.0})
    assert float(wrong.chi_square) > 10 * float(wrong.freedom)


def test_intervals_of_the_parameters_cover_the_truth():
    """Null: 95 % intervals of a, b, d cover with probability 0.95; 120 repetitions along the time axis.

    Standard error of a share 0.02, of which 5 are allowed.
    """
    impact, *_ = system(4, times=120, noise=0.2, bins=20)
    strength = lesde.impact_by_distance(impact)
    inside = []
    for t in range(120):
        fit = lesde.fit_feature_kernel(strength.isel(time=t), FORMULA, TRUTH)
        truth = np.array([TRUTH[name] for name in fit.parameter.values])
        inside.append((fit.value_lower <= truth) & (truth <= fit.value_upper))
    shares = np.mean(inside, axis=0)
    assert (np.abs(shares - 0.95) < 5 * np.sqrt(0.95 * 0.05 / 120)).all(), shares


def test_by_cosine():
    impact, x, _, drawn, *_ = system(5, noise=0.0, by="cosine", bins=[-1, -0.5, 0, 0.5, 1])
    found = lesde.impact_by_distance(impact)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    cosine = unit[drawn] @ unit.T
    for b, (low, high) in enumerate([(-1, -0.5), (-0.5, 0), (0, 0.5), (0.5, 1.1)]):
        inside = (cosine >= low) & (cosine < high)
        assert int(found["count"].isel(bin=b).sum()) == inside.sum()
    assert found.distance.attrs["long_name"] == "cosine of features"
    with pytest.raises(ValueError, match="formula must be in c, s"):
        lesde.fit_feature_kernel(found, "a*exp(-r2)", {"a": 1.0})
    fit = lesde.fit_feature_kernel(found, "a + b*c + d*s", {"a": 0.0, "b": 1.0, "d": 0.0})
    assert np.isfinite(fit.value_se).all()


def test_distances_and_bins():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 5, 4)) + 1e4, rng.normal(size=(2, 7, 4)) + 1e4
    wanted = ((x[:, :, None] - y[:, None]) ** 2).sum(-1)
    np.testing.assert_allclose(pair_distances(x, y, "input_r2"), wanted, rtol=1e-8)
    assert (pair_distances(np.zeros((1, 2)), y[0, :, :2], "cosine") == 0).all()
    bins = np.array([0.0, 1.0, 3.0])
    one = np.ones((1, 6, 1))
    at = np.array([[-1, 0, 0.5, 1, 3, 3.1]])
    counts = bin_changes(bins, one, at, np.ones((1, 6), bool))["bin_count"]
    np.testing.assert_array_equal(counts[0, 0], [2, 2])
    even = make_bins(4, rng.random(1000))
    assert len(even) == 5
    assert (np.histogram(np.linspace(even[0], even[-1], 50), even)[0] > 0).all()
    changes = rng.normal(size=(2, 3, 2))
    sums = bin_changes(
        bins,
        changes,
        np.array([[0.5, 2.0, 9.0], [2.0, 2.5, 0.0]]),
        np.array([[True, True, False], [False, True, True]]),
    )
    np.testing.assert_allclose(sums["bin_change"][0, 0], changes[0, :2])
    np.testing.assert_allclose(sums["bin_change"][1, 0], changes[1, [2, 1]])
    np.testing.assert_allclose(sums["bin_change"][1, 1, 1], changes[1, 0])
    assert sums["bin_count"].sum() == 5


def test_replicates_and_what_does_not_fit():
    parts = [system(seed, noise=0.1, bins=[0, 2, 5, 40])[0] for seed in range(9)]
    many = xr.concat(parts, "replicate")
    found = lesde.impact_by_distance(many)
    assert found.attrs["errors"] == "replicate"
    assert found.strength.dims == ("pair", "bin")
    left = np.stack(
        [
            lesde.impact_by_distance(
                many.isel(replicate=[r for r in range(9) if r != out])
            ).strength
            for out in range(9)
        ]
    )
    wanted = np.sqrt(8 / 9 * ((left - left.mean(0)) ** 2).sum(0))
    np.testing.assert_allclose(found.strength_se, wanted, rtol=1e-9)
    np.testing.assert_allclose(
        np.einsum("pbpb->pb", found.strength_covariance), found.strength_se**2, rtol=1e-12
    )
    plain = parts[0].drop_vars(["bin_change", "bin_count", "bin_distance"])
    with pytest.raises(ValueError, match="measure it with by="):
        lesde.impact_by_distance(plain)
    for formula, start, message in (
        ("a*exp(-r2/b)", {"a": 1.0}, "b"),
        ("a*exp(-r2)", {"a": 1.0, "b": 1.0}, "all of the parameters in start, a, b; got a, r2"),
        ("a*t*exp(-r2)", {"a": 1.0}, "formula must be in r2"),
        ("(a + b)*exp(-r2)", {"a": 1.0, "b": 1.0}, "in the same way"),
        ("a/b*exp(-r2)", {"a": 1.0, "b": 0.0}, "finite"),
        (
            "a + b*s + d*r2 + f*s*r2 + k*r2**2 + m*s*r2**2 + n*r2**3",
            dict.fromkeys("abdfkmn", 1.0),
            "at least as many",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            lesde.fit_feature_kernel(found, formula, start)
    with pytest.raises(ValueError, match="select time"):
        lesde.fit_feature_kernel(found.expand_dims("time"), "a*exp(-r2)", {"a": 1.0})
    with pytest.raises(ValueError, match="FeatureKernel depends"):
        lesde.fit_feature_kernel(found.assign_attrs(by="input_r2"), "a*exp(-r2)", {"a": 1.0})


def strengths_of(function):
    """Strengths by distance of a known function, without noise, each with the standard error 0.01."""
    x = np.stack([np.linspace(0.5, 12.0, 12)] * 2)
    values = np.stack([function(x[0], 1.0), function(x[1], 0.0)])
    covariance = (1e-4 * np.eye(24)).reshape(2, 12, 2, 12)
    both = ("pair", "bin")
    return xr.Dataset(
        {
            "strength": (both, values),
            "strength_se": (both, np.full((2, 12), 0.01)),
            "distance": (both, x),
            "weight": (both, np.ones((2, 12))),
            "strength_covariance": (("pair", "bin", "pair_", "bin_"), covariance),
        },
        {"pair": ["same", "other"], "pair_": ["same", "other"]},
        {"by": "r2"},
    )


def test_a_search_from_far_ends_where_one_from_near_does() -> None:
    """exp(-r2/b) is flat far from the truth: the fit does not depend on where the search starts."""
    found = strengths_of(lambda x, s: 2.0 * np.exp(-x / 3.0))
    near = lesde.fit_feature_kernel(found, "a*exp(-r2/b)", {"a": 2.0, "b": 3.0})
    for start in ({"a": 5.0, "b": 100.0}, {"a": 1.0, "b": 0.05}, {"a": 0.1, "b": 30.0}):
        far = lesde.fit_feature_kernel(found, "a*exp(-r2/b)", start)
        np.testing.assert_allclose(far.value, near.value, rtol=1e-5)
        np.testing.assert_allclose(far.value_se, near.value_se, rtol=1e-4)


def test_a_parameter_that_is_not_felt_is_refused() -> None:
    """Strengths that do not fall with distance send b to infinity; it has no value and no error."""
    found = strengths_of(lambda x, s: np.full_like(x, 2.0))
    with pytest.raises(ValueError, match=r"went to .*b = .*hardly depend"):
        lesde.fit_feature_kernel(found, "a*exp(-r2/b)", {"a": 1.0, "b": 5.0})
    with pytest.raises(ValueError, match=r"went to .*b = .*hardly depend"):
        lesde.fit_feature_kernel(found, "a + exp(-r2/b)", {"a": 1.0, "b": 1e-7})


def test_errors_do_not_depend_on_the_unit_of_a_parameter() -> None:
    found = strengths_of(lambda x, s: 2.0 * np.exp(-x / 3.0))
    one = lesde.fit_feature_kernel(found, "a*exp(-r2/b)", {"a": 2.0, "b": 3.0})
    other = lesde.fit_feature_kernel(found, "a*exp(-1e12*r2/b)", {"a": 2.0, "b": 3e12})
    np.testing.assert_allclose(other.value_se / [1, 1e12], one.value_se, rtol=1e-5)


def test_a_name_without_a_start_is_named_with_what_to_do() -> None:
    found = strengths_of(lambda x, s: 2.0 * np.exp(-x / 3.0))
    with pytest.raises(
        ValueError, match=r"parameters in start, a; got 'a\*exp\(-r2/b\)': .*unknown symbol 'b'"
    ) as raised:
        lesde.fit_feature_kernel(found, "a*exp(-r2/b)", {"a": 1.0})
    assert "parameters={" not in str(raised.value)
