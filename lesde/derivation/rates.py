"""Rates of separation and collapse, and the critical constant, from the modes.

References
----------
Zhang, Wang, Su, NeurIPS 2021 (arXiv 2110.05960): separation for α − β = ω(1/t), none for o(1/t).
Papyan, Han, Donoho, PNAS 2020 (arXiv 2008.08186): NC1 and NC2.
"""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import numpy as np
import sympy as sp

from lesde.derivation.coefficients import Coefficients, derive_coefficients
from lesde.derivation.integrals import DUMMY, expand_terms, time_terms
from lesde.derivation.modes import Tree, mode_tree, reduced_table, tidy
from lesde.derivation.rule import rule
from lesde.derivation.solution import Solution
from lesde.model.formula import TIME, Unfinished, bounded
from lesde.model.lesde import LESDE
from lesde.model.transforms import logit_directions

NEAR = 1e-8
"""Numbers of order one that differ by less are equal."""


def between_rates(tree: Tree) -> list[sp.Expr] | None:
    """Rates of the directions between classes: every mode but the grand mean; None if unknown."""
    if tree.top is None or len(tree.top[0]) > 1:
        return None
    rates = [rate for level in tree.levels() for rate in level.contrasts if rate is not None]
    return list(dict.fromkeys(rates))


def _never_smaller(first: sp.Expr, second: sp.Expr) -> bool:
    """True where the first rate is known to be at least the second at all times t ≥ 0."""
    later = sp.Symbol("t", nonnegative=True)
    try:
        return bool(bounded(lambda: expand_terms(first - second).subs(TIME, later).is_nonnegative))
    except Unfinished:
        return False


def logit_rates(
    coefficients: Coefficients, tree: Tree
) -> tuple[sp.Expr, list[sp.Expr], sp.Expr] | None:
    """The competing rates of an L-model: of equal scores, of the scores' contrasts, and the dominant one.

    Equal scores, at (α−β)/K, drive X̄^k along d_k, a simplex ETF; K = 2 has no contrasts, as they move both means
    alike (d_1 = −d_2). The dominant is the largest of these and 0, the rate of the part of the initial means that
    never moves; where signs do not determine it, that of equal scores, which is right for α > β and β ≤ 0. None
    where classes are not exchangeable.
    """
    contrasts = between_rates(tree)
    if tree.top is None or contrasts is None:
        return None
    equal = tree.top[0][0]
    contrasts = [] if coefficients.transform.n_classes == 2 else contrasts
    candidates = [equal, *contrasts, sp.Integer(0)]
    winners = [a for a in candidates if all(_never_smaller(a, b) for b in candidates)]
    return equal, contrasts, winners[0] if winners else equal


class LateMeans(NamedTuple):
    """Centred class means as a sum Σ_m exp(∫λ_m) A_m with generic initial means.

    ``rates`` are λ_m, the largest real part first; ``values`` the same as numbers, in units of the kernel's
    largest entry; ``shapes`` A_m (class, feature), none of them zero.
    """

    rates: list[sp.Expr]
    values: list[complex]
    shapes: list[np.ndarray]

    def wins(self, number: complex) -> bool:
        """True for a value that is real while no other has a real part as large."""
        rivals = [v for v in self.values if v.real > number.real - NEAR and v != number]
        return abs(number.imag) < NEAR and not rivals


