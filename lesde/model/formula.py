"""Formulas: the one place that turns text into SymPy, and SymPy into NumPy and torch functions.

A value of a kernel or of the noise is a number, a text, a SymPy expression or a Python function of t. Texts are
read by a small parser that executes nothing. What is read is a :class:`Formula` in t, a :class:`PairFormula` of two
samples, or an entry of an :class:`EntryTable`; :func:`compiled` makes fast functions of all of them.
"""

from __future__ import annotations

import ast
import functools
import itertools
import math
import numbers
import operator
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property, lru_cache
from typing import Any, TypeVar

import numpy as np
import sympy as sp
from sympy.core.function import AppliedUndef
from sympy.core.relational import Relational
from sympy.logic.boolalg import Boolean

from lesde.checks import shown

__all__ = [
    "CONSTANTS",
    "FEATURE_VARIABLES",
    "FUNCTIONS",
    "TIME",
    "VARIABLES",
    "EntryTable",
    "Formula",
    "PairFormula",
    "Unfinished",
    "bounded",
    "compiled",
    "parse_formula",
    "parse_pair_formula",
    "rational",
]

Parameters = Mapping[str, float | None] | None
Functions = Mapping[str, Callable[..., Any]]

TIME = sp.Symbol("t", real=True)
"""The time of the LE-SDE. A symbol called ``t`` in a user's expression is replaced by this one."""
VARIABLES: dict[str, sp.Symbol] = {
    "r2": sp.Symbol("r2", nonnegative=True),
    "g": sp.Symbol("g", real=True),
    "c": sp.Symbol("c", real=True),
    "s": sp.Symbol("s", real=True),
}
"""Besides t, what a formula of two samples may depend on: squared distance, inner product, cosine, same class."""
FEATURE_VARIABLES = {name: VARIABLES[name] for name in ("r2", "g", "c")}


# --------------------------------------------------------------------------------------------------
# Symbolic steps under a bound: SymPy may search for ever, and nobody waits for that.

MOST_CALLS = 2_500_000
"""About two seconds; integrals that a person would print take a tenth to three quarters of it."""
MOST_SECONDS = 3.0
"""Processor time of the thread, for steps whose single calls are long."""
Result = TypeVar("Result")


class Unfinished(BaseException):
    """A symbolic step was given up. Not an Exception, which SymPy catches in many places."""


def bounded(step: Callable[..., Result], *arguments: Any) -> Result:
    """The value of ``step(*arguments)``; raises Unfinished where that takes too long."""
    if sys.getprofile() is not None:  # within another bound, or under somebody's profiler
        return step(*arguments)
    left = MOST_CALLS
    end = time.thread_time() + MOST_SECONDS

    def count(frame: Any, event: str, argument: Any) -> None:
        nonlocal left
        left -= 1
        if left < 0 or (left % 64 == 0 and time.thread_time() > end):
            raise Unfinished

    sys.setprofile(count)
    try:
        return step(*arguments)
    finally:
        sys.setprofile(None)


# --------------------------------------------------------------------------------------------------
# Text to SymPy.

FUNCTIONS: dict[str, Callable[..., sp.Expr]] = {
    **{name: getattr(sp, name) for name in ("exp", "log", "sqrt", "sin", "cos", "tan", "atan")},
    **{name: getattr(sp, name) for name in ("sinh", "cosh", "tanh", "erf", "Heaviside")},
    **{"ln": sp.log, "abs": sp.Abs, "Abs": sp.Abs},
    **{"min": sp.Min, "Min": sp.Min, "max": sp.Max, "Max": sp.Max},
}
CONSTANTS = {"pi": sp.pi, "e": sp.E, "E": sp.E}

# Long or deep input and towers of powers can keep SymPy busy for ever; no kernel needs them.
MAX_LENGTH = 500
MAX_EXPONENT = 100
MAX_LOG = 700  # exp of more overflows
MAX_DEPTH = 40
LARGEST = sp.Integer(10) ** 308

_BINARY: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}
_COMPARE = {ast.Lt: sp.Lt, ast.LtE: sp.Le, ast.Gt: sp.Gt, ast.GtE: sp.Ge}


def rational(value: float | numbers.Integral) -> sp.Expr:
    """The number as a user meant it: 0.1 becomes 1/10 and 2/3 in floating point becomes 2/3.

    The result equals the float when rounded to one, so that exact closed forms cost no accuracy.
    """
    if isinstance(value, numbers.Integral):
        return sp.Integer(int(value))
    number = float(value)
    for guess in (Fraction(repr(number)), Fraction(number).limit_denominator(1000)):
        if guess.denominator <= 10**6 and float(guess) == number:
            return sp.Rational(guess.numerator, guess.denominator)
    return sp.Float(number, 17)


def _within_floats(value: Any) -> Any:
    """The value, unless it is a number out of reach of floating point."""
    if not isinstance(value, sp.Expr) or not value.is_number:
        return value
    if value.has(sp.zoo, sp.nan, sp.oo, -sp.oo):
        raise ValueError("it is not finite: it divides by zero or takes the logarithm of zero")
    if abs(value if value.is_Rational else sp.N(value, 15)) > LARGEST:
        raise ValueError("a constant is too large for a floating-point number")
    return sp.Float(value, 17) if value.is_Rational and value.q >= LARGEST else value


