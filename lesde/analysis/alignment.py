"""Arrays that go with features, put over the dimensions of the features."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import numpy as np
import xarray as xr

from lesde.checks import check_finite_array, shown

__all__ = ["align"]


def align(name: str, value: Any, leading: dict[Hashable, int], ends: dict[str, int]) -> np.ndarray:
    """A float64 array over the leading dimensions of the features, and then others.

    Parameters
    ----------
    name : str
        What errors call it.
    value : DataArray or array_like
        A DataArray has the dimensions ``ends`` and any of ``leading``, in any order; an array has the
        shape of ``ends`` after leading dimensions that broadcast.
    leading, ends : dict of dimension to size

    Returns
    -------
    ndarray
        A view that may not be written to, of the sizes of ``leading`` and then ``ends``.
    """
    wanted = ", ".join(f"{dim}: {size}" for dim, size in ends.items())
    if isinstance(value, xr.DataArray):
        renamed = {dim: "feature" for dim in value.dims if dim == "feature_in"}
        variable = value.rename(renamed).variable
        missing = [dim for dim in ends if dim not in variable.dims]
        foreign = [dim for dim in variable.dims if dim not in ends and dim not in leading]
        if missing or foreign:
            raise ValueError(
                f"{name} must have the dimensions {', '.join(map(repr, ends))} and otherwise only "
                f"those of the features ({', '.join(map(repr, leading)) or 'none'}); "
                f"got {', '.join(map(repr, value.dims))}."
            )
        order = [dim for dim in leading if dim in variable.dims]
        variable = variable.transpose(*order, *ends)
        array = check_finite_array(name, variable.values)
        shape = tuple(leading[d] if d in order else 1 for d in leading) + tuple(ends.values())
        fits = array.shape == tuple(leading[d] for d in order) + tuple(ends.values())
        array = array.reshape(shape) if fits else array
    else:
        array = check_finite_array(name, value)
        fits = array.ndim >= len(ends) and array.shape[array.ndim - len(ends) :] == tuple(
            ends.values()
        )
    try:
        if not fits:
            raise ValueError
        return np.broadcast_to(array, (*leading.values(), *ends.values()))
    except ValueError:
        dims = ", ".join(f"{dim}: {size}" for dim, size in leading.items()) or "none"
        raise ValueError(
            f"{name} must fit the features, ({wanted}) after leading dimensions that broadcast to "
            f"({dims}); got shape {shown(np.shape(value))}."
        ) from None
