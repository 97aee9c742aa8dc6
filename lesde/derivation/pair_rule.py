"""The expectation of the microscopic rule where the strength varies with the drawn sample."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import sympy as sp

from lesde.derivation import microscopic as rule

__all__ = ["PairRule", "pair_rule"]


@dataclass(frozen=True)
class PairRule:
    """What one drawn class adds to drift and covariance: factors of averages over its samples.

    Attributes
    ----------
    drift : callable (w)
        Factor of H_l ⟨κ_iJ X_J⟩_l in the drift, for drawn class l of weight w.
    sampling : callable (w)
        Factor of H_l ⟨κ_iJ κ_jJ X_J X_Jᵀ⟩_l H_lᵀ in the second moment of the kicks, divided by h².
    noise, noise_between : sympy.Expr
        Factor of σσᵀ in the covariance of ΔX_i with itself, and with another sample's, divided by h.
    """

    drift: Callable[[sp.Expr], sp.Expr]
    sampling: Callable[[sp.Expr], sp.Expr]
    noise: sp.Expr
    noise_between: sp.Expr


@cache
def pair_rule() -> PairRule:
    """Take the expectation of the microscopic rule with a strength that varies with the drawn sample."""
    h, weight = rule.LEARNING_RATE, sp.Symbol("w")
    kappa_i, kappa_j = sp.Symbol("kappa_iJ", real=True), sp.Symbol("kappa_jJ", real=True)
    step_i, step_j = rule.increment(kappa_i, "i"), rule.transpose(rule.increment(kappa_j, "j"))
    product = step_i * step_j
    first = rule.moments(step_i, same_sample=True)
    second = rule.moments(product, same_sample=False)
    own = rule.moments(product, same_sample=True)
    noise_word = (rule.NOISE["i"][0], rule.NOISE["j"][1])

    def factor(expression: sp.Expr, average: sp.Expr, *word: sp.Symbol) -> sp.Expr:
        # In a term with κ the moment of X_J is the average of κ times it: all of its κ go inside.
        return rule.coefficient(sp.expand(expression), *word).coeff(average)

    drift = weight * factor(first / h, kappa_i, rule.H, rule.MEAN)
    sampling = weight * factor(second / h**2, kappa_i * kappa_j, rule.H, rule.SECOND, rule.H_T)
    return PairRule(
        drift=sp.lambdify(weight, drift, modules="sympy"),
        sampling=sp.lambdify(weight, sampling, modules="sympy"),
        noise=sp.simplify(rule.coefficient(own, *noise_word) / h),
        noise_between=sp.simplify(rule.coefficient(second, *noise_word) / h),
    )
