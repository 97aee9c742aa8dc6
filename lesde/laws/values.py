"""Kernels and noise with values for their free names, as tensors that carry gradients to these."""

from __future__ import annotations

import numbers
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from lesde.checks import shown
from lesde.model.formula import TIME, EntryTable, compiled
from lesde.model.lesde import LESDE
from lesde.model.noise import Noise, finite_variance
from lesde.model.quadrature import WEIGHTS, Panels

__all__ = ["BoundNoise", "BoundTable", "Values", "numbers_of", "read_parameters"]

Values = Mapping[str, torch.Tensor]
"""Named parameters as 0-d float64 tensors on the CPU."""

MOST_VALUES = 2**22
"""Values of the noise that are integrated at once."""


def read_parameters(model: LESDE, parameters: Any) -> dict[str, torch.Tensor]:
    """Values for the free names of a model, still part of the graph of the tensors given."""
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


def numbers_of(values: Values) -> dict[str, float]:
    """The values without their graph."""
    return {name: float(value.detach()) for name, value in values.items()}


class BoundTable:
    """A table of formulas of time whose free names have values; ``name`` is for errors of entries without names."""

    def __init__(self, table: EntryTable, values: Values, name: str):
        self.table, self.values, self.name = table, values, name
        self.is_constant = table.is_constant
        self._index = torch.from_numpy(table.index)
        free = [value.free_symbols - {TIME} for value in table.values]
        self._symbols = [sorted((s for s in each if s.name in values), key=str) for each in free]

    def __call__(self, times: np.ndarray) -> torch.Tensor:
        """Values at the times, shape (time, \\*index.shape), float64, checked finite."""
        return self.distinct(times)[:, self._index]

    def distinct(self, times: np.ndarray) -> torch.Tensor:
        """The distinct values at the times, shape (time, value), float64, checked finite."""
        table = self.table
        if not any(self._symbols):
            return torch.from_numpy(table.distinct(times))
        at = torch.from_numpy(np.array(times, dtype=np.float64))
        columns = []
        for position, (expression, symbols) in enumerate(
            zip(table.values, self._symbols, strict=True)
        ):
            function = compiled(
                expression, [TIME, *symbols], "torch", table.functions, self._name(position)
            )
            columns.append(function(at, *(self.values[symbol.name] for symbol in symbols)))
        found = torch.stack(columns, -1)
        bad = torch.nonzero(~torch.isfinite(found))
        if len(bad):
            row, position = bad[0].tolist()
            used = (
                f"{symbol} = {float(self.values[symbol.name].detach()):g}"
                for symbol in self._symbols[position]
            )
            raise ValueError(
                f"{self._name(position)} = {table.values[position]} is not a finite real number at t = "
                f"{times[row]:g} for {', '.join(used)}. Change the values, the formula or the times."
            )
        return found

    def _name(self, position: int) -> str:
        return self.table.names[position] if self.table.names else self.name


class BoundNoise:
    """σ_k(t) of a model's noise, with values for its free names."""

    def __init__(self, noise: Noise, values: Values):
        self.noise, self.values = noise, values
        self.is_constant, self.is_isotropic = noise.is_constant, noise.is_isotropic
        self.is_shared = noise.is_shared
        self._table: BoundTable | None = None
        if not noise.is_numeric and values:
            self._table = BoundTable(noise.table, values, "noise")

    def square(self, times: np.ndarray) -> torch.Tensor:
        """σ² (time, 1 or class) where isotropic, else σσᵀ (time, 1 or class, feature, feature)."""
        if self._table is None:
            return torch.from_numpy(np.array(self.noise.square(times)))
        factors = self._table(times)
        if self.noise.given.ndim < 2:
            negative = torch.nonzero(factors < 0)
            if len(negative):
                i, k = negative[0].tolist()
                raise ValueError(
                    f"noise must not be negative at any time; got {float(factors[i, k].detach()):g} "
                    f"for class {k} at t = {times[i]:g}. Noise is the diffusion σ, whose square is a "
                    f"variance per unit time."
                )
            return factors**2
        if self.noise.given.ndim == 2:
            factors = factors.unsqueeze(1)
        return factors[..., 0, 0] ** 2 if self.is_isotropic else factors @ factors.mT

    @torch.no_grad()
    def panels(self, windows: np.ndarray, kept: np.ndarray | None = None) -> Panels:
        """Panels on which σσᵀ is resolved at the current values, as from :meth:`lesde.model.noise.Noise.panels`."""

        def square(times: np.ndarray) -> np.ndarray:
            found = self.square(times)
            return found.reshape(*found.shape[:2], -1).numpy()

        return self.noise.panels(windows, kept, numbers_of(self.values), square)

    def integrated(self, times: np.ndarray) -> torch.Tensor:
        """∫ σσᵀ between successive times, in the shape of :meth:`square`, (interval, 1 or class, …).

        Raises
        ------
        ValueError
            Where the noise is not finite at some time, or changes too abruptly to integrate.
        Diverged
            Where the variance up to some time overflows.
        """
        asked = self.square(
            times[:1] if self.is_constant else times
        )  # names what is wrong at the times
        if len(times) == 1:
            return asked[:0]
        if self.is_constant:
            widths = torch.from_numpy(np.diff(times))
            total = widths.view(-1, *(1,) * (asked.dim() - 1)) * asked[:1]
        else:
            panels = self.panels(times)
            total = asked.new_zeros(len(times) - 1, *asked.shape[1:])
            at_once = max(1, MOST_VALUES // (len(WEIGHTS) * asked[0].numel()))
            for first in range(0, len(panels.starts), at_once):
                part = slice(first, first + at_once)
                nodes = panels.nodes[part]
                square = self.square(nodes.ravel()).unflatten(0, nodes.shape)
                weights = torch.from_numpy(panels.widths[part, None] * WEIGHTS)
                each = torch.einsum("pn,pn...->p...", weights, square)
                total = total.index_add(0, torch.from_numpy(panels.owner[part]), each)
        finite_variance(total.detach().numpy(), times)
        return total

    def covariances(self, square: torch.Tensor, n_classes: int) -> torch.Tensor:
        """Covariances (time, class, feature, feature) of the result of :meth:`square` or :meth:`integrated`."""
        p = self.noise.n_features
        if self.is_isotropic:
            square = square[:, :, None, None] * torch.eye(p, dtype=torch.float64)
        return square.expand(len(square), n_classes, p, p)
