"""The derived coefficients as numbers: what every engine runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import sympy as sp

from lesde.derivation.microscopic import class_coefficients
from lesde.entries import EntryTable
from lesde.transforms import Transform

if TYPE_CHECKING:
    from lesde.model import LESDE

__all__ = ["Coefficients", "derive_coefficients"]


@dataclass(frozen=True)
class Coefficients:
    """Tables of the derived drift and kicks, and the noise.

    Attributes
    ----------
    entries : EntryTable
        The kernel E_kl(t) as the user gave it.
    drift_table : EntryTable
        w_l E_kl(t): the factor of H_l X̄^l in the drift of class k.
    kick_table : EntryTable
        E_kl(t): the factor of h H_l X_J in the step on sample J of class l.
    transform : Transform
        The matrices H_l, with their structure.
    noise_factor : ndarray, shape (class, feature, feature)
        σ_k of a sample, per square root of time.
    counts : ndarray of int, shape (class,)
        Samples a class.
    """

    entries: EntryTable
    drift_table: EntryTable
    kick_table: EntryTable
    transform: Transform
    noise_factor: np.ndarray
    counts: np.ndarray

    def weights(self, times: np.ndarray) -> np.ndarray:
        """w_l E_kl at the times, shape (time, class, class), float64: the drift's class matrix."""
        return self._checked(self.drift_table, times)

    def kicks(self, times: np.ndarray) -> np.ndarray:
        """E_kl at the times, shape (time, class, class), float64: moved class first."""
        return self._checked(self.kick_table, times)

    def _checked(self, table: EntryTable, times: np.ndarray) -> np.ndarray:
        try:
            return table(times)
        except ValueError:
            self.entries(times)  # raises in terms of what the user wrote, where that is at fault
            raise

    @property
    def noise_covariance(self) -> np.ndarray:
        """σ_k σ_kᵀ, shape (class, feature, feature)."""
        return self.noise_factor @ np.swapaxes(self.noise_factor, -1, -2)

    def noise_scale(self) -> np.ndarray | None:
        """σ_k as numbers, shape (class,), where every factor is a multiple of I; else None."""
        p = self.noise_factor.shape[-1]
        scale = self.noise_factor[:, 0, 0]
        isotropic = (self.noise_factor == scale[:, None, None] * np.eye(p)).all()
        return scale if isotropic else None


def derive_coefficients(model: LESDE) -> Coefficients:
    """Apply the derived rule to each distinct entry of the model's kernel."""
    rule = class_coefficients()
    kicks = model.entries.combine(np.zeros_like(model.entries.index), lambda E, _: rule.kick(E))
    counts = [int(n) for n in model.counts]
    N = sum(counts)
    columns = np.broadcast_to(model.counts[None, :], model.entries.index.shape)
    drift = model.entries.combine(columns, lambda E, n: rule.drift(sp.Rational(n, N), E))
    return Coefficients(
        model.entries, drift, kicks, model.transform, model.noise_factor(), model.counts
    )
