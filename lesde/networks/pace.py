"""How long a training run will take, measured before it starts."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import nn

from ..checks import check_integer
from .datasets import ImageData
from .training import train_ensemble

__all__ = ["training_time"]

# Any rate will do: a step costs the same, and so small a one cannot diverge in a few steps.
_RATE = 1e-6

# Steps timed at first, and seconds that the timed steps should take in all.
_STEPS, _SECONDS = 8, 0.5


def training_time(
    data: ImageData,
    architecture: Callable[[], nn.Module],
    replicates: int | Sequence[int],
    iterations: int,
    *,
    saved: int = 50,
    **options: Any,
) -> float:
    """Seconds that a run of :func:`lesde.networks.train_ensemble` will take, from a few of its steps.

    A fresh ensemble of the asked size takes as many steps as fit into about a second, and is thrown
    away. What else the machine does at that time counts in full.

    Parameters
    ----------
    data, architecture, replicates
        As for :func:`lesde.networks.train_ensemble`.
    iterations : int
        Steps of SGD that each network will take, over all learning rates.
    saved : int, default 50
        Times at which the probe set will be recorded, over all learning rates.
    **options
        ``layers``, ``loss``, ``batch_size``, ``sampling``, ``dtype``, ``drawn`` and ``device``, as for
        :func:`lesde.networks.train_ensemble`.

    Returns
    -------
    float
        Seconds: of making the networks, of ``iterations`` steps and of ``saved`` records.

    Raises
    ------
    TypeError, ValueError
        As :func:`lesde.networks.train_ensemble`.

    Examples
    --------
    >>> from lesde.networks import digits, mlp
    >>> seconds = training_time(digits(classes=4), lambda: mlp(64, (32,), 4), 8, 10_000)
    >>> 0 < seconds < 600
    True
    """
    iterations = check_integer("iterations", iterations)
    saved = check_integer("saved", saved)

    def clock(steps: int) -> tuple[float, float, float]:
        """Seconds until the first record, of one step and a record, of ``steps`` and a record."""
        # The first step and the first record set things up, and are timed with the networks.
        times = _RATE * np.cumsum([0, 1, 1, 1, steps])
        begun = time.perf_counter()
        seen: list[float] = []

        def note(done: int, total: int) -> None:
            seen.append(time.perf_counter())

        runs = train_ensemble(
            data, architecture, _RATE, replicates, times, progress=note, **options
        )
        next(iter(runs))
        passed = np.diff(seen)
        return seen[0] - begun, float(min(passed[1:3])), float(passed[3])

    start, single, several = clock(_STEPS)
    step = max(0.0, several - single) / (_STEPS - 1)
    steps = round(_SECONDS / max(step, _SECONDS / 2000))
    if steps > 2 * _STEPS:
        steps = min(steps, max(2 * _STEPS, iterations))
        start, single, several = clock(steps)
        step = max(0.0, several - single) / (steps - 1)
    return start + step * iterations + max(0.0, single - step) * saved
