"""Confidence intervals for a probability that was counted."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.special import betaincinv, ndtri

from lesde.checks import check_choice, check_finite_array, check_fraction, check_integer

METHODS = ("wilson", "clopper-pearson")


def binomial_interval(
    successes: Any, trials: int, confidence: float = 0.95, method: str = "wilson"
) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper limit in [0, 1] for the success probability behind ``successes`` out of ``trials``.

    Parameters
    ----------
    successes : array_like
        Counts from 0 to ``trials``, any shape.
    trials : int
    confidence : float
        Between 0 and 1.
    method : "wilson" or "clopper-pearson"
        Wilson (1927): inverts the score test; its coverage is near ``confidence`` on average and
        can fall a little below. Clopper and Pearson (1934): inverts the exact binomial tests; never
        covers less than ``confidence``, and is wider.

    Examples
    --------
    >>> low, high = binomial_interval(0, 100)
    >>> f"{low:.4f} {high:.4f}"
    '0.0000 0.0370'
    """
    x = check_finite_array("successes", successes)
    n = check_integer("trials", trials)
    alpha = (1.0 - check_fraction("confidence", confidence)) / 2.0
    if (x < 0).any() or (x > n).any():
        raise ValueError(
            f"successes must lie between 0 and trials={n}; got {x.min()} to {x.max()}."
        )
    if check_choice("interval", method, METHODS) == "wilson":
        z = -ndtri(alpha)
        centre = (x + z * z / 2.0) / (n + z * z)
        half = z / (n + z * z) * np.sqrt(x * (n - x) / n + z * z / 4.0)
        lower, upper = centre - half, centre + half
    else:
        lower = betaincinv(np.maximum(x, 0.5), n - x + 1.0, alpha)
        upper = betaincinv(x + 1.0, np.maximum(n - x, 0.5), 1.0 - alpha)
    # at the ends the exact limits are 0 and 1; rounding would leave 1e-17
    return np.where(x == 0, 0.0, lower), np.where(x == n, 1.0, upper)


def replicates_to_add(trials: int, half_width: float, precision: float, block: int = 32) -> int:
    """The number of further replicates that should bring ``half_width`` down to ``precision``.

    The width falls as one over the root of the trials. Whole blocks, and at least one.
    """
    wanted = trials * (half_width / precision) ** 2 * 1.02
    return block * max(1, int(np.ceil((wanted - trials) / block)))
