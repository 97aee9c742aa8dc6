"""Class means of drawn samples over windows of training, against loops and against what is known."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

import lesde
from lesde.networks import digits, drawn_means, mlp, record_ensemble

STEP = 0.01


def draws(replicates=3, iterations=600, K=3, p=2, seed=0, batch=1):
    rng = np.random.default_rng(seed)
    number = iterations * batch
    iteration = np.arange(number) // batch
    return xr.Dataset(
        {
            "features": (
                ("learning_rate", "replicate", "draw", "feature"),
                rng.standard_normal((1, replicates, number, p)).astype(np.float32),
            )
        },
        coords={
            "learning_rate": [STEP],
            "replicate": np.arange(5, 5 + replicates),
            "label": (
                ("learning_rate", "replicate", "draw"),
                rng.integers(K, size=(1, replicates, number)),
            ),
            "iteration": ("draw", iteration),
            "time": (("learning_rate", "draw"), iteration[None] * STEP),
        },
        attrs={"engine": "network"},
    )


@pytest.mark.parametrize("batch", [1, 4])
def test_means_are_those_of_a_loop(batch):
    data = draws(batch=batch)
    found = drawn_means(data, 6)
    assert found.features.dims == ("learning_rate", "replicate", "time", "sample", "feature")
    assert found.features.dtype == np.float64
    np.testing.assert_array_equal(found.label, [0, 1, 2])
    np.testing.assert_array_equal(found.replicate, [5, 6, 7])
    X, label, iteration = data.features.values[0], data.label.values[0], data.iteration.values
    for r in range(3):
        for w in range(6):
            in_window = (iteration >= 100 * w) & (iteration < 100 * (w + 1))
            for k in range(3):
                own = X[r, in_window & (label[r] == k)].astype(float)
                np.testing.assert_allclose(found.features[0, r, w, k], own.mean(0), rtol=1e-12)
                assert int(found.drawn_count[0, r, w, k]) == len(own)
    assert int(found.drawn_count.sum()) == 3 * 600 * batch


def test_windows_and_their_centres():
    found = drawn_means(draws(), 6)
    np.testing.assert_allclose(found.time, STEP * (49.5 + 100 * np.arange(6)))
    np.testing.assert_allclose(found.time_start, STEP * (100 * np.arange(6) - 0.5))
    np.testing.assert_allclose(found.time_end, STEP * (100 * np.arange(1, 7) - 0.5))
    np.testing.assert_array_equal(np.diff(found.iteration[0]), 100)
    assert found.sizes["time"] == 6


def test_without_a_learning_rate_or_iterations():
    data = draws()
    bare = data.isel(learning_rate=0, drop=True).drop_vars("iteration")
    found = drawn_means(bare, 6)
    assert found.features.dims == ("replicate", "time", "sample", "feature")
    assert "iteration" not in found.variables
    np.testing.assert_array_equal(found.features, drawn_means(data, 6).features[0])


def test_default_number_of_windows():
    assert drawn_means(draws(iterations=5000)).sizes["time"] == 50


def test_a_window_without_a_class_is_named():
    data = draws(replicates=2, iterations=300)
    label = data.label.values.copy()
    label[0, 1, 120:170] = 0
    label[0, 1, [119, 170]] = 1
    data = data.assign_coords(label=(data.label.dims, label))
    with pytest.raises(ValueError, match=r"replicate number 1 drew none of class .*fewer windows"):
        drawn_means(data, 10)
    assert int(drawn_means(data, 3).drawn_count.min()) > 0


@pytest.mark.parametrize(
    ("times", "error", "message"),
    [
        (0, ValueError, "times must be an integer of at least 1"),
        (2.5, TypeError, "times must be an integer"),
        (601, ValueError, "at most 600"),
        ([0, 1], TypeError, "times must be an integer"),
    ],
)
def test_refuses_windows(times, error, message):
    with pytest.raises(error, match=message):
        drawn_means(draws(), times)


def test_refuses_other_data():
    data = draws()
    with pytest.raises(TypeError, match=r"drawn must be an xarray.Dataset"):
        drawn_means(None)
    with pytest.raises(ValueError, match="time missing"):
        drawn_means(data.drop_vars("time"))
    with pytest.raises(ValueError, match=r"features \(\[learning_rate,\] replicate, draw"):
        drawn_means(data.transpose("draw", ...))
    with pytest.raises(ValueError, match=r"got .* and \('draw',\)"):
        drawn_means(data.assign_coords(label=("draw", np.arange(600) % 3)))
    two = xr.concat(
        [data, data.assign_coords(time=2 * data.time, learning_rate=[0.02])], "learning_rate"
    )
    with pytest.raises(ValueError, match=r"same times.*one at a time"):
        drawn_means(two)


def test_draws_of_networks_go_into_the_fit():
    data = digits(classes=3, n_train_per_class=20, n_probe_per_class=5)
    times = [0.0, 10.0]
    (record,) = record_ensemble(data, lambda: mlp(64, (8,), 3), 0.05, 3, times, drawn=True)
    paths = drawn_means(record["drawn"], 5)
    assert paths.features.shape == (1, 3, 5, 3, 3)
    assert paths.attrs["layer"] == "logits"
    fit = lesde.fit_elasticity(paths, "identity", estimator="averages", tail=False)
    assert fit.A.dims == ("learning_rate", "time")
    assert np.isfinite(fit.A).all()
    # Networks learn: the means of classes move apart.
    assert float(fit.A_minus_B[0, -1]) > 3 * float(fit.A_minus_B_se[0, -1]) > 0


def test_a_class_that_is_never_drawn_is_named():
    data = draws(p=3)
    never = data.assign_coords(label=(data.label.dims, data.label.values % 2))
    with pytest.raises(ValueError, match=r"drew none of class 2"):
        drawn_means(never, 6)
    with pytest.raises(ValueError, match=r"must be the integers 0 to K-1"):
        drawn_means(data.assign_coords(label=(data.label.dims, data.label.values // 2 * 2)), 6)
    # Three features of a hidden layer say nothing of a third class.
    assert drawn_means(never.assign_attrs(layer="hidden"), 6).sizes["sample"] == 2


def test_draws_that_are_not_finite_are_counted():
    data = draws()
    data.features[0, 1, [450, 470, 471], 0] = [np.nan, np.inf, np.nan]
    with pytest.raises(
        ValueError, match=r"3 of 1800 draws hold NaN or inf, one at t = 4\.5 in replicate number 1\."
    ):  # fmt: skip
        drawn_means(data, 6)
    assert np.isfinite(drawn_means(data.isel(replicate=[0, 2]), 6).features).all()
    assert np.isfinite(drawn_means(data.isel(draw=slice(450)), 3).features).all()
