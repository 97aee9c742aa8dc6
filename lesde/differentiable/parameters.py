"""Values of a model's free names, as tensors."""

from __future__ import annotations

import numbers
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lesde.checks import shown

if TYPE_CHECKING:
    from lesde.model import LESDE

__all__ = ["numbers_of", "read_parameters"]


def read_parameters(model: LESDE, parameters: Any) -> dict[str, torch.Tensor]:
    """Check the argument ``parameters`` against the free names of a model.

    Parameters
    ----------
    model : LESDE
    parameters : mapping of str to number or 0-d tensor, or None
        One value for every name in ``model.free_parameters``.

    Returns
    -------
    dict of str to 0-d tensor, float64 on the CPU
        Still part of the graph of the tensors given.

    Raises
    ------
    TypeError, ValueError
        For names that have no value or are not in the model, and values that are no finite numbers.
    """
    given = {} if parameters is None else parameters
    if not isinstance(given, Mapping):
        raise TypeError(
            f"parameters must be a mapping of names to numbers or 0-d tensors, such as {{'a': 2.0}}; "
            f"got {shown(parameters)}."
        )
    free = model.free_parameters
    unknown = [name for name in given if name not in free]
    if unknown:
        raise ValueError(
            f"parameters has {', '.join(map(str, unknown))}, which the model does not; its free names "
            f"are {', '.join(free) or 'none'}. A name is left free by a formula of a kernel with "
            f"parameters={{'a': None}}."
        )
    missing = [name for name in free if name not in given]
    if missing:
        raise ValueError(
            f"the model has the free names {', '.join(free)}, and no value for {', '.join(missing)}; "
            f"give parameters={{{missing[0]!r}: ...}}."
        )
    return {name: _scalar(name, given[name]) for name in free}


def _scalar(name: str, value: Any) -> torch.Tensor:
    if isinstance(value, torch.Tensor):
        if value.dim() != 0 or value.is_complex() or value.dtype == torch.bool:
            raise ValueError(
                f"parameters[{name!r}] must be a number or a real 0-d tensor; got a tensor of shape "
                f"{tuple(value.shape)} and {value.dtype}."
            )
        tensor = value.to("cpu", torch.float64)
    elif isinstance(value, numbers.Real | np.floating) and not isinstance(value, bool):
        tensor = torch.tensor(float(value), dtype=torch.float64)
    else:
        raise TypeError(
            f"parameters[{name!r}] must be a number or a real 0-d tensor; got {shown(value)}."
        )
    if not bool(torch.isfinite(tensor)):
        raise ValueError(f"parameters[{name!r}] must be finite; got {float(tensor.detach())}.")
    return tensor


def numbers_of(values: Mapping[str, torch.Tensor]) -> dict[str, float]:
    """The values without their graph."""
    return {name: float(value.detach()) for name, value in values.items()}
