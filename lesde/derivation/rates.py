"""Rates of separation and collapse, and the critical constant, from the modes.

References
----------
Zhang, Wang, Su, NeurIPS 2021 (arXiv 2110.05960): separation for α − β = ω(1/t), none for o(1/t).
Papyan, Han, Donoho, PNAS 2020 (arXiv 2008.08186): NC1 and NC2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import sympy as sp

from lesde.derivation.modes import Tree, mode_tree, reduced_table, tidy
from lesde.formula import TIME

if TYPE_CHECKING:
    from lesde.model import LESDE

__all__ = ["critical_constant", "nc1_rate", "nc2_rate", "separation_rate", "within_rate"]


def between_rates(tree: Tree) -> list[sp.Expr] | None:
    """Rates of the directions between classes: every mode but the grand mean; None if unknown."""
    rates: list[sp.Expr] = []
    level: Tree | None = tree
    while level is not None:
        rates += [rate for rate in level.contrasts if rate is not None]
        if level.parent is None and (level.eigen is None or len(level.eigen[0]) > 1):
            return None
        level = level.parent
    return list(dict.fromkeys(rates))


def grand_rate(tree: Tree) -> sp.Expr | None:
    """Rate of the one mode that all classes share; None where there is no such mode."""
    level = tree
    while level.parent is not None:
        level = level.parent
    return level.eigen[0][0] if level.eigen is not None and len(level.eigen[0]) == 1 else None


def _logits(model: LESDE) -> bool:
    return model.transform.kind == "logits"


def separation_rate(model: LESDE, tree: Tree) -> sp.Expr | None:
    """d/dt log of the gap between two classes' means.

    I-model: the contrast rate, (α−β)/K when balanced. L-model: the scores s_k drive X̄^k along d_k,
    and so apart; the rate at late times is that of equal scores, (α−β)/K, or of their contrasts where
    these are known to grow faster, as for β > 0. None where classes are not exchangeable.
    """
    if _logits(model):
        equal, contrasts = grand_rate(tree), between_rates(tree)
        if equal is None or contrasts is None:
            return None
        faster = [rate for rate in contrasts if sp.expand(rate - equal).is_positive]
        return tidy(faster[0] if faster else equal)
    rates = between_rates(tree)
    return tidy(rates[0]) if rates is not None and len(rates) == 1 else None


def within_rate(model: LESDE) -> sp.Expr:
    """d/dt log of the variance of a sample about its class mean, from spread s_0² at time t_0."""
    sigma, spread, start = sp.symbols("sigma s_0 t_0", nonnegative=True)
    variance = spread**2 + sigma**2 * (TIME - start)
    return sp.diff(sp.log(variance), TIME)


def nc1_rate(model: LESDE, tree: Tree) -> sp.Expr | None:
    """d/dt log NC1 = growth of the within-class variance − twice the between-class rate.

    The pseudo-inverse weighs the smallest between-class direction most, so with several contrast
    rates the slowest counts.
    """
    if _logits(model):
        rate = separation_rate(model, tree)
        return None if rate is None else within_rate(model) - 2 * rate
    rates = between_rates(tree)
    if not rates:
        return None
    slowest = rates[0] if len(rates) == 1 else sp.Min(*rates)
    return within_rate(model) - 2 * tidy(slowest)


def nc2_rate(model: LESDE, tree: Tree) -> sp.Expr | None:
    """d/dt log of the distance to a simplex ETF.

    I-model with one contrast rate: 0, the means keep their initial shape; None with several. L-model: what is not ETF
    (contrasts of the scores, and the part of the initial means that never moves) against the
    equal scores; the slower decay counts, and a positive value means that no ETF is reached.
    """
    if not _logits(model):
        rates = between_rates(tree)
        return sp.Integer(0) if rates is not None and len(rates) == 1 else None
    equal, contrasts = grand_rate(tree), between_rates(tree)
    if equal is None or contrasts is None:
        return None
    return sp.Max(*(tidy(rate - equal) for rate in [*contrasts, sp.Integer(0)]))


def critical_constant(model: LESDE) -> sp.Expr | None:
    """The c of α − β = c/t above which the gap of two classes outgrows their spread.

    The gap over the within-class spread is ∝ exp(∫ rate)/√t, so it grows iff t · rate > 1/2. The
    rate is derived anew for the same kernel with α = β + c/t and β left unevaluated; None where it
    then still depends on β, or the kernel has no α and β; ∞ where no c suffices. In the L-model this
    is for β ≤ 0; with β > 0 the contrasts of the scores grow faster and separate the classes sooner.
    """
    if model.kernel.levels is None or model.transform.kind == "matrix":
        return None
    c = sp.Symbol("c", positive=True)
    beta = sp.Function("beta", real=True)(TIME)
    varied = model.replace(kernel=model.kernel.with_levels(beta + c / TIME, beta))
    table = reduced_table(varied, varied.derive().coefficients())
    if table is None:
        return None
    rate = separation_rate(varied, mode_tree(table))
    if rate is None:
        return None
    exponent = sp.simplify(TIME * rate)
    if TIME in exponent.free_symbols or exponent.has(sp.Function("beta")):
        return None
    if c not in exponent.free_symbols:
        return sp.oo
    solutions = sp.solve(sp.Eq(exponent, sp.Rational(1, 2)), c, dict=True)
    slope = sp.simplify(sp.diff(exponent, c))
    if not solutions or slope.is_negative:
        return sp.oo
    return sp.factor(solutions[0][c])
