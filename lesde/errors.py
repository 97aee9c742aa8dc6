"""The exception of what diverges; everything else is a ``ValueError`` or ``TypeError``."""

from __future__ import annotations


class Diverged(ArithmeticError):
    """A trajectory, or its law, stopped being finite; ``time`` is the first at which that was seen.

    ``what`` stopped being finite, and the ``remedy`` are for the message.
    """

    def __init__(self, time: float, what: str = "the features", remedy: str | None = None):
        self.time = float(time)
        advice = remedy or "end `times` earlier, weaken the kernel, or use dtype='float64'"
        super().__init__(f"{what} stopped being finite at time {self.time:g}; {advice}.")
