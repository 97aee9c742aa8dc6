"""The torch operations of which a program of tiles is made; each writes into a given tile."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import sympy as sp
import torch

__all__ = ["CONDITIONS", "Operand", "condition", "operation"]


@dataclass(frozen=True)
class Operand:
    """What an operation reads.

    Attributes
    ----------
    kind : {"tile", "scalar", "number", "truth"}
        A register; a value that depends on time alone; a constant; the truth of a condition.
    value : int or float
        Which one, or the constant itself.
    """

    kind: str
    value: Any


Tensor = torch.Tensor


def _add(out: Tensor, a: Tensor, b: Tensor, factor: float) -> None:
    torch.add(a, b, alpha=factor, out=out)


def _into(out: Tensor, a: Tensor, number: float) -> None:
    torch.reciprocal(a, out=out)
    if number != 1:
        out.mul_(number)


def _where(out: Tensor, test: Any, a: Any, b: Any) -> None:
    if isinstance(test, Tensor):
        out.copy_(torch.where(test, a, b))
        return
    chosen = a if test else b
    if isinstance(chosen, Tensor):
        out.copy_(chosen)
    else:
        out.fill_(chosen)


def _heaviside(out: Tensor, a: Tensor, at_zero: float) -> None:
    torch.heaviside(a, a.new_full((), at_zero), out=out)


def _unary(function: Callable[..., Any]) -> Callable[..., None]:
    def run(out: Tensor, a: Tensor) -> None:
        function(a, out=out)

    return run


def _binary(function: Callable[..., Any]) -> Callable[..., None]:
    def run(out: Tensor, a: Any, b: Any) -> None:
        function(a, b, out=out)

    return run


def _extremum(both: Callable[..., Any], bound: str) -> Callable[..., None]:
    def run(out: Tensor, a: Any, b: Any) -> None:
        if isinstance(a, Tensor) and isinstance(b, Tensor):
            both(a, b, out=out)
        elif isinstance(a, Tensor):
            torch.clamp(a, **{bound: b}, out=out)
        else:
            torch.clamp(b, **{bound: a}, out=out)

    return run


_OPERATIONS: dict[str, Callable[..., None]] = {
    "add": _add,
    "shift": _binary(torch.add),
    "scale": _binary(torch.mul),
    "multiply": _binary(torch.mul),
    "divide": _binary(torch.div),
    "into": _into,
    "power": _binary(torch.pow),
    "where": _where,
    "fill": lambda out, value: out.fill_(value),
    "Max": _extremum(torch.maximum, "min"),
    "Min": _extremum(torch.minimum, "max"),
    "Heaviside": _heaviside,
    **{
        name: _unary(getattr(torch, name))
        for name in (
            "sqrt", "exp", "log", "sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh", "tanh",
            "asinh", "acosh", "atanh", "erf", "erfc", "sign", "floor",
        )
    },
    "Abs": _unary(torch.abs),
    "ceiling": _unary(torch.ceil),
}  # fmt: skip

CONDITIONS: dict[str, Callable[..., Any]] = {
    "StrictLessThan": lambda a, b: a < b,
    "LessThan": lambda a, b: a <= b,
    "StrictGreaterThan": lambda a, b: a > b,
    "GreaterThan": lambda a, b: a >= b,
    "Equality": lambda a, b: a == b,
    "Unequality": lambda a, b: a != b,
    "And": lambda *tests: _fold(torch.logical_and, tests),
    "Or": lambda *tests: _fold(torch.logical_or, tests),
    "Not": lambda test: ~test,
}


def _fold(join: Callable[..., Tensor], tests: tuple[Any, ...]) -> Any:
    tensors = [test for test in tests if isinstance(test, Tensor)]
    total = tensors[0]
    for tensor in tensors[1:]:
        total = join(total, tensor)
    for test in tests:
        if not isinstance(test, Tensor):
            total = join(total, total.new_full((), bool(test)))
    return total


def operation(name: str) -> Callable[..., None]:
    """The function ``f(out, *operands)`` of that name: one of this module's, or SymPy's."""
    if name not in _OPERATIONS:
        # Those of SymPy: the others are steps of a program, which nobody writes.
        known = sorted(key for key in _OPERATIONS if isinstance(getattr(sp, key, None), type))
        raise ValueError(
            f"strength has the function {name}, which cannot be evaluated; known are {', '.join(known)}."
        )
    return _OPERATIONS[name]


def condition(name: str) -> Callable[..., Any]:
    """The function that evaluates a condition."""
    return CONDITIONS[name]
