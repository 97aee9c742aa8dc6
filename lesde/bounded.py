"""Symbolic steps under a bound: SymPy may search for ever, and nobody waits for that.

Work is counted in function calls, which do not depend on how busy the machine is, by a profiling hook of
the calling thread: that interrupts SymPy at its next call, in any thread and on every system.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any, TypeVar

__all__ = ["Unfinished", "bounded"]

Result = TypeVar("Result")

MOST_CALLS = 2_500_000
"""About two seconds; integrals that a person would print take a tenth to three quarters of it."""
MOST_SECONDS = 3.0
"""Processor time of the thread, for steps whose single calls are long."""


class Unfinished(BaseException):
    """A step was given up. Not an Exception, which SymPy catches in many places."""


def bounded(step: Callable[..., Result], *arguments: Any) -> Result:
    """The value of ``step(*arguments)``.

    Raises
    ------
    Unfinished
        Where it takes more than :data:`MOST_CALLS` calls.
    """
    if sys.getprofile() is not None:  # within another bound, or under somebody's profiler
        return step(*arguments)
    left = MOST_CALLS
    end = time.thread_time() + MOST_SECONDS

    def count(frame: Any, event: str, argument: Any) -> None:
        nonlocal left
        left -= 1
        if left < 0 or (left % 64 == 0 and time.thread_time() > end):
            raise Unfinished

    sys.setprofile(count)
    try:
        return step(*arguments)
    finally:
        sys.setprofile(None)
