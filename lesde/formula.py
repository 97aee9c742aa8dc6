"""Formulas in time: parsing without `eval`, and numerical evaluation with checks.

A *value* of a kernel may be a number, a string, a SymPy expression or a vectorised Python callable
of ``t``. All four become a :class:`Formula`: a SymPy expression in the time symbol :data:`TIME`, and
the Python callables that stand behind its unevaluated functions.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import sympy as sp
from sympy.core.function import AppliedUndef

from lesde.bounded import Unfinished, bounded
from lesde.checks import shown
from lesde.formula_reader import CONSTANTS, rational, read_formula

__all__ = ["TIME", "Formula", "in_floats", "parse_formula", "rational"]

TIME = sp.Symbol("t", real=True)
"""The time of the LE-SDE. A symbol called ``t`` in a user's expression is replaced by this one."""


@lru_cache(maxsize=4096)
def _names(expression: sp.Expr) -> frozenset[str]:
    """Free symbols other than t, and unevaluated functions."""
    symbols = {str(s) for s in expression.free_symbols - {TIME}}
    return frozenset(symbols | {f.func.__name__ for f in expression.atoms(AppliedUndef)})


@lru_cache(maxsize=4096)
def _compiled(
    expression: sp.Expr, functions: tuple[tuple[str, Callable[..., Any]], ...]
) -> Callable[[np.ndarray], Any]:
    """The NumPy function of an expression; engines ask for the same few again and again."""
    return sp.lambdify(TIME, in_floats(expression), modules=[dict(functions), "numpy", "scipy"])


def in_floats(expression: sp.Expr) -> sp.Expr:
    """The expression with floats for integers beyond NumPy's, which make arrays of objects."""
    large = [n for n in expression.atoms(sp.Integer) if abs(n) >= 2**63]
    return expression.xreplace({n: sp.Float(n, 17) for n in large})


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
        return sorted(_names(self.expression) - set(self.functions))

    def substitute(self, values: Mapping[str, sp.Expr], name: str = "kernel value") -> Formula:
        """The formula with expressions in place of free names; ``name`` is for error messages."""
        swaps = {s: values[s.name] for s in self.expression.free_symbols if s.name in values}
        if not swaps:
            return self
        return Formula(
            _real(name, self.expression.xreplace(swaps), self.expression).expression, self.functions
        )

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
        with np.errstate(all="ignore"):
            try:
                raw = np.asarray(self._compiled()(times))
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
                f"{name} = {self.expression} is {self._diagnosis(when)} at t = {when:g}; it "
                f"must be real and finite at every time simulated. Change the formula or the times."
            )
        return np.array(values, dtype=np.float64)

    def _compiled(self) -> Callable[[np.ndarray], Any]:
        try:
            return _compiled(self.expression, tuple(self.functions.items()))
        except TypeError:  # a callable that cannot be hashed
            return _compiled.__wrapped__(self.expression, tuple(self.functions.items()))

    def _diagnosis(self, when: float) -> str:
        if self.functions:  # callables are written for real times
            return "not finite"
        # In floating point: SymPy computes the digits of exp(exp(1000)) for ever.
        try:
            with np.errstate(all="ignore"):
                value = complex(self._compiled()(np.array(when, np.complex128)))
        except Exception:  # a function that takes no complex numbers
            return "not finite"
        if not np.isfinite(value) or value.imag == 0:
            return "not finite"
        return f"complex ({sp.N(sp.sympify(value), 8)})"


def parse_formula(
    name: str,
    value: Any,
    parameters: Mapping[str, float | None] | None = None,
    symbol: str | None = None,
    variables: Mapping[str, sp.Symbol] | None = None,
) -> Formula:
    """Turn a number, string, SymPy expression or callable into a :class:`Formula`.

    Strings are read by a small parser that knows arithmetic and a list of functions; nothing in
    them is executed.

    Parameters
    ----------
    name : str
        The argument's name, for error messages.
    value : number, str, sympy.Expr, callable or Formula
        ``"2/(1+t)"``, ``0.5``, ``sympy.exp(-t)``, ``lambda t: numpy.exp(-t)``.
    parameters : mapping of str to number or None, optional
        Values of further symbols in the formula. None leaves a name free: such a formula can be
        derived from, calibrated and differentiated, and takes its value later.
    symbol : str, optional
        Name of the function of t that stands for a callable; the argument's name unless given.
    variables : mapping of str to sympy.Symbol, optional
        Variables of the formula besides t.

    Raises
    ------
    TypeError, ValueError
        Naming the argument, what was given, and what is allowed.
    """
    known: dict[str, sp.Expr] = {**(variables or {}), "t": TIME}
    values: dict[str, sp.Expr] = {}
    if parameters is not None and not isinstance(parameters, Mapping):
        raise TypeError(
            f"parameters must be a mapping of names to numbers, such as {{'a': 0.3}}; got "
            f"{shown(parameters)}."
        )
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
            expression = bounded(read_formula, value, {**CONSTANTS, **values, **known}, list(known))
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
