"""Settings shared by all tests."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import pytest

# Set before torch or NumPy load: tests run side by side, one thread each.
for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")
os.environ.setdefault("MPLBACKEND", "agg")


@pytest.fixture(autouse=True)
def figures_are_closed() -> Iterator[None]:
    """A figure that a test leaves open warns in another one, whichever comes twentieth."""
    yield
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")
