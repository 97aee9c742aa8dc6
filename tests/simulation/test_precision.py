"""What does not fit the precision of the paths is told; what two precisions share of one seed."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

import lesde


def system(noise=0.1, n=5, kernel=None):
    return lesde.LESDE(kernel or lesde.TwoLevel(1.0, -1.0), 3, 3, n, noise=noise)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("keep", ["features", "statistics"])
@pytest.mark.parametrize("engine", ["exact", "torchsde"])
@pytest.mark.parametrize(
    ("noise", "n"),
    [
        (1e160, 5),
        (1e160, 1),
        ([1e160, 1, 1], 5),
        ("1e160*(1+t)", 5),
        (np.diag([1e160, 1, 2.0]), 5),
    ],
    ids=["constant", "one sample", "one class", "formula", "matrix"],
)
def test_noise_whose_square_overflows(noise, n, engine, keep, dtype):
    """σ²t is 1e320, above the largest float64 1.8e308."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(lesde.Diverged, match=r"variance that noise adds.*time 0\.5") as caught:
            lesde.simulate(
                system(noise, n), [0, 0.5, 1], np.eye(3), 4, engine=engine, keep=keep, dtype=dtype
            )
    assert caught.value.time == 0.5


@pytest.mark.parametrize("engine", ["exact", "torchsde", "sgd"])
def test_samples_and_covariances_beyond_the_precision(engine):
    """float32 ends at 3.4e38: sums of samples with noise 1e38 overflow, covariances from noise 1e20 on."""

    def run(noise, keep, dtype="float32"):
        return lesde.simulate(
            system(noise), [0, 1.0], np.eye(3), 32, 0.1, engine, keep=keep, dtype=dtype
        )

    with pytest.raises(lesde.Diverged):
        run(1e38, "features")
    with pytest.raises(lesde.Diverged):
        run(1e20, "statistics")
    assert np.isfinite(run(1e36, "features").features).all()
    assert np.isfinite(run(1e17, "statistics").within).all()
    assert np.isfinite(run(1e20, "statistics", "float64").within).all()


@pytest.mark.parametrize("engine", ["exact", "torchsde"])
@pytest.mark.parametrize("keep", ["features", "statistics"])
def test_class_means_of_one_seed_agree_between_precisions(engine, keep):
    """To rounding in float32: means of 50 samples of size up to about 3."""
    model = system(0.5, 50, lesde.TwoLevel("1/(1+t)", -0.3))

    def means(dtype):
        paths = lesde.simulate(
            model, [0, 0.5, 1], replicates=40, engine=engine, keep=keep, dtype=dtype, seed=4
        )
        if keep == "statistics":
            return paths["mean"].values
        return paths.features.groupby("label").mean().transpose(..., "label", "feature").values

    np.testing.assert_allclose(means("float32"), means("float64"), atol=3e-6)
