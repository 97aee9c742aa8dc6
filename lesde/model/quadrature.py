"""Panels on which functions of time are resolved, and integrals over them, by Gauss and Legendre.

Every integral over time in the exact law goes through :func:`resolve`: given the places where the functions switch, it
halves the panels between them until the Legendre series of the functions has ended in each, and checks between the
nodes for features that the series misses.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

__all__ = ["INTEGRATE", "NODES", "POINTS", "WEIGHTS", "Panels", "integrate", "resolve"]


NODES = 16
# The last Legendre coefficients of a function, relative to its size, that count as zero.
RESOLVED = 3e-14
# How well a resolved series meets the function at the ends and between the nodes, relative likewise.
MEETS = 1e-11
# A panel whose part of the integral is so small, at the end of a singularity, need not be resolved.
NEGLIGIBLE = 1e-15
# A jump between two neighbouring floating-point times is at most so many times the mean; a pole is more.
BOUNDED = 1e4
# Panels of one call; a function that needs more changes too often to be integrated like this.
MOST_PANELS = 20_000
# Values of the functions at once, 8 bytes each.
MOST_VALUES = 2**22
# Points, evenly spread over all times, at which a function is compared with its series in the end.
PROBES = 8192
# The largest distance of two neighbouring points of a panel at which its function is known, per width.
SPACING = 1 / 30
# Values at an end are taken so many floating-point numbers within: the switch may be at the end.
INSIDE = 4


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


@dataclass(frozen=True)
class Panels:
    """Sub-intervals on which functions of time are resolved, in order and without gaps; each lies in one window."""

    starts: np.ndarray
    widths: np.ndarray
    owner: np.ndarray

    @property
    def nodes(self) -> np.ndarray:
        """Gauss-Legendre nodes, shape (panel, node)."""
        return self.starts[:, None] + self.widths[:, None] * POINTS


Function = Callable[[np.ndarray], np.ndarray]
"""Takes times (n,), returns (n, group, entry). Groups are resolved each against its own size."""


def resolve(
    function: Function,
    windows: np.ndarray,
    switches: np.ndarray,
    peaks: np.ndarray,
    name: Callable[[int, int], str],
    kept: np.ndarray | None = None,
) -> Panels:
    """Panels within windows, given by their edges, on which functions of time are resolved.

    What counts is the integral from the first time to the end of each window, in which a panel may err
    by a share of :data:`RESOLVED` in proportion to its width: rounding errors of a function that has all
    but died out are as small as what they are added to. ``kept`` says which share of the integral before each
    window still counts at its end; all by default.

    ``switches`` are places of jumps and kinks; at ``peaks``, and :data:`PROBES` even times (fewer where there are
    more than 500 entries), the series is compared with the function in the end. ValueError, with the ``name`` of
    a group's entry, where it has a pole or changes too often.
    """
    edges = _separate(windows, switches)
    found = _measure(function, edges[:-1], edges[1:])
    total = np.ptp(windows)
    while True:
        owner = np.searchsorted(windows, found.left, "right") - 1
        count = len(windows) - 1
        parts = np.zeros((count, found.area.shape[1]))
        np.add.at(parts, owner, found.area)
        if kept is None:
            parts = parts.cumsum(0)
        else:
            for i in range(1, count):
                parts[i] += kept[i] * parts[i - 1]
        mean = (parts / (windows[1:] - windows[0])[:, None])[owner]
        width = found.right - found.left
        allowed = np.maximum(RESOLVED * np.maximum(found.size, mean), found.floor)
        ok = found.error <= allowed
        ok |= found.gross * width[:, None] <= NEGLIGIBLE * parts[owner]
        middle = found.left + width / 2
        atom = (middle <= found.left) | (middle >= found.right)
        ok |= atom[:, None] & (found.size <= BOUNDED * mean)
        bad = ~ok.all(1)
        if not bad.any():
            hidden = _hidden(function, found, allowed, total, peaks)
            if hidden is None:
                order = np.argsort(found.left)
                return Panels(found.left[order], width[order], owner[order])
            bad, middle = hidden
        if (atom & bad).any() or len(bad) + bad.sum() > MOST_PANELS:
            worst = (found.error / np.where(allowed > 0, allowed, 1)) * bad[:, None]
            stuck = (atom & bad).any()
            i = int(np.argmax(atom & bad)) if stuck else int(worst.max(1).argmax())
            group = int(worst[i].argmax())
            values = function(_points(found.left[i : i + 1], found.right[i : i + 1]).ravel())
            entry = int(np.ptp(values[:, group], axis=0).argmax())
            where = f"near t = {found.left[i]:g}"
            if stuck:
                raise ValueError(
                    f"{name(group, entry)} changes too abruptly to integrate {where}: it has a singularity "
                    f"there. Let `times` end before that point or begin after it, or change the formula."
                )
            raise ValueError(
                f"{name(group, entry)} changes too often to integrate {where}: more than {MOST_PANELS} "
                f"sub-intervals do not resolve it. Where it loses its digits by cancellation, as 1 - tanh(t) "
                f"does at large t, write it without; else let `times` end earlier, or give a smoother function."
            )
        left = np.stack([found.left[bad], middle[bad]], 1).ravel()
        right = np.stack([middle[bad], found.right[bad]], 1).ravel()
        halves = _measure(function, left, right)
        found = _Measured(
            *(np.concatenate([old[~bad], new]) for old, new in zip(found, halves, strict=True))
        )


def _separate(windows: np.ndarray, switches: np.ndarray) -> np.ndarray:
    """All edges in order; of those a few floating-point numbers apart one, a window's where there is."""
    inside = switches[(switches > windows[0]) & (switches < windows[-1])]
    near = 2 * np.spacing(np.abs(windows[[0, -1]]).max())
    if len(inside):
        inside = inside[np.diff(inside, prepend=-np.inf) > near]
        at = np.searchsorted(windows, inside)
        inside = inside[np.minimum(inside - windows[at - 1], windows[at] - inside) > near]
    return np.union1d(windows, inside)


