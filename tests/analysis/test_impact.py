"""Elasticity from single steps: the truth of a known system, errors that cover it, and its parts."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from scipy.stats import t as student

import lesde
from lesde.analysis import impact_from_changes
from lesde.analysis.impact.clusters import Clusters, read_impact

from .impact_systems import (
    H_STEP,
    class_strength,
    draw,
    samples,
    step_changes,
    transform_matrices,
)

COUNTS = (14, 9, 11)
FIVE_SIGMA = 1 - 5.7e-7
E_TRUE = np.array([[2.0, -1.0, 0.3], [-0.4, 1.5, 0.0], [0.7, -0.8, 3.0]])


def measured(rng, E, *, kind="identity", noise=0.3, per_class=6, replicates=None, times=None, p=3):
    """The impact dataset of one state (or of several, replicates or times), and the transform."""
    H = transform_matrices(kind, 3, p, rng)
    lead = [n for n in (replicates, times) if n is not None]
    states = []
    for _ in range(int(np.prod(lead))):
        x, labels = samples(rng, COUNTS, p)
        drawn = draw(rng, labels, per_class)
        changes = step_changes(rng, x, labels, drawn, class_strength(E, labels), H, noise)
        states.append((changes, x[drawn], changes[np.arange(len(drawn)), drawn]))
    if replicates is not None and times is None:
        lead.append(1)
    changes, drawn_x, own = (
        np.stack(part).reshape(*lead, *part[0].shape) for part in zip(*states, strict=True)
    )
    impact = impact_from_changes(changes, labels, drawn_x, labels[drawn], H_STEP, drawn_changes=own)
    return impact, (kind if kind in ("identity", "logits") else H)


@pytest.mark.parametrize("kind", ["identity", "logits", "matrix"])
@pytest.mark.parametrize("estimator", ["draws", "averages"])
def test_without_noise_the_kernel_is_found_exactly(kind, estimator):
    impact, transform = measured(np.random.default_rng(1), E_TRUE, kind=kind, noise=0.0)
    fit = lesde.fit_impact(impact, transform, estimator=estimator)
    assert fit.E.dims == ("class", "class_")
    np.testing.assert_allclose(fit.E, E_TRUE, atol=1e-12)
    np.testing.assert_allclose(fit.E_se, 0, atol=1e-12)
    # An entry of 0 moves nothing, of which nothing is left to be explained.
    moving = E_TRUE != 0
    np.testing.assert_allclose(fit.explained.values[moving], 1, atol=1e-12)
    assert float(fit.explained_matrix) == pytest.approx(1)
    assert float(fit.explained_two_level) < 0.99
    assert fit.attrs["transform"] == ("matrix" if kind == "matrix" else kind)


@pytest.mark.parametrize("kind", ["identity", "logits", "matrix"])
@pytest.mark.parametrize("replicates", [None, 10])
@pytest.mark.parametrize("estimator", ["draws", "averages"])
def test_noisy_steps_give_the_kernel_within_their_errors(kind, replicates, estimator):
    """Null: E_TRUE. 9 entries with 18 or 180 steps, within intervals of the confidence of 5σ.

    They allow for Student's t of few replicates, where 5 standard errors would be too little.
    """
    rng = np.random.default_rng(5)
    impact, transform = measured(rng, E_TRUE, kind=kind, noise=0.1, replicates=replicates)
    fit = lesde.fit_impact(impact, transform, FIVE_SIGMA, estimator=estimator).squeeze()
    assert fit.attrs["errors"] == ("draw" if replicates is None else "replicate")
    assert ((fit.E_lower < E_TRUE) & (fit.E_upper > E_TRUE)).all()
    # Of averages over states with means of their own, little may be left.
    if estimator == "draws":
        assert float(fit.E_se.median()) < 0.3


def test_two_levels_over_time():
    """α(t), β(t) of a TwoLevel kernel at 4 times: all within 5 standard errors of at most 0.15."""
    rng = np.random.default_rng(2)
    times = np.array([0.0, 0.5, 1.0, 2.0])
    alpha, beta = 2 / (1 + times), -0.5 + 0.2 * times
    H = transform_matrices("logits", 3, 3)
    frames = []
    for a, b in zip(alpha, beta, strict=True):
        x, labels = samples(rng, COUNTS, 3)
        drawn = draw(rng, labels, 9)
        E = np.where(np.eye(3) == 1, a, b)
        changes = step_changes(rng, x, labels, drawn, class_strength(E, labels), H, 0.1)
        frames.append((changes, x[drawn]))
    changes, drawn_x = (np.stack(part) for part in zip(*frames, strict=True))
    impact = impact_from_changes(changes, labels, drawn_x, labels[drawn], H_STEP)
    fit = lesde.fit_impact(impact.assign_coords(time=times), "logits")
    for name, truth in (("alpha", alpha), ("beta", beta), ("alpha_minus_beta", alpha - beta)):
        assert fit[name].dims == ("time",)
        assert (np.abs(fit[name] - truth) < 5 * fit[f"{name}_se"]).all(), name
        assert float(fit[f"{name}_se"].max()) < 0.15
    for name, rate in (("A", "alpha"), ("B", "beta"), ("A_minus_B", "alpha_minus_beta")):
        wanted = [np.trapezoid(fit[rate].values[: i + 1], times[: i + 1]) for i in range(4)]
        np.testing.assert_allclose(fit[name], wanted, atol=1e-12)
        assert float(fit[f"{name}_se"][0]) == 0
        # Times are measured apart here, so errors of the integral add in squares.
        widths = np.array([0.25, 0.5, 0.75, 0.5])
        expected = np.sqrt(((widths * fit[f"{rate}_se"].values) ** 2).sum())
        assert 0.5 * expected < float(fit[f"{name}_se"][-1]) < 2 * expected
    kernel = lesde.fitted_kernel(fit)
    middle = (times[1:] + times[:-1]) / 2
    entries = kernel.entries(3)(middle)
    np.testing.assert_allclose(entries[:, 0, 0], (fit.alpha.values[1:] + fit.alpha.values[:-1]) / 2)
    matrix = lesde.fitted_kernel(
        lesde.fit_impact(impact.assign_coords(time=times), kernel="matrix")
    )
    assert isinstance(matrix, lesde.ClassMatrix)


@pytest.mark.parametrize(
    ("replicates", "repetitions"), [(None, 400), (8, 150)], ids=["draws", "replicates"]
)
def test_intervals_cover_the_truth(replicates, repetitions):
    """Null: 95 % intervals cover E, α, β and α − β of a known system with probability 0.95.

    400 (150) repetitions, which stand along the time axis: standard error 0.011 (0.018) of each share, and 5
    of them are allowed. The truth is two-level, so that α and β are defined without weights.
    """
    rng = np.random.default_rng(3)
    E = np.where(np.eye(3) == 1, 2.0, -0.5)
    truth = {"E": E, "alpha": 2.0, "beta": -0.5, "alpha_minus_beta": 2.5}
    impact, _ = measured(rng, E, noise=0.5, per_class=7, replicates=replicates, times=repetitions)
    fit = lesde.fit_impact(impact)
    tolerance = 5 * np.sqrt(0.95 * 0.05 / repetitions)
    for name, value in truth.items():
        share = float(((fit[f"{name}_lower"] <= value) & (value <= fit[f"{name}_upper"])).mean())
        assert abs(share - 0.95) < tolerance, (name, share)


@pytest.mark.parametrize("per_class", [(2, 2, 2, 2), (2, 8, 3, 2)])
def test_intervals_over_two_levels_cover_with_few_draws(per_class):
    """Null: 95 % intervals of α, β, α − β cover with probability 0.95, where the draws of several classes are few.

    1,500 repetitions along the time axis: standard error 0.0056, and 4 of them are allowed. With one degree of freedom
    taken off for all four classes together, α and β are covered with 0.925 and 0.919 in the second case.
    """
    rng = np.random.default_rng(12)
    E, H = np.where(np.eye(4) == 1, 2.0, -0.5), transform_matrices("identity", 4, 3)
    changes, drivers = [], []
    for _ in range(1500):
        x, labels = samples(rng, (14, 9, 11, 10), 3)
        drawn = np.concatenate(
            [
                rng.choice(np.flatnonzero(labels == k), n, replace=False)
                for k, n in enumerate(per_class)
            ]
        )
        changes.append(step_changes(rng, x, labels, drawn, class_strength(E, labels), H, 0.5))
        drivers.append(x[drawn])
    impact = impact_from_changes(
        np.stack(changes), labels, np.stack(drivers), labels[drawn], H_STEP
    )
    fit = lesde.fit_impact(impact.assign_coords(time=np.arange(1500.0)))
    tolerance = 4 * np.sqrt(0.95 * 0.05 / 1500)
    for name, truth in (("alpha", 2.0), ("beta", -0.5), ("alpha_minus_beta", 2.5)):
        inside = (fit[f"{name}_lower"] <= truth) & (truth <= fit[f"{name}_upper"])
        share = float(inside.mean())
        assert abs(share - 0.95) < tolerance, (name, share)


def test_degrees_of_freedom():
    """Units less classes for equal weights; Satterthwaite's by hand for others; those of one class alone."""

    def units(weights):
        return xr.DataArray(weights, dims="unit")

    impact, _ = measured(np.random.default_rng(0), E_TRUE, per_class=4)
    clusters = Clusters(read_impact(impact), "draw", 0.95)
    assert float(clusters.quantile()) == pytest.approx(student.ppf(0.975, 9))
    assert float(clusters.quantile(units(np.ones(12)))) == pytest.approx(student.ppf(0.975, 9))
    weights = np.repeat([3.0, 1.0, 0.0], 4)
    assert float(clusters.quantile(units(weights))) == pytest.approx(
        student.ppf(0.975, 16 / (9 / 3 + 1 / 3))
    )
    weights = np.repeat([1.0, 0.0, 0.0], 4)
    weights[0] = 2.0
    assert float(clusters.quantile(units(weights))) == pytest.approx(student.ppf(0.975, 25 / 7 - 1))
    several, _ = measured(np.random.default_rng(0), E_TRUE, replicates=5)
    whole = Clusters(read_impact(several), "replicate", 0.95)
    assert float(whole.quantile(units(np.ones(5)))) == pytest.approx(student.ppf(0.975, 4))


