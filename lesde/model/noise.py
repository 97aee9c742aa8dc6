"""The diffusion σ_k of a model: numbers or functions of time, in any allowed shape, with the integrals of σσᵀ."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import sympy as sp

from lesde.checks import bare_array, check_finite_array, check_real, shown
from lesde.errors import Diverged
from lesde.model.formula import TIME, EntryTable, Formula, Parameters, parse_formula, rational
from lesde.model.quadrature import Panels, integrate, resolve

__all__ = ["Noise", "finite_variance", "read_noise"]

LARGEST_SQUARE = 2.0**900
"""Larger ones are scaled down to be resolved."""


def read_noise(value: Any, n_classes: int, n_features: int, parameters: Parameters = None) -> Noise:
    """The argument ``noise`` of a model, as :class:`lesde.LESDE` documents it."""
    parse_formula("noise", 0, parameters)  # checks the parameters, also where no formula uses them
    given = value.given if isinstance(value, Noise) else value
    try:
        entries = bare_array("noise", given)
    except TypeError:  # rows of unequal length, or too many levels
        try:
            entries = np.array(given, dtype=object)
        except (TypeError, ValueError):
            raise TypeError(
                f"noise must be a number, a formula or a callable, or an array of them; got {shown(given)}."
            ) from None
    if entries.dtype.kind not in "biufc":
        # From the original: an array of texts and numbers holds the numbers as texts.
        entries = np.array(given, dtype=object)
        entries = _read_formulas(entries, n_classes, n_features, parameters)
    if entries.dtype != object:
        plain = given if np.ndim(entries) == 0 and isinstance(given, complex | bool) else entries
        entries = _read_numbers(plain, n_classes, n_features)
    entries.setflags(write=False)
    return Noise(entries, n_classes, n_features)


def _read_formulas(
    entries: np.ndarray, n_classes: int, n_features: int, parameters: Parameters
) -> np.ndarray:
    """An array of formulas, or of numbers where every formula is just a number."""
    K, p = n_classes, n_features
    nested = entries.ndim < 4 and [e for e in entries.flat if isinstance(e, list | tuple)]
    if nested:
        raise ValueError(
            f"noise must be a full table, with rows of equal length; got {shown(nested[0])} among its rows."
        )
    if entries.shape not in [(), (K,), (p, p), (K, p, p)]:
        raise ValueError(
            f"noise must be one value or have shape ({K}) or ({p}, {p}) or ({K}, {p}, {p}); got shape "
            f"{entries.shape[:4]}{'…' * (entries.ndim > 4)}."
        )
    known: dict[Any, Formula] = {}
    formulas = np.empty(entries.shape, dtype=object)
    for index in np.ndindex(entries.shape):
        entry = entries[index]
        key = (type(entry), entry if isinstance(entry, str | int | float) else id(entry))
        if key not in known:
            # A callable is written sigma(t), sigma_1(t) for class 1, sigma_12(t) for an entry of a matrix.
            ends = "".join(f"_{i + 1}" for i in index)
            if len(index) >= 2 and max(index) < 9:
                ends = "".join(f"_{i + 1}" for i in index[:-2]) + f"_{index[-2] + 1}{index[-1] + 1}"
            known[key] = parse_formula(_entry_name(index), entry, parameters, f"sigma{ends}")
        formulas[index] = known[key]
    numbers = [
        float(formula.expression) if not _is_open(formula) else None for formula in formulas.flat
    ]
    if None not in numbers:
        return np.array(numbers, dtype=np.float64).reshape(entries.shape)
    if entries.ndim < 2:
        for i, number in enumerate(numbers):
            if number is not None and number < 0:
                raise _negative(number, i)
    return formulas


def _is_open(formula: Formula) -> bool:
    """True if it is more than a number: it contains time, an open name or a callable."""
    return TIME in formula.expression.free_symbols or bool(formula.unresolved())


def _read_numbers(value: Any, n_classes: int, n_features: int) -> np.ndarray:
    if np.ndim(value) == 0:
        return np.array(check_real("noise", np.asarray(value).item(), 0.0))
    p = n_features
    array = check_finite_array("noise", value, [(n_classes,), (p, p), (n_classes, p, p)])
    if array.ndim == 1 and (array < 0).any():
        k = int(np.argmax(array < 0))
        raise _negative(array[k], k)
    return array.copy()


def _negative(value: float, k: int) -> ValueError:
    return ValueError(
        f"noise must not be negative; got {value:g} for class {k}. Noise is the diffusion σ, whose square "
        f"is a variance per unit time."
    )


def _entry_name(index: tuple[int, ...]) -> str:
    """The name of an entry in error messages: noise, noise[1], noise[0][2]."""
    return "noise" + "".join(f"[{i}]" for i in index)


@dataclass(frozen=True, eq=False)
class Noise:
    """σ_k(t) of every class, per square root of time: the factor of dW in the LE-SDE.

    ``given``, of shape (), (K,), (p, p) or (K, p, p), holds float64 numbers; or, where an entry is a formula,
    a Formula each. Values that depend on time raise ValueError where they are negative, not finite or have no
    number yet, with their name and the time.
    """

    given: np.ndarray
    n_classes: int
    n_features: int

    def scaled(self, factor: sp.Expr) -> Noise:
        """The noise factor·σ_k, for a number without free symbols."""
        if factor == 1:
            return self
        if self.is_numeric:
            return Noise(self.given * float(factor), self.n_classes, self.n_features)
        given = np.empty(self.given.shape, dtype=object)
        for index in np.ndindex(given.shape):
            formula = self.given.item(*index)
            given[index] = Formula(factor * formula.expression, formula.functions)
        return Noise(given, self.n_classes, self.n_features)

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
        formulas = dict(zip(names, self.given.flat, strict=True))
        index = np.arange(len(names)).reshape(self.given.shape or (1,))
        return EntryTable.from_formulas(formulas, index)

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

    def _evaluated(self, times: np.ndarray) -> np.ndarray:
        """The entries in the smallest shape, (time, 1 or K[, p, p]), checked."""
        if self.is_numeric:
            values = np.array(self._distinct[0])[self._indices]
            return np.broadcast_to(values, (len(times), *values.shape))
        asked = np.zeros(1) if self.is_constant else times
        values = self.table.distinct(asked)[:, self._indices]
        if self.given.ndim < 2 and (values < 0).any():
            i, k = np.argwhere(values < 0)[0]
            raise ValueError(
                f"noise must not be negative at any time; {self._name(k)} is {values[i, k]:g} at t = "
                f"{times[i]:g}. Noise is the diffusion σ, whose square is a variance per unit time."
            )
        return np.broadcast_to(values, (len(times), *values.shape[1:]))

    def scale(self, times: Any) -> np.ndarray:
        """σ_k at the times, shape (time, class), float64, where every factor is σ_k times the identity."""
        if not self.is_isotropic:
            raise ValueError("noise has p×p factors, which no single number per class stands for.")
        times = np.asarray(times, dtype=np.float64)
        return np.array(np.broadcast_to(self._evaluated(times), (len(times), self.n_classes)))

    def factor(self, times: Any) -> np.ndarray:
        """σ_k at the times, shape (time, class, feature, feature), float64."""
        K, p = self.n_classes, self.n_features
        if self.is_isotropic:
            return self.scale(times)[:, :, None, None] * np.eye(p)
        times = np.asarray(times, dtype=np.float64)
        return np.array(np.broadcast_to(self._evaluated(times), (len(times), K, p, p)))

    def covariance(self, times: Any) -> np.ndarray:
        """σ_k σ_kᵀ at the times, per sample and unit time, shape (time, class, feature, feature)."""
        factor = self.factor(times)
        with np.errstate(over="ignore", invalid="ignore"):
            return factor @ np.swapaxes(factor, -1, -2)

    def square(self, times: Any) -> np.ndarray:
        """σ² or σσᵀ in the smallest shape: (time, 1 or class), or (time, 1 or class, feature, feature).

        The first where :attr:`is_isotropic`; one class stands for all where :attr:`is_shared`.
        """
        values = self._evaluated(np.asarray(times, dtype=np.float64))
        with np.errstate(over="ignore", invalid="ignore"):  # its sum raises Diverged
            return values**2 if self.is_isotropic else values @ np.swapaxes(values, -1, -2)

    def _flat_square(self, times: np.ndarray) -> np.ndarray:
        """σσᵀ with one axis for its entries, shape (time, 1 or class, entry)."""
        square = self.square(times)
        return square.reshape(*square.shape[:2], -1)

    def integrated_scale(self, times: Any) -> np.ndarray:
        """∫ σ_k² dt between successive times, shape (interval, class), float64, to rounding.

        Only where :attr:`is_isotropic`. Diverged where the integral up to some time overflows.
        """
        times = np.asarray(times, dtype=np.float64)
        self.scale(times)  # errors at the times first
        return np.array(
            np.broadcast_to(self._integral(times)[..., 0], (len(times) - 1, self.n_classes))
        )

    def integrated(self, times: Any) -> np.ndarray:
        """∫ σ_k σ_kᵀ dt between successive times, (interval, class, feature, feature), to rounding."""
        K, p = self.n_classes, self.n_features
        if self.is_isotropic:
            return self.integrated_scale(times)[:, :, None, None] * np.eye(p)
        times = np.asarray(times, dtype=np.float64)
        self.factor(times)
        whole = self._integral(times)
        whole = whole.reshape(*whole.shape[:2], p, p)
        return np.array(np.broadcast_to(whole, (len(times) - 1, K, p, p)))

    def check_variance(self, times: np.ndarray) -> None:
        """Raise Diverged where the variance that noise has added overflows, at the first such time."""
        self._integral(times)

    def _integral(self, times: np.ndarray) -> np.ndarray:
        """∫ σσᵀ dt between successive times, (interval, 1 or class, entry)."""
        with np.errstate(over="ignore", invalid="ignore"):
            if self.is_constant or len(times) == 1:
                whole = np.diff(times)[:, None, None] * self._flat_square(times[:1])
            else:
                whole = integrate(self._flat_square, self.panels(times), len(times) - 1)
            return finite_variance(whole, times)

    def panels(
        self,
        windows: np.ndarray,
        kept: np.ndarray | None = None,
        values: Mapping[str, float] | None = None,
        square: Callable[[np.ndarray], np.ndarray] | None = None,
    ) -> Panels:
        """Panels on which σσᵀ is resolved; arguments and errors as for :func:`lesde.model.quadrature.resolve`.

        Free names have the given values, with which ``square`` evaluates σσᵀ. Diverged, with the end of the
        window, where it overflows.
        """
        places = self.places(float(windows[0]), float(windows[-1]), values)
        square = square or self._flat_square

        def scaled(times: np.ndarray, shift: int) -> np.ndarray:
            found = square(times)
            bad = ~np.isfinite(found).all((1, 2))
            if bad.any():
                raise _overflow(windows[np.searchsorted(windows, times[bad].min())])
            found = np.ldexp(found, shift)
            if found.max() > LARGEST_SQUARE:
                raise OverflowError
            return found

        try:
            return resolve(partial(scaled, shift=0), windows, *places, self._name, kept)
        except OverflowError:  # sums of so large numbers are not finite: resolve a part of each
            return resolve(partial(scaled, shift=-256), windows, *places, self._name, kept)

    def places(
        self, start: float, end: float, values: Mapping[str, float] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Switches and peaks of the formulas, as from :meth:`EntryTable.places`."""
        return self.table.places(start, end, values)

    def _name(self, k: int, _: int = 0) -> str:
        """The user's name for the noise of a class, for error messages."""
        index = (k,) if self.given.ndim in (1, 3) else ()
        formula = f" = {self.given.item(*index).expression}" if self.given.ndim < 2 else ""
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
        plain = np.empty(self.given.shape, dtype=object)
        for index in np.ndindex(self.given.shape):
            expression = self.given.item(*index).expression
            plain[index] = float(expression) if expression.is_number else str(expression)
        return plain.tolist()

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
