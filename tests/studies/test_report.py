"""Numbers of the report: lasting times, and intervals with the digits that their width determines."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from lesde.studies.demo import lasting_time
from lesde.text import with_interval


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.6, 0.4, 0.5, 1.0], 3),  # reached at 1, lost again at 2
        ([0.5, 0.6, 0.7, 0.8, 0.9], 0),
        ([0.0, 0.6, 0.9, 0.9, 0.4], np.nan),
        ([0.0, 0.6, np.nan, 0.9, 0.9], 3),
        ([0.0] * 5, np.nan),
    ],
)
def test_time_from_which_a_probability_stays(values, expected):
    found = lasting_time(xr.DataArray(values, {"time": np.arange(5.0)}, "time"))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("value", "low", "high", "text"),
    [
        (1.0998, 1.0991, 1.1005, "1.0998 [1.0991, 1.1005]"),
        (0.664, 0.6576, 0.673, "0.664 [0.658, 0.673]"),
        (13.3, -10.0, 36.6, "13.3 [-10, 36.6]"),
        (float("nan"), 0.589, float("inf"), "– [0.589, inf]"),
        (0.25, float("nan"), float("nan"), "0.25"),
        (1.0, 1.0, 1.0, "1 [1, 1]"),
    ],
)
def test_intervals_have_the_digits_that_their_width_determines(
    value: float, low: float, high: float, text: str
) -> None:
    assert with_interval(value, low, high) == text
