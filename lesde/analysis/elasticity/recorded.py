"""Reads from the attributes of paths how they were made, as far as class means do not determine it.

That is the transform H, the steps of an integration, and whether the strength depended on the features.
"""

from __future__ import annotations

import contextlib
import json
import warnings
from typing import Any

import numpy as np
import xarray as xr

from lesde.analysis.class_means import ClassMeans
from lesde.analysis.elasticity.transitions import Clock
from lesde.checks import shown
from lesde.clocks import StepGrid
from lesde.model.kernels import FeatureKernel
from lesde.model.transforms import Transform, make_transform

CURVATURE = {"euler": 0.0, "milstein": 0.0, "srk": 0.5}
"""A step h of a method multiplies the expected class means by 1 + x + c x², x = hM: this is c."""


def recorded_model(paths: xr.Dataset) -> dict[str, Any]:
    """The model as `lesde.LESDE.describe` wrote it; empty where there is none."""
    model = None
    with contextlib.suppress(TypeError, ValueError):
        model = json.loads(paths.attrs["model"]) if "model" in paths.attrs else None
    return model if isinstance(model, dict) else {}


def choose_transform(paths: xr.Dataset, transform: Any, K: int, p: int) -> Transform:
    """The transform given; without one that of the paths' model, else the identity.

    Warns the caller of the public function where the transform given is not that of the model.
    """
    recorded = recorded_model(paths).get("transform")
    if transform is None:
        return make_transform("identity" if recorded is None else recorded, K, p)
    given = make_transform(transform, K, p)
    with contextlib.suppress(TypeError, ValueError):  # that of a model of another size
        own = given if recorded is None else make_transform(recorded, K, p)
        if not np.allclose(given.array(), own.array(), rtol=1e-6, atol=1e-9):
            warnings.warn(
                f"transform={shown(transform)} is not that of the model that made these paths, "
                f"transform={shown(recorded)} by their attributes: α and β are then not those of that "
                f"model. Leave transform out to take the recorded one.",
                UserWarning,
                stacklevel=3,
            )
    return given


def warn_of_features(paths: xr.Dataset) -> None:
    """Warn the caller of the public function where the strength depends on the features."""
    kernel = recorded_model(paths).get("kernel", {})
    if kernel.get("kind") != "FeatureKernel":
        return
    with contextlib.suppress(ValueError):
        if FeatureKernel(kernel["strength"]).class_kernel is not None:
            return
    warnings.warn(
        "these paths were made by a model with a FeatureKernel, whose strength depends on the features: "
        "their class means do not obey the linear law that is fitted. α, β or E are then those of the "
        "linear model that comes closest to the motion of these paths, and change with the initial state and "
        "the noise. r_squared_common says how well they predict one time from the last.",
        UserWarning,
        stacklevel=3,
    )


def read_clock(paths: xr.Dataset, data: ClassMeans, scheme: str) -> Clock:
    """The clock (group, interval) of the process: SGD's iterations, steps of a recorded integration, or continuous time.

    An integration divides every saved interval evenly into steps of at most ``attrs["dt"]``, one or one per learning
    rate. Of paths without some of their times the steps are taken to be those of the times that are left.
    """
    width = np.tile(np.diff(data.times), (len(data.values), 1))
    if scheme == "exponential":
        return Clock(width)
    if data.steps is not None:
        return Clock(width, data.steps, np.zeros(width.shape))
    method = paths.attrs.get("method")
    if paths.attrs.get("engine") == "torchsde" and method in CURVATURE:
        groups = xr.DataArray(np.zeros(tuple(data.groups.values())), dims=list(data.groups))
        rates = (groups + data.coords.get("learning_rate", np.nan)).values.astype(float).ravel()
        longest = np.unique(np.asarray(paths.attrs.get("dt", np.nan), dtype=float))
        steps = rates if len(longest) > 1 else np.full(len(width), longest[0])
        modified = paths.attrs.get("sde") == "modified"
        if not (np.isnan(steps).any() or (modified and np.isnan(rates).any())):
            grids = [StepGrid.regular(data.times, dt) for dt in steps.tolist()]
            counts = np.stack([np.diff(grid.saved) for grid in grids])
            curvature = np.full(counts.shape, CURVATURE[str(method)])
            if modified:  # drift M − (h/2)M² at learning rate h, where M changes slowly
                curvature = -rates[:, None] / 2 * counts / width
            return Clock(width, counts, curvature)
        warnings.warn(
            "these paths were integrated in steps, but no longer record the step or learning rate of each "
            "of them: they are fitted in continuous time, which makes rates too small by the "
            "relative amount ½·step·rate. Keep the coordinate learning_rate.",
            UserWarning,
            stacklevel=3,
        )
    if scheme == "discrete":
        raise ValueError(
            "scheme='discrete' needs the coordinate iteration in paths, the number of SGD steps at each time, or the "
            "attributes of an integration by engine='torchsde'; add it, or use scheme='exponential'."
        )
    return Clock(width)
