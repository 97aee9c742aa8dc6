"""Integrals over time in closed form where there is a quick one, left standing otherwise."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import sympy as sp
from sympy.core.function import AppliedUndef
from sympy.integrals.manualintegrate import manualintegrate

from lesde.formula import TIME

CAPITALS = {"alpha": "A", "beta": "B", "gamma": "Gamma"}

__all__ = ["DUMMY", "abbreviate", "expand_terms", "growth_integral", "numerical", "time_integral"]

DUMMY = sp.Symbol("tau", real=True)
INNER = sp.Symbol("u", real=True)


MANY_TERMS = 1000


def expand_terms(expression: sp.Expr) -> sp.Expr:
    """The expression multiplied out, or as it is where that would give more than 1000 terms."""
    return (
        sp.expand(expression, power_exp=False)
        if _count_terms(expression) <= MANY_TERMS
        else expression
    )


def _count_terms(expression: sp.Basic) -> int:
    """An upper bound of the terms of a sum once it is multiplied out."""
    inner = [_count_terms(argument) for argument in expression.args]
    if expression.is_Add:
        return sum(inner)
    if expression.is_Mul:
        return min(math.prod(inner), 10**9)
    if expression.is_Pow and expression.exp.is_Integer and inner[0] > 1:
        return min(inner[0] ** min(abs(int(expression.exp)), 30), 10**9)
    return 1 if not inner or max(inner) <= MANY_TERMS else 10**9


@lru_cache(maxsize=512)
def time_integral(integrand: sp.Expr, start: sp.Expr) -> sp.Expr:
    """∫_start^t of an expression in time; an Integral stands where no closed form was found.

    Terms are integrated one by one, so a callable or an unevaluated α(t) keeps only its own
    integral. A closed form is differentiated back before it is used.
    """
    total = sp.Integer(0)
    for term in sp.Add.make_args(expand_terms(integrand)):
        # Factor first, so that 1/(2t + 2) gives log(t + 1)/2 and not log(2t + 2)/2.
        constant, function = sp.factor_terms(term).as_independent(TIME, as_Add=False)
        total += constant * _integrate_one(function, start)
    return total


def _integrate_one(function: sp.Expr, start: sp.Expr) -> sp.Expr:
    standing = sp.Integral(function.subs(TIME, DUMMY), (DUMMY, start, TIME))
    if TIME not in function.free_symbols:
        return function * (TIME - start)
    if function.atoms(AppliedUndef) or function.has(sp.Integral):
        return standing
    if (
        _count_terms(function) > MANY_TERMS
    ):  # no closed form that a person prints, and a long search
        return standing
    try:
        primitive = manualintegrate(function, TIME)
        if primitive.has(sp.Integral, sp.Piecewise, sp.nan, sp.zoo):
            return standing
        if sp.simplify(sp.diff(primitive, TIME) - function) != 0:
            return standing
        value = primitive - primitive.subs(TIME, start)
    except (ValueError, TypeError, NotImplementedError, RecursionError, AttributeError):
        return standing  # each is a way of SymPy to give up; the integral then stands as it is
    return standing if value.has(sp.nan, sp.zoo, sp.oo) else value


@lru_cache(maxsize=512)
def growth_integral(factor: sp.Expr, rate: sp.Expr, start: sp.Expr) -> sp.Expr:
    """∫_start^t factor(τ) exp(∫_start^τ rate) dτ.

    Where the factor is a multiple of the rate this is that multiple of exp(∫ rate) − 1, even for
    unevaluated functions of time. Otherwise a closed form is sought only for a constant rate; with
    others it would not be one that a person prints.
    """
    if factor == 0:
        return sp.Integer(0)
    growth = sp.exp(time_integral(rate, start))
    if rate != 0 and max(_count_terms(factor), _count_terms(rate)) <= MANY_TERMS:
        ratio = sp.simplify(factor / rate)
        if TIME not in ratio.free_symbols:
            return ratio * (growth - 1)
    if TIME not in rate.free_symbols:
        return time_integral(factor * growth, start)
    inner = growth.xreplace({DUMMY: INNER})
    constant, function = factor.as_independent(TIME, as_Add=False)
    integrand = (function * inner).subs(TIME, DUMMY)
    return constant * sp.Integral(integrand, (DUMMY, start, TIME))


def numerical(
    expression: sp.Expr,
    variable: sp.Symbol,
    functions: Mapping[str, Callable[..., Any]],
    edges: np.ndarray,
) -> Callable[[float], complex]:
    """A function of one number from an expression whose integrals may be standing and nested.

    Integrals are done piece by piece between the edges, on which what stands in them is smooth.
    """
    from scipy.integrate import quad

    standing: dict[sp.Integral, sp.Symbol] = {}

    def mark(node: sp.Basic) -> sp.Basic:
        if isinstance(node, sp.Integral):
            return standing.setdefault(node, sp.Symbol(f"integral_{len(standing)}"))
        return node.func(*map(mark, node.args)) if node.args else node

    marked = mark(expression)
    body = sp.lambdify(
        [variable, *standing.values()], marked, modules=[dict(functions), "numpy", "scipy"]
    )
    parts = []
    for node in standing:
        bound, lower, _ = node.limits[0]
        parts.append((numerical(node.function, bound, functions, edges), float(lower)))

    def area(function: Callable[[float], complex], lower: float, x: float) -> float:
        ends = [lower, *edges[(edges > min(lower, x)) & (edges < x)], x]
        return math.fsum(
            quad(lambda u: function(u).real, a, b, epsabs=0.0, epsrel=1e-12, limit=200)[0]
            for a, b in itertools.pairwise(ends)
        )

    def value(x: float) -> complex:
        return complex(body(x, *(area(f, lower, x) for f, lower in parts)))

    return value


def abbreviate(expression: sp.Expr) -> tuple[sp.Expr, dict[sp.Expr, sp.Expr]]:
    """Write A(t), B(t), Γ(t) for the integrals of unevaluated α, β, γ; also returns what they mean."""
    meaning: dict[sp.Expr, sp.Expr] = {}

    def short(node: sp.Integral) -> sp.Expr:
        name = CAPITALS.get(getattr(node.function.func, "__name__", ""))
        bound, lower, upper = node.limits[0]
        if name is None or node.function.args != (bound,):
            return node
        capital = sp.Function(name, real=True)
        rebound = node.function.subs(bound, DUMMY)
        meaning[capital(TIME)] = sp.Integral(rebound, (DUMMY, lower, TIME))
        return capital(upper)

    return expression.replace(lambda e: isinstance(e, sp.Integral), short), meaning
