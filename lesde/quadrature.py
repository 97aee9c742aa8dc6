"""Gauss-Legendre nodes with their Legendre series, and adaptive integrals of functions of time."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

__all__ = [
    "BOUNDED",
    "INTEGRATE",
    "LEGENDRE",
    "NODES",
    "POINTS",
    "RESOLVED",
    "WEIGHTS",
    "error_and_size",
    "integrate",
    "rounding_floor",
    "tail_and_size",
    "with_checks",
]

NODES = 16
# The last Legendre coefficients of a function, relative to its largest value, that count as zero.
RESOLVED = 3e-14
# How well a resolved series meets the function at the ends and between the nodes, relative likewise.
MEETS = 1e-11
# A panel whose part of the integral is so small may hide a jump.
NEGLIGIBLE = 1e-17
# A jump between two neighbouring floating-point times is at most so many times the mean; a pole is more.
BOUNDED = 1e4
# Panels of one interval at once; a function that needs more changes too often to be integrated like this.
MOST_PANELS = 50_000
# Values of the function at once, 8 bytes each.
MOST_VALUES = 2**23


def _gauss_legendre() -> tuple[np.ndarray, ...]:
    """Nodes and weights on [0, 1]; the matrices to Legendre coefficients and to integrals from 0."""
    x, w = np.polynomial.legendre.leggauss(NODES)
    # Integrate the Legendre interpolant exactly: ∫_{-1}^{x} P_j = (P_{j+1} − P_{j−1})/(2j+1).
    P = np.polynomial.legendre.legvander(x, NODES)
    degrees = np.arange(NODES)
    integrals = np.empty((NODES, NODES))
    integrals[:, 0] = x + 1
    for j in range(1, NODES):
        integrals[:, j] = (P[:, j + 1] - P[:, j - 1]) / (2 * j + 1)
    to_coefficients = (P[:, :NODES] * w[:, None]).T * (2 * degrees[:, None] + 1) / 2
    return (x + 1) / 2, w / 2, to_coefficients, integrals @ to_coefficients / 2


POINTS, WEIGHTS, LEGENDRE, INTEGRATE = _gauss_legendre()
# Both ends, and two points between any two nodes.
_CHECKS = np.concatenate(
    [[0.0, 1.0], POINTS[:-1] + np.diff(POINTS) / 3, POINTS[1:] - np.diff(POINTS) / 3]
)
_ALL = np.concatenate([POINTS, _CHECKS])
# From values at the nodes to those of the Legendre series at the checks.
_TO_CHECKS = np.polynomial.legendre.legvander(2 * _CHECKS - 1, NODES - 1) @ LEGENDRE


def with_checks(left: Any, width: Any, last: Any) -> np.ndarray:
    """Times of the nodes, then of both ends and points between the nodes, shape (panel, time).

    None lies beyond ``last``, where rounding would put the end of a panel.
    """
    left, width = np.asarray(left)[..., None], np.asarray(width)[..., None]
    return np.minimum(left + width * _ALL, np.asarray(last)[..., None])


def tail_and_size(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The last Legendre coefficients and the largest value of functions at the nodes.

    ``values`` is (panel, node, group, entry); both results are (panel, group).
    """
    tail = np.abs(np.einsum("cn,pnge->pcge", LEGENDRE[-2:], values)).max((1, 3))
    return tail, np.abs(values).max((1, 3))


