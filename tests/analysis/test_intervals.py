"""Coverage of the intervals, by summing the binomial distribution rather than by simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom, binomtest

from lesde.analysis.separation.intervals import binomial_interval, replicates_to_add

RATES = np.linspace(0.001, 0.999, 1997)


def coverage(n, confidence, method):
    """Exact coverage at each rate."""
    x = np.arange(n + 1)
    lower, upper = binomial_interval(x, n, confidence, method)
    covers = (lower <= RATES[:, None]) & (RATES[:, None] <= upper)
    return (binom.pmf(x, n, RATES[:, None]) * covers).sum(axis=1)


@pytest.mark.parametrize("n", [5, 32, 256])
@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.99])
def test_clopper_pearson_never_covers_less_than_it_says(n, confidence):
    assert coverage(n, confidence, "clopper-pearson").min() >= confidence - 1e-12


@pytest.mark.parametrize("n", [32, 256, 1024])
@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.99])
def test_wilson_covers_what_it_says_on_average(n, confidence):
    exact = coverage(n, confidence, "wilson")
    assert abs(exact.mean() - confidence) < 0.01
    middle = exact[(RATES > 0.1) & (RATES < 0.9)]
    assert middle.min() > confidence - 0.08
    # and the test sees an interval that is too narrow: that of a smaller confidence fails it
    assert abs(coverage(n, confidence - 0.03, "wilson").mean() - confidence) > 0.01


@pytest.mark.parametrize("method", ["wilson", "clopper-pearson"])
def test_agrees_with_scipy(method):
    name = "wilson" if method == "wilson" else "exact"
    for x, n in [(0, 7), (3, 7), (7, 7), (250, 256)]:
        lower, upper = binomial_interval(x, n, 0.9, method)
        expected = binomtest(x, n).proportion_ci(0.9, name)
        np.testing.assert_allclose([lower, upper], [expected.low, expected.high], atol=1e-12)


def stopped_coverage(rate, precision, confidence, limit, start=64):
    """Exact coverage when replicates are added until the interval is narrow enough."""
    alive = {start: binom.pmf(np.arange(start + 1), start, rate)}
    covered = total = 0.0
    while alive:
        n = min(alive)
        mass = alive.pop(n)
        x = np.arange(n + 1)
        lower, upper = binomial_interval(x, n, confidence)
        half = (upper - lower) / 2
        stop = (half <= precision) | (n >= limit)
        covered += mass[stop & (lower <= rate) & (rate <= upper)].sum()
        total += mass[stop].sum()
        for i in np.flatnonzero(~stop & (mass > 1e-15)):
            more = min(replicates_to_add(n, half[i], precision), limit - n)
            target = alive.setdefault(n + more, np.zeros(n + more + 1))
            target[i : i + more + 1] += mass[i] * binom.pmf(np.arange(more + 1), more, rate)
    assert total == pytest.approx(1.0, abs=1e-9)
    return covered


def test_coverage_survives_adding_replicates_until_precise():
    rates = [0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.65, 0.9, 0.97]
    exact = np.array([stopped_coverage(rate, 0.05, 0.95, 2048) for rate in rates])
    assert exact.min() > 0.92
    assert abs(exact.mean() - 0.95) < 0.015


def test_replicates_to_add_comes_in_blocks_and_is_never_none():
    assert replicates_to_add(256, 0.02, 0.01) == 800
    assert replicates_to_add(256, 0.0100001, 0.01) == 32


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((3, 2), "successes must lie between 0 and trials=2"),
        ((1, 0), "trials must be an integer of at least 1; got 0"),
        ((1, 2, 1.0), "confidence must be a finite number"),
        ((1, 2, 0.9, "wald"), "interval must be one of 'wilson', 'clopper-pearson'; got 'wald'"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        binomial_interval(*arguments)
