"""The diffusion σ_k of a model: numbers or functions of time, with the integrals of σσᵀ."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import sympy as sp

from lesde.checks import bare_array, check_finite_array, check_real, shown
from lesde.errors import Diverged
from lesde.model.formula import TIME, EntryTable, Formula, parse_formula, rational
from lesde.model.quadrature import Panels, integrate, resolve

__all__ = ["Noise", "Parameters", "entry_name", "finite_variance", "read_entries", "read_noise"]


# --------------------------------------------------------------------------------------------------
# Reading the argument ``noise`` of a model: numbers, formulas and callables in any allowed shape.

Parameters = Mapping[str, float | None] | None


def read_entries(given: Any, n_classes: int, n_features: int, parameters: Parameters) -> np.ndarray:
    """The entries as float64 numbers; or, where one is a formula, as an object array of Formula.

    Arguments and errors as of :func:`lesde.noise.read_noise`; the shape is (), (K,), (p, p) or
    (K, p, p).
    """
    parse_formula("noise", 0, parameters)  # checks the parameters, also where no formula uses them
    shape, leaves = _shape_and_leaves(given)
    if not all(_is_number(leaf) for leaf in leaves):
        given = _formulas(shape, leaves, n_classes, n_features, parameters)
        if given.dtype == object:
            return given
    return _read_numbers(given, n_classes, n_features)


def _is_number(value: Any) -> bool:
    """Whether the value is left to the checks of numbers: complex ones are refused there."""
    if isinstance(value, np.ndarray | np.generic):
        return value.dtype.kind in "biufc"
    return isinstance(value, bool | int | float | complex)


def _shape_and_leaves(value: Any, depth: int = 0) -> tuple[tuple[int, ...], list[Any]]:
    """Shape and entries of nested sequences, arrays and SymPy matrices."""
    symbolic = isinstance(value, sp.MatrixBase | sp.NDimArray)
    if hasattr(value, "__array__") and not symbolic and not isinstance(value, str | sp.Basic):
        value = bare_array("noise", value)
        if value.dtype.kind in "biufc":
            return value.shape, [value]  # numbers are checked as an array
    if symbolic or isinstance(value, np.ndarray):
        value = value.tolist()
    if not isinstance(value, Sequence) or isinstance(value, str):
        return (), [value]
    if depth == 3:
        raise ValueError(
            f"noise must have at most three axes, (K, p, p); got {shown(value)} three levels deep."
        )
    parts = [_shape_and_leaves(item, depth + 1) for item in value]
    shapes = {shape for shape, _ in parts}
    if len(shapes) != 1:
        raise ValueError(
            f"noise must be a full table, with rows of equal length; got {shown(value)}."
        )
    leaves = [leaf for _, leaf_list in parts for leaf in leaf_list]
    return (len(value), *shapes.pop()), leaves


def _formulas(
    shape: tuple[int, ...],
    leaves: list[Any],
    n_classes: int,
    n_features: int,
    parameters: Parameters,
) -> np.ndarray:
    """An object array of formulas, or of numbers where every formula is just a number."""
    p = n_features
    allowed = [(), (n_classes,), (p, p), (n_classes, p, p)]
    if shape not in allowed:
        raise ValueError(
            f"noise must be one value or have shape ({n_classes}) or ({p}, {p}) or ({n_classes}, {p}, "
            f"{p}); got shape {shape}."
        )
    # Numeric arrays inside a nested list come as one leaf each.
    flat: list[Any] = []
    for leaf in leaves:
        flat += leaf.ravel().tolist() if isinstance(leaf, np.ndarray) else [leaf]
    known: dict[Any, Formula] = {}
    formulas = np.empty(shape, dtype=object)
    for index, leaf in zip(np.ndindex(shape), flat, strict=True):
        key = (type(leaf), leaf if isinstance(leaf, str | int | float) else id(leaf))
        if key not in known:
            known[key] = _formula(index, leaf, parameters)
        formulas[index] = known[key]
    if all(_is_plain(formula) for formula in known.values()):
        numbers = [float(formula.expression) for formula in formulas.ravel()]
        return np.array(numbers).reshape(shape)
    if len(shape) < 2:
        for i, formula in enumerate(formulas.ravel()):
            if _is_plain(formula) and float(formula.expression) < 0:
                _refuse_negative(float(formula.expression), (i,))
    return formulas


def entry_name(index: tuple[int, ...]) -> str:
    """What an entry is called in error messages: noise, noise[1], noise[0][2]."""
    return "noise" + "".join(f"[{i}]" for i in index)


def _formula(index: tuple[int, ...], value: Any, parameters: Parameters) -> Formula:
    # A callable is written sigma(t), sigma_1(t) for class 1, sigma_12(t) for an entry of a matrix.
    ends = "".join(f"_{i + 1}" for i in index)
    if len(index) >= 2 and max(index) < 9:
        ends = "".join(f"_{i + 1}" for i in index[:-2]) + f"_{index[-2] + 1}{index[-1] + 1}"
    return parse_formula(entry_name(index), value, parameters, f"sigma{ends}")


def _is_plain(formula: Formula) -> bool:
    """Whether the formula is a number: no time, no open name, no callable."""
    return TIME not in formula.expression.free_symbols and not formula.unresolved()


def _read_numbers(value: Any, n_classes: int, n_features: int) -> np.ndarray:
    if np.ndim(value) == 0:
        value = value.item() if isinstance(value, np.ndarray) else value
        return np.array(check_real("noise", value, 0.0))
    p = n_features
    array = check_finite_array("noise", value, [(n_classes,), (p, p), (n_classes, p, p)])
    if array.ndim == 1 and (array < 0).any():
        k = int(np.argmax(array < 0))
        _refuse_negative(array[k], (k,))
    return array.copy()


def _refuse_negative(value: float, index: tuple[int, ...]) -> None:
    where = f" for class {index[0]}" if index else ""
    raise ValueError(
        f"noise must not be negative; got {value:g}{where}. Noise is the diffusion σ, whose square is "
        f"a variance per unit time."
    )


# --------------------------------------------------------------------------------------------------

LARGEST_SQUARE = 2.0**900
"""Larger ones are scaled down to be resolved."""


@dataclass(frozen=True, eq=False)
class Noise:
    """σ_k(t) of every class, per square root of time: the factor of dW in the LE-SDE.

    Made by :class:`lesde.LESDE` from its argument ``noise``; see there for what may be given.

    Attributes
    ----------
    given : ndarray, shape (), (K,), (p, p) or (K, p, p)
        float64 numbers; or, where an entry is a formula, an object array of Formula.
    n_classes, n_features : int
        K and p.
    """

    given: np.ndarray
    n_classes: int
    n_features: int

    @property
    def is_numeric(self) -> bool:
        """Whether the factors are plain numbers."""
        return self.given.dtype != object

    @cached_property
    def is_constant(self) -> bool:
        """Whether no factor is a function of time."""
        return self.is_numeric or self._table.is_constant

    @property
    def is_isotropic(self) -> bool:
        """Whether every factor is a multiple of the identity matrix."""
        return self._indices.ndim == 1

    @cached_property
    def is_shared(self) -> bool:
        """Whether all classes have the same factor."""
        return len(self._indices) == 1

    @cached_property
    def _distinct(self) -> tuple[list[Any], np.ndarray]:
        """The distinct entries, and where each stands in ``given``: equal entries are equal labels."""
        if self.is_numeric:
            values, labels = np.unique(self.given, return_inverse=True)
            return values.tolist(), labels.reshape(self.given.shape)
        position: dict[sp.Expr, int] = {}
        flat = [position.setdefault(f.expression, len(position)) for f in self.given.ravel()]
        return list(position), np.array(flat, dtype=int).reshape(self.given.shape)

    @cached_property
    def _indices(self) -> np.ndarray:
        """Labels of the entries in the smallest shape that tells all: (1 or K,) or (1 or K, p, p)."""
        values, labels = self._distinct
        if labels.ndim < 2:
            return _smallest(labels.reshape(-1))
        labels = labels.reshape(-1, self.n_features, self.n_features)
        zero = np.array([value == 0 for value in values])[labels]
        own = labels[:, :1, :1]
        diagonal = np.eye(self.n_features, dtype=bool)
        isotropic = (np.where(diagonal, labels == own, zero)).all()
        return _smallest(labels[:, 0, 0] if isotropic else labels)

    @cached_property
    def _table(self) -> EntryTable:
        names = [entry_name(index) for index in np.ndindex(self.given.shape)]
        first = {formula.expression: i for i, formula in reversed([*enumerate(self.given.ravel())])}
        formulas = {
            names[first[value]]: self.given.ravel()[first[value]] for value in self._distinct[0]
        }
        return EntryTable.from_formulas(formulas, self._indices)

    @cached_property
    def _numbers(self) -> np.ndarray:
        """The entries in the smallest shape, where they do not depend on time."""
        if self.is_numeric:
            return np.array(self._distinct[0])[self._indices]
        return self._table(np.zeros(1))[0]

    def _evaluated(self, times: np.ndarray) -> np.ndarray:
        """The entries in the smallest shape, (time, 1 or K[, p, p]), checked."""
        if self.is_constant:
            return np.broadcast_to(self._numbers, (len(times), *self._numbers.shape))
        values = self._table(times)
        if self.given.ndim < 2 and (values < 0).any():
            i, k = np.argwhere(values < 0)[0]
            name = entry_name((k,) if self.given.ndim else ())
            raise ValueError(
                f"noise must not be negative at any time; {name} = {self._table.values[self._table.index[k]]} "
                f"is {values[i, k]:g} at t = {times[i]:g}. Noise is the diffusion σ, whose square is a "
                f"variance per unit time."
            )
        return values

    def scale(self, times: Any) -> np.ndarray:
        """σ_k at the times where every factor is σ_k times the identity, shape (time, class), float64.

        Raises
        ------
        ValueError
            Where a value is negative, not finite, or has no number; names it and the time. Where
            factors are no multiples of the identity: then see :meth:`factor`.
        """
        if not self.is_isotropic:
            raise ValueError("noise has p×p factors, which no single number a class stands for.")
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
        with np.errstate(over="ignore", invalid="ignore"):  # told as Diverged by what adds it up
            return values**2 if self.is_isotropic else values @ np.swapaxes(values, -1, -2)

    def integrated_scale(self, times: Any) -> np.ndarray:
        """∫ σ_k² dt between successive times, shape (interval, class), float64, to rounding.

        Only where :attr:`is_isotropic`; errors as of :meth:`scale`, where it cannot be integrated, and
        Diverged where the integral up to some time overflows.
        """
        times = np.asarray(times, dtype=np.float64)
        asked = self.scale(times[:1] if self.is_constant else times)  # errors at the times first
        if self.is_constant:
            with np.errstate(over="ignore"):
                return finite_variance(np.diff(times)[:, None] * asked[0] ** 2, times)
        whole = self._integral(times)[:, :, 0]
        return np.array(np.broadcast_to(whole, (len(times) - 1, self.n_classes)))

    def integrated(self, times: Any) -> np.ndarray:
        """∫ σ_k σ_kᵀ dt between successive times, (interval, class, feature, feature), to rounding.

        Errors as of :meth:`integrated_scale`.
        """
        K, p = self.n_classes, self.n_features
        if self.is_isotropic:
            return self.integrated_scale(times)[:, :, None, None] * np.eye(p)
        times = np.asarray(times, dtype=np.float64)
        asked = self.covariance(times[:1] if self.is_constant else times)
        if self.is_constant:
            return finite_variance(np.diff(times)[:, None, None, None] * asked[0], times)
        whole = self._integral(times)
        whole = whole.reshape(*whole.shape[:2], p, p)
        return np.array(np.broadcast_to(whole, (len(times) - 1, K, p, p)))

    def check_variance(self, times: np.ndarray) -> None:
        """Raise Diverged where the variance that noise has added overflows, at the first such time."""
        if not self.is_constant:
            self._integral(times)
            return
        square = self._flat_square(times[:1])[0]
        with np.errstate(over="ignore", invalid="ignore"):
            finite_variance(np.diff(times)[:, None, None] * square, times)

    def panels(
        self,
        windows: np.ndarray,
        kept: np.ndarray | None = None,
        values: Mapping[str, float] | None = None,
        square: Callable[[np.ndarray], np.ndarray] | None = None,
    ) -> Panels:
        """Panels on which σσᵀ is resolved; arguments and errors as of :func:`lesde.quadrature.resolve`.

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

        def name(k: int, _: int) -> str:
            return self.name(k)

        try:
            return resolve(partial(scaled, shift=0), windows, *places, name, kept)
        except OverflowError:  # sums of so large numbers are not finite: resolve a part of each
            return resolve(partial(scaled, shift=-256), windows, *places, name, kept)

    def places(
        self, start: float, end: float, values: Mapping[str, float] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Switches and peaks of the formulas, as of :meth:`lesde.entries.EntryTable.places`."""
        return self._table.places(start, end, values)

    def name(self, group: int) -> str:
        """What the user calls the noise of a class, for error messages."""
        if self.given.ndim == 0:
            return f"noise = {self.given.item().expression}"
        if self.given.ndim == 1:
            return f"{entry_name((group,))} = {self.given[group].expression}"
        return entry_name((group,)) if self.given.ndim == 3 else "noise"

    def _flat_square(self, times: np.ndarray) -> np.ndarray:
        """σσᵀ with one axis for its entries, shape (time, 1 or class, entry)."""
        square = self.square(times)
        return square.reshape(*square.shape[:2], -1)

    def _integral(self, times: np.ndarray) -> np.ndarray:
        """∫ σσᵀ dt between successive times, (interval, 1 or class, entry)."""
        if len(times) == 1:
            return np.empty((0, *self._flat_square(times).shape[1:]))
        panels = self.panels(times)
        with np.errstate(over="ignore"):
            whole = integrate(self._flat_square, panels, len(times) - 1)
            return finite_variance(whole, times)

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
        texts = [_plain(formula.expression) for formula in self.given.ravel()]
        return _nested(texts, self.given.shape)

    def __repr__(self) -> str:
        return f"array{self.given.shape}" if self.given.ndim else repr(self.describe())


def finite_variance(added: np.ndarray, times: np.ndarray) -> np.ndarray:
    """What noise adds to a (co)variance between successive times (interval, …); Diverged at overflow."""
    bad = ~np.isfinite(np.cumsum(added, axis=0)).reshape(len(added), -1).all(-1)
    if bad.any():
        raise _overflow(times[1 + int(np.argmax(bad))])
    return added


def _overflow(time: float) -> Diverged:
    return Diverged(
        time, "the variance that noise adds", "weaken the noise, or end `times` earlier"
    )


def read_noise(value: Any, n_classes: int, n_features: int, parameters: Parameters = None) -> Noise:
    """Read the argument ``noise`` of a model.

    Parameters
    ----------
    value : number, formula, callable, or array or nested list of such
        Of shape (), (K,), (p, p) or (K, p, p).
    n_classes, n_features : int
        K and p.
    parameters : mapping of str to number or None, optional
        Values of further names in the formulas.

    Raises
    ------
    TypeError, ValueError
        Naming ``noise``, what was given and what is allowed.
    """
    given = value.given if isinstance(value, Noise) else value
    entries = read_entries(given, n_classes, n_features, parameters)
    entries.setflags(write=False)
    return Noise(entries, n_classes, n_features)


def _smallest(labels: np.ndarray) -> np.ndarray:
    """One class for all, where all are alike."""
    return labels[:1] if (labels == labels[:1]).all() else labels


def _plain(expression: sp.Expr) -> float | str:
    """A number as a number, a formula as text."""
    return float(expression) if expression.is_number else str(expression)


def _nested(flat: list[Any], shape: tuple[int, ...]) -> Any:
    """Nested lists of a shape; one value for the shape ()."""
    if not shape:
        return flat[0]
    size = len(flat) // shape[0]
    return [_nested(flat[i * size : (i + 1) * size], shape[1:]) for i in range(shape[0])]
