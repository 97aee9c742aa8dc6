"""Moments against learning rate: lines by process, simulated points with bars, errors."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

import lesde
from lesde import plot
from tests.plot.conftest import drawn_inside, legend_texts, line_named

H = np.array([0.05, 0.5, 0.1])
ALL = ["sgd", "plain", "sampling", "modified"]
START = np.array([[1.0, 0.2], [-0.4, 0.6], [0.1, -0.9]])
MODEL = lesde.LESDE(lesde.TwoLevel(2, -1), 3, 2, 4, noise=0.5)


@pytest.fixture(scope="module")
def moments():
    return lesde.moments(MODEL, [0, 0.5, 1], START, H, ALL)


def gap_moments(dataset, process, k, l):
    """Mean and covariance of the gap at the last time, by another route: a difference matrix."""
    one = dataset.sel(process=process).isel(time=-1).sortby("learning_rate")
    D = np.zeros((2, 3, 2))
    D[:, k], D[:, l] = np.eye(2), -np.eye(2)
    D = D.reshape(2, 6)
    V = one.covariance.values.reshape(len(H), 6, 6)
    return one["mean"].values.reshape(len(H), 6) @ D.T, D @ V @ D.T


def test_lines_are_the_deviation_and_the_gap(moments):
    ax = plot.sampling_noise(moments, pair=(2, 0))
    names = ["SGD", "SDE", "SDE with sampling noise", "modified SDE"]
    assert legend_texts(ax) == names
    for process, name in zip(ALL, names, strict=True):
        _, V = gap_moments(moments, process, 2, 0)
        line = line_named(ax, name)
        np.testing.assert_allclose(line.get_xdata(), np.sort(H))
        np.testing.assert_allclose(line.get_ydata(), np.sqrt(np.trace(V, axis1=1, axis2=2)))
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    assert ax.get_xlabel() == "learning rate"
    assert ax.get_ylabel() == "s.d. of the gap of classes 2, 0"
    assert drawn_inside(ax.figure)
    ax = plot.sampling_noise(moments, quantity="gap")
    mean, _ = gap_moments(moments, "modified", 0, 1)
    np.testing.assert_allclose(
        line_named(ax, "modified SDE").get_ydata(), np.linalg.norm(mean, axis=1)
    )


def test_errors_are_distances_from_sgd(moments):
    ax = plot.sampling_noise(moments, quantity="covariance_error", time=0.5)
    assert legend_texts(ax) == ["SDE", "SDE with sampling noise", "modified SDE"]
    V = moments.covariance.isel(time=1).sortby("learning_rate").values.reshape(4, 3, -1)
    expected = np.linalg.norm(V[2] - V[0], axis=1) / np.linalg.norm(V[0], axis=1)
    np.testing.assert_allclose(
        line_named(ax, "SDE with sampling noise").get_ydata(), expected, rtol=1e-12
    )
    ax = plot.sampling_noise(moments, quantity="mean_error")
    m = moments["mean"].isel(time=-1).sortby("learning_rate").values.reshape(4, 3, -1)
    expected = np.linalg.norm(m[3] - m[0], axis=1) / np.linalg.norm(m[0], axis=1)
    np.testing.assert_allclose(line_named(ax, "modified SDE").get_ydata(), expected, rtol=1e-12)
    assert drawn_inside(ax.figure)


def simulated_gaps(n=400, rates=(0.1, 0.2), seed=0):
    """Class means with a gap (3, 0) + N(0, 4 h I) between classes 0 and 1, two samples a class."""
    rng = np.random.default_rng(seed)
    z = rng.standard_normal((len(rates), n, 2))
    means = np.zeros((len(rates), n, 3, 2))
    means[:, :, 0] = [3, 0] + 2 * np.sqrt(np.array(rates))[:, None, None] * z
    own = rng.standard_normal((len(rates), n, 3, 1, 2))
    features = (means[:, :, :, None] + np.concatenate([own, -own], 3)).reshape(len(rates), n, 6, 2)
    dims = ("learning_rate", "replicate", "time", "sample", "feature")
    coords = {"time": [1.0], "label": ("sample", [0, 0, 1, 1, 2, 2]), "learning_rate": list(rates)}
    paths = xr.Dataset({"features": (dims, features[:, :, None])}, coords)
    dims = ("learning_rate", "replicate", "time", "class", "feature")
    return paths, xr.Dataset({"mean": (dims, means[:, :, None])}, coords), means[:, :, 0]


@pytest.mark.parametrize("statistics", [False, True])
def test_points_and_bars_are_estimates_with_two_standard_errors(moments, statistics):
    paths, reduced, gaps = simulated_gaps()
    given = reduced if statistics else paths
    ax = plot.sampling_noise(moments, given)
    points, _, (bars,) = ax.containers[0].lines
    np.testing.assert_allclose(points.get_xdata(), [0.1, 0.2])
    expected = np.sqrt(gaps.var(1, ddof=1).sum(-1))
    np.testing.assert_allclose(points.get_ydata(), expected, rtol=1e-12)
    half = np.array([np.ptp(segment[:, 1]) / 2 for segment in bars.get_segments()])
    # Jackknife: another route to the standard error, the same to 1/n.
    n = gaps.shape[1]
    left_out = np.stack(
        [np.sqrt(np.delete(gaps, r, 1).var(1, ddof=1).sum(-1)) for r in range(n)], 1
    )
    jackknife = np.sqrt((n - 1) / n * ((left_out - left_out.mean(1, keepdims=True)) ** 2).sum(1))
    np.testing.assert_allclose(half, 2 * jackknife, rtol=0.02)
    assert legend_texts(ax)[-1] == "SGD, simulated"
    assert "±2 s.e." in ax.figure.legends[0].get_title().get_text()
    assert drawn_inside(ax.figure)

    ax = plot.sampling_noise(moments, given, quantity="gap")
    points, _, (bars,) = ax.containers[0].lines
    np.testing.assert_allclose(points.get_ydata(), np.linalg.norm(gaps.mean(1), axis=-1))
    half = np.array([np.ptp(segment[:, 1]) / 2 for segment in bars.get_segments()])
    # Along the mean gap (3, 0) the scatter is 2 √h.
    np.testing.assert_allclose(half, 2 * 2 * np.sqrt([0.1, 0.2]) / np.sqrt(n), rtol=0.15)


def test_points_of_several_processes_have_their_colours(moments):
    paths, reduced, _ = simulated_gaps()
    ax = plot.sampling_noise(moments, {"sgd": paths, "sampling": reduced.isel(learning_rate=0)})
    colours = [container.lines[0].get_color() for container in ax.containers]
    assert colours == [line_named(ax, n).get_color() for n in ("SGD", "SDE with sampling noise")]
    np.testing.assert_allclose(ax.containers[1].lines[0].get_xdata(), [0.1])
    assert legend_texts(ax)[-2:] == ["SGD, simulated", "sampling, simulated"]


def simulate(**how):
    return lesde.simulate(MODEL, [0, 0.5, 1], START, replicates=64, seed=1, **how)


def test_points_of_coarse_steps_are_open_and_named(moments):
    """SDE paths are integrated in steps of h unless dt says otherwise: not what the line shows."""
    rates = [0.1, 0.5]
    sgd, coarse = (
        simulate(learning_rate=rates),
        simulate(learning_rate=rates, engine=lesde.TorchSDE(noise="modified")),
    )
    ax = plot.sampling_noise(moments, {"sgd": sgd, "modified": coarse})
    assert legend_texts(ax)[-2:] == ["SGD, simulated", "modified, steps > h/2"]
    faces = [c.lines[0].get_markerfacecolor() for c in ax.containers]
    assert faces[0] != "white" == faces[1]
    assert drawn_inside(ax.figure)
    # A step of 0.05 is half of h = 0.1 and finer; of h = 0.06 it is not.
    mixed = simulate(learning_rate=[0.06, 0.5], engine=lesde.TorchSDE(dt=0.05, noise="sampling"))
    ax = plot.sampling_noise(moments, mixed)
    assert legend_texts(ax)[-2:] == ["sampling, simulated", "sampling, steps > h/2"]
    assert [c.lines[0].get_xdata().tolist() for c in ax.containers] == [[0.5], [0.06]]


def test_a_dataset_alone_is_the_process_it_was_made_by(moments):
    for how, label in [
        ({}, "SGD"),
        ({"engine": lesde.TorchSDE(dt=0.01, noise="sampling")}, "SDE with sampling noise"),
    ]:
        ax = plot.sampling_noise(moments, simulate(learning_rate=[0.1, 0.5], **how))
        colour = ax.containers[0].lines[0].get_color()
        assert colour == line_named(ax, label).get_color()


def test_points_of_small_steps_are_on_the_line():
    """Null: s.d. of 1000 paths with dt = h/100 is that in continuous time, 5 standard errors."""
    h = [0.5]
    paths = lesde.simulate(
        MODEL,
        [0, 1],
        START,
        replicates=1000,
        learning_rate=h,
        engine=lesde.TorchSDE(dt=0.005, noise="sampling"),
        seed=2,
    )
    ax = plot.sampling_noise(lesde.moments(MODEL, [0, 1], START, h, ["sampling"]), paths)
    points, _, (bars,) = ax.containers[0].lines
    line = line_named(ax, "SDE with sampling noise").get_ydata()
    half = np.ptp(bars.get_segments()[0][:, 1]) / 2
    assert abs(points.get_ydata()[0] - line[0]) < 2.5 * half


def test_moments_of_the_same_step_are_what_points_of_it_follow():
    paths = simulate(learning_rate=[0.25], engine=lesde.TorchSDE(dt=0.25, noise="sampling"))
    exact = lesde.moments(MODEL, [0, 0.5, 1], START, [0.25], ["sampling"], dt=0.25)
    assert legend_texts(plot.sampling_noise(exact, paths))[-1] == "sampling, simulated"


def test_one_process_needs_no_dimension():
    one = lesde.moments(MODEL, [0, 1], START, H)
    ax = plot.sampling_noise(one)
    assert legend_texts(ax) == ["SGD"]
    same = plot.sampling_noise(one, ax=ax)
    assert same is ax


def test_refusals(moments):
    for change, error, message in [
        ({"quantity": "spread"}, ValueError, "quantity must be one of"),
        ({"pair": (0, 0)}, ValueError, "two different classes from 0 to 2"),
        ({"pair": "01"}, TypeError, "pair must be two classes"),
        ({"time": 0.3}, ValueError, "time must be one of those of moments, 0, 0.5, 1; got 0.3"),
        ({"simulated": 3}, TypeError, "simulated must be a dataset from lesde.simulate"),
    ]:
        with pytest.raises(error, match=message):
            plot.sampling_noise(moments, **change)
    paths, _, _ = simulated_gaps()
    with pytest.raises(ValueError, match="a key of simulated must be one of"):
        plot.sampling_noise(moments, {"SGD": paths})
    with pytest.raises(ValueError, match=r"of those of simulated, 1; got 0\.5"):
        plot.sampling_noise(moments, paths, time=0.5)
    with pytest.raises(ValueError, match="at least 3 of them"):
        plot.sampling_noise(moments, paths.isel(replicate=[0, 1]))
    with pytest.raises(ValueError, match=r"simulated must hold .* learning_rate"):
        plot.sampling_noise(moments, paths.isel(learning_rate=0, drop=True))
    without = moments.sel(process=["plain", "sampling"])
    with pytest.raises(ValueError, match="the distance from 'sgd', which moments does not hold"):
        plot.sampling_noise(without, quantity="mean_error")
    with pytest.raises(ValueError, match=r"moments must hold .* learning_rate"):
        plot.sampling_noise(moments.isel(learning_rate=0, drop=True))
    with pytest.raises(ValueError, match=r"moments must hold .* lesde\.moments"):
        plot.sampling_noise(moments.drop_vars("covariance"))
