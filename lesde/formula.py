"""Formulas in time: parsing without `eval`, and numerical evaluation with checks.

A *value* of a kernel may be a number, a string, a SymPy expression or a vectorised Python callable
of ``t``. All four become a :class:`Formula`: a SymPy expression in the time symbol :data:`TIME`, and
the Python callables that stand behind its unevaluated functions.
"""

from __future__ import annotations

import ast
import math
import numbers
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import sympy as sp
from sympy.core.function import AppliedUndef

from lesde.checks import shown

__all__ = ["TIME", "Formula", "parse_formula", "rational"]

TIME = sp.Symbol("t", nonnegative=True)
"""The time of the LE-SDE. A symbol called ``t`` in a user's expression is replaced by this one."""

FUNCTIONS: dict[str, Callable[..., sp.Expr]] = {
    "exp": sp.exp,
    "log": sp.log,
    "ln": sp.log,
    "sqrt": sp.sqrt,
    "sin": sp.sin,
    "cos": sp.cos,
    "tan": sp.tan,
    "atan": sp.atan,
    "sinh": sp.sinh,
    "cosh": sp.cosh,
    "tanh": sp.tanh,
    "erf": sp.erf,
    "abs": sp.Abs,
    "Abs": sp.Abs,
    "min": sp.Min,
    "max": sp.Max,
    "Min": sp.Min,
    "Max": sp.Max,
    "Heaviside": sp.Heaviside,
}
CONSTANTS = {"pi": sp.pi, "e": sp.E, "E": sp.E}

# Long or deep input and towers of powers can keep SymPy busy for ever; no kernel needs them.
MAX_LENGTH = 500
MAX_EXPONENT = 100

_BINARY: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.Div: lambda a, b: a / b,
    ast.Pow: lambda a, b: a**b,
}
_COMPARE = {ast.Lt: sp.Lt, ast.LtE: sp.Le, ast.Gt: sp.Gt, ast.GtE: sp.Ge}


def rational(value: float | int) -> sp.Expr:
    """The number as a user wrote it: 0.1 becomes 1/10, so that closed forms stay exact."""
    if isinstance(value, numbers.Integral):
        return sp.Integer(int(value))
    number = sp.Rational(repr(float(value)))
    return number if number.q <= 10**6 else sp.Float(float(value))


