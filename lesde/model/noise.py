"""The diffusion σ_k of a model: numbers or functions of time, in any allowed shape, with the integrals of σσᵀ."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import sympy as sp

from lesde.checks import bare_array, check_finite_array
from lesde.errors import Diverged
from lesde.model.formula import EntryTable, Formula, Parameters, parse_formula, rational
from lesde.model.quadrature import Panels, integrate, resolve


def read_noise(value: Any, n_classes: int, n_features: int, parameters: Parameters = None) -> Noise:
    """The argument ``noise`` of a model, as :class:`lesde.LESDE` documents it."""
    parse_formula("noise", 0, parameters)  # checks the parameters, also where no formula uses them
    given = value.given if isinstance(value, Noise) else value
    K, p = n_classes, n_features
    entries = bare_array("noise", given)
    if entries.dtype.kind in "biufc":
        entries = check_finite_array("noise", given, [(K,), (p, p), (K, p, p), ()]).copy()
        numbers = entries
    else:
        # From the original: an array of texts and numbers holds the numbers as texts.
        entries = np.array(given, dtype=object)
        if entries.shape not in [(), (K,), (p, p), (K, p, p)]:
            wanted = f"one value or of shape ({K},) or ({p}, {p}) or ({K}, {p}, {p})"
            raise ValueError(f"noise must be {wanted}; got shape {entries.shape[:4]}.")
        entries = _read_formulas(entries, parameters)
        parts = [formula.expression for formula in entries.flat]
        plain = [float(part) if part.is_number else np.nan for part in parts]
        numbers = np.reshape(plain, entries.shape)
        entries = entries if np.isnan(numbers).any() else numbers
    if numbers.ndim < 2 and (numbers < 0).any():
        k = int(np.argmax(numbers < 0))
        raise _negative("noise", numbers.flat[k], f"for class {k}")
    entries.setflags(write=False)
    return Noise(entries, n_classes, n_features)


def _read_formulas(entries: np.ndarray, parameters: Parameters) -> np.ndarray:
    """An array of formulas, equal entries the same one."""
    known: dict[Any, Formula] = {}
    found = np.empty(entries.shape, dtype=object)
    for index in np.ndindex(entries.shape):
        entry = entries[index]
        key = (type(entry), entry if isinstance(entry, str | int | float) else id(entry))
        if key not in known:
            # A callable is written sigma(t), sigma_1(t) for class 1, sigma_1_2(t) for an entry of a matrix.
            symbol = "sigma" + "".join(f"_{i + 1}" for i in index)
            known[key] = parse_formula(_entry_name(index), entry, parameters, symbol)
        found[index] = known[key]
    return found


def _negative(name: str, value: float, where: str) -> ValueError:
    return ValueError(
        f"noise must not be negative at any time; {name} is {value:g} {where}. Noise is the diffusion σ, "
        f"whose square is a variance per unit time."
    )


def _entry_name(index: tuple[int, ...]) -> str:
    """The name of an entry in error messages: noise, noise[1], noise[0][2]."""
    return "noise" + "".join(f"[{i}]" for i in index)


@dataclass(frozen=True, eq=False)
class Noise:
    """σ_k(t) of every class, per square root of time: the factor of dW in the LE-SDE.

    ``given``, of shape (), (K,), (p, p) or (K, p, p), holds float64 numbers; or, where an entry is a formula,
    a Formula each.
    """

    given: np.ndarray
    n_classes: int
    n_features: int

    def scaled(self, factor: sp.Expr) -> Noise:
        """The noise factor·σ_k, for a number without free symbols."""
        if factor == 1:
            return self
        if self.is_numeric:
            return replace(self, given=self.given * float(factor))
        given = self.given.copy()
        given.ravel()[:] = [Formula(factor * f.expression, f.functions) for f in given.flat]
        return replace(self, given=given)

    @property
    def is_numeric(self) -> bool:
        """True if the factors are plain numbers."""
        return self.given.dtype != object

    @cached_property
    def is_constant(self) -> bool:
        """True if no factor is a function of time."""
        return self.is_numeric or self.table.is_constant

    @property
    def is_isotropic(self) -> bool:
        """True if every factor is a multiple of the identity matrix."""
        return self._indices.ndim == 1

    @cached_property
    def is_shared(self) -> bool:
        """True if all classes have the same factor."""
        return len(self._indices) == 1

    @cached_property
    def table(self) -> EntryTable:
        """The formulas in the shape in which they were given; one value has the shape (1,)."""
        names = [_entry_name(index) for index in np.ndindex(self.given.shape)]
        index = np.arange(len(names)).reshape(self.given.shape or (1,))
        return EntryTable.from_formulas(dict(zip(names, self.given.flat, strict=True)), index)

    @cached_property
    def _distinct(self) -> tuple[list[Any], np.ndarray]:
        """The distinct entries, and where each stands in ``given``: equal entries are equal labels."""
        if self.is_numeric:
            values, labels = np.unique(self.given, return_inverse=True)
            return values.tolist(), labels.reshape(self.given.shape)
        return list(self.table.values), self.table.index.reshape(self.given.shape)

    @cached_property
    def _indices(self) -> np.ndarray:
        """Labels of the entries in the smallest shape that holds all: (1 or K,) or (1 or K, p, p)."""
        values, labels = self._distinct
        if labels.ndim < 2:
            labels = labels.reshape(-1)
        else:
            labels = labels.reshape(-1, self.n_features, self.n_features)
            zero = np.array([value == 0 for value in values])[labels]
            diagonal = np.eye(self.n_features, dtype=bool)
            if np.where(diagonal, labels == labels[:, :1, :1], zero).all():
                labels = labels[:, 0, 0]
        return labels[:1] if (labels == labels[:1]).all() else labels

    def _evaluated(self, times: Any) -> np.ndarray:
        """The entries in the smallest shape, (time, 1 or K[, p, p]), checked."""
        times = np.asarray(times, dtype=np.float64)
        if self.is_numeric:
            values = np.array(self._distinct[0])[self._indices]
            return np.broadcast_to(values, (len(times), *values.shape))
        asked = np.zeros(1) if self.is_constant else times
        values = self.table.distinct(asked)[:, self._indices]
        if self.given.ndim < 2 and (values < 0).any():
            i, k = np.argwhere(values < 0)[0]
            raise _negative(self._name(k), values[i, k], f"at t = {times[i]:g}")
        return np.broadcast_to(values, (len(times), *values.shape[1:]))

    def scale(self, times: Any) -> np.ndarray:
        """σ_k at the times, shape (time, class), float64, where every factor is σ_k times the identity."""
        if not self.is_isotropic:
            raise ValueError("noise has p×p factors, which no single number per class stands for.")
        values = self._evaluated(times)
        return np.array(np.broadcast_to(values, (len(values), self.n_classes)))

    def factor(self, times: Any) -> np.ndarray:
        """σ_k at the times, shape (time, class, feature, feature), float64."""
        return self._full(self._evaluated(times))

    def _full(self, values: np.ndarray) -> np.ndarray:
        """Values in the smallest shape as matrices for every class."""
        p = self.n_features
        if self.is_isotropic:
            values = values[:, :, None, None] * np.eye(p)
        return np.array(np.broadcast_to(values, (len(values), self.n_classes, p, p)))

    def square(self, times: Any) -> np.ndarray:
        """σ² (time, 1 or class) where :attr:`is_isotropic`, else σσᵀ (time, 1 or class, feature, feature)."""
        values = self._evaluated(times)
        with np.errstate(over="ignore", invalid="ignore"):  # its sum raises Diverged
            return values**2 if self.is_isotropic else values @ np.swapaxes(values, -1, -2)

    def _flat_square(self, times: np.ndarray) -> np.ndarray:
        """σσᵀ with one axis for its entries, shape (time, 1 or class, entry)."""
        square = self.square(times)
        return square.reshape(*square.shape[:2], -1)

    def integrated_scale(self, times: Any) -> np.ndarray:
        """∫ σ_k² dt between successive times, (interval, class), to rounding, where :attr:`is_isotropic`."""
        whole = self._integral(times)
        return np.array(np.broadcast_to(whole, (len(whole), self.n_classes)))

    def integrated(self, times: Any) -> np.ndarray:
        """∫ σ_k σ_kᵀ dt between successive times, (interval, class, feature, feature), to rounding."""
        return self._full(self._integral(times))

    def check_variance(self, times: np.ndarray) -> None:
        """Raise Diverged where the variance that noise has added overflows, at the first such time."""
        self._integral(times)

    def _integral(self, times: Any) -> np.ndarray:
        """∫ σσᵀ dt between successive times, in the shape of :meth:`square`."""
        times = np.asarray(times, dtype=np.float64)
        at_times = self.square(times)  # errors at the times first
        with np.errstate(over="ignore", invalid="ignore"):
            if self.is_constant or len(times) == 1:
                whole = np.diff(times).reshape(-1, *(1,) * (at_times.ndim - 1)) * at_times[:1]
            else:
                whole = integrate(self._flat_square, self.panels(times), len(times) - 1)
                whole = whole.reshape(-1, *at_times.shape[1:])
            return finite_variance(whole, times)

    def panels(
        self,
        windows: np.ndarray,
        kept: np.ndarray | None = None,
        values: Mapping[str, float] | None = None,
        square: Callable[[np.ndarray], np.ndarray] | None = None,
    ) -> Panels:
        """Panels on which σσᵀ is resolved, as by :func:`lesde.model.quadrature.resolve`; Diverged where it overflows.

        Free names have the given values, with which ``square`` evaluates σσᵀ.
        """

        def finite(times: np.ndarray) -> np.ndarray:
            found = (square or self._flat_square)(times)
            bad = ~np.isfinite(found).all((1, 2))
            if bad.any():
                raise _overflow(windows[np.searchsorted(windows, times[bad].min())])
            return found

        places = self.table.places(float(windows[0]), float(windows[-1]), values)
        return resolve(finite, windows, *places, self._name, kept)

    def _name(self, k: int, _: int = 0) -> str:
        """The user's name for the noise of a class, for error messages."""
        index = (k,) if self.given.ndim in (1, 3) else ()
        formula = f" = {self.expression(k)}" if self.given.ndim < 2 else ""
        return f"{_entry_name(index)}{formula}"

    def expression(self, k: int) -> sp.Expr | sp.Matrix:
        """σ_k as SymPy knows it: an expression where it is a multiple of the identity, else a matrix."""
        row = self._indices[k if len(self._indices) > 1 else 0]
        values = [rational(v) if self.is_numeric else v for v in self._distinct[0]]
        if self.is_isotropic:
            return values[row]
        p = self.n_features
        return sp.Matrix(p, p, lambda i, j: values[row[i, j]])

    def describe(self) -> Any:
        """The noise as numbers and text in nested lists, for the attributes of a dataset."""
        if self.is_numeric:
            return self.given.tolist()
        parts = [formula.expression for formula in self.given.flat]
        plain = [float(part) if part.is_number else str(part) for part in parts]
        return np.array(plain, dtype=object).reshape(self.given.shape).tolist()

    def __repr__(self) -> str:
        return f"array{self.given.shape}" if self.given.ndim else repr(self.describe())


def finite_variance(added: np.ndarray, times: np.ndarray) -> np.ndarray:
    """The (co)variance that noise adds between successive times (interval, …), checked: Diverged at overflow."""
    bad = ~np.isfinite(np.cumsum(added, axis=0)).all(tuple(range(1, added.ndim)))
    if bad.any():
        raise _overflow(times[1 + int(np.argmax(bad))])
    return added


def _overflow(time: float) -> Diverged:
    return Diverged(
        time, "the variance that noise adds", "weaken the noise, or end `times` earlier"
    )
