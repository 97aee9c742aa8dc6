"""Rates of separation and collapse, and the critical constant, from the modes.

References
----------
Zhang, Wang, Su, NeurIPS 2021 (arXiv 2110.05960): separation for α − β = ω(1/t), none for o(1/t).
Papyan, Han, Donoho, PNAS 2020 (arXiv 2008.08186): NC1 and NC2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import sympy as sp

from lesde.derivation.integrals import DUMMY
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


def _never_smaller(first: sp.Expr, second: sp.Expr) -> bool:
    """Whether the first rate is known to be at least the second at all times t ≥ 0."""
    later = sp.Symbol("t", nonnegative=True)
    return bool(sp.expand(first - second).subs(TIME, later).is_nonnegative)


@dataclass(frozen=True)
class LogitRates:
    """What moves the class means of an L-model, and which of it wins at late times.

    Attributes
    ----------
    equal : sympy.Expr
        Rate of equal scores, (α−β)/K: it drives X̄^k along d_k, a simplex ETF.
    contrasts : list of sympy.Expr
        Rates of the scores' contrasts; empty for K = 2, where they move both means alike (d_1 = −d_2).
    dominant : sympy.Expr
        The largest of these and 0, the part of the initial means that never moves; the rate of equal
        scores where the signs of α and β do not tell, which is right for α > β and β ≤ 0.
    """

    equal: sp.Expr
    contrasts: list[sp.Expr]
    dominant: sp.Expr


def logit_rates(model: LESDE, tree: Tree) -> LogitRates | None:
    """The competing rates of an L-model; None where classes are not exchangeable."""
    equal, contrasts = grand_rate(tree), between_rates(tree)
    if equal is None or contrasts is None:
        return None
    contrasts = [] if model.n_classes == 2 else contrasts
    candidates = [equal, *contrasts, sp.Integer(0)]
    winners = [a for a in candidates if all(_never_smaller(a, b) for b in candidates)]
    return LogitRates(equal, contrasts, winners[0] if winners else equal)


def separation_rate(model: LESDE, tree: Tree) -> sp.Expr | None:
    """d/dt log of the gap between two classes' means.

    I-model: the contrast rate, (α−β)/K when balanced. L-model: the dominant one of
    :class:`LogitRates`. None where classes are not exchangeable.
    """
    if _logits(model):
        found = logit_rates(model, tree)
        return None if found is None else tidy(found.dominant)
    rates = between_rates(tree)
    return tidy(rates[0]) if rates is not None and len(rates) == 1 else None


def within_rate(model: LESDE) -> sp.Expr:
    """d/dt log of the variance of a sample about its class mean, from spread s_0² at time t_0.

    σ stands for the noise as an unevaluated function, where it depends on time.
    """
    sigma, spread, start = sp.symbols("sigma s_0 t_0", nonnegative=True)
    grown = sigma**2 * (TIME - start)
    if not model.noise_table.is_constant:
        squared = sp.Function("sigma", real=True)(DUMMY) ** 2
        grown = sp.Integral(squared, (DUMMY, start, TIME))
    variance = spread**2 + grown
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

    Two classes: None, two centred means are an ETF always. I-model with one contrast rate: 0, the
    means keep their initial shape; None with several. L-model: the slowest part that is not the
    dominant one against it, for α > β and β ≤ 0 the Max of β/(K−1) (contrasts of the scores) and
    −(α−β)/K (the part of the initial means that never moves); 0 where something that is no ETF
    dominates, as the contrasts do for β > 0 and K ≥ 4. For K = 3 contrasts alone are an ETF too.
    """
    if model.n_classes == 2:
        return None
    if not _logits(model):
        rates = between_rates(tree)
        return sp.Integer(0) if rates is not None and len(rates) == 1 else None
    found = logit_rates(model, tree)
    if found is None:
        return None
    shaped = found.dominant == found.equal or (
        model.n_classes == 3 and found.dominant in found.contrasts
    )
    if not shaped:
        return sp.Integer(0)
    others = [r for r in [found.equal, *found.contrasts, sp.Integer(0)] if r != found.dominant]
    return sp.Max(*(tidy(rate - found.dominant) for rate in others))


def critical_constant(model: LESDE) -> sp.Expr | None:
    """The c of α − β = c/t above which the gap of two classes outgrows their spread.

    The gap over the within-class spread is ∝ exp(∫ rate)/√t, so it grows iff t · rate > 1/2. The
    rate is derived anew for the same kernel with α = β + c/t and β left unevaluated; None where it
    then still depends on β, or the kernel has no α and β; ∞ where no c suffices. In the L-model this
    is for β ≤ 0; with β > 0 the contrasts of the scores grow faster and separate the classes sooner.
    None also where the noise depends on time, as the spread then does not grow as √t.
    """
    if not model.noise_table.is_constant:
        return None
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
