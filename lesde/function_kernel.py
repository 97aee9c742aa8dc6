"""Kernels from a Python function of two classes and the time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from lesde.checks import check_integer, shown
from lesde.entries import EntryTable
from lesde.formula import TIME, Formula, parse_formula
from lesde.kernels import Kernel, Parameters

__all__ = ["kernel"]


class _FunctionKernel(Kernel):
    """A kernel from a function (k, l, t); made by the decorator :func:`kernel`."""

    def __init__(self, function: Callable[[int, int, Any], Any], parameters: Parameters = None):
        self.function = function
        self.parameters = parameters
        self.__doc__ = function.__doc__

    def _entry(self, k: int, l: int) -> Formula:
        name = f"kernel({k}, {l}, t)"
        given = getattr(self.function, "__name__", "E")
        # A lambda's name is no identifier, which the symbol of a callable has to be.
        symbol = f"{given if given.isidentifier() else 'E'}_{k + 1}_{l + 1}"
        try:
            return parse_formula(name, self.function(k, l, TIME), self.parameters, symbol)
        except (TypeError, AttributeError):
            # The function uses NumPy on t, so it has no formula: keep it as a callable.
            return parse_formula(name, lambda t, k=k, l=l: self.function(k, l, t), None, symbol)

    def entries(self, n_classes: int) -> EntryTable:
        K = check_integer("n_classes", n_classes)
        formulas = {f"kernel({k}, {l}, t)": self._entry(k, l) for k in range(K) for l in range(K)}
        return EntryTable.from_formulas(formulas, np.arange(K * K).reshape(K, K))

    def with_parameters(self, values: Mapping[str, float]) -> Kernel:
        return _FunctionKernel(self.function, {**(self.parameters or {}), **values})

    def _describe(self) -> dict[str, Any]:
        return {"function": getattr(self.function, "__name__", repr(self.function))}


def kernel(function: Callable[[int, int, Any], Any]) -> Kernel:
    """Make a kernel of a function ``(k, l, t)``, as a decorator.

    Parameters
    ----------
    function : callable
        Called with class numbers k (moved) and l (drawn), from 0, and the time. It returns a
        number, a formula or an expression in t. It is called with a SymPy symbol first, so that the
        kernel can be derived from; if it fails there with TypeError or AttributeError (it uses NumPy
        functions on t), it is kept as a numerical function.

    Examples
    --------
    >>> @kernel
    ... def chain(k, l, t):
    ...     return 2 / (1 + t) if k == l else -1 / (1 + abs(k - l))
    >>> chain.entries(3)[0, 2]
    -1/3
    """
    if not callable(function):
        raise TypeError(f"kernel decorates a function (k, l, t); got {shown(function)}.")
    return _FunctionKernel(function)
