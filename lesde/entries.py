"""K×K tables of formulas that keep their structure: distinct values once, and where each stands.

A kernel over 100 classes has 10,000 entries but often only two values. Everything symbolic is done
once per distinct value, and expanded by indexing when numbers are needed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import sympy as sp

from lesde.formula import TIME, Formula, in_floats
from lesde.switches import peaks, switches

__all__ = ["EntryTable"]


MANY = 32


@lru_cache(maxsize=16)
def _compile_all(expressions: tuple[sp.Expr, ...]) -> Callable[[np.ndarray], Any]:
    return sp.lambdify(TIME, [in_floats(e) for e in expressions], modules=["numpy", "scipy"])


@dataclass(frozen=True)
class EntryTable:
    """A matrix of expressions in time, stored as distinct values and an index.

    Attributes
    ----------
    values : tuple of sympy.Expr
        The distinct values.
    index : ndarray of int, shape (rows, columns)
        Entry (k, l) is ``values[index[k, l]]``.
    functions : mapping of str to callable
        Python callables behind unevaluated functions in the values.
    names : tuple of str
        What the user calls each value, for error messages; empty for derived tables.
    """

    values: tuple[sp.Expr, ...]
    index: np.ndarray
    functions: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    names: tuple[str, ...] = ()

    @classmethod
    def from_formulas(cls, formulas: Mapping[str, Formula], index: np.ndarray) -> EntryTable:
        """A table from named formulas that may repeat; equal expressions are merged.

        ``index`` counts the formulas in their order; the names appear in error messages.
        """
        functions: dict[str, Callable[..., Any]] = {}
        for formula in formulas.values():
            functions.update(formula.functions)
        expressions = [formula.expression for formula in formulas.values()]
        return cls._merged(expressions, index, functions, list(formulas))

    @classmethod
    def _merged(
        cls,
        expressions: Sequence[sp.Expr],
        index: np.ndarray,
        functions: Mapping[str, Any],
        names: Sequence[str] = (),
    ) -> EntryTable:
        position: dict[sp.Expr, int] = {}
        relabel = np.array([position.setdefault(e, len(position)) for e in expressions], dtype=int)
        index = relabel[np.asarray(index, dtype=int)]
        used = np.unique(index)
        ordered = list(position)
        first = dict(zip(reversed(relabel.tolist()), reversed(names), strict=False))
        return cls(
            tuple(ordered[i] for i in used),
            np.searchsorted(used, index),
            dict(functions),
            tuple(first[i] for i in used) if names else (),
        )

    def __getitem__(self, key: tuple[int, int]) -> sp.Expr:
        return self.values[self.index[key]]

    def combine(self, labels: np.ndarray, rule: Callable[[sp.Expr, int], sp.Expr]) -> EntryTable:
        """A new table with entries ``rule(value, label)``, evaluated once per distinct pair.

        ``labels`` (rows, columns) are small integers that tell apart the entries which the rule
        treats differently, for example the class whose weight multiplies the entry.
        """
        pairs, inverse = np.unique(
            np.stack([self.index.ravel(), np.asarray(labels).ravel()]), axis=1, return_inverse=True
        )
        expressions = [rule(self.values[i], int(j)) for i, j in pairs.T]
        return self._merged(expressions, inverse.reshape(self.index.shape), self.functions)

    def matrix(self) -> sp.Matrix:
        """The dense SymPy matrix; meant for small tables."""
        rows, columns = self.index.shape
        return sp.Matrix(rows, columns, lambda k, l: self[k, l])

    def __call__(self, times: np.ndarray) -> np.ndarray:
        """Values at the times, shape (time, rows, columns), float64, checked real and finite."""
        return self.distinct(times)[..., self.index]

    def distinct(self, times: np.ndarray) -> np.ndarray:
        """The distinct values at the times, shape (time, value), float64, checked real and finite."""
        times = np.asarray(times, dtype=np.float64)
        distinct = np.empty((*times.shape, len(self.values)))
        formulas = []
        for position, value in enumerate(self.values):
            if value.is_Rational or value.is_Float:
                distinct[..., position] = float(value)
            else:
                formulas.append(position)
        if not self._fill_together(formulas, times, distinct):
            for position in formulas:
                name = self.names[position] if self.names else "kernel entry"
                distinct[..., position] = Formula(self.values[position], self.functions)(
                    times, name
                )
        return distinct

    def _fill_together(self, formulas: list[int], times: np.ndarray, out: np.ndarray) -> bool:
        """Evaluate many formulas by one compiled function; False where each must be asked alone.

        Compiling ten thousand entries one by one takes minutes. Anything unusual (a callable, a
        value that is not real and finite) is left to the formulas, whose errors name it.
        """
        if len(formulas) < MANY or self.functions:
            return False
        expressions = tuple(self.values[position] for position in formulas)
        if any(expression.free_symbols - {TIME} for expression in expressions):
            return False
        try:
            with np.errstate(all="ignore"):
                values = _compile_all(expressions)(times)
                for position, value in zip(formulas, values, strict=True):
                    out[..., position] = value
        except (TypeError, ValueError, ZeroDivisionError, OverflowError, NameError):
            return False
        return bool(np.isfinite(out[..., formulas]).all())

    def places(
        self, start: float, end: float, values: Mapping[str, float] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Switches and peaks of all values, as :mod:`lesde.switches` finds them."""
        values = values or {}
        return (
            switches(self.values, self.functions, start, end, values),
            peaks(self.values, start, end, values),
        )

    @property
    def is_constant(self) -> bool:
        """Whether no entry depends on time."""
        return all(TIME not in value.free_symbols for value in self.values)