def error_and_size(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How far the Legendre series of functions is from its end, and their largest value.

    ``values`` is (panel, time, group, entry), at the times of :func:`with_checks`; both results are
    (panel, group): a group is resolved as a whole, against its own size. The checks show what hides
    between the nodes, such as a boundary layer or a short pulse.
    """
    nodes, checks = values[:, :NODES], values[:, NODES:]
    tail, _ = tail_and_size(nodes)
    missed = np.abs(checks - np.einsum("cn,pnge->pcge", _TO_CHECKS, nodes)).max((1, 3))
    return np.maximum(tail, missed * (RESOLVED / MEETS)), np.abs(values).max((1, 3))


def rounding_floor(
    function: Callable[[np.ndarray], np.ndarray], times: np.ndarray, values: np.ndarray
) -> np.ndarray:
    """How much of the error can be due to the rounding of the times alone, (panel, group).

    At large times a fast formula, such as sin(1000*t), cannot be smoother than what moving the time
    to the next floating-point number changes. Zero where that change is a jump rather than rounding.
    """
    shape = values.shape
    with np.errstate(over="ignore"):
        moved = function(np.nextafter(times, np.inf).ravel()).reshape(shape)
    change = np.abs(moved - values).max((1, 3))
    return np.where(change <= 1e-3 * np.abs(values).max((1, 3)), 4 * change, 0.0)


def integrate(
    function: Callable[[np.ndarray], np.ndarray], edges: np.ndarray, name: str
) -> np.ndarray:
    """Integrals of functions of time between successive edges, to rounding.

    16-point Gauss-Legendre panels are halved until the Legendre series of the function has ended in
    each; jumps are enclosed until they do not matter.

    Parameters
    ----------
    function : callable
        Takes times (n,), returns (n, group, ...). Groups are resolved each against its own size.
    edges : ndarray, shape (time,)
        Strictly increasing.
    name : str
        What the function is, for error messages.

    Returns
    -------
    ndarray, shape (interval, group, ...)

    Raises
    ------
    ValueError
        Where the function has a pole, or changes too often.

    Notes
    -----
    Like any quadrature it sees the function at points only, 48 an interval at first: a pulse that
    lasts less than about 1/30 of the interval, with nothing before and after, can be missed unless an
    edge lies in it.
    """
    shape = function(edges[:1]).shape[1:]
    groups, entries = shape[0], math.prod(shape[1:])
    at_once = max(1, MOST_VALUES // (len(_ALL) * groups * entries))
    parts = [
        _integrate(function, edges[i : i + at_once + 1], name, groups, entries)
        for i in range(0, len(edges) - 1, at_once)
    ]
    return np.concatenate([np.zeros((0, groups, entries)), *parts]).reshape(-1, *shape)


def _integrate(
    function: Callable[[np.ndarray], np.ndarray],
    edges: np.ndarray,
    name: str,
    groups: int,
    entries: int,
) -> np.ndarray:
    """The integrals, shape (interval, group, entry), of all intervals together."""
    left, width, owner = edges[:-1], np.diff(edges), np.arange(len(edges) - 1)
    total = np.zeros((len(edges) - 1, groups, entries))
    while True:
        times = with_checks(left, width, edges[owner + 1])
        values = function(times.ravel()).reshape(*times.shape, groups, entries)
        estimate = width[:, None, None] * np.tensordot(WEIGHTS, values[:, :NODES], (0, 1))
        whole = total.copy()
        np.add.at(whole, owner, estimate)
        reference = np.abs(whole).max(2)[owner]
        error, size = error_and_size(values)
        resolved = (error <= RESOLVED * size) | (size * width[:, None] <= NEGLIGIBLE * reference)
        unsure = np.flatnonzero(~resolved.all(1))
        if len(unsure):
            floor = rounding_floor(function, times[unsure], values[unsure])
            resolved[unsure] |= error[unsure] <= floor
        middle = left + width / 2
        atom = (middle <= left) | (middle >= left + width)
        if atom.any():
            mean = reference / (edges[owner + 1] - edges[owner])[:, None]
            resolved[atom] |= size[atom] <= BOUNDED * mean[atom]
        done = resolved.all(1)
        np.add.at(total, owner[done], estimate[done])
        if done.all():
            return total
        if (atom & ~done).any() or 2 * np.bincount(owner[~done]).max() > MOST_PANELS:
            at = float(left[np.argmax(atom & ~done)] if atom.any() else left[np.argmin(done)])
            raise ValueError(
                f"{name} changes too abruptly, or too often, to integrate near t = {at:g}; check "
                f"the formula there, or choose times that avoid the point."
            )
        keep, half = ~done, width[~done] / 2
        left = np.stack([left[keep], middle[keep]], 1).ravel()
        owner, width = np.repeat(owner[keep], 2), np.repeat(half, 2)