def late_means(coefficients: Coefficients, tree: Tree) -> LateMeans | None:
    """The late class means of a closed model whose kernel is numbers times one function of time.

    None for others: with several functions of time, or one that may be negative, none is known to win.
    """
    table, K = coefficients.drift_table, coefficients.transform.n_classes
    terms = [time_terms(value) for value in table.values if value != 0]
    functions = {function for term in terms for function in term}
    constants = [constant for term in terms for constant in term.values()]
    numeric = all(constant.is_number for constant in constants)
    if K < 2 or not tree.is_closed or len(functions) != 1 or not numeric:
        return None
    (function,) = functions
    if not _never_smaller(function, sp.Integer(0)):
        return None
    scale = max(abs(complex(constant)) for constant in constants)

    def multiple(rate: sp.Expr) -> complex:
        return complex(time_terms(rate).get(function, 0)) / scale

    initial = np.random.default_rng(0).normal(size=(K, coefficients.n_features))
    logits, directions = coefficients.transform.kind == "logits", logit_directions(K)
    start: Any = initial
    if logits:
        start = (initial * directions).sum(1) / (directions**2).sum(1)
    found: dict[complex, tuple[sp.Expr, np.ndarray]] = {}
    solution = Solution(coefficients, tree, sp.Integer(0))
    for k in range(K):
        for rate, amplitude in solution.reduced(k, start):
            value = multiple(rate)
            key = next((v for v in found if abs(v - value) < NEAR), value)
            part = found.setdefault(key, (rate, np.zeros((K, *np.shape(start[0])), complex)))[1]
            part[k] += np.asarray(amplitude, complex)
    if logits:
        # X_k + Σ_l d_l ∫ w_l E_kl s_l; what a score without growth adds to is linear, and wins over X_k.
        weights = np.array([multiple(value).real for value in table.values])[table.index]
        still = initial.astype(complex)
        for value, (rate, scores) in list(found.items()):
            moved = weights @ (scores[:, None] * directions)
            if abs(value) > NEAR:
                moved = moved / value
                still -= moved
            found[value] = rate, moved
        zero = next((v for v in found if abs(v) < NEAR), 0j)
        linear = found.get(zero, (0, np.zeros_like(still)))[1]
        moves = np.abs(linear - linear.mean(0)).max() > NEAR
        found[zero] = sp.Integer(0), linear if moves else still
    rows = ((v, rate, A - A.mean(0)) for v, (rate, A) in found.items())
    kept = sorted((row for row in rows if np.abs(row[2]).max() > NEAR), key=lambda r: -r[0].real)
    return LateMeans([row[1] for row in kept], [row[0] for row in kept], [row[2] for row in kept])


def separation_rate(coefficients: Coefficients, tree: Tree) -> sp.Expr | None:
    """d/dt log of the gap between two classes' means, at late times.

    I-model: the contrast rate, (α−β)/K when balanced. L-model: the dominant one of
    :func:`logit_rates`. None where pairs of classes differ in it.
    """
    late = late_means(coefficients, tree)
    if late is not None:
        pairs = itertools.combinations(range(coefficients.transform.n_classes), 2)
        apart = [[np.abs(A[k] - A[l]).max() > NEAR for A in late.shapes] for k, l in pairs]
        first = {row.index(True) if any(row) else -1 for row in apart}
        m = first.pop()
        return tidy(late.rates[m]) if not first and m >= 0 and late.wins(late.values[m]) else None
    if coefficients.transform.kind == "logits":
        found = logit_rates(coefficients, tree)
        return None if found is None else tidy(found[2])
    rates = between_rates(tree)
    return tidy(rates[0]) if rates is not None and len(rates) == 1 else None


def within_rate(coefficients: Coefficients) -> sp.Expr:
    """d/dt log of the variance of a sample about its class mean, from spread s_0² at time t_0.

    σ stands for the noise as an unevaluated function, where it depends on time.
    """
    sigma, spread, start = sp.symbols("sigma s_0 t_0", nonnegative=True)
    grown = sigma**2 * (TIME - start)
    if not coefficients.noise.is_constant:
        squared = sp.Function("sigma", real=True)(DUMMY) ** 2
        grown = sp.Integral(squared, (DUMMY, start, TIME))
    variance = spread**2 + rule().noise * grown
    return sp.diff(sp.log(variance), TIME)


def nc1_rate(coefficients: Coefficients, tree: Tree) -> sp.Expr | None:
    """d/dt log NC1 = growth of the within-class variance − twice the between-class rate.

    The pseudo-inverse weighs the smallest between-class direction most, so with several contrast
    rates the slowest counts; with p < K − 1 features, the slowest of the p fastest directions.
    """
    directions = min(coefficients.transform.n_classes - 1, coefficients.n_features)
    late = late_means(coefficients, tree)
    if late is not None:
        scaled = np.hstack([A / np.abs(A).max() for A in late.shapes])
        ends = range(coefficients.n_features, scaled.shape[1] + 1, coefficients.n_features)
        ranks = [np.linalg.matrix_rank(scaled[:, :end], tol=NEAR) for end in ends]
        m = int(np.searchsorted(ranks, directions))
        unknown = m > 0 and coefficients.transform.kind == "logits"
        if unknown or m == len(ranks) or abs(late.values[m].imag) > NEAR:
            return None
        return within_rate(coefficients) - 2 * tidy(late.rates[m])
    if coefficients.transform.kind == "logits":
        rate = separation_rate(coefficients, tree)
        return None if rate is None else within_rate(coefficients) - 2 * rate
    rates = between_rates(tree)
    if not rates or (len(rates) > 1 and directions < coefficients.transform.n_classes - 1):
        return None
    slowest = rates[0] if len(rates) == 1 else sp.Min(*rates)
    return within_rate(coefficients) - 2 * tidy(slowest)


