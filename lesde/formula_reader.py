"""Reading a formula from text: a small parser that executes nothing.

Arithmetic on numbers is bounded at every step, because SymPy computes exactly: a tower of powers, or
the exponential of a large multiple of a logarithm, would keep it busy for ever.
"""

from __future__ import annotations

import ast
import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any

import sympy as sp
from sympy.logic.boolalg import Boolean

__all__ = ["CONSTANTS", "FUNCTIONS", "rational", "read_formula"]

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
MAX_LOG = 700  # exp of more overflows
MAX_DEPTH = 40
LARGEST = sp.Integer(10) ** 308

_BINARY: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.Div: lambda a, b: a / b,
    ast.Pow: lambda a, b: a**b,
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


def _bounded(value: Any) -> Any:
    """The value, where it is not a number out of reach of floating point."""
    if not isinstance(value, sp.Expr) or not value.is_number:
        return value
    if value.has(sp.zoo, sp.nan, sp.oo, -sp.oo):
        raise ValueError("it is not finite: it divides by zero or takes the logarithm of zero")
    if value.is_Rational:
        if abs(value) > LARGEST:
            raise ValueError("a constant is too large for a floating-point number")
        return value if value.q < LARGEST else sp.Float(value, 17)
    if abs(sp.N(value, 15)) > LARGEST:
        raise ValueError("a constant is too large for a floating-point number")
    return value


def _check_exponent(exponent: sp.Expr, base: sp.Expr | None = None) -> None:
    """Refuse exponents with which SymPy would multiply out a huge power; no base stands for e."""
    limit = MAX_LOG if base is None else MAX_EXPONENT
    if exponent.is_number:
        if abs(sp.N(exponent, 15)) > limit:
            raise ValueError(f"an exponent may be at most {limit} in size")
        return
    powers = base is not None and base.is_number
    powers = powers or any(term.is_number for term in exponent.atoms(sp.log))
    if powers and any(abs(number) > MAX_LOG for number in exponent.atoms(sp.Rational)):
        raise ValueError(f"numbers in the exponent of a number may be at most {MAX_LOG} in size")


class _Reader(ast.NodeVisitor):
    """Builds a SymPy expression from the few kinds of syntax that a formula may contain."""

    def __init__(self, names: Mapping[str, sp.Expr], variables: Sequence[str]):
        self.names = names
        self.variables = variables
        self.depth = 0

    def visit(self, node: ast.AST) -> Any:
        # Sums and products are flat however many terms they have; the rest may nest only so deep.
        flat = isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Sub | ast.Mult)
        self.depth += not flat
        if self.depth > MAX_DEPTH:
            raise ValueError(f"it is nested too deeply, beyond {MAX_DEPTH} levels")
        value = _bounded(super().visit(node))
        self.depth -= not flat
        return value

    def number(self, node: ast.AST) -> sp.Expr:
        """The value of a node that has to be a number."""
        value = self.visit(node)
        if not isinstance(value, sp.Expr):
            raise ValueError(f"the condition '{ast.unparse(node)}' stands where a number must")
        return value

    def condition(self, node: ast.AST) -> Boolean:
        """The value of a node that has to be a condition."""
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
            _check_exponent(right, None if left == sp.E else left)
        return _BINARY[type(node.op)](left, right)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> Any:
        if isinstance(node.op, ast.USub):
            return -self.number(node.operand)
        if isinstance(node.op, ast.UAdd):
            return self.number(node.operand)
        return self.generic_visit(node.op)

    def visit_Call(self, node: ast.Call) -> Any:
        if not isinstance(node.func, ast.Name) or node.func.id not in FUNCTIONS:
            name = ast.unparse(node.func)
            raise ValueError(f"unknown function {name!r}; known are {', '.join(sorted(FUNCTIONS))}")
        if node.keywords or any(isinstance(arg, ast.Starred) for arg in node.args):
            raise ValueError(f"{node.func.id} takes plain arguments only")
        count = len(node.args)
        many = node.func.id.lower() in ("min", "max")
        if (many and count < 1) or (not many and count != 1):
            raise ValueError(f"{node.func.id} takes {'arguments' if many else 'one argument'}")
        arguments = [self.number(arg) for arg in node.args]
        if node.func.id in ("exp", "sinh", "cosh"):
            _check_exponent(arguments[0])
        return FUNCTIONS[node.func.id](*arguments)

    def visit_IfExp(self, node: ast.IfExp) -> Any:
        return sp.Piecewise(
            (self.number(node.body), self.condition(node.test)), (self.number(node.orelse), True)
        )

    def visit_Compare(self, node: ast.Compare) -> Any:
        terms = [self.number(node.left), *(self.number(item) for item in node.comparators)]
        parts = []
        for op, left, right in zip(node.ops, terms, terms[1:], strict=False):
            if type(op) not in _COMPARE:
                return self.generic_visit(op)
            parts.append(_COMPARE[type(op)](left, right))
        return sp.And(*parts)

    def visit_BoolOp(self, node: ast.BoolOp) -> Any:
        join = sp.And if isinstance(node.op, ast.And) else sp.Or
        return join(*(self.condition(value) for value in node.values))


def read_formula(
    text: str, names: Mapping[str, sp.Expr], variables: Sequence[str] = ("t",)
) -> sp.Expr:
    """The SymPy expression that a text stands for.

    Parameters
    ----------
    text : str
    names : mapping of str to sympy.Expr
        What each name in the text stands for.
    variables : sequence of str, default ("t",)
        Those of the names that are variables, for messages; the rest are constants and parameters.

    Raises
    ------
    ValueError
        Saying what in the text is not understood; the caller names the argument.
    """
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
