"""Panels on which functions of time are resolved, and integrals over them, by Gauss and Legendre.

Every integral over time in the exact law goes through :func:`resolve`: it halves panels until the Legendre series of
the functions has ended in each, and meets them at points that lie close over all times.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

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
# Points over all times, at least, at which a function is compared with its series; and in one panel.
PROBES = 8192
CHECKS = 32
# Values at an end are taken so many floating-point numbers within: the switch may be at the end.
INSIDE = 4
# Panels of so many floating-point numbers are not halved.
ATOM = 32


# Nodes and weights on [0, 1]; the matrices from values at the nodes to Legendre coefficients and to integrals from 0.
_x, _w = np.polynomial.legendre.leggauss(NODES)
POINTS, WEIGHTS = (_x + 1) / 2, _w / 2
_values = np.polynomial.legendre.legvander(_x, NODES)
LEGENDRE = (_values[:, :NODES] * _w[:, None]).T * (np.arange(NODES)[:, None] + 0.5)
INTEGRATE = _values @ np.polynomial.legendre.legint(LEGENDRE, lbnd=-1) / 2


@lru_cache(maxsize=32)
def _checks(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and then ``count`` even points on [0, 1]; from values at the nodes to those of the series at the points."""
    even = np.linspace(0.0, 1.0, count)
    series = np.polynomial.legendre.legvander(2 * even - 1, NODES - 1) @ LEGENDRE
    return np.concatenate([POINTS, even]), series


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

    What counts is the integral from the first time to the end of each window, in which a panel may err by a share
    of :data:`RESOLVED` in proportion to its width. ``kept`` says which share of the integral before each window
    still counts at its end; all by default. Panels end at ``switches``, the places of jumps and kinks, and at
    ``peaks``, where the functions may be narrow. ValueError, with the ``name`` of a group's entry, where one has
    a pole or changes too often.
    """
    edges = _separate(windows, np.union1d(switches, peaks))
    left, right = edges[:-1], edges[1:]
    found, probed = _measure(function, left, right), np.zeros(len(left), dtype=bool)
    while True:
        width, rounding = right - left, np.spacing(np.maximum(np.abs(left), np.abs(right)))
        error, gross, size, area = found.transpose(1, 0, 2)
        owner = np.searchsorted(windows, left, "right") - 1
        parts = np.zeros((len(windows) - 1, area.shape[1]))
        np.add.at(parts, owner, area)
        if kept is None:
            parts = parts.cumsum(0)
        else:
            for i in range(1, len(parts)):
                parts[i] += kept[i] * parts[i - 1]
        mean = (parts / (windows[1:] - windows[0])[:, None])[owner]
        # A fast function at a large time cannot be smoother than the rounding of the time lets it.
        share = RESOLVED + rounding / (2 * width)
        allowed = share[:, None] * np.maximum(size, mean)
        atom = (width <= ATOM * rounding)[:, None]
        pole = atom & (size / BOUNDED > mean)
        bad = (error > allowed) & (gross * width[:, None] > NEGLIGIBLE * parts[owner]) & ~atom
        halved = bad.any(1)
        if not (bad | pole | ~probed[:, None]).any():
            order = np.argsort(left)
            return Panels(left[order], width[order], owner[order])
        if pole.any() or len(left) + halved.sum() > MOST_PANELS:
            stuck = pole if pole.any() else bad
            row, group = np.unravel_index(np.argmax(np.where(stuck, error, 0)), stuck.shape)
            values = function(left[row] + width[row] * POINTS)[:, group]
            entry = name(int(group), int(np.ptp(values, axis=0).argmax()))
            where = f"to integrate near t = {left[row]:g}"
            if stuck is bad:
                raise ValueError(
                    f"{entry} changes too often {where}: more than {MOST_PANELS} sub-intervals do not resolve it. "
                    f"Let `times` end earlier, or give a smoother function, free of cancellation."
                )
            raise ValueError(
                f"{entry} changes too abruptly {where}: it has a singularity there. Let `times` end before that "
                f"point or begin after it, or change the formula."
            )
        if not halved.any():
            some = ~probed
            found[some] = _measure(function, left[some], right[some], np.ptp(windows))
            probed[:] = True
            continue
        middle = left[halved] + width[halved] / 2
        new_left = np.concatenate([left[halved], middle])
        new_right = np.concatenate([middle, right[halved]])
        new = _measure(function, new_left, new_right)
        left = np.concatenate([left[~halved], new_left])
        right = np.concatenate([right[~halved], new_right])
        found = np.concatenate([found[~halved], new])
        probed = np.append(probed[~halved], np.zeros(len(new), dtype=bool))


def _separate(windows: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """All edges in order; of those a few floating-point numbers apart one, a window's where there is."""
    near = 2 * INSIDE * np.spacing(np.abs(windows[[0, -1]]).max())
    inside = inside[(inside > windows[0]) & (inside < windows[-1])]
    inside = inside[np.diff(inside, prepend=-np.inf) > near]
    at = np.searchsorted(windows, inside)
    clear = np.minimum(inside - windows[at - 1], windows[at] - inside) > near
    return np.union1d(windows, inside[clear])


def _measure(
    function: Function, left: np.ndarray, right: np.ndarray, total: float = np.inf
) -> np.ndarray:
    """What is known of the functions on panels, (panel, 4, group), where :data:`PROBES` points fill the ``total``.

    How far the Legendre series is from its end, allowing for what it misses between the nodes; the same without
    allowance; the largest value; and the integral of the absolute value.
    """
    middle = left[:1] + (right - left)[:1] / 2  # at the ends there may be no value
    _, groups, entries = function(middle).shape
    probes = min(PROBES, max(256, MOST_VALUES // (groups * entries)))
    asked = np.maximum(1.0, probes * (right - left) / total / CHECKS)
    counts = CHECKS * 2 ** np.ceil(np.log2(asked)).astype(int)
    found = np.empty((len(left), 4, groups))
    for count in np.unique(counts):
        alike = np.flatnonzero(counts == count)
        at_once = max(1, MOST_VALUES // ((NODES + count) * groups * entries))
        for first in range(0, len(alike), at_once):
            some = alike[first : first + at_once]
            found[some] = _measure_some(function, left[some], right[some], count)
    return found


def _measure_some(
    function: Function, left: np.ndarray, right: np.ndarray, count: int
) -> np.ndarray:
    points, series = _checks(count)
    width = (right - left)[:, None]
    inside = INSIDE * np.spacing(np.maximum(np.abs(left), np.abs(right)))[:, None]
    inside = np.minimum(inside, width / 64)
    times = np.clip(left[:, None] + width * points, left[:, None] + inside, right[:, None] - inside)
    values = function(times.ravel())
    values = values.reshape(*times.shape, *values.shape[1:])
    nodes, checks = values[:, :NODES], values[:, NODES:]
    tail = np.abs(np.einsum("cn,pnge->pcge", LEGENDRE[-2:], nodes)).max((1, 3))
    missed = np.abs(checks - np.einsum("cn,pnge->pcge", series, nodes)).max((1, 3))
    area = width * np.einsum("n,pnge->pge", WEIGHTS, np.abs(nodes)).max(2)
    error = np.maximum(tail, missed * (RESOLVED / MEETS))
    return np.stack([error, np.maximum(tail, missed), np.abs(values).max((1, 3)), area], 1)


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
