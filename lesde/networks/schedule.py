"""From times to iterations: t = learning rate x iteration."""

from __future__ import annotations

import numbers
from collections.abc import Sequence

import numpy as np

from ..checks import check_integer, check_real, check_sequence, shown
from ..iterations import common_step

__all__ = ["check_rates", "iterations_of", "saving_times"]


def saving_times(
    total: float,
    learning_rates: float | Sequence[float],
    count: int = 50,
    *,
    power: float = 2.0,
) -> np.ndarray:
    """Times at which to record, denser early, that fall on iterations of every learning rate.

    The times ``total * (i / count) ** power`` are rounded to multiples of the smallest time that is a
    whole number of steps at every learning rate, and repeated ones dropped, so there may be fewer than
    asked for. That is the largest learning rate where the others divide it.

    Parameters
    ----------
    total : float
        Time at which training ends, at least that smallest time.
    learning_rates : float or sequence of float
    count : int
        Recorded times at most, not counting time 0.
    power : float
        1 spaces the times evenly, more makes them denser early.

    Returns
    -------
    array (T,)
        Strictly increasing, from 0 to ``total`` (rounded).

    Examples
    --------
    >>> saving_times(40.0, (0.1, 0.5), count=4)
    array([ 0. ,  2.5, 10. , 22.5, 40. ])
    """
    rates = check_rates(learning_rates)
    total = check_real("total", total, max(rates))
    step = common_step(rates)
    if step is None or step > total:
        raise ValueError(
            f"learning_rates must share iterations up to total = {total:g}; those of "
            f"{', '.join(map(repr, rates))} first meet at "
            f"{'no time' if step is None else f'{step:g}'}. Give learning rates that divide one another, "
            f"such as 0.01, 0.02 and 0.04, or take times for each learning rate by itself."
        )
    count = check_integer("count", count, 1, 10**7)
    power = check_real("power", power, 0.0, open_minimum=True)
    wanted = total * (np.arange(count + 1) / count) ** power
    steps = np.unique(np.rint(wanted / step))
    # One division rather than a product: 3 / 10 prints as 0.3, 3 * 0.1 does not.
    inverse = 1 / step
    return steps / inverse if float(inverse).is_integer() else steps * step


def check_rates(learning_rates: float | Sequence[float]) -> list[float]:
    """Different positive learning rates, as a list."""
    if isinstance(learning_rates, numbers.Real):
        return [check_real("learning_rates", learning_rates, 0.0, open_minimum=True)]
    given = check_sequence(
        "learning_rates", learning_rates, "a positive number or a sequence of them"
    )
    rates = [
        check_real(f"learning_rates[{i}]", rate, 0.0, open_minimum=True)
        for i, rate in enumerate(given)
    ]
    if not rates or len(set(rates)) < len(rates):
        raise ValueError(
            f"learning_rates must hold at least one rate and each only once; got "
            f"{shown(learning_rates)}."
        )
    return rates


def iterations_of(times: np.ndarray, learning_rate: float) -> np.ndarray:
    """Iteration nearest to each time, int64; two times on one iteration are an error."""
    iterations = np.rint(times / learning_rate).astype(np.int64)
    same = np.flatnonzero(np.diff(iterations) == 0)
    if len(same):
        i = int(same[0])
        raise ValueError(
            f"times must be at least one step apart at every learning rate; {times[i]:g} and "
            f"{times[i + 1]:g} both fall on iteration {iterations[i]} at learning rate "
            f"{float(learning_rate)!r}. Space the times by at least the largest learning rate, for example "
            f"with lesde.networks.saving_times."
        )
    return iterations
