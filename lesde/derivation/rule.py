"""The expectation of the microscopic rule where the strength varies with the drawn sample."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import sympy as sp

__all__ = [
    "LEARNING_RATE",
    "ClassCoefficients",
    "PairRule",
    "class_coefficients",
    "increment",
    "moments",
    "pair_rule",
]


# --------------------------------------------------------------------------------------------------
# From the microscopic rule to drift and diffusion: the expectation over the drawn sample.

LEARNING_RATE = sp.Symbol("h", positive=True)


def _word(name: str) -> sp.Symbol:
    return sp.Symbol(name, commutative=False)


# Words of one conditional step: L is the drawn class, J the drawn sample.
H, H_T = _word("H_L"), _word("H_L^T")
X, X_T = _word("X_J"), _word("X_J^T")
MEAN, MEAN_T = _word("m_L"), _word("m_L^T")
SECOND = _word("S_L")
NOISE = {side: (_word(f"sigma_{side}"), _word(f"sigma_{side}^T")) for side in "ij"}
ZETA = {side: (_word(f"zeta_{side}"), _word(f"zeta_{side}^T")) for side in "ij"}

_TRANSPOSE = {H: H_T, X: X_T, MEAN: MEAN_T, SECOND: SECOND}
for _side in "ij":
    _TRANSPOSE[NOISE[_side][0]] = NOISE[_side][1]
    _TRANSPOSE[ZETA[_side][0]] = ZETA[_side][1]
_TRANSPOSE |= {b: a for a, b in _TRANSPOSE.items()}


def increment(strength: sp.Expr, side: str = "i") -> sp.Expr:
    """ΔX of one sample, given the drawn class and the strength E_kL with which it is moved."""
    noise, zeta = NOISE[side][0], ZETA[side][0]
    return LEARNING_RATE * strength * H * X + sp.sqrt(LEARNING_RATE) * noise * zeta


def _terms(expression: sp.Expr) -> list[tuple[sp.Expr, list[sp.Symbol]]]:
    """Each term of the expanded expression as its scalar factor and its word."""
    result = []
    for term in sp.Add.make_args(sp.expand(expression)):
        scalars, factors = term.args_cnc()
        word: list[sp.Symbol] = []
        for factor in factors:
            base, power = factor.as_base_exp()
            word.extend([base] * int(power))
        result.append((sp.Mul(*scalars), word))
    return result


def transpose(expression: sp.Expr) -> sp.Expr:
    """The transpose: every word reversed, every symbol replaced by its transpose."""
    return sp.Add(
        *(c * sp.Mul(*(_TRANSPOSE[s] for s in reversed(word))) for c, word in _terms(expression))
    )


def moments(expression: sp.Expr, same_sample: bool) -> sp.Expr:
    """Expectation over the drawn sample J and the noise, given the drawn class.

    Parameters
    ----------
    expression : sympy.Expr
        A polynomial in the words of two samples i and j.
    same_sample : bool
        Whether i and j are the same sample, so that their noise is the same.
    """
    total = sp.Integer(0)
    for scalar, word in _terms(expression):
        total += scalar * _word_moment(word, same_sample)
    return total


def _word_moment(word: list[sp.Symbol], same_sample: bool) -> sp.Expr:
    columns = {ZETA["i"][0], ZETA["j"][0]}
    rows = {ZETA["i"][1], ZETA["j"][1]}
    result: list[sp.Symbol] = []
    position = 0
    while position < len(word):
        symbol = word[position]
        following = word[position + 1] if position + 1 < len(word) else None
        if symbol in columns and following in rows:
            same = symbol == _TRANSPOSE[following] or same_sample
            if not same:
                return sp.Integer(0)  # independent noises
            position += 2
        elif symbol in columns or symbol in rows:
            return sp.Integer(0)  # a noise alone has mean zero, whatever multiplies it
        elif symbol == X and following == X_T:
            result.append(SECOND)
            position += 2
        else:
            result.append({X: MEAN, X_T: MEAN_T}.get(symbol, symbol))
            position += 1
    return sp.Mul(*result)


def coefficient(expression: sp.Expr, *word: sp.Symbol) -> sp.Expr:
    """The scalar factor of one word in an expression."""
    return sp.Add(*(scalar for scalar, letters in _terms(expression) if letters == list(word)))


@dataclass(frozen=True)
class ClassCoefficients:
    """What one class adds to drift and covariance, as functions of weight and strengths.

    Attributes
    ----------
    kick : callable (E)
        Factor of H_L X_J in ΔX/h.
    drift : callable (w, E)
        Factor of H_l X̄^l in the drift, for drawn class l of weight w.
    sampling : callable (w, E_k, E_m)
        Factor of H_l S_l H_lᵀ in the second moment of the kicks, divided by h².
    noise : sympy.Expr
        Factor of σσᵀ in the covariance of ΔX of one sample, divided by h.
    noise_between : sympy.Expr
        The same for two different samples.
    """

    kick: Callable[[sp.Expr], sp.Expr]
    drift: Callable[[sp.Expr, sp.Expr], sp.Expr]
    sampling: Callable[[sp.Expr, sp.Expr, sp.Expr], sp.Expr]
    noise: sp.Expr
    noise_between: sp.Expr


@cache
def class_coefficients() -> ClassCoefficients:
    """Take the expectation once, for unevaluated weight and strengths.

    The result is linear in what one class contributes, so it serves every kernel: an engine's table
    is this rule applied to each distinct entry.
    """
    h = LEARNING_RATE
    weight, E_k, E_m = sp.Symbol("w"), sp.Symbol("E_k"), sp.Symbol("E_m")
    step_i, step_j = increment(E_k, "i"), transpose(increment(E_m, "j"))
    first = weight * moments(step_i, same_sample=True)
    product = step_i * step_j
    second = weight * moments(product, same_sample=False)
    own = moments(product, same_sample=True)
    noise_word = (NOISE["i"][0], NOISE["j"][1])

    def rule(expression: sp.Expr, *symbols: sp.Symbol) -> Callable[..., sp.Expr]:
        # `lambdify` with plain operators applies the derived polynomial to any SymPy entries.
        return sp.lambdify(symbols, sp.expand(expression), modules="sympy")

    return ClassCoefficients(
        kick=rule(coefficient(step_i, H, X) / h, E_k),
        drift=rule(coefficient(first, H, MEAN) / h, weight, E_k),
        sampling=rule(coefficient(second, H, SECOND, H_T) / h**2, weight, E_k, E_m),
        noise=sp.simplify(coefficient(own, *noise_word) / h),
        noise_between=sp.simplify(coefficient(moments(product, False), *noise_word) / h),
    )


# --------------------------------------------------------------------------------------------------


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
    h, weight = LEARNING_RATE, sp.Symbol("w")
    kappa_i, kappa_j = sp.Symbol("kappa_iJ", real=True), sp.Symbol("kappa_jJ", real=True)
    step_i, step_j = increment(kappa_i, "i"), transpose(increment(kappa_j, "j"))
    product = step_i * step_j
    first = moments(step_i, same_sample=True)
    second = moments(product, same_sample=False)
    own = moments(product, same_sample=True)
    noise_word = (NOISE["i"][0], NOISE["j"][1])

    def factor(expression: sp.Expr, average: sp.Expr, *word: sp.Symbol) -> sp.Expr:
        # In a term with κ the moment of X_J is the average of κ times it: all of its κ go inside.
        return coefficient(sp.expand(expression), *word).coeff(average)

    drift = weight * factor(first / h, kappa_i, H, MEAN)
    sampling = weight * factor(second / h**2, kappa_i * kappa_j, H, SECOND, H_T)
    return PairRule(
        drift=sp.lambdify(weight, drift, modules="sympy"),
        sampling=sp.lambdify(weight, sampling, modules="sympy"),
        noise=sp.simplify(coefficient(own, *noise_word) / h),
        noise_between=sp.simplify(coefficient(second, *noise_word) / h),
    )
