"""Ticks of logarithmic and of centred axes: as many labels as there is room for, in one notation."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import Formatter, Locator, LogLocator, MaxNLocator, NullFormatter

DIGIT = 0.64
"""Width of a digit of the font in font sizes."""


def number(value: float) -> str:
    """A number as a label shows it: at most three significant digits, with a true minus sign."""
    return f"{float(value):.3g}".replace("-", "−")


def centred(reach: float) -> tuple[list[float], list[str]]:
    """Ticks at −r, 0 and r, a round number of two thirds of the reach or more, and short labels."""
    power = 10.0 ** math.floor(math.log10(reach))
    digit = max(m for m in (1, 1.5, *range(2, 10)) if m <= reach / power * (1 + 1e-9))
    r = float(f"{digit * power:.2g}")
    text = f"{r:g}" if 1e-3 <= r < 1e4 else f"{digit:g}e{math.log10(power):.0f}".replace("-", "−")
    # Between long labels there is no room for another.
    left = "" if "e" in text or len(text) > 5 else f"−{text}"
    return [-r, 0.0, r], [left, "0" if len(text.replace(".", "")) <= 2 else "", text]


def tidy_log(ax: Axes, which: str) -> None:
    """Tick labels of a logarithmic axis that do not collide, chosen anew at every drawing.

    Call after the scale is set; limits and size may change afterwards.
    """
    axis: Any = ax.xaxis if which == "x" else ax.yaxis
    axis.set_major_locator(_Ticks())
    axis.set_major_formatter(_Labels())
    axis.set_minor_locator(LogLocator(subs=list(range(2, 10))))
    axis.set_minor_formatter(NullFormatter())


def widen_log(ax: Axes, factor: float = 2.0) -> None:
    """Let a logarithmic vertical axis span at least a factor, about the middle of what is drawn.

    The limits stay automatic, so that axes which share them, or draw more, still show everything.
    """
    low, high = ax.dataLim.minposy, ax.dataLim.y1
    if 0 < low <= high < factor * low:
        middle, x = math.sqrt(low * high), ax.dataLim.x0
        ends = [(x, middle / math.sqrt(factor)), (x, middle * math.sqrt(factor))]
        ax.update_datalim(ends, updatex=False)
        ax.autoscale_view(scalex=False)


class _Ticks(Locator):
    """Major ticks: the finest of a few choices whose labels have room."""

    axis: Any

    def __call__(self) -> Any:
        return self.tick_values(*self.axis.get_view_interval())

    def tick_values(self, vmin: float, vmax: float) -> Any:
        low, high = sorted((vmin, vmax))
        if not 0 < low < high < math.inf:
            return []
        inside: list[float] = []
        for ticks in _choices(low, high):
            inside = [v for v in ticks if low * (1 - 1e-9) <= v <= high * (1 + 1e-9)] or inside
            if len(inside) >= 2 and self._have_room(inside, math.log(high / low)):
                return inside
        return inside[:1]

    def _have_room(self, ticks: list[float], span: float) -> bool:
        """True where no label would touch the next."""
        across = self.axis.axis_name == "x"
        box, drawn = self.axis.axes.bbox, self.axis.majorTicks
        size = drawn[0].label1.get_size() if drawn else 7.0
        points = (box.width if across else box.height) * 72 / self.axis.get_figure(root=True).dpi
        gaps = np.diff(np.log(ticks)) / span * points / size  # in font sizes
        return bool((gaps > (max(map(_width, _texts(ticks))) + 0.7 if across else 1.4)).all())


class _Labels(Formatter):
    """Labels of `_Ticks`, all in one notation."""

    def format_ticks(self, values: Any) -> list[str]:
        return _texts(values)

    def __call__(self, x: float, pos: int | None = None) -> str:
        return _texts([x])[0]


def _choices(low: float, high: float) -> Iterator[Sequence[float]]:
    """Sets of ticks from fine to coarse."""
    decades = math.log10(high / low)
    if decades < 0.7:  # round numbers, evenly spaced
        for count in (5, 4, 3, 2):
            yield list(MaxNLocator(count, steps=[1, 2, 5, 10]).tick_values(low, high))
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    plain = low > 0.999e-3 and high < 1.001e4
    # From text, so that 1e-3 is the nearest number to it.
    if sum(low <= 10.0**k <= high for k in powers) < 2 or (plain and decades <= 2):
        for digits in ((1, 2, 5), (1, 3)):
            yield [float(f"{m}e{k}") for k in powers for m in digits]
    for every in range(1, len(powers)):
        yield [float(f"1e{k}") for k in powers if k % every == 0]


def _texts(ticks: Sequence[float]) -> list[str]:
    """Plain numbers where the axis spans few decades near 1, else multiples of powers of ten."""
    if len(ticks) == 0 or (min(ticks) >= 1e-3 and max(ticks) <= min(1e4, 1001 * min(ticks))):
        return [f"{v:.6g}" for v in ticks]
    return [_scientific(v) for v in ticks]


def _scientific(value: float) -> str:
    mantissa, exponent = f"{value:.3e}".split("e")
    factor = "" if float(mantissa) == 1 else f"{float(mantissa):g}\\times"
    return f"${factor}10^{{{int(exponent)}}}$"


def _width(label: str) -> float:
    """Width of a label in font sizes, roughly."""
    return DIGIT * (len(re.sub(r"[${}\\^]|times", "", label)) + 2 * ("times" in label))