def _check_exponent(exponent: sp.Expr, base: sp.Expr = sp.E) -> None:
    """Refuse exponents with which SymPy would multiply out a huge power."""
    if exponent.is_number:
        limit = MAX_LOG if base == sp.E else MAX_EXPONENT
        if abs(sp.N(exponent, 15)) > limit:
            raise ValueError(f"an exponent may be at most {limit} in size")
        return
    powers = base != sp.E and base.is_number
    powers = powers or any(term.is_number for term in exponent.atoms(sp.log))
    if powers and any(abs(number) > MAX_LOG for number in exponent.atoms(sp.Rational)):
        raise ValueError(f"numbers in the exponent of a number may be at most {MAX_LOG} in size")


class _Reader(ast.NodeVisitor):
    """Builds a SymPy expression from the few kinds of syntax that a formula may contain."""

    def __init__(self, names: Mapping[str, sp.Expr], variables: Iterable[str]):
        self.names, self.variables = names, list(variables)
        self.depth = 0

    def visit(self, node: ast.AST) -> Any:
        # Sums and products are flat however many terms they have; the rest may nest only so deep.
        flat = isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Sub | ast.Mult)
        self.depth += not flat
        if self.depth > MAX_DEPTH:
            raise ValueError(f"it is nested too deeply, beyond {MAX_DEPTH} levels")
        value = _within_floats(super().visit(node))
        self.depth -= not flat
        return value

    def number(self, node: ast.AST) -> sp.Expr:
        value = self.visit(node)
        if not isinstance(value, sp.Expr):
            raise ValueError(f"the condition '{ast.unparse(node)}' stands where a number must")
        return value

    def condition(self, node: ast.AST) -> Boolean:
        value = self.visit(node)
        if isinstance(value, sp.Expr) or not isinstance(value, Boolean):
            raise ValueError(f"the number '{ast.unparse(node)}' stands where a condition must")
        return value

    def generic_visit(self, node: ast.AST) -> Any:
        raise ValueError(
            f"{type(node).__name__} is not allowed in a formula; use numbers, "
            f"{', '.join(self.variables)}, + - * / **, "
            f"comparisons, 'a if condition else b', and {', '.join(sorted(FUNCTIONS))}"
        )

    def visit_Expression(self, node: ast.Expression) -> Any:
        return self.visit(node.body)

    def visit_Constant(self, node: ast.Constant) -> Any:
        if isinstance(node.value, bool) or not isinstance(node.value, int | float):
            raise ValueError(f"{node.value!r} is not a real number")
        if isinstance(node.value, float) and not math.isfinite(node.value):
            raise ValueError("a constant is too large for a floating-point number")
        return rational(node.value)

    def visit_Name(self, node: ast.Name) -> Any:
        if node.id in self.names:
            return self.names[node.id]
        if node.id in FUNCTIONS:
            raise ValueError(f"{node.id} is a function; write {node.id}(...)")
        known = sorted(set(self.names) - set(CONSTANTS) - set(self.variables))
        given = f"the parameters {', '.join(known)}" if known else "no parameters"
        raise ValueError(
            f"unknown symbol {node.id!r}; known are {', '.join(self.variables)}, pi, e and {given}. "
            f"Give it a value with parameters={{{node.id!r}: ...}}, or None there to leave it free"
        )

    def visit_BinOp(self, node: ast.BinOp) -> Any:
        if isinstance(node.op, ast.BitXor):
            raise ValueError("'^' is not a power; write '**'")
        if type(node.op) not in _BINARY:
            return self.generic_visit(node.op)
        left, right = self.number(node.left), self.number(node.right)
        if isinstance(node.op, ast.Pow):
            _check_exponent(right, left)
        return _BINARY[type(node.op)](left, right)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> Any:
        if not isinstance(node.op, ast.USub | ast.UAdd):
            return self.generic_visit(node.op)
        value = self.number(node.operand)
        return -value if isinstance(node.op, ast.USub) else value

    def visit_Call(self, node: ast.Call) -> Any:
        if not isinstance(node.func, ast.Name) or node.func.id not in FUNCTIONS:
            name = ast.unparse(node.func)
            raise ValueError(f"unknown function {name!r}; known are {', '.join(sorted(FUNCTIONS))}")
        if node.keywords or any(isinstance(arg, ast.Starred) for arg in node.args):
            raise ValueError(f"{node.func.id} takes plain arguments only")
        many = node.func.id.lower() in ("min", "max")
        if not node.args or (len(node.args) > 1 and not many):
            raise ValueError(f"{node.func.id} takes {'arguments' if many else 'one argument'}")
        arguments = [self.number(arg) for arg in node.args]
        if node.func.id in ("exp", "sinh", "cosh"):
            _check_exponent(arguments[0])
        return FUNCTIONS[node.func.id](*arguments)

    def visit_IfExp(self, node: ast.IfExp) -> Any:
        case = self.number(node.body), self.condition(node.test)
        return sp.Piecewise(case, (self.number(node.orelse), True))

    def visit_Compare(self, node: ast.Compare) -> Any:
        terms = [self.number(item) for item in (node.left, *node.comparators)]
        parts = []
        for op, (left, right) in zip(node.ops, itertools.pairwise(terms), strict=True):
            if type(op) not in _COMPARE:
                return self.generic_visit(op)
            parts.append(_COMPARE[type(op)](left, right))
        return sp.And(*parts)

    def visit_BoolOp(self, node: ast.BoolOp) -> Any:
        join = sp.And if isinstance(node.op, ast.And) else sp.Or
        return join(*(self.condition(value) for value in node.values))


