"""What counts as an initial state."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import xarray as xr

import lesde

MODEL = lesde.LESDE(lesde.TwoLevel(1, 0), 3, 3, 2, noise=0)
MEANS = np.arange(9.0).reshape(3, 3)


def start(initial):
    """Class means of the law at the first time."""
    return lesde.law(MODEL, [0.0], initial)["mean"].values[0]


def test_a_data_array_is_read_by_name():
    turned = xr.DataArray(MEANS.T, dims=("feature", "class"))
    np.testing.assert_allclose(start(turned), MEANS, atol=1e-14)


def test_a_data_array_with_other_names_is_refused():
    with pytest.raises(
        ValueError, match="initial has the dimensions 'feature', 'label'; name them"
    ):
        start(xr.DataArray(MEANS, dims=("feature", "label")))


def test_a_data_array_without_names_is_read_by_position():
    np.testing.assert_allclose(start(xr.DataArray(MEANS)), MEANS, atol=1e-14)


def test_a_torch_tensor():
    given = torch.tensor(MEANS, requires_grad=True)
    np.testing.assert_allclose(start(given), MEANS, atol=1e-14)


def test_samples_are_split_into_means_and_deviations():
    samples = np.random.default_rng(0).normal(size=(6, 3))
    np.testing.assert_allclose(start(samples), samples.reshape(3, 2, 3).mean(1))
    paths = lesde.simulate(MODEL, [0.0, 1.0], samples, replicates=2, dtype="float64")
    np.testing.assert_allclose(paths["features"].values[:, 0], [samples, samples], rtol=1e-14)
