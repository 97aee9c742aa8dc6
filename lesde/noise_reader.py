"""Reading the argument ``noise`` of a model: numbers, formulas and callables in any allowed shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import sympy as sp

from lesde.checks import bare_array, check_finite_array, check_real, shown
from lesde.formula import TIME, Formula, parse_formula

__all__ = ["Parameters", "entry_name", "read_entries"]

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
