"""Ticks of logarithmic and of centred axes: as many labels as there is room for, in one notation."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import (
    Formatter,
    FuncFormatter,
    Locator,
    LogLocator,
    MaxNLocator,
    NullFormatter,
)

__all__ = ["DIGIT", "centre_ticks", "number", "tidy_log", "widen_log"]

NARROW = 0.7
"""Decades below which ticks are evenly spaced round numbers."""
WIDE = 3.0
"""Decades above which labels are powers of ten."""
PLAIN = (1e-3, 1e4)
"""Numbers between these are written plainly, others as multiples of a power of ten."""
DIGIT = 0.64
"""Width of a digit of the font in font sizes."""


def number(value: float) -> str:
    """A number as a label shows it: at most three significant digits, with a true minus sign."""
    return f"{float(value):.3g}".replace("-", "−")


def tidy_log(ax: Axes, which: str, ticks: Sequence[float] | None = None) -> None:
    """Tick labels of a logarithmic axis that do not collide, chosen anew at every drawing.

    Call after the scale is set; limits and size may change afterwards. Numbers are plain where the
    axis spans few decades near 1, else powers of ten. ``ticks`` are used as they are, as many as fit.
    """
    axis: Any = ax.xaxis if which == "x" else ax.yaxis
    locator = LogTicks(ticks)
    axis.set_major_locator(locator)
    axis.set_major_formatter(LogLabels(locator))
    axis.set_minor_locator(MinorLogTicks())
    # Labels of minor ticks overprint each other where the axis is short.
    axis.set_minor_formatter(NullFormatter())


def widen_log(ax: Axes, factor: float = 2.0) -> None:
    """Let a logarithmic vertical axis span at least a factor, about the middle of what is drawn.

    The limits stay automatic, so that axes which share them, or draw more, still show everything.
    """
    low, high = ax.dataLim.minposy, ax.dataLim.y1
    if not (0 < low <= high < math.inf) or high >= factor * low:
        return
    middle, x = math.sqrt(low * high), ax.dataLim.x0
    ends = [(x, middle / math.sqrt(factor)), (x, middle * math.sqrt(factor))]
    ax.update_datalim(ends, updatex=False)
    ax.autoscale_view(scalex=False)


def centre_ticks(ax: Axes) -> None:
    """Few ticks about 0 in both directions, with short labels that do not collide."""
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(CentredTicks())
        axis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))


class LogTicks(Locator):
    """Major ticks: the finest of a few choices whose labels have room."""

    def __init__(self, ticks: Sequence[float] | None = None):
        self.given = None if ticks is None else sorted(float(value) for value in ticks)

    def __call__(self) -> Any:
        return self.tick_values(*self.axis.get_view_interval())  # type: ignore[union-attr]

    def tick_values(self, vmin: float, vmax: float) -> Any:
        """Ticks between two limits, for the axis as long as it now is."""
        low, high = sorted((vmin, vmax))
        if not 0 < low < high < math.inf:
            return np.array([])
        if self.given is not None:
            return np.array(self._with_room(_inside(self.given, low, high), low, high))
        for ticks in _choices(low, high):
            kept = self._with_room(ticks, low, high)
            if kept == ticks:
                break
        return np.array(kept)  # of the coarsest choice those that fit

    def labels(self, ticks: Sequence[float]) -> list[str]:
        """Labels of the ticks, all in one notation."""
        inside = [v for v in ticks if v > 0]
        if not inside:
            return ["" for _ in ticks]
        least = PLAIN[0] if self.given is None else PLAIN[0] / 10
        within = least * (1 - 1e-9) <= min(inside) and max(inside) <= PLAIN[1] * (1 + 1e-9)
        if within and (self.given is not None or max(inside) / min(inside) <= 10**WIDE * 1.001):
            return [number(v) for v in ticks]
        return [_scientific(v) for v in ticks]

    def _with_room(self, ticks: list[float], low: float, high: float) -> list[float]:
        """Ticks without those whose label would touch the one before."""
        length, size, across = _room(self.axis)
        kept: list[float] = []
        last = -math.inf
        for value, text in zip(ticks, self.labels(ticks), strict=True):
            at = length * math.log(value / low) / math.log(high / low)
            half = size * ((_digits(text) * DIGIT + 0.7) / 2 if across else 0.7)
            if at - half >= last:
                kept.append(value)
                last = at + half
        return kept


class LogLabels(Formatter):
    """Labels of `LogTicks`."""

    def __init__(self, locator: LogTicks):
        self.source = locator

    def format_ticks(self, values: Any) -> list[str]:
        """Labels of all ticks together."""
        return self.source.labels(list(values))

    def __call__(self, x: float, pos: int | None = None) -> str:
        return self.source.labels([float(x)])[0]


class MinorLogTicks(LogLocator):
    """Marks at 2, 3, …, 9 times the powers of ten; none where ticks are evenly spaced."""

    def __init__(self) -> None:
        super().__init__(subs=list(range(2, 10)))

    def tick_values(self, vmin: float, vmax: float) -> Any:
        """Minor ticks between two limits."""
        low, high = sorted((vmin, vmax))
        if not 0 < low < high < math.inf or high / low < 10**NARROW:
            return np.array([])
        return super().tick_values(vmin, vmax)


class CentredTicks(Locator):
    """Ticks at −r, 0, r with r of one digit; fewer where there is no room."""

    def __call__(self) -> Any:
        return self.tick_values(*self.axis.get_view_interval())  # type: ignore[union-attr]

    def tick_values(self, vmin: float, vmax: float) -> Any:
        """Ticks between two limits that are one the negative of the other."""
        reach = min(abs(vmin), abs(vmax))
        if not 0 < reach < math.inf:
            return np.array([0.0])
        power = math.floor(math.log10(0.85 * reach))
        digit = max(m for m in (1, 2, 3, 4, 5, 6, 8) if m <= 0.85 * reach / 10.0**power + 1e-9)
        r = float(f"{digit}e{power}")
        length, size, across = _room(self.axis)
        room = length * r / (2 * reach)  # from 0 to r
        width = len(_short(-r)) * DIGIT * size if across else size
        for ticks, need in (([-r, 0.0, r], (width + DIGIT * size) / 2), ([-r, r], width / 2)):
            if need + 0.3 * size <= room:
                return np.array(ticks)
        return np.array([r])


def _room(axis: Any) -> tuple[float, float, bool]:
    """Length of an axis and its font size in points, and True where it is horizontal."""
    box = axis.axes.bbox
    across = axis.axis_name == "x"
    length = (box.width if across else box.height) * 72 / axis.get_figure(root=True).dpi
    ticks = axis.majorTicks
    return length, ticks[0].label1.get_size() if ticks else 8.0, across


def _inside(values: Iterable[float], low: float, high: float) -> list[float]:
    return [v for v in values if low * (1 - 1e-9) <= v <= high * (1 + 1e-9)]


def _multiples(low: float, high: float, subs: Iterable[int], every: int = 1) -> list[float]:
    """Multiples of powers of ten, of every so many, within limits."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    powers = [k for k in range(first, last + 1) if k % every == 0]
    # From text, so that 1e-3 is the nearest number to it.
    return _inside([float(f"{m}e{k}") for k in powers for m in subs], low, high)


