"""Messages of the package in the words of the command line."""

from __future__ import annotations

import re

import pytest

import lesde
from lesde.checks import shown_bytes
from lesde.cli.errors import in_options


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("n_classes must be an integer of at least 1; got 0.", "--classes must be an integer"),
        ("learning_rate must be positive; got -1.", "--learning-rate must be positive; got -1."),
        ("noise='modified' is derived for kernels; x", "--sde modified is derived for kernels; x"),
        ("noise must be one of 'plain', 'b'.", "--sde must be one of 'plain', 'b'."),
        ("noise must be a number.", "--noise must be a number."),
        ("got learning_rate=None. Give learning_rate.", "got no --learning-rate. Give --learning-rate."),
        ("got dt=0.5 with engine='sgd'.", "got --dt 0.5 with --engine sgd."),
        ("p must be a finite number in [0, 1]; got 3.0.", "--label-noise must be a finite"),
        ("Give numbers with parameters={...}.", "Give numbers with --parameter NAME=NUMBER."),
        ("transform must be one of 'a'.", "--transform must be one of 'a'."),
        # Plain words, and formulas, stay as they are.
        ("every transform and noise of a method", "every transform and noise of a method"),
        ("alpha = a/(1+t) is complex", "alpha = a/(1+t) is complex"),
    ],
)  # fmt: skip
def test_arguments_become_options(said: str, expected: str) -> None:
    assert expected in in_options(said)


def test_the_formula_reader_s_advice_becomes_options() -> None:
    with pytest.raises(ValueError, match="unknown symbol") as caught:
        lesde.TwoLevel("a", 1)
    said = in_options(str(caught.value))
    assert "--parameter a=NUMBER" in said
    assert "parameters" not in re.sub("no parameters", "", said)
    assert "{" not in said


def test_memory_is_told_in_fitting_units_and_options() -> None:
    model = lesde.LESDE(lesde.TwoLevel(1, 0), 3, 3, 4)
    for keep, hint in (("features", True), ("statistics", False)):
        with pytest.raises(ValueError, match="the result needs") as caught:
            lesde.simulate(model, [0, 1], replicates=32, keep=keep, memory_limit="1 KB")
        said = str(caught.value)
        assert "more than the 1 kB of memory_limit" in said
        # Statistics are not helped by asking for statistics.
        assert ("keep='statistics'" in said) is hint
        assert "first_replicate" in said
        said = in_options(said)
        assert "first_replicate" not in said
        assert ("--keep statistics" in said) is hint
    # 32 replicates × 2 times × 3 classes × (3 means + 9 covariances + 3 reaches) × 4 bytes
    assert "needs 11.5 kB" in said


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (999_600, "1 MB"),
        (1.5e6, "1.5 MB"),
        (9.31e9, "9.31 GB"),
        (2.5e13, "25 TB"),
    ],
)
def test_bytes_in_the_unit_that_fits(number: float, text: str) -> None:
    assert shown_bytes(number) == text
