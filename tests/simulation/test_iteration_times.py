"""Times between iterations: a state is kept at the time at which it was seen."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.linalg import expm

import lesde
from lesde.networks import collect, digits, mlp, record_ensemble, saving_times, train_ensemble

ASKED = np.arange(0, 3.01, 0.25)  # every second and third time lies between iterations of 0.1
SEEN = [0, 0.2, 0.5, 0.8, 1.0, 1.2, 1.5, 1.8, 2.0, 2.2, 2.5, 2.8, 3.0]


def system(alpha=3.0, beta=-1.0, noise=0.1):
    return lesde.LESDE(lesde.TwoLevel(alpha, beta), 3, 3, 20, noise=noise)


@pytest.mark.parametrize("keep", ["features", "statistics"])
def test_time_is_that_of_the_iteration(keep):
    paths = lesde.simulate(system(), ASKED, np.eye(3), 4, learning_rate=0.1, keep=keep)
    np.testing.assert_allclose(paths.time, SEEN, rtol=1e-14)
    np.testing.assert_array_equal(paths.asked_time, ASKED)
    np.testing.assert_array_equal(paths.iteration, np.rint(np.array(SEEN) / 0.1))


@pytest.mark.parametrize("rate", [0.05, 0.25, [0.05, 0.125], np.array([0.25])])
def test_times_on_iterations_stay_as_they_were_given(rate):
    paths = lesde.simulate(system(), ASKED, np.eye(3), 4, learning_rate=rate)
    np.testing.assert_array_equal(paths.time, ASKED)
    assert "asked_time" not in paths.coords


def test_rates_fitted_between_iterations():
    """Null: rates of 3 in every interval; the first six at 4.5 standard errors (chance 4e-5).

    With the times as asked for they would be 2.4 or 3.6, five to fifty standard errors off.
    """
    paths = lesde.simulate(
        system(noise=0.02), ASKED, np.eye(3), 256, learning_rate=0.1, dtype="float64", seed=5
    )
    fit = lesde.fit_elasticity(paths)
    steps = np.diff(fit.time.values)
    rate, error = (np.diff(fit.A.values) / steps)[:6], fit.alpha_raw_se.values[:6]
    assert (error < 0.12).all()
    np.testing.assert_array_less(np.abs(rate - 3), 4.5 * error)


def test_moments_of_all_processes_are_at_the_same_times():
    """Against products of one-step maps and matrix exponentials."""
    E = np.full((3, 3), -1.0) + 4.0 * np.eye(3)
    found = lesde.moments(system(), ASKED, np.eye(3), 0.1, ["sgd", "plain"])
    np.testing.assert_array_equal(found.asked_time, ASKED)
    for i, time in enumerate(SEEN):
        discrete = np.linalg.matrix_power(np.eye(3) + 0.1 * E / 3, round(time / 0.1))
        np.testing.assert_allclose(found["mean"].sel(process="sgd")[i], discrete, rtol=1e-10)
        exact = expm(time * E / 3)
        np.testing.assert_allclose(found["mean"].sel(process="plain")[i], exact, rtol=1e-8)


def test_learning_rates_that_see_states_at_different_times_are_refused():
    message = r"times must fall on an iteration of every learning rate.*near 0\.25 learning rate 0\.1 is seen at 0\.2 and learning rate 0\.05 at 0\.25.*multiples of 0\.1"
    with pytest.raises(ValueError, match=message):
        lesde.simulate(system(), ASKED, np.eye(3), 4, learning_rate=[0.1, 0.05])
    with pytest.raises(ValueError, match=message):
        lesde.moments(system(), ASKED, np.eye(3), [0.1, 0.05])
    with pytest.raises(ValueError, match=message):
        train_ensemble(digits(classes=3), lambda: mlp(64, (4,), 3), (0.1, 0.05), 1, ASKED)


def test_records_of_networks_between_iterations():
    def record(rate, times):
        data = digits(classes=3)
        return next(record_ensemble(data, lambda: mlp(64, (4,), 3), rate, 2, times))

    between = record(0.1, [0, 0.25, 1.37])["logits"]
    on = record(0.1, [0, 0.2, 1.4])["logits"]
    np.testing.assert_allclose(between.time, [0, 0.2, 1.4], rtol=1e-14)
    np.testing.assert_array_equal(between.asked_time, [0, 0.25, 1.37])
    np.testing.assert_array_equal(between.features, on.features)
    assert "asked_time" not in on.coords
    assert "asked_time" in lesde.neural_collapse(between).coords
    with pytest.raises(ValueError, match="records must all hold the same times"):
        collect([{"logits": between}, {"logits": record(0.04, [0, 0.25, 1.37])["logits"]}])


@pytest.mark.parametrize(
    "rates", [(0.03, 0.07), (0.02, 0.05), (1 / 3, 1 / 6), (0.002, 0.128), (0.1, 0.3, 0.7)]
)
def test_saving_times_fall_on_iterations_of_every_rate(rates):
    times = saving_times(30.0, rates, count=12)
    assert len(times) > 6
    for rate in rates:
        np.testing.assert_allclose(np.rint(times / rate) * rate, times, rtol=1e-12)


def test_saving_times_of_rates_that_never_meet():
    with pytest.raises(ValueError, match="learning_rates must share iterations up to total = 30"):
        saving_times(30.0, np.geomspace(0.01, 0.1, 4))
    with pytest.raises(ValueError, match=r"first meet at 3\.1"):
        saving_times(3.0, (0.1, 0.31))
