"""Crossings with intervals: synthetic trials whose crossing is known."""

from __future__ import annotations

import numpy as np
import pytest

from lesde.studies.reproduce import Crossing, crossing
from lesde.studies.reproduce.crossing import in_words

LEVELS = np.array([0.0, 0.2, 0.4, 0.6, 2 / 3, 0.7, 0.8])


def trials(seed: int, count: int, at: float = 2 / 3) -> np.ndarray:
    """A line through zero at ``at`` with noise of each trial, and noise of each of its levels."""
    rng = np.random.default_rng(seed)
    common = rng.normal(0, 0.05, (count, 1))
    return (at - LEVELS) + common + rng.normal(0, 0.05, (count, len(LEVELS)))


@pytest.mark.parametrize("count", [3, 6, 20])
@pytest.mark.parametrize("at", [0.65, 2 / 3])
def test_the_interval_covers_as_often_as_it_says(count: int, at: float) -> None:
    # Null: P(cover) ≥ 0.9. The standard error over 400 seeds is 0.015; 5 of them are allowed.
    found = [crossing(LEVELS, trials(s, count, at), confidence=0.9) for s in range(400)]
    covered = np.mean([c.lower <= at <= c.upper for c in found])
    assert covered > 0.9 - 5 * 0.015
    # It is no more than the hull of a 90 % set: not nearly everything.
    if count == 20:
        assert covered < 0.99


def test_the_estimate_is_near_and_narrows_with_trials() -> None:
    values = [crossing(LEVELS, trials(s, 20)) for s in range(200)]
    estimates = np.array([c.value for c in values])
    # Mean of 200 estimates: within 5 standard errors.
    error = estimates.std(ddof=1) / np.sqrt(200)
    assert abs(estimates.mean() - 2 / 3) < 5 * error
    few = [crossing(LEVELS, trials(s, 5)) for s in range(50)]
    width = [np.median([c.upper - c.lower for c in each]) for each in (few, values)]
    assert width[1] < 0.6 * width[0]


def test_a_line_without_noise_is_found_to_the_last_digit() -> None:
    flat = np.tile(0.55 - LEVELS, (3, 1)) + 1e-9 * np.array([[-1.0], [0.0], [1.0]])
    found = crossing(LEVELS, flat)
    assert found.value == pytest.approx(0.55, abs=1e-9)
    assert found.lower == pytest.approx(0.55, abs=1e-7)
    exact = crossing(LEVELS, np.tile(0.55 - LEVELS, (3, 1)))
    assert exact.lower == pytest.approx(0.55, abs=1e-7)
    assert exact.upper == pytest.approx(0.55, abs=1e-7)
    assert crossing(LEVELS, flat + 0.3, target=0.3).value == pytest.approx(0.55, abs=1e-9)


def test_the_estimate_lies_in_the_interval_also_where_values_rise_again() -> None:
    for seed in range(100):
        rng = np.random.default_rng(seed)
        found = crossing(LEVELS, np.cos(5 * LEVELS) + rng.normal(0, 0.3, (4, len(LEVELS))))
        if np.isfinite(found.value):
            assert found.lower <= found.value <= found.upper


def test_values_that_stay_on_one_side_cross_nowhere() -> None:
    away = trials(0, 6) + 5.0
    found = crossing(LEVELS, away)
    assert np.isnan(found).all()
    assert "not determined" in in_words("accuracy", found, 2 / 3, 0.95)


def test_an_interval_that_goes_beyond_the_levels_is_not_bounded() -> None:
    noise = np.array([[-0.3], [0.0], [0.3]])
    found = crossing(LEVELS, 0.75 - LEVELS + noise)
    # Between levels, 0.75 − p ± 4.303 · 0.3/√3 is zero at p = 0.75 ± 0.745.
    assert found.lower == pytest.approx(0.75 - 4.302653 * 0.3 / np.sqrt(3), abs=1e-6)
    assert found.upper == np.inf


def test_words_say_whether_the_theory_is_inside() -> None:
    inside = in_words("accuracy", Crossing(0.66, 0.65, 0.68), 2 / 3, 0.95)
    assert inside == (
        "Critical p by accuracy: 0.66 [0.65, 0.68] (95%); theory 0.667, which lies inside of it."
    )
    somewhere = in_words("tail index", Crossing(np.nan, 0.55, np.inf), 2 / 3, 0.95)
    assert "in [0.55, inf]" in somewhere
    assert "inside" in somewhere
    assert "outside" in in_words("contrast", Crossing(0.6, 0.55, 0.65), 2 / 3, 0.95)
