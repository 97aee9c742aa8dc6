"""Integrals over time: in closed form where there is a quick one, left standing otherwise."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import sympy as sp
from sympy.core.function import AppliedUndef
from sympy.integrals.manualintegrate import manualintegrate
from sympy.integrals.rationaltools import ratint

from lesde.model.formula import TIME, Unfinished, bounded
from lesde.model.quadrature import LEGENDRE, resolve

DUMMY = sp.Symbol("tau", real=True)
INNER = sp.Symbol("u", real=True)
EXPONENTIAL = sp.Symbol("u", positive=True)

MANY_TERMS = 1000
MANY_POWERS = 12  # of one exponential in another, in a rational function of both


def expand_terms(expression: sp.Expr) -> sp.Expr:
    """The expression multiplied out, or as it is where that would give more than 1000 terms."""
    if _count_terms(expression) > MANY_TERMS:
        return expression
    try:
        # exp(−(t−1)²) stays one exponential: as a product of several it overflows where it is small.
        return bounded(lambda: sp.expand(expression, power_exp=False))
    except Unfinished:
        return expression


def _count_terms(expression: sp.Basic) -> int:
    """An upper bound of the terms of a sum once it is multiplied out."""
    inner = [_count_terms(argument) for argument in expression.args]
    if expression.is_Add:
        return sum(inner)
    if expression.is_Mul:
        return min(math.prod(inner), 10**9)
    # A power 199/2 is multiplied out as well, to 99 and a root.
    if expression.is_Pow and expression.exp.is_Rational and inner[0] > 1:
        return min(inner[0] ** min(int(abs(expression.exp)), 30), 10**9)
    return 1 if not inner or max(inner) <= MANY_TERMS else 10**9


def time_terms(expression: sp.Expr) -> dict[sp.Expr, sp.Expr]:
    """The expression as a sum of functions of time, each with its constant factor."""
    terms: dict[sp.Expr, sp.Expr] = {}
    for term in sp.Add.make_args(expand_terms(expression)):
        # Factor first: 6/(13t + 13) and 10/(39t + 39) are multiples of the same function.
        constant, function = sp.factor_terms(term).as_independent(TIME, as_Add=False)
        terms[function] = terms.get(function, sp.Integer(0)) + constant
    return terms


@lru_cache(maxsize=512)
def time_integral(integrand: sp.Expr, start: sp.Expr) -> sp.Expr:
    """∫_start^t of an expression in time, term by term; an Integral stands where no closed form was found."""
    return sp.Add(*(c * _integrate_one(f, start) for f, c in time_terms(integrand).items()))


def _integrate_one(function: sp.Expr, start: sp.Expr) -> sp.Expr:
    if TIME not in function.free_symbols:
        return function * (TIME - start)
    value = None
    # A long search would find only what nobody would print.
    if not function.has(AppliedUndef, sp.Integral) and _count_terms(function) <= MANY_TERMS:
        with contextlib.suppress(Exception, Unfinished):  # SymPy gives up with errors of all kinds
            value = bounded(_definite, function, start)
    if value is None or value.has(sp.nan, sp.zoo, sp.oo):
        return sp.Integral(function.subs(TIME, DUMMY), (DUMMY, start, TIME))
    return value


def _definite(function: sp.Expr, start: sp.Expr) -> sp.Expr | None:
    found = _primitive(function)
    if found is None:
        return None
    first = found.subs(TIME, start)
    # exp(exp(1e222 - t)) has a primitive, whose value at 0 nobody can compute.
    return None if first.is_number and not np.isfinite(complex(first)) else found - first


def _primitive(function: sp.Expr) -> sp.Expr | None:
    """A function whose derivative is the given one at all times; None where none is found.

    A rational function of exponentials is integrated in u = exp(unit·t). Constants are symbols meanwhile: SymPy
    takes exp(3.14159) for a power of exp(1/100000).
    """
    slopes = {power: sp.diff(power.exp, TIME) for power in function.atoms(sp.exp)}
    moving = [slope for slope in slopes.values() if slope != 0]
    if not moving or any(TIME in slope.free_symbols for slope in moving):
        return _search(function)
    unit = sp.gcd_list(moving) if all(slope.is_Rational for slope in moving) else moving[0]
    degrees = {power: slope / unit for power, slope in slopes.items()}
    constants = {power: sp.exp(power.exp.subs(TIME, 0)) for power in slopes}
    symbols = {c: sp.Dummy(positive=True) for c in constants.values() if c != 1}
    swaps = {p: symbols.get(constants[p], 1) * EXPONENTIAL**d for p, d in degrees.items()}
    rational = function.xreplace(swaps) / EXPONENTIAL
    if TIME in rational.free_symbols or not rational.is_rational_function(EXPONENTIAL):
        return _search(function)
    if max(abs(degree) for degree in degrees.values()) > MANY_POWERS:
        return None
    found = ratint(sp.cancel(rational), EXPONENTIAL)
    if found.has(sp.RootSum, sp.Integral):
        return None
    back = {EXPONENTIAL: sp.exp(unit * TIME), **{s: c for c, s in symbols.items()}}
    return found.subs(back) / unit


def _search(function: sp.Expr) -> sp.Expr | None:
    """A primitive that SymPy finds, differentiated back."""
    found = manualintegrate(function, TIME)
    # The tangent of half an angle in a primitive jumps where the integrand does not.
    if found.has(sp.Integral, sp.Piecewise, sp.nan, sp.zoo) or (
        found.has(sp.tan, sp.cot) and not function.has(sp.tan, sp.cot)
    ):
        return None
    return found if sp.simplify(sp.diff(found, TIME) - function) == 0 else None


@lru_cache(maxsize=512)
def growth_integral(factor: sp.Expr, rate: sp.Expr, start: sp.Expr) -> sp.Expr:
    """∫_start^t factor(τ) exp(∫_start^τ rate) dτ.

    Where the factor is a multiple of the rate this is that multiple of exp(∫ rate) − 1. Otherwise a closed form is
    sought only for a constant rate; with others it would not be one that a person prints.
    """
    if factor == 0:
        return sp.Integer(0)
    growth = sp.exp(time_integral(rate, start))
    with contextlib.suppress(Unfinished):
        ratio = bounded(_constant_ratio, factor, rate) if rate != 0 else None
        if ratio is not None:
            return ratio * (growth - 1)
    if TIME not in rate.free_symbols:
        return time_integral(factor * growth, start)
    inner = growth.xreplace({DUMMY: INNER})
    constant, function = factor.as_independent(TIME, as_Add=False)
    integrand = (function * inner).subs(TIME, DUMMY)
    return constant * sp.Integral(integrand, (DUMMY, start, TIME))


def _constant_ratio(factor: sp.Expr, rate: sp.Expr) -> sp.Expr | None:
    """The constant of which the factor is that multiple of the rate; None where there is none."""
    above, below = time_terms(factor), time_terms(rate)
    if above.keys() != below.keys() or 0 in below.values():
        return None
    first, *others = [sp.simplify(above[function] / below[function]) for function in below]
    return first if all(sp.simplify(first - other) == 0 for other in others) else None


def antiderivative(
    function: Callable[[np.ndarray], np.ndarray],
    times: np.ndarray,
    places: tuple[np.ndarray, np.ndarray],
) -> Callable[[np.ndarray], np.ndarray]:
    """The integral of a function, which may jump or peak at ``places``, from the first of the times on."""
    if len(times) < 2:
        return np.zeros_like

    def parts(at: np.ndarray) -> np.ndarray:
        found = np.asarray(function(at), complex)
        return np.stack([found.real, found.imag], -1)[:, None]

    panels = resolve(parts, times, *places, lambda *_: "the integrand of the closed form")
    values = np.reshape(function(panels.nodes.ravel()), panels.nodes.shape)
    series = np.polynomial.legendre.legint(LEGENDRE @ values.T, lbnd=-1) * panels.widths / 2
    before = np.cumsum(series.sum(0)) - series.sum(0)  # P_n(1) = 1

    def value(at: np.ndarray) -> np.ndarray:
        i = np.searchsorted(panels.starts[1:], at, "right")
        inside = 2 * (at - panels.starts[i]) / panels.widths[i] - 1
        return before[i] + np.polynomial.legendre.legval(inside, series[:, i], tensor=False)

    return value
