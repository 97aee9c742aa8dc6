"""Formulas: the one place that turns text into SymPy.

A value of a kernel or of the noise is a number, a text, a SymPy expression or a Python function of t. Texts are
read by a small parser that executes nothing. What is read is a :class:`Formula` in t, a :class:`PairFormula` of two
samples, or an entry of an :class:`EntryTable`.
"""

from __future__ import annotations

import ast
import itertools
import numbers
import operator
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property, lru_cache
from typing import Any, TypeVar

import numpy as np
import sympy as sp
from sympy.core.function import AppliedUndef
from sympy.logic.boolalg import Boolean

from lesde.checks import check_real, shown
from lesde.model.compiled import compiled
from lesde.model.switches import places

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
INFINITE = (sp.zoo, sp.nan, sp.oo, -sp.oo)


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
MAX_DEPTH = 40
MAX_EXPONENT = 100
MAX_LOG = 700  # exp of more overflows
LARGEST = sp.Integer(10) ** 308

_OPERATORS: dict[type, Callable[[Any, Any], Any]] = {
    **{ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul},
    **{ast.Div: operator.truediv, ast.Pow: operator.pow},
    **{ast.Lt: sp.Lt, ast.LtE: sp.Le, ast.Gt: sp.Gt, ast.GtE: sp.Ge},
}


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


def _read(text: str, names: Mapping[str, sp.Expr]) -> sp.Expr:
    """The expression that a text stands for; ValueError says where the text is not understood."""
    if len(text) > MAX_LENGTH:
        raise ValueError(f"it may have at most {MAX_LENGTH} characters, and has {len(text)}")
    try:
        return _number(ast.parse(text.strip(), mode="eval").body, names, 0)
    except SyntaxError as error:
        raise ValueError(f"syntax error: {error.msg}") from None
    except (RecursionError, MemoryError):
        raise ValueError("it is nested too deeply") from None
    except (TypeError, ArithmeticError) as error:  # SymPy's refusals, such as comparing with √(−1)
        raise ValueError(f"it cannot be computed: {error}") from None


def _number(node: ast.expr, names: Mapping[str, sp.Expr], depth: int) -> sp.Expr:
    value = _built(node, names, depth)
    if not isinstance(value, sp.Expr):
        raise ValueError(f"the condition '{ast.unparse(node)}' stands where a number must")
    if not value.is_number:
        return value
    if value.has(*INFINITE) or abs(value if value.is_Rational else sp.N(value, 15)) > LARGEST:
        raise ValueError(
            f"'{ast.unparse(node)}' is not finite, or too large for a floating-point number"
        )
    return sp.Float(value, 17) if value.is_Rational and value.q >= LARGEST else value


def _condition(node: ast.expr, names: Mapping[str, sp.Expr], depth: int) -> Boolean:
    value = _built(node, names, depth)
    if isinstance(value, sp.Expr):
        raise ValueError(f"the number '{ast.unparse(node)}' stands where a condition must")
    return value


def _built(node: ast.expr, names: Mapping[str, sp.Expr], depth: int) -> Any:
    """The number or condition of a parsed formula, which may contain a few kinds of syntax only."""
    # Sums and products are flat however many terms they have; the rest may nest only so deep.
    depth += not (isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Sub | ast.Mult))
    if depth > MAX_DEPTH:
        raise ValueError(f"it is nested too deeply, beyond {MAX_DEPTH} levels")
    match node:
        case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
            return rational(value) if abs(value) != float("inf") else sp.oo
        case ast.Name(id=name) if name in names:
            return names[name]
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_number(operand, names, depth)
        case ast.UnaryOp(op=ast.UAdd(), operand=operand):
            return _number(operand, names, depth)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            first, second = _number(left, names, depth), _number(right, names, depth)
            if isinstance(op, ast.Pow):
                _check_power(first, second)
            return _OPERATORS[type(op)](first, second)
        case ast.Call(func=ast.Name(id=name), args=given, keywords=[]) if name in FUNCTIONS and (
            len(given) == 1 or (given and name.lower() in ("min", "max"))
        ):
            arguments = [_number(each, names, depth) for each in given]
            if name in ("exp", "sinh", "cosh"):
                _check_power(sp.E, arguments[0])
            return FUNCTIONS[name](*arguments)
        case ast.IfExp(test=test, body=body, orelse=other):
            case = _number(body, names, depth), _condition(test, names, depth)
            return sp.Piecewise(case, (_number(other, names, depth), True))
        case ast.Compare(left=left, ops=ops, comparators=others) if all(
            type(op) in _OPERATORS for op in ops
        ):
            terms = [_number(each, names, depth) for each in (left, *others)]
            pairs = zip(ops, itertools.pairwise(terms), strict=True)
            return sp.And(*(_OPERATORS[type(op)](*pair) for op, pair in pairs))
        case ast.BoolOp(op=op, values=values):
            join = sp.And if isinstance(op, ast.And) else sp.Or
            return join(*(_condition(each, names, depth) for each in values))
        case ast.Name(id=name):
            raise ValueError(
                f"unknown symbol {name!r}; known are {', '.join(names)}. Give it a value with "
                f"parameters={{{name!r}: ...}}, or None there to leave it free"
            )
    raise ValueError(
        f"'{ast.unparse(node)}' is not allowed; use numbers, {', '.join(names)}, + - * / ** (not ^), "
        f"comparisons, 'a if condition else b', and functions: {', '.join(sorted(FUNCTIONS))}"
    )


