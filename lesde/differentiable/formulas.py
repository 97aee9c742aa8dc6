"""SymPy formulas as torch functions of time and of named parameters, with gradients.

Formulas are walked, not compiled: a kernel has few distinct ones, each is short, and it is evaluated
at all times at once. What has no free name is left to :class:`lesde.formula.Formula`.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import sympy as sp
import torch
from sympy.logic.boolalg import Boolean

from lesde.entries import EntryTable
from lesde.formula import TIME, Formula

__all__ = ["BoundTable", "Values"]

Values = Mapping[str, torch.Tensor]
"""Named parameters as 0-d float64 tensors."""

SMOOTH: dict[Any, Callable[..., torch.Tensor]] = {
    sp.exp: torch.exp,
    sp.log: torch.log,
    sp.sin: torch.sin,
    sp.cos: torch.cos,
    sp.tan: torch.tan,
    sp.asin: torch.asin,
    sp.acos: torch.acos,
    sp.atan: torch.atan,
    sp.sinh: torch.sinh,
    sp.cosh: torch.cosh,
    sp.tanh: torch.tanh,
    sp.erf: torch.erf,
    sp.Abs: torch.abs,
}
FOLDED: dict[Any, Callable[..., torch.Tensor]] = {
    sp.Add: operator.add,
    sp.Mul: operator.mul,
    sp.Min: torch.minimum,
    sp.Max: torch.maximum,
}
RELATIONS: dict[Any, Callable[..., Any]] = {
    sp.StrictLessThan: np.less,
    sp.LessThan: np.less_equal,
    sp.StrictGreaterThan: np.greater,
    sp.GreaterThan: np.greater_equal,
    sp.Equality: np.equal,
    sp.Unequality: np.not_equal,
}


def _names(expression: sp.Basic) -> set[str]:
    return {str(s) for s in expression.free_symbols - {TIME}}


def _exponent(term: sp.Expr) -> tuple[sp.Expr, sp.Expr]:
    """c and x of a term c·exp(x)."""
    parts = sp.Mul.make_args(term)
    powers = [part for part in parts if part.func is sp.exp]
    rest = [part for part in parts if part.func is not sp.exp]
    return sp.Mul(*rest), sp.Add(*(part.args[0] for part in powers))


def _apply(function: Callable[..., torch.Tensor], *arguments: torch.Tensor) -> torch.Tensor:
    """A function of tensors whose gradient is 0 where it or an argument is infinite.

    There torch would multiply the gradient 0 of 1/(1 + exp(1000)) by the slope ∞ of exp, which is NaN.
    What is infinite on the way to a finite value does not move it.
    """
    with torch.no_grad():
        value = function(*arguments)
        infinite = functools.reduce(operator.or_, map(torch.isinf, (value, *arguments)))
    if not bool(infinite.any()):
        return function(*arguments)
    safe = [torch.where(infinite, torch.ones_like(argument), argument) for argument in arguments]
    return torch.where(infinite, value, function(*safe))


class Evaluation:
    """Values of expressions at some times.

    Parameters
    ----------
    times : ndarray, shape (time,)
    values : mapping of str to 0-d tensor
    functions : mapping of str to callable
        Behind unevaluated functions of t.
    name : str
        What is evaluated, for error messages.

    Attributes
    ----------
    infinite : list of ValueError
        What was not finite on the way, among the parts without names.
    """

    def __init__(
        self,
        times: np.ndarray,
        values: Values,
        functions: Mapping[str, Callable[..., Any]],
        name: str,
    ):
        self.times, self.values, self.functions, self.name = times, values, functions, name
        self._known: dict[sp.Basic, torch.Tensor] = {}
        self.infinite: list[ValueError] = []

    def __call__(self, expression: sp.Expr) -> torch.Tensor:
        """The values, shape (time,) or ()."""
        found = self._known.get(expression)
        if found is None:
            found = self._known[expression] = self._evaluate(expression)
        return found

    def _evaluate(self, expression: sp.Expr) -> torch.Tensor:
        if expression.is_Symbol and expression != TIME:
            return self.values[expression.name]
        if not _names(expression):
            if expression.is_Rational or expression.is_Float:
                return torch.tensor(float(expression), dtype=torch.float64)
            try:
                return torch.from_numpy(Formula(expression, self.functions)(self.times, self.name))
            except ValueError as error:  # what is infinite here may stand in a denominator
                if not isinstance(expression, sp.Pow) and expression.func not in (SMOOTH | FOLDED):
                    raise
                self.infinite.append(error)
        kind = expression.func
        if kind is sp.Pow:
            return self._power(*expression.args)
        if kind is sp.Piecewise:
            return self._cases(expression)
        if kind is sp.Heaviside:
            self._refuse_moving_jump(expression)
            at_zero = self(expression.args[1])
            return torch.heaviside(self._spread(expression.args[0]), at_zero.detach())
        arguments = [self(argument) for argument in expression.args]
        if kind in (sp.Min, sp.Max):
            return functools.reduce(FOLDED[kind], arguments)
        if kind in FOLDED:
            return functools.reduce(functools.partial(_apply, FOLDED[kind]), arguments)
        if kind in SMOOTH and len(arguments) == 1:
            return _apply(SMOOTH[kind], arguments[0])
        raise ValueError(
            f"{self.name} contains {expression}, a function that has no gradient here; with free names "
            f"use arithmetic, {', '.join(sorted(f.__name__ for f in SMOOTH))}, Min, Max and conditions."
        )

    def _power(self, base: sp.Expr, exponent: sp.Expr) -> torch.Tensor:
        if exponent.could_extract_minus_sign() and base.has(sp.exp, sp.cosh, sp.sinh):
            found = self._inverse(base, exponent)
            if found is not None:
                return found
        if exponent.is_Integer:
            return _apply(lambda x: x ** int(exponent), self(base))
        if exponent == sp.Rational(1, 2):
            return _apply(torch.sqrt, self(base))
        return _apply(torch.pow, self(base), self(exponent))

    def _inverse(self, base: sp.Expr, exponent: sp.Expr) -> torch.Tensor | None:
        """A negative power of a sum of exponentials, with the largest taken out of the sum.

        exp(x) in a denominator may be finite and its square not, which a second derivative needs. None
        where the base is no such sum.
        """
        terms = sp.Add.make_args(sp.expand(base.rewrite(sp.exp), power_base=False))
        pairs = [_exponent(term) for term in terms]
        if len(pairs) < 2 or all(x == 0 for _, x in pairs):
            return None
        powers = torch.stack([self(x).expand(len(self.times)) for _, x in pairs])
        if not bool(torch.isfinite(powers).all()):
            return None
        largest = powers.detach().amax(0).clamp(min=0)
        scaled = sum(
            self(factor) * torch.exp(x - largest)
            for (factor, _), x in zip(pairs, powers, strict=True)
        )
        return torch.pow(scaled, self(exponent)) * torch.exp(self(exponent) * largest)

    def _spread(self, expression: sp.Expr) -> torch.Tensor:
        return self(expression).detach().expand(len(self.times))

    def _cases(self, expression: sp.Piecewise) -> torch.Tensor:
        """Every case at its own times only: elsewhere it may have no finite value, nor gradient."""
        result = torch.full((len(self.times),), torch.nan, dtype=torch.float64)
        left = np.ones(len(self.times), dtype=bool)
        for case, condition in expression.args:
            self._refuse_moving_jump(condition)
            chosen = left & self._holds(condition)
            left &= ~chosen
            if chosen.any():
                part = Evaluation(self.times[chosen], self.values, self.functions, self.name)
                index = torch.from_numpy(np.flatnonzero(chosen))
                result = result.index_put((index,), part(case).expand(len(index)))
        return result

    def _holds(self, condition: Boolean) -> np.ndarray:
        if condition in (sp.true, sp.false):
            return np.full(len(self.times), condition == sp.true)
        if isinstance(condition, sp.And | sp.Or):
            join = np.logical_and if isinstance(condition, sp.And) else np.logical_or
            return functools.reduce(join, [self._holds(part) for part in condition.args])
        if isinstance(condition, sp.Not):
            return ~self._holds(condition.args[0])
        left, right = (self._spread(side).numpy() for side in condition.args)
        return RELATIONS[condition.func](left, right)

    def _refuse_moving_jump(self, where: sp.Basic) -> None:
        """A gradient through the place of a jump is a delta function, which no evaluation sees."""
        moving = sorted(name for name in _names(where) if self.values[name].requires_grad)
        if moving:
            raise ValueError(
                f"{self.name} switches where {where}, which depends on {', '.join(moving)}: gradients "
                f"with respect to the place of a switch are not available. Give {', '.join(moving)} as "
                f"a plain number, or write a smooth switch such as tanh."
            )


class BoundTable:
    """A table of formulas with values for its free names.

    Parameters
    ----------
    table : EntryTable
        Its index may have any shape.
    values : mapping of str to 0-d tensor
    name : str
        What the table is, where its entries have no names of their own.
    """

    def __init__(self, table: EntryTable, values: Values, name: str):
        self.table, self.values, self.name = table, values, name
        self.is_constant = table.is_constant

    def __call__(self, times: np.ndarray) -> torch.Tensor:
        """Values at the times, shape (time, \\*index.shape), float64, checked finite."""
        return self.distinct(times)[:, torch.from_numpy(self.table.index)]

    def distinct(self, times: np.ndarray) -> torch.Tensor:
        """The distinct values at the times, shape (time, value), float64, checked finite."""
        table, columns = self.table, []
        for position, expression in enumerate(table.values):
            name = table.names[position] if table.names else self.name
            if _names(expression):
                column = Evaluation(times, self.values, table.functions, name)(expression)
            else:
                column = torch.from_numpy(Formula(expression, table.functions)(times, name))
            columns.append(column.expand(len(times)))
        values = torch.stack(columns, -1)
        finite = torch.isfinite(values)
        if not bool(finite.all()):
            i, position = torch.nonzero(~finite)[0].tolist()
            expression = table.values[position]
            name = table.names[position] if table.names else self.name
            alone = Evaluation(times[i : i + 1], self.values, table.functions, name)
            alone(expression)
            if alone.infinite:  # a part without free names is at fault
                raise alone.infinite[0]
            used = {n: float(self.values[n].detach()) for n in sorted(_names(expression))}
            raise ValueError(
                f"{name} = {expression} is not a "
                f"finite real number at t = {times[i]:g} for "
                f"{', '.join(f'{n} = {v:g}' for n, v in used.items())}. Change the values, the "
                f"formula or the times."
            )
        return values
