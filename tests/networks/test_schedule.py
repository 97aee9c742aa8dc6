"""Times to iterations, and the order of samples."""

from __future__ import annotations

import numpy as np
import pytest

from lesde.clocks import iteration_counts
from lesde.networks import saving_times
from lesde.networks.training import SampleOrder


def test_saving_times_land_on_iterations_of_every_rate():
    rates = (0.01, 0.02, 0.05, 0.1)
    times = saving_times(50.0, rates, count=40)
    assert times[0] == 0
    assert times[-1] == 50
    assert len(times) <= 41
    assert (np.diff(times) > 0.0999).all()
    assert np.diff(times)[0] < np.diff(times)[-1] / 10  # denser early
    for rate in rates:
        np.testing.assert_allclose(iteration_counts(times, rate) * rate, times, rtol=1e-12)


def test_saving_times_evenly_and_with_rates_that_do_not_divide():
    times = saving_times(30.0, (0.03, 0.07), count=10, power=1)
    assert len(times) == 11
    for rate in (0.03, 0.07):
        assert np.abs(iteration_counts(times, rate) * rate - times).max() <= rate / 2 + 1e-12


def test_times_round_to_the_nearest_iteration():
    np.testing.assert_array_equal(
        iteration_counts(np.array([0.0, 0.3, 1.04, 1.06]), 0.1), [0, 3, 10, 11]
    )


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((0.05, 0.1), ValueError, r"total must be a finite number in \[0\.1"),
        ((1.0, 0.0), ValueError, r"learning_rates must hold at least one positive"),
        ((1.0, [0.1, -0.2]), ValueError, r"at least one positive rate"),
        ((1.0, [0.1, 0.1]), ValueError, r"each only once"),
        ((1.0, []), ValueError, r"at least one positive rate"),
        ((1.0, None), TypeError, r"learning_rates must be an array of real numbers"),
        ((1.0, 0.1, 0), ValueError, r"count must be an integer of at least 1"),
    ],
)
def test_refusals(arguments, error, message):
    with pytest.raises(error, match=message):
        saving_times(*arguments)


def seeds(numbers):
    return [np.random.SeedSequence(5, spawn_key=(n,)) for n in numbers]


@pytest.mark.parametrize("sampling", ["uniform", "epochs"])
def test_order_does_not_depend_on_cuts_or_company(sampling):
    whole = SampleOrder(seeds(range(4)), 30, 2, sampling).take(5000)
    assert whole.shape == (5000, 4, 2)
    alone = SampleOrder(seeds([2]), 30, 2, sampling)
    pieces = np.concatenate([alone.take(n) for n in (1, 7, 4000, 992)])
    np.testing.assert_array_equal(pieces[:, 0], whole[:, 2])
    assert (whole[:, 0] != whole[:, 1]).any()


def test_epochs_show_every_sample_once():
    n = 21
    taken = SampleOrder(seeds([0]), n, 3, "epochs").take(7 * 20)[:, 0].reshape(20, n)
    np.testing.assert_array_equal(np.sort(taken, axis=1), np.tile(np.arange(n), (20, 1)))
    assert len({tuple(epoch) for epoch in taken}) == 20


def test_uniform_draws_are_uniform_and_independent():
    """Null: pairs of draws that follow one another are uniform on 10 x 10 cells.

    200,000 pairs, so each count is binomial(200000, 1/100) of standard deviation 44.5; all 100 must lie
    within 5 of them.
    """
    taken = SampleOrder(seeds([1]), 10, 1, "uniform").take(400_000)[:, 0, 0].reshape(-1, 2)
    counts = np.zeros((10, 10))
    np.add.at(counts, (taken[:, 0], taken[:, 1]), 1)
    assert np.abs(counts - 2000).max() < 5 * np.sqrt(200_000 * 0.01 * 0.99)