def test_two_levels_are_least_squares_over_pairs_as_training_meets_them():
    """α, β by lstsq over all pairs and coordinates, each pair weighted as training draws and n_k count."""
    rng = np.random.default_rng(7)
    H = transform_matrices("identity", 3, 4)
    x, labels = samples(rng, COUNTS, 4)
    drawn = draw(rng, labels, 5)
    changes = step_changes(rng, x, labels, drawn, class_strength(E_TRUE, labels), H, 0.4)
    shares = np.array([0.5, 0.2, 0.3])
    impact = impact_from_changes(changes, labels, x[drawn], labels[drawn], H_STEP, shares=shares)
    fit = lesde.fit_impact(impact)
    rows, values, total, entry_rows = [], [], 0.0, []
    for d, j in enumerate(drawn):
        for i in range(len(x)):
            root = np.sqrt(shares[labels[i]] / COUNTS[labels[i]] * shares[labels[j]])
            same = labels[i] == labels[j]
            u = root * H_STEP * x[j]
            rows.append(np.stack([u * same, u * (not same)], 1))
            one = np.zeros((4, 9))
            one[:, 3 * labels[i] + labels[j]] = u
            entry_rows.append(one)
            values.append(root * changes[d, i])
            total += (root * changes[d, i]) @ (root * changes[d, i])
    y = np.concatenate(values)
    for name, matrix in (
        ("two_level", np.concatenate(rows)),
        ("matrix", np.concatenate(entry_rows)),
    ):
        best, left, *_ = np.linalg.lstsq(matrix, y, rcond=None)
        if name == "two_level":
            np.testing.assert_allclose([float(fit.alpha), float(fit.beta)], best, rtol=1e-10)
        else:
            np.testing.assert_allclose(fit.E.values.ravel(), best, rtol=1e-10)
        assert float(fit[f"explained_{name}"]) == pytest.approx(1 - left[0] / total, rel=1e-10)


