"""The shared argument checks, by their messages."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import xarray as xr

from lesde import Diverged, checks, paths


def test_values_come_back_in_the_form_the_package_uses():
    assert type(checks.check_integer("n", np.int32(3))) is int
    assert checks.check_real("x", Fraction(1, 4)) == 0.25
    assert type(checks.check_real("x", np.float32(0.5))) is float
    assert checks.check_real("x", 0, 0.0) == 0
    assert checks.check_fraction("c", 0.95) == 0.95
    assert checks.check_choice("e", "b", iter(["a", "b"])) == "b"
    array = checks.check_finite_array("a", [[1, 2]], [(1, "n")])
    assert (array.dtype, array.shape) == (np.float64, (1, 2))
    assert checks.check_times("t", [0, 1, 5]).dtype == np.float64
    assert checks.check_labels("l", np.array([1, 0, 1], dtype=np.uint8)).dtype == np.int64
    dataset = xr.Dataset({"features": ("x", [1.0])})
    assert paths.check_dataset("d", dataset, ["features"], "simulate") is dataset


def test_values_are_shown_on_one_short_line():
    assert checks.shown("a") == "'a'"
    text = checks.shown(np.ones((50, 50)))
    assert len(text) == 60
    assert "\n" not in text
    assert text.endswith("…")


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: checks.check_integer("n", 2.0),
            TypeError,
            "n must be an integer of at least 1; got 2.0",
        ),
        (
            lambda: checks.check_integer("n", 1, 2),
            ValueError,
            "n must be an integer of at least 2; got 1",
        ),
        (lambda: checks.check_integer("n", np.True_), TypeError, "n must be an integer"),
        (lambda: checks.check_real("x", True), TypeError, "x must be a real number; got True"),
        (lambda: checks.check_real("x", 1j), TypeError, "x must be a real number; got 1j"),
        (lambda: checks.check_real("x", np.nan), ValueError, "x must be a finite number.*got nan"),
        (
            lambda: checks.check_real("x", np.inf, 0.0),
            ValueError,
            "x must be a finite number.*got inf",
        ),
        (lambda: checks.check_fraction("c", 1), ValueError, r"c must be .* in \(0, 1\); got 1"),
        (lambda: checks.check_fraction("c", 0.0), ValueError, r"in \(0, 1\); got 0\.0"),
        (
            lambda: checks.check_choice("engine", "exakt", ["exact", "sgd"]),
            ValueError,
            "engine must be one of 'exact', 'sgd'; got 'exakt'. Did you mean 'exact'",
        ),
        (lambda: checks.check_choice("e", 3, ["a"]), ValueError, "e must be one of 'a'; got 3"),
        (
            lambda: checks.check_finite_array("a", ["1"]),
            TypeError,
            r"a must be an array of real numbers; got \['1'\]",
        ),
        (
            lambda: checks.check_finite_array("a", [[1], [1, 2]]),
            TypeError,
            "a must be an array of real numbers",
        ),
        (lambda: checks.check_finite_array("a", [None, 1]), (TypeError, ValueError), "a must be"),
        (
            lambda: checks.check_finite_array("a", [[1, np.nan], [np.inf, 0]]),
            ValueError,
            r"a must be finite; got nan at index \(0, 1\). Remove or replace the 2 such",
        ),
        (lambda: checks.check_times("t", [0]), ValueError, "t must hold at least 2 times.*got 1"),
        (
            lambda: checks.check_times("t", [0, 2, 1]),
            ValueError,
            "t must be strictly increasing; got 2 followed by 1 at index 2. Sort the times",
        ),
        (
            lambda: checks.check_labels("l", [0.0, 1.0]),
            TypeError,
            "l must be a one-dimensional array of integers",
        ),
        (
            lambda: checks.check_labels("l", [[0, 1]]),
            TypeError,
            "l must be a one-dimensional array",
        ),
        (
            lambda: checks.check_labels("l", [0, 2]),
            ValueError,
            r"the values \[0, 2\]. Renumber them.*numpy",
        ),
        (lambda: checks.check_labels("l", [-1, 0]), ValueError, "l must be the integers 0 to K-1"),
        (
            lambda: checks.check_labels("l", np.array([], int)),
            ValueError,
            "each present at least once",
        ),
        (
            lambda: paths.check_dataset("d", 3, ["x"], "simulate"),
            TypeError,
            "d must be an xarray.Dataset, as simulate returns; got 'int'",
        ),
        (
            lambda: paths.check_dataset("d", xr.Dataset(), ["x"], "simulate"),
            ValueError,
            "x missing, found nothing",
        ),
    ],
)
def test_refusals(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_diverged_carries_the_time():
    error = Diverged(np.float32(2.5), "the mean")
    assert error.time == 2.5
    assert str(error).startswith("the mean stopped being finite at time 2.5; end `times` earlier")
    assert isinstance(error, ArithmeticError)
