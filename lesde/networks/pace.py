"""How long a training run will take, measured before it starts."""

from __future__ import annotations

import dataclasses
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
_STEPS, _SECONDS = 8, 1.0


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

    A fresh ensemble of the asked size takes as many steps as fit into about a second, and records the probe set a few times, and is thrown
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

    def seconds(images: ImageData, steps: Sequence[int]) -> list[float]:
        """Of making the networks and a first record, then of some steps and a record, again and again."""
        seen = [time.perf_counter()]
        times = _RATE * np.cumsum([0, *steps])
        runs = train_ensemble(
            images,
            architecture,
            _RATE,
            replicates,
            times,
            progress=lambda done, total: seen.append(time.perf_counter()),
            **options,
        )
        next(iter(runs))
        return np.diff(seen).tolist()

    # The first step and the first record set things up; they count as making the networks.
    start, *records = seconds(data, [1, 1])
    # Steps are timed with a probe set so small that its records take no time beside them.
    few = _one_of_each_class(data) if isinstance(data, ImageData) else data
    _, _, first = seconds(few, [1, _STEPS])
    steps = min(max(_STEPS, round(_SECONDS * _STEPS / first)), 2000)
    step = seconds(few, [1, steps])[-1] / steps
    record = max(0.0, min(records) - step)
    return start + step * iterations + record * saved


def _one_of_each_class(data: ImageData) -> ImageData:
    _, rows = np.unique(data.probe_y, return_index=True)
    return dataclasses.replace(data, probe_x=data.probe_x[rows], probe_y=data.probe_y[rows])