def test_errors_are_those_of_leaving_units_out():
    rng = np.random.default_rng(11)
    impact, _ = measured(rng, E_TRUE, replicates=4, per_class=3)
    R, D = 4, 9
    for estimator in ("draws", "averages"):
        by_replicate = lesde.fit_impact(impact, errors="replicate", estimator=estimator)
        without = [
            lesde.fit_impact(
                impact.isel(replicate=[r for r in range(R) if r != out]), estimator=estimator
            )
            for out in range(R)
        ]
        for name in ("E", "alpha_minus_beta", "explained", "relative_within"):
            left = np.stack([one[name].values for one in without])
            wanted = np.sqrt((R - 1) / R * ((left - left.mean(0)) ** 2).sum(0))
            np.testing.assert_allclose(by_replicate[f"{name}_se"], wanted, rtol=1e-9, atol=1e-14)
    single = impact.isel(replicate=0)
    by_draw = lesde.fit_impact(single)
    without = [
        lesde.fit_impact(single.isel(draw=[d for d in range(D) if d != out])) for out in range(D)
    ]
    for name in ("E", "alpha", "beta", "alpha_minus_beta"):
        left = np.stack([one[name].values for one in without])
        variance = np.zeros(left.shape[1:])
        for k in range(3):
            own = left[3 * k : 3 * k + 3]
            variance = variance + 2 / 3 * ((own - own.mean(0)) ** 2).sum(0)
        np.testing.assert_allclose(by_draw[f"{name}_se"], np.sqrt(variance), rtol=1e-9)