def _read(text: str, names: Mapping[str, sp.Expr], variables: Iterable[str]) -> sp.Expr:
    """The expression that a text stands for; ValueError says where the text is not understood."""
    if len(text) > MAX_LENGTH:
        raise ValueError(
            f"a formula may have at most {MAX_LENGTH} characters, this has {len(text)}"
        )
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        detail = getattr(error, "msg", None) or "it is nested too deeply"
        raise ValueError(f"syntax error: {detail}") from None
    try:
        result = _Reader(names, variables).visit(tree)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except (TypeError, ArithmeticError) as error:  # SymPy's refusals, such as comparing with √(−1)
        raise ValueError(f"it cannot be computed: {error}") from None
    if not isinstance(result, sp.Expr):
        raise ValueError("it is a condition, not a number")
    return result


def _values_of(name: str, parameters: Parameters, known: Iterable[str]) -> dict[str, sp.Expr]:
    """The number that each named parameter stands for; a symbol where it is None."""
    if parameters is not None and not isinstance(parameters, Mapping):
        raise TypeError(
            f"parameters must be a mapping of names to numbers, such as {{'a': 0.3}}; got "
            f"{shown(parameters)}."
        )
    values: dict[str, sp.Expr] = {}
    for key, number in (parameters or {}).items():
        if key == "t":
            raise ValueError("parameters may not contain 't', which is the time.")
        if key in known:
            raise ValueError(
                f"parameters may not contain {key!r}, which is a variable of {name}; give the "
                f"parameter another name than {', '.join(known)}."
            )
        if number is None:
            values[key] = sp.Symbol(key, real=True)
            continue
        if isinstance(number, bool) or not isinstance(number, numbers.Real):
            raise TypeError(
                f"parameters[{key!r}] must be a real number; got {shown(number)}. None leaves the name "
                f"free."
            )
        if not math.isfinite(number):
            raise ValueError(f"parameters[{key!r}] must be finite; got {number}.")
        values[key] = rational(number)
    return values


def parse_formula(
    name: str,
    value: Any,
    parameters: Parameters = None,
    symbol: str | None = None,
    variables: Mapping[str, sp.Symbol] | None = None,
) -> Formula:
    """The formula that a number, text, SymPy expression, callable of t or Formula stands for.

    ``name`` is the argument's, for messages; ``symbol`` the name of the function of t that stands for a
    callable, else the argument's; ``variables`` are those besides t. A parameter that is None stays free: its
    formula can be derived from, calibrated and differentiated, and takes the value later.
    """
    known: dict[str, sp.Expr] = {**(variables or {}), "t": TIME}
    values = _values_of(name, parameters, known)
    if isinstance(value, Formula):
        return value.substitute(values, name)
    if isinstance(value, bool):
        raise TypeError(f"{name} must be a number, a formula or a function of t; got {value}.")
    if isinstance(value, numbers.Real) and not isinstance(value, sp.Basic):
        try:
            finite = math.isfinite(value)
        except OverflowError:  # an integer beyond the largest float
            finite = False
        if not finite:
            raise ValueError(f"{name} must be finite in float64; got {shown(value)}.")
        return Formula(rational(value if isinstance(value, numbers.Integral) else float(value)))
    if isinstance(value, str):
        try:
            expression = bounded(_read, value, {**CONSTANTS, **values, **known}, known)
        except ValueError as error:
            raise ValueError(f"{name} = {shown(value)} is not a usable formula: {error}.") from None
        except Unfinished:
            raise _too_long(name, value) from None
        return _real(name, expression, value)
    if isinstance(value, sp.Expr):
        meaning = {**values, **known}
        swaps = {s: meaning.get(s.name, s) for s in value.free_symbols}
        return _real(name, value.xreplace(swaps), value)
    if callable(value):
        symbol = symbol or name
        return Formula(sp.Function(symbol, real=True)(TIME), {symbol: value})
    raise TypeError(
        f"{name} must be a number, a string or SymPy expression in t, or a vectorised function of "
        f"t; got {shown(value)}."
    )


def _real(name: str, expression: sp.Expr, given: Any) -> Formula:
    if expression.has(sp.zoo, sp.nan, sp.oo, -sp.oo):
        raise ValueError(
            f"{name} = {shown(given)} must be finite: it contains {shown(expression)}. Change the formula."
        )
    try:
        real = not expression.is_number or bounded(lambda: expression.is_real)
    except Unfinished:
        raise _too_long(name, given) from None
    if real is False:
        raise ValueError(
            f"{name} = {shown(given)} must be real: it equals {shown(expression)}. Change the formula."
        )
    return Formula(expression)


def _too_long(name: str, given: Any) -> ValueError:
    return ValueError(
        f"{name} = {shown(given)} takes SymPy too long to read. Write it more simply, or give it as a "
        f"vectorised function of t."
    )


# --------------------------------------------------------------------------------------------------
# SymPy to NumPy and torch.

MANY = 32
"""Expressions in which common parts are no longer looked for, and which are evaluated in one call."""


