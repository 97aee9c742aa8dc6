"""Reads from the attributes of paths how they were made, as far as class means do not determine it.

That is the transform H, the steps of an integration, and whether the strength depended on the features.
"""

from __future__ import annotations

import json
import warnings
from typing import Any

import numpy as np
import xarray as xr

from lesde.analysis.class_means import ClassMeans
from lesde.analysis.elasticity.transitions import Clock
from lesde.clocks import StepGrid
from lesde.model.kernels import FeatureKernel
from lesde.model.transforms import Transform, make_transform

__all__ = ["choose_transform", "read_clock", "warn_of_features"]

CURVATURE = {"euler": 0.0, "milstein": 0.0, "srk": 0.5}
"""A step h of a method multiplies the expected class means by 1 + x + c x², x = hM: this is c."""


def recorded_model(paths: xr.Dataset) -> dict[str, Any]:
    """The model as `lesde.LESDE.describe` wrote it; empty where there is none."""
    text = paths.attrs.get("model")
    try:
        model = json.loads(text) if isinstance(text, str) else None
    except ValueError:
        return {}
    return model if isinstance(model, dict) else {}


def choose_transform(
    paths: xr.Dataset, transform: Any, n_classes: int, n_features: int
) -> Transform:
    """The transform given; without one that of the paths' model, else the identity.

    Warns the caller of the public function where the transform given is not that of the model.
    """
    recorded = recorded_model(paths).get("transform")
    given = None if transform is None else make_transform(transform, n_classes, n_features)
    if recorded is None:
        return given or make_transform("identity", n_classes, n_features)
    try:
        own = make_transform(recorded, n_classes, n_features)
    except (TypeError, ValueError):
        if given is not None:
            return given
        raise ValueError(
            f"paths were made by a model with transform={_name(recorded)}, which does not fit their "
            f"{n_classes} classes and {n_features} features; give transform."
        ) from None
    if given is None:
        return own
    if "matrix" in (given.kind, own.kind):
        same = bool(np.allclose(given.array(), own.array(), rtol=1e-6, atol=1e-9))
    else:
        same = given.kind == own.kind
    if not same:
        warnings.warn(
            f"transform={_name(transform)} is not that of the model that made these paths, "
            f"transform={_name(recorded)} by their attributes: α and β are then not those of that "
            f"model. Leave transform out to take the recorded one.",
            UserWarning,
            stacklevel=3,
        )
    return given


def _name(value: Any) -> str:
    value = getattr(value, "kind", value)
    return repr(value) if isinstance(value, str) else f"array of shape {np.shape(value)}"


def warn_of_features(paths: xr.Dataset) -> None:
    """Warn the caller of the public function where the strength depends on the features."""
    kernel = recorded_model(paths).get("kernel")
    if not isinstance(kernel, dict) or kernel.get("kind") != "FeatureKernel":
        return
    try:
        if FeatureKernel(kernel["strength"]).class_kernel is not None:
            return
    except (KeyError, TypeError, ValueError):
        pass  # it cannot be read back, so it may not be a kernel of classes
    warnings.warn(
        "these paths were made by a model with a FeatureKernel, whose strength depends on the features: "
        "their class means do not obey the linear law that is fitted. α, β or E are then those of the "
        "linear model that comes closest to the motion of these paths, roughly the strength averaged "
        "over pairs of samples; they change with the initial state and the noise, and their errors hold "
        "for replicates made the same way. r_squared_common says how well they predict one time from the last.",
        UserWarning,
        stacklevel=3,
    )


def read_clock(paths: xr.Dataset, data: ClassMeans) -> Clock:
    """The clock (group, interval) of the process: SGD's iterations, steps of a recorded integration, or continuous time.

    An integration divides every saved interval evenly into steps of at most ``attrs["dt"]``. Of paths without some of
    their times the steps are taken to be those of the times that are left.
    """
    width = np.tile(np.diff(data.times), (len(data.values), 1))
    if data.steps is not None:
        return Clock(width, data.steps, np.zeros(width.shape))
    method = paths.attrs.get("method")
    if paths.attrs.get("engine") != "torchsde" or method not in CURVATURE:
        return Clock(width)
    rates = None
    if "learning_rate" in data.coords:  # of every group
        groups = xr.DataArray(np.zeros(tuple(data.groups.values())), dims=list(data.groups))
        rates = (groups + xr.DataArray(data.coords["learning_rate"])).values.astype(float).ravel()
    try:
        longest = np.unique(np.asarray(paths.attrs.get("dt"), dtype=float))
    except (TypeError, ValueError):
        longest = np.empty(0)
    modified = paths.attrs.get("sde") == "modified"
    each = longest.size > 1 and rates is not None and np.isin(rates, longest).all()
    one = longest.size == 1 and longest[0] > 0
    if not (one or each) or (modified and rates is None):
        warnings.warn(
            "these paths were integrated in steps, but no longer record the step or learning rate of each "
            "of them: they are fitted in continuous time, which makes rates too small by the "
            "relative amount ½·step·rate. Keep the coordinate learning_rate.",
            UserWarning,
            stacklevel=3,
        )
        return Clock(width)
    dts = rates if each and rates is not None else np.full(len(width), longest[0])
    counts = np.stack([np.diff(StepGrid.regular(data.times, dt).saved) for dt in dts.tolist()])
    curvature = np.full(counts.shape, CURVATURE[str(method)])
    if (
        modified and rates is not None
    ):  # drift M − (h/2)M² at learning rate h, where M changes slowly
        curvature = -rates[:, None] / 2 * counts / width
    return Clock(width, counts, curvature)
