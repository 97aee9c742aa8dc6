"""Where formulas in time switch, and where narrow peaks of theirs may hide."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import sympy as sp
from sympy.core.function import AppliedUndef
from sympy.core.relational import Relational

from lesde.model.compiled import compiled

SAMPLES = 4097
"""Points at which a function is looked at first; between two of them it is taken to turn once at most."""
HALVINGS = 70
TRISECTIONS = 45


def places(
    expressions: Sequence[sp.Expr],
    time: sp.Symbol,
    functions: Mapping[str, Callable[..., Any]],
    start: float,
    end: float,
    values: Mapping[str, float],
) -> tuple[np.ndarray, np.ndarray]:
    """Times of jumps and kinks of expressions, and of possible narrow peaks; ``values`` are those of free names."""
    parts = [_parts(expression, time) for expression in expressions]
    conditions = {condition for own, _ in parts for condition in own}
    arguments = {argument for _, own in parts for argument in own}
    jumps, peaks = [np.empty(0)], [np.empty(0)]
    for label, part in conditions | {(np.sign, argument) for argument in arguments}:
        names = sorted(part.free_symbols - {time}, key=str)
        numbers = [values[str(name)] for name in names]
        function = compiled(part, [time, *names], functions=functions)
        changes, turns = _search(function, numbers, label, start, end)
        if (label, part) in conditions:
            jumps.append(changes)
        if part in arguments:
            peaks += [changes, turns]
    found = (np.unique(np.concatenate(each)) for each in (jumps, peaks))
    inside = [each[(each > start) & (each < end)] for each in found]
    return inside[0], inside[1]


@lru_cache(maxsize=4096)
def _parts(
    expression: sp.Expr, time: sp.Symbol
) -> tuple[frozenset[tuple[Callable[..., Any], sp.Expr]], frozenset[sp.Expr]]:
    """Conditions, between whose changes the expression is smooth, and arguments of functions and powers.

    A condition is a function and what it takes to labels, ``np.sign`` or ``np.floor``. Where an argument or
    its slope is zero there may be a narrow peak or step: at 5.3 in exp(-1e6*(t - 5.3)**2),
    tanh(1e6*(t - 5.3)) and 1/(1 + 1e6*(t - 5.3)**2).
    """
    found: set[tuple[Callable[..., Any], sp.Expr]] = set()
    inner: set[sp.Basic] = set()
    for node in sp.preorder_traversal(expression):
        kind, parts = node.func, node.args
        if isinstance(node, Relational):
            found.add((np.sign, parts[0] - parts[1]))
        elif kind in (sp.Heaviside, sp.sign, sp.Abs, sp.log):
            found.add((np.sign, parts[0]))
        elif kind in (sp.Max, sp.Min):
            found |= {(np.sign, a - b) for a, b in itertools.combinations(parts, 2)}
        elif kind in (sp.floor, sp.ceiling, sp.frac):
            found.add((np.floor, parts[0]))
        elif kind is sp.Mod:
            found.add((np.floor, parts[0] / parts[1]))
        elif kind is sp.Pow and not (parts[1].is_Integer and parts[1] > 0):
            found.add((np.sign, parts[0]))  # a root, or a pole within a bounded function
        elif kind is sp.tan:
            found.add((np.sign, sp.cos(parts[0])))
        if isinstance(node, sp.Function | sp.Pow) and not isinstance(
            node, AppliedUndef | sp.Piecewise
        ):
            inner.update(parts)
    return (
        frozenset((label, part) for label, part in found if time in part.free_symbols),
        frozenset(a for a in inner if isinstance(a, sp.Expr) and time in a.free_symbols),
    )


def _search(
    function: Callable[..., Any], numbers: Any, label: Callable[..., Any], start: float, end: float
) -> tuple[np.ndarray, np.ndarray]:
    """Times at which the label of a function's value changes, and those at which the function turns."""

    def amount(times: np.ndarray) -> np.ndarray:
        with np.errstate(all="ignore"):
            return np.nan_to_num(np.real(function(times, *numbers)).astype(float), nan=-np.inf)

    samples = np.linspace(start, end, SAMPLES)
    turns = _turns(amount, samples)
    samples = np.union1d(samples, turns)
    labels = label(amount(samples))
    at = np.flatnonzero(labels[1:] != labels[:-1])
    left, right, before = samples[at], samples[at + 1], labels[at]
    # Bisection, for all brackets at once, to the first floating-point number with another label.
    for _ in range(HALVINGS if len(at) else 0):
        middle = left + (right - left) / 2
        same = label(amount(middle)) == before
        left, right = np.where(same, middle, left), np.where(same, right, middle)
    return right, turns


def _turns(amount: Callable[[np.ndarray], np.ndarray], samples: np.ndarray) -> np.ndarray:
    """Where the function is largest or smallest between samples, by trisection."""
    sizes = amount(samples)
    rises, falls = (sizes[1:-1] > sizes[:-2]), (sizes[1:-1] < sizes[:-2])
    inner = (rises & (sizes[1:-1] >= sizes[2:])) | (falls & (sizes[1:-1] <= sizes[2:]))
    left, right, sign = samples[:-2][inner], samples[2:][inner], np.where(rises, 1, -1)[inner]
    for _ in range(TRISECTIONS if len(left) else 0):
        first, second = left + (right - left) / 3, right - (right - left) / 3
        lower = sign * amount(first) < sign * amount(second)
        left, right = np.where(lower, first, left), np.where(lower, right, second)
    return left