def _check_power(base: sp.Expr, exponent: sp.Expr) -> None:
    """Refuse exponents with which SymPy would multiply out a huge power."""
    limit = MAX_EXPONENT if exponent.is_number and base != sp.E else MAX_LOG
    found = [sp.N(exponent, 15)] if exponent.is_number else []
    if base.is_number and base != sp.E:
        found += exponent.atoms(sp.Rational)
    if any(abs(number) > limit for number in found):
        raise ValueError(f"numbers in an exponent may be at most {limit} in size")


def _values_of(parameters: Parameters, known: Mapping[str, sp.Expr]) -> dict[str, sp.Expr]:
    """The number that each named parameter stands for; a symbol where it is None."""
    if not isinstance(parameters, Mapping | None):
        raise TypeError(
            f"parameters must be a mapping of names to numbers; got {shown(parameters)}."
        )
    values: dict[str, sp.Expr] = {}
    for key, number in (parameters or {}).items():
        if key in known:
            raise ValueError(f"parameters may not contain {key!r}, a variable of the formula.")
        if number is None:
            values[key] = sp.Symbol(key, real=True)
        else:
            values[key] = rational(check_real(f"parameters[{key!r}]", number))
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
    values = _values_of(parameters, known)
    if isinstance(value, Formula):
        return value.substitute(values, name)
    if isinstance(value, numbers.Real) and not isinstance(value, bool | sp.Basic):
        number = check_real(name, value)
        return Formula(rational(value if isinstance(value, numbers.Integral) else number))
    if isinstance(value, str):
        try:
            expression = bounded(_read, value, {**known, **CONSTANTS, **values, **known})
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
    """The formula of an expression that is finite and real as far as SymPy sees."""
    try:
        real = not expression.is_number or bounded(lambda: expression.is_real)
    except Unfinished:
        raise _too_long(name, given) from None
    if expression.has(*INFINITE) or real is False:
        raise ValueError(
            f"{name} = {shown(given)} must be real and finite; it is {shown(expression)}."
        )
    return Formula(expression)


def _too_long(name: str, given: Any) -> ValueError:
    return ValueError(
        f"{name} = {shown(given)} takes SymPy too long to read. Write it more simply, or give it as a "
        f"vectorised function of t."
    )


# --------------------------------------------------------------------------------------------------
# Formulas in t, formulas of two samples, and tables of formulas.

_VECTORISE = "Write it with NumPy functions, for example numpy.where in place of if."


@lru_cache(maxsize=4096)
def _names(expression: sp.Expr) -> frozenset[str]:
    """Free symbols other than t, and unevaluated functions."""
    symbols = {str(s) for s in expression.free_symbols - {TIME}}
    return frozenset(symbols | {f.func.__name__ for f in expression.atoms(AppliedUndef)})


