"""The microscopic rule of one iteration, and its expectation over the drawn sample.

:func:`increment` is the rule. :func:`rule` takes from it, once, the factors of the kick, the drift, the
sampling covariance and the noise; tables of kernels, reports and engines apply these. The numbers that
follow are in :mod:`lesde.laws.rule`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import sympy as sp

LEARNING_RATE = sp.Symbol("h", positive=True)


def matrix_symbol(name: str) -> sp.Symbol:
    """A vector or matrix, which does not commute."""
    return sp.Symbol(name, commutative=False)


# Words of one conditional step: L is the drawn class, J the drawn sample, i and j are samples that move.
H, H_T = matrix_symbol("H_L"), matrix_symbol("H_L^T")
X, X_T = matrix_symbol("X_J"), matrix_symbol("X_J^T")
MEAN, MEAN_T = matrix_symbol("m_L"), matrix_symbol("m_L^T")
SECOND = matrix_symbol("S_L")
NOISE = {side: (matrix_symbol(f"sigma_{side}"), matrix_symbol(f"sigma_{side}^T")) for side in "ij"}
ZETA = {side: (matrix_symbol(f"zeta_{side}"), matrix_symbol(f"zeta_{side}^T")) for side in "ij"}

_TRANSPOSE = {H: H_T, X: X_T, MEAN: MEAN_T, SECOND: SECOND}
_TRANSPOSE |= dict([*NOISE.values(), *ZETA.values()])
_TRANSPOSE |= {b: a for a, b in _TRANSPOSE.items()}


def increment(strength: sp.Expr, side: str = "i") -> sp.Expr:
    """ΔX of one sample, given the drawn class and the strength E_kL with which it is moved."""
    noise, zeta = NOISE[side][0], ZETA[side][0]
    return LEARNING_RATE * strength * H * X + sp.sqrt(LEARNING_RATE) * noise * zeta


@dataclass(frozen=True)
class Rule:
    """Factors of what one drawn class adds, as functions of its weight and of strengths.

    ``kick(E)`` is the factor of H_L X_J in ΔX/h; ``drift(w, E)`` that of H_l X̄^l in the drift, for a drawn class l
    of weight w; ``sampling(w, E_k, E_m)`` that of H_l S_l H_lᵀ in the second moment of the kicks, divided by h²;
    ``noise`` and ``noise_between`` those of σσᵀ in the covariance of ΔX_i with itself, and with another sample's,
    divided by h. A strength κ_iJ that varies with the drawn sample stays inside the average over the class,
    ⟨κ_iJ X_J⟩_l and ⟨κ_iJ κ_jJ X_J X_Jᵀ⟩_l; the factor in front is the one for the strength 1.
    """

    kick: Callable[[sp.Expr], sp.Expr]
    drift: Callable[[sp.Expr, sp.Expr], sp.Expr]
    sampling: Callable[[sp.Expr, sp.Expr, sp.Expr], sp.Expr]
    noise: sp.Expr
    noise_between: sp.Expr


@cache
def rule() -> Rule:
    """Take the expectation of :func:`increment`, for unevaluated weight and strengths."""
    h = LEARNING_RATE
    weight, E_k, E_m = sp.Symbol("w"), sp.Symbol("E_k"), sp.Symbol("E_m")
    step_i, step_j = increment(E_k, "i"), _transpose(increment(E_m, "j"))
    first = weight * _expectation(step_i, same_sample=True)
    own = _expectation(step_i * step_j, same_sample=True)
    other = _expectation(step_i * step_j, same_sample=False)
    noise = NOISE["i"][0], NOISE["j"][1]

    def function(expression: sp.Expr, *symbols: sp.Symbol) -> Callable[..., sp.Expr]:
        # `lambdify` with plain operators applies the derived polynomial to any SymPy entries.
        return sp.lambdify(symbols, sp.expand(expression), modules="sympy")

    return Rule(
        kick=function(_coefficient(step_i, H, X) / h, E_k),
        drift=function(_coefficient(first, H, MEAN) / h, weight, E_k),
        sampling=function(weight * _coefficient(other, H, SECOND, H_T) / h**2, weight, E_k, E_m),
        noise=sp.simplify(_coefficient(own, *noise) / h),
        noise_between=sp.simplify(_coefficient(other, *noise) / h),
    )


def _terms(expression: sp.Expr) -> list[tuple[sp.Expr, list[sp.Symbol]]]:
    """Each term of the expanded expression as its scalar factor and its word."""
    result = []
    for term in sp.Add.make_args(sp.expand(expression)):
        scalars, factors = term.args_cnc()
        powers = [factor.as_base_exp() for factor in factors]
        word = [base for base, power in powers for _ in range(int(power))]
        result.append((sp.Mul(*scalars), word))
    return result


def _transpose(expression: sp.Expr) -> sp.Expr:
    """The transpose: every word reversed, every symbol replaced by its transpose."""
    return sp.Add(
        *(c * sp.Mul(*(_TRANSPOSE[s] for s in reversed(word))) for c, word in _terms(expression))
    )


def _coefficient(expression: sp.Expr, *word: sp.Symbol) -> sp.Expr:
    """The scalar factor of one word in an expression."""
    return sp.Add(*(scalar for scalar, letters in _terms(expression) if letters == list(word)))


def _expectation(expression: sp.Expr, same_sample: bool) -> sp.Expr:
    """The expectation over the drawn sample J and the noise of samples i and j, given the drawn class."""
    return sp.Add(*(c * _expected_word(word, same_sample) for c, word in _terms(expression)))


def _expected_word(word: list[sp.Symbol], same_sample: bool) -> sp.Expr:
    columns, rows = ({ZETA[side][i] for side in "ij"} for i in (0, 1))
    result: list[sp.Symbol] = []
    rest = list(word)
    while rest:
        symbol = rest.pop(0)
        following = rest[0] if rest else None
        if symbol in columns and following in rows:
            if rest.pop(0) != _TRANSPOSE[symbol] and not same_sample:
                return sp.Integer(0)  # independent noises
        elif symbol in columns | rows:
            return sp.Integer(0)  # a noise alone has mean zero, whatever multiplies it
        elif symbol == X and following == X_T:
            rest.pop(0)
            result.append(SECOND)
        else:
            result.append({X: MEAN, X_T: MEAN_T}.get(symbol, symbol))
    return sp.Mul(*result)
