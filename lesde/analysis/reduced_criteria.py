"""The criteria of separation from statistics: class means, and how far classes reach toward each other.

A function here gives the same scores as the criterion of its name in `lesde.analysis.criteria`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from lesde.analysis.criteria import DIRECTED
from lesde.checks import need_samples

__all__ = ["REDUCED", "ReducedFrame", "check_reducible", "reduced_criterion"]


@dataclass(frozen=True)
class ReducedFrame:
    """All replicates at one time.

    Attributes
    ----------
    means : ndarray (R, K, p), float64
    reach : ndarray (R, K, K)
        How far class k reaches from its mean toward class l, along ``direction``.
    direction : ndarray (K, K, p) or None
        Unit vectors from class l to class k; None for the gaps of each replicate's own means.
    """

    means: np.ndarray
    reach: np.ndarray
    direction: np.ndarray | None = None

    @cached_property
    def gaps(self) -> np.ndarray:
        """Distance of the class means along the direction, (R, K, K)."""
        gap = self.means[:, :, None] - self.means[:, None]
        if self.direction is not None:
            return np.einsum("rklp,klp->rkl", gap, self.direction)
        # scaled first, so that neither tiny nor huge gaps lose their squares
        size = np.abs(gap).max(axis=-1)
        unit = gap / np.where(size > 0, size, 1.0)[..., None]
        return size * np.linalg.norm(unit, axis=-1)


ReducedCriterion = Callable[[ReducedFrame], np.ndarray]
REDUCED: dict[str, ReducedCriterion] = {}


def reduced_criterion(name: str) -> Callable[[ReducedCriterion], ReducedCriterion]:
    """Register the form that a criterion takes on statistics, under the criterion's name."""

    def register(function: ReducedCriterion) -> ReducedCriterion:
        REDUCED[name] = function
        return function

    return register


def check_reducible(criterion: str, direction: Any) -> None:
    """Raise where statistics do not tell whether classes are separated."""
    if criterion not in REDUCED:
        raise need_samples("paths", f"criterion={criterion!r}")
    given = not isinstance(direction, str)
    if criterion in DIRECTED and (given or direction == "initial"):
        what = "a direction given as an array" if given else "direction='initial'"
        raise need_samples("paths", f"{what} (statistics know 'own' and 'ensemble')")


@reduced_criterion("projection")
def projection(frame: ReducedFrame) -> np.ndarray:
    """The gap of the means less what both classes reach into it."""
    return frame.gaps - (frame.reach + frame.reach.swapaxes(1, 2))


@reduced_criterion("nearest_center")
def nearest_center(frame: ReducedFrame) -> np.ndarray:
    """Half the gap of the means less the farther of the two reaches."""
    return 0.5 * frame.gaps - np.maximum(frame.reach, frame.reach.swapaxes(1, 2))