def nc2_rate(coefficients: Coefficients, tree: Tree) -> sp.Expr | None:
    """d/dt log of the distance to a simplex ETF, at late times and from generic initial means.

    Two classes: None, two centred means are an ETF always. I-model: 0, the means keep their initial
    shape or lose directions. L-model: the slowest part that is not the dominant one against it, for a
    two-level kernel with α > β and β ≤ 0 the Max of β/(K−1) (contrasts of the scores) and −(α−β)/K (the
    part of the initial means that never moves); 0 where something that is no ETF dominates, as the
    contrasts do for β > 0 and K ≥ 4 (for K = 3 contrasts alone are an ETF too), the means of a hierarchical
    kernel, which go to (α−γ)d_k + (β−γ) Σ d_l over the other classes l of the superclass, and the scores
    of β = 0, of which each class keeps its own.

    A factor that is a power of t, from two equal rates, changes no late rate. None where the distance
    oscillates, and where a kernel with more than two levels has several functions of time.
    """
    if coefficients.transform.n_classes < 3:
        return None
    late = late_means(coefficients, tree)
    if late is not None:
        return _approach(late)
    if coefficients.transform.kind != "logits":
        rates = between_rates(tree)
        return sp.Integer(0) if rates is not None and len(rates) == 1 else None
    found = logit_rates(coefficients, tree)
    if found is None or len(tree.orbits) > 1:
        return None
    equal, contrasts, dominant = found
    three = coefficients.transform.n_classes == 3
    shaped = dominant == equal or (three and dominant in contrasts)
    if not shaped or equal in contrasts:  # β = 0: every class at its own score, which is no simplex
        return sp.Integer(0)
    others = [rate for rate in [equal, *contrasts, sp.Integer(0)] if rate != dominant]
    return sp.Max(*(tidy(rate - dominant) for rate in others))


def _approach(late: LateMeans) -> sp.Expr | None:
    """The rate at which the shape of the class means comes to a simplex ETF, 0 where it does not."""
    if not late.wins(late.values[0]):
        return None
    first = late.shapes[0]
    K = len(first)
    simplex = (np.eye(K) - 1 / K) / np.sqrt(K - 1)

    def off(a: np.ndarray, b: np.ndarray) -> float:
        """The distance of A Bᵀ + B Aᵀ from a multiple of the simplex's, relative to its size."""
        gram = a @ b.conj().T + b @ a.conj().T
        gap = gram - np.vdot(simplex, gram) * simplex
        return float(np.linalg.norm(gap) / (np.linalg.norm(a) * np.linalg.norm(b)))

    if off(first, first) > NEAR:
        return sp.Integer(0)
    # What else there is acts at first order, or only at second where it keeps the shape.
    others = range(len(late.rates))
    pairs = [(0, m) for m in others[1:]]
    pairs += itertools.combinations_with_replacement(others[1:], 2)
    pairs = [(i, j) for i, j in pairs if off(late.shapes[i], late.shapes[j]) > NEAR]
    if not pairs:
        return None
    i, j = max(pairs, key=lambda pair: (late.values[pair[0]] + late.values[pair[1]]).real)
    if abs((late.values[i] + late.values[j]).imag) > NEAR:
        return None
    return tidy(late.rates[i] + late.rates[j] - 2 * late.rates[0])


def critical_constant(model: LESDE) -> sp.Expr | None:
    """The c of α − β = c/t above which the gap of two classes outgrows their spread.

    The gap over the within-class spread is ∝ exp(∫ rate)/√t, so it grows iff t · rate > 1/2. The
    rate is derived anew for the same kernel with α = β + c/t and β left unevaluated; None where it
    then still depends on β, or the kernel has no α and β; ∞ where no c suffices. In the L-model this
    is for β ≤ 0; with β > 0 the contrasts of the scores grow faster and separate the classes sooner.
    None also where the noise depends on time, as the spread then does not grow as √t.
    """
    if not model.noise_table.is_constant or model.kernel.levels is None:
        return None
    if model.transform.kind == "matrix":
        return None
    c = sp.Symbol("c", positive=True)
    beta = sp.Function("beta", real=True)(TIME)
    varied = model.replace(kernel=model.kernel.with_levels(beta + c / TIME, beta))
    coefficients = derive_coefficients(varied)
    table = reduced_table(coefficients)
    rate = None if table is None else separation_rate(coefficients, mode_tree(table))
    if rate is None:
        return None
    exponent = sp.simplify(TIME * rate)
    if TIME in exponent.free_symbols:  # also within β(t)
        return None
    slope = sp.simplify(sp.diff(exponent, c))
    solutions = sp.solve(sp.Eq(exponent, sp.Rational(1, 2)), c) if slope != 0 else []
    return sp.oo if not solutions or slope.is_negative else sp.factor(solutions[0])
