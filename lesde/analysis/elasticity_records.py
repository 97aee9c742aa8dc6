"""What paths record of how they were made, as far as a fit of elasticity has to know it.

`lesde.simulate` writes the model, the engine and its step into the attributes of a dataset. Recorded
networks, and paths whose attributes were dropped, say nothing, and nothing is assumed of them.
"""

from __future__ import annotations

import json
import warnings
from typing import Any

import numpy as np
import xarray as xr

from lesde.analysis.class_means import ClassMeans
from lesde.analysis.transition_flow import Steps
from lesde.transforms import Transform, make_transform

__all__ = ["choose_transform", "read_steps", "warn_of_features"]

# A step h of a method multiplies the expected class means by 1 + x + c x², x = hM: this is c.
CURVATURE = {"euler": 0.0, "milstein": 0.0, "srk": 0.5}


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

    Warns
    -----
    UserWarning
        Where the transform given is not that of the model.
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
    if not _same(given, own):
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


def _same(one: Transform, two: Transform) -> bool:
    if "matrix" not in (one.kind, two.kind):
        return one.kind == two.kind
    return bool(np.allclose(one.array(), two.array(), rtol=1e-6, atol=1e-9))


def warn_of_features(paths: xr.Dataset) -> None:
    """Warn where the paths' model has a strength that depends on the features.

    Warns
    -----
    UserWarning
    """
    kernel = recorded_model(paths).get("kernel")
    if not isinstance(kernel, dict) or kernel.get("kind") != "FeatureKernel":
        return
    from lesde.feature_kernel import FeatureKernel

    try:
        if FeatureKernel(kernel["strength"]).class_kernel is not None:
            return
    except (KeyError, TypeError, ValueError):
        pass  # it cannot be read again, so nothing says that it is a kernel of classes
    warnings.warn(
        "these paths were made by a model with a FeatureKernel, whose strength depends on the features: "
        "their class means do not obey the linear law that is fitted. α, β or E are then those of the "
        "linear model that comes closest to the motion of these paths, roughly the strength averaged "
        "over pairs of samples; they change with the initial state and the noise, and their errors hold "
        "for replicates made the same way. r_squared_common tells how well they predict one time from the last.",
        UserWarning,
        stacklevel=3,
    )


def read_steps(paths: xr.Dataset, data: ClassMeans) -> Steps | None:
    """The steps in which the process moved: SGD's iterations, or those of a recorded integration.

    Parameters
    ----------
    paths : xarray.Dataset
    data : ClassMeans
        Of these paths, with ``steps`` read where there is a coordinate ``iteration``.

    Returns
    -------
    Steps, or None for continuous time
        An integration divides every saved interval evenly into steps of at most ``attrs["dt"]``. Of
        paths without some of their times the steps are taken to be those of the times that are left.
    """
    if data.steps is not None:
        return Steps(data.steps, np.zeros(data.steps.shape))
    method = paths.attrs.get("method")
    if paths.attrs.get("engine") != "torchsde" or method not in CURVATURE:
        return None
    rates = _learning_rates(data)
    longest = _longest_steps(paths.attrs.get("dt"), rates, len(data.values))
    modified = paths.attrs.get("sde") == "modified"
    if longest is None or (modified and rates is None):
        warnings.warn(
            "these paths were integrated in steps, but do not tell the step or learning rate of each of "
            "them any more: they are fitted in continuous time, which makes rates too small by the "
            "relative amount ½·step·rate. Keep the coordinate learning_rate.",
            UserWarning,
            stacklevel=3,
        )
        return None
    from lesde.simulation.steps import StepGrid

    grids = {dt: np.diff(StepGrid.regular(data.times, dt).saved) for dt in set(longest.tolist())}
    counts = np.stack([grids[dt] for dt in longest.tolist()])
    curvature = np.full(counts.shape, CURVATURE[str(method)])
    if modified:  # drift M − (h/2)M² at learning rate h, where M changes slowly
        assert rates is not None
        curvature = -rates[:, None] / 2 * counts / np.diff(data.times)
    return Steps(counts, curvature)


def _learning_rates(data: ClassMeans) -> np.ndarray | None:
    """Of every group, shape (group,)."""
    if "learning_rate" not in data.coords:
        return None
    values = np.asarray(data.coords["learning_rate"].values, dtype=float)
    dims = list(data.groups)
    if "learning_rate" in dims:
        after = len(dims) - 1 - dims.index("learning_rate")
        values = values.reshape(-1, *[1] * after)
    return np.broadcast_to(values, tuple(data.groups.values())).ravel()


def _longest_steps(dt: Any, rates: np.ndarray | None, groups: int) -> np.ndarray | None:
    """The longest step of every group: one for all, or each its learning rate."""
    try:
        steps = np.unique(np.asarray(dt, dtype=float))
    except (TypeError, ValueError):
        return None
    if steps.size == 1 and steps[0] > 0:
        return np.full(groups, steps[0])
    return rates if rates is not None and np.isin(rates, steps).all() else None
