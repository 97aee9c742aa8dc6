"""Numbers of the report: errors and digits, lasting times."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from lesde.studies.demo import lasting_time
from lesde.studies.runner import with_error


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (0.0171, 0.003, "0.017 ± 0.003"),
        (0.000164, 0.00014, "0.00016 ± 0.00014"),
        (1.1416, 0.18, "1.14 ± 0.18"),
        (0.5, 0.0996, "0.50 ± 0.10"),
        (0.5, 0.0196, "0.50 ± 0.02"),
        (-0.0001, 0.002, "0.000 ± 0.002"),
        (1234.0, 37.0, "1230 ± 40"),
        (3e-9, 2e-10, "(3.0 ± 0.2)e-9"),
        (0.123456, np.nan, "0.123"),
        (np.nan, 0.1, "–"),
    ],
)
def test_a_value_has_the_digits_of_its_error(value, error, text):
    assert with_error(value, error) == text


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.6, 0.4, 0.5, 1.0], "3"),  # reached at 1, lost again at 2
        ([0.5, 0.6, 0.7, 0.8, 0.9], "0"),
        ([0.0, 0.6, 0.9, 0.9, 0.4], "never"),
        ([0.0, 0.6, np.nan, 0.9, 0.9], "3"),
        ([0.0] * 5, "never"),
    ],
)
def test_time_from_which_a_probability_stays(values, expected):
    assert lasting_time(xr.DataArray(values, {"time": np.arange(5.0)}, "time")) == expected
