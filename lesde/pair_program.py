"""A formula of two samples as a short list of torch operations on tiles, in place.

``sympy.lambdify`` makes a new array for every operation. On tiles that fit the processor's cache the
allocation costs more than the arithmetic, so the formula becomes a program over a few registers (tiles
that exist already), in which equal subexpressions are computed once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import sympy as sp
import torch

from lesde.formula import TIME
from lesde.pair_formula import FEATURE_VARIABLES
from lesde.pair_operations import CONDITIONS, Operand, condition, operation

__all__ = ["PairProgram"]

LARGEST_POWER = 64


@dataclass(frozen=True)
class Step:
    """One operation: its function, the register it writes, and its operands."""

    function: Callable[..., Any]
    out: Any
    operands: tuple[Any, ...]


class PairProgram:
    """f(r2, g, c, t) on tiles.

    Parameters
    ----------
    expression : sympy.Expr
        In the symbols of :data:`lesde.pair_formula.FEATURE_VARIABLES`, of which it must have at least
        one, and :data:`lesde.formula.TIME`.

    Attributes
    ----------
    inputs : tuple of str
        The variables it reads: input i has to be in register i before it runs.
    n_registers : int
        Tiles that it needs, those of the inputs included.
    distance_scale : float
        Register "r2" has to hold this times r2: a factor of the formula's argument that then costs
        nothing.
    """

    def __init__(self, expression: sp.Expr):
        expression, self.distance_scale = _fold_distance(expression)
        self.symbols = {s: s.name for s in expression.free_symbols if s.name in FEATURE_VARIABLES}
        self.inputs = tuple(sorted(self.symbols.values()))
        self.scalars: list[sp.Expr] = []
        self._steps: list[tuple[Callable[..., Any], Operand, tuple[Operand, ...]]] = []
        self._known: dict[Any, Operand] = {}
        self._names: dict[sp.Symbol, sp.Expr] = {}
        for symbol, name in self.symbols.items():
            self._known[symbol] = Operand("tile", self.inputs.index(name))
        self._count = len(self.inputs)
        replacements, (reduced,) = sp.cse([expression], symbols=sp.numbered_symbols("_x"))
        self._names = dict(replacements)
        result = self._emit(reduced)
        assert result.kind == "tile"
        self.steps, self.n_registers, self.result = self._allocate(result.value)
        self._scalars = sp.lambdify(TIME, self.scalars, modules=["numpy", "scipy"])
        self.is_constant = not self.scalars

    def scalar_values(self, time: float) -> list[float]:
        """The parts that depend on time alone, in float64."""
        if self.is_constant:
            return []
        with np.errstate(all="ignore"):
            return [float(np.real(v)) for v in self._scalars(np.float64(time))]

    def run(self, registers: Sequence[torch.Tensor], scalars: Sequence[float]) -> torch.Tensor:
        """Run on tiles of one shape; the register with the result is returned, others are lost."""
        values: dict[str, Sequence[Any]] = {"tile": registers, "scalar": scalars}
        truths: dict[int, Any] = {}
        for step in self.steps:
            arguments = [
                o.value
                if o.kind == "number"
                else truths[o.value]
                if o.kind == "truth"
                else values[o.kind][o.value]
                for o in step.operands
            ]
            if isinstance(step.out, Operand):
                truths[step.out.value] = step.function(*arguments)
            else:
                step.function(registers[step.out], *arguments)
        return registers[self.result]

    # Building -----------------------------------------------------------------------------------

    def _is_scalar(self, node: sp.Basic) -> bool:
        symbols: set[sp.Basic] = set(node.free_symbols)
        while symbols:
            symbol = symbols.pop()
            if symbol in self.symbols:
                return False
            if symbol in self._names:
                symbols |= self._names[symbol].free_symbols
        return True

    def _expanded(self, node: sp.Expr) -> sp.Expr:
        """With the names of common subexpressions replaced: for parts that are scalars."""
        while any(symbol in self._names for symbol in node.free_symbols):
            node = node.xreplace(self._names)
        return node

    def _scalar(self, node: sp.Expr) -> Operand:
        node = self._expanded(node)
        if not node.free_symbols:
            return Operand("number", float(node))
        if node not in self.scalars:
            self.scalars.append(node)
        return Operand("scalar", self.scalars.index(node))

    def _emit(self, node: sp.Expr) -> Operand:
        """The operand that holds a node's value, after the steps that compute it."""
        if node in self._known:
            return self._known[node]
        if node in self._names:
            operand = self._emit(self._names[node])
        elif self._is_scalar(node):
            operand = self._scalar(node)
        elif node.is_Add:
            operand = self._sum(node)
        elif node.is_Mul:
            operand = self._product(node)
        elif node.is_Pow:
            operand = self._power(*node.as_base_exp())
        elif isinstance(node, sp.Piecewise):
            operand = self._piecewise(node)
        elif isinstance(node, sp.Max | sp.Min):
            operand = self._emit(node.args[0])
            for argument in node.args[1:]:
                operand = self._step(type(node).__name__, operand, self._emit(argument))
        else:
            operand = self._step(type(node).__name__, *(self._emit(a) for a in node.args))
        self._known[node] = operand
        return operand

    def _step(self, name: str, *operands: Operand) -> Operand:
        function = operation(name)
        out = Operand("tile", self._count)
        self._count += 1
        self._steps.append((function, out, operands))
        return out

    def _sum(self, node: sp.Add) -> Operand:
        scalar = sp.Add(*(a for a in node.args if self._is_scalar(a)))
        rest = [a.as_coeff_Mul() for a in node.args if not self._is_scalar(a)]
        terms = [(float(factor), self._emit(term)) for factor, term in rest]
        terms.sort(key=lambda term: term[0] != 1)  # one with factor 1 first: it needs no product
        factor, total = terms[0]
        if factor != 1:
            total = self._step("scale", total, Operand("number", factor))
        for factor, term in terms[1:]:
            total = self._step("add", total, term, Operand("number", factor))
        return total if scalar == 0 else self._step("shift", total, self._scalar(scalar))

    def _product(self, node: sp.Mul) -> Operand:
        scalars = [a for a in node.args if self._is_scalar(a)]
        factors = [a for a in node.args if not self._is_scalar(a)]
        powers = [(a, *self._named(a).as_base_exp()) for a in factors]
        below = [(b, -e) for _, b, e in powers if e.is_Rational and e < 0]
        above = [a for a, _, e in powers if not (e.is_Rational and e < 0)]
        scalar = self._scalar(sp.Mul(*scalars)) if scalars else None
        total = None
        for factor in above:
            operand = self._emit(factor)
            total = operand if total is None else self._step("multiply", total, operand)
        denominator = None
        for base, exponent in below:
            operand = self._power(base, exponent)
            denominator = (
                operand if denominator is None else self._step("multiply", denominator, operand)
            )
        if total is None:
            assert denominator is not None
            return self._step("into", denominator, scalar or Operand("number", 1.0))
        if denominator is not None:
            total = self._step("divide", total, denominator)
        return total if scalar is None else self._step("scale", total, scalar)

    def _named(self, node: sp.Expr) -> sp.Expr:
        return self._names.get(node, node) if node not in self._known else node

    def _power(self, base: sp.Expr, exponent: sp.Expr) -> Operand:
        key = sp.Pow(base, exponent, evaluate=False)
        if key not in self._known:
            self._known[key] = self._new_power(base, exponent)
        return self._known[key]

    def _new_power(self, base: sp.Expr, exponent: sp.Expr) -> Operand:
        if exponent.is_Rational and exponent < 0:
            return self._step("into", self._power(base, -exponent), Operand("number", 1.0))
        if exponent == 1:
            return self._emit(base)
        if exponent == sp.Rational(1, 2):
            return self._step("sqrt", self._emit(base))
        if exponent.is_Rational and exponent.q in (1, 2) and exponent.p <= LARGEST_POWER:
            whole, odd = divmod(exponent.p, 2)
            if exponent.q == 2:
                root = self._power(base, sp.Rational(1, 2))
                rest = self._power(base, sp.Integer(whole))
                return self._step("multiply", rest, root)
            half = self._power(base, sp.Integer(whole))
            square = self._step("multiply", half, half)
            return square if not odd else self._step("multiply", square, self._emit(base))
        return self._step("power", self._emit(base), self._emit(exponent))

    def _piecewise(self, node: sp.Piecewise) -> Operand:
        total = Operand("number", float("nan"))
        for value, test in reversed(node.args):
            other = self._emit(value)
            total = (
                other if test == True else self._step("where", self._condition(test), other, total)  # noqa: E712
            )
        if total.kind != "tile":
            total = self._step("fill", total)
        return total

    def _condition(self, node: sp.Basic) -> Operand:
        if self._is_scalar(node):
            return self._scalar(sp.Piecewise((sp.Integer(1), node), (sp.Integer(0), True)))
        if node in self._names:
            return self._condition(self._names[node])
        if node in self._known:
            return self._known[node]
        if isinstance(node, sp.core.relational.Relational):
            operands = [self._emit(node.lhs), self._emit(node.rhs)]
        elif type(node).__name__ in CONDITIONS:
            operands = [self._condition(a) for a in node.args]
        else:
            raise ValueError(f"strength has the condition {node}, which cannot be evaluated.")
        out = Operand("truth", self._count)
        self._count += 1
        self._steps.append((condition(type(node).__name__), out, tuple(operands)))
        self._known[node] = out
        return out

    def _allocate(self, result: int) -> tuple[list[Step], int, int]:
        """Put the values into as few registers as are alive at a time."""
        last = {result: len(self._steps)}
        for i, (_, _, operands) in enumerate(self._steps):
            for operand in operands:
                if operand.kind == "tile" and operand.value != result:
                    last[operand.value] = i
        place = {i: i for i in range(len(self.inputs))}
        count, free = len(place), [i for i in place if i not in last]
        steps = []
        for i, (function, out, operands) in enumerate(self._steps):
            moved = tuple(
                Operand("tile", place[o.value]) if o.kind == "tile" else o for o in operands
            )
            # All operations work in place, so the result may take the place of an operand.
            for value in {o.value for o in operands if o.kind == "tile"}:
                if last[value] == i:
                    free.append(place[value])
            if out.kind == "truth":
                steps.append(Step(function, out, moved))
                continue
            free.sort()
            if free:
                place[out.value] = free.pop(0)
            else:
                place[out.value] = count
                count += 1
            steps.append(Step(function, place[out.value], moved))
        return steps, count, place[result]


def _fold_distance(expression: sp.Expr) -> tuple[sp.Expr, float]:
    """The expression in q·r2, and the number q that saves most products, 1 if none does."""
    r2 = FEATURE_VARIABLES["r2"]
    candidates = {
        product.args[0] for product in expression.atoms(sp.Mul)
        if product.args[0].is_Number and r2 in product.args
    }  # fmt: skip
    best, scale = expression, sp.Integer(1)
    for q in sorted(candidates, key=sp.default_sort_key):
        scaled = sp.Symbol("r2", **{"nonnegative" if q > 0 else "nonpositive": True})
        changed = expression.xreplace({r2: scaled / q})
        if changed.count_ops() < best.count_ops() and np.isfinite(float(q)) and float(q) != 0:
            best, scale = changed, q
    return best, float(scale)