def compiled(
    expression: sp.Basic | Sequence[sp.Basic],
    symbols: sp.Symbol | Sequence[sp.Symbol],
    backend: str = "numpy",
    functions: Mapping[str, Callable[..., Any]] | None = None,
    name: str = "the formula",
) -> Callable[..., Any]:
    """A function of arrays (backend "numpy") or of tensors ("torch") from a SymPy expression.

    The function takes a value for each symbol, broadcasts them and returns an array or tensor of their
    common shape (a list of these for a sequence of expressions), constants included. It does not check
    values. ``functions`` are the Python callables behind unevaluated functions.

    With torch, gradients flow to all arguments: the cases of a condition that do not hold contribute
    none, and what is infinite on the way to a finite value contributes zero. What torch lacks is left to
    NumPy and SciPy. A gradient to the place of a switch, or through a function that has none, raises
    ValueError, in which the formula has the name ``name``.
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


Given = tuple[tuple[str, Callable[..., Any]], ...]


@lru_cache(maxsize=4096)
def _numpy_function(
    expressions: tuple[sp.Basic, ...], symbols: tuple[sp.Symbol, ...], given: Given, name: str
) -> Callable[..., list[np.ndarray]]:
    modules = [dict(given), "numpy", "scipy"]
    plain = [_in_floats(each) for each in expressions]
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


def _in_floats(expression: sp.Basic) -> sp.Basic:
    """The expression with floats for integers beyond NumPy's, which would make arrays of objects."""
    large = [n for n in expression.atoms(sp.Integer) if abs(n) >= 2**63]
    return expression.xreplace({n: sp.Float(n, 17) for n in large})


