"""SymPy expressions as functions of NumPy arrays and of torch tensors."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Mapping, Sequence
from functools import cache, lru_cache
from typing import Any

import numpy as np
import sympy as sp

from lesde.checks import shown

MANY = 32
"""Expressions in which common parts are no longer looked for."""
Given = tuple[tuple[str, Callable[..., Any]], ...]


def compiled(
    expression: sp.Basic | Sequence[sp.Basic],
    symbols: sp.Symbol | Sequence[sp.Symbol],
    backend: str = "numpy",
    functions: Mapping[str, Callable[..., Any]] | None = None,
    name: str = "the formula",
) -> Callable[..., Any]:
    """A function of arrays (backend "numpy") or of tensors ("torch") from a SymPy expression.

    The function takes a value for each symbol, broadcasts them and returns an array or tensor of their
    common shape (a list of these for a sequence of expressions). ``functions`` are the Python callables behind
    unevaluated functions.

    With torch, gradients flow to all arguments: the cases of a condition that do not hold contribute
    none, and what is infinite on the way to a finite value contributes zero. A gradient to the place of a
    switch, or through a function that torch lacks, raises ValueError, with the formula's ``name``.
    """
    several = isinstance(expression, list | tuple)
    expressions = tuple(expression) if isinstance(expression, list | tuple) else (expression,)
    if not all(isinstance(each, sp.Basic) for each in expressions):  # lambdify would execute a text
        raise TypeError(f"{name} must be a SymPy expression; got {shown(expression)}.")
    arguments = (symbols,) if isinstance(symbols, sp.Symbol) else tuple(symbols)
    given = tuple((functions or {}).items())
    make = _torch_function if backend == "torch" else _numpy_function
    try:
        function = make(expressions, arguments, given, name)
    except TypeError:  # a callable that cannot be hashed
        function = make.__wrapped__(expressions, arguments, given, name)
    return function if several else lambda *values: function(*values)[0]


@lru_cache(maxsize=4096)
def _numpy_function(
    expressions: tuple[sp.Basic, ...], symbols: tuple[sp.Symbol, ...], given: Given, name: str
) -> Callable[..., list[np.ndarray]]:
    # NumPy has no integers beyond 64 bits, and would make arrays of objects.
    large = {n for each in expressions for n in each.atoms(sp.Integer) if abs(n) >= 2**63}
    plain = [each.xreplace({n: sp.Float(n, 17) for n in large}) for each in expressions]
    modules = [dict(given), "numpy", "scipy"]
    evaluate = sp.lambdify(symbols, plain, modules, dummify=True, cse=len(plain) < MANY)

    def function(*values: Any) -> list[np.ndarray]:
        arrays = np.broadcast_arrays(*values)
        found = map(np.asarray, evaluate(*arrays))
        # What a callable returns keeps its shape, so that a wrong one is seen.
        return [
            each if given and each.ndim else np.broadcast_to(each, arrays[0].shape)
            for each in found
        ]

    return function


# --------------------------------------------------------------------------------------------------
# torch: every node of an expression becomes a function of the symbols' values.

Node = Callable[[Sequence[Any]], Any]


@lru_cache(maxsize=4096)
def _torch_function(
    expressions: tuple[sp.Basic, ...], symbols: tuple[sp.Symbol, ...], given: Given, name: str
) -> Callable[..., list[Any]]:
    import torch  # heavy: only who computes with tensors loads it

    nodes = [_node(each, symbols, given, name) for each in expressions]

    def function(*values: Any) -> list[Any]:
        tensors = [*map(_tensor, values)]
        typical = [value for value in tensors if value.dim()] or tensors  # a lone number has no say
        shapes, dtypes = ({getattr(v, name) for v in typical} for name in ("shape", "dtype"))
        shape = torch.broadcast_shapes(*shapes) if len(shapes) > 1 else typical[0].shape
        dtype = functools.reduce(torch.promote_types, dtypes)
        found = [_tensor(node(tensors)).to(typical[0].device, dtype) for node in nodes]
        return [each if each.shape == shape else each.expand(shape) for each in found]

    return function


def _tensor(value: Any) -> Any:
    import torch

    return value if torch.is_tensor(value) else torch.as_tensor(value, dtype=torch.float64)


def _node(node: sp.Basic, symbols: tuple[sp.Symbol, ...], given: Given, name: str) -> Node:
    """The node as a function of the symbols' values."""
    if node in symbols:
        return operator.itemgetter(symbols.index(node))
    if node.is_Atom:
        constant = bool(node) if node in (sp.true, sp.false) else float(node)
        return lambda _: constant
    if isinstance(node, sp.Heaviside):
        node = node.rewrite(sp.Piecewise)
    if isinstance(node, sp.Piecewise):
        return _cases(node, symbols, given, name)
    arguments = [_node(each, symbols, given, name) for each in node.args]
    operation = _operations().get(node.func) or _outside(node, given, name)
    return lambda values: operation(*[argument(values) for argument in arguments])