def _refuse_open(name: str, expression: sp.Expr, missing: list[str]) -> None:
    if missing:
        raise ValueError(
            f"{name} = {expression} has no value for {', '.join(missing)}; it can be derived from but not "
            f"evaluated. Give numbers with parameters={{...}}, or later with model.substitute."
        )


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
        """Values at the times, float64, of their shape; ValueError where one is not finite and real."""
        _refuse_open(name, self.expression, self.unresolved())
        times = np.asarray(times, dtype=np.float64)
        try:
            with np.errstate(all="ignore"):
                raw = compiled(self.expression, TIME, functions=self.functions)(times)
        except (ZeroDivisionError, OverflowError):
            raw = np.full(times.shape, np.nan)
        except Exception as error:
            if not self.functions:
                raise
            raise ValueError(
                f"{name} cannot be evaluated at an array of times: its function raised "
                f"{type(error).__name__}: {error}. {_VECTORISE}"
            ) from error
        if raw.dtype.kind not in "biufc" or raw.shape != times.shape:
            raise ValueError(
                f"{name} must return one value per time: given times of shape {times.shape}, it "
                f"returned {shown(raw)}. {_VECTORISE}"
            )
        bad = (np.imag(raw) != 0) | ~np.isfinite(raw)
        if bad.any():
            raise ValueError(
                f"{name} = {self.expression} is not finite at t = {times[bad].flat[0]:g}; it must be real "
                f"and finite at every time simulated. Change the formula or the times."
            )
        return np.array(np.real(raw), dtype=np.float64)


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
        try:
            parts = [sp.sympify(bounded(self.expression.subs, VARIABLES["s"], s)) for s in (1, 0)]
        except Unfinished:
            raise _too_long("strength", self.expression) from None
        for s, part in zip((1, 0), parts, strict=True):
            if part.has(*INFINITE):
                raise ValueError(
                    f"strength = {self.expression} is not finite at s = {s}; s is 1 for samples of one class "
                    f"and 0 for others, so write for example s*a + (1-s)*b."
                )
        return tuple(parts)

    @cached_property
    def uses(self) -> frozenset[str]:
        """Those of r2, g and c that matter, for samples of one class or of different ones."""
        free = self.at(True).free_symbols | self.at(False).free_symbols
        return frozenset(name for name, symbol in FEATURE_VARIABLES.items() if symbol in free)

    def unresolved(self) -> list[str]:
        """Names that have no value yet."""
        return sorted(_names(self.expression) - set(VARIABLES))

    def check_resolved(self) -> None:
        """Refuse a formula with a name that has no value."""
        _refuse_open("strength", self.expression, self.unresolved())

    def __call__(self, r2: Any, g: Any, c: Any, s: Any, t: Any) -> np.ndarray:
        """Values for arrays that broadcast, float64; not checked to be finite."""
        self.check_resolved()
        values = [np.asarray(value, np.float64) for value in (r2, g, c, t)]
        symbols = (*FEATURE_VARIABLES.values(), TIME)
        with np.errstate(all="ignore"):
            same, different = (compiled(self.at(same), symbols)(*values) for same in (True, False))
        return np.where(np.equal(s, 1), same, different).astype(np.float64)


def parse_pair_formula(name: str, value: Any, parameters: Parameters = None) -> PairFormula:
    """The formula of two samples that a number, text or SymPy expression stands for."""
    if (callable(value) and not isinstance(value, sp.Expr)) or isinstance(value, Formula):
        raise TypeError(
            f"{name} must be a number, or a formula in r2, g, c, s and t; got {shown(value)}."
        )
    formula = PairFormula(parse_formula(name, value, parameters, variables=VARIABLES).expression)
    if formula.at(True).subs(VARIABLES["r2"], 0).has(*INFINITE):
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
        functions = {key: f for each in formulas.values() for key, f in each.functions.items()}
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
        first: dict[sp.Expr, int] = {}
        for i in np.unique(index).tolist():
            first.setdefault(expressions[i], i)
        position = {expression: i for i, expression in enumerate(first)}
        merged = np.array([position.get(expression, -1) for expression in expressions])[index]
        kept = tuple(names[i] for i in first.values()) if names else ()
        return cls(tuple(first), merged, dict(functions), kept)

    def __getitem__(self, key: tuple[int, int]) -> sp.Expr:
        return self.values[self.index[key]]

    def combine(self, labels: np.ndarray, rule: Callable[[sp.Expr, int], sp.Expr]) -> EntryTable:
        """A new table with entries ``rule(value, label)``, evaluated once per distinct pair; labels are integers."""
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
        if not self.functions and not any(map(_names, self.values)):
            # In one call: to compile ten thousand entries one by one takes minutes.
            try:
                with np.errstate(all="ignore"):
                    together = np.stack(compiled(self.values, TIME)(times), -1)
            except (TypeError, ArithmeticError):
                together = np.array(np.nan)  # whatever it is, the formula alone says it by name
            if together.dtype.kind in "iuf" and np.isfinite(together).all():
                return together.astype(np.float64)
        names = self.names or ["kernel entry"] * len(self.values)
        formulas = (Formula(value, self.functions) for value in self.values)
        return np.stack([f(times, name) for f, name in zip(formulas, names, strict=True)], -1)

    def places(
        self, start: float, end: float, values: Mapping[str, float] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Times of jumps and kinks, and of possible narrow peaks; ``values`` are those of free names."""
        return places(self.values, TIME, self.functions, start, end, values or {})

    @property
    def is_constant(self) -> bool:
        """True if no entry depends on time."""
        return all(TIME not in value.free_symbols for value in self.values)
