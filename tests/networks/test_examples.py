"""The examples in the docstrings of the networks."""

from __future__ import annotations

import doctest
import importlib

import pytest

import lesde

MODULES = sorted({getattr(lesde.networks, name).__module__ for name in lesde.networks.__all__})
SKIPPED = {"lesde.networks.cifar", "lesde.networks.lightning"}  # they need what is not here


@pytest.mark.parametrize("module", [*MODULES, "lesde.networks.impact"])
def test_examples_in_the_documentation(module):
    found = doctest.testmod(importlib.import_module(module), extraglobs={"lesde": lesde})
    assert found.attempted > 0 or module in SKIPPED
    assert found.failed == 0