def test_relative_changes():
    rng = np.random.default_rng(4)
    H = transform_matrices("identity", 3, 3)
    x, labels = samples(rng, COUNTS, 3)
    drawn = draw(rng, labels, 4)
    changes = step_changes(rng, x, labels, drawn, class_strength(E_TRUE, labels), H, 0.2)
    own = changes[np.arange(len(drawn)), drawn].copy()
    own[2] = 0.0  # a drawn sample that did not move has no relative change, and is left out
    impact = impact_from_changes(
        changes, labels, x[drawn], labels[drawn], H_STEP, drawn_changes=own
    )
    fit = lesde.fit_impact(impact)
    for k in range(3):
        for l in range(3):
            ratios = [
                np.linalg.norm(changes[d, i]) / np.linalg.norm(own[d])
                for d in range(len(drawn))
                for i in range(len(x))
                if labels[i] == k and labels[drawn[d]] == l and d != 2
            ]
            assert float(fit.relative[k, l]) == pytest.approx(np.mean(ratios))
    w = np.asarray(COUNTS) / sum(COUNTS)
    weights = np.outer(w, w) * np.eye(3)
    within = (weights * fit.relative.values).sum() / weights.sum()
    assert float(fit.relative_within) == pytest.approx(within)
    alone = impact_from_changes(changes, labels, x[drawn], labels[drawn], H_STEP)
    assert "relative" not in lesde.fit_impact(alone)


def test_learning_rates_are_kept_apart():
    rng = np.random.default_rng(8)
    one, _ = measured(rng, E_TRUE, noise=0.0)
    # A step twice as long that does the same is half as strong.
    both = xr.concat([one, one], xr.IndexVariable("learning_rate", [0.02, 0.04]))
    both = both.assign_coords(step=("learning_rate", [0.02, 0.04]))
    fit = lesde.fit_impact(both)
    assert fit.E.dims == ("learning_rate", "class", "class_")
    np.testing.assert_allclose(fit.E.sel(learning_rate=0.02), E_TRUE, atol=1e-12)
    np.testing.assert_allclose(fit.E.sel(learning_rate=0.04), E_TRUE / 2, atol=1e-12)


def test_a_class_that_is_not_drawn():
    impact, _ = measured(np.random.default_rng(9), np.where(np.eye(3) == 1, 2.0, -0.5), noise=0.0)
    with pytest.warns(UserWarning, match="no drawn sample of class 2"):
        fit = lesde.fit_impact(impact.isel(draw=impact.drawn_label < 2))
    assert np.isnan(fit.E[:, 2]).all()
    np.testing.assert_allclose(fit.E[:, 0], [2, -0.5, -0.5])
    assert float(fit.alpha) == pytest.approx(2)
    assert float(fit.beta) == pytest.approx(-0.5)
    with pytest.warns(UserWarning, match="single drawn sample"):
        fit = lesde.fit_impact(impact.isel(draw=[0, 6, 7, 12, 13]))
    assert np.isnan(fit.E_se).all()
    np.testing.assert_allclose(fit.alpha, 2)


def test_what_does_not_fit_is_refused():
    impact, _ = measured(np.random.default_rng(9), E_TRUE)
    for given, message in (
        ({"estimator": "drawn"}, "estimator must be one of 'draws', 'averages'"),
        ({"errors": "replicate"}, "needs at least 2 replicates"),
        ({"kernel": "both"}, "kernel must be one of"),
        ({"transform": np.eye(2)}, r"transform must have shape \(3, 3\)"),
        ({"confidence": 95}, "confidence"),
    ):
        with pytest.raises(ValueError, match=message):
            lesde.fit_impact(impact, **given)
    with pytest.raises(ValueError, match="impact must hold"):
        lesde.fit_impact(impact.drop_vars("change"))
    rng = np.random.default_rng(0)
    changes, labels, x = rng.normal(size=(4, 6, 2)), np.repeat([0, 1], 3), rng.normal(size=(6, 2))
    of = np.array([0, 0, 1, 1])
    good = dict(changes=changes, labels=labels, drawn=x[:4], drawn_labels=of, learning_rate=0.1)
    impact_from_changes(**good)
    for wrong, message in (
        ({"changes": changes[0]}, "axes"),
        ({"changes": changes * np.nan}, "finite"),
        ({"labels": labels[:5]}, "one label for each of the 6 samples"),
        ({"drawn": x}, "drawn must have shape"),
        ({"drawn_labels": of + 1}, "one of these integers for each"),
        ({"drawn_labels": of[:3]}, "one of these integers for each"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"shares": [1.0, 0.0]}, "positive"),
        ({"by": "r2"}, "needs features"),
        ({"by": "g", "features": x}, "by must be one of"),
        ({"by": "r2", "features": x, "bins": [3.0, 1.0]}, "bins"),
    ):
        with pytest.raises(ValueError, match=message):
            impact_from_changes(**{**good, **wrong})
