"""The images that the tests of training share."""

from __future__ import annotations

import pytest

from lesde.networks import digits


@pytest.fixture(scope="package")
def data():
    return digits(classes=4, n_train_per_class=30, n_probe_per_class=6)