@lru_cache(maxsize=4096)
def _torch_function(
    expressions: tuple[sp.Basic, ...], symbols: tuple[sp.Symbol, ...], given: Given, name: str
) -> Callable[..., list[Any]]:
    import torch  # heavy: only who computes with tensors loads it
    from sympy.printing.pytorch import TorchPrinter

    def tensor(value: Any) -> torch.Tensor:
        return value if torch.is_tensor(value) else torch.as_tensor(value, dtype=torch.float64)

    def lifted(function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, for numbers as well: torch.sqrt takes no 2."""
        return lambda *values: function(*map(tensor, values))

    def power(base: Any, exponent: Any) -> Any:
        """base**exponent, as products where it can be: torch.pow takes ten times as long."""
        if torch.is_tensor(exponent) or 2 * exponent != int(2 * exponent) or abs(exponent) > 64:
            return torch.pow(tensor(base), tensor(exponent))
        whole = int(abs(exponent))
        result: Any = None
        if whole < abs(exponent):
            result = tensor(base).sqrt()
        square = base
        while whole:
            if whole % 2:
                result = square if result is None else result * square
            whole //= 2
            square = square * square if whole else square
        return result if exponent > 0 else 1 / result

    def guarded(function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, whose gradient is 0 where it or an argument is infinite.

        torch would multiply the gradient 0 of 1/(1 + exp(1000)) by the slope ∞ of exp, which is NaN.
        """

        def call(*values: Any) -> torch.Tensor:
            found = function(*values)
            if not torch.is_tensor(found) or not found.requires_grad:
                return found
            most = torch.finfo(found.dtype).max / 1e3  # leaves room for a second derivative
            large = [each.abs() > most for each in (found, *map(tensor, values))]
            infinite = functools.reduce(operator.or_, large)
            safe = [torch.where(infinite, 1.0, tensor(value)) for value in values]
            return torch.where(infinite, found.detach(), function(*safe))

        return call

    def refuse_gradient(where: sp.Basic, values: Sequence[Any]) -> None:
        """A gradient through the place of a jump is a delta function, which no evaluation sees."""
        moving = [
            str(symbol)
            for symbol, value in zip(symbols, values, strict=True)
            if symbol in where.free_symbols and tensor(value).requires_grad
        ]
        if moving:
            raise ValueError(
                f"{name} switches where {where}, which depends on {', '.join(moving)}: gradients "
                f"with respect to the place of a switch are not available. Give {', '.join(moving)} as "
                f"a plain number, or write a smooth switch such as tanh."
            )

    def cases(node: sp.Piecewise) -> Callable[..., torch.Tensor]:
        """Every case with gradients at its own places only: elsewhere it may have none that is finite."""
        parts = [
            [compiled(each, symbols, "torch", dict(given), name) for each in case]
            for case in node.args
        ]

        def call(*values: Any) -> torch.Tensor:
            result: Any = torch.nan
            if not any(tensor(value).requires_grad for value in values):
                for value, holds in reversed(parts):
                    result = torch.where(holds(*values).bool(), value(*values), result)
                return result
            left: Any = True
            for (value, holds), (_, condition) in zip(parts, node.args, strict=True):
                refuse_gradient(condition, values)
                chosen = holds(*values).bool() & left
                own = [
                    torch.where(chosen, v, v.detach()) if tensor(v).requires_grad else v
                    for v in values
                ]
                result, left = torch.where(chosen, value(*own), result), left & ~chosen
            return result

        return call

    def outside(node: sp.Expr) -> Callable[..., torch.Tensor]:
        """A callable of the user's, or a function that torch lacks, by NumPy and SciPy."""
        places = [sp.Dummy() for _ in node.args]
        function = compiled(node.func(*places), places, "numpy", dict(given), name)

        def call(*values: Any) -> torch.Tensor:
            tensors = [tensor(value) for value in values]
            if any(value.requires_grad for value in tensors):
                raise ValueError(
                    f"{name} contains {node}, a function that has no gradient here; with free names use "
                    f"arithmetic, exp, log, trigonometric and hyperbolic functions, erf, Min, Max and "
                    f"conditions."
                )
            found = function(*(value.cpu().double().numpy() for value in tensors))
            return torch.as_tensor(np.array(found, np.float64), device=tensors[0].device)

        return call

    names: dict[str, Callable[..., Any]] = {
        "sqrt": lifted(torch.sqrt),
        "product": guarded(_product),
        "pow": guarded(power),
    }
    for operation in TorchPrinter.mapping.values():
        word = operation.removeprefix("torch.")
        if "." not in word and word not in names:
            own = {"max": "maximum", "min": "minimum"}.get(word, word)
            names[word] = lifted(getattr(torch, own))
            if word in ("exp", "cosh", "sinh"):
                names[word] = guarded(names[word])

    def call(word: str, function: Callable[..., Any], arguments: Iterable[sp.Basic]) -> sp.Basic:
        """A node that prints as a call of the function."""
        names[word] = function
        kind = type(word, (sp.Function,), {"_torchcode": _printed_call})
        return kind(*arguments)

    def translated(node: sp.Basic) -> sp.Basic:
        """The expression with calls of our own functions for what torch does otherwise or not at all."""
        if not node.args:
            return node
        if isinstance(node, sp.Heaviside):
            node = node.rewrite(sp.Piecewise)
        if isinstance(node, sp.Piecewise):
            return call(f"cases_{len(names)}", cases(node), symbols)
        arguments = [translated(argument) for argument in node.args]
        if node.is_Mul and node.has(sp.exp, sp.sinh, sp.cosh, sp.Pow):
            return call("product", names["product"], arguments)
        if isinstance(node, sp.Function) and node.func not in TorchPrinter.mapping:
            return call(f"outside_{len(names)}", outside(node), arguments)
        return node.func(*arguments)

    plain = [translated(_in_floats(each)) for each in expressions]
    evaluate = sp.lambdify(symbols, plain, [names, "torch"], dummify=True, cse=len(plain) < MANY)

    def function(*values: Any) -> list[torch.Tensor]:
        tensors = [*map(tensor, values)]
        typical = [value for value in tensors if value.dim()] or tensors  # a lone number has no say
        device, shape, dtype = typical[0].device, typical[0].shape, typical[0].dtype
        for other in typical[1:]:
            if other.shape != shape:
                shape = torch.broadcast_shapes(shape, other.shape)
            dtype = torch.promote_types(dtype, other.dtype)
        found = map(tensor, evaluate(*tensors))
        as_wanted = (each.to(device, dtype) for each in found)
        return [each if each.shape == shape else each.expand(shape) for each in as_wanted]

    return function


def _product(*values: Any) -> Any:
    return functools.reduce(operator.mul, values)


def _printed_call(self: sp.Function, printer: Any) -> str:
    return f"{type(self).__name__}({', '.join(map(printer._print, self.args))})"


# --------------------------------------------------------------------------------------------------
# Formulas in t, formulas of two samples, and tables of formulas.


@lru_cache(maxsize=4096)
def _names(expression: sp.Expr) -> frozenset[str]:
    """Free symbols other than t, and unevaluated functions."""
    symbols = {str(s) for s in expression.free_symbols - {TIME}}
    return frozenset(symbols | {f.func.__name__ for f in expression.atoms(AppliedUndef)})


@dataclass(frozen=True)
class Formula:
    """A real function of time: an expression in :data:`TIME`, and the callables behind functions in it."""

    expression: sp.Expr
    functions: Functions = field(default_factory=dict, hash=False)

    def __str__(self) -> str:
        """The expression, or the callable that it stands for where that says in words what it is."""
        alone = self.functions.get(self.expression.func.__name__) if self.functions else None
        speaks = alone is not None and type(alone).__str__ is not object.__str__
        return str(alone if speaks else self.expression)

    def unresolved(self) -> list[str]:
        """Names that have no value yet: free symbols other than t, functions without a callable."""
        return sorted(_names(self.expression) - set(self.functions))

    def substitute(self, values: Mapping[str, sp.Expr], name: str = "kernel value") -> Formula:
        """The formula with expressions in place of free names."""
        swaps = {s: values[s.name] for s in self.expression.free_symbols if s.name in values}
        if not swaps:
            return self
        new = _real(name, self.expression.xreplace(swaps), self.expression).expression
        return Formula(new, self.functions)

    def __call__(self, times: np.ndarray, name: str = "kernel value") -> np.ndarray:
        """Values at the times, float64, of their shape.

        ValueError names the formula where a name has no value, and the time where a value is complex or
        not finite.
        """
        if missing := self.unresolved():
            raise ValueError(
                f"{name} = {self.expression} has no value for {', '.join(missing)}; it can be "
                f"derived from but not evaluated. Give numbers with parameters={{...}}."
            )
        times = np.asarray(times, dtype=np.float64)
        with np.errstate(all="ignore"):
            try:
                raw = compiled(self.expression, TIME, functions=self.functions)(times)
            except (ZeroDivisionError, OverflowError):
                raw = np.full(times.shape, np.nan)
            except Exception as error:
                if not self.functions:
                    raise
                raise ValueError(
                    f"{name} cannot be evaluated at an array of times: its function raised "
                    f"{type(error).__name__}: {error}. Write it with NumPy functions so that it is "
                    f"vectorised, for example numpy.where in place of if."
                ) from error
        if raw.dtype.kind not in "biufc":
            raise ValueError(f"{name} must return numbers; its function returned {shown(raw)}.")
        if raw.shape != times.shape:
            raise ValueError(
                f"{name} must return one value per time: given times of shape {times.shape}, it "
                f"returned shape {raw.shape}. Write it with NumPy functions so that it is vectorised."
            )
        bad = (np.imag(raw) != 0) | ~np.isfinite(raw)
        if bad.any():
            when = float(times[bad].flat[0])
            raise ValueError(
                f"{name} = {self.expression} is {self._diagnosis(when)} at t = {when:g}; it "
                f"must be real and finite at every time simulated. Change the formula or the times."
            )
        return np.array(np.real(raw), dtype=np.float64)

    def _diagnosis(self, when: float) -> str:
        if self.functions:  # callables are written for real times
            return "not finite"
        # In floating point: SymPy computes the digits of exp(exp(1000)) for ever.
        try:
            with np.errstate(all="ignore"):
                value = complex(compiled(self.expression, TIME)(np.array(when, np.complex128)))
        except Exception:  # a function that takes no complex numbers
            return "not finite"
        if not np.isfinite(value) or value.imag == 0:
            return "not finite"
        return f"complex ({sp.N(sp.sympify(value), 8)})"


@dataclass(frozen=True)
class PairFormula:
    """κ(X_i, X_j) as a formula in r2, g, c, s and t.

    ``r2`` is ‖X_i − X_j‖², ``g`` is ⟨X_i, X_j⟩, ``c`` is g/(‖X_i‖‖X_j‖) and 0 where a norm is 0, ``s``
    is 1 for samples of one class and 0 for others.
    """

    expression: sp.Expr

    def at(self, same: bool) -> sp.Expr:
        """The expression for two samples of one class, or of different ones: s is 1 or 0."""
        return self._parts[0 if same else 1]

    @cached_property
    def _parts(self) -> tuple[sp.Expr, ...]:
        values = []
        for s in (1, 0):
            try:
                value = sp.sympify(bounded(self.expression.subs, VARIABLES["s"], s))
            except Unfinished:
                raise ValueError(
                    f"strength = {self.expression} takes SymPy too long to evaluate at s = {s}; write "
                    f"it more simply."
                ) from None
            if value.has(sp.zoo, sp.nan, sp.oo, -sp.oo):
                raise ValueError(
                    f"strength = {self.expression} is not finite at s = {s}; s is 1 for samples of "
                    f"one class and 0 for others, so write for example s*a + (1-s)*b."
                )
            values.append(value)
        return tuple(values)

    @cached_property
    def uses(self) -> frozenset[str]:
        """Those of r2, g and c that matter, for samples of one class or of different ones."""
        free = self.at(True).free_symbols | self.at(False).free_symbols
        return frozenset(name for name, symbol in FEATURE_VARIABLES.items() if symbol in free)

    @property
    def is_class_only(self) -> bool:
        """True if it depends on s and t only, and so is a class kernel."""
        return not self.uses

    def unresolved(self) -> list[str]:
        """Names that have no value yet."""
        known = {*VARIABLES.values(), TIME}
        return sorted(str(symbol) for symbol in self.expression.free_symbols - known)

    def check_resolved(self) -> None:
        """Refuse a formula with a name that has no value."""
        if missing := self.unresolved():
            raise ValueError(
                f"strength = {self.expression} has no value for {', '.join(missing)}; it can be "
                f"derived from but not evaluated. Give numbers with parameters={{...}}, or later with "
                f"model.substitute."
            )

    def __call__(self, r2: Any, g: Any, c: Any, s: Any, t: Any) -> np.ndarray:
        """Values for arrays that broadcast, float64; not checked to be finite."""
        self.check_resolved()
        values = [np.asarray(value, np.float64) for value in (r2, g, c, t)]
        symbols = (*FEATURE_VARIABLES.values(), TIME)
        with np.errstate(all="ignore"):
            same, different = (compiled(self.at(same), symbols)(*values) for same in (True, False))
        return np.where(np.equal(s, 1), same, different).astype(np.float64)


def parse_pair_formula(name: str, value: Any, parameters: Parameters = None) -> PairFormula:
    """The formula of two samples that a number, text or SymPy expression stands for.

    It must be finite at s = 0 and 1, and at r2 = 0, the distance of a sample to itself.
    """
    if isinstance(value, PairFormula):
        value = value.expression
    if not isinstance(value, str | int | float | np.number | sp.Expr) or isinstance(value, bool):
        raise TypeError(
            f"{name} must be a number, or a formula (text or SymPy) in {', '.join(VARIABLES)} and t; "
            f"got {shown(value)}."
        )
    formula = PairFormula(parse_formula(name, value, parameters, variables=VARIABLES).expression)
    formula.at(True)  # raises where s = 1 or 0 divides by zero
    if not formula.unresolved() and "r2" in formula.uses:
        g, t = np.meshgrid([0.5, 1.0, 2.0], [0.1, 0.7, 1.3, 10.0])
        near, at_zero = (np.isfinite(formula(r2, g, 1.0, 1.0, t)) for r2 in (1e-3, 0.0))
        if near.any() and not at_zero.any():
            raise ValueError(
                f"{name} = {formula.expression} is not finite at r2 = 0, the distance of a sample to "
                f"itself; write for example 1/(1 + r2) in place of 1/r2."
            )
    return formula


@dataclass(frozen=True)
class EntryTable:
    """A matrix of expressions in time: entry (k, l) is ``values[index[k, l]]``.

    A kernel over 100 classes has 10,000 entries but often only two values, so everything symbolic is done
    once per distinct value. ``names`` is what the user calls each value; empty for derived tables.
    """

    values: tuple[sp.Expr, ...]
    index: np.ndarray
    functions: Functions = field(default_factory=dict)
    names: tuple[str, ...] = ()

    @classmethod
    def from_formulas(cls, formulas: Mapping[str, Formula], index: np.ndarray) -> EntryTable:
        """A table of named formulas, which ``index`` counts in their order; equal ones are merged."""
        functions: dict[str, Callable[..., Any]] = {}
        for formula in formulas.values():
            functions.update(formula.functions)
        expressions = [formula.expression for formula in formulas.values()]
        return cls._merged(expressions, index, functions, list(formulas))

    @classmethod
    def _merged(
        cls,
        expressions: Sequence[sp.Expr],
        index: np.ndarray,
        functions: Functions,
        names: Sequence[str] = (),
    ) -> EntryTable:
        distinct = list(dict.fromkeys(expressions[i] for i in np.unique(index)))
        position = {expression: i for i, expression in enumerate(distinct)}
        first = dict(zip(reversed(expressions), reversed(names), strict=False))
        return cls(
            tuple(distinct),
            np.array([position.get(expression, -1) for expression in expressions])[index],
            dict(functions),
            tuple(first[expression] for expression in distinct) if names else (),
        )

    def __getitem__(self, key: tuple[int, int]) -> sp.Expr:
        return self.values[self.index[key]]

    def combine(self, labels: np.ndarray, rule: Callable[[sp.Expr, int], sp.Expr]) -> EntryTable:
        """A new table with entries ``rule(value, label)``, evaluated once per distinct pair.

        ``labels`` (rows, columns) are small integers for what else the rule depends on, for example the class
        whose weight multiplies the entry.
        """
        pairs, inverse = np.unique(
            np.stack([self.index.ravel(), np.asarray(labels).ravel()]), axis=1, return_inverse=True
        )
        expressions = [rule(self.values[i], int(j)) for i, j in pairs.T]
        return self._merged(expressions, inverse.reshape(self.index.shape), self.functions)

    def matrix(self) -> sp.Matrix:
        """The dense SymPy matrix; meant for small tables."""
        rows, columns = self.index.shape
        return sp.Matrix(rows, columns, lambda k, l: self[k, l])

    def __call__(self, times: np.ndarray) -> np.ndarray:
        """Values at the times, shape (time, rows, columns), float64, checked real and finite."""
        return self.distinct(times)[..., self.index]

    def distinct(self, times: np.ndarray) -> np.ndarray:
        """The distinct values at the times, shape (time, value), float64, checked real and finite."""
        times = np.asarray(times, dtype=np.float64)
        if len(self.values) >= MANY and not self.functions:
            # In one call: to compile ten thousand entries one by one takes minutes.
            try:
                with np.errstate(all="ignore"):
                    together = np.stack(compiled(self.values, TIME)(times), -1)
            except (TypeError, ValueError, ArithmeticError, NameError):
                together = np.array(np.nan)  # whatever it is, the formula alone says it by name
            if together.dtype.kind in "iuf" and np.isfinite(together).all():
                return together.astype(np.float64)
        names = self.names or ["kernel entry"] * len(self.values)
        formulas = (Formula(value, self.functions) for value in self.values)
        return np.stack([f(times, name) for f, name in zip(formulas, names, strict=True)], -1)

    def places(
        self, start: float, end: float, values: Mapping[str, float] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Points between two times at which the values may jump or have a kink, and those of possible narrow peaks.

        ``values`` are those of free names.
        """
        values = values or {}
        conditions = {each for e in self.values for each in _conditions(e)}
        switches = [_changes(*each, self.functions, start, end, values) for each in conditions]
        arguments = {each for e in self.values for each in _arguments(e)}
        peaks = [_turns(each, start, end, values) for each in arguments]
        jumps, bumps = (np.unique(np.concatenate([[], *found])) for found in (switches, peaks))
        return jumps[(jumps > start) & (jumps < end)], bumps

    @property
    def is_constant(self) -> bool:
        """True if no entry depends on time."""
        return all(TIME not in value.free_symbols for value in self.values)


# --------------------------------------------------------------------------------------------------
# Where formulas in time switch: the places of jumps and kinks, and where a narrow peak may hide.

# Samples of a condition that is no polynomial in t, and halvings of a bracket until nothing lies within.
SAMPLES = 4096
HALVINGS = 70
# Switches that can be resolved; a formula with more is refused as changing too often.
MOST = 20_000
# The largest degree of a polynomial whose roots are asked for.
DEGREE = 12


@lru_cache(maxsize=4096)
def _conditions(expression: sp.Expr) -> frozenset[tuple[str, sp.Expr]]:
    """Pairs of a rule, "sign" or "floor", and what it is applied to: the expression is smooth
    wherever none of these changes."""
    found: set[tuple[str, sp.Expr]] = set()
    for node in sp.preorder_traversal(expression):
        kind, arguments = node.func, node.args
        if isinstance(node, Relational):
            found.add(("sign", arguments[0] - arguments[1]))
        elif kind in (sp.Heaviside, sp.sign, sp.Abs, sp.log):
            found.add(("sign", arguments[0]))
        elif kind in (sp.Max, sp.Min):
            found |= {("sign", a - b) for a, b in itertools.combinations(arguments, 2)}
        elif kind in (sp.floor, sp.ceiling, sp.frac):
            found.add(("floor", arguments[0]))
        elif kind is sp.Mod:
            found.add(("floor", arguments[0] / arguments[1]))
        elif kind is sp.Pow and not (arguments[1].is_Integer and arguments[1] > 0):
            found.add(("sign", arguments[0]))  # a root, or a pole within a bounded function
        elif kind is sp.tan:
            found.add(("sign", sp.cos(arguments[0])))
    return frozenset((rule, g) for rule, g in found if TIME in g.free_symbols)


@lru_cache(maxsize=4096)
def _arguments(expression: sp.Expr) -> frozenset[sp.Expr]:
    """Arguments of functions and powers. Where one or its slope is zero there may be a narrow peak or step:
    at 5.3 in exp(-1e6*(t - 5.3)**2), tanh(1e6*(t - 5.3)) and 1/(1 + 1e6*(t - 5.3)**2)."""
    calls = [
        node
        for node in sp.preorder_traversal(expression)
        if isinstance(node, sp.Function | sp.Pow)
        and not isinstance(node, AppliedUndef | sp.Piecewise)
    ]
    arguments = {argument for node in calls for argument in node.args}
    return frozenset(a for a in arguments if isinstance(a, sp.Expr) and TIME in a.free_symbols)


@lru_cache(maxsize=4096)
def _polynomial(expression: sp.Expr) -> tuple[sp.Expr, ...] | None:
    """Coefficients in t, from the highest; None where it is no polynomial of small degree."""
    if not expression.is_polynomial(TIME):
        return None
    coefficients = sp.Poly(expression, TIME).all_coeffs()
    return tuple(coefficients) if len(coefficients) <= DEGREE + 1 else None


def _coefficients(expression: sp.Expr, values: Mapping[str, float]) -> np.ndarray | None:
    symbolic = _polynomial(expression)
    if symbolic is None:
        return None
    swaps = {symbol: values[symbol.name] for c in symbolic for symbol in c.free_symbols}
    return np.array([float(c.xreplace(swaps)) for c in symbolic])


def _turns(
    expression: sp.Expr, start: float, end: float, values: Mapping[str, float]
) -> np.ndarray:
    """Points at which a polynomial or its slope is zero, or nearly: real parts of their roots."""
    coefficients = _coefficients(expression, values)
    if coefficients is None or len(coefficients) < 2:
        return np.empty(0)
    with np.errstate(all="ignore"):
        roots = [np.roots(coefficients).real, np.roots(np.polyder(coefficients)).real]
    places = np.concatenate(roots)
    return places[(places > start) & (places < end)]


def _changes(
    rule: str,
    expression: sp.Expr,
    functions: Functions,
    start: float,
    end: float,
    values: Mapping[str, float],
) -> np.ndarray:
    """Points at which the sign of an expression, or the integer below it, changes."""
    names = sorted(expression.free_symbols - {TIME}, key=str)
    function = compiled(expression, [TIME, *names], functions=functions)
    numbers = [values[str(name)] for name in names]

    def amount(times: np.ndarray) -> np.ndarray:
        with np.errstate(all="ignore"):
            return np.real(function(times, *numbers)).astype(float)

    def label(times: np.ndarray) -> np.ndarray:
        found = amount(times)
        return np.nan_to_num((np.sign if rule == "sign" else np.floor)(found), nan=-2.0)

    def refuse() -> None:
        raise ValueError(
            f"{expression} changes too often between t = {start:g} and {end:g}: a formula may switch at "
            f"most {MOST} times. End `times` earlier, or write a formula that switches less often."
        )

    places = np.unique([start, end, *_turns(expression, start, end, values)])
    if rule == "sign" and _polynomial(expression) is not None:
        samples = np.sort(np.concatenate([places, (places[:-1] + places[1:]) / 2]))
    else:
        samples = np.union1d(places, np.linspace(start, end, SAMPLES))
        if rule == "sign":
            samples = np.union1d(samples, _near_zeros(amount, samples))

    # Bisection, for all brackets at once, to the first floating-point number with another label.
    labels = label(samples)
    at = np.flatnonzero(labels[1:] != labels[:-1])
    left, right, before, after = samples[at], samples[at + 1], labels[at], labels[at + 1]
    for _ in range(HALVINGS):
        middle = left + (right - left) / 2
        if not ((middle > left) & (middle < right)).any():
            break
        between = label(middle)
        first, second = between != before, between != after
        left = np.concatenate([left[first], middle[second]])
        right = np.concatenate([middle[first], right[second]])
        before, after = (
            np.concatenate([before[first], between[second]]),
            np.concatenate([between[first], after[second]]),
        )
        if len(left) > MOST:
            refuse()
    return right


def _near_zeros(amount: Callable[[np.ndarray], np.ndarray], samples: np.ndarray) -> np.ndarray:
    """Minima of |g| between samples of one sign, where g may cross zero twice. By trisection."""
    size = np.abs(amount(samples))
    inner = (size[1:-1] <= size[:-2]) & (size[1:-1] <= size[2:])
    left, right = samples[:-2][inner], samples[2:][inner]
    sign = np.sign(amount(samples[1:-1][inner]))
    for _ in range(60):
        first, second = left + (right - left) / 3, right - (right - left) / 3
        lower = sign * amount(first) < sign * amount(second)
        left, right = np.where(lower, left, first), np.where(lower, second, right)
    return left