class _Measured(NamedTuple):
    """Panels with what is known of the functions there; arrays (panel,) and (panel, group).

    ``error`` is how far the Legendre series is from its end, ``gross`` the same without allowance for
    what is missed between the nodes, ``size`` the largest value, ``area`` the integral of the absolute
    value and ``floor`` how much of the error is due to the rounding of the times.
    """

    left: np.ndarray
    right: np.ndarray
    error: np.ndarray
    gross: np.ndarray
    size: np.ndarray
    area: np.ndarray
    floor: np.ndarray


def _points(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Times of the nodes, then just within both ends, then between the nodes, (panel, time)."""
    width = (right - left)[:, None]
    inside = INSIDE * np.spacing(np.maximum(np.abs(left), np.abs(right)))[:, None]
    times = left[:, None] + width * _ALL
    return np.clip(times, left[:, None] + np.minimum(inside, width / 64), None).clip(
        None, right[:, None] - np.minimum(inside, width / 64)
    )


def _measure(function: Function, left: np.ndarray, right: np.ndarray) -> _Measured:
    """The functions measured on the panels, some panels at a time."""
    middle = left[:1] + (right - left)[:1] / 2  # at the ends there may be no value
    at_once = max(1, MOST_VALUES // (len(_ALL) * function(middle).size))
    parts = [
        _measure_some(function, left[i : i + at_once], right[i : i + at_once])
        for i in range(0, len(left), at_once)
    ]
    arrays = (np.concatenate(column) for column in zip(*parts, strict=True))
    return _Measured(left, right, *arrays)


def _measure_some(
    function: Function, left: np.ndarray, right: np.ndarray
) -> tuple[np.ndarray, ...]:
    times = _points(left, right)
    values = function(times.ravel())
    values = values.reshape(*times.shape, *values.shape[1:])
    nodes, checks = values[:, :NODES], values[:, NODES:]
    tail = np.abs(np.einsum("cn,pnge->pcge", LEGENDRE[-2:], nodes)).max((1, 3))
    missed = np.abs(checks - np.einsum("cn,pnge->pcge", _TO_CHECKS, nodes)).max((1, 3))
    error = np.maximum(tail, missed * (RESOLVED / MEETS))
    size = np.abs(values).max((1, 3))
    area = (right - left)[:, None] * np.einsum("n,pnge->pge", WEIGHTS, np.abs(nodes)).max(2)
    floor = np.zeros_like(error)
    unsure = np.flatnonzero((error > RESOLVED * size).any(1))
    if len(unsure):
        floor[unsure] = _rounding_floor(function, times[unsure], values[unsure])
    return error, np.maximum(tail, missed), size, area, floor


def _rounding_floor(function: Function, times: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Largest part of the error that can be due to the rounding of the times alone, (panel, group).

    At large times a fast formula, such as sin(1000*t), cannot be smoother than what moving the time
    to the next floating-point number changes. Zero where that change is a jump rather than rounding.
    """
    with np.errstate(over="ignore"):
        moved = function(np.nextafter(times, times[:, :1]).ravel()).reshape(values.shape)
    change = np.abs(moved - values).max((1, 3))
    return np.where(change <= 1e-3 * np.abs(values).max((1, 3)), 4 * change, 0.0)


def _hidden(
    function: Function, found: _Measured, allowed: np.ndarray, total: float, peaks: np.ndarray
) -> tuple[np.ndarray, np.ndarray] | None:
    """The panels that hide something between their points, and where; None if none does."""
    order = np.argsort(found.left)
    left, right = found.left[order], found.right[order]
    entries = function((left[:1] + right[:1]) / 2).size
    count = min(PROBES, max(256, MOST_VALUES // entries))
    even = left[0] + total * (np.arange(count) + 0.5) / count
    at = np.searchsorted(left, even, "right") - 1
    even = even[SPACING * (right - left)[at] > total / count]
    times = np.sort(np.concatenate([even, peaks]))
    at = np.searchsorted(left, times, "right") - 1
    room = INSIDE * np.spacing(np.maximum(np.abs(left), np.abs(right)))[at]
    clear = (times - left[at] > room) & (right[at] - times > room)
    times, at = times[clear], at[clear]
    if not len(times):
        return None
    asked, at = np.unique(at, return_inverse=True)
    width = (right - left)[asked]
    values = function((left[asked][:, None] + width[:, None] * POINTS).ravel())
    series = np.einsum("cn,pnge->pcge", LEGENDRE, values.reshape(-1, NODES, *values.shape[1:]))
    powers = np.polynomial.legendre.legvander(
        2 * (times - left[asked][at]) / width[at] - 1, NODES - 1
    )
    missed = np.empty((len(times), values.shape[1]))
    for first in range(0, len(times), max(1, MOST_VALUES // (NODES * entries))):
        part = slice(first, first + max(1, MOST_VALUES // (NODES * entries)))
        expected = np.einsum("tc,tcge->tge", powers[part], series[at[part]])
        missed[part] = np.abs(function(times[part]) - expected).max(2)
    excess = (missed * (RESOLVED / MEETS) - allowed[order][asked][at]).max(1)
    if not (excess > 0).any():
        return None
    bad, where = np.zeros(len(left), dtype=bool), np.full(len(left), np.nan)
    for i in np.argsort(excess)[np.count_nonzero(excess <= 0) :]:  # the worst comes last
        bad[order[asked[at[i]]]], where[order[asked[at[i]]]] = True, times[i]
    return bad, where


def integrate(function: Function, panels: Panels, intervals: int) -> np.ndarray:
    """Integrals of a function over the panels that :func:`resolve` found for it, (interval, group, entry)."""
    nodes = panels.nodes
    shape = function(nodes[0, :1]).shape[1:]
    total = np.zeros((intervals, *shape))
    at_once = max(1, MOST_VALUES // (NODES * math.prod(shape)))
    for i in range(0, len(nodes), at_once):
        part = slice(i, i + at_once)
        values = function(nodes[part].ravel()).reshape(-1, NODES, *shape)
        parts = panels.widths[part, None, None] * np.tensordot(WEIGHTS, values, (0, 1))
        np.add.at(total, panels.owner[part], parts)
    return total
