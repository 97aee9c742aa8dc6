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

Values = Mapping[str, torch.Tensor]
"""Named parameters as 0-d float64 tensors on the CPU."""

MOST_VALUES = 2**22
"""Values of the noise that are integrated at once."""


def read_parameters(model: LESDE, parameters: Any) -> dict[str, torch.Tensor]:
    """Values for the free names of a model, still part of the graph of the tensors given."""
    given, free = {} if parameters is None else parameters, model.free_parameters
    if not isinstance(given, Mapping):
        raise TypeError(
            f"parameters must be a mapping of names to numbers or 0-d tensors, such as {{'a': 2.0}}; "
            f"got {shown(parameters)}."
        )
    unknown = [str(name) for name in given if name not in free]
    if unknown:
        raise ValueError(
            f"parameters has {', '.join(unknown)}, which the model does not; its free names are "
            f"{', '.join(free) or 'none'}."
        )
    missing = [name for name in free if name not in given]
    if missing:
        raise ValueError(
            f"the model has the free names {', '.join(free)}, and no value for {', '.join(missing)}; "
            f"give parameters={{{missing[0]!r}: ...}}."
        )
    return {name: _scalar(name, given[name]) for name in free}


def _scalar(name: str, value: Any) -> torch.Tensor:
    allowed = f"parameters[{name!r}] must be a number or a real 0-d tensor"
    if isinstance(value, torch.Tensor):
        if value.dim() != 0 or value.is_complex() or value.dtype == torch.bool:
            raise ValueError(
                f"{allowed}; got a tensor of shape {tuple(value.shape)} and {value.dtype}."
            )
        tensor = value.to("cpu", torch.float64)
    elif isinstance(value, numbers.Real) and not isinstance(value, bool):
        tensor = torch.tensor(float(value), dtype=torch.float64)
    else:
        raise TypeError(f"{allowed}; got {shown(value)}.")
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
        names = table.names or [self.name] * len(table.values)
        columns = []
        for name, expression, symbols in zip(names, table.values, self._symbols, strict=True):
            function = compiled(expression, [TIME, *symbols], "torch", table.functions, name)
            columns.append(function(at, *(self.values[symbol.name] for symbol in symbols)))
            bad = ~torch.isfinite(columns[-1])
            if bool(bad.any()):
                used = (f"{s} = {float(self.values[s.name].detach()):g}" for s in symbols)
                raise ValueError(
                    f"{name} = {expression} is not a finite real number at t = "
                    f"{times[int(bad.nonzero()[0])]:g} for {', '.join(used)}. Change the values, the "
                    f"formula or the times."
                )
        return torch.stack(columns, -1)


class BoundNoise:
    """σ_k(t) of a model's noise, with values for its free names."""

    def __init__(self, noise: Noise, values: Values):
        self.noise, self.values = noise, values
        self.is_constant, self.is_isotropic = noise.is_constant, noise.is_isotropic
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
                    f"for class {k} at t = {times[i]:g}."
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

        Diverged where the variance up to some time overflows.
        """
        at = self.square(times[:1] if self.is_constant else times)  # errors at the times first
        if len(times) == 1:
            return at[:0]
        if self.is_constant:
            total = torch.from_numpy(np.diff(times)).view(-1, *(1,) * (at.dim() - 1)) * at
        else:
            panels = self.panels(times)
            total = at.new_zeros(len(times) - 1, *at.shape[1:])
            at_once = max(1, MOST_VALUES // (len(WEIGHTS) * at[0].numel()))
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
