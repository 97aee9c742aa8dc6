"""Formulas of two samples: squared distance r2, inner product g, cosine c, same class s, and time t."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import sympy as sp

from lesde.bounded import Unfinished, bounded
from lesde.checks import shown
from lesde.formula import TIME, Formula, parse_formula

__all__ = ["FEATURE_VARIABLES", "VARIABLES", "PairFormula", "parse_pair_formula"]

VARIABLES: dict[str, sp.Symbol] = {
    "r2": sp.Symbol("r2", nonnegative=True),
    "g": sp.Symbol("g", real=True),
    "c": sp.Symbol("c", real=True),
    "s": sp.Symbol("s", real=True),
}
"""What a formula may depend on besides t."""

FEATURE_VARIABLES = {name: VARIABLES[name] for name in ("r2", "g", "c")}


@dataclass(frozen=True)
class PairFormula:
    """κ(X_i, X_j) as a formula in r2, g, c, s and t.

    ``r2`` is ‖X_i − X_j‖², ``g`` is ⟨X_i, X_j⟩, ``c`` is g/(‖X_i‖‖X_j‖) and 0 where a norm is 0, ``s``
    is 1 for samples of one class and 0 for others.

    Attributes
    ----------
    expression : sympy.Expr
        In the symbols of :data:`VARIABLES` and :data:`lesde.formula.TIME`.
    """

    expression: sp.Expr

    def at(self, same: bool) -> sp.Expr:
        """The expression for two samples of one class, or of different ones: s is 1 or 0."""
        return self._parts[0 if same else 1]

    @cached_property
    def _parts(self) -> tuple[sp.Expr, sp.Expr]:
        values = []
        for s in (1, 0):
            try:
                value = sp.sympify(bounded(self.expression.subs, VARIABLES["s"], s))
            except Unfinished:
                raise ValueError(
                    f"strength = {self.expression} takes SymPy too long to evaluate at s = {s}; write "
                    f"it more simply."
                ) from None
            if value.has(sp.zoo, sp.nan, sp.oo, -sp.oo):
                raise ValueError(
                    f"strength = {self.expression} is not finite at s = {s}; s is 1 for samples of "
                    f"one class and 0 for others, so write for example s*a + (1-s)*b."
                )
            values.append(value)
        return values[0], values[1]

    @cached_property
    def uses(self) -> frozenset[str]:
        """Which of r2, g and c matter, for samples of one class or of different ones."""
        free = self.at(True).free_symbols | self.at(False).free_symbols
        return frozenset(name for name, symbol in FEATURE_VARIABLES.items() if symbol in free)

    @property
    def is_class_only(self) -> bool:
        """Whether it depends on s and t only, and so is a class kernel."""
        return not self.uses

    def unresolved(self) -> list[str]:
        """Names that have no value yet."""
        known = {*VARIABLES.values(), TIME}
        return sorted(str(symbol) for symbol in self.expression.free_symbols - known)

    def check_resolved(self) -> None:
        """Refuse a formula with a name that has no value.

        Raises
        ------
        ValueError
            Naming it.
        """
        missing = self.unresolved()
        if missing:
            raise ValueError(
                f"strength = {self.expression} has no value for {', '.join(missing)}; it can be "
                f"derived from but not evaluated. Give numbers with parameters={{...}}, or later with "
                f"model.substitute."
            )

    @cached_property
    def _compiled(self) -> tuple[Callable[..., Any], Callable[..., Any]]:
        self.check_resolved()
        symbols = (*FEATURE_VARIABLES.values(), TIME)
        same, different = (
            sp.lambdify(symbols, self.at(same), modules=["numpy", "scipy"], cse=True)
            for same in (True, False)
        )
        return same, different

    def __call__(self, r2: Any, g: Any, c: Any, s: Any, t: Any) -> np.ndarray:
        """Values for arrays that broadcast, float64; not checked to be finite."""
        r2, g, c, s, t = np.broadcast_arrays(*(np.asarray(x, np.float64) for x in (r2, g, c, s, t)))
        with np.errstate(all="ignore"):
            same, different = (np.asarray(f(r2, g, c, t)) for f in self._compiled)
        return np.array(np.where(s == 1, same, different), dtype=np.float64)


def parse_pair_formula(
    name: str, value: Any, parameters: Mapping[str, float | None] | None = None
) -> PairFormula:
    """Read a number, a string or a SymPy expression; see :func:`lesde.formula.parse_formula`.

    Raises
    ------
    TypeError, ValueError
        For what is no formula, for names not known (with those that are), and for a formula that is
        not finite at s = 0 or 1, or at r2 = 0, the distance of a sample to itself.
    """
    if isinstance(value, PairFormula):
        value = value.expression
    if not isinstance(value, str | int | float | np.number | sp.Expr) or isinstance(value, bool):
        raise TypeError(
            f"{name} must be a number, or a formula (text or SymPy) in {', '.join(VARIABLES)} and t; "
            f"got {shown(value)}."
        )
    parsed: Formula = parse_formula(name, value, parameters, variables=VARIABLES)
    formula = PairFormula(parsed.expression)
    formula.at(True)  # raises where s = 1 or 0 divides by zero
    if not formula.unresolved() and "r2" in formula.uses:
        _check_own_distance(name, formula)
    return formula


def _check_own_distance(name: str, formula: PairFormula) -> None:
    """Every sample is at distance 0 from itself, so κ has to be finite there."""
    g, t = np.meshgrid([0.5, 1.0, 2.0], [0.1, 0.7, 1.3, 10.0])
    near = formula(1e-3, g, 1.0, 1.0, t)
    at_zero = formula(0.0, g, 1.0, 1.0, t)
    if np.isfinite(near).any() and not np.isfinite(at_zero).any():
        raise ValueError(
            f"{name} = {formula.expression} is not finite at r2 = 0, the distance of a sample to "
            f"itself; write for example 1/(1 + r2) in place of 1/r2."
        )
