"""What counts as an initial state."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import xarray as xr

from lesde import LESDE, TwoLevel
from lesde.model.lesde import read_initial

MODEL = LESDE(TwoLevel(1, 0), 3, 3, 2)
MEANS = np.arange(9.0).reshape(3, 3)


def test_a_data_array_is_read_by_name():
    turned = xr.DataArray(MEANS.T, dims=("feature", "class"))
    np.testing.assert_array_equal(read_initial(MODEL, turned).means, MEANS)


def test_a_data_array_with_other_names_is_refused():
    with pytest.raises(
        ValueError, match="initial has the dimensions 'feature', 'label'; name them"
    ):
        read_initial(MODEL, xr.DataArray(MEANS, dims=("feature", "label")))


def test_a_data_array_without_names_is_read_by_position():
    np.testing.assert_array_equal(read_initial(MODEL, xr.DataArray(MEANS)).means, MEANS)


def test_a_torch_tensor():
    given = torch.tensor(MEANS, requires_grad=True)
    np.testing.assert_array_equal(read_initial(MODEL, given).means, MEANS)


def test_samples_are_split_into_means_and_deviations():
    samples = np.random.default_rng(0).normal(size=(6, 3))
    start = read_initial(MODEL, samples)
    np.testing.assert_allclose(start.means, samples.reshape(3, 2, 3).mean(1))
    np.testing.assert_allclose(np.repeat(start.means, 2, axis=0) + start.offsets, samples)
