"""Where formulas in time switch: the places of jumps and kinks, and where a narrow peak may hide.

An integrator that sees a function at points only has to be told of a pulse between them. Formulas tell:
every condition, Heaviside, Abs, sign, Max, Min, floor, ceiling, frac and Mod in them, however nested, is
a function of time with few values, and the places where these change are found by bisection down to
neighbouring floating-point numbers.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import sympy as sp
from sympy.core.function import AppliedUndef
from sympy.core.relational import Relational

from lesde.formula import TIME

__all__ = ["peaks", "switches"]

# Samples of a condition that is no polynomial in t, and halvings of a bracket until nothing lies within.
SAMPLES = 4096
HALVINGS = 70
# Switches that can be told apart; a formula with more is refused as changing too often.
MOST = 20_000
# The largest degree of a polynomial whose roots are asked for.
DEGREE = 12

Functions = Mapping[str, Callable[..., Any]]
Values = Mapping[str, float]


def switches(
    expressions: Iterable[sp.Expr], functions: Functions, start: float, end: float, values: Values
) -> np.ndarray:
    """The times between ``start`` and ``end`` at which one of the expressions may jump or have a kink.

    Parameters
    ----------
    expressions : iterable of sympy.Expr
        In :data:`lesde.formula.TIME` and names with values.
    functions : mapping of str to callable
        Behind unevaluated functions of t in the expressions.
    start, end : float
    values : mapping of str to float
        Of free names.

    Returns
    -------
    ndarray
        Increasing. Each is the first floating-point number at which the expression has its later form.

    Raises
    ------
    ValueError
        Where an expression switches too often.
    """
    conditions = {each for e in expressions for each in _conditions(e)}
    found = [_changes(*each, functions, start, end, values) for each in conditions]
    places = np.unique(np.concatenate([np.empty(0), *found]))
    return places[(places > start) & (places < end)]


def peaks(expressions: Iterable[sp.Expr], start: float, end: float, values: Values) -> np.ndarray:
    """Times at which one of the expressions may have a narrow peak or step.

    These are the zeros of what stands in a function or a power, and of its slope, where that is a
    polynomial in t: 5.3 for exp(-1e6*(t - 5.3)**2), tanh(1e6*(t - 5.3)) or 1/(1 + 1e6*(t - 5.3)**2).
    """
    arguments = {each for e in expressions for each in _arguments(e)}
    found = [_turns(each, start, end, values) for each in arguments]
    return np.unique(np.concatenate([np.empty(0), *found]))


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
    return frozenset((rule, g) for rule, g in found if _depends(g))


@lru_cache(maxsize=4096)
def _arguments(expression: sp.Expr) -> frozenset[sp.Expr]:
    found = set()
    for node in sp.preorder_traversal(expression):
        if isinstance(node, sp.Function | sp.Pow) and not isinstance(
            node, AppliedUndef | sp.Piecewise
        ):
            found |= {a for a in node.args if isinstance(a, sp.Expr) and _depends(a)}
    return frozenset(found)


def _depends(expression: sp.Basic) -> bool:
    return TIME in expression.free_symbols


@lru_cache(maxsize=4096)
def _polynomial(expression: sp.Expr) -> tuple[sp.Expr, ...] | None:
    """Coefficients in t, from the highest; None where it is no polynomial of small degree."""
    if not expression.is_polynomial(TIME):
        return None
    coefficients = sp.Poly(expression, TIME).all_coeffs()
    return tuple(coefficients) if len(coefficients) <= DEGREE + 1 else None


def _coefficients(expression: sp.Expr, values: Values) -> np.ndarray | None:
    symbolic = _polynomial(expression)
    if symbolic is None:
        return None
    swaps = {symbol: values[symbol.name] for c in symbolic for symbol in c.free_symbols}
    return np.array([float(c.xreplace(swaps)) for c in symbolic])


def _turns(expression: sp.Expr, start: float, end: float, values: Values) -> np.ndarray:
    """Where a polynomial or its slope is zero, or nearly: real parts of their roots."""
    coefficients = _coefficients(expression, values)
    if coefficients is None or len(coefficients) < 2:
        return np.empty(0)
    with np.errstate(all="ignore"):
        roots = [np.roots(coefficients).real, np.roots(np.polyder(coefficients)).real]
    places = np.concatenate(roots)
    return places[(places > start) & (places < end)]


@lru_cache(maxsize=4096)
def _compiled(expression: sp.Expr, names: tuple[str, ...], functions: tuple[Any, ...]) -> Any:
    symbols = [TIME, *(sp.Symbol(name, real=True) for name in names)]
    return sp.lambdify(symbols, expression, modules=[dict(functions), "numpy", "scipy"])


def _changes(
    rule: str, expression: sp.Expr, functions: Functions, start: float, end: float, values: Values
) -> np.ndarray:
    """Where the sign of an expression, or the integer below it, changes."""
    names = tuple(sorted(str(s) for s in expression.free_symbols - {TIME}))
    try:
        function = _compiled(expression, names, tuple(functions.items()))
    except TypeError:  # a callable that cannot be hashed
        function = _compiled.__wrapped__(expression, names, tuple(functions.items()))
    numbers = [values[name] for name in names]

    def amount(times: np.ndarray) -> np.ndarray:
        with np.errstate(all="ignore"):
            return np.broadcast_to(np.real(function(times, *numbers)), times.shape).astype(float)

    def label(times: np.ndarray) -> np.ndarray:
        found = amount(times)
        return np.nan_to_num((np.sign if rule == "sign" else np.floor)(found), nan=-2.0)

    coefficients = _coefficients(expression, values)
    if coefficients is None:
        samples = np.linspace(start, end, SAMPLES)
        if rule == "sign":
            samples = np.sort(np.concatenate([samples, _near_zeros(amount, samples)]))
    else:
        samples = np.array([start, end])
        turns = [_turns(expression, start, end, values)]
        if rule == "floor":
            ends = np.sort(amount(np.concatenate([samples, *turns])))
            if ends[-1] - ends[0] > MOST:
                _refuse(expression, start, end)
            for level in np.arange(np.ceil(ends[0]), ends[-1] + 1):
                shifted = coefficients - level * (np.arange(len(coefficients), 0, -1) == 1)
                turns.append(np.roots(shifted).real)
        places = np.unique(np.concatenate([samples, *turns]))
        places = places[(places >= start) & (places <= end)]
        samples = np.sort(np.concatenate([places, (places[:-1] + places[1:]) / 2]))
    return _bisect(label, samples, lambda: _refuse(expression, start, end))


def _refuse(expression: sp.Expr, start: float, end: float) -> None:
    raise ValueError(
        f"{expression} changes too often between t = {start:g} and {end:g}: a formula may switch at most "
        f"{MOST} times. End `times` earlier, or write a formula that switches less often."
    )


def _near_zeros(amount: Callable[[np.ndarray], np.ndarray], samples: np.ndarray) -> np.ndarray:
    """Where |g| is least between samples of one sign: it may cross zero twice there."""
    size = np.abs(amount(samples))
    inner = (size[1:-1] <= size[:-2]) & (size[1:-1] <= size[2:])
    left, right = samples[:-2][inner], samples[2:][inner]
    sign = np.sign(amount(samples[1:-1][inner]))
    for _ in range(60):
        first, second = left + (right - left) / 3, right - (right - left) / 3
        lower = sign * amount(first) < sign * amount(second)
        left, right = np.where(lower, left, first), np.where(lower, second, right)
    return left


def _bisect(
    label: Callable[[np.ndarray], np.ndarray], samples: np.ndarray, refuse: Callable[[], None]
) -> np.ndarray:
    """The first floating-point numbers with another label than the one before, between samples."""
    labels = label(samples)
    at = np.flatnonzero(labels[1:] != labels[:-1])
    left, right, before, after = samples[at], samples[at + 1], labels[at], labels[at + 1]
    for _ in range(HALVINGS):
        middle = left + (right - left) / 2
        if not ((middle > left) & (middle < right)).any():
            break
        between = label(middle)
        changed, unchanged = between != before, between != after
        left = np.concatenate([left[changed], middle[unchanged]])
        right = np.concatenate([middle[changed], right[unchanged]])
        before, after = (
            np.concatenate([before[changed], between[unchanged]]),
            np.concatenate([between[changed], after[unchanged]]),
        )
        if len(left) > MOST:
            refuse()
    return right