class _Reader(ast.NodeVisitor):
    """Builds a SymPy expression from the few kinds of syntax that a formula may contain."""

    def __init__(self, names: Mapping[str, sp.Expr]):
        self.names = names

    def generic_visit(self, node: ast.AST) -> Any:
        raise ValueError(
            f"{type(node).__name__} is not allowed in a formula; use numbers, t, + - * / **, "
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
        known = sorted(set(self.names) - set(CONSTANTS) - {"t"})
        given = f"the parameters {', '.join(known)}" if known else "no parameters"
        raise ValueError(
            f"unknown symbol {node.id!r}; known are t, pi, e and {given}. "
            f"Give it a value with parameters={{{node.id!r}: ...}}"
        )

    def visit_BinOp(self, node: ast.BinOp) -> Any:
        if isinstance(node.op, ast.BitXor):
            raise ValueError("'^' is not a power; write '**'")
        if type(node.op) not in _BINARY:
            return self.generic_visit(node.op)
        left, right = self.visit(node.left), self.visit(node.right)
        if isinstance(node.op, ast.Pow) and right.is_number and abs(right) > MAX_EXPONENT:
            raise ValueError(f"an exponent may be at most {MAX_EXPONENT} in size")
        if isinstance(node.op, ast.Pow) and left.is_number and abs(left) > 1e300:
            raise ValueError("the base of a power is too large")
        result = _BINARY[type(node.op)](left, right)
        if result.is_Rational and abs(result) > 10**308:
            raise ValueError("a constant is too large for a floating-point number")
        return result

    def visit_UnaryOp(self, node: ast.UnaryOp) -> Any:
        if isinstance(node.op, ast.USub):
            return -self.visit(node.operand)
        if isinstance(node.op, ast.UAdd):
            return self.visit(node.operand)
        return self.generic_visit(node.op)

    def visit_Call(self, node: ast.Call) -> Any:
        if not isinstance(node.func, ast.Name) or node.func.id not in FUNCTIONS:
            name = node.func.id if isinstance(node.func, ast.Name) else type(node.func).__name__
            raise ValueError(f"unknown function {name!r}; known are {', '.join(sorted(FUNCTIONS))}")
        if node.keywords or any(isinstance(arg, ast.Starred) for arg in node.args):
            raise ValueError(f"{node.func.id} takes plain arguments only")
        count = len(node.args)
        many = node.func.id.lower() in ("min", "max")
        if (many and count < 1) or (not many and count != 1):
            raise ValueError(f"{node.func.id} takes {'arguments' if many else 'one argument'}")
        return FUNCTIONS[node.func.id](*(self.visit(arg) for arg in node.args))

    def visit_IfExp(self, node: ast.IfExp) -> Any:
        return sp.Piecewise(
            (self.visit(node.body), self.visit(node.test)), (self.visit(node.orelse), True)
        )

    def visit_Compare(self, node: ast.Compare) -> Any:
        terms = [self.visit(node.left), *(self.visit(item) for item in node.comparators)]
        parts = []
        for op, left, right in zip(node.ops, terms, terms[1:], strict=False):
            if type(op) not in _COMPARE:
                return self.generic_visit(op)
            parts.append(_COMPARE[type(op)](left, right))
        return sp.And(*parts)

    def visit_BoolOp(self, node: ast.BoolOp) -> Any:
        join = sp.And if isinstance(node.op, ast.And) else sp.Or
        return join(*(self.visit(value) for value in node.values))


def _parse_text(text: str, names: Mapping[str, sp.Expr]) -> sp.Expr:
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
        result = _Reader(names).visit(tree)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(result, sp.Expr):
        raise ValueError("it is a condition, not a number")
    return result


@lru_cache(maxsize=4096)
def _compiled(
    expression: sp.Expr, functions: tuple[tuple[str, Callable[..., Any]], ...]
) -> Callable[[np.ndarray], Any]:
    """The NumPy function of an expression; engines ask for the same few again and again."""
    return sp.lambdify(TIME, expression, modules=[dict(functions), "numpy", "scipy"])


@dataclass(frozen=True)
class Formula:
    """A real function of time.

    Attributes
    ----------
    expression : sympy.Expr
        In :data:`TIME`; may contain unevaluated functions, such as ``alpha(t)``.
    functions : mapping of str to callable
        The Python callable behind each unevaluated function that has one.
    """

    expression: sp.Expr
    functions: Mapping[str, Callable[..., Any]] = field(default_factory=dict, hash=False)

    def unresolved(self) -> list[str]:
        """Names that have no value yet: free symbols other than t, functions without a callable."""
        symbols = {str(s) for s in self.expression.free_symbols - {TIME}}
        undefined = {f.func.__name__ for f in self.expression.atoms(AppliedUndef)}
        return sorted(symbols | (undefined - set(self.functions)))

    def __call__(self, times: np.ndarray, name: str = "kernel value") -> np.ndarray:
        """Values at the given times, float64, of the shape of ``times``.

        Raises
        ------
        ValueError
            When a name has no value, or a value is complex or not finite; names the time.
        """
        missing = self.unresolved()
        if missing:
            raise ValueError(
                f"{name} = {self.expression} has no value for {', '.join(missing)}; it can be "
                f"derived from but not evaluated. Give numbers with parameters={{...}}."
            )
        times = np.asarray(times, dtype=np.float64)
        compiled = sp.lambdify(
            TIME, self.expression, modules=[dict(self.functions), "numpy", "scipy"]
        )
        with np.errstate(all="ignore"):
            try:
                raw = np.asarray(compiled(times))
            except (ZeroDivisionError, OverflowError):
                raw = np.full(times.shape, np.nan)
        if raw.shape not in ((), times.shape):
            raise ValueError(
                f"{name} must return one value per time: given times of shape {times.shape}, it "
                f"returned shape {raw.shape}. Write it with NumPy functions so that it is vectorised."
            )
        if np.iscomplexobj(raw) and np.abs(raw.imag).max(initial=0) == 0:
            raw = raw.real
        values = np.broadcast_to(raw, times.shape)
        bad = np.iscomplexobj(values) * (np.imag(values) != 0) | ~np.isfinite(values)
        if bad.any():
            when = float(times[bad].flat[0])
            raise ValueError(
                f"{name} = {self.expression} is {self._diagnosis(when)} at t = {when:g}; a kernel "
                f"must be real and finite at every time simulated. Change the formula or the times."
            )
        return np.array(values, dtype=np.float64)

    def _diagnosis(self, when: float) -> str:
        try:
            exact = self.expression.subs(TIME, rational(when)).evalf(8)
        except Exception:  # a callable or a limit SymPy cannot take: the plain statement is enough
            return "not finite"
        complex_valued = exact.is_number and exact.is_finite and exact.is_real is False
        return f"complex ({exact})" if complex_valued else "not finite"


def parse_formula(name: str, value: Any, parameters: Mapping[str, float] | None = None) -> Formula:
    """Turn a number, string, SymPy expression or callable into a :class:`Formula`.

    Strings are read by a small parser that knows arithmetic and a list of functions; nothing in
    them is executed.

    Parameters
    ----------
    name : str
        The argument's name: for error messages, and for the symbol that stands for a callable.
    value : number, str, sympy.Expr, callable or Formula
        ``"2/(1+t)"``, ``0.5``, ``sympy.exp(-t)``, ``lambda t: numpy.exp(-t)``.
    parameters : mapping of str to number, optional
        Values of further symbols in the formula.

    Raises
    ------
    TypeError, ValueError
        Naming the argument, what was given, and what is allowed.
    """
    values: dict[str, sp.Expr] = {}
    for key, number in (parameters or {}).items():
        if isinstance(number, bool) or not isinstance(number, numbers.Real):
            raise TypeError(f"parameters[{key!r}] must be a real number; got {shown(number)}.")
        if not math.isfinite(number):
            raise ValueError(f"parameters[{key!r}] must be finite; got {number}.")
        if key == "t":
            raise ValueError("parameters may not contain 't', which is the time.")
        values[key] = rational(number)

    if isinstance(value, Formula):
        return value
    if isinstance(value, bool):
        raise TypeError(f"{name} must be a number, a formula or a function of t; got {value}.")
    if isinstance(value, numbers.Real) and not isinstance(value, sp.Basic):
        if not math.isfinite(value):
            raise ValueError(f"{name} must be finite; got {value}.")
        return Formula(rational(value if isinstance(value, int) else float(value)))
    if isinstance(value, str):
        try:
            return _real(name, _parse_text(value, {"t": TIME, **CONSTANTS, **values}), value)
        except ValueError as error:
            raise ValueError(f"{name} = {shown(value)} is not a usable formula: {error}.") from None
    if isinstance(value, sp.Expr):
        swaps = {s: TIME if s.name == "t" else values.get(s.name, s) for s in value.free_symbols}
        return _real(name, value.xreplace(swaps), value)
    if callable(value):
        return Formula(sp.Function(name, real=True)(TIME), {name: value})
    raise TypeError(
        f"{name} must be a number, a string or SymPy expression in t, or a vectorised function of "
        f"t; got {shown(value)}."
    )


def _real(name: str, expression: sp.Expr, given: Any) -> Formula:
    if expression.has(sp.zoo, sp.nan, sp.oo, -sp.oo):
        raise ValueError(f"{name} = {shown(given)} is not finite: it contains {expression}")
    if expression.is_number and expression.is_real is False:
        raise ValueError(f"{name} = {shown(given)} must be real: it equals {expression}")
    return Formula(expression)