def _choices(low: float, high: float) -> Iterable[list[float]]:
    """Sets of ticks from fine to coarse."""
    decades = math.log10(high / low)
    if decades < NARROW:
        for count in (5, 4, 3, 2):
            even = MaxNLocator(count, steps=[1, 2, 5, 10]).tick_values(low, high)
            inside = [float(v) for v in even if low <= v <= high and v > 0]
            if len(inside) >= 2:
                yield inside
        yield _multiples(low, high, range(1, 10))
        return
    whole = _multiples(low, high, (1,))
    plain = PLAIN[0] <= low * 1.001 and high <= PLAIN[1]
    if len(whole) < 2 or (plain and decades <= 2):
        yield _multiples(low, high, (1, 2, 5))
        yield _multiples(low, high, (1, 3))
    for every in range(1, max(2, len(whole))):
        ticks = _multiples(low, high, (1,), every)
        if len(ticks) >= 2:
            yield ticks
    yield _multiples(low, high, (1, 2, 5)) if len(whole) < 2 else whole


def _short(value: float) -> str:
    """A number of one digit in few letters: 1e−4 for 0.0001."""
    if value == 0 or PLAIN[0] <= abs(value) <= PLAIN[1]:
        return number(value)
    mantissa, exponent = f"{value:.0e}".split("e")
    return f"{mantissa}e{int(exponent)}".replace("-", "−")


def _digits(label: str) -> float:
    """Length of a label in digits; exponents are smaller."""
    if not label.startswith("$"):
        return len(label)
    mantissa, exponent = label.strip("$").split("10^{")
    # "× " takes about two digits.
    return (len(mantissa.split("\\")[0]) + 2 if mantissa else 0) + 2 + 0.7 * (len(exponent) - 1)


def _scientific(value: float) -> str:
    mantissa, exponent = f"{value:.2e}".split("e")
    short = f"{float(mantissa):g}"
    power = f"10^{{{int(exponent)}}}"
    return f"${power}$" if short == "1" else f"${short}\\times{power}$"