@cache
def _operations() -> dict[type, Callable[..., Any]]:
    """What torch does for each kind of node."""
    import torch

    same = "exp sinh cosh log sin cos tan asin acos atan tanh asinh acosh atanh erf sign floor"
    other = {"Abs": "abs", "ceiling": "ceil", "Not": "logical_not"}
    words = {word: word for word in same.split()} | other
    words |= {word: word.lower() for word in ("Eq", "Ne", "Lt", "Le", "Gt", "Ge")}

    def lifted(function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, for numbers as well: torch.log takes no 2."""
        return lambda *values: function(*map(_tensor, values))

    def joined(function: Callable[..., Any]) -> Callable[..., Any]:
        """The function of two, for any number of values."""
        return lambda *values: functools.reduce(function, values)

    table = {getattr(sp, word): lifted(getattr(torch, own)) for word, own in words.items()}
    pairs = {sp.Max: torch.maximum, sp.Min: torch.minimum}
    pairs |= {sp.And: torch.logical_and, sp.Or: torch.logical_or}
    table |= {kind: lifted(joined(function)) for kind, function in pairs.items()}
    table |= {sp.Add: joined(operator.add), sp.Mul: joined(operator.mul), sp.Pow: _power}
    growing = (sp.exp, sp.sinh, sp.cosh, sp.Mul, sp.Pow)
    return table | {kind: _guarded(table[kind]) for kind in growing}


def _power(base: Any, exponent: Any) -> Any:
    """base**exponent, with a root where that will do: torch.pow takes ten times as long."""
    half = isinstance(exponent, float) and 0.5 < abs(exponent) < 4 and exponent % 1 == 0.5
    if half and not getattr(base, "requires_grad", False):  # at 0 the root's slope is infinite
        return base ** (exponent - 0.5) * _tensor(base).sqrt()
    return base**exponent


def _guarded(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, whose gradient is 0 where it or an argument is infinite.

    torch would multiply the gradient 0 of 1/(1 + exp(1000)) by the slope ∞ of exp, which is NaN.
    """
    import torch

    def call(*values: Any) -> Any:
        found = function(*values)
        if not torch.is_tensor(found) or not found.requires_grad:
            return found
        most = torch.finfo(found.dtype).max ** 0.25  # second derivatives have third powers of it
        tensors = [*map(_tensor, values)]
        infinite = functools.reduce(operator.or_, (each.abs() > most for each in (found, *tensors)))
        if not infinite.any():
            return found
        safe = [torch.where(infinite, 1.0, value) for value in tensors]
        return torch.where(infinite, found.detach(), function(*safe))

    return call


def _cases(node: sp.Piecewise, symbols: tuple[sp.Symbol, ...], given: Given, name: str) -> Node:
    """Every case with gradients at its own places only: elsewhere it may have none that is finite."""
    import torch

    parts = [[_node(each, symbols, given, name) for each in case] for case in node.args]

    def call(values: Sequence[Any]) -> Any:
        moving = [s for s, v in zip(symbols, values, strict=True) if v.requires_grad]
        result: Any = _tensor(torch.nan)
        left = _tensor(True).bool()
        for (value, holds), (_, condition) in zip(parts, node.args, strict=True):
            # A gradient through the place of a jump is a delta function, which no evaluation sees.
            if places := [str(symbol) for symbol in moving if symbol in condition.free_symbols]:
                raise ValueError(
                    f"{name} switches where {condition}, which depends on {', '.join(places)}: gradients to "
                    f"the place of a switch are not available. Give a plain number, or a smooth switch."
                )
            chosen = _tensor(holds(values)).bool() & left
            own = [torch.where(chosen, v, v.detach()) if v.requires_grad else v for v in values]
            result, left = torch.where(chosen, value(own), result), left & ~chosen
        return result

    return call


def _outside(node: sp.Basic, given: Given, name: str) -> Callable[..., Any]:
    """A callable of the user's, or a function that torch lacks, by NumPy and SciPy."""
    import torch

    places = [sp.Dummy() for _ in node.args]
    function = compiled(node.func(*places), places, "numpy", dict(given), name)

    def call(*values: Any) -> Any:
        tensors = [*map(_tensor, values)]
        if any(value.requires_grad for value in tensors):
            raise ValueError(f"{name} contains {node}, a function that has no gradient here.")
        found = function(*(value.cpu().double().numpy() for value in tensors))
        return torch.as_tensor(np.array(found, np.float64), device=tensors[0].device)

    return call
